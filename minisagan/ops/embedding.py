"""Embedding look-up.

    y[n] = table[labels[n]]          dtable[k] = sum of g[n] over the n with labels[n] = k

The sum is a product with the one-hot matrix of the labels: a fixed order of addition, unlike a scatter of additions.
"""

import numpy as np

from minisagan import batch
from minisagan.autograd import Tensor
from minisagan.primitives import primitive


def embedding(table, labels):
    """The row of `table` (classes, C) for each of `labels` (N,), integers in [0, classes) -> (N, C).

    Labels outside are a ValueError, unless they lie on the GPU: to look at those would be to wait for them.
    """
    y, classes = look_up(table.data, labels), len(table.data)
    return Tensor(y, (table,), lambda g, needs: (look_up_backward(g, labels, classes),), "embedding")


def check_labels(labels, classes):
    """The labels as an array; ValueError unless all of them lie in [0, classes)."""
    labels = np.asarray(labels)
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels must lie in [0, {classes}), not [{labels.min()}, {labels.max()}]")
    return labels


@primitive
def look_up(table, labels):
    return table[check_labels(labels, len(table))]  # (N, C)


@primitive
def look_up_backward(g, labels, classes):
    onehot = (np.asarray(labels)[:, None] == np.arange(classes)).astype(g.dtype)  # (N, classes)
    return batch.sum(lambda onehot, g: onehot.T @ g, onehot, g)  # (classes, C)
