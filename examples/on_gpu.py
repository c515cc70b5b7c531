"""Everything about minisagan that only a GPU can tell, as one report: is it right there, and how fast is it?

    python examples/on_gpu.py | tee report.txt          # at most 8 minutes; PyTorch beside it where it is installed
    python examples/on_gpu.py --net mnist --no-torch --minutes 3

    parity        a small training step against the CPU's, in float32 and with products in TF32
    determinism   the same training twice, and as graphs and eagerly: the same bits
    speed         whole training steps, of D and of G, of the network of --dataset mnist (without packs) and of the
                  paper's at 128x128, batches of 64: minisagan's graphs and eager steps, and a plain PyTorch twin's in
                  channels_last, eagerly, as CUDA graphs and compiled; with TF32, then graphs without
    floor         what this GPU can't go below: the floating-point operations that the fused networks need over its rate
                  in one large product, and the bytes that have to be moved over its rate in one large copy
    memory        what each of them took
    scaling       with several GPUs and an mpiexec, ranks with a GPU each: are the bits of 2, 4, ... those of one? In
                  attention cuBLAS might multiply fewer images in another way, and CuPy's sums might add in another
                  order. Do NCCL's calls get into graphs, and do the ranks end after that? And how long is a step of a
                  batch that they share, and of one that grows with them?

What is most wanted comes first. Each part runs in a process of its own, with a limit: one that crashes, hangs or finds
no memory is reported, and the others still count. Beside it: minisagan gradcheck --device cuda, and pytest -m gpu. What
is about minisagan here was tried on the tests' emulation of a GPU, on a CPU; what is about PyTorch, and all times,
await a GPU.
"""

import importlib.util
import json
import multiprocessing
import platform
import shutil
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import click
import numpy as np

from minisagan import bench, cpu, cuda, parity
from minisagan.autograd import Tensor, recording
from minisagan.bench import AHEAD
from minisagan.commands import hardware
from minisagan.config import Architecture, Config
from minisagan.errors import Fault
from minisagan.init import Init
from minisagan.models import Discriminator, Generator
from minisagan.run import checkpoint
from minisagan.train import Training

NETS = {  # name -> networks, batch; the paper's have 1,000 classes, and attention at 32x32
    "mnist": (Architecture(), 64),
    "paper128": (Architecture(size=128, channels=3, width=64, classes=1000, attention=32), 64),
}
MPIEXEC = shutil.which("mpiexec") or shutil.which(Path(sys.executable).with_name("mpiexec"))
MINISAGAN = tuple(f"minisagan, {how}" for how in ("graphs", "eager"))
TWINS = tuple(f"PyTorch, {how}" for how in ("graphs", "eager", "compiled", "compiled, graphs"))
LIMIT = 120  # seconds for a part: what compiles for longer is no use here
SAMPLE = 2  # images by which the work of a step is counted: it grows with the batch, but for the weights' part
ROW = "  {:9} {:8} {:28}{:>10}{:>10}{:>12}"


@click.command(context_settings={"help_option_names": ["-h", "--help"], "show_default": True})
@click.option("--net", "nets", type=click.Choice(list(NETS)), multiple=True, default=list(NETS))
@click.option("--steps", type=click.IntRange(1), default=10, help="Tens of steps to time.")
@click.option("--minutes", type=click.FloatRange(0, min_open=True), default=8, help="After them the rest is left out.")
@click.option("--torch/--no-torch", "with_torch", default=True, help="Time PyTorch, too, if it is installed.")
@click.option("--device", "where", metavar="cuda[:N]", default="cuda", help="Which GPU.")
def main(nets, steps, minutes, with_torch, where):
    """Report what only a GPU can tell about minisagan."""
    end, times = time.monotonic() + 60 * minutes, {}
    with_torch = with_torch and importlib.util.find_spec("torch") is not None
    for part, *args in parts(nets, steps, with_torch):
        for told in apart(end, where, part, *args):
            if isinstance(told, Fault):  # of choosing the GPU
                raise click.ClickException(str(told))
            if isinstance(told, dict):
                times |= told
            else:
                click.echo(told)  # at once: what has been said stays if the next part takes the machine down
    for (net, precision, label), seconds in times.items():
        ours = times.get((net, precision, MINISAGAN[0]))
        if ours and label in TWINS:
            click.echo(f"{net}, {precision}: minisagan's graphs take {ours / seconds:.2f} of the time of {label}")


