"""Spectral normalisation (Miyato et al. 2018): a weight divided by its largest singular value.

W is the weight as a matrix, one row for each output channel. One step of power iteration from the stored u:

    v = l2(W^T u)        u <- l2(W v)        sigma = u^T W v        y = W / sigma

u and v count as constants in the backward pass, so dsigma/dW = u v^T and

    dW = (g - sum(g * y) u v^T) / sigma

(Miyato's choice. SAGAN's released code differentiates through the iteration; at convergence the two agree.)
"""

import numpy as np

from minisagan.autograd import Tensor


def spectral_norm(w, u, move, axis=-1):
    """w / sigma, of w's shape; `axis` is the axis of w's output channels, the first or the last, and u (O,) its state.

    With `move` (training) u takes one step of power iteration, in place. Without it u stays and sigma = |W^T u|, so
    that calling twice gives the same output.
    """
    matrix = w.data.reshape(-1, w.shape[-1]).T if axis == -1 else w.data.reshape(w.shape[0], -1)  # W: (O, K)
    v, sigma = _unit(u @ matrix)  # (K,), |W^T u|
    if move:
        u[...], sigma = _unit(matrix @ v)  # u^T W v = |W v|, since u = W v / |W v|
    u_now, shape = u.copy(), w.shape  # the tape's own: u moves on
    y = w.data / sigma

    def vjp(g, needs):
        outer = np.multiply.outer(v, u_now) if axis == -1 else np.multiply.outer(u_now, v)
        return ((g - (g * y).sum() * outer.reshape(shape)) / sigma,)

    return Tensor(y, (w,), vjp)


def _unit(x):
    """l2(x) = x / |x|, and |x|."""
    norm = np.sqrt(x @ x)
    return x / max(norm, x.dtype.type(1e-12)), norm
