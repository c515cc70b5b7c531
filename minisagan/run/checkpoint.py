"""Checkpoints: one safetensors file each. A killed save leaves at its path what was there, or the whole new file.

    8 bytes    n, the length of the header, little-endian
    n bytes    JSON: {name: {"dtype", "shape", "data_offsets": [begin, end]}, ..., "__metadata__": {str: str}}
    the rest   the tensors' bytes: little-endian, C order, end to end

Every tool of that ecosystem reads these files, and reading one runs no code. Two keys of the metadata are
ours: "format" says that this module wrote the file, "sha256" holds a hash of each tensor and one of all else,
so that no flipped bit passes. A file of another program is read as strictly, but has no hash to check.

Own code, because the safetensors package takes what is refused here (flipped data bits, duplicate keys, space
before the header) and has no safe write: wrapped in those checks it would have nothing left to do.
"""

import contextlib
import hashlib
import json
import math
import os
import re
from pathlib import Path

import numpy as np

from minisagan import cuda
from minisagan.errors import DataError, Diverged, Fault, UsageError
from minisagan.files import once

FORMAT = "minisagan-1"
HEADER_CAP = 4 << 20  # bytes: some 15,000 tensors, and little memory for a hostile file
CODES = ("F64", "F32", "F16", "I64", "I32", "U64", "U32", "U8")
DTYPES = {code: np.dtype(f"<{code[0].lower()}{int(code[1:]) // 8}") for code in CODES}  # F32: <f4
UNREADABLE = (OSError, ValueError, RecursionError, MemoryError)  # all that reading a hostile file can raise


def save(path, tensors, metadata):
    """Writes {name: array} and {string: string} to `path`, all or nothing; reads it back before it counts.

    Diverged, naming the tensor, if one is not finite: such a state is never saved. Fault if the disk refuses;
    a file that was at `path` is still there. TypeError and ValueError for what the format cannot hold.
    """
    path, tensors = Path(path), {name: cuda.to_host(x) for name, x in tensors.items()}
    for name, x in tensors.items():
        if not np.isfinite(x).all():
            raise Diverged(f"{path}: not saved, because tensor {name!r} holds a NaN or an infinity")
    temp = path.with_name(path.name + ".tmp")  # a fixed name: the next save or prune takes what a kill leaves
    content = _compose(tensors, metadata)
    try:
        _write(temp, *content)
        os.replace(temp, path)
    except UNREADABLE as error:
        raise Fault(f"{path}: not saved: {_reason(error)}; older checkpoints are untouched") from error
    finally:
        with contextlib.suppress(OSError):  # after the replace there is none
            temp.unlink()
    with contextlib.suppress(OSError):  # not every system can sync a folder; the new name is in place anyway
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)


def write(path, tensors, metadata):
    """The same file, for whoever replaces `path` by himself (files.replacing); OSError if the disk refuses."""
    _write(path, *_compose(tensors, metadata))


def _write(path, header, arrays):
    with open(path, "wb") as file:
        file.write(header)
        for x in arrays:
            file.write(x.tobytes())  # in C order, whatever the layout
        file.flush()
        os.fsync(file.fileno())
    _read(path)


def load(path):
    """Reads ({name: array}, {string: string}); DataError for whatever is off, offering an intact file."""
    try:
        return _read(path)
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot use this checkpoint: {_reason(error)}{_offer(path)}") from error


def read_metadata(path):
    """The metadata alone: checks the header and the file's size, reads no tensor. DataError as for `load`."""
    try:
        with _open(path) as file:
            return _header(file)[0]
    except UNREADABLE as error:
        raise DataError(f"{path}: cannot use this checkpoint: {_reason(error)}") from error


