"""One training step (D, then G) of minisagan and of its PyTorch twin: the same numbers, the time, the memory.

    python examples/compare_pytorch.py                      # three networks, all cores
    python examples/compare_pytorch.py --net mnist16 --pairs 25 --json

Each program runs in a process of its own and makes a few steps when it is told to, in turn: A B C A B C,
with fresh noise every time. In one process, or at once, they would disturb each other: PyTorch's OpenMP threads
spin for a while after each piece of work. So each has all cores when it is its turn, what else the machine
does meets all alike, and the ratio is the median over neighbouring turns. But OpenMP suffers more than
minisagan does from other programs on the same cores (much less so with OMP_WAIT_POLICY=passive): only an idle
machine tells the truth. The load average is printed.

PyTorch runs as fast as we know how to make it: in NCHW and in channels_last (the faster one counts), with
fused Adam, no gradients where none are needed, real and fake images in one batch of D. Its process, too, keeps
freed memory instead of giving it back, as minisagan's do by themselves: without that, its step of rgb64 takes 1.4
times as long (Zen 5). F.scaled_dot_product_attention was not faster than softmax between two products.

minisagan runs as `minisagan train` would, with processes that share the batch, and draws its noise in its own time.

The first line names NumPy's BLAS and the processor that it chose its code for. Page faults are those of a step, in
the program's own process: thousands mean that it gives memory back and clears it anew.
Memory is the peak resident size (ru_maxrss; of several processes the sum), beside that after imports. This process
imports neither NumPy nor PyTorch, because a child's peak starts at its parent's.
"""

import importlib.util
import json
import os
import resource
import statistics
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import click

NETS = {  # name -> (Architecture's arguments, batch)
    "mnist16": ({}, 64),
    "mnist32": ({"width": 32}, 64),
    "rgb64": ({"size": 64, "channels": 3, "width": 16, "attention": 32}, 32),
}
OURS, TWINS = "minisagan", ("channels_last", "nchw")
CORES = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
WARM_UP = 2  # turns of each before the measured ones
STEPS = 3  # measured steps of a turn, after one that is not
PAUSE = 0.05  # s between turns, for the last one's threads to go to sleep
TOLERANCE = {"float64": 1e-9, "float32": 1e-2}  # float32: a ReLU at 0 may open in one and not in the other


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--net", "nets", type=click.Choice(list(NETS)), multiple=True, default=list(NETS))
@click.option("--pairs", type=click.IntRange(min=1), default=9, help=f"Measured turns, each of {STEPS} steps.")
@click.option("--threads", type=click.IntRange(min=1), default=CORES, help="Threads of each program.")
@click.option("--compile", "compiled", is_flag=True, help="Also torch.compile, which needs a C++ compiler.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON instead of a table.")
def main(nets, pairs, threads, compiled, as_json):
    """Compare minisagan's training step with PyTorch's: agreement, time, memory."""
    if importlib.util.find_spec("torch") is None:
        raise click.ClickException("this comparison needs PyTorch: pip install torch")
    programs = [OURS, *TWINS, *(["compiled"] if compiled else [])]
    results = {}
    for net in nets:
        click.echo(f"{net}: comparing outputs and gradients, then {pairs} turns of {STEPS} steps each", err=True)
        with Worker("agreement", net, threads) as worker:
            agreement = worker.read()
        for dtype, differences in agreement.items():
            for what, difference in differences.items():
                if not difference <= TOLERANCE[dtype]:
                    raise click.ClickException(f"{net}: {what} differ by {difference:.1e} in {dtype}")
        results[net] = {"batch": NETS[net][1], "agreement": agreement}
        results[net] |= contest(net, programs, pairs, threads)
    results = {"threads": threads, "load_average": os.getloadavg()[0], "nets": results}
    click.echo(json.dumps(results, indent=2) if as_json else table(results))


