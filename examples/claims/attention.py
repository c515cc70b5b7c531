"""Claim 1, second half: attention captures long-range dependencies (SAGAN sec. 3 and table 1), in a GAN, in miniature.

    python examples/claims/attention.py             # prints its time budget, then runs; a stop loses nothing finished
    python examples/claims/attention.py --full      # also the paper's C/8, a single number here, and the paper's form

A real image has discs of one shade, at random places far apart (discs.py). A generator has learned that when the discs
of *its* images have one shade, and that is measured: discs are found in its images, and their shades compared.

Three networks, otherwise the same: without attention; with a residual block of no fewer weights in its place (the
paper's control, control.py); and with official attention, whose queries and keys have 8 numbers, as by default. With
four discs also with attention in D alone, and in G alone, which tells whose attention it is that helps. All are
unconditional, of width 8. Attention and the block are at 16x16 in both networks. D's features see 6 pixels there, too
few for two discs, and 16 at 8x8, 36 at 4x4; G's discs all come from one z through 4x4, where all sees all. So no
network is unable to solve the task, and the question is the paper's: does attention make it easier?

The rates fall to 0 in the second half, as by default for digits, and D sees one image at a time. The setting was chosen
with seed 100, which is not among those measured, and by the network without attention: its images should be legible,
and it should know the shades half by the end, so that both better and worse can show. After 1,500 steps it had 0.56
above chance with four discs, and 0.51 with two, in a run of 2,000. With half these rates a quarter of its images of
four discs were legible in place of half; three discs, 12 apart, were too easy (0.97); and pairs of images for D
(PacGAN) slow it down.
"""

from dataclasses import replace
from functools import cache
from unittest import mock

import discs
import numpy as np
from common import Clock, budget, carry_out, chosen, command, mean_std, permutation_p, publish, rounded, series, table
from control import ResidualBlock

from minisagan import data, models, nn, rng
from minisagan import train as train_module
from minisagan.config import Architecture, Config
from minisagan.look import plot
from minisagan.sampling import generate

NAMES = {"none": "no attention", "residual": "residual block", "official": "attention, 8 numbers",
         "in_d": "attention in D alone", "in_g": "attention in G alone", "narrow": "attention, C/8",
         "paper": "paper's attention"}
PLAIN = {"in_d": "Generator", "in_g": "Discriminator"}  # the network that has no attention
BESIDE = {"none": [], "residual": ["none"], "in_d": ["none", "official"], "in_g": ["none", "official"]}
MEASURED = ("legible", "consistent", "above_chance")
WIDTH, LEVEL, BATCH, STEPS = 8, 16, 32, 1500
RATES = {"lr_g": 8e-4, "lr_d": 1.6e-3}
SETTINGS = ((4, 9), (2, 18))  # discs, and how far apart they are at least, in pixels
IMAGES, SAMPLES, MEASUREMENTS = 8192, 1024, 10


@cache
def dataset(count, apart):
    """What the networks learn from: `count` discs of one shade, `apart` pixels from each other or more."""
    images, _, _ = discs.draw(IMAGES, count, apart, seed=0)
    return data.Dataset(f"{count} discs", images, np.zeros(len(images), np.int64), ("discs",), {})


def start(kind, count, apart, seed, steps):
    """A Training of one of NAMES' kinds on discs."""
    arch = Architecture(
        width=WIDTH,
        classes=0,
        attention=None if kind == "none" else LEVEL,
        attention_form="paper" if kind == "paper" else "official",
        attention_key=8 if kind == "narrow" else None,
    )
    config = Config("discs", steps=steps, batch_size=BATCH, seed=seed, fall=0.5, **RATES, architecture=arch)
    block = ResidualBlock if kind == "residual" else nn.SelfAttention
    networks = {"Generator": models.Generator, "Discriminator": models.Discriminator}
    if kind in PLAIN:
        network = networks[PLAIN[kind]]
        networks[PLAIN[kind]] = lambda arch, init: network(replace(arch, attention=None), init)
    with mock.patch.object(models, "SelfAttention", block), mock.patch.multiple(train_module, **networks):
        return train_module.Training(config, dataset(count, apart))


