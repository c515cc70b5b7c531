"""The ops' cases."""

from functools import partial

import numpy as np

from minisagan import cuda, ops
from minisagan.autograd import Tensor
from minisagan.beyond import augment as augmentation
from minisagan.judge import cross_entropy as losses
from minisagan.selfcheck.table import Case, Table

CASES = Table()


@CASES.enter
def add(draw):
    yield Case("one shape", ops.add, draw((3, 4), (3, 4)))
    yield Case("broadcast", ops.add, draw((2, 1, 4), (3, 1)))
    yield Case("x + x", lambda x: x + x, draw((2, 3)))
    yield Case("several chunks", ops.add, draw((3, 16, 60, 50), (3, 16, 60, 50)))


@CASES.enter
def subtract(draw):
    yield Case("one shape", ops.subtract, draw((3, 4), (3, 4)))
    yield Case("broadcast", ops.subtract, draw((4,), (2, 3, 1)))
    yield Case("3 - x - 1", lambda x: 3 - x - 1, draw((2, 3)))


@CASES.enter
def multiply(draw):
    yield Case("one shape", ops.multiply, draw((3, 4), (3, 4)), linear=True)
    yield Case("broadcast", ops.multiply, draw((2, 1, 4), (3, 1)), linear=True)
    yield Case("by a scalar tensor", ops.multiply, draw((2, 3, 2), ()), linear=True)
    yield Case("x * x", lambda x: x * x, draw((2, 3)))


@CASES.enter
def divide(draw):
    (a, b), (row, column) = draw((3, 4), (3, 4)), draw((4,), (3, 1))
    yield Case("one shape", ops.divide, (a, 2 + abs(b)))
    yield Case("broadcast", ops.divide, (row, -2 - abs(column)))
    yield Case("x / (1 + x * x)", lambda x: x / (1 + x * x), (a,))
    yield Case("by a constant", lambda a: -a / (2 + b * b), (a,), linear=True)


@CASES.enter
def matmul(draw):
    yield Case("matrices", ops.matmul, draw((3, 5), (5, 2)), linear=True)
    yield Case("stacks", ops.matmul, draw((2, 3, 4), (2, 4, 5)), linear=True)
    yield Case("stacks, broadcast", ops.matmul, draw((2, 1, 3, 4), (5, 4, 2)), linear=True)
    yield Case("x @ x^T", lambda x: x @ x.transpose(), draw((3, 4)))


@CASES.enter
def reshape(draw):
    yield Case("flat", partial(ops.reshape, shape=(-1,)), draw((2, 3, 4)), linear=True)
    yield Case("more axes", lambda x: x.reshape(3, 1, -1), draw((6, 2)), linear=True)


@CASES.enter
def transpose(draw):
    yield Case("a cycle", partial(ops.transpose, axes=(1, 2, 0)), draw((2, 3, 4)), linear=True)
    yield Case("reversed", ops.transpose, draw((2, 3, 4)), linear=True)
    yield Case("counted from the end", lambda x: x.transpose(-1, 0, 1), draw((2, 3, 4)), linear=True)


@CASES.enter
def sum(draw):
    yield Case("all", ops.sum, draw((2, 3, 4)), linear=True)
    yield Case("one axis", partial(ops.sum, axis=1), draw((2, 3, 4)), linear=True)
    yield Case("two axes, one from the end", partial(ops.sum, axis=(0, -2)), draw((2, 3, 4)), linear=True)
    yield Case("keepdims", partial(ops.sum, axis=(1, 2), keepdims=True), draw((2, 3, 4)), linear=True)


@CASES.enter
def mean(draw):
    yield Case("all", ops.mean, draw((2, 3, 4)), linear=True)
    yield Case("the last axis", lambda x: x.mean(-1), draw((2, 3, 4)), linear=True)
    yield Case("keepdims", partial(ops.mean, axis=(0, 2), keepdims=True), draw((2, 3, 4)), linear=True)


@CASES.enter
def relu(draw):
    yield Case("H != W", ops.relu, draw((2, 3, 5, 4)))
    yield Case("one axis", ops.relu, draw((7,)))
    yield Case("a scalar", ops.relu, draw(()))
    yield Case("several chunks", ops.relu, draw((3, 16, 60, 50)))
    yield Case("x + relu(x) * x", lambda x: x + ops.relu(x) * x, draw((3, 4)))


@CASES.enter
def tanh(draw):
    yield Case("H != W", ops.tanh, draw((2, 3, 5, 4)))
    (x,) = draw((3, 4))
    yield Case("far out", ops.tanh, (1e3 * x,))


