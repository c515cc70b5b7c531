"""Batch normalisation with gain, bias and, in one pass with them, ReLU (Ioffe and Szegedy 2015).

    xhat = (x - mean) / sqrt(var + eps)          y = gain xhat + bias          (then max(y, 0))

mean and (biased) var over images and positions; gain and bias for each channel, or, for conditional batch norm, for
each image and channel, looked up by its class. With m = N H W and g the cotangent of y (0 where the ReLU is off):

    dbias = sum g         dgain = sum g xhat         (over the positions that share one gain)
    dx = (gain g - sum(gain g) / m - xhat sum(gain g xhat) / m) / sqrt(var + eps)

In evaluation mean and var are given constants, and dx = gain g / sqrt(var + eps).
"""

import numpy as np

from minisagan import cuda, device, kinks, ranks
from minisagan.autograd import Tensor

kernels = cuda.Kernels(__file__)
BLOCKS = 2048  # that a kernel's work is cut into at most: a few times what a large GPU has at work at once


def batch_norm(x, gain, bias, statistics=None, relu=False, eps=1e-5):
    """Normalise x (N, H, W, C) by its own statistics, or by the given (mean, var), each (C,).

    gain and bias are both (C,) or both (N, C). With `relu`, y is max(gain xhat + bias, 0): as an op of its own the ReLU
    would cost another 5 % of a training step at 32x32.
    Returns y (N, H, W, C), and (mean, var) as arrays for the running averages.
    """
    xd, (N, H, W, C) = x.data, x.shape
    if gain.shape != bias.shape or gain.shape not in ((C,), (N, C)):
        shapes = f"{gain.shape} and {bias.shape}"
        raise ValueError(f"for x {x.shape}, gain and bias must both be ({C},) or ({N}, {C}), not {shapes}")
    if cuda.on_gpu(xd):
        return _on_gpu(x, gain, bias, statistics, relu, eps)
    mean, var = statistics or batch_statistics(xd)
    rstd = 1 / np.sqrt(var + xd.dtype.type(eps))
    gd = np.broadcast_to(gain.data, (N, C))
    scale, shift = gd * rstd, bias.data - mean * gd * rstd
    y = _affine(xd, scale, shift, relu)
    on = None  # where the ReLU lets through: where y > 0, unless a gradient check says otherwise
    if relu and (on := kinks.chosen(lambda: y > 0)) is not None:
        y = _affine(xd, scale, shift, False) * on

    def vjp(g, needs):
        gated, dbias, dgain = _gated_sums(g, (y if on is None else on) if relu else None, xd, mean)
        dgain *= rstd
        if statistics:
            dx = gated * scale[:, None, None]
        else:
            # dx = scale g - b - a (x - mean), as one affine pass
            both = np.stack([gd * dbias, gd * dgain], 1)  # (N, 2, C)
            b, a = ranks.everyone(both).sum(0) / (N * ranks.world() * H * W) * rstd  # (C,) each
            a *= rstd
            dx = _affine(gated, scale, mean * a - b, False, (xd, -a))
        return dx, *((dgain, dbias) if gain.ndim == 2 else (ranks.batch_sum(dgain), ranks.batch_sum(dbias)))

    return Tensor(y, (x, gain, bias), vjp), (mean, var)


def update_running(running, statistics, momentum):
    """Move the running (mean, var), in place, towards a batch's: r <- r + (1 - momentum) (s - r)."""
    if cuda.on_gpu(running[0]):
        C = len(running[0])
        kernels("update_running", cuda.blocks_for(C), 256, *running, *statistics, C, float(1 - momentum))
        return
    for r, s in zip(running, statistics, strict=True):
        r += (1 - momentum) * (s - r)


def batch_statistics(x):
    """Mean and biased variance over images and positions, each (C,): of the whole batch, if processes share it.

    Each image's own mean and squared deviations while it is in cache; then var is the mean of the images' variances and
    the variance of their means. No difference of large numbers, as E[x^2] - E[x]^2 would be.
    """
    N, H, W, C = x.shape
    moments = np.empty((N, 2, C), x.dtype)  # of each image: mean, variance
    cuts = device.chunks(N, 2 * x[0].nbytes)

    def body(i):
        rows = x[cuts[i]].reshape(-1, H, W * C)
        mean = _columns(np.ones(H, x.dtype) @ rows, C) / (H * W)  # (n, C)
        centred = rows - np.tile(mean, W)[:, None]
        moments[cuts[i], 0] = mean
        moments[cuts[i], 1] = _columns(np.einsum("nrc,nrc->nc", centred, centred), C) / (H * W)

    device.parallel(body, len(cuts))
    means, variances = ranks.everyone(moments).swapaxes(0, 1)  # (N of the whole batch, C) each
    mean = means.mean(0)
    return mean, variances.mean(0) + ((means - mean) ** 2).mean(0)


