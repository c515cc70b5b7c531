"""Every op against PyTorch, forward and backward, in float64."""

import numpy as np
import pytest

from minisagan import ops, selfcheck
from minisagan.autograd import Tensor, grad
from minisagan.beyond.augment import augment
from minisagan.judge.cross_entropy import cross_entropy

torch = pytest.importorskip("torch")
F = torch.nn.functional


def images_first(op):
    """op on (N, C, H, W) as a function of (N, H, W, C)."""
    return lambda x, *rest: op(x.permute(0, 3, 1, 2), *rest).permute(0, 2, 3, 1)


def conv(stride=1):
    def op(x, w, b=None):
        pad = w.shape[0] // 2, w.shape[1] // 2
        return images_first(lambda x: F.conv2d(x, w.permute(3, 2, 0, 1), b, stride, pad))(x)

    return op


def batch_norm(statistics=None, relu=False):
    def op(x, gain, bias):
        mean, var = map(torch.tensor, statistics) if statistics else (None, None)
        y = images_first(lambda x: F.batch_norm(x, mean, var, training=statistics is None, eps=1e-5))(x)
        gain, bias = (a if a.ndim == 1 else a[:, None, None] for a in (gain, bias))
        return F.relu(y * gain + bias) if relu else y * gain + bias

    return op


def spectral_norm(u, move, axis):
    def op(w):
        matrix = w.reshape(-1, w.shape[-1]).T if axis == -1 else w
        with torch.no_grad():
            left = torch.tensor(u)
            right = F.normalize(matrix.T @ left, dim=0)
            if move:
                left = F.normalize(matrix @ right, dim=0)
        return w / (left @ matrix @ right)

    return op


def augment_in_torch(x):
    """Each image mirrored, shifted and cut out as DRAWS say, in words of PyTorch's: flip, roll and a mask."""
    images = []
    for image, (down, right, row, column, mirrored) in zip(x, DRAWS, strict=True):
        a, b = int(3 * down) - 1, int(3 * right) - 1  # of 8 pixels an eighth is 1
        keep = torch.ones(8, 8, 1, dtype=x.dtype)
        keep[: max(a, 0)] = keep[8 + min(a, 0) :] = keep[:, : max(b, 0)] = keep[:, 8 + min(b, 0) :] = 0
        row, column = int(8 * row), int(8 * column)
        keep[max(row - 2, 0) : row + 2, max(column - 2, 0) : column + 2] = 0
        image = image.flip(1) if mirrored < 0.5 else image
        images.append(image.roll((a, b), (0, 1)) * keep)
    return torch.stack(images)


upsample = images_first(lambda x: F.interpolate(x, scale_factor=2, mode="nearest"))
avg_pool = images_first(lambda x: F.avg_pool2d(x, 2))
LABELS = np.array([3, 0, 3, 2, 3])
DRAWS = np.array([[0.1, 0.9, 0.3, 0.7, 0.2], [0.5, 0.4, 0, 0.99, 0.8], [0.8, 0.2, 0.9, 0.1, 0.4]])
MEAN, VAR, U = np.linspace(-1, 1, 5), np.linspace(0.5, 2, 5), np.array([0.5, -0.5, 0.5, 0.5])


def hinge(scores):
    real, fake = scores.chunk(2)
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def ours(statistics=None, relu=False):
    return lambda x, gain, bias: ops.batch_norm(x, gain, bias, statistics, relu)


