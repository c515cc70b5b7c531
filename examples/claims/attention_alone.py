"""Claim 1, first half: does attention help a discriminator to see what is far apart (SAGAN sec. 3)? D alone, no GAN.

    python examples/claims/attention_alone.py             # two seeds; prints its time budget; a stop loses nothing done
    python examples/claims/attention_alone.py --full      # the ten seeds of examples/claims/README.md

D learns to tell images whose four discs have one shade from such whose discs have one each (discs.py), by the hinge
loss, every image new. What counts is 1 - AUC on 2,048 unseen images of each kind: how often a mismatched image gets the
higher score. The second question is where the attention of a point on a disc falls: on the other discs, more than their
share of the area? (If it falls on all discs alike, the others have three times what its own has.)

The networks have width 8 and are otherwise the same: without attention; with a residual block of no fewer weights than
attention has (the paper's control); with official attention, whose queries and keys have 8 numbers, as by default; and
with the paper's C/8, which is a single number here. Attention is at 16x16, where a feature sees 6 pixels of the image
in each direction: too few to see two discs. Features at 8x8 see 16, those at 4x4 36. So no network is unable to solve
the task, and the question is the paper's: does attention make it easier?
"""

from unittest import mock

import discs
import numpy as np
from common import Clock, budget, carry_out, chosen, command, mean_std, permutation_p, publish, rounded, series, table
from control import ResidualBlock

from minisagan import models, nn, ops
from minisagan.autograd import no_tape
from minisagan.config import Architecture
from minisagan.init import Init
from minisagan.look import attention_maps, pictures, plot
from minisagan.models import Discriminator
from minisagan.optim import Adam
from minisagan.train import descend

NAMES = {"none": "no attention", "residual": "residual block", "narrow": "attention, C/8 = 1",
         "official": "attention, 8 numbers"}
WIDTH, LEVEL, BATCH = 8, 16, 32  # BATCH: of images of each kind
SETTING = {"count": 4, "apart": 9, "steps": 450, "rate": 1.6e-3}  # discs, pixels, steps of D, Adam's rate at first
MEASUREMENTS, TESTED = 6, 2048
COLUMNS = {"gamma": 2, "own": 3, "others": 3, "others_share": 3}  # of the table, beside 1 - AUC: digits
TEST_SEED, MAPS_SEED, MAPS, SHOWN = [0, 2**32 - 1], [1, 2**32 - 1], 256, 4  # MAPS: images measured, SHOWN: drawn


class Alone:
    """D learning to tell discs of one shade from discs of one each. `advance` makes a step."""

    def __init__(self, kind, count, apart, seed, steps, rate):
        level, key = None if kind == "none" else LEVEL, 8 if kind == "narrow" else None
        with mock.patch.object(models, "SelfAttention", ResidualBlock if kind == "residual" else nn.SelfAttention):
            self.D = Discriminator(Architecture(width=WIDTH, classes=0, attention=level, attention_key=key), Init(seed))
        self.adam = Adam(self.D.parameters(), rate, steps=steps, fall=0.5)
        self.count, self.apart, self.seed, self.steps, self.step = count, apart, seed, steps, 0

    def advance(self):
        both = [self.images(BATCH, [self.seed, self.step], same)[0] for same in (True, False)]
        self.D.train()
        descend(ops.hinge_discriminator(self.D(discs.inputs(np.concatenate(both)))), self.D, self.adam)
        self.step += 1

    def images(self, count, seed, same=True):
        return discs.draw(count, self.count, self.apart, seed, same)

    def scores(self, images):
        """D's of uint8 (N, 32, 32, 1): (N,)."""
        with no_tape():
            return np.concatenate([self.D.eval()(discs.inputs(part)).data for part in np.split(images, 16)])

    def maps(self, count):
        """Of new real images: images, their discs' middles (count, discs, 2), where each looks (count, discs, 8, 8)."""
        images, places, _ = self.images(count, MAPS_SEED)
        _, x, _ = attention_maps.look(self.D.eval(), discs.inputs(images), None)
        seen = attention_maps.maps(self.D.attention, x, np.rint(places).astype(int), discs.SIZE, discs.SIZE)
        return images, places, seen


