"""Spectral norm of all layers of a network on the GPU: three launches forward, two if u rests, and two back."""

from types import SimpleNamespace

import numpy as np

from minisagan import cuda

kernels = cuda.Kernels(__file__)
LAYERS = 64  # that one launch takes
_INTS = ("K", "O", "first", "rows", "tile", "group", "y", "v", "o", "share")
_LAYER = np.dtype([("w", np.uint64), ("u", np.uint64), *((name, np.int32) for name in _INTS)])
_TABLE = np.dtype([("layer", _LAYER, LAYERS), ("count", np.int64)])  # the struct Layers of spectral.cu


def quotients(ws, states, move, axes):
    """What is kept is one record for each LAYERS layers."""
    parts = [slice(i, i + LAYERS) for i in range(0, len(ws), LAYERS)]
    made = [_quotients(ws[part], states[part], move, axes[part]) for part in parts]
    return [y for ys, _ in made for y in ys], [kept for _, kept in made]


def gradients(ys, gs, kept, axes):
    dws = []
    for k, group in enumerate(kept):
        first = k * LAYERS
        dws += _gradients(ys[first : first + LAYERS], {i - first: g for i, g in gs.items()}, group)
    return dws


def _quotients(ws, states, move, axes):
    cp, arrays = cuda.cupy(), [cuda.cupy().ascontiguousarray(w) for w in ws]
    sizes, O = np.array([a.size for a in arrays]), np.array([u.size for u in states])
    K = sizes // O
    rows = np.clip((1 << 15) // O, 1, 256)  # of W^T, in a tile: at most THREADS of spectral.cu; 32 below: its COLUMNS
    tiles = -(-K // rows)
    padded = -(-sizes // 64) * 64  # each y begins where a vector load may
    counts = {"tile": tiles, "group": -(-O // 32), "y": padded, "v": K, "o": O, "share": tiles * O}
    starts = {name: np.cumsum(count) - count for name, count in counts.items()}
    total = {name: int(count.sum()) for name, count in counts.items()}

    table = np.zeros((), _TABLE)
    table["count"] = len(ws)
    columns = {"w": [a.data.ptr for a in arrays], "u": [u.data.ptr for u in states], "K": K, "O": O, "rows": rows}
    columns["first"] = [axis != -1 for axis in axes]
    for name, values in (columns | starts).items():
        table["layer"][name][: len(ws)] = values

    names = "tile", "share", "o", "o", "y", "v"
    squares, shares, Wv, us, y, v = (cp.empty(total[name], ws[0].dtype) for name in names)
    sigmas = cp.empty(len(ws), y.dtype)
    kernels("iterate", total["tile"], 256, table, v, squares, shares, move)
    if move:
        kernels("join", total["group"], (32, 8), table, shares, Wv)
    kernels("divide", total["tile"], 256, table, v, squares, Wv, y, us, sigmas, move)
    kept = SimpleNamespace(table=table, total=total, begin=starts["y"], y=y, u=us, v=v, sigmas=sigmas)
    return [_own(kept, y, i, a) for i, a in enumerate(arrays)], kept


def _gradients(ys, gs, kept):
    gs = {i: cuda.cupy().ascontiguousarray(g) for i, g in gs.items() if 0 <= i < len(ys)}
    kept.table["layer"]["w"][: len(ys)] = [gs[i].data.ptr if i in gs else 0 for i in range(len(ys))]
    sums, dw = cuda.cupy().empty(kept.total["tile"], kept.y.dtype), np.empty_like(kept.y)
    kernels("dot", kept.total["tile"], 256, kept.table, kept.y, sums)
    kernels("backward", kept.total["tile"], 256, kept.table, sums, kept.u, kept.v, kept.sigmas, dw)
    return [_own(kept, dw, i, y) if i in gs else np.zeros_like(y) for i, y in enumerate(ys)]


def _own(kept, x, i, like):
    """Layer i's part of x, which is laid out as y, in the shape of `like`."""
    return x[kept.begin[i] :][: like.size].reshape(like.shape)
