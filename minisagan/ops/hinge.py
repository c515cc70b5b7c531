"""The hinge losses (SAGAN eq. 4; Lim and Ye, Geometric GAN, 2017).

    L_D = mean relu(1 - D(real)) + mean relu(1 + D(fake))         dD(real) = -g [D < 1] / n   dD(fake) = g [D > -1] / n
    L_G = -mean D(fake)                                           dD(fake) = -g / n

Where processes share a batch (ranks.py), n counts the whole batch, and each has its images' share of the loss.
"""

import numpy as np

from minisagan import cuda, kinks, ranks
from minisagan.autograd import Tensor

kernels = cuda.Kernels(__file__)


def hinge_discriminator(scores):
    """L_D of the scores (2n,) of one batch, real images in its first half and fakes in its second; each mean over n."""
    if scores.ndim != 1 or not len(scores.data) or len(scores.data) % 2:
        raise ValueError(f"hinge_discriminator takes scores (2n,): n of real images, n of fakes; not {scores.shape}")
    n = len(scores.data) // 2
    if cuda.on_gpu(scores.data):
        return _discriminator_on_gpu(scores, n)
    sign = np.repeat(np.array([1, -1], scores.dtype), n)  # (2n,)
    margin = 1 - sign * scores.data
    on = kinks.chosen(lambda: margin > 0)
    on = margin > 0 if on is None else on
    n *= ranks.world()  # of the whole batch
    loss = ranks.batch_sum(margin * on) / scores.dtype.type(n)
    return Tensor(loss, (scores,), lambda g, needs: (-g * sign * on / n,))


def hinge_generator(scores):
    """L_G of the scores (n,) of fakes."""
    if scores.ndim != 1:
        raise ValueError(f"hinge_generator takes scores (n,), not {scores.shape}")
    n = len(scores.data)
    if cuda.on_gpu(scores.data):
        return _generator_on_gpu(scores, n)
    whole = n * ranks.world()
    loss = -ranks.batch_sum(scores.data) / scores.dtype.type(whole)
    return Tensor(loss, (scores,), lambda g, needs: (np.full(n, -g / whole, scores.dtype),))


def _discriminator_on_gpu(scores, n):
    """hinge_discriminator on the GPU; in the kernels, too, a gradient check may say whose margin counts."""
    x, loss = cuda.cupy().ascontiguousarray(scores.data), cuda.cupy().empty((), scores.dtype)
    on = kinks.chosen(lambda: np.concatenate([x[:n] < 1, x[n:] > -1]))
    kernels("discriminator", 1, 256, x, on, loss, n)

    def vjp(g, needs):
        dx = np.empty_like(x)
        kernels("discriminator_backward", cuda.blocks_for(2 * n), 256, x, on, g, dx, n)
        return (dx,)

    return Tensor(loss, (scores,), vjp)


def _generator_on_gpu(scores, n):
    """hinge_generator on the GPU."""
    x, loss = cuda.cupy().ascontiguousarray(scores.data), cuda.cupy().empty((), scores.dtype)
    kernels("generator", 1, 256, x, loss, n)

    def vjp(g, needs):
        dx = np.empty_like(x)
        kernels("generator_backward", cuda.blocks_for(n), 256, g, dx, n)
        return (dx,)

    return Tensor(loss, (scores,), vjp)
