"""What is told on stderr while somebody waits."""

import shutil
import sys


def progress(what, done, total):
    """A line on stderr, written over and over until it is done; nothing where stderr is no terminal."""
    if sys.stderr.isatty():
        end, share = "\n" if done == total else "\r", f" {100 * done // total:3d} %"
        width = shutil.get_terminal_size().columns - len(share) - 1  # a line that wraps would not be written over
        print(what[: max(0, width)] + share, end=end, file=sys.stderr, flush=True)
