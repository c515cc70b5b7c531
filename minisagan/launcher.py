"""What a launcher, mpiexec or srun, has to do with this process: its rank, its name, and who reports its death."""

import contextlib
import ctypes
import os
import signal
import socket
import sys

LAUNCHERS = (  # the variables that tell each process its rank, and how many there are
    ("PMI_RANK", "PMI_SIZE"),  # MPICH, Intel MPI, srun --mpi=pmi2
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI
    ("PMIX_RANK", "SLURM_NTASKS"),  # srun --mpi=pmix
)


def launched():
    """(rank, world), by the environment alone; (0, 1) without a launcher."""
    for rank, world in LAUNCHERS:
        if os.environ.get(rank, "").isdigit() and os.environ.get(world, "").isdigit():
            return int(os.environ[rank]), int(os.environ[world])
    return 0, 1


def named(*_):
    """This rank and its host, in words."""
    return f"rank {launched()[0]} on {socket.gethostname()}"


def guard():
    """Go on in a fork of this process, which itself only waits to say, if the fork is killed, which rank that was.

    A killed process can't say it, as when the memory is full, and the other ranks are ended by the launcher as soon as
    the process ends that it knows: this one. Whatever ends this one ends the fork, too. On Linux; elsewhere it does
    nothing. To be called before there are threads.
    """
    if sys.platform != "linux":
        return
    fork = os.fork()
    if not fork:
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG
        return
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):  # launchers send them to both: the fork sees to them
        signal.signal(number, signal.SIG_IGN)
    code = os.waitstatus_to_exitcode(os.waitpid(fork, 0)[1])
    if code < 0:
        why = ": is its memory full?" if code == -signal.SIGKILL else ""
        os.write(2, f"Error: {named()} was killed by {signal.Signals(-code).name}{why}\n".encode())
        with contextlib.suppress(OSError):
            signal.signal(-code, signal.SIG_DFL)  # not of SIGKILL
        os.kill(os.getpid(), -code)  # launchers end all ranks if one ends by a signal
    os._exit(code)
