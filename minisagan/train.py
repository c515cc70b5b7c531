"""Training: one step of the discriminator, one of the generator, and the state that they move (SAGAN sec. 4, eq. 4).

    D:  minimise  mean relu(1 - D(x, y)) + mean relu(1 + D(G(z, y'), y'))
    G:  minimise  -mean D(G(z, y'), y')

with two Adams of different rates (TTUR), spectral norm in both networks, fresh z and y' for every step, and a running
average of G's weights, from which samples are drawn.
"""

import math
from dataclasses import asdict, dataclass, field, fields

import numpy as np

from minisagan import data, nn, ops, rng
from minisagan.autograd import grad, no_tape
from minisagan.data.download import progress
from minisagan.errors import Diverged, UsageError
from minisagan.models import Architecture, Discriminator, Generator
from minisagan.optim import EMA, Adam, flatten

BATCH = 16  # images that `draw` makes at a time
STANDING_BATCHES = 16  # over which the averaged generator's batch statistics are taken


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's numbers; the paper's value of an option stands beside its default.

    `ema` is the decay of the running average of G's weights (0: no average); `flip` mirrors
    half of the images.
    """

    dataset: str = "drawn-digits"
    steps: int = 1500  # paper: 1,000,000
    batch_size: int = 64  # paper: 256
    seed: int = 0
    d_steps: int = 1  # paper: 1
    lr_g: float = 4e-4  # paper: 1e-4
    lr_d: float = 8e-4  # paper: 4e-4
    beta1: float = 0.0  # paper: 0
    beta2: float = 0.9  # paper: 0.9; the released code leaves 0.999
    ema: float = 0.999  # not in the paper
    flip: bool = False
    architecture: Architecture = field(default_factory=Architecture)

    def __post_init__(self):
        for name, low, high in (
            ("steps", 0, math.inf),
            ("batch_size", 1, math.inf),
            ("d_steps", 1, math.inf),
            ("lr_g", 0, math.inf),
            ("lr_d", 0, math.inf),
            ("beta1", 0, 1),
            ("beta2", 0, 1),
            ("ema", 0, 1),
        ):
            value = getattr(self, name)
            if not low <= value < high:  # False for NaN, too
                below = "" if high == math.inf else f" and below {high}"
                raise UsageError(f"{name.replace('_', '-')} must be at least {low}{below}, and finite; not {value}")

    def to_dict(self):
        return asdict(self)

    @classmethod
    def from_dict(cls, values):
        """The inverse of to_dict; UsageError for names that this version doesn't know."""
        return _build(cls, values | {"architecture": _build(Architecture, values.get("architecture", {}))})


PHOTOS = {"steps": 20_000, "lr_g": 2e-4, "lr_d": 4e-4, "flip": True}  # a careful start: not tuned
RECIPES = {  # where a data set's own choice differs from Config's defaults, which are tuned on MNIST
    "cifar10": PHOTOS | {"architecture": {"width": 32}},
    "folder": PHOTOS | {"architecture": {"width": 32, "attention": 32}},
}


def recipe(dataset, conditional=True):
    """The Config for a data.Dataset with every choice left to us: sizes, channels and classes are the data's own."""
    values = dict(RECIPES.get(dataset.name, RECIPES["folder"] if dataset.name not in data.NAMES else {}))
    classes = len(dataset.classes) if conditional and len(dataset.classes) > 1 else 0
    arch = {"size": dataset.size, "channels": dataset.channels, "classes": classes} | values.pop("architecture", {})
    if arch["size"] == 32:
        arch["attention"] = 16
    return Config(dataset=dataset.name, architecture=Architecture(**arch), **values)


def _build(cls, values):
    unknown = set(values) - {f.name for f in fields(cls)}
    if unknown:
        raise UsageError(f"this version of minisagan doesn't know {', '.join(sorted(unknown))} in a configuration")
    return cls(**values)