def parts(nets, steps, with_torch):
    """(function, arguments...) of all that is to be found out, what is most wanted first. The first says whose."""
    yield about,
    for tf32 in (False, True):
        yield close, parity.SMALL, tf32
    yield same, parity.SMALL
    yield columns,
    programs = MINISAGAN[:1] + with_torch * TWINS[:2] + MINISAGAN[1:]
    for label in programs:
        for net in nets:
            yield fast, net, *NETS[net], label, steps, True, AHEAD
    for net in nets:
        yield floor, net, *NETS[net], True
    for label in with_torch * TWINS[2:]:
        for net in nets:
            yield fast, net, *NETS[net], label, steps, True, AHEAD
    for label in MINISAGAN[:1] + with_torch * TWINS[:1]:
        for net in nets:
            yield fast, net, *NETS[net], label, steps, False, AHEAD
    for net in nets:
        yield floor, net, *NETS[net], False
    yield scaling,


def apart(end, where, part, *args):
    """What `part` yields in a process of its own, and a line if it fails, crashes or takes too long."""
    name = _name(part, args)
    left = end - time.monotonic()
    if left <= 0:
        yield f"  {name}: left out, the time is up"
        return
    # A fork is enough while this process has not touched a GPU, which it does in tests only.
    context = multiprocessing.get_context("spawn" if sys.platform == "win32" or _touched() else "fork")
    ours, theirs = context.Pipe(duplex=False)
    process = context.Process(target=_tell, args=(theirs, where, part, args))
    process.start()
    theirs.close()
    limit = left if part is scaling else min(left, LIMIT)
    stop = time.monotonic() + limit
    try:
        while ours.poll(max(0, stop - time.monotonic())):
            yield ours.recv()
        yield f"  {name}: stopped, it took more than {limit:.0f} s"
    except EOFError:
        process.join(10)
        if process.exitcode:
            yield f"  {name}: failed, its process ended with {process.exitcode}"
    finally:
        process.kill()
        process.join()


def _name(part, args):
    return " ".join([part.__name__, *(x for x in args if isinstance(x, str))])


def _touched():
    return "cupy" in sys.modules and cuda.in_use()


def _tell(pipe, where, part, args):
    cpu.set_threads()  # a fork has none of the threads of the process that it came from
    try:
        where = hardware.choose(where)
        for told in part(*args) if part is not about else about(where):
            pipe.send(told)
    except Fault as error:
        pipe.send(error if part is about else f"  {_name(part, args)}: {error}")
    except Exception as error:  # such as a torch.compile without a compiler
        said = str(error).strip().splitlines() or [""]
        pipe.send(f"  {_name(part, args)}: failed, {type(error).__name__}: {said[0]}")
    pipe.close()


def about(where):
    yield f"minisagan on {hardware.describe(where)}"
    yield f"{datetime.now(UTC):%Y-%m-%d %H:%M} UTC; driver for CUDA {hardware.driver()}; {platform.platform()}"
    yield "The GPU's training step against the CPU's: relative differences of the losses, and of all gradients"


def close(config, tf32):
    """Parity."""
    cuda.tf32 = tf32
    errors = ", ".join(f"{what} {error:.1e}" for what, error in parity.errors(config).items())
    yield f"  {_precision():8} {errors}"


def same(config, steps=4):
    """Determinism, graphs."""
    dataset = parity.noise_images(config, 3 * config.batch_size)
    runs = [Training(config, dataset, gpu=True, graph=graph) for graph in (True, True, False)]
    bits = []
    for run in runs:
        losses = run.advance(steps)
        bits.append((losses, {name: cuda.to_host(x).tobytes() for name, x in run.state().items()}))
    recorded = runs[0].step_both.recorded is not None
    yield f"After {steps} steps, are the bits"
    yield f"  of two trainings the same?              {_verdict(bits[0] == bits[1])}"
    yield f"  of graphs and eager steps the same?     {_verdict(recorded and bits[0] == bits[2])}"


