"""Batch normalisation with gain, bias and, in one pass with them, ReLU (Ioffe and Szegedy 2015).

    xhat = (x - mean) / sqrt(var + eps)          y = gain xhat + bias          (then max(y, 0))

The mean and the (biased) variance are taken over all images and positions. There is one gain and bias for each
channel or, in conditional batch norm, for each image and channel, looked up by the image's class. With m = N H W, and
with g the cotangent of y (0 where the ReLU is off):

    dbias = sum g         dgain = sum g xhat         (over the positions that share one gain)
    dx = (gain g - sum(gain g) / m - xhat sum(gain g xhat) / m) / sqrt(var + eps)

In evaluation the mean and the variance are given constants, and dx = gain g / sqrt(var + eps). They are exponential
averages of those found in training, of mean and variance alike: r <- r + (1 - momentum) (mean - r).
"""

import numpy as np

from minisagan import batch, kinks
from minisagan.autograd import Tensor
from minisagan.primitives import primitive

EPS = 1e-5


def batch_norm(x, gain, bias, given=None, relu=False, running=None, momentum=0.9):
    """Normalise x (N, H, W, C) by the statistics of its batch, or by those `given`: (mean, var), each (C,).

    Those of the batch also update the `running` ones, (mean, var) as arrays (C,), in place.
    gain and bias are both (C,) or both (N, C). With `relu`, y is max(gain xhat + bias, 0): as an op of its own the ReLU
    would cost another 5 % of a training step at 32x32.
    Returns y (N, H, W, C).
    """
    N, _, _, C = x.shape
    if gain.shape != bias.shape or gain.shape not in ((C,), (N, C)):
        shapes = f"{gain.shape} and {bias.shape}"
        raise ValueError(f"for x {x.shape}, gain and bias must both be ({C},) or ({N}, {C}), not {shapes}")
    mean, var = given or statistics(x.data, running, momentum)
    inputs = x.data, mean, var, gain.data, bias.data
    y = normalise(*inputs, relu)
    out = y
    if relu and (on := kinks.chosen(lambda: y > 0)) is not None:  # a gradient check
        out = normalise(*inputs, False) * on

    def vjp(g, needs):
        return backward(g, *inputs, y if relu else None, given is not None)

    return Tensor(out, (x, gain, bias), vjp, "batch_norm")


@primitive
def statistics(x, running, momentum):
    """The mean and biased variance of the whole batch over images and positions: (N, H, W, C) -> (C,), (C,).

    With `running` (mean, var), those move towards them.

    The variance is the mean of the images' variances plus the variance of their means: no difference of large numbers,
    as E[x^2] - E[x]^2 would be.
    """
    moments = batch.whole(np.stack([x.mean((1, 2)), x.var((1, 2))], 1))  # (N, 2, C), of each image
    return of_batch(moments, running, momentum)


def of_batch(moments, running, momentum):
    """The mean and variance of a batch, from those of each image: (N, 2, C) -> (C,), (C,); `running` moves there."""
    means, variances = moments.swapaxes(0, 1)  # (N, C) each
    mean = means.mean(0)
    found = mean, variances.mean(0) + ((means - mean) ** 2).mean(0)
    if running is not None:
        for r, s in zip(running, found, strict=True):
            r += (1 - momentum) * (s - r)
    return found


@primitive
def normalise(x, mean, var, gain, bias, relu):
    """y = gain xhat + bias, or max(y, 0): (N, H, W, C) -> (N, H, W, C)."""
    gain, bias = (np.broadcast_to(a, (len(x), x.shape[3]))[:, None, None] for a in (gain, bias))  # (N, 1, 1, C)
    y = gain * (x - mean) / np.sqrt(var + EPS) + bias
    return np.maximum(y, 0) if relu else y


@primitive
def backward(g, x, mean, var, gain, bias, y, constant):
    """dx (N, H, W, C), dgain and dbias (of gain's shape), from g (N, H, W, C).

    y (N, H, W, C) is the output of the ReLU, or None without one; `constant` says that mean and var were given. The
    GPU's form does not read y: it finds where the ReLU is on from x, which it reads anyway.
    """
    std = np.sqrt(var + EPS)  # (C,)
    xhat = (x - mean) / std
    if y is not None:
        g = g * (y > 0)
    dgain, dbias = (g * xhat).sum((1, 2)), g.sum((1, 2))  # (N, C) each
    dx = np.broadcast_to(gain, dgain.shape)[:, None, None] * g
    if not constant:
        positions = x.shape[1] * x.shape[2]  # so these are sum(gain g xhat) / m and sum(gain g) / m, (C,) each
        mean_gx, mean_g = (batch.whole(gain * s).mean(0) / positions for s in (dgain, dbias))
        dx = dx - mean_g - xhat * mean_gx
    if gain.ndim == 1:
        dgain, dbias = over_images(dgain, dbias)
    return dx / std, dgain, dbias


def over_images(dgain, dbias):
    """The sums over images: (N, C) each -> (C,) each."""
    return batch.sum(lambda both: both.sum(0), np.stack([dgain, dbias], 1))
