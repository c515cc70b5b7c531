"""Whether a GPU trains as the CPU does: the same step on both, from the same weights, with the same noise and data.

    error = |a - b| / |b|

for the losses and for each network's gradients, as vectors. Weights are no measure: Adam's first step is lr sign(g),
and the sign of a gradient that is all but zero is anybody's.
"""

from dataclasses import replace

import numpy as np

from minisagan import cuda, data
from minisagan.config import Architecture, Config
from minisagan.train import Training

SMALL = Config(batch_size=16, architecture=Architecture(width=8, attention_key=8))  # tried in a moment


def noise_images(config, count):
    """A data set of `count` images of uniform noise, for networks like these."""
    arch, random = config.architecture, np.random.default_rng(0)
    images = random.integers(0, 256, (count, arch.size, arch.size, arch.channels), np.uint8)
    return data.Dataset("noise", images, np.arange(count) % max(1, arch.classes), ("",) * max(1, arch.classes), {})


def open_gates(*networks):
    """Set their gammas, of those that have attention, to 0.5: at first they are 0, and nothing of it would show."""
    for network in networks:
        if network.arch.attention:
            network.attention.gamma.data[...] = 0.5


def errors(config):
    """Relative differences of a training step on the GPU from the CPU's, what -> error."""
    config = replace(config, flip=True)
    dataset = noise_images(config, 3 * config.batch_size)
    gpu, cpu = Training(config, dataset, gpu=True), Training(config, dataset)
    open_gates(gpu.G, gpu.D, cpu.G, cpu.D)
    losses = [list(training.advance().values()) for training in (gpu, cpu)]
    return {
        "losses": _error(*map(np.array, losses)),
        "gradients of D": _error(gpu.adam_d.g, cpu.adam_d.g),
        "gradients of G": _error(gpu.adam_g.g, cpu.adam_g.g),
    }


def _error(a, b):
    return float(np.linalg.norm(cuda.to_host(a) - b) / np.linalg.norm(b))
