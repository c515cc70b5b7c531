"""The checker is checked: each of these wrong backward passes must fail, and each right one pass."""

import numpy as np
import pytest

from minisagan import kinks, ops
from minisagan.autograd import Tensor
from minisagan.gradcheck import check


def draw(*shapes):
    rng = np.random.default_rng(1)
    return tuple(rng.standard_normal(shape) for shape in shapes)


def tanh(change):
    """tanh whose dx went through `change`."""

    def op(x):
        y = np.tanh(x.data)
        return Tensor(y, (x,), lambda g, needs: (change(g * (1 - y * y)),))

    return op


def softmax(dx):
    """softmax along the last axis with the backward pass dx(y, g)."""

    def op(x):
        y = np.exp(x.data) / np.exp(x.data).sum(-1, keepdims=True)
        return Tensor(y, (x,), lambda g, needs: (dx(y, g),))

    return op


def matmul(da, db):
    """a @ b with the backward passes da(g, a, b) and db(g, a, b)."""
    return lambda a, b: Tensor(
        a.data @ b.data, (a, b), lambda g, needs, a=a.data, b=b.data: (da(g, a, b), db(g, a, b))
    )


def batch_norm(dx, dgain=lambda g, xhat: (g * xhat).sum(0), dbias=lambda g: g.sum(0)):
    """Batch norm of (N, C) with the backward pass dx(gain g, xhat) / std."""

    def op(x, gain, bias):
        std = np.sqrt(x.data.var(0) + 1e-5)
        xhat, gd = (x.data - x.data.mean(0)) / std, gain.data
        return Tensor(
            xhat * gd + bias.data,
            (x, gain, bias),
            lambda g, needs: (dx(gd * g, xhat) / std, dgain(g, xhat), dbias(g)),
        )

    return op


def relu(dx, record=True):
    """ReLU with the backward pass dx(g, on, x), which makes its choice known to the checker."""

    def op(x):
        on = kinks.chosen(lambda: x.data > 0) if record else None
        on = x.data > 0 if on is None else on
        return Tensor(x.data * on, (x,), lambda g, needs, x=x.data: (dx(g, on, x),))

    return op


def unary(y, dx):
    """An op y(x) with the backward pass dx(g, x)."""
    return lambda x: Tensor(y(x.data), (x,), lambda g, needs, x=x.data: (dx(g, x),))


def square(x):
    """x * x as one op of two parents, whose author forgot that both may be one tensor."""
    a = b = x
    return Tensor(a.data * b.data, (a,), lambda g, needs, b=b.data: (g * b,))


def embedding(dtable):
    labels = np.array([0, 2, 2, 1])
    return unary(lambda table: table[labels], lambda g, table: dtable(table, labels, g))


def assigned(table, labels, g):
    d = np.zeros_like(table)
    d[labels] = g  # the last one wins where it should be their sum
    return d


def added(table, labels, g):
    d = np.zeros_like(table)
    np.add.at(d, labels, g)
    return d


def conv(turned):
    """One-dimensional convolution of (N,) with (3,), zeros outside: dx must use the kernel turned around."""

    def op(x, w):
        xd, wd = x.data, w.data
        padded = np.pad(xd, 1)
        patches = np.stack([padded[i : i + len(xd)] for i in range(3)])  # (3, N)

        def vjp(g, needs):
            back = np.stack([np.pad(g, 1)[i : i + len(xd)] for i in range(3)])
            return (wd[::-1] if turned else wd) @ back, patches @ g

        return Tensor(wd @ patches, (x, w), vjp)

    return op


def pool_maximum(dx):
    """The maximum of pairs, (2n,) -> (n,)."""

    def op(x):
        pairs = x.data.reshape(-1, 2)
        return Tensor(pairs.max(1), (x,), lambda g, needs: (dx(pairs, g).reshape(-1),))

    return op


MATRIX, PAIR = draw((4, 5)), draw((4, 4), (4, 4))
NORM = draw((6, 3), (3,), (3,))


def right_norm(g, xhat):
    return g - g.mean(0) - xhat * (g * xhat).mean(0)


