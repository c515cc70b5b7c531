"""Ops whose kernels lie beside them, on a GPU or its emulation: values against the CPU, gradients, order of sums."""

import math
from importlib import import_module

import numpy as np
import pytest

from minisagan import cuda, gradcheck, kinks, ops
from minisagan.autograd import Tensor, grad
from minisagan.beyond.augment import augment
from minisagan.ops.hinge import mean_scores
from minisagan.ops.spectral import spectral_norms


def batch_norm(x, gain, bias, relu=True, statistics=None):
    if statistics is not None:
        zeros = 0 * x.data[0, 0, 0]  # lie where x does
        statistics = zeros + 0.3, zeros + 1.7
    return ops.batch_norm(x, gain, bias, statistics, relu)


def plain(*tensors):
    return batch_norm(*tensors, relu=False)


def given(*tensors):
    return batch_norm(*tensors, statistics=True)


def softmax(axis):
    return lambda x: ops.softmax(x, axis)


def resting(axis):
    def f(w):
        u = 0 * w.data.reshape(-1, w.shape[-1])[0] if axis == -1 else 0 * w.data[:, 0]
        return ops.spectral_norm(w, u + 0.4, False, axis)

    return f


def moving(w):
    return ops.spectral_norm(w, w.data[0] / 9, True)


LABELS = np.array([2, 0, 2, 1, 2, 4, 0])
DRAWS = np.random.default_rng(5).random((40, 5))
DRAWS[0, 4] = 0.5  # is not mirrored

CASES = {  # (the op, shapes of its inputs)
    "relu": (ops.relu, (2, 5, 7, 3)),
    "relu, several blocks": (ops.relu, (3000,)),
    "tanh": (ops.tanh, (2, 33, 17)),
    "softmax": (softmax(-1), (5, 3, 7)),
    "softmax of more than a warp": (softmax(1), (3, 70)),
    "softmax of one": (softmax(-1), (4, 1)),
    "softmax, first axis": (softmax(0), (40, 2, 3)),
    "softmax, middle axis": (softmax(1), (3, 5, 33)),
    "attend": (ops.attend, (2, 6, 3), (2, 5, 3), (2, 5, 4)),
    "attend, one image": (ops.attend, (1, 34, 1), (1, 40, 1), (1, 40, 3)),
    "attend, one key": (ops.attend, (2, 3, 2), (2, 1, 2), (2, 1, 5)),
    "batch norm": (batch_norm, (3, 4, 5, 8), (8,), (8,)),
    "batch norm, (N, C)": (batch_norm, (3, 4, 5, 8), (3, 8), (3, 8)),
    "batch norm, no ReLU": (plain, (2, 3, 3, 5), (5,), (5,)),
    "batch norm, (N, C), no ReLU": (plain, (3, 2, 3, 5), (3, 5), (3, 5)),
    "batch norm, one image": (batch_norm, (1, 5, 3, 40), (1, 40), (1, 40)),
    "batch norm, one channel": (batch_norm, (4, 9, 7, 1), (1,), (1,)),
    "batch norm, one position": (batch_norm, (6, 1, 1, 33), (6, 33), (6, 33)),
    "batch norm, one number a channel": (batch_norm, (1, 1, 1, 4), (4,), (4,)),
    "batch norm, given statistics": (given, (2, 3, 4, 6), (6,), (6,)),
    "batch norm, (N, C), given statistics": (given, (3, 4, 2, 3), (3, 3), (3, 3)),
    "hinge of D": (ops.hinge_discriminator, (12,)),
    "hinge of D, one of each": (ops.hinge_discriminator, (2,)),
    "hinge of G": (ops.hinge_generator, (7,)),
    "augment": (lambda x: augment(x, DRAWS[:7]), (7, 8, 8, 3)),
    "augment, not mirrored": (lambda x: augment(x, DRAWS[20:, :4]), (20, 9, 9, 1)),
    "embedding": (lambda table: ops.embedding(table, LABELS), (5, 6)),
    "embedding, one column": (lambda table: ops.embedding(table, LABELS), (7, 1)),
    "embeddings of three tables, two used": (
        lambda *tables: ops.matmul(*ops.embeddings(tables, LABELS)[:2]),
        *((5, 7), (6, 3), (5, 2)),
    ),
    "embeddings of more than one launch takes": (
        lambda one, other: sum(ops.embeddings([one, *[other] * 69], LABELS)[1:], ops.embedding(one, LABELS)),
        *[(5, 2)] * 2,
    ),
    "spectral norm": (resting(-1), (3, 3, 2, 4)),
    "spectral norm, one channel": (resting(-1), (7, 1)),
    "spectral norm, first axis": (resting(0), (5, 3)),
}

