"""The ops' values against plain loops, their errors, and that threads, chunks and layouts change nothing."""

import math
from functools import partial

import numpy as np
import pytest

from minisagan import cpu, ops, selfcheck
from minisagan.autograd import Tensor, grad
from minisagan.beyond.augment import augment
from minisagan.judge.cross_entropy import cross_entropy
from minisagan.ops.hinge import mean_scores

CASES = [pytest.param(case, id=f"{op}: {case.name}") for op in selfcheck.OPS for case in selfcheck.cases(op)]


def draw(*shapes, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape) for shape in shapes]


def value(op, *arrays, **options):
    return op(*(Tensor(a) for a in arrays), **options).data


def ones(*shape):
    return Tensor(np.ones(shape))


def close(found, expected, tolerance=1e-13):
    assert np.shape(found) == np.shape(expected)
    assert np.linalg.norm(found - expected) <= tolerance * max(1, np.linalg.norm(expected))


def both_passes(f, *arrays, cotangent=None):
    """The value of f and its gradients, as a list of arrays."""
    tensors = [Tensor(a) for a in arrays]
    y = f(*tensors)
    if cotangent is None:
        cotangent = np.asarray(np.random.default_rng(7).standard_normal(y.shape)).astype(y.dtype)
    return [np.array(y.data), *grad(y, tensors, cotangent)]


# Convolution


def convolved(x, w, b, s):
    """The definition, one output at a time: zeros outside, kernels centred on every s-th pixel."""
    (N, H, W, C), (kh, kw, _, O) = x.shape, w.shape
    y = np.zeros((N, -(-H // s), -(-W // s), O))
    for n, h, v, o in np.ndindex(y.shape):
        terms = [b[o]]
        for i, j, c in np.ndindex(kh, kw, C):
            row, column = s * h + i - kh // 2, s * v + j - kw // 2
            if 0 <= row < H and 0 <= column < W:
                terms.append(x[n, row, column, c] * w[i, j, c, o])
        y[n, h, v, o] = math.fsum(terms)
    return y


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [(1, 1), (3, 3), (5, 5), (3, 1), (1, 5), (7, 3)])
@pytest.mark.parametrize("shape", [(2, 4, 6, 2), (1, 5, 3, 3), (3, 1, 1, 1), (2, 2, 7, 3)])
def test_conv_is_its_definition(shape, kernel, stride):
    x, w, b = draw(shape, (*kernel, shape[3], 2), (2,))
    close(value(ops.conv, x, w, b, stride=stride), convolved(x, w, b, stride))
    close(value(ops.conv, x, w, stride=stride), convolved(x, w, 0 * b, stride))


def test_conv_of_one_pixel_is_the_kernel_turned_around():
    x, w = np.zeros((1, 5, 5, 1)), np.arange(9.0).reshape(3, 3, 1, 1)
    x[0, 2, 2] = 1
    assert value(ops.conv, x, w)[0, 1:4, 1:4, 0].tolist() == [[8, 7, 6], [5, 4, 3], [2, 1, 0]]


FUSED = [
    (ops.up_conv, lambda x, w, b: ops.conv(ops.upsample(x), w, b)),
    (ops.conv_down, lambda x, w, b: ops.avg_pool(ops.conv(x, w, b))),
    (partial(ops.conv, relu=True), lambda x, w, b: ops.conv(ops.relu(x), w, b)),
    (partial(ops.conv, stride=2, relu=True), lambda x, w, b: ops.conv(ops.relu(x), w, b, stride=2)),
    (partial(ops.conv_down, relu=True), lambda x, w, b: ops.conv_down(ops.relu(x), w, b)),
]


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (1, 2, 2, 1), (3, 8, 2, 5)])
@pytest.mark.parametrize("fused, plain", FUSED)
def test_fused_ops_are_what_they_fuse_forward_and_backward(fused, plain, shape):
    arrays = draw(shape, (3, 3, shape[3], 4), (4,))
    for found, expected in zip(both_passes(fused, *arrays), both_passes(plain, *arrays), strict=True):
        close(found, expected)
    close(value(fused, *arrays[:2]), value(plain, *arrays[:2], b=None))


