"""Softmax, and the attention that SAGAN makes of it.

    softmax    y_i = exp(x_i - max x) / sum_k exp(x_k - max x)              dx = y (g - sum_k g_k y_k)

    attend     s_ij = key_i . query_j                                       (SAGAN eq. 1, first half)
               beta_ij = exp(s_ij) / sum_i exp(s_ij)                        for each query j a distribution over i
               o_j = sum_i beta_ij value_i                                  (eq. 2, before its v)

    its backward, from the cotangent g_j of o_j:
               dvalue_i = sum_j beta_ij g_j
               ds_ij = beta_ij (value_i . g_j - o_j . g_j)                  since sum_i beta_ij value_i = o_j
               dkey_i = sum_j ds_ij query_j         dquery_j = sum_i ds_ij key_i

The paper writes f for key, g for query, h for value, v for the output's convolution (in nn.SelfAttention), and beta_ji
for our beta_ij: the weight that the output at j gives to position i. There is no 1/sqrt(d). The axis that softmax
normalises is the axis that the weighted sum runs over.

On the GPU the products are cuBLAS's, on tensor cores, with a kernel for softmax between them, and beta is kept, too.
Kernels that never store beta (FlashAttention) are for sequences so long that it would not fit. SAGAN's 1024 queries
and 256 keys at 32x32 make 1 MB of it for an image.
"""

import math

import numpy as np

from minisagan import cuda, device
from minisagan.autograd import Tensor

kernels = cuda.Kernels(__file__)


def softmax(x, axis=-1):
    """exp(x) normalised to sum 1 along `axis`; finite for logits of any size."""
    if cuda.on_gpu(x.data):
        y = _along(axis, "softmax", x.data)
        return Tensor(y, (x,), lambda g, needs: (_along(axis, "softmax_backward", y, g),))
    y = _softmax(x.data.copy(), axis)
    return Tensor(y, (x,), lambda g, needs: (y * (g - (g * y).sum(axis, keepdims=True)),))


def attend(query, key, value):
    """Each query's mean of the values, weighted by softmax over the keys: (N, J, d), (N, I, d), (N, I, e) -> (N, J, e).

    One pass for a few images at a time keeps the (I, J) weights in cache on the way forward; they are kept for the
    way back. Equal to softmax(key @ query^T, axis=1)^T @ value, with which a training step at 32x32 takes 9 % longer.
    """
    q, k, v = query.data, key.data, value.data
    if not len(q) == len(k) == len(v) or q.shape[2] != k.shape[2] or k.shape[1] != v.shape[1]:
        raise ValueError(f"attend takes (N, J, d), (N, I, d), (N, I, e), not {q.shape}, {k.shape}, {v.shape}")
    if cuda.on_gpu(q):
        o, vjp = _attend_on_gpu(q, k, v)
        return Tensor(o, (query, key, value), vjp)
    N, J, I = len(q), q.shape[1], k.shape[1]
    beta = np.empty((N, I, J), q.dtype)
    o = np.empty((N, J, v.shape[2]), q.dtype)
    cuts = device.chunks(N, 2 * beta[0].nbytes)

    def forward(c):
        n = cuts[c]
        np.matmul(k[n], q[n].swapaxes(1, 2), out=beta[n])  # (n, I, J)
        _softmax(beta[n], 1)
        np.matmul(beta[n].swapaxes(1, 2), v[n], out=o[n])  # (n, J, e)

    device.parallel(forward, len(cuts))

    def vjp(g, needs):
        dq, dk, dv = np.empty_like(q), np.empty_like(k), np.empty_like(v)

        def backward(c):
            n = cuts[c]
            np.matmul(beta[n], g[n], out=dv[n])  # (n, I, e)
            ds = v[n] @ g[n].swapaxes(1, 2)  # (n, I, J)
            ds -= (o[n] * g[n]).sum(2)[:, None]
            ds *= beta[n]
            np.matmul(ds.swapaxes(1, 2), k[n], out=dq[n])  # (n, J, d)
            np.matmul(ds, q[n], out=dk[n])  # (n, I, d)

        device.parallel(backward, len(cuts))
        return dq, dk, dv

    return Tensor(o, (query, key, value), vjp)


def _attend_on_gpu(q, k, v):
    """o and its vjp; beta is (N, J, I) here, so that a query's weights lie side by side."""
    beta = cuda.matmul(q, k.swapaxes(1, 2))
    _along(-1, "softmax", beta, out=beta)
    o = cuda.matmul(beta, v)  # (N, J, e)

    def vjp(g, needs):
        ds = cuda.matmul(g, v.swapaxes(1, 2))  # (N, J, I)
        _along(-1, "softmax_backward", beta, ds, out=ds)
        return cuda.matmul(ds, k), cuda.matmul(ds.swapaxes(1, 2), q), cuda.matmul(beta.swapaxes(1, 2), g)

    return o, vjp


def _along(axis, kernel, *arrays, out=None):
    """What the kernel makes of the lines along `axis` of arrays of one shape on the GPU."""
    arrays = [cuda.cupy().ascontiguousarray(a) for a in arrays]
    out = np.empty_like(arrays[0]) if out is None else out
    K, stride = out.shape[axis], math.prod(out.shape[axis % out.ndim + 1 :])
    lines = out.size // max(1, K)
    kernels(kernel, cuda.blocks_for(lines * 32), 256, *arrays, out, lines, K, stride)
    return out


def _softmax(x, axis):
    """Softmax along `axis`, in place."""
    x -= x.max(axis, keepdims=True)
    np.exp(x, out=x)
    x /= x.sum(axis, keepdims=True)
    return x
