"""Ranks of MPI with a GPU each: what GPUs exchange goes through NCCL, from memory to memory, on the stream of all work.

    mpiexec -n 4 minisagan train --device cuda

So an exchange is a node of a recorded graph like any kernel. MPI carries the rest: which GPU is whose, NCCL's id, and
what rank 0 gives all to do. Only copies are asked of NCCL. What they bring is added by a kernel of ours in the order of
processes.halved, since NCCL's own AllReduce adds in an order that depends on how many GPUs there are and how they are
connected.
"""

import atexit

from minisagan import cuda
from minisagan.flat_cuda import joined
from minisagan.launcher import named
from minisagan.processes import mpi

kernels = cuda.Kernels(__file__)
MOST_PARTS = 1024  # of a sum, as many as threads in a block: one process has all of them


def obstacle():
    """On rank 0: let each rank use a GPU of its own from now on; what stands in the way, or ""."""
    return next(filter(None, mpi.spread(_take_gpu)), "")


def _take_gpu(rank, world):
    """Use the GPU that has this rank's number among the ranks of its host; why that can't be, or "".

    A queue may show each rank no GPU but its own: then it is that one. What counts is that no two have the same. Rank 0
    has GPU 0, and uses it already or will.
    """
    mine, error = None, ""
    with mpi.on_host() as host:
        try:
            cupy = cuda.cupy()
            number = host.rank % max(1, cupy.cuda.runtime.getDeviceCount())
            mine = cupy.cuda.Device(number).pci_bus_id
            if rank:
                cuda.use(number)
            if not cuda.nccl():
                error = f"CuPy finds no NCCL: {install()}"
        except Exception as caught:  # CuPy or its driver may fail in many ways
            error = f"no GPU can be used: {type(caught).__name__}: {caught}"
        every = host.allgather(mine)
    if not error and None not in every and len(set(every)) < len(every):
        error = f"{len(every)} ranks have {len(set(every))} of its GPUs, and each needs its own: start fewer"
    return error and f"{named()}: {error}"


def install():
    """What installs the library that CuPy's module for NCCL needs, in words."""
    return f"pip install nvidia-nccl-cu{cuda.cupy().cuda.runtime.runtimeGetVersion() // 1000}"


def version():
    """NCCL's version, or what installs it, in words."""
    if not cuda.nccl():
        return f"not installed: {install()}"
    number = cuda.nccl().get_version()  # 22707 for 2.27.7
    return f"{number // 10000}.{number // 100 % 100}.{number % 100}"


class Gpus(mpi.Ranks):
    """All ranks as those that share a batch, on GPUs: each has all sums and updates all weights, so none are published.

    To send weights takes longer than to compute them. `graphs`, those of cuda.Graph that record exchanges, are
    forgotten before NCCL ends: it waits for them.
    """

    divides = False

    def __init__(self, there, give, state, graphs, parts):
        super().__init__(there, give, state, [], parts)
        nccl, self.graphs = cuda.nccl(), graphs
        self.byte, key = nccl.NCCL_UINT8, None if self.rank else nccl.get_unique_id()
        self.nccl = nccl.NcclCommunicator(self.world, self.comm.bcast(key), self.rank)
        self.exchange(cuda.cupy().zeros(1))  # before a stream records: the first time it connects them
        cuda.cupy().cuda.get_current_stream().synchronize()
        atexit.register(self.close)

    def exchange(self, x):
        """The arrays x of all GPUs, in order: (world, *x.shape)."""
        x, every = cuda.cupy().ascontiguousarray(x), cuda.cupy().empty((self.world, *x.shape), x.dtype)
        self.nccl.allGather(x.data.ptr, every.data.ptr, x.nbytes, self.byte, _stream())
        return every

    def publish(self, arrays):
        """Each GPU has updated all of them."""

    def scatter(self, x):
        """Of x (n,), which each GPU has its own of, what is this one's part in all of them: (world, n / world).

        Rounded up: where that does not divide n, the last part ends with what nobody asks for.
        """
        size = -(-len(x) // self.world)
        found = cuda.cupy().empty((self.world, size), x.dtype)
        parts = [x[rank * size : (rank + 1) * size] for rank in range(self.world)]
        cuda.nccl().groupStart()  # all at once
        for rank, part in enumerate(parts):
            self.nccl.send(part.data.ptr, part.nbytes, self.byte, rank, _stream())
            self.nccl.recv(found[rank].data.ptr, parts[self.rank].nbytes, self.byte, rank, _stream())
        cuda.nccl().groupEnd()
        return found

    def collect(self, part, n):
        """The parts of all GPUs behind one another, (n,)."""
        return self.exchange(part).ravel()[:n]

    def joined(self, arrays):
        return joined(arrays)

    def halved(self, terms):
        total = cuda.cupy().empty(terms.shape[1:], terms.dtype)
        kernels("halved", min(cuda.blocks_for(total.size), 1024), 256, terms, total, len(terms), total.size)
        return total

    def close(self):
        for graph in self.graphs:
            graph.forget()
        self.nccl.destroy()


def _stream():
    return cuda.cupy().cuda.get_current_stream().ptr
