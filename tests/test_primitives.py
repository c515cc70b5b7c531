"""The forms beside an op's page against the page's own: every case of the gradient checks, value and gradients."""

import functools
import types
from pathlib import Path

import numpy as np
import pytest

from minisagan import cpu, primitives, processes
from minisagan.autograd import Tensor, grad
from minisagan.ops import conv_numpy, resampled_conv_numpy, winograd_numpy
from minisagan.ops.conv import gather, scatter
from minisagan.ops.resampled_conv import smeared_gather, smeared_scatter
from minisagan.primitives import primitive
from minisagan.selfcheck import cases
from minisagan.selfcheck.of_ops import CASES


def results(case):
    """The case's value, and its gradients for a cotangent of noise."""
    inputs = [Tensor(np.array(x, order="C")) for x in case.inputs]
    y = case.f(*inputs)
    g = np.random.default_rng(5).standard_normal(y.shape)
    return [np.array(y.data), *grad(y, inputs, np.asarray(g))]


@pytest.mark.parametrize("op", CASES)
def test_the_fast_forms_compute_what_the_page_says(op, monkeypatch):
    fast = [results(case) for case in cases(op)]
    monkeypatch.setattr(primitives, "beside", lambda plain, where: plain)
    for case, found in zip(cases(op), fast, strict=True):
        for a, b in zip(found, results(case), strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-11, atol=1e-11 * max(1.0, np.abs(b).max()), err_msg=case.name)


def test_a_primitive_without_another_form_is_its_page():
    @primitive
    def double(x):
        return 2 * x

    assert primitives.beside(double.plain, "numpy") is double.plain and double(np.ones(2)).tolist() == [2, 2]


def test_a_wrong_fast_form_would_be_noticed(monkeypatch):
    def wrong(plain, where):
        return (lambda y, *given: 1.01 * plain(y, *given)) if plain.__name__ == "relu_backward" else plain

    plain = [results(case) for case in cases("relu")]
    monkeypatch.setattr(primitives, "beside", wrong)
    assert not np.allclose(plain[0][1], results(next(iter(cases("relu"))))[1], rtol=1e-6)


