"""What a network computes for all its layers at once, when it is called: W / sigma, and the rows of its classes.

Each layer could do so by itself (nn.py). For all at once it takes a few launches on a GPU in place of a few for each
layer, and the tape has one place that parts what depends on images from what depends on weights alone (train.descend).
"""

from contextlib import contextmanager

from minisagan import ops
from minisagan.nn import BatchNorm, Layer, SelfAttention
from minisagan.ops.spectral import spectral_norms


def normalised_layers(network):
    """The layers of a network that have spectral norm."""
    return [layer for layer in network.modules(Layer) if layer.u is not None]


def normalised_weights(layers):
    """w / sigma of each of these spectrally normalised layers; of those that train, u takes a step of its iteration."""
    made = {}
    for training in (True, False):
        if these := [layer for layer in layers if layer.training == training]:
            weights, states, axes = zip(*((layer.w, layer.u, layer.output_axis) for layer in these), strict=True)
            made |= zip(these, spectral_norms(weights, states, training, axes), strict=True)
    return [made[layer] for layer in layers]


@contextmanager
def spectral_weights(network):
    """Inside, the spectrally normalised layers of a network multiply by w / sigma, computed once for all of them.

    `network.used` then lists the parameters as this call of the network uses them: w / sigma, gamma w / sigma, or the
    parameter itself. train.descend differentiates by these, so it has to come before another call.
    """
    layers, attentions = normalised_layers(network), list(network.modules(SelfAttention))
    attentions = [a for a in attentions if type(a).__call__ is SelfAttention.__call__]  # a subclass's own may use gamma
    of = {id(p): p for p in network.parameters().values()}
    for layer, w in zip(layers, normalised_weights(layers), strict=True):
        layer.quotient = of[id(layer.w)] = w
    for attention in attentions:
        attention.gated = of[id(attention.output.w)] = attention.gated_output()
        del of[id(attention.gamma)]  # only there
    network.used = list(of.values())
    try:
        yield
    finally:
        for layer in layers:
            layer.quotient = None
        for attention in attentions:
            attention.gated = None


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
