"""SAGAN's two networks (Zhang et al. 2018; the residual networks of Miyato and Koyama 2018).

The paper has no tables of layers: these are the released code's (github.com/brain-research/self-attention-gan,
generator.py and discriminator.py), for images of S x S pixels, S = 32 ... 256. Channels follow one rule, with `width`
the code's gf_dim and df_dim (64 at 128x128): the generator has width * min(S / r, 16) at resolution r, and 4x4 has what
8x8 has; the discriminator has width * min(S / (2 r), 16). At 128x128 with 1,000 classes and attention at 32x32 they
have the code's 42,078,852 and 39,463,618 parameters.
"""

import numpy as np

from minisagan import ops
from minisagan.autograd import Tensor
from minisagan.beyond.pack import alone
from minisagan.init import Init
from minisagan.module import Module
from minisagan.nn import (
    BatchNorm,
    Conv,
    DownBlock,
    Embedding,
    Linear,
    SelfAttention,
    UpBlock,
)
from minisagan.together import rows_of_classes, spectral_weights


def check(N, labels, classes):
    """ValueError unless a network of so many classes is given N > 0 images and a label for each; without any, none."""
    given, wanted = None if labels is None else np.shape(labels), (N,) if classes else None
    if not N:
        raise ValueError("a network is given one image or more, not none")
    if given != wanted:
        raise ValueError(f"for {N} images of a network with {classes or 'no'} classes labels are {wanted}, not {given}")


class Generator(Module):
    """(z, labels) -> images: z (N, latent) standard normal, labels (N,) or None -> (N, S, S, channels) in [-1, 1]."""

    def __init__(self, arch, init=None):
        init = init or Init(0, arch.init)
        spectral = arch.spectral_norm == "both"
        self.arch = arch
        self.input = Linear(init, arch.latent, 16 * arch.generator_width(4), spectral)
        self.levels = [r for r in (8, 16, 32, 64, 128, 256) if r <= arch.size]
        for r in self.levels:
            inputs, outputs = arch.generator_width(r // 2), arch.generator_width(r)
            setattr(self, f"up{r}", UpBlock(init, inputs, outputs, arch.classes, arch.momentum, spectral))
            if r == arch.attention:
                self.attention = SelfAttention(init, outputs, arch.attention_form, spectral, arch.attention_key)
        self.norm = BatchNorm(init, arch.width, classes=0, momentum=arch.momentum)  # this one does not know the class
        self.output = Conv(init, arch.width, arch.channels, spectral=spectral)

    def __call__(self, z, labels=None):
        z = z if isinstance(z, Tensor) else Tensor(z)
        check(len(z.data), labels, self.arch.classes)
        with rows_of_classes(self, labels), spectral_weights(self):  # a wrong label ends it before u moves
            x = self.input(z)
            x = x.reshape(len(x.data), 4, 4, -1)  # (N, 4, 4, 4x4's width)
            for r in self.levels:
                x = getattr(self, f"up{r}")(x, labels)  # (N, r, r, width at r)
                if r == self.arch.attention:
                    x = self.attention(x)
            return ops.tanh(self.output(self.norm(x)))  # norm ends in its ReLU: (N, S, S, channels)


class Discriminator(Module):
    """(images, labels) -> scores: images (N, S, S, channels) in [-1, 1], labels (N,) or None -> (N,), higher if real.

    D(x, y) = linear(h) + <embedding(y), h>, h the last features summed over positions (Miyato and Koyama's projection).
    With arch.pack = k > 1 it takes packs of images, (N, S, S, k channels); a single image is repeated k times.
    """

    def __init__(self, arch, init=None):
        init = init or Init(1, arch.init)
        spectral = arch.spectral_norm != "none"
        self.arch = arch
        self.levels = [r for r in (128, 64, 32, 16, 8, 4) if r < arch.size]
        inputs = arch.pack * arch.channels
        for r in self.levels:
            outputs = arch.discriminator_width(r)
            setattr(self, f"down{r}", DownBlock(init, inputs, outputs, spectral, first=r == self.levels[0]))
            if r == arch.attention:
                self.attention = SelfAttention(init, outputs, arch.attention_form, spectral, arch.attention_key)
            inputs = outputs
        self.last = DownBlock(init, inputs, inputs, spectral, down=False)
        self.output = Linear(init, inputs, 1, spectral)
        if arch.classes:
            self.embedding = Embedding(init, arch.classes, inputs, spectral)

    def __call__(self, x, labels=None):
        x = x if isinstance(x, Tensor) else Tensor(x)
        check(len(x.data), labels, self.arch.classes)
        with spectral_weights(self):
            if x.shape[-1] < self.arch.pack * self.arch.channels:
                x = alone(x, self.arch.pack)
            for r in self.levels:
                x = getattr(self, f"down{r}")(x)  # (N, r, r, width at r)
                if r == self.arch.attention:
                    x = self.attention(x)
            h = ops.relu(self.last(x)).sum((1, 2))  # (N, C)
            score = self.output(h).reshape(-1)  # (N,)
            return score + (self.embedding(labels) * h).sum(1) if self.arch.classes else score
