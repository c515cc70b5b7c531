"""What is told on stderr while somebody waits."""

import sys


def progress(what, done, total):
    """A line on stderr, written over and over until it is done; nothing where stderr is no terminal."""
    if sys.stderr.isatty():
        end = "\n" if done == total else "\r"
        print(f"{what} {100 * done // total:3d} %", end=end, file=sys.stderr, flush=True)
