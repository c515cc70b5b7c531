"""What minisagan uses of CuPy, without a GPU: NumPy computes the arrays, g++ compiles the kernels.

It is stricter than CuPy, so that what passes here has a chance there. New memory holds NaN. A kernel's arguments must
have the types of its C++ signature. While a stream captures, nothing runs: calls are recorded and run at each launch
of the graph, on the same addresses; whatever would synchronise, or touch host memory, is refused.
"""

import contextlib
import ctypes
import functools
import itertools
import types
import weakref

import numpy as np

from emulation import compiler

__version__ = "0"
GUARD = 512  # bytes before and after each array, which nobody may change
SHARED_LIMIT = 64 << 10  # bytes of shared memory that a block can ask for: sm_75's, the least of the GPUs that we serve

settings = types.SimpleNamespace(
    checked=False,  # kernels report races and out-of-bounds accesses: some ten times slower
    order="random",  # of threads and blocks: "forward", "reverse" or "random"
    seed=0,  # of the random order
    memory=1 << 40,  # bytes on the GPU
)


class EmulationError(RuntimeError):
    """A kernel, or the use of a graph, that would go wrong on a GPU, now and then or always."""


class OutOfMemoryError(MemoryError):
    """As cupy.cuda.memory.OutOfMemoryError."""


# ---- Memory


class _Block:
    """A stretch of GPU memory between guards."""

    live = weakref.WeakValueDictionary()  # by address

    def __init__(self, size):
        if sum(block.size for block in _Block.live.values()) + size > settings.memory:
            raise OutOfMemoryError(f"Out of memory allocating {size:,} bytes")
        self.size, raw = size, np.full(size + 2 * GUARD + 256, 0xFF, np.uint8)
        start = GUARD + -(raw.ctypes.data + GUARD) % 256
        self.before, self.bytes, self.after = raw[:start], raw[start : start + size], raw[start + size :]
        self.address = raw.ctypes.data + start
        _Block.live[self.address] = self

    def intact(self):
        return (self.before == 0xFF).all() and (self.after == 0xFF).all()


class _Memory:
    """A block in use: it goes back to its pool when the last array on it dies."""

    def __init__(self, block, pool):
        self.block, self.pool = block, pool

    def __del__(self):
        if self.pool.keeps:
            self.pool.free.setdefault(self.block.size, []).append(self.block)


class MemoryPool:
    """Reuses what was freed, and keeps it as long as it lives itself."""

    def __init__(self, keeps=True):
        self.keeps, self.free = keeps, {}

    def malloc(self, size):
        free = self.free.get(size)
        return _Memory(free.pop() if free else _Block(size), self)

    def free_all_blocks(self):
        self.free.clear()


_default_pool = MemoryPool(keeps=False)  # CuPy's gives freed memory to anybody: a graph must not count on it
_malloc = _default_pool.malloc


def get_default_memory_pool():
    return _default_pool


@contextlib.contextmanager
def using_allocator(malloc):
    global _malloc
    before, _malloc = _malloc, malloc
    try:
        yield
    finally:
        _malloc = before


# ---- Streams and graphs


class Stream:
    """Runs calls at once, or records them."""

    numbers = itertools.count(1)
    of = weakref.WeakValueDictionary()  # by ptr
    current = None

    def __init__(self, null=False, non_blocking=False):
        self.ptr, self.non_blocking, self.recorded = next(Stream.numbers), non_blocking, None
        Stream.of[self.ptr] = self

    def use(self):
        Stream.current = self
        return self

    def synchronize(self):
        _refuse_while_capturing("synchronize()")

    def begin_capture(self, mode=None):
        if not self.non_blocking:
            raise RuntimeError("cudaErrorStreamCaptureUnsupported: the default stream can't be captured")
        if self.recorded is not None:
            raise RuntimeError("cudaErrorIllegalState: the stream captures already")
        self.recorded = []

    def is_capturing(self):
        return self.recorded is not None

    def end_capture(self):
        if self.recorded is None:
            raise RuntimeError("cudaErrorIllegalState: the stream does not capture")
        graph, self.recorded = Graph(self.recorded), None
        return graph

    def submit(self, call, blocks):
        """Do call() now or at each launch. It must not hold the blocks: freed memory is to be seen as such."""
        if self.recorded is None:
            call()
        else:
            self.recorded.append((call, [weakref.ref(block) for block in blocks]))


