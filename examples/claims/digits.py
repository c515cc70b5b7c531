"""What claims 2 and 3 share: runs of a small class-conditional SAGAN on digits, and how far its samples are from them.

The distance is Frechet's, between features of 500 samples and of 500 test images, which this package's own classifier
of the data set computes (minisagan.judge.evaluation; the classifier is trained on first use). The estimate depends on
the number of samples, so it is the same everywhere; the floor is the distance of 500 training images. The accuracy is
the share of samples in which the classifier sees the class that was asked for.
"""

from functools import cache

import click
import numpy as np
from common import Clock, rounded

from minisagan import data, nn
from minisagan.config import Architecture, Config
from minisagan.errors import Diverged
from minisagan.judge.evaluation import Judge
from minisagan.sampling import draw
from minisagan.train import Training

SAMPLES, MEASUREMENTS = 500, 10
COLUMNS = ("step", "seconds", "distance", "accuracy", "grad_g", "grad_d", "sigma_g", "sigma_d")


load = cache(data.load)


@cache
def judge(dataset):
    """What measures samples; trains the data set's classifier if there is none yet."""
    return Judge(load(dataset), SAMPLES)


def dataset_option(function):
    """--dataset, for a click command."""
    names = click.Choice(["drawn-digits", "mnist", "fashion-mnist", "kmnist"])
    return click.option("--dataset", type=names, default="drawn-digits", help="What to learn.")(function)


def heading(logs, dataset):
    """What stands above a table of distances."""
    seeds = len({run["seed"] for run, _ in logs})
    net, floor = judge(dataset).classifier, judge(dataset).floor()["frechet"]
    return (
        f"{dataset}: Frechet distance of {SAMPLES} samples ({SAMPLES} real images: {floor:.1f}); accuracy of the class "
        f"asked for;\nclassifier {net.hash}, {100 * net.accuracy:.1f} % right on test images; "
        f"mean ± standard deviation over {seeds} seeds\n\n"
    )


def start(dataset, spectral_norm, d_steps, lr_g, lr_d, seed, steps):
    """The Training of a run: width 8, batch 32, attention at 16x16, queries of C/8; the rest is Config's."""
    digits = load(dataset)
    arch = Architecture(
        size=digits.size,
        channels=digits.channels,
        classes=len(digits.classes),
        width=8,
        spectral_norm=spectral_norm,
        attention_key=8,
    )
    config = Config(
        dataset, steps=steps, batch_size=32, seed=seed, d_steps=d_steps, lr_g=lr_g, lr_d=lr_d, architecture=arch
    )
    return Training(config, digits)


def train(dataset, spectral_norm, d_steps, lr_g, lr_d, seed, steps):
    """The log of one run, COLUMNS with a value after each tenth of its steps.

    seconds are CPU seconds of training; distance and accuracy the averaged generator's; the norms of gradients means
    over the steps since the row before. After a divergence there are no values (null).
    """
    training, clock = start(dataset, spectral_norm, d_steps, lr_g, lr_d, seed, steps), Clock()
    every, rows, norms = -(-steps // MEASUREMENTS), [], []
    try:
        while training.step < steps:
            with clock:
                training.advance()
            norms.append([np.linalg.norm(adam.g) for adam in (training.adam_g, training.adam_d)])
            if training.step % every == 0 or training.step == steps:
                grad_g, grad_d = np.mean(norms, axis=0)
                rows.append(
                    {"step": training.step, "seconds": clock.seconds}
                    | distance(training, dataset)
                    | {"grad_g": grad_g, "grad_d": grad_d, "sigma_g": sigma(training.G), "sigma_d": sigma(training.D)}
                )
                norms.clear()
    except Diverged:
        missing = range(every * (len(rows) + 1), steps + 1, every)
        rows += [dict.fromkeys(COLUMNS, np.nan) | {"step": step, "seconds": clock.seconds} for step in missing]
    return {name: [rounded(row[name]) for row in rows] for name in COLUMNS}


def distance(training, dataset):
    """{"distance", "accuracy"} of SAMPLES samples, classes in turn."""
    config, digits = training.config, training.dataset
    classes = range(config.architecture.classes)
    images, labels = draw(training.sampler(), SAMPLES, classes, config.seed, digits.image_size)
    found = judge(dataset).measure(images, labels)
    return {"distance": found["frechet"], "accuracy": found["accuracy"]}


def sigma(net):
    """The geometric mean over a network's layers of the largest singular value of W, by a full decomposition."""
    values = [
        np.linalg.norm(layer.w.data.reshape(-1, layer.w.shape[-1]), 2)
        for layer in net.modules(nn.Layer)
    ]
    return np.exp(np.mean(np.log(values)))
