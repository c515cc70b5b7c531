"""Embedding look-up.

    y[n] = table[labels[n]]          dtable[k] = sum of g[n] over the n with labels[n] = k

The sum is a product with the one-hot matrix of the labels: a fixed order of addition, unlike a scatter of additions.
A generator's gains and biases for each class are many small tables, looked up with the same labels.
"""

import numpy as np

from minisagan import batch
from minisagan.joint import joint
from minisagan.primitives import primitive


def embedding(table, labels):
    """The row of `table` (classes, C) for each of `labels` (N,), integers in [0, classes) -> (N, C).

    Labels outside are a ValueError, unless they lie on the GPU: to look at those would be to wait for them.
    """
    return embeddings([table], labels)[0]


def embeddings(tables, labels):
    """`embedding` of several tables at once, (classes, C) with their own C each: a list of Tensors (N, C)."""
    arrays = [table.data for table in tables]
    vjp = lambda gs, needs: look_up_backward(arrays, dict(gs), labels)
    return joint(look_up(arrays, labels), tables, vjp, "embedding")


def check_labels(labels, classes):
    """The labels as an array (N,); ValueError unless all of them are integers in [0, classes)."""
    labels = np.asarray(labels)
    if labels.ndim != 1:
        raise ValueError(f"labels are one for each image, (N,), not {labels.shape}")
    if labels.dtype.kind not in "iu":
        raise ValueError(f"labels must be integers in [0, {classes}), not {labels.dtype}")
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels must lie in [0, {classes}), not [{labels.min()}, {labels.max()}]")
    return labels


@primitive
def look_up(tables, labels):
    labels = check_labels(labels, min(map(len, tables)))
    return [table[labels] for table in tables]  # (N, C) each


@primitive
def look_up_backward(tables, gs, labels):
    """A list of dtable (classes, C), from the cotangents of those that had a part in the loss: number -> g (N, C)."""
    dtables = [np.zeros_like(table) for table in tables]
    for i, g in gs.items():
        onehot = (np.asarray(labels)[:, None] == np.arange(len(tables[i]))).astype(g.dtype)  # (N, classes)
        dtables[i] = batch.sum(lambda onehot, g: onehot.T @ g, onehot, g)
    return dtables
