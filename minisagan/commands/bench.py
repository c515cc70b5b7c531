"""`minisagan bench`: how fast training is here, and where its time goes."""

import json
import statistics

import click

from minisagan import bench, cpu, parity
from minisagan.commands import hardware
from minisagan.config import Architecture, Config
from minisagan.train import Training


@click.command(short_help="Time whole training steps, and each op in them.")
@click.option("--steps", type=click.IntRange(1), default=20, help="Steps to time, after 3 that are not.")
@click.option("--width", type=click.IntRange(8), default=16, help="Channels at full resolution.")
@click.option("--size", type=int, default=32, help="Side of the images in pixels: 32, 64, 128, 256.")
@click.option("--batch-size", type=click.IntRange(1), default=64, help="Images in a batch.")
@hardware.threads_option
@click.option("--json", "as_json", is_flag=True, show_default=False, help="Print one JSON object instead.")
@hardware.gpu_options
def command(steps, width, size, batch_size, threads, as_json, where, graph, tf32):
    """Time whole training steps (one of D, one of G) on noise for images, and each op in them.

    With the defaults the networks are those of --dataset mnist. GFLOP/s count the matrix products alone, over the whole
    step's time (and columns that a convolution multiplies in vain, where BLAS packs all products); the machine's own
    rate is that of small products in cache, on as many threads. Copies lay out what a convolution's products take;
    passes are the rest of the ops: elementwise work, sums, and the Python around them; the rest lies between the ops:
    layers, noise, data. Of a GPU's steps, shares can't be told: they are timed as they run in training, ten after one
    another. Where processes share the batch, times are the first one's, and what they exchange is shown; mpiexec -n 2
    minisagan bench shows it of MPI.
    """
    where = hardware.choose(where, tf32)
    cpu.set_threads(threads)
    pack = 2 if size == 32 and batch_size % 2 == 0 else 1
    arch = Architecture(size=size, width=width, attention=size // 2, channels=1 if size == 32 else 3, pack=pack)
    config = Config(batch_size=batch_size, architecture=arch)
    with hardware.memory(batch_size, hardware.SMALLER):
        images = parity.noise_images(config, batch_size)
        training = Training(config, images, gpu=where != "cpu", graph=graph, processes=None)
        bench.times(training, 3)
        seconds = bench.times(training, steps)
    step = statistics.median(seconds)
    facts = {
        "step_ms": 1e3 * step,
        "fastest_ms": 1e3 * min(seconds),
        "steps_per_second": 1 / step,
        "images_per_second": batch_size / step,
        "device": hardware.describe(where),
        "threads": cpu.threads(),
        "processes": training.processes,
    }
    if where == "cpu":
        facts |= _shares(training, steps, step)
    if as_json:
        click.echo(json.dumps(facts))
        return
    cores = cpu.busy(training.processes)
    click.echo(
        f"{size}x{size}, width {width}, batch {batch_size}, {facts['device']}, {cores}: "
        f"{1e3 * step:.1f} ms a step (median of {steps}; fastest {1e3 * min(seconds):.1f}), "
        f"{batch_size / step:.0f} images/s"
    )
    if where == "cpu":
        _show(facts)


def _shares(training, steps, step):
    """What the products and each op have of a step of `step` seconds."""
    with bench.counted_products() as products:
        training.advance()
    flop = sum(products) * training.processes  # each multiplies as much
    with bench.watched() as spent:
        watched = sum(bench.times(training, steps))
    with bench.kinds(training.team) as kinds:
        bench.times(training, steps)
    shared = {}
    if training.processes > 1:
        with bench.exchanged(training.team) as of_all:
            bench.times(training, steps)
        shared = {
            "meetings_per_step": of_all.meetings / steps,
            "bytes_per_step": of_all.nbytes / steps,
            "exchange_ms": 1e3 * of_all.seconds / steps,
        }
    return shared | {
        "gflop_per_step": flop / 1e9,
        "gflops": flop / 1e9 / step,
        "machine_gflops": bench.gemm_rate(),
        "kinds_ms": {kind: 1e3 * seconds / steps for kind, seconds in kinds.items()},
        "watched_ms": 1e3 * watched / steps,
        "ops": {
            name: {
                "forward_calls": s.forward_calls // steps,
                "forward_ms": 1e3 * s.forward / steps,
                "backward_calls": s.backward_calls // steps,
                "backward_ms": 1e3 * s.backward / steps,
            }
            for name, s in sorted(spent.items(), key=lambda item: -item[1].forward - item[1].backward)
        },
    }


def _show(facts):
    rate = facts["machine_gflops"]
    click.echo(
        f"{facts['gflop_per_step']:.2f} GFLOP a step in matrix products, {facts['gflops']:.0f} GFLOP/s: "
        f"{facts['gflops'] / rate:.0%} of this machine's {rate:.0f} GFLOP/s\n"
    )
    kinds = facts["kinds_ms"]
    shares = [f"{name} {ms:.1f} ms ({ms / sum(kinds.values()):.0%})" for name, ms in kinds.items()]
    click.echo(f"{', '.join(shares)}\n")
    if "exchange_ms" in facts:
        click.echo(
            f"{facts['meetings_per_step']:.0f} meetings of {facts['processes']} processes a step, each gets "
            f"{facts['bytes_per_step'] / 1e6:.2f} MB of the others': {facts['exchange_ms']:.1f} ms, waiting included\n"
        )
    row = "{:22}{:>8}{:>12}{:>8}{:>12}{:>8}"
    click.echo(row.format("OP", "CALLS", "FORWARD ms", "CALLS", "BACKWARD ms", "SHARE"))
    rest = 1.0
    for name, op in facts["ops"].items():
        forward, backward = op["forward_ms"], op["backward_ms"]
        share = (forward + backward) / facts["watched_ms"]
        rest -= share
        cells = f"{forward:.2f}", op["backward_calls"], f"{backward:.2f}", f"{share:.1%}"
        click.echo(row.format(name, op["forward_calls"], *cells))
    click.echo(row.format("the rest", "", "", "", "", f"{rest:.1%}"))
