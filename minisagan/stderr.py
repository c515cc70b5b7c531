"""What is told on stderr while somebody waits."""

import os
import sys


def progress(what, done, total):
    """A line on stderr, written over and over until it is done; nothing where stderr is no terminal."""
    if sys.stderr.isatty():
        end, share = "\n" if done == total else "\r", f" {100 * done // total:3d} %"
        print(what[: max(0, columns() - len(share))] + share, end=end, file=sys.stderr, flush=True)


def columns():
    """The length of a line that does not wrap on stderr's terminal, and can be written over; any, if it is none."""
    try:
        return os.get_terminal_size(sys.stderr.fileno()).columns - 1
    except (OSError, ValueError):  # ValueError: a stderr without a file
        return sys.maxsize
