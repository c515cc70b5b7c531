"""What a log wants to know of a training beside its losses."""

import statistics
from contextlib import contextmanager
from dataclasses import replace

import numpy as np

from minisagan import cuda, rng
from minisagan.autograd import no_tape
from minisagan.beyond.pack import packed
from minisagan.sampling import noise
from minisagan.together import normalised_layers, normalised_weights

FEW = 8  # images, or packs of them as D sees them, that attention is measured on


def measure(training):
    """Name -> float; every ten steps it costs half a percent of the time.

    The norms of the last gradients; the least, median and greatest sigma of the spectrally normalised layers; the
    gates gamma of attention, and |gamma o| / |x|, what comes through them, for a few images of G's.
    """
    training.complete()
    norm, config = np.linalg.norm, training.config
    found = {"grad_g": norm(training.adam_g.g), "grad_d": norm(training.adam_d.g)}
    networks, sigmas = {"g": training.G.eval(), "d": training.D.eval()}, {}
    with no_tape():
        for name, net in networks.items():
            layers = normalised_layers(net)
            made = normalised_weights(layers)
            sigmas[name] = [norm(layer.w.data) / norm(w.data) for layer, w in zip(layers, made, strict=True)]
        if config.architecture.attention:
            pack = config.architecture.pack
            few = replace(config, batch_size=FEW * pack, accumulate=1)
            z, labels = noise(few, rng.Stream.Z_G, rng.Stream.LABELS_G, training.adam_g.t)
            with attended(training.G) as of_g, attended(training.D) as of_d:
                training.D(*packed(training.G(z, labels), labels, pack))
            for name, ((x, y),) in (("g", of_g), ("d", of_d)):
                found[f"gamma_{name}"] = networks[name].attention.gamma.data
                found[f"ratio_{name}"] = norm(y - x) / norm(x)
    numbers = np.stack([*found.values(), *sigmas["g"], *sigmas["d"]])
    numbers = iter(cuda.to_host(numbers).tolist())  # one copy for all
    found = {name: next(numbers) for name in found}
    for name, values in sigmas.items():
        if values := [next(numbers) for _ in values]:
            found[f"sigma_{name}_min"], found[f"sigma_{name}_max"] = min(values), max(values)
            found[f"sigma_{name}_median"] = statistics.median(values)
    return found


@contextmanager
def attended(network):
    """Inside, a list that gets (x, y) of each call y = attention(x) of the network, as arrays: for looking on."""
    layer, seen = network.attention, []

    def attention(x):
        y = layer(x)
        seen.append((x.data, y.data))
        return y

    network.attention = attention
    try:
        yield seen
    finally:
        network.attention = layer
