"""Augmentation that gradients pass through: mirror, shift, cut out.

After Zhao et al., Differentiable Augmentation, 2020, whose third was colour, in place of the mirror.

D sees real and generated images alike through it: so a few images become many. G's gradient passes through it, too,
so G has no reason to draw images that are shifted or cut. For image n, with a, b, m and the square Q its own draws,

    y[h, w] = x[h - a, s(w - b)], 0 in Q and where that is outside          s(v) = m ? W - 1 - v : v
    dx[h, w] = g[h + a, s(w) + b], 0 where that is in Q or outside

a and b are at most 1/8 of the side; Q's side is half the image's, its middle anywhere, so it may reach over the edge.
0 is the middle of the range of images, [-1, 1].
"""

import numpy as np

from minisagan.autograd import Tensor
from minisagan.primitives import primitive


def augment(x, draws):
    """Images x (N, S, S, C) -> (N, S, S, C), each by its own `draws` (N, 4 or 5), uniform in [0, 1).

    They decide a, b, Q's row and Q's column; the fifth, if there is one, m: below 1/2 the image is mirrored. They may
    lie on the host where x does not.
    """
    y = augment_forward(x.data, draws)
    return Tensor(y, (x,), lambda g, needs: (augment_backward(g, draws),), "augment")


def augmented(x, draws):
    """Images as D sees them: augmented by these draws, or as they are if those are None."""
    return x if draws is None else augment(x, draws)


@primitive
def augment_forward(x, draws):
    y = np.zeros(x.shape, x.dtype)
    for image, out, (a, b, Q, mirrored) in zip(x, y, moves(draws, x.shape[1]), strict=True):
        shift(image[:, ::-1] if mirrored else image, out, a, b)
        out[Q] = 0
    return y


@primitive
def augment_backward(g, draws):
    dx = np.zeros(g.shape, g.dtype)
    for image, out, (a, b, Q, mirrored) in zip(g, dx, moves(draws, g.shape[1]), strict=True):
        image = image.copy()
        image[Q] = 0
        shift(image, out[:, ::-1] if mirrored else out, -a, -b)
    return dx


def moves(draws, S):
    """For each image, of side S, what its draws decide: a, b, Q as a pair of slices, and m."""
    farthest, half = S // 8, S // 4
    for u in draws:
        a, b = (int(v * (2 * farthest + 1)) - farthest for v in u[:2])
        Q = tuple(slice(max(0, middle - half), middle + half) for middle in (int(v * S) for v in u[2:4]))
        yield a, b, Q, len(u) == 5 and u[4] < 0.5


def shift(x, y, a, b):
    """y[h, w] = x[h - a, w - b], where that is inside; x and y are (S, S, C)."""
    (H, W, _), down, right = x.shape, max(0, a), max(0, b)
    y[down : H + a, right : W + b] = x[max(0, -a) : H - down, max(0, -b) : W - right]
