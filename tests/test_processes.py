"""Processes that share a batch: the bits of one process, and no process left behind."""

import json
import os
import platform
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest

from minisagan import batch, cpu, ops, parity, processes
from minisagan.autograd import Tensor, grad
from minisagan.config import Architecture, Config
from minisagan.errors import Fault, UsageError
from minisagan.init import Init
from minisagan.measures import measure
from minisagan.module import Module
from minisagan.optim import Adam
from minisagan.processes import fork
from minisagan.train import Training, descend

forks = pytest.mark.skipif(sys.platform != "linux", reason="batches are shared on Linux only")
CONFIG = Config(batch_size=64, flip=True, architecture=Architecture(width=8, classes=3))
DATA = parity.noise_images(CONFIG, 100)


def opened(processes, config=CONFIG):
    """A Training whose gates of attention are open, so that all of it matters."""
    training = Training(config, DATA, processes=processes)
    parity.open_gates(training.G, training.D)
    return training


def bits(training):
    return {name: x.tobytes() for name, x in training.state().items()}


@forks
@pytest.mark.parametrize(
    "config",
    [
        CONFIG,
        replace(CONFIG, d_steps=2, beta1=0.5, architecture=replace(CONFIG.architecture, classes=0)),
        replace(CONFIG, architecture=replace(CONFIG.architecture, spectral_norm="none", attention_form="paper")),
        replace(CONFIG, batch_size=2 * fork.FEWEST),
        replace(CONFIG, batch_size=16 * fork.FEWEST, architecture=replace(CONFIG.architecture, pack=2)),
        replace(CONFIG, augment=True, accumulate=2),
    ],
    ids=["conditional", "unconditional", "without spectral norm", "the fewest images", "packs", "micro-batches"],
)
def test_not_one_bit_depends_on_how_many_processes_share_a_batch(config):
    alone = opened(1, config)
    losses = [alone.advance(), alone.advance(2)]
    for count in (2, 4, 8) if config.batch_size > 8 else (2,):
        together = opened(count, config)
        assert [together.advance(), together.advance(2)] == losses
        assert bits(together) == bits(alone)
        assert measure(together) == measure(alone)
        assert np.array_equal(together.adam_g.g, alone.adam_g.g) and np.abs(alone.adam_g.g).max() > 0


@forks
@pytest.mark.skipif(platform.machine() not in ("x86_64", "AMD64"), reason="a choice among x86 processors' code")
def test_not_one_bit_depends_on_the_processes_with_the_avx2_code_of_blas_either():
    """That code adds up in another order if matrices are cut or lie otherwise, where AVX-512's does not."""
    others = "not_one_bit_depends_on_how_many and (conditional or packs)"
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", __file__, "-k", others]
    environment = os.environ | {"OPENBLAS_CORETYPE": "Haswell", "PYTHONPATH": str(Path(cpu.__file__).parents[1])}
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600)
    assert done.returncode == 0 and "3 passed" in done.stdout, done.stdout + done.stderr


def test_processes_that_cannot_have_equal_shares_are_refused():
    for count, size in ((3, 64), (16, 64), (2, 9), (0, 64)):
        with pytest.raises(UsageError, match=f"{count} processes: must divide the 8 parts .* a batch of {size}"):
            Training(replace(CONFIG, batch_size=size), DATA, processes=count)


@forks
def test_what_is_loaded_between_steps_reaches_all_processes():
    first, second, alone = opened(2), opened(2), opened(1)
    first.advance()
    second.advance(3)  # somewhere else
    alone.advance()
    for name, x in second.state().items():
        x[...] = first.state()[name]
    second.step = 1
    assert second.advance(2) == alone.advance(2) and bits(second) == bits(alone)


