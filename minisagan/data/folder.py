"""A folder of images: one folder a class, or images right in it, which are one class, "all", or have a list of labels.

What lies there is scan.py's matter, what becomes of a picture decode.py's. Nothing is left out in silence: what is no
image is named, and what is damaged is refused, unless the reader was told to go on without it.

Pictures are decoded once. The pixels go into a file that later runs map into memory,

    <data folder>/folder-cache/<key>-<sha256>.npy

where the key stands for the list of files (path, size, time of change) and for how they are read, and the sha256 for
what was in them. Behind the pixels it names the files that gave none. Old ones can be deleted at any time. If the file
cannot be written, a note says so and the images stay in memory. A decoding that is interrupted goes on where it was.
"""

import hashlib
import json
import math
import os
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from io import BytesIO, StringIO

import numpy as np

from minisagan.data import labels, parts
from minisagan.data.decode import NO_IMAGE, decode
from minisagan.data.download import progress
from minisagan.data.scan import natural, scan
from minisagan.errors import DataError, UsageError

EXTENSIONS = (".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
HEIF = (".heic", ".heif", ".hif")
RECIPE = 2  # raise it when the same files give other pixels: old caches are then left alone
CHUNK = 256  # images decoded between two lines of progress
NAMED = 5  # files on the screen; if there are more, all stand in a file


@dataclass(frozen=True)
class Reading:
    """How a folder of images is read.

    fit              "crop" to the middle square, or "pad" with black to a square
    channels         3 (RGB), 1 (grey), or None for what is usual: 3 in a folder of images
    labels           a CSV or JSON file with the classes, or None: folders are classes
    skip_unreadable  go on without damaged images
    strict           refuse a folder that holds anything else than images
    """

    fit: str = "crop"
    channels: int | None = None
    labels: str | None = None
    skip_unreadable: bool = False
    strict: bool = False

    def __post_init__(self):
        if self.fit not in ("crop", "pad"):
            raise UsageError(f"fit must be crop or pad, not {self.fit!r}")
        if self.strict and self.skip_unreadable:
            raise UsageError("--strict refuses what --skip-unreadable leaves out: choose one of them")


def load(root, size, where, how=Reading()):  # noqa: B008
    """(images (N, size, size, C) uint8, labels (N,) int64, classes, hashes, names of the damaged files left out).

    DataError names bad files.
    """
    cache, shape = where / "folder-cache", (size, size, how.channels or 3)
    try:
        found = scan(root, skip=(cache, where / "classifiers"))
        listed = labels.read(how.labels, found.root, found.files) if how.labels else None
        files = [file for file in found.files if listed is None or file in listed]
        key = _key(found.root, files, shape, how)
    except OSError as error:
        raise DataError(f"{root}: cannot be read ({error})") from error
    images, left, sha256 = _cached(cache, key, shape) or _decoded(found.root, files, shape, how, cache, key)

    bad = _damaged(files, left)
    no_images = [files[k] for k in left if files[k] not in bad]
    for file in found.broken:
        if file.lower().endswith(EXTENSIONS):
            bad[file] = "a link to nowhere"
        else:
            found.passed.append(f"{file} (a link to nowhere)")
    kept = [file for k, file in enumerate(files) if k not in left]
    unlisted = [file for file in found.files if listed is not None and file not in listed]
    _refuse(root, how, kept, bad, no_images, unlisted, cache / f"{key}-unreadable.txt")
    tops = [_class(file) for file in kept] if listed is None else [listed[file] for file in kept]
    if None in tops and any(tops):
        raise DataError(f"{root}: images both in it and in its folders; move the ones or the others away")
    classes = sorted({top or "all" for top in tops}, key=natural)
    numbers = {name: k for k, name in enumerate(classes)}
    _say(root, found, bad, no_images, unlisted, {_class(file) for file in [*bad, *no_images]} - {None, *classes})
    hashes = {"images": sha256}
    if how.labels:
        hashes["labels"] = hashlib.sha256(json.dumps([listed[file] for file in kept]).encode()).hexdigest()
    return images, np.array([numbers[top or "all"] for top in tops], np.int64), tuple(classes), hashes, tuple(bad)


def _class(file):
    return file.split(os.sep)[0] if os.sep in file else None


def _refuse(root, how, kept, bad, no_images, unlisted, listing):
    """DataError if there are damaged images, files that are none but should be, or no images at all."""
    if bad and not how.skip_unreadable:
        shown = _some([f"{file} ({why})" for file, why in bad.items()])
        raise DataError(
            f"{root}: {len(bad)} of {len(bad) + len(kept)} images cannot be read: {shown}; repair them, take them "
            f"away, or leave them out by --skip-unreadable{_listed(bad, listing)}"
        )
    if not kept:
        seen = f"; {_no_images(no_images)}" if no_images else ""
        raise DataError(f"{root}: no images in it or in its folders{seen}")
    if how.strict and (others := [*bad, *no_images, *unlisted]):
        raise DataError(f"{root}: {_files(others)} would be left out, which --strict forbids: {_some(others)}")


def _listed(bad, path):
    """Where all of them are named, if they are many."""
    if len(bad) > NAMED:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(b"".join(os.fsencode(f"{file}\t{why}\n") for file, why in bad.items()))
            return f"; all are named in {path}"
    return ""


def _say(root, found, bad, no_images, unlisted, empty):
    """What was not taken, a line for each kind."""
    lines = []
    if found.splits:
        taken, others = found.splits
        lines.append(f"{taken} is its training split" + (f"; not trained on: {', '.join(others)}" if others else ""))
    if bad:
        lines.append(f"{_files(bad)} cannot be read, skipped: {_some(bad)}")
    if no_images:
        lines.append(_no_images(no_images))
    if empty:
        lines.append(f"no image is left of class {_some(sorted(empty))}")
    if unlisted:
        lines.append(f"{_files(unlisted)} without a label, left out: {_some(unlisted)}")
    if found.passed:
        lines.append(f"passed over: {_some(sorted(found.passed))}")
    for line in lines:
        print(f"note: {root}: {line}".encode(errors="backslashreplace").decode(), file=sys.stderr)


def _no_images(files):
    plugin = any(file.lower().endswith(HEIF) for file in files)
    what = "is no image" if len(files) == 1 else "are no images"
    return f"{_files(files)} {what} that can be read: {_some(files)}" + ("; pip install pillow-heif" if plugin else "")


def _files(files):
    return f"{len(files)} file{'s' * (len(files) != 1)}"


def _some(files):
    return ", ".join(list(files)[:NAMED]) + (f" and {len(files) - NAMED} more" if len(files) > NAMED else "")


def _key(root, files, shape, how):
    digest = hashlib.sha256(f"{RECIPE} {shape} {how.fit} ".encode() + os.fsencode(root.resolve()))
    for file in files:
        stat = os.stat(root / file)
        digest.update(b"\0" + os.fsencode(file) + f"\0{stat.st_size} {stat.st_mtime_ns}".encode())
    return digest.hexdigest()[:16]


def _cached(cache, key, shape):
    """(images, {number of a file that gave none: why}, sha256) from the cache; None if it has none intact."""
    for path in cache.glob(f"{key}-*.npy"):
        with suppress(OSError, ValueError, EOFError):  # if it is damaged: decode again
            images = np.load(path, mmap_mode="r")
            with open(path, "rb") as file:
                file.seek(images.offset + images.nbytes)
                left = {int(k): why for k, why in json.loads(file.read()).items()}
            if images.shape[1:] == shape:
                return images, left, path.stem.removeprefix(f"{key}-")
    return None


def _decoded(root, files, shape, how, cache, key):
    """The same by decoding: into the cache if that can be written, else into memory. To be refused: images are None."""
    path, owner = cache / f"{key}.part", os.fsencode(root.resolve()).hex()
    journal = path.with_suffix(".journal")
    wait = lambda: print(f"note: another process is reading {root}: waiting for it", file=sys.stderr)
    try:
        cache.mkdir(parents=True, exist_ok=True)
        parts.sweep(cache, owner, path)
        with parts.claim(path, wait) as file:
            try:
                found = _cached(cache, key, shape)  # another process was faster
                if not found:
                    with open(journal, "a+", encoding="utf-8") as notes:
                        left, sha256 = _decode_all(root, files, shape, how, file, notes, owner)
                    found = None, left, sha256
                    if len(left) < len(files) and (how.skip_unreadable or not _damaged(files, left)):
                        file.flush()
                        os.fsync(file.fileno())
                        os.replace(path, cache / f"{key}-{sha256}.npy")
                        found = _cached(cache, key, shape)
            except (KeyboardInterrupt, SystemExit):
                raise  # what is decoded stays: the next run goes on from there
            except BaseException:
                _remove(path, journal)
                raise
            _remove(path, journal)
        return found
    except OSError as error:
        print(f"note: no cache in {cache} ({error}): the images stay in memory", file=sys.stderr)
        memory = BytesIO()
        left, sha256 = _decode_all(root, files, shape, how, memory, StringIO(), owner)
        count, start = len(files) - len(left), len(_header(0, shape))
        images = np.frombuffer(memory.getbuffer(), np.uint8, count * math.prod(shape), start)
        return images.reshape(count, *shape), left, sha256


def _remove(*paths):
    for path in paths:
        path.unlink(missing_ok=True)


def _damaged(files, left):
    """{file: why} of the images that cannot be read; what neither is an image nor is called one is not among them."""
    return {
        files[k]: why for k, why in left.items() if why != NO_IMAGE or files[k].lower().endswith(EXTENSIONS)
    }  # fmt: skip


def _header(count, shape):
    """The first bytes of an .npy file: as many, whatever the count."""
    header = BytesIO()
    about = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(header, about)
    return header.getvalue()


def _decode_all(root, files, shape, how, file, journal, owner):
    """Write into `file` what `_cached` reads, in order; ({number of a file that gave none: why}, sha256).

    The sha256 is of the names and the contents of the files that gave pixels. What `journal` says is done, is not done
    again: a line for each CHUNK of files, of each its sha256 or why it gave no pixels; it never runs ahead of `file`.
    """
    results, start, each = _resume(journal, owner), len(_header(0, shape)), math.prod(shape)
    file.seek(0, os.SEEK_END)
    done = sum(isinstance(result, str) for result in results)
    if file.tell() < start + done * each:
        results, done = [], 0
        _begin(journal, owner, [])
    file.truncate(start + done * each)
    file.seek(start + done * each)
    with ThreadPoolExecutor(os.cpu_count()) as pool:
        for first in range(len(results), len(files), CHUNK):
            chunk = files[first : first + CHUNK]
            fresh = []
            for pixels, found in pool.map(lambda name: decode(root / name, shape[0], how.fit, shape[2]), chunk):
                if pixels is not None:
                    file.write(pixels)
                fresh.append([found] if pixels is None else found.hex())
            file.flush()
            journal.write(json.dumps(fresh) + "\n")
            journal.flush()
            results += fresh
            progress(f"reading {root}", len(results), len(files))
    digest, left = hashlib.sha256(), {}
    for k, (name, result) in enumerate(zip(files, results, strict=True)):
        if isinstance(result, str):
            digest.update(os.fsencode(name) + b"\0" + bytes.fromhex(result))
        else:
            left[k] = result[0]
    file.write(json.dumps(left).encode())
    file.seek(0)
    file.write(_header(len(files) - len(left), shape))
    return left, digest.hexdigest()


def _resume(journal, owner):
    """What the journal says of the files, up to a line that is torn; the journal is ready to be written on."""
    journal.seek(0)
    results, lines = [], journal.read().split("\n")
    good = []
    if lines[0] == owner:
        with suppress(ValueError):
            for line in lines[1:-1]:
                results += json.loads(line)
                good.append(line)
    _begin(journal, owner, good)
    return results


def _begin(journal, owner, lines):
    journal.seek(0)
    journal.truncate()
    journal.write("\n".join([owner, *lines, ""]))
    journal.flush()
