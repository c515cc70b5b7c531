"""Convolution. (Next to resampling it is cheaper: resampled_conv.py.)

    y[n, h, w, o] = b[o] + sum_ijc  x[n, s h + i - t, s w + j - l, c] w[i, j, c, o]

Pixel (h, w) of image n has channels c in x and o in y; (i, j) is a tap of the kernel, s the stride, and t and l are the
rows and columns of zeros above and to the left of x. A 3x3 convolution is thus nine products of shifted images with
matrices (C, O), added up. Three sums over taps serve it and its derivatives, each the derivative of another:

    gather     y[h, w]                          = sum_ij  x[s h + i - t, s w + j - l] @ w[i, j]      forward
    scatter    y[s h + i - t, s w + j - l]     += x[h, w] @ w[i, j]                                  its transpose: dx
    outer      dw[i, j]                         = sum_hw  x[s h + i - t, s w + j - l]^T g[h, w]      dw from x and g

outer has one more row, db = sum_hw g[h, w]: b is the weight of a 1 that every position sees.

What a residual block adds to a convolution (`rest`), the ReLU that follows one, and other cotangents of its x are taken
along where a sum is stored: y = max(rest + b + gather(x, w), 0). So they cost no pass over memory of their own.
"""

import numpy as np

from minisagan import batch, kinks
from minisagan.autograd import Tensor
from minisagan.ops.activation import relu_backward
from minisagan.ops.resample import repeat, sum_blocks
from minisagan.primitives import primitive


def conv(x, w, b=None, stride=1, rest=None, relu=False):
    """Convolution with zero padding: x (N, H, W, C), w (kh, kw, C, O) of odd kh, kw, b (O,) -> (N, H/s, W/s, O).

    `rest`, of y's shape or up-sampled to it, is added; with `relu`, y is then max(y, 0), and g counts where y > 0.
    dx = scatter(g, w^T);  dw and db = outer(x, g);  drest = g.
    """
    kh, kw = w.shape[:2]
    if kh % 2 == 0 or kw % 2 == 0 or stride not in (1, 2):
        raise ValueError(f"conv takes odd kernels and stride 1 or 2, not {kh}x{kw} and {stride}")
    xd, wd, at = x.data, w.data, (stride, kh // 2, kw // 2)  # stride, top, left
    size = tuple(-(-side // stride) for side in x.shape[1:3])  # rounded up
    return convolution(
        "conv", (x, w, b, rest),
        lambda *added: gather(xd, wd, *at, size, *added),
        lambda g, rest: scatter(g, swapped(wd), *at, xd.shape[1:3], None, rest),
        lambda g: batch.sum(lambda x, g: outer(x, g, (kh, kw), *at), xd, g),
        relu,
    )  # fmt: skip


def convolution(name, inputs, forward, dx, dw_db, relu=False):
    """The Tensor of forward(bias, rest, relu); for its backward pass dx(g, rest), and dw_db(g) as `outer` gives it."""
    x, w, b, _ = inputs
    if x.ndim != 4 or x.shape[3] != w.shape[2] or (b is not None and b.shape != w.shape[3:]):
        shapes = ", ".join(str(p.shape) for p in inputs[:3] if p is not None)
        raise ValueError(f"a convolution takes x (N, H, W, C), w (kh, kw, C, O) and b (O,), not {shapes}")
    bias, rest = (p if p is None else p.data for p in inputs[2:])
    y = out = forward(bias, rest, relu)
    small = rest is not None and rest.shape != y.shape  # of half the height and width
    if small and rest.shape != (len(y), y.shape[1] / 2, y.shape[2] / 2, y.shape[3]):
        raise ValueError(f"a convolution of shape {y.shape} can't be added to a rest of shape {rest.shape}")
    if relu and (on := kinks.chosen(lambda: y > 0)) is not None:  # a gradient check
        out = forward(bias, rest, False) * on
    shape, given = w.shape, [p is not None for p in inputs]

    def vjp(g, needs):
        g = relu_backward(y, g) if relu else g
        found = [lambda rest: dx(g, rest), None, None, sum_blocks(g, 1) if small else g]
        if any(needs[1 : 2 + given[2]]):  # w, and b if there is one
            rows = dw_db(g)
            found[1:3] = rows[:-1].reshape(shape), rows[-1]
        return [cotangent for cotangent, wanted in zip(found, given, strict=True) if wanted]

    return Tensor(out, [p for p in inputs if p is not None], vjp, name)


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

    bias is (O,), rest of y's shape or half its height and width; with relu it is max(y, 0).
    """
    _, tap = _padded(x, w.shape[:2], stride, top, left, size)
    y = sum((tap(i, j) @ w[i, j] for i, j in np.ndindex(w.shape[:2])), start=0)
    return _completed(y, bias, rest, relu)


@primitive
def scatter(x, w, stride, top, left, size, bias=None, rest=None, relu=False):
    """y[s h + i - t, s w + j - l] += x[h, w] @ w[i, j], from y = bias + rest: (N, H, W, C) -> (N, *size, O)."""
    y, tap = _padded(np.zeros((len(x), *size, w.shape[3]), x.dtype), w.shape[:2], stride, top, left, x.shape[1:3])
    for i, j in np.ndindex(w.shape[:2]):
        tap(i, j)[...] += x @ w[i, j]
    return _completed(y, bias, rest, relu)


def _completed(y, bias, rest, relu):
    y = y if bias is None else y + bias
    y = y if rest is None else y + (rest if rest.shape == y.shape else repeat(rest, 1))
    return np.maximum(y, 0) if relu else y


@primitive
def outer(x, g, kernel, stride, top, left):
    """The rows of dw, (i, j, c), and then db: x (N, H, W, C), g (N, *size, O) -> (kh kw C + 1, O).

    dw[i, j] = sum_nhw x[s h + i - t, s w + j - l]^T g[h, w];  db = sum_nhw g[h, w].
    """
    _, tap = _padded(x, kernel, stride, top, left, g.shape[1:3])
    dw = [np.einsum("nhwc,nhwo->co", tap(i, j), g) for i, j in np.ndindex(kernel)]
    return np.concatenate([*dw, channel_sum(g)[None]])


@primitive
def channel_sum(g):
    """db[o] = sum_nhw g[n, h, w, o]: (N, H, W, O) -> (O,)."""
    return g.sum((0, 1, 2))
