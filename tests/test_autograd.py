"""The tape: sums over shared nodes, one linear walk, memory freed on the way, and dtypes kept."""

import gc
import sys
import threading
import weakref

import numpy as np
import pytest

from minisagan import autograd, ops, selfcheck
from minisagan.autograd import Tensor, WrongCotangent, grad, no_tape, recording
from minisagan.ops.spectral import spectral_norms

CASES = [pytest.param(case, id=f"{op}: {case.name}") for op in selfcheck.OPS for case in selfcheck.cases(op)]


def leaf(*values):
    return Tensor(np.array(values, np.float64))


def counted(calls, *parents, name="op"):
    """A sum of its parents that notes each call of its vjp, and what was needed."""

    def vjp(g, needs):
        calls.append((name, needs))
        return tuple(g.copy() for _ in parents)

    return Tensor(np.sum([p.data for p in parents], axis=0), parents, vjp)


@pytest.fixture
def no_gc():
    """Python's cyclic collector, off: what is freed is freed by reference count."""
    gc.disable()
    yield
    gc.enable()


def test_x_times_x_has_derivative_2x():
    x = leaf(3.0, -2.0)
    (dx,) = grad((x * x).sum(), [x])
    assert dx.tolist() == [6, -4]


def test_shared_subgraphs_are_summed_and_each_node_visited_once():
    calls, x = [], leaf(1.0)
    a = counted(calls, x, name="a")
    b = counted(calls, a, a, name="b")
    c = counted(calls, b, a, name="c")
    d = counted(calls, c, b, c, name="d")  # d = 2c + b = 2(b + a) + b = 3b + 2a = 8a
    (dx,) = grad(d, [x])
    assert dx.tolist() == [8] and [name for name, _ in calls] == ["d", "c", "b", "a"]


@pytest.mark.parametrize("younger", [True, False])
def test_a_cotangent_may_be_a_function_that_adds_it_to_the_rest(younger):
    x, seen = leaf(1.0), []

    def add(rest):
        seen.append(None if rest is None else rest.tolist())
        return np.array([3.0]) if rest is None else rest + 3.0

    def adding():
        return Tensor(3 * x.data, (x,), lambda g, needs: (add,))

    both = [2 * x, adding()] if younger else [adding(), 2 * x]
    (dx,) = grad(both[0] + both[1], [x])
    assert dx.tolist() == [5] and seen == [None if younger else [2.0]]  # the younger one is asked first


def test_a_ladder_of_2_to_the_200_paths_takes_200_visits():
    x = y = leaf(1.0)
    calls = []
    for _ in range(200):
        y = counted(calls, y, y)
    (dx,) = grad(y, [x])
    assert dx.tolist() == [2.0**200] and len(calls) == 200


def test_a_node_waits_for_its_youngest_child_in_whatever_order_parents_stand():
    for turn in (1, -1):
        x = leaf(2.0)
        a = x * x
        b = a * a
        y = Tensor(a.data + b.data, (a, b)[::turn], lambda g, needs: (g, g))  # x^2 + x^4
        assert grad(y, [x])[0].tolist() == [2 * 2 + 4 * 8]


def chain(length):
    y = x = leaf(1.0)
    for _ in range(length):
        y = Tensor(y.data, (y,), lambda g, needs: (g,))
    return x, y


def test_a_chain_of_50000_ops_overflows_nothing_even_when_dropped_unwalked():
    x, y = chain(50_000)
    assert grad(y, [x])[0].tolist() == [1]
    chain(50_000)


def test_the_work_of_a_walk_is_linear_in_its_length():
    def calls(length):
        x, y = chain(length)
        events = []
        sys.setprofile(lambda frame, event, arg: events.append(event))
        try:
            grad(y, [x])
        finally:
            sys.setprofile(None)
        return len(events)

    assert calls(4_000) < 4.1 * calls(1_000)


def test_unrelated_tensors_get_zeros_of_their_own_shape_and_dtype():
    x, other = leaf(1.0, 2.0), Tensor(np.ones((2, 3), np.float32))
    dother, dx, again = grad((x * 3).sum(), [other, x, x])
    assert dother.shape == (2, 3) and dother.dtype == np.float32 and not dother.any()
    assert dx.tolist() == again.tolist() == [3, 3]


