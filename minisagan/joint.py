"""Ops of several outputs, such as the rows of all tables; on a GPU that is one launch."""

from minisagan.autograd import Tensor


def joint(arrays, parents, vjp, op=""):
    """A list of Tensors of arrays that one op computed together, with one vjp for all: a network's weights, say.

    `vjp(gs, needs)` takes a tuple of pairs (i, g), g the cotangent of array i: dict(gs) has that of each array, without
    those that had no part in the loss. `grad` adds cotangents by +, which joins tuples: so the pairs come together.
    """
    together = Tensor(arrays, parents, vjp, op)
    return [Tensor(x, (together,), lambda g, needs, i=i: (((i, g),),), op) for i, x in enumerate(arrays)]
