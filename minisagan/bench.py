"""Where a training step's time goes, op by op and by kind, and how far it is from this machine's own matrix products.

An op's forward pass ends with the birth of its Tensor, so the time since the birth before it is its own; its backward
pass is its vjp. The ops know nothing of this: `watched` puts a clock into Tensor while it lasts.
"""

import functools
import threading
import time
from collections import defaultdict
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np

from minisagan import cpu, cuda, primitives
from minisagan.autograd import Tensor
from minisagan.ops import conv_numpy

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

    def counted(name):
        method, nbytes = getattr(team, name), received[name]

        def call(*given):
            start = time.perf_counter()
            result = method(*given)
            found.seconds += time.perf_counter() - start
            nobody = name == "publish" and team.carries and given == ((),)  # publish() of nothing, by message
            found.meetings += not nobody
            found.nbytes += nbytes(*given)
            return result

        return call

    meetings = {(team, name): counted(name) for name in meetings_of(team)}
    with _replaced(meetings):
        yield found


def meetings_of(team):
    """The names of the methods in which a team's processes wait for one another."""
    return [name for name in ("exchange", "publish", "scatter", "collect") if hasattr(team, name)]


@contextmanager
def _replaced(attributes):
    """While it lasts, the attribute `name` of `owner` is another, for {(owner, name): that other}."""
    own = {at: vars(at[0])[at[1]] for at in attributes if at[1] in vars(at[0])}  # not its class's
    for (owner, name), other in attributes.items():
        setattr(owner, name, other)
    try:
        yield
    finally:
        for owner, name in attributes:
            if (owner, name) in own:
                setattr(owner, name, own[owner, name])
            else:
                delattr(owner, name)


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

        def timed(f):
            def call(*given):
                nonlocal last
                start = time.perf_counter()
                found = f(*given)
                last = time.perf_counter()
                row.backward += last - start
                return found

            return call

        def timed_vjp(g, needs):
            row.backward_calls += 1
            return _each(timed, timed(vjp)(g, needs))

        plain(self, data, parents, timed_vjp, op)
        now = time.perf_counter()
        row.forward_calls += 1
        row.forward += now - last
        last = now

    with _replaced({(Tensor, "__init__"): timed_init}):
        yield spent


def _each(clock, cotangents):
    """What a vjp returned, with a clock around those functions that it left to the tape to call."""
    return [clock(x) if callable(x) else x for x in cotangents]


@contextmanager
def kinds(team):
    """Yields {kind: seconds} of this thread, filled while it lasts. Each moment counts once, by what it is within.

    "products": np.matmul. "copies": what a convolution's products take, laid out for them. "passes": all else within
    primitives, arithmetic and vjps, which is elementwise work, sums, and the Python around them. "waiting": for
    processes, in their meetings with `team`, or for threads. "rest": between the ops, as layers, the tape's walk,
    noise and data.
    """
    seconds = dict.fromkeys(("products", "copies", "passes", "waiting", "rest"), 0.0)
    within, here, last = ["rest"], threading.get_ident(), time.perf_counter()

    def lap():
        nonlocal last
        now = time.perf_counter()
        seconds[within[-1]] += now - last
        last = now

    def clocked(kind, f):
        def call(*args, **options):
            if threading.get_ident() != here:
                return f(*args, **options)
            lap()
            within.append(kind)
            try:
                return f(*args, **options)
            finally:
                lap()
                within.pop()

        return call

    init, loop, beside = Tensor.__init__, cpu.Threads.run, primitives.beside

    def clocked_init(self, data, parents=(), vjp=None, op=""):
        clock = functools.partial(clocked, "passes")
        init(self, data, parents, vjp and (lambda g, needs: _each(clock, clock(vjp)(g, needs))), op)

    def clocked_loop(threads, work, helpers):  # this one works, too, and then waits for the others
        clocked("waiting", loop)(threads, clocked("passes", work), helpers)

    clocks = {
        (np, "matmul"): clocked("products", np.matmul),
        (np, "ascontiguousarray"): clocked("copies", np.ascontiguousarray),
        (conv_numpy, "expand"): clocked("copies", conv_numpy.expand),
        (primitives, "beside"): lambda plain, where: clocked("passes", beside(plain, where)),
        (Tensor, "__init__"): clocked_init,
        (cpu.Threads, "run"): clocked_loop,
    }
    operators = "__add__", "__radd__", "__mul__", "__rmul__"
    clocks |= {(Tensor, name): clocked("passes", getattr(Tensor, name)) for name in operators}
    clocks |= {(team, name): clocked("waiting", getattr(team, name)) for name in meetings_of(team)}
    with _replaced(clocks):
        last = time.perf_counter()
        try:
            yield seconds
        finally:
            lap()


@contextmanager
def counted_products():
    """Yields a list that gets 2 M K N, its floating-point operations, of each np.matmul call while it lasts."""
    found, plain = [], np.matmul

    def matmul(a, b, **kwargs):
        y = plain(a, b, **kwargs)
        found.append(2 * y.size * a.shape[-1])
        return y

    with _replaced({(np, "matmul"): matmul}):
        yield found


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