def contest(net, programs, pairs, threads):
    """Run the programs in turn: median times in ms, memory in MiB, minisagan's time over the best other's."""
    workers = {name: Worker(name, net, threads) for name in programs}
    ready = {name: worker.read() for name, worker in workers.items()}
    answers = {name: [] for name in programs}
    for _ in range(WARM_UP + pairs):
        for name, worker in workers.items():
            time.sleep(PAUSE)
            worker.write("step")
            answers[name].append(worker.read())
    for worker in workers.values():
        worker.close()
    ms = {name: [answer["ms"] for answer in answers[name][WARM_UP:]] for name in programs}
    ratios = {
        name: [ours / theirs for ours, theirs in zip(ms[OURS], ms[name], strict=True)]
        for name in programs
        if name != OURS
    }
    fastest = max(ratios, key=lambda name: statistics.median(ratios[name]))
    return {
        "blas": ready[OURS]["blas"],
        "programs": {
            name: {
                "ms": statistics.median(ms[name]),
                "ms_min": min(ms[name]),
                "cpu_ms": statistics.median(answer["cpu_ms"] for answer in answers[name][WARM_UP:]),
                "faults": statistics.median(answer["faults"] for answer in answers[name][WARM_UP:]),
                "imported_mib": ready[name]["mib"],
                "peak_mib": answers[name][-1]["mib"],
            }
            for name in programs
        },
        "fastest_twin": fastest,
        "ratio": statistics.median(ratios[fastest]),
        "ratio_min_max": [min(ratios[fastest]), max(ratios[fastest])],
    }


def table(results):
    """The results as text."""
    blas = next(iter(results["nets"].values()))["blas"]
    lines = [f"{results['threads']} threads, load average {results['load_average']:.1f}, {blas}"]
    for net, found in results["nets"].items():
        low, high = found["ratio_min_max"]
        lines += [
            "",
            f"{net}, batch {found['batch']}: minisagan takes {found['ratio']:.2f} of PyTorch's time "
            f"({found['fastest_twin']}; single pairs {low:.2f} to {high:.2f})",
            f"  {'':14}{'step':>9}{'shortest':>12}{'CPU time':>12}{'page faults':>14}{'peak memory':>14}"
            f"{'after imports':>16}",
        ]
        for name, x in found["programs"].items():
            times = f"{x['ms']:6.0f} ms{x['ms_min']:9.0f} ms{x['cpu_ms']:9.0f} ms{x['faults']:14,.0f}"
            lines.append(f"  {name:14}{times}{x['peak_mib']:10.0f} MiB{x['imported_mib']:12.0f} MiB")
        for dtype, differences in found["agreement"].items():
            parts = ", ".join(f"{what} {difference:.1e}" for what, difference in differences.items())
            lines.append(f"  largest relative difference in {dtype}: {parts}")
    return "\n".join(lines)


class Worker:
    """A process that runs `work`: a line of JSON when it is ready, then one for each line that it is sent."""

    def __init__(self, program, net, threads):
        self.name = f"{program} on {net}"
        command = [sys.executable, __file__, "worker", program, net, str(threads)]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self.close()

    def write(self, line):
        print(line, file=self.process.stdin, flush=True)

    def read(self):
        line = self.process.stdout.readline()
        if not line:
            raise click.ClickException(f"{self.name} ended with exit code {self.process.wait()}, see above")
        return json.loads(line)

    def close(self):
        self.process.communicate()


def work(program, net, threads):
    """The worker's side: import, say so, then make a training step for each line of input."""
    import numpy as np

    from minisagan import cpu
    from minisagan.config import Architecture, Config
    from minisagan.init import Init
    from minisagan.models import Discriminator, Generator

    if program == OURS:
        from minisagan import parity, train

        cpu.set_threads(threads)
    else:
        import pytorch_twin
        import torch

        torch.set_num_threads(threads)
        cpu.keep_freed_memory()
    arch, batch = Architecture(**NETS[net][0]), NETS[net][1]
    if program == "agreement":
        return say(agreement(arch))
    say({"mib": peak_mib(), "blas": cpu.blas()})

    if program == OURS:
        config = Config(batch_size=batch, lr_g=2e-4, lr_d=4e-4, architecture=arch)
        training = train.Training(config, parity.noise_images(config, 4 * batch), processes=None)
    else:
        init = Init(0, arch.init)
        G, D = Generator(arch, init), Discriminator(arch, init)
        memory_format = torch.contiguous_format if program == "nchw" else torch.channels_last
        G, D = pytorch_twin.twin(G, memory_format), pytorch_twin.twin(D, memory_format)
        adam_d, adam_g, ema = pytorch_twin.adam(D, 4e-4), pytorch_twin.adam(G, 2e-4), pytorch_twin.EMA(G)
        convert = partial(pytorch_twin.as_input, memory_format=memory_format)
        if program == "compiled":
            G.compile()
            D.compile()

    random = np.random.default_rng(0)
    images = random.uniform(-1, 1, (batch, arch.size, arch.size, arch.channels)).astype(np.float32)
    forks = []
    for _ in sys.stdin:
        z = random.standard_normal((batch, arch.latent), dtype=np.float32)
        labels = random.integers(0, arch.classes, (2, batch))
        if program != OURS:
            inputs = [convert(a) for a in (images, labels[0], z, labels[1])]
        for turn in range(1 + STEPS):
            if turn == 1:  # the first one brought this program's data back into the caches, as in training
                before = faults(), cpu_seconds(forks), time.perf_counter()
            if program == OURS:
                training.advance()  # draws its own noise and fetches its own images, too
                forks = getattr(training.team, "forks", [])  # none, if it works alone
                continue
            pytorch_twin.training_step(G, D, adam_g, adam_d, ema, *inputs)
        after = faults(), cpu_seconds(forks), time.perf_counter()
        pages, seconds, wall = ((b - a) / STEPS for a, b in zip(before, after, strict=True))
        say({"ms": 1e3 * wall, "cpu_ms": 1e3 * seconds, "faults": pages, "mib": peak_mib(forks)})


