"""The GPU: its arrays, the kernels in the .cu files beside the ops, matrix products, and whole steps as graphs.

CuPy is imported when a GPU is first asked for, and only then. Its arrays answer to NumPy's functions (np.concatenate of
CuPy arrays computes on the GPU), so only what has a kernel of its own stands in the files *_cuda.py. Everything
runs on one stream and through one cuBLAS handle, so that a graph is the same work as the steps it was recorded from.
"""

import ctypes
import functools
import gc
import warnings
from pathlib import Path

import numpy as np

SHARED = Path(__file__).with_suffix(".cu")  # what all kernels share: put in front of each .cu file
WARM_UP = 2  # steps that a Graph runs before it records
COUNTERS = 1 << 12  # that a launch may take
WORKSPACE = 32 << 20  # bytes that cuBLAS may work in: what NVIDIA asks for on Hopper

tf32 = True  # whether float32 products may round their operands to TF32: 10 bits of mantissa, tensor cores
_stream = None
_counters = None


def on_gpu(x):
    """Whether the array x lies on the GPU. x may also be an int, such as a step: that does not."""
    return not isinstance(x, (np.ndarray, np.generic, int))


def arrays():
    """The types of arrays there are: NumPy's, and CuPy's once a GPU is in use."""
    return (np.ndarray, cupy().ndarray) if in_use() else np.ndarray


def to_host(x):
    """The array x as one of NumPy's, copied if it lies on the GPU; np.asarray(x, like=y) takes it to where y lies."""
    return x.get() if on_gpu(x) else x


@functools.cache
def cupy():
    """The module: imported here, never at the top of a file."""
    import cupy

    return cupy


@functools.cache
def nccl():
    """CuPy's module for NCCL, or None without that library."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a library that is not there: whoever needs it says what to install
        from cupy.cuda import nccl

    return nccl if nccl.available else None


def use(number=0):
    """Make GPU `number` and a stream of our own on it the ones that everything runs on."""
    global _stream, _counters
    cp = cupy()
    cp.cuda.Device(number).use()
    _stream = cp.cuda.Stream(non_blocking=True)  # the default stream can't be recorded
    _stream.use()
    _counters = cp.zeros(COUNTERS, np.uint32)  # on the way of no graph, so that it is 0 before the first launch
    _blas.cache_clear()


def in_use():
    """Whether a GPU was chosen."""
    return _stream is not None


def describe():
    """The GPU in use, CuPy's version and how float32 products are computed, in words."""
    name = cupy().cuda.runtime.getDeviceProperties(cupy().cuda.Device().id)["name"].decode()
    return f"{name}, CuPy {cupy().__version__}, products in {'TF32' if tensor_cores() else 'float32'}"


def tensor_cores():
    """Whether float32 products are computed in TF32: if they may be, and the GPU can (Ampere, sm_80, or later)."""
    return tf32 and int(cupy().cuda.Device().compute_capability) >= 80


