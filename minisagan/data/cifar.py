"""CIFAR-10 in its binary version (cs.toronto.edu/~kriz/cifar.html): no pickle, so reading runs no code.

    a record = 1 byte label | 1024 bytes red | 1024 green | 1024 blue, each 32 rows of 32

The archive's sha256 is checked before it is opened, so what it holds is known; members are read by name, and
nothing is ever extracted.
"""

import hashlib
import tarfile

import numpy as np

from minisagan.data.places import locate
from minisagan.errors import DataError

MIRRORS = ("https://www.cs.toronto.edu/~kriz/",)
FILE = "cifar-10-binary.tar.gz"
KNOWN = (170052171, "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd")  # bytes, sha256
PICKLED = "cifar-10-python.tar.gz", "cifar-10-batches-py/data_batch_1"  # the other version
RECORD = 1 + 3 * 32 * 32
BYTES = 10_000 * RECORD  # of a file
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
MEMBERS = {
    "train": [f"cifar-10-batches-bin/data_batch_{i}.bin" for i in range(1, 6)],
    "test": ["cifar-10-batches-bin/test_batch.bin"],
}


def load(where, split):
    """(images (N, 32, 32, 3) uint8, labels (N,) int64, classes, hashes); downloads what lacks."""
    if not locate(where, "cifar10", [FILE]) and locate(where, "cifar10", MEMBERS[split]):
        return _unpacked(where, split)
    if not locate(where, "cifar10", [FILE]):
        from minisagan.data.download import fetch  # not above: 3 MB of modules for the network

        try:
            fetch({FILE: KNOWN}, MIRRORS, where / "cifar10")
        except DataError as error:
            pickled = locate(where, "cifar10", PICKLED)
            more = f"; {pickled} is pickled: to read it is to run it as a program" if pickled else ""
            raise DataError(f"{error}{more}") from error
    path = locate(where, "cifar10", [FILE])
    try:
        with open(path, "rb") as file:
            sha256 = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(f"{path}: cannot be read ({error.strerror})") from error
    if sha256 != KNOWN[1]:
        raise DataError(
            f"{path}: not the published file (sha256 {sha256}, expected {KNOWN[1]}); "
            "delete it to download it anew"
        )
    members = {}
    with tarfile.open(path, "r|gz") as tar:  # a stream: one pass, whatever the order of the members
        for member in tar:
            if member.name in MEMBERS[split]:
                members[member.name] = tar.extractfile(member).read()
    return *_arrays([members[name] for name in MEMBERS[split]]), CLASSES, {FILE: sha256}


def _unpacked(where, split):
    """The same from the archive's folder, whose files have no published sha256: right are those of the right length."""
    files, hashes = [], {}
    for name in MEMBERS[split]:
        path = locate(where, "cifar10", [name])
        try:
            files.append(path.read_bytes() if path else b"")
        except OSError as error:
            raise DataError(f"{path}: cannot be read ({error.strerror})") from error
        if len(files[-1]) != BYTES or max(files[-1][::RECORD]) >= len(CLASSES):
            raise DataError(f"{path or name}: missing, or not a file of CIFAR-10's binary version; unpack {FILE} anew")
        hashes[name] = hashlib.sha256(files[-1]).hexdigest()
    return *_arrays(files), CLASSES, hashes


def _arrays(files):
    records = np.frombuffer(b"".join(files), np.uint8).reshape(-1, RECORD)
    images = records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)  # (N, C, H, W) -> (N, H, W, C)
    return np.ascontiguousarray(images), records[:, 0].astype(np.int64)
