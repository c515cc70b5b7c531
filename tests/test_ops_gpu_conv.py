"""Convolution, resampling and arithmetic on the GPU: the CPU's values and gradients, repeated bit for bit."""

from functools import partial

import numpy as np
import pytest

from minisagan import cuda, kinks, ops
from minisagan.autograd import Tensor, grad
from minisagan.gradcheck import check, check_adjoint
from minisagan.ops import conv_cuda


def draw(*shapes, dtype=np.float64, seed=0):
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(shape).astype(dtype) for shape in shapes]


def both_passes(op, arrays, gpu=None):
    """y and the gradients of <y, c>, c a fixed noise, as host arrays; computed on the GPU if one is given."""
    tensors = [Tensor(gpu.put(a) if gpu else a) for a in arrays]
    y = op(*tensors)
    (c,) = draw(y.shape, dtype=y.dtype, seed=7)
    found = [y.data, *grad(y, tensors, gpu.put(c) if gpu else c)]
    return [gpu.get(a) for a in found] if gpu else found


def same(op, arrays, gpu, tolerance):
    """Whether both passes give the CPU's values, to within `tolerance` of their norm."""
    names = "y", *(f"gradient {i}" for i in range(len(arrays)))
    for name, found, right in zip(names, both_passes(op, arrays, gpu), both_passes(op, arrays), strict=True):
        assert found.shape == right.shape and found.dtype == right.dtype, name
        error = np.linalg.norm(found - right) / np.linalg.norm(right)
        assert error <= tolerance, f"{name} differs by {error:.1e}"


def conv(stride=1):
    return lambda x, w, b=None: ops.conv(x, w, b, stride)


# op, x, kernel, O: sizes that tiles, of 64 or 128 pixels by 8, 32, 64 or 128 channels and 8 or 16 terms, do not divide
CONVOLUTIONS = {
    "3x3": (conv(), (2, 5, 7, 6), (3, 3), 5),
    "3x3, one image": (conv(), (1, 9, 4, 8), (3, 3), 8),
    "3x3, one channel to many": (conv(), (3, 6, 6, 1), (3, 3), 20),
    "3x3, three channels from many": (conv(), (2, 6, 5, 36), (3, 3), 3),
    "3x3, one pixel": (conv(), (2, 1, 1, 3), (3, 3), 4),
    "3x3, several tiles and partial sums": (conv(), (2, 12, 15, 16), (3, 3), 68),
    "1x1, many images": (conv(), (70, 2, 3, 4), (1, 1), 3),
    "1x1": (conv(), (2, 6, 5, 9), (1, 1), 33),
    "5x3": (conv(), (2, 6, 4, 4), (5, 3), 7),
    "1x5": (conv(), (2, 3, 7, 2), (1, 5), 2),
    "3x3, stride 2": (conv(2), (2, 8, 6, 5), (3, 3), 12),
    "3x3, stride 2, odd sizes": (conv(2), (1, 5, 7, 16), (3, 3), 3),
    "3x3, stride 2, one pixel": (conv(2), (2, 1, 1, 3), (3, 3), 3),
    "1x1, stride 2": (conv(2), (3, 5, 4, 20), (1, 1), 8),
    "5x3, stride 2, several tiles": (conv(2), (3, 9, 9, 3), (5, 3), 5),
    "up_conv": (ops.up_conv, (2, 3, 5, 6), (3, 3), 4),
    "up_conv, one pixel": (ops.up_conv, (1, 1, 1, 4), (3, 3), 36),
    "conv_down": (ops.conv_down, (2, 6, 4, 16), (3, 3), 7),
    "conv_down, of 2x2 pixels": (ops.conv_down, (3, 2, 2, 3), (3, 3), 8),
}


@pytest.fixture(params=CONVOLUTIONS)
def convolution(request):
    """(op, shapes of x, w and b)"""
    op, x, kernel, O = CONVOLUTIONS[request.param]
    return op, (x, (*kernel, x[3], O), (O,))


