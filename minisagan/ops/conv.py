"""Convolution, and its two exact fusions with resampling.

    conv       y[h, w] = b + sum_ij  x[s h + i - t, s w + j - l] @ w[i, j]               (t, l: padding above and left)
    up_conv    conv(upsample(x), w)   = the transpose of a 4x4 convolution of stride 2
    conv_down  avg_pool(conv(x, w))   = a 4x4 convolution of stride 2

Three sums over patches serve all of them, and each is another's derivative:

    gather     y[h, w]               = sum_ij  x[s h + i - t, s w + j - l] @ w[i, j]      forward
    scatter    y[s h + i - t, ...]  += x[h, w] @ w[i, j]                                  its transpose: dx from g
    outer      dw[i, j]              = sum_hw  x[s h + i - t, s w + j - l]^T g[h, w]      dw from x and g

Arrays are NHWC, weights (kh, kw, C, O), sizes odd and padding "same" in `conv`. Nearest up-sampling repeats each pixel
2x2 and average pooling sums 2x2, so a 3x3 kernel beside either is a 4x4 kernel of stride 2, smeared by a 2x2 box:
16 multiplications where there were 36. At the borders, too, the result is the same (the padding is of zeros).

How a gather runs on NumPy: for a few images at a time, so that all of it stays in cache, x is expanded by the kernel's
width alone, A[n, w, r, (j c)], rows r innermost but for the taps. There the kh kw C numbers that position (h, w) looks
at follow one another, and those of (h + 1, w) begin kw C further on: windows that overlap in memory, one for each
position, which np.matmul takes as they are, row by row of the image. Nothing is added up or moved later. The usual
im2col (all kh kw taps copied) copies thrice as much. Against kh products of one copy of the taps, added up, a whole
training step takes 12 % less time on one core: products as small as a row need no packing by OpenBLAS, either.
For dw the order is A[n, r, w, (j c)], where a tap's rows follow one another. On a GPU no patch is copied: conv.cu.
"""

import math

import numpy as np
from numpy.lib.stride_tricks import as_strided

from minisagan import cuda, device, ranks
from minisagan.autograd import Tensor

kernels = cuda.Kernels(__file__)