LARGE = {  # several blocks, or several elements a thread
    "attend": (ops.attend, (2, 300, 5), (2, 90, 5), (2, 90, 17)),
    "augment": (lambda x: augment(x, DRAWS), (40, 32, 32, 3)),
    "batch norm": (batch_norm, (3, 37, 33, 20), (20,), (20,)),
    "batch norm, (N, C)": (batch_norm, (2, 64, 33, 70), (2, 70), (2, 70)),
    "hinge of D": (ops.hinge_discriminator, (614,)),
    "hinge of G": (ops.hinge_generator, (307,)),
    "embedding": (lambda table: ops.embedding(table, np.arange(99) % 4), (5, 130)),
    "spectral norm": (moving, (500, 270)),
}


def draw(shapes, dtype=np.float64):
    rng = np.random.default_rng(0)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def both_passes(f, put, arrays):
    """The value of f and its gradients, computed where `put` puts the arrays."""
    tensors = [Tensor(put(a)) for a in arrays]
    y = f(*tensors)
    cotangent = np.asarray(np.random.default_rng(1).standard_normal(y.shape)).astype(arrays[0].dtype)
    return [y.data, *grad(y, tensors, put(cotangent))]


def close(found, expected, tolerance):
    assert found.shape == expected.shape and found.dtype == expected.dtype
    assert np.linalg.norm(found - expected) <= tolerance * max(1, np.linalg.norm(expected))


@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 2e-6), (np.float64, 1e-12)])
@pytest.mark.parametrize("case", [*CASES.values(), *LARGE.values()], ids=[*CASES, *(f"large {name}" for name in LARGE)])
def test_values_and_gradients_are_those_of_the_cpu(gpu, case, dtype, tolerance):
    f, *shapes = case
    arrays = draw(shapes, dtype)
    for found, expected in zip(both_passes(f, gpu.put, arrays), both_passes(f, np.asarray, arrays), strict=True):
        close(gpu.get(found), expected, tolerance)


@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_gradients_are_the_differences(gpu, case):
    if gpu.kind == "checked":
        pytest.skip("slow there, and the same kernels")
    f, *shapes = case
    result = gradcheck.check(f, *map(gpu.put, draw(shapes)), every_element=12)
    assert result.passed, result


@pytest.mark.parametrize("case", LARGE.values(), ids=LARGE)
def test_results_are_the_same_bit_for_bit_whichever_threads_are_first(gpu, case, monkeypatch):
    f, *shapes = case
    arrays, found = draw(shapes, np.float32), []
    for order in ("forward", "reverse", "random"):
        if gpu.kind != "gpu":
            monkeypatch.setattr(gpu.cupy.settings, "order", order)
        found.append([gpu.get(a).tobytes() for a in both_passes(f, gpu.put, arrays)])
    assert found[0] == found[1] == found[2]


def test_running_statistics_move_towards_the_batchs(gpu):
    x, ones, mean, var = draw([(3, 2, 4, 300), (300,), (300,), (300,)])
    there, expected = (gpu.put(mean), gpu.put(var)), (mean + 0.3 * (x.mean((0, 1, 2)) - mean), var * 0.7)
    ops.batch_norm(*(Tensor(gpu.put(a)) for a in (x, ones, ones)), running=there, momentum=0.7)
    close(gpu.get(there[0]), expected[0], 1e-12)
    close(gpu.get(there[1]), expected[1] + 0.3 * x.var((0, 1, 2)), 1e-12)


def check_recorded(gpu, f, arrays):
    """Launched from a graph, both passes of f give what they give without."""
    eager, tensors, found = both_passes(f, gpu.put, arrays), [Tensor(gpu.put(a)) for a in arrays], []
    cotangent = gpu.put(np.asarray(np.random.default_rng(1).standard_normal(eager[0].shape)))

    def run():
        y = f(*tensors)
        found[:] = [y.data, *grad(y, tensors, cotangent)]

    graph = cuda.Graph(run)
    for _ in range(cuda.WARM_UP + 2):
        graph()
    for a, expected in zip(found, eager, strict=True):
        assert np.array_equal(gpu.get(a), gpu.get(expected))


