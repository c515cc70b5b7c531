"""The two activations: ReLU inside the networks, tanh at the generator's end.

    y = max(x, 0)     dx = g where y > 0, else 0
    y = tanh(x)       dx = g (1 - y^2)
"""

import numpy as np

from minisagan import cuda, device, kinks
from minisagan.autograd import Tensor

kernels = cuda.Kernels(__file__)


def relu(x):
    """max(x, 0), element by element, any shape; the derivative at 0 is 0."""
    on = kinks.chosen(lambda: x.data > 0)  # None, except in a gradient check
    if on is None and cuda.on_gpu(x.data):
        y = _each("relu", x.data)
        return Tensor(y, (x,), lambda g, needs: (_each("relu_backward", y, g),))
    y = device.elementwise(_positive, x.data) if on is None else x.data * on

    def vjp(g, needs):
        return (device.elementwise(_gated, g, y) if on is None else g * on,)

    return Tensor(y, (x,), vjp)


def tanh(x):
    """tanh(x), element by element, any shape: values in (-1, 1)."""
    if cuda.on_gpu(x.data):
        y = _each("tanh_forward", x.data)
        return Tensor(y, (x,), lambda g, needs: (_each("tanh_backward", y, g),))
    y = np.tanh(x.data)
    return Tensor(y, (x,), lambda g, needs: (g * (1 - y * y),))


def _each(kernel, *arrays):
    """What the kernel makes of arrays of one shape on the GPU, element by element."""
    arrays = [cuda.cupy().ascontiguousarray(a) for a in arrays]
    y = np.empty_like(arrays[0])
    kernels(kernel, cuda.blocks_for(y.size, 4 * 256), 256, *arrays, y, y.size)
    return y


def _positive(x, out):
    np.maximum(x, np.zeros(x.shape[-1:], x.dtype), out=out)  # a row of zeros: twice as fast as a scalar 0


def _gated(g, y, out):
    np.multiply(g, y > 0, out=out)
