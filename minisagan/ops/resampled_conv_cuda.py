"""Kernels smeared by a 2x2 box, and back, on the GPU: what else these convolutions need is conv_cuda.py's."""

from minisagan import batch, cuda
from minisagan.ops.conv_cuda import channel_sum, partial_outer

kernels = cuda.Kernels(__file__)


def smear(w, factor):
    u = cuda.cupy().empty((4, 4) + w.shape[2:], w.dtype)
    kernels("smear", cuda.blocks_for(u.size), 256, cuda.cupy().ascontiguousarray(w), u, float(factor), u.size // 16)
    return u


def smeared_outer(x, g, factor, transposed, relu=False):
    """Each partial sum is unsmeared before it is added: what is done after that does not round like it."""
    partial = partial_outer(x, g, (4, 4), 2, 1, 1, relu)
    C, O = (g.shape[3], x.shape[3]) if transposed else (x.shape[3], g.shape[3])
    rows, threads = cuda.cupy().empty((9 * C + 1, O), x.dtype), cuda.columns_of(batch.slots(32))
    sizes = float(factor), len(partial), C, O, int(transposed)
    kernels("unsmear", cuda.blocks_for(rows.size, threads[0]), threads, partial, rows, *sizes)
    if transposed:
        channel_sum(x, rows[-1])
    return rows
