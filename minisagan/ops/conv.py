"""Convolution, and its two exact fusions with resampling.

    conv       y[n, h, w, o] = b[o] + sum_ijc  x[n, s h + i - t, s w + j - l, c] w[i, j, c, o]
    up_conv    conv(upsample(x), w)    the transpose of a 4x4 convolution of stride 2
    conv_down  avg_pool(conv(x, w))    a 4x4 convolution of stride 2

Pixel (h, w) of image n has channels c in x and o in y; (i, j) is a tap of the kernel, s the stride, and t and l are the
rows and columns of zeros above and to the left of x. A 3x3 convolution is thus nine products of shifted images with
matrices (C, O), added up. Three sums over taps serve all of the above, each the derivative of another:

    gather     y[h, w]                          = sum_ij  x[s h + i - t, s w + j - l] @ w[i, j]      forward
    scatter    y[s h + i - t, s w + j - l]     += x[h, w] @ w[i, j]                                  its transpose: dx
    outer      dw[i, j]                         = sum_hw  x[s h + i - t, s w + j - l]^T g[h, w]      dw from x and g

The fusions rest on this: nearest up-sampling repeats each pixel 2x2 and average pooling sums 2x2, so a 3x3 kernel next
to either acts as a 4x4 kernel of stride 2, its convolution with a 2x2 box. That takes 16 multiplications instead of 36,
and the result is the same at the borders, too, since the padding is of zeros.

What a residual block adds to a convolution (`rest`), the ReLU that follows one, and other cotangents of its x are taken
along where a sum is stored: y = max(rest + b + gather(x, w), 0). So they cost no pass over memory of their own.
"""

import numpy as np

from minisagan import batch, kinks
from minisagan.autograd import Tensor
from minisagan.ops.activation import relu_backward
from minisagan.primitives import primitive