def train(kind, count, apart, seed, steps):
    """The log of one run: the measurements of SAMPLES images of the averaged generator after each tenth of its steps,
    and, where there is a block, its gammas, and the last measurements of the same latents without G's."""
    training, clock, every = start(kind, count, apart, seed, steps), Clock(), max(1, steps // MEASUREMENTS)
    z = rng.normal((SAMPLES, training.config.architecture.latent), seed, rng.Stream.SAMPLE_Z, 0)
    log = {"parameters": [training.adam_g.weights.size, training.adam_d.weights.size]}

    def measured():
        return discs.measure(data.to_uint8(generate(training.sampler(), z, None), discs.SIZE), count)

    while training.step < steps:
        with clock:
            training.advance()
        if training.step % every == 0 or training.step == steps:
            row = {"step": training.step, "seconds": clock.seconds} | measured()
            for name, network in (("gamma_g", training.G), ("gamma_d", training.D)):
                if hasattr(network, "attention"):
                    row[name] = network.attention.gamma.data
            for name, value in row.items():
                log.setdefault(name, []).append(rounded(value))
    if hasattr(training.G, "attention"):
        training.sampler().attention.gamma.data[...] = 0
        log["without_gamma"] = {name: rounded(value) for name, value in measured().items()}
    return log


def plan(full, quick):
    """The runs, as arguments of `train`."""
    return [
        {"kind": kind, "count": count, "apart": apart, "seed": seed, "steps": 2 if quick else STEPS}
        for seed in range(2 if quick else 5)
        for count, apart in (SETTINGS[:1] if quick else SETTINGS)
        for kind in (list(NAMES) if full else list(NAMES)[: 5 if (count, apart) == SETTINGS[0] else 3])
    ]


def report(logs):
    """The table, as text, and the picture."""
    settings = list(dict.fromkeys((run["count"], run["apart"], run["kind"]) for run, _ in logs))
    settings.sort(key=lambda s: (SETTINGS.index(s[:2]), list(NAMES).index(s[2])))
    found = {s: chosen(logs, count=s[0], apart=s[1], kind=s[2]) for s in settings}
    label = lambda s: f"{s[0]} discs, {s[1]} apart"
    last = lambda s, name: [log[name][-1] for log in found[s]]
    rows, differences = [], []
    for s in settings:
        count, apart, kind = s
        G, D = found[s][0]["parameters"]
        ms = [1000 * log["seconds"][-1] / log["step"][-1] for log in found[s]]
        of_g, of_d = (
            mean_std([abs(gamma) for gamma in last(s, name)]) if name in found[s][0] else ""
            for name in ("gamma_g", "gamma_d")
        )
        without = [log["without_gamma"] for log in found[s] if "without_gamma" in log]
        without = [measured["above_chance"] for measured in without if measured["legible"]]
        block = of_g, of_d, mean_std(without) if without else ""
        rows.append([
            label(s), NAMES[kind], f"{G:,} + {D:,}", mean_std(ms, 0), *(mean_std(last(s, name)) for name in MEASURED),
            *block,
        ])
        for other in BESIDE.get(kind, ["none", "residual"]):
            a, b = last(s, "above_chance"), last((count, apart, other), "above_chance")
            difference = f"{np.mean(a) - np.mean(b):+.2f}"
            differences.append([label(s), f"{NAMES[kind]} - {NAMES[other]}", difference, f"{permutation_p(a, b):.3f}"])
    steps = logs[0][0]["steps"]
    text = f"After {steps} steps; mean ± standard deviation over {len(found[settings[0]])} seeds\n\n"
    header = ["", "", "weights G + D", "ms/step", "legible", "consistent", "above chance", "|gamma| G", "D", "gamma 0"]
    text += table(header, rows)
    text += "\ngamma 0: above chance, without the block; of the runs whose images of these latents are legible then\n"
    text += "\nDifferences of 'above chance', with p of an exact permutation test over seeds\n\n"
    text += table(["", "", "difference", "p"], differences)
    panels = [
        plot.Panel(title, "training step", unit, [series(NAMES[s[2]], found[s], "step", name) for s in these])
        for these in ([s for s in settings if s[:2] == setting] for setting in dict.fromkeys(s[:2] for s in settings))
        for title, name, unit in (
            (label(these[0]), "legible", "legible images"),
            (label(these[0]), "above_chance", "agreement above chance"),
        )
    ]
    return text, plot.plot(panels, columns=2, width=1400, height=340)


@command
def main(jobs, full, quick, out):
    """Do the discs of a generated image agree, with attention and without?"""
    runs = plan(full, quick)
    budget(start, runs, jobs)
    publish(out / "attention", *report(carry_out(train, runs, out / "attention.jsonl", jobs)))


if __name__ == "__main__":
    main()