def columns():
    yield "A training step"
    yield ROW.format("net", "products", "program", "ms", "fastest", "MiB")


def fast(net, arch, batch, label, steps, tf32, ahead):
    """The time and the memory of one program on one network."""
    cuda.tf32, config = tf32, Config(batch_size=batch, architecture=arch)
    program, how = label.split(", ", 1)
    (middle, shortest), mib = measure({"minisagan": minisagan, "PyTorch": pytorch}[program], config, how, steps, ahead)
    yield ROW.format(net, _precision(), label, f"{1e3 * middle:.3f}", f"{1e3 * shortest:.3f}", f"{mib:,.0f}")
    yield {(net, _precision(), label): middle}


def floor(net, arch, batch, tf32):
    cuda.tf32 = tf32
    product, copy = rates()
    work = Work.of(Config(batch_size=batch, architecture=arch))
    flop_ms, byte_ms = 1e3 * work.flop / product, 1e3 * work.bytes / copy
    rate = f"{work.flop / 1e9:,.0f} GFLOP at {product / 1e12:.0f} TFLOP/s: {flop_ms:.3f} ms"
    moved = f"{work.bytes / 1e9:.2f} GB at {copy / 1e9:,.0f} GB/s: {byte_ms:.3f} ms"
    yield f"  {net:9} {_precision():8} floor: {rate}; {moved}"


def scaling(steps=20, batch=64, network=("--size", 128, "--width", 64)):
    """Bits of 1, 2, 4, ... ranks with a GPU each after so many steps; times of a batch shared, and of one each."""
    there = cuda.cupy().cuda.runtime.getDeviceCount()
    counts = [count for count in (1, 2, 4, 8) if count <= there]
    yield f"Ranks with a GPU each, GPUs here: {there}"
    if there == 1 or not MPIEXEC:
        yield "  not measured: that takes two GPUs and an mpiexec (pip install mpich mpi4py)"
        return
    bits, times = {}, {}
    for count in counts:
        with tempfile.TemporaryDirectory() as folder:
            ranked(count, "train", "--steps", steps, "--sample-every", 0, "--out", Path(folder, "run"))
            tensors, _ = checkpoint.load(checkpoint.newest(Path(folder, "run", "checkpoints")))
            bits[count] = {name: x.tobytes() for name, x in tensors.items()}
        for kind, images in (("shared", batch), ("each", batch * count)):
            facts = json.loads(ranked(count, "bench", *network, "--batch-size", images, "--json"))
            times[count, kind] = facts["step_ms"]
        shared, each = times[count, "shared"], times[count, "each"]
        yield (
            f"  {count}: the bits of one? {_verdict(bits[count] == bits[1])}; a batch of {batch} {shared:.2f} ms, "
            f"{times[1, 'shared'] / shared:.2f} times as fast as one; {batch} each {each:.2f} ms, "
            f"{times[1, 'each'] / each:.0%} as efficient"
        )


def ranked(count, *args):
    """What a command of minisagan on so many ranks prints."""
    start = [MPIEXEC, "-n", count] if count > 1 else []
    command = map(str, (*start, sys.executable, "-m", "minisagan", *args, "--device", "cuda"))
    return subprocess.run(list(command), check=True, capture_output=True, text=True).stdout


def measure(program, config, how, count, ahead):
    """((median, shortest) seconds of a step, MiB), of `count` times `ahead` steps after the first two times."""
    advance, memory = program(config, how, ahead)
    for _ in range(2):
        advance()
    found = []
    for _ in range(count):
        start = time.perf_counter()
        advance()
        found.append((time.perf_counter() - start) / ahead)
    return (float(np.median(found)), min(found)), memory() / 2**20


def minisagan(config, how, ahead):
    """(what makes `ahead` steps and waits for them, what tells the bytes in use)."""
    before = _used()
    training = Training(config, parity.noise_images(config, config.batch_size), gpu=True, graph=how == "graphs")
    return lambda: training.advance(ahead), lambda: _used() - before


