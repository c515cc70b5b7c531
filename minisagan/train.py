"""Training: one step of the discriminator, one of the generator, and the state that they move (SAGAN sec. 4, eq. 4).

    D:  minimise  mean relu(1 - D(x, y)) + mean relu(1 + D(G(z, y'), y'))
    G:  minimise  -mean D(G(z, y'), y')

with two Adams of different rates (TTUR), spectral norm in both networks, fresh z and y' for every step, and a running
average of G's weights, from which samples are drawn.
"""

import math
import statistics
import weakref
from dataclasses import asdict, dataclass, field, fields, replace

import numpy as np

from minisagan import cuda, data, device, nn, ops, ranks, rng
from minisagan.autograd import grad, no_tape
from minisagan.data.download import progress
from minisagan.errors import Diverged, UsageError
from minisagan.models import Architecture, Discriminator, Generator, attended
from minisagan.optim import EMA, Adam, flatten

BATCH = 16  # images that `draw` makes at a time
FEW = 8  # images that attention is measured on for the log
STANDING_BATCHES = 16  # over which the averaged generator's batch statistics are taken
LOSSES = ("loss_d", "d_real", "d_fake", "loss_g")  # what is recorded of a step; d: mean scores


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's numbers; the paper's value of an option stands beside its default.

    `ema` is the decay of the running average of G's weights (0: no average); `flip` mirrors half of the images.
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
    networks. Returns (loss, mean D(real), mean D(fake)), of these images' share if processes share the batch.
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
    return loss.data, *(_mean(half) for half in (scores.data[:n], scores.data[n:]))


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


def _mean(x):
    """The mean of x (n,), or this process's share of it."""
    return x.mean() if cuda.on_gpu(x) else ranks.batch_sum(x) / (len(x) * ranks.world())


