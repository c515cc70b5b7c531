"""Changing the resolution by two: nearest up-sampling, average pooling, max pooling; all on (N, H, W, C).

    upsample   y[2h + a, 2w + b] = x[h, w]                     dx[h, w] = sum_ab g[2h + a, 2w + b]
    avg_pool   y[h, w] = 1/4 sum_ab x[2h + a, 2w + b]          dx[2h + a, 2w + b] = g[h, w] / 4
    max_pool   y[h, w] = max_ab x[2h + a, 2w + b]              dx = g at the (first) largest of the four, else 0

Up-sampling and average pooling are each other's transpose, but for the factor 4.
"""

import numpy as np

from minisagan import kinks
from minisagan.autograd import Tensor
from minisagan.primitives import primitive


def upsample(x):
    """Each pixel repeated 2x2: (N, H, W, C) -> (N, 2H, 2W, C)."""
    return Tensor(repeat(x.data, 1), (x,), lambda g, needs: (sum_blocks(g, 1),), "upsample")


def avg_pool(x):
    """The mean of each 2x2 block: (N, H, W, C), H and W even -> (N, H/2, W/2, C)."""
    _check_even(x, "avg_pool")
    y = sum_blocks(x.data, 0.25)
    return Tensor(y, (x,), lambda g, needs: (lambda so_far: repeat(g, 0.25, so_far),), "avg_pool")


def max_pool(x):
    """The largest of each 2x2 block: (N, H, W, C), H and W even -> (N, H/2, W/2, C)."""
    _check_even(x, "max_pool")
    winner = kinks.chosen(lambda: max_pool_forward(x.data)[1])  # None, except in a gradient check
    if winner is None:
        y, winner = max_pool_forward(x.data)
    else:
        y = sum(corner * (winner == k) for k, corner in enumerate(corners(x.data)))
    return Tensor(y, (x,), lambda g, needs: (max_pool_backward(g, winner),), "max_pool")


def corners(x):
    """The four pixels of each 2x2 block, in the order (a, b) = (0, 0), (0, 1), (1, 0), (1, 1), as views of x."""
    return [x[:, a::2, b::2] for a in (0, 1) for b in (0, 1)]  # each (N, H/2, W/2, C)


@primitive
def repeat(x, factor, so_far=None):
    """factor x, each pixel repeated 2x2; or so_far + that."""
    y = (factor * x).repeat(2, axis=1).repeat(2, axis=2)  # (N, 2H, 2W, C)
    return y if so_far is None else np.add(y, so_far, out=y)


@primitive
def sum_blocks(x, factor):
    """factor times the sum of each 2x2 block."""
    rows = x[:, ::2] + x[:, 1::2]  # (N, H/2, W, C)
    return factor * (rows[:, :, ::2] + rows[:, :, 1::2])  # (N, H/2, W/2, C)


@primitive
def max_pool_forward(x):
    """The largest of each 2x2 block, and which of the four corners it is (the first of several): 0, 1, 2 or 3."""
    a, b, c, _ = corners(x)
    rows = np.maximum(x[:, ::2], x[:, 1::2])  # (N, H/2, W, C)
    y = np.maximum(rows[:, :, ::2], rows[:, :, 1::2])  # (N, H/2, W/2, C)
    later = a != y  # where it comes after this corner
    winner = later.astype(np.uint8)
    for corner in (b, c):
        later &= corner != y
        winner += later
    return y, winner


@primitive
def max_pool_backward(g, winner):
    N, H, W, C = g.shape
    dx = np.empty((N, 2 * H, 2 * W, C), g.dtype)
    for k, corner in enumerate(corners(dx)):
        corner[...] = g * (winner == k)
    return dx


def _check_even(x, op):
    if x.shape[1] % 2 or x.shape[2] % 2:
        raise ValueError(f"{op} halves even heights and widths, not {x.shape[1]}x{x.shape[2]}")
