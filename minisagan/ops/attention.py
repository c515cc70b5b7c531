"""Softmax, and the attention that SAGAN makes of it.

    softmax    y_i = exp(x_i - max x) / sum_k exp(x_k - max x)              dx = y (g - sum_k g_k y_k)

    attend     s_ij = key_i . query_j
               beta_ji = exp(s_ij) / sum_i exp(s_ij)                        (SAGAN eq. 1) for each query j, over all i
               o_j = sum_i beta_ji value_i                                  (eq. 2, before its v)

    its backward pass, from the cotangent g_j of o_j:
               dvalue_i = sum_j beta_ji g_j
               ds_ij = beta_ji (value_i . g_j - o_j . g_j)                  since sum_i beta_ji value_i = o_j
               dkey_i = sum_j ds_ij query_j         dquery_j = sum_i ds_ij key_i

The paper writes f for key, g for query, h for value, and v for the output's convolution (in nn.SelfAttention). Like
the paper it has no 1/sqrt(d): with spectral norm a projection lengthens no vector, so that |s_ij| <= |x_i| |x_j| for
any number of channels (without pooling). The axis that softmax normalises is the axis that the weighted sum runs over:
as an array beta is (N, J, I), a row for each query j, which sums to 1.

beta is kept for the backward pass. Methods that never store it (FlashAttention) are for sequences so long that it would
not fit in memory. SAGAN's 1024 queries and 256 keys at 32x32 make 1 MB of it for each image.
"""

import numpy as np

from minisagan.autograd import Tensor
from minisagan.primitives import primitive


def softmax(x, axis=-1):
    """exp(x) normalised to sum 1 along `axis`; finite for logits of any size."""
    y = softmax_forward(x.data, axis)
    return Tensor(y, (x,), lambda g, needs: (softmax_backward(g, y, axis),), "softmax")


def attend(query, key, value):
    """Each query's mean of the values, weighted by softmax over the keys: (N, J, d), (N, I, d), (N, I, e) -> (N, J, e).

    The same as softmax(query @ key^T, axis=2) @ value: written like that, a training step at 32x32 takes 9 % longer.
    """
    q, k, v = query.data, key.data, value.data
    stacks = q.ndim == k.ndim == v.ndim == 3 and len(q) == len(k) == len(v)
    if not (stacks and q.shape[2] == k.shape[2] and k.shape[1] == v.shape[1]):
        raise ValueError(f"attend takes (N, J, d), (N, I, d), (N, I, e), not {q.shape}, {k.shape}, {v.shape}")
    o, beta = attend_forward(q, k, v)
    return Tensor(o, (query, key, value), lambda g, needs: attend_backward(g, q, k, v, o, beta), "attend")


@primitive
def softmax_forward(x, axis):
    """y, of x's shape."""
    y = np.exp(x - x.max(axis, keepdims=True))
    return y / y.sum(axis, keepdims=True)


@primitive
def softmax_backward(g, y, axis):
    """dx, of y's shape."""
    return y * (g - (g * y).sum(axis, keepdims=True))


@primitive
def attend_forward(q, k, v):
    """o (N, J, e) and beta (N, J, I)."""
    beta = softmax_forward(q @ k.swapaxes(1, 2), -1)  # (N, J, I)
    return beta @ v, beta  # (N, J, e), (N, J, I)


@primitive
def attend_backward(g, q, k, v, o, beta):
    """dq, dk and dv, from g (N, J, e)."""
    ds = beta * (g @ v.swapaxes(1, 2) - (o * g).sum(2, keepdims=True))  # (N, J, I)
    return ds @ k, ds.swapaxes(1, 2) @ q, beta.swapaxes(1, 2) @ g  # (N, J, d), (N, I, d), (N, I, e)
