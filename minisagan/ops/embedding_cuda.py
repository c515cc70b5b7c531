"""Embedding look-up on the GPU: all tables in one launch. Each element of a dtable has a column of threads, which go
through the labels."""

import math

import numpy as np

from minisagan import batch, cuda
from minisagan.ops.embedding import check_labels

kernels = cuda.Kernels(__file__)
TABLES = 64  # that one launch takes
_TABLE = np.dtype([("from", np.uint64), ("C", np.int32), ("to", np.int32), ("size", np.int32)], align=True)
_ALL = np.dtype([("table", _TABLE, TABLES)])  # the struct Tables of embedding.cu


def look_up(tables, labels):
    if not isinstance(labels, cuda.cupy().ndarray):
        check_labels(labels, min(map(len, tables)))
    return _launch("embed", tables, [(len(labels), table.shape[1]) for table in tables], labels, (256, 1))


def look_up_backward(tables, gs, labels):
    shapes = [tables[i].shape for i in gs]
    found = _launch("embed_backward", list(gs.values()), shapes, labels, cuda.columns_of(batch.slots()))
    found = dict(zip(gs, found, strict=True))
    return [found[i] if i in found else np.zeros_like(table) for i, table in enumerate(tables)]


def _launch(name, arrays, shapes, labels, threads):
    """What the kernel makes of each array, in these shapes, by blocks of so many threads: parts of one flat array."""
    cp = cuda.cupy()
    labels, arrays = cp.ascontiguousarray(labels, np.int64), [cp.ascontiguousarray(a) for a in arrays]
    sizes = [math.prod(shape) for shape in shapes]
    ends = np.cumsum(sizes)
    y = cp.empty(int(ends[-1]), arrays[0].dtype)
    for k in range(0, len(arrays), TABLES):
        group, table = range(k, min(k + TABLES, len(arrays))), np.zeros((), _ALL)
        for j, i in enumerate(group):
            table["table"][j] = arrays[i].data.ptr, shapes[i][1], ends[i] - sizes[i], sizes[i]
        blocks = cuda.blocks_for(max(sizes[i] for i in group), threads[0]), len(group)
        kernels(name, blocks, threads, table, labels, y, len(labels))
    return [y[end - size : end].reshape(shape) for end, size, shape in zip(ends.tolist(), sizes, shapes, strict=True)]
