"""Where a training step's time goes, op by op, and how far it is from this machine's own matrix products.

An op's forward pass ends with the birth of its Tensor, so the time since the birth before it is its own; its backward
pass is its vjp. The ops know nothing of this: `watched` puts a clock into Tensor while it lasts.
"""

import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from minisagan import cpu, cuda
from minisagan.autograd import Tensor

AHEAD = 10  # steps that follow one another on a GPU before Python waits for them, as in training


@dataclass
class Exchanged:
    """How often processes met, what each got from the others, and the seconds that passed, waiting included."""

    meetings: int = 0
    nbytes: int = 0
    seconds: float = 0.0


@contextmanager
def exchanged(team):
    """Yields the Exchanged of this process with its team, filled while it lasts."""
    found, others = Exchanged(), team.world - 1
    received = {
        "exchange": lambda x: x.nbytes * others,
        "publish": lambda arrays: team.carries * sum(x.nbytes for x in arrays) * others // team.world,
        "scatter": lambda x: x.nbytes * others // team.world,
        "collect": lambda part, n: (n - len(part)) * part.itemsize,
    }

    def counted(method, nbytes):
        def call(*given):
            start = time.perf_counter()
            result = method(*given)
            found.seconds += time.perf_counter() - start
            found.meetings += 1
            found.nbytes += nbytes(*given)
            return result

        return call

    names = [name for name in received if hasattr(team, name)]
    for name in names:
        setattr(team, name, counted(getattr(team, name), received[name]))
    try:
        yield found
    finally:
        for name in names:
            delattr(team, name)


@dataclass
class Spent:
    """Calls and seconds of one op."""

    forward_calls: int = 0
    forward: float = 0.0
    backward_calls: int = 0
    backward: float = 0.0


@contextmanager
def watched():
    """Yields {op name: Spent}, filled while it lasts."""
    spent, last, plain = defaultdict(Spent), time.perf_counter(), Tensor.__init__

    def timed_init(self, data, parents=(), vjp=None, op=""):
        nonlocal last
        if vjp is None:  # a leaf: what came before it was no op's (data, noise, Adam)
            plain(self, data)
            last = time.perf_counter()
            return
        row = spent[op or "unnamed"]

        def timed_vjp(g, needs):
            nonlocal last
            start = time.perf_counter()
            gradients = vjp(g, needs)
            last = time.perf_counter()
            row.backward_calls += 1
            row.backward += last - start
            return gradients

        plain(self, data, parents, timed_vjp, op)
        now = time.perf_counter()
        row.forward_calls += 1
        row.forward += now - last
        last = now

    Tensor.__init__ = timed_init
    try:
        yield spent
    finally:
        Tensor.__init__ = plain


@contextmanager
def counted_products():
    """Yields a list that gets 2 M K N, its floating-point operations, of each np.matmul call while it lasts."""
    found, plain = [], np.matmul

    def matmul(a, b, **kwargs):
        y = plain(a, b, **kwargs)
        found.append(2 * y.size * a.shape[-1])
        return y

    np.matmul = matmul
    try:
        yield found
    finally:
        np.matmul = plain


def times(training, count):
    """Seconds of each of `count` whole training steps; of a GPU's steps, of AHEAD on average."""
    ahead = AHEAD if cuda.on_gpu(training.losses) else 1
    found = []
    for _ in range(count):
        start = time.perf_counter()
        training.advance(ahead)
        found.append((time.perf_counter() - start) / ahead)
    return found


def gemm_rate(seconds=0.5):
    """GFLOP/s of this machine's float32 matrix products: on all threads, with matrices that stay in their caches."""
    M, K, N, repeats, best = 512, 256, 64, 20, 0.0
    a, b = np.ones((M, K), np.float32), np.ones((K, N), np.float32)
    outs = [np.empty((M, N), np.float32) for _ in range(cpu.threads())]

    def body(i):
        for _ in range(repeats):
            np.matmul(a, b, out=outs[i])

    end = time.perf_counter() + seconds
    while (start := time.perf_counter()) < end:
        cpu.parallel(body, len(outs))
        best = max(best, 2e-9 * M * K * N * repeats * len(outs) / (time.perf_counter() - start))
    return best
