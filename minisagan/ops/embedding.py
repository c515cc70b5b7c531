"""Embedding look-up.

    y[n] = table[labels[n]]          dtable[k] = sum of g[n] over the n with labels[n] = k

The sum is a product with the one-hot matrix of the labels: a fixed order of addition, unlike a scatter of additions.
"""

import numpy as np

from minisagan.autograd import Tensor


def embedding(table, labels):
    """The row of `table` (classes, C) for each of `labels` (N,), integers in [0, classes) -> (N, C)."""
    classes, labels = table.shape[0], np.asarray(labels)
    if labels.size and not 0 <= labels.min() <= labels.max() < classes:
        raise ValueError(f"labels must lie in [0, {classes}), not [{labels.min()}, {labels.max()}]")

    def vjp(g, needs):
        onehot = (np.arange(classes)[:, None] == labels).astype(g.dtype)  # (classes, N)
        return (onehot @ g,)

    return Tensor(table.data[labels], (table,), vjp)
