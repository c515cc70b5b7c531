"""A batch shared among processes that compute as one: data parallelism on the cores of a CPU.

Threads wait for Python's lock between any two NumPy calls; processes don't, and two of them take 0.8 of the time of two
threads for a training step. Rank r of `world` has the images r, r + world, ... of each batch, on a tape of its own:

    x_r = share(x)        every world-th image, for noise, labels and indices that all ranks know
    everyone(x)           what each rank has found of its images, for all: batch norm's statistics are the batch's
    total(x)              the sum of the ranks' arrays: the gradients of a step, once a step

Part k of a sum over the batch is over the images k, k + PARTS, ...; `world` divides PARTS, so each part lies in one
rank, and parts are added in halves (k to k + PARTS/2, and so on): the order of additions, and with it every bit, is the
same for 1, 2, 4 or 8 processes. Weights and Adam's moments lie in shared memory, and each rank updates its share.

Ranks are forks, so the data set is there and nothing is started anew; on systems where a fork of a program with threads
is not safe (macOS) or does not exist (Windows) there is one process, with threads.
"""

import mmap
import os
import signal
import socket
import sys
import time
import traceback
import warnings
from contextlib import contextmanager

import numpy as np

from minisagan.errors import Fault

PARTS = 8  # of which a sum over the batch is made; at most so many processes share a batch
FEWEST = 4  # images for each process: a product of fewer rows goes another way through BLAS, and rounds differently
PATIENCE = 2e-3  # s that a rank looks again and again before it sleeps: waking a sleeping core takes 50 us and more
ENDED = "a process that shared the batch has ended: was it killed, or is the memory full?"

_group = None  # the Group that this process computes in just now


def world():
    """How many processes share the batch just now."""
    return _group.world if _group else 1


def rank():
    """This process's number among them; 0 is the one that was there before."""
    return _group.rank if _group else 0


def share(x):
    """This rank's part of x (N, ...), an array over the whole batch or None: every world-th."""
    return x if world() == 1 or x is None else x[rank() :: world()]


def parts(x):
    """The views of x (N, ...), over this rank's images, that make up each of its parts of the batch."""
    count = PARTS // world()
    return [x[k::count] for k in range(count)]


def batch_sum(x):
    """This rank's share of the sum over the batch: the sum of x (N, ...) over its N images, (...)."""
    count = PARTS // world()
    sums = np.zeros((count, *x.shape[1:]), x.dtype)
    for start in range(0, len(x), count):  # not x.sum: NumPy's order of addition depends on the shape
        images = x[start : start + count]
        sums[: len(images)] += images
    return halved(sums)


