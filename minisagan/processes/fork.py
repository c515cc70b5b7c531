"""Processes on one machine: forks of this one, with shared memory for what they exchange and sockets to meet at.

Threads wait for Python's lock between any two NumPy calls; processes don't, and two of them need 0.8 of the time that
two threads need for a training step. Forks have the data set and the weights already, and nothing is started anew.
Where a fork of a program with threads is not safe (macOS) or does not exist (Windows) there is one process, with
threads.
"""

import os
import signal
import socket
import sys
import time
import traceback

import numpy as np

from minisagan import cpu, processes
from minisagan.errors import Fault

FEWEST = 4  # images for each process: a product of fewer rows goes another way through BLAS, and rounds differently
PATIENCE = 2e-3  # s that a process looks again and again before it sleeps: waking a sleeping core takes 50 us and more
ENDED = "a process that shared the batch has ended: was it killed, or is the memory full?"


def sensible(cores, batch_size, parts=processes.PARTS):
    """How many processes should share batches of this size, summed in so many parts, on so many cores."""
    count = 1
    if sys.platform == "linux":
        while (
            2 * count <= min(cores, parts)
            and batch_size % (2 * count) == 0
            and batch_size >= 2 * count * FEWEST
        ):
            count *= 2
    return count


class Forks(processes.Group):
    """`world` processes: this one, and forks of it that wait for work.

    `run(work, count, step)` calls work(count, step), two integers, here, as one of them, while each fork calls the
    `work` that it was made with. `state` are arrays that may change here between two runs: each run carries them to the
    forks first. All other memory is what it was when they were forked, or shared. `nbytes` is the most that an exchange
    carries from each. A process that dies, however it dies, is noticed by all others (Fault), and none outlives the
    first.
    """

    def __init__(self, world, nbytes, work, state=(), parts=processes.PARTS):
        self.world, self.parts, self.turn, self.owner = world, parts, 0, os.getpid()
        self.slots = cpu.shared(2 * world * nbytes, np.uint8).reshape(2, world, nbytes)
        self.state, self.carried = state, [cpu.shared(x.size, x.dtype).reshape(x.shape) for x in state]
        pairs = {(a, b): socket.socketpair() for b in range(world) for a in range(b)}
        self.forks = []
        for number in range(1, world):
            fork = cpu.fork()
            if not fork:
                self._serve(number, pairs, work)
            self.forks.append(fork)
        self._become(0, pairs)

    def _become(self, number, pairs):
        """Keep this process's ends of the sockets: one tells of its other end's death if nobody else has it."""
        self.rank, self.peers = number, []
        for pair, (lower, upper) in pairs.items():
            mine, other = (lower, upper) if pair[0] == number else (upper, lower)
            other.close()
            if number in pair:
                self.peers.append(mine)  # in order
            else:
                mine.close()

    def _serve(self, number, pairs, work):
        """A fork's whole life: it never returns."""
        try:
            for each in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # sent to all: the first process sees to it
                signal.signal(each, signal.SIG_IGN)
            self._become(number, pairs)
            keep = sorted(peer.fileno() for peer in self.peers)
            for low, high in zip([2, *keep], [*keep, os.sysconf("SC_OPEN_MAX")], strict=True):
                os.closerange(low + 1, min(high, 1 << 16))  # the run's lock among them: it goes with the first process
            while numbers := self.peers[0].recv(16, socket.MSG_WAITALL):
                for x, carried in zip(self.state, self.carried, strict=True):
                    x[...] = carried
                with processes.member(self):
                    work(*np.frombuffer(numbers, np.int64).tolist())
        except (Fault, ConnectionError):
            pass  # another process ended: the first says so
        except BaseException:
            os.write(2, traceback.format_exc().encode())
        finally:
            os._exit(0)

    def run(self, work, count, step):
        """What work(count, step) returns here, while the forks do theirs; if something goes wrong here, all end."""
        for x, carried in zip(self.state, self.carried, strict=True):
            carried[...] = x
        for peer in self.peers:
            self._send(peer, np.array([count, step], np.int64).tobytes())
        try:
            with processes.member(self):
                return work(count, step)
        except BaseException:
            self.close()
            raise

    def exchange(self, x):
        """The arrays x of all processes, in order: views, good until the next exchange."""
        self.turn ^= 1  # nobody can be two exchanges ahead, so two sets of slots are enough
        slots = self.slots[self.turn, :, : x.nbytes].view(x.dtype).reshape(self.world, *x.shape)
        slots[self.rank] = x
        self.meet()
        return slots

    def publish(self, arrays):
        """The arrays lie in memory that all share: what is wanted is that nobody reads too early."""
        self.meet()

    def meet(self):
        """Wait until all processes are here."""
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

    @property
    def ended(self):
        return not self.peers

    def close(self):
        """End the forks. In a fork, which may find an older group among its garbage, this does nothing."""
        if os.getpid() != self.owner:
            return
        for peer in self.peers:
            peer.close()
        for fork in self.forks:
            os.waitpid(fork, 0)
        self.peers, self.forks = [], []
