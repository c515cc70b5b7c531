"""Ways from one latent to another, and from one class to another.

    slerp(a, b, t) = |.|(t) (sin((1 - t) w) a / |a| + sin(t w) b / |b|) / sin w         cos w = <a, b> / (|a| |b|)

with a length |.|(t) = (1 - t) |a| + t |b|: the arc between two directions (Shoemake 1985). Normal latents of d numbers
lie near the sphere of radius sqrt(d), and so does this way between two; the straight line would cross the inside, which
the generator has never seen (White 2016).

To a generator, a class is a row of gains and one of biases in each conditional batch norm. Between two classes lie the
blends of their rows.
"""

import numpy as np

from minisagan.autograd import Tensor
from minisagan.nn import BatchNorm


def slerp(a, b, t):
    """The arc from a (D,) at t = 0 to b at t = 1: t (T,) -> (T, D). The straight line if they have one direction."""
    lengths = np.linalg.norm(a), np.linalg.norm(b)
    t = np.asarray(t, float)[:, None]
    angle = np.arccos(np.clip(a @ b / (lengths[0] * lengths[1]), -1, 1))
    if np.sin(angle) < 1e-6:
        return lerp(a, b, t[:, 0])
    direction = (np.sin((1 - t) * angle) * a / lengths[0] + np.sin(t * angle) * b / lengths[1]) / np.sin(angle)
    return ((1 - t) * lengths[0] + t * lengths[1]) * direction


def lerp(a, b, t):
    """The straight line from a (D,) at t = 0 to b at t = 1: t (T,) -> (T, D)."""
    t = np.asarray(t, float)[:, None]
    return (1 - t) * a + t * b


def way(stops, between, steps, closed):
    """Through all stops (S, D) by `between` (slerp or lerp), `steps` steps from each to the next: (K, D).

    Closed, the way goes back to the first stop and ends one step before it, K = S steps; else K = (S - 1) steps + 1.
    """
    legs = zip(stops, np.roll(stops, -1, axis=0), strict=True)
    points = np.concatenate([between(a, b, np.arange(steps) / steps) for a, b in legs])
    return points if closed else points[: (len(stops) - 1) * steps + 1]


def blend_classes(generator, mixtures):
    """Give the generator other classes, mixtures (K, classes) of those it has: class k is the mean of their rows.

    In place: from then on its labels are 0 to K - 1.
    """
    for norm in generator.modules(BatchNorm):
        if norm.gain.ndim == 2:
            rows = ((mixtures @ table.data).astype(table.dtype) for table in (norm.gain, norm.bias))  # (K, C)
            norm.gain, norm.bias = map(Tensor, rows)
