"""Convolution next to resampling, at 16/36 of the work and with the same result.

    up_conv    conv(upsample(x), w)    the transpose of a 4x4 convolution of stride 2
    conv_down  avg_pool(conv(x, w))    a 4x4 convolution of stride 2

Nearest up-sampling repeats each pixel 2x2 and average pooling sums 2x2, so a 3x3 kernel next to either acts as a 4x4
kernel of stride 2, its convolution with a 2x2 box. For each pixel of the small image that takes 16 multiplications
instead of 36, and the result is the same at the borders, too, since the padding is of zeros. gather, scatter and outer
are conv.py's. The CPU's form needs only 9: it sums neighbouring pixels of x, not taps of w (resampled_conv_numpy.py).
"""

import numpy as np

from minisagan.ops.conv import channel_sum, convolution, gather, outer, scatter, swapped
from minisagan.primitives import primitive


def up_conv(x, w, b=None):
    """conv(upsample(x), w, b) at 16/36 of the work: x (N, H, W, C), w (3, 3, C, O), b (O,) -> (N, 2H, 2W, O).

    Along one axis y[R] is the sum of w[i] x[h] over 2h <= R + i - 1 <= 2h + 1, that is over i = 2h + 1 - R and
    i = 2h + 2 - R. With R = 2h + k - 1 these are i = 2 - k and 3 - k: so y = scatter(x, v) with v[k] = w[2 - k] +
    w[3 - k], which is smear(w) turned by 180 degrees.  dx = gather(g, v^T);  dw = unsmear(outer(g, x)^T turned).
    Without this fusion a step at 32x32 takes 16 % longer.
    """
    xd, v = x.data, _turned(_smeared(w, 1))
    return convolution(
        "up_conv", (x, w, b, None), False,
        lambda x, bias, rest, _: smeared_scatter(x, v, bias, rest),
        lambda g, so_far, _: smeared_gather(g, swapped(v), None, so_far),
        lambda g: smeared_outer(g, xd, 1, True),
    )  # fmt: skip


def conv_down(x, w, b=None, rest=None, relu=False):
    """avg_pool(conv(x, w, b)) at 16/36 of the work: x (N, H, W, C), H and W even, w (3, 3, C, O) -> (N, H/2, W/2, O).

    Along one axis y[h] is the mean of sum_i w[i] x[2h + a + i - 1] over a = 0, 1. With k = a + i it is the sum of
    u[k] x[2h + k - 1] with u[k] = (w[k] + w[k - 1]) / 2: gather(x, u), where u = smear(w) / 4 on two axes.
    dx = scatter(g, u^T);  dw = unsmear(outer(x, g)) / 4.  Without this fusion a step at 32x32 takes 19 % longer.
    `rest`, of y's shape, is added; `relu` as in conv.
    """
    if x.shape[1] % 2 or x.shape[2] % 2:
        raise ValueError(f"conv_down halves even heights and widths, not {x.shape[1]}x{x.shape[2]}")
    xd, u = x.data, _smeared(w, 0.25)
    return convolution(
        "conv_down", (x, w, b, rest), relu,
        lambda x, *more: smeared_gather(x, u, *more),
        lambda g, *more: smeared_scatter(g, swapped(u), None, *more),
        lambda g: smeared_outer(xd, g, 0.25, False, relu),
    )  # fmt: skip


_turned = lambda w: w[::-1, ::-1]  # by 180 degrees


def _smeared(w, factor):
    if w.shape[:2] != (3, 3):
        raise ValueError(f"up_conv and conv_down take 3x3 kernels, not {w.shape[0]}x{w.shape[1]}")
    return smear(w.data, factor)


@primitive
def smeared_gather(x, u, bias=None, rest=None, relu=False):
    """gather with a smeared kernel and stride 2: x (N, H, W, C) -> (N, H/2, W/2, O)."""
    return gather(x, u, 2, 1, 1, (x.shape[1] // 2, x.shape[2] // 2), bias, rest, relu)


@primitive
def smeared_scatter(x, u, bias=None, rest=None, gate=None):
    """scatter with a smeared kernel and stride 2: x (N, H, W, C) -> (N, 2H, 2W, O)."""
    return scatter(x, u, 2, 1, 1, (2 * x.shape[1], 2 * x.shape[2]), bias, rest, gate)


@primitive
def smeared_outer(x, g, factor, transposed, relu=False):
    """dw and db (9 C + 1, O) from those of the smeared kernel, outer(x, g) of stride 2; for up_conv its transpose."""
    rows, shape = outer(x, g, (4, 4), 2, 1, 1, relu), (4, 4, x.shape[3], g.shape[3])
    dw, db = rows[:-1].reshape(shape), channel_sum(x) if transposed else rows[-1]
    dw = factor * unsmear(_turned(swapped(dw)) if transposed else dw)
    return np.concatenate([dw.reshape(-1, len(db)), db[None]])


@primitive
def smear(w, factor):
    """A 3x3 kernel convolved with a 2x2 box of `factor`: u[i] = w[i] + w[i - 1] on each axis.

    (3, 3, C, O) -> (4, 4, C, O). The CPU's form, which sums x instead, is `factor` w alone, for its other primitives.
    """
    u = np.zeros((4, 4) + w.shape[2:], w.dtype)
    for a, b in np.ndindex(2, 2):
        u[a : a + 3, b : b + 3] += factor * w
    return u


def unsmear(u):
    """The transpose of `smear`, (4, 4, C, O) -> (3, 3, C, O): w[i] = u[i] + u[i + 1] on each axis."""
    return u[:3, :3] + u[:3, 1:] + u[1:, :3] + u[1:, 1:]
