"""MNIST and the sets made in its likeness: the IDX format, big-endian (yann.lecun.com/exdb/mnist).

    0 0 type ndim | ndim sizes, 4 bytes each | the values, last axis fastest         type 8: uint8, 12: int32

What counts as the published file: the same bytes once unzipped, however they were zipped. Of Fashion-MNIST
and KMNIST we know the sha256 of the .gz files alone; a copy that was unzipped, or zipped anew, cannot be told
from another file of the same shape. It is taken, with a note, if the shape is right and its folder bears the
set's name; the run records its sha256. Any other mismatch is an error: one's own images go into a folder of
images.
"""

import gzip
import hashlib
import math
import struct
import zlib

import numpy as np

from minisagan.data.places import TORCHVISION, locate
from minisagan.errors import DataError
from minisagan.stderr import note

TYPES = {8: np.dtype(np.uint8), 12: np.dtype(">i4")}
MIRRORS = {
    "mnist": (
        "https://ossci-datasets.s3.amazonaws.com/mnist/",
        "https://storage.googleapis.com/cvdf-datasets/mnist/",
    ),
    "fashion-mnist": ("https://storage.googleapis.com/tensorflow/tf-keras-datasets/",),
    "kmnist": ("https://codh.rois.ac.jp/kmnist/dataset/kmnist/",),
}
CLASSES = {
    "mnist": tuple("0123456789"),
    "fashion-mnist": (
        *("T-shirt/top", "trouser", "pullover", "dress", "coat"),
        *("sandal", "shirt", "sneaker", "bag", "ankle boot"),
    ),
    "kmnist": ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo"),
}
FILES = {  # by set and split, images then labels: (bytes, sha256) of the .gz, and sha256 unzipped where known
    ("mnist", "train"): (
        (9912422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609",
         "ba891046e6505d7aadcbbe25680a0738ad16aec93bde7f9b65e87a2fc25776db"),
        (28881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c",
         "65a50cbbf4e906d70832878ad85ccda5333a97f0f4c3dd2ef09a8a9eef7101c5"),
    ),
    ("mnist", "test"): (
        (1648877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
         "0fa7898d509279e482958e8ce81c8e77db3f2f8254e26661ceb7762c4d494ce7"),
        (4542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
         "ff7bcfd416de33731a308c3f266cc351222c34898ecbeaf847f06e48f7ec33f2"),
    ),
    ("fashion-mnist", "train"): (
        (26421880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84", None),
        (29515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845", None),
    ),
    ("fashion-mnist", "test"): (
        (4422102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073", None),
        (5148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5", None),
    ),
    ("kmnist", "train"): (
        (18165135, "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4", None),
        (29497, "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17", None),
    ),
    ("kmnist", "test"): (
        (3041136, "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5", None),
        (5120, "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c", None),
    ),
}


def load(name, where, split):
    """(images (N, 28, 28, 1) uint8, labels (N,) int64, classes, hashes unzipped); downloads what lacks."""
    prefix = {"train": "train", "test": "t10k"}[split]
    files = f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"
    known = dict(zip(files, FILES[name, split], strict=True))
    missing = [file for file in files if not locate(where, name, spellings(file))]
    if missing:
        from minisagan.data.download import fetch  # not above: 3 MB of modules for the network

        fetch({f"{file}.gz": known[file][:2] for file in missing}, MIRRORS[name], where / name)

    paths = [locate(where, name, spellings(file)) for file in files]
    images, images_sha256 = _read(paths[0], 3, name, *known[files[0]][1:])  # (N, 28, 28)
    labels, labels_sha256 = _read(paths[1], 1, name, *known[files[1]][1:])  # (N,)
    if images.shape[1:] != (28, 28) or len(images) == 0:
        raise DataError(f"{paths[0]}: images of shape {images.shape}, where {name} has (n, 28, 28)")
    if len(labels) != len(images):
        raise DataError(f"{paths[1]}: {len(labels)} labels for {len(images)} images; take both from one copy")
    if labels.max() >= len(CLASSES[name]):
        raise DataError(f"{paths[1]}: label {labels.max()}, where {name} has {len(CLASSES[name])} classes")
    hashes = dict(zip(files, (images_sha256, labels_sha256), strict=True))
    return images[..., None], labels.astype(np.int64), CLASSES[name], hashes


def spellings(file):
    """The names that people have a file under: zipped or not, train-images-idx3-ubyte or train-images.idx3-ubyte."""
    return [name + ending for name in (file, file.replace("-idx", ".idx")) for ending in (".gz", "")]


def read(path):
    """(the bytes of a file, the same unzipped)."""
    try:
        data = path.read_bytes()
        # The bytes tell, not the name: some browsers unzip what they download.
        return data, gzip.decompress(data) if data[:2] == b"\x1f\x8b" else data
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{path}: cannot be read ({error})") from error


def _read(path, ndim, name, gz_sha256, sha256):
    """The array in an IDX file, gzipped or not, and its sha256 unzipped; checked as said above."""
    try:
        data, raw = read(path)
        array = parse(raw, ndim, path)
    except DataError as error:
        raise DataError(f"{error}; delete it to download it anew") from None
    raw_sha256 = hashlib.sha256(raw).hexdigest()
    found, expected = (raw_sha256, sha256) if sha256 else (hashlib.sha256(data).hexdigest(), gz_sha256)
    if found != expected:
        if sha256 or not path.parent.absolute().as_posix().endswith((f"/{name}", f"/{TORCHVISION[name]}")):
            raise DataError(
                f"{path}: not the published {name} file (sha256 {found}, expected {expected}); "
                "delete it to download it anew, or put images of your own into a folder of images"
            )
        note(f"{path} is not the published .gz; taken for {name} by its shape")
    return array, raw_sha256


def parse(raw, ndim, path, kind=8):
    """The array of `ndim` axes and type `kind` that the bytes of an IDX file spell; `path` is for the error's sake."""
    if kind not in TYPES or ndim > 4 or raw[:4] != bytes((0, 0, kind, ndim)):
        raise DataError(f"{path}: not an IDX file of {ndim}-d uint8, it starts with {raw[:4]!r}")
    start = 4 + 4 * ndim
    shape = struct.unpack_from(f">{ndim}I", raw, 4) if len(raw) >= start else ()
    if not shape or len(raw) != start + math.prod(shape) * TYPES[kind].itemsize:
        raise DataError(f"{path}: {len(raw)} bytes do not fit its header's shape {shape}")
    return np.frombuffer(raw, TYPES[kind], offset=start).reshape(shape)
