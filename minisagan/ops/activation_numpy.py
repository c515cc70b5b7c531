"""The ReLU on NumPy."""

import numpy as np

from minisagan import cpu


def relu_forward(x):
    """With zeros for a whole image NumPy takes 0.4 of the time that it takes with a single 0."""
    zeros = np.zeros(x.shape[max(1, x.ndim - 3) :], x.dtype)
    return np.maximum(x, zeros, out=cpu.empty(x.shape, x.dtype))


def relu_backward(y, g, so_far=None):
    dx = np.multiply(g, y > 0, out=cpu.empty(y.shape, y.dtype))
    return dx if so_far is None else np.add(dx, so_far, out=dx)
