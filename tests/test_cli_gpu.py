"""The command line and the GPU: what it says where there is none, and what it does where there is one."""

import importlib
import json
import os
import re
import signal
import time
from types import SimpleNamespace

import command_line
import numpy as np
import pytest
from click.testing import CliRunner
from command_line import ROOT, SMALL, minisagan, refused

from minisagan import bench, cuda, parity, sampling
from minisagan.commands import hardware
from minisagan.config import Architecture, Config
from minisagan.run import checkpoint, loop
from minisagan.run import folder as runs
from minisagan.train import Training

apart = command_line.apart  # a fixture
pytestmark = pytest.mark.usefixtures("apart")
one_gpu = pytest.mark.parametrize("gpu", ["emulated", pytest.param("gpu", marks=pytest.mark.gpu)], indirect=True)
SMALLER = Config(batch_size=2, architecture=Architecture(width=4, attention=8, latent=8, classes=3, attention_key=8))
TINY = "--batch-size", 2, "--width", 4, "--attention", 8, "--threads", 1


@pytest.fixture(autouse=True)
def tf32():
    """What `choose` sets stays in the test."""
    before = cuda.tf32
    yield
    cuda.tf32 = before


# Without one


def failing(error):
    def fail(*args):
        raise error

    return fail


@pytest.mark.parametrize(
    "driver, remedy",
    [
        (None, "nor is there an NVIDIA driver; with one, pip install 'minisagan[cuda13]', or "),
        (11, "the driver is for CUDA 11; with a newer one, pip install 'minisagan[cuda13]' or [cuda12]"),
        (12, "pip install 'minisagan[cuda12]' "),
        (13, "pip install 'minisagan[cuda13]' "),
        (14, "pip install 'minisagan[cuda13]' "),  # drivers run what was built for older ones
    ],
)
def test_without_cupy_the_line_names_the_extra_to_install(driver, remedy, monkeypatch, tmp_path):
    monkeypatch.setattr(cuda, "cupy", failing(ModuleNotFoundError("No module named 'cupy'")))
    monkeypatch.setattr(hardware, "driver", lambda: driver)
    line = refused("train", "--device", "cuda", "--out", "x", code=1)
    assert line.startswith(f"Error: --device cuda: CuPy is not installed; {remedy}")
    assert line.endswith("; use --device cpu, or leave that out\n") and list(tmp_path.iterdir()) == []
    assert hardware.choose("auto") == "cpu"


def stand_in(count, sum_of_three=lambda: 3):
    runtime = SimpleNamespace(getDeviceCount=count)
    return SimpleNamespace(
        cuda=SimpleNamespace(runtime=runtime, Device=lambda number: SimpleNamespace(use=lambda: None)),
        arange=lambda n: SimpleNamespace(sum=sum_of_three),
    )


@pytest.mark.parametrize(
    "cupy, words",
    [
        (failing(ImportError("libcudart.so.13: no such file")), "CuPy fails: libcudart.so.13: no such file; "),
        (lambda: stand_in(failing(RuntimeError("cudaErrorNoDevice"))), "no GPU can be used: cudaErrorNoDevice; "),
        (lambda: stand_in(lambda: 0), "there is no GPU; "),
        (lambda: stand_in(lambda: 1), "there is no GPU 1, the last one is 0; "),
        (lambda: stand_in(lambda: 2, failing(RuntimeError("no nvrtc"))), "GPU 1 does not work: no nvrtc; "),
    ],
)
def test_a_gpu_that_cannot_be_used_is_one_line(cupy, words, monkeypatch):
    monkeypatch.setattr(cuda, "cupy", cupy)
    for args in (["train", "--out", "x"], ["bench"], ["gradcheck"]):
        assert f"Error: --device cuda:1: {words}" in refused(*args, "--device", "cuda:1", code=1)
    assert not cuda.in_use()