Stream.null = Stream(null=True)
Stream.current = Stream.null


class Graph:
    """Calls to run again, on the memory that they were recorded with."""

    def __init__(self, calls):
        self.calls = calls

    def upload(self, stream=None):
        pass

    def launch(self, stream=None):
        for call, blocks in self.calls:
            if any(block() is None for block in blocks):
                raise EmulationError("the graph uses memory that was freed since it was recorded")
            call()


def _submit(call, *arrays):
    Stream.current.submit(call, [array._memory.block for array in arrays])


def _refuse_while_capturing(what):
    if Stream.current.recorded is not None:
        raise RuntimeError(f"the current stream is capturing, so {what} is not allowed")


# ---- Arrays


class ndarray(np.lib.mixins.NDArrayOperatorsMixin):
    """A cupy.ndarray: `_host` is NumPy's view of its memory."""

    def __init__(self, host, memory):
        self._host, self._memory = host, memory

    shape = property(lambda self: self._host.shape)
    dtype = property(lambda self: self._host.dtype)
    ndim = property(lambda self: self._host.ndim)
    size = property(lambda self: self._host.size)
    nbytes = property(lambda self: self._host.nbytes)
    itemsize = property(lambda self: self._host.itemsize)
    strides = property(lambda self: self._host.strides)
    flags = property(lambda self: self._host.flags)
    data = property(lambda self: types.SimpleNamespace(ptr=self._host.ctypes.data))
    T = property(lambda self: self.transpose())

    def get(self):
        _refuse_while_capturing("a copy to the host")
        return self._host.copy()

    def set(self, host):
        _refuse_while_capturing("a copy from the host")
        if type(host) is not np.ndarray or (host.shape, host.dtype) != (self.shape, self.dtype):
            raise ValueError(f"set() of {self.dtype} {self.shape} takes a NumPy array of the same kind")
        self._host[...] = host

    def item(self, *index):
        return self.get().item(*index)

    def tolist(self):
        return self.get().tolist()

    def __float__(self):
        return float(self.get())

    def __int__(self):
        return int(self.get())

    def __bool__(self):
        return bool(self.get())

    def __index__(self):
        return self.get().__index__()

    def __len__(self):
        return len(self._host)

    def __iter__(self):
        return (self[i] for i in range(len(self)))

    def __repr__(self):
        return repr(self._host).replace("array", "gpu_array", 1)

    def __array__(self, *args, **kwargs):
        raise TypeError("Implicit conversion to a NumPy array is not allowed. Please use `.get()`")

    def __array_ufunc__(self, ufunc, method, *inputs, out=None, **kwargs):
        if method != "__call__" or (ufunc.signature is not None and ufunc is not np.matmul):
            return NotImplemented
        if ufunc is np.matmul:
            _refuse_while_capturing("CuPy's matmul")
        for x in inputs:
            if isinstance(x, np.ndarray) and x.ndim:
                raise TypeError(f"Unsupported type {type(x)}: an operand lies in the host's memory")
        return _compute(ufunc, *inputs, out=out[0] if out else None, **kwargs)

    def __array_function__(self, function, kinds, args, kwargs):
        name = function.__name__
        if name not in FUNCTIONS:
            return NotImplemented
        own = globals().get(name)
        return (own or _module_function(name, function))(*args, **kwargs)

    def __getitem__(self, index):
        index, own = _index(index)
        if not own:
            key = index if isinstance(index, tuple) else (index,)
            if not any(k is Ellipsis for k in key):
                index = (*key, Ellipsis)  # so that a single element is an array, too
            return ndarray(self._host[index], self._memory)
        if any(array.dtype == bool for array in own):
            _refuse_while_capturing("to select by a mask")
        return _compute(lambda x, *_: x[index], self, *own)

    def __setitem__(self, index, value):
        index, own = _index(index)
        if isinstance(value, np.ndarray) and value.ndim:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        arrays = [value] if isinstance(value, ndarray) else []
        _submit(functools.partial(self._host.__setitem__, index, _plain(value)), self, *own, *arrays)

    def fill(self, value):
        self[...] = value


