"""Arithmetic with NumPy's broadcasting, matrix products, shapes and sums; the operators of Tensor.

    y = a + b     da = g        db = g
    y = a - b     da = g        db = -g
    y = a * b     da = g b      db = g a
    y = a / b     da = g / b    db = -g y / b
    y = a @ b     da = g b^T    db = a^T g
    y = sum a     da = g, repeated;  reshape and transpose put g back as a was

An operand that was broadcast gets its cotangent summed over the axes it was repeated along. Sums over the
first axis are made as sums over a batch are (ranks.py): in an order that is the same for any number of processes.
"""

import numpy as np

from minisagan import cuda, device, ranks
from minisagan.autograd import Tensor


def add(a, b):
    """a + b."""
    a, b = _pair(a, b)
    shapes = a.shape, b.shape

    def vjp(g, needs):
        return [_summed_to(g, shape) if need else None for shape, need in zip(shapes, needs, strict=True)]

    return Tensor(device.elementwise(np.add, a.data, b.data), (a, b), vjp)


def multiply(a, b):
    """a * b, element by element."""
    a, b = _pair(a, b)
    ad, bd = a.data, b.data

    def vjp(g, needs):
        return (
            _summed_to(g * bd, ad.shape) if needs[0] else None,
            _summed_to(g * ad, bd.shape) if needs[1] else None,
        )

    return Tensor(ad * bd, (a, b), vjp)


def divide(a, b):
    """a / b, element by element."""
    a, b = _pair(a, b)
    y, bd, shape = a.data / b.data, b.data, a.shape

    def vjp(g, needs):
        return (
            _summed_to(g / bd, shape) if needs[0] else None,
            _summed_to(-g * y / bd, bd.shape) if needs[1] else None,
        )

    return Tensor(y, (a, b), vjp)


def subtract(a, b):
    """a - b."""
    a, b = _pair(a, b)
    return add(a, multiply(b, -1))


def matmul(a, b):
    """The matrix product over the last two axes, (..., M, K) @ (..., K, N) -> (..., M, N), the others broadcast."""
    a, b = _pair(a, b)
    ad, bd = a.data, b.data
    if ad.ndim < 2 or bd.ndim < 2:
        raise ValueError(f"matmul takes matrices or stacks of them, not shapes {ad.shape} and {bd.shape}")
    product = cuda.matmul if cuda.on_gpu(ad) else np.matmul

    def over_rows(a, g):
        if a.ndim > 2 or cuda.on_gpu(a):
            return product(a.swapaxes(-1, -2), g)
        return ranks.batch_product(a, g)

    def vjp(g, needs):
        return (
            _summed_to(product(g, bd.swapaxes(-1, -2)), ad.shape) if needs[0] else None,
            _summed_to(over_rows(ad, g), bd.shape) if needs[1] else None,
        )

    return Tensor(product(ad, bd), (a, b), vjp)


def reshape(x, shape):
    """x with another shape of the same size."""
    before = x.shape
    return Tensor(x.data.reshape(shape), (x,), lambda g, needs: (g.reshape(before),))


def transpose(x, axes=None):
    """x with its axes in the order `axes` (default: reversed)."""
    back = None if axes is None else tuple(np.argsort([axis % x.ndim for axis in axes]))
    return Tensor(x.data.transpose(axes), (x,), lambda g, needs: (g.transpose(back),))


def sum(x, axis=None, keepdims=False):
    """The sum over `axis` (default: all): each summed element gets the sum's cotangent."""
    shape = x.shape

    def vjp(g, needs):
        if axis is not None and not keepdims:
            g = np.expand_dims(g, axis)
        return (np.broadcast_to(g, shape),)

    return Tensor(x.data.sum(axis=axis, keepdims=keepdims), (x,), vjp)


def mean(x, axis=None, keepdims=False):
    """The mean over `axis` (default: all)."""
    y = sum(x, axis, keepdims)
    return multiply(y, y.data.size / x.data.size)


def _pair(a, b):
    """Both as tensors; a constant takes the other's dtype, so that no float64 leaks into float32, and its device."""
    return (a, _constant(b, a.data)) if isinstance(a, Tensor) else (_constant(a, b.data), b)


def _constant(value, like):
    """A tensor of `value`, unless it is one. A number stays one, also beside a GPU's array: nothing is copied there."""
    if isinstance(value, Tensor):
        return value
    if np.isscalar(value):
        return Tensor(like.dtype.type(value))
    return Tensor((cuda.cupy() if cuda.on_gpu(like) else np).asarray(value, like.dtype))


def _summed_to(g, shape):
    """The transpose of broadcasting `shape` to g's shape: sum over the axes that were repeated."""
    if g.shape == shape:
        return g
    if (extra := g.ndim - len(shape)) and not cuda.on_gpu(g):
        g = ranks.batch_sum(g.sum(axis=tuple(range(1, extra))))
    else:
        g = g.sum(axis=tuple(range(extra)))
    return g.sum(axis=tuple(i for i, size in enumerate(shape) if size == 1 != g.shape[i]), keepdims=True)


Tensor.__add__ = Tensor.__radd__ = add
Tensor.__mul__ = Tensor.__rmul__ = multiply
Tensor.__sub__ = subtract
Tensor.__rsub__ = lambda b, a: subtract(a, b)
Tensor.__truediv__ = divide
Tensor.__rtruediv__ = lambda b, a: divide(a, b)
Tensor.__neg__ = lambda a: multiply(a, -1)
Tensor.__matmul__ = matmul
Tensor.reshape = lambda x, *shape: reshape(x, shape)
Tensor.transpose = lambda x, *axes: transpose(x, axes or None)
Tensor.sum = sum
Tensor.mean = mean
