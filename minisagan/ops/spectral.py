"""Spectral normalisation (Miyato et al. 2018): a weight divided by its largest singular value.

W is the weight as a matrix, one row for each output channel. One step of power iteration from the stored u:

    v = l2(W^T u)        u <- l2(W v)        sigma = u^T W v        y = W / sigma

u and v count as constants in the backward pass, so dsigma/dW = u v^T and

    dW = (g - sum(g * y) u v^T) / sigma

(Miyato's choice. SAGAN's released code differentiates through the iteration; at convergence the two agree.)
"""

import numpy as np

from minisagan import cuda, device, ranks
from minisagan.autograd import Tensor

kernels = cuda.Kernels(__file__)
LAYERS = 64  # that one launch takes
_INTS = ("K", "O", "first", "rows", "tile", "group", "y", "v", "o", "share")
_LAYER = np.dtype([("w", np.uint64), ("u", np.uint64), *((name, np.int32) for name in _INTS)])
_TABLE = np.dtype([("layer", _LAYER, LAYERS), ("count", np.int64)])  # the struct Layers of spectral.cu


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
    if cuda.on_gpu(weights[0].data):
        layers = list(zip(weights, states, axes, strict=True))
        groups = [layers[i : i + LAYERS] for i in range(0, len(layers), LAYERS)]
        return [tensor for group in groups for tensor in _norms_on_gpu(group, move)]
    matrices = [_matrix(w, axis) for w, axis in zip(weights, axes, strict=True)]
    found = [None] * len(weights)

    def divide(i):
        w, u = weights[i], states[i]
        v, sigma = _unit(u @ matrices[i])  # (K,), |W^T u|
        if move:
            u[...], sigma = _unit(matrices[i] @ v)  # u^T W v = |W v|, since u = W v / |W v|
        found[i] = w.data / sigma, sigma, u.copy(), v  # the tape's own u: the state moves on

    device.parallel(divide, len(weights))
    return [_quotient(w, axis, *each) for w, axis, each in zip(weights, axes, found, strict=True)]


def _quotient(w, axis, y, sigma, u, v):
    """The Tensor of y = w / sigma, where sigma = u^T W v."""

    def vjp(g, needs):
        g = ranks.total(g)  # here, since what follows rounds differently for a sum than for its parts
        left, right = (v, u) if axis == -1 else (u, v)
        dw = np.multiply.outer(left, right * -np.vdot(g, y)).reshape(y.shape)
        dw += g
        dw /= sigma
        dw /= ranks.world()  # each rank's equal share of it: to halve is exact
        return (dw,)

    vjp.__qualname__ = spectral_norm.__qualname__  # bench tells ops apart by this
    return Tensor(y, (w,), vjp)


def _matrix(w, axis):
    """W (O, K), a view."""
    return w.data.reshape(-1, w.shape[-1]).T if axis == -1 else w.data.reshape(w.shape[0], -1)


def _unit(x):
    """l2(x) = x / |x|, and |x|."""
    norm = np.sqrt(x @ x)
    return x / max(norm, x.dtype.type(1e-12)), norm


def _norms_on_gpu(layers, move):
    """spectral_norms of up to LAYERS layers (w, u, axis) on the GPU: three launches, two if u rests."""
    cp, (weights, states, axes) = cuda.cupy(), zip(*layers, strict=True)
    arrays = [cp.ascontiguousarray(w.data) for w in weights]
    sizes, O = np.array([a.size for a in arrays]), np.array([u.size for u in states])
    K = sizes // O
    rows = np.clip((1 << 15) // O, 1, 256)  # of W^T, in a tile: at most THREADS of spectral.cu; 32 below: its COLUMNS
    tiles = -(-K // rows)
    padded = -(-sizes // 64) * 64  # each y begins where a vector load may
    counts = {"tile": tiles, "group": -(-O // 32), "y": padded, "v": K, "o": O, "share": tiles * O}
    starts = {name: np.cumsum(count) - count for name, count in counts.items()}
    total = {name: int(count.sum()) for name, count in counts.items()}

    table = np.zeros((), _TABLE)
    table["count"] = len(layers)
    columns = {"w": [a.data.ptr for a in arrays], "u": [u.data.ptr for u in states], "K": K, "O": O, "rows": rows}
    columns["first"] = [axis != -1 for axis in axes]
    for name, values in (columns | starts).items():
        table["layer"][name][: len(layers)] = values

    names = "tile", "share", "o", "o", "y", "v"
    squares, shares, Wv, us, y, v = (cp.empty(total[name], weights[0].dtype) for name in names)
    sigmas = cp.empty(len(layers), y.dtype)
    kernels("iterate", total["tile"], 256, table, v, squares, shares, move)
    if move:
        kernels("join", total["group"], (32, 8), table, shares, Wv)
    kernels("divide", total["tile"], 256, table, v, squares, Wv, y, us, sigmas, move)

    def own(x, i):
        """Layer i's part of x, which is laid out as y."""
        return x[starts["y"][i] :][: sizes[i]].reshape(arrays[i].shape)

    def vjp(g, needs):
        g = {i: cp.ascontiguousarray(part) for i, part in g.items()}
        table["layer"]["w"][: len(layers)] = [g[i].data.ptr if i in g else 0 for i in range(len(layers))]
        sums, dw = cp.empty_like(squares), cp.empty_like(y)
        kernels("dot", total["tile"], 256, table, y, sums)
        kernels("backward", total["tile"], 256, table, sums, us, v, sigmas, dw)
        return [own(dw, i) if i in g else np.zeros_like(a) for i, a in enumerate(arrays)]

    together = Tensor(None, weights, vjp)  # so that the way back is one for all layers, too
    return [Tensor(own(y, i), (together,), lambda g, needs, i=i: (_Parts({i: g}),)) for i in range(len(layers))]


class _Parts(dict):
    """The cotangent of all layers' y together: number of the layer -> array. grad() adds them by np.add: a union."""

    def __array_ufunc__(self, ufunc, method, *parts, **kwargs):
        return _Parts(parts[0] | parts[1])
