"""What a training step costs, in numbers that are the same on every machine: a guard against silent regressions."""

import json
import tracemalloc

import numpy as np
import pytest

from minisagan import bench, cpu, data
from minisagan.autograd import Tensor, grad
from minisagan.commands import cli
from minisagan.config import Config
from minisagan.ops import relu
from minisagan.train import Training


@pytest.fixture(scope="module")
def training():
    """The network of --dataset mnist on a small batch, two steps old."""
    noise = np.random.default_rng(0).integers(0, 256, (16, 28, 28, 1), np.uint8)
    dataset = data.Dataset("noise", noise, np.arange(16) % 10, tuple("0123456789"), {})
    training = Training(Config(batch_size=16), dataset)
    bench.times(training, 2)
    return training


def test_a_step_multiplies_no_more_than_the_fused_networks_need(training):
    """14.1 GFLOP at batch 64. Up-sampling before convolving, pooling after it, and D's weight gradients in the G step
    would make it 23; each of the three alone adds more than the 2 % allowed here."""
    with bench.counted_products() as products:
        training.advance()
    assert sum(products) / 16 == pytest.approx(14.1e9 / 64, rel=0.02)


def test_a_step_makes_no_more_nodes_than_it_did(training, monkeypatch):
    made, plain = [], Tensor.__init__
    monkeypatch.setattr(Tensor, "__init__", lambda self, *args: (made.append(1), plain(self, *args))[1])
    training.advance()
    assert len(made) <= 300


def test_a_step_holds_no_more_memory_at_once_than_it_did(training):
    tracemalloc.start()
    try:
        training.advance()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < 30e6, f"{peak / 1e6:.1f} MB at once in a step of 16 images"  # 26.1 when this was written


def test_a_clock_for_each_op_counts_its_calls_and_goes_away(training):
    with bench.watched() as spent:
        training.advance()
    assert {"conv", "up_conv", "conv_down", "batch_norm", "attend", "spectral_norm"} <= set(spent)
    assert (spent["up_conv"].forward_calls, spent["up_conv"].backward_calls) == (6, 3)  # 3 in G, run twice, walked once
    assert all(s.forward > 0 and (s.backward > 0) == (s.backward_calls > 0) for s in spent.values())
    assert Tensor.__init__.__qualname__ == "Tensor.__init__"


def test_the_clock_gives_an_op_its_own_time():
    with bench.watched() as spent:
        x = Tensor(np.ones(3))
        (dx,) = grad(relu(x), [x], np.ones(3))
    assert list(spent) == ["relu"] and spent["relu"].forward_calls == 1 and dx.tolist() == [1, 1, 1]


def test_the_machines_own_rate_is_a_rate():
    assert 0.1 < bench.gemm_rate(0.05) < 1e5


def test_the_command_prints_its_facts_as_json(capsys):
    before = cpu.threads()
    try:
        with pytest.raises(SystemExit) as done:
            cli.main(["bench", "--steps", "1", "--batch-size", "2", "--width", "8", "--threads", "1", "--json"])
    finally:
        cpu.set_threads(before)
    facts = json.loads(capsys.readouterr().out)
    assert done.value.code == 0 and facts["threads"] == 1 and facts["step_ms"] > 0
    assert facts["images_per_second"] == pytest.approx(2e3 / facts["step_ms"])
    assert facts["gflops"] == pytest.approx(facts["gflop_per_step"] / facts["step_ms"] * 1e3)
