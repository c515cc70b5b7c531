"""Spectral normalisation (Miyato et al. 2018): a weight divided by its largest singular value.

W is the weight as a matrix, one row for each output channel. One step of power iteration from the stored u:

    v = l2(W^T u)        u <- l2(W v)        sigma = u^T W v        y = W / sigma

u and v count as constants in the backward pass, so dsigma/dW = u v^T and

    dW = (g - sum(g * y) u v^T) / sigma

This is Miyato's choice. SAGAN's released code differentiates through the iteration. At convergence the two agree: u and
v are then those at which u^T W v is greatest, so small changes of them do not change it.
"""

import numpy as np

from minisagan.joint import joint
from minisagan.primitives import primitive


def spectral_norm(w, u, move, axis=-1):
    """w / sigma, of w's shape; `axis` is the axis of w's output channels, the first or the last, and u (O,) its state.

    With `move` (training) u takes one step of power iteration, in place. Without it u stays and sigma = |W^T u|, so
    that calling twice gives the same output.
    """
    if axis not in (0, -1, w.ndim - 1):
        raise ValueError(f"the output channels of a weight {w.shape} are its first axis or its last, not {axis}")
    axis = axis and -1
    return spectral_norms([w], [u], move, [axis])[0]


def spectral_norms(weights, states, move, axes):
    """`spectral_norm` of all layers of a network at once: a list of Tensors, from lists of w, u and axis."""
    ys, kept = quotients([w.data for w in weights], states, move, axes)

    def vjp(gs, needs):
        return gradients(ys, dict(gs), kept, axes)

    return joint(ys, weights, vjp, "spectral_norm")


@primitive
def quotients(ws, states, move, axes):
    """A list of y = w / sigma, and what the way back needs: here (sigma, u, v) of each."""
    ys, kept = [], []
    for w, u, axis in zip(ws, states, axes, strict=True):
        W = matrix(w, axis)  # (O, K)
        v, sigma = l2(u @ W)  # (K,), |W^T u|
        if move:
            u[...], sigma = l2(W @ v)  # u^T W v = |W v|, since u = W v / |W v|
        ys.append(w / sigma)
        kept.append((sigma, u.copy(), v))  # the tape's own u: the state moves on
    return ys, kept


@primitive
def gradients(ys, gs, kept, axes):
    """A list of dw, from the cotangents gs of those ys that had a part in the loss: number -> array."""
    dws = [np.zeros_like(y) for y in ys]
    for i, g in gs.items():
        y, (sigma, u, v) = ys[i], kept[i]
        left, right = (v, u) if axes[i] == -1 else (u, v)
        dws[i] = (g - np.multiply.outer(left, right * np.vdot(g, y)).reshape(y.shape)) / sigma
    return dws


def matrix(w, axis):
    """The weight w as W (O, K), a view; its output channels are its last axis (-1) or its first (0)."""
    return w.reshape(-1, w.shape[-1]).T if axis == -1 else w.reshape(w.shape[0], -1)


def l2(x):
    """x / |x|, and |x|."""
    norm = np.sqrt(x @ x)
    return x / max(norm, x.dtype.type(1e-12)), norm
