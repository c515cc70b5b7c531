"""PacGAN (Lin et al. 2018), here with classes: D sees k images of one class at once, side by side in its channels.

A generator that lacks variety gives itself away by two images side by side more easily than by one.
"""

import numpy as np


def packed(x, labels, k):
    """What such a D is given: x (k N, S, S, C) -> (N, S, S, k C), labels (k N,) -> (N,) or None.

    Images i, N + i, 2 N + i, ... of x, an array or a Tensor, make one pack, and have to be of one class.
    """
    if k == 1:
        return x, labels
    n, S, _, C = x.shape
    x = x.reshape(k, n // k, S, S, C).transpose(1, 2, 3, 0, 4).reshape(n // k, S, S, k * C)  # (N, S, S, k C)
    return x, None if labels is None else labels[: n // k]


def alone(x, k):
    """A pack of k equal images for each one of x, a Tensor: (N, S, S, C) -> (N, S, S, k C)."""
    n, S, _, C = x.shape
    each = np.zeros((k, 1), x.data.dtype, like=x.data)
    return (x.reshape(n, S, S, 1, C) + each).reshape(n, S, S, k * C)  # (N, S, S, k C)
