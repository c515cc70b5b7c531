"""A file under way: one process writes it, and after a kill the next one goes on or takes it away.

PATH.part is locked by flock(2) while somebody writes it, so the kernel knows whether anybody does. PATH.journal
beside it says, line by line, what is in it; its first line, whom it is for.
"""

import os
import time
from contextlib import contextmanager, suppress

from minisagan.files import lock

DAY = 86400  # seconds: so long an interrupted file may wait for the one who goes on with it


@contextmanager
def claim(path, wait):
    """Opens `path` for reading and writing, made if need be, when no other process has it; calls `wait` if one has."""
    while True:
        with open(os.open(path, os.O_RDWR | os.O_CREAT, 0o666), "r+b") as file:
            if not lock(file):
                wait()
                lock(file, wait=True)
            if _is(path, file):  # else it has got its name, or is gone, since we opened it
                yield file
                return


def sweep(folder, owner, mine):
    """Delete the parts in `folder` that nobody writes: all of `owner` but `mine`, and others' after a day.

    And the journals that were left when their parts got their names.
    """
    for path in folder.glob("*.part"):
        journal = path.with_suffix(".journal")
        with suppress(OSError), open(path, "r+b") as file:
            old = time.time() - path.stat().st_mtime > DAY
            if path != mine and lock(file) and (old or owner_of(journal) == owner):
                path.unlink()
                journal.unlink(missing_ok=True)
    for journal in folder.glob("*.journal"):
        if not journal.with_suffix(".part").exists():
            journal.unlink(missing_ok=True)


def owner_of(journal):
    with suppress(OSError), open(journal, encoding="utf-8") as file:
        return file.readline().rstrip("\n")


def _is(path, file):
    with suppress(OSError):
        return os.path.samestat(os.stat(path), os.fstat(file.fileno()))
