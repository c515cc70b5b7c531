"""Every op, layer and network under the gradient checker: what `minisagan gradcheck` and the tests go through.

A function here stands for one of them, and yields its cases: shapes that are easily got wrong (one image, odd
sizes, a kernel larger than the image, several chunks), broadcasting, inputs used twice, extreme values. Of
each op the first case is checked once more with inputs that do not lie contiguously in memory.
"""

from dataclasses import dataclass, replace
from functools import partial, reduce

import numpy as np

from minisagan import cuda, nn, ops
from minisagan.autograd import Tensor
from minisagan.errors import UsageError
from minisagan.gradcheck import EVERY_ELEMENT, check, check_adjoint
from minisagan.models import Architecture, Discriminator, Generator

CASES = {}


@dataclass(frozen=True)
class Case:
    """f at `inputs`; `linear` in each while the others are held; `reference` and `names` as in `check`."""

    name: str
    f: callable
    inputs: tuple
    linear: bool = False
    reference: callable = None
    names: tuple = None
    every_element: int = EVERY_ELEMENT


def run(name=None, gpu=False):
    """Check the op of this name, or all: yields a Result for each case, and one more where it is linear."""
    if name is not None and name not in CASES:
        raise UsageError(f"there is no op {name!r} to check; there are {', '.join(CASES)}")
    for op in CASES if name is None else [name]:
        for case in cases(op):
            title = f"{op}: {case.name}"
            inputs = [cuda.cupy().asarray(x) for x in case.inputs] if gpu else case.inputs
            yield check(
                case.f,
                *inputs,
                name=title,
                names=case.names,
                reference=case.reference,
                every_element=case.every_element,
            )
            if case.linear:
                yield check_adjoint(case.f, *inputs, name=title, names=case.names)


def cases(op):
    """The cases of one op, its inputs drawn from a generator of its own."""
    rng = np.random.default_rng(0)
    found = list(CASES[op](lambda *shapes: tuple(rng.standard_normal(shape) for shape in shapes)))
    if op in ops.__all__:
        inputs = tuple(_strided(x) for x in found[0].inputs)
        found.insert(1, replace(found[0], name=f"{found[0].name}, strided", inputs=inputs))
    return found


def _table(cases_of_op):
    """Enter a function into the table under its own name."""
    CASES[cases_of_op.__name__] = cases_of_op
    return cases_of_op


def _strided(x):
    """The same numbers two apart in memory, axes in reverse order."""
    return np.repeat(x.T.ravel(), 2)[::2].reshape(x.T.shape).T


@_table
def add(draw):
    yield Case("one shape", ops.add, draw((3, 4), (3, 4)))
    yield Case("broadcast", ops.add, draw((2, 1, 4), (3, 1)))
    yield Case("x + x", lambda x: x + x, draw((2, 3)))
    yield Case("several chunks", ops.add, draw((3, 16, 60, 50), (3, 16, 60, 50)))


@_table
def subtract(draw):
    yield Case("one shape", ops.subtract, draw((3, 4), (3, 4)))
    yield Case("broadcast", ops.subtract, draw((4,), (2, 3, 1)))
    yield Case("3 - x - 1", lambda x: 3 - x - 1, draw((2, 3)))


@_table
def multiply(draw):
    yield Case("one shape", ops.multiply, draw((3, 4), (3, 4)), linear=True)
    yield Case("broadcast", ops.multiply, draw((2, 1, 4), (3, 1)), linear=True)
    yield Case("by a scalar tensor", ops.multiply, draw((2, 3, 2), ()), linear=True)
    yield Case("x * x", lambda x: x * x, draw((2, 3)))


@_table
def divide(draw):
    (a, b), (row, column) = draw((3, 4), (3, 4)), draw((4,), (3, 1))
    yield Case("one shape", ops.divide, (a, 2 + abs(b)))
    yield Case("broadcast", ops.divide, (row, -2 - abs(column)))
    yield Case("x / (1 + x * x)", lambda x: x / (1 + x * x), (a,))
    yield Case("by a constant", lambda a: -a / (2 + b * b), (a,), linear=True)


@_table
def matmul(draw):
    yield Case("matrices", ops.matmul, draw((3, 5), (5, 2)), linear=True)
    yield Case("stacks", ops.matmul, draw((2, 3, 4), (2, 4, 5)), linear=True)
    yield Case("stacks, broadcast", ops.matmul, draw((2, 1, 3, 4), (5, 4, 2)), linear=True)
    yield Case("x @ x^T", lambda x: x @ x.transpose(), draw((3, 4)))