RIGHT = {
    "tanh": (tanh(lambda dx: dx), MATRIX),
    "softmax": (softmax(lambda y, g: y * (g - (g * y).sum(-1, keepdims=True))), MATRIX),
    "matmul": (matmul(lambda g, a, b: g @ b.T, lambda g, a, b: a.T @ g), PAIR),
    "batch norm": (batch_norm(right_norm), NORM),
    "relu": (relu(lambda g, on, x: g * on), MATRIX),
    "embedding": (embedding(added), draw((3, 2))),
    "conv": (conv(turned=True), draw((7,), (3,))),
    "maximum": (pool_maximum(lambda p, g: (p == p.max(1)[:, None]) * g[:, None]), draw((8,))),
    "scalar": (unary(np.sin, lambda g, x: g * np.cos(x)), draw(())),
    "a constant": (lambda x: Tensor(np.ones(3), (x,), lambda g, needs: (np.zeros(x.shape),)), MATRIX),
}

WRONG = {
    "zero": (tanh(lambda dx: 0 * dx), MATRIX),
    "transposed": (tanh(lambda dx: dx.T), PAIR[:1]),
    "sign": (tanh(lambda dx: -dx), MATRIX),
    "off by 1 %": (tanh(lambda dx: 1.01 * dx), MATRIX),
    "off by 1e-7": (tanh(lambda dx: dx * (1 + 1e-7)), MATRIX),
    "a million times too large": (tanh(lambda dx: 1e6 * dx), MATRIX),
    "the cotangent forgotten": (unary(np.tanh, lambda g, x: 1 - np.tanh(x) ** 2), MATRIX),
    "the derivative forgotten": (unary(np.tanh, lambda g, x: g), MATRIX),
    "one element 1 % off": (tanh(lambda dx: dx * (1 + 0.01 * (np.arange(20).reshape(4, 5) == 13))), MATRIX),
    "one element of a row late": (tanh(lambda dx: np.roll(dx, 1, axis=1)), MATRIX),
    "softmax: 0, right for ones": (softmax(lambda y, g: 0 * y), MATRIX),
    "softmax: the sum missing": (softmax(lambda y, g: y * g), MATRIX),
    "softmax: the wrong axis": (softmax(lambda y, g: y * (g - (g * y).sum(0, keepdims=True))), MATRIX),
    "softmax: the diagonal alone": (softmax(lambda y, g: g * y * (1 - y)), MATRIX),
    "matmul: b not transposed": (matmul(lambda g, a, b: g @ b, lambda g, a, b: a.T @ g), PAIR),
    "matmul: db transposed": (matmul(lambda g, a, b: g @ b.T, lambda g, a, b: g.T @ a), PAIR),
    "matmul: da and db swapped": (matmul(lambda g, a, b: a.T @ g, lambda g, a, b: g @ b.T), PAIR),
    "matmul: the second zero": (matmul(lambda g, a, b: g @ b.T, lambda g, a, b: 0 * b), PAIR),
    "batch norm: the mean's term missing": (batch_norm(lambda g, xhat: g - xhat * (g * xhat).mean(0)), NORM),
    "batch norm: the variance's term missing": (batch_norm(lambda g, xhat: g - g.mean(0)), NORM),
    "batch norm: means over all": (batch_norm(lambda g, xhat: g - g.mean() - xhat * (g * xhat).mean()), NORM),
    "batch norm: dx as in evaluation": (batch_norm(lambda g, xhat: g), NORM),
    "batch norm: 0, right for ones": (batch_norm(lambda g, xhat: 0 * g), NORM),
    "batch norm: dgain without xhat": (batch_norm(right_norm, dgain=lambda g, xhat: g.sum(0)), NORM),
    "batch norm: dbias a mean": (batch_norm(right_norm, dbias=lambda g: g.mean(0)), NORM),
    "relu: sign": (relu(lambda g, on, x: -g * on), MATRIX),
    "relu: the other side": (relu(lambda g, on, x: g * ~on), MATRIX),
    "relu: gated by the cotangent": (relu(lambda g, on, x: g * (g > 0)), MATRIX),
    "relu: leaky backward": (relu(lambda g, on, x: g * np.where(on, 1, 0.2)), MATRIX),
    "a repeated input counted once": (square, MATRIX),
    "repeated labels overwritten": (embedding(assigned), draw((3, 2))),
    "conv: kernel not turned": (conv(turned=False), draw((7,), (3,))),
    "maximum: to both": (pool_maximum(lambda p, g: np.repeat(g, 2)), draw((8,))),
    "maximum: to the smaller": (pool_maximum(lambda p, g: (p == p.min(1)[:, None]) * g[:, None]), draw((8,))),
    "sum: a mean": (unary(lambda x: x.sum(0), lambda g, x: np.broadcast_to(g, x.shape) / len(x)), MATRIX),
    "sum: the wrong axis": (unary(lambda x: x.sum(0), lambda g, x: np.tile(g[:, None], len(g))), PAIR[:1]),
    "transpose: a cycle not undone": (
        unary(lambda x: x.transpose(1, 2, 0), lambda g, x: g.transpose(1, 2, 0)), draw((3, 3, 3))
    ),
    "detached": (lambda x: Tensor(np.tanh(x.data)), MATRIX),
    "half of it detached": (lambda x: x * Tensor(x.data), MATRIX),
}  # fmt: skip


