"""Data sets: images as uint8 with their classes, from files or drawn here; batches.py makes networks' input of them."""

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from minisagan.data import cifar, folder, idx
from minisagan.data.batches import batch, batch_indices, crop, to_uint8
from minisagan.errors import DataError, UsageError

__all__ = ["Dataset", "batch", "batch_indices", "crop", "data_folder", "load", "to_uint8"]

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
    """Where data sets lie: `data_dir`, else $MINISAGAN_DATA, else minisagan in the user's cache folder.

    None without a home folder, as in a container for a user that it does not know.
    """
    cache = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    try:
        return Path(data_dir or os.environ.get("MINISAGAN_DATA") or Path(cache, "minisagan")).expanduser()
    except RuntimeError:
        return None


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
        if where is None:
            raise DataError(
                f"{name}: no home folder to look for it or to put it: name another by --data-dir or $MINISAGAN_DATA"
            )
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
