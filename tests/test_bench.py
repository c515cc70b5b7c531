"""What a training step costs, in numbers that are the same on every machine: a guard against silent regressions."""

import json
import tracemalloc
import types

import numpy as np
import pytest

from minisagan import bench, cpu, data, optim_numpy, rng
from minisagan.autograd import Tensor, grad
from minisagan.commands import cli
from minisagan.config import Config
from minisagan.ops import arithmetic, conv_numpy, relu
from minisagan.processes import Alone
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
    """10.1 GFLOP at batch 64; PyTorch counts 19.8 of its own, which samples up before it convolves, and pools after it.
    Each of these, doing without Winograd's, D's weight gradients in G's step or a second run of G adds over 2 %."""
    with bench.counted_products() as products:
        training.advance()
    assert sum(products) / 16 == pytest.approx(10.05e9 / 64, rel=0.02)


def test_a_step_makes_no_more_nodes_than_it_did(training, monkeypatch):
    made, plain = [], Tensor.__init__
    monkeypatch.setattr(Tensor, "__init__", lambda self, *args: (made.append(1), plain(self, *args))[1])
    training.advance()
    assert len(made) <= 190


def test_a_step_holds_no_more_memory_at_once_than_it_did(training):
    tracemalloc.start()
    try:
        training.advance()
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    # 26.9 when this was written, 8 of them G's tape, which lives while D makes its step.
    assert peak < 30e6, f"{peak / 1e6:.1f} MB at once in a step of 16 images"


def test_a_clock_for_each_op_counts_its_calls_and_goes_away(training):
    with bench.watched() as spent:
        training.advance()
    assert {"conv", "up_conv", "conv_down", "batch_norm", "attend", "spectral_norm"} <= set(spent)
    assert (spent["up_conv"].forward_calls, spent["up_conv"].backward_calls) == (3, 3)  # in G, which runs once for both
    assert all(s.forward > 0 and (s.backward > 0) == (s.backward_calls > 0) for s in spent.values())
    assert Tensor.__init__.__qualname__ == "Tensor.__init__"


def test_the_clock_gives_an_op_its_own_time():
    with bench.watched() as spent:
        x = Tensor(np.ones(3))
        (dx,) = grad(relu(x), [x], np.ones(3))
    assert list(spent) == ["relu"] and spent["relu"].forward_calls == 1 and dx.tolist() == [1, 1, 1]


@pytest.fixture
def slowed(monkeypatch):
    """slowed(owner, name, seconds) lets each call of that function take so long, by a clock that nothing else moves.

    Returns the list of its calls.
    """
    now = [0.0]
    monkeypatch.setattr(bench.time, "perf_counter", lambda: now[0])

    def slow(owner, name, seconds):
        calls, plain = [], getattr(owner, name)

        def call(*args, **options):
            calls.append(name)
            now[0] += seconds
            return plain(*args, **options)

        monkeypatch.setattr(owner, name, call)
        return calls

    yield slow
    monkeypatch.undo()  # before others' clocks are read


@pytest.fixture
def one_thread():
    before = cpu.threads()
    cpu.set_threads(1)
    yield
    cpu.set_threads(before)


def test_each_moment_of_a_step_counts_once_by_its_kind(training, slowed, one_thread):
    products, taps = slowed(np, "matmul", 1.0), slowed(conv_numpy, "expand", 10.0)
    gates, exps, updates = slowed(np, "maximum", 0.5), slowed(np, "exp", 0.25), slowed(optim_numpy, "falling", 0.125)
    noise = slowed(rng, "normal", 100.0)
    meetings = slowed(training.team, "exchange", 1000.0)
    with bench.kinds(training.team) as seconds:
        training.advance()
        training.team.exchange(np.zeros(1))  # a process by itself has no other meetings
    assert seconds == {
        "products": len(products),
        "copies": 10 * len(taps),
        "passes": len(gates) / 2 + len(exps) / 4 + len(updates) / 8,
        "waiting": 1000 * len(meetings),
        "rest": 100 * len(noise),
    }
    assert all(seconds.values())
    assert Tensor.__init__.__qualname__ == "Tensor.__init__" and Tensor.__add__ is arithmetic.add  # no clock is left


def test_arithmetic_and_ways_back_are_passes_too(slowed, one_thread):
    class Numbers(np.ndarray):
        def __array_ufunc__(self, ufunc, method, *inputs, **options):
            clock.tick()
            return getattr(ufunc, method)(*(np.asarray(x) for x in inputs), **options).view(Numbers)

    clock = types.SimpleNamespace(tick=lambda: None)
    ticks = slowed(clock, "tick", 1.0)
    a = Tensor(np.ones(3).view(Numbers))
    with bench.kinds(Alone(1)) as seconds:
        (da,) = grad(2 + 3 * a, [a], np.ones(3).view(Numbers))
    assert da.tolist() == [3, 3, 3] and seconds["passes"] == len(ticks) == sum(seconds.values()) == 3


def test_a_loops_last_thread_is_waited_for(slowed, monkeypatch):
    before = cpu.threads()
    cpu.set_threads(2)
    try:
        monkeypatch.setattr(cpu.Threads, "run", lambda threads, work, helpers: work())
        loops, products = slowed(cpu.Threads, "run", 5.0), slowed(np, "matmul", 1.0)
        with bench.kinds(Alone(8)) as seconds:
            conv_numpy.pointwise(np.ones((8, 64, 64, 8), np.float32), np.ones((8, 8), np.float32))
    finally:
        cpu.set_threads(before)
    assert seconds["waiting"] == 5 * len(loops) == 5 and seconds["products"] == len(products) >= 4
    assert cpu.Threads.run.__name__ == "call" and seconds["passes"] == 0


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
    assert set(facts["kinds_ms"]) == {"products", "copies", "passes", "waiting", "rest"}
    assert facts["gflops"] == pytest.approx(facts["gflop_per_step"] / facts["step_ms"] * 1e3)
