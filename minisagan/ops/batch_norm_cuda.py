"""Batch norm's primitives on a GPU: the kernels of batch_norm.cu. The way back finds y again from x.

What blocks find is joined by the last block of these channels, in the same launch. Where other processes' is to be
joined, too, or more than ROWS slots are, there is another launch for it.
"""

import numpy as np

from minisagan import batch, cuda, processes
from minisagan.ops.batch_norm import EPS

kernels = cuda.Kernels(__file__)
ROWS = 32  # of threads that join, as in batch_norm.cu
BLOCKS = 2048  # that a kernel's work is cut into at most: a few times what a large GPU has at work at once


def statistics(x, running, momentum):
    """Mean and variance of chunks of each image, then of all."""
    (N, H, W, C), world = x.shape, processes.world()
    x, P = cuda.cupy().ascontiguousarray(x), H * W
    blocks, threads, step = _cuts(N, P, C)
    both, mean, var = (cuda.cupy().empty(shape, x.dtype) for shape in ((N, 2, blocks[1], C), C, C))
    found = mean, var, *(running or (None, None)), float(1 - momentum)
    kernels("moments", blocks, threads, x, both, *found, cuda.counters(blocks[0]) if world == 1 else None, P, C, step)
    if world > 1:
        sizes = N, world, P, blocks[1], C, step
        kernels("statistics", *_joining(C, ROWS), processes.gather(both), *found, *sizes)
    return mean, var


def normalise(x, mean, var, gain, bias, relu):
    N, H, W, C = x.shape
    x, P = cuda.cupy().ascontiguousarray(x), H * W
    blocks, threads, step = _cuts(N, P, C)
    y = np.empty_like(x)
    kernels("normalise", blocks, threads, x, mean, var, gain, bias, y, P, C, step, C * (gain.ndim == 2), relu, EPS)
    return y


def backward(g, x, mean, var, gain, bias, y, constant):
    N, H, W, C = x.shape
    g, x = (cuda.cupy().ascontiguousarray(a) for a in (g, x))
    P, stride, world = H * W, C * (gain.ndim == 2), processes.world()
    blocks, threads, step = _cuts(N, P, C)
    inputs, sizes = (x, mean, var, gain, bias, g), (P, C, step, stride, y is not None, EPS)
    sum_g, sum_gx = (cuda.cupy().empty((N, blocks[1], C), x.dtype) for _ in range(2))
    mean_g, mean_gx, dgain, dbias = (np.empty_like(a) for a in (mean, mean, gain, gain))
    dx = np.empty_like(x)
    joined, m, rows = (dgain, dbias, mean_g, mean_gx), float(N * world * P), world * batch.slots(ROWS)
    counters = cuda.counters(blocks[0]) if world == 1 and rows == ROWS else None
    kernels("sums", blocks, threads, *inputs, sum_g, sum_gx, *joined, counters, m, *sizes)
    every = None
    if world > 1 and not constant:
        every = cuda.cupy().empty((N, 3, C), x.dtype)
        kernels("image_sums", cuda.blocks_for(N * C), 256, sum_g, sum_gx, gain, every, N, blocks[1], C, stride)
        every = processes.gather(every)
    if counters is None:
        of_all = sum_g, sum_gx, gain, every, *joined, N, world, blocks[1], C, stride, m
        kernels("join_sums", *_joining(C, rows), *of_all)
    means = (None, None) if constant else (mean_g, mean_gx)
    kernels("backward", blocks, threads, *inputs, *means, dx, *sizes)
    return dx, dgain, dbias


def _joining(C, rows):
    """Blocks and threads, in so many rows, of the kernels that join, channel by channel, what others found."""
    threads = cuda.columns_of(rows, across=8)
    return -(-C // threads[0]), threads


def _cuts(images, positions, C):
    """How a kernel's work is cut: blocks (of channels, of positions, images), their threads, positions in a block.

    A thread has eight positions at once, and goes on to more only where that would make too many blocks, counted over
    all processes: so the cuts do not depend on how many share the batch.
    """
    across = min(32, 1 << (C - 1).bit_length())
    tiles, down = -(-C // across), 256 // across
    chunks = max(1, min(-(-positions // (8 * down)), BLOCKS // (tiles * images * processes.world())))
    step = -(-positions // chunks)
    return (tiles, -(-positions // step), images), (across, down), step
