"""The checker's interface: what it says in a Result, what it finds besides wrong numbers, what it refuses."""

import numpy as np
import pytest

from minisagan import kinks, ops
from minisagan.autograd import Tensor
from minisagan.gradcheck import Result, check, check_adjoint

MATRIX = np.random.default_rng(1).standard_normal((4, 5))


def draw(*shapes):
    rng = np.random.default_rng(1)
    return tuple(rng.standard_normal(shape) for shape in shapes)


def unary(y, dx):
    """An op y(x) with the backward pass dx(g, x)."""
    return lambda x: Tensor(y(x.data), (x,), lambda g, needs, x=x.data: (dx(g, x),), "mine")


def sine(factor):
    """sin with its derivative times a factor."""

    def op(x):
        return Tensor(np.sin(x.data), (x,), lambda g, needs, x=x.data: (factor * g * np.cos(x),))

    return op


def writes_to_input(x):
    x.data *= 2
    return x * 1


def writes_to_input_backward(x):
    def vjp(g, needs, x=x.data):
        x += 1
        return (g,)

    return Tensor(x.data.copy(), (x,), vjp)


def writes_to_cotangent(x):
    def vjp(g, needs):
        g *= 3
        return (g,)

    return Tensor(3 * x.data, (x,), vjp)


noise = np.random.default_rng(0)
ROOM = np.empty((4, 5))

FAULTS = {
    "x was written to": writes_to_input,
    "x was written to ": writes_to_input_backward,
    "the cotangent was written to": writes_to_cotangent,
    "the output is float32, of float64 inputs": unary(np.float32, lambda g, x: g),
    "mine: its vjp gave float32 as the cotangent of a parent of float64": unary(
        np.copy, lambda g, x: g.astype(np.float32)
    ),
    "mine: its vjp gave an array of shape (5, 4) as the cotangent of a parent of shape (4, 5)": unary(
        np.copy, lambda g, x: g.T
    ),
    "mine: its vjp gave an array of shape (1, 5) as the cotangent of a parent of shape (4, 5)": unary(
        lambda x: x.sum(0), lambda g, x: g[None]
    ),
    "mine: its vjp gave a list as the cotangent of a parent of shape (4, 5)": unary(np.copy, lambda g, x: g.tolist()),
    "mine: its vjp returned an array of shape (4, 5), not a tuple of 1, one cotangent for each parent": (
        lambda x: Tensor(x.data.copy(), (x,), lambda g, needs: g, "mine")
    ),
    "the output was overwritten by a second call: each call has to have arrays of its own": unary(
        lambda x: np.tanh(x, out=ROOM), lambda g, x: g * (1 - np.tanh(x) ** 2)
    ),
    "dx was overwritten by a second call: each call has to have arrays of its own": unary(
        np.square, lambda g, x: np.multiply(2 * g, x, out=ROOM)
    ),
    "dx is not finite": unary(np.copy, lambda g, x: g / 0),
    "the output is not finite": unary(lambda x: np.log(x - x), lambda g, x: g),
    "two calls with the same inputs differ in what they return": lambda x: x * noise.standard_normal(),
}


@pytest.mark.filterwarnings("ignore:divide by zero")
@pytest.mark.parametrize("fault", FAULTS)
def test_what_can_not_be_compared_is_named(fault):
    before = MATRIX.copy()
    for checker in (check, check_adjoint) if "two calls" not in fault else (check,):
        row = checker(lambda x: FAULTS[fault](x), MATRIX, name="op")
        assert row.fault == fault.strip() and not row.passed and row.error == np.inf
        assert str(row).startswith("FAILED  op ") and str(row).endswith(f": {fault.strip()}")
        assert np.array_equal(MATRIX, before)


def test_memory_that_calls_share_inside_an_op_makes_a_wrong_gradient():
    def op(x):
        y = np.tanh(x.data, out=ROOM)
        return Tensor(y.copy(), (x,), lambda g, needs: (g * (1 - y * y),))

    assert check(op, MATRIX).error > 1e-4


def leaky(x):
    slope = np.where(x.data > 0, 1, 0.2)
    return Tensor(slope * x.data, (x,), lambda g, needs: (g * slope,))


