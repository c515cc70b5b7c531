"""Adam and the running average on the GPU: the kernels of optim.cu."""

import numpy as np

from minisagan import cuda

kernels = cuda.Kernels(__file__)


def adam(w, m, v, g, t, steps, fall, lr, beta1, beta2, eps):
    rates = np.float64(fall), np.float64(lr), np.float64(beta1), np.float64(beta2), eps
    kernels("adam", _blocks(w), 256, w, m, v, g, len(w), t, steps, *rates)


def ema(a, w, t, decay):
    kernels("ema", _blocks(a), 256, a, w, len(a), t, np.float64(decay))


def _blocks(flat):
    """For a kernel that strides over a flat array: no more threads than keep a GPU busy."""
    return min(cuda.blocks_for(len(flat)), 1024)
