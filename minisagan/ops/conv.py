"""Convolution. (Next to resampling it is cheaper: resampled_conv.py.)

    y[n, h, w, o] = b[o] + sum_ijc  x[n, s h + i - t, s w + j - l, c] w[i, j, c, o]

Pixel (h, w) of image n has channels c in x and o in y; (i, j) is a tap of the kernel, s the stride, and t and l are the
rows and columns of zeros above and to the left of x. A 3x3 convolution is thus nine products of shifted images with
matrices (C, O), added up. Three sums over taps serve it and its derivatives, each the derivative of another:

    gather     y[h, w]                          = sum_ij  x[s h + i - t, s w + j - l] @ w[i, j]      forward
    scatter    y[s h + i - t, s w + j - l]     += x[h, w] @ w[i, j]                                  its transpose: dx
    outer      dw[i, j]                         = sum_nhw x[s h + i - t, s w + j - l]^T g[h, w]      dw from x and g

outer returns one more row, db = sum_nhw g[h, w]: a bias is the weight of one more input that is 1 everywhere.

The ReLU before a convolution is applied as x is read. What a residual block adds (`rest`), and the cotangents that x
has from other ops, are added as the sum is stored: y = b + rest + gather(max(x, 0), w), and dx = so far +
[x > 0] scatter(g, w^T). So none of them costs a pass over memory of its own.
"""

import numpy as np

from minisagan import batch, kinks
from minisagan.autograd import Tensor
from minisagan.ops.resample import repeat, sum_blocks
from minisagan.primitives import primitive


