"""What minisagan calls of cupy.cuda.nccl, between emulated GPUs of processes that MPI joins.

It refuses what would fail, hang or bring rubbish between GPUs: other sizes or types than the peers', memory that is no
array's, a first use while a stream records, a communicator that ends before the graphs that use it.
"""

import time
import weakref

import numpy as np
from mpi4py import MPI

from emulation.runtime import EmulationError, Stream, memory_at

PATIENCE = 60.0  # s that the others are waited for: NCCL would wait for ever
NCCL_INT8, NCCL_UINT8, NCCL_INT32, NCCL_UINT32, NCCL_INT64, NCCL_UINT64 = range(6)
NCCL_FLOAT16, NCCL_FLOAT32, NCCL_FLOAT64 = range(6, 9)
SIZES = 1, 1, 4, 4, 8, 8, 2, 4, 8  # bytes, by type

_group = None  # what is sent and received since groupStart()


def get_version():
    return 22707


def get_unique_id():
    return tuple(range(-64, 64))  # 128 chars


def groupStart():
    global _group
    if _group is not None:
        raise EmulationError("the stand-in knows no groups within groups")
    _group = []


def groupEnd():
    global _group
    calls, _group = _group, None
    if calls:
        calls[0][0]._exchange(calls)


class _Recorded:
    """Lives as long as the graph that it was recorded in."""


class NcclCommunicator:
    def __init__(self, ndev, commId, rank):
        if type(commId) is not tuple or commId != get_unique_id():
            raise EmulationError("the id is not rank 0's")
        self.comm = MPI.COMM_WORLD.Dup()
        if (ndev, rank) != (self.comm.size, self.comm.rank):
            raise EmulationError(f"NCCL_ERROR_INVALID_ARGUMENT: rank {rank} of {ndev}")
        self.used, self.recorded = False, weakref.WeakSet()

    def allGather(self, sendbuf, recvbuf, count, datatype, stream):
        size = count * SIZES[datatype]
        (source, own), (target, every) = memory_at(sendbuf, size), memory_at(recvbuf, size * self.comm.size)

        def call():
            self._agree([0, count, datatype])
            self.comm.Allgather(own, every)

        self._submit(stream, call, [source, target])

    def send(self, sendbuf, count, datatype, peer, stream):
        _group.append((self, stream, "send", peer, count, datatype, *memory_at(sendbuf, count * SIZES[datatype])))

    def recv(self, recvbuf, count, datatype, peer, stream):
        _group.append((self, stream, "recv", peer, count, datatype, *memory_at(recvbuf, count * SIZES[datatype])))

    def _exchange(self, calls):
        world, blocks, facts = self.comm.size, [], np.zeros((2, self.comm.size, 2), np.int64)
        memory = {"send": [np.empty(0, np.uint8)] * world, "recv": [np.empty(0, np.uint8)] * world}
        for _, _, kind, peer, count, datatype, block, data in calls:
            if memory[kind][peer].size:
                raise EmulationError(f"two of {kind} for one peer in a group: the stand-in knows one")
            memory[kind][peer], blocks = data, [*blocks, block]
            facts[["send", "recv"].index(kind), peer] = count, datatype

        def call():
            every = self._agree([1, 0, 0], facts).reshape(world, 2, world, 2)
            if (every[:, 0] != every[:, 1].swapaxes(0, 1)).any():
                raise EmulationError(f"what is sent is not what is received: {every.tolist()}")
            requests = [self.comm.Irecv(data, peer) for peer, data in enumerate(memory["recv"])]
            requests += [self.comm.Isend(data.copy(), peer) for peer, data in enumerate(memory["send"])]
            MPI.Request.Waitall(requests)

        self._submit(calls[0][1], call, blocks)

    def _submit(self, stream, call, blocks):
        stream = Stream.of[stream]
        if stream.recorded is None:
            self.used = True
        elif not self.used:
            raise EmulationError("a communicator connects when it is first used, which a stream that records can't")
        recorded = _Recorded()
        if stream.recorded is not None:
            self.recorded.add(recorded)
        stream.submit(lambda recorded=recorded: call(), blocks, "nccl")

    def _agree(self, what, facts=()):
        """What all ranks bring to this meeting, which has to be of one kind."""
        own = np.concatenate([what, np.ravel(facts)]).astype(np.int64)
        kinds = np.empty((self.comm.size, 4), np.int64)
        self._gathered(np.array([*what, own.size], np.int64), kinds)
        if (kinds != kinds[0]).any():
            raise EmulationError(f"the ranks call NCCL for different things: {kinds.tolist()}")
        every = np.empty((self.comm.size, own.size), np.int64)
        self._gathered(own, every)
        return every[:, 3:]

    def _gathered(self, own, every):
        request, end = self.comm.Iallgather(own, every), time.monotonic() + PATIENCE
        while not request.Test():
            if time.monotonic() > end:
                raise EmulationError("some rank does not call NCCL: the others would wait for ever")
            time.sleep(1e-4)

    def destroy(self):
        if len(self.recorded):
            raise EmulationError("NCCL waits until all graphs have ended that record its calls: for ever")
        self.comm.Free()