def conv(x, w, b=None, stride=1):
    """Convolution with zero padding: x (N, H, W, C), w (kh, kw, C, O) of odd kh, kw, b (O,) -> (N, H/s, W/s, O).

    y[h, w] = b + sum_ij x[s h + i - kh//2, s w + j - kw//2] @ w[i, j]; sizes that s does not divide are rounded up.
    dx = scatter(g, w^T);  dw = outer(x, g);  db = sum of g over images and positions.
    """
    kh, kw = w.shape[:2]
    if kh % 2 == 0 or kw % 2 == 0 or stride not in (1, 2):
        raise ValueError(f"conv takes odd kernels and stride 1 or 2, not {kh}x{kw} and {stride}")
    xd, wd, size = x.data, w.data, tuple(-(-s // stride) for s in x.shape[1:3])
    at = stride, kh // 2, kw // 2
    return _op(
        (x, w, b),
        lambda bias: gather(xd, wd, *at, size, bias),
        lambda g: scatter(g, wd.transpose(0, 1, 3, 2), *at, xd.shape[1:3]),
        lambda g: outer(xd, g, (kh, kw), *at),
    )


def up_conv(x, w, b=None):
    """conv(upsample(x), w, b) at 16/36 of the work: x (N, H, W, C), w (3, 3, C, O), b (O,) -> (N, 2H, 2W, O).

    y[R] sums w[k] x[h] over 2h <= R + k - 1 <= 2h + 1, that is scatter(x, v) with v[i] = w[2 - i] + w[3 - i], along
    both axes: v = smear(w) turned by 180 degrees.  dx = gather(g, v^T);  dw = smear^T(outer(g, x)^T turned).
    Without this fusion a training step at 32x32 takes 14 % longer.
    """
    xd, v, size = x.data, smear(w.data)[::-1, ::-1], (2 * x.shape[1], 2 * x.shape[2])
    return _op(
        (x, w, b),
        lambda bias: scatter(xd, v, 2, 1, 1, size, bias),
        lambda g: gather(g, v.transpose(0, 1, 3, 2), 2, 1, 1, xd.shape[1:3]),
        lambda g: outer(g, xd, (4, 4), 2, 1, 1, lambda dv: unsmear(dv.transpose(0, 1, 3, 2)[::-1, ::-1])),
    )


def conv_down(x, w, b=None):
    """avg_pool(conv(x, w, b)) at 16/36 of the work: x (N, H, W, C), H and W even, w (3, 3, C, O) -> (N, H/2, W/2, O).

    y[h] averages b + sum_k w[k] x[2h + a + k - 1] over a = 0, 1: gather(x, u) with u[i] = (w[i] + w[i - 1]) / 2, along
    both axes: u = smear(w) / 4.  dx = scatter(g, u^T);  dw = smear^T(outer(x, g)) / 4.
    Without this fusion a training step at 32x32 takes 15 % longer.
    """
    if x.shape[1] % 2 or x.shape[2] % 2:
        raise ValueError(f"conv_down halves even heights and widths, not {x.shape[1]}x{x.shape[2]}")
    xd, u, size = x.data, smear(w.data) / 4, (x.shape[1] // 2, x.shape[2] // 2)
    return _op(
        (x, w, b),
        lambda bias: gather(xd, u, 2, 1, 1, size, bias),
        lambda g: scatter(g, u.transpose(0, 1, 3, 2), 2, 1, 1, xd.shape[1:3]),
        lambda g: outer(xd, g, (4, 4), 2, 1, 1, lambda du: unsmear(du) / 4),
    )


def _op(parents, forward, dx, dw):
    """The Tensor of forward(bias), with dx(g), dw(g) and the bias's gradient for its backward pass."""
    x, w, b = parents
    if x.ndim != 4 or x.shape[3] != w.shape[2] or (b is not None and b.shape != w.shape[3:]):
        shapes = ", ".join(str(p.shape) for p in parents if p is not None)
        raise ValueError(f"a convolution takes x (N, H, W, C), w (kh, kw, C, O) and b (O,), not {shapes}")

    def vjp(g, needs):
        rules = dx, dw, channel_sum
        return [rule(g) if need else None for rule, need in zip(rules, needs, strict=False)]

    vjp.__qualname__ = dx.__qualname__  # conv, up_conv or conv_down: bench tells ops apart by this
    return Tensor(forward(b if b is None else b.data), parents if b is not None else (x, w), vjp)


def smear(w):
    """A 3x3 kernel convolved with a 2x2 box, (3, 3, C, O) -> (4, 4, C, O): u[i] = w[i] + w[i - 1] on each axis."""
    if w.shape[:2] != (3, 3):
        raise ValueError(f"up_conv and conv_down take 3x3 kernels, not {w.shape[0]}x{w.shape[1]}")
    if cuda.on_gpu(w):
        return _smear_on_gpu(w)
    u = np.zeros((4, 4) + w.shape[2:], w.dtype)
    for a in (0, 1):
        for b in (0, 1):
            u[a : a + 3, b : b + 3] += w
    return u


def unsmear(u):
    """The transpose of `smear`, (4, 4, C, O) -> (3, 3, C, O): w[i] = u[i] + u[i + 1] on each axis."""
    if cuda.on_gpu(u):
        return _unsmear_on_gpu(u)
    return u[:3, :3] + u[:3, 1:] + u[1:, :3] + u[1:, 1:]


def gather(x, w, stride, top, left, size, bias=None):
    """y[h, w] = bias + sum_ij x[s h + i - top, s w + j - left] @ w[i, j]: (N, H, W, C) -> (N, *size, O).

    x is zero outside of its borders.
    """
    if cuda.on_gpu(x):
        return _gather_on_gpu(x, w, stride, top, left, size, bias, scatter=False)
    if w.shape[:2] == (1, 1) and stride == 1:
        return pointwise(x, w[0, 0], bias)
    y = np.empty((len(x), *size, w.shape[3]), x.dtype)
    _products(x, stride, y, [(top, left, w, y)], bias)
    return y


def scatter(x, w, stride, top, left, size, bias=None):
    """The transpose of gather: y[s h + i - top, s w + j - left] += x[h, w] @ w[i, j], (N, H, W, C) -> (N, *size, O).

    Positions of y with one remainder mod s meet every s-th tap alone, so each of the s x s sets is a gather of stride 1
    with those taps turned by 180 degrees: y[s h + a] = sum_m x[h + (a + top)//s - m] @ w[(a + top) % s + s m].
    """
    if cuda.on_gpu(x):
        return _gather_on_gpu(x, w, stride, top, left, size, bias, scatter=True)
    if w.shape[:2] == (1, 1) and stride == 1:
        return pointwise(x, w[0, 0], bias)
    y = np.empty((len(x), *size, w.shape[3]), x.dtype)
    if min(w.shape[:2]) < stride:
        y.fill(0)  # positions that meet no tap
    sets = []
    for a in range(stride):
        for b in range(stride):
            taps = w[(a + top) % stride :: stride, (b + left) % stride :: stride][::-1, ::-1]
            positions = y[:, a::stride, b::stride]
            if taps.size and positions.size:
                first = len(taps) - 1 - (a + top) // stride, taps.shape[1] - 1 - (b + left) // stride
                sets.append((*first, taps, positions))
    _products(x, 1, y, sets, bias)
    return y


def outer(x, g, kernel, stride, top, left, finish=lambda dw: dw):
    """dw[i, j] = sum_hw x[s h + i - top, s w + j - left]^T g[h, w]: (N, H, W, C), (N, H', W', O) -> (kh, kw, C, O).

    A sum over the batch, of parts that are added in halves (ranks.py). `finish`, a linear function of dw, is applied to
    each part: rounded after the sum, it would depend on how many processes share the batch.
    """
    if cuda.on_gpu(x):
        return finish(_outer_on_gpu(x, g, kernel, stride, top, left))
    (kh, kw), (_, Ho, Wo, O), C = kernel, g.shape, x.shape[3]
    if kh == kw == stride == 1:
        return pointwise_outer(x, g)[None, None]
    rows = (Ho - 1) + -(-kh // stride)  # of x, of each remainder mod s, that meet a tap
    size = stride * rows * Wo * kw * C  # of an image's patches
    batch = list(zip(ranks.parts(x), ranks.parts(g), strict=True))
    sums = np.zeros((len(batch), kh, kw * C, O), x.dtype)

    def body(k):
        for cut in device.cached(len(batch[k][0]), x.itemsize * size):
            images, gs = (a[cut] for a in batch[k])
            n, gs = len(images), gs.reshape(-1, Ho * Wo, O)
            patches = device.scratch(x.dtype, n * size).reshape(stride, n, rows, Wo, kw, C)
            for remainder, A in enumerate(patches):
                _expand(images, A, stride, top - remainder, stride, left)
            for i in range(kh):
                a = patches[i % stride, :, i // stride : i // stride + Ho].reshape(n, Ho * Wo, kw * C)  # a view
                sums[k, i] += np.matmul(a.swapaxes(1, 2), gs).sum(0)  # (n, kw C, O) -> (kw C, O)

    device.parallel(body, len(batch))
    return ranks.halved(np.stack([finish(part.reshape(kh, kw, C, O)) for part in sums]))


def pointwise(x, w, bias=None):
    """The 1x1 convolution x @ w + bias at each position: (N, H, W, C) @ (C, O) -> (N, H, W, O)."""
    N, H, W, C = x.shape
    y = np.empty((N, H, W, w.shape[1]), x.dtype)
    bias = bias if bias is None else np.tile(bias, W)
    cuts = device.chunks(N, x.itemsize * H * W * (C + w.shape[1]))

    def body(i):
        out = y[cuts[i]]
        np.matmul(x[cuts[i]].reshape(-1, H * W, C), w, out=out.reshape(-1, H * W, w.shape[1]))
        if bias is not None:
            out = out.reshape(-1, len(bias))
            out += bias

    device.parallel(body, len(cuts))
    return y


def pointwise_outer(x, g):
    """Its weight gradient, sum over positions of x^T g: (N, H, W, C), (N, H, W, O) -> (C, O)."""
    N, H, W, C = x.shape
    batch = list(zip(ranks.parts(x.reshape(N, -1, C)), ranks.parts(g.reshape(N, H * W, -1)), strict=True))
    sums = np.empty((len(batch), C, g.shape[3]), x.dtype)

    def body(k):
        images, gs = batch[k]
        np.matmul(images.swapaxes(1, 2), gs).sum(0, out=sums[k])  # (n, C, O) -> (C, O)

    device.parallel(body, len(batch))
    return ranks.halved(sums)


def channel_sum(g):
    """The sum over images and positions, (N, H, W, O) -> (O,): a bias's gradient."""
    N, H, W, O = g.shape
    if cuda.on_gpu(g):
        slices = _column_sums(g, N * H, W * O, BLOCKS)  # long rows: narrow ones would leave lanes idle
        return _column_sums(slices, slices.size // O, O, 1).reshape(O)
    rows = np.ones(H, g.dtype) @ g.reshape(N, H, W * O)  # long rows: NumPy and BLAS both want them
    return ranks.batch_sum(rows.reshape(N, W, O).sum(1))


def _products(x, stride, y, sets, bias):
    """Fill y, and each part of it in `sets` = [(top, left, w, part), ...] by a gather of its own:

        part[h, w] = bias + sum_ij x[s h + i - top, s w + j - left] @ w[i, j]

    Sets whose kernels are equally wide share one expansion of x.
    """
    N, _, _, C = x.shape
    bias = bias if bias is None else np.tile(bias, y.shape[2])  # a row at a time: long inner loops
    jobs, widths = [], {w.shape[1] for _, _, w, _ in sets}
    for kw in widths:
        group = [each for each in sets if each[2].shape[1] == kw]
        tops, lefts, _, _ = zip(*group, strict=True)
        top, left = max(tops), max(lefts)
        rows = max(top - t + stride * (part.shape[1] - 1) + len(w) for t, _, w, part in group)
        columns = max(left - l + part.shape[2] for _, l, _, part in group)  # several sets: stride 1
        products = [
            (top - t, left - l, np.ascontiguousarray(w).reshape(-1, w.shape[3]), part)
            for t, l, w, part in group
        ]
        jobs.append((top, left, (columns, rows, kw, C), products))
    cuts = device.chunks(N, x.itemsize * max(math.prod(shape) for _, _, shape, _ in jobs), at_least=8)

    def body(i):
        images = x[cuts[i]]
        for top, left, shape, products in jobs:
            A = device.scratch(x.dtype, len(images) * math.prod(shape)).reshape(-1, *shape)  # (n, W', R, kw, C)
            _expand(images, A.swapaxes(1, 2), 1, top, stride, left)
            image, column, row, _, channel = A.strides
            for down, right, w, part in products:
                windows = as_strided(
                    A[:, right:, down:],
                    (len(images), *part.shape[1:3], len(w)),
                    (image, stride * row, column, channel),
                )
                np.matmul(windows, w, out=part[cuts[i]])  # (n, H', W', kh kw C) @ (kh kw C, O) -> (n, H', W', O)
        if bias is not None:
            long = y[cuts[i]].reshape(-1, len(bias))
            long += bias

    device.parallel(body, len(cuts))


def _expand(x, A, down, top, across, left):
    """Fill A[n, r, w, j] = x[n, down r - top, across w - left + j], (n, R, W', kw, C): 0 outside of x's borders."""
    (_, H, W, C), (n, R, columns, kw, _) = x.shape, A.shape
    first = min(R, max(0, -(-top // down)))
    stop = max(first, min(R, (H - 1 + top) // down + 1))
    A[:, :first] = 0
    A[:, stop:] = 0
    A, x = A[:, first:stop], x[:, down * first - top :: down][:, : stop - first]
    inside = range(max(0, -(-left // across)), min(columns, (W - kw + left) // across + 1))  # that see no border
    if inside:
        image, row, column, channel = x.strides
        windows = as_strided(
            x[:, :, across * inside.start - left :],
            (n, stop - first, len(inside), kw, C),
            (image, row, across * column, column, channel),
        )
        np.copyto(A[:, :, inside.start : inside.stop], windows)
    for w in range(columns):
        if w not in inside:
            at = across * w - left
            low, high = min(kw, max(0, -at)), max(0, min(kw, W - at))
            A[:, :, w, :low] = 0
            A[:, :, w, high:] = 0
            if low < high:
                A[:, :, w, low:high] = x[:, :, at + low : at + high]


# On the GPU. The kernels see arrays as they lie in memory, x and g contiguous.

BLOCKS = 512  # about how many should be at work at once: fixed, so that results depend on shapes alone. Not measured.
NUMBERS = *"NHWC", "Ho", "Wo", "O", "kh", "kw", "stride", "top", "left", "scatter", "turned", "each"
SHAPE = np.dtype([(name, np.int32) for name in NUMBERS])  # the struct Shape of conv.cu


def _gather_on_gpu(x, w, stride, top, left, size, bias, scatter):
    cupy, N, (kh, kw, _, O) = cuda.cupy(), len(x), w.shape
    sets = stride if scatter else 1  # of rows, and of columns, by their remainder
    columns, blocks, threads = _tiles(N * -(-size[0] // sets) * -(-size[1] // sets), O, x.itemsize, sets * sets)
    w, turned, swapped = _layout(w)
    x, y = cupy.ascontiguousarray(x), cupy.empty((N, *size, O), x.dtype)
    shape = np.array((*x.shape, *size, O, kh, kw, stride, top, left, scatter, turned, 0), SHAPE)
    kernels(f"gather_{columns}_swapped" if swapped else f"gather_{columns}", blocks, threads, x, w, bias, y, shape)
    return y


def _outer_on_gpu(x, g, kernel, stride, top, left):
    cupy, (N, *size, O), (kh, kw), C = cuda.cupy(), g.shape, kernel, x.shape[3]
    columns, (down, across, _), threads = _tiles(kh * kw * C, O, x.itemsize)
    pixels = N * size[0] * size[1]
    each = max(256, -(-pixels * down * across // BLOCKS // 16) * 16)  # pixels in a partial sum
    sums = -(-pixels // each)
    x, g, partial = cupy.ascontiguousarray(x), cupy.ascontiguousarray(g), cupy.empty((sums, kh, kw, C, O), x.dtype)
    shape = np.array((*x.shape, *size, O, kh, kw, stride, top, left, 0, 0, each), SHAPE)
    kernels(f"outer_{columns}", (down, across, sums), threads, x, g, partial, shape)
    return (partial if sums == 1 else _column_sums(partial, sums, partial[0].size, 1)).reshape(kh, kw, C, O)


def _tiles(rows, O, itemsize, times=1):
    """How many columns a block's tile of the product (rows, O) has; the grid of blocks; the threads of each."""
    height = 512 // itemsize  # ROWS of conv.cu
    columns, down = next((width for width in (8, 32, 64) if width >= O), 128), -(-rows // height)
    if columns == 128 and 2 * down * -(-O // 128) * times < BLOCKS:
        columns = 64  # more blocks instead
    return columns, (down, -(-O // columns), times), 2 * height


def _layout(w):
    """w as it lies in memory; whether its taps are turned by 180 degrees there, and whether C and O are swapped."""
    turned = w.strides[0] < 0
    w = w[::-1, ::-1] if turned else w
    swapped = not w.flags.c_contiguous
    return cuda.cupy().ascontiguousarray(w.transpose(0, 1, 3, 2) if swapped else w), int(turned), int(swapped)


def _column_sums(x, rows, columns, slices):
    """x as a matrix (rows, columns), summed over slices of its rows: at most so many, (slices, columns)."""
    x, across = cuda.cupy().ascontiguousarray(x), -(-columns // 32)
    each = -(-rows // max(1, min(slices // across, rows // 32)))
    y = cuda.cupy().empty((-(-rows // each), columns), x.dtype)
    kernels("column_sums", (across, len(y)), (32, 32), x, y, rows, columns, each)
    return y


def _smear_on_gpu(w):
    u = cuda.cupy().empty((4, 4) + w.shape[2:], w.dtype)
    kernels("smear", cuda.blocks_for(u.size), 256, cuda.cupy().ascontiguousarray(w), u, u.size // 16)
    return u


def _unsmear_on_gpu(u):
    w = cuda.cupy().empty((3, 3) + u.shape[2:], u.dtype)
    u, *layout = _layout(u)
    kernels("unsmear", cuda.blocks_for(w.size), 256, u, w, *w.shape[2:], *layout)
    return w
