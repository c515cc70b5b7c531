"""Training on the GPU: Adam, the average of weights, batches; whole steps, eager and as graphs, against the CPU's."""

from dataclasses import replace

import numpy as np
import pytest
import step_nodes

from minisagan import cuda, data, parity, rng
from minisagan.autograd import Tensor
from minisagan.config import Architecture, Config
from minisagan.errors import Diverged
from minisagan.flat import flatten
from minisagan.flat_cuda import TENSORS
from minisagan.measures import measure
from minisagan.optim import EMA, Adam
from minisagan.run import checkpoint
from minisagan.sampling import generate
from minisagan.train import Training


def parameters(shapes, dtype=np.float32, like=None):
    random = np.random.default_rng(0)
    arrays = [random.standard_normal(shape).astype(dtype) for shape in shapes]
    return {str(i): Tensor(np.asarray(x, like=like)) for i, x in enumerate(arrays)}


SHAPES = [(3, 3, 5, 7), (), (1,), (300, 4), (2, 1)]


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("beta1, fall", [(0.0, 0.0), (0.5, 0.75)])
def test_adam_is_the_cpus(gpu, dtype, beta1, fall):
    like, random = gpu.put(np.zeros(0)), np.random.default_rng(1)
    ours = Adam(parameters(SHAPES, dtype, like), 1e-3, beta1, 0.9, steps=4, fall=fall)  # the fifth has rate 0, then
    theirs = Adam(parameters(SHAPES, dtype), 1e-3, beta1, 0.9, steps=4, fall=fall)
    for scale in (1, 1e-6, 1e-9, 0, 30):  # below eps, too
        gradients = [(scale * random.standard_normal(shape)).astype(dtype) for shape in SHAPES]
        ours.step([gpu.put(g) for g in gradients])
        theirs.step(gradients)
    assert int(ours.t) == 5
    np.testing.assert_array_equal(gpu.get(ours.g), theirs.g)
    for name in ("m", "v", "weights"):
        mine, wanted = gpu.get(getattr(ours, name)), getattr(theirs, name)
        np.testing.assert_allclose(mine, wanted, 1e-5 if dtype == np.float32 else 1e-13, atol=0, strict=True)
    moved = ours.parameters[0].data
    np.testing.assert_array_equal(gpu.get(moved), gpu.get(ours.weights)[: moved.size].reshape(moved.shape))


def test_adam_takes_gradients_of_any_layout_and_number(gpu):
    shapes = [(2, 3)] * (2 * TENSORS + 3)
    adam = Adam(parameters(shapes, like=gpu.put(np.zeros(0))), 1e-3)
    gradients = [np.random.default_rng(i).standard_normal((3, 2)).astype(np.float32).T for i in range(len(shapes))]
    there = [gpu.put(np.ascontiguousarray(g.T)).T for g in gradients]
    assert not there[0].flags.c_contiguous
    adam.step(there)
    np.testing.assert_array_equal(gpu.get(adam.g), np.concatenate([g.ravel() for g in gradients]))


def test_the_average_of_weights_is_the_cpus(gpu):
    ours, theirs = (flatten(parameters(SHAPES, like=like)) for like in (gpu.put(np.zeros(0)), None))
    ema, wanted = EMA(ours, ours * 0, 0.3), EMA(theirs, theirs * 0, 0.3)
    for k in range(6):  # the warm-up of the decay ends at the third
        ours *= 1 + k
        theirs *= 1 + k
        ema.step()
        wanted.step()
        np.testing.assert_allclose(gpu.get(ema.average), wanted.average, 1e-6, strict=True)
    assert int(ema.t) == int(wanted.t) == 6


def test_optimisers_count_on_in_a_graph(gpu):
    g = np.random.default_rng(2).standard_normal(1000).astype(np.float32)
    (p,), (q,) = parameters([1000], like=gpu.put(g)).values(), parameters([1000]).values()
    ours, theirs = Adam({"p": p}, 1e-2, 0.5), Adam({"q": q}, 1e-2, 0.5)
    ema, wanted = EMA(ours.weights, ours.weights * 0), EMA(theirs.weights, theirs.weights * 0)
    gradient = gpu.put(g)

    def step():
        ours.step([gradient * 2])
        ema.step()

    graph = cuda.Graph(step)
    for k in range(5):
        gradient[...] = gpu.put(g * k)
        graph()
        theirs.step([g * k * 2])
        wanted.step()
    np.testing.assert_allclose(gpu.get(ours.weights), theirs.weights, 1e-5)
    np.testing.assert_allclose(gpu.get(ema.average), wanted.average, 1e-5)
    assert int(ours.t) == int(ema.t) == 5


@pytest.mark.parametrize("size, channels", [(28, 1), (32, 3), (27, 3)])
@pytest.mark.parametrize("flip", [False, True])
def test_batches_are_the_cpus(gpu, size, channels, flip):
    random = np.random.default_rng(3)
    images, labels = random.integers(0, 256, (7, size, size, channels), np.uint8), random.integers(0, 5, 7)
    indices, flips = np.array([6, 0, 0, 3]), np.array([True, False, True, True]) if flip else None
    x, y = data.batch(
        data.Dataset("noise", gpu.put(images), gpu.put(labels), tuple("01234"), {}),
        gpu.put(indices),
        gpu.put(flips) if flip else None,
    )
    wanted_x, wanted_y = data.batch(data.Dataset("noise", images, labels, tuple("01234"), {}), indices, flips)
    np.testing.assert_array_equal(gpu.get(x), wanted_x, strict=True)
    np.testing.assert_array_equal(gpu.get(y), wanted_y, strict=True)