def test_differences_that_may_be_wrong_are_said_to_be():
    near = MATRIX.copy()
    near[0, 0] = 0
    far = np.where(np.eye(4, 5) > 0, 1e-4, MATRIX)
    large = lambda x: ops.sum(x * x * x)  # to rounding, of numbers of size 1e7
    for op, x in ((leaky, near), (leaky, far), (large, 1e7 + MATRIX)):
        row = check(op, x)
        assert row.unsure and not row.passed
        assert str(row).endswith("but the differences may be wrong: a kink that does not ask kinks.chosen, rounding, "
                                 "or inputs far from size 1")  # fmt: skip
    for factor in (3, 1.0001, 1 + 1e-7):
        row = check(sine(factor), MATRIX)
        assert not row.passed and not row.unsure and "but" not in str(row)


def test_a_choice_is_no_value_and_hides_no_slope():
    def op(x):
        size = kinks.chosen(lambda: abs(x.data))
        size = abs(x.data) if size is None else size
        return Tensor(x.data * size, (x,), lambda g, needs: (g * size,))

    with pytest.raises(ValueError, match="a choice is a mask or an index, not float64"):
        check(op, MATRIX)


def test_other_ops_with_kinks_elsewhere_than_at_x_are_named():
    op = lambda x: ops.relu(x) if x.data[0, 0] != MATRIX[0, 0] else x * 1
    with pytest.raises(ValueError, match="more ops with kinks than at x"):
        check(op, MATRIX)


def test_a_reference_of_another_value_is_refused():
    row = check(ops.tanh, MATRIX, reference=lambda x: x * x)
    assert row.fault == "reference and f differ in what they return"


@pytest.mark.parametrize("wrong", [lambda x: x, lambda x: x[::-1].copy(), lambda x: 1.01 * x])
def test_adjoint_identity(wrong):
    matrix, x = draw((4, 4), (4,))
    good = lambda x: Tensor(matrix @ x.data, (x,), lambda g, needs: (matrix.T @ g,))
    bad = lambda x: Tensor(matrix @ x.data, (x,), lambda g, needs: (wrong(matrix) @ g,))
    assert check_adjoint(good, x).error < 1e-15
    row = check_adjoint(bad, x, name="A")
    assert row.error > 1e-4 and not row.passed
    assert f"<x, dx> is {row.analytic:.9g} and should be {row.numeric:.9g}" in str(row)


def test_the_fields_of_a_result():
    def op(first, second):
        def vjp(g, needs):
            d = 2 * g
            d[1, 2] *= 1.5
            return g * 1, d

        return Tensor(first.data + 2 * second.data, (first, second), vjp)

    row = check(op, *draw((3, 4), (3, 4)), tolerance=1e-7)
    found = row.error, 1e-7, row.seconds, "second", (1, 2), row.analytic, row.numeric
    assert row == Result("op", ((3, 4), (3, 4)), "every element", *found)
    assert row.error == pytest.approx(1 / 3) and row.analytic == pytest.approx(1.5 * row.numeric)
    assert 0 < row.seconds < 10 and not row.passed
    assert str(row).split() == ["FAILED", "op", "3.3e-01", "every", "element", "(3,", "4)", "(3,", "4):",
                                "dsecond[1,", "2]", "is", f"{row.analytic:.9g}", "and", "should", "be",
                                f"{row.numeric:.9g}"]  # fmt: skip


def test_the_fields_of_a_result_in_random_directions():
    row = check(sine(1.01), np.random.default_rng(0).standard_normal((15, 14)))
    assert row.method == "8 directions" and row.index in range(8) and row.input == "x"
    assert row.error == pytest.approx(0.01 / 1.01) and f"<dx, direction {row.index}> is" in str(row)
    row = check(lambda x, w: x @ w, *draw((15, 14), (14, 2)))
    assert row.method == "both" and row.passed
    wrong = check(lambda x, w: x.sum() + sine(2)(w), *draw((15, 14), (2,)))
    assert (wrong.method, wrong.input) == ("both", "w") and wrong.index in [(0,), (1,)]
    assert str(row).split() == ["ok", "f", f"{row.error:.1e}", "both", "(15,", "14)", "(14,", "2)"]