def test_auto_takes_the_cpu_where_the_gpu_does_not_work(monkeypatch):
    monkeypatch.setattr(cuda, "cupy", lambda: stand_in(lambda: 1, failing(RuntimeError("no nvrtc"))))
    assert "; cpu, threads: 1\n" in minisagan("train", *SMALL, "--steps", 0, "--out", "x")[1]
    assert not cuda.in_use()


# With one


@pytest.fixture
def few(monkeypatch):
    """Fewer images where a run draws some: the emulation is slow."""
    draw = sampling.generate

    def generate(generator, z, labels):
        return np.resize(draw(generator, z[:2], labels[:2]), (len(z), 32, 32, 1))

    monkeypatch.setattr(loop, "generate", generate)
    monkeypatch.setattr(sampling, "STANDING_BATCHES", 2)


@one_gpu
def test_a_run_begun_on_the_gpu_goes_on_on_the_cpu_and_back(gpu, few, monkeypatch):
    monkeypatch.setattr(loop, "LOG_EVERY", 2)
    monkeypatch.setattr(cuda, "WARM_UP", 1)
    counts, advance = [], Training.advance
    monkeypatch.setattr(Training, "advance", lambda self, n=1: (counts.append(n), advance(self, n))[1])
    _, stderr = minisagan("train", *TINY, "--steps", 5, "--no-tf32", "--checkpoint-every", 5, "--out", "x")
    assert re.search(r"cuda:0 \(.+, CuPy .+, products in float32\), threads: 1\n", stderr)  # what auto took
    assert counts == [1, 1, 2, 1]  # until the next line of the log is due
    log = runs.read_log("x")
    assert [record["step"] for record in log] == [1, 2, 4]
    assert all(np.isfinite(list(record.values())).all() for record in log)
    minisagan("train", "--resume", "x", "--device", "cpu", "--threads", 1, "--steps", 6)
    stdout, _ = minisagan("train", "--resume", "x", "--device", "cuda:0", "--no-graph", "--threads", 1, "--steps", 7)
    assert stdout.startswith("x: all 7 steps are done")
    tensors, about = checkpoint.load(checkpoint.newest("x/checkpoints"))
    assert about["step"] == "7" and tensors["adam_d.t"] == tensors["ema.t"] == 7
    assert "CuPy" in json.loads(about["versions"])["gpu"]
    minisagan("sample", "x", "--count", 5, "-o", "gpu.npz", "--device", "cuda")
    minisagan("sample", "x", "--count", 5, "-o", "cpu.npz", "--device", "cpu")
    images = [np.load(file)["images"].astype(int) for file in ("gpu.npz", "cpu.npz")]
    assert images[0].std() > 0 and abs(images[0] - images[1]).max() <= 1


@one_gpu
def test_too_little_memory_on_the_gpu_is_one_line(gpu, few, monkeypatch):
    def exhausted(self, count):
        raise gpu.cupy.cuda.memory.OutOfMemoryError(1234, 5678)

    monkeypatch.setattr(Training, "advance", exhausted)
    stderr = minisagan("train", *TINY, "--steps", 1, "--out", "x", code=1)[1]
    line = "the GPU's memory is too small for a batch of 2 with these networks: Out of memory allocating 1,234 bytes"
    line += " (allocated so far: 5,678 bytes)"
    assert f"Error: {line}. A smaller --batch-size" in stderr and stderr.count("\n") == 2
    assert runs.find("x").name == "step-00000000.safetensors"


@one_gpu
def test_gradcheck_on_the_gpu(gpu):
    stdout, _ = minisagan("gradcheck", "--op", "add", "--device", "cuda")
    assert "PASS  add: broadcast" in stdout and "checks passed" in stdout


@one_gpu
def test_bench_on_the_gpu(gpu, monkeypatch):
    monkeypatch.setattr(bench, "AHEAD", 1)
    args = "--steps", 1, "--batch-size", 1, "--width", 8, "--no-graph", "--device", "cuda", "--json"
    facts = json.loads(minisagan("bench", *args)[0])
    assert facts["device"].startswith("cuda:0 (") and "TF32" in facts["device"] and facts["step_ms"] > 0
    assert "ops" not in facts


