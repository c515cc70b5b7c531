"""Every op, layer and network under the gradient checker: what `minisagan gradcheck` and the tests go through.

A function here stands for one of them, and yields its cases: shapes that are easily got wrong (one image, odd
sizes, a kernel larger than the image, several chunks), broadcasting, inputs used twice, extreme values. Of
each op the first case is checked once more with inputs that do not lie contiguously in memory.
"""

from dataclasses import replace

import numpy as np

from minisagan import cuda
from minisagan.errors import UsageError
from minisagan.gradcheck import check, check_adjoint
from minisagan.selfcheck.of_layers import CASES as LAYERS
from minisagan.selfcheck.of_ops import CASES as OPS

CASES = OPS | LAYERS


def run(name=None, gpu=False):
    """Check the op of this name, or all: yields a Result for each case, and one more where it is linear."""
    if name is not None and name not in CASES:
        raise UsageError(f"there is no op {name!r} to check; there are {', '.join(CASES)}")
    for op in CASES if name is None else [name]:
        for case in cases(op):
            title = f"{op}: {case.name}"
            inputs = [cuda.cupy().asarray(x) for x in case.inputs] if gpu else case.inputs
            yield check(
                case.f,
                *inputs,
                name=title,
                names=case.names,
                reference=case.reference,
                every_element=case.every_element,
            )
            if case.linear:
                yield check_adjoint(case.f, *inputs, name=title, names=case.names)


def cases(op):
    """The cases of one op, its inputs drawn from a generator of its own."""
    rng = np.random.default_rng(0)
    found = list(CASES[op](lambda *shapes: tuple(rng.standard_normal(shape) for shape in shapes)))
    if op in OPS:
        inputs = tuple(_strided(x) for x in found[0].inputs)
        found.insert(1, replace(found[0], name=f"{found[0].name}, strided", inputs=inputs))
    return found


def _strided(x):
    """The same numbers two apart in memory, axes in reverse order."""
    return np.repeat(x.T.ravel(), 2)[::2].reshape(x.T.shape).T
