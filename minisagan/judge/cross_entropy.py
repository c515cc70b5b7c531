"""The loss of a classifier: minus the mean log likelihood of the labels under softmax.

    p_nc = exp(x_nc) / sum_k exp(x_nk)       L = -1/N sum_n log p_n,label[n]       dx_nc = g (p_nc - [c = label[n]]) / N
"""

import numpy as np

from minisagan import batch
from minisagan.autograd import Tensor


def cross_entropy(logits, labels):
    """L of the logits (N, classes) for labels (N,), integers in [0, classes); finite for logits of any size."""
    if logits.ndim != 2 or labels.shape != logits.shape[:1]:
        raise ValueError(f"cross_entropy takes logits (N, classes) and labels (N,), not {logits.shape}, {labels.shape}")
    N, classes = logits.shape
    onehot = (labels[:, None] == np.arange(classes, like=labels)).astype(logits.dtype)  # (N, classes)
    x = logits.data - logits.data.max(1, keepdims=True)
    log_p = x - np.log(np.exp(x).sum(1, keepdims=True))
    loss = -batch.sum(lambda log_p, onehot: (log_p * onehot).sum(), log_p, onehot) / logits.dtype.type(N)
    return Tensor(loss, (logits,), lambda g, needs: (g * (np.exp(log_p) - onehot) / N,), "cross_entropy")
