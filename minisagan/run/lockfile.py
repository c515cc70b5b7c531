"""One process in a run folder at a time.

The lock is flock(2) on FOLDER/lock, not the file itself: the kernel lets go of it when the process dies,
however it dies, so no lock is ever stale. The file stays, because deleting it would let two processes lock
two files of one name; it holds the owner's pid, for the message to the second.
"""

import contextlib
import os
from pathlib import Path

from minisagan.errors import Fault
from minisagan.files import lock


@contextlib.contextmanager
def locked(folder):
    """Holds the folder's lock inside of `with`; Fault, with the owner's pid, if another process holds it."""
    path = Path(folder) / "lock"
    with contextlib.ExitStack() as stack:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            stack.callback(os.close, fd)
            if not lock(fd):
                owner = os.read(fd, 20).decode("ascii", "replace").strip() or "unknown"
                raise Fault(f"{folder}: in use by process {owner}; wait, or choose another folder")
            os.ftruncate(fd, 0)
            os.write(fd, b"%d\n" % os.getpid())
        except OSError as error:
            raise Fault(f"{path}: cannot lock this run folder: {error.strerror}") from error
        yield