@pytest.mark.parametrize("f, stride, size", [(gather, 1, (2, 8)), (gather, 2, (1, 4)), (scatter, 2, (4, 16))])
@pytest.mark.parametrize("O, pieces", [(96, 6), (160, 10), (100, 1)])
def test_wide_kernels_are_multiplied_in_pieces_that_blas_does_not_pack(f, stride, size, O, pieces, monkeypatch):
    random, plain, columns = np.random.default_rng(0), np.matmul, []

    def matmul(a, b, out):
        columns.append(b.shape[1])
        assert O == 100 or out.shape[2] * b.size <= conv_numpy.SMALL
        return plain(a, b, out=out)

    x, w = random.standard_normal((1, 2, 8, 160)), random.standard_normal((5, 5, 160, O))
    given = x, w, stride, 2, 2, size, random.standard_normal(O), random.standard_normal((1, *size, O))
    given = *given, f is gather or random.standard_normal((1, *size, O))  # relu, or the gate
    expected = f.plain(*given)
    monkeypatch.setattr(cpu, "packs_always", lambda: False)
    monkeypatch.setattr(np, "matmul", matmul)
    np.testing.assert_allclose(f(*given), expected, rtol=1e-11, atol=1e-11)
    if stride == 1:
        assert columns == [O // pieces] * pieces


@pytest.mark.parametrize("f", [gather, scatter])
@pytest.mark.parametrize("top, left, side, channels", [(1, 1, 8, 256), (0, 1, 4, 64), (1, 2, 4, 64)])
def test_many_channels_in_pieces_and_other_borders(f, top, left, side, channels):
    random = np.random.default_rng(0)
    given = random.standard_normal((2, side, side, channels)), random.standard_normal((3, 3, channels, channels))
    given = *given, 1, top, left, (side, side), None, random.standard_normal((2, side // 2, side // 2, channels))
    np.testing.assert_allclose(f(*given), f.plain(*given), rtol=1e-11, atol=1e-10)


@pytest.mark.parametrize("f", [gather, smeared_gather, smeared_scatter])
@pytest.mark.parametrize("side, C, O", [(2, 64, 64), (8, 128, 128), (6, 64, 96)])
def test_not_one_bit_depends_on_which_images_are_cut_together(f, side, C, O, monkeypatch):
    random = np.random.default_rng(0)
    x, w = (random.standard_normal(shape, dtype=np.float32) for shape in ((7, side, side, C), (3, 3, C, O)))
    at = (1, 1, 1, (side, side)) if f is gather else ()
    together = f(x, w, *at)
    monkeypatch.setattr(cpu, "CHUNK_BYTES", 1)
    assert np.array_equal(together, f(x, w, *at))
    assert np.array_equal(together[3:5], f(x[3:5], w, *at))


STACKED = {  # with (stride, top, left, size) of what one product of several images may take
    "3x3": (gather, 16, (1, 1, 1, (8, 8))),
    "Winograd": (gather, 64, (1, 1, 1, (8, 8))),
    "stride 2": (gather, 16, (2, 1, 1, (4, 4))),
    "other borders": (gather, 16, (1, 2, 0, (7, 9))),
    "transposed": (scatter, 16, (1, 1, 1, (8, 8))),
    "transposed, stride 2": (scatter, 16, (2, 1, 1, (16, 16))),
    "conv_down": (smeared_gather, 16, ()),
    "up_conv": (smeared_scatter, 16, ()),
}


@pytest.mark.parametrize("name", STACKED)
@pytest.mark.parametrize("N, most", [(32, 2), (32, 16), (24, 16), (8, 16)])
def test_several_images_in_one_product_are_the_same_in_every_process(name, N, most, monkeypatch):
    """Where the library packs, or is made to believe that it does: float64 to rounding, float32 bit for bit."""
    f, C, at = STACKED[name]
    random, plain, rows = np.random.default_rng(0), np.matmul, []

    def matmul(a, b, **out):
        rows.append(a.shape[-2])
        return plain(a, b, **out)

    x, w = random.standard_normal((N, 8, 8, C)), random.standard_normal((3, 3, C, max(C, 24)))
    y = f(x, w, *at)
    gate = y > 0 if f in (scatter, smeared_scatter) else True  # or that x is read with a ReLU
    more = random.standard_normal(w.shape[3]), random.standard_normal(y.shape), gate
    monkeypatch.setattr(conv_numpy, "ROWS", 2 * 8 * most)
    monkeypatch.setattr(np, "matmul", matmul)
    found, longest = [], []
    for packs in False, True:
        monkeypatch.setattr(cpu, "packs_always", lambda packs=packs: packs)
        found.append(f(x, w, *at, *more))
        longest.append(max(rows))
        rows.clear()
    np.testing.assert_allclose(*found, rtol=1e-11, atol=1e-11)
    assert longest[1] >= longest[0] * min(N // 8, most)
    x, w = x.astype(np.float32), w.astype(np.float32)
    whole = f(x, w, *at)
    monkeypatch.setattr(cpu, "CHUNK_BYTES", 1)  # of a stack each
    for world in 1, 2, 4, 8:
        group = processes.Alone(processes.PARTS)
        group.world = world
        for group.rank in range(world):
            with processes.member(group):
                assert np.array_equal(f(processes.share(x), w, *at), whole[group.rank :: world])


FAULTS = {  # (of a page's text, what to put there)
    resampled_conv_numpy: [
        ("f(0, x[0], out=y[0])", "y[0] = x[0]"),  # a sign at the upper border
        ("f(x[-1], 0, out=y[-1])", "y[-1] = 0"),
        ("pairs(np.add, rows", "pairs(np.subtract, rows"),
        ("rows[:-1] *= factor", "rows *= factor"),
        ("[::-1].swapaxes(1, 2)", ".swapaxes(1, 2)"),
        (".swapaxes(1, 2)  # turned", "  # turned"),
        ("[0, 0, 1], [1, 1, 1], [-1, 0, 0]", "[1, 0, 0], [1, 1, 1], [0, 0, -1]"),
        ("[-1, 0, 0]", "[1, 0, 0]"),
        ("np.negative(here[:, :, 0], out=left[:, :, 0])", "left[:, :, 0] = 0"),
        ("right[:, :, -1] = here[:, :, -1]", "right[:, :, -1] = 0"),
        ("(0, H + 1, 1)", "(1, H + 1, 0)"),
        ("sums[2] += sums[1]", ""),
        ("sums[2 * k, 1]", "sums[1, 1]"),
        ("complete(y, cuts[i]", "complete(y, cuts[0]"),
        ("lambda x: boxes(x, relu)", "lambda x: boxes(x, False)"),
        ("0, 0, read=lambda x: boxes(x, relu)", "0, 0, read=lambda x: boxes(x, False)"),
        ("rest, gate)\n\n    cpu", "rest, None)\n\n    cpu"),
        ("left[:, :, 1:]", "left[:, :, 1:]"),  # no fault, no news
    ],
    winograd_numpy: [
        ("H % 2 == W % 2 == 0", "W % 2 == 0"),
        ("read(x[cuts[i]]), y[cuts[i]]", "read(x[cuts[i]]), y[cuts[0]]"),
        ("np.negative(odd[0], out=y[0][0])", "y[0][0] = odd[0]"),
        ("odd[:-1], odd[1:]", "odd[1:], odd[:-1]"),
        ("np.subtract(odd, even", "np.subtract(even, odd"),
        ("y[3][-1] = even[-1]", "y[3][-1] = 0"),
        ("[0, 0, -1]", "[0, 0, 1]"),
        ("[0.5, -0.5, 0.5]", "[1, -1, 1]"),
        ("np.add(m[0], m[2]", "np.subtract(m[0], m[2]"),
        ("m[3] += m[1]", ""),
        ("to_y(m[3], blocks[:, :, :, 1, :, 0], blocks", "to_y(m[3], blocks[:, :, :, 1, :, 1], blocks"),
        ("finish(cuts[i])", "finish(cuts[0])"),
        ("m[0] += m[1]", "m[0] += m[1]"),
    ],
}


OPS = {resampled_conv_numpy: ("up_conv", "conv_down"), winograd_numpy: ("conv",)}
right = functools.cache(lambda page: [results(case) for op in OPS[page] for case in cases(op)])


@pytest.mark.parametrize("page, before, after", [(page, *fault) for page in FAULTS for fault in FAULTS[page]])
def test_faults_in_sums_and_differences_of_x_are_noticed(page, before, after, monkeypatch):
    expected, text, beside = right(page), Path(page.__file__).read_text(encoding="utf-8"), primitives.beside
    assert before in text
    faulty = types.ModuleType("faulty")
    exec(text.replace(before, after), vars(faulty))
    monkeypatch.setattr(cpu, "CHUNK_BYTES", 1)  # of an image each
    if page is winograd_numpy:
        monkeypatch.setattr(conv_numpy, "winograd_numpy", faulty)
    else:
        monkeypatch.setattr(primitives, "beside", lambda f, at: vars(faulty).get(f.__name__) or beside(f, at))
    noticed = False
    for case, values in zip((case for op in OPS[page] for case in cases(op)), expected, strict=True):
        try:
            same = [np.allclose(a, b, rtol=1e-9, atol=1e-9) for a, b in zip(values, results(case), strict=True)]
        except ValueError:  # shapes that don't fit
            same = [False]
        noticed = noticed or not all(same)
    assert noticed == (before != after)