def match(tensors, wanted):
    """Copies `tensors` into the arrays `wanted`, in place: all, or none and a DataError with what differs."""
    differences = [f"{name!r} is missing" for name in wanted if name not in tensors]
    for name, x in tensors.items():
        if name not in wanted:
            differences.append(f"{name!r} is not in the model")
        elif (x.shape, x.dtype) != (wanted[name].shape, wanted[name].dtype):
            model = wanted[name]
            differences.append(f"{name!r} is {x.dtype} {x.shape}, the model's {model.dtype} {model.shape}")
    if differences:
        shown = "; ".join(differences[:8]) + ("; ..." if len(differences) > 8 else "")
        raise DataError(f"the checkpoint does not fit the model (differences: {len(differences)}): {shown}")
    for name, x in tensors.items():
        wanted[name][...] = np.asarray(x, like=wanted[name])


def path_of(folder, step):
    """The file of a step: FOLDER/step-00001000.safetensors."""
    return Path(folder) / f"step-{step:08d}.safetensors"


def of_steps(folder):
    """{step: path} of the files that `path_of` names, the lowest step first; copies of other names are not ours."""
    found = ((re.fullmatch(r"step-(\d+)\.safetensors", path.name), path) for path in Path(folder).glob("step-*"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def newest(folder, until=math.inf):
    """The file with the highest "step" up to `until`, by its metadata, or None. A damaged header does not count."""
    return next((path for step, path in _by_step(folder) if step <= until), None)


def prune(folder, keep, *others):
    """Deletes the step files but the last `keep` and the paths `others`, and what a killed save left behind."""
    if keep < 1:
        raise UsageError(f"at least 1 checkpoint must be kept, not {keep}")
    named = of_steps(folder).values()
    ours = [path for _, path in _by_step(folder) if path in named]
    others = [Path(path).resolve() for path in others if path]
    old = [path for path in ours[keep:] if path.resolve() not in others]
    try:
        for path in [*old, *Path(folder).glob("step-*.safetensors.tmp")]:
            path.unlink(missing_ok=True)
    except OSError as error:
        raise Fault(f"{path}: cannot delete this old checkpoint ({_reason(error)})") from error


def _by_step(folder):
    """[(step, path)], the highest step first."""
    found = []
    for path in Path(folder).glob("*.safetensors"):
        with contextlib.suppress(DataError, KeyError, ValueError):
            found.append((int(read_metadata(path)["step"]), path))
    return sorted(found, reverse=True)


def _offer(path):
    for step, other in _by_step(Path(path).parent):
        with contextlib.suppress(*UNREADABLE):
            _read(other)
            return f"; an intact one, of step {step}, is {other}"
    return ""


def _reason(error):
    return getattr(error, "strerror", None) or error


def _compose(tensors, metadata):
    """The first 8 + n bytes of the file, and the arrays that follow in it."""
    if not all(isinstance(text, str) for item in metadata.items() for text in item):
        raise TypeError("metadata must map strings to strings")
    if {"format", "sha256"} & metadata.keys() or "__metadata__" in tensors:
        raise ValueError("the names format and sha256 (metadata) and __metadata__ (tensors) are reserved")
    tensors = dict(sorted(tensors.items(), key=lambda item: -item[1].itemsize))  # wide first: all lie aligned
    table, hashes, position = {}, {}, 0
    for name, x in tensors.items():
        if x.dtype not in DTYPES.values():
            raise TypeError(f"tensor {name!r}: {x.dtype} cannot be saved, only {', '.join(CODES)}")
        code = f"{x.dtype.kind.upper()}{8 * x.itemsize}"
        table[name] = {"dtype": code, "shape": list(x.shape), "data_offsets": [position, position + x.nbytes]}
        hashes[name] = hashlib.sha256(x.tobytes()).hexdigest()
        position += x.nbytes
    metadata = {"format": FORMAT, **metadata}
    hashes["__metadata__"] = _hash_of_header(metadata, table)
    text = json.dumps({"__metadata__": {**metadata, "sha256": json.dumps(hashes)}, **table}).encode()
    text += b" " * (-len(text) % 8)  # tensors begin at a multiple of 8
    if len(text) > HEADER_CAP:
        raise ValueError(f"a header of {len(text)} bytes is above the limit of {HEADER_CAP}")
    return len(text).to_bytes(8, "little") + text, list(tensors.values())


def _hash_of_header(metadata, table):
    """Of what the tensors' own leave out: metadata, names, dtypes and shapes (not the order in the file)."""
    said = [metadata, {name: [entry["dtype"], entry["shape"]] for name, entry in table.items()}]
    return hashlib.sha256(json.dumps(said, sort_keys=True).encode()).hexdigest()


def _open(path):
    if not Path(path).is_file():  # before opening: a pipe would wait for ever
        raise ValueError("a folder, not a file" if Path(path).is_dir() else "no such file")
    return open(path, "rb")


def _read(path):
    with _open(path) as file:
        metadata, table, hashes = _header(file)
        tensors = {}
        for name, entry in table.items():  # in the order of the file
            x = np.empty(math.prod(entry["shape"]), DTYPES[entry["dtype"]])
            if file.readinto(x.view(np.uint8)) != x.nbytes:
                raise ValueError("the file shrank while it was read")
            if hashes and hashlib.sha256(x).hexdigest() != hashes[name]:
                raise ValueError(f"tensor {name!r:.100} is damaged, its sha256 differs")
            if not hashes and not np.isfinite(x).all():
                raise ValueError(f"tensor {name!r:.100} holds a NaN or an infinity")
            tensors[name] = x.reshape(entry["shape"])
    return tensors, metadata


def _header(file):
    """(metadata, {name: entry} in the order of the file, {name: sha256} or None); ValueError if it is off."""
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if length > min(size - 8, HEADER_CAP):
        raise ValueError(f"not safetensors, or cut short: a header of {length} bytes in a file of {size}")
    text = file.read(length)
    if not text.startswith(b"{"):
        raise ValueError("not safetensors: the header does not start with {")
    table = json.loads(text.decode(), object_pairs_hook=once)
    metadata = table.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise ValueError("__metadata__ is not a table of strings")
    for name, entry in table.items():
        match entry:
            case {"dtype": str(code), "shape": list(shape), "data_offsets": [begin, end], **rest}:
                sane = not rest and code in DTYPES and len(shape) <= 32  # NumPy's own limit is 64
                sane = sane and all(type(n) is int and 0 <= n < 2**63 for n in (*shape, begin, end))
            case _:
                sane = False
        if not sane:
            raise ValueError(f"tensor {name!r:.100} cannot be {entry!r:.200}")
    table = dict(sorted(table.items(), key=lambda item: item[1]["data_offsets"]))
    position = 0
    for name, entry in table.items():
        begin, end = entry["data_offsets"]
        nbytes = DTYPES[entry["dtype"]].itemsize * math.prod(entry["shape"])
        if begin != position or end != begin + nbytes:
            raise ValueError(f"tensor {name!r:.100} is at {begin}:{end}, not {position}:{position + nbytes}")
        position = end
    if 8 + length + position != size:
        raise ValueError(f"cut short or grown: {size} bytes, but the header says {8 + length + position}")
    return metadata, table, _hashes(metadata, table)


def _hashes(metadata, table):
    """The tensors' hashes, or None for another program's file; takes our two keys out of `metadata`."""
    if metadata.get("format") != FORMAT and "sha256" not in metadata:
        return None
    hashes = json.loads(metadata.pop("sha256", "{}"), object_pairs_hook=once)
    if not isinstance(hashes, dict) or hashes.keys() != {"__metadata__", *table}:
        raise ValueError("the header is damaged: its sha256 do not name the tensors")
    if hashes["__metadata__"] != _hash_of_header(metadata, table):
        raise ValueError("the header is damaged: its sha256 differs")
    metadata.pop("format", None)
    return hashes
