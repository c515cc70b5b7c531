"""Ranks with a GPU each, emulated: the bits of one GPU, eager and as graphs; and what NCCL would not forgive."""

import functools
import importlib
import re
from dataclasses import replace
from types import SimpleNamespace

import command_line
import numpy as np
import pytest
from command_line import PROGRAM, ROOT, minisagan
from ranks import CONFIG, MPIEXEC, PACKS, ranks, script, trained

from minisagan import cuda, processes, team
from minisagan.errors import UsageError
from minisagan.ops import batch_norm_cuda
from minisagan.ops.arithmetic import image_product, image_sum
from minisagan.ops.batch_norm import backward, normalise, statistics
from minisagan.ops.conv import channel_sum, outer
from minisagan.ops.embedding import look_up_backward
from minisagan.ops.hinge import discriminator_forward, generator_forward, mean_scores
from minisagan.ops.resampled_conv import smeared_outer
from minisagan.processes import nccl
from minisagan.run import checkpoint

apart = command_line.apart  # a fixture
needs_mpiexec = pytest.mark.skipif(not MPIEXEC.exists(), reason="no mpiexec beside Python: pip install mpich mpi4py")
emulated = pytest.mark.parametrize("gpu", ["emulated"], indirect=True)
one_gpu = pytest.mark.parametrize("gpu", ["emulated", pytest.param("gpu", marks=pytest.mark.gpu)], indirect=True)
HEAD = """
    from pathlib import Path
    from ranks import emulated
    from minisagan.commands import hardware
    cuda.WARM_UP = 1
    emulated({gpus})
"""


def member(rank, world, exchange=None, parts=8):
    group = SimpleNamespace(parts=parts, world=world, rank=rank, exchange=exchange)
    return processes.member(group)


