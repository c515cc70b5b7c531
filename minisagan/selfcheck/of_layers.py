"""The cases of layers, and of both whole networks with their losses."""

from functools import reduce

import numpy as np

from minisagan import nn, ops
from minisagan.config import Architecture
from minisagan.gradcheck import EVERY_ELEMENT
from minisagan.init import Init
from minisagan.models import Discriminator, Generator
from minisagan.selfcheck.table import Case, Table

CASES = Table()


def _module(name, module, run, *inputs, every_element=EVERY_ELEMENT):
    """A Case for a layer or network: run(module, *inputs) by its inputs and all its parameters.

    Gates of attention are opened (at gamma = 0 the gradients of all projections are 0), and biases, gains and u are
    random; batch norm normalises by the batch, and spectral norm's u rests, so that each call is the same function.
    """
    draw = np.random.default_rng(1).standard_normal
    for layer in module.modules(nn.Layer):
        for _ in range(3):  # from the first u, w / sigma is far larger than in training, and its softmax nearly hard
            layer.weight()
        layer.training = False
    parameters = module.parameters()
    for key, p in parameters.items():
        if p.ndim < 2 or key.endswith(("gain", "bias")):
            p.data = 0.5 * draw(p.shape) + (1 if key.endswith(("gain", "gamma")) else 0)

    def f(*tensors):
        module.to(tensors[0].data)
        for key, tensor in zip(parameters, tensors[len(inputs) :], strict=True):
            *path, last = key.split(".")
            setattr(reduce(getattr, path, module), last, tensor)
        return run(module, *tensors[: len(inputs)])

    names = (*(f"input{i}" for i in range(len(inputs))), *parameters)
    arrays = (*inputs, *(np.asarray(p.data) for p in parameters.values()))
    return Case(name, f, arrays, names=names, every_element=every_element)


def _init():
    return Init(0, dtype=np.float64)


@CASES.enter
def linear(draw):
    yield _module("SN-linear", nn.Linear(_init(), 5, 4), lambda layer, x: layer(x), *draw((3, 5)))


@CASES.enter
def sn_conv(draw):
    yield _module("SN-conv 3x3", nn.Conv(_init(), 2, 3), lambda layer, x: layer(x), *draw((2, 4, 5, 2)))


@CASES.enter
def sn_embedding(draw):
    yield _module("SN-embedding", nn.Embedding(_init(), 4, 3), lambda layer: layer(np.array([3, 0, 3], like=layer.u)))


@CASES.enter
def conditional_batch_norm(draw):
    layer = nn.BatchNorm(_init(), 3, classes=4)
    yield _module("by class", layer, lambda layer, x: layer(x, np.array([3, 0, 3], like=x.data)), *draw((3, 4, 2, 3)))


@CASES.enter
def self_attention(draw):
    for form in ("official", "paper"):
        layer = nn.SelfAttention(_init(), 8, form)
        yield _module(form, layer, lambda layer, x: layer(x), *draw((2, 4, 6, 8)))


@CASES.enter
def up_block(draw):
    layer = nn.UpBlock(_init(), 3, 2, classes=2, momentum=0.9, spectral=True)
    yield _module("by class", layer, lambda layer, x: layer(x, np.array([1, 0], like=x.data)), *draw((2, 3, 4, 3)))


@CASES.enter
def down_block(draw):
    for name, options in (("first", {"first": True}), ("down", {}), ("last", {"down": False})):
        layer = nn.DownBlock(_init(), 3, 3, True, **options)
        yield _module(name, layer, lambda layer, x: layer(x), *draw((2, 4, 6, 3)))


@CASES.enter
def discriminator_loss(draw):
    """L_D by all of D's parameters, and by the images."""
    for form in ("official", "paper"):
        D = Discriminator(Architecture(width=8, classes=3, attention_form=form), _init())
        (x,) = draw((4, 32, 32, 1))

        def loss(D, x):
            return ops.hinge_discriminator(D(x, np.array([0, 1, 2, 2], like=x.data)))

        yield _module(form, D, loss, np.tanh(x), every_element=16)


@CASES.enter
def generator_loss(draw):
    """L_G by all of G's parameters, and by z, through a discriminator at rest."""
    for classes in (2, 0):
        arch = Architecture(width=8, classes=classes, latent=4)
        D = Discriminator(arch, _init()).eval()
        D.attention.gamma.data = np.asarray(0.7)

        def loss(G, z, D=D, classes=classes):
            labels = np.array([1, 0, 1], like=z.data) if classes else None
            return ops.hinge_generator(D.to(z.data)(G(z, labels), labels))

        title = "by class" if classes else "unconditional"
        yield _module(title, Generator(arch, _init()), loss, *draw((3, 4)), every_element=8)
