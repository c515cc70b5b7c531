"""The hinge losses (SAGAN eq. 4; Lim and Ye, Geometric GAN, 2017).

    L_D = mean relu(1 - D(real)) + mean relu(1 + D(fake))         dD(real) = -g [D < 1] / n   dD(fake) = g [D > -1] / n
    L_G = -mean D(fake)                                           dD(fake) = -g / n

The paper writes -min(0, -1 + D(real)) for relu(1 - D(real)).
"""

import numpy as np

from minisagan import batch, kinks
from minisagan.autograd import Tensor
from minisagan.primitives import primitive


def hinge_discriminator(scores):
    """L_D of the scores (2n,) of one batch, real images in its first half and fakes in its second; each mean over n."""
    if scores.ndim != 1 or not len(scores.data) or len(scores.data) % 2:
        raise ValueError(f"hinge_discriminator takes scores (2n,): n of real images, n of fakes; not {scores.shape}")
    x = scores.data
    on = kinks.chosen(lambda: margins(x) > 0)  # None, except in a gradient check
    loss = discriminator_forward(x) if on is None else (margins(x) * on).sum() / (len(x) // 2)
    return Tensor(loss, (scores,), lambda g, needs: (discriminator_backward(x, g),), "hinge_discriminator")


def hinge_generator(scores):
    """L_G of the scores (n,) of fakes."""
    if scores.ndim != 1 or not len(scores.data):
        raise ValueError(f"hinge_generator takes scores (n,), not {scores.shape}")
    x = scores.data
    return Tensor(generator_forward(x), (scores,), lambda g, needs: (generator_backward(x, g),), "hinge_generator")


def signs(x):
    """1 for each of the real images, -1 for each of the fakes behind them, (2n,)."""
    return np.repeat(np.asarray([1, -1], x.dtype, like=x), len(x) // 2)


def margins(x):
    """How far each score is from where its loss is 0, (2n,)."""
    return 1 - signs(x) * x


@primitive
def discriminator_forward(x):
    return batch.sum(lambda margin: np.maximum(margin, 0).sum(0), margins(x)) / x.dtype.type(len(x) // 2)


@primitive
def mean_scores(x):
    """The mean scores of the real images and of the fakes behind them, from the scores of both, (2n,): (), ()."""
    n = len(x) // 2
    return [batch.sum(lambda x: x.sum(0), half) * x.dtype.type(1 / n) for half in (x[:n], x[n:])]


@primitive
def discriminator_backward(x, g):
    return -g * signs(x) * (margins(x) > 0) / (len(x) // 2)


@primitive
def generator_forward(x):
    return -batch.sum(lambda x: x.sum(0), x) / x.dtype.type(len(x))


@primitive
def generator_backward(x, g):
    return np.full(len(x), -g / len(x), x.dtype)