@pytest.mark.parametrize("kernel, stride", [(1, 1), (1, 2), (3, 1), (3, 2)])
def test_the_relu_that_a_convolution_takes_along_at_its_kink(kernel, stride):
    """As ops.relu: at 0 the derivative is 0, whatever else x is used for, and a NaN stays one."""
    x = np.array([-2.0, -0.0, 0.0, 1e-300, 3.0, -np.inf]).reshape(1, 1, 6, 1)
    w = np.zeros((kernel, kernel, 1, 1))
    w[kernel // 2, kernel // 2] = 2
    y, dx = both_passes(lambda x: x.sum() + ops.conv(x, Tensor(w), stride=stride, relu=True), x[:, :, :5],
                        cotangent=np.full((1, 1, -(-5 // stride), 1), 7.0))  # fmt: skip
    seen = np.arange(5) % stride == 0
    assert (dx.ravel() - 7 * seen.sum()).tolist() == (14 * seen * [0, 0, 0, 1, 1]).tolist()
    y = value(ops.conv, np.append(x, np.nan).reshape(1, 1, 7, 1), w, relu=True)
    if kernel == 1:
        assert y.ravel()[:6].tolist() == [0, 0, 0, 2e-300, 6, 0]
    assert np.isnan(y.ravel()[-1])


# Resampling


def test_resampling_is_its_definition():
    (x,) = draw((2, 4, 6, 3))
    large, small, largest = np.zeros((2, 8, 12, 3)), np.zeros((2, 2, 3, 3)), np.zeros((2, 2, 3, 3))
    for n, h, w, c in np.ndindex(large.shape):
        large[n, h, w, c] = x[n, h // 2, w // 2, c]
    for n, h, w, c in np.ndindex(small.shape):
        four = [x[n, 2 * h + a, 2 * w + b, c] for a in (0, 1) for b in (0, 1)]
        small[n, h, w, c], largest[n, h, w, c] = math.fsum(four) / 4, max(four)
    assert np.array_equal(value(ops.upsample, x), large)
    close(value(ops.avg_pool, x), small)
    assert np.array_equal(value(ops.max_pool, x), largest)


def test_max_pool_gives_a_tie_to_the_first():
    x = np.array([[1.0, 5, 5, 2], [5, 5, 0, 5]]).reshape(1, 2, 4, 1)
    dx = both_passes(ops.max_pool, x, cotangent=np.array([10.0, 20]).reshape(1, 1, 2, 1))[1]
    assert dx[0, :, :, 0].tolist() == [[0, 10, 20, 0], [0, 0, 0, 0]]


# Activations, softmax, attention


def test_relu_and_its_derivative_at_the_kink():
    x = np.array([-2.0, -0.0, 0.0, 1e-300, 3.0])
    y, dx = both_passes(ops.relu, x, cotangent=np.full(5, 7.0))
    assert y.tolist() == [0, 0, 0, 1e-300, 3] and dx.tolist() == [0, 0, 0, 7, 7]


def test_tanh():
    (x,) = draw((3, 4))
    close(value(ops.tanh, x), np.vectorize(math.tanh)(x), 1e-15)


@pytest.mark.parametrize("axis", [0, 1, 2, -1])
def test_softmax_is_its_definition(axis):
    (x,) = draw((3, 4, 5))
    y = np.zeros_like(x)
    for i in np.ndindex(x.shape):
        line = np.moveaxis(x, axis, -1)[tuple(np.delete(i, axis))]
        y[i] = math.exp(x[i]) / math.fsum(map(math.exp, line))
    close(value(ops.softmax, x, axis=axis), y)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_of_huge_logits(dtype):
    x = np.array([[1000, 1000, -1000], [-1000, -1000, -1000], [1e30, 0, -1e30], [1000, 998, 0]], dtype)
    e = math.exp(-2)
    expected = [[0.5, 0.5, 0], [1 / 3] * 3, [1, 0, 0], [1 / (1 + e), e / (1 + e), 0]]
    y, dx = both_passes(ops.softmax, x)
    close(y, np.array(expected), 1e-6 if dtype == np.float32 else 1e-15)
    assert np.isfinite(dx).all() and np.abs(dx.sum(-1)).max() < 1e-6


def test_cross_entropy_is_its_definition():
    (x,) = draw((4, 3))
    labels = np.array([2, 0, 0, 1])
    likelihood = [math.exp(row[k]) / math.fsum(map(math.exp, row)) for row, k in zip(x, labels, strict=True)]
    close(value(cross_entropy, x, labels=labels), np.array(-math.fsum(map(math.log, likelihood)) / 4))


def test_cross_entropy_of_huge_logits():
    x, labels = np.array([[1e30, 0, -1e30], [1000, 998, 0]], np.float32), np.array([0, 1])
    loss, dx = both_passes(lambda x: cross_entropy(x, labels), x, cotangent=np.float32(2))
    close(loss, np.float32((2 + math.log1p(math.exp(-2))) / 2), 1e-7)
    e = 1 / (1 + math.exp(-2))
    close(dx, np.array([[0, 0, 0], [e, -e, 0]]), 1e-6)


def attended(query, key, value):
    """SAGAN's equations 1 and 2 in two loops: beta_ji, the weight of position i at j, sums to 1 over i."""
    o = np.zeros((*query.shape[:2], value.shape[2]))
    for n, j in np.ndindex(query.shape[:2]):
        s = [math.exp(math.fsum(key[n, i] * query[n, j])) for i in range(key.shape[1])]
        for i, weight in enumerate(s):
            o[n, j] += weight / math.fsum(s) * value[n, i]
    return o


@pytest.mark.parametrize("N, J, I, d, e", [(2, 6, 5, 3, 4), (1, 1, 3, 2, 1), (3, 4, 1, 1, 2)])
def test_attend_is_its_definition(N, J, I, d, e):
    query, key, values = draw((N, J, d), (N, I, d), (N, I, e))
    close(value(ops.attend, query, key, values), attended(query, key, values))


def test_attend_is_softmax_between_two_products_forward_and_backward():
    def composed(query, key, value):
        beta = ops.softmax(key @ query.transpose(0, 2, 1), axis=1)  # (N, I, J)
        return beta.transpose(0, 2, 1) @ value

    arrays = draw((2, 6, 3), (2, 5, 3), (2, 5, 4))
    for found, expected in zip(both_passes(ops.attend, *arrays), both_passes(composed, *arrays), strict=True):
        close(found, expected)


@pytest.mark.parametrize("sizes", [(1, 30, 1), (30, 30, 30), (5.6, 300, 1)])
def test_attend_takes_logits_of_any_size_in_float32(sizes):
    """exp(88) is the last that float32 has, so the largest logit of a query is subtracted from all of its."""
    query, key, values, g = draw((3, 6, 3), (3, 5, 3), (3, 5, 4), (3, 6, 4))
    key[2], query[2, 1] = np.abs(key[2]), -np.abs(query[2, 1])  # logits all far below 0
    query *= np.reshape(sizes, (3, 1, 1))

    def passes(op, dtype):
        leaves = [Tensor(a.astype(dtype)) for a in (query, key, values)]
        y = op(*leaves)
        return y.data, *grad(y, leaves, g.astype(dtype))

    def composed(query, key, value):
        return ops.softmax(query @ key.transpose(0, 2, 1)) @ value

    for found, expected in zip(passes(ops.attend, np.float32), passes(composed, np.float64), strict=True):
        for image, of_it, size in zip(found, expected, sizes, strict=True):
            assert np.abs(image - of_it).max() <= 1e-4 * np.abs(of_it).max() + 1e-6 * size


def test_attention_weights_are_a_distribution_and_the_order_of_keys_means_nothing():
    query, key, values = draw((2, 6, 3), (2, 5, 3), (2, 5, 4))
    order = [3, 0, 4, 1, 2]
    close(value(ops.attend, query, key, np.ones((2, 5, 1))), np.ones((2, 6, 1)))
    close(value(ops.attend, query, key[:, order], values[:, order]), value(ops.attend, query, key, values))


# Augmentation


@pytest.mark.parametrize("columns", [4, 5])
@pytest.mark.parametrize("S, C", [(8, 2), (32, 1), (7, 3), (17, 1)])
def test_augment_is_its_definition(S, C, columns):
    (x,), draws = draw((40, S, S, C)), np.random.default_rng(1).random((40, columns))
    draws[:4, :4] = [[0, 0, 0, 0], [1 - 1e-9] * 4, [0, 1 - 1e-9, 0.5, 0.5], [0.5, 0.5, 0, 1 - 1e-9]]  # the extremes
    y, seen = np.zeros_like(x), set()
    for n, u in enumerate(draws):
        a, b = (math.floor(v * (2 * (S // 8) + 1)) - S // 8 for v in u[:2])
        row, column = (math.floor(v * S) for v in u[2:4])
        mirrored = columns == 5 and u[4] < 0.5
        seen |= {("a", a), ("b", b)}
        for h, w in np.ndindex(S, S):
            i, j = h - a, S - 1 - (w - b) if mirrored else w - b
            cut = -(S // 4) <= h - row < S // 4 and -(S // 4) <= w - column < S // 4
            if 0 <= i < S and 0 <= j < S and not cut:
                y[n, h, w] = x[n, i, j]
    assert {("a", S // 8), ("a", -(S // 8)), ("b", S // 8), ("b", -(S // 8))} <= seen
    assert np.array_equal(value(augment, x, draws=draws), y)
    g = np.random.default_rng(2).standard_normal(x.shape)
    (dx,) = both_passes(lambda x: augment(x, draws), x, cotangent=g)[1:]
    assert (dx * x).sum() == pytest.approx((g * y).sum())
    assert np.array_equal(dx != 0, np.isin(x, y))  # what came through has a gradient, nothing else


def test_augment_shows_an_image_that_is_neither_shifted_nor_mirrored_as_it_is_but_for_the_square():
    (x,) = draw((1, 8, 8, 1))
    middle, last = 0.5, 1 - 1e-9
    y = value(augment, x, draws=np.array([[middle, middle, last, last, last]]))
    x[0, 5:, 5:] = 0
    assert np.array_equal(y, x)


# Batch norm


@pytest.mark.parametrize("relu", [False, True])
@pytest.mark.parametrize("conditional", [False, True])
def test_batch_norm_is_its_definition(conditional, relu):
    x, *affine = draw((3, 2, 4, 5), *[(3, 5) if conditional else (5,)] * 2)
    mean, var = running = np.ones(5), np.ones(5)
    y = ops.batch_norm(*map(Tensor, (x, *affine)), relu=relu, running=running, momentum=0)
    gain, bias = (np.broadcast_to(a, (3, 5)) for a in affine)
    for c in range(5):
        values = x[..., c].ravel().tolist()
        m = math.fsum(values) / len(values)
        v = math.fsum((value - m) ** 2 for value in values) / len(values)
        close(mean[c], m)
        close(var[c], v)
        for n in range(3):
            expected = gain[n, c] * (x[n, ..., c] - m) / math.sqrt(v + 1e-5) + bias[n, c]
            close(y.data[n, ..., c], np.maximum(expected, 0) if relu else expected)


def test_batch_norm_in_evaluation_uses_the_given_statistics():
    x, gain, bias, mean, spread = draw((2, 3, 4, 5), (5,), (5,), (5,), (5,))
    y = ops.batch_norm(Tensor(x), Tensor(gain), Tensor(bias), (mean, spread**2))
    close(y.data, gain * (x - mean) / np.sqrt(spread**2 + 1e-5) + bias)
    one = ops.batch_norm(Tensor(x[:1]), Tensor(gain), Tensor(bias), (mean, spread**2))
    assert np.array_equal(one.data, y.data[:1])  # no image sees another


def test_float32_statistics_survive_a_mean_of_10000_deviations(monkeypatch):
    """E[x^2] - E[x]^2 would lose all digits, and even turn negative."""
    monkeypatch.setattr(cpu, "CHUNK_BYTES", 2000)
    x = (np.random.default_rng(0).standard_normal((7, 8, 8, 3)) + 1e4).astype(np.float32)
    ones, zeros = Tensor(np.ones(3, np.float32)), Tensor(np.zeros(3, np.float32))
    mean, var = running = np.zeros(3, np.float32), np.zeros(3, np.float32)
    ops.batch_norm(Tensor(x), ones, zeros, running=running, momentum=0)
    exact = x.astype(np.float64)
    assert np.allclose(mean, exact.mean((0, 1, 2)), rtol=1e-6)
    assert np.allclose(var, exact.var((0, 1, 2)), rtol=1e-4)


# Spectral norm


@pytest.mark.parametrize("shape, axis", [((3, 3, 4, 5), -1), ((7, 3), -1), ((6, 4), 0)])
def test_spectral_norm_converges_to_the_largest_singular_value(shape, axis):
    w, u = draw(shape, (shape[axis],))
    matrix = w.reshape(-1, shape[-1]).T if axis == -1 else w
    left, singular, _ = np.linalg.svd(matrix)
    for _ in range(2000):
        y = ops.spectral_norm(Tensor(w), u, move=True, axis=axis)
    close(y.data, w / singular[0], 1e-11)
    assert abs(u @ left[:, 0]) == pytest.approx(1, abs=1e-12)
    close(value(ops.spectral_norm, w, u=u, move=False, axis=axis), w / singular[0], 1e-11)


def test_spectral_norm_takes_one_step_when_moving_and_none_at_rest():
    w, u = draw((5, 4), (4,))
    u /= np.linalg.norm(u)
    before = u.copy()
    v = w @ u / np.linalg.norm(w @ u)  # W is w^T
    rest = [value(ops.spectral_norm, w, u=u, move=False) for _ in range(2)]
    assert np.array_equal(u, before) and np.array_equal(*rest)
    close(rest[0], w / np.linalg.norm(w @ u), 1e-11)
    moved = value(ops.spectral_norm, w, u=u, move=True)
    close(u, w.T @ v / np.linalg.norm(w.T @ v), 1e-11)
    close(moved, w / (u @ w.T @ v), 1e-11)


def test_spectral_norm_takes_the_first_axis_or_the_last_for_its_output_channels():
    w, u = draw((4, 4), (4,))
    last, also, first = (value(ops.spectral_norm, w, u=u, move=False, axis=axis) for axis in (-1, 1, 0))
    assert np.array_equal(last, also) and not np.array_equal(last, first)
    for axis in (1, 2, -2, 4):
        with pytest.raises(ValueError, match="its first axis or its last, not "):
            ops.spectral_norm(Tensor(np.ones((2, 2, 2, 2))), u, move=False, axis=axis)


def test_spectral_norm_differentiates_with_the_u_of_its_own_call():
    """As a call moves u in place, it must not change what earlier calls remember."""
    w, u, c = draw((5, 4), (4,), (5, 4))
    tensor = Tensor(w)
    first, second = (ops.spectral_norm(tensor, state, move=True) for state in (u, u.copy()))
    ops.spectral_norm(tensor, u, move=True)
    assert np.array_equal(grad(first, [tensor], c)[0], grad(second, [tensor], c)[0])


# Embedding, losses, arithmetic


def test_embedding_looks_up_rows_and_refuses_labels_outside():
    table = np.arange(12.0).reshape(4, 3)
    found = value(ops.embedding, table, labels=np.array([2, 0, 2]))
    assert found.tolist() == [[6, 7, 8], [0, 1, 2], [6, 7, 8]]
    for labels in ([0, 4], [-1, 2]):
        with pytest.raises(ValueError, match=r"labels must lie in \[0, 4\)"):
            ops.embedding(Tensor(table), np.array(labels))


def test_hinge_losses_are_their_definitions():
    (scores,) = draw((10,))
    scores *= 2
    real = math.fsum(max(0, 1 - s) for s in scores[:5]) / 5
    fake = math.fsum(max(0, 1 + s) for s in scores[5:]) / 5
    close(value(ops.hinge_discriminator, scores), real + fake)
    close(value(ops.hinge_generator, scores), -math.fsum(scores) / 10)
    close(np.array(mean_scores(scores)), [math.fsum(half) / 5 for half in (scores[:5], scores[5:])])
    assert value(ops.hinge_discriminator, np.zeros(4)) == 2
    assert value(ops.hinge_discriminator, np.array([1.0, 2, -1, -3])) == 0


def test_arithmetic_is_numpys():
    a, b = draw((2, 1, 4), (3, 1))
    for op, expected in [(ops.add, a + b), (ops.subtract, a - b), (ops.multiply, a * b), (ops.divide, a / b)]:
        close(value(op, a, b), expected, 1e-15)
    (x,) = draw((2, 3, 4))
    close(value(ops.matmul, x, x.swapaxes(1, 2)), np.einsum("nij,nkj->nik", x, x), 1e-15)
    assert np.array_equal(value(ops.reshape, x, shape=(4, -1)), x.reshape(4, 6))
    assert np.array_equal(value(ops.transpose, x, axes=(2, 0, 1)), x.transpose(2, 0, 1))
    for axis in (None, 0, -1, (0, 2)):
        for keepdims in (False, True):
            close(value(ops.sum, x, axis=axis, keepdims=keepdims), x.sum(axis, keepdims=keepdims))
            close(value(ops.mean, x, axis=axis, keepdims=keepdims), x.mean(axis, keepdims=keepdims))


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda x: ops.conv(x, ones(2, 3, 3, 1)), "conv takes odd kernels and stride 1 or 2, not 2x3 and 1"),
        (lambda x: ops.conv(x, ones(3, 3, 3, 1), stride=3), "not 3x3 and 3"),
        (lambda x: ops.conv(x, ones(3, 3)), r"a convolution takes x .* not \(2, 5, 4, 3\), \(3, 3\)"),
        (lambda x: ops.attend(*3 * [ones(4, 3)]), r"attend takes \(N, J, d\), .* not \(4, 3\)"),
        (lambda x: ops.attend(x, x, x), r"attend takes \(N, J, d\)"),
        (lambda x: ops.hinge_generator(ones(0)), r"hinge_generator takes scores \(n,\), not \(0,\)"),
        (lambda x: ops.embedding(ones(3, 2), np.zeros((2, 2), int)), r"one for each image, \(N,\), not \(2, 2\)"),
        (lambda x: ops.conv_down(x, ones(3, 3, 3, 1)), "conv_down halves even heights and widths, not 5x4"),
        (lambda x: ops.avg_pool(x), "avg_pool halves even heights and widths, not 5x4"),
        (lambda x: ops.max_pool(x), "max_pool halves even heights and widths, not 5x4"),
        (lambda x: ops.matmul(x, ones(3)), r"matmul takes matrices or stacks of them, not .* \(3,\)"),
    ],
)
def test_shapes_that_can_not_be_are_refused(call, says):
    with pytest.raises(ValueError, match=says):
        call(ones(2, 5, 4, 3))


# Threads, chunks, memory


@pytest.fixture
def threads():
    """cpu.set_threads, and afterwards the number that there was."""
    before = cpu.threads()
    yield cpu.set_threads
    cpu.set_threads(before)


@pytest.mark.parametrize("chunk_bytes", [1, 3000])
@pytest.mark.parametrize("op", selfcheck.OPS)
def test_results_are_bit_identical_for_any_number_of_threads(op, chunk_bytes, threads, monkeypatch):
    """In float32, where the order of addition shows; with chunks so small threads share small cases' loops, too."""
    monkeypatch.setattr(cpu, "CHUNK_BYTES", chunk_bytes)
    cases = [(case.f, [x.astype(np.float32) for x in case.inputs]) for case in selfcheck.cases(op)]
    threads(1)
    alone = [both_passes(f, *inputs) for f, inputs in cases]
    for count in (2, 3, 3):
        threads(count)
        for (f, inputs), expected in zip(cases, alone, strict=True):
            assert all(map(np.array_equal, both_passes(f, *inputs), expected))


@pytest.mark.parametrize("case", CASES)
def test_chunk_borders_leave_no_trace(case, monkeypatch):
    """One image a chunk, a few with a remainder, all in one: the same but for rounding."""
    monkeypatch.setattr(cpu, "CHUNK_BYTES", 1 << 25)
    whole = both_passes(case.f, *case.inputs)
    scale = max(map(np.linalg.norm, whole))
    for chunk_bytes in (100, 2000, 5000, 12_000, 40_000, 400_000):
        monkeypatch.setattr(cpu, "CHUNK_BYTES", chunk_bytes)
        for found, expected in zip(both_passes(case.f, *case.inputs), whole, strict=True):
            assert np.linalg.norm(found - expected) <= 1e-13 * scale


@pytest.mark.parametrize("case", CASES)
def test_a_cotangent_may_lie_anyhow_in_memory_and_be_read_only(case):
    """What comes back from a sum is a broadcast view, from a transpose one with strange strides."""
    y = case.f(*map(Tensor, case.inputs))
    strange = np.random.default_rng(7).standard_normal((*y.shape[::-1], 2))[..., 0].T
    constant = np.broadcast_to(np.float64(0.7), y.shape)
    for c in (strange, constant):
        c.flags.writeable = False
        expected = both_passes(case.f, *case.inputs, cotangent=np.array(c, order="C"))
        for found, exact in zip(both_passes(case.f, *case.inputs, cotangent=c), expected, strict=True):
            assert np.linalg.norm(found - exact) <= 1e-13 * max(1, np.linalg.norm(exact))


@pytest.mark.parametrize("H, W", [(4, 5), (5, 4), (4, 4)])
def test_many_channels_at_an_odd_size(H, W):
    random = np.random.default_rng(0)
    x, w = random.standard_normal((2, H, W, 64)), random.standard_normal((3, 3, 64, 64))
    wide = np.pad(x, ((0, 0), (0, 7 - H), (0, 7 - W), (0, 0)))  # not of Winograd's sizes
    wanted = ops.conv(Tensor(wide), Tensor(w)).data[:, :H, :W]
    np.testing.assert_allclose(ops.conv(Tensor(x), Tensor(w)).data, wanted, rtol=0, atol=1e-10)
