"""Data sets: images as uint8 in files, batches as float32 in [-1, 1] for the networks.

    x = u8 / 127.5 - 1            u8 = round((x + 1) · 127.5)

The networks' images are S = 32·2ᵏ pixels wide. 28x28 digits are framed in black (-1) to 32 on the way in, and
what the generator draws is cropped back to 28 on the way out.

Which samples a step sees is a function of the position alone, the number of samples seen since the start:
epoch e is one permutation of the data, keyed by (seed, e). There is no state to save, and a resumed run sees
what the uninterrupted one would have seen.
"""

import hashlib
import os
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from minisagan import rng
from minisagan.data import cifar, folder, idx
from minisagan.errors import UsageError

NAMES = ("drawn-digits", "mnist", "fashion-mnist", "kmnist", "cifar10")  # or a path to a folder of images
SIZES = (32, 64, 128, 256)

DRAWN = {"train": (20_000, 0), "test": (10_000, 1)}  # count and seed; 20,000 take a second


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with their classes, as they came: not yet framed, not yet floats.

    images   (N, H, W, C) uint8 with H = W and C in {1, 3}; of a folder, a read-only memory map
    labels   (N,) int64 in [0, len(classes))
    classes  the names of the classes
    hashes   file -> sha256 of what was read: a run records them
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    classes: tuple
    hashes: dict

    @property
    def size(self):
        """The networks' image size: 32 for 28x28 digits, otherwise the images' own."""
        return max(SIZES[0], self.image_size)

    @property
    def image_size(self):
        """The images' own size, to which outputs are cropped."""
        return self.images.shape[1]

    @property
    def channels(self):
        return self.images.shape[3]

    def __len__(self):
        return len(self.images)


def data_folder(data_dir=None):
    """Where data sets lie: `data_dir`, else $MINISAGAN_DATA, else minisagan in the user's cache folder."""
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(data_dir or os.environ.get("MINISAGAN_DATA") or Path(cache, "minisagan")).expanduser()


def load(name, data_dir=None, split="train", size=None):
    """The data set called `name` (one of NAMES), or the folder of images at that path, as a Dataset.

    A folder has no splits, so it is only ever "train"; `size`, one of SIZES, is asked of folders alone (64 if
    not said): the named sets are 32. To read a folder that bears the name of a set, write ./name.
    Raises UsageError for what cannot be asked, DataError for files that are missing or damaged.
    """
    where = data_folder(data_dir)
    if split not in ("train", "test"):
        raise UsageError(f"no split {split!r}: a data set has train and test")
    if name in NAMES:
        if size not in (None, SIZES[0]):
            raise UsageError(f"{name} has size {SIZES[0]}, not {size}: only folders of images are scaled")
        if name == "drawn-digits":
            return Dataset(name, *_draw(split))
        if name == "cifar10":
            return Dataset(name, *cifar.load(where, split))
        return Dataset(name, *idx.load(name, where, split))
    if not Path(name).is_dir():
        raise UsageError(f"{name}: neither a data set ({', '.join(NAMES)}) nor a folder of images")
    if split != "train":
        raise UsageError(f"{name}: a folder of images has no {split} split; name the folder to use instead")
    size = size or 64
    if size not in SIZES:
        raise UsageError(f"size {size}: images are {', '.join(map(str, SIZES))} pixels wide")
    return Dataset(str(name), *folder.load(Path(name), size, where))


def _draw(split):
    from minisagan.data.drawn import draw

    count, seed = DRAWN[split]
    images, labels = draw(count, seed=seed)
    hashes = {"images": hashlib.sha256(images).hexdigest(), "labels": hashlib.sha256(labels).hexdigest()}
    return images[..., None], labels, tuple("0123456789"), hashes


def batch(dataset, indices, flip_mask=None):
    """Samples for the networks: x (n, S, S, C) float32 in [-1, 1], framed in black; y (n,) int64.

    Where `flip_mask` (n,) bool is True the image is mirrored left to right.
    """
    images = dataset.images[indices]  # (n, H, H, C)
    if flip_mask is not None:
        images[flip_mask] = images[flip_mask][:, :, ::-1]
    n, size = len(images), dataset.size
    x = np.full((n, size, size, dataset.channels), -1, np.float32)  # (n, S, S, C)
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