@pytest.mark.parametrize("name", RIGHT)
def test_a_right_backward_pass_passes(name):
    f, inputs = RIGHT[name]
    row = check(f, *inputs)
    assert row.passed and row.error < 1e-9, row


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_backward_pass_fails(name, seed):
    f, inputs = WRONG[name]
    row = check(f, *inputs, seed=seed)
    assert not row.passed and not row.fault, row


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_backward_pass_fails_in_random_directions_too(name):
    f, inputs = WRONG[name]
    row = check(f, *inputs, every_element=0)
    assert not row.passed and row.method == "8 directions", row


def test_one_element_1_percent_off_in_a_million_is_caught_and_at_1e3_would_not_be():
    def one_wrong(dx):
        dx[321, 123] *= 1.01
        return dx

    (x,) = draw((1000, 1000))
    assert check(tanh(lambda dx: dx), x).passed
    row = check(tanh(one_wrong), x)
    assert 1e-8 < row.error < 1e-3 and not row.passed, row


def test_the_cotangent_is_not_what_a_user_would_draw_with_the_same_seed():
    """Batch norm's dx vanishes for c = x, so that c must not come from the generator that made x."""
    x = np.random.default_rng(0).standard_normal((6, 3))
    row = check(batch_norm(lambda g, xhat: 0 * g), x, np.ones(3), np.zeros(3))
    assert not row.passed and abs(row.numeric) > 0.1


def test_a_kink_within_the_step_is_no_error_and_a_wrong_side_is():
    x = np.array([1e-5, -1e-5, 0.0, 1.0])
    assert check(relu(lambda g, on, x: g * on), x).passed
    assert not check(relu(lambda g, on, x: g * on, record=False), x).passed  # the kink itself, not replayed
    assert not check(relu(lambda g, on, x: g * (x >= 0)), x).passed  # 0 counts as off, in both passes


def test_the_gradient_that_is_checked_is_that_of_an_ordinary_run():
    def op(x):  # right while the checker records, wrong in ordinary use
        on = kinks.chosen(lambda: x.data > 0)
        wrong = on is None
        on = x.data > 0 if wrong else on
        return Tensor(x.data * on, (x,), lambda g, needs: (-g if wrong else g * on,))

    assert not check(op, *MATRIX).passed


def test_zero_gradients_pass_by_the_absolute_bound_and_small_ones_do_not():
    x, before = draw((4, 3, 2, 5), (5,))
    gain, bias = Tensor(np.ones(5)), Tensor(np.zeros(5))
    row = check(lambda before: ops.batch_norm(Tensor(x) + before, gain, bias), before)
    assert row.passed and row.error == 0 and 0 < abs(row.analytic) < 1e-12
    assert not check(unary(lambda x: 1 + 1e-6 * x, lambda g, x: 0 * g), *MATRIX).passed


