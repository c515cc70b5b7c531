"""Classes from a list beside the images: a CSV or a JSON file that names each image and its class.

    cats/1.png,cat                          CSV: the first two columns, or those that a header calls file and label
    {"cats/1.png": "cat"}                   JSON, in one of three forms
    [{"file": "cats/1.png", "label": 0}]
    {"labels": [["cats/1.png", 0]]}         as StyleGAN's dataset.json has it

An image is named by its path in the folder, or by its file name, with or without the ending, where that is unique.
"""

import csv
import json
import os
from collections import Counter
from pathlib import Path

from minisagan.errors import DataError, UsageError

FILE = ("file", "filename", "file_name", "image", "image_id", "path", "name", "id")
LABEL = ("label", "labels", "class", "category", "target", "breed")


def read(path, root, files):
    """{file: class} of those of `files`, paths in `root`, that the list at `path` names; DataError for any other."""
    try:
        text = Path(path).read_text(encoding="utf-8-sig")
    except OSError as error:
        raise UsageError(f"--labels {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: no text in UTF-8 ({error.reason})") from error
    try:
        rows = _json(json.loads(text)) if str(path).lower().endswith(".json") else _csv(text)
        rows = [(os.path.normpath(str(name).strip()), str(label).strip()) for name, label in rows]
    except (ValueError, TypeError, KeyError, IndexError, StopIteration, csv.Error) as error:
        raise DataError(f"{path}: not a list of files and labels ({error})") from error
    known = {}
    for name_of in (lambda file: os.path.splitext(os.path.basename(file))[0], os.path.basename, str):
        names = [name_of(file) for file in files]
        times = Counter(names)
        known |= {name: file for name, file in zip(names, files, strict=True) if times[name] == 1}
    absent = [name for name, _ in rows if name not in known]
    if absent:
        more = ", ..." if len(absent) > 5 else ""
        raise DataError(f"{path}: {len(absent)} of {len(rows)} files not in {root}: {', '.join(absent[:5])}{more}")
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
    head, *rest = [row for row in csv.reader(text.splitlines(), delimiter=delimiter) if row]
    named = [cell.strip().lower() for cell in head]
    file, label = ([k for k, cell in enumerate(named) if cell in names] for names in (FILE, LABEL))
    if file and label:
        return [(row[file[0]], row[label[0]]) for row in rest]
    return [(row[0], row[1]) for row in [head, *rest]]
