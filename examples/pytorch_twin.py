"""SAGAN's two networks and their training step, plainly in PyTorch, from minisagan's own Architecture.

Something to compare with: tests hold minisagan's networks, gradients and whole training steps against these,
and `compare_pytorch.py` beside this file times the two. Nothing here is fused or rearranged: up-sampling,
then a convolution; a convolution, then average pooling; batch norm, then gain and bias, then ReLU.

Modules, parameters and buffers have minisagan's names. PyTorch's layout differs: images (N, C, H, W),
convolution weights (C_out, C_in, kh, kw), linear weights (C_out, C_in); `laid_out` turns an array of one into
one of the other.
"""

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn


class Normalised(nn.Module):
    """A weight (C_out, ...) and, with `spectral`, the u (C_out,) of its power iteration (Miyato et al. 2018).

    u takes a step at each use in training and rests in evaluation; u and v are constants in the backward
    pass.
    """

    def __init__(self, shape, spectral):
        super().__init__()
        self.w = nn.Parameter(torch.empty(shape))
        self.register_buffer("u", torch.empty(shape[0]) if spectral else None)

    def weight(self):
        """w, or w / sigma."""
        if self.u is None:
            return self.w
        matrix = self.w.flatten(1)  # (C_out, K)
        with torch.no_grad():
            v = F.normalize(matrix.T @ self.u, dim=0)
            if self.training:
                self.u.copy_(F.normalize(matrix @ v, dim=0))
            u = self.u.clone()  # the graph's own: the buffer moves on
        return self.w / torch.dot(u, matrix @ v)


class Linear(Normalised):
    """(N, C) -> (N, C_out)."""

    def __init__(self, inputs, outputs, spectral):
        super().__init__((outputs, inputs), spectral)
        self.b = nn.Parameter(torch.zeros(outputs))

    def forward(self, x):
        return F.linear(x, self.weight(), self.b)


