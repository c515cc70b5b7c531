"""Spectral normalisation (Miyato et al. 2018): a weight divided by its largest singular value.

W is the weight as a matrix, one row for each output channel. One step of power iteration from the stored u:

    v = l2(W^T u)        u <- l2(W v)        sigma = u^T W v        y = W / sigma

u and v count as constants in the backward pass, so dsigma/dW = u v^T and

    dW = (g - sum(g * y) u v^T) / sigma

(Miyato's choice. SAGAN's released code differentiates through the iteration; at convergence the two agree.)
"""

import numpy as np

from minisagan import device
from minisagan.autograd import Tensor


def spectral_norm(w, u, move, axis=-1):
    """w / sigma, of w's shape; `axis` is the axis of w's output channels, the first or the last, and u (O,) its state.

    With `move` (training) u takes one step of power iteration, in place. Without it u stays and sigma = |W^T u|, so
    that calling twice gives the same output.
    """
    return spectral_norms([w], [u], move, [axis])[0]


def spectral_norms(weights, states, move, axes):
    """`spectral_norm` of all layers of a network at once: a list of results, from lists of w, u and axis.

    The matrices are small and many: one by one they would leave all cores but one idle.
    """
    matrices = [_matrix(w, axis) for w, axis in zip(weights, axes, strict=True)]
    results = [None] * len(weights)

    def divide(i):
        w, u = weights[i], states[i]
        v, sigma = _unit(u @ matrices[i])  # (K,), |W^T u|
        if move:
            u[...], sigma = _unit(matrices[i] @ v)  # u^T W v = |W v|, since u = W v / |W v|
        results[i] = _quotient(w, sigma, u.copy(), v, axes[i])  # the tape's own u: the state moves on

    device.parallel(divide, len(weights))
    return results


def _quotient(w, sigma, u, v, axis):
    """The Tensor of w / sigma, where sigma = u^T W v."""
    y = w.data / sigma

    def vjp(g, needs):
        left, right = (v, u) if axis == -1 else (u, v)
        dw = np.multiply.outer(left, right * -np.vdot(g, y)).reshape(y.shape)
        dw += g
        dw /= sigma
        return (dw,)

    return Tensor(y, (w,), vjp)


def _matrix(w, axis):
    """W (O, K), a view."""
    return w.data.reshape(-1, w.shape[-1]).T if axis == -1 else w.data.reshape(w.shape[0], -1)


def _unit(x):
    """l2(x) = x / |x|, and |x|."""
    norm = np.sqrt(x @ x)
    return x / max(norm, x.dtype.type(1e-12)), norm
