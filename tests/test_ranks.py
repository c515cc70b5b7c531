"""Processes that share a batch: the bits of one process, and no process left behind."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minisagan import parity, ranks
from minisagan.errors import Fault
from minisagan.models import Architecture
from minisagan.train import Config, Training

forks = pytest.mark.skipif(sys.platform != "linux", reason="batches are shared on Linux only")
CONFIG = Config(batch_size=64, flip=True, architecture=Architecture(width=8, classes=3))
DATA = parity.noise(CONFIG, 100)


def opened(processes, config=CONFIG):
    """A Training whose gates of attention are open, so that all of it matters."""
    training = Training(config, DATA, processes=processes)
    for network in (training.G, training.D):
        network.attention.gamma.data[...] = 0.5
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
        replace(CONFIG, batch_size=2 * ranks.FEWEST),
    ],
    ids=["conditional", "unconditional", "without spectral norm", "the fewest images"],
)
def test_not_one_bit_depends_on_how_many_processes_share_a_batch(config):
    alone = opened(1, config)
    losses = [alone.advance(), alone.advance(2)]
    for processes in (2, 4, 8) if config.batch_size > 8 else (2,):
        together = opened(processes, config)
        assert [together.advance(), together.advance(2)] == losses
        assert bits(together) == bits(alone)
        assert together.measures() == alone.measures()
        assert np.array_equal(together.adam_g.g, alone.adam_g.g) and np.abs(alone.adam_g.g).max() > 0


def test_processes_that_cannot_have_equal_shares_are_refused():
    for processes, batch in ((3, 64), (16, 64), (2, 9)):
        with pytest.raises(ValueError, match=f"{processes} processes: must divide 8 and the batch of {batch}"):
            Training(replace(CONFIG, batch_size=batch), DATA, processes=processes)


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


def test_parts_of_a_batch_are_a_ranks_own_and_add_up_in_one_order(monkeypatch):
    x = np.random.default_rng(0).standard_normal((19, 3)).astype(np.float32)  # 19: parts of two and of three images
    whole = ranks.batch_sum(x)
    np.testing.assert_allclose(whole, x.astype(np.float64).sum(0), 1e-5)
    assert ranks.batch_sum(x[:3]).tolist() == (x[0] + x[2] + x[1]).tolist()  # k and k + 2 first; empty parts are 0
    for world in (2, 4, 8):
        shares = []
        for rank in range(world):
            monkeypatch.setattr(ranks, "_group", type("Group", (), {"world": world, "rank": rank}))
            shares.append(ranks.batch_sum(ranks.share(x)))
        monkeypatch.setattr(ranks, "_group", None)
        assert ranks.halved(np.stack(shares)).tolist() == whole.tolist()


def test_how_many_processes_are_sensible(monkeypatch):
    monkeypatch.setattr(sys, "platform", "linux")
    wanted = {(1, 64): 1, (2, 64): 2, (3, 64): 2, (7, 64): 4, (99, 64): 8}
    wanted |= {(8, 63): 1, (8, 34): 2, (8, 16): 4, (4, 8): 2, (2, 6): 1}
    assert {key: ranks.sensible(*key) for key in wanted} == wanted
    monkeypatch.setattr(sys, "platform", "darwin")
    assert ranks.sensible(8, 64) == 1


@forks
def test_an_exchange_is_of_all_ranks_in_order():
    out = ranks.shared(2, np.float64)

    def work(a, b):
        for _ in range(5):
            found = ranks.total(np.array([ranks.rank() + a, b], np.float64))
        if ranks.rank() == 3:
            out[...] = found

    group = ranks.Group(4, 64, work)
    group.call(10, 7)
    with group.joined():
        work(10, 7)
    group.close()
    assert out.tolist() == [46, 28] and ranks.world() == 1


@forks
def test_a_process_that_dies_ends_the_step_with_a_fault():
    training = opened(4)
    training.advance()
    group = training.group
    os.kill(group.forks[1], signal.SIGKILL)
    with pytest.raises(Fault, match="a process that shared the batch has ended"):
        for _ in range(3):
            training.advance()
    assert group.forks == [] and ranks.world() == 1


@forks
def test_an_error_in_a_fork_is_shown_and_ends_all(capfd):
    def work(a, b):
        if ranks.rank() == 1:
            raise MemoryError("no more")
        ranks.meet()

    group = ranks.Group(2, 8, work)
    group.call(0, 0)
    with pytest.raises(Fault, match="has ended"), group.joined():
        work(0, 0)
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


@forks
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGKILL, -9)])
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