def discriminator_step(G, D, adam, images, labels, z, fake_labels):
    """One step of D on real and fake images in one batch: images (n, S, S, C) in [-1, 1], z (n, latent), labels (n,).

    D has no batch norm, so the two halves do not see each other, and its spectral norm's u moves once. G runs without
    a tape, but in training mode: its u and running statistics move here, too. Labels are None for unconditional
    networks. Returns (loss, mean D(real), mean D(fake)).
    """
    n = len(images)
    G.train()
    D.train()
    with no_tape():
        fakes = G(z, fake_labels).data
    both = None if labels is None else np.concatenate([labels, fake_labels])
    scores = D(np.concatenate([images, fakes]), both)
    loss = ops.hinge_discriminator(scores)
    adam.step(grad(loss, adam.parameters))
    return loss.data, scores.data[:n].mean(), scores.data[n:].mean()


def generator_step(G, D, adam, ema, z, labels):
    """One step of G against D at rest: z (n, latent), labels (n,). Gradients of D's weights are never computed.

    Returns (loss,).
    """
    G.train()
    D.eval()
    loss = ops.hinge_generator(D(G(z, labels), labels))
    adam.step(grad(loss, adam.parameters))
    ema.step()
    return (loss.data,)


class Training:
    """The networks, optimisers and counters of one run on `dataset`; `advance` is one D step (or more) and one G step.

    Everything that a step reads or moves is in `state` or follows from (config, step): a run that is stopped, saved,
    loaded and continued is the uninterrupted one.
    """

    def __init__(self, config, dataset):
        if len(dataset) < config.batch_size:
            raise UsageError(
                f"a batch of {config.batch_size} is larger than {dataset.name}'s {len(dataset)} images: "
                f"choose --batch-size {len(dataset)} or less"
            )
        self.config, self.dataset, self.step = config, dataset, 0
        self.sampled_at = None  # the step for which the averaged generator's statistics were measured
        arch = config.architecture
        init = nn.Init(config.seed, arch.init)
        self.G, self.D = Generator(arch, init), Discriminator(arch, init)
        self.average = Generator(arch, nn.Init(config.seed, arch.init))  # the same first weights
        self.adam_g = Adam(self.G.parameters(), config.lr_g, config.beta1, config.beta2)
        self.adam_d = Adam(self.D.parameters(), config.lr_d, config.beta1, config.beta2)
        self.ema = EMA(self.adam_g.weights, flatten(self.average.parameters()), config.ema)

    def advance(self):
        """One training step: `d_steps` steps of D, one of G. Returns its losses and scores, name -> float.

        Diverged, naming the first tensor with a NaN or an infinity, when a loss is not finite.
        """
        c, classes = self.config, self.config.architecture.classes
        for k in range(self.step * c.d_steps, (self.step + 1) * c.d_steps):
            images, labels = data.batch(
                self.dataset,
                data.batch_indices(k * c.batch_size, c.batch_size, len(self.dataset), c.seed),
                rng.uniform((c.batch_size,), c.seed, rng.Stream.FLIP, k) < 0.5 if c.flip else None,
            )
            z, fake_labels = self._noise(rng.Stream.Z_D, rng.Stream.LABELS_D, k)
            losses = discriminator_step(
                self.G, self.D, self.adam_d, images, labels if classes else None, z, fake_labels
            )
        losses += generator_step(
            self.G, self.D, self.adam_g, self.ema, *self._noise(rng.Stream.Z_G, rng.Stream.LABELS_G, self.step)
        )
        self.step += 1
        record = dict(zip(("loss_d", "d_real", "d_fake", "loss_g"), map(float, losses), strict=True))
        if not all(map(math.isfinite, record.values())):
            first = next((name for name, x in self.state().items() if not np.isfinite(x).all()), "the losses alone")
            raise Diverged(
                f"step {self.step}: a loss is not finite; first tensor with a NaN or an infinity: {first}. "
                "Lower --lr-g and --lr-d, or keep spectral norm in both networks"
            )
        return record

    def _noise(self, z_stream, label_stream, step):
        c, arch = self.config, self.config.architecture
        z = rng.normal((c.batch_size, arch.latent), c.seed, z_stream, step)
        return z, rng.labels(c.batch_size, arch.classes, c.seed, label_stream, step) if arch.classes else None

    def measures(self):
        """What else a log wants to know: the gates of attention, the norms of the last gradients."""
        found = {"grad_g": float(np.linalg.norm(self.adam_g.g)), "grad_d": float(np.linalg.norm(self.adam_d.g))}
        if self.config.architecture.attention:
            found |= {"gamma_g": float(self.G.attention.gamma.data), "gamma_d": float(self.D.attention.gamma.data)}
        return found

    def sampler(self):
        """The generator to sample from, in evaluation mode: G's running average, with its own batch statistics.

        An average of G's statistics would not be the averaged network's own, so they are measured: STANDING_BATCHES
        batches of noise, always the same ones, go through the averaged weights (standing statistics). With ema = 0
        the weights are G's.
        """
        average = self.average
        if self.sampled_at == self.step:
            return average
        if not self.config.ema:
            self.ema.average[...] = self.adam_g.weights
        buffers = average.buffers()
        for name, buffer in self.G.buffers().items():
            buffers[name][...] = buffer  # from G's u, the average's own is a few power iterations away
        average.train()
        with no_tape():
            for k in range(STANDING_BATCHES):
                for norm in average.modules(nn.BatchNorm):
                    norm.momentum = k / (k + 1)  # makes the running statistics the mean of all batches so far
                average(*self._noise(rng.Stream.STANDING_Z, rng.Stream.STANDING_LABELS, k))
        self.sampled_at = self.step
        return average.eval()

    def state(self):
        """All arrays of the run, name -> the live array: what a checkpoint holds, and what loading writes into."""
        arrays = {}
        for name, net in (("G", self.G), ("D", self.D), ("average", self.average)):
            arrays |= {f"{name}.{key}": p.data for key, p in net.parameters().items()}
            arrays |= {f"{name}.{key}": buffer for key, buffer in net.buffers().items()}
        for name, adam in (("adam_g", self.adam_g), ("adam_d", self.adam_d)):
            arrays |= {f"{name}.m": adam.m, f"{name}.v": adam.v, f"{name}.t": adam.t}
        return arrays | {"ema.t": self.ema.t}