@_table
def reshape(draw):
    yield Case("flat", partial(ops.reshape, shape=(-1,)), draw((2, 3, 4)), linear=True)
    yield Case("more axes", lambda x: x.reshape(3, 1, -1), draw((6, 2)), linear=True)


@_table
def transpose(draw):
    yield Case("a cycle", partial(ops.transpose, axes=(1, 2, 0)), draw((2, 3, 4)), linear=True)
    yield Case("reversed", ops.transpose, draw((2, 3, 4)), linear=True)
    yield Case("counted from the end", lambda x: x.transpose(-1, 0, 1), draw((2, 3, 4)), linear=True)


@_table
def sum(draw):
    yield Case("all", ops.sum, draw((2, 3, 4)), linear=True)
    yield Case("one axis", partial(ops.sum, axis=1), draw((2, 3, 4)), linear=True)
    yield Case("two axes, one from the end", partial(ops.sum, axis=(0, -2)), draw((2, 3, 4)), linear=True)
    yield Case("keepdims", partial(ops.sum, axis=(1, 2), keepdims=True), draw((2, 3, 4)), linear=True)


@_table
def mean(draw):
    yield Case("all", ops.mean, draw((2, 3, 4)), linear=True)
    yield Case("the last axis", lambda x: x.mean(-1), draw((2, 3, 4)), linear=True)
    yield Case("keepdims", partial(ops.mean, axis=(0, 2), keepdims=True), draw((2, 3, 4)), linear=True)


@_table
def relu(draw):
    yield Case("H != W", ops.relu, draw((2, 3, 5, 4)))
    yield Case("one axis", ops.relu, draw((7,)))
    yield Case("a scalar", ops.relu, draw(()))
    yield Case("several chunks", ops.relu, draw((3, 16, 60, 50)))
    yield Case("x + relu(x) * x", lambda x: x + ops.relu(x) * x, draw((3, 4)))


@_table
def tanh(draw):
    yield Case("H != W", ops.tanh, draw((2, 3, 5, 4)))
    (x,) = draw((3, 4))
    yield Case("far out", ops.tanh, (1e3 * x,))


@_table
def softmax(draw):
    yield Case("last axis", ops.softmax, draw((3, 5)))
    yield Case("middle axis", partial(ops.softmax, axis=1), draw((2, 5, 3)))
    (x,) = draw((4, 6))
    yield Case("logits of +-1000", ops.softmax, (x + 1e3 * np.sign(x),))


@_table
def attend(draw):
    yield Case("I != J", ops.attend, draw((2, 6, 2), (2, 5, 2), (2, 5, 3)))
    yield Case("one image, one key", ops.attend, draw((1, 4, 2), (1, 1, 2), (1, 1, 3)))
    yield Case("one tensor for all three", lambda x: ops.attend(x, x, x), draw((2, 4, 3)))
    yield Case("several chunks", ops.attend, draw((9, 80, 2), (9, 100, 2), (9, 100, 3)))
    query, key, value = draw((1, 3, 50), (1, 4, 50), (1, 4, 5))
    key += 4.5 - key.mean(-1, keepdims=True)
    signs = np.array([1, -1, 1, -1])[:, None]
    yield Case("logits of +-1000", ops.attend, (4.5 + 0.1 * query, signs * key, value))  # 50 * 4.5^2 = 1000
    weights = draw((3, 4, 2), (3, 5, 2))

    def of_values(value):
        return ops.attend(*(Tensor(np.asarray(t, value.dtype, like=value.data)) for t in weights), value)

    yield Case("value alone", of_values, draw((3, 5, 3)), linear=True)


@_table
def batch_norm(draw):
    def norm(x, gain, bias, statistics=None, relu=False):
        if statistics is not None:
            statistics = tuple(np.asarray(s, x.dtype, like=x.data) for s in statistics)
        return ops.batch_norm(x, gain, bias, statistics, relu)[0]

    shared, own = ((2, 3, 4, 5), (5,), (5,)), ((3, 2, 4, 3), (3, 3), (3, 3))
    yield Case("training", norm, draw(*shared))
    yield Case("training, (N, C)", norm, draw(*own))
    yield Case("training, relu", partial(norm, relu=True), draw(*shared))
    yield Case("training, (N, C), relu", partial(norm, relu=True), draw(*own))
    yield Case("one image", norm, draw((1, 3, 2, 4), (4,), (4,)))
    yield Case("one number a channel", norm, draw((1, 1, 1, 4), (4,), (4,)))
    x, gain, bias = draw(*shared)

    def shifted(x, before):
        return norm(x + before, *(Tensor(np.asarray(a, like=x.data)) for a in (gain, bias)))

    yield Case("mean far from 0", norm, (x + 30, gain, bias))
    yield Case("several chunks", partial(norm, relu=True), draw((5, 24, 20, 45), (5, 45), (5, 45)))
    mean, spread = draw((5,), (5,))
    evaluation = partial(norm, statistics=(mean, 0.5 + spread**2))
    yield Case("evaluation", evaluation, draw(*shared))
    yield Case("evaluation, relu", partial(evaluation, relu=True), draw(*shared))
    yield Case("evaluation, (N, C), relu", partial(evaluation, relu=True), draw((3, 2, 1, 5), (3, 5), (3, 5)))
    yield Case("a bias before it", shifted, draw(*shared[:2]))