def halved(sums):
    """The sum of partial sums (a power of two, ...), the second half added to the first until one is left."""
    while len(sums) > 1:
        sums = sums[: len(sums) // 2] + sums[len(sums) // 2 :]
    return sums[0]


def batch_product(a, g):
    """This rank's share of a^T g, a sum over the batch: (N, M), (N, O) -> (M, O)."""
    return halved(np.stack([x.T @ z for x, z in zip(parts(a), parts(g), strict=True)]))


def everyone(x):
    """x (n, ...) of all ranks, numbers about their images -> (n * world, ...), in order of the images."""
    return x if world() == 1 else np.stack(_group.exchange(x), 1).reshape(-1, *x.shape[1:])


def total(x):
    """The sum of the arrays x of all ranks, the same on each."""
    return x if world() == 1 else halved(_group.exchange(x))


def meet():
    """Wait until all ranks are here: what each has written to shared memory can then be read by all."""
    if _group:
        _group.meet()


def shared(size, dtype):
    """Zeros (size,) in memory that processes forked from this one share with it."""
    nbytes = max(1, size * np.dtype(dtype).itemsize)
    return np.frombuffer(mmap.mmap(-1, nbytes), np.uint8)[: size * np.dtype(dtype).itemsize].view(dtype)


def sensible(cores, batch_size):
    """How many processes should share batches of this size on so many cores: 1, 2, 4 or 8."""
    count = 1
    if sys.platform == "linux":
        while 2 * count <= min(cores, PARTS) and batch_size % (2 * count) == 0 and batch_size >= 2 * count * FEWEST:
            count *= 2
    return count


class Group:
    """`world` processes: this one, and forks of it that wait for work.

    `work(a, b)` is what a fork does when `call(a, b)` (two integers) is called here; meanwhile this process has to do
    the same inside of `with group.joined()`. `nbytes` is the most that an exchange has to carry from each. A process
    that dies, however it dies, is noticed by all others (Fault), and none outlives the first.
    """

    def __init__(self, world, nbytes, work):
        self.world, self.turn, self.owner = world, 0, os.getpid()
        self.slots = shared(2 * world * nbytes, np.uint8).reshape(2, world, nbytes)
        pairs = {(a, b): socket.socketpair() for b in range(world) for a in range(b)}
        self.forks = []
        for number in range(1, world):
            with warnings.catch_warnings():  # Python 3.12 and later warn of threads: ours are idle, BLAS's end
                warnings.simplefilter("ignore", DeprecationWarning)
                fork = os.fork()
            if not fork:
                self._serve(number, pairs, work)
            self.forks.append(fork)
        self._become(0, pairs)

    def _become(self, number, pairs):
        """Keep this rank's ends of the sockets: a socket says so when its other end has died, if nobody else has it."""
        self.rank, self.peers = number, []
        for pair, (lower, upper) in pairs.items():
            mine, other = (lower, upper) if pair[0] == number else (upper, lower)
            other.close()
            if number in pair:
                self.peers.append(mine)  # in order of ranks
            else:
                mine.close()

    def _serve(self, number, pairs, work):
        """A fork's whole life: it never returns."""
        try:
            for each in (signal.SIGINT, signal.SIGTERM):  # sent to all of the terminal: rank 0 sees to it
                signal.signal(each, signal.SIG_IGN)
            self._become(number, pairs)
            keep = sorted(peer.fileno() for peer in self.peers)
            for low, high in zip([2, *keep], [*keep, os.sysconf("SC_OPEN_MAX")], strict=True):
                os.closerange(low + 1, min(high, 1 << 16))  # the run's lock among them: it goes with rank 0
            while numbers := self.peers[0].recv(16, socket.MSG_WAITALL):
                with self.joined():
                    work(*np.frombuffer(numbers, np.int64).tolist())
        except (Fault, ConnectionError):
            pass  # another process ended: rank 0 says so
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(0)

    def call(self, a, b):
        """Have each fork call work(a, b)."""
        for peer in self.peers:
            self._send(peer, np.array([a, b], np.int64).tobytes())

    @contextmanager
    def joined(self):
        """Inside, this process is one of `world`; if something goes wrong there, all end but rank 0."""
        global _group
        before, _group = _group, self
        try:
            yield
        except BaseException:
            self.close()
            raise
        finally:
            _group = before

    def exchange(self, x):
        """The arrays x of all ranks, in order: views, good until the exchange after the next."""
        self.turn ^= 1  # nobody can be two exchanges ahead, so two sets of slots are enough
        slots = self.slots[self.turn, :, : x.nbytes].view(x.dtype).reshape(self.world, *x.shape)
        slots[self.rank] = x
        self.meet()
        return slots

    def meet(self):
        """Wait until all ranks are here."""
        for peer in self.peers:
            self._send(peer, b"!")
        for peer in self.peers:
            self._hear(peer)

    def _send(self, peer, message):
        try:
            peer.sendall(message)
        except OSError as error:
            raise Fault(ENDED) from error

    def _hear(self, peer):
        try:
            if not self._next_byte(peer):
                raise Fault(ENDED)
        except OSError as error:
            raise Fault(ENDED) from error

    def _next_byte(self, peer):
        end = time.perf_counter() + PATIENCE
        while time.perf_counter() < end:
            try:
                return peer.recv(1, socket.MSG_DONTWAIT)
            except BlockingIOError:
                os.sched_yield()
        return peer.recv(1)

    def close(self):
        """End the forks. In a fork, which may find an older group among its garbage, this does nothing."""
        if os.getpid() != self.owner:
            return
        for peer in self.peers:
            peer.close()
        for fork in self.forks:
            os.waitpid(fork, 0)
        self.peers, self.forks = [], []
