"""Claim 3: two learning rates in place of many D steps (SAGAN sec. 4.2, after Heusel et al. 2017), in miniature.

    python examples/claims/ttur.py                    # on digits that the program draws: nothing to download
    python examples/claims/ttur.py --dataset mnist
    python examples/claims/ttur.py --full             # three pairs of rates in place of one, and twice the time

Three arms, spectral norm in both networks of each:

    1:1 equal     one D step for each G step, both at the rate r
    1:1 TTUR      one D step for each G step, G at r / 2 and D at 2 r: the paper's ratio, and the same geometric mean
    5:1 equal     five D steps for each G step, both at the rate r

TTUR's promise is about time: a D step that is not made. So the arms are compared twice, after equally many G steps,
which favours 5:1, and after equal CPU seconds of training. 5:1 makes a fraction of the others' G steps, so that all
take about as long; distances between two measurements are interpolated in time.

What this can show: which arm is ahead early in the training of small networks on easy images, at one r. It is 1.6e-3,
near which a network of this size learned most of the digits' classes in that time (seed 100, which is not among those
measured; G 1.6e-3, D 3.2e-3, and spectral norm in D only; no arm of this script was tried). With every arm at its own
best rate the order could be another; --full has three.
"""

import numpy as np
from common import budget, carry_out, chosen, command, mean_std, permutation_p, publish, series, table
from digits import dataset_option, heading, judge, start, train

from minisagan.look import plot

RATES = (16e-4, 4e-4, 8e-4)  # r: of the core, and of --full
ARMS = {"1:1 equal": (1, 1, 1), "1:1 TTUR": (1, 0.5, 2), "5:1 equal": (5, 1, 1)}  # D steps; rates of G, D, over r
STEPS = {1: 1000, 5: 300}  # G steps by D steps: about equal time


def plan(dataset, full, quick):
    """The runs, as arguments of `digits.train`."""
    seeds = 2 if quick else 5
    longer = 2 if full else 1
    return [
        {"dataset": dataset, "spectral_norm": "both", "d_steps": d_steps, "lr_g": r * g, "lr_d": r * d, "seed": seed,
         "steps": 1 if quick else longer * STEPS[d_steps]}
        for seed in range(seeds)
        for r in (RATES if full else RATES[:1])
        for d_steps, g, d in ARMS.values()
    ]


def at(log, axis, value, name):
    """Column `name` of a log where `axis` has that value, interpolated linearly; NaN where it diverged."""
    return float(np.interp(value, np.array(log[axis], float), np.array(log[name], float)))


def report(logs, dataset):
    """The table, as text, and the picture."""
    found = {
        (name, r): these
        for r in RATES
        for name, (d_steps, g, d) in ARMS.items()
        if (these := chosen(logs, d_steps=d_steps, lr_g=r * g, lr_d=r * d))
    }
    rates = list(dict.fromkeys(r for _, r in found))
    label = lambda arm: arm[0] if len(rates) == 1 else f"{arm[0]}, r = {arm[1]:g}"
    least = lambda axis: min(np.nanmax(np.array(log[axis], float)) for _, log in logs)
    steps, seconds = least("step"), least("seconds")
    rows, values = [], {}
    for arm, these in found.items():
        row = [label(arm), mean_std([1000 * log["seconds"][-1] / log["step"][-1] for log in these], 0)]
        for axis, value in (("step", steps), ("seconds", seconds)):
            for name, digits in (("distance", 0), ("accuracy", 2)):
                values[arm, axis, name] = [at(log, axis, value, name) for log in these]
                row.append(mean_std(values[arm, axis, name], digits))
        rows.append(row)
    header = ["", "ms/step", f"at step {steps:.0f}: distance", "accuracy", f"at {seconds:.0f} s: distance", "accuracy"]
    text = heading(logs, dataset) + table(header, rows)
    text += "\nDifferences of mean log10 distance, with p of an exact permutation test over seeds\n\n"
    differences = []
    for r in rates:
        for one, other in (("1:1 TTUR", "1:1 equal"), ("1:1 TTUR", "5:1 equal")):
            row = [f"{one} - {other}" + (f", r = {r:g}" if len(rates) > 1 else "")]
            for axis in ("step", "seconds"):
                a, b = (np.log10(values[(name, r), axis, "distance"]) for name in (one, other))
                row += [f"{a.mean() - b.mean():+.2f}", f"{permutation_p(a, b):.3f}"]
            differences.append(row)
    text += table(["", "equal steps", "p", "equal time", "p"], differences)
    panels = [
        plot.Panel(title, axis_label, unit, [
            series(label(arm), these, axis, name, log=name == "distance") for arm, these in found.items()
        ])
        for name, title, unit in (
            ("distance", "Distance from real digits", "log10 Frechet distance"),
            ("accuracy", "Class asked for", "share of samples"),
        )
        for axis, axis_label in (("step", "G step"), ("seconds", "CPU seconds of training"))
    ]
    return text, plot.plot(panels, columns=2, width=1400, height=340)


@command
@dataset_option
def main(jobs, full, quick, out, dataset):
    """Do two learning rates do what many D steps do, in less time?"""
    runs = plan(dataset, full, quick)
    budget(start, runs, jobs)
    judge(dataset)  # before the runs: its classifier may have to be trained
    publish(out / "ttur", *report(carry_out(train, runs, out / "ttur.jsonl", jobs), dataset))


if __name__ == "__main__":
    main()
