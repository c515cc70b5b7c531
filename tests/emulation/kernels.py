"""Kernels as CuPy's RawModule gives them, compiled for the CPU, with strict types of arguments."""

import ctypes
import functools
import weakref

import numpy as np

from emulation import compiler
from emulation.runtime import Block, EmulationError, Stream, refuse_while_capturing, settings

SHARED_LIMIT = 64 << 10  # bytes of shared memory that a block can ask for: sm_75's, the least of the GPUs that we serve


class Launch(ctypes.Structure):
    """As in launch.h."""

    _fields_ = [
        ("blocks", ctypes.c_uint * 3),
        ("threads", ctypes.c_uint * 3),
        ("dynamic", ctypes.c_uint),
        ("order", ctypes.c_int),
        ("seed", ctypes.c_uint),
        ("count", ctypes.c_uint),
        ("arrays", ctypes.c_void_p),
        ("error", ctypes.c_char_p),
    ]


class RawModule:
    """Kernels of a CUDA text."""

    def __init__(self, *, code, options=()):
        self.code, self.defines = code, tuple(option for option in options if option.startswith("-D"))
        self.loaded = False

    def get_function(self, name):
        if not self.loaded:
            refuse_while_capturing("to compile and load a module")
        self.loaded = True
        return RawKernel(self, name)


class RawKernel:
    """A kernel: call it with grid, block and arguments."""

    def __init__(self, module, name):
        self.module, self.name, self._dynamic = module, name, 48 << 10
        if name not in self._library().types:
            raise EmulationError(f'there is no extern "C" __global__ void {name}')

    def _library(self):
        return compiler.library(self.module.code, self.module.defines, settings.checked)

    @property
    def max_dynamic_shared_size_bytes(self):
        return self._dynamic

    @max_dynamic_shared_size_bytes.setter
    def max_dynamic_shared_size_bytes(self, size):
        if size > SHARED_LIMIT:
            raise EmulationError(f"{self.name} asks for {size} bytes of shared memory, sm_75 has {SHARED_LIMIT}")
        self._dynamic = size

    def __call__(self, grid, block, args, *, shared_mem=0):
        grid, block = ((*size, 1, 1)[:3] for size in (grid, block))
        if not (min(*grid, *block) >= 1 and np.prod(block) <= 1024 and block[2] <= 64 and max(grid[1:]) < 65536):
            raise EmulationError(f"CUDA_ERROR_INVALID_VALUE: {self.name} on blocks {grid} of threads {block}")
        if shared_mem > self._dynamic:
            raise EmulationError(f"CUDA_ERROR_INVALID_VALUE: {self.name} with {shared_mem} bytes of shared memory")
        wanted = self._library().types[self.name]
        if len(wanted) != len(args):
            raise TypeError(f"{self.name} takes {len(wanted)} arguments ({', '.join(wanted)}), not {len(args)}")
        cells, blocks = [], []
        for number, (value, want) in enumerate(zip(args, wanted, strict=True)):
            cells.append(_cell(f"argument {number} of {self.name}", value, want))
            blocks += _pointed_at(value)
        run = functools.partial(self._run, grid, block, shared_mem, cells, [weakref.ref(block) for block in blocks])
        Stream.current.submit(run, blocks, self.name, sum(map(_nbytes, args)))

    def _run(self, grid, block, shared_mem, cells, blocks):
        library, error = self._library(), ctypes.create_string_buffer(1000)
        order = ("forward", "reverse", "random").index(settings.order)
        launch = Launch(grid, block, shared_mem, order, settings.seed, 0, None, ctypes.addressof(error))
        if settings.checked:
            bounds = sorted((block.address, block.address + block.size) for block in Block.live.values())
            bounds = np.array(bounds or [(0, 0)], np.uint64)
            launch.count, launch.arrays = len(bounds), bounds.ctypes.data
        addresses = (ctypes.c_void_p * max(1, len(cells)))(*[cell.ctypes.data for cell in cells])
        if not library.functions[self.name](ctypes.byref(launch), addresses):
            raise EmulationError(f"{self.name}: {library.locate(error.value.decode())}")
        if not all(block().intact() for block in blocks):
            raise EmulationError(f"{self.name} wrote before or after an array")


def _cell(name, value, want):
    """What CuPy would pass for an argument: an address, a number of NumPy's type, or a struct that NumPy describes."""
    if hasattr(value, "_memory"):
        addresses = want.endswith("**") and value.dtype in (np.int64, np.uint64)
        if want != f"{value.dtype}*" and not addresses and not want.startswith("struct"):
            raise TypeError(f"{name} is a {value.dtype} array, the kernel takes {want}")
        if not value.flags.c_contiguous:
            raise TypeError(f"{name} is not contiguous, and a kernel sees no strides")
        return np.array(value.data.ptr, np.uint64)
    if isinstance(value, np.ndarray):
        if value.size != 1 or want != f"struct of {value.itemsize}":
            raise TypeError(f"{name} lies in the host's memory")
        return value.copy()
    if not isinstance(value, (bool, int, float, np.generic)):
        raise TypeError(f"{name} is a {type(value).__name__}")
    cell = np.array(value)  # Python's own: bool, int64, float64
    null = want.endswith("*") and cell.dtype == np.uint64 and cell == 0
    if cell.dtype.name != want and not null:
        raise TypeError(f"{name} is {cell.dtype} {value}, the kernel takes {want}")
    return cell


def _nbytes(value):
    """The bytes of an argument's arrays, each counted once."""
    if hasattr(value, "_memory"):
        return value.nbytes
    return sum(block.size for block in _pointed_at(value))


def _pointed_at(value):
    """The blocks that an argument needs: an array's, and those whose addresses lie in a struct."""
    if hasattr(value, "_memory"):
        yield value._memory.block
    elif isinstance(value, np.ndarray):
        words = np.frombuffer(value.tobytes() + bytes(-value.nbytes % 8), np.uint64)
        starts = np.array(sorted(Block.live), np.uint64)
        for start in np.unique(starts[np.searchsorted(starts, words, "right") - 1]):
            block = Block.live.get(int(start))  # which may have died just now: then nobody can mean it
            if block and ((words >= start) & (words < start + block.size)).any():
                yield block