def test_a_sum_over_the_batch_has_one_order_however_many_processes_share_it(monkeypatch):
    x = np.random.default_rng(0).standard_normal((19, 3)).astype(np.float32)  # 19: parts of two and of three images
    add = lambda part: part.sum(0)
    whole = batch.sum(add, x)
    np.testing.assert_allclose(whole, x.astype(np.float64).sum(0), 1e-5)
    assert batch.sum(add, x[:3]).tolist() == (x[0] + x[2] + x[1]).tolist()  # k and k + 2 first; empty parts are 0
    for world in (2, 4, 8):
        shares = []
        for rank in range(world):
            with processes.member(SimpleNamespace(parts=8, world=world, rank=rank)):
                shares.append(batch.sum(add, processes.share(x)))
        group = processes.Group()
        group.parts, group.world, group.exchange = 8, world, lambda x, shares=shares: np.stack(shares)
        with processes.member(group):
            (total,) = processes.total([shares[0]])
        assert total.tolist() == whole.tolist()


@pytest.mark.parametrize("count, images, most", [(16, 99, 8), (16, 4, 2), (16, 1, 1), (0, 9, 8), (19, 99, 1)])
def test_parts_that_are_summed_at_once_are_those_that_are_summed_alone(count, images, most):
    cpu.set_threads(1)
    x, seen = np.random.default_rng(0).standard_normal((count, 2, 3)).astype(np.float32), []

    def sums(x):  # (P, n, 2, 3) -> (P, 3)
        seen.append(x.shape[:2])
        return x.sum((1, 2))

    assert batch.sum_stacked(sums, images, x).tolist() == batch.sum(lambda x: x.sum((0, 1)), x).tolist()
    assert sum(P for P, _ in seen) == 8 and sum(P * n for P, n in seen) == count
    assert max(P for P, _ in seen) == most and all(P == 1 or P * n <= images for P, n in seen)


def test_threads_have_some_parts_each():
    seen = []
    cpu.set_threads(2)
    x = np.ones((32, 1 << 16), np.float32)
    batch.sum_stacked(lambda x: seen.append(len(x)) or x.sum(1), 99, x)
    assert seen == [4, 4]


class Scaled(Module):
    """Somebody's own layer, y = relu(x @ w) a b + c: one op of it and the loss are by one who knows no processes."""

    def __init__(self, dtype):
        init = Init(3, dtype=dtype)
        self.w, self.a, self.b, self.c = (init.weight(shape) for shape in ((6, 5), (1, 5), (1, 5), (1, 1)))

    def __call__(self, x):
        self.used = list(self.parameters().values())
        return scale(ops.relu(Tensor(x) @ self.w), self.a) * self.b + ops.reshape(self.c, ())


def scale(x, a):
    """y = x a, each channel by its own factor: x (N, C), a (1, C)."""
    xd, ad = x.data, a.data

    def vjp(g, needs):
        return g * ad, batch.sum(lambda x, g: (x * g).sum(0, keepdims=True), xd, g)

    return Tensor(xd * ad, (x, a), vjp)


def squared_error(y, t):
    """The mean of (y - t)^2 over all elements of y."""
    difference = y - t
    return (difference * difference).mean()


@forks
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_an_op_and_a_loss_of_ones_own_have_the_same_bits_however_many_processes_share_the_batch(dtype):
    draw = np.random.default_rng(0).standard_normal
    x, t = draw((24, 6)).astype(dtype), draw((24, 5)).astype(dtype)

    def trained(world):
        layer = Scaled(dtype)
        adam, losses = Adam(layer.parameters(), 0.01), []

        def work(first, count):
            for _ in range(count):
                loss = squared_error(layer(processes.share(x)), processes.share(t))
                descend(loss, layer, adam)
                losses.append(processes.total([np.asarray(loss.data)])[0] / world)

        if world == 1:
            work(0, 5)
        else:
            group = fork.Forks(world, 1 << 12, work, [adam.t])
            group.run(work, 0, 5)
            group.close()
        return adam.g.tobytes(), adam.weights.tobytes(), losses

    *alone, losses = trained(1)
    assert losses[-1] < losses[0] and np.frombuffer(alone[0], dtype).any()
    for world in (2, 4):
        *together, shared = trained(world)
        assert together == alone
        np.testing.assert_allclose(shared, losses, 1e-6 if dtype == np.float32 else 1e-14)