def _index(index):
    """An index for NumPy, and the GPU arrays in it."""
    key = index if isinstance(index, tuple) else (index,)
    if any(isinstance(k, (list, np.ndarray)) for k in key):
        _refuse_while_capturing("an index from the host")
        key = tuple(asarray(k) if isinstance(k, (list, np.ndarray)) else k for k in key)
    own = [k for k in key if isinstance(k, ndarray)]
    return tuple(k._host if isinstance(k, ndarray) else k for k in key), own


def _method(name):
    def method(self, *args, **kwargs):
        if not set(kwargs) <= {"axis", "dtype", "out", "keepdims", "ddof", "copy"}:
            raise TypeError(f"{name}() takes no {', '.join(kwargs)} in CuPy")
        return _compute(getattr(np.ndarray, name), self, *args, **kwargs)

    return method


for _name in (
    *("reshape", "transpose", "swapaxes", "squeeze", "ravel", "flatten", "view", "astype", "copy", "take", "repeat"),
    *("sum", "mean", "var", "std", "prod", "max", "min", "argmax", "argmin", "any", "all", "clip", "cumsum", "round"),
):
    setattr(ndarray, _name, _method(_name))


def _plain(x):
    if isinstance(x, (list, tuple)):
        return type(x)(_plain(item) for item in x)
    return x._host if isinstance(x, ndarray) else x


def _arrays(x):
    if isinstance(x, (list, tuple)):
        return [array for item in x for array in _arrays(item)]
    return [x] if isinstance(x, ndarray) else []


def _compute(function, *args, out=None, **kwargs):
    """function(*args, **kwargs) by NumPy: a view if NumPy's result is one, otherwise a new array, or `out`."""
    inputs = _arrays(args) + _arrays(list(kwargs.values()))
    plain = [_plain(x) for x in args], {name: _plain(x) for name, x in kwargs.items()}

    def call():
        with np.errstate(all="ignore"):  # a GPU does not warn
            return function(*plain[0], **plain[1])

    if out is not None:
        if not isinstance(out, ndarray):
            raise TypeError("out lies in the host's memory")
        plain[1]["out"] = out._host
        _submit(call, *inputs, out)
        return out
    result = call()  # even while a stream captures: for the shape
    if isinstance(result, (list, tuple)):
        return type(result)(_compute(lambda *a, i=i: function(*a, **plain[1])[i], *args) for i in range(len(result)))
    result = np.asarray(result)
    for x in inputs:
        if result.size and np.may_share_memory(result, x._host):
            return ndarray(result, x._memory)
    new = empty(result.shape, result.dtype)
    host = new._host
    if Stream.current.recorded is None:
        host[...] = result
    else:
        _submit(lambda: host.__setitem__(..., call()), new, *inputs)
    return new


# ---- The module's functions


