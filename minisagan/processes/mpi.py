"""Processes that mpiexec started, on one machine or on many: MPI carries what they exchange.

    mpiexec -n 4 minisagan train

Rank 0 is the program: it reads the command line, and it alone touches the run's folder. The others wait in `serve` for
what it gives all of them to do, and need nothing but the data set. A sum over the processes is made of what all of them
have gathered, in an order of our own (processes/__init__.py): MPI's Allreduce promises none.
"""

import contextlib
import os
import signal
import sys

import numpy as np

from minisagan import __version__, cuda, processes
from minisagan.errors import DataError, Fault
from minisagan.launcher import launched, named

_apart = False  # whether an error came in the middle of what all do: the other ranks can't be told, only ended


def comm():
    """MPI's world of processes; Fault if there is no mpi4py, or if its library is not the launcher's.

    MPICH 5 lets ranks read their neighbours' memory (CMA). If one is killed just then, MPICH ends all with an error of
    its own, before the killed one is named (launcher.py). Copying twice instead costs about a thousandth of a step.
    """
    os.environ.setdefault("MPIR_CVAR_CH4_CMA_ENABLE", "0")
    try:
        from mpi4py import MPI
    except (ImportError, RuntimeError) as error:
        raise Fault(f"started by an MPI launcher, but without mpi4py: {error}; pip install 'minisagan[mpi]'") from error
    if MPI.COMM_WORLD.size != launched()[1]:
        raise Fault(
            f"the launcher started {launched()[1]} processes, but mpi4py's {library()} finds {MPI.COMM_WORLD.size}: "
            "start them with that library's own mpiexec"
        )
    return MPI.COMM_WORLD


def library():
    """The MPI library's name and version."""
    from mpi4py import MPI

    return " ".join(MPI.Get_library_version().replace("\x00", "").split("\n")[0].split())


def serve():
    """The life of a rank above 0: it does whatever rank 0 gives all to do, until there is no more."""
    for name in ("SIGINT", "SIGTERM", "SIGHUP"):  # a launcher passes them to all: rank 0 sees to them
        if hasattr(signal, name):
            signal.signal(getattr(signal, name), signal.SIG_IGN)
    world = comm()
    try:
        while job := world.bcast(None):
            job[0](*job[1:])
    except BaseException as error:
        sys.stderr.write(f"Error: {named()}: {type(error).__name__}: {' '.join(str(error).split())}\n")
        sys.stderr.flush()
        world.Abort(1)


def call(function, *args):
    """On rank 0: let all other ranks call function(*args), which is pickled, too."""
    comm().bcast((function, *args))


def spread(function, *args):
    """On rank 0: what function(rank, world, *args) returns on each rank, in order. Without a launcher there is one."""
    rank, world = launched()
    if world == 1:
        return [function(0, 1, *args)]
    with together():
        call(_spread, function, *args)
        return comm().gather(function(rank, world, *args))


def _spread(function, *args):
    comm().gather(function(*launched(), *args))


