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

How a gather runs on NumPy: for a few images at a time, so that all of it stays in cache, rows go to the front and each
is expanded by the kernel's width alone, A[r, n, w, (j c)]; then y = A[0:H] @ w[0] + A[1:H+1] @ w[1] + ... is kh
matrix products of contiguous slices. Against the usual im2col (all kh kw taps copied, one product) that moves a
third of the memory and took 0.63 of its time for 16 channels at 32x32. On a GPU no patch is copied at all: conv.cu.
"""

import numpy as np
from numpy.lib.stride_tricks import as_strided

from minisagan import cuda, device
from minisagan.autograd import Tensor

kernels = cuda.Kernels(__file__)
SUMS = 8  # partial sums of a weight gradient, whatever the number of threads


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
    """
    xd, v, size = x.data, smear(w.data)[::-1, ::-1], (2 * x.shape[1], 2 * x.shape[2])
    return _op(
        (x, w, b),
        lambda bias: scatter(xd, v, 2, 1, 1, size, bias),
        lambda g: gather(g, v.transpose(0, 1, 3, 2), 2, 1, 1, xd.shape[1:3]),
        lambda g: unsmear(outer(g, xd, (4, 4), 2, 1, 1).transpose(0, 1, 3, 2)[::-1, ::-1]),
    )


