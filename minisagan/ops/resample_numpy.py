"""Resampling on the CPU: a few images at a time, so that they stay in cache, on all threads.

Max pooling finds its winners by three comparisons: argmax, along an axis of four, is many times slower.
"""

import numpy as np

from minisagan import cpu
from minisagan.ops.resample import corners


def repeat(x, factor):
    N, H, W, C = x.shape
    y = np.empty((N, H, 2, W, 2, C), x.dtype)
    cuts = cpu.chunks(N, 5 * x[0].nbytes)

    def body(i):
        small = x[cuts[i]] if factor == 1 else x[cuts[i]] * x.dtype.type(factor)
        y[cuts[i]] = small[:, :, None, :, None]

    cpu.parallel(body, len(cuts))
    return y.reshape(N, 2 * H, 2 * W, C)


def sum_blocks(x, factor):
    N, H, W, C = x.shape
    blocks = x.reshape(N, H // 2, 2, W // 2, 2, C)
    y = np.empty((N, H // 2, W // 2, C), x.dtype)
    cuts = cpu.chunks(N, 2 * x[0].nbytes)

    def body(i):
        rows = blocks[cuts[i], :, 0] + blocks[cuts[i], :, 1]  # (n, H/2, W/2, 2, C)
        np.add(rows[..., 0, :], rows[..., 1, :], out=y[cuts[i]])
        if factor != 1:
            y[cuts[i]] *= factor

    cpu.parallel(body, len(cuts))
    return y


def max_pool_forward(x):
    N, H, W, C = x.shape
    y = np.empty((N, H // 2, W // 2, C), x.dtype)
    winner = np.empty(y.shape, np.uint8)
    cuts = cpu.chunks(N, 2 * x[0].nbytes)

    def body(i):
        a, b, c, d = corners(x[cuts[i]])
        upper, lower = np.maximum(a, b), np.maximum(c, d)
        np.maximum(upper, lower, out=y[cuts[i]])
        right, right_below, below = (m.view(np.uint8) for m in (b > a, d > c, lower > upper))
        winner[cuts[i]] = right + below * (2 + right_below - right)  # np.where takes longer than all of it

    cpu.parallel(body, len(cuts))
    return y, winner


def max_pool_backward(g, winner):
    N, H, W, C = g.shape
    dx = np.empty((N, 2 * H, 2 * W, C), g.dtype)
    cuts = cpu.chunks(N, 8 * g[0].nbytes)

    def body(i):
        for k, corner in enumerate(corners(dx[cuts[i]])):
            np.multiply(g[cuts[i]], winner[cuts[i]] == k, out=corner)

    cpu.parallel(body, len(cuts))
    return dx
