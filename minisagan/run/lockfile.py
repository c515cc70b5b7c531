"""One process in a run folder at a time.

The lock is flock(2) on FOLDER/lock, not the file itself: the kernel lets go of it when the process dies,
however it dies, so no lock is ever stale. The file stays, because deleting it would let two processes lock
two files of one name; it holds the owner's pid, for the message to the second.
"""

import contextlib
import errno
import os
from pathlib import Path

from minisagan.errors import Fault

try:
    import fcntl
except ImportError:  # Windows: no lock
    fcntl = None


@contextlib.contextmanager
def locked(folder):
    """Holds the folder's lock inside of `with`; Fault, with the owner's pid, if another process holds it."""
    path = Path(folder) / "lock"
    with contextlib.ExitStack() as stack:
        try:
            fd = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
            stack.callback(os.close, fd)
            _flock(fd)
            os.ftruncate(fd, 0)
            os.write(fd, b"%d\n" % os.getpid())
        except BlockingIOError as error:
            owner = os.read(fd, 20).decode("ascii", "replace").strip() or "unknown"
            raise Fault(f"{folder}: in use by process {owner}; wait, or choose another folder") from error
        except OSError as error:
            raise Fault(f"{path}: cannot lock this run folder: {error.strerror}") from error
        yield


def _flock(fd):
    if fcntl:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            if error.errno not in (errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP):  # file systems without locks
                raise
