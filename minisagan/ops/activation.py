"""The two activations: ReLU inside the networks, tanh at the generator's end.

    y = max(x, 0)     dx = g where y > 0, else 0
    y = tanh(x)       dx = g (1 - y^2)
"""

import numpy as np

from minisagan import kinks
from minisagan.autograd import Tensor
from minisagan.primitives import primitive


def relu(x):
    """max(x, 0), element by element, any shape; the derivative at 0 is 0."""
    on = kinks.chosen(lambda: x.data > 0)  # None, except in a gradient check
    y = relu_forward(x.data) if on is None else x.data * on
    return Tensor(y, (x,), lambda g, needs: (lambda so_far: relu_backward(y, g, so_far),), "relu")


def tanh(x):
    """tanh(x), element by element, any shape: values in [-1, 1], since float32 rounds to the ends."""
    y = tanh_forward(x.data)
    return Tensor(y, (x,), lambda g, needs: (tanh_backward(y, g),), "tanh")


@primitive
def relu_forward(x):
    return np.maximum(x, 0)


@primitive
def relu_backward(y, g, so_far=None):
    """dx, or so_far + dx."""
    dx = g * (y > 0)
    return dx if so_far is None else so_far + dx


@primitive
def tanh_forward(x):
    return np.tanh(x)


@primitive
def tanh_backward(y, g):
    return g * (1 - y * y)
