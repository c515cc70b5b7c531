"""Whether a launcher, mpiexec or srun, started this process, and as which of how many: by its environment alone."""

import os

LAUNCHERS = (  # the variables that tell each process its rank, and how many there are
    ("PMI_RANK", "PMI_SIZE"),  # MPICH, Intel MPI, srun --mpi=pmi2
    ("OMPI_COMM_WORLD_RANK", "OMPI_COMM_WORLD_SIZE"),  # Open MPI
    ("PMIX_RANK", "SLURM_NTASKS"),  # srun --mpi=pmix
)


def launched():
    """(rank, world); (0, 1) without a launcher."""
    for rank, world in LAUNCHERS:
        if os.environ.get(rank, "").isdigit() and os.environ.get(world, "").isdigit():
            return int(os.environ[rank]), int(os.environ[world])
    return 0, 1
