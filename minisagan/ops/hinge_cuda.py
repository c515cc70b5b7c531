"""The hinge losses on the GPU: one launch for each direction, and one for the means of the scores."""

import numpy as np

from minisagan import batch, cuda

kernels = cuda.Kernels(__file__)


def discriminator_forward(x):
    return _loss("discriminator", x, len(x) // 2)


def mean_scores(x):
    x, means = cuda.cupy().ascontiguousarray(x), cuda.cupy().empty(2, x.dtype)
    kernels("mean_scores", 2, (1, batch.slots(256)), x, means, len(x) // 2)
    return means


def discriminator_backward(x, g):
    x = cuda.cupy().ascontiguousarray(x)
    dx = np.empty_like(x)
    kernels("discriminator_backward", cuda.blocks_for(len(x)), 256, x, g, dx, len(x) // 2)
    return dx


def generator_forward(x):
    return _loss("generator", x, len(x))


def generator_backward(x, g):
    dx = np.empty_like(x)
    kernels("generator_backward", cuda.blocks_for(len(x)), 256, g, dx, len(x))
    return dx


def _loss(kernel, x, n):
    """The scalar that the kernel makes of the scores x."""
    x, loss = cuda.cupy().ascontiguousarray(x), cuda.cupy().empty((), x.dtype)
    kernels(kernel, 1, (1, batch.slots(256)), x, loss, n)
    return loss