def divided(function, count, *args):
    """On rank 0: [function(k, *args) for k in range(count)], of which each rank computes every world-th."""
    every = spread(_share, function, count, *args)
    return [every[k % len(every)][k // len(every)] for k in range(count)]


def _share(rank, world, function, count, *args):
    return [function(k, *args) for k in range(rank, count, world)]


def end(code):
    """On rank 0, when the program ends: let the others end, too; by force if they can't be told any more."""
    with contextlib.suppress(Fault):  # without MPI each rank has ended with that error
        if _apart:
            sys.stdout.flush()
            sys.stderr.flush()
            comm().Abort(code)
        comm().bcast(None)


@contextlib.contextmanager
def together():
    """On rank 0, around what all ranks do at once: an error inside leaves the others in the middle of it."""
    global _apart
    _apart = True
    yield
    _apart = False


@contextlib.contextmanager
def on_host():
    """Yields MPI's communicator of the ranks on this host, in order; all ranks call this at once."""
    from mpi4py import MPI

    host = comm().Split_type(MPI.COMM_TYPE_SHARED, comm().rank)
    try:
        yield host
    finally:
        host.Free()


def agree(error=None, **facts):
    """All ranks call this at once: True if nobody has an error (a text), and all have the same facts and version.

    Otherwise False, and on rank 0 a DataError that names the rank and its host.
    """
    world = comm()
    every = world.allgather((named(), error, {"version of minisagan": __version__, **facts}))
    first = every[0][2]
    for name, error, found in every:
        differs = [what for what in first if not error and found[what] != first[what]]
        if error or differs:
            if not world.rank:
                why = error or f"another {differs[0]} than rank 0 has: {found[differs[0]]}, not {first[differs[0]]}"
                raise DataError(f"{name}: {why}")
            return False
    return True


class Ranks(processes.Group):
    """All processes of MPI as those that share a batch: like fork.Forks, except that each has memory of its own.

    `state` are small arrays that may change on rank 0 between two runs: each run carries them to the others. Where rank
    0 calls `run(work, count, step)`, all others get `there(state, count, step)` to call, a function that can be found
    by its name: it calls their `follow(work, state, count, step)`. `owned` are flat arrays of which each rank has its
    own part only, until rank 0 calls `complete`: then the others get `give()` to call, which publishes theirs.
    """

    carries = True

    def __init__(self, there, give, state, owned, parts=processes.PARTS):
        self.comm, self.parts, self.there, self.give = comm(), parts, there, give
        self.state, self.owned, self.whole = state, owned, True
        self.rank, self.world = self.comm.rank, self.comm.size

    def run(self, work, count, step):
        """What work(count, step) returns on rank 0."""
        call(self.there, [cuda.to_host(x).copy() for x in self.state], count, step)
        with together(), processes.member(self):
            found = work(count, step)
        self.whole = False
        return found

    def complete(self):
        """On rank 0: have all of the arrays `owned`, if a step was made since this was called last."""
        if not self.whole:
            call(self.give)
            self.publish(self.owned)
            self.whole = True

    def follow(self, work, state, count, step):
        for x, carried in zip(self.state, state, strict=True):
            x[...] = np.asarray(carried, like=x)
        with processes.member(self):
            work(count, step)

    def carry(self, arrays):
        """Give rank 0's arrays to all: every rank calls this."""
        for x in arrays:
            host = cuda.to_host(x)
            self.comm.Bcast(host)
            if host is not x:
                x[...] = np.asarray(host, like=x)

    def exchange(self, x):
        """The arrays x of all processes, in order: (world, *x.shape)."""
        every = np.empty((self.world, *x.shape), x.dtype)
        self.comm.Allgather(np.ascontiguousarray(x), every)
        return every

    def publish(self, arrays):
        """Each rank has updated its part of these flat arrays: now all have all of them."""
        from mpi4py import MPI

        for x in arrays:
            self.comm.Allgatherv(MPI.IN_PLACE, [x, self._sizes(len(x))])

    def scatter(self, x):
        """Of x (n,), which each rank has its own of, what is this rank's part in all of them: (world, part)."""
        sizes = self._sizes(len(x))
        found = np.empty((self.world, sizes[self.rank]), x.dtype)
        self.comm.Alltoallv([x, sizes], [found, [sizes[self.rank]] * self.world])
        return found

    def collect(self, part, n):
        """The parts of all ranks behind one another, (n,)."""
        found = np.empty(n, part.dtype)
        self.comm.Allgatherv(np.ascontiguousarray(part), [found, self._sizes(n)])
        return found

    def _sizes(self, n):
        """How much of a flat array (n,) is each rank's part."""
        parts = [processes.part_of(n, rank, self.world) for rank in range(self.world)]
        return [part.stop - part.start for part in parts]