N = 48  # more than a block has rows of threads, and no power of 2
RANDOM = np.random.default_rng(0)
IMAGES, OTHERS = (RANDOM.standard_normal((N, 5, 6, 7)).astype(np.float32) for _ in range(2))
BOTH = IMAGES, OTHERS
SCORES = RANDOM.standard_normal(1024).astype(np.float32)
LABELS = RANDOM.integers(0, 3, N)
SUMS = {  # name: f, and arrays with an image in each row
    "outer": (lambda x, g: outer(x, g, (3, 3), 1, 1, 1), IMAGES, OTHERS),
    "outer, few channels": (lambda x, g: outer(x, g, (3, 3), 1, 1, 1), IMAGES, OTHERS[..., :2]),
    "outer, stride 2": (lambda x, g: outer(x, g, (4, 4), 2, 1, 1), IMAGES, OTHERS[:, :2, :3]),
    "outer, large images": (lambda x, g: outer(x, g, (1, 1), 1, 0, 0), *(np.tile(x, (1, 3, 2, 1)) for x in BOTH)),
    "smeared_outer": (lambda x, g: smeared_outer(x, g, 1, False), IMAGES[:, :4], OTHERS[:, :2, :3]),
    "smeared_outer, transposed": (lambda x, g: smeared_outer(x, g, 1, True), IMAGES[:, :4], OTHERS[:, :2, :3, :5]),
    "channel_sum": (channel_sum, IMAGES),
    "image_product": (image_product, IMAGES[:, 0, 0], OTHERS[:, 0].reshape(N, -1)),
    "image_sum": (image_sum, IMAGES),
    "look_up_backward": (
        lambda g, labels: look_up_backward([np.zeros((3, 7), g.dtype, like=g)], {0: g}, labels)[0],
        *(IMAGES[:, 0, 0], LABELS),
    ),
    "hinge, D": (lambda x: discriminator_forward(x) * (len(x) // 2), SCORES),
    "means of scores": (lambda x: mean_scores(x)[1] * (len(x) // 2), SCORES),
    "hinge, G": (lambda x: generator_forward(x) * len(x), SCORES),
}


@one_gpu
@pytest.mark.parametrize("name", SUMS)
@pytest.mark.parametrize("parts", [8, 64])
def test_a_gpus_sum_over_the_batch_has_one_order_however_many_share_it(gpu, name, parts):
    f, *arrays = SUMS[name]
    there = [gpu.put(x) for x in arrays]
    with member(0, 1, parts=parts):
        whole = gpu.get(f(*there))
    np.testing.assert_allclose(whole, f(*arrays), rtol=1e-4, atol=1e-4)
    for world in (2, 4, 8):
        found = []
        for rank in range(world):
            with member(rank, world, parts=parts):
                found.append(gpu.get(f(*(gpu.put(np.ascontiguousarray(processes.share(x))) for x in arrays))))
        assert processes.halved(found).tobytes() == whole.tobytes(), world


@one_gpu
@pytest.mark.parametrize("world, parts", [(2, 8), (4, 8), (2, 64)])  # 64: more than join in the launch that finds them
@pytest.mark.parametrize("conditional", [False, True])
def test_batch_norms_of_several_gpus_are_one_gpus(gpu, world, parts, conditional, monkeypatch):
    monkeypatch.setattr(batch_norm_cuda, "BLOCKS", 2 * N)  # so that each image is cut in two
    images, others = (np.tile(x, (1, 5, 4, 1)) for x in BOTH)
    gain = RANDOM.standard_normal((N, 7) if conditional else 7).astype(np.float32)
    where = lambda x: x if x.ndim == 1 else processes.share(x)

    def run(exchange, rank, count):
        """What a process finds, and what it gives to the others on the way; `exchange` brings what all give."""
        with member(rank, count, exchange, parts):
            x, g = (gpu.put(np.ascontiguousarray(processes.share(a))) for a in (images, others))
            gains = gpu.put(np.ascontiguousarray(where(gain)))
            mean, var = statistics(x, None, 0.9)
            y = normalise(x, mean, var, gains, gains, True)
            return [gpu.get(a) for a in (mean, var, *backward(g, x, mean, var, gains, gains, y, False))]

    mean, var, dx, *rest = run(lambda x: x[None], 0, 1)
    given = [[] for _ in range(world)]  # what each rank gives, meeting by meeting, as far as it is known

    class Later(Exception):
        pass

    def exchange(rank, meeting, x):
        k = next(meeting)
        if len(given[rank]) == k:
            given[rank].append(gpu.get(x))
        if any(len(one) <= k for one in given):
            raise Later
        return gpu.put(np.stack([one[k] for one in given]))

    for _ in range(3):  # the first two end at the first and the second meeting
        found = []
        for rank in range(world):
            try:
                found.append(run(functools.partial(exchange, rank, iter(range(9))), rank, world))
            except Later:
                continue
    found = [run(functools.partial(exchange, rank, iter(range(9))), rank, world) for rank in range(world)]
    for rank, (its_mean, its_var, its_dx, *its_rest) in enumerate(found):
        assert its_mean.tobytes() == mean.tobytes() and its_var.tobytes() == var.tobytes()
        assert its_dx.tobytes() == dx[rank::world].tobytes()
        for mine, wanted in zip(its_rest, rest, strict=True):
            if conditional:
                assert mine.tobytes() == wanted[rank::world].tobytes()
    if not conditional:
        for k, wanted in enumerate(rest):
            assert processes.halved([one[3 + k] for one in found]).tobytes() == wanted.tobytes()


@one_gpu
def test_gathered_sums_are_added_in_halves(gpu):
    for count in (2, 4, 8):
        terms = RANDOM.standard_normal((count, 1000)).astype(np.float32) * 10.0 ** RANDOM.integers(-4, 4, (count, 1))
        terms = terms.astype(np.float32)
        found = nccl.Gpus.halved(None, gpu.put(terms))
        assert gpu.get(found).tobytes() == processes.halved(terms).tobytes()


def test_nccl_has_a_version_and_parts_have_a_limit(monkeypatch):
    monkeypatch.setattr(cuda, "nccl", lambda: SimpleNamespace(get_version=lambda: 22707))
    assert nccl.version() == "2.27.7"
    many = replace(CONFIG, parts=2048, batch_size=2048)
    assert team.size(1, many, gpu=False) == 1
    with pytest.raises(UsageError, match="a GPU takes at most 1024 parts"):
        team.size(1, many, gpu=True)


@emulated
def test_scaling_is_measured_with_as_many_gpus_as_there_are(gpu, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    report = importlib.import_module("on_gpu")
    assert "not measured" in list(report.scaling())[1]
    calls = []

    def ranked(count, *args):
        calls.append((count, *args))
        if args[0] == "train":
            folder = args[args.index("--out") + 1] / "checkpoints"
            folder.mkdir(parents=True)
            tensors = {"x": np.full(3, count == 4, np.float32)}
            checkpoint.save(checkpoint.path_of(folder, 20), tensors, {"step": "20"})
        each = args[args.index("--batch-size") + 1] // count if args[0] == "bench" else 0
        return f'{{"step_ms": {10 + each}}}'

    monkeypatch.setattr(gpu.cupy.settings, "gpus", 5)
    monkeypatch.setattr(report, "MPIEXEC", "mpiexec")
    monkeypatch.setattr(report, "ranked", ranked)
    _, one, two, four = report.scaling()
    assert "1: the bits of one? yes; a batch of 64 74.00 ms, 1.00 times as fast as one; 64 each 74.00 ms, 100%" in one
    assert "2: the bits of one? yes; a batch of 64 42.00 ms, 1.76 times" in two and "4: the bits of one? NO;" in four
    assert [call[0] for call in calls] == [1, 1, 1, 2, 2, 2, 4, 4, 4]


@needs_mpiexec
@emulated
@pytest.mark.parametrize("world", [2, 4])
def test_ranks_with_a_gpu_each_end_in_the_bits_of_one_gpu(gpu, tmp_path, monkeypatch, world):
    """Three steps, the last two as graphs; by themselves; and of packs, augmented, in micro-batches."""
    monkeypatch.setattr(cuda, "WARM_UP", 1)
    first = """
        hardware.choose("cuda", tf32=False)
        small = replace(CONFIG, batch_size=2 * mpi.comm().size)
        print(trained(small, 3, None, gpu=True, graph=True), flush=True)
        if mpi.comm().size == 2:
            print(trained(small, 3, None, gpu=True, graph=False), flush=True)
            print(trained(replace(PACKS, batch_size=16, d_steps=1), 2, None, gpu=True, graph=False))
    """
    done = ranks(world, script(tmp_path, first, HEAD.format(gpus=world)))
    assert done.returncode == 0 and "Error" not in done.stderr, done.stderr  # such as at exit
    small, packs = replace(CONFIG, batch_size=2 * world), replace(PACKS, batch_size=16, d_steps=1)
    alone = trained(small, 3, gpu=True, graph=False)
    wanted = [alone, alone, trained(packs, 2, gpu=True, graph=False)] if world == 2 else [alone]
    assert done.stdout.splitlines() == wanted


@needs_mpiexec
def test_each_rank_has_a_gpu_of_its_own_or_none_begins(tmp_path):
    """Two ranks and one GPU; and where a queue shows each rank only its own, which is number 0 to all of them."""
    first = """
        print(hardware.choose("auto"))
        for device in ("cuda:1", "cuda"):
            try:
                hardware.choose(device)
            except Fault as error:
                print(error)
        mpi.spread(other_gpus)
        print(hardware.choose("cuda"))
    """
    head = """
    def other_gpus(rank, world):
        cuda.cupy().Device.pci_bus_id = property(lambda self: rank)
    """
    done = ranks(2, script(tmp_path, first, HEAD.format(gpus=1) + head))
    assert done.returncode == 0, done.stderr
    auto, numbered, shared, own = done.stdout.splitlines()
    assert auto == "cpu" and own == "cuda:0"
    assert numbered.startswith("--device cuda:1: each of MPI's ranks has a GPU of its own, so give no number")
    assert re.match(r"--device cuda: rank 0 on \S+: 2 ranks have 1 of its GPUs, and each needs its own: ", shared)


MISUSED = """
    from emulation.runtime import EmulationError

    def misused(rank, world):
        cupy, nccl, found = cuda.cupy(), cuda.nccl(), []
        stream, x, y = cupy.cuda.Stream(non_blocking=True), cupy.zeros(8, np.float32), cupy.zeros(16, np.float32)
        ours = nccl.NcclCommunicator(2, nccl.get_unique_id(), rank)

        def gather(count, kind=nccl.NCCL_FLOAT32):
            ours.allGather(x.data.ptr, y.data.ptr, count, kind, stream.ptr)

        def send(count):
            nccl.groupStart()
            ours.send(x.data.ptr, count, nccl.NCCL_FLOAT32, 1 - rank, stream.ptr)
            ours.recv(y.data.ptr, 4, nccl.NCCL_FLOAT32, 1 - rank, stream.ptr)
            nccl.groupEnd()

        def tried(call, *given):
            try:
                call(*given)
                found.append("")
            except EmulationError as error:
                found.append(str(error))

        stream.begin_capture()
        tried(gather, 8)
        stream.end_capture()
        for call, *given in (
            (gather, 8), (gather, 8 - rank), (gather, 4, (nccl.NCCL_FLOAT32, nccl.NCCL_UINT32)[rank]), (gather, 9),
            (send, 4), (send, 4 - rank), (gather if rank else send, 4),
        ):
            tried(call, *given)
        stream.begin_capture()
        gather(8)
        graph = stream.end_capture()
        tried(ours.destroy)
        del graph
        tried(ours.destroy)
        return found

    def lonely(rank, world):
        cupy, nccl = cuda.cupy(), cuda.nccl()
        ours, x, nccl.PATIENCE = nccl.NcclCommunicator(2, nccl.get_unique_id(), rank), cupy.zeros(2), 0.5
        if rank:
            try:
                ours.allGather(x.data.ptr, x.data.ptr, 1, nccl.NCCL_FLOAT64, cupy.cuda.get_current_stream().ptr)
            except EmulationError as error:
                Path(__file__).with_name("lonely").write_text(str(error))
                raise
"""


@needs_mpiexec
def test_what_nccl_would_not_forgive_is_an_error_of_the_emulation(tmp_path):
    """The last, a call that others don't make, ends all."""
    first = "for found in mpi.spread(misused):\n    print(*found, sep='|', flush=True)\nmpi.spread(lonely)"
    done = ranks(2, script(tmp_path, first, HEAD.format(gpus=2) + MISUSED))
    for line in done.stdout.splitlines():
        unused, fine, count, kind, memory, sent, uneven, other, graphs, ended = line.split("|")
        assert (fine, sent, ended) == ("", "", "")
        assert "connects when it is first used" in unused and "are not an array's" in memory
        assert all("for different things" in found for found in (count, kind, other))
        assert "what is sent is not what is received" in uneven and "until all graphs have ended" in graphs
    assert done.stdout.count("\n") == 2 and done.returncode != 0
    assert (tmp_path / "lonely").read_text().startswith("some rank does not call NCCL")


@needs_mpiexec
def test_a_run_of_ranks_with_gpus_goes_on_without_them(apart, tmp_path):
    program = "from ranks import *; from minisagan import sampling; cuda.WARM_UP = sampling.STANDING_BATCHES = 1; "
    program += f"emulated(2); {PROGRAM} loop.generate = lambda G, z, y: np.zeros((len(z), 32, 32, 1)); cli()"
    tiny = "--width", 4, "--attention", 8, "--batch-size", 8, "--steps", 3, "--out", "run", "--no-tf32"
    done = ranks(2, "-c", program, "train", *tiny, "--device", "cuda")
    assert done.returncode == 0, done.stderr
    assert re.search(r"cuda:0 \(emulated .+\), processes: 2\n", done.stderr) and "all 3 steps are done" in done.stdout
    assert "all 4 steps" in minisagan("train", "--resume", "run", "--steps", 4, "--device", "cpu", "--threads", 1)[0]
