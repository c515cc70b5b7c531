"""Attention on a GPU: products by cuBLAS, on tensor cores, and the kernels of attention.cu for softmax between them."""

import math

import numpy as np

from minisagan import cuda

kernels = cuda.Kernels(__file__)


def softmax_forward(x, axis):
    return _along(axis, "softmax", x)


def softmax_backward(g, y, axis):
    return _along(axis, "softmax_backward", y, g)


def attend_forward(q, k, v):
    beta = cuda.matmul(q, k.swapaxes(1, 2))  # (N, J, I)
    _along(-1, "softmax", beta, out=beta)
    return cuda.matmul(beta, v), beta


def attend_backward(g, q, k, v, o, beta):
    ds = cuda.matmul(g, v.swapaxes(1, 2))  # (N, J, I)
    _along(-1, "softmax_backward", beta, ds, out=ds)
    return cuda.matmul(ds, k), cuda.matmul(ds.swapaxes(1, 2), q), cuda.matmul(beta.swapaxes(1, 2), g)


def _along(axis, kernel, *arrays, out=None):
    """What the kernel makes of the lines along `axis` of arrays of one shape."""
    arrays = [cuda.cupy().ascontiguousarray(a) for a in arrays]
    out = np.empty_like(arrays[0]) if out is None else out
    K, stride = out.shape[axis], math.prod(out.shape[axis % out.ndim + 1 :])
    lines = out.size // max(1, K)
    kernels(kernel, cuda.blocks_for(lines * 32), 256, *arrays, out, lines, K, stride)
    return out
