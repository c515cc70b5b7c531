"""A folder of images: one folder a class, or images right in it, which are one class, "all", or have a list of labels.

What lies there is scan.py's matter, what becomes of a picture decode.py's. Nothing is left out in silence: what is no
image is named, and what is damaged is refused, unless the reader was told to go on without it.
"""

import hashlib
import json
import os
from contextlib import suppress

import numpy as np

from minisagan.data import labels, pixels
from minisagan.data.decode import NO_IMAGE
from minisagan.data.scan import scan
from minisagan.errors import DataError
from minisagan.stderr import note

EXTENSIONS = (".avif", ".bmp", ".gif", ".jfif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
HEIF = (".heic", ".heif", ".hif")
NAMED = 5  # files on the screen; if there are more, all stand in a file


def load(root, size, where, how):
    """(images (N, size, size, C) uint8, labels (N,) int64, classes, hashes, names of the damaged files left out).

    DataError names bad files.
    """
    cache, shape = where and where / "folder-cache", (size, size, how.channels or 3)
    try:
        found = scan(root, skip=(cache, where / "classifiers") if where else ())
        listed = labels.read(how.labels, found.root, found.files) if how.labels else None
        files = [file for file in found.files if listed is None or file in listed]
        key = pixels.key(found.root, files, shape, how.fit)
    except OSError as error:
        raise DataError(f"{root}: cannot be read ({error})") from error
    good = lambda left: len(left) < len(files) and (how.skip_unreadable or not _damaged(files, left))
    images, left, sha256 = pixels.load(cache, key, found.root, files, shape, how.fit, good)

    bad = _damaged(files, left)
    no_images = [files[k] for k in left if files[k] not in bad]
    for file in found.broken:
        if file.lower().endswith(EXTENSIONS):
            bad[file] = "a link to nowhere"
        else:
            found.passed.append(f"{file} (a link to nowhere)")
    kept = [file for k, file in enumerate(files) if k not in left]
    unlisted = [file for file in found.files if listed is not None and file not in listed]
    unlisted = [file for file in unlisted if not os.path.samefile(found.root / file, how.labels)]  # the list itself
    _refuse(root, how, kept, bad, no_images, unlisted, cache and cache / f"{key}-unreadable.txt")
    tops = [_class(file) for file in kept] if listed is None else [listed[file] for file in kept]
    if None in tops and any(tops):
        raise DataError(f"{root}: images both in it and in its folders; move the ones or the others away")
    classes = sorted({top or "all" for top in tops}, key=labels.natural)
    numbers = {name: k for k, name in enumerate(classes)}
    empty = {_class(file) for file in [*bad, *no_images]}
    empty |= {path.split(os.sep)[0] for path in found.folders} if listed is None and any(tops) else set()
    _say(root, found, bad, no_images, unlisted, empty - {None, *classes})
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
    if path and len(bad) > NAMED:
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
        lines.append(f"no image in class {_some(sorted(empty))}")
    if unlisted:
        lines.append(f"{_files(unlisted)} without a label, left out: {_some(unlisted)}")
    if found.passed:
        lines.append(f"passed over: {_some(sorted(found.passed))}")
    for line in lines:
        note(f"{root}: {line}")


def _no_images(files):
    plugin = any(file.lower().endswith(HEIF) for file in files)
    what = "is no image" if len(files) == 1 else "are no images"
    return f"{_files(files)} {what} that can be read: {_some(files)}" + ("; pip install pillow-heif" if plugin else "")


def _files(files):
    return f"{len(files)} file{'s' * (len(files) != 1)}"


def _some(files):
    return ", ".join(list(files)[:NAMED]) + (f" and {len(files) - NAMED} more" if len(files) > NAMED else "")


def _damaged(files, left):
    """{file: why} of the images that cannot be read; what neither is an image nor is called one is not among them."""
    named = ((files[k], why) for k, why in left.items())
    return {file: why for file, why in named if why != NO_IMAGE or file.lower().endswith(EXTENSIONS)}
