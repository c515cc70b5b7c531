"""How an op's primitives are carried out, chosen in one place: by where the arrays lie.

The page of an op (ops/conv.py) defines each primitive by its equation, in a few plain lines of NumPy:

    @primitive
    def gather(x, w, ...):
        ...

Of a call with NumPy's arrays the function of that name in ops/conv_numpy.py takes care, where there is one; of a call
with CuPy's arrays, that in ops/conv_cuda.py. `gather.plain` is the page's own, against which the tests hold the others.
"""

import functools
import importlib.util

from minisagan import cpu, cuda


def primitive(plain):
    """Make `plain` a primitive: called on the CPU or the GPU, the form beside the page runs.

    Its first argument decides, an array or several.
    """

    @functools.wraps(plain)
    def run(x, *args, **options):
        first = x[0] if isinstance(x, list | tuple) else x
        return beside(plain, "cuda" if cuda.on_gpu(first) else "numpy")(x, *args, **options)

    run.plain = plain
    return run


@functools.cache
def beside(plain, where):
    """What carries out the primitive for "numpy" or "cuda": the function beside its page, or else plain itself."""
    cpu.start()
    name = f"{plain.__module__}_{where}"
    if importlib.util.find_spec(name) is None:
        return plain
    return getattr(importlib.import_module(name), plain.__name__, plain)
