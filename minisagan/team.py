"""Who shares a training's batches: its process alone, forks of it, or the ranks that an MPI launcher started.

Rank 0 makes a training as one process does; the others are then told to make the same one from the same data, and
follow its steps. Only the data set is read by each: if one has another, nothing begins.
"""

import weakref

from minisagan import cpu, data
from minisagan.errors import Fault, UsageError
from minisagan.launcher import launched
from minisagan.processes import Alone, checked, fork, mpi

_training = None  # on a rank above 0: the training that it has a share in


def size(processes, config, gpu):
    """How many processes share each batch; None: all of MPI's, else as many as suit the cores and the batch."""
    pack = config.architecture.pack
    images = config.batch_size // pack  # or packs of them: what each process has to have equally many of
    if processes is None:
        rank, world = launched()
        if world > 1 and gpu:
            raise UsageError("MPI's processes share batches on CPUs only: start one process for a GPU, or --device cpu")
        if world > 1 and images < world * fork.FEWEST:
            least = world * fork.FEWEST * pack
            raise UsageError(f"{world} processes need {fork.FEWEST * pack} images each: --batch-size {least} or more")
        processes = world if world > 1 else 1 if gpu else fork.sensible(cpu.threads(), images, config.parts)
    return checked(processes, images, config.parts)


def invite(training):
    """On rank 0: let all other ranks make this training, too. DataError, naming the rank, if one can't."""
    mpi.call(_join, type(training), training.config, training.dataset.origin or training.dataset)
    mpi.agree(data=training.dataset.hashes)


def _join(kind, config, origin):
    global _training
    error, dataset, _training = None, None, None
    try:
        dataset = data.load(*origin) if isinstance(origin, tuple) else origin
        training = kind(config, dataset, processes=None)
    except (Fault, OSError, MemoryError) as caught:
        error = f"{type(caught).__name__}: {caught}"
    if mpi.agree(error, data=getattr(dataset, "hashes", None)):
        _training, training.team = training, _ranks(training)


def assemble(training, invited):
    """The group whose `run` makes the training's steps. Forks have its memory; other ranks are given all arrays."""
    if training.processes == 1:
        return Alone(training.config.parts)
    if invited:
        mpi.call(_take)
        ranks = _ranks(training)
        ranks.carry(training.state().values())
        return ranks
    config = training.config
    # gradients are the most that they exchange, or batch norm's two numbers for each image and channel
    widest = config.architecture.generator_width(4) * config.batch_size * 8
    largest = max(training.adam_g.weights.nbytes, training.adam_d.weights.nbytes, widest)
    forks = fork.Forks(training.processes, largest, training.steps, training.small(), config.parts)
    weakref.finalize(training, forks.close)
    return forks


def _ranks(training):
    return mpi.Ranks(_follow, _give, training.small(), training.owned(), training.config.parts)


def _take():
    _training.team.carry(_training.state().values())


def _follow(state, count, step):
    _training.team.follow(_training.steps, state, count, step)


def _give():
    _training.team.publish(_training.owned())
