"""ReLU on the CPU: large arrays are shared by all threads, and a row of zeros is twice as fast as a scalar 0."""

import numpy as np

from minisagan import cpu


def relu_forward(x):
    return cpu.elementwise(_positive, x)


def relu_backward(y, g):
    return cpu.elementwise(_gated, g, y)


def _positive(x, out):
    np.maximum(x, np.zeros(x.shape[-1:], x.dtype), out=out)


def _gated(g, y, out):
    np.multiply(g, y > 0, out=out)
