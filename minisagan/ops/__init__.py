"""The ops: each file holds one family's equations, forward and backward passes."""

from minisagan.ops.activation import relu, tanh
from minisagan.ops.arithmetic import (
    add,
    divide,
    matmul,
    mean,
    multiply,
    reshape,
    subtract,
    sum,
    transpose,
)
from minisagan.ops.attention import attend, softmax
from minisagan.ops.batch_norm import batch_norm
from minisagan.ops.conv import conv
from minisagan.ops.embedding import embedding, embeddings
from minisagan.ops.hinge import hinge_discriminator, hinge_generator
from minisagan.ops.resample import avg_pool, max_pool, upsample
from minisagan.ops.resampled_conv import conv_down, up_conv
from minisagan.ops.spectral import spectral_norm

__all__ = [
    "add", "attend", "avg_pool", "batch_norm", "conv", "conv_down", "divide", "embedding", "embeddings",
    "hinge_discriminator", "hinge_generator", "matmul", "max_pool", "mean", "multiply", "relu", "reshape", "softmax",
    "spectral_norm", "subtract", "sum", "tanh", "transpose", "up_conv", "upsample",
]  # fmt: skip