class Conv(Normalised):
    """(N, C, H, W) -> (N, C_out, H, W)."""

    def __init__(self, inputs, outputs, kernel, spectral, bias=True):
        super().__init__((outputs, inputs, kernel, kernel), spectral)
        self.b = nn.Parameter(torch.zeros(outputs)) if bias else None

    def forward(self, x):
        return F.conv2d(x, self.weight(), self.b, padding=self.w.shape[-1] // 2)


class Embedding(Normalised):
    """Labels (N,) -> (N, C)."""

    def __init__(self, classes, channels, spectral):
        super().__init__((classes, channels), spectral)

    def forward(self, labels):
        return F.embedding(labels, self.weight())


class BatchNorm(nn.Module):
    """Batch norm whose gain and bias are each channel's or, with `classes`, each class and channel's.

    The running variance averages each batch's biased variance; F.batch_norm's own would average the unbiased
    one.
    """

    def __init__(self, channels, classes, momentum):
        super().__init__()
        shape = (classes, channels) if classes else (channels,)
        self.gain, self.bias = nn.Parameter(torch.ones(shape)), nn.Parameter(torch.zeros(shape))
        self.register_buffer("mean", torch.zeros(channels))
        self.register_buffer("var", torch.ones(channels))
        self.momentum = momentum

    def forward(self, x, labels=None):
        conditional = self.gain.ndim == 2
        affine = (None, None) if conditional else (self.gain, self.bias)
        if self.training:
            mean, var = torch.zeros_like(self.mean), torch.zeros_like(self.var)
            x = F.batch_norm(x, mean, var, *affine, training=True, momentum=1)  # fills mean and var
            count = x.numel() / x.shape[1]
            self.mean.lerp_(mean, 1 - self.momentum)
            self.var.lerp_(var * ((count - 1) / count), 1 - self.momentum)
        else:
            x = F.batch_norm(x, self.mean, self.var, *affine)
        if not conditional:
            return x
        gain, bias = F.embedding(labels, self.gain), F.embedding(labels, self.bias)  # (N, C)
        return gain[:, :, None, None] * x + bias[:, :, None, None]


class SelfAttention(nn.Module):
    """x + gamma o (SAGAN sec. 3), in the released code's form ("official") or the paper's."""

    def __init__(self, channels, form, spectral, key):
        super().__init__()
        narrow, wide = channels // key if key else max(channels // 8, 8), channels // (2 if form == "official" else 8)
        self.query = Conv(channels, narrow, 1, spectral, bias=False)
        self.key = Conv(channels, narrow, 1, spectral, bias=False)
        self.value = Conv(channels, wide, 1, spectral, bias=False)
        self.output = Conv(wide, channels, 1, spectral, bias=False)
        self.gamma = nn.Parameter(torch.zeros(()))
        self.pooled = form == "official"

    def forward(self, x):
        N, _, H, W = x.shape
        query, key, value = self.query(x), self.key(x), self.value(x)
        if self.pooled:
            key, value = F.max_pool2d(key, 2), F.max_pool2d(value, 2)
        query, key, value = (y.flatten(2).transpose(1, 2) for y in (query, key, value))  # (N, positions, channels)
        beta = torch.softmax(query @ key.transpose(1, 2), dim=2)  # (N, H W, positions of keys)
        o = (beta @ value).transpose(1, 2)  # (N, wide, H W); in channels_last nothing of this copies
        return x + self.gamma * self.output(o.reshape(N, -1, H, W))


class UpBlock(nn.Module):
    """The generator's residual block, (N, C, H, W) -> (N, C_out, 2H, 2W)."""

    def __init__(self, inputs, outputs, classes, momentum, spectral):
        super().__init__()
        self.norm1 = BatchNorm(inputs, classes, momentum)
        self.conv1 = Conv(inputs, outputs, 3, spectral)
        self.norm2 = BatchNorm(outputs, classes, momentum)
        self.conv2 = Conv(outputs, outputs, 3, spectral)
        self.shortcut = Conv(inputs, outputs, 1, spectral)

    def forward(self, x, labels):
        h = F.relu(self.norm1(x, labels))
        h = self.conv1(F.interpolate(h, scale_factor=2, mode="nearest"))
        h = self.conv2(F.relu(self.norm2(h, labels)))
        return h + self.shortcut(F.interpolate(x, scale_factor=2, mode="nearest"))


class DownBlock(nn.Module):
    """The discriminator's residual block, (N, C, H, W) -> (N, C_out, H/2, W/2); down=False keeps H and W."""

    def __init__(self, inputs, outputs, spectral, down=True, first=False):
        super().__init__()
        self.conv1 = Conv(inputs, outputs, 3, spectral)
        self.conv2 = Conv(outputs, outputs, 3, spectral)
        self.shortcut = Conv(inputs, outputs, 1, spectral) if down or inputs != outputs else None
        self.down, self.first = down, first

    def forward(self, x):
        h = self.conv1(x if self.first else F.relu(x))
        h = self.conv2(F.relu(h))
        if self.first:
            x = F.avg_pool2d(x, 2)
        if self.shortcut is not None:
            x = self.shortcut(x)
        if self.down and not self.first:
            x = F.avg_pool2d(x, 2)
        return (F.avg_pool2d(h, 2) if self.down else h) + x


class Generator(nn.Module):
    """(z, labels) -> images (N, channels, S, S)."""

    memory_format = torch.contiguous_format

    def __init__(self, arch):
        super().__init__()
        spectral = arch.spectral_norm == "both"
        self.arch = arch
        self.input = Linear(arch.latent, 16 * arch.generator_width(4), spectral)
        self.levels = [r for r in (8, 16, 32, 64, 128, 256) if r <= arch.size]
        for r in self.levels:
            inputs, outputs = arch.generator_width(r // 2), arch.generator_width(r)
            self.add_module(f"up{r}", UpBlock(inputs, outputs, arch.classes, arch.momentum, spectral))
            if r == arch.attention:
                self.attention = SelfAttention(outputs, arch.attention_form, spectral, arch.attention_key)
        self.norm = BatchNorm(arch.width, 0, arch.momentum)
        self.output = Conv(arch.width, arch.channels, 3, spectral)

    def forward(self, z, labels=None):
        x = self.input(z).reshape(len(z), -1, 4, 4)
        x = x.contiguous(memory_format=self.memory_format)
        for r in self.levels:
            x = self.get_submodule(f"up{r}")(x, labels)
            if r == self.arch.attention:
                x = self.attention(x)
        return torch.tanh(self.output(F.relu(self.norm(x))))


class Discriminator(nn.Module):
    """(images, labels) -> scores (N,)."""

    def __init__(self, arch):
        super().__init__()
        spectral = arch.spectral_norm != "none"
        self.arch = arch
        self.levels = [r for r in (128, 64, 32, 16, 8, 4) if r < arch.size]
        inputs = arch.channels
        for r in self.levels:
            outputs = arch.discriminator_width(r)
            self.add_module(f"down{r}", DownBlock(inputs, outputs, spectral, first=r == self.levels[0]))
            if r == arch.attention:
                self.attention = SelfAttention(outputs, arch.attention_form, spectral, arch.attention_key)
            inputs = outputs
        self.last = DownBlock(inputs, inputs, spectral, down=False)
        self.output = Linear(inputs, 1, spectral)
        if arch.classes:
            self.embedding = Embedding(arch.classes, inputs, spectral)

    def forward(self, x, labels=None):
        for r in self.levels:
            x = self.get_submodule(f"down{r}")(x)
            if r == self.arch.attention:
                x = self.attention(x)
        h = F.relu(self.last(x)).sum((2, 3))  # (N, C)
        score = self.output(h).squeeze(1)  # (N,)
        return score + (self.embedding(labels) * h).sum(1) if self.arch.classes else score


class EMA:
    """The running average of G's weights, with minisagan's warm-up of the decay."""

    def __init__(self, G, decay=0.999):
        self.weights = list(G.parameters())
        self.average = [w.detach().clone() for w in self.weights]
        self.decay, self.t = decay, 0

    @torch.no_grad()
    def step(self):
        decay = min(self.decay, (1 + self.t) / (10 + self.t))
        torch._foreach_lerp_(self.average, self.weights, 1 - decay)
        self.t += 1


def adam(network, lr, betas=(0.0, 0.9), capturable=False):
    """PyTorch's Adam as minisagan sets it up, in its fastest form; `capturable` for CUDA graphs."""
    return torch.optim.Adam(network.parameters(), lr, betas, eps=1e-8, fused=True, capturable=capturable)


def discriminator_loss(scores):
    """The hinge loss of scores (2n,), real images in the first half."""
    real, fake = scores.chunk(2)
    return F.relu(1 - real).mean() + F.relu(1 + fake).mean()


def generator_loss(scores):
    return -scores.mean()


def training_step(G, D, adam_g, adam_d, ema, images, labels, z, fake_labels):
    """One step of D and one of G from the same generated images, as minisagan's; returns the losses and D's means."""
    fakes = G.train()(z, fake_labels)
    of_d = discriminator_step(D, adam_d, images, labels, fakes.detach(), fake_labels)
    return *of_d, *generator_step(D, adam_g, ema, fakes, fake_labels)


def discriminator_step(D, adam, images, labels, fakes, fake_labels):
    """One step of D, real and fake in one batch; returns (loss, mean D(real), mean D(fake))."""
    D.train()
    scores = D(torch.cat([images, fakes]), None if labels is None else torch.cat([labels, fake_labels]))
    loss = discriminator_loss(scores)
    adam.zero_grad()
    loss.backward()
    adam.step()
    real, fake = scores.detach().chunk(2)
    return loss.detach(), real.mean(), fake.mean()


def generator_step(D, adam, ema, fakes, labels):
    """One step of G against D at rest, whose weights get no gradients, by fakes = G(z, labels); returns (loss,)."""
    D.eval().requires_grad_(False)
    loss = generator_loss(D(fakes, labels))
    adam.zero_grad()
    loss.backward()
    adam.step()
    ema.step()
    D.requires_grad_(True)
    return (loss.detach(),)


def twin(network, memory_format=torch.contiguous_format):
    """The twin of a minisagan Generator or Discriminator, with its parameters, buffers, dtype and mode."""
    made = {"Generator": Generator, "Discriminator": Discriminator}[type(network).__name__](network.arch)
    arrays = tensors(network)
    made.to(arrays["output.w"].dtype, memory_format=memory_format)
    made.load_state_dict(arrays)  # strict: the same names and shapes, none missing
    made.memory_format = memory_format  # of the activations
    return made.train(network.training)


def tensors(network):
    """A minisagan network's parameters and buffers in PyTorch's layout, name -> a tensor of its own."""
    arrays = {name: p.data for name, p in network.parameters().items()} | network.buffers()
    return {name: laid_out(name, array) for name, array in arrays.items()}


def laid_out(name, array):
    """minisagan's parameter, gradient or buffer `name` in PyTorch's layout, as a tensor of its own.

    Output channels go first (an embedding's are the classes, which come first in both). The generator's
    linear layer makes a 4x4 image: minisagan counts its outputs in the order (h, w, c), PyTorch in the order
    (c, h, w).
    """
    if array.ndim == 4:
        array = array.transpose(3, 2, 0, 1)  # (C_out, C_in, kh, kw)
    elif name == "output.w":
        array = array.T  # (C_out, C_in)
    elif name.startswith("input."):
        image = array.reshape(-1, 16, array.shape[-1] // 16)  # (latent or 1, 4 4, C)
        array = image.transpose(2, 1, 0).reshape(array.shape[::-1])  # (C 4 4, latent) or (C 4 4,)
    return torch.from_numpy(np.array(array, order="C"))


def as_input(array, memory_format=torch.contiguous_format):
    """minisagan's images, z or labels (or None) as PyTorch's: images (N, H, W, C) become (N, C, H, W)."""
    if array is None or array.ndim < 4:
        return None if array is None else torch.from_numpy(array)
    return torch.from_numpy(array.transpose(0, 3, 1, 2)).contiguous(memory_format=memory_format)


def silent_biases(arch):
    """The generator's biases that change no image in training, since they only feed batch norms.

    A constant added to a channel passes through the shortcuts (1x1 convolutions) up to the last batch norm;
    only attention can tell, whose queries it shifts. The true gradient of these biases is 0; what is computed
    is rounding noise.
    """
    levels = [r for r in (8, 16, 32, 64, 128, 256) if r <= arch.size]
    inner = {f"up{r}.conv1.b" for r in levels}
    after_attention = [r for r in levels if r > (arch.attention or 0)]
    return inner | {f"up{r}.{layer}.b" for r in after_attention for layer in ("conv2", "shortcut")}