# float64 and float32 differ from the CPU in the order of summation. TF32 rounds each factor to nearest, by up to 2^-11.
PRECISIONS = pytest.mark.parametrize(
    "dtype, tf32, tolerance",
    [
        pytest.param("f8", False, 1e-14, id="f8"),
        pytest.param("f4", False, 3e-6, id="f4"),
        pytest.param("f4", True, 6e-4, id="tf32"),
    ],
)


@PRECISIONS
@pytest.mark.parametrize("C, O", [(4, 4), (4, 3), (3, 4)])
def test_the_relu_before_a_convolution_at_its_kink(gpu, dtype, tf32, tolerance, C, O, monkeypatch):
    """At 0 its derivative is 0, and a NaN stays one."""
    monkeypatch.setattr(cuda, "tf32", tf32)
    x, w = draw((1, 2, 3, C), (1, 1, C, O), dtype=dtype)
    x[0, 0, 1, 0] = 0
    same(lambda x, w: ops.conv(x, w, rest=x if C == O else None, relu=True), (x, w), gpu, 2 * tolerance)
    (dx,) = grad(ops.conv(t := Tensor(gpu.put(x)), Tensor(gpu.put(w)), relu=True).sum(), [t])
    assert np.array_equal(gpu.get(dx) == 0, x <= 0)
    x[0, 1, 2, 0] = np.nan
    tensors = [Tensor(gpu.put(a)) for a in (x, w)]
    y = ops.conv(*tensors, relu=True)
    assert np.isnan(gpu.get(y.data)).any(-1).tolist() == [[[False] * 3, [False, False, True]]]
    dw = gpu.get(grad(y.sum(), tensors)[1])
    assert np.isnan(dw[0, 0, 0]).all() and not np.isnan(dw[0, 0, 1:]).any()


@PRECISIONS
def test_convolution_is_the_cpus(gpu, convolution, dtype, tf32, tolerance, monkeypatch):
    monkeypatch.setattr(cuda, "tf32", tf32)
    op, shapes = convolution
    same(op, draw(*shapes, dtype=dtype), gpu, tolerance)


def test_convolution_without_bias(gpu, convolution):
    op, shapes = convolution
    same(op, draw(*shapes[:2]), gpu, 1e-14)


@PRECISIONS
def test_convolution_with_the_widest_tiles(gpu, dtype, tf32, tolerance, monkeypatch):
    """They are for more work than a test can afford."""
    monkeypatch.setattr(cuda, "tf32", tf32)
    monkeypatch.setattr(conv_cuda, "BLOCKS", 1)
    same(ops.conv, draw((1, 9, 15, 20), (3, 3, 20, 132), (132,), dtype=dtype), gpu, tolerance)
    relu = partial(ops.conv, relu=True)
    same(relu, draw((1, 9, 15, 132), (3, 3, 132, 20), (20,), dtype=dtype), gpu, tolerance)
    same(relu, draw((1, 5, 6, 16), (3, 3, 16, 132), (132,), dtype=dtype), gpu, tolerance)
    same(conv(2), draw((1, 5, 6, 68), (3, 3, 68, 65), (65,), dtype=dtype), gpu, tolerance)


@pytest.mark.parametrize("kernel", [(17, 1), (1, 17)])
def test_a_kernel_of_more_taps_than_a_gpu_takes_is_refused(gpu, kernel):
    x, w, g = draw((1, 3, 3, 2), (*kernel, 2, 2), (1, 3, 3, 2))
    with pytest.raises(ValueError, match=f"at most 15x15 taps, not {kernel[0]}x{kernel[1]}"):
        ops.conv(Tensor(gpu.put(x)), Tensor(gpu.put(w)))
    with pytest.raises(ValueError, match="at most 15x15 taps"):
        conv_cuda.outer(gpu.put(x), gpu.put(g), kernel, 1, 8, 8)


def test_the_widest_kernel(gpu):
    same(ops.conv, draw((1, 4, 20, 2), (15, 15, 2, 3)), gpu, 1e-13)


