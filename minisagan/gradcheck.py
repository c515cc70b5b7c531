"""Finite differences against the tape: is what a backward pass returns the derivative of its forward pass?

For y = f(x1, x2, ...) and a random cotangent c of y, the tape's dx is the gradient of <c, y>. Along a unit
vector d the tape says that the derivative is a, and the 6-point stencil, whose error is O(h^6), that it is n:

    a = <dx, d>
    n = <c, 45 (y(x + hd) - y(x - hd)) - 9 (y(x + 2hd) - y(x - 2hd)) + (y(x + 3hd) - y(x - 3hd))> / 60h
    error = |a - n| / max(|a|, |n|, |dx| / 1000)

in float64 at h = 5e-3 and, where that fails, at h / 8: near a pole, such as log's at 0, it may be too wide. The
largest error over all inputs and directions must not exceed 1e-8. The directions are the axes (each element by itself)
for inputs of up to 200 elements, and 8 random ones for larger. Where a gradient is zero, such as that of a bias before
batch normalisation, both sides are rounding noise: an input's error counts as 0 when |dx| and every |n| lie below
1e-10 |c y|, the norm of their product element by element.

Four things keep the check from being blind. The cotangent is normal noise, never ones: the sum of a softmax is
constant, and so is that of a batch norm. Ops with kinks repeat in every perturbed run the choices that they made at x
(`kinks`), while the gradient itself comes from an ordinary run. The backward pass is run in every way in which a tape
may run it: for all inputs at once; for each input alone, when it has a cotangent from another op already; and after a
second call of the op, which must have memory of its own. And the tolerance is small: at 1e-3, which is often seen, one
element in a million may be wrong by 1 % unnoticed.

What it does not see: an error in float32 alone, since all is computed in float64; and, of a module, its parameters, if
they are not passed as inputs (`check` shows how).
"""

import inspect
from dataclasses import dataclass
from functools import wraps
from time import perf_counter

import numpy as np

from minisagan import cuda, kinks
from minisagan.autograd import Tensor, WrongCotangent, grad, no_tape

STEPS = 5e-3, 5e-3 / 8  # h, and the one for what fails with it
EVERY_ELEMENT = 200  # inputs of up to this many elements are checked element by element
DIRECTIONS = 8
ZERO = 1e-10  # a gradient below this fraction of |c y| is zero
DIFFER = "{} differ in what they return"
UNSURE = "a kink that does not ask kinks.chosen, rounding, or inputs far from size 1"


@dataclass(frozen=True)
class Result:
    """What came of one check; `print(result)` shows it on a line.

    `error` is the worst of all inputs. It was found at `index` (a tuple: that element; an int: that random
    direction) of the input named `input`, where the tape says `analytic` and the differences `numeric`; `unsure` says
    that the differences themselves seem to be wrong there.
    `method` is "every element", "8 directions", or "both" where some inputs are small and some large; of
    `check_adjoint` it is "adjoint". `fault` says in words what is wrong where nothing could be compared (a gradient of
    another shape, an input written to ...); `error` is infinite then.
    """

    name: str
    shapes: tuple
    method: str
    error: float
    tolerance: float
    seconds: float
    input: str = ""
    index: tuple | int = ()
    analytic: float = float("nan")
    numeric: float = float("nan")
    unsure: bool = False
    fault: str = ""

    @property
    def passed(self):
        """Whether the error is within the tolerance (NaN is not)."""
        return self.error <= self.tolerance

    def __str__(self):
        line = f"{'ok' if self.passed else 'FAILED':6}  {self.name:44}  {self.error:7.1e}  {self.method:13}  "
        line += " ".join(str(shape) for shape in self.shapes)
        if self.passed:
            return line
        if self.fault:
            return f"{line}: {self.fault}"
        if self.method == "adjoint":
            place = f"<{self.input}, d{self.input}>"
        elif isinstance(self.index, int):
            place = f"<d{self.input}, direction {self.index}>"
        else:
            place = f"d{self.input}[{', '.join(map(str, self.index))}]"
        line += f": {place} is {self.analytic:.9g} and should be {self.numeric:.9g}"
        return f"{line}; but the differences may be wrong: {UNSURE}" if self.unsure else line


