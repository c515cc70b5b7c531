"""What is told on stderr beside a command's results."""

import os
import re
import sys


def note(text):
    """A line "note: ..." on stderr. Names of files and classes in it may hold anything: it stays one line, and text."""
    line = visible(f"note: {text}")
    print(line.encode(errors="backslashreplace").decode(), file=sys.stderr)


def visible(text):
    """The text with a name for each character that a terminal would act on: \\n, \\x1b."""
    return re.sub(r"[\x00-\x1f\x7f]", lambda match: repr(match[0])[1:-1], text)


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
