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

SAMPLES, MEASUREMENTS = 500, 20
COLUMNS = (
    "step", "seconds", "distance", "accuracy", "recall", "grad_g", "grad_d", "sigma_g", "sigma_d", "largest_g",
    "largest_d",
)  # fmt: skip


load = cache(data.load)


@cache
def judge(dataset):
    """What measures samples; trains the data set's classifier if there is none yet."""
    return Judge(load(dataset), SAMPLES)


def dataset_option(function):
    """--dataset, for a click command."""
    names = click.Choice(["drawn-digits", "mnist", "fashion-mnist", "kmnist"])
    return click.option("--dataset", type=names, default="mnist", help="What to learn.")(function)


def heading(logs, dataset):
    """What stands above a table of distances."""
    alike = lambda run: sum(run | {"seed": 0} == other | {"seed": 0} for other, _ in logs)
    seeds = sorted({alike(run) for run, _ in logs})
    over = "one seed" if seeds == [1] else f"mean ± standard deviation over {' or '.join(map(str, seeds))} seeds"
    net, floor = judge(dataset).classifier, judge(dataset).floor()["frechet"]
    return (
        f"{dataset}: Frechet distance of {SAMPLES} samples ({SAMPLES} real images: {floor:.1f}); accuracy of the class "
        f"asked for;\nclassifier {net.hash}, {100 * net.accuracy:.1f} % right on test images; "
        f"{over}\n\n"
    )


def start(dataset, seed, steps, pack, spectral_norm, **rates):
    """The Training of a run: width 8, batch 32; `rates` are lr_g, lr_d, beta2, fall and d_steps; the rest is usual."""
    digits = load(dataset)
    arch = Architecture(
        size=digits.size,
        channels=digits.channels,
        classes=len(digits.classes),
        width=8,
        pack=pack,
        spectral_norm=spectral_norm,
    )
    return Training(Config(dataset, steps=steps, batch_size=32, seed=seed, architecture=arch, **rates), digits)


def train(**run):
    """The log of one run, the arguments of `start`: COLUMNS with a value after each twentieth of its steps.

    seconds are CPU seconds of training; distance, accuracy and recall the averaged generator's; the norms of gradients
    means over the steps since the row before; sigma the geometric mean over layers of the largest singular value of W,
    as it is stored, and largest that of the layer where it is largest. After a divergence there are no values (null).
    """
    training, clock, steps = start(**run), Clock(), run["steps"]
    every, rows, norms = -(-steps // MEASUREMENTS), [], []
    try:
        while training.step < steps:
            with clock:
                training.advance()
            norms.append([np.linalg.norm(adam.g) for adam in (training.adam_g, training.adam_d)])
            if training.step % every == 0 or training.step == steps:
                rows.append({"step": training.step, "seconds": clock.seconds} | distance(training, run["dataset"]))
                for net, norm in zip("gd", np.mean(norms, axis=0), strict=True):
                    found = sigmas(getattr(training, net.upper()))
                    middle = np.exp(np.mean(np.log(found)))
                    rows[-1] |= {f"grad_{net}": norm, f"sigma_{net}": middle, f"largest_{net}": max(found)}
                norms.clear()
    except Diverged:
        missing = [*range(every * (len(rows) + 1), steps, every), steps]
        rows += [dict.fromkeys(COLUMNS, np.nan) | {"step": step, "seconds": clock.seconds} for step in missing]
    return {name: [rounded(row[name]) for row in rows] for name in COLUMNS}


def distance(training, dataset):
    """{"distance", "accuracy", "recall"} of SAMPLES samples, classes in turn."""
    config, digits = training.config, training.dataset
    classes = range(config.architecture.classes)
    images, labels = draw(training.sampler(), SAMPLES, classes, config.seed, digits.image_size)
    found = judge(dataset).measure(images, labels)
    return {"distance": found["frechet"], "accuracy": found["accuracy"], "recall": found["recall"]}


def sigmas(net):
    """The largest singular value of each layer's W, by a full decomposition."""
    return [np.linalg.norm(layer.w.data.reshape(-1, layer.w.shape[-1]), 2) for layer in net.modules(nn.Layer)]
