"""Images from a generator: noise, standing statistics, and the numbered samples of a seed."""

import numpy as np

from minisagan import cuda, data, nn, rng
from minisagan.autograd import no_tape
from minisagan.launcher import launched
from minisagan.processes import mpi
from minisagan.stderr import progress

BATCH = 16  # images that `draw` makes at a time
STANDING_BATCHES = 16  # over which a generator's batch statistics are taken


def noise(config, z_stream, label_stream, step):
    """What a generator is given to be measured: z (N, latent) standard normal, labels (N,) uniform over the classes.

    Images that D sees at once, i, N/k + i, ... of k, are of one class. Labels are None for an unconditional generator.
    Both lie where `step` does.
    """
    N, arch = config.batch_size, config.architecture
    z = rng.normal((N, arch.latent), config.seed, z_stream, step)
    if not arch.classes:
        return z, None
    labels = rng.labels(N // arch.pack, arch.classes, config.seed, label_stream, step)
    return z, np.concatenate([labels] * arch.pack) if arch.pack > 1 else labels


def take_statistics(generator, trained, config):
    """Measure the batch statistics of the generator's own weights, and leave it in evaluation mode.

    STANDING_BATCHES batches of noise, always the same ones, go through it; the running statistics become their means.
    These are BigGAN's standing statistics (Brock et al. 2019). Its u begins as that of the `trained` generator, whose
    running average it is: a few power iterations then correct it.
    """
    buffers = generator.buffers()
    for name, buffer in trained.buffers().items():
        buffers[name][...] = buffer
    generator.train()
    norms = list(generator.modules(nn.BatchNorm))
    usual = [norm.momentum for norm in norms]
    with no_tape():
        for k in range(STANDING_BATCHES):
            for norm in norms:
                norm.momentum = k / (k + 1)
            step = np.asarray(k, like=norms[0].mean)
            generator(*noise(config.micro, rng.Stream.STANDING_Z, rng.Stream.STANDING_LABELS, step))
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    generator.eval()


def generate(generator, z, labels, batch=64):
    """Images of the generator as it stands: z (N, latent), labels (N,) or None -> float32 (N, S, S, C).

    They are made `batch` at a time, where the generator lies, and none is remembered there.
    """
    here = next(iter(generator.parameters().values())).data
    images = []
    with no_tape():
        for i in range(0, len(z), batch):
            part = (None if x is None else np.asarray(x[i : i + batch], like=here) for x in (z, labels))
            images.append(cuda.to_host(generator(*part).data))
    return np.concatenate(images)


def in_turn(classes, count):
    """Labels int64 (count,): these classes over and over; None for no classes."""
    return None if classes is None else np.resize(np.array(classes, np.int64), count)


def draw(generator, count, classes, seed, size, truncation=None):
    """Images uint8 (count, size, size, C) and their labels int64 (count,), or None for no classes.

    Sample i has the latent z_i = normal(seed, i) and the class classes[i mod k] of the k asked for (ValueError for k =
    0): it is the same however many are drawn. The generator always draws BATCH at a time, the last few in vain, because
    a matrix product may round differently for another number of rows. Ranks of MPI, if there are any, draw a share
    each.
    """
    if classes is not None and not len(classes):
        raise ValueError("of which classes? None are asked for")
    padded = -(-count // BATCH) * BATCH
    z = latents(generator, padded, seed, truncation)
    labels = in_turn(classes, padded)
    batches = mpi.divided(_drawn, padded // BATCH, generator, z, labels, size)
    images = np.array(batches, np.uint8).reshape(padded, size, size, generator.arch.channels)
    return images[:count], None if labels is None else labels[:count]


def _drawn(k, generator, z, labels, size):
    """The k-th batch of BATCH images: uint8 (BATCH, size, size, C)."""
    batch, (rank, world) = slice(k * BATCH, (k + 1) * BATCH), launched()
    images = generate(generator, z[batch], None if labels is None else labels[batch])
    if rank == 0:
        progress("drawing", min((k + world) * BATCH, len(z)), len(z))
    return data.to_uint8(images, size)


def latents(generator, count, seed, truncation=None):
    """The latents of the first samples of a seed: float32 (count, latent), each number within -T to T if truncated."""
    shape, stream = (count, generator.arch.latent), rng.Stream.SAMPLE_Z
    if truncation is None:
        return rng.normal(shape, seed, stream, 0)
    return rng.truncated_normal(shape, truncation, seed, stream, 0)
