"""The tape: every op's result remembers its parents and how to send a cotangent back to them.

For a scalar loss L and a value y, the cotangent of y is g = dL/dy, an array of y's shape. An op y = f(x1, x2, ...)
knows its vector-Jacobian product, vjp(g, needs) -> (g . df/dx1, g . df/dx2, ...), and that is all that
reverse-mode differentiation asks of it (Griewank and Walther, Evaluating Derivatives, 2008, ch. 3).

    y = Tensor(f(x.data), (x,), lambda g, needs: (g * df,))       # an op, whole
    dx, dw = grad(loss, [x, w])                                   # gradients are returned, never stored

Writing an op: capture arrays in the vjp, never the Tensor that it makes. Then activations die by reference count
while the backward pass consumes them, and Python's cyclic collector is never needed. `g` may be shared with other
ops: never write into it. Captured arrays are no copies: between a loss and its grad() no input may be changed, and no
weight moved by Adam. For ops with several outputs see joint.py.

A value that several ops use receives a cotangent from each of them; their sum is its cotangent. In place of a cotangent
a vjp may return a function that adds it: f(so_far) -> so_far + the cotangent, where so_far is None if there is none
yet. So an op can add while it stores its result, which saves a pass over memory:

    y = Tensor(f(x.data), (x,), lambda g, needs: (lambda so_far: g * df if so_far is None else so_far + g * df,))
"""

import threading
from contextlib import contextmanager
from itertools import count

import numpy as np

_births = count()
_WALKED = object()  # in place of the vjp of a node that a grad() has passed


class _Recording(threading.local):
    """Whether ops are remembered: for each thread by itself, since a page is served by threads that only look on."""

    on = True


_recording = _Recording()


class Tensor:
    """An array on the tape: `data`, the `parents` it was computed from, and the `vjp` that leads back to them.

    Its operators (+, @, ...) come from ops/arithmetic.py. A leaf (a weight, an input) has no parents; its data may be a
    number or a list, which becomes an array. `vjp(g, needs)` takes the cotangent of this tensor and one bool for each
    parent, and returns one cotangent for each parent, of the parent's shape and dtype (where it is not needed, anything
    will do). `op` is the name of what computed it, for those who count and time.
    """

    __slots__ = ("data", "parents", "vjp", "op", "birth", "__weakref__")  # the last one lets tests watch tensors die
    __array_ufunc__ = None  # so that `array * tensor` asks Tensor.__rmul__, not NumPy

    def __init__(self, data, parents=(), vjp=None, op=""):
        if isinstance(parents, Tensor) or parents and vjp is None:
            raise TypeError("a Tensor that was computed takes a tuple of parents, of one (x,), and a vjp")
        number = type(data) in (int, float) or not vjp and type(data) in (list, tuple)
        self.data, self.op = np.asarray(data) if number else data, op
        self.parents, self.vjp = (parents, vjp) if _recording.on else ((), None)
        self.birth = next(_births)  # parents are always older than their children

    shape = property(lambda self: self.data.shape)
    dtype = property(lambda self: self.data.dtype)
    ndim = property(lambda self: self.data.ndim)

    def __repr__(self):
        return f"Tensor({self.data!r})"


@contextmanager
def no_tape():
    """Inside, ops compute but record nothing on the tape: for sampling, and for images that only D learns from.

    What was computed here is a constant: grad() of it is zero.
    """
    before, _recording.on = _recording.on, False
    try:
        yield
    finally:
        _recording.on = before


def recording():
    """Whether ops are remembered: False inside no_tape()."""
    return _recording.on


class WrongCotangent(ValueError):
    """A vjp gave something that can't be the cotangents of its op's parents."""