def conv(x, w, b=None, stride=1, rest=None, relu=False):
    """Convolution with zero padding: x (N, H, W, C), w (kh, kw, C, O) of odd kh, kw, b (O,) -> (N, H/s, W/s, O).

    H/s and W/s are rounded up. `rest`, of y's shape or up-sampled to it, is added; with `relu`, x stands for max(x, 0),
    and dx is 0 unless x > 0.
    dx = scatter(g, w^T);  dw and db = outer(x, g);  drest = g, summed over 2x2 where it was up-sampled.
    """
    kh, kw = w.shape[:2] if w.ndim == 4 else (1, 1)  # else `convolution` says so
    if kh % 2 == 0 or kw % 2 == 0 or stride not in (1, 2):
        raise ValueError(f"conv takes odd kernels and stride 1 or 2, not {kh}x{kw} and {stride}")
    xd, wd, at = x.data, w.data, (stride, kh // 2, kw // 2)  # stride, top, left
    size = tuple(-(-side // stride) for side in x.shape[1:3])  # rounded up
    return convolution(
        "conv", (x, w, b, rest), relu,
        lambda x, *more: gather(x, wd, *at, size, *more),
        lambda g, *more: scatter(g, swapped(wd), *at, xd.shape[1:3], None, *more),
        lambda g: outer(xd, g, (kh, kw), *at, relu),
    )  # fmt: skip


def convolution(name, inputs, relu, forward, dx, dw_db):
    """The Tensor of forward(x, bias, rest, relu).

    For its backward pass it takes dw_db(g), as `outer` gives it, and dx(g, so_far, gate): the gate is x with `relu`,
    else None.
    """
    x, w, b, _ = inputs
    if x.ndim != 4 or w.ndim != 4 or x.shape[3] != w.shape[2] or (b is not None and b.shape != w.shape[3:]):
        shapes = ", ".join(str(p.shape) for p in inputs[:3] if p is not None)
        raise ValueError(f"a convolution takes x (N, H, W, C), w (kh, kw, C, O) and b (O,), not {shapes}")
    x, bias, rest = (p if p is None else p.data for p in (x, b, inputs[3]))
    on = kinks.chosen(lambda: x > 0) if relu else None  # None, except in a gradient check
    y = forward(x if on is None else x * on, bias, rest, relu and on is None)
    small = rest is not None and rest.shape != y.shape  # of half the height and width
    if small and rest.shape != (len(y), y.shape[1] / 2, y.shape[2] / 2, y.shape[3]):
        raise ValueError(f"a convolution of shape {y.shape} can't be added to a rest of shape {rest.shape}")
    shape, given = w.shape, [p is not None for p in inputs]

    def vjp(g, needs):
        found = [lambda so_far: dx(g, so_far, x if relu else None), None, None, sum_blocks(g, 1) if small else g]
        if any(needs[1 : 2 + given[2]]):  # w, and b if there is one
            rows = dw_db(g)
            found[1:3] = rows[:-1].reshape(shape), rows[-1]
        return [cotangent for cotangent, wanted in zip(found, given, strict=True) if wanted]

    return Tensor(y, [p for p in inputs if p is not None], vjp, name)


swapped = lambda w: w.transpose(0, 1, 3, 2)  # (kh, kw, C, O) -> (kh, kw, O, C): the w^T of each tap


def _padded(x, kernel, stride, top, left, size):
    """x (N, H, W, C) amid zeros, as a view of the middle; and tap(i, j), the view (N, *size, C) of what that tap meets,
    x[s h + i - top, s w + j - left]. gather and outer read through it, scatter adds through it."""
    (kh, kw), (_, H, W, _) = kernel, x.shape
    wide = np.pad(x, ((0, 0), (kh, kh), (kw, kw), (0, 0)))  # a kernel's size on each side is enough for all taps
    tap = lambda i, j: wide[:, kh + i - top :: stride, kw + j - left :: stride][:, : size[0], : size[1]]
    return wide[:, kh : kh + H, kw : kw + W], tap


@primitive
def gather(x, w, stride, top, left, size, bias=None, rest=None, relu=False):
    """y[h, w] = bias + rest + sum_ij x[s h + i - t, s w + j - l] @ w[i, j]: (N, H, W, C) -> (N, *size, O).

    bias is (O,), rest of y's shape or half its height and width; with relu it reads max(x, 0) for x.
    """
    _, tap = _padded(np.maximum(x, 0) if relu else x, w.shape[:2], stride, top, left, size)
    return _completed(sum((tap(i, j) @ w[i, j] for i, j in np.ndindex(w.shape[:2])), start=0), bias, rest)


@primitive
def scatter(x, w, stride, top, left, size, bias=None, rest=None, gate=None):
    """y[s h + i - t, s w + j - l] += x[h, w] @ w[i, j], from y = bias + rest: (N, H, W, C) -> (N, *size, O).

    With a `gate` of y's shape the sum is 0 where the gate is not positive; bias and rest are added everywhere.
    """
    y, tap = _padded(np.zeros((len(x), *size, w.shape[3]), x.dtype), w.shape[:2], stride, top, left, x.shape[1:3])
    for i, j in np.ndindex(w.shape[:2]):
        tap(i, j)[...] += x @ w[i, j]
    return _completed(y if gate is None else y * (gate > 0), bias, rest)


def _completed(y, bias, rest):
    y = y if bias is None else y + bias
    return y if rest is None else y + (rest if rest.shape == y.shape else repeat(rest, 1))


@primitive
def outer(x, g, kernel, stride, top, left, relu=False):
    """The rows of dw, (i, j, c), and then db: x (N, H, W, C), g (N, *size, O) -> (kh kw C + 1, O).

    dw[i, j] = sum_nhw x[s h + i - t, s w + j - l]^T g[h, w], with relu max(x, 0) for x;  db = sum_nhw g[h, w].
    """

    def rows(x, g):
        _, tap = _padded(np.maximum(x, 0) if relu else x, kernel, stride, top, left, g.shape[1:3])
        dw = [np.einsum("nhwc,nhwo->co", tap(i, j), g) for i, j in np.ndindex(kernel)]
        return np.concatenate([*dw, g.sum((0, 1, 2))[None]])

    return batch.sum(rows, x, g)


@primitive
def channel_sum(g):
    """db[o] = sum_nhw g[n, h, w, o]: (N, H, W, O) -> (O,)."""
    return batch.sum(lambda g: g.sum((0, 1, 2)), g)
