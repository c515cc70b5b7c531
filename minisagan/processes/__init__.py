"""Several processes that train as one: each has its share of every batch, and all make the same step.

    rank(), world()    which process this is, of how many that share the batch just now
    share(x)           this process's images, every world-th, of an array that all know
    gather(x)          the arrays x of all processes
    total(xs)          the sums of their arrays: a step's gradients, once a step
    part(size)         the slice of a flat array that this process updates
    publish(*arrays)   each has updated its part of these flat arrays: now all can read all of them

Process r has the images r, r + world, ... of a batch. A sum over the batch is made of parts() sums, of the images k,
k + parts(), ... each, which are added in halves: k to k + parts()/2, and so on (batch.py). `world` divides parts(), so
each of them lies in one process, and the last of those additions are `total`'s. The order of additions, and with it
every bit, is the same for 1, 2, 4 or 8 processes. What carries the arrays is a back end's business: fork.py on one
machine, mpi.py on more, nccl.py between GPUs.
"""

from contextlib import contextmanager

import numpy as np

PARTS = 8  # of which a sum over the batch is made, if no configuration says otherwise

_group = None  # the back end's group of processes in which this one computes just now


class Group:
    """What all groups have in common: Alone, fork.Forks, mpi.Ranks and nccl.Gpus."""

    ended = False  # whether a new one is needed
    carries = False  # arrays: those who share memory need none carried
    divides = True  # the work of updating weights

    def joined(self, arrays):
        return np.concatenate([x.ravel() for x in arrays])  # (all their numbers,)

    def halved(self, terms):
        return halved(terms)

    def publish(self, arrays):
        """Where all are in one memory, or updated by each, none need be sent."""

    def complete(self):
        """Have all arrays on rank 0, where they are not."""


class Alone(Group):
    """A group of one process."""

    rank, world = 0, 1

    def __init__(self, parts):
        self.parts = parts

    def run(self, work, count, step):
        """What work(count, step) returns, as a member of this group."""
        with member(self):
            return work(count, step)

    def exchange(self, x):
        return x[None]


def parts():
    """Of how many sums a sum over the batch is made just now; at most so many processes share a batch."""
    return _group.parts if _group else PARTS


def world():
    """How many processes share the batch just now."""
    return _group.world if _group else 1


def rank():
    """This process's number among them; 0 is the one that was there before."""
    return _group.rank if _group else 0


def share(x):
    """This process's part of x (N, ...), an array over the whole batch, or None: every world-th."""
    return x if world() == 1 or x is None else x[rank() :: world()].copy()  # a GPU's kernels see no strides


def gather(x):
    """The arrays x of all processes, in order: (world, *x.shape)."""
    return _group.exchange(x) if _group else x[None]


def total(xs):
    """The sums over all processes of each array of the list xs: a list of arrays, the same in each process."""
    if world() == 1:
        return xs
    numbers = _group.joined(xs)
    if _group.carries and world() > 2:  # each adds its part, and need not be sent all numbers of all
        sums = _group.collect(_group.halved(_group.scatter(numbers)), len(numbers))
    else:
        sums = _group.halved(gather(numbers))
    ends = np.cumsum([x.size for x in xs]).tolist()
    return [sums[end - x.size : end].reshape(x.shape) for x, end in zip(xs, ends, strict=True)]


def halved(terms):
    """The sum of n = 1, 2, 4, ... arrays, a list or the rows of one, in halves: k to k + n/2, then k to k + n/4, ..."""
    while len(terms) > 1:
        half = len(terms) // 2
        terms = [a + b for a, b in zip(terms[:half], terms[half:], strict=True)]
    return terms[0]


def part(size):
    """The slice of a flat array of this size that this process updates: all of it, on a GPU."""
    return part_of(size, rank(), world()) if not _group or _group.divides else slice(0, size)


def part_of(size, rank, world):
    """The slice that a process of this rank updates."""
    return slice(size * rank // world, size * (rank + 1) // world)


def publish(*arrays):
    """Each process has updated its part of these flat arrays (or of none): now all are here, and have all of them."""
    if _group:
        _group.publish(arrays)


@contextmanager
def member(group):
    """Inside, this process is one of `group`, which has what the functions above ask of `_group`."""
    global _group
    before, _group = _group, group
    try:
        yield
    finally:
        _group = before