def asked(cotangent):
    """1.5 x^2, whose cotangent is what cotangent(rest, 3 g x) gives."""

    def op(x):
        return Tensor(1.5 * x.data**2, (x,), lambda g, needs: (lambda rest: cotangent(rest, 3 * g * x.data),))

    return op


def in_place(rest, dx):
    if rest is None:
        return dx
    rest += dx
    return rest


def test_a_cotangent_is_asked_for_as_a_tape_asks():
    """For that of each input alone, and to be added to another one."""
    (x,) = draw((3, 4))
    assert check(asked(lambda rest, dx: dx if rest is None else rest + dx), x).passed
    assert "is to be added to another" in check(asked(lambda rest, dx: dx), x).fault
    assert "the cotangent that dx is to be added to was written to" in check(asked(in_place), x).fault

    def product(a, b, second=1):
        def vjp(g, needs):
            return g * b.data if needs[0] else None, g * a.data if needs[second] else 0 * g

        return Tensor(a.data * b.data, (a, b), vjp)

    assert check(product, x, x[::-1]).passed
    assert "db differs by" in check(lambda a, b: product(a, b, 0), x, x[::-1]).fault


def test_a_cotangent_may_round_differently_where_it_alone_is_asked_for():
    (x,) = draw((3, 4))
    assert check(lambda x: (x * 1e7) - (x * 1e7) + x, x, tolerance=1e-7).passed


def test_what_is_moved_lies_in_memory_as_the_input_does():
    (x,) = draw((3, 8))

    def misread(x):  # as if rows followed one another
        rows = np.lib.stride_tricks.as_strided(x.data, x.shape, (x.shape[1] * 8, 8))
        return Tensor(2 * rows, (x,), lambda g, needs: (2 * g,))

    assert check(misread, np.ascontiguousarray(x[:, :4])).passed
    before = x.copy()
    for view in (x[:, ::2], x.T[:3, 1:], x[::-1, ::-2]):
        assert check(lambda x: 2 * x, view).passed
    assert not check(misread, x[:, ::2]).passed
    assert check(lambda x: 2 * x, np.broadcast_to(x[0], (2, 8))).passed
    np.testing.assert_array_equal(x, before)


def test_next_to_a_pole_the_steps_are_smaller_and_where_f_is_not_finite_it_says_so():
    def log(x, wrong=1.0):
        return Tensor(np.log(x.data), (x,), lambda g, needs: (wrong * g / x.data,))

    near = np.array([0.02, 0.1, 3.0])
    assert check(log, near).passed
    assert not check(lambda x: log(x, 1 + 1e-7), near).passed
    with np.errstate(all="ignore"):
        assert check(lambda x: log(2 * x) - log(x), np.array([0.01])).passed  # where both are nothing but rounding
        assert "f is not finite within 0.001875 of x" in check(log, np.array(1e-4)).fault


def test_spectral_norm_needs_u_and_v_held_and_the_other_rule_fails():
    """Unconverged, holding u and v is one rule, and differentiating through the iteration is another."""
    w, u = draw((4, 6), (4,))

    def held(w, W=w):
        v = W.T @ u / np.linalg.norm(W.T @ u)
        left = W @ v / np.linalg.norm(W @ v)
        return Tensor(w.data / (left @ w.data @ v))

    def through(w):
        W, scale = w.data, np.linalg.norm(w.data.T @ u)
        v = W.T @ u / scale
        sigma = np.linalg.norm(W @ v)
        left = W @ v / sigma
        slope = W.T @ left
        dsigma = np.outer(left, v) + np.outer(u, slope - v * (v @ slope)) / scale
        return Tensor(W / sigma, (w,), lambda g, needs: ((g - (g * W).sum() / sigma * dsigma) / sigma,))

    def miyato(w):
        return ops.spectral_norm(w, u.copy(), move=True, axis=0)

    assert check(miyato, w, reference=held).passed
    assert check(through, w).passed
    assert check(through, w, reference=held).error > 1e-3
    assert check(miyato, w).error > 1e-3
    for _ in range(2000):  # converged, the two agree, and the check would be blind
        u = w @ (w.T @ u)
        u /= np.linalg.norm(u)
    assert check(miyato, w).passed and check(through, w, reference=held).passed
