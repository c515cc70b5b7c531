"""Claim 1: attention captures long-range dependencies (SAGAN sec. 3 and table 1), in miniature.

    python examples/claims/attention.py             # prints its time budget, then runs; a stop loses nothing finished
    python examples/claims/attention.py --full      # more distances, levels, the paper's form, a large residual block

An image has two pairs of bars, one above the other. The two bars of a pair, left and right, have one angle, uniform in
[0, 180) degrees; the pairs' angles are independent, and so are each bar's jitter and brightness, and the noise. A
generator has learned the dependency when the bars of *its* pairs have one angle, and that is measured: each bar is
compared with templates at 36 angles and 25 places.

    legible      both bars match a template with a correlation above 0.8
    consistent   legible, and the angles differ by 15 degrees or less
    above chance (a - c) / (1 - c): a the share of consistent among legible pairs, c the same share when left bars are
                 put together with all the pairs' right bars: a generator of few angles gains nothing by that

All real pairs are consistent; with independent angles 31 / 180 = 17 % are.

Three networks, otherwise the same: without attention; with a residual block of *exactly* as many weights,
y = x + gamma conv1x1(relu(conv3x3(relu(x)))), C/8 channels inside (the paper's control: 9 C^2 / 8 + C^2 / 8 = 5 C^2 / 4
weights and gamma, as official attention has); and with official attention. All are unconditional.

What this can show. Of D's features, those at 16x16 see 6 pixels of the image in each direction, those at 8x8 16, those
at 4x4 36, and the last block's all of it. Bars of a pair 20 apart leave a gap of at least 10 pixels, and 17 if they
stand upright: nothing before 4x4 can compare them, but attention at 16x16 can; and the bar of the other pair, 15 away,
is nearer. Bars 12 apart almost touch when they lie. G's bars all come from one z through 4x4, where everything sees
everything. So no network here is unable to solve the task, and the question is the paper's: does attention make it
easier, and more so for what is far apart? With 32x32 pixels, 8 to 16 channels where attention is, and 1000 steps,
gamma has hardly left 0 when a run ends, and a null result says little about 128x128 with 256 channels and a million
steps. Neither would a positive one.

The settings were chosen with seed 100, which is not among those measured, and by the network without attention: it
should know the angles half by the end of a run, so that both better and worse can show (0.54 above chance, bars 20
apart). Line-drawn glyphs (8 of 7x7 pixels) and patterns of 3x3 cells were tried first: in 800 to 1000 steps they did
not become legible, with attention or without. One pair in an image was too easy: 0.68 above chance with attention and
without. Bars at any height were too hard: 0.0 with attention after 1200 steps.
"""

import itertools
from functools import cache
from unittest import mock

import numpy as np
from common import Clock, budget, carry_out, chosen, command, mean_std, permutation_p, publish, rounded, series, table

from minisagan import data, models, nn, ops, rng
from minisagan.config import Architecture, Config
from minisagan.look import plot
from minisagan.sampling import generate
from minisagan.train import Training

SIZE, ROWS_APART, HALF_LENGTH, HALF_WIDTH, JITTER = 32, 15, 4.8, 1.6, 1  # pixels
ANGLES, REACH, WINDOW = 36, 2, 13  # of the decoder: templates, pixels about a bar's place, side of a template
LEGIBLE, SAME = 0.8, 15  # correlation, degrees
CHANCE = 31 / 180
IMAGES, SAMPLES, EVERY = 8192, 512, 100

NAMES = {"none": "no attention", "residual": "residual block", "official": "official attention",
         "paper": "paper's attention", "large": "large residual block"}


# The data set, and what a generated image is worth.


def bar(theta, x, y, side=SIZE):
    """White bars on black with round ends: angles, middles (N,) -> float32 (N, side, side) in [0, 1]."""
    theta, x, y = (np.asarray(a, np.float32)[:, None, None] for a in (theta, x, y))
    dy, dx = np.mgrid[:side, :side].astype(np.float32)[:, None] - np.stack([y, x])  # (N, side, side)
    along = np.maximum(abs(dx * np.cos(theta) + dy * np.sin(theta)) - (HALF_LENGTH - HALF_WIDTH), 0)
    across = dy * np.cos(theta) - dx * np.sin(theta)
    return np.clip(0.5 + (HALF_WIDTH - np.hypot(along, across)) / 1.4, 0, 1)


def places(distance):
    """The middles of all bars without jitter, (row, side) -> (y, x): two pairs, of a left and a right bar each."""
    middle = (SIZE - 1) / 2
    return {(row, side): (middle + (row - 0.5) * ROWS_APART, middle + (side - 0.5) * distance) for row, side in
            itertools.product((0, 1), (0, 1))}


