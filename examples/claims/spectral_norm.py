"""Claim 2: spectral norm in both networks stabilises training (SAGAN sec. 4.1 and figure 3), in miniature.

    python examples/claims/spectral_norm.py                    # on digits that the program draws: nothing to download
    python examples/claims/spectral_norm.py --dataset mnist
    python examples/claims/spectral_norm.py --full             # more rates, and no spectral norm at all

Two arms, otherwise the same, at one D step for each G step: spectral norm in D only, and in G and D. Each at 4 and at
8 times learning rates of G 4e-4 and D 8e-4 (which were the package's, found with larger networks and batches, and with
spectral norm in both). The factors come from runs of seed 100, which is not among those measured: at 4, spectral norm
in D only learned steadily; at 16 both arms stood still, D only from step 250 on, G and D from 300. --full has 1, 2 and
16, too.

A run has *collapsed* at a step if from there to the end, for two measurements or more, it stands still (G's gradient
has a norm below 0.01; 3 to 6 are usual) or is undone (every distance is more than twice the least before); a loss that
is not finite counts, too. The curves show what that leaves out, and with them the norms of the gradients and sigma,
the largest singular value of the weights as they are stored. With spectral norm the network uses W / sigma, so that
growth of W does nothing but lower the learning rate; without it the generator's Lipschitz constant is free to grow as
the product of its sigmas.

What this can show: whether the two arms differ within 800 steps of small networks, at such rates. The
paper's collapse came after 260,000 steps on ImageNet; that none comes here would say nothing about that.
"""

import numpy as np
from common import budget, carry_out, chosen, command, mean_std, publish, series, table
from digits import dataset_option, heading, judge, start, train

from minisagan.look import plot

RATES, FACTORS = (4e-4, 8e-4), (4, 8)
NAMES = {"discriminator": "norm in D only", "both": "norm in G and D", "none": "norm in neither"}


def plan(dataset, full, quick):
    """The runs, as arguments of `digits.train`."""
    steps, seeds = (1, 2) if quick else (800, 3)
    return [
        {"dataset": dataset, "spectral_norm": norm, "d_steps": 1, "lr_g": RATES[0] * factor, "lr_d": RATES[1] * factor,
         "seed": seed, "steps": steps}
        for seed in range(seeds)
        for factor in ((1, 2, 4, 8, 16) if full else FACTORS[:1] if quick else FACTORS)
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
    """The table, as text, and the picture."""
    arms = list(dict.fromkeys((run["lr_g"], run["lr_d"], run["spectral_norm"]) for run, _ in logs))
    found = {arm: chosen(logs, lr_g=arm[0], lr_d=arm[1], spectral_norm=arm[2]) for arm in arms}
    label = lambda arm: f"{NAMES[arm[2]]}, rates x {arm[0] / RATES[0]:g}"
    last = lambda arm, name: [log[name][-1] for log in found[arm]]
    rows = []
    for arm in arms:
        ends = [collapse(log["step"], log["distance"], log["grad_g"]) for log in found[arm]]
        steps = [step for step in ends if step is not None]
        rows.append([
            label(arm), f"{len(steps)} of {len(ends)}", f"{np.median(steps):.0f}" if steps else "",
            mean_std([np.nanmin(np.array(log["distance"], float)) for log in found[arm]], 0),
            mean_std(last(arm, "distance"), 0), mean_std(last(arm, "accuracy")),
            mean_std(last(arm, "sigma_g")), mean_std(last(arm, "sigma_d")),
        ])
    header = ["", "collapsed", "at step", "least distance", "at the end", "accuracy", "sigma G", "sigma D"]
    text = heading(logs, dataset) + table(header, rows)
    text += "\nsigma: geometric mean over layers of the stored weights' largest singular value\n"
    panels = [
        plot.Panel(
            title, "training step", unit,
            [series(label(arm), found[arm], "step", name, log=unit.startswith("log10")) for arm in arms],
        )
        for name, title, unit in (
            ("distance", "Distance from real digits", "log10 Frechet distance"),
            ("accuracy", "Class asked for", "share of samples"),
            ("grad_g", "Gradient of G", "log10 norm"),
            ("grad_d", "Gradient of D", "log10 norm"),
            ("sigma_g", "Sigma of G's weights", "geometric mean"),
            ("sigma_d", "Sigma of D's weights", "geometric mean"),
        )
    ]
    return text, plot.plot(panels, columns=2, width=1400, height=340)


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
