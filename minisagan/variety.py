"""Variety: how much a run's samples differ from one another, beside how much the data do.

A generator that has collapsed draws nearly one image of a class, whatever the latent, or the same of all classes. With
x, x' two images of class k, m_k the mean of the class, and m the mean of these over all K classes:

    within_k = 1/2 E |x - x'|^2              variety_k = sqrt(within_k / the data's)
    between  = sum_k |m_k - m|^2 / (K - 1)   contrast  = sqrt(between / the data's)

A variety of 1/2 means that two samples of a class lie half as far apart as two images of the data. It is no judge of
quality: noise is varied, too.
"""

from itertools import takewhile
from typing import NamedTuple

import numpy as np

REFERENCE = 50  # images of a class that stand for the data
TELLING = 0.15  # times within: the least `between` that can be told. Of classes that are alike ten samples each seem
# 0.005 apart, and never more than 0.055 (200 times digits and photos drawn at random).
LEAST = 0.4  # below is collapse: good runs on MNIST have 0.90 to 1.07, those at absurd rates come to 0 to 0.38
STEPS = {"variety": 500, "contrast": 2000}  # if it stays so for so many (classes are told apart late)
PATIENCE = 3  # and so many measurements


class Reference:
    """What samples of the first `shown` classes of a Dataset (0: of no class) are compared with."""

    def __init__(self, dataset, shown):
        found = [np.flatnonzero(dataset.labels == k) for k in range(shown)] or [np.arange(len(dataset))]
        counts = [min(len(which), REFERENCE) for which in found]
        images = [dataset.images[which[np.arange(n) * len(which) // n]] for which, n in zip(found, counts, strict=True)]
        self.within, self.between = spread(images, [len(which) for which in found])

    def measure(self, images):
        """Name -> number, of samples uint8 (classes, n, H, W, C), n > 1.

        variety, of the class in the middle of those in which the data vary; variety_min, of the least varied of them;
        contrast, if the data's classes are so far apart that it can be told.
        """
        within, between = spread(images, [np.inf] * len(images))
        varied, found = self.within > 0, {}
        if varied.any():
            ratios = np.sqrt(within[varied] / self.within[varied])
            found["variety"] = float(np.median(ratios))
            if len(ratios) > 1:
                found["variety_min"] = float(ratios.min())
        if self.between > TELLING * self.within.mean():
            found["contrast"] = float(np.sqrt(between / self.between))
        return found


def spread(images, sizes):
    """within (classes,) and between, of images uint8 of each class; unbiased where it has more than these."""
    flat = [x.reshape(len(x), -1) for x in images]
    few = [len(x) < size for x, size in zip(flat, sizes, strict=True)]
    within = np.array([x.var(0, ddof=int(some)).sum() for x, some in zip(flat, few, strict=True)])
    if len(flat) == 1:
        return within, 0.0
    means = np.array([x.mean(0) for x in flat])
    error = np.mean([w / len(x) if some else 0 for w, x, some in zip(within, flat, few, strict=True)])
    return within, max(0.0, means.var(0, ddof=1).sum() - error)


class Collapse(NamedTuple):
    """That samples lack what `name` measures: it is `value`, and was too little from step `since` to `step`."""

    name: str
    value: float
    since: int
    step: int

    def __str__(self):
        whose = {"variety": "samples of one kind lie", "contrast": "the classes of its samples lie"}[self.name]
        return f"since step {self.since:,} {whose} {self.value:.2f} times as far apart as the data's"


def collapse(records):
    """The Collapse in which a log ends, a list of dicts; None if its last measurements are not so low for so long."""
    for name, steps in STEPS.items():
        measured = [(record["step"], record[name]) for record in records if name in record]
        low = list(takewhile(lambda found: found[1] < LEAST, reversed(measured)))
        if len(low) >= PATIENCE and low[0][0] - low[-1][0] >= steps:
            return Collapse(name, low[0][1], low[-1][0], low[0][0])
    return None


def last_varied(records, name):
    """The last step of a log at which `name` was not too low; 0 if there is none."""
    return max((record["step"] for record in records if record.get(name, -1) >= LEAST), default=0)


def advice(config):
    """What to try against collapse, in words; what a Config has already is not among it."""
    arch = config.architecture
    return ", ".join(
        [
            f"a lower --lr-g than {config.lr_g:g}",
            f"a higher --lr-d than {config.lr_d:g}",
            *(["--spectral-norm both"] if arch.spectral_norm != "both" else []),
            *(["--pack 2"] if arch.pack == 1 else []),
            "or a larger --batch-size",
        ]
    )
