"""Layers: modules that own parameters (Tensors) and state (arrays), and put ops together.

While a module is `training`, batch norm normalises by the batch (else by its running statistics), and spectral norm's
u takes a step of power iteration.
"""

import numpy as np

from minisagan import ops
from minisagan.errors import UsageError
from minisagan.module import Module


class Layer(Module):
    """A weight w; with `spectral` the layer multiplies by w / sigma, sigma the largest singular value of w.

    The state u estimates the leading left singular vector of W, which has a row for each output channel of w
    (ops/spectral.py); from u sigma is found.
    """

    output_axis = -1
    quotient = None  # w / sigma, while a network is called that has made it for all its layers (together.py)

    def __init__(self, init, shape, spectral):
        self.w = init.weight(shape)
        self.u = init.direction(shape[self.output_axis]) if spectral else None

    def weight(self):
        """What the layer multiplies by, a Tensor: w, or w / sigma."""
        if self.u is None:
            return self.w
        if self.quotient is not None:
            return self.quotient
        return ops.spectral_norm(self.w, self.u, self.training, self.output_axis)


class Linear(Layer):
    """x (N, C) @ w (C, O) + b (O,) -> (N, O), computed as a convolution of images of one pixel."""

    def __init__(self, init, inputs, outputs, spectral=True):
        super().__init__(init, (inputs, outputs), spectral)
        self.b = init.constant((outputs,), 0)

    def __call__(self, x):
        N, (C, O) = len(x.data), self.w.shape
        return ops.conv(x.reshape(N, 1, 1, C), self.weight().reshape(1, 1, C, O), self.b).reshape(N, O)


class Conv(Layer):
    """A convolution of `kernel` x `kernel`: x (N, H, W, C) -> (N, H, W, O).

    `op` is ops.conv, or one of its fusions: ops.up_conv for conv(upsample(x)), ops.conv_down for avg_pool(conv(x)).
    """

    def __init__(self, init, inputs, outputs, kernel=3, bias=True, spectral=True, op=ops.conv):
        super().__init__(init, (kernel, kernel, inputs, outputs), spectral)
        self.b = init.constant((outputs,), 0) if bias else None
        self.op = op

    def __call__(self, x, **more):
        """`more` is what the op can take along: rest, relu."""
        return self.op(x, self.weight(), self.b, **more)


class Embedding(Layer):
    """A vector for each class: labels (N,) -> (N, C). For spectral norm the classes are its outputs, as in the code."""

    output_axis = 0

    def __init__(self, init, classes, channels, spectral=True):
        super().__init__(init, (classes, channels), spectral)

    def __call__(self, labels):
        return ops.embedding(self.weight(), labels)


class BatchNorm(Module):
    """relu(gain xhat + bias): x (N, H, W, C), and labels (N,) if there are `classes` -> (N, H, W, C).

    xhat is x normalised over batch and positions; with `classes` each class has a gain and a bias of its own.

    The running mean and variance (biased) are exponential averages with `momentum`. Gain and bias are not spectrally
    normalised.
    """

    rows = None  # each image's gain and bias, during a call of a network that looks them up for all its norms at once

    def __init__(self, init, channels, classes=0, momentum=0.9):
        shape = (classes, channels) if classes else (channels,)
        self.gain, self.bias = init.constant(shape, 1), init.constant(shape, 0)
        self.mean, self.var = np.zeros(channels, init.dtype), np.ones(channels, init.dtype)
        self.momentum = momentum

    def __call__(self, x, labels=None):
        gain, bias, running = self.gain, self.bias, (self.mean, self.var)
        if gain.ndim == 2:
            gain, bias = self.rows or ops.embeddings([gain, bias], labels)  # (N, C) each
        if not self.training:
            return ops.batch_norm(x, gain, bias, running, relu=True)
        return ops.batch_norm(x, gain, bias, relu=True, running=running, momentum=self.momentum)


