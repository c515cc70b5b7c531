"""How an op's primitives are carried out, chosen in one place: by where the arrays lie.

The page of an op (ops/conv.py) defines each primitive by its equation, in a few plain lines of NumPy:

    @primitive
    def gather(x, w, ...):
        ...

A call with NumPy's arrays runs the function of that name in ops/conv_numpy.py, if there is one; a call with CuPy's, the
one in ops/conv_cuda.py; otherwise the page's own runs. `gather.plain` is always the page's own: the tests compare the
others with it. All forms of a primitive take the same arguments, also where one of them has no use for some.
"""

import functools
import importlib.util

from minisagan import cpu, cuda


def primitive(plain):
    """Make `plain` a primitive: a call runs the form for where its first argument lies, an array or a list of them."""

    @functools.wraps(plain)
    def run(x, *args, **options):
        first = x[0] if isinstance(x, list | tuple) else x
        return beside(plain, "cuda" if cuda.on_gpu(first) else "numpy")(x, *args, **options)

    run.plain = plain
    return run


@functools.cache
def beside(plain, where):
    """What carries out the primitive for "numpy" or "cuda": the function beside its page, or else plain itself."""
    cpu.start()  # here, since the first op of all comes this way; the look-up is cached
    name = f"{plain.__module__}_{where}"
    if importlib.util.find_spec(name) is None:
        return plain
    return getattr(importlib.import_module(name), plain.__name__, plain)