class Training:
    """The networks, optimisers and counters of one run on `dataset`; `advance` makes steps, of D and of G.

    Everything that a step reads or moves is in `state` or follows from (config, step): a run that is stopped, saved,
    loaded and continued is the uninterrupted one. With `gpu` all of it lies on the GPU that cuda.use() chose, as do the
    data; with `graph` a step of D and one of G, after a few that just run, are one launch each. On a CPU, `processes`
    share each batch (None: as many as are sensible for device.threads() and this batch): not one bit of the result
    depends on how many. The others begin when the first step is made, and of later changes they see those of `state`.
    """

    def __init__(self, config, dataset, gpu=False, graph=True, processes=1):
        if len(dataset) < config.batch_size:
            raise UsageError(
                f"a batch of {config.batch_size} is larger than {dataset.name}'s {len(dataset)} images: "
                f"choose --batch-size {len(dataset)} or less"
            )
        self.config, self.dataset, self.step = config, dataset, 0
        self.source = dataset  # of batches
        self.sampled_at = None  # the step for which the averaged generator's statistics were measured
        if gpu:
            put = cuda.cupy().asarray
            self.source = replace(dataset, images=put(dataset.images), labels=put(dataset.labels))
        arch, here = config.architecture, self.source.images
        init = nn.Init(config.seed, arch.init)
        self.G, self.D = Generator(arch, init).to(here), Discriminator(arch, init).to(here)
        self.average = Generator(arch, nn.Init(config.seed, arch.init)).to(here)  # the same first weights
        self.adam_g = Adam(self.G.parameters(), config.lr_g, config.beta1, config.beta2)
        self.adam_d = Adam(self.D.parameters(), config.lr_d, config.beta1, config.beta2)
        self.ema = EMA(self.adam_g.weights, flatten(self.average.parameters()), config.ema)
        self.indices = np.zeros(config.batch_size, np.int64, like=here)  # which images the next step of D sees
        self.losses = np.zeros(len(LOSSES), np.float32, like=here)  # of the last steps
        steps = self._step_d, self._step_g
        self.step_d, self.step_g = (cuda.Graph(step) if gpu and graph else step for step in steps)
        if processes is None:
            processes = 1 if gpu else ranks.sensible(device.threads(), config.batch_size)
        if ranks.PARTS % processes or config.batch_size % processes:
            raise ValueError(f"{processes} processes: must divide {ranks.PARTS} and the batch of {config.batch_size}")
        self.processes, self.group = processes, None

    def advance(self, count=1):
        """`count` training steps, each of `d_steps` steps of D and one of G. Returns the losses and scores of the last.

        They are name -> float; a GPU is waited for only here, so the longer `count`, the better it is used. Diverged,
        naming the first tensor with a NaN or an infinity, when a loss of any of the steps is not finite.
        """
        history = cuda.to_host(self._steps(count) if self.processes == 1 else self._shared_steps(count))
        self.step += count
        bad = ~np.isfinite(history).all(1)
        if bad.any():
            first = next((name for name, x in self.state().items() if not np.isfinite(x).all()), "the losses alone")
            raise Diverged(
                f"step {self.step - count + 1 + bad.argmax()}: a loss is not finite; first tensor with a NaN or an "
                f"infinity: {first}. Lower --lr-g and --lr-d, or keep spectral norm in both networks"
            )
        return dict(zip(LOSSES, history[-1].tolist(), strict=True))

    def _steps(self, count):
        """The losses and scores of `count` steps, (count, len(LOSSES)), which are made here."""
        c = self.config
        seen, batches = self.step * c.d_steps * c.batch_size, (count, c.d_steps, c.batch_size)
        order = data.batch_indices(seen, math.prod(batches), len(self.dataset), c.seed).reshape(batches)
        order = np.asarray(order, like=self.indices)
        history = np.empty((count, len(LOSSES)), np.float32, like=self.losses)
        for k in range(count):
            for i in range(c.d_steps):
                self.indices[...] = order[k, i]
                self.step_d()
            self.step_g()
            history[k] = ranks.total(self.losses)
        return history

    def _shared_steps(self, count):
        """The same, made by all processes together. What is not in shared memory is copied to the others first."""
        small = self._small()
        if not self.group or not self.group.peers:
            # the gradients are what ranks exchange most of, or batch norm's two numbers for each image and channel
            widest = self.config.architecture.generator_width(4) * self.config.batch_size * 8
            largest = max(self.adam_g.weights.nbytes, self.adam_d.weights.nbytes, widest)
            self.given = [ranks.shared(x.size, x.dtype).reshape(x.shape) for x in small]
            self.group = ranks.Group(self.processes, largest, self._follow)
            weakref.finalize(self, self.group.close)
        for given, x in zip(self.given, small, strict=True):
            given[...] = x
        self.group.call(count, self.step)
        with self.group.joined():
            return self._steps(count)

    def _follow(self, count, step):
        """What another process does of `_shared_steps`."""
        for given, x in zip(self.given, self._small(), strict=True):
            x[...] = given
        self.step = step
        self._steps(count)

    def _small(self):
        """The state that is no weight and no moment: u, running statistics, Adams' t. Few numbers, in many arrays."""
        arrays = [buffer for net in (self.G, self.D) for buffer in net.buffers().values()]
        return [*arrays, self.adam_g.t, self.adam_d.t]

    # What changes from step to step comes from arrays, and the results go to arrays: a GPU repeats this without Python.

    def _step_d(self):
        c, t = self.config, self.adam_d.t  # t counts D's steps: noise is drawn by it
        flips = rng.uniform((c.batch_size,), c.seed, rng.Stream.FLIP, t) < 0.5 if c.flip else None
        images, labels = data.batch(self.source, ranks.share(self.indices), ranks.share(flips))
        z, fake_labels = self._noise(rng.Stream.Z_D, rng.Stream.LABELS_D, t)
        if fake_labels is None:
            labels = None
        found = discriminator_step(self.G, self.D, self.adam_d, images, labels, z, fake_labels)
        self.losses[0], self.losses[1], self.losses[2] = found

    def _step_g(self):
        noise = self._noise(rng.Stream.Z_G, rng.Stream.LABELS_G, self.adam_g.t)
        (self.losses[3],) = generator_step(self.G, self.D, self.adam_g, self.ema, *noise)

    def _noise(self, z_stream, label_stream, step):
        c, arch = self.config, self.config.architecture
        z = rng.normal((c.batch_size, arch.latent), c.seed, z_stream, step)
        labels = rng.labels(c.batch_size, arch.classes, c.seed, label_stream, step) if arch.classes else None
        return ranks.share(z), ranks.share(labels)

    def measures(self):
        """What else a log wants to know, name -> float; every ten steps it costs half a percent of the time.

        The norms of the last gradients; the least, median and greatest sigma of the spectrally normalised layers; the
        gates gamma of attention, and |gamma o| / |x|, what comes through them, for a few images of G's.
        """
        norm = np.linalg.norm
        found = {"grad_g": norm(self.adam_g.g), "grad_d": norm(self.adam_d.g)}
        networks, sigmas = {"g": self.G.eval(), "d": self.D.eval()}, {}
        with no_tape():
            for name, net in networks.items():
                layers = [layer for layer in net.modules(nn.Layer) if layer.u is not None]
                nn.normalise(layers)
                sigmas[name] = [norm(layer.w.data) / norm(layer.weight().data) for layer in layers]
            if self.config.architecture.attention:
                z, labels = self._noise(rng.Stream.Z_G, rng.Stream.LABELS_G, self.adam_g.t)
                z, labels = z[:FEW], None if labels is None else labels[:FEW]
                with attended(self.G) as of_g, attended(self.D) as of_d:
                    self.D(self.G(z, labels), labels)
                for name, ((x, y),) in (("g", of_g), ("d", of_d)):
                    found[f"gamma_{name}"] = networks[name].attention.gamma.data
                    found[f"ratio_{name}"] = norm(y - x) / norm(x)
        numbers = np.stack([*found.values(), *sigmas["g"], *sigmas["d"]])
        numbers = iter(cuda.to_host(numbers).tolist())  # one copy for all
        found = {name: next(numbers) for name in found}
        for name, values in sigmas.items():
            if values := [next(numbers) for _ in values]:
                found[f"sigma_{name}_min"], found[f"sigma_{name}_max"] = min(values), max(values)
                found[f"sigma_{name}_median"] = statistics.median(values)
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
                step = np.asarray(k, like=self.losses)
                average(*self._noise(rng.Stream.STANDING_Z, rng.Stream.STANDING_LABELS, step))
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

    They are made `batch` at a time, where the generator lies, and none is remembered there.
    """
    here = next(iter(generator.parameters().values())).data
    images = []
    with no_tape():
        for i in range(0, len(z), batch):
            part = (None if x is None else np.asarray(x[i : i + batch], like=here) for x in (z, labels))
            images.append(cuda.to_host(generator(*part).data))
    return np.concatenate(images)


def draw(generator, count, classes, seed, size, truncation=None):
    """Images uint8 (count, size, size, C) and their labels int64 (count,), or None for no classes.

    Sample i has the latent z_i = normal(seed, i) and the class classes[i mod k] of the k asked for: it is the same
    however many are drawn. The generator always draws BATCH at a time, the last few in vain, because a matrix product
    may round differently for another number of rows.
    """
    padded = -(-count // BATCH) * BATCH
    z = latents(generator, padded, seed, truncation)
    labels = None if classes is None else np.resize(np.array(classes, np.int64), padded)  # repeats them
    images = np.empty((padded, size, size, generator.arch.channels), np.uint8)
    for i in range(0, padded, BATCH):
        batch = slice(i, i + BATCH)
        images[batch] = data.to_uint8(generate(generator, z[batch], None if labels is None else labels[batch]), size)
        progress("drawing", min(i + BATCH, count), count)
    return images[:count], None if labels is None else labels[:count]


def latents(generator, count, seed, truncation=None):
    """The latents of the first samples of a seed: float32 (count, latent), each number within -T to T if truncated."""
    shape, stream = (count, generator.arch.latent), rng.Stream.SAMPLE_Z
    if truncation is None:
        return rng.normal(shape, seed, stream, 0)
    return rng.truncated_normal(shape, truncation, seed, stream, 0)
