"""Data sets: images as uint8 with their classes, from files or drawn here; batches.py makes networks' input of them."""

import hashlib
import os
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from minisagan.data import arrays, cifar, drawn, idx
from minisagan.data.batches import batch, batch_indices, by_class, companions, crop, to_uint8
from minisagan.data.places import locate
from minisagan.data.reading import Reading
from minisagan.errors import DataError, UsageError

__all__ = [
    "Dataset", "Reading", "batch", "batch_indices", "by_class", "companions", "crop", "data_folder", "load", "to_uint8",
]  # fmt: skip

NAMES = ("drawn-digits", "mnist", "fashion-mnist", "kmnist", "cifar10")  # or a path to a folder of images
SIZES = (32, 64, 128, 256)
AS_USUAL = Reading()

DRAWN = {"train": (20_000, 0), "test": (10_000, 1)}  # count and seed; 20,000 take a second


@dataclass(frozen=True, eq=False)
class Dataset:
    """Images with their classes, as they came: not yet framed, not yet floats. `load` makes one of files; of arrays:

        Dataset("mine", images, labels, ("cat", "dog"))

    images   (N, H, W, C) uint8 with H = W and C in {1, 3}; of a folder, a read-only memory map
    labels   (N,) integers in [0, len(classes))
    classes  the names of the classes; one, if there are none
    hashes   file -> sha256 of what was read: a run records them
    skipped  names of damaged images that were left out
    origin   the arguments that `load` made it from; None if it did not
    """

    name: str
    images: np.ndarray
    labels: np.ndarray
    classes: tuple
    hashes: dict = field(default_factory=dict)
    skipped: tuple = ()
    origin: tuple | None = None

    def __post_init__(self):
        if self.images.dtype != np.uint8:
            raise ValueError(f"{self.name}: images are uint8, from 0 to 255, not {self.images.dtype}")
        shape, labels, most = self.images.shape, self.labels, len(self.classes)
        if len(shape) != 4 or shape[1] != shape[2] or shape[2] > SIZES[-1] or shape[3] not in (1, 3):
            raise ValueError(f"{self.name}: images are (N, H, H, 1 or 3), H up to {SIZES[-1]}, not {shape}")
        if getattr(labels, "shape", None) != shape[:1] or labels.dtype.kind not in "iu":
            raise ValueError(f"{self.name}: labels are integers (N,), one for each of {shape[0]} images")
        on_host = isinstance(labels, np.ndarray)  # a copy on a GPU was looked at here before
        if on_host and len(labels) and not 0 <= labels.min() <= labels.max() < most:
            span = f"{labels.min()} to {labels.max()}"
            raise ValueError(f"{self.name}: labels of {most} classes are 0 to {most - 1}, not {span}")

    @property
    def size(self):
        """The networks' image size: the images' own, or the next larger one that networks have (32 for 28)."""
        return next(size for size in SIZES if size >= self.image_size)

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


def is_path(name):
    """Whether the name of a data set is a path: anything but NAMES and emnist-..., which lies in the data folder."""
    return name not in NAMES and not name.startswith("emnist-")


def find(name, where):
    """A file of the named set in the data folder, or None if it is not there: nothing is downloaded."""
    if name.startswith("emnist-"):
        return arrays.find(name, where)
    files = [cifar.FILE, cifar.MEMBERS["train"][0]]
    return locate(where, name, files if name == "cifar10" else idx.spellings("train-images-idx3-ubyte"))


def load(name, data_dir=None, split="train", size=None, how=AS_USUAL):
    """The data set called `name` (one of NAMES), or what lies at that path, as a Dataset.

    At a path lies a folder of images, or of IDX files (arrays.py), or an .npz file; it is only ever "train". `size`,
    one of SIZES, and `how`, a Reading, are asked of folders of images alone (64 if not said): other sets have their
    own. To read a folder that bears the name of a set, write ./name.
    Raises UsageError for what cannot be asked, DataError for files that are missing or damaged.

    The reader of folders of images is imported when there is one: with Pillow it would be 6 MB more in each process.
    """
    origin, where = (name, data_dir, split, size, how), data_folder(data_dir)
    if split not in ("train", "test"):
        raise UsageError(f"no split {split!r}: a data set has train and test")
    path, named = Path(name), name in NAMES
    if not str(name):
        raise UsageError(f"no data set is named: it is one of {', '.join(NAMES)}, or a path")
    if not named and split != "train":
        raise UsageError(f"{name}: what lies at a path has no {split} split; name what to use instead")
    if not named and path.is_dir() and not arrays.is_idx(path):
        from minisagan.data import folder

        size = size or 64
        if size not in SIZES:
            raise UsageError(f"size {size}: images are {', '.join(map(str, SIZES))} pixels wide")
        return Dataset(str(name), *folder.load(path, size, where, how), origin=origin)
    if replace(how, channels=None, strict=False) != AS_USUAL:
        raise UsageError(f"{name}: only of a folder of images can fit, labels or skip-unreadable be chosen")
    if named and size not in (None, SIZES[0]):
        raise UsageError(f"{name} has size {SIZES[0]}, not {size}: only folders of images are scaled")
    if where is None and name != "drawn-digits" and not is_path(name):
        raise DataError(
            f"{name}: no home folder to look for it or to put it: name another by --data-dir or $MINISAGAN_DATA"
        )
    if name == "drawn-digits":
        dataset = Dataset(name, *_draw(split))
    elif name == "cifar10":
        dataset = Dataset(name, *cifar.load(where, split))
    elif named:
        dataset = Dataset(name, *idx.load(name, where, split))
    elif path.is_file() or path.is_dir() or not is_path(name):
        dataset = Dataset(str(name), *arrays.load(path, where))
    else:
        raise UsageError(
            f"{name}: neither a data set ({', '.join(NAMES)}) nor a folder of images or of IDX files, nor an .npz file"
        )
    for what, asked, has in ("size", size, dataset.size), ("channels", how.channels, dataset.channels):
        if asked not in (None, has):
            raise UsageError(f"{name} has {what} {has}, not {asked}: only folders of images are converted")
    return replace(dataset, origin=origin)


def _draw(split):
    count, seed = DRAWN[split]
    images, labels = drawn.draw(count, seed=seed)
    hashes = {"images": hashlib.sha256(images).hexdigest(), "labels": hashlib.sha256(labels).hexdigest()}
    return images[..., None], labels, tuple("0123456789"), hashes