def agreement(arch, batch=8):
    """Relative differences of images, scores and gradients (a network's as one vector), for each dtype."""
    import numpy as np
    import pytorch_twin
    import torch

    from minisagan import autograd, ops
    from minisagan.init import Init
    from minisagan.models import Discriminator, Generator

    def difference(ours, theirs):
        ours, theirs = (torch.cat([t.detach().flatten() for t in tensors]) for tensors in (ours, theirs))
        return float((ours - theirs).norm() / theirs.norm())

    def gradients(network, loss, twin, twin_loss):
        names, parameters = zip(*network.parameters().items(), strict=True)
        theirs = torch.autograd.grad(twin_loss, [twin.get_parameter(name) for name in names])
        ours = autograd.grad(loss, parameters)
        return difference([pytorch_twin.laid_out(*pair) for pair in zip(names, ours, strict=True)], theirs)

    found = {}
    for dtype in (np.float64, np.float32):
        init, random = Init(0, arch.init, dtype), np.random.default_rng(0)
        G, D = Generator(arch, init), Discriminator(arch, init)
        for network in (G, D):
            network.attention.gamma.data[...] = 0.5  # at 0 nothing of attention would show
        twin_G, twin_D = pytorch_twin.twin(G), pytorch_twin.twin(D)
        z = random.standard_normal((batch, arch.latent)).astype(dtype)
        labels = random.integers(0, arch.classes, batch)
        images, twin_labels = G(z, labels), pytorch_twin.as_input(labels)
        twin_images = twin_G(pytorch_twin.as_input(z), twin_labels)
        scores, twin_scores = D(images, labels), twin_D(twin_images, twin_labels)
        found[np.dtype(dtype).name] = {
            "images": difference([pytorch_twin.as_input(images.data)], [twin_images]),
            "scores": difference([torch.from_numpy(scores.data)], [twin_scores]),
            "gradients of G": gradients(
                G, ops.hinge_generator(scores), twin_G, pytorch_twin.generator_loss(twin_scores)
            ),
        }
        real = random.uniform(-1, 1, images.shape).astype(dtype)
        both, both_labels = np.concatenate([real, images.data]), np.concatenate([labels, labels])
        found[np.dtype(dtype).name]["gradients of D"] = gradients(
            D,
            ops.hinge_discriminator(D(both, both_labels)),
            twin_D,
            pytorch_twin.discriminator_loss(
                twin_D(pytorch_twin.as_input(both), pytorch_twin.as_input(both_labels))
            ),
        )
    return found


def cpu_seconds(forks):
    """CPU time of this process and of these."""
    ticks = [Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[11:13] for pid in forks]
    return time.process_time() + sum(map(int, sum(ticks, []))) / os.sysconf("SC_CLK_TCK")


def faults():
    """Pages of new memory that this process has touched so far: near none in a step that keeps what it frees."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def peak_mib(forks=()):
    """The largest resident sizes so far of this process and of these, added up: what they share counts in each."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (2**20 if sys.platform == "darwin" else 2**10)
    for pid in forks:
        status = Path(f"/proc/{pid}/status").read_text()
        peak += int(status.partition("VmHWM:")[2].split()[0]) / 2**10
    return peak


def say(answer):
    print(json.dumps(answer), flush=True)


if __name__ == "__main__":
    if sys.argv[1:2] == ["worker"]:
        work(sys.argv[2], sys.argv[3], int(sys.argv[4]))
    else:
        main()
