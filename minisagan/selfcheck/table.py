"""What a case of the gradient checker is, and the tables of them."""

from dataclasses import dataclass

from minisagan.gradcheck import EVERY_ELEMENT


@dataclass(frozen=True)
class Case:
    """f at `inputs`; `linear` in each while the others are held; `reference` and `names` as in `check`."""

    name: str
    f: callable
    inputs: tuple
    linear: bool = False
    reference: callable = None
    names: tuple = None
    every_element: int = EVERY_ELEMENT


class Table(dict):
    """Functions that yield the cases of an op, a layer or a network, by its name."""

    def enter(self, function):
        """Enter a function under its own name."""
        self[function.__name__] = function
        return function
