"""What can go wrong for a user: one line that says what happened, where, and what to do; and an exit code.

The command line prints the line and exits with the code; a traceback comes only with ``--debug``.
"""


class Fault(Exception):
    """What the user is told in one line; by itself neither their call nor the data: a full disk, a busy run folder."""

    exit_code = 1


class UsageError(Fault):
    """An option, a shape or a combination that cannot be: nothing was started."""

    exit_code = 2


class DataError(Fault):
    """A file is missing, damaged or not what it should be: an image, an IDX file, a checkpoint."""

    exit_code = 3


class Diverged(Fault):
    """Training met a NaN or an infinity and stopped; the last good checkpoint is untouched."""

    exit_code = 4


class Collapsed(Fault):
    """The generator draws nearly one image, and the training was asked to stop then; all that it made is kept."""

    exit_code = 6