def test_intermediate_tensors_and_the_loss_itself_may_be_wanted():
    x = leaf(2.0)
    y = x * x
    loss = y * y
    assert [d.tolist() for d in grad(loss, [loss, y, x])] == [[1], [8], [32]]


def test_only_what_leads_to_something_wanted_is_asked_for():
    calls, x, w, v = [], leaf(1.0), leaf(2.0), leaf(3.0)

    def no_vjp(g, needs):
        raise AssertionError("asked for a gradient that nobody wants")

    side = Tensor(v.data, (v,), no_vjp)
    y = counted(calls, x, w, side, name="y")
    assert grad(counted(calls, y, side, name="z"), [w])[0].tolist() == [1]
    assert calls == [("z", (True, False)), ("y", (False, True, False))]


def test_what_lies_below_a_wanted_tensor_is_not_walked():
    calls, x = [], leaf(1.0)
    y = counted(calls, x, name="y")
    z = counted(calls, y, name="z")
    grad(z, [y])
    assert calls == [("z", (True,))]
    assert grad(y, [x])[0].tolist() == [1]  # and stays good


@pytest.mark.parametrize("case", CASES)
def test_ops_compute_what_is_needed_and_only_that_matters(case):
    """Each input wanted by itself gets the gradient that it gets among all."""
    rng = np.random.default_rng(0)
    tensors = [Tensor(x) for x in case.inputs]
    c = np.asarray(rng.standard_normal(case.f(*tensors).shape))
    every = grad(case.f(*tensors), tensors, c)
    for tensor, d in zip(tensors, every, strict=True):
        assert np.array_equal(grad(case.f(*tensors), [tensor], c)[0], d)


def test_no_tape_remembers_nothing_and_ends_even_by_an_exception():
    x = leaf(1.0)
    with no_tape():
        assert not recording()
        y = x * x
        with no_tape():
            pass
        assert not recording()
    assert recording() and y.parents == () and y.vjp is None and y.data.tolist() == [1]
    assert grad(y.sum(), [x])[0].tolist() == [0]
    with pytest.raises(KeyError), no_tape():
        raise KeyError
    assert recording()


def test_without_a_cotangent_the_loss_must_be_a_scalar():
    x = leaf(1.0, 2.0)
    with pytest.raises(ValueError, match=r"shape \(2,\) needs a cotangent"):
        grad(x * x, [x])
    assert grad(x * x, [x], np.array([1.0, 10.0]))[0].tolist() == [2, 40]
    assert grad((x * x).sum(), [x], np.array(2.0))[0].tolist() == [4, 8]
    assert grad(leaf(3.0) * x.sum(), [x])[0].tolist() == [3, 3]  # shape (1,) is a scalar, too
    with pytest.raises(ValueError, match="several tensors needs a cotangent"):
        grad([x.sum()], [x])


def test_the_cotangents_of_several_tensors_are_added_and_each_has_its_tensors_shape():
    x = leaf(1.0, 2.0)
    one, two = np.array([1.0, 1.0]), np.array([10.0, 20.0])
    y = x * x
    assert grad([y, y], [x], [one, two])[0].tolist() == [22, 84]
    assert [d.tolist() for d in grad([x * x, x], (t for t in [x]), [one, two])] == [[12, 24]]
    array = "an array of shape"
    wrong = (np.ones((2, 2)), rf"{array} \(2, 2\)"), ([1.0, 1.0], "a list"), (np.float64(1), rf"{array} \(\)")
    for bad, says in wrong:
        for loss, cotangent in ((x * x, bad), ([x * x], [bad])):
            with pytest.raises(ValueError, match=rf"the cotangent of a tensor of shape \(2,\) can't be {says}"):
                grad(loss, [x], cotangent)


def test_a_tape_can_be_walked_once():
    x = leaf(1.0)
    y = x * x
    loss = y.sum()
    grad(loss, [x])
    for again in (loss, y.sum(), (y * leaf(2.0)).sum()):
        with pytest.raises(RuntimeError, match="walked by an earlier grad"):
            grad(again, [x])
    assert grad((x * x).sum(), [x])[0].tolist() == [2]


def test_two_losses_on_separate_tapes_of_the_same_leaves_do_not_meet():
    x, w = leaf(1.0), leaf(5.0)
    one, two = (x * w).sum(), (x * x * w).sum()
    assert [d.tolist() for d in grad(one, [x, w])] == [[5], [1]]
    assert [d.tolist() for d in grad(two, [x, w])] == [[10], [1]]