@one_gpu
def test_doctor_compares_the_gpu_with_the_cpu(gpu, monkeypatch):
    monkeypatch.setattr(parity, "SMALL", SMALLER)
    text = minisagan("doctor")[0]
    assert re.search(r"^GPU +.*; used as .+, CuPy ", text, re.M)
    assert re.search(r"^NCCL +(2\.|not installed: pip install nvidia-nccl-cu1)", text, re.M)
    line = r"^GPU against CPU  (\w+): losses (\S+), gradients of D (\S+), gradients of G (\S+) "
    found = re.findall(line, text, re.M)
    assert [line[0] for line in found] == ["float32", "TF32"]
    assert 0 < float(found[0][3]) < 1e-3 and float(found[1][3]) < 5e-2


@one_gpu
def test_the_report_of_what_only_a_gpu_can_tell(gpu, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    report = importlib.import_module("on_gpu")
    monkeypatch.setattr(parity, "SMALL", SMALLER)
    monkeypatch.setattr(report, "NETS", {"mnist": (SMALLER.architecture, 2)})
    monkeypatch.setattr(report, "AHEAD", 1)
    monkeypatch.setattr(report, "rates", lambda: (1e10, 1e9))
    monkeypatch.setattr(report, "LIMIT", 1000)  # the emulation takes its time
    args = ["--net", "mnist", "--steps", "1", "--no-torch", "--minutes", "60"]
    text = CliRunner().invoke(report.main, args, catch_exceptions=False).output
    assert re.search(r"minisagan on cuda:0 \(.+\)\n\d{4}-\d\d-\d\d .+ UTC", text)
    assert re.search(r"  float32  losses \S+, gradients of D \S+, gradients of G \S+\n  TF32 ", text)
    assert re.findall(r"the same\? +(\w+)", text) == ["yes", "yes"] and "failed" not in text
    rows = re.findall(r"  mnist +(TF32|float32) +minisagan, (graphs|eager) +(\S+) +(\S+) +\S+\n", text)
    assert [row[:2] for row in rows] == [("TF32", "graphs"), ("TF32", "eager"), ("float32", "graphs")]
    assert all(float(row[2]) > 0 for row in rows)
    floors = re.findall(r"(TF32|float32) +floor: \S+ GFLOP at \S+ TFLOP/s: (\S+) ms; .+ GB/s: (\S+) ms", text)
    assert len(floors) == 2 and min(float(ms) for row in floors for ms in row[1:]) > 0


def crash():
    yield "before"
    os.kill(os.getpid(), signal.SIGSEGV)


def hang():
    yield "before"
    time.sleep(100)


def fail():
    yield "before"
    raise MemoryError("no memory\nof that size")


@pytest.mark.parametrize("gpu", ["emulated"], indirect=True)
def test_a_part_of_that_report_that_fails_crashes_or_hangs_takes_no_other_along(gpu, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "examples")
    report = importlib.import_module("on_gpu")
    monkeypatch.setattr(report, "parts", lambda *_: [(crash,), (fail,), (report.columns,), (hang,)])
    monkeypatch.setattr(report, "LIMIT", 5)
    lines = CliRunner().invoke(report.main, ["--no-torch"], catch_exceptions=False).output.splitlines()
    assert lines[:4] == ["before", "  crash: failed, its process ended with -11", "before",
                         "  fail: failed, MemoryError: no memory"]  # fmt: skip
    assert lines[4] == "A training step" and lines[6:] == ["before", "  hang: stopped, it took more than 5 s"]
    late = CliRunner().invoke(report.main, ["--minutes", "1e-9"], catch_exceptions=False).output
    assert "left out, the time is up" in late and "before" not in late