def train(**run):
    """The log of one run: 1 - AUC after each of MEASUREMENTS parts of the steps; and gamma, and what the map of a disc
    falls on at the end. Nothing that is tested was learned from."""
    training, clock, every = Alone(**run), Clock(), max(1, run["steps"] // MEASUREMENTS)
    real, fake = (training.images(TESTED, TEST_SEED, same)[0] for same in (True, False))
    log = {"parameters": training.adam.weights.size, "step": [], "seconds": [], "lack": []}
    while training.step < run["steps"]:
        with clock:
            training.advance()
        if training.step % every == 0 or training.step == run["steps"]:
            log["step"].append(training.step)
            log["seconds"].append(rounded(clock.seconds))
            log["lack"].append(rounded(1 - discs.auc(training.scores(real), training.scores(fake))))
    if run["kind"] != "none":
        log["gamma"] = rounded(training.D.attention.gamma.data)
    if run["kind"] in ("narrow", "official"):
        log |= falling(*training.maps(MAPS)[1:])
    return log


def falling(places, maps):
    """What the maps (N, discs, h, w) of discs at these places fall on, means: {"own", "others", "others_share"}.

    others_share is what `others` would be if a map were the same everywhere.
    """
    level, found = np.full(maps.shape[2:], 1 / maps[0, 0].size), []
    for at, of_image in zip(places, maps, strict=True):
        for k, seen in enumerate(of_image):
            others = np.delete(at, k, axis=0)
            found.append([discs.falls_on(*pair) for pair in ((seen, at[k : k + 1]), (seen, others), (level, others))])
    return {name: rounded(x) for name, x in zip(("own", "others", "others_share"), np.mean(found, 0), strict=True)}


def plan(full, quick):
    """The runs, as arguments of `train`."""
    setting = SETTING | ({"steps": 2} if quick else {})
    return [{"kind": kind, **setting, "seed": seed} for seed in range(10 if full else 2) for kind in NAMES]


def report(logs):
    """The table, as text, and the picture of 1 - AUC over the steps."""
    found = {kind: chosen(logs, kind=kind) for kind in NAMES}
    last = {kind: [log["lack"][-1] for log in found[kind]] for kind in NAMES}
    rows = []
    for kind, these in found.items():
        ms = [1000 * log["seconds"][-1] / log["step"][-1] for log in these]
        of = lambda name, digits, these=these: mean_std([abs(log[name]) for log in these if name in log], digits)
        cells = [of(name, digits) if name in these[0] else "" for name, digits in COLUMNS.items()]
        rows.append([NAMES[kind], f"{these[0]['parameters']:,}", mean_std(ms, 0), mean_std(last[kind], 4), *cells])
    differences = []
    for pair in ("official none", "official residual", "official narrow", "narrow none", "residual none"):
        a, b = pair.split()
        p = permutation_p(last[a], last[b])
        apart = f"{np.mean(last[a]) - np.mean(last[b]):+.4f}"
        differences.append([f"{NAMES[a]} - {NAMES[b]}", apart, f"{p:.3f}"])
    run = logs[0][0]
    text = (
        f"D alone: {run['count']} discs, {run['apart']} pixels apart or more, {run['steps']} steps; mean ± standard "
        f"deviation over {len(found['none'])} seeds\n\n"
    )
    header = ["", "weights", "ms/step", "1 - AUC", "|gamma|", "map: own disc", "other discs", "their area"]
    text += table(header, rows) + "\nDifferences of 1 - AUC, with p of an exact permutation test over seeds\n\n"
    text += table(["", "difference", "p"], differences)
    lines = [series(NAMES[kind], these, "step", "lack", True) for kind, these in found.items()]
    panel = plot.Panel("D alone", "step of D", "log10 of 1 - AUC", lines)
    return text, plot.plot([panel], columns=1, width=900, height=380)


def maps_picture(logs):
    """Where discs look in that run with attention whose maps fall on the others most, which is trained once more."""
    run, _ = max((row for row in logs if row[0]["kind"] == "official"), key=lambda row: row[1]["others"])
    training = Alone(**run)
    while training.step < run["steps"]:
        training.advance()
    return attention_maps.draw(*training.maps(SHOWN), discs.SIZE)


@command
def main(jobs, full, quick, out):
    """Does attention help D to see that distant discs have one shade?"""
    runs = plan(full, quick)
    budget(Alone, runs, jobs)
    logs = carry_out(train, runs, out / "attention_alone.jsonl", jobs)
    publish(out / "attention_alone", *report(logs))
    pictures.write_png(out / "attention_maps.png", maps_picture(logs))


if __name__ == "__main__":
    main()
