"""Batch norm's primitives on a GPU: the kernels of batch_norm.cu. The way back finds y again from x."""

from pathlib import Path

import numpy as np

from minisagan import cuda

kernels = cuda.Kernels(Path(__file__).with_name("batch_norm.cu"))
BLOCKS = 2048  # that a kernel's work is cut into at most: a few times what a large GPU has at work at once


def statistics(x, running, momentum):
    """Mean and variance of chunks of rows, then of all: two launches."""
    N, H, W, C = x.shape
    x, rows = cuda.cupy().ascontiguousarray(x), N * H * W
    (tiles, chunks, _), threads, step = _cuts(1, rows, C)
    means, squares, mean, var = (cuda.cupy().empty(shape, x.dtype) for shape in ((chunks, C), (chunks, C), C, C))
    kernels("moments", (tiles, chunks), threads, x, means, squares, rows, C, step)
    moved = *(running or (None, None)), float(1 - momentum)
    kernels("statistics", *_joining(C), means, squares, mean, var, *moved, rows, C, step)
    return mean, var


def normalise(x, mean, var, gain, bias, eps, relu):
    N, H, W, C = x.shape
    x, P = cuda.cupy().ascontiguousarray(x), H * W
    blocks, threads, step = _cuts(N, P, C)
    y = np.empty_like(x)
    kernels("normalise", blocks, threads, x, mean, var, gain, bias, y, P, C, step, C * (gain.ndim == 2), relu, eps)
    return y


def backward(g, x, mean, var, gain, bias, eps, y, constant):
    N, H, W, C = x.shape
    g, x = (cuda.cupy().ascontiguousarray(a) for a in (g, x))
    P, stride = H * W, C * (gain.ndim == 2)
    blocks, threads, step = _cuts(N, P, C)
    inputs, sizes = (x, mean, var, gain, bias, g), (P, C, step, stride, y is not None, eps)
    sum_g, sum_gx = (cuda.cupy().empty((N, blocks[1], C), x.dtype) for _ in range(2))
    mean_g, mean_gx, dgain, dbias = (np.empty_like(a) for a in (mean, mean, gain, gain))
    dx = np.empty_like(x)
    kernels("sums", blocks, threads, *inputs, sum_g, sum_gx, *sizes)
    joined = dgain, dbias, mean_g, mean_gx
    kernels("join_sums", *_joining(C), sum_g, sum_gx, gain, *joined, N, blocks[1], C, stride, N * P)
    means = (None, None) if constant else (mean_g, mean_gx)
    kernels("backward", blocks, threads, *inputs, *means, dx, *sizes)
    return dx, dgain, dbias


def _joining(C):
    """Blocks and threads of the kernels that join, channel by channel, what others found."""
    return -(-C // 8), (8, 32)


def _cuts(images, positions, C):
    """How a kernel's work is cut: blocks (of channels, of positions, images), their threads, positions in a block.

    A thread has eight positions at once, and goes on to more only where that would make too many blocks.
    """
    across = min(32, 1 << (C - 1).bit_length())
    tiles, down = -(-C // across), 256 // across
    chunks = max(1, min(-(-positions // (8 * down)), BLOCKS // (tiles * images)))
    step = -(-positions // chunks)
    return (tiles, -(-positions // step), images), (across, down), step