def _affine(x, scale, shift, relu, plus=None):
    """x * scale + shift, and + z * factor for plus = (z, factor), and its ReLU: scale, shift, factor (C,) or (N, C)."""
    N, H, W, C = x.shape
    y = np.empty((N, H, W * C), x.dtype)
    scale, shift, zero = _tiled(scale, x), _tiled(shift, x), np.zeros(W * C, x.dtype)
    if plus:
        other, factor = plus[0].reshape(y.shape), _tiled(plus[1], x)
    cuts = device.chunks(N, 3 * x[0].nbytes)

    def body(i):
        n = cuts[i]
        out = np.multiply(x[n].reshape(-1, H, W * C), scale[n], out=y[n])
        if plus:
            out += other[n] * factor[n]
        out += shift[n]
        if relu:
            np.maximum(out, zero, out=out)

    device.parallel(body, len(cuts))
    return y.reshape(x.shape)


def _gated_sums(g, gate, x, mean):
    """g where gate > 0; and, for each image and channel, the sums of that and of that times (x - mean)."""
    N, H, W, C = x.shape
    gated = g if gate is None else np.empty((N, H, W, C), g.dtype)
    sums, products = np.empty((2, N, C), x.dtype)
    mean, fold = np.tile(mean, W), (-1, H, W * C)
    cuts = device.chunks(N, 4 * x[0].nbytes)

    def body(i):
        n = cuts[i]
        if gate is not None:
            np.multiply(g[n], gate[n] > 0, out=gated[n])
        rows = gated[n].reshape(fold)
        sums[n] = _columns(np.ones(H, x.dtype) @ rows, C)
        products[n] = _columns(np.einsum("nhc,nhc->nc", rows, x[n].reshape(fold) - mean), C)

    device.parallel(body, len(cuts))
    return gated, sums, products


def _tiled(values, x):
    """(C,) or (N, C) as rows (N, 1, W C): a whole row of x at a time keeps NumPy's inner loops long."""
    N, _, W, C = x.shape
    return np.tile(np.broadcast_to(values, (N, C)), (1, W))[:, None]


def _columns(rows, C):
    """The sum over W of (..., W C): (..., C)."""
    return rows.reshape(*rows.shape[:-1], -1, C).sum(-2)


def _on_gpu(x, gain, bias, statistics, relu, eps):
    """batch_norm on the GPU. The backward pass finds y, and with it where the ReLU is on, again from x."""
    cp, (N, H, W, C) = cuda.cupy(), x.shape
    xd, gd, P, stride = cp.ascontiguousarray(x.data), gain.data, H * W, C * (gain.ndim == 2)
    per_channel = -(-C // 8), (8, 32)  # blocks and threads of the kernels that join what others found

    def new(*shape):
        return cp.empty(shape, xd.dtype)

    if statistics:
        mean, var = statistics
    else:
        (tiles, chunks, _), threads, step = _cuts(1, N * P, C)
        means, squares, mean, var = new(chunks, C), new(chunks, C), new(C), new(C)
        kernels("moments", (tiles, chunks), threads, xd, means, squares, N * P, C, step)
        kernels("statistics", *per_channel, means, squares, mean, var, N * P, C, step)
    blocks, threads, step = _cuts(N, P, C)
    affine, sizes, y = (xd, mean, var, gd, bias.data), (P, C, step, stride, relu, eps), new(N, H, W, C)
    kernels("normalise", blocks, threads, *affine, None, y, *sizes)
    on = None  # as on the CPU
    if relu and (on := kinks.chosen(lambda: y > 0)) is not None:
        kernels("normalise", blocks, threads, *affine, on, y, *sizes)

    def vjp(g, needs):
        g, (_, chunks, _) = cp.ascontiguousarray(g), blocks
        sum_g, sum_gx, mean_g, mean_gx = new(N, chunks, C), new(N, chunks, C), new(C), new(C)
        dx, dgain, dbias = new(N, H, W, C), new(*gain.shape), new(*gain.shape)
        kernels("sums", blocks, threads, *affine, on, g, sum_g, sum_gx, *sizes)
        found = dgain, dbias, mean_g, mean_gx
        kernels("join_sums", *per_channel, sum_g, sum_gx, gd, *found, N, chunks, C, stride, N * P)
        means = (None, None) if statistics else (mean_g, mean_gx)
        kernels("backward", blocks, threads, *affine, on, g, *means, dx, *sizes)
        return dx, dgain, dbias

    return Tensor(y, (x, gain, bias), vjp), (mean, var)


def _cuts(images, positions, C):
    """How a kernel's work is cut: blocks (of channels, of positions, images), their threads, positions in a block.

    A thread has eight positions at once, and goes on to more only where that would make too many blocks.
    """
    across = min(32, 1 << (C - 1).bit_length())
    tiles, down = -(-C // across), 256 // across
    chunks = max(1, min(-(-positions // (8 * down)), BLOCKS // (tiles * images)))
    step = -(-positions // chunks)
    return (tiles, -(-positions // step), images), (across, down), step
