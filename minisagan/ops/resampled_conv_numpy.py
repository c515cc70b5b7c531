"""The primitives of resampled_conv.py on the CPU, with 9 multiplications instead of 16: x is summed, not w.

To convolve with a smeared kernel is to convolve with the 2x2 box and with w. Let the box come first: along one axis

    gather     y[h] = sum_i w[i] s[2h + i]      s[h] = x[h - 1] + x[h],  h = 0 ... H
    outer      dw[i] = sum_h s[2h + i] g[h]

so w has three taps where the smeared kernel has four. The transpose would sum boxes of the large y, at the end. Instead
it takes differences of the small x, in the way of Winograd's minimal filters (Winograd 1980, Arithmetic Complexity of
Computations; Lavin and Gray 2016, https://arxiv.org/abs/1509.09308), and y[2h] and y[2h + 1] share a product:

    scatter    y[2h]     = (w[0] + w[1] + w[2]) x[h] + w[2] d[h]         d[h] = x[h - 1] - x[h],  h = 0 ... H
               y[2h + 1] = (w[0] + w[1] + w[2]) x[h] - w[0] d[h + 1]

These are three for two outputs, not four. Two axes make 9 of 16 in either way, for a few additions of whole rows. With
all this a whole step at width 32 takes 7 % less time, at width 16 4 %, on one core of an AMD EPYC (Zen 4).
"""

import numpy as np

from minisagan import cpu
from minisagan.ops import activation, resampled_conv
from minisagan.ops.conv_numpy import bias_rows, channel_sum, complete, gathers, outers, scatter

OF_D_X_D = np.array([[0, 0, 1], [1, 1, 1], [-1, 0, 0]])  # of w[0], w[1], w[2]: what d[h], x[h] and d[h + 1] meet
OF_ROWS_COLUMNS = np.kron(OF_D_X_D, OF_D_X_D)  # (9, 9)
CHANNELS = 64  # of x: with 32 `smeared_scatter` saves 10 % of its time, with 16 its additions take longer than products


def smear(w, factor):
    """What takes the place of the smeared kernel here: (3, 3, C, O)."""
    return factor * w


def pairs(f, x, y, axis):
    """Fill y[h] = f(x[h - 1], x[h]), h = 0 ... H along this axis, with zeros around x."""
    x, y = x.swapaxes(0, axis), y.swapaxes(0, axis)
    f(0, x[0], out=y[0])
    f(x[:-1], x[1:], out=y[1:-1])
    f(x[-1], 0, out=y[-1])


def boxes(x, relu):
    """The sums of 2x2 pixels at all places, with zeros around x: (..., H, W, C) -> (..., H + 1, W + 1, C).

    With `relu`, x stands for max(x, 0).
    """
    x, (*n, H, W, C) = activation.relu_forward(x) if relu else x, x.shape
    rows, s = cpu.empty((*n, H + 1, W, C), x.dtype), cpu.empty((*n, H + 1, W + 1, C), x.dtype)
    pairs(np.add, x, rows, axis=-3)
    pairs(np.add, rows, s, axis=-2)
    return s


def smeared_gather(x, w, bias=None, rest=None, relu=False):
    N, H, W, _ = x.shape
    y = cpu.empty((N, H // 2, W // 2, w.shape[3]), x.dtype)
    gathers(x, 2, y, [(0, 0, w, y)], bias, rest, read=lambda x: boxes(x, relu))
    return y


def smeared_outer(x, g, factor, transposed, relu=False):
    rows, (C, O) = outers(x, g, (3, 3), 2, 0, 0, read=lambda x: boxes(x, relu)), (x.shape[3], g.shape[3])
    rows[:-1] *= factor
    if not transposed:
        return rows
    dw = rows[:-1].reshape(9, C, O)[::-1].swapaxes(1, 2)  # turned by 180 degrees: (9, O, C)
    return np.concatenate([dw.reshape(-1, C), channel_sum(x)[None]])


def smeared_scatter(x, w, bias=None, rest=None, gate=None):
    (N, H, W, C), O = x.shape, w.shape[3]
    if C < CHANNELS:
        return scatter(x, resampled_conv.smear.plain(w, 1), 2, 1, 1, (2 * H, 2 * W), bias, rest, gate)
    y = cpu.empty((N, 2 * H, 2 * W, O), x.dtype)
    w = (OF_ROWS_COLUMNS.astype(w.dtype) @ w.reshape(9, -1)).reshape(3, 3, 1, C, O)
    bias = bias_rows(bias, 2 * H, 2 * W)
    size = 3 * (2 * H + 1) * W * C  # of what an image is multiplied as
    cuts = cpu.chunks(N, x.itemsize * (size + 9 * H * W * O), at_least=8)

    def body(i):
        images, out = x[cuts[i]], y[cuts[i]]
        n = len(images)
        memory = cpu.scratch(x.dtype, n * (size + 9 * H * W * O))
        terms = memory[: n * size].reshape(3, n, 2 * H + 1, W, C)  # H + 1 rows of d and H of x, of which:
        left, here, right = terms  # d[w], x[w] and d[w + 1] along the row
        pairs(np.subtract, images, here[:, : H + 1], axis=1)
        here[:, H + 1 :] = images
        np.negative(here[:, :, 0], out=left[:, :, 0])
        np.subtract(here[:, :, :-1], here[:, :, 1:], out=left[:, :, 1:])
        right[:, :, :-1] = left[:, :, 1:]
        right[:, :, -1] = here[:, :, -1]
        sums = memory[n * size :].reshape(3, 3, n, H, W, O)
        for k, first in enumerate((0, H + 1, 1)):  # d[h], x[h] and d[h + 1]
            rows = terms[:, :, first : first + H].reshape(3, n, H * W, C)
            np.matmul(rows, w[k], out=sums[k].reshape(3, n, H * W, O))
        sums[0] += sums[1]
        sums[2] += sums[1]
        blocks = out.reshape(n, H, 2, W, 2, O)
        for k, j in np.ndindex(2, 2):
            np.add(sums[2 * k, 2 * j], sums[2 * k, 1], out=blocks[:, :, k, :, j])
        complete(y, cuts[i], bias, rest, gate)

    cpu.parallel(body, len(cuts))
    return y
