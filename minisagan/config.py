"""What decides a run: the networks' architecture, the training's configuration, and the recipe for a data set."""

import math
from dataclasses import asdict, dataclass, field, fields, replace
from functools import cached_property
from typing import get_args

from minisagan import data, processes
from minisagan.data import SIZES
from minisagan.errors import UsageError


@dataclass(frozen=True)
class Architecture:
    """What both networks are made from.

    size: side of the images in pixels, one of SIZES; channels: 1 (grey) or 3 (RGB); width: channels at full resolution;
    classes: 0 for unconditional; pack: how many images of one class D sees at once; attention: the resolution at which
    both attend, or None; attention_form: "official" or "paper"; attention_key: the paper's k, of C channels query and
    key have C/k (None: C/8, but at least 8); spectral_norm: "both", "discriminator" or "none"; latent: length of z;
    momentum: of batch norm's running statistics; init: "orthogonal" or "xavier".
    """

    size: int = 32
    channels: int = 1
    width: int = 16  # the paper's code: 64 at 128x128
    classes: int = 10
    pack: int = 1  # paper: 1; 2 is PacGAN's (Lin et al. 2018)
    attention: int | None = 16  # paper: 64 at 128x128 (its code: 32)
    attention_form: str = "official"
    attention_key: int | None = None  # paper: 8, where C is 256 in G, 128 in D (at 32x32)
    spectral_norm: str = "both"
    latent: int = 128
    momentum: float = 0.9  # the paper's code: 0.999, in G's last batch norm 0.9999
    init: str = "orthogonal"  # the paper's code: xavier

    def __post_init__(self):
        def require(condition, message):
            if not condition:
                raise UsageError(message)

        require(self.size in SIZES, f"image size must be one of {', '.join(map(str, SIZES))}, not {self.size}")
        require(self.channels in (1, 3), f"images have 1 or 3 channels, not {self.channels}")
        require(1 <= self.width <= 1 << 20, f"width must be 1 to 2^20, not {self.width}")
        require(self.classes >= 0, f"the number of classes can't be {self.classes}")
        require(1 <= self.pack <= 8, f"D can see 1 to 8 images at once, not {self.pack}")
        require(1 <= self.latent <= 1 << 20, f"the latent has 1 to 2^20 dimensions, not {self.latent}")
        require(0 <= self.momentum < 1, f"batch norm's momentum must be in [0, 1), not {self.momentum}")
        require(
            self.attention_form in ("official", "paper"),
            f"attention form must be official or paper, not {self.attention_form!r}",
        )
        require(
            self.spectral_norm in ("both", "discriminator", "none"),
            f"spectral norm must be both, discriminator or none, not {self.spectral_norm!r}",
        )
        levels = [r for r in (8, 16, 32, 64, 128) if r < self.size]
        require(
            self.attention is None or self.attention in levels,
            f"attention at {self.attention}: at {self.size}x{self.size} it is at {', '.join(map(str, levels))} or none",
        )
        if self.attention:
            narrowest = min(self.generator_width(self.attention), self.discriminator_width(self.attention))
            require(
                narrowest >= 8,
                f"attention at {self.attention} needs 8 channels there; with width {self.width} it has {narrowest}: "
                f"take a width of {-(-8 * self.width // narrowest)} or more, a lower level, or none",
            )
            require(
                self.attention_key is None or 1 <= self.attention_key <= narrowest,
                f"attention key C/k: of C = {narrowest} channels k can be 1 to {narrowest}, not {self.attention_key}",
            )

    def generator_width(self, resolution):
        return self.width * min(self.size // max(resolution, 8), 16)

    def discriminator_width(self, resolution):
        return self.width * min(self.size // (2 * resolution), 16)


@dataclass(frozen=True)
class Config:
    """Everything that decides a run's numbers; where the paper or its code differ, that stands beside a default.

    These defaults are not those of `minisagan train`, which begins with the `recipe` of its data set.

    `accumulate`: into how many micro-batches a batch is split, seen one after another to need the memory of only one.
    The gradient is the mean of theirs; batch norm takes each one's own statistics, and spectral norm's u moves with
    each (G's twice, as it makes the images for its own step again).
    `parts`: the number of partial sums, a power of 2, in a sum over the batch, which decides how it rounds; at most so
    many processes can share a batch. `ema` is the decay of the running average of G's weights (0: no average); `fall`
    the share of the steps, at their end, in which both learning rates fall linearly to 0; `flip` mirrors half of the
    images; `augment` has D see all images, real and generated, shifted and with a square cut out, and with `flip` it
    mirrors both kinds alike (beyond/augment.py).
    `fit`, `labels` and `skip_unreadable` say how a folder of images is read, as in data.Reading.
    """

    dataset: str = "drawn-digits"
    steps: int = 1500  # paper: 1,000,000
    batch_size: int = 64  # the paper's code: 256, 64 on each of 4 GPUs
    accumulate: int = 1  # paper: 1
    parts: int = processes.PARTS
    seed: int = 0
    d_steps: int = 1  # paper: 1
    lr_g: float = 4e-4  # paper: 1e-4
    lr_d: float = 1.6e-3  # paper: 4e-4
    beta1: float = 0.0  # paper: 0
    beta2: float = 0.9  # paper: 0.9; the released code leaves 0.999
    ema: float = 0.999  # not in the paper
    fall: float = 0.0  # not in the paper
    flip: bool = False
    augment: bool = False  # not in the paper
    fit: str = data.AS_USUAL.fit
    labels: str | None = data.AS_USUAL.labels
    skip_unreadable: bool = data.AS_USUAL.skip_unreadable
    architecture: Architecture = field(default_factory=Architecture)

    def __post_init__(self):
        for name, low, high in (
            ("steps", 0, 10**12),
            ("batch_size", 1, 10**12),
            ("accumulate", 1, 10**12),
            ("d_steps", 1, 10**12),
            ("lr_g", 0, math.inf),
            ("lr_d", 0, math.inf),
            ("beta1", 0, 1),
            ("beta2", 0, 1),
            ("ema", 0, 1),
            ("fall", 0, 1),
        ):
            value = getattr(self, name)
            if not low <= value < high:  # False for NaN, too
                below = "" if high == math.inf else f" and below {high:,}"
                raise UsageError(f"{name.replace('_', '-')} must be at least {low}{below}, and finite; not {value}")

        if not 1 <= self.parts <= 1 << 20 or self.parts & (self.parts - 1):
            raise UsageError(f"parts must be a power of 2, at most 2^20, not {self.parts}")
        pack, K = self.architecture.pack, self.accumulate
        if self.batch_size % (pack * K):
            raise UsageError(
                f"--batch-size {self.batch_size} is no multiple of {pack * K} (--pack {pack}, --accumulate {K}): "
                f"choose --batch-size {-(-self.batch_size // (pack * K)) * pack * K}"
            )
        self.reading()

    @cached_property  # a step asks for it several times, and making one checks it all
    def micro(self):
        """The Config of a micro-batch, as if it were a batch."""
        return replace(self, batch_size=self.batch_size // self.accumulate, accumulate=1)

    def reading(self, **more):
        """How the folder of images is read, if the data set is one: the data.Reading; `more`: others of its fields."""
        fields = {"fit": self.fit, "labels": self.labels, "skip_unreadable": self.skip_unreadable}
        return data.Reading(**fields | {"channels": self.architecture.channels} | more)

    def to_dict(self):
        return asdict(self)

    @classmethod
    def from_dict(cls, values):
        """The inverse of to_dict; UsageError for names that this version doesn't know."""
        arch = {"attention_key": 8} | values.get("architecture", {})  # what it was before it was a choice
        return _build(cls, values | {"architecture": _build(Architecture, arch)})


PHOTOS = {"steps": 20_000, "fall": 0.5, "flip": True}  # tuned in runs of 1,500 steps on 5,000 photos of 32x32
DIGITS = {  # tuned on MNIST
    "steps": 2250, "lr_g": 4.5e-4, "lr_d": 2.4e-3, "beta2": 0.98, "fall": 0.5, "architecture": {"pack": 2}
}  # fmt: skip
RECIPES = {  # where a data set's own choice differs from Config's defaults
    "digits": DIGITS,
    "drawn-digits": DIGITS | {"lr_g": 6e-4},  # by 4.5e-4 some are not legible
    "cifar10": PHOTOS | {"architecture": {"width": 32}},
    "folder": PHOTOS | {"architecture": {"width": 32, "attention": 32}},
}


def recipe(dataset, conditional=True):
    """The Config for a data.Dataset with every choice left to us: sizes, channels and classes are the data's own."""
    like_mnist = dataset.name in data.NAMES or (dataset.size, dataset.channels) == (32, 1)  # small and grey
    own = dataset.name if dataset.name in ("cifar10", "drawn-digits") else "digits" if like_mnist else "folder"
    values = dict(RECIPES[own])
    classes = len(dataset.classes) if conditional and len(dataset.classes) > 1 else 0
    arch = {"size": dataset.size, "channels": dataset.channels, "classes": classes} | values.pop("architecture", {})
    if arch["size"] == 32:
        arch["attention"] = 16
    return Config(dataset=dataset.name, architecture=Architecture(**arch), **values)


def _build(cls, values):
    unknown = set(values) - {f.name for f in fields(cls)}
    if unknown:
        raise UsageError(f"this version of minisagan doesn't know {', '.join(sorted(unknown))} in a configuration")
    kinds = {f.name: get_args(f.type) or (f.type,) for f in fields(cls)}  # int | None: (int, NoneType)
    for name, value in values.items():
        allowed = kinds[name] + ((int,) if float in kinds[name] else ())
        if not isinstance(value, allowed) or (isinstance(value, bool) and bool not in allowed):
            wanted = " or ".join(kind.__name__ for kind in kinds[name])
            raise UsageError(f"{name} is of type {wanted} in a configuration, not {value!r:.40}")
    return cls(**values)