@_table
def conv(draw):
    def both(name, x, w, stride=1):
        yield Case(name, partial(ops.conv, stride=stride), draw(x, w, w[3:]))
        yield Case(f"{name}, no bias", partial(ops.conv, stride=stride), draw(x, w), linear=True)

    yield from both("3x3", (2, 4, 5, 3), (3, 3, 3, 2))
    yield from both("1x1", (2, 4, 3, 4), (1, 1, 4, 3))
    yield from both("5x5, one image", (1, 6, 4, 2), (5, 5, 2, 3))
    yield from both("3x1", (2, 5, 4, 2), (3, 1, 2, 3))
    yield from both("1x5", (2, 3, 4, 3), (1, 5, 3, 2))
    yield from both("5x5, larger than the image", (2, 1, 2, 3), (5, 5, 3, 2))
    yield from both("3x3, stride 2", (2, 4, 6, 3), (3, 3, 3, 2), 2)
    yield from both("3x3, stride 2, odd sizes", (2, 5, 7, 2), (3, 3, 2, 3), 2)
    yield from both("5x3, stride 2", (1, 5, 4, 2), (5, 3, 2, 3), 2)
    yield from both("1x1, stride 2", (2, 5, 4, 3), (1, 1, 3, 2), 2)
    yield from both("3x3, several chunks", (7, 24, 20, 6), (3, 3, 6, 5))
    yield from both("3x3, stride 2, several chunks", (9, 31, 32, 5), (3, 3, 5, 3), 2)
    yield from both("1x1, several chunks", (11, 20, 30, 16), (1, 1, 16, 15))
    residual = lambda x, w: x + ops.conv(ops.relu(x), w)
    yield Case("x + conv(relu(x))", residual, draw((2, 3, 4, 3), (3, 3, 3, 3)))
    yield Case("one weight twice", lambda x, w: ops.conv(ops.conv(x, w), w), draw((1, 4, 3, 2), (3, 3, 2, 2)))


@_table
def up_conv(draw):
    yield Case("H != W", ops.up_conv, draw((2, 3, 4, 3), (3, 3, 3, 2), (2,)))
    yield Case("no bias", ops.up_conv, draw((2, 4, 3, 2), (3, 3, 2, 3)), linear=True)
    yield Case("one pixel", ops.up_conv, draw((1, 1, 1, 4), (3, 3, 4, 3), (3,)))
    yield Case("several chunks", ops.up_conv, draw((7, 20, 16, 9), (3, 3, 9, 7)), linear=True)


@_table
def conv_down(draw):
    yield Case("H != W", ops.conv_down, draw((2, 4, 6, 3), (3, 3, 3, 2), (2,)))
    yield Case("no bias", ops.conv_down, draw((2, 6, 4, 2), (3, 3, 2, 3)), linear=True)
    yield Case("to one pixel", ops.conv_down, draw((1, 2, 2, 4), (3, 3, 4, 3), (3,)))
    yield Case("several chunks", ops.conv_down, draw((7, 32, 40, 6), (3, 3, 6, 5)), linear=True)


@_table
def upsample(draw):
    yield Case("H != W", ops.upsample, draw((2, 3, 4, 3)), linear=True)
    yield Case("one pixel", ops.upsample, draw((1, 1, 1, 2)), linear=True)


@_table
def avg_pool(draw):
    yield Case("H != W", ops.avg_pool, draw((2, 4, 6, 3)), linear=True)
    yield Case("to one pixel", ops.avg_pool, draw((1, 2, 2, 3)), linear=True)


@_table
def max_pool(draw):
    yield Case("H != W", ops.max_pool, draw((2, 4, 6, 3)))
    yield Case("to one pixel", ops.max_pool, draw((1, 2, 2, 3)))
    yield Case("equal numbers", ops.max_pool, (np.round(draw((2, 4, 4, 3))[0]),))


@_table
def embedding(draw):
    def look_up(*labels):
        return lambda table: ops.embedding(table, np.array(labels, like=table.data))

    yield Case("labels repeated and unused", look_up(3, 0, 3, 2, 3, 0), draw((5, 4)), linear=True)
    yield Case("one label", look_up(2), draw((3, 2)), linear=True)


