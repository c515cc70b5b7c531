"""Ops with several outputs, such as the look-up in all tables at once: on a GPU that is one launch."""

from minisagan.autograd import Tensor


def joint(arrays, parents, vjp, op=""):
    """A list of Tensors of arrays that one op computed together, with one vjp for all: a network's weights, say.

    `vjp(gs, needs)` takes a tuple of pairs (i, g), g the cotangent of array i: dict(gs) maps i to g, without the arrays
    that the loss does not depend on. Each output sends back a tuple of one pair, and as `grad` adds cotangents with +,
    which joins tuples, the vjp is given all pairs.
    """
    together = Tensor(arrays, parents, vjp, op)
    return [Tensor(x, (together,), lambda g, needs, i=i: (((i, g),),), op) for i, x in enumerate(arrays)]