IMAGE, AFFINE, OWN = (3, 4, 6, 5), ((5,), (5,)), ((3, 5), (3, 5))
TWINS = {
    "add": (ops.add, torch.add, (2, 1, 4), (3, 1)),
    "subtract": (ops.subtract, torch.sub, (2, 1, 4), (3, 1)),
    "multiply": (ops.multiply, torch.mul, (2, 1, 4), (3, 1)),
    "divide": (ops.divide, torch.div, (2, 1, 4), (3, 1)),
    "matmul": (ops.matmul, torch.matmul, (2, 1, 3, 4), (5, 4, 2)),
    "reshape": (lambda x: ops.reshape(x, (4, -1)), lambda x: x.reshape(4, -1), (2, 3, 4)),
    "transpose": (lambda x: ops.transpose(x, (2, 0, 1)), lambda x: x.permute(2, 0, 1), (2, 3, 4)),
    "sum": (lambda x: ops.sum(x, (0, 2)), lambda x: x.sum((0, 2)), (2, 3, 4)),
    "mean": (lambda x: ops.mean(x, 1, keepdims=True), lambda x: x.mean(1, keepdim=True), (2, 3, 4)),
    "relu": (ops.relu, F.relu, IMAGE),
    "tanh": (ops.tanh, torch.tanh, IMAGE),
    "softmax": (lambda x: ops.softmax(x, 1), lambda x: F.softmax(x, 1), (2, 5, 3)),
    "attend": (
        ops.attend, lambda query, key, value: F.scaled_dot_product_attention(query, key, value, scale=1),
        (2, 6, 3), (2, 5, 3), (2, 5, 4),
    ),
    "conv 3x3": (ops.conv, conv(), IMAGE, (3, 3, 5, 2), (2,)),
    "conv 1x1, no bias": (ops.conv, conv(), IMAGE, (1, 1, 5, 2)),
    "conv 5x3, stride 2, odd": (lambda *a: ops.conv(*a, stride=2), conv(2), (2, 7, 5, 3), (5, 3, 3, 2), (2,)),
    "conv 1x1, stride 2": (lambda *a: ops.conv(*a, stride=2), conv(2), (2, 7, 4, 3), (1, 1, 3, 2), (2,)),
    "up_conv": (ops.up_conv, lambda x, w, b: conv()(upsample(x), w, b), IMAGE, (3, 3, 5, 2), (2,)),
    "conv_down": (ops.conv_down, lambda x, w, b: avg_pool(conv()(x, w, b)), IMAGE, (3, 3, 5, 2), (2,)),
    "upsample": (ops.upsample, upsample, IMAGE),
    "avg_pool": (ops.avg_pool, avg_pool, IMAGE),
    "max_pool": (ops.max_pool, images_first(lambda x: F.max_pool2d(x, 2)), IMAGE),
    "batch_norm": (ours(), batch_norm(), IMAGE, *AFFINE),
    "batch_norm, (N, C), relu": (ours(relu=True), batch_norm(relu=True), IMAGE, *OWN),
    "batch_norm, evaluation": (ours((MEAN, VAR), True), batch_norm((MEAN, VAR), True), IMAGE, *AFFINE),
    "batch_norm, evaluation, (N, C)": (ours((MEAN, VAR)), batch_norm((MEAN, VAR)), IMAGE, *OWN),
    "spectral_norm, moving": (
        lambda w: ops.spectral_norm(w, U.copy(), True), spectral_norm(U, True, -1), (3, 3, 2, 4)
    ),
    "spectral_norm, at rest": (lambda w: ops.spectral_norm(w, U, False), spectral_norm(U, False, -1), (6, 4)),
    "spectral_norm, first axis": (
        lambda w: ops.spectral_norm(w, U.copy(), True, 0), spectral_norm(U, True, 0), (4, 7)
    ),
    "embedding": (lambda t: ops.embedding(t, LABELS), lambda t: F.embedding(torch.tensor(LABELS), t), (5, 4)),
    "embeddings": (
        lambda s, t: ops.multiply(*ops.embeddings([s, t], LABELS)),
        lambda s, t: F.embedding(torch.tensor(LABELS), s) * F.embedding(torch.tensor(LABELS), t), (5, 4), (5, 4),
    ),
    "augment": (lambda x: augment(x, DRAWS), augment_in_torch, (3, 8, 8, 2)),
    "cross_entropy": (
        lambda x: cross_entropy(x, LABELS), lambda x: F.cross_entropy(x, torch.tensor(LABELS)), (5, 4)
    ),
    "hinge_discriminator": (ops.hinge_discriminator, hinge, (12,)),
    "hinge_generator": (ops.hinge_generator, lambda scores: -scores.mean(), (7,)),
}  # fmt: skip


@pytest.mark.parametrize("name", TWINS)
def test_value_and_gradients_are_pytorchs(name):
    op, twin, *shapes = TWINS[name]
    rng = np.random.default_rng(0)
    arrays = [rng.standard_normal(shape) for shape in shapes]
    tensors, leaves = [Tensor(a) for a in arrays], [torch.tensor(a, requires_grad=True) for a in arrays]
    y, expected = op(*tensors), twin(*leaves)
    assert y.shape == tuple(expected.shape)
    assert np.abs(y.data - expected.detach().numpy()).max() < 1e-11
    c = np.asarray(rng.standard_normal(y.shape))
    expected = torch.autograd.grad(expected, leaves, torch.tensor(c))
    for found, exact in zip(grad(y, tensors, c), expected, strict=True):
        assert np.abs(found - exact.numpy()).max() < 1e-10


def test_every_op_has_a_twin():
    assert {name.split(",")[0].split(" ")[0] for name in TWINS} == set(selfcheck.OPS)
