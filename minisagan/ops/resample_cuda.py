"""Resampling on the GPU: one launch each, with a thread for each element of the small image."""

import numpy as np

from minisagan import cuda

kernels = cuda.Kernels(__file__)


def repeat(x, factor, so_far=None):
    N, H, W, C = x.shape
    so_far = so_far if so_far is None else cuda.cupy().ascontiguousarray(so_far)
    return _launch("repeat", x.shape, (N, 2 * H, 2 * W, C), x, so_far, float(factor))


def sum_blocks(x, factor):
    N, H, W, C = x.shape
    small = N, H // 2, W // 2, C
    return _launch("sum_blocks", small, small, x, float(factor))


def max_pool_forward(x):
    N, H, W, C = x.shape
    small = N, H // 2, W // 2, C
    winner = cuda.cupy().empty(small, np.uint8)
    return _launch("max_pool", small, small, x, winner), winner


def max_pool_backward(g, winner):
    N, H, W, C = g.shape
    return _launch("max_pool_back", g.shape, (N, 2 * H, 2 * W, C), g, winner)


def _launch(name, small, shape, x, *more):
    """The array of this shape that a kernel makes of x, where the small image has the shape `small`."""
    N, H, W, C = small
    x = cuda.cupy().ascontiguousarray(x)
    y = cuda.cupy().empty(shape, x.dtype)
    count = N * H * W * C
    kernels(name, cuda.blocks_for(count), 256, y, x, *more, count, W * C, C)
    return y