@CASES.enter
def softmax(draw):
    yield Case("last axis", ops.softmax, draw((3, 5)))
    yield Case("middle axis", partial(ops.softmax, axis=1), draw((2, 5, 3)))
    (x,) = draw((4, 6))
    yield Case("logits of +-1000", ops.softmax, (x + 1e3 * np.sign(x),))


@CASES.enter
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


@CASES.enter
def augment(draw):
    u = np.array([[0.1, 0.9, 0.2, 0.8, 0.3], [0.7, 0.4, 0.95, 0.02, 0.6], [0.99, 0.5, 0.5, 0.5, 0.1]])
    yield Case("mirrored, too", partial(augmentation.augment, draws=u), draw((3, 8, 8, 2)), linear=True)
    yield Case("shifts and cut-outs", partial(augmentation.augment, draws=u[:2, :4]), draw((2, 17, 17, 1)), linear=True)


@CASES.enter
def batch_norm(draw):
    def norm(x, gain, bias, statistics=None, relu=False):
        if statistics is not None:
            statistics = tuple(np.asarray(s, x.dtype, like=x.data) for s in statistics)
        return ops.batch_norm(x, gain, bias, statistics, relu)

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


@CASES.enter
def conv(draw):
    def both(name, x, w, stride=1):
        yield Case(name, partial(ops.conv, stride=stride), draw(x, w, w[3:]))
        yield Case(f"{name}, no bias", partial(ops.conv, stride=stride), draw(x, w), linear=True)

    yield from both("3x3", (2, 4, 5, 3), (3, 3, 3, 2))
    yield from both("1x1", (2, 4, 3, 4), (1, 1, 4, 3))
    yield from both("images of one pixel", (5, 1, 1, 4), (1, 1, 4, 3))
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
    residual = lambda x, w: x + ops.conv(x, w, relu=True)
    yield Case("x + conv(relu(x))", residual, draw((2, 3, 4, 3), (3, 3, 3, 3)))
    yield Case("one weight twice", lambda x, w: ops.conv(ops.conv(x, w), w), draw((1, 4, 3, 2), (3, 3, 2, 2)))
    relu, inputs = partial(ops.conv, relu=True), draw((2, 3, 4, 3), (3, 3, 3, 2), (2,))
    yield Case("relu", relu, inputs)
    yield Case("relu, no bias, 1x1", relu, draw((2, 3, 4, 3), (1, 1, 3, 2)))
    yield Case("relu, stride 2, odd sizes", partial(relu, stride=2), draw((2, 5, 7, 2), (3, 3, 2, 3), (3,)))
    yield Case("relu, 1x1, stride 2", partial(relu, stride=2), draw((2, 5, 4, 3), (1, 1, 3, 2)))
    yield Case("relu, several chunks", relu, draw((7, 24, 20, 6), (3, 3, 6, 5)))
    rest = lambda x, w, b, rest: ops.conv(x, w, b, rest=rest)
    yield Case("rest", rest, (*inputs, *draw((2, 3, 4, 2))))
    yield Case("rest, relu", lambda *all: ops.conv(*all[:3], 2, *all[3:], True), (*inputs, *draw((2, 2, 2, 2))))
    yield Case("rest, 1x1", rest, draw((2, 3, 4, 3), (1, 1, 3, 2), (2,), (2, 3, 4, 2)))
    yield Case("rest half as large", rest, draw((2, 4, 6, 3), (3, 3, 3, 2), (2,), (2, 2, 3, 2)))
    yield Case("rest half as large, relu, 1x1", lambda *all: ops.conv(*all[:3], 1, *all[3:], True),
               draw((2, 2, 4, 3), (1, 1, 3, 2), (2,), (2, 1, 2, 2)))
    yield Case("many channels", ops.conv, draw((3, 4, 6, 64), (3, 3, 64, 80), (80,)))
    yield Case("many channels, odd height", ops.conv, draw((2, 3, 4, 64), (3, 3, 64, 64), (64,)))
    more = lambda x, w, rest: ops.conv(x, w, None, 1, rest, True) + x
    yield Case("many channels, rest, relu, x twice", more, draw((2, 2, 2, 64), (3, 3, 64, 64), (2, 1, 1, 64)))
    yield Case("rest that is x", lambda x, w, b: ops.conv(x, w, b, rest=x), draw((1, 4, 3, 2), (3, 3, 2, 2), (2,)))


