"""Images of one's own as arrays: an .npz file, or a folder with a pair of IDX files (EMNIST, QMNIST, any like MNIST's).

    FILE.npz    images (N, H, W) or (N, H, W, 1 or 3) uint8; labels (N,) integers or texts, optional;
                classes (K,) texts, optional: the names of the labels in their order
    FOLDER      ...train-images-idx3-ubyte (N, H, W), or idx4 (N, H, W, 1 or 3);
                ...train-labels-idx1-ubyte (N,), or QMNIST's -idx2-int (N, 8), of which the first number counts;
                ...mapping.txt, optional: EMNIST's lines "label code", or classes.txt: a name for each label in order

Any number of images up to 256x256; what is not square is framed in black. Labels may begin anywhere. EMNIST's images
are stored transposed, and shown upright.
"""

import hashlib
import re
import zipfile
from pathlib import Path

import numpy as np

from minisagan.data.idx import TYPES, parse, read, spellings
from minisagan.data.labels import natural
from minisagan.data.places import locate
from minisagan.errors import DataError

LARGEST = 256
IMAGES = re.compile(r"(.*)images[-.]idx[34]-ubyte(\.gz)?")
LABELS = ("idx1-ubyte", "idx2-int", "idx1-int")


def is_idx(folder):
    """Whether there are images in IDX files in the folder."""
    return bool(_sets(folder))


def load(path, where):
    """(images (N, H, H, C) uint8, labels (N,) int64, classes, hashes) of an .npz, a folder, or of emnist-NAME."""
    if path.is_file():
        return _npz(path)
    if path.is_dir():
        sets = _sets(path)
        sets = {stem: file for stem, file in sets.items() if "train" in stem} or sets
        if len(sets) > 1:
            raise DataError(f"{path}: several sets of images, {', '.join(sorted(sets))}: put each into its own folder")
        ((stem, file),) = sets.items()
        return _idx(file, stem)
    stem = f"{path}-train-"
    file = find(str(path), where)
    if not file:
        raise DataError(f"{where}: no {stem}images-idx3-ubyte in it, in emnist/ or in EMNIST/raw/: put it there")
    return _idx(file, stem)


def find(name, where):
    """The training images of emnist-NAME in the data folder, or None."""
    return locate(where, "emnist", spellings(f"{name}-train-images-idx3-ubyte"))


def _sets(folder):
    """{the beginning of the name: file} of the images in the folder."""
    try:
        matches = ((IMAGES.fullmatch(path.name), path) for path in sorted(Path(folder).iterdir()))
        return {match[1]: path for match, path in matches if match}
    except OSError as error:
        raise DataError(f"{folder}: cannot be read ({error.strerror})") from error


def _idx(file, stem):
    beside = [file.with_name(name) for kind in LABELS for name in spellings(f"{stem}labels-{kind}")]
    labels_file = next((path for path in beside if path.is_file()), None)
    if not labels_file:
        raise DataError(f"{file}: there is no {stem}labels-idx1-ubyte beside it")
    hashes, arrays = {}, []
    for path in (file, labels_file):
        _, raw = read(path)
        hashes[path.name] = hashlib.sha256(raw).hexdigest()
        if raw[:2] != b"\0\0" or len(raw) < 4 or raw[2] not in TYPES:
            raise DataError(f"{path}: not an IDX file of uint8 or int32, it starts with {raw[:4]!r}")
        arrays.append(parse(raw, raw[3], path, raw[2]))
    images, labels = arrays
    if stem.startswith("emnist-") and images.ndim > 2:
        images = images.swapaxes(1, 2)
    labels = labels[:, 0] if labels.ndim == 2 and labels.shape[1] else labels
    return *_checked(file, images, labels, _names(file.parent, stem)), hashes


def _names(folder, stem):
    """{label: name} from mapping.txt or classes.txt, or None."""
    mapping, names = folder / f"{stem.replace('-train-', '-')}mapping.txt", folder / "classes.txt"
    try:
        if mapping.is_file():
            rows = (line.split() for line in mapping.read_text().splitlines() if line.strip())
            return {int(row[0]): chr(int(row[1])) for row in rows}
        if names.is_file():
            return dict(enumerate(names.read_text(encoding="utf-8").splitlines()))
    except (OSError, ValueError, IndexError, OverflowError) as error:
        raise DataError(f"{folder}: its names of classes cannot be read ({error})") from error
    return None


def _npz(path):
    try:
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
            if not zipfile.is_zipfile(file):
                raise ValueError("it is none; a data set is a folder of images or of IDX files, or an .npz")
            file.seek(0)
            with np.load(file, allow_pickle=False) as found:  # reading runs no code
                arrays = {name: found[name] for name in ("images", "labels", "classes") if name in found}
            if wrong := [name for name, x in arrays.items() if not isinstance(x, np.ndarray)]:
                raise ValueError(f"{wrong[0]} is no array")
    except Exception as error:  # zipfile and NumPy's reader raise whatever they like for a damaged or a hostile one
        raise DataError(f"{path}: cannot be read as an .npz file ({error})") from error
    if "images" not in arrays:
        raise DataError(f"{path}: it has no array named images")
    images, names = arrays["images"], arrays.get("classes")
    labels = arrays.get("labels", np.full(len(images) if images.ndim else 0, "all"))
    names = None if names is None else dict(enumerate(map(str, names.ravel())))
    return *_checked(path, images, labels, names), {"file": sha256}


def _checked(path, images, labels, names):
    """(images (N, H, H, C), labels from 0, classes); `names`: {label: name}, or by their order {0: name, ...}.

    Labels that are such names themselves keep them.
    """
    if images.dtype != np.uint8:
        span = f", {images.min():g} to {images.max():g}" if images.dtype.kind in "iuf" and images.size else ""
        raise DataError(f"{path}: images are {images.dtype}{span}; save them as uint8, 0 to 255")
    images = images[..., None] if images.ndim == 3 else images
    if images.ndim != 4 or images.shape[3] not in (1, 3) or images.size == 0 or max(images.shape[1:3]) > LARGEST:
        wanted = f"(N, H, W) or (N, H, W, 1 or 3), up to {LARGEST} wide"
        raise DataError(f"{path}: images of shape {images.shape}; they have to be {wanted}")
    if labels.shape != images.shape[:1] or labels.dtype.kind not in "iuU":
        raise DataError(f"{path}: labels of {labels.dtype} {labels.shape} for {len(images)} images, not (N,) integers")
    known = sorted(set(labels.tolist()), key=lambda label: natural(label) if isinstance(label, str) else label)
    if names and set(known) <= set(names.values()):
        names = None
    if names and not set(known) <= set(names):
        if len(names) != len(known):
            raise DataError(f"{path}: {len(names)} names of classes for labels {known[0]} to {known[-1]}")
        names = dict(zip(known, names.values(), strict=True))
    numbers = {label: k for k, label in enumerate(known)}
    numbered = np.array([numbers[label] for label in labels.tolist()], np.int64)
    return _square(images), numbered, tuple((names or {}).get(label, str(label)) for label in known)


def _square(images):
    n, height, width, channels = images.shape
    if height == width:
        return np.ascontiguousarray(images)
    side = max(height, width)
    square = np.zeros((n, side, side, channels), np.uint8)
    top, left = (side - height) // 2, (side - width) // 2
    square[:, top : top + height, left : left + width] = images
    return square
