"""How training scales over processes: measured with 1 and 2 here, forks beside MPI; and a model of many more.

    python examples/scaling.py [--rounds 5]

All take turns, round by round, so that whatever else the machine does hits them alike. Strong scaling: the same batch
for two processes; weak: twice the batch. The model is of 128x128 images at the paper's width 64 and a batch of 2,048.
Its bytes follow from the sizes of the networks and what was counted here; its seconds assume what is printed with them.
"""

import argparse
import json
import math
import shutil
import statistics
import subprocess
import sys
from pathlib import Path

from minisagan.config import Architecture
from minisagan.models import Discriminator, Generator

BATCH, IMAGES, SIZE, WIDTH = 32, 2048, 128, 64
KINDS = {  # what takes turns: its processes' launcher, threads, images in a batch
    "1 process": ("", 1, BATCH),
    "2 forks": ("", 2, BATCH),
    "2 of MPI": ("mpiexec", 1, BATCH),
    "2 forks, twice the batch": ("", 2, 2 * BATCH),
    "2 of MPI, twice the batch": ("mpiexec", 1, 2 * BATCH),
}
NETWORKS = {"1 Gbit/s": 0.125e9, "10 Gbit/s": 1.25e9, "100 Gbit/s": 12.5e9}  # bytes/s to each process
MEETING = 50e-6  # s, of a small one of two; of W it takes log2 W of them


def bench(launcher, threads, batch, *more):
    """The facts of one `minisagan bench`."""
    start = [shutil.which("mpiexec") or Path(sys.executable).with_name("mpiexec"), "-n", "2"] if launcher else []
    options = "--threads", threads, "--batch-size", batch, *more, "--json"
    command = [*start, sys.executable, "-m", "minisagan", "bench", *options]
    done = subprocess.run(list(map(str, command)), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


def weights(width, attention):
    """Weights of both networks together."""
    arch = Architecture(size=SIZE, channels=3, width=width, classes=10, attention=attention, init="xavier")
    networks = Generator(arch), Discriminator(arch)
    return sum(p.data.size for network in networks for p in network.parameters().values())


def given(count, world, each):
    """Bytes that each of `world` processes is given in a step: (for weights, for batch norm).

    Sums of gradients cost the size of the weights twice, updated weights once; batch norm `each` bytes for an image.
    """
    return 3 * 4 * count * (world - 1) / world, each * IMAGES * (world - 1) / world


def main():
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--steps", type=int, default=10)
    args = parser.parse_args()
    rounds = {name: [] for name in KINDS}
    for _ in range(args.rounds):
        for name, kind in KINDS.items():
            rounds[name].append(bench(*kind, "--steps", args.steps))
    print(f"32x32, width 16, batch {BATCH}; the median and the range of {args.rounds} rounds")
    for name, facts in rounds.items():
        steps = [fact["step_ms"] for fact in facts]
        print(
            f"{name:26} {statistics.median(steps):7.1f} ms a step ({min(steps):.1f} to {max(steps):.1f}), "
            f"{facts[0].get('meetings_per_step', 0):.0f} meetings, {facts[0].get('bytes_per_step', 0) / 1e6:.2f} MB, "
            f"{statistics.median(fact.get('exchange_ms', 0) for fact in facts):.1f} ms in them"
        )
    ratios = [m["step_ms"] / f["step_ms"] for m, f in zip(rounds["2 of MPI"], rounds["2 forks"], strict=True)]
    print(f"MPI takes {statistics.median(ratios):.2f} of the forks' time ({min(ratios):.2f} to {max(ratios):.2f})\n")

    small, thin = 8, 16
    fact = bench("mpiexec", 1, small, "--size", SIZE, "--width", thin, "--steps", 1)
    each = (fact["bytes_per_step"] - 3 * 4 * weights(thin, SIZE // 2) / 2) / (small / 2) * WIDTH / thin
    count, rate = weights(WIDTH, 32), max(f["gflops"] for f in rounds["1 process"])
    work = fact["gflop_per_step"] / small * (WIDTH / thin) ** 2 * IMAGES  # most channels grow with the width
    print(f"A model: {SIZE}x{SIZE}, width {WIDTH}, batch {IMAGES:,}, {count / 1e6:.0f} million weights; a process")
    print(f"computes {rate:.0f} GFLOP/s, as one did here; a meeting takes {1e6 * MEETING:.0f} us log2(processes),")
    print("and its bytes the time that the network takes for them.")
    print("processes  computing  weights MB  batch norm MB  " + "  ".join(f"{name:>10}" for name in NETWORKS))
    for world in (8, 64, 512):
        sizes = given(count, world, each)
        met = fact["meetings_per_step"] * MEETING * math.log2(world)
        times = "  ".join(f"{sum(sizes) / speed + met:8.2f} s" for speed in NETWORKS.values())
        print(f"{world:9}  {work / rate / world:7.0f} s  {sizes[0] / 1e6:10.0f}  {sizes[1] / 1e6:13.1f}  {times}")


if __name__ == "__main__":
    main()