def check(f, *inputs, name=None, names=None, reference=None, tolerance=1e-8, seed=0, every_element=EVERY_ELEMENT):
    """Compare f's backward pass with finite differences of its forward pass, for each input; return a Result.

        print(check(lambda x, w: my_op(x, w), np.random.randn(3, 4), np.random.randn(4, 2)))

    f takes a float64 Tensor for each of `inputs`, and returns one, the same whenever it is called. The inputs
    are real arrays of any shape: those of float64 are used as they lie in memory, others as copies in
    float64; for those on the GPU f computes there. What has no gradient, such as labels, is no input: close
    over it. `names` are by default those of f's parameters.

    The check also fails when f writes to its inputs or to the cotangent, or to what an earlier call of it returned;
    when it returns gradients that are not finite, not of their input's shape or not float64; and when an input's
    cotangent comes out differently if it alone is needed (`needs`), or if it is added to one that is there already
    (autograd.py's f(so_far); of inputs on the GPU that sum is made on the host). It raises ValueError, on one line, for
    inputs and functions that can not be checked; a wrong gradient raises nothing, see Result.passed.

    Of a layer that has parameters, pass these as inputs, and set them in f; of an op with several outputs, check each:

        def f(x, w, b):
            layer.w, layer.b = w, b
            return layer(x)

        check(lambda x: split(x)[0], x)

    An f with a kink of its own asks `kinks.chosen` for its choice, as ops/activation.py does: else a difference may
    step across it, and a right gradient fails.

    Differences are taken of `reference` in f's place, if it is given. It has to equal f at these inputs, and is for an
    f whose backward pass holds part of what it computes constant, as spectral normalisation does u and v. Inputs of up
    to `every_element` elements are checked element by element.
    """
    inputs, carried = _from_gpu(inputs)
    f, reference = carried(f), reference and carried(reference)
    subject = _Subject(f, inputs, name, names, tolerance, seed)
    large = [x.size > every_element for x in subject.arrays]
    method = f"{DIRECTIONS} directions" if all(large) else "both" if any(large) else "every element"
    if subject.fault:
        return subject.result(method)
    y, c = subject.y, subject.c
    f, forms = reference or f, "reference and f" if reference else "two calls with the same inputs"
    with no_tape(), kinks.record() as choices:
        again = f(*(Tensor(x) for x in subject.arrays)).data
    if _far(again, y):
        return subject.result(method, fault=DIFFER.format(forms))

    rooms = [_room(x) for x in subject.arrays]

    def moved(i, step):
        inputs = list(subject.arrays)
        inputs[i] = rooms[i](inputs[i] + step)
        with no_tape(), kinks.replay(choices):
            return np.array(f(*(Tensor(np.asarray(x)) for x in inputs)).data)

    def difference(i, d, h):
        near, mid, far = (moved(i, m * h * d) - moved(i, -m * h * d) for m in (1, 2, 3))
        return (c * (45 * near - 9 * mid + far)).sum() / (60 * h)

    def unclear(i, d, analytic):
        """Whether the differences may be no derivative: they depend on h, or the slope jumps at x."""
        wide, narrow = (difference(i, d, h) for h in STEPS)
        jumps = [abs((c * (moved(i, h * d) + moved(i, -h * d) - 2 * y)).sum()) / h for h in STEPS]  # else O(h)
        apart = abs(analytic - narrow)
        return abs(wide - narrow) > 0.1 * apart or jumps[1] > max(0.5 * jumps[0], 0.1 * apart)

    worst = []  # of each input: error, name, index, analytic, numeric, unsure
    for i, (x, dx) in enumerate(zip(subject.arrays, subject.gradients, strict=True)):
        directions = np.eye(x.size) if not large[i] else subject.rng.standard_normal((DIRECTIONS, x.size))
        directions /= np.linalg.norm(directions, axis=1, keepdims=True)  # (K, size)
        analytic, numeric = directions @ dx.ravel(), np.empty(len(directions))
        errors, norm, left = np.zeros(len(directions)), np.linalg.norm(dx), range(len(directions))
        for h in STEPS:
            for k in left:
                numeric[k] = difference(i, directions[k].reshape(x.shape), h)
            sizes = np.maximum(abs(analytic), abs(numeric))
            if np.maximum(norm, sizes.max()) <= ZERO * np.linalg.norm(c * y):
                errors[:] = 0
                break
            errors = abs(analytic - numeric) / np.maximum(sizes, norm / 1000)
            left = np.flatnonzero(~(errors <= tolerance))
        if not np.isfinite(numeric).all():
            fault = f"f is not finite within {3 * STEPS[-1]:g} of {subject.names[i]}: take inputs away from there"
            return subject.result(method, fault=fault)
        k = int(errors.argmax())  # a NaN counts as the largest, here and below
        index = k if large[i] else tuple(int(j) for j in np.unravel_index(k, x.shape))
        unsure = bool(not errors[k] <= tolerance and unclear(i, directions[k].reshape(x.shape), analytic[k]))
        worst.append((errors[k], subject.names[i], index, float(analytic[k]), float(numeric[k]), unsure))
    return subject.result(method, *worst[int(np.argmax([row[0] for row in worst]))])