def draw_pairs(count, distance, seed, same=True):
    """Images uint8 (count, 32, 32, 1) and their angles (count, 2, 2) by row and side (same=False: independent)."""
    r = np.random.default_rng([seed, distance])
    theta = np.pi * r.random((count, 2, 2), np.float32)
    if same:
        theta[:, :, 1] = theta[:, :, 0]
    images = 0.05 * abs(r.standard_normal((count, SIZE, SIZE), np.float32))
    for (row, side), (y, x) in places(distance).items():
        dx, dy = r.uniform(-JITTER, JITTER, (2, count))
        images += r.uniform(0.8, 1, (count, 1, 1)) * bar(theta[:, row, side], x + dx, y + dy)
    return np.rint(255 * np.clip(images, 0, 1)).astype(np.uint8)[..., None], theta


def decode(images, distance):
    """The angles of the bars in uint8 (N, 32, 32, 1), and how well they match: (N, 2, 2) each, by row and side."""
    grid = np.pi / ANGLES * np.arange(ANGLES)
    templates = _normed(bar(grid, *np.full((2, ANGLES), WINDOW // 2), WINDOW))  # (ANGLES, WINDOW, WINDOW)
    padded = np.pad(images[..., 0] / np.float32(255), ((0, 0), (4, 4), (4, 4)))
    angles, scores = np.empty((2, len(images), 2, 2))
    for (row, side), place in places(distance).items():
        y, x = (slice((low := round(at) + 4 - WINDOW // 2 - REACH), low + WINDOW + 2 * REACH) for at in place)
        windows = np.lib.stride_tricks.sliding_window_view(padded[:, y, x], (WINDOW, WINDOW), (1, 2))
        match = _normed(windows).reshape(len(images), -1, WINDOW**2) @ templates.reshape(ANGLES, -1).T
        match = match.max(1)  # over places: (N, ANGLES)
        angles[:, row, side], scores[:, row, side] = grid[match.argmax(1)], match.max(1)
    return angles, scores


def _normed(x):
    """Windows (..., h, w) with mean 0 and norm 1; those that are almost empty stay small."""
    x = x - x.mean((-1, -2), keepdims=True)
    return x / np.maximum(np.sqrt((x * x).sum((-1, -2), keepdims=True)), 1)


def apart(a, b):
    """The angle between two lines, in degrees from 0 to 90, from their angles, which differ by pi at most."""
    d = np.degrees(abs(a - b))
    return np.minimum(d, 180 - d)


def measure(images, distance):
    """{"legible", "consistent", "above_chance"}: the docstring's shares of these images' pairs."""
    angles, scores = (a.reshape(-1, 2) for a in decode(images, distance))  # (pairs, 2)
    legible = (scores > LEGIBLE).all(1)
    left, right = angles[legible].T
    same = apart(left, right) <= SAME
    found = {"legible": legible.mean(), "consistent": same.sum() / len(angles), "above_chance": 0.0}
    if legible.any():
        chance = (apart(left[:, None], right) <= SAME).mean()
        found["above_chance"] = (same.mean() - chance) / (1 - chance) if chance < 1 else 0.0
    return {name: float(value) for name, value in found.items()}


# The networks.


class ResidualBlock(nn.Module):
    """y = x + gamma conv1x1(relu(conv3x3(relu(x)))), `inside` channels between; by default as many weights as official
    attention has. It takes SelfAttention's place, with its arguments."""

    def __init__(self, init, channels, form="official", spectral=True, key=8, inside=None):
        inside = inside or channels // 8
        self.conv1 = nn.Conv(init, channels, inside, bias=False, spectral=spectral)
        self.conv2 = nn.Conv(init, inside, channels, kernel=1, bias=False, spectral=spectral)
        self.gamma = init.constant((), 0)

    def __call__(self, x):
        return x + self.gamma * self.conv2(ops.relu(self.conv1(ops.relu(x))))


class LargeResidualBlock(ResidualBlock):
    """With all channels inside: eight times the weights."""

    def __init__(self, init, channels, form="official", spectral=True, key=8):
        super().__init__(init, channels, form, spectral, key, inside=channels)


@cache
def dataset(distance):
    """What the networks learn from."""
    images, _ = draw_pairs(IMAGES, distance, seed=0)
    return data.Dataset(f"bars {distance} apart", images, np.zeros(len(images), np.int64), ("pair",), {})


def start(kind, distance, level, seed, steps):
    """A Training of one of NAMES' kinds on pairs of bars."""
    layer = {"residual": ResidualBlock, "large": LargeResidualBlock}.get(kind, nn.SelfAttention)
    form = "paper" if kind == "paper" else "official"
    level = None if kind == "none" else level
    arch = Architecture(width=8, classes=0, attention=level, attention_form=form, attention_key=8)
    with mock.patch.object(models, "SelfAttention", layer):
        rates = {"lr_g": 4e-4, "lr_d": 8e-4}
        config = Config("bars", steps=steps, batch_size=32, seed=seed, **rates, architecture=arch)
        return Training(config, dataset(distance))


def train(kind, distance, level, seed, steps):
    """The log of one run: its measurements every EVERY steps, on SAMPLES images of the averaged generator."""
    training, clock = start(kind, distance, level, seed, steps), Clock()
    z = rng.normal((SAMPLES, training.config.architecture.latent), seed, rng.Stream.SAMPLE_Z, 0)
    log = {"parameters": [training.adam_g.weights.size, training.adam_d.weights.size]}

    def samples():
        return data.to_uint8(generate(training.sampler(), z, None), SIZE)

    def note(**values):
        for name, value in values.items():
            log.setdefault(name, []).append(rounded(value))

    while training.step < steps:
        with clock:
            training.advance()
        if training.step % EVERY == 0 or training.step == steps:
            note(step=training.step, seconds=clock.seconds, **measure(samples(), distance))
            if kind != "none":
                note(gamma_g=training.G.attention.gamma.data, gamma_d=training.D.attention.gamma.data)
    if kind != "none":  # what does the block do for G at the end? The same latents without it
        training.sampler().attention.gamma.data[...] = 0
        log["without_gamma"] = {name: rounded(value) for name, value in measure(samples(), distance).items()}
    return log


# What is run, and what comes of it.


def plan(full, quick):
    """The runs, as arguments of `train`."""
    steps, seeds = (2, 2) if quick else (1000, 5)
    distances = (20,) if quick else (12, 20)
    settings = [(kind, distance, 16) for distance in distances for kind in ("none", "residual", "official")]
    if full:
        settings += [(kind, 16, 16) for kind in ("none", "residual", "official")]
        settings += [(kind, distance, level) for distance in (12, 16, 20) for kind, level in
                     (("paper", 16), ("large", 16), ("residual", 8), ("official", 8))]
    return [
        {"kind": kind, "distance": distance, "level": level, "seed": seed, "steps": steps}
        for seed in range(seeds)
        for kind, distance, level in settings
    ]


def report(logs):
    """The table, as text, and the picture."""
    settings = sorted({(r["distance"], r["level"], list(NAMES).index(r["kind"])) for r, _ in logs}, reverse=True)
    settings = [(list(NAMES)[k], distance, level) for distance, level, k in settings[::-1]]
    found = {s: chosen(logs, kind=s[0], distance=s[1], level=s[2]) for s in settings}
    last = lambda s, name: [log[name][-1] for log in found[s]]
    rows, differences = [], []
    for s in settings:
        kind, distance, level = s
        G, D = found[s][0]["parameters"]
        ms = [1000 * log["seconds"][-1] / log["step"][-1] for log in found[s]]
        off = [log["without_gamma"]["consistent"] for log in found[s] if kind != "none"]
        rows.append([
            NAMES[kind], distance, "" if kind == "none" else level, f"{G:,} + {D:,}", mean_std(ms, 0),
            *(mean_std(last(s, name)) for name in ("legible", "consistent", "above_chance")),
            mean_std(off) if off else "",
        ])
        if kind not in ("none", "residual"):
            for other in (("none", distance, 16), ("residual", distance, level)):
                if other in found:
                    a, b = last(s, "above_chance"), last(other, "above_chance")
                    differences.append([
                        f"{NAMES[kind]} at {level} - {NAMES[other[0]]}", distance,
                        f"{np.mean(a) - np.mean(b):+.2f}", f"{permutation_p(a, b):.3f}",
                    ])
    first = logs[0][1]
    text = f"After {first['step'][-1]:.0f} steps; mean ± standard deviation over {len(found[settings[0]])} seeds\n\n"
    header = ["", "distance", "level", "weights G + D", "ms/step", "legible", "consistent", "above chance", "gamma = 0"]
    text += table(header, rows)
    text += "\nDifferences of 'above chance', with p of an exact permutation test over seeds\n\n"
    text += table(["", "distance", "difference", "p"], differences)
    panels = []
    for distance in sorted({s[1] for s in settings}):
        for name, label in (("consistent", "consistent pairs"), ("above_chance", "agreement above chance")):
            lines = [
                series(NAMES[s[0]] + (f" at {s[2]}" if s[2] != 16 else ""), found[s], "step", name)
                for s in settings if s[1] == distance
            ]
            xs = first["step"]
            floor = CHANCE if name == "consistent" else 0.0
            lines.append(("chance", xs, [floor] * len(xs)))
            panels.append(plot.Panel(f"Bars {distance} apart", "training step", label, lines))
    return text, plot.plot(panels, columns=2, width=1400, height=340)


@command
def main(jobs, full, quick, out):
    """Do the bars of a generated pair agree, with attention and without?"""
    runs = plan(full, quick)
    budget(start, runs, jobs)
    publish(out / "attention", *report(carry_out(train, runs, out / "attention.jsonl", jobs)))


if __name__ == "__main__":
    main()
