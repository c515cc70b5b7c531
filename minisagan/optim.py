"""The optimiser and the running average of weights, both on one flat array.

    Adam (Kingma and Ba 2015):   m <- beta1 m + (1 - beta1) g            w <- w - lr mhat / (sqrt(vhat) + eps)
                                 v <- beta2 v + (1 - beta2) g^2      mhat = m / (1 - beta1^t), vhat = v / (1 - beta2^t)
    EMA:                         a <- a + (1 - d_t) (w - a)              d_t = min(decay, (1 + t) / (10 + t))

SAGAN trains with beta1 = 0, beta2 = 0.9 and two learning rates, one for each network (TTUR, Heusel et al. 2017). The
running average of the generator's weights is not in the paper; it is what samples are drawn from.
"""

import numpy as np

from minisagan import cuda, device, ranks

kernels = cuda.Kernels(__file__)
TENSORS = 128  # that one launch of gather takes
TABLE = np.dtype([("from", np.uint64, TENSORS), ("start", np.int32, TENSORS), ("size", np.int32, TENSORS)])


def flatten(parameters):
    """Move these parameters (name -> Tensor) into a flat array and return it: each one's data becomes a view of it."""
    arrays = [p.data for p in parameters.values()]
    flat = _zeros(sum(a.size for a in arrays), arrays[0])
    np.concatenate([a.reshape(-1) for a in arrays], out=flat)
    start = 0
    for p, a in zip(parameters.values(), arrays, strict=True):
        p.data = flat[start : start + a.size].reshape(a.shape)
        start += a.size
    return flat


def _zeros(size, like):
    """Zeros (size,) beside the array `like`; on a CPU in memory that all processes share that compute as one."""
    return np.zeros(size, like.dtype, like=like) if cuda.on_gpu(like) else ranks.shared(size, like.dtype)


class Adam:
    """Adam over `parameters` (name -> Tensor), which it flattens.

    `weights`, `m`, `v` and `g`, the last gradients, are arrays of one length.
    """

    def __init__(self, parameters, lr, beta1=0.0, beta2=0.9, eps=1e-8):
        self.parameters = list(parameters.values())
        self.weights = flatten(parameters)
        self.m, self.v, self.g = (_zeros(len(self.weights), self.weights) for _ in range(3))
        self.t = np.zeros((), np.int64, like=self.weights)  # an array, which a checkpoint or a kernel can change
        self.lr, self.beta1, self.beta2, self.eps = lr, beta1, beta2, eps

    def step(self, gradients):
        """One update by `gradients`, one array for each parameter, in their order."""
        gradients = [g.ravel() for g in gradients]
        self.t += 1
        if cuda.on_gpu(self.g):
            _gather(gradients, self.g)
            rates = np.float64(self.lr), np.float64(self.beta1), np.float64(self.beta2), self.eps
            _launch("adam", self.weights, self.m, self.v, self.g, len(self.g), self.t, *rates)
            return
        total = ranks.total(np.concatenate(gradients))
        scale = self.lr / (1 - self.beta1 ** int(self.t))
        correction = 1 / (1 - self.beta2 ** int(self.t))
        least = device.CHUNK_BYTES // -(-len(total) // ranks.PARTS)  # bytes for each number, for PARTS slices or more
        cuts = ranks.share(device.cached(len(total), max(5 * total.itemsize, least)))

        def body(i):
            w, m, v, g = (a[cuts[i]] for a in (self.weights, self.m, self.v, self.g))
            g[...] = total[cuts[i]]
            m += (1 - self.beta1) * (g - m)
            v += (1 - self.beta2) * (g * g - v)
            w -= scale * m / (np.sqrt(v * correction) + self.eps)

        device.parallel(body, len(cuts))
        ranks.meet()  # each has updated its share of the weights


class EMA:
    """A running average of `weights` (flat), kept in `average`; t counts its updates, for the warm-up of the decay."""

    def __init__(self, weights, average, decay=0.999):
        self.weights, self.average, self.decay = weights, average, decay
        self.t = np.zeros((), np.int64, like=weights)

    def step(self):
        """Move the average towards the weights as they are now; of processes that share a batch, the first does it."""
        if ranks.rank():
            return
        if cuda.on_gpu(self.t):
            _launch("ema", self.average, self.weights, len(self.average), self.t, np.float64(self.decay))
        else:
            t = int(self.t)
            self.average += (1 - min(self.decay, (1 + t) / (10 + t))) * (self.weights - self.average)
        self.t += 1


def _launch(kernel, flat, *args):
    """A kernel that strides over a flat array: no more threads than keep a GPU busy."""
    kernels(kernel, min(cuda.blocks_for(len(flat)), 1024), 256, flat, *args)


def _gather(arrays, out):
    """np.concatenate(arrays, out=out) on the GPU, in one launch for all networks of ours, with a table of addresses.

    CuPy's own copies its table from the host, which a stream that records does not allow.
    """
    start = 0
    for k in range(0, len(arrays), TENSORS):
        group, table = arrays[k : k + TENSORS], np.zeros((), TABLE)
        for i, x in enumerate(group):
            table["from"][i], table["start"][i], table["size"][i] = x.data.ptr, start, x.size
            start += x.size
        blocks = min(cuda.blocks_for(max(x.size for x in group)), 64)
        kernels("gather", (blocks, len(group)), 256, out, table)
