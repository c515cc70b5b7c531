"""Noise without a state: every number is a pure function of (seed, stream, step, index).

Philox4x64-10 (Salmon, Moraes, Dror and Shaw, *Parallel random numbers: as easy as 1, 2, 3*, SC 2011) is a
bijection of a 256-bit counter under a 128-bit key: ten rounds of multiply and xor. Here

    bits[4b .. 4b + 3] = Philox(key = (seed, stream), counter = (b, step, redraw, 0))      for block b = 0, 1, ...

so a checkpoint has nothing to save but the step, a resumed run draws what the uninterrupted one would have
drawn, and a GPU thread computes any element from its index alone. The integers are equal on every device;
the normals, which pass through log, cos and sin, agree to 1 ulp of float32.

`step` is an integer, or an int64 array () on the GPU: the numbers are then drawn there, by the kernels of rng.cu. They
know no redraw: bits, truncated_normal and permutation take integers alone.
"""

import math
import operator

import numpy as np

from minisagan import cuda
from minisagan.errors import UsageError

kernels = cuda.Kernels(__file__)

WORD = 2**64
TO_UNIT = 2.0**-53  # the top 53 bits of a word, times this, are a float64 in [0, 1), exactly


class Stream:
    """What a number is drawn for, the second word of the key. Append only: renumbering changes every run."""

    Z_D = 0  # latents of the images that a step of D sees, and that of G after it; step = D's micro-batches until then
    Z_G = 1  # latents of the few images that a log measures attention on; step = G's steps until then
    LABELS_D = 2  # not in use: the images that D sees bring the classes along
    LABELS_G = 3  # classes of Z_G's images
    SHUFFLE = 4  # order of the data; step = epoch
    FLIP = 5  # mirrored images; step = D's micro-batches until then
    INIT = 6  # first weights; step = number of the parameter
    SAMPLE_Z = 7  # latents outside of training: sample grids, metrics; step = 0, so that sample i has always the same
    SAMPLE_LABELS = 8  # not in use: samples have their classes in turn
    STANDING_Z = 9  # latents for standing statistics; step = batch
    STANDING_LABELS = 10  # classes of the same
    SHIFT = 11  # how a classifier's training images are moved; step = training step
    COMPANIONS = 12  # images that D sees at once with those whose turn it is; step = D's micro-batches until then
    AUGMENT_REAL = 13  # how the real images of a D step are augmented; step = D's micro-batches until then
    AUGMENT_FAKE = 14  # how the generated ones are; step as for the real ones
    AUGMENT_G = 15  # how those of a G step are; step = G's micro-batches until then


def bits(count, seed, stream, step, redraw=0):
    """The first `count` words of a step: uint64 (count,). `redraw` counts other words for the same use, from 0.

    UsageError unless seed, stream and step are integers in [0, 2^64).
    """
    seed, stream, step = _word("seed", seed), _word("stream", stream), _word("step", step)
    first = step * WORD + redraw * WORD**2  # the counter (0, step, redraw, 0); NumPy adds 1 before it makes a block
    return np.random.Philox(key=stream * WORD + seed, counter=(first - 1) % WORD**4).random_raw(count)


def uniform(shape, seed, stream, step):
    """Uniform in [0, 1): float64 of `shape`, element i = (bits[i] >> 11) / 2^53."""
    if cuda.on_gpu(step):
        return _draw("uniform", shape, np.float64, seed, stream, step)
    return ((bits(math.prod(shape), seed, stream, step) >> 11) * TO_UNIT).reshape(shape)


def normal(shape, seed, stream, step, redraw=0):
    """Standard normal: float32 of `shape`, by Box and Muller in float64, rounded once at the end.

    Elements 2i and 2i + 1 come from words 2i and 2i + 1; an odd number of elements drops the last sine:

        u1 = ((bits[2i] >> 11) + 1) / 2^53   in (0, 1]        u2 = (bits[2i+1] >> 11) / 2^53   in [0, 1)
        x[2i]     = sqrt(-2 ln u1) cos(2 pi u2)
        x[2i + 1] = sqrt(-2 ln u1) sin(2 pi u2)

    No element exceeds sqrt(106 ln 2) = 8.57 in size.
    """
    if cuda.on_gpu(step):
        return _draw("normal", shape, np.float32, seed, stream, step)
    size = math.prod(shape)
    words = (bits(size + size % 2, seed, stream, step, redraw) >> 11).reshape(-1, 2)  # (pairs, 2)
    radius = np.sqrt(-2 * np.log((words[:, 0] + 1) * TO_UNIT))
    angle = 2 * np.pi * (words[:, 1] * TO_UNIT)
    pairs = np.stack([radius * np.cos(angle), radius * np.sin(angle)], axis=1)  # (pairs, 2)
    return pairs.reshape(-1)[:size].reshape(shape).astype(np.float32)


def truncated_normal(shape, limit, seed, stream, step):
    """Standard normal on condition that |x| <= limit: float32 of `shape`.

    Element i is element i of the first of the draws normal(..., redraw = 0, 1, 2, ...) in which it lies within: so it
    is as random as ever, depends on no other element, and where `normal` was within the limit nothing changes.
    UsageError for a limit below 0.1, within which only 8 % of all draws lie.
    """
    if not limit >= 0.1:  # True for NaN, too
        raise UsageError(f"the truncation must be at least 0.1, not {limit}")
    x, redraw, limit = normal(shape, seed, stream, step), 0, min(limit, 10.0)  # a draw is below 8.6
    while (outside := np.abs(x) > limit).any():
        redraw += 1
        x = np.where(outside, normal(shape, seed, stream, step, redraw), x)
    return x


def labels(count, classes, seed, stream, step):
    """Classes, uniform in [0, classes): int64 (count,), element i = (bits[i] >> 32) * classes >> 32.

    Integers only, so every device agrees; no class is likelier than another by more than 2^-32.
    UsageError unless 1 <= classes < 2^32.
    """
    if not 1 <= classes < 2**32:
        raise UsageError(f"the number of classes must be from 1 to 2^32 - 1, not {classes}")
    if cuda.on_gpu(step):
        return _draw("labels", (count,), np.int64, seed, stream, step, np.uint64(classes))
    return ((bits(count, seed, stream, step) >> 32) * np.uint64(classes) >> 32).astype(np.int64)


def permutation(n, seed, epoch):
    """The order of n images in an epoch: int64 (n,), the stable argsort of n words of Stream.SHUFFLE."""
    return np.argsort(bits(n, seed, Stream.SHUFFLE, epoch), kind="stable")


def _draw(kernel, shape, dtype, seed, stream, step, *more):
    """The array that a kernel fills, each of its threads with four elements."""
    x = cuda.cupy().empty(shape, dtype)
    key = np.uint64(_word("seed", seed)), np.uint64(_word("stream", stream))
    kernels(kernel, cuda.blocks_for(-(-x.size // 4)), 256, x, x.size, *key, step, *more)
    return x


def _word(name, value):
    try:
        word = operator.index(value)
    except TypeError:
        word = -1
    if not 0 <= word < WORD:
        raise UsageError(f"{name} must be an integer from 0 to 2^64 - 1, not {value!r}")
    return word
