"""The pixels of many pictures: decoded once, on all cores, into a file that is mapped into memory from then on.

    <data folder>/folder-cache/<key>-<sha256>.npy

The key stands for the list of files (path, size, time of change) and for how they are read, the sha256 for what was in
those that gave pixels. Behind the pixels stand the numbers of the files that gave none, and why. Such files can be
deleted at any time. If one cannot be written, a note says so and the pixels stay in memory. A decoding that is
interrupted goes on where it was.
"""

import hashlib
import json
import math
import os
from contextlib import closing, suppress
from io import BytesIO, StringIO

import numpy as np

from minisagan.data import parts
from minisagan.data.decode import FORMATS
from minisagan.data.pool import KILLED, decoded
from minisagan.stderr import note, progress

RECIPE = 2  # raise it when the same files give other pixels: old caches are then left alone
CHUNK = 256  # images between two lines of the journal
PASSING = ("[Errno ", KILLED)  # how reasons begin that have nothing to do with what is in the file


def load(cache, name, root, files, shape, fit, good):
    """(images (N, *shape) uint8, {number of a file that gave none: why}, sha256) of the `files` in `root`.

    From the folder `cache` (None: there is none), where `name` is their `key`, or by decoding. If those without pixels
    are not `good`, images are None, and nothing is kept: they are to be refused.
    """
    return (cache and _current(cache, name, shape)) or _decoded(cache, name, root, files, shape, fit, good)


def key(root, files, shape, fit):
    """Sixteen digits for the files as they are now, and how they are read; OSError for one that is gone."""
    digest = hashlib.sha256(f"{RECIPE} {shape} {fit} {FORMATS} ".encode() + os.fsencode(root.resolve()))
    folder = os.path.join(root, "")
    for file in files:
        stat = os.stat(folder + file)
        digest.update(f"\0{file}\0{stat.st_size} {stat.st_mtime_ns}".encode(errors="surrogateescape"))
    return digest.hexdigest()[:16]


def _current(cache, name, shape):
    """The same as `_cached`, but None if a file gave no pixels for a reason that may have passed."""
    found = _cached(cache, name, shape)
    return None if found and any(why.startswith(PASSING) for why in found[1].values()) else found


def _cached(cache, name, shape):
    """What `load` gives, from the cache; None if it has none intact."""
    for path in cache.glob(f"{name}-*.npy"):
        with suppress(Exception):  # NumPy's reader raises whatever it likes. If it is damaged: decode again
            images = np.load(path, mmap_mode="r")
            with open(path, "rb") as file:
                file.seek(images.offset + images.nbytes)
                left = {int(k): why for k, why in json.loads(file.read()).items()}
            if images.shape[1:] == shape:
                return images, left, path.stem.removeprefix(f"{name}-")
    return None


def _decoded(cache, name, root, files, shape, fit, good):
    """What `load` gives, by decoding: into the cache if that can be written, else into memory."""
    owner = os.fsencode(root.resolve()).hex()
    wait = lambda: note(f"another process is reading {root}: waiting for it")
    try:
        if not cache:
            raise OSError("there is none; $MINISAGAN_DATA names another folder")
        path = cache / f"{name}.part"
        journal = path.with_suffix(".journal")
        cache.mkdir(parents=True, exist_ok=True)
        parts.sweep(cache, owner, path)
        with parts.claim(path, wait) as file:
            try:
                found = _current(cache, name, shape)  # another process was faster
                if not found:
                    with open(journal, "a+", encoding="utf-8") as notes:
                        left, sha256 = _decode_all(root, files, shape, fit, file, notes, owner)
                    found = None, left, sha256
                    if good(left):
                        file.flush()
                        os.fsync(file.fileno())
                        _close_on_windows(file)
                        for old in cache.glob(f"{name}-*.npy"):  # of files that could not be opened then
                            old.unlink()
                        os.replace(path, cache / f"{name}-{sha256}.npy")
                        found = _cached(cache, name, shape)
            except (KeyboardInterrupt, SystemExit):
                raise  # what is decoded stays: the next run goes on from there
            except BaseException:
                _remove(file, path, journal)
                raise
            _remove(file, path, journal)
        return found
    except OSError as error:
        note(f"no cache in {cache or 'the home folder'} ({error}): the images stay in memory")
        memory = BytesIO()
        left, sha256 = _decode_all(root, files, shape, fit, memory, StringIO(), owner)
        count, start = len(files) - len(left), len(_header(0, shape))
        images = np.frombuffer(memory.getbuffer(), np.uint8, count * math.prod(shape), start)
        return images.reshape(count, *shape), left, sha256


def _close_on_windows(file):
    """There no open file can be renamed or deleted; elsewhere it stays open, because it has the lock."""
    if os.name == "nt":
        file.close()


def _remove(file, *paths):
    _close_on_windows(file)
    for path in paths:
        path.unlink(missing_ok=True)


def _header(count, shape):
    """The first bytes of an .npy file: as many, whatever the count."""
    header = BytesIO()
    about = {"descr": "|u1", "fortran_order": False, "shape": (count, *shape)}
    np.lib.format.write_array_header_1_0(header, about)
    return header.getvalue()


def _decode_all(root, files, shape, fit, file, journal, owner):
    """Write into `file` what `_cached` reads, in order; ({number of a file that gave none: why}, sha256).

    The sha256 is of the names and the contents of the files that gave pixels. What `journal` says is done, is not done
    again: a line for each CHUNK of files, of each its sha256 or why it gave no pixels; it never runs ahead of `file`.
    """
    start, each = len(_header(0, shape)), math.prod(shape)
    digest, left, done = hashlib.sha256(), {}, 0

    def take(results):
        nonlocal done
        for result in results:
            if isinstance(result, str):
                digest.update(os.fsencode(files[done]) + b"\0" + bytes.fromhex(result))
            else:
                left[done] = result[0]
            done += 1

    file.seek(0, os.SEEK_END)
    take(_resume(journal, owner, (file.tell() - start) // each))
    end = start + (done - len(left)) * each
    file.truncate(end)
    file.seek(end)
    fresh = []
    with closing(decoded([os.path.join(root, name) for name in files[done:]], shape[0], fit, shape[2])) as results:
        for pixels, found in results:
            if pixels is not None:
                file.write(pixels)
            fresh.append([found] if pixels is None else found.hex())
            if len(fresh) == CHUNK or done + len(fresh) == len(files):
                file.flush()
                journal.write(json.dumps(fresh) + "\n")
                journal.flush()
                take(fresh)
                fresh.clear()
                progress(f"reading {root}", done, len(files))
    file.write(json.dumps(left).encode())
    file.seek(0)
    file.write(_header(len(files) - len(left), shape))
    return left, digest.hexdigest()


def _resume(journal, owner, most):
    """What the journal says of files done, up to a line that is torn; it is ready to be written on.

    Nothing if it says that more than `most` gave pixels.
    """
    journal.seek(0)
    head, *lines = journal.read().split("\n")
    results, good = [], []
    if head == owner:
        with suppress(ValueError):
            for line in lines[:-1]:
                results += json.loads(line)
                good.append(line)
    if sum(isinstance(result, str) for result in results) > most:
        results, good = [], []
    journal.seek(0)
    journal.truncate()
    journal.write("\n".join([owner, *good, ""]))
    journal.flush()
    return results
