"""What a network computes for all its layers at once, when it is called: W / sigma, and the rows of its classes.

Each layer could do so by itself (nn.py). Together it is a few launches on a GPU instead of some for each layer, and the
tape has one place where the images end and the weights begin (train.descend).
"""

from contextlib import contextmanager

from minisagan import ops
from minisagan.nn import BatchNorm, Layer
from minisagan.ops.spectral import spectral_norms


def normalised_layers(network):
    """The layers of a network that have spectral norm."""
    return [layer for layer in network.modules(Layer) if layer.u is not None]


def quotients(layers):
    """w / sigma of each of these spectrally normalised layers; while they train, u takes a step of its iteration."""
    if not layers:
        return []
    weights, states, axes = zip(*((layer.w, layer.u, layer.output_axis) for layer in layers), strict=True)
    return spectral_norms(weights, states, layers[0].training, axes)


@contextmanager
def spectral_weights(network):
    """Inside, the spectrally normalised layers of a network multiply by w / sigma, computed once for all of them.

    `network.used` then lists the parameters as this call of the network used them (w / sigma, or the parameter itself),
    in the order of parameters(). train.descend differentiates by these, so it has to come before another call.
    """
    layers = normalised_layers(network)
    made = quotients(layers)
    of = {id(layer.w): w for layer, w in zip(layers, made, strict=True)}
    network.used = [of.get(id(p), p) for p in network.parameters().values()]
    for layer, w in zip(layers, made, strict=True):
        layer.quotient = w
    try:
        yield
    finally:
        for layer in layers:
            layer.quotient = None


@contextmanager
def rows_of_classes(network, labels):
    """Inside, the gains and biases of a network's batch norms are those of these labels, looked up all at once."""
    norms = [norm for norm in network.modules(BatchNorm) if norm.gain.ndim == 2]
    rows = iter(ops.embeddings([x for norm in norms for x in (norm.gain, norm.bias)], labels) if norms else ())
    for norm in norms:
        norm.rows = next(rows), next(rows)
    try:
        yield
    finally:
        for norm in norms:
            norm.rows = None