@pytest.mark.parametrize("case", [name for name in CASES if not name.startswith(("augment", "embedding"))])
def test_both_passes_can_be_recorded(gpu, case):
    f, *shapes = CASES[case]
    check_recorded(gpu, f, draw(shapes))


def test_augment_with_draws_on_the_gpu_can_be_recorded(gpu):
    draws = gpu.put(DRAWS[:7])
    check_recorded(gpu, lambda x: augment(x, draws), draw([(7, 8, 8, 3)]))


def test_embedding_takes_labels_on_the_gpu_as_they_are_and_checks_those_of_the_host(gpu):
    (table,) = draw([(5, 6)])
    labels = gpu.put(LABELS)
    check_recorded(gpu, lambda table: ops.embedding(table, labels), [table])
    y = ops.embedding(Tensor(gpu.put(table)), labels)
    assert np.array_equal(gpu.get(y.data), table[LABELS])
    for wrong in ([0, 5], [-1, 2]):
        with pytest.raises(ValueError, match=r"\[0, 5\)"):
            ops.embedding(Tensor(gpu.put(table)), np.array(wrong))


def test_a_cotangent_that_was_broadcast(gpu):
    """sum() sends back one number repeated, which is no array that a kernel could read."""
    (x,) = draw([(3, 4, 5)])

    def slope(f, put):
        t = Tensor(put(x))
        return grad(f(t).sum((0, 2)), [t], put(np.arange(4.0)))[0]

    for f in (ops.relu, ops.tanh, ops.softmax):
        close(gpu.get(slope(f, gpu.put)), slope(f, np.asarray), 1e-12)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_softmax_and_attention_of_huge_logits(gpu, dtype):
    x = np.array([[1e3, 1e3, -1e3], [-1e3, -1e3, -1e3], [1e30, 0, -1e30]], dtype)
    y, dx = (gpu.get(a) for a in both_passes(ops.softmax, gpu.put, [x]))
    np.testing.assert_allclose(y, [[0.5, 0.5, 0], [1 / 3] * 3, [1, 0, 0]], rtol=1e-6)
    assert np.isfinite(dx).all()
    query, key, value = draw([(2, 7, 1), (2, 9, 1), (2, 9, 4)], dtype)
    arrays = [1e3 * np.sign(query), np.sign(key), value]  # logits of +-1000
    for found, expected in zip(*(both_passes(ops.attend, put, arrays) for put in (gpu.put, np.asarray)), strict=True):
        close(gpu.get(found), expected, 1e-5 if dtype == np.float32 else 1e-12)


@pytest.mark.parametrize("case", ["relu", "batch norm", "hinge of D"])
def test_choices_at_kinks_are_replayed_in_both_passes(gpu, case):
    f, *shapes = CASES[case]
    arrays, results = draw(shapes), []
    for put in (gpu.put, np.asarray):
        with kinks.record() as choices:
            f(*(Tensor(put(a)) for a in arrays))
        with kinks.replay(choices):
            results.append(both_passes(f, put, [-a for a in arrays]))
    for found, expected in zip(*results, strict=True):
        close(gpu.get(found), expected, 1e-12)


def test_the_kinks_and_a_nan(gpu):
    """relu(0) has the derivative 0, a margin of 0 too, and no op makes a number of a NaN."""
    x = np.array([-2, -0.0, 0, 1e-30, 3, math.nan], np.float32)
    y, dx = (gpu.get(a) for a in both_passes(ops.relu, gpu.put, [x]))
    assert y[:5].tolist() == x.clip(0)[:5].tolist() and np.isnan(y[5])
    assert (dx[:3] == 0).all() and (dx[3:5] != 0).all()
    image, zero = draw([(1, 2, 3, 1)])[0], np.zeros(1)
    assert gpu.get(both_passes(batch_norm, gpu.put, [image, zero, zero])[3]) == 0  # dbias
    dx = gpu.get(both_passes(ops.hinge_discriminator, gpu.put, [np.array([1, 0.5, -1, 0], np.float32)])[1])
    assert (dx != 0).tolist() == [False, True, False, True]
    scores = np.array([0.5, math.nan, 0, 0], np.float32)
    assert np.isnan(gpu.get(ops.hinge_discriminator(Tensor(gpu.put(scores))).data))
    y = batch_norm(*(Tensor(gpu.put(a)) for a in (x.reshape(1, 2, 3, 1), x[3:4], x[4:5])))
    assert np.isnan(gpu.get(y.data)).all()