def grad(loss, wanted, cotangent=None):
    """The gradients of `loss` by each tensor in `wanted`, as a list of arrays; zeros where it does not depend on one.

    They are constants, on no tape: there are no second derivatives, and so no gradient penalty. They may share memory
    with one another and with `cotangent`, or be read-only views: copy what you want to change. `cotangent` (of loss's
    shape) stands for dL/dloss; it may be left out for a scalar, and is then 1. Only nodes on a way from `wanted` to
    `loss` are visited, youngest first, so that all of a node's cotangents have been added when its turn comes. A
    visited node is released: a loss computed from a tensor that an earlier grad() walked is refused (RuntimeError). To
    use such a tensor as a constant, pass Tensor(y.data). To go on from where an earlier grad() stopped, give the
    tensors that it was asked for as a list for `loss`, and what it found as `cotangent`. ValueError if a cotangent is
    missing where `loss` is no scalar, or has another shape; WrongCotangent, which names the op, if a vjp does not
    return one cotangent for each parent, of its shape and dtype.
    """
    wanted, several = list(wanted), isinstance(loss, list)
    if cotangent is None:
        if several or loss.data.size != 1:
            what = "several tensors" if several else f"a tensor of shape {loss.shape}"
            raise ValueError(f"grad of {what} needs a cotangent: it is no scalar")
        cotangent = np.ones_like(loss.data)
    starts = list(zip(loss, cotangent, strict=True)) if several else [(loss, cotangent)]
    for tensor, g in starts:
        if getattr(g, "shape", None) != tensor.shape:
            raise ValueError(f"the cotangent of a tensor of shape {tensor.shape} can't be {_shown(g)}")
    nodes = sorted(ancestors([tensor for tensor, _ in starts]), key=lambda node: node.birth)
    asked = {id(tensor) for tensor in wanted}
    leads = set(asked)  # the nodes that lead to something wanted, found oldest first
    for node in nodes:
        if node.vjp is _WALKED:
            raise RuntimeError("this tape was walked by an earlier grad(): compute the loss again")
        if any(id(parent) in leads for parent in node.parents):
            leads.add(id(node))

    held, found = {}, {}
    for tensor, g in starts:
        held[id(tensor)] = held[id(tensor)] + g if id(tensor) in held else g
    while nodes:  # popped, so that a node's arrays are freed as soon as its turn is over
        node = nodes.pop()
        g = held.pop(id(node), None)
        if g is None or id(node) not in leads:
            continue
        if id(node) in asked:
            found[id(node)] = g
        needs = tuple(id(parent) in leads for parent in node.parents)
        if not any(needs):  # a leaf, or wanted itself and computed from nothing wanted
            continue
        for parent, need, dparent in zip(node.parents, needs, _cotangents(node, g, needs), strict=True):
            if need:
                so_far = held.get(id(parent))
                if callable(dparent):
                    dparent, so_far = dparent(so_far), None
                if type(dparent) is not tuple:  # joint.py's
                    _check(dparent, parent, node, nodes)
                held[id(parent)] = dparent if so_far is None else so_far + dparent
        node.parents, node.vjp = (), _WALKED
    return [found[id(t)] if id(t) in found else np.zeros_like(t.data) for t in wanted]


def _shown(g):
    return f"an array of shape {g.shape}" if hasattr(g, "shape") else f"a {type(g).__name__}"


def _cotangents(node, g, needs):
    """What the node's vjp returns; WrongCotangent unless that is one for each parent."""
    found = node.vjp(g, needs)
    several = isinstance(found, tuple | list)
    if not several or len(found) != len(needs):
        form = f"a tuple of {len(needs)}, one cotangent for each parent"
        raise WrongCotangent(f"{_named(node)}: its vjp returned {len(found) if several else _shown(found)}, not {form}")
    return found


def _check(dparent, parent, node, older):
    """WrongCotangent unless it has the parent's shape and dtype. `older` are the nodes older than this one."""
    op = _named(node)
    if getattr(dparent, "shape", None) != parent.shape:
        what = "None where `needs` asked for" if dparent is None else f"{_shown(dparent)} as"
        raise WrongCotangent(f"{op}: its vjp gave {what} the cotangent of a parent of shape {parent.shape}")
    if dparent.dtype != parent.dtype:
        why = next(filter(None, map(_changed_dtype, older)), "")
        raise WrongCotangent(f"{op}: its vjp gave {dparent.dtype} as the cotangent of a parent of {parent.dtype}{why}")


def _changed_dtype(node):
    """In words, from what to what this node changed the dtype, or None: where float64 begins in a float32 network."""
    given, made = ([getattr(x.data, "dtype", None) for x in nodes] for nodes in (node.parents, [node]))  # joint: None
    if given and all(given + made) and made[0] not in given:
        return f"; {_named(node)} made {made[0]} of {given[0]}"


def _named(node):
    return node.op or "an op"


def ancestors(tensors, until=()):
    """All nodes that these were computed from, these included, collected without recursion. Ancestors of `until` are
    left out, unless a way that avoids `until` leads to them."""
    seen, stack, ends = {id(tensor): tensor for tensor in tensors}, list(tensors), {id(tensor) for tensor in until}
    while stack:
        node = stack.pop()
        for parent in node.parents if id(node) not in ends else ():
            if id(parent) not in seen:
                seen[id(parent)] = parent
                stack.append(parent)
    return seen.values()
