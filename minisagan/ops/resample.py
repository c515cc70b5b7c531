"""Changing the resolution by two: nearest up-sampling, average pooling, max pooling; all on (N, H, W, C).

    upsample   y[2h + a, 2w + b] = x[h, w]                     dx[h, w] = sum_ab g[2h + a, 2w + b]
    avg_pool   y[h, w] = 1/4 sum_ab x[2h + a, 2w + b]          dx[2h + a, 2w + b] = g[h, w] / 4
    max_pool   y[h, w] = max_ab x[2h + a, 2w + b]              dx = g at the (first) largest of the four, else 0

Up-sampling and average pooling are each other's transpose, but for the factor 4.
"""

import numpy as np

from minisagan import cuda, device, kinks
from minisagan.autograd import Tensor

kernels = cuda.Kernels(__file__)


def upsample(x):
    """Each pixel repeated 2x2: (N, H, W, C) -> (N, 2H, 2W, C)."""
    return Tensor(_repeat(x.data, 1), (x,), lambda g, needs: (_block_sum(g, 1),))


def avg_pool(x):
    """The mean of each 2x2 block: (N, H, W, C), H and W even -> (N, H/2, W/2, C)."""
    _check_even(x, "avg_pool")
    return Tensor(_block_sum(x.data, 0.25), (x,), lambda g, needs: (_repeat(g, 0.25),))


def max_pool(x):
    """The largest of each 2x2 block: (N, H, W, C), H and W even -> (N, H/2, W/2, C)."""
    _check_even(x, "max_pool")
    if cuda.on_gpu(x.data):
        return _max_pool_on_gpu(x)
    N, H, W, C = x.shape
    corners = [x.data[:, a::2, b::2] for a in (0, 1) for b in (0, 1)]  # four views (N, H/2, W/2, C)
    winner = kinks.chosen(lambda: np.argmax(corners, 0))
    y = np.empty((N, H // 2, W // 2, C), x.dtype) if winner is None else np.choose(winner, corners)
    cuts = device.chunks(N, 2 * x.data[0].nbytes)

    def forward(i):
        a, b, c, d = (corner[cuts[i]] for corner in corners)
        np.maximum(np.maximum(a, b), np.maximum(c, d), out=y[cuts[i]])

    if winner is None:
        device.parallel(forward, len(cuts))

    def vjp(g, needs):
        dx = np.empty((N, H, W, C), g.dtype)

        def backward(i):
            n, rest = cuts[i], g[cuts[i]]  # the rest is what no corner has taken yet
            for k, corner in enumerate(corners):
                taken = rest * (corner[n] == y[n] if winner is None else winner[n] == k)
                dx[n, k // 2 :: 2, k % 2 :: 2] = taken
                rest = rest - taken

        device.parallel(backward, len(cuts))
        return (dx,)

    return Tensor(y, (x,), vjp)


def _repeat(x, factor):
    """factor x, each pixel repeated 2x2."""
    N, H, W, C = x.shape
    if cuda.on_gpu(x):
        return _launch("repeat", x.shape, (N, 2 * H, 2 * W, C), x, float(factor))
    y = np.empty((N, H, 2, W, 2, C), x.dtype)
    cuts = device.chunks(N, 5 * x[0].nbytes)

    def body(i):
        small = x[cuts[i]] if factor == 1 else x[cuts[i]] * x.dtype.type(factor)
        y[cuts[i]] = small[:, :, None, :, None]

    device.parallel(body, len(cuts))
    return y.reshape(N, 2 * H, 2 * W, C)


def _block_sum(x, factor):
    """factor times the sum of each 2x2 block."""
    N, H, W, C = x.shape
    if cuda.on_gpu(x):
        small = N, H // 2, W // 2, C
        return _launch("sum_blocks", small, small, x, float(factor))
    blocks = x.reshape(N, H // 2, 2, W // 2, 2, C)
    y = np.empty((N, H // 2, W // 2, C), x.dtype)
    cuts = device.chunks(N, 2 * x[0].nbytes)

    def body(i):
        rows = blocks[cuts[i], :, 0] + blocks[cuts[i], :, 1]  # (n, H/2, W/2, 2, C)
        np.add(rows[..., 0, :], rows[..., 1, :], out=y[cuts[i]])
        if factor != 1:
            y[cuts[i]] *= factor

    device.parallel(body, len(cuts))
    return y


def _check_even(x, op):
    if x.shape[1] % 2 or x.shape[2] % 2:
        raise ValueError(f"{op} halves even heights and widths, not {x.shape[1]}x{x.shape[2]}")


def _max_pool_on_gpu(x):
    """max_pool on the GPU, which remembers the winner of each block, 0 ... 3, for the backward pass."""
    N, H, W, C = large = x.shape
    small = N, H // 2, W // 2, C
    found = cuda.cupy().empty(small, np.uint8)
    given = kinks.chosen(lambda: found)
    known = given is not None and given is not found
    winner = given if known else found
    y = _launch("max_pool", small, small, x.data, winner, int(known))
    return Tensor(y, (x,), lambda g, needs: (_launch("max_pool_back", small, large, g, winner),))


def _launch(name, small, shape, x, *more):
    """The array of this shape that a kernel makes of x, with a thread for each element of the small image."""
    N, H, W, C = small
    x = cuda.cupy().ascontiguousarray(x)
    y = cuda.cupy().empty(shape, x.dtype)
    count = N * H * W * C
    kernels(name, cuda.blocks_for(count), 256, y, x, *more, count, W * C, C)
    return y