# Whole steps

one_gpu = pytest.mark.parametrize("gpu", ["emulated", pytest.param("gpu", marks=pytest.mark.gpu)], indirect=True)
ARCH = Architecture(width=4, attention=8, attention_key=8, latent=8, classes=3)
NODES = 314  # kernels, products and copies of the default's graph; driver/walk.py holds the real CuPy's to it
CONFIG = Config(batch_size=2, lr_d=8e-4, flip=True, ema=0.5, architecture=ARCH)
DATA = parity.noise_images(CONFIG, 5)  # an epoch ends in the middle of a batch


def opened(config=CONFIG, **where):
    """A training whose gates of attention are open, so that all of it matters."""
    training = Training(config, DATA, **where)
    parity.open_gates(training.G, training.D, training.average)
    return training


def state(training):
    return {name: cuda.to_host(x) for name, x in training.state().items()}


def error(a, b):
    return np.linalg.norm(cuda.to_host(a) - b) / np.linalg.norm(b)


def check_equal(mine, wanted, tolerance):
    """States that agree: what a step moves, to the tolerance, and the counters exactly."""
    assert mine.keys() == wanted.keys()
    for name, x in wanted.items():
        if x.dtype == np.int64:
            assert mine[name] == x, name
    for part in ("G.", "D.", "average.", "adam_g.m", "adam_d.m"):
        a, b = (np.concatenate([s[name].ravel() for name in s if name.startswith(part)]) for s in (mine, wanted))
        assert np.linalg.norm(a - b) <= tolerance * np.linalg.norm(b), part


@one_gpu
@pytest.mark.parametrize("pack, more", [(1, {}), (2, {"d_steps": 2}), (1, {"augment": True, "accumulate": 2})])
def test_steps_as_graphs_are_the_eager_ones_bit_for_bit_and_the_cpus_to_rounding(gpu, monkeypatch, pack, more):
    monkeypatch.setattr(cuda, "WARM_UP", 1)
    config = replace(CONFIG, architecture=replace(ARCH, pack=pack), **more)
    graph, eager, cpu = opened(config, gpu=True), opened(config, gpu=True, graph=False), opened(config)
    losses = graph.advance(3)  # the last two from the graphs
    assert graph.step_both.recorded and bool(graph.step_d.recorded) == (config.d_steps > 1)
    eager.advance()
    assert losses == eager.advance(2)
    bits = {name: x.tobytes() for name, x in state(graph).items()}
    assert bits == {name: x.tobytes() for name, x in state(eager).items()}
    np.testing.assert_allclose(list(losses.values()), list(cpu.advance(3).values()), 1e-4)
    assert graph.step == cpu.step == graph.adam_g.t == graph.adam_d.t // config.d_steps == 3
    check_equal(state(graph), state(cpu), 1e-3)
    for mine, wanted in ((graph.adam_d.g, cpu.adam_d.g), (graph.adam_g.g, cpu.adam_g.g)):
        assert error(mine, wanted) < 1e-3
    # Biases that feed batch norms only have a gradient of 0, and Adam steps by lr sign(rounding): of no consequence but
    # to running statistics, which lag behind, and so to the ratios.
    assert measure(graph) == pytest.approx(measure(cpu), rel=1e-2)
    noise = rng.normal((3, ARCH.latent), 0, rng.Stream.SAMPLE_Z, 0), np.array([0, 2, 1])
    images = generate(graph.sampler(), *noise, batch=2)
    np.testing.assert_allclose(images, generate(cpu.sampler(), *noise, batch=2), atol=1e-3, strict=True)


@one_gpu
@pytest.mark.parametrize("there_and_back", [(True, False), (False, True)])
def test_a_checkpoint_of_one_device_goes_on_on_the_other(gpu, there_and_back, tmp_path):
    # Small rates: Adam's first steps are lr sign(g), also where g is 0 but for rounding, as in a bias of D's here.
    config = replace(CONFIG, d_steps=2, lr_g=1e-5, lr_d=1e-5, architecture=replace(ARCH, classes=0))
    first, second, whole = (opened(config, gpu=there, graph=False) for there in (*there_and_back, False))
    first.advance(2)
    checkpoint.save(tmp_path / "x.safetensors", first.state(), {})
    checkpoint.match(checkpoint.load(tmp_path / "x.safetensors")[0], second.state())
    second.step = 2
    assert {k: x.tobytes() for k, x in state(first).items()} == {k: x.tobytes() for k, x in state(second).items()}
    losses = [list(training.advance().values()) for training in (first, second)]  # from one state, with one noise
    np.testing.assert_allclose(*losses, 1e-4)
    check_equal(state(second), state(first), 1e-3)
    whole.advance(2)
    np.testing.assert_allclose(losses[1], list(whole.advance().values()), 1e-2)
    assert second.adam_d.t == 6


@one_gpu
def test_a_loss_that_is_not_finite_is_found_and_the_tensor_named(gpu):
    training = opened(gpu=True, graph=False)
    training.advance()
    training.G.up8.conv1.w.data[0, 0, 0, 0] = np.nan
    with pytest.raises(Diverged, match=r"step 2: a loss is not finite; first tensor with a NaN or an infinity: G\."):
        training.advance(2)


@pytest.mark.parametrize("gpu", ["emulated"], indirect=True)
def test_a_step_launches_no_more_than_it_did(gpu):
    """Nodes of the default's graph, as the emulation counts them: kernels, products and copies."""
    assert len(step_nodes.recorded(Config())) <= NODES
