"""Files and folders that are there whole, or not at all; locks; JSON that says each thing once."""

import errno
import os
import shutil
import tempfile
from contextlib import contextmanager
from pathlib import Path

from minisagan.errors import Fault

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None

UNFINISHED = ".minisagan-", ".tmp"  # how the names of folders begin and end that a kill may leave


def lock(file, wait=False):
    """Whether flock(2)'s lock on an open file could be had: not if another process has it, unless we `wait` for that.

    The kernel lets go of it when a process dies. Where the system, or this file system, has no locks, it could be had.
    """
    try:
        if fcntl:
            fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP):
            raise
    return True


def once(pairs):
    """For json.loads: the dict of these pairs. ValueError if a name stands there twice, of which it keeps the last."""
    if len(table := dict(pairs)) < len(pairs):
        raise ValueError("a name stands twice in it")
    return table


@contextmanager
def replacing(path):
    """Yields another path to write a file or a folder to, which at the end takes the place of `path` at one stroke.

    It is the same name in a folder of its own beside `path`, which two programs that write one file do not share. A
    fault or a kill leaves what was there before. Fault if it can't be written. What a power cut takes can be made
    again: only checkpoints wait for the disk (run/checkpoint.py).
    """
    path, folder = Path(path), None
    try:
        begin, end = UNFINISHED
        folder = Path(tempfile.mkdtemp(end, begin, path.parent))
        yield folder / path.name
        os.replace(folder / path.name, path)
    except OSError as error:
        raise Fault(f"{path}: not written: {error.strerror or error}") from error
    finally:
        if folder:
            shutil.rmtree(folder, ignore_errors=True)
