"""What several commands let one choose: classes by name or number, points by coordinates, files by their suffix."""

import os
import re
import tempfile
import unicodedata
from pathlib import Path

import click

from minisagan.errors import Fault, UsageError

COUNT = click.IntRange(1, 10**9)  # of images and the like: beyond lie NumPy's own limits, and its messages

classes_option = click.option(
    "--classes",
    metavar="A,B,...|all",
    show_default="all",
    help="Which classes: names, or numbers from 0. A number that is also a name means the name.",
)


def classes(text, names, known):
    """The numbers of the classes that --classes names, or None for a generator without classes (`known` = 0)."""
    if not known:
        if text:
            raise UsageError("--classes: this generator was trained without classes")
        return None
    if text in (None, "all"):
        return list(range(known))
    chosen = []
    composed = [unicodedata.normalize("NFC", name) for name in names]  # macOS writes the names of files decomposed
    whole = unicodedata.normalize("NFC", text.strip())
    for name in [whole] if whole in composed else whole.split(","):  # one class may have a comma in its name
        name = name.strip()
        if name in composed:
            chosen.append(composed.index(name))
        elif name.isdecimal() and len(name) < 10 and int(name) < known:
            chosen.append(int(name))
        else:
            shown = ", ".join(names[:20]) + (", ..." if known > 20 else "")
            raise UsageError(f"--classes: there is no class {name!r}; there are {shown}, or 0 to {known - 1}")
    return list(dict.fromkeys(chosen))


def points(texts, size):
    """[(y, x)] from texts "Y,X", in pixels of images of size x size, counted from 0 at the upper left."""
    found = []
    for text in texts:
        if not (match := re.fullmatch(r"\s*(\d{1,9})\s*,\s*(\d{1,9})\s*", text)):
            raise UsageError(f"--point {text}: not Y,X, two numbers of pixels from the upper left corner")
        y, x = int(match[1]), int(match[2])
        if max(y, x) >= size:
            raise UsageError(f"--point {text}: outside of the images, whose pixels are 0,0 to {size - 1},{size - 1}")
        found.append((y, x))
    return found


def check_suffix(flag, file, *suffixes):
    """UsageError if the name of a file to write has none of the suffixes, Fault if its place refuses; its suffix."""
    suffix = Path(file).suffix
    if suffix not in suffixes:
        raise UsageError(f"{flag} {file}: the name of this file has to end in {' or '.join(suffixes)}")
    if Path(file).is_dir():
        raise Fault(f"{file}: not written: it is a folder")
    check_place(file)
    return suffix


def check_place(path):
    """Fault if nothing can be written to `path`: better now than after the work."""
    try:
        with tempfile.TemporaryFile(dir=os.path.dirname(os.path.abspath(path))):
            pass
    except OSError as error:
        raise Fault(f"{path}: not written: {error.strerror}") from error
