"""Files and folders that are there whole, or not at all."""

import os
import shutil
from contextlib import contextmanager, suppress
from pathlib import Path

from minisagan.errors import Fault


@contextmanager
def replacing(path):
    """Yields another path to write a file or a folder to, which at the end takes the place of `path` at one stroke.

    A fault or a kill leaves what was there before. Fault if it can't be written. What a power cut takes can be made
    again: only checkpoints wait for the disk (run/checkpoint.py).
    """
    temp = Path(f"{path}.tmp")
    try:
        yield temp
        os.replace(temp, path)
    except OSError as error:
        raise Fault(f"{path}: not written: {error.strerror or error}") from error
    finally:
        with suppress(OSError):  # after the replace there is none
            shutil.rmtree(temp) if temp.is_dir() else temp.unlink()
