"""The two activations: ReLU inside the networks, tanh at the generator's end.

    y = max(x, 0)     dx = g where y > 0, else 0
    y = tanh(x)       dx = g (1 - y^2)
"""

import numpy as np

from minisagan import device, kinks
from minisagan.autograd import Tensor


def relu(x):
    """max(x, 0), element by element, any shape; the derivative at 0 is 0."""
    on = kinks.chosen(lambda: x.data > 0)  # None, except in a gradient check
    y = device.elementwise(_positive, x.data) if on is None else x.data * on

    def vjp(g, needs):
        return (device.elementwise(_gated, g, y) if on is None else g * on,)

    return Tensor(y, (x,), vjp)


def tanh(x):
    """tanh(x), element by element, any shape: values in (-1, 1)."""
    y = np.tanh(x.data)
    return Tensor(y, (x,), lambda g, needs: (g * (1 - y * y),))


def _positive(x, out):
    np.maximum(x, np.zeros(x.shape[-1:], x.dtype), out=out)  # a row of zeros: twice as fast as a scalar 0


def _gated(g, y, out):
    np.multiply(g, y > 0, out=out)