@CASES.enter
def up_conv(draw):
    yield Case("H != W", ops.up_conv, draw((2, 3, 4, 3), (3, 3, 3, 2), (2,)))
    yield Case("no bias", ops.up_conv, draw((2, 4, 3, 2), (3, 3, 2, 3)), linear=True)
    yield Case("one pixel", ops.up_conv, draw((1, 1, 1, 4), (3, 3, 4, 3), (3,)))
    yield Case("many channels", ops.up_conv, draw((3, 3, 4, 64), (3, 3, 64, 2), (2,)))
    yield Case("several chunks", ops.up_conv, draw((7, 20, 16, 9), (3, 3, 9, 7)), linear=True)


@CASES.enter
def conv_down(draw):
    yield Case("H != W", ops.conv_down, draw((2, 4, 6, 3), (3, 3, 3, 2), (2,)))
    yield Case("no bias", ops.conv_down, draw((2, 6, 4, 2), (3, 3, 2, 3)), linear=True)
    yield Case("to one pixel", ops.conv_down, draw((1, 2, 2, 4), (3, 3, 4, 3), (3,)))
    yield Case("rest", ops.conv_down, draw((2, 4, 2, 3), (3, 3, 3, 2), (2,), (2, 2, 1, 2)))
    yield Case("relu", partial(ops.conv_down, relu=True), draw((2, 4, 6, 3), (3, 3, 3, 2), (2,)))
    block = lambda x, w: ops.conv_down(x, w, rest=ops.avg_pool(x), relu=True)
    yield Case("x twice", block, draw((2, 4, 2, 3), (3, 3, 3, 3)))
    skipped = lambda x, w: ops.conv_down(x, w, relu=True) + ops.avg_pool(x)
    yield Case("many channels, relu, x twice", skipped, draw((2, 4, 2, 64), (3, 3, 64, 64)))
    yield Case("several chunks", ops.conv_down, draw((7, 32, 40, 6), (3, 3, 6, 5)), linear=True)


@CASES.enter
def upsample(draw):
    yield Case("H != W", ops.upsample, draw((2, 3, 4, 3)), linear=True)
    yield Case("one pixel", ops.upsample, draw((1, 1, 1, 2)), linear=True)


@CASES.enter
def avg_pool(draw):
    yield Case("H != W", ops.avg_pool, draw((2, 4, 6, 3)), linear=True)
    yield Case("to one pixel", ops.avg_pool, draw((1, 2, 2, 3)), linear=True)


@CASES.enter
def max_pool(draw):
    yield Case("H != W", ops.max_pool, draw((2, 4, 6, 3)))
    yield Case("to one pixel", ops.max_pool, draw((1, 2, 2, 3)))
    yield Case("equal numbers", ops.max_pool, (np.round(draw((2, 4, 4, 3))[0]),))


@CASES.enter
def embedding(draw):
    def look_up(*labels):
        return lambda table: ops.embedding(table, np.array(labels, like=table.data))

    yield Case("labels repeated and unused", look_up(3, 0, 3, 2, 3, 0), draw((5, 4)), linear=True)
    yield Case("one label", look_up(2), draw((3, 2)), linear=True)


@CASES.enter
def embeddings(draw):
    def look_up(*tables):
        a, b, _ = ops.embeddings(tables, np.array([2, 0, 2, 1], like=tables[0].data))  # the third has no part in it
        return a.sum(1) * b.sum(1)

    yield Case("tables of several widths", look_up, draw((3, 4), (3, 1), (3, 2)))


@CASES.enter
def cross_entropy(draw):
    def loss(*labels):
        return lambda x: losses.cross_entropy(x, np.array(labels))

    yield Case("labels repeated and unused", loss(3, 0, 3), draw((3, 4)))
    yield Case("one image", loss(1), draw((1, 3)))
    (x,) = draw((4, 3))
    yield Case("logits of +-1000", loss(2, 0, 1, 2), (x + 1e3 * np.sign(x),))


@CASES.enter
def hinge_discriminator(draw):
    yield Case("a batch", ops.hinge_discriminator, draw((12,)))
    yield Case("one of each", ops.hinge_discriminator, draw((2,)))
    (scores,) = draw((6,))
    yield Case("all beyond the margin", ops.hinge_discriminator, (np.repeat([2.0, -2.0], 3) + scores / 10,))


@CASES.enter
def hinge_generator(draw):
    yield Case("a batch", ops.hinge_generator, draw((7,)), linear=True)
    yield Case("one", ops.hinge_generator, draw((1,)), linear=True)


@CASES.enter
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
