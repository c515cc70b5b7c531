"""Claim 3: two learning rates in place of many D steps (SAGAN sec. 4.2, after Heusel et al. 2017), in miniature.

    python examples/claims/ttur.py                            # on MNIST, which is downloaded
    python examples/claims/ttur.py --dataset drawn-digits     # nothing to download
    python examples/claims/ttur.py --full                     # half these rates, too, and five seeds

The arms follow the recipe for digits but for their rates (packs of 2, beta2 0.98, rates that fall to 0 in the second
half, spectral norm in both networks). Each is tried at two rates, which for TTUR are the geometric mean of its two:

    1:1 TTUR     one D step for each G step; D's rate is four times G's, the paper's ratio
    1:1 equal    one D step for each G step, both at one rate
    5:1 equal    five D steps for each G step, both at one rate

TTUR's promise is about time: a D step that is not made. So all arms end at the same time, and at the end of their fall
they are compared. Time is counted, not taken, so that it does not depend on what else a machine does: a step of D alone
and one of both networks have the SECONDS that each needs by itself, the least CPU time of 150 on one core of an AMD
EPYC (Zen 3). The CPU time that each run took stands beside it.

What this can show: which arm is ahead after 105 seconds of small networks on easy images. The rates of 6e-4 and 2.4e-3
were once chosen for a recipe with larger networks and batches and more steps; the others were not tuned.
Three seeds: the least p that a permutation test can give is 0.1.
"""

import numpy as np
from common import budget, carry_out, chosen, command, mean_std, permutation_p, publish, series, table
from digits import dataset_option, heading, judge, start, train

from minisagan.look import plot

ARMS = {  # D steps for each G step, rates of G and D
    "1:1 TTUR, 1.2e-3": (1, 6e-4, 24e-4),
    "1:1 equal, 1.2e-3": (1, 12e-4, 12e-4),
    "5:1 equal, 1.2e-3": (5, 12e-4, 12e-4),
    "1:1 TTUR, 2.4e-3": (1, 12e-4, 48e-4),
    "1:1 equal, 2.4e-3": (1, 24e-4, 24e-4),
    "5:1 equal, 2.4e-3": (5, 24e-4, 24e-4),
}
SLOW = {  # of --full
    "1:1 TTUR, 6e-4": (1, 3e-4, 12e-4),
    "1:1 equal, 6e-4": (1, 6e-4, 6e-4),
    "5:1 equal, 6e-4": (5, 6e-4, 6e-4),
}
SECONDS, IN_ALL = {"D": 0.036, "both": 0.070}, 105  # of a step by itself; of a run


def cost(d_steps):
    """Counted seconds of a training step with so many D steps: G learns from the images that the last of them saw."""
    return (d_steps - 1) * SECONDS["D"] + SECONDS["both"]


def plan(dataset, full, quick):
    """The runs, as arguments of `digits.train`."""
    return [
        {"dataset": dataset, "seed": seed, "steps": 1 if quick else round(IN_ALL / cost(d_steps)), "pack": 2,
         "spectral_norm": "both", "lr_g": lr_g, "lr_d": lr_d, "d_steps": d_steps, "beta2": 0.98, "fall": 0.5}
        for seed in range(2 if quick else 5 if full else 3)
        for d_steps, lr_g, lr_d in (ARMS | SLOW if full else ARMS).values()
    ]


def report(logs, dataset):
    """The table, as text, and the picture."""
    logs = [(run, log | {"time": [step * cost(run["d_steps"]) for step in log["step"]]}) for run, log in logs]
    found = {
        name: these
        for name, (d_steps, lr_g, lr_d) in (ARMS | SLOW).items()
        if (these := chosen(logs, d_steps=d_steps, lr_g=lr_g, lr_d=lr_d))
    }
    last = lambda arm, name: np.array([log[name][-1] for log in found[arm]], float)
    rows = [
        [
            arm, f"{these[0]['step'][-1]:.0f}", f"{these[0]['time'][-1]:.0f}", mean_std(last(arm, "seconds"), 0),
            mean_std(last(arm, "distance"), 1), mean_std(last(arm, "accuracy"), 3), mean_std(last(arm, "recall")),
        ]
        for arm, these in found.items()
    ]  # fmt: skip
    header = ["", "G steps", "seconds counted", "taken", "distance", "accuracy", "recall"]
    text = heading(logs, dataset) + table(header, rows)
    text += "\nDifferences of mean log10 distance, with p of an exact permutation test over seeds\n\n"
    differences = []
    for ttur in (arm for arm in found if "TTUR" in arm):
        rate = ttur.split(", ")[1]
        for arm in (f"1:1 equal, {rate}", f"5:1 equal, {rate}"):
            a, b = (np.log10(last(name, "distance")) for name in (ttur, arm))
            differences.append([f"{ttur} - {arm}", f"{a.mean() - b.mean():+.2f}", f"{permutation_p(a, b):.3f}"])
    text += table(["", "difference", "p"], differences)
    panels = [
        plot.Panel(title, axis_label, unit, [
            series(arm, these, axis, name, log=name == "distance") for arm, these in found.items()
        ])
        for name, title, unit in (
            ("distance", "Distance from real digits", "log10 Frechet distance"),
            ("accuracy", "Class asked for", "share of samples"),
        )
        for axis, axis_label in (("time", "seconds, counted"), ("step", "G step"))
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