def grids(gpu, monkeypatch, arch, call):
    """(kernel, blocks) of each launch on a GPU of this architecture."""
    launched = []
    monkeypatch.setattr(conv_cuda, "kernels", lambda name, blocks, *rest: launched.append((name, blocks)))
    monkeypatch.setattr(gpu.cupy.cuda.Device, "compute_capability", arch)
    call()
    return launched


def test_tiles_are_narrower_where_that_gives_more_blocks_or_registers_are_few(gpu, monkeypatch):
    if gpu.kind == "gpu":
        pytest.skip("nothing runs here")
    monkeypatch.setattr(cuda, "tf32", True)
    empty = lambda *shape: gpu.cupy.empty(shape, np.float32)
    gather = lambda: conv_cuda.gather(empty(2, 16, 16, 4), empty(3, 3, 4, 200), 1, 1, 1, (16, 16))
    outer = lambda: conv_cuda.outer(empty(8, 32, 32, 8), empty(8, 32, 32, 200), (3, 3), 1, 1, 1)
    assert grids(gpu, monkeypatch, "80", gather) == [("gather_64", (4, 4, 1))]  # of few blocks, twice as many
    assert grids(gpu, monkeypatch, "80", outer)[0] == ("outer_128", (1, 2, 32))  # it has its partial sums
    assert grids(gpu, monkeypatch, "75", outer)[0] == ("outer_64", (1, 4, 32))
    monkeypatch.setattr(conv_cuda, "BLOCKS", 7)
    assert grids(gpu, monkeypatch, "80", gather) == [("gather_128", (4, 2, 1))]
    assert grids(gpu, monkeypatch, "80", outer)[0] == ("outer_128", (1, 2, 8))  # no fewer than there are parts


@PRECISIONS
@pytest.mark.parametrize("O", [5, 36])
@pytest.mark.parametrize("relu", [False, True])
def test_what_a_convolution_takes_along(gpu, dtype, tf32, tolerance, O, relu, monkeypatch):
    """The rest, the ReLU before it, and a cotangent of x that was there before its own."""
    monkeypatch.setattr(cuda, "tf32", tf32)
    tolerance *= 2
    op = lambda x, w, b, rest: ops.conv(x, w, b, rest=rest, relu=relu)
    same(op, draw((2, 5, 7, 6), (3, 3, 6, O), (O,), (2, 5, 7, O), dtype=dtype), gpu, tolerance)
    op = lambda x, w: ops.conv_down(x, w, rest=ops.avg_pool(ops.conv(x, w, rest=x)), relu=relu)
    same(op, draw((2, 6, 4, O), (3, 3, O, O), dtype=dtype), gpu, tolerance)
    op = lambda x, w, b, rest: ops.conv(x, w, b, rest=rest, relu=relu)  # which is up-sampled
    same(op, draw((2, 10, 6, 4), (3, 3, 4, O), (O,), (2, 5, 3, O), dtype=dtype), gpu, tolerance)


@pytest.mark.parametrize("O", [8, 5])
def test_a_relu_before_weights_that_lie_swapped(gpu, O, monkeypatch):
    for dtype, tf32, tolerance in (("f8", False, 1e-14), ("f4", True, 1e-3)):
        monkeypatch.setattr(cuda, "tf32", tf32)
        op = lambda x, w: ops.conv(x, w.transpose(0, 1, 3, 2), relu=True)
        same(op, draw((2, 5, 7, 8), (3, 3, O, 8), dtype=dtype), gpu, tolerance)


def test_convolution_repeats_bit_for_bit(gpu, convolution, monkeypatch):
    monkeypatch.setattr(cuda, "tf32", True)
    op, shapes = convolution
    arrays = draw(*shapes, dtype="f4")
    for first, second in zip(both_passes(op, arrays, gpu), both_passes(op, arrays, gpu), strict=True):
        assert np.array_equal(first, second)


RELU = partial(ops.conv, relu=True), partial(ops.conv_down, relu=True)


