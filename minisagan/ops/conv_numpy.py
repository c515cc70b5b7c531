"""The sums over patches of conv.py on the CPU, as few large products of matrices, with little copied.

im2col copies what all kh kw taps see and makes a convolution one product. Here x is expanded by the kernel's width
alone, a third of that for 3x3, for so few images at a time that all of it stays in cache. A[n, w, r, (j c)] is what the
kw taps of output column w see in row r of the padded x, and lies in memory with rows next to each other:

    A[n, w]           | row 0: j c | row 1: j c | row 2: j c | row 3: j c | row 4: j c | ...
    output (0, w)     [ kh kw C numbers, i j c in order      ]
    output (1, w)                  [ kh kw C numbers, which overlap those ]               stride 1, kh = 3

So what each output position sees is a window of A, and np.matmul takes the windows as they are, as overlapping rows of
a matrix, for one row of the image at a time. Nothing is added up or moved later. Compared with kh products of one copy
of the taps, added up, a whole training step takes 12 % less time on one core. Where there is AVX-512, OpenBLAS does
not pack such small products, either. Where it packs all, one product takes that row of several images, and their
positions are moved (`images_together`). `outer` sums over positions, so its A[r, n, w, (j c)] has the positions of one
row of some images next to each other, and one product sums over them. With a product for each image, added up later, a
step at width 32 takes 5 to 7 % longer (at width 16, 1 %): a 4x4 map of 64 channels has 16 positions only, and took 1.6
times as long. 3x3 convolutions of many channels take fewer multiplications yet (winograd_numpy.py).
"""

import math

import numpy as np
from numpy.lib.stride_tricks import as_strided

from minisagan import batch, cpu
from minisagan.ops import winograd_numpy
from minisagan.ops.activation import relu_forward

SMALL = 1e6  # multiplications: OpenBLAS doesn't pack the matrices of smaller products, unless it packs all
ROWS = 128  # of the left matrix, for which it is worth to pack the right one
PATCHES = 1 << 19  # numbers of patches that `outer` has in memory at once: 2 MiB of float32


def gather(x, w, stride, top, left, size, bias=None, rest=None, relu=False):
    if w.shape[:2] == (1, 1) and stride == 1:
        return pointwise(x, w[0, 0], bias, rest, relu)
    y = cpu.empty((len(x), *size, w.shape[3]), x.dtype)
    gathers(x, stride, y, [(top, left, w, y)], bias, rest, read=relu_forward if relu else None)
    return y


def scatter(x, w, stride, top, left, size, bias=None, rest=None, gate=None):
    """As s x s gathers of stride 1, so that no position of y is added to twice.

    Positions of y with one remainder mod s meet every s-th tap alone, so each of the s x s sets is a gather of stride 1
    with those taps turned by 180 degrees: y[s h + a] = sum_m x[h + (a + top)//s - m] @ w[(a + top) % s + s m].
    """
    if w.shape[:2] == (1, 1) and stride == 1:
        return pointwise(x, w[0, 0], bias, rest, gate=gate)
    y = cpu.empty((len(x), *size, w.shape[3]), x.dtype)
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
    gathers(x, 1, y, sets, bias, rest, gate)
    return y


def outer(x, g, kernel, stride, top, left, relu=False):
    return outers(x, g, kernel, stride, top, left, relu_forward if relu else None)


