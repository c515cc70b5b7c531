"""Which side of a kink an op took: recorded at one point, replayed at the points around it.

ReLU, the hinge and max pooling are smooth but for their kinks, and in a whole network some unit is always near one: a
finite difference that steps across it measures no derivative. Under `replay` every kinked op repeats the choices that
it made under `record`: the same function and gradient at the base point, and a smooth one around it.
"""

from contextlib import contextmanager

_choices = None  # while recording, the list being filled; while replaying, an iterator
_replaying = False


def chosen(choose):
    """None in ordinary use (the op takes its fast way); else the choice to act on: choose() or the recorded one."""
    if _choices is None:
        return None
    if _replaying:
        if (choice := next(_choices, None)) is None:
            raise ValueError("more ops with kinks than at x: which ops are called must not depend on the inputs")
        return choice
    choice = choose()
    if choice.dtype.kind not in "biu":
        raise ValueError(f"a choice is a mask or an index, not {choice.dtype}: held still, a value would hide a slope")
    _choices.append(choice)
    return choice


@contextmanager
def record():
    """Yields the list in which each kinked op inside leaves its choice, in order."""
    with _using([], False):
        yield _choices


@contextmanager
def replay(choices):
    """Inside, the same ops in the same order act on these choices again."""
    with _using(iter(choices), True):
        yield


@contextmanager
def _using(choices, replaying):
    global _choices, _replaying
    before = _choices, _replaying
    _choices, _replaying = choices, replaying
    try:
        yield
    finally:
        _choices, _replaying = before
