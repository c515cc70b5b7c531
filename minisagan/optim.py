"""The optimiser and the running average of weights, both on one flat array.

    Adam (Kingma and Ba 2015):   m <- beta1 m + (1 - beta1) g            w <- w - lr mhat / (sqrt(vhat) + eps)
                                 v <- beta2 v + (1 - beta2) g^2      mhat = m / (1 - beta1^t), vhat = v / (1 - beta2^t)
    falling rate:                lr min(1, (T + 1 - t) / (fall T))
    EMA:                         a <- a + (1 - d_t) (w - a)              d_t = min(decay, (1 + t) / (10 + t))

where Adam counts its updates from t = 1 to T, and the EMA's t counts those that were made before: 0 to T - 1.

SAGAN trains with beta1 = 0, beta2 = 0.9 and two learning rates, one for each network (TTUR, Heusel et al. 2017). The
running average of the generator's weights is not in the paper; it is what samples are drawn from.
"""

import numpy as np

from minisagan.flat import flatten, put, zeros
from minisagan.primitives import primitive

ALL = slice(None)


class Adam:
    """Adam over `parameters` (name -> Tensor), which it flattens: their data become views of `weights`.

    So write into them (`p.data[...] = x`), and don't give them other arrays: those would not be updated.
    `weights`, `m`, `v` and `g`, the last gradients, are arrays of one length. With `fall` above 0 the rate falls
    linearly to 0 in that share of the `steps`, at their end. An update is by the sum of `accumulate` gradients.
    """

    def __init__(self, parameters, lr, beta1=0.0, beta2=0.9, eps=1e-8, steps=0, fall=0.0, accumulate=1):
        self.parameters = list(parameters.values())
        self.weights = flatten(parameters)
        self.m, self.v, self.g = (zeros(self.weights, len(self.weights)) for _ in range(3))
        self.t = np.zeros((), np.int64, like=self.weights)  # an array, which a checkpoint or a kernel can change
        self.steps = np.asarray(steps, np.int64, like=self.weights)  # an array as well: the end may be set on the way
        self.lr, self.beta1, self.beta2, self.eps, self.fall = lr, beta1, beta2, eps, fall
        self.accumulate, self.taken, self.sum = accumulate, 0, None  # so many were taken, with this sum

    def step(self, gradients, part=ALL):
        """Take `gradients`, one for each parameter; every `accumulate`-th call makes an update by the sum of those.

        The update is of this part of the flat arrays. Returns whether it was made.
        """
        if self.taken:
            gradients = [a + b for a, b in zip(self.sum, gradients, strict=True)]
        self.taken = (self.taken + 1) % self.accumulate
        self.sum = gradients if self.taken else None
        if self.taken:
            return False
        self.t += 1
        put(self.g, gradients, part)
        arrays = (x[part] for x in (self.weights, self.m, self.v, self.g))
        adam(*arrays, self.t, self.steps, self.fall, self.lr, self.beta1, self.beta2, self.eps)
        return True


class EMA:
    """A running average of `weights` (flat), kept in `average`; t counts its updates, for the warm-up of the decay."""

    def __init__(self, weights, average, decay=0.999):
        self.weights, self.average, self.decay = weights, average, decay
        self.t = np.zeros((), np.int64, like=weights)

    def step(self, part=ALL):
        """Move this part of the average towards the weights as they are now."""
        ema(self.average[part], self.weights[part], self.t, self.decay)
        self.t += 1


@primitive
def adam(w, m, v, g, t, steps, fall, lr, beta1, beta2, eps):
    """Adam's update t = 1, 2, ... of w, m and v, in place."""
    lr = lr * falling(t, steps, fall)
    m += (1 - beta1) * (g - m)
    v += (1 - beta2) * (g * g - v)
    mhat, vhat = m / (1 - beta1 ** int(t)), v / (1 - beta2 ** int(t))
    w -= lr * mhat / (np.sqrt(vhat) + eps)


def falling(t, steps, fall):
    """What the rate of update t is multiplied by: 1, or in the last `fall` of the steps a line to 0."""
    return min(1.0, max(0, int(steps) + 1 - int(t)) / (fall * int(steps))) if fall else 1.0


@primitive
def ema(a, w, t, decay):
    """The update of a running average after t others, in place."""
    a += (1 - min(decay, (1 + int(t)) / (10 + int(t)))) * (w - a)
