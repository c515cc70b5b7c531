"""What lies in a folder: the files that may be images, and all that is passed over, by name.

Passed over are what other programs leave there (thumbnails, resource forks, hidden files), the folders of runs, and
links to what is there already: each file counts once, by what it resolves to. Of train/ and test/ side by side, the
first is taken, whatever else lies there.
"""

import os
from pathlib import Path

from minisagan.data.decode import is_image
from minisagan.errors import DataError

LITTER = {"@eadir", "__macosx", "thumbs.db", "desktop.ini", "lost+found", "#recycle", "$recycle.bin"}
TRAIN, OTHERS = ("train", "training"), ("val", "valid", "validation", "test", "testing")  # splits


def is_litter(name):
    """Whether a file or folder of this name is none of the images: hidden, or what other programs leave."""
    return name.startswith(".") or name.lower() in LITTER


def is_run(folder):
    """Whether this is the folder of a run: what it holds is no data."""
    return (Path(folder) / "config.json").is_file() and (Path(folder) / "checkpoints").is_dir()


def scan(root, skip=()):
    """The Scan of a folder, or of its train/; `skip`: paths of folders to pass over. DataError if it is no data."""
    if is_run(root):
        raise DataError(f"{root}: the folder of a run, not of images")
    found = Scan(root, skip)
    tops = dict.fromkeys(path.split(os.sep)[0] for path in found.files if os.sep in path)
    train = [top for top in tops if top.lower() in TRAIN]
    others = [top for top in tops if top.lower() in OTHERS]
    beside = [path for path in found.files if path.split(os.sep)[0] not in {*train, *others}]
    if not (train or others) or (not (train and others) and any(is_image(found.root / path) for path in beside)):
        return found  # a class may be called train, or test
    if len(train) != 1:
        has = " and ".join(train or others)
        raise DataError(f"{root}: it has {has}{'' if train else ', but no train'}; name the folder to take")
    inside = Scan(found.root / train[0], skip)
    inside.passed = [path for path in found.passed if path.split(os.sep)[0] != train[0]] + inside.passed
    inside.splits = train[0], [*others, *dict.fromkeys(path.split(os.sep)[0] for path in beside)]
    return inside


class Scan:
    """All files under `root`, as far as they may be images.

    root     the folder that is taken: the one asked for, or its train/
    files    paths relative to `root`, in the order of their names; in a folder files stand before folders
    folders  those that it went into, but for the root
    passed   what is passed over, for people to read
    broken   links to nowhere: paths relative to `root`
    splits   of splits, (the one taken, those left alone); or None
    """

    def __init__(self, root, skip=()):
        self.root, self.files, self.passed, self.broken, self.splits = Path(root), [], [], [], None
        self._skip, self._entered, self._links = {os.path.realpath(path) for path in skip}, set(), []
        self.folders = []
        self._linked = set()  # files elsewhere, that links led to
        self._top = os.path.realpath(root)
        self._walk("", self._top)
        while self._links:  # after all that is really here
            links, self._links = sorted(self._links), []
            for path in links:
                self._follow(path)
            self.files.sort(key=lambda path: [*((1, part) for part in path.split(os.sep)[:-1]), (0, path)])

    def _walk(self, path, real):
        """Takes what lies below the folder `real`, which is `path` in the root, in the order of names."""
        folders = [(path, real)]
        while folders:
            path, real = folders.pop()
            if not self._enters(path, real):
                continue
            path, files, inner = path and path + os.sep, [], []
            with os.scandir(real) as entries:
                for entry in entries:
                    name = entry.name
                    if is_litter(name):
                        self.passed.append(path + name)
                    elif entry.is_symlink():
                        self._links.append(path + name)
                    elif entry.is_dir():
                        inner.append(name)
                    elif entry.is_file():
                        files.append(name)
                    else:
                        self.passed.append(f"{path}{name} (not a file)")
            self.files += [path + name for name in sorted(files)]
            folders += [(path + name, os.path.join(real, name)) for name in sorted(inner, reverse=True)]

    def _enters(self, path, real):
        """Whether to go into this folder; if not, it is passed over."""
        if path and real in self._skip:
            self.passed.append(path)
        elif real in self._entered or self._top.startswith(os.path.join(real, "")):
            self.passed.append(f"{path} (a link to what is here already)")
        elif path and is_run(real):
            self.passed.append(f"{path} (a run)")
        else:
            self._entered.add(real)
            self.folders += [path] if path else []
            return True
        return False

    def _follow(self, path):
        real = os.path.realpath(self.root / path)
        folder, name = os.path.split(real)
        if not os.path.exists(real):
            self.broken.append(path)
        elif os.path.isdir(real):
            self._walk(path, real)
        elif not os.path.isfile(real):
            self.passed.append(f"{path} (not a file)")
        elif real in self._linked or (folder in self._entered and not is_litter(name)):
            self.passed.append(f"{path} (a link to what is here already)")
        else:
            self._linked.add(real)
            self.files.append(path)