def check_adjoint(f, *inputs, name=None, names=None, tolerance=1e-12, seed=0):
    """For an f that is linear in each input while the others are held: is its backward pass the transpose?

        <A x, c> = <x, A^T c>          error = |<y, c> - <x, dx>| / (|y| |c|)

    Arguments and Result as in `check`; no differences, and so nearly exact. `index` is () throughout.
    """
    inputs, carried = _from_gpu(inputs)
    subject = _Subject(carried(f), inputs, name, names, tolerance, seed)
    if subject.fault:
        return subject.result("adjoint")
    y, c = subject.y, subject.c
    forward = float((y * c).sum())
    backward = [float((x * dx).sum()) for x, dx in zip(subject.arrays, subject.gradients, strict=True)]
    errors = abs(forward - np.array(backward)) / (np.linalg.norm(y) * np.linalg.norm(c) or 1)
    i = int(errors.argmax())
    return subject.result("adjoint", errors[i], subject.names[i], (), backward[i], forward)


class _Subject:
    """What is checked, and an ordinary run of it: y, the cotangent c, the gradients, or what is at fault."""

    def __init__(self, f, inputs, name, names, tolerance, seed):
        self.start, self.tolerance = perf_counter(), tolerance
        # A generator of its own: an x from default_rng(0) must not meet c = x, to which batch norm is blind.
        self.rng = np.random.default_rng([seed, *b"gradcheck"])
        self.arrays, self.names = _arrays(inputs), _names(f, inputs, names)
        self.name = name or getattr(f, "__name__", "f").replace("<lambda>", "f")
        self.fault = self._run(f)

    def result(self, method, error=np.inf, *where, fault=""):
        """The Result that ends the check."""
        shapes, seconds = tuple(x.shape for x in self.arrays), perf_counter() - self.start
        fault = fault or self.fault
        return Result(self.name, shapes, method, float(error), self.tolerance, seconds, *where, fault=fault)

    def _run(self, f):
        before = [x.copy() for x in self.arrays]
        tensors = [Tensor(x) for x in self.arrays]
        y = f(*tensors)
        if not isinstance(y, Tensor):
            more = ": check each output by itself" if isinstance(y, tuple | list) else ""
            raise ValueError(f"{self.name} must return one Tensor to be checked, not a {type(y).__name__}{more}")
        if y.dtype != np.float64:
            return f"the output is {y.dtype}, of float64 inputs"
        if not np.isfinite(y.data).all():
            return "the output is not finite"
        self.y, self.c = np.array(y.data), np.asarray(self.rng.standard_normal(y.shape))
        c, others = self.c.copy(), [Tensor(x + STEPS[-1]) for x in self.arrays]
        other = f(*others)
        try:
            self.gradients = grad(y, tensors, c)
            kept = [np.array(dx) for dx in self.gradients]
            grad(other, others, -c)
        except WrongCotangent as error:
            return str(error)
        if not np.array_equal(y.data, self.y):
            return "the output was overwritten by a second call: each call has to have arrays of its own"
        for name, x, old, dx, old_dx in zip(self.names, self.arrays, before, self.gradients, kept, strict=True):
            if not np.array_equal(x, old):
                x[...] = old
                return f"{name} was written to"
            if not np.isfinite(dx).all():
                return f"d{name} is not finite"
            if not np.array_equal(dx, old_dx):
                return f"d{name} was overwritten by a second call: each call has to have arrays of its own"
        if not np.array_equal(c, self.c):
            return "the cotangent was written to"
        return next(filter(None, (self._alone(f, i) for i in range(len(tensors)))), "")

    def _alone(self, f, i):
        """What is at fault with the cotangent of input i where it alone is needed, and is to be added to another."""
        name, dx, tensors = self.names[i], self.gradients[i], [Tensor(x) for x in self.arrays]
        y = f(*tensors)
        if _far(y.data, self.y):
            return DIFFER.format("two calls with the same inputs")
        rest, size = np.asarray(self.rng.standard_normal(dx.shape)), np.linalg.norm(dx)
        if size > ZERO * np.linalg.norm(self.c * self.y):  # else it is rounding noise
            rest *= size / np.linalg.norm(rest)
        before = rest.copy()
        last = Tensor(y.data, (y, tensors[i]), lambda g, needs: (g, rest))  # visited first: rest is there before dx
        (found,) = grad(last, [tensors[i]], self.c)
        if not np.array_equal(rest, before):
            return f"the cotangent that d{name} is to be added to was written to"
        far = np.linalg.norm(found - rest - dx)
        if not far <= max(1e-10, self.tolerance) * np.linalg.norm(rest):
            return f"d{name} differs by {far:.3g} where it alone is needed, or is to be added to another cotangent"
        return ""


