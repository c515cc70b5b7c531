"""Adam on NumPy in slices, so that what it works with takes no memory worth mention."""

import numpy as np

from minisagan import cpu
from minisagan.optim import falling


def adam(w, m, v, g, t, steps, fall, lr, beta1, beta2, eps):
    lr = lr * falling(t, steps, fall)
    scale, correction = lr / (1 - beta1 ** int(t)), 1 / (1 - beta2 ** int(t))
    cuts = cpu.chunks(len(w), 5 * w.itemsize)

    def body(i):
        wi, mi, vi, gi = (a[cuts[i]] for a in (w, m, v, g))
        mi += (1 - beta1) * (gi - mi)
        vi += (1 - beta2) * (gi * gi - vi)
        wi -= scale * mi / (np.sqrt(vi * correction) + eps)

    cpu.parallel(body, len(cuts))