def put(x, piece=64 << 20):
    """A copy of NumPy's array x on the GPU, made in pieces of so many bytes: CuPy pins as much of the host's memory."""
    there = cupy().empty(x.shape, x.dtype)
    rows = max(1, piece * len(x) // max(1, x.nbytes))
    for i in range(0, len(x), rows):
        there[i : i + rows].set(x[i : i + rows])
    return there


class Kernels:
    """The CUDA kernels of a .cu file, compiled when one is first called, for each float type.

        kernels = cuda.Kernels(__file__)  # in ops/activation_cuda.py: of activation.cu
        kernels("relu", blocks, threads, x, y, y.size)

    `file` is x.py or x_cuda.py, beside x.cu. In the .cu text `real` is the float type of the arrays, and #include "..."
    may name other files of its folder. Python's ints arrive as int, floats as real, NumPy's scalars as what they are,
    None as a null pointer. Arrays have to be contiguous (ValueError): a kernel sees an address and no strides.
    """

    def __init__(self, file):
        path = Path(file)
        self.file = path.with_name(f"{path.stem.removesuffix('_cuda')}.cu")

    def __call__(self, name, blocks, threads, *args):
        """Launch `name` on `blocks` (an int or up to three) of `threads` each."""
        real = next((a.dtype for a in args if getattr(a, "ndim", None) is not None and a.dtype.kind == "f"), np.float32)
        kernel = _module(self.file, np.dtype(real).name, tf32).get_function(name)
        grid = blocks if isinstance(blocks, tuple) else (blocks,)
        block = threads if isinstance(threads, tuple) else (threads,)
        kernel(grid, block, tuple(_argument(name, a, real) for a in args))


def _argument(kernel, value, real):
    if value is None:
        return np.uint64(0)
    if isinstance(value, np.generic):  # asked first: np.float64 is one of Python's floats
        return value
    if isinstance(value, int):
        return np.int32(value)
    if isinstance(value, float):
        return np.dtype(real).type(value)
    if not value.flags.c_contiguous:
        raise ValueError(f"kernel {kernel} was given an array of shape {value.shape} that is not contiguous")
    return value


@functools.cache
def _module(file, real, tf32):
    real = {"float32": "float", "float64": "double"}[real]
    options = (f"-DREAL={real}", f"-DTF32={int(tf32 and real == 'float')}", "--std=c++17")
    return cupy().RawModule(code=text(file), options=options)


def text(file):
    """All of the CUDA text that a .cu file stands for: SHARED, the file, and in it the files that it includes.

    They are put in here, not by the compiler: CuPy keeps what was compiled by the text that it was given.
    """

    def lines(path):
        code = path.read_text().splitlines(keepends=True)
        yield f'#line 1 "{path.name}"\n'
        for number, line in enumerate(code, 1):
            if line.startswith('#include "'):
                yield from lines(path.with_name(line.split('"')[1]))
                yield f'#line {number + 1} "{path.name}"\n'
            else:
                yield line

    return "".join([*lines(SHARED), *lines(file)])


def counters(count=1):
    """uint32, so many or more, 0 between launches: by which blocks find out which of them is the last (cuda.cu)."""
    if count > COUNTERS:
        raise ValueError(f"a launch takes at most {COUNTERS} counters, not {count}")
    return _counters


def blocks_for(count, threads=256):
    """How many blocks of `threads` give `count` elements a thread each."""
    return max(1, -(-count // threads))


def columns_of(rows, across=32):
    """Threads (x, y) of a block with so many rows, which has at most 1,024: as near to `across` columns as can be."""
    return min(across, 1024 // rows), rows


def matmul(a, b):
    """a @ b over the last two axes on the GPU: (..., M, K) @ (..., K, N) -> (..., M, N), the others broadcast.

    CuPy's own products can't be recorded in a graph, and copy operands that are only turned (x.swapaxes(-1, -2)).
    """
    cp = cupy()
    stack = np.broadcast_shapes(a.shape[:-2], b.shape[:-2])
    M, K, N = *a.shape[-2:], b.shape[-1]
    if b.shape[-2] != K or a.dtype != b.dtype:
        raise ValueError(f"matmul of {a.dtype} {a.shape} and {b.dtype} {b.shape}")
    out = cp.empty((*stack, M, N), a.dtype)
    (a, a_turned), (b, b_turned) = _layout(a, stack), _layout(b, stack)
    real, kind, compute = _GEMM[a.dtype.name, tf32]
    one, zero = real(1), real(0)
    # cuBLAS is column-major: it sees each of our row-major matrices turned, and computes out^T = b^T a^T
    _check(_blas()[0].cublasGemmStridedBatchedEx(
        _blas()[1], int(b_turned), int(a_turned), N, M, K, ctypes.byref(one),
        b.data.ptr, kind, K if b_turned else N, K * N if b.ndim > 2 else 0,
        a.data.ptr, kind, M if a_turned else K, M * K if a.ndim > 2 else 0, ctypes.byref(zero),
        out.data.ptr, kind, N, M * N, out.size // (M * N) if out.size else 0, compute, -1,
    ))  # fmt: skip
    return out


def _layout(x, stack):
    """x (..., R, S) as cuBLAS can read it, and whether that is turned: (..., S, R) in memory. 2-D serves all."""
    if x.ndim > 2 and x.shape[:-2] != stack:
        x = np.broadcast_to(x, (*stack, *x.shape[-2:]))
    if x.flags.c_contiguous:
        return x, False
    if x.swapaxes(-1, -2).flags.c_contiguous:
        return x.swapaxes(-1, -2), True
    return cupy().ascontiguousarray(x), False


# (C type of alpha and beta, cudaDataType_t, cublasComputeType_t); TF32 is for float32 alone
_GEMM = {
    ("float32", True): (ctypes.c_float, 0, 77),
    ("float32", False): (ctypes.c_float, 0, 68),
    ("float64", True): (ctypes.c_double, 1, 70),
    ("float64", False): (ctypes.c_double, 1, 70),
}


@functools.cache
def _blas():
    """cuBLAS, a handle that works on our stream, and the workspace, which has to outlive every graph."""
    library, handle = load_cublas(), ctypes.c_void_p()
    _check(library.cublasCreate_v2(ctypes.byref(handle)))
    _check(library.cublasSetStream_v2(handle, ctypes.c_void_p(_stream.ptr)))
    workspace = cupy().empty(WORKSPACE, np.uint8)
    _check(library.cublasSetWorkspace_v2(handle, ctypes.c_void_p(workspace.data.ptr), ctypes.c_size_t(WORKSPACE)))
    i, p, n = ctypes.c_int, ctypes.c_void_p, ctypes.c_longlong
    library.cublasGemmStridedBatchedEx.argtypes = [p, i, i, i, i, i, p, p, i, i, n, p, i, i, n, p, p, i, i, n, i, i, i]
    return library, handle, workspace


def load_cublas():
    """The cuBLAS that CuPy uses, as a ctypes library."""
    from cuda.pathfinder import load_nvidia_dynamic_lib

    return ctypes.CDLL(load_nvidia_dynamic_lib("cublas").abs_path)


def _check(status):
    if status:
        raise RuntimeError(f"cuBLAS failed with status {status}")


class Graph:
    """A function without arguments or result, recorded as a CUDA graph: a call is one launch, whatever it consists of.

    The first calls just run it (kernels are compiled, memory is found), the next one records it and launches that. What
    changes from call to call has to lie on the GPU and be changed in place. The memory it works in is a pool's that
    only graphs use, so that nothing else ever gets an address that the graph writes to. Graphs may share one, `like`
    another graph's: they are launched one after another, and none needs what another left there.
    """

    def __init__(self, function, like=None):
        self.function, self.calls, self.recorded = function, 0, None
        self.pool = like.pool if like else cupy().cuda.MemoryPool()

    def __call__(self):
        self.calls += 1
        if self.calls <= WARM_UP:
            cupy().get_default_memory_pool().free_all_blocks()  # what it has cached, this pool could not use
            with cupy().cuda.using_allocator(self.pool.malloc):
                self.function()
            return
        if self.recorded is None:
            self._record()
        self.recorded.launch(_stream)

    def forget(self):
        """Give up what was recorded: whoever recorded calls of a library has to before he closes that."""
        self.recorded = None

    def _record(self):
        _stream.synchronize()
        gc.collect()
        gc.disable()  # a cycle that dies while the stream records would free memory that is not ours
        try:
            with cupy().cuda.using_allocator(self.pool.malloc):
                _stream.begin_capture()
                try:
                    self.function()
                finally:
                    recorded = _stream.end_capture()
        finally:
            gc.enable()
        self.recorded = recorded  # not what was recorded until something went wrong
