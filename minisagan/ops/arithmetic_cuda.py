"""Matrix products and sums over images on the GPU.

cuBLAS may add up in another order if there are fewer rows. Where these are images it is a convolution's kernel instead,
of images of one pixel: what comes of an image does not depend on how many there are.
"""

from minisagan import batch, cuda
from minisagan.ops import conv_cuda

kernels = cuda.Kernels(__file__)


def product(a, b):
    if a.ndim > 2 or b.ndim > 2:
        return cuda.matmul(a, b)
    return conv_cuda.gather(a[:, None, None], b[None, None], 1, 0, 0, (1, 1)).reshape(len(a), -1)


def image_product(a, g):
    a, g = (cuda.cupy().ascontiguousarray(x) for x in (a, g))
    (N, K), M, threads = a.shape, g.shape[1], cuda.columns_of(batch.slots())
    y = cuda.cupy().empty((K, M), a.dtype)
    kernels("image_product", cuda.blocks_for(y.size, threads[0]), threads, a, g, y, N, K, M)
    return y


def image_sum(x):
    return conv_cuda.column_sums(x)[None]