def pytorch(config, how, ahead):
    """The same for the twin: images, noise and labels are drawn on the GPU, Adam is fused."""
    import pytorch_twin as twins
    import torch

    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = cuda.tf32
    torch.backends.cudnn.benchmark = True
    arch, n, gpu = config.architecture, config.batch_size, torch.device("cuda", cuda.cupy().cuda.Device().id)
    torch.cuda.reset_peak_memory_stats(gpu)
    init = Init(0, arch.init)
    networks = Generator(arch, init), Discriminator(arch, init)
    G, D = (twins.twin(network, torch.channels_last).to(gpu) for network in networks)
    adam_g, adam_d = (twins.adam(network, 1e-4, capturable="graphs" in how) for network in (G, D))
    ema = twins.EMA(G)
    if "compiled" in how:
        G.compile()
        D.compile()
    images = torch.randint(0, 256, (n, arch.channels, arch.size, arch.size), dtype=torch.uint8, device=gpu)
    images = images.contiguous(memory_format=torch.channels_last)

    def step():
        real = images[torch.randint(0, n, (n,), device=gpu)] / 127.5 - 1
        real = real.contiguous(memory_format=torch.channels_last)
        labels, fake_labels = torch.randint(0, arch.classes, (2, n), device=gpu)
        z = torch.randn(n, arch.latent, device=gpu)
        twins.training_step(G, D, adam_g, adam_d, ema, real, labels, z, fake_labels)

    if "graphs" in how:
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):
                step()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            step()
        step = graph.replay

    def advance():
        for _ in range(ahead):
            step()
        torch.cuda.synchronize(gpu)

    return advance, lambda: torch.cuda.max_memory_reserved(gpu)


@dataclass
class Work:
    """What a training step has to do at least, by what it does on the CPU, where it is fused as far.

    flop: of the matrix products. bytes: the result of each op written and read once on the way forward, read again on
    the way back, and its cotangent written and read; Adam's 7 and the running average's 3 accesses to each weight.
    """

    flop: float
    bytes: float

    @classmethod
    def of(cls, config):
        """Counted on batches of SAMPLE and twice that, so that what does not grow with the batch is told apart."""
        counts = np.array([cls._count(config, n) for n in (SAMPLE, 2 * SAMPLE)])
        each = (counts[1] - counts[0]) / SAMPLE
        return cls(*(counts[0] + (config.batch_size - SAMPLE) * each))

    @staticmethod
    def _count(config, n):
        config = Config(batch_size=n, architecture=config.architecture)
        training, moved, plain = Training(config, parity.noise_images(config, n)), [], Tensor.__init__

        def counting(self, data, parents=(), vjp=None, op=""):
            plain(self, data, parents, vjp, op)
            if vjp is not None and not isinstance(data, list):  # the arrays of a joint op count one by one
                moved.append(data.nbytes * (5 if recording() else 2))

        Tensor.__init__ = counting
        try:
            with bench.counted_products() as products:
                training.advance()
        finally:
            Tensor.__init__ = plain
        weights = len(training.adam_g.weights), len(training.adam_d.weights)
        return sum(products), sum(moved) + 4 * (10 * weights[0] + 7 * weights[1])


def rates(side=8192, size=1 << 30):
    """What this GPU does in a large product (FLOP/s, as cuda.tf32 says) and in a large copy (bytes/s, both ways)."""
    cupy = cuda.cupy()
    a = cupy.zeros((side, side), np.float32)
    product = 2 * side**3 / _seconds(lambda: cuda.matmul(a, a))
    x = cupy.zeros(size // 4, np.float32)
    y = cupy.empty_like(x)
    return product, 2 * size / _seconds(lambda: y.__setitem__(..., x))


def _seconds(work, count=10):
    """The time that `work` takes on the GPU."""
    cupy = cuda.cupy()
    for _ in range(2):
        work()
    cupy.cuda.get_current_stream().synchronize()
    start = time.perf_counter()
    for _ in range(count):
        work()
    cupy.cuda.get_current_stream().synchronize()
    return (time.perf_counter() - start) / count


def _used():
    free, total = cuda.cupy().cuda.Device().mem_info
    return total - free


def _precision():
    return "TF32" if cuda.tf32 else "float32"


def _verdict(right):
    return "yes" if right else "NO"


if __name__ == "__main__":
    main()
