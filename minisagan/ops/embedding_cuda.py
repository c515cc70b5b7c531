"""Embedding look-up on the GPU. Each element of dtable has a column of threads, which go through the labels."""

from pathlib import Path

import numpy as np

from minisagan import batch, cuda
from minisagan.ops.embedding import check_labels

kernels = cuda.Kernels(Path(__file__).with_name("embedding.cu"))


def look_up(table, labels):
    cp = cuda.cupy()
    if not isinstance(labels, cp.ndarray):
        check_labels(labels, len(table))
    table, labels = cp.ascontiguousarray(table), cp.ascontiguousarray(labels, np.int64)
    N, C = len(labels), table.shape[1]
    y = cp.empty((N, C), table.dtype)
    kernels("embed", cuda.blocks_for(N * C), 256, table, labels, y, N, C)
    return y


def look_up_backward(g, labels, classes):
    cp = cuda.cupy()
    g, labels = cp.ascontiguousarray(g), cp.ascontiguousarray(labels, np.int64)
    N, C = g.shape
    dtable = cp.empty((classes, C), g.dtype)
    threads = cuda.columns_of(batch.slots())
    kernels("embed_backward", cuda.blocks_for(classes * C, threads[0]), threads, g, labels, dtable, N, classes, C)
    return dtable