def outers(x, g, kernel, stride, top, left, read=None):
    """With `read`, x stands for read(x) of some images, (P, n, H, W, C) as `batch.sum_stacked` gives them."""
    (kh, kw), (_, Ho, Wo, O), C = kernel, g.shape, x.shape[3]
    rows = (Ho - 1) + -(-kh // stride)  # of x, of each remainder mod s, that meet a tap
    size = stride * rows * Wo * kw * C  # of an image's patches
    step = max(1, PATCHES // size)  # not by the machine's cache: the order of the additions depends on it

    def rows_of_dw(x, g):
        """(P, n, H, W, C), (P, n, Ho, Wo, O) -> (P, kh kw C + 1, O)"""
        P, N, *_ = x.shape
        dw_db = np.zeros((P, kh * kw * C + 1, O), x.dtype)
        dw_db[:, -1] = _channel_sums(g)
        if kh == kw == stride == 1:
            x = read(x) if read else x
            products = np.matmul(_matrices(x).swapaxes(2, 3), _matrices(g))  # (P, n or 1, C, O)
            products.sum(1, out=dw_db[:, :-1])
            return dw_db
        dw = dw_db[:, :-1].reshape(P, kh, kw * C, O)  # a view
        for start in range(0, N, step):
            images, gs = x[:, start : start + step], g[:, start : start + step]
            n, images = images.shape[1], read(images) if read else images
            together = _together(Ho, n * Wo * kw * C * O)
            gs = np.ascontiguousarray(gs.swapaxes(1, 2))  # (P, Ho, n, Wo, O)
            gs = gs.reshape(P, 1, Ho // together, -1, O)
            patches = cpu.scratch(x.dtype, P * n * size).reshape(stride, P, rows, n, Wo, kw, C)
            for remainder, A in enumerate(patches):
                expand(images, A.swapaxes(1, 2), stride, top - remainder, stride, left)
                sums = dw[:, remainder::stride]  # of the taps i that meet rows of this remainder
                part, row, _, position, _, channel = A.strides
                shape = *sums.shape[:2], *gs.shape[2:4], kw * C
                windows = as_strided(A, shape, (part, row, together * row, position, channel))
                sums += np.matmul(windows.swapaxes(3, 4), gs).sum(2)  # (P, i, ., kw C, O) -> (P, i, kw C, O)
        return dw_db

    return batch.sum_stacked(rows_of_dw, PATCHES // size, x, g)


def _together(count, multiplications, least=1):
    """How many of a matrix's rows or columns one product takes, if each means so many multiplications.

    A divisor of `count` and multiple of `least`: the largest with which OpenBLAS doesn't pack; if there is none, all.
    """
    if cpu.packs_always():
        return count
    fit = [k for k in range(least, count + 1, least) if count % k == 0 and k * multiplications <= SMALL]
    return max(fit, default=count)


def channel_sum(g):
    return batch.sum_stacked(_channel_sums, len(g), g)


def _channel_sums(g):
    """(P, n, H, W, O) -> (P, O). Over heights by BLAS, in rows as long as W O: with g.sum a step takes 3 % longer."""
    P, N, H, W, O = g.shape
    rows = np.ones(H, g.dtype) @ g.reshape(P, N, H, W * O)  # (P, n, W O)
    return rows.sum(1).reshape(P, W, O).sum(1)


def pointwise(x, w, bias=None, rest=None, relu=False, gate=None):
    """A 1x1 convolution, x @ w + bias + rest at each position: (N, H, W, C) @ (C, O) -> (N, H, W, O)."""
    N, H, W, C = x.shape
    y = cpu.empty((N, H, W, w.shape[1]), x.dtype)
    bias = bias_rows(bias, H, W)
    cuts = cpu.chunks(N, x.itemsize * H * W * (C + w.shape[1]))

    def body(i):
        images, out = relu_forward(x[cuts[i]]) if relu else x[cuts[i]], y[cuts[i]]
        n = len(images)  # one product for each image: what a row comes to may depend on how many there are
        np.matmul(images.reshape(n, H * W, C), w, out=out.reshape(n, H * W, -1))
        complete(y, cuts[i], bias, rest, gate)

    cpu.parallel(body, len(cuts))
    return y


def _matrices(x):
    """A matrix for each image, (P, n, H, W, C) -> (P, n, H W, C); images of one pixel are rows of one, (P, 1, n, C).

    Its rows follow one another in memory: BLAS may add up those of every k-th image in another order.
    """
    P, n, H, W, C = x.shape
    return x.reshape(P, n, H * W, C) if H * W > 1 else np.ascontiguousarray(x).reshape(P, 1, n, C)


def images_together(N, rows):
    """Of how many of N images one product takes `rows` positions each: a divisor of batch.of_part(N).

    Where OpenBLAS packs the matrices of every product, few rows are not worth that: of 8 rows, with K = 576 and O = 64,
    it does 58 GFLOP/s, of 64 rows 84. With this, and `_together`'s larger products there, a whole step takes 5 % less
    time with the digits' networks, 6 % at width 32 and 9 % at 64x64 (Zen 3). What a row comes to depends on its place
    in a product: so these images are of one part of the batch. Whichever process has them, they stand in one product,
    in one order.
    """
    if 2 * rows > ROWS or not cpu.packs_always():
        return 1
    each = batch.of_part(N)
    return next((k for k in range(1, each) if each % k == 0 and k * rows >= ROWS), each)


def bias_rows(bias, H, W):
    """The bias of some whole rows of the image (cpu.tiled), or None."""
    return bias if bias is None else cpu.tiled(bias, H, W)


def complete(y, cut, bias, rest, gate):
    """Gate and add to some images of y, in place, while they are in the cache: (n, H, W, O) or (n, m, H, W, O) each.

    bias is `bias_rows`.
    """
    y, rest, gate = (a if a is None else a[cut] for a in (y, rest, gate))
    *n, H, W, O = y.shape
    if gate is not None:
        np.multiply(y, gate > 0, out=y)
    if bias is not None:
        rows = y.reshape(*n, -1, len(bias))  # a view, since each image lies in one piece
        rows += bias
    if rest is not None:
        if rest.shape != y.shape:  # of half the height and width
            rest = rest.repeat(2, axis=-2)[..., None, :, :]  # (n, H/2, 1, W, O), for long inner loops
            y = y.reshape(*n, H // 2, 2, W, O)
        y += rest


def _narrow(top, left, w, part):
    """The same as several sets, each of so few of w's columns, a multiple of a vector's 16, that OpenBLAS doesn't pack.

    It would pack all of w anew for each row of the image: 3x3 taps between 128 channels at 8x8 took twice as long,
    a whole step at width 32 took 9 % longer.
    """
    kh, kw, C, O = w.shape
    some = _together(O, part.shape[-2] * kh * kw * C, least=16)
    return [(top, left, w[..., o : o + some], part[..., o : o + some]) for o in range(0, O, some)]


def gathers(x, stride, y, sets, bias=None, rest=None, gate=None, read=None):
    """Fill y, and each part of it in `sets` = [(top, left, w, part), ...] by a gather of its own:

        part[h, w] = bias + rest + sum_ij x[s h + i - top, s w + j - left] @ w[i, j]      (gate: as in conv.py)

    Sets whose kernels are equally wide share one expansion of x. With `read`, x stands for read(x) of some images.
    """
    (N, H, W, C), O = x.shape, y.shape[3]
    bias = bias_rows(bias, *y.shape[1:3])
    top, left, w, part = sets[0]
    winograd = len(sets) == 1 and winograd_numpy.suits(stride, top, left, w.shape, x.shape, y.shape)
    together = images_together(N, H * W // 4 if winograd else part.shape[2])
    stacked = lambda a: a if a is None else batch.stacks(a, N // together)  # (Q, q, ...), Q q = N
    x, y, rest, gate = map(stacked, (x, y, rest, gate))
    finish = lambda cut: complete(y, cut, bias, rest, gate)
    if winograd:
        winograd_numpy.gather(x, w, y, _together(O, together * H * W // 4 * C, least=16), read, finish)
        return
    sets = [narrow for top, left, w, part in sets for narrow in _narrow(top, left, w, stacked(part))]
    jobs, widths = [], {w.shape[1] for _, _, w, _ in sets}
    for kw in widths:
        group = [each for each in sets if each[2].shape[1] == kw]
        tops, lefts, _, _ = zip(*group, strict=True)
        top, left = max(tops), max(lefts)
        rows = max(top - t + stride * (part.shape[2] - 1) + len(w) for t, _, w, part in group)
        columns = max(left - l + part.shape[3] for _, l, _, part in group)  # several sets: stride 1
        products = [
            (top - t, left - l, np.ascontiguousarray(w).reshape(-1, w.shape[3]), part)
            for t, l, w, part in group
        ]
        shape = together, columns, rows, kw, C
        beyond = most = 0
        if together > 1:  # what the last windows reach behind it, and where products are taken
            beyond = rows * kw * C * max(right for _, right, _, _ in products)
            most = together * columns * max(part.shape[2] * part.shape[4] for *_, part in group)
        jobs.append((top, left, shape, beyond, most, products))
    sizes = [math.prod(shape) + most for _, _, shape, _, most, _ in jobs]  # of a stack's
    cuts = cpu.chunks(len(x), x.itemsize * max(sizes), at_least=8)

    def body(i):
        images = x[cuts[i]] if read is None else read(x[cuts[i]])
        for top, left, shape, beyond, most, products in jobs:
            n, size = len(images), len(images) * math.prod(shape)
            memory = cpu.scratch(x.dtype, size + beyond + n * most)
            memory[size : size + beyond] = 0
            A = memory[:size].reshape(n, *shape)  # (n, q, W', R, kw, C)
            expand(images, A.swapaxes(2, 3), 1, top, stride, left)
            for down, right, w, part in products:
                _multiply(A[:, :, right:, down:], stride, w, part[cuts[i]], memory[size + beyond :])
        finish(cuts[i])

    cpu.parallel(body, len(cuts))


def _multiply(A, stride, w, y, memory):
    """Fill y (n, q, H', W', O), for n stacks of q images, with what each position sees in A, times w (kh kw C, O).

    A (n, q, W', R, kw, C) begins with what position (0, 0) sees. The columns of a stack's images follow one another
    there, so they are rows of one product. It is taken in `memory` and copied to where the images are; a column that
    several kernels share, beyond the positions of this one, is multiplied in vain.
    """
    n, q, H, W, O = y.shape
    stack, image, column, row, _, channel = A.strides
    columns = W if q == 1 else image // column
    windows = as_strided(A, (n, H, q * columns, len(w)), (stack, stride * row, column, channel))
    if q == 1:
        np.matmul(windows, w, out=y[:, 0])  # (n, H', W', kh kw C) @ (kh kw C, O) -> (n, H', W', O)
        return
    found = memory[: n * H * q * columns * O].reshape(n, H, q, columns, O)
    np.matmul(windows, w, out=found.reshape(n, H, -1, O))
    np.copyto(y, found[..., :W, :].swapaxes(1, 2))


def expand(x, A, down, top, across, left):
    """Fill A[n, r, w, j] = x[n, down r - top, across w - left + j], (n, R, W', kw, C): 0 outside of x's borders.

    There may be several axes n.
    """
    (*_, H, W, C), (*n, R, columns, kw, _) = x.shape, A.shape
    first = min(R, max(0, -(-top // down)))
    stop = max(first, min(R, (H - 1 + top) // down + 1))
    if first > 0:
        A[..., :first, :, :, :] = 0
    if stop < R:
        A[..., stop:, :, :, :] = 0
    A, x = A[..., first:stop, :, :, :], x[..., down * first - top :: down, :, :][..., : stop - first, :, :]
    begin, end = max(0, -(-left // across)), min(columns, (W - kw + left) // across + 1)  # columns that see no border
    if begin < end:
        *image, row, column, channel = x.strides
        windows = as_strided(
            x[..., across * begin - left :, :],
            (*n, stop - first, end - begin, kw, C),
            (*image, row, across * column, column, channel),
        )
        np.copyto(A[..., begin:end, :, :], windows)
    for w in (*range(min(begin, columns)), *range(max(begin, end), columns)):
        at = across * w - left
        low, high = min(kw, max(0, -at)), max(0, min(kw, W - at))
        if low > 0:
            A[..., w, :low, :] = 0
        if high < kw:
            A[..., w, high:, :] = 0
        if low < high:
            A[..., w, low:high, :] = x[..., at + low : at + high, :]