@pytest.mark.parametrize("op", [ops.conv, ops.up_conv, ops.conv_down, *RELU])
def test_convolution_of_arrays_that_lie_oddly(gpu, op):
    """Not contiguous, not at an address where four numbers can be loaded at once, a cotangent of repeated ones."""
    x, w, b = draw((2, 4, 6, 8), (3, 3, 8, 4), (4,))
    right = [op(*map(Tensor, (x, w, b))).data, *grad(op(*(t := [Tensor(a) for a in (x, w, b)])).sum(), t)]

    def shifted(a):
        flat = gpu.cupy.empty(a.size + 1, a.dtype)
        flat[1:] = gpu.put(a.ravel())
        return flat[1:].reshape(a.shape)

    for xg in (shifted(x), gpu.put(np.ascontiguousarray(x.transpose(3, 2, 1, 0))).transpose(3, 2, 1, 0)):
        tensors = [Tensor(a) for a in (xg, shifted(w), shifted(b))]
        y = op(*tensors)
        for found, expected in zip([y.data, *grad(y.sum(), tensors)], right, strict=True):
            np.testing.assert_allclose(gpu.get(found), expected, atol=1e-12)


def test_all_of_it_in_a_graph(gpu):
    """Nothing in it waits for the GPU or copies from the host, and it computes what the calls before it did."""
    arrays = [gpu.put(a) for a in draw((2, 4, 6, 3), (3, 3, 3, 3), (3,), (3, 3))]
    gradients = [gpu.cupy.zeros_like(a) for a in arrays]

    def step():
        x, w, b, m = tensors = [Tensor(a) for a in arrays]
        h = ops.max_pool(ops.conv_down(ops.up_conv(x, w, b), w, b)) @ m
        h = ops.conv(ops.avg_pool(ops.upsample(h)), w, b, 2)
        loss = (1 - 2 * h / 3 + h * h).mean()
        for to, dx in zip(gradients, grad(loss, tensors), strict=True):
            to[...] = dx

    graph, found = cuda.Graph(step), []
    for _ in range(cuda.WARM_UP + 2):
        graph()
        found.append([gpu.get(dx) for dx in gradients])
        for dx in gradients:
            dx[...] = 0
    for later in found[1:]:
        for first, second in zip(found[0], later, strict=True):
            assert np.abs(first).max() > 0 and np.array_equal(first, second)


# Gradients by differences: a few of each, since their values are the CPU's anyway


@pytest.mark.parametrize(
    "op, shapes",
    [
        (ops.conv, ((1, 3, 4, 3), (3, 3, 3, 2), (2,))),
        (conv(2), ((2, 3, 4, 2), (5, 3, 2, 3), (3,))),
        (ops.conv, ((2, 2, 3, 4), (1, 1, 4, 5))),
        (ops.up_conv, ((1, 2, 3, 2), (3, 3, 2, 4), (4,))),
        (ops.conv_down, ((2, 2, 4, 3), (3, 3, 3, 1))),
        (RELU[0], ((1, 3, 4, 3), (3, 3, 3, 2), (2,))),
        (RELU[1], ((1, 2, 4, 4), (3, 3, 4, 4), (4,))),
        (ops.upsample, ((2, 3, 2, 5),)),
        (ops.avg_pool, ((2, 4, 2, 3),)),
        (ops.max_pool, ((2, 4, 2, 3),)),
        (ops.matmul, ((2, 1, 3, 4), (5, 4, 2))),
        (ops.matmul, ((3, 5), (5, 2))),
        (lambda a, b: (3 - 2 * a * b / (1 + b * b) + a).mean(), ((4, 3), (3,))),
    ],
)
def test_gradients(gpu, op, shapes):
    inputs = [gpu.put(a) for a in draw(*shapes)]
    result = check(op, *inputs)
    assert result.passed, result
    if len(shapes) < 3 and op is not ops.max_pool and op.__name__ != "<lambda>":
        result = check_adjoint(op, *inputs)
        assert result.passed, result


def test_the_checker_sees_wrong_gradients_of_the_gpu(gpu):
    def wrong(x):
        return Tensor(2 * x.data, (x,), lambda g, needs: (2.0001 * g,))

    def writes(x):
        y = 2 * x.data
        x.data[...] = 0
        return Tensor(y, (x,), lambda g, needs: (2 * g,))

    (x,) = draw((2, 3))
    assert 4e-5 < check(wrong, gpu.put(x)).error < 6e-5
    assert check(writes, gpu.put(x)).fault == "x was written to"


