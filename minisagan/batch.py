"""What crosses from image to image: all that an op may ask about the batch.

    dw = batch.sum(lambda x, g: x.T @ g, x, g)       # a sum over images, in an order that never changes
    moments = batch.whole(moments)                   # numbers about each image, from all processes, for batch norm
    x = batch.stacks(x, count)                       # images that are together whichever process has them

Everything else in an op is about the images that it is given. They may be this process's share of a batch that several
processes work on (processes/). Whoever writes an op need not know, as long as each image is computed by itself, and the
loss is a mean with one term for each image: train.descend averages the processes' means. An op that mixes images on
the way (by a mean that others are compared with, by a loss of pairs) fetches all images' numbers with `whole`, forward
and backward, as batch norm does; else train it with processes=1.
"""

from minisagan import cpu, cuda, processes


def sum(f, *arrays):
    """f(*arrays), where f sums over images: arrays (N, ...), an image in each row of their first axis -> f's shape.

    f is called once for each part of the batch, on several threads, so that it must not use threads itself. Of 8 parts,
    the default, part k has the images k, k + 8, ..., perhaps none. The parts are added in halves, k to k + 4, and so
    on: not one bit depends on how many threads or processes work. Where processes share the batch, each gets the sum
    over its own parts, and train.descend adds these. On a GPU f is called once: its kernels keep to the same parts
    (`slots`).
    """
    if cuda.on_gpu(arrays[0]):
        return f(*arrays)
    return sum_stacked(lambda *arrays: [f(*(a[0] for a in arrays))], 1, *arrays)


def sum_stacked(f, images, *arrays):
    """`sum` on the CPU, of an f that takes several parts at once: arrays (P, n, ...) -> the sum of each part, (P, ...).

    P is as many parts as hold at most `images` images, and no more than a thread's share of them: with P = 1 a step
    takes 3 % longer, one of 16 images 8 % (Intel). If the parts have not all the same n, P is 1.
    """
    count, N = _parts_here(), len(arrays[0])
    spread = cpu.worth_threads(max(a.nbytes for a in arrays))
    most = count if cpu.alone() or not spread else -(-count // cpu.threads())
    P = 1 if N % count else max(1, min(most, images * count // max(1, N)))
    parts = [None] * count

    def body(i):
        some = slice(i * P, (i + 1) * P)
        if N % count:
            parts[some] = f(*(a[i::count][None] for a in arrays))
        else:
            parts[some] = f(*(stacks(a, count)[some] for a in arrays))

    cpu.parallel(body, -(-count // P), spread)
    return processes.halved(parts)


def of_part(N):
    """How many of the N images at hand each part of the batch has; 1 if not all have as many, or there are none."""
    each, left = divmod(N, _parts_here())
    return 1 if left else max(1, each)


def stacks(x, count):
    """Images in so many stacks, the k-th of the images k, k + count, ...: (N, ...) -> (count, N/count, ...), a view.

    If N/count divides `of_part(N)`, those of a stack are of one part, and the same in whichever process they are.
    """
    return x.reshape(len(x) // max(1, count), count, *x.shape[1:]).swapaxes(0, 1)  # of no images: no stacks


def _parts_here():
    return processes.parts() // processes.world()


def slots(least=1):
    """How many sums a GPU's kernel makes over these images: image i goes to sum i mod slots, and they end in halves.

    There are as many as parts, and at least so many in all processes: each part then has several of them. They are the
    rows of threads in a block, that is `rows` (`join_rows` in cuda.cu), or a block each.
    """
    return max(least, processes.parts()) // processes.world()


def whole(x):
    """x (n, ...), numbers about the images at hand -> (N, ...), those of all images of the batch, in their order."""
    every = processes.gather(x)  # (world, n, ...)
    return every.swapaxes(0, 1).reshape(-1, *x.shape[1:])
