"""Embedding look-up.

    y[n] = table[labels[n]]          dtable[k] = sum of g[n] over the n with labels[n] = k

The sum is a product with the one-hot matrix of the labels: a fixed order of addition, unlike a scatter of additions.
On the GPU each element of dtable has a thread, which goes through the labels.
"""

import numpy as np

from minisagan import cuda, ranks
from minisagan.autograd import Tensor

kernels = cuda.Kernels(__file__)


def embedding(table, labels):
    """The row of `table` (classes, C) for each of `labels` (N,), integers in [0, classes) -> (N, C)."""
    classes = table.shape[0]
    if cuda.on_gpu(table.data) and isinstance(labels, cuda.cupy().ndarray):
        return _embedding_on_gpu(table, labels)  # taken at their word: to look at them would be to wait for them
    labels = np.asarray(labels)
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels must lie in [0, {classes}), not [{labels.min()}, {labels.max()}]")
    if cuda.on_gpu(table.data):
        return _embedding_on_gpu(table, cuda.cupy().asarray(labels))

    def vjp(g, needs):
        onehot = (np.arange(classes)[:, None] == labels).astype(g.dtype)  # (classes, N)
        return (ranks.batch_product(onehot.T, g),)

    return Tensor(table.data[labels], (table,), vjp)


def _embedding_on_gpu(table, labels):
    """embedding on the GPU, where both lie."""
    cp = cuda.cupy()
    rows, labels = cp.ascontiguousarray(table.data), cp.ascontiguousarray(labels, np.int64)
    classes, C, N = *table.shape, len(labels)
    y = cp.empty((N, C), table.dtype)
    kernels("embed", cuda.blocks_for(N * C), 256, rows, labels, y, N, C)

    def vjp(g, needs):
        g, dtable = cp.ascontiguousarray(g), cp.empty((classes, C), g.dtype)
        kernels("embed_backward", cuda.blocks_for(classes * C), 256, g, labels, dtable, N, classes, C)
        return (dtable,)

    return Tensor(y, (table,), vjp)
