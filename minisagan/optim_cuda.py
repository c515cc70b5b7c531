"""Adam, the running average and the gathering of gradients on the GPU: the kernels of optim.cu."""

from pathlib import Path

import numpy as np

from minisagan import cuda

kernels = cuda.Kernels(Path(__file__).with_name("optim.cu"))
TENSORS = 128  # that one launch of gather takes
TABLE = np.dtype([("from", np.uint64, TENSORS), ("start", np.int32, TENSORS), ("size", np.int32, TENSORS)])


def adam(w, m, v, g, t, steps, fall, lr, beta1, beta2, eps):
    rates = np.float64(fall), np.float64(lr), np.float64(beta1), np.float64(beta2), eps
    kernels("adam", _blocks(w), 256, w, m, v, g, len(w), t, steps, *rates)


def ema(a, w, t, decay):
    kernels("ema", _blocks(a), 256, a, w, len(a), t, np.float64(decay))


def zeros(like, size):
    return np.zeros(size, like.dtype, like=like)


def put(flat, arrays, part):
    """One launch for all networks of ours, with a table of addresses; `part` is all of it, since a GPU updates all.

    CuPy's own concatenate copies its table from the host, which a stream that records does not allow.
    """
    start, arrays = 0, [x.ravel() for x in arrays]
    for k in range(0, len(arrays), TENSORS):
        group, table = arrays[k : k + TENSORS], np.zeros((), TABLE)
        for i, x in enumerate(group):
            table["from"][i], table["start"][i], table["size"][i] = x.data.ptr, start, x.size
            start += x.size
        blocks = min(cuda.blocks_for(max(x.size for x in group)), 64)
        kernels("gather", (blocks, len(group)), 256, flat, table)


def joined(arrays):
    """The arrays, one behind the other, as a flat one of its own."""
    flat = zeros(arrays[0], sum(x.size for x in arrays))
    put(flat, arrays, slice(0, len(flat)))
    return flat


def _blocks(flat):
    """For a kernel that strides over a flat array: no more threads than keep a GPU busy."""
    return min(cuda.blocks_for(len(flat)), 1024)
