"""Who shares a training's batches: its process alone, forks of it, or the ranks that an MPI launcher started.

Rank 0 makes a training as one process does; the others are then told to make the same one from the same data, and
follow its steps. Only the data set is read by each: if one has another, nothing begins.
"""

import weakref

import numpy as np

from minisagan import cpu, cuda, data
from minisagan.errors import Diverged, Fault, UsageError
from minisagan.launcher import launched, named
from minisagan.processes import Alone, fork, mpi, nccl

_training = None  # on a rank above 0: the training that it has a share in


def size(processes, config, gpu):
    """How many processes share each batch; None: all of MPI's, else as many as suit the cores and the batch."""
    pack = config.architecture.pack
    images = config.micro.batch_size // pack  # or packs of them: what each process has to have equally many of
    if processes is None:
        rank, world = launched()
        if world > 1 and not gpu and images < world * fork.FEWEST:
            least = world * fork.FEWEST * pack * config.accumulate
            raise UsageError(f"{world} processes need {least // world} images each: --batch-size {least} or more")
        processes = world if world > 1 else 1 if gpu else fork.sensible(cpu.threads(), images, config.parts)
    if gpu and config.parts > nccl.MOST_PARTS:
        raise UsageError(f"a GPU takes at most {nccl.MOST_PARTS} parts (--parts), not {config.parts}")
    batch = "batch" if config.accumulate == 1 else "micro-batch"
    batch = f"a {batch} of {images}" if pack == 1 else f"the {images} packs in a {batch}"
    if processes < 1 or config.parts % processes or images % processes:
        raise UsageError(f"{processes} processes: must divide the {config.parts} parts (--parts) and {batch}")
    return processes


def invite(training):
    """On rank 0 of MPI let all other ranks make this training, too; whether ranks share it. DataError if one can't."""
    rank, world = launched()
    if world > 1 and rank == 0:
        where = {"gpu": cuda.on_gpu(training.losses), "graph": isinstance(training.step_both, cuda.Graph)}
        origin = training.dataset.origin or training.dataset
        mpi.call(_join, type(training), training.config, origin, where, cuda.tf32)
        mpi.agree(data=training.dataset.hashes)
    return world > 1


def _join(kind, config, origin, where, tf32):
    global _training
    error, dataset, _training, cuda.tf32 = None, None, None, tf32
    try:
        dataset = data.load(*origin) if isinstance(origin, tuple) else origin
        training = kind(config, dataset, processes=None, **where)
    except (Fault, OSError, MemoryError) as caught:
        error = f"{type(caught).__name__}: {caught}"
    if mpi.agree(error, data=getattr(dataset, "hashes", None)):
        _training = training


def assemble(training, invited):
    """The group whose `run` makes the training's steps. Forks have its memory; other ranks are given all arrays."""
    if training.processes == 1:
        return Alone(training.config.parts)
    if invited:
        mpi.call(_take)
        with mpi.together():
            ranks = _ranks(training)
            ranks.carry(training.state().values())
        return ranks
    config = training.config.micro
    # gradients are the most that they exchange, or batch norm's two numbers for each image and channel
    widest = config.architecture.generator_width(4) * config.batch_size * 8
    largest = max(training.adam_g.weights.nbytes, training.adam_d.weights.nbytes, widest)
    forks = fork.Forks(training.processes, largest, training.make_steps, small(training), config.parts)
    weakref.finalize(training, forks.close)
    return forks


def diverged(training, bad):
    """The error of steps of which some losses are not finite; bad (count, world, accumulate, losses): which are not."""
    k = bad.any((1, 2, 3)).argmax()
    where = _where(bad[k]) if training.invited else ""
    first = next((name for name, x in training.state().items() if not np.isfinite(x).all()), "the losses alone")
    return Diverged(
        f"step {training.step - len(bad) + 1 + k}: a loss is not finite{where}; first tensor with a NaN or an "
        f"infinity: {first}. Lower --lr-g and --lr-d, or keep spectral norm in both networks"
    )


def _where(bad):
    """In words, on which ranks of MPI a loss was not finite first; bad (world, accumulate, losses): which are not."""
    bad = bad.swapaxes(1, 2).reshape(len(bad), -1)  # in the order in which they are computed
    at_fault = bad[:, bad.any(0).argmax()]  # soon all ranks have some
    names = [name for name, bad in zip(mpi.spread(named), at_fault, strict=True) if bad]
    return " on all ranks" if at_fault.all() else f", first on {' and '.join(names)}"


def owned(training):
    """The flat arrays of which each process updates its part, and which nobody else reads in a step."""
    adams = training.adam_d, training.adam_g
    return [x for adam in adams for x in (adam.m, adam.v, adam.g)] + [training.ema.average]


def small(training):
    """The arrays that are neither shared nor owned in parts: each process has its own, all alike."""
    networks, adams = (training.G, training.D), (training.adam_g, training.adam_d)
    buffers = [buffer for net in networks for buffer in net.buffers().values()]
    return buffers + [training.ema.t] + [count for adam in adams for count in (adam.t, adam.steps)]


def _ranks(training):
    here = _follow, _give, small(training)
    if cuda.on_gpu(training.losses):
        graphs = [step for step in (training.step_d, training.step_both) if isinstance(step, cuda.Graph)]
        return nccl.Gpus(*here, graphs, training.config.parts)
    return mpi.Ranks(*here, owned(training), training.config.parts)


def _take():
    _training.team = _ranks(_training)
    _training.team.carry(_training.state().values())


def _follow(state, count, step):
    _training.team.follow(_training.make_steps, state, count, step)


def _give():
    _training.team.publish(owned(_training))