# Resampling and arithmetic


@pytest.mark.parametrize("shape", [(2, 4, 6, 3), (1, 2, 2, 1), (3, 6, 2, 40), (2, 16, 16, 8)])
@pytest.mark.parametrize("op", [ops.upsample, ops.avg_pool, ops.max_pool])
@pytest.mark.parametrize("dtype", ["f4", "f8"])
def test_resampling_is_the_cpus(gpu, op, shape, dtype):
    same(op, draw(shape, dtype=dtype), gpu, 1e-7 if dtype == "f4" else 1e-15)


@pytest.mark.parametrize("op", [ops.upsample, ops.avg_pool, ops.max_pool])
def test_resampling_of_arrays_that_lie_oddly(gpu, op):
    (x,) = draw((2, 4, 6, 3))
    t, tg = Tensor(x), Tensor(gpu.put(np.ascontiguousarray(x.transpose(2, 0, 3, 1))).transpose(1, 3, 0, 2))
    y, yg = op(t), op(tg)
    np.testing.assert_allclose(gpu.get(yg.data), y.data, atol=1e-15)
    np.testing.assert_allclose(gpu.get(grad(yg.sum(), [tg])[0]), grad(y.sum(), [t])[0], atol=1e-15)


def test_max_pool_gives_a_tie_to_the_first_and_passes_nan_on(gpu):
    x = Tensor(gpu.put(np.array([[1.0, 5, 5, 2, 1, np.nan], [5, 5, 0, 5, 2, 3]]).reshape(1, 2, 6, 1)))
    y = ops.max_pool(x)
    (dx,) = grad(y, [x], gpu.put(np.array([10.0, 20, 30]).reshape(1, 1, 3, 1)))
    np.testing.assert_array_equal(gpu.get(y.data).ravel(), [5, 5, np.nan])
    assert gpu.get(dx)[0, :, :, 0].tolist() == [[0, 10, 20, 0, 0, 30], [0, 0, 0, 0, 0, 0]]


def test_max_pool_repeats_its_choices(gpu):
    x, other = (gpu.put(a) for a in draw((2, 4, 6, 3), (2, 4, 6, 3)))
    with kinks.record() as choices:
        y = ops.max_pool(Tensor(x))
    with kinks.replay(choices):
        again, swapped = ops.max_pool(Tensor(x)), None
    with kinks.replay(choices):
        swapped = ops.max_pool(t := Tensor(other))
    assert np.array_equal(gpu.get(y.data), gpu.get(again.data))
    picked = gpu.get(grad(swapped, [t], gpu.cupy.ones_like(swapped.data))[0]) * gpu.get(other)
    np.testing.assert_array_equal(picked.reshape(2, 2, 2, 3, 2, 3).sum((2, 4)), gpu.get(swapped.data))
    assert not np.array_equal(gpu.get(swapped.data), gpu.get(ops.max_pool(Tensor(other)).data))


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("shapes", [((3, 5), (5, 2)), ((2, 3, 4), (2, 4, 5)), ((2, 1, 3, 4), (5, 4, 2))])
def test_matmul_is_the_cpus(gpu, shapes, dtype):
    same(ops.matmul, draw(*shapes, dtype=dtype), gpu, 1e-6 if dtype == "f4" else 1e-14)


def test_constants_and_broadcasting(gpu):
    (table,) = draw((4, 3), seed=1)
    for op in (
        lambda a, b: 3 - a / b,
        lambda a, b: -2 * a + b * b - 1,
        lambda a, b: a * table + table / b,
        lambda a, b: (a + b).sum(0) * 0.5,
        lambda a, b: (a - b).mean((0, 1), keepdims=True) / 3,
        lambda a, b: a.transpose().reshape(2, 6) * b.sum(),
    ):
        same(op, draw((4, 3), (3,)), gpu, 1e-14)
