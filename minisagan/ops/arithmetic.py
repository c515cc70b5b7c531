"""Arithmetic with NumPy's broadcasting, matrix products, shapes and sums; the operators of Tensor.

    y = a + b     da = g        db = g
    y = a - b     da = g        db = -g
    y = a * b     da = g b      db = g a
    y = a / b     da = g / b    db = -g y / b
    y = a @ b     da = g b^T    db = a^T g
    y = sum a     da = g, repeated;  reshape and transpose put g back as a was

An operand that was broadcast gets its cotangent summed over the axes it was repeated along. The first axis is taken for
the batch: a sum that includes it is made as batch.py says, over this process's images.
"""

import numpy as np
from numpy.lib.array_utils import normalize_axis_tuple

from minisagan import batch
from minisagan.autograd import Tensor
from minisagan.primitives import primitive


def add(a, b):
    """a + b."""
    a, b = _pair(a, b)
    return _broadcasting("add", a.data + b.data, (a, b), lambda g: g, lambda g: g)


def multiply(a, b):
    """a * b, element by element."""
    a, b = _pair(a, b)
    ad, bd = a.data, b.data
    return _broadcasting("multiply", ad * bd, (a, b), lambda g: g * bd, lambda g: g * ad)


def divide(a, b):
    """a / b, element by element."""
    a, b = _pair(a, b)
    y, bd = a.data / b.data, b.data
    return _broadcasting("divide", y, (a, b), lambda g: g / bd, lambda g: -g * y / bd)


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

    def of_b(g):
        if ad.ndim == bd.ndim == 2:  # the rows of a are images, and b is shared by them
            return batch.sum(image_product, ad, g)
        return product(ad.swapaxes(-1, -2), g)

    return _broadcasting("matmul", product(ad, bd), (a, b), lambda g: product(g, bd.swapaxes(-1, -2)), of_b)


@primitive
def product(a, b):
    return a @ b  # (..., M, K) @ (..., K, N) -> (..., M, N)


@primitive
def image_product(a, g):
    return a.T @ g  # (N, K), (N, M) -> (K, M): a sum over images


@primitive
def image_sum(x):
    return x.sum(0, keepdims=True)  # (N, ...) -> (1, ...)


def reshape(x, shape):
    """x with another shape of the same size."""
    before = x.shape
    return Tensor(x.data.reshape(shape), (x,), lambda g, needs: (g.reshape(before),), "reshape")


def transpose(x, axes=None):
    """x with its axes in the order `axes` (default: reversed)."""
    back = None if axes is None else tuple(np.argsort([axis % x.ndim for axis in axes]))
    return Tensor(x.data.transpose(axes), (x,), lambda g, needs: (g.transpose(back),), "transpose")


def sum(x, axis=None, keepdims=False):
    """The sum over `axis` (default: all): each summed element gets the sum's cotangent."""
    shape = x.shape
    axes = set(range(x.ndim)) if axis is None else set(normalize_axis_tuple(axis, x.ndim))
    y = _summed(x.data, axes)
    if not keepdims:
        y = y.reshape([size for a, size in enumerate(shape) if a not in axes])

    def vjp(g, needs):
        if axis is not None and not keepdims:
            g = np.expand_dims(g, axis)
        return (np.broadcast_to(g, shape),)

    return Tensor(y, (x,), vjp, "sum")


def mean(x, axis=None, keepdims=False):
    """The mean over `axis` (default: all)."""
    y = sum(x, axis, keepdims)
    return multiply(y, y.data.size / x.data.size)


def _broadcasting(name, y, operands, *rules):
    """The Tensor of y, with each operand's rule, g -> its cotangent before the sums over what was broadcast."""
    shapes = [x.shape for x in operands]

    def vjp(g, needs):
        each = zip(rules, shapes, needs, strict=True)
        return [_summed_to(rule(g), shape) if need else None for rule, shape, need in each]

    return Tensor(y, operands, vjp, name)


def _pair(a, b):
    """Both as tensors; a constant takes the other's dtype, if that has fractions: no float64 leaks into float32."""
    return (a, _constant(b, a.data)) if isinstance(a, Tensor) else (_constant(a, b.data), b)


def _constant(value, like):
    """A tensor of `value`, unless it is one; a number stays one, and an array comes to lie where `like` does."""
    if isinstance(value, Tensor):
        return value
    dtype = like.dtype if like.dtype.kind == "f" else None
    if np.isscalar(value):
        return Tensor(like.dtype.type(value) if dtype else np.asarray(value)[()])  # [()]: one of NumPy's numbers
    return Tensor(np.asarray(value, dtype, like=like[...]))  # [...] makes an array of one of NumPy's scalars


def _summed_to(g, shape):
    """The transpose of broadcasting `shape` to g's shape: sum over the axes that were repeated."""
    ones = (1,) * (g.ndim - len(shape)) + shape
    return _summed(g, {a for a, size in enumerate(ones) if size == 1 != g.shape[a]}).reshape(shape)


def _summed(x, axes):
    """The sum over these axes, which stay with size 1; if the first is one of them, a sum over the batch."""
    if rest := tuple(axes - {0}):
        x = x.sum(axis=rest, keepdims=True)
    return batch.sum(image_sum, x) if 0 in axes else x


def _each(given):
    """The numbers of x.reshape(2, 3) or x.reshape((2, 3)): both are NumPy's."""
    return given[0] if len(given) == 1 and isinstance(given[0], tuple | list) else given


Tensor.__add__ = Tensor.__radd__ = add
Tensor.__mul__ = Tensor.__rmul__ = multiply
Tensor.__sub__ = subtract
Tensor.__rsub__ = lambda b, a: subtract(a, b)
Tensor.__truediv__ = divide
Tensor.__rtruediv__ = lambda b, a: divide(a, b)
Tensor.__neg__ = lambda a: multiply(a, -1)
Tensor.__matmul__ = matmul
Tensor.__rmatmul__ = lambda b, a: matmul(a, b)
Tensor.reshape = lambda x, *shape: reshape(x, _each(shape))
Tensor.transpose = lambda x, *axes: transpose(x, _each(axes) or None)
Tensor.sum = sum
Tensor.mean = mean
