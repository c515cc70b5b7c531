"""Batch norm's primitives on NumPy, a few images at a time: they stay in cache, and all threads have work.

Rows of W C numbers, a whole row of x at a time, keep NumPy's inner loops long. With the page's own forms a training
step at 32x32 takes 6 % longer for `statistics`, 4 % for `normalise` and 5 % for `backward`.
"""

import numpy as np

from minisagan import batch, cpu
from minisagan.ops.batch_norm import of_batch, over_images


def statistics(x, running, momentum):
    """Each image's mean and squared deviations are taken while it is in cache."""
    N, H, W, C = x.shape
    moments = np.empty((N, 2, C), x.dtype)  # of each image: mean, variance
    cuts = cpu.chunks(N, 2 * x[0].nbytes)

    def body(i):
        rows = x[cuts[i]].reshape(-1, H, W * C)
        mean = _columns(np.ones(H, x.dtype) @ rows, C) / (H * W)  # (n, C)
        centred = rows - np.tile(mean, W)[:, None]
        moments[cuts[i], 0] = mean
        moments[cuts[i], 1] = _columns(np.einsum("nrc,nrc->nc", centred, centred), C) / (H * W)

    cpu.parallel(body, len(cuts))
    return of_batch(batch.whole(moments), running, momentum)


def normalise(x, mean, var, gain, bias, eps, relu):
    """y as x * scale + shift: one multiplication and one addition for each number."""
    scale, rstd = _scale(gain, var, eps, len(x))
    return _affine(x, scale, bias - mean * gain * rstd, relu)


def backward(g, x, mean, var, gain, bias, eps, y, constant):
    """dx = scale g - b - a (x - mean), as one affine pass after that which gates g and sums it."""
    N, H, W, C = x.shape
    scale, rstd = _scale(gain, var, eps, N)
    gated, dbias, dgain = _gated_sums(g, y, x, mean)
    dgain *= rstd
    if constant:
        dx = gated * scale[:, None, None]
    else:
        both = batch.whole(np.stack([gain * dbias, gain * dgain], 1))  # (N of the whole batch, 2, C)
        b, a = both.sum(0) / (len(both) * H * W) * rstd  # (C,) each
        a *= rstd
        dx = _affine(gated, scale, mean * a - b, False, (x, -a))
    return dx, *((dgain, dbias) if gain.ndim == 2 else over_images(dgain, dbias))


def _scale(gain, var, eps, N):
    """gain / sqrt(var + eps) for each image and channel (N, C), and 1 / sqrt(var + eps) (C,)."""
    rstd = 1 / np.sqrt(var + eps)
    return np.broadcast_to(gain, (N, len(rstd))) * rstd, rstd


def _affine(x, scale, shift, relu, plus=None):
    """x * scale + shift, and + z * factor for plus = (z, factor), and its ReLU: scale, shift, factor (C,) or (N, C)."""
    N, H, W, C = x.shape
    y = cpu.empty((N, H, W * C), x.dtype)
    scale, shift, zero = _tiled(scale, x), _tiled(shift, x), np.zeros(W * C, x.dtype)
    if plus:
        other, factor = plus[0].reshape(y.shape), _tiled(plus[1], x)
    cuts = cpu.chunks(N, 3 * x[0].nbytes)

    def body(i):
        n = cuts[i]
        out = np.multiply(x[n].reshape(-1, H, W * C), scale[n], out=y[n])
        if plus:
            out += other[n] * factor[n]
        out += shift[n]
        if relu:
            np.maximum(out, zero, out=out)

    cpu.parallel(body, len(cuts))
    return y.reshape(x.shape)


def _gated_sums(g, gate, x, mean):
    """g where gate > 0; and, for each image and channel, the sums of that and of that times (x - mean)."""
    N, H, W, C = x.shape
    gated = g if gate is None else cpu.empty((N, H, W, C), g.dtype)
    sums, products = np.empty((2, N, C), x.dtype)
    mean, fold = np.tile(mean, W), (-1, H, W * C)
    cuts = cpu.chunks(N, 4 * x[0].nbytes)

    def body(i):
        n = cuts[i]
        if gate is not None:
            np.multiply(g[n], gate[n] > 0, out=gated[n])
        rows = gated[n].reshape(fold)
        sums[n] = _columns(np.ones(H, x.dtype) @ rows, C)
        products[n] = _columns(np.einsum("nhc,nhc->nc", rows, x[n].reshape(fold) - mean), C)

    cpu.parallel(body, len(cuts))
    return gated, sums, products


def _tiled(values, x):
    """(C,) or (N, C) as rows (N, 1, W C): a whole row of x at a time keeps NumPy's inner loops long."""
    N, _, W, C = x.shape
    return np.tile(np.broadcast_to(values, (N, C)), (1, W))[:, None]


def _columns(rows, C):
    """The sum over W of (..., W C): (..., C)."""
    return rows.reshape(*rows.shape[:-1], -1, C).sum(-2)