@pytest.mark.parametrize("n", [1, 5, 307])
def test_mean_scores_of_a_hinge_loss(gpu, n):
    (scores,) = draw([(2 * n,)])
    found = [gpu.get(mean) for mean in mean_scores(gpu.put(scores))]
    np.testing.assert_allclose(found, mean_scores(scores), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("C", [3, 33])
def test_batch_norm_in_few_blocks(gpu, C, monkeypatch):
    """So that a thread has more positions than it takes at once."""
    monkeypatch.setattr(import_module("minisagan.ops.batch_norm_cuda"), "BLOCKS", 5)
    arrays = draw([(2, 60 if C == 3 else 15, 31, C), (2, C), (2, C)])
    for found, expected in zip(*(both_passes(batch_norm, put, arrays) for put in (gpu.put, np.asarray)), strict=True):
        close(gpu.get(found), expected, 1e-12)


@pytest.mark.parametrize("shape", [(2, 3, 5, 7), (3, 37, 33, 20), (1, 200, 90, 3)])
def test_batch_statistics_far_from_zero(gpu, shape):
    """Of numbers around 1000 with deviations around 1, float32 keeps three digits: sums of squares would keep none."""
    x = (1000 + draw([shape])[0]).astype(np.float32)
    affine = [Tensor(gpu.put(np.ones(shape[3], np.float32))) for _ in range(2)]
    mean, var = running = [gpu.put(np.zeros(shape[3], np.float32)) for _ in range(2)]
    ops.batch_norm(Tensor(gpu.put(x)), *affine, running=running, momentum=0)
    exact = x.astype(np.float64).reshape(-1, shape[3])
    np.testing.assert_allclose(gpu.get(mean), exact.mean(0), rtol=2e-7)
    np.testing.assert_allclose(gpu.get(var), exact.var(0), rtol=1e-4)


LAYERS = [((3, 3, 2, 4), -1), ((7, 300), -1), ((5, 300), 0), ((130, 70), -1), ((300, 1), -1), ((500, 270), -1)]


def normalised(put, weights, states, axes, move):
    """All that spectral_norms gives and changes: y, u, and the gradients by the weights; lists of arrays."""
    tensors, states = [Tensor(put(w)) for w in weights], [put(u) for u in states]
    ys = spectral_norms(tensors, states, move, axes)
    loss = sum(((y * Tensor(put(np.sin(w)))).sum() for y, w in zip(ys[:-1], weights, strict=False)), 0)
    return [*(y.data for y in ys), *states, *grad(loss, tensors)]  # the last layer has no part in it


@pytest.mark.parametrize("move", [True, False])
@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 2e-6), (np.float64, 1e-12)])
@pytest.mark.parametrize("layers", [LAYERS, 70 * [((2, 3), -1)]], ids=["unlike", "70 alike"])
def test_spectral_norm_of_all_layers_at_once(gpu, layers, dtype, tolerance, move):
    shapes, axes = zip(*layers, strict=True)
    weights = draw(shapes, dtype)
    states = [u / np.linalg.norm(u) for u in draw([(shape[axis],) for shape, axis in layers], dtype)]
    everywhere = [normalised(put, weights, states, axes, move) for put in (gpu.put, np.array)]
    for found, expected in zip(*everywhere, strict=True):
        close(gpu.get(found), expected, tolerance)


def test_a_recorded_power_iteration_goes_on(gpu):
    (w,) = draw([(20, 30)])
    u = np.ones(30) / math.sqrt(30)
    tensor, state = Tensor(gpu.put(w)), gpu.put(u)
    graph = cuda.Graph(lambda: ops.spectral_norm(tensor, state, True))
    for _ in range(5):
        graph()
        ops.spectral_norm(Tensor(w), u, True)
    close(gpu.get(state), u, 1e-12)