def _from_gpu(inputs):
    """The inputs brought to the host, and carried(f): the function of them that computes where they were.

    Carrying an array to the GPU or back is an op like others, so the checks need not know of it.
    """
    gpu = [isinstance(x, cuda.arrays()) and cuda.on_gpu(x) for x in inputs]

    def to_gpu(x):
        host, data = x.data, cuda.cupy().asarray(x.data)

        def vjp(g, needs):
            host[...] = data.get()  # so that it shows if f wrote to its input
            return (g.get(),)

        return Tensor(data, (x,), vjp)

    def carried(f):
        @wraps(f)
        def at_host(*tensors):
            y = f(*(to_gpu(x) if there else x for x, there in zip(tensors, gpu, strict=True)))
            if not isinstance(y, Tensor) or not cuda.on_gpu(y.data):
                return y
            return Tensor(y.data.get(), (y,), lambda g, needs: (cuda.cupy().asarray(g),))

        return at_host

    return [x.get() if there else x for x, there in zip(inputs, gpu, strict=True)], carried if any(gpu) else lambda f: f


def _arrays(inputs):
    """The inputs in float64, each in its own memory layout."""
    if not inputs:
        raise ValueError("a gradient check needs at least one input array")
    arrays = [np.asarray(x) for x in inputs]
    for i, x in enumerate(arrays):
        if isinstance(inputs[i], Tensor):
            raise ValueError(f"input {i} must be an array, not a Tensor: check makes them")
        if x.dtype.kind != "f":
            raise ValueError(f"input {i} must hold reals, not {x.dtype}: close over what has no gradient")
        if not x.size or not np.isfinite(x).all():
            raise ValueError(f"input {i} of shape {x.shape} must have elements, and finite ones")
    return [x.astype(np.float64, copy=False) for x in arrays]


def _far(y, again):
    """Whether what should be one value is two."""
    return again.shape != y.shape or np.linalg.norm(again - y) > 1e-10 * np.linalg.norm(y)


def _room(x):
    """A function that lays values in memory as x lies there, gaps and turned axes included: f may misread just that."""
    base = x
    while isinstance(base.base, np.ndarray):
        base = base.base
    if x.flags.forc or not x.flags.writeable or not base.flags.forc:  # sums have x's order of axes, which is enough
        return lambda values: values
    offset = x.__array_interface__["data"][0] - base.__array_interface__["data"][0]
    room = np.ndarray(x.shape, x.dtype, base.ravel("K").copy(), offset, x.strides)

    def lay(values):
        room[...] = values
        return room if np.array_equal(room, values) else values  # some may lie on one another

    return lay


def _names(f, inputs, names):
    """What to call the inputs: the given names, or those of f's parameters, or x0, x1, ..."""
    if names is None:
        kinds = inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD
        names = [p.name for p in inspect.signature(f).parameters.values() if p.kind in kinds][: len(inputs)]
        if len(names) < len(inputs):
            names = [f"x{i}" for i in range(len(inputs))]
    if len(names) != len(inputs):
        raise ValueError(f"{len(inputs)} inputs but {len(names)} names: {', '.join(names)}")
    return names
