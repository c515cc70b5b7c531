"""What minisagan uses of CuPy, without a GPU: NumPy computes the arrays, g++ compiles the kernels.

It is stricter than CuPy, so that what passes here has a chance there. An array doesn't turn into NumPy's, nor mix with
one, but by get() and asarray(). While a stream captures, whatever would synchronise or touch host memory is refused.
"""

import functools
import math
import types

import numpy as np

from emulation.kernels import RawModule  # noqa: F401
from emulation.runtime import (  # noqa: F401
    Block,
    EmulationError,
    MemoryPool,
    OutOfMemoryError,
    Stream,
    default_pool,
    malloc,
    refuse_while_capturing,
    settings,
    using_allocator,
)

__version__ = "0"


# ---- Arrays


def _submit(name, call, *arrays):
    nbytes = sum(_touched(array._host) for array in arrays)
    Stream.current.submit(call, [array._memory.block for array in arrays], name, nbytes)


def _touched(x):
    """How many bytes of memory a view is of, where it may repeat them."""
    return x.itemsize * math.prod(size for size, stride in zip(x.shape, x.strides, strict=True) if stride)


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
        refuse_while_capturing("a copy to the host")
        return self._host.copy()

    def set(self, host):
        refuse_while_capturing("a copy from the host")
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
            refuse_while_capturing("CuPy's matmul")
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
            refuse_while_capturing("to select by a mask")
        return _compute(lambda x, *_: x[index], self, *own)

    def __setitem__(self, index, value):
        index, own = _index(index)
        if isinstance(value, np.ndarray) and value.ndim:
            raise ValueError("non-scalar numpy.ndarray cannot be used for fill")
        arrays = [value] if isinstance(value, ndarray) else []
        part = ndarray(np.asarray(self._host[index]), self._memory)
        _submit("copy", functools.partial(self._host.__setitem__, index, _plain(value)), part, *own, *arrays)

    def fill(self, value):
        self[...] = value


def _index(index):
    """An index for NumPy, and the GPU arrays in it."""
    key = index if isinstance(index, tuple) else (index,)
    if any(isinstance(k, (list, np.ndarray)) for k in key):
        refuse_while_capturing("an index from the host")
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
        _submit(function.__name__, call, *inputs, out)
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
        _submit(function.__name__, lambda: host.__setitem__(..., call()), new, *inputs)
    return new


# ---- The module's functions


def empty(shape, dtype=float):
    shape, dtype = shape if isinstance(shape, tuple) else (shape,), np.dtype(dtype)
    memory = malloc(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize)
    array = ndarray(memory.block.bytes.view(dtype).reshape(shape), memory)
    fill = functools.partial(memory.block.bytes.fill, 0xFF)  # NaN, for whoever reads before he writes
    _submit(None, fill, array)
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
    _submit("arange", functools.partial(array._host.__setitem__, ..., values), array)
    return array


def array(x, dtype=None, copy=True):
    if isinstance(x, ndarray):
        return x.astype(dtype or x.dtype, copy=copy)
    refuse_while_capturing("a copy from the host")
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
            refuse_while_capturing(f"CuPy's {name}")
        if name in ("concatenate", "stack") and len(args[0]) > 8:
            refuse_while_capturing(f"{name} of more than eight arrays, whose addresses CuPy copies from the host")
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


# ---- cupy.cuda


def get_default_memory_pool():
    return default_pool


class Device:
    """One of settings.gpus."""

    compute_capability, current = "80", 0

    def __init__(self, number=None):
        self.id = Device.current if number is None else number
        if self.id >= settings.gpus:
            raise RuntimeError("cudaErrorInvalidDevice: invalid device ordinal")

    pci_bus_id = property(lambda self: f"0000:{self.id:02d}:00.0")

    def use(self):
        Device.current = self.id
        return self

    @property
    def mem_info(self):
        return settings.memory - Block.in_use - default_pool.cached, settings.memory

    def synchronize(self):
        refuse_while_capturing("synchronize()")


cuda = types.SimpleNamespace(
    Device=Device,
    Stream=Stream,
    MemoryPool=MemoryPool,
    using_allocator=using_allocator,
    is_available=lambda: True,
    get_current_stream=lambda: Stream.current,
    memory=types.SimpleNamespace(OutOfMemoryError=OutOfMemoryError),
    runtime=types.SimpleNamespace(
        getDeviceCount=lambda: settings.gpus,
        runtimeGetVersion=lambda: 13000,
        getDeviceProperties=lambda number: {"name": b"emulated on the CPU", "major": 8, "minor": 0},
        deviceSynchronize=lambda: refuse_while_capturing("deviceSynchronize()"),
    ),
)