@_table
def cross_entropy(draw):
    def loss(*labels):
        return lambda x: ops.cross_entropy(x, np.array(labels))

    yield Case("labels repeated and unused", loss(3, 0, 3), draw((3, 4)))
    yield Case("one image", loss(1), draw((1, 3)))
    (x,) = draw((4, 3))
    yield Case("logits of +-1000", loss(2, 0, 1, 2), (x + 1e3 * np.sign(x),))


@_table
def hinge_discriminator(draw):
    yield Case("a batch", ops.hinge_discriminator, draw((12,)))
    yield Case("one of each", ops.hinge_discriminator, draw((2,)))
    (scores,) = draw((6,))
    yield Case("all beyond the margin", ops.hinge_discriminator, (np.repeat([2.0, -2.0], 3) + scores / 10,))


@_table
def hinge_generator(draw):
    yield Case("a batch", ops.hinge_generator, draw((7,)), linear=True)
    yield Case("one", ops.hinge_generator, draw((1,)), linear=True)


@_table
def spectral_norm(draw):
    """At a random u, far from converged: once converged, a wrong treatment of u and v would go unnoticed.

    With u at rest sigma = |W^T u| has the gradient u v^T as it stands. With u moving, the rule holds u and v:
    so does the reference, with those that it computes once for the base point.
    """
    for layout, shape, axis in [("last", (3, 3, 2, 4), -1), ("last", (6, 5), -1), ("first", (5, 3), 0)]:
        w, u = draw(shape, (shape[axis],))
        u /= np.linalg.norm(u)

        def matrix(w, axis=axis):
            return w.reshape(-1, w.shape[-1]).T if axis == -1 else w

        right = matrix(w).T @ u
        right /= np.linalg.norm(right)
        left = matrix(w) @ right
        left /= np.linalg.norm(left)

        def norm(w, move, u=u, axis=axis):
            return ops.spectral_norm(w, np.array(u, w.dtype, like=w.data), move, axis)

        def held(w, left=left, right=right, matrix=matrix):
            return Tensor(w.data / (left @ matrix(cuda.to_host(w.data)) @ right))

        title = f"{len(shape)} axes, channels {layout}"
        yield Case(f"{title}, at rest", partial(norm, move=False), (w,))
        yield Case(f"{title}, moving", partial(norm, move=True), (w,), reference=held)


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
    return nn.Init(0, dtype=np.float64)


@_table
def linear(draw):
    yield _module("SN-linear", nn.Linear(_init(), 5, 4), lambda layer, x: layer(x), *draw((3, 5)))


@_table
def sn_conv(draw):
    yield _module("SN-conv 3x3", nn.Conv(_init(), 2, 3), lambda layer, x: layer(x), *draw((2, 4, 5, 2)))


@_table
def sn_embedding(draw):
    yield _module("SN-embedding", nn.Embedding(_init(), 4, 3), lambda layer: layer(np.array([3, 0, 3], like=layer.u)))


@_table
def conditional_batch_norm(draw):
    layer = nn.BatchNorm(_init(), 3, classes=4)
    yield _module("by class", layer, lambda layer, x: layer(x, np.array([3, 0, 3], like=x.data)), *draw((3, 4, 2, 3)))


@_table
def self_attention(draw):
    for form in ("official", "paper"):
        layer = nn.SelfAttention(_init(), 8, form)
        yield _module(form, layer, lambda layer, x: layer(x), *draw((2, 4, 6, 8)))


@_table
def up_block(draw):
    layer = nn.UpBlock(_init(), 3, 2, classes=2, momentum=0.9, spectral=True)
    yield _module("by class", layer, lambda layer, x: layer(x, np.array([1, 0], like=x.data)), *draw((2, 3, 4, 3)))


@_table
def down_block(draw):
    for name, options in (("first", {"first": True}), ("down", {}), ("last", {"down": False})):
        layer = nn.DownBlock(_init(), 3, 3, True, **options)
        yield _module(name, layer, lambda layer, x: layer(x), *draw((2, 4, 6, 3)))


@_table
def discriminator_loss(draw):
    """L_D by all of D's parameters, and by the images."""
    for form in ("official", "paper"):
        D = Discriminator(Architecture(width=8, classes=3, attention_form=form), _init())
        (x,) = draw((4, 32, 32, 1))

        def loss(D, x):
            return ops.hinge_discriminator(D(x, np.array([0, 1, 2, 2], like=x.data)))

        yield _module(form, D, loss, np.tanh(x), every_element=16)


@_table
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
