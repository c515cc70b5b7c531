"""What minisagan calls of cuBLAS, on the memory of the stand-in for CuPy. Matrices are column-major.

The real CuPy on a driver of ours has other memory and streams: driver/on_driver.py.
"""

import ctypes

import numpy as np

from emulation.runtime import EmulationError, Stream, memory_at

_i, _p, _n = ctypes.c_int, ctypes.c_void_p, ctypes.c_longlong
_SIGNATURE = [_p, _i, _i, _i, _i, _i, _p, _p, _i, _i, _n, _p, _i, _i, _n, _p, _p, _i, _i, _n, _i, _i, _i]
_REAL = {0: (np.float32, ctypes.c_float), 1: (np.float64, ctypes.c_double)}  # by cudaDataType_t
_COMPUTE = {68: 0, 77: 0, 70: 1}  # CUBLAS_COMPUTE_32F, _32F_FAST_TF32, _64F -> the type of the matrices
SUCCESS, INVALID_VALUE = 0, 7


class Cublas:
    """A library as ctypes would load it."""

    def __init__(self):
        self.stream = self.workspace = None
        self.cublasGemmStridedBatchedEx = _Gemm(self)

    def memory(self, address, size):
        return memory_at(address, size)

    def stream_at(self, address):
        return Stream.of[address]

    def cublasCreate_v2(self, handle):
        handle._obj.value = 1
        return SUCCESS

    def cublasSetStream_v2(self, handle, stream):
        self.stream, self.workspace = self.stream_at(stream.value), None  # the workspace is back to its default
        return SUCCESS

    def cublasSetWorkspace_v2(self, handle, address, size):
        self.workspace = (address.value, size.value)
        return SUCCESS


class _Gemm:
    argtypes = None

    def __init__(self, library):
        self.library = library

    def __call__(self, *args):
        if self.argtypes != _SIGNATURE or len(args) != len(_SIGNATURE):
            raise TypeError("cublasGemmStridedBatchedEx needs its C types")
        (_, a_turned, b_turned, m, n, k, alpha, a, a_type, lda, a_step, b, b_type, ldb, b_step,
         beta, c, c_type, ldc, c_step, count, compute, _) = args  # fmt: skip
        kind = _COMPUTE[compute]
        if not (a_type == b_type == c_type == kind) or min(m, n, k, count) < 0:
            return INVALID_VALUE
        if lda < max(1, k if a_turned else m) or ldb < max(1, n if b_turned else k) or ldc < max(1, m):
            return INVALID_VALUE
        real, scalar = _REAL[kind]
        if not (isinstance(alpha._obj, scalar) and isinstance(beta._obj, scalar)):
            raise TypeError("alpha and beta need the type of the sums")
        alpha, beta = real(alpha._obj.value), real(beta._obj.value)
        if not self.library.workspace:
            raise EmulationError("no workspace of ours: cuBLAS would allocate one, which a graph can't")
        workspace, _ = self.library.memory(*self.library.workspace)
        blocks, turned = [workspace], []
        for address, rows, columns, ld, step in (
            (a, *((k, m) if a_turned else (m, k)), lda, a_step),
            (b, *((n, k) if b_turned else (k, n)), ldb, b_step),
            (c, m, n, ldc, c_step),
        ):
            block, values = _matrices(self.library.memory, address, real, rows, columns, ld, step, count)
            blocks.append(block)
            turned.append(values)
        A, B, C = turned
        if a_turned:
            A = A.swapaxes(1, 2)
        if b_turned:
            B = B.swapaxes(1, 2)
        rounded = _tf32 if compute == 77 else np.asarray

        def call():
            with np.errstate(all="ignore"):
                product = alpha * (rounded(A) @ rounded(B))
                C[...] = product + beta * C if beta else product

        self.library.stream.submit(call, blocks, "gemm", sum(x.nbytes for x in (A, B, C)))
        return SUCCESS


def _matrices(memory, address, real, rows, columns, ld, step, count):
    """(count, rows, columns) at an address: element (i, j) of matrix b lies at b step + j ld + i."""
    span = (count - 1) * step + (columns - 1) * ld + rows if min(rows, columns, count) else 0
    itemsize = np.dtype(real).itemsize
    block, data = memory(address, span * itemsize)
    strides = (step * itemsize, itemsize, ld * itemsize)
    return block, np.lib.stride_tricks.as_strided(data.view(real), (count, rows, columns), strides)


def _tf32(x):
    """x with 10 bits of mantissa, to nearest."""
    bits = np.ascontiguousarray(x).view(np.uint32)
    return ((bits + np.uint32(0x1000)) & np.uint32(0xFFFFE000)).view(np.float32)
