"""The primitives of conv.py on the GPU: which kernel of conv.cu is launched, and on how many blocks.

No patch is ever copied to memory, and kernels turned or transposed as views are read as they lie: conv.cu says how.
"""

import numpy as np

from minisagan import batch, cuda, processes

kernels = cuda.Kernels(__file__)

BLOCKS = 512  # about how many should be at work at once: fixed, so that results depend on shapes alone. Not measured.
THREADS = 128  # of a block, and TAPS: as in conv.cu
TAPS = 15  # of a kernel along an axis, at most: conv.cu has a bit for each
NUMBERS = *"NHWC", "Ho", "Wo", "O", "kh", "kw", "stride", "top", "left", "relu", "scatter", "turned", "small"
NUMBERS += "slots", "each"
SHAPE = np.dtype([(name, np.int32) for name in NUMBERS])  # the struct Shape of conv.cu


def gather(x, w, stride, top, left, size, *added):
    return _gather(False, x, w, stride, top, left, size, *added)


def scatter(x, w, stride, top, left, size, bias=None, rest=None, gate=None):
    return _gather(True, x, w, stride, top, left, size, bias, rest, gate=gate)


def _gather(scatter, x, w, stride, top, left, size, bias=None, rest=None, relu=False, gate=None):
    """Either of the two: scatter is s x s gathers, in one launch."""
    cupy, N, (kh, kw, _, O) = cuda.cupy(), len(x), w.shape
    _check(kh, kw)
    sets = stride if scatter else 1  # of rows, and of columns, by their remainder
    columns, down, across = _tiles(N * -(-size[0] // sets) * -(-size[1] // sets), O, x.itemsize)
    if columns == 128 and 2 * down * across * sets * sets < BLOCKS:
        columns, across = 64, -(-O // 64)  # more blocks instead: outer has its partial sums for that
    w, turned, swapped = _layout(w)
    x, y = cupy.ascontiguousarray(x), cupy.empty((N, *size, O), x.dtype)
    rest, gate = (a if a is None else cupy.ascontiguousarray(a) for a in (rest, gate))
    small = rest is not None and rest.shape != y.shape
    shape = np.array((*x.shape, *size, O, kh, kw, stride, top, left, relu, scatter, turned, small, 1, 0), SHAPE)
    name = f"gather_{columns}_swapped" if swapped else f"gather_{columns}"
    kernels(name, (down, across, sets * sets), THREADS, x, w, bias, rest, gate, y, shape)
    return y


def outer(*given):
    partial = partial_outer(*given)
    return partial[0] if len(partial) == 1 else column_sums(partial)


def partial_outer(x, g, kernel, stride, top, left, relu=False):
    """Sums over some pixels of some images, in the order in which column_sums takes them: (n, kh kw C + 1, O)."""
    cupy, (N, *size, O), (kh, kw), C = cuda.cupy(), g.shape, kernel, x.shape[3]
    _check(kh, kw)
    columns, down, across = _tiles(kh * kw * C, O, x.itemsize)
    slots, parts = batch.slots(), processes.parts()
    pixels = -(-N * processes.world() // parts) * size[0] * size[1]  # of a slot: those of all processes are cut alike
    sums = max(1, min(BLOCKS // (down * across * parts), pixels // 256))  # of a slot
    each = -(-pixels // sums // 16) * 16  # pixels in a partial sum
    sums = slots * -(-pixels // each)
    x, g = cupy.ascontiguousarray(x), cupy.ascontiguousarray(g)
    partial = cupy.empty((sums, kh * kw * C + 1, O), x.dtype)
    shape = np.array((*x.shape, *size, O, kh, kw, stride, top, left, relu, 0, 0, 0, slots, each), SHAPE)
    kernels(f"outer_{columns}", (down, across, sums), THREADS, x, g, partial, shape)
    return partial


def channel_sum(g, db=None):
    """In two steps, the first over long rows of W O: rows of O would leave lanes idle. `db` is where to put it."""
    cupy, (N, H, W, O), slots = cuda.cupy(), g.shape, batch.slots(16)
    threads = cuda.columns_of(max(32, processes.parts()))  # the same, however many processes share the batch
    partial, db = cupy.empty((W * slots, O), g.dtype), cupy.empty(O, g.dtype) if db is None else db
    arrays = cupy.ascontiguousarray(g), partial, db, cuda.counters()
    blocks = cuda.blocks_for(W * O, threads[0]), slots
    kernels("channel_sums", blocks, threads, *arrays, N, H, W * O, O, batch.slots(32))
    return db


def _check(kh, kw):
    if max(kh, kw) > TAPS:
        raise ValueError(f"on the GPU a convolution's kernel has at most {TAPS}x{TAPS} taps, not {kh}x{kw}")


def _tiles(rows, O, itemsize):
    """How many columns a block's tile of the product (rows, O) has; the blocks down and across it."""
    widest = 128 if itemsize == 4 and cuda.tensor_cores() else 64
    columns = next((width for width in (8, 32, 64) if width >= O), widest)
    return columns, -(-rows * itemsize // 512), -(-O // columns)  # 512 / itemsize: ROWS of conv.cu


def _layout(w):
    """w as it lies in memory; whether its taps are turned by 180 degrees there, and whether C and O are swapped."""
    turned = w.strides[0] < 0
    w = w[::-1, ::-1] if turned else w
    swapped = not w.flags.c_contiguous
    return cuda.cupy().ascontiguousarray(w.transpose(0, 1, 3, 2) if swapped else w), int(turned), int(swapped)


def column_sums(x):
    """The sum over the first axis, of images, or of what slots of them come to, which follow one another there."""
    x, y = cuda.cupy().ascontiguousarray(x), cuda.cupy().empty(x.shape[1:], x.dtype)
    threads = cuda.columns_of(batch.slots(32))
    kernels("column_sums", cuda.blocks_for(y.size, threads[0]), threads, x, y, len(x), y.size)
    return y
