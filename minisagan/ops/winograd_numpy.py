"""3x3 convolutions of stride 1 on the CPU with 16 multiplications in place of 36: Winograd's F(2x2, 3x3).

Two neighbouring outputs of a filter with three taps, and the four inputs that they see:

    y[0] = w[0] x[0] + w[1] x[1] + w[2] x[2]
    y[1] = w[0] x[1] + w[1] x[2] + w[2] x[3]

take 4 multiplications, not 6 (Winograd 1980, Arithmetic Complexity of Computations; Lavin and Gray 2016, Fast
Algorithms for Convolutional Neural Networks, https://arxiv.org/abs/1509.09308), one for each line of

    B x = x[0] - x[2]          G w = w[0]
          x[1] + x[2]                (w[0] + w[1] + w[2]) / 2
          x[2] - x[1]                (w[0] - w[1] + w[2]) / 2
          x[1] - x[3]                -w[2]

    y[0] = m[0] + m[1] + m[2]        m = B x * G w
    y[1] = m[1] - m[2] + m[3]

On two axes, B, G and these sums are of columns and of rows: a tile of 2x2 outputs sees 4x4 inputs and has 16 products,
each a product of matrices where x has channels. A tile overlaps the next: its x[2], x[3] are the other's x[0], x[1].
With it a whole step at width 32 takes 4.5 % less time on one core of an AMD EPYC (Zen 4). The errors of float32 are
about 0.6 of the plain sums' there, which add up 9 times as many terms one by one, and 0.9 to 2.5 times those of
OpenBLAS's AVX2 kernels (Zen 3), which do not. (The same for dw would save 1.4 %: it isn't here.)
"""

import numpy as np

from minisagan import cpu

G = np.array([[1, 0, 0], [0.5, 0.5, 0.5], [0.5, -0.5, 0.5], [0, 0, -1]])
G_ROWS_COLUMNS = np.kron(G, G)  # (16, 9)


def suits(stride, top, left, w, x, y):
    """Whether `gather` can do it, and faster, by shapes alone: with fewer channels the additions take longer."""
    (kh, kw, C, O), (_, H, W, _) = w, x
    can = (kh, kw, stride, top, left) == (3, 3, 1, 1, 1) and x[:3] == y[:3] and H % 2 == W % 2 == 0
    return can and min(C, O) >= 64


def gather(x, w, y, together, read, finish):
    """Fill y = sum_ij read(x)[h + i - 1, w + j - 1] @ w[i, j] of some stacks of images, then call finish(their slice).

    x is (N, q, H, W, C), y (N, q, H, W, O), H and W even. A product of matrices takes the tiles of a stack, so that not
    one of its bits depends on which stacks are cut together, and `together` of w's columns.
    """
    (N, q, H, W, C), O = x.shape, w.shape[3]
    w = (G_ROWS_COLUMNS.astype(w.dtype) @ w.reshape(9, -1)).reshape(4, 4, 1, C, O)
    sizes = [2 * q * H * W * C, 4 * q * H * W * C, 4 * q * H * W * O]  # of a stack's
    cuts = cpu.chunks(N, x.itemsize * sum(sizes), at_least=8)

    def body(i):
        images, out = x[cuts[i]] if read is None else read(x[cuts[i]]), y[cuts[i]]
        n = len(images)
        memory = cpu.scratch(x.dtype, n * sum(sizes))
        columns, tiles, m = np.split(memory, n * np.cumsum(sizes[:2]))
        columns, tiles = columns.reshape(4, n, q, H, W // 2, C), tiles.reshape(4, 4, n, q, H // 2, W // 2, C)
        of_x(images, columns, axis=3)
        of_x(columns, tiles, axis=3)
        tiles, m = tiles.reshape(4, 4, n, -1, C), m.reshape(4, 4, n, -1, O)  # of rows, of columns
        for o in range(0, O, together):
            np.matmul(tiles, w[..., o : o + together], out=m[..., o : o + together])
        m = m.reshape(4, 4, n, q, H // 2, W // 2, O)
        to_y(m, m[0], m[3])
        blocks = out.reshape(n, q, H // 2, 2, W // 2, 2, O)
        to_y(m[0], blocks[:, :, :, 0, :, 0], blocks[:, :, :, 0, :, 1])
        to_y(m[3], blocks[:, :, :, 1, :, 0], blocks[:, :, :, 1, :, 1])
        finish(cuts[i])

    cpu.parallel(body, len(cuts))


def of_x(x, y, axis):
    """Fill y = B x of all tiles along this axis of x, with zeros around x: (..., L, ...) -> (4, ..., L/2, ...)."""
    x, y = x.swapaxes(0, axis), [part.swapaxes(0, axis) for part in y]
    even, odd = x[::2], x[1::2]  # each tile's x[1] and x[2]; x[0] is the odd one before, x[3] the even one behind
    np.negative(odd[0], out=y[0][0])
    np.subtract(odd[:-1], odd[1:], out=y[0][1:])
    np.add(even, odd, out=y[1])
    np.subtract(odd, even, out=y[2])
    np.subtract(even[:-1], even[1:], out=y[3][:-1])
    y[3][-1] = even[-1]


def to_y(m, even, odd):
    """even, odd = y[0], y[1] of m, which is lost: (4, ...) -> (...) each. They may be m[0] and m[3]."""
    m[0] += m[1]
    np.add(m[0], m[2], out=even)
    m[3] += m[1]
    np.subtract(m[3], m[2], out=odd)