def test_gradients_are_returned_and_leave_nothing_behind():
    x = leaf(1.0)
    for _ in range(2):
        assert grad((x * x).sum(), [x])[0].tolist() == [2]
    assert x.parents == () and x.vjp is None and x.data.tolist() == [1]


def test_operators_take_numbers_arrays_and_tensors_on_both_sides():
    x, a = leaf(1.0, 4.0), np.array([2.0, 8.0])
    for y, dy in [
        (x + 1, 1), (1 + x, 1), (a + x, 1), (x - 1, 1), (1 - x, -1), (x - a, 1), (a - x, -1), (-x, -1),
        (x * 3, 3), (3 * x, 3), (a * x, a), (x / 2, 0.5), (x / a, 1 / a), (a / x, -a / x.data**2),
        (2 / x, -2 / x.data**2),
    ]:  # fmt: skip
        assert isinstance(y, Tensor)
        assert np.allclose(grad(y.sum(), [x])[0], np.broadcast_to(dy, 2), rtol=1e-15)
    assert ((x + 1) - (x - 1)).data.tolist() == [2, 2] and (a / x).data.tolist() == [2, 2]


def test_a_tensor_is_made_of_numbers_and_lists_and_shaped_as_numpys_arrays_are():
    assert ops.relu(Tensor(-2.0)).data == 0 and ops.tanh(Tensor([0, 0.0])).data.tolist() == [0, 0]
    x = Tensor(np.arange(6.0).reshape(2, 3))
    for a, b in ((x.reshape(3, 2), x.reshape((3, 2))), (x.transpose(1, 0), x.transpose((1, 0)))):
        np.testing.assert_array_equal(a.data, b.data)
    left = np.ones((4, 2))
    y = left @ x
    np.testing.assert_array_equal(y.data, left @ x.data)
    np.testing.assert_array_equal(grad(y.sum(), [x])[0], np.full((2, 3), 4.0))


def test_constants_are_not_cut_to_whole_numbers():
    pixels = Tensor(np.array([0, 200, 255], np.uint8))
    np.testing.assert_array_equal((pixels / 127.5 - 1).data, np.array([0, 200, 255]) / 127.5 - 1)
    assert (Tensor(np.arange(4)) * 0.5).data.tolist() == [0, 0.5, 1, 1.5] and Tensor(np.arange(4)).mean().data == 1.5
    assert (Tensor(np.ones(2, np.float32)) * np.float64(0.1)).dtype == np.float32


@pytest.mark.parametrize("axis", [3, -4, (0, 3)])
def test_axes_that_are_not_there_are_refused(axis):
    for of in (ops.sum, ops.mean):
        with pytest.raises(np.exceptions.AxisError, match="out of bounds for array of dimension 3"):
            of(Tensor(np.zeros((2, 3, 4))), axis)


def test_a_cotangent_that_is_asked_for_and_not_given_is_an_error():
    a, b = Tensor(np.ones(2)), Tensor(np.ones(2))
    y = Tensor(a.data * b.data, (a, b), lambda g, needs: (g, None), "mine")
    with pytest.raises(ValueError, match="mine: its vjp gave None where `needs` asked"):
        grad(y, [a, b], np.ones(2))


def test_a_cotangent_of_another_shape_is_an_error_whatever_it_is_added_to():
    """Sums over what was broadcast that are missing, or are too many, would be hidden by the addition."""

    def added(x, b, wrong):
        return Tensor(x.data + b.data, (x, b), lambda g, needs: (g, wrong(g)), "mine")

    x, b = Tensor(np.ones((3, 4))), Tensor(np.ones(4))
    for wrong, shape in (
        (lambda g: g, r"\(3, 4\)"),
        (lambda g: g.sum(), r"\(\)"),
        (lambda g: g.sum(1), r"\(3,\)"),
        (lambda g: lambda so_far: g + so_far, r"\(3, 4\)"),
    ):
        says = rf"^mine: its vjp gave an array of shape {shape} as the cotangent of a parent of shape \(4,\)$"
        with pytest.raises(WrongCotangent, match=says):
            grad([added(x, b, wrong), ops.tanh(b)], [b], [x.data, b.data])