def test_the_gradient_of_a_mean_loss_is_that_of_the_whole_batch():
    """And not twice as large, if each of two processes takes the mean over its half."""
    draw = np.random.default_rng(1).standard_normal
    x, t, layer = draw((8, 6)), draw((8, 5)), Scaled(np.float64)
    whole = grad(squared_error(layer(x), t), layer.used)
    shares = []
    for rank in (0, 1):
        with processes.member(SimpleNamespace(parts=8, world=2, rank=rank)):
            loss = squared_error(layer(processes.share(x)), processes.share(t))
            shares.append(grad(loss, layer.used, np.ones_like(loss.data) / processes.world()))
    for a, b, both in zip(*shares, whole, strict=True):
        np.testing.assert_allclose(a + b, both, rtol=1e-14)


def test_how_many_processes_are_sensible(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    wanted = {(1, 64): 1, (2, 64): 2, (3, 64): 2, (7, 64): 4, (99, 64): 8}
    wanted |= {(8, 63): 1, (8, 34): 2, (8, 16): 4, (4, 8): 2, (2, 6): 1}
    assert {key: fork.sensible(*key) for key in wanted} == wanted
    monkeypatch.setattr(sys, "platform", "darwin")
    assert fork.sensible(8, 64) == 1


@forks
def test_an_exchange_is_of_all_processes_in_order():
    out = cpu.shared(2, np.float64)

    def work(a, b):
        for _ in range(5):
            (found,) = processes.total([np.array([processes.rank() + a, b], np.float64)])
        if processes.rank() == 3:
            out[...] = found

    group = fork.Forks(4, 64, work)
    group.run(work, 10, 7)
    group.close()
    assert out.tolist() == [46, 28] and processes.world() == 1


@forks
def test_a_process_that_dies_ends_the_step_with_a_fault():
    training = opened(4)
    training.advance()
    group = training.team
    os.kill(group.forks[1], signal.SIGKILL)
    with pytest.raises(Fault, match="a process that shared the batch has ended"):
        for _ in range(3):
            training.advance()
    assert group.forks == [] and processes.world() == 1


@forks
def test_an_error_in_a_fork_is_shown_and_ends_all(capfd):
    def work(a, b):
        if processes.rank() == 1:
            raise MemoryError("no more")
        processes.publish()

    group = fork.Forks(2, 8, work)
    with pytest.raises(Fault, match="has ended"):
        group.run(work, 0, 0)
    assert "MemoryError: no more" in capfd.readouterr().err


def children(pid):
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


def begun(folder):
    """A `minisagan train` of two processes in `folder`, some steps old, and its fork's pid."""
    command = [sys.executable, "-m", "minisagan", "train", "--width", "8", "--batch-size", "16", "--threads", "2"]
    train = subprocess.Popen([*command, "--out", folder], stderr=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    log, end = Path(folder) / "log.jsonl", time.monotonic() + 60
    while time.monotonic() < end and not (log.exists() and log.read_text()):
        time.sleep(0.05)
    (fork,) = children(train.pid)
    return train, fork


def gone(pid):
    end = time.monotonic() + 20
    while time.monotonic() < end and os.path.exists(f"/proc/{pid}"):
        time.sleep(0.02)
    return not os.path.exists(f"/proc/{pid}")


ENDS = [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)]


@forks
@pytest.mark.parametrize("number, code", ENDS)
def test_no_process_outlives_a_training(tmp_path, number, code):
    train, fork = begun(tmp_path / "run")
    if number == signal.SIGKILL:
        train.kill()
    else:
        for pid in (fork, train.pid):  # as a terminal does: to all
            os.kill(pid, number)
    _, err = train.communicate(timeout=60)
    assert train.returncode == code and gone(fork), err
    if code > 0:
        assert "Traceback" not in err and list((tmp_path / "run/checkpoints").glob("*.safetensors"))
        assert json.loads((tmp_path / "run/log.jsonl").read_text().splitlines()[0])["step"] == 1


@forks
def test_a_fork_that_is_killed_is_one_line_and_exit_code_1(tmp_path):
    train, fork = begun(tmp_path / "run")
    os.kill(fork, signal.SIGKILL)
    _, err = train.communicate(timeout=60)
    assert train.returncode == 1 and "a process that shared the batch has ended" in err and "Traceback" not in err