@pytest.mark.filterwarnings("ignore:invalid value encountered in sqrt")
def test_differences_that_are_not_a_number_fail():
    """At x = 1e-3 the point x - 3h / 8 lies outside: nothing was compared, whatever the other elements say."""
    root = unary(np.sqrt, lambda g, x: g / (2 * np.sqrt(x)))
    row = check(lambda x, other: root(x) + other, np.array([1.0, 1e-3, 4.0]), np.ones(1))
    assert row.error == np.inf and not row.passed and "f is not finite within 0.001875 of x" in str(row)
    assert not check(unary(np.sqrt, lambda g, x: 0 * g), np.array([1e-3])).passed


def test_names_come_from_the_parameters_or_the_caller():
    wrong = sine(2)
    assert check(lambda image: wrong(image), MATRIX).input == "image"
    assert check(lambda *inputs: wrong(inputs[0]), MATRIX).input == "x0"
    assert check(wrong, MATRIX, names=["w"]).input == "w"
    assert check(wrong, MATRIX).name == "op" and check(wrong, MATRIX, name="sin").name == "sin"


def test_the_seed_is_all_that_chance_hangs_on():
    wrong = sine(2)
    rows = [check(wrong, MATRIX, seed=seed) for seed in (3, 3, 4)]
    assert rows[0].analytic == rows[1].analytic != rows[2].analytic


def test_float32_inputs_are_checked_as_copies_in_float64():
    x = draw((3, 4))[0].astype(np.float32)
    assert check(ops.tanh, x).passed and x.dtype == np.float32
    assert check(ops.tanh, 0.5).shapes == ((),)
    assert check(ops.tanh, [0.5, 1.0]).passed


def test_inputs_keep_their_place_in_memory():
    def op(x):
        seen.append(x.data)
        return x * 1

    seen, x = [], np.random.default_rng(0).standard_normal((4, 6))[::2, ::3]
    assert check(op, x).passed and seen[0].strides == x.strides and np.shares_memory(seen[0], x)


@pytest.mark.parametrize(
    "call, says",
    [
        (lambda: check(ops.tanh), "a gradient check needs at least one input array"),
        (lambda: check_adjoint(ops.upsample), "a gradient check needs at least one input array"),
        (lambda: check(ops.embedding, np.ones((3, 2)), np.array([0])), "input 1 must .* not int64: close"),
        (lambda: check(ops.tanh, np.ones(3, bool)), "input 0 must hold reals, not bool"),
        (lambda: check(ops.tanh, np.ones(3, complex)), "not complex128"),
        (lambda: check(ops.tanh, Tensor(np.ones(3))), "input 0 must be an array, not a Tensor"),
        (lambda: check(ops.tanh, "x"), "not <U1"),
        (lambda: check(ops.tanh, np.ones((3, 0))), r"input 0 of shape \(3, 0\) must have elements"),
        (lambda: check(ops.tanh, np.array([1, np.nan])), r"of shape \(2,\) must have elements, and finite"),
        (lambda: check(lambda x: x.data, np.ones(3)), "f must return one Tensor to be checked, not a nda"),
        (lambda: check(lambda x: (x, x), np.ones(3), name="pair"), "pair must return .* not a tuple: check each"),
        (lambda: check(ops.tanh, np.ones(3), names=["x", "y"]), "1 inputs but 2 names: x, y"),
    ],
)
def test_misuse_is_one_clear_line(call, says):
    with pytest.raises(ValueError, match=says) as error:
        call()
    assert "\n" not in str(error.value)


def test_a_cotangent_that_is_nan_where_it_alone_is_needed_is_a_fault():
    def f(a, b):
        def vjp(g, needs):
            da = g * b.data if all(needs) else g * np.nan
            return da, g * a.data

        return Tensor(a.data * b.data, (a, b), vjp, "product")

    found = check(f, np.ones(3), np.full(3, 2.0))
    assert not found.passed and found.fault.startswith("da differs by nan where it alone is needed")


def test_an_error_ends_the_recording_of_choices():
    for using in (kinks.record(), kinks.replay([])):
        with pytest.raises(KeyError), using:
            raise KeyError
        assert kinks.chosen(lambda: np.ones(1, bool)) is None