def empty(shape, dtype=float):
    shape, dtype = shape if isinstance(shape, tuple) else (shape,), np.dtype(dtype)
    memory = _malloc(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
    array = ndarray(memory.block.bytes.view(dtype).reshape(shape), memory)
    _submit(functools.partial(memory.block.bytes.fill, 0xFF), array)  # NaN, for whoever reads before he writes
    return array


def full(shape, value, dtype=None):
    array = empty(shape, np.asarray(value).dtype if dtype is None else dtype)
    array[...] = value
    return array


def zeros(shape, dtype=float):
    return full(shape, 0, dtype)


def ones(shape, dtype=float):
    return full(shape, 1, dtype)


def empty_like(x, dtype=None):
    return empty(x.shape, dtype or x.dtype)


def zeros_like(x, dtype=None):
    return full(x.shape, 0, dtype or x.dtype)


def ones_like(x, dtype=None):
    return full(x.shape, 1, dtype or x.dtype)


def full_like(x, value, dtype=None):
    return full(x.shape, value, dtype or x.dtype)


def arange(*args, dtype=None):
    values = np.arange(*args, dtype=dtype)
    array = empty(values.shape, values.dtype)
    _submit(functools.partial(array._host.__setitem__, ..., values), array)
    return array


def array(x, dtype=None, copy=True):
    if isinstance(x, ndarray):
        return x.astype(dtype or x.dtype, copy=copy)
    _refuse_while_capturing("a copy from the host")
    host = np.asarray(x, dtype)
    new = empty(host.shape, host.dtype)
    new._host[...] = host
    return new


def asarray(x, dtype=None):
    return array(x, dtype, copy=False)


def ascontiguousarray(x, dtype=None):
    x = asarray(x, dtype)
    return x if x.flags.c_contiguous else x.copy()


def asnumpy(x):
    return x.get()


FUNCTIONS = {
    *("empty_like", "zeros_like", "ones_like", "full_like", "result_type", "copyto", "shape", "ndim", "size"),
    *("reshape", "transpose", "swapaxes", "moveaxis", "squeeze", "expand_dims", "ravel", "broadcast_to", "flip"),
    *("concatenate", "stack", "where", "take", "take_along_axis", "repeat", "tile", "pad", "roll", "split"),
    *("sum", "mean", "var", "std", "prod", "max", "min", "amax", "amin", "argmax", "argmin", "any", "all"),
    *("clip", "cumsum", "round", "copy", "sort", "argsort", "einsum", "tensordot", "dot", "norm"),
    *("array", "asarray", "empty", "zeros", "ones", "full"),  # of NumPy, with like=
}
_UNRECORDABLE = {"einsum", "tensordot", "dot", "matmul", "sort", "argsort"}  # cuBLAS and Thrust, as CuPy calls them
_OF_SHAPES = {"result_type", "shape", "ndim", "size"}  # whose results are no arrays


def _module_function(name, function=None):
    function = function or getattr(np, name)

    def call(*args, **kwargs):
        if name in _UNRECORDABLE:
            _refuse_while_capturing(f"CuPy's {name}")
        if name in ("concatenate", "stack") and len(args[0]) > 8:
            _refuse_while_capturing(f"{name} of more than eight arrays, whose addresses CuPy copies from the host")
        if name in _OF_SHAPES:
            return function(*_plain(args), **kwargs)
        if name == "copyto":
            args[0][...] = args[1]
            return None
        return _compute(function, *args, **kwargs)

    return call


def __getattr__(name):
    found = getattr(np, name)  # an AttributeError says it best
    if name in FUNCTIONS or isinstance(found, np.ufunc):
        return _module_function(name)
    if isinstance(found, (type, float, type(None))):
        return found
    raise AttributeError(f"the stand-in has no cupy.{name}: if CuPy has, put it into FUNCTIONS")


# ---- Kernels


class _Launch(ctypes.Structure):
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
            _refuse_while_capturing("to compile and load a module")
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
        cells = [self._cell(i, value, want) for i, (value, want) in enumerate(zip(args, wanted, strict=True))]
        blocks = [value._memory.block for value in args if isinstance(value, ndarray)]
        blocks += [block for value in args if isinstance(value, np.ndarray) for block in _pointed_at(value)]
        run = functools.partial(self._run, grid, block, shared_mem, cells, [weakref.ref(block) for block in blocks])
        Stream.current.submit(run, blocks)

    def _cell(self, number, value, want):
        """The bytes of an argument, as CuPy would pass it: an address, or a scalar of NumPy's type."""
        name = f"argument {number} of {self.name}"
        if isinstance(value, ndarray):
            addresses = want.endswith("**") and value.dtype in (np.int64, np.uint64)
            if want != f"{value.dtype}*" and not addresses and not want.startswith("struct"):
                raise TypeError(f"{name} is a {value.dtype} array, the kernel takes {want}")
            if not value.flags.c_contiguous:
                raise TypeError(f"{name} is not contiguous, and a kernel sees no strides")
            return np.array(value.data.ptr, np.uint64)
        if isinstance(value, np.ndarray):
            if value.size != 1 or want != f"struct of {value.itemsize}":
                raise TypeError(f"{name} lies in the host's memory")
            return value.copy()  # by value: a struct that NumPy describes
        if not isinstance(value, (bool, int, float, np.generic)):
            raise TypeError(f"{name} is a {type(value).__name__}")
        cell = np.array(value)  # Python's own: bool, int64, float64
        null = want.endswith("*") and cell.dtype == np.uint64 and cell == 0
        if cell.dtype.name != want and not null:
            raise TypeError(f"{name} is {cell.dtype} {value}, the kernel takes {want}")
        return cell

    def _run(self, grid, block, shared_mem, cells, blocks):
        library, error = self._library(), ctypes.create_string_buffer(1000)
        order = ("forward", "reverse", "random").index(settings.order)
        launch = _Launch(grid, block, shared_mem, order, settings.seed, 0, None, ctypes.addressof(error))
        if settings.checked:
            bounds = sorted((b.address, b.address + b.size) for b in _Block.live.values())
            bounds = np.array(bounds or [(0, 0)], np.uint64)
            launch.count, launch.arrays = len(bounds), bounds.ctypes.data
        addresses = (ctypes.c_void_p * max(1, len(cells)))(*[cell.ctypes.data for cell in cells])
        if not library.functions[self.name](ctypes.byref(launch), addresses):
            raise EmulationError(f"{self.name}: {library.locate(error.value.decode())}")
        if not all(block().intact() for block in blocks):
            raise EmulationError(f"{self.name} wrote before or after an array")


def _pointed_at(struct):
    """The blocks whose addresses lie in a struct of NumPy's: a graph needs them, too."""
    words = np.frombuffer(struct.tobytes() + bytes(-struct.nbytes % 8), np.uint64)
    blocks = {block.address: block for block in _Block.live.values()}
    starts = np.array(sorted(blocks), np.uint64)
    for start in np.unique(starts[np.searchsorted(starts, words, "right") - 1]):
        block = blocks[int(start)]
        if ((words >= start) & (words < start + block.size)).any():
            yield block


# ---- cupy.cuda


class Device:
    """The only one."""

    compute_capability = "80"

    def __init__(self, number=0):
        if number != 0:
            raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")
        self.id = number

    def use(self):
        return self

    @property
    def mem_info(self):
        return settings.memory - sum(block.size for block in _Block.live.values()), settings.memory

    def synchronize(self):
        _refuse_while_capturing("synchronize()")


cuda = types.SimpleNamespace(
    Device=Device,
    Stream=Stream,
    Graph=Graph,
    MemoryPool=MemoryPool,
    using_allocator=using_allocator,
    is_available=lambda: True,
    get_current_stream=lambda: Stream.current,
    memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    runtime=types.SimpleNamespace(
        getDeviceCount=lambda: 1,
        getDeviceProperties=lambda number: {"name": b"emulated on the CPU", "major": 8, "minor": 0},
        deviceSynchronize=lambda: _refuse_while_capturing("deviceSynchronize()"),
    ),
)
