"""Batches: what the networks see of a data set.

    x = u8 / 127.5 - 1            u8 = round((x + 1) · 127.5)

The networks' images are S = 32·2ᵏ pixels wide. 28x28 digits are framed in black (-1) to 32 on the way in, and
what the generator draws is cropped back to 28 on the way out.

Which samples a step sees is a function of the position alone, the number of samples seen since the start:
epoch e is one permutation of the data, keyed by (seed, e). There is no state to save, and a resumed run sees
what the uninterrupted one would have seen.
"""

from functools import lru_cache

import numpy as np

from minisagan import cuda, rng

kernels = cuda.Kernels(__file__)


def batch(dataset, indices, flip_mask=None):
    """Samples for the networks: x (n, S, S, C) float32 in [-1, 1], framed in black; y (n,) int64.

    Where `flip_mask` (n,) bool is True the image is mirrored left to right. Of a data set that lies on the GPU (where
    `indices` and `flip_mask` have to be, too) a kernel makes the same numbers there.
    """
    n, size, channels = len(indices), dataset.size, dataset.channels
    if cuda.on_gpu(dataset.images):
        x = cuda.cupy().empty((n, size, size, channels), np.float32)
        sizes = n, dataset.image_size, size, channels
        kernels("assemble", cuda.blocks_for(x.size), 256, x, dataset.images, indices, flip_mask, *sizes)
        return x, dataset.labels[indices]
    images = dataset.images[indices]  # (n, H, H, C)
    if flip_mask is not None:
        images[flip_mask] = images[flip_mask][:, :, ::-1]
    x = np.full((n, size, size, channels), -1, np.float32)  # (n, S, S, C)
    inside = crop(x, dataset.image_size)
    np.divide(images, 127.5, out=inside, dtype=np.float32)
    inside -= 1
    return x, dataset.labels[indices]


def crop(x, size):
    """The middle `size` x `size` pixels of images (n, S, S, C): a view, the frame taken off."""
    margin = (x.shape[1] - size) // 2
    return x[:, margin : margin + size, margin : margin + size]


def to_uint8(x, size):
    """What networks draw, (n, S, S, C) in [-1, 1], as (n, size, size, C) uint8, rounded and clipped.

    With `size` a data set's `image_size` it undoes `batch` exactly: all 256 values come back as they were.
    """
    return np.rint(np.clip((crop(x, size) + 1) * 127.5, 0, 255)).astype(np.uint8)


def by_class(labels):
    """An index of samples by their class: (labels, all samples class after class, where each starts, its size)."""
    sizes = np.bincount(labels)
    return labels, np.argsort(labels, kind="stable"), np.cumsum(sizes) - sizes, sizes


def companions(indices, count, index, seed, step):
    """For each sample of `indices` (n,), `count` more of its class, drawn from all of it: (count, n) int64.

    `index` is by_class(labels) of the data.
    """
    labels, ordered, starts, sizes = index
    label = labels[indices]
    places = rng.uniform((count, len(indices)), seed, rng.Stream.COMPANIONS, step) * sizes[label]  # in [0, size)
    return ordered[starts[label] + places.astype(np.int64)]


@lru_cache(maxsize=2)  # a batch touches at most two epochs, unless it is larger than the data
def _permutation(n, seed, epoch):
    return rng.permutation(n, seed, epoch)


def batch_indices(position, count, n, seed):
    """Which of n samples come at position, position + 1, .. of the endless shuffled stream: (count,) int64.

    Each n positions are an epoch with its own permutation of the data; a batch across its end takes the rest
    from the next.
    """
    indices = np.empty(count, np.int64)
    done = 0
    while done < count:
        epoch, start = divmod(position + done, n)
        part = _permutation(n, seed, epoch)[start : start + count - done]
        indices[done : done + len(part)] = part
        done += len(part)
    return indices
