"""Classes from a list beside the images: a CSV or a JSON file that names each image and its class.

    cats/1.png,cat                          CSV: the first two columns, or those that a header calls file and label
    {"cats/1.png": "cat"}                   JSON, in one of three forms
    [{"file": "cats/1.png", "label": 0}]
    {"labels": [["cats/1.png", 0]]}         as StyleGAN's dataset.json has it

An image is named by its path in the folder or from the list, or by its file name, with or without the ending, where
that is unique.
"""

import csv
import json
import os
import re
from collections import Counter
from io import StringIO
from pathlib import Path

from minisagan.errors import DataError, UsageError
from minisagan.files import once

FILE = ("file", "filename", "file_name", "image", "image_id", "path", "name", "id")
LABEL = ("label", "labels", "class", "category", "target", "breed")


def natural(text):
    """A key to sort by: the numbers in a text count as numbers, so 2 stands before 10."""
    return [int(part) if k % 2 else part for k, part in enumerate(re.split(r"([0-9]+)", text))], text


def read(path, root, files):
    """{file: class} of those of `files`, paths in `root`, that the list at `path` names; DataError for any other."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"--labels {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no text in UTF-8 ({error.reason})") from error
    try:
        rows = _json(json.loads(text, object_pairs_hook=once)) if str(path).lower().endswith(".json") else _csv(text)
        rows = [(os.path.normpath(_text(name)), _text(label)) for name, label in rows]
    except (ValueError, csv.Error) as error:
        raise DataError(f"{path}: not a list of files and labels ({error})") from error
    except (TypeError, AttributeError, KeyError, StopIteration, RecursionError) as error:
        raise DataError(f'{path}: not a list of files and labels, as {{"1.png": "cat", "2.png": "dog"}} is') from error
    if not rows:
        raise DataError(f"{path}: it names no file")
    known = {}
    for name_of in (lambda file: os.path.splitext(os.path.basename(file))[0], os.path.basename, str):
        names = [name_of(file) for file in files]
        times = Counter(names)
        known |= {name: file for name, file in zip(names, files, strict=True) if times[name] == 1}
    for name in {name for name, _ in rows} - known.keys():
        here, on_windows = os.path.join(os.path.dirname(path), name), name.replace("\\", "/")
        for other in (os.path.relpath(here, root), os.path.normpath(on_windows)):
            if other in known:
                known[name] = known[other]
    absent = [name for name, _ in rows if name not in known]
    if absent:
        some = ", ".join(absent[:5]) + (", ..." if len(absent) > 5 else "")
        head = "; a header has to name its columns file and label" if absent[0] == rows[0][0] else ""
        raise DataError(f"{path}: {len(absent)} of {len(rows)} files not in {root}: {some}{head}")
    listed = {}
    for name, label in rows:
        if not label or listed.setdefault(known[name], label) != label:
            raise DataError(f"{path}: {name} has {'two labels' if label else 'no label'}")
    return listed


def _json(table):
    if isinstance(table, dict):
        return table["labels"] if isinstance(table.get("labels"), list) else table.items()
    return [(_field(row, FILE), _field(row, LABEL)) for row in table]


def _field(row, names):
    return next(row[name] for name in names if name in row)


def _csv(text):
    delimiter = max(",;\t", key=text.partition("\n")[0].count)
    head, *rest = [row for row in csv.reader(StringIO(text, ""), delimiter=delimiter, strict=True) if row] or [[]]
    named = [cell.strip().lower() for cell in head]
    file, label = ([k for k, cell in enumerate(named) if cell in names] for names in (FILE, LABEL))
    rows, at = (rest, (file[0], label[0])) if file and label else ([head, *rest] if head else [], (0, 1))
    if short := [row for row in rows if len(row) <= max(at)]:
        raise ValueError(f"{len(short)} of {len(rows)} lines have no label: {delimiter.join(short[0])!r}")
    return [[row[k] for k in at] for row in rows]


def _text(value):
    if not isinstance(value, str | int | float | None):
        raise TypeError
    return "" if value is None else str(value).strip()
