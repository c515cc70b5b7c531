"""The gathering of arrays into a flat one on the GPU: the kernel of flat.cu."""

import numpy as np

from minisagan import cuda

kernels = cuda.Kernels(__file__)
TENSORS = 128  # that one launch of gather takes
TABLE = np.dtype([("from", np.uint64, TENSORS), ("start", np.int32, TENSORS), ("size", np.int32, TENSORS)])


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
