"""Augmentation on the GPU: one launch each way, with a thread for each element."""

import numpy as np

from minisagan import cuda

kernels = cuda.Kernels(__file__)


def augment_forward(x, draws):
    return _launch("augment", x, draws)


def augment_backward(g, draws):
    return _launch("augment_back", g, draws)


def _launch(name, x, draws):
    cp = cuda.cupy()
    x, draws = cp.ascontiguousarray(x), cp.ascontiguousarray(np.asarray(draws, like=x))
    y = cp.empty(x.shape, x.dtype)
    _, S, _, C = x.shape
    kernels(name, cuda.blocks_for(x.size), 256, y, x, draws, draws.shape[1], y.size, S, C)
    return y