def conv_down(x, w, b=None):
    """avg_pool(conv(x, w, b)) at 16/36 of the work: x (N, H, W, C), H and W even, w (3, 3, C, O) -> (N, H/2, W/2, O).

    y[h] averages b + sum_k w[k] x[2h + a + k - 1] over a = 0, 1: gather(x, u) with u[i] = (w[i] + w[i - 1]) / 2, along
    both axes: u = smear(w) / 4.  dx = scatter(g, u^T);  dw = smear^T(outer(x, g)) / 4.
    """
    if x.shape[1] % 2 or x.shape[2] % 2:
        raise ValueError(f"conv_down halves even heights and widths, not {x.shape[1]}x{x.shape[2]}")
    xd, u, size = x.data, smear(w.data) / 4, (x.shape[1] // 2, x.shape[2] // 2)
    return _op(
        (x, w, b),
        lambda bias: gather(xd, u, 2, 1, 1, size, bias),
        lambda g: scatter(g, u.transpose(0, 1, 3, 2), 2, 1, 1, xd.shape[1:3]),
        lambda g: unsmear(outer(xd, g, (4, 4), 2, 1, 1)) / 4,
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
    _patch_products(x, stride, [(left, [(top, w, y)])], bias)
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
    jobs = []
    for b in range(stride):
        rows = []
        for a in range(stride):
            taps = w[(a + top) % stride :: stride, (b + left) % stride :: stride][::-1, ::-1]
            if taps.size and y[:, a::stride, b::stride].size:
                rows.append((taps.shape[0] - 1 - (a + top) // stride, taps, y[:, a::stride, b::stride]))
        if rows:
            jobs.append((rows[0][1].shape[1] - 1 - (b + left) // stride, rows))
    _patch_products(x, 1, jobs, bias)
    return y


def outer(x, g, kernel, stride, top, left):
    """dw[i, j] = sum_hw x[s h + i - top, s w + j - left]^T g[h, w]: (N, H, W, C), (N, H', W', O) -> (kh, kw, C, O).

    Chunks go to SUMS partial sums, in turn, and these are added in order.
    """
    if cuda.on_gpu(x):
        return _outer_on_gpu(x, g, kernel, stride, top, left)
    (kh, kw), (N, Ho, Wo, O), C = kernel, g.shape, x.shape[3]
    if kh == kw == stride == 1:
        return pointwise_outer(x, g)[None, None]
    cuts = device.chunks(N, x.itemsize * Ho * Wo * (stride * kw * C + O), at_least=SUMS)
    partial = np.zeros((min(SUMS, len(cuts)), kh, kw * C, O), x.dtype)
    columns = ((left, kw, Wo, ((0, kh, Ho),)),)

    def body(i):
        for cut in cuts[i::SUMS]:
            plan = _plan(x.dtype, (cut.stop - cut.start, *x.shape[1:]), stride, top, columns, O)
            plan.pad(x[cut])
            (rows, z, _, images) = plan.expand(0)[0]
            np.copyto(images, g[cut])
            for k, a in enumerate(rows):
                partial[i, k] += np.matmul(a.T, z)

    device.parallel(body, len(partial))
    return partial.sum(0).reshape(kh, kw, C, O)


def pointwise(x, w, bias=None):
    """The 1x1 convolution x @ w + bias at each position: (N, H, W, C) @ (C, O) -> (N, H, W, O)."""
    N, H, W, C = x.shape
    y = np.empty((N, H, W, w.shape[1]), x.dtype)
    bias = bias if bias is None else np.tile(bias, W)
    cuts = device.chunks(N, x.itemsize * H * W * (C + w.shape[1]))

    def body(i):
        out = y[cuts[i]].reshape(-1, w.shape[1])
        np.matmul(x[cuts[i]].reshape(-1, C), w, out=out)
        if bias is not None:
            out = out.reshape(-1, len(bias))
            out += bias

    device.parallel(body, len(cuts))
    return y


def pointwise_outer(x, g):
    """Its weight gradient, sum over positions of x^T g: (N, H, W, C), (N, H, W, O) -> (C, O)."""
    N, H, W, C = x.shape
    cuts = device.chunks(N, x.itemsize * H * W * (C + g.shape[3]))
    partial = np.empty((len(cuts), C, g.shape[3]), x.dtype)

    def body(i):
        np.matmul(x[cuts[i]].reshape(-1, C).T, g[cuts[i]].reshape(-1, g.shape[3]), out=partial[i])

    device.parallel(body, len(cuts))
    return partial.sum(0)


def channel_sum(g):
    """The sum over images and positions, (N, H, W, O) -> (O,): a bias's gradient."""
    N, H, W, O = g.shape
    if cuda.on_gpu(g):
        slices = _column_sums(g, N * H, W * O, BLOCKS)  # long rows: narrow ones would leave lanes idle
        return _column_sums(slices, slices.size // O, O, 1).reshape(O)
    rows = g.reshape(N * H, W * O)  # long rows: NumPy and BLAS both want them
    return (np.ones(N * H, g.dtype) @ rows).reshape(W, O).sum(0)


def _patch_products(x, stride, jobs, bias):
    """Fill each y of jobs = [(left, [(top, w, y), ...]), ...].

        y[h, w] = bias + sum_ij x[s h + i - top, s w + j - left] @ w[i, j]

    One padded copy of the images serves all jobs, and one expansion along the width all those of one `left`.
    """
    N, H, W, C = x.shape
    O = jobs[0][1][0][2].shape[3]
    top = max(top for _, group in jobs for top, _, _ in group)
    columns = tuple(
        (left, group[0][1].shape[1], group[0][2].shape[2], tuple((top - t, len(w), y.shape[1]) for t, w, y in group))
        for left, group in jobs
    )
    work = [
        [
            (
                np.ascontiguousarray(w).reshape(len(w), -1, O),
                bias if bias is None else np.tile(bias, y.shape[2]),  # a row at a time: long inner loops
                y,
            )
            for _, w, y in group
        ]
        for _, group in jobs
    ]
    rows = max(stride * (Ho - 1) + kh + down for *_, group in columns for down, kh, Ho in group)
    widest = max(kw * Wo for _, kw, Wo, _ in columns)
    size = max(y[0].size for _, group in jobs for _, _, y in group)  # of one image's output
    cuts = device.chunks(N, x.itemsize * (rows * widest * C + 2 * size), at_least=8)

    def body(i):
        plan = _plan(x.dtype, (cuts[i].stop - cuts[i].start, H, W, C), stride, top, columns, O)
        plan.pad(x[cuts[i]])
        for j, group in enumerate(work):
            for (rows, acc, term, images), (w, row, y) in zip(plan.expand(j), group, strict=True):
                np.matmul(rows[0], w[0], out=acc)
                for a, tap in zip(rows[1:], w[1:], strict=True):
                    acc += np.matmul(a, tap, out=term)
                if row is not None:
                    long = acc.reshape(-1, len(row))
                    long += row
                y[cuts[i]] = images

    device.parallel(body, len(cuts))


class _Patches:
    """Memory in which n images are padded, rows first, (R, n, Q, C), and then expanded along the width for each column.

    columns: for each, (left, kw, W', ((down, kh, H'), ...)): its expansion A (R, n, W', kw C) holds
    x[n, r - top, s w - left + (0 ... kw-1)], and each of its products with kh taps begins at row `down` of it.
    All of it is this thread's scratch memory, which stays in cache from op to op: worth more than writing the zeros
    around the images each time (3 % of a step).
    """

    def __init__(self, dtype, shape, s, top, columns, O):
        n, H, W, C = shape
        R = max(s * (Ho - 1) + kh + down for *_, group in columns for down, kh, Ho in group)
        pad = max(left for left, *_ in columns)
        Q = max(pad - left + s * (Wo - 1) + kw for left, kw, Wo, _ in columns)
        out = n * O * max(Ho * Wo for _, _, Wo, group in columns for _, _, Ho in group)
        widest = max(kw * Wo for _, kw, Wo, _ in columns)
        memory, padded, first, second = device.scratch(dtype, R * n * C * widest, R * n * Q * C, out, out)
        padded = padded.reshape(R, n, Q, C)
        self.height, self.width = min(H, R - top), min(W, Q - pad)  # what of x is ever looked at
        self.inside = padded[top : top + self.height, :, pad : pad + self.width]
        frame = padded[:top], padded[top + self.height :], padded[:, :, :pad], padded[:, :, pad + self.width :]
        self.frame = [edge for edge in frame if edge.size]
        row, image, column, channel = padded.strides
        even = -(-R // s)  # with stride 2: even rows first, then odd, so that each tap's are contiguous
        self.columns = []
        for left, kw, Wo, group in columns:
            a = memory[: R * n * Wo * kw * C].reshape(R, n, Wo, kw * C)
            windows = as_strided(padded[:, :, pad - left :], a.shape, (row, image, s * column, channel))
            copies = [(a[:even], windows[::s])] + ([(a[even:], windows[1::2])] if s == 2 else [])
            products = []
            for down, kh, Ho in group:
                starts = [k // s + (k % s) * even for k in range(down, down + kh)]
                rows = [a[start : start + Ho].reshape(-1, kw * C) for start in starts]  # (H' n W', kw C) for each tap
                acc, term = (flat[: n * Ho * Wo * O].reshape(-1, O) for flat in (first, second))  # (H' n W', O)
                products.append((rows, acc, term, acc.reshape(Ho, n, Wo, O).transpose(1, 0, 2, 3)))
            self.columns.append((copies, products))

    def pad(self, x):
        for edge in self.frame:
            edge.fill(0)
        np.copyto(self.inside, x[:, : self.height, : self.width].transpose(1, 0, 2, 3))

    def expand(self, j):
        """Expand along the width for column j; its products: (rows for each tap, acc, term, acc as (n, H', W', O))."""
        copies, products = self.columns[j]
        for a, windows in copies:
            np.copyto(a, windows)
        return products


_plan = device.per_thread(_Patches)


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