class SelfAttention(Module):
    """y = x + gamma o, where o_j = output(sum_i beta_ji value_i) looks from each position j at all i (SAGAN eq. 3).

    x (N, H, W, C) -> (N, H, W, C), C >= 8. The projections are 1x1 convolutions without bias; gamma starts at 0.
    form "official" (the released code): values of width C/2; keys and values max-pooled, so that i are windows of 2x2
    positions, and H and W are even. form "paper": values of width C/8; keys and values at all positions.
    Query and key have C/key numbers; without `key` they have C/8, but at least 8. (The paper's key is 8; C is 256 in G
    and 128 in D, at 32x32.) In a trial D told images apart less well with 1 number than with 8, with a p of 0.11 over
    ten seeds (examples/claims/README.md).
    """

    gated = None  # what gated_output() gives, while a network is called that has made it beforehand (together.py)

    def __init__(self, init, channels, form="official", spectral=True, key=None):
        if channels < 8:
            raise UsageError(f"self-attention needs at least 8 channels, not {channels}")
        if form not in ("official", "paper") or key is not None and not 1 <= key <= channels:
            raise UsageError(f"self-attention is official or paper, key 1 to {channels}, not {form}, {key}")
        narrow, wide = channels // key if key else max(channels // 8, 8), channels // (2 if form == "official" else 8)

        def projection(inputs, outputs):
            return Conv(init, inputs, outputs, kernel=1, bias=False, spectral=spectral)

        self.query, self.key = projection(channels, narrow), projection(channels, narrow)
        self.value, self.output = projection(channels, wide), projection(wide, channels)
        self.gamma = init.constant((), 0)
        self.pooled = form == "official"

    def __call__(self, x):
        """y. The gate is a number, so it scales the few weights of `output` in place of o's many pixels."""
        return ops.conv(self.mixed(x), self.gated_output(), rest=x)  # x + gamma o

    def gated_output(self):
        """gamma times the weight of `output`."""
        return self.gamma * self.output.weight() if self.gated is None else self.gated

    def mixed(self, x):
        """sum_i beta_ji value_i for each position j: (N, H, W, C) -> (N, H, W, C/2 or C/8)."""
        N, H, W, _ = x.shape
        return ops.attend(*self.projections(x)).reshape(N, H, W, -1)

    def beta(self, x):
        """The weights themselves, for each query j those of the keys i: (N, H, W, C) -> (N, H W, keys), rows sum to 1.

        Keys, as queries, are counted row by row; in the official form key i is a window of 2x2 positions.
        """
        query, key, _ = self.projections(x)
        return ops.softmax(query @ key.transpose(0, 2, 1))

    def projections(self, x):
        """Query (N, H W, d), key (N, keys, d) and value (N, keys, C/2 or C/8), keys = H W / 4 or H W."""
        query, key, value = self.query(x), self.key(x), self.value(x)  # (N, H, W, ...)
        if self.pooled:
            key, value = ops.max_pool(key), ops.max_pool(value)  # (N, H/2, W/2, ...)
        return tuple(t.reshape(len(x.data), -1, t.shape[3]) for t in (query, key, value))


class UpBlock(Module):
    """Residual block of the generator, (N, H, W, C) -> (N, 2H, 2W, O).

    batch norm, ReLU, nearest x2, conv 3x3, batch norm, ReLU, conv 3x3; plus nearest x2 and conv 1x1 of the input.
    The 1x1 convolution commutes with the up-sampling, and is done on the small image.
    """

    def __init__(self, init, inputs, outputs, classes, momentum, spectral):
        self.norm1 = BatchNorm(init, inputs, classes, momentum)
        self.conv1 = Conv(init, inputs, outputs, spectral=spectral, op=ops.up_conv)
        self.norm2 = BatchNorm(init, outputs, classes, momentum)
        self.conv2 = Conv(init, outputs, outputs, spectral=spectral)
        self.shortcut = Conv(init, inputs, outputs, kernel=1, spectral=spectral)

    def __call__(self, x, labels):
        small = self.shortcut(x)  # before norm1, so that its cotangent of x is the last one, which adds up both
        h = self.conv1(self.norm1(x, labels))  # each norm ends in its ReLU: (N, 2H, 2W, O)
        return self.conv2(self.norm2(h, labels), rest=small)  # which is up-sampled: (N, 2H, 2W, O)


class DownBlock(Module):
    """Residual block of the discriminator, (N, H, W, C) -> (N, H/2, W/2, O), or the same size with down=False.

    ReLU, conv 3x3, ReLU, conv 3x3, average pool; plus conv 1x1 and average pool of the input, which commute: pooled
    first. The first block of the network (`first`) has no ReLU before its first convolution: its input is an image.
    """

    def __init__(self, init, inputs, outputs, spectral, down=True, first=False):
        self.conv1 = Conv(init, inputs, outputs, spectral=spectral)
        self.conv2 = Conv(init, outputs, outputs, spectral=spectral, op=ops.conv_down if down else ops.conv)
        self.shortcut = Conv(init, inputs, outputs, kernel=1, spectral=spectral) if down or inputs != outputs else None
        self.down, self.first = down, first

    def __call__(self, x):
        h = self.conv1(x, relu=not self.first)  # (N, H, W, O)
        if self.down:
            x = ops.avg_pool(x)
        rest = x if self.shortcut is None else self.shortcut(x)
        return self.conv2(h, relu=True, rest=rest)  # (N, H/2, W/2, O)