def generate(generator, z, labels, batch=64):
    """Images of the generator as it stands: z (N, latent), labels (N,) or None -> float32 (N, S, S, C).

    They are made `batch` at a time, and none is remembered.
    """
    with no_tape():
        return np.concatenate(
            [
                generator(z[i : i + batch], None if labels is None else labels[i : i + batch]).data
                for i in range(0, len(z), batch)
            ]
        )


def draw(generator, count, classes, seed, size):
    """Images uint8 (count, size, size, C) and their labels int64 (count,), or None for no classes.

    Sample i has the latent z_i = normal(seed, i) and the class classes[i mod k] of the k asked for: it is the same
    however many are drawn. The generator always draws BATCH at a time, the last few in vain, because a matrix product
    may round differently for another number of rows.
    """
    padded = -(-count // BATCH) * BATCH
    z = rng.normal((padded, generator.arch.latent), seed, rng.Stream.SAMPLE_Z, 0)
    labels = None if classes is None else np.resize(np.array(classes, np.int64), padded)  # repeats them
    images = np.empty((padded, size, size, generator.arch.channels), np.uint8)
    for i in range(0, padded, BATCH):
        batch = slice(i, i + BATCH)
        images[batch] = data.to_uint8(generate(generator, z[batch], None if labels is None else labels[batch]), size)
        progress("drawing", min(i + BATCH, count), count)
    return images[:count], None if labels is None else labels[:count]