def conv(x, w, b=None, stride=1, rest=None, relu=False):
    """Convolution with zero padding: x (N, H, W, C), w (kh, kw, C, O) of odd kh, kw, b (O,) -> (N, H/s, W/s, O).

    With `rest`, of y's shape, it is added; with `relu`, y is then max(y, 0), and g counts where y > 0.
    dx = scatter(g, w^T);  dw = outer(x, g);  db = channel_sum(g);  drest = g.
    """
    kh, kw = w.shape[:2]
    if kh % 2 == 0 or kw % 2 == 0 or stride not in (1, 2):
        raise ValueError(f"conv takes odd kernels and stride 1 or 2, not {kh}x{kw} and {stride}")
    xd, wd, at = x.data, w.data, (stride, kh // 2, kw // 2)  # stride, top, left
    size = tuple(-(-side // stride) for side in x.shape[1:3])  # rounded up
    return _op(
        "conv", (x, w, b, rest),
        lambda *added: gather(xd, wd, *at, size, *added),
        lambda g, rest: scatter(g, _swapped(wd), *at, xd.shape[1:3], None, rest),
        lambda g: batch.sum(lambda x, g: outer(x, g, (kh, kw), *at), xd, g),
        relu,
    )  # fmt: skip


def up_conv(x, w, b=None):
    """conv(upsample(x), w, b) at 16/36 of the work: x (N, H, W, C), w (3, 3, C, O), b (O,) -> (N, 2H, 2W, O).

    Along one axis y[R] is the sum of w[i] x[h] over 2h <= R + i - 1 <= 2h + 1, that is over i = 2h + 1 - R and
    i = 2h + 2 - R. With R = 2h + k - 1 these are i = 2 - k and 3 - k: so y = scatter(x, v) with v[k] = w[2 - k] +
    w[3 - k], which is smear(w) turned by 180 degrees.  dx = gather(g, v^T);  dw = unsmear(outer(g, x)^T turned).
    Without this fusion a step at 32x32 takes 14 % longer.
    """
    xd, v, size = x.data, _turned(_smeared(w, 1)), (2 * x.shape[1], 2 * x.shape[2])
    return _op(
        "up_conv", (x, w, b, None),
        lambda *added: scatter(xd, v, 2, 1, 1, size, *added),
        lambda g, rest: gather(g, _swapped(v), 2, 1, 1, xd.shape[1:3], None, rest),
        lambda g: batch.sum(lambda x, g: smeared_outer(g, x, 1, True), xd, g),
    )  # fmt: skip


def conv_down(x, w, b=None, rest=None):
    """avg_pool(conv(x, w, b)) at 16/36 of the work: x (N, H, W, C), H and W even, w (3, 3, C, O) -> (N, H/2, W/2, O).

    Along one axis y[h] is the mean of sum_i w[i] x[2h + a + i - 1] over a = 0, 1. With k = a + i it is the sum of
    u[k] x[2h + k - 1] with u[k] = (w[k] + w[k - 1]) / 2: gather(x, u), where u = smear(w) / 4 on two axes.
    dx = scatter(g, u^T);  dw = unsmear(outer(x, g)) / 4.  Without this fusion a step at 32x32 takes 15 % longer.
    With `rest`, of y's shape, it is added.
    """
    if x.shape[1] % 2 or x.shape[2] % 2:
        raise ValueError(f"conv_down halves even heights and widths, not {x.shape[1]}x{x.shape[2]}")
    xd, u, size = x.data, _smeared(w, 0.25), (x.shape[1] // 2, x.shape[2] // 2)
    return _op(
        "conv_down", (x, w, b, rest),
        lambda *added: gather(xd, u, 2, 1, 1, size, *added),
        lambda g, rest: scatter(g, _swapped(u), 2, 1, 1, xd.shape[1:3], None, rest),
        lambda g: batch.sum(lambda x, g: smeared_outer(x, g, 0.25, False), xd, g),
    )  # fmt: skip


def _op(name, inputs, forward, dx, dw, relu=False):
    """The Tensor of forward(bias, rest, relu), with dx(g, rest) and dw(g) for its backward pass."""
    x, w, b, _ = inputs
    if x.ndim != 4 or x.shape[3] != w.shape[2] or (b is not None and b.shape != w.shape[3:]):
        shapes = ", ".join(str(p.shape) for p in inputs[:3] if p is not None)
        raise ValueError(f"a convolution takes x (N, H, W, C), w (kh, kw, C, O) and b (O,), not {shapes}")
    bias, rest = (p if p is None else p.data for p in inputs[2:])
    y = out = forward(bias, rest, relu)
    if rest is not None and rest.shape != y.shape:
        raise ValueError(f"a convolution of shape {y.shape} can't be added to a rest of shape {rest.shape}")
    if relu and (on := kinks.chosen(lambda: y > 0)) is not None:  # a gradient check
        out = forward(bias, rest, False) * on
    rules = lambda g: lambda rest: dx(g, rest), dw, lambda g: batch.sum(channel_sum, g), lambda g: g
    parents, rules = zip(*((p, rule) for p, rule in zip(inputs, rules, strict=True) if p is not None), strict=True)

    def vjp(g, needs):
        g = relu_backward(y, g) if relu else g
        return [rule(g) if need else None for rule, need in zip(rules, needs, strict=True)]

    return Tensor(out, parents, vjp, name)


_swapped = lambda w: w.transpose(0, 1, 3, 2)  # (kh, kw, C, O) -> (kh, kw, O, C): the w^T of each tap
_turned = lambda w: w[::-1, ::-1]  # by 180 degrees


def _smeared(w, factor):
    if w.shape[:2] != (3, 3):
        raise ValueError(f"up_conv and conv_down take 3x3 kernels, not {w.shape[0]}x{w.shape[1]}")
    return smear(w.data, factor)


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

    bias is (O,), rest of y's shape; with relu it is max(y, 0).
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
    y = y if rest is None else y + rest
    return np.maximum(y, 0) if relu else y


@primitive
def outer(x, g, kernel, stride, top, left):
    """dw[i, j] = sum_nhw x[s h + i - t, s w + j - l]^T g[h, w]: (N, H, W, C), (N, *size, O) -> (kh, kw, C, O)."""
    _, tap = _padded(x, kernel, stride, top, left, g.shape[1:3])
    dw = [np.einsum("nhwc,nhwo->co", tap(i, j), g) for i, j in np.ndindex(kernel)]
    return np.reshape(dw, (*kernel, x.shape[3], g.shape[3]))


@primitive
def smeared_outer(x, g, factor, transposed):
    """dw (3, 3, C, O) from that of the smeared kernel, outer(x, g) of stride 2, or, for up_conv, from its transpose."""
    dw = outer(x, g, (4, 4), 2, 1, 1)
    return factor * unsmear(_turned(_swapped(dw)) if transposed else dw)


@primitive
def channel_sum(g):
    """db[o] = sum_nhw g[n, h, w, o]: (N, H, W, O) -> (O,)."""
    return g.sum((0, 1, 2))


@primitive
def smear(w, factor):
    """A 3x3 kernel convolved with a 2x2 box of `factor`: u[i] = w[i] + w[i - 1] on each axis.

    (3, 3, C, O) -> (4, 4, C, O).
    """
    u = np.zeros((4, 4) + w.shape[2:], w.dtype)
    for a, b in np.ndindex(2, 2):
        u[a : a + 3, b : b + 3] += factor * w
    return u


def unsmear(u):
    """The transpose of `smear`, (4, 4, C, O) -> (3, 3, C, O): w[i] = u[i] + u[i + 1] on each axis."""
    return u[:3, :3] + u[:3, 1:] + u[1:, :3] + u[1:, 1:]