def test_where_float64_begins_in_a_float32_network_is_named():
    def doubled(x):
        y = x.data * np.float64(2)
        return Tensor(y, (x,), lambda g, needs: (2 * g,), "doubled")

    x, w = Tensor(np.ones((2, 3), np.float32)), Tensor(np.ones((3, 3), np.float32))
    with pytest.raises(WrongCotangent, match="matmul: .* a parent of float32; doubled made float64 of float32"):
        grad(ops.tanh(doubled(x @ w) @ w).sum(), [x, w])
    with pytest.raises(WrongCotangent, match="doubled: its vjp gave float64 as the cotangent of a parent of float32$"):
        grad(doubled(x).sum(), [x])
    for some in (w, spectral_norms([w], [np.ones(3, np.float32)], True, [-1])[0]):
        assert grad((x @ some).sum(), [x, w])[0].dtype == np.float32


def test_a_tensor_that_was_computed_has_parents_in_a_tuple_and_a_vjp():
    x = leaf(1.0)
    for made in (lambda: Tensor(x.data, x, lambda g, needs: (g,)), lambda: Tensor(x.data, (x,))):
        with pytest.raises(TypeError, match="takes a tuple of parents"):
            made()
    mean = Tensor(float(x.data.mean()), (x,), lambda g, needs: (np.full(1, g),))
    assert mean.shape == () and grad(mean, [x])[0] == [1]


def test_activations_die_while_the_backward_pass_consumes_them(no_gc):
    """When the oldest op's vjp runs, the arrays of all younger ones are gone."""
    alive, x = [], leaf(*range(10))

    def look(g, needs):
        alive.extend(ref() is not None for ref in refs)
        return (g,)

    y = Tensor(x.data.copy(), (x,), look)
    refs = []
    for _ in range(5):
        y = ops.tanh(y)
        refs += [weakref.ref(y), weakref.ref(y.data)]
    loss = y.sum()
    del y
    grad(loss, [x])
    assert alive == [False] * 10


@pytest.mark.parametrize("case", CASES)
def test_no_op_keeps_itself_alive(case, no_gc):
    """A result that is dropped unwalked dies at once: no vjp holds on to the Tensor that it made."""
    y = case.f(*map(Tensor, case.inputs))
    dead = weakref.ref(y)
    del y
    assert dead() is None


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("case", CASES)
def test_every_op_keeps_the_dtype(case, dtype):
    tensors = [Tensor(x.astype(dtype)) for x in case.inputs]
    y = case.f(*tensors)
    assert y.dtype == dtype
    c = np.asarray(np.random.default_rng(0).standard_normal(y.shape)).astype(dtype)
    for tensor, d in zip(tensors, grad(y, tensors, c), strict=True):
        assert d.dtype == dtype and d.shape == tensor.shape


@pytest.mark.parametrize("case", CASES)
def test_float32_is_right_to_its_precision(case):
    """The paths of float32 (vectors of another width, chunks of another size) compute the same thing."""
    rng = np.random.default_rng(0)
    double = [Tensor(x.astype(np.float32).astype(np.float64)) for x in case.inputs]
    single = [Tensor(x.astype(np.float32)) for x in case.inputs]
    y64, y32 = case.f(*double), case.f(*single)
    c = np.asarray(rng.standard_normal(y64.shape)).astype(np.float32)
    gradients = zip(grad(y64, double, c.astype(np.float64)), grad(y32, single, c), strict=True)
    tolerance = 2e-3 if "1000" in case.name else 2e-5  # logits of 1000 have steps of 6e-5
    for exact, found in [(y64.data, y32.data), *gradients]:
        assert np.linalg.norm(found - exact) <= tolerance * np.linalg.norm(exact) + 1e-5 * np.linalg.norm(c)


def test_a_thread_that_remembers_nothing_leaves_the_others_alone():
    """Also if it begins inside no_tape() of another and ends after it, or the other way round."""
    inside, outside = threading.Event(), threading.Event()
    x, seen = Tensor(np.ones(2)), []

    def look_on():
        with autograd.no_tape():
            inside.set()
            outside.wait(60)
            seen.append((x * 2).parents)
        seen.append(len((x * 2).parents))

    other = threading.Thread(target=look_on)
    with autograd.no_tape():
        other.start()
        assert inside.wait(60)
    assert len((x * 2).parents) == 2
    outside.set()
    other.join()
    assert seen == [(), 2] and len((x * 2).parents) == 2
