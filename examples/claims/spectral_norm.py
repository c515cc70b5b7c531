"""Claim 2: spectral norm in both networks stabilises training (SAGAN sec. 4.1 and figure 3), in miniature.

    python examples/claims/spectral_norm.py                            # on MNIST, which is downloaded
    python examples/claims/spectral_norm.py --dataset drawn-digits     # nothing to download
    python examples/claims/spectral_norm.py --full                     # three seeds of each, and no norm at all

Two arms, otherwise the same, at one D step for each G step: spectral norm in D only, and in G and D. Each at 1, 2, 4
and 8 times Config's learning rates, G 4e-4 and D 1.6e-3, which are in the paper's ratio and do not fall, and at equal
rates, as the paper compares the two (its rates are 1e-4 and 4e-4 only after that): the geometric mean of those times 4.
beta2 is the paper's 0.9, and D sees one image at a time, as there. A run makes 5,000 steps, in 6 to 11 CPU-minutes; so
only where both arms learn, and one may collapse, there are two seeds.

A run has *collapsed* at a step if from there to the end, for two measurements or more, it stands still (G's gradient
has a norm below 0.01; 0.2 to 20 are usual) or is undone (every distance is more than twice the least before); a loss
that is not finite counts, too. The curves show what that leaves out, and with them the norms of the gradients and
sigma, the largest singular value of the weights as they are stored. With spectral norm the network uses W / sigma, so
that growth of W does nothing but lower the learning rate, and with it the gradient; without it the generator's
Lipschitz constant is free to grow as the product of its sigmas.

What this can show: whether the two arms differ within 5,000 steps of small networks on easy images, at such rates. On
ImageNet the paper's network with the norm in D only, at equal rates, collapsed by step 10,000, and that with the norm
in both got worse from step 260,000 on. A collapse that comes here need not have their cause, which is why gradients and
sigma stand beside it.
"""

import numpy as np
from common import budget, carry_out, chosen, command, mean_std, publish, series, table
from digits import dataset_option, heading, judge, start, train

from minisagan.look import plot

RATES = {  # of G and D; Config's are 4e-4 and 1.6e-3
    "rates x 1": (4e-4, 16e-4),
    "rates x 2": (8e-4, 32e-4),
    "rates x 4": (16e-4, 64e-4),
    "equal, x 4": (32e-4, 32e-4),
    "rates x 8": (32e-4, 128e-4),
}
SEEDS = {"rates x 1": 1, "rates x 2": 1, "rates x 4": 2, "equal, x 4": 2, "rates x 8": 1}
NAMES = {"discriminator": "norm in D only", "both": "norm in G and D", "none": "norm in neither"}


def plan(dataset, full, quick):
    """The runs, as arguments of `digits.train`."""
    return [
        {"dataset": dataset, "seed": seed, "steps": 1 if quick else 5000, "pack": 1, "spectral_norm": norm,
         "lr_g": RATES[rates][0], "lr_d": RATES[rates][1], "d_steps": 1, "beta2": 0.9, "fall": 0}
        for rates, seeds in ({"rates x 4": 2} if quick else dict.fromkeys(RATES, 3) if full else SEEDS).items()
        for seed in range(seeds)
        for norm in (NAMES if full else ("discriminator", "both"))
    ]


def collapse(steps, distances, gradients):
    """The step at which a run has collapsed, in the docstring's sense; None if it has not.

    A distance of None, after a divergence, is infinite.
    """
    distances = [np.inf if d is None else d for d in distances]
    for k in range(1, len(steps) - 1):
        if all((g or 0) < 0.01 for g in gradients[k:]) or min(distances[k:]) > 2 * min(distances[:k]):
            return steps[k]
    return None


def report(logs, dataset):
    """The table, as text, and the picture: a column for each rate, a row for each measure."""
    found = {
        (rates, norm): these
        for rates, (lr_g, lr_d) in RATES.items()
        for norm in NAMES
        if (these := chosen(logs, lr_g=lr_g, lr_d=lr_d, spectral_norm=norm))
    }
    shown = list(dict.fromkeys(rates for rates, _ in found))
    rows = []
    for (rates, norm), these in found.items():
        last = lambda name, digits=2, these=these: mean_std([log[name][-1] for log in these], digits)
        ends = [collapse(log["step"], log["distance"], log["grad_g"]) for log in these]
        steps = [step for step in ends if step is not None]
        rows.append([
            rates, NAMES[norm], f"{len(steps)} of {len(ends)}", f"{np.median(steps):.0f}" if steps else "",
            mean_std([np.nanmin(np.array(log["distance"], float)) for log in these], 1), last("distance", 1),
            last("accuracy", 3), last("recall"), last("sigma_g"), last("largest_g", 1), last("sigma_d"),
            last("largest_d", 1),
        ])  # fmt: skip
    header = [
        "", "", "collapsed", "at step", "least distance", "at the end", "accuracy", "recall", "sigma G", "largest",
        "sigma D", "largest",
    ]  # fmt: skip
    text = heading(logs, dataset) + table(header, rows)
    text += "\nsigma: the stored weights' largest singular value, by its geometric mean over layers, and its largest\n"
    panels = [
        plot.Panel(f"{title}, {rates}", "training step", unit, [
            series(NAMES[norm], found[rates, norm], "step", name, log=unit.startswith("log10"))
            for norm in NAMES if (rates, norm) in found
        ])
        for name, title, unit in (
            ("distance", "Distance", "log10 Frechet distance"),
            ("accuracy", "Class asked for", "share of samples"),
            ("grad_g", "Gradient of G", "log10 norm"),
            ("grad_d", "Gradient of D", "log10 norm"),
            ("sigma_g", "Sigma of G", "geometric mean"),
            ("sigma_d", "Sigma of D", "geometric mean"),
        )
        for rates in shown
    ]
    return text, plot.plot(panels, columns=len(shown), width=400 * len(shown), height=250)


@command
@dataset_option
def main(jobs, full, quick, out, dataset):
    """Does spectral norm in the generator, too, keep training stable?"""
    runs = plan(dataset, full, quick)
    budget(start, runs, jobs)
    judge(dataset)  # before the runs: its classifier may have to be trained
    publish(out / "spectral_norm", *report(carry_out(train, runs, out / "spectral_norm.jsonl", jobs), dataset))


if __name__ == "__main__":
    main()
