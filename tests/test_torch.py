"""minisagan against PyTorch: whole networks, gradients, Adam, spectral norm, whole training steps.

The other side is examples/pytorch_twin.py, the same two networks and steps written plainly. In float64,
unless a test says otherwise: there two right programs differ by rounding alone, and a wrong one by far more
than the bounds below.
"""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from minisagan import nn, ops, optim, train
from minisagan.autograd import Tensor, grad
from minisagan.config import Architecture
from minisagan.init import Init
from minisagan.models import Discriminator, Generator

torch = pytest.importorskip("torch")
EXAMPLES = Path(__file__).parents[1] / "examples"
sys.path.append(str(EXAMPLES))
twins = importlib.import_module("pytorch_twin")

ARCHITECTURES = {
    "mnist16": {},
    "unconditional": {"classes": 0},
    "no attention": {"attention": None},
    "paper's attention": {"attention_form": "paper"},
    "spectral norm in D": {"spectral_norm": "discriminator"},
    "no spectral norm": {"spectral_norm": "none", "init": "xavier"},
    "attention at 8": {"attention": 8, "latent": 20, "classes": 3},
    "64x64, RGB": {"size": 64, "channels": 3, "width": 8, "attention": 32},
    "128x128, capped at 16 widths": {"size": 128, "channels": 3, "width": 1, "attention": 8},
}
SILENT = {"up8.conv1.b", "up16.conv1.b", "up32.conv1.b", "up32.conv2.b", "up32.shortcut.b"}  # of mnist16


@pytest.fixture(autouse=True)
def one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(params=ARCHITECTURES)
def arch(request):
    return Architecture(**ARCHITECTURES[request.param])


def networks(arch, seed=0, dtype=np.float64):
    """G and D as training would begin with them."""
    init = Init(seed, arch.init, dtype)
    return Generator(arch, init), Discriminator(arch, init)


def shaken_networks(arch):
    """G and D in which no parameter or statistic has a special value: no bias or gamma is 0, no gain is 1."""
    random = np.random.default_rng(1)
    nets = networks(arch)
    for net in nets:
        for name, p in net.parameters().items():
            special = p.ndim < 2 or name.endswith(("gain", "bias"))
            p.data = p.data + (0.3 if special else 0.02) * random.standard_normal(p.shape)
        for name, buffer in net.buffers().items():
            if not name.endswith(".u"):
                buffer += random.uniform(0.1, 0.5, buffer.shape)
    return nets


def inputs(arch, n, random, dtype=np.float64):
    """One training step's images, labels, z and fake labels."""
    images = random.uniform(-1, 1, (n, arch.size, arch.size, arch.channels)).astype(dtype)
    z = random.standard_normal((n, arch.latent)).astype(dtype)
    labels, fake_labels = random.integers(0, arch.classes, (2, n)) if arch.classes else [None] * 2
    return images, labels, z, fake_labels


def difference(ours, theirs):
    """|ours - theirs| / |theirs|, over all elements of two tensors."""
    assert ours.shape == theirs.shape and ours.dtype == theirs.dtype
    return float((ours - theirs).norm() / theirs.norm())


def image_difference(ours, theirs):
    return difference(twins.as_input(ours.data), theirs.detach())


@pytest.mark.parametrize("training", [True, False], ids=["training", "evaluation"])
def test_networks_are_pytorchs(arch, training):
    G, D = (net.train(training) for net in shaken_networks(arch))
    twin_G, twin_D = twins.twin(G), twins.twin(D)
    _, _, z, labels = inputs(arch, 4, np.random.default_rng(0))
    for _ in range(2):  # the second time, buffers have moved, or they have not
        images = G(z, labels)
        twin_images = twin_G(twins.as_input(z), twins.as_input(labels))
        assert image_difference(images, twin_images) < 1e-10
        assert image_difference(D(images, labels), twin_D(twin_images, twins.as_input(labels))) < 1e-10
        for net, twin in ((G, twin_G), (D, twin_D)):
            state, found = twin.state_dict(), twins.tensors(net)
            assert set(found) == set(state)
            for name in net.buffers():
                assert difference(found[name], state[name]) < 1e-10, name


def test_gradients_are_pytorchs(arch):
    G, D = shaken_networks(arch)
    twin_G, twin_D = twins.twin(G), twins.twin(D)
    random = np.random.default_rng(3)  # a draw in which the hinge's terms for D's last bias do not cancel
    images, labels, z, fake_labels = inputs(arch, 4, random)
    loss = ops.hinge_generator(D(G(z, labels), labels))
    twin_images = twin_G(twins.as_input(z), twins.as_input(labels))
    twin_loss = twins.generator_loss(twin_D(twin_images, twins.as_input(labels)))
    check_gradients(G, loss, twin_G, twin_loss, silent=twins.silent_biases(arch))

    images = np.concatenate([images, G(z, fake_labels).data])
    labels = np.concatenate([labels, fake_labels]) if arch.classes else None
    loss = ops.hinge_discriminator(D(images, labels))
    twin_loss = twins.discriminator_loss(twin_D(twins.as_input(images), twins.as_input(labels)))
    check_gradients(D, loss, twin_D, twin_loss)


def check_gradients(net, loss, twin, twin_loss, silent=()):
    """Every parameter's gradient to 1e-8 of its norm; those of `silent` are 0 but for rounding."""
    assert abs(float(loss.data) - twin_loss.item()) < 1e-10 * abs(twin_loss.item())
    names, parameters = zip(*net.parameters().items(), strict=True)
    twin_gradients = torch.autograd.grad(twin_loss, [twin.get_parameter(name) for name in names])
    for name, ours, theirs in zip(names, grad(loss, parameters), twin_gradients, strict=True):
        ours = twins.laid_out(name, ours)
        if name in silent:
            assert max(ours.norm(), theirs.norm()) < 1e-13, name
        else:
            assert difference(ours, theirs) < 1e-8, name
            assert theirs.norm() > 1e-6, f"{name} is not tested: its gradient is {theirs.norm()}"


@pytest.mark.parametrize("betas", [(0.0, 0.9), (0.5, 0.999)])
def test_three_adam_steps_are_pytorchs(betas):
    random = np.random.default_rng(0)
    shapes = {"w": (30, 40), "b": (7,), "gamma": ()}
    parameters = {name: Tensor(np.asarray(random.standard_normal(shape))) for name, shape in shapes.items()}
    copies = [torch.tensor(p.data, requires_grad=True) for p in parameters.values()]
    ours, theirs = optim.Adam(parameters, 2e-4, *betas), torch.optim.Adam(copies, 2e-4, betas, eps=1e-8)
    for scale in (1e-9, 1.0, 0.0):  # eps matters in the first step; in the third, only m can move anything
        gradients = [np.asarray(scale * random.standard_normal(shape)) for shape in shapes.values()]
        ours.step(gradients)
        for copy, g in zip(copies, gradients, strict=True):
            copy.grad = torch.tensor(g)
        theirs.step()
        for p, copy in zip(parameters.values(), copies, strict=True):
            assert difference(torch.tensor(p.data), copy.detach()) < 1e-14


@pytest.mark.parametrize(
    ("name", "layer", "theirs"),
    [
        ("output.w", lambda init: nn.Linear(init, 7, 5), lambda: torch.nn.Linear(7, 5)),
        ("conv.w", lambda init: nn.Conv(init, 3, 4), lambda: torch.nn.Conv2d(3, 4, 3)),
        ("embedding.w", lambda init: nn.Embedding(init, 6, 3), lambda: torch.nn.Embedding(6, 3)),
    ],
    ids=["linear", "conv", "embedding"],
)
def test_ten_power_iterations_are_pytorchs(name, layer, theirs):
    """PyTorch goes u, v where ours goes v, u: its weight in training is ours at rest, after that step."""
    layer, theirs = layer(Init(0, "xavier", np.float64)), theirs().to(torch.float64)
    theirs.weight.data = twins.laid_out(name, layer.w.data)
    twin = twins.Normalised(theirs.weight.shape, True).to(torch.float64)
    twin.load_state_dict({"w": theirs.weight.data, "u": torch.tensor(layer.u)})
    torch.nn.utils.parametrizations.spectral_norm(theirs)
    original, norm = theirs.parametrizations.weight.original, theirs.parametrizations.weight[0]
    norm._u.copy_(twin.u)
    norm._v.copy_(torch.nn.functional.normalize(twin.w.data.flatten(1).T @ twin.u, dim=0))
    g = np.random.default_rng(0).standard_normal(layer.w.shape)
    for _ in range(10):
        moving = twins.laid_out(name, layer.train().weight().data)
        assert difference(moving, twin.train().weight().data) < 1e-11
        weight, twin_weight, their_weight = layer.eval().weight(), twin.eval().weight(), theirs.weight
        assert difference(twins.laid_out(name, weight.data), their_weight.data) < 1e-11
        assert difference(twin_weight.data, their_weight.data) < 1e-11
        assert difference(torch.tensor(layer.u), norm._u) < 1e-11
        (dw,) = grad(weight, [layer.w], g)
        (twin_dw,) = torch.autograd.grad(twin_weight, [twin.w], twins.laid_out(name, g))
        (their_dw,) = torch.autograd.grad(their_weight, [original], twins.laid_out(name, g))
        assert difference(twins.laid_out(name, dw), their_dw) < 1e-11
        assert difference(twin_dw, their_dw) < 1e-11


class Trainings:
    """The same networks in training by minisagan and by PyTorch, with the losses of the last step."""

    def __init__(self, arch, seed=0, dtype=np.float64):
        self.G, self.D = networks(arch, seed, dtype)
        self.twin_G, self.twin_D = twins.twin(self.G), twins.twin(self.D)
        self.adam_g, self.twin_adam_g = optim.Adam(self.G.parameters(), 2e-4), twins.adam(self.twin_G, 2e-4)
        self.adam_d, self.twin_adam_d = optim.Adam(self.D.parameters(), 4e-4), twins.adam(self.twin_D, 4e-4)
        self.ema = optim.EMA(self.adam_g.weights, self.adam_g.weights.copy())
        self.twin_ema = twins.EMA(self.twin_G)

    def advance(self, inputs):
        images, labels, z, fake_labels = inputs
        fakes = self.G.train()(z, fake_labels)
        self.losses = train.discriminator_step(self.D, self.adam_d, images, labels, fakes.data, fake_labels)
        self.losses += train.generator_step(self.G, self.D, self.adam_g, self.ema, fakes, fake_labels)
        twin = self.twin_G, self.twin_D, self.twin_adam_g, self.twin_adam_d, self.twin_ema
        self.twin_losses = [float(x) for x in twins.training_step(*twin, *map(twins.as_input, inputs))]

    def sides(self):
        return (self.G, self.twin_G, self.adam_g), (self.D, self.twin_D, self.adam_d)


def unflatten(flat, net):
    """A flat array of all parameters of a network, as name -> a tensor in PyTorch's layout."""
    parameters = net.parameters()
    parts = np.split(flat, np.cumsum([p.data.size for p in parameters.values()])[:-1])
    named = zip(parameters.items(), parts, strict=True)
    return {name: twins.laid_out(name, part.reshape(p.shape)) for (name, p), part in named}


@pytest.mark.parametrize(
    ("options", "n"),
    [({}, 8), ({"classes": 0, "attention_form": "paper", "spectral_norm": "discriminator"}, 4)],
    ids=["mnist16", "another"],
)
def test_twenty_training_steps_are_pytorchs(options, n):
    """After twenty steps of D and G every parameter, average and buffer to 1e-7 of its norm; losses to 1e-8.

    But for the biases that only feed a batch norm: their gradient is 0, and Adam makes steps of lr g / (|g| +
    1e-8) of the rounding noise g, which is not the same in two programs. Those stay within 1e-8 of 0.
    """
    arch, random = Architecture(**options), np.random.default_rng(0)
    assert twins.silent_biases(arch) == SILENT
    both = Trainings(arch)
    start = [twins.tensors(net) for net in (both.G, both.D)]
    for _ in range(20):
        both.advance(inputs(arch, n, random))
        np.testing.assert_allclose(both.losses, both.twin_losses, rtol=1e-8)
    compared = [(net, twins.tensors(net), twin.state_dict()) for net, twin, _ in both.sides()]
    names = [name for name, _ in both.twin_G.named_parameters()]
    average = dict(zip(names, both.twin_ema.average, strict=True))
    for net, ours, theirs in (*compared, (both.G, unflatten(both.ema.average, both.G), average)):
        assert set(ours) == set(theirs)
        for name in ours:
            if net is both.G and name in SILENT:
                assert max(ours[name].abs().max(), theirs[name].abs().max()) < 1e-8, name
            else:
                assert difference(ours[name], theirs[name]) < 1e-7, name
    for before, (_, after, _) in zip(start, compared, strict=True):  # and no weight was at rest
        assert all(difference(after[name], before[name]) > 1e-3 for name in before if name.endswith(".w"))


def test_a_float32_training_step_is_pytorchs():
    """Losses to 1e-4 and, in the middle one of five draws, every gradient to 1e-4 of its norm.

    Not in all draws: where a ReLU, a maximum or the hinge lies within rounding of its kink, two right
    programs may take different sides, and a gradient differs by that unit's share (in 1 of 30 draws). A wrong
    rule fails in all.
    """
    arch, worst = Architecture(), []
    for seed in range(5):
        both = Trainings(arch, seed, np.float32)
        both.advance(inputs(arch, 2, np.random.default_rng(seed), np.float32))
        np.testing.assert_allclose(both.losses, both.twin_losses, rtol=1e-4)
        differences = []
        for net, twin, adam in both.sides():
            for name, g in unflatten(adam.g, net).items():
                theirs = twin.get_parameter(name).grad
                if theirs.norm() > 1e-5:
                    differences.append(difference(g, theirs))
                else:  # silent biases; while gamma is 0, projections and the biases that only attention feels
                    assert g.norm() < 1e-5, name
        assert len(differences) > 50
        worst.append(max(differences))
    assert sorted(worst)[2] < 1e-4, worst


def test_the_comparison_runs():
    command = [sys.executable, EXAMPLES / "compare_pytorch.py", "--json"]
    options = ["--net", "mnist16", "--pairs", "1", "--threads", "1"]
    environment = os.environ | {"PYTHONPATH": str(Path(nn.__file__).parents[1])}
    done = subprocess.run(command + options, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)["nets"]["mnist16"]
    assert max(found["agreement"]["float64"].values()) < 1e-9
    programs = found["programs"]
    assert set(programs) == {"minisagan", "channels_last", "nchw"} and found["fastest_twin"] != "minisagan"
    for program in programs.values():
        assert program["ms"] > 0 and program["peak_mib"] > program["imported_mib"] > 10
        # All keep what they free (glibc); one that gives it back has 5,000 page faults a step and more.
        assert sys.platform != "linux" or program["faults"] < 2_000
    assert found["ratio"] == programs["minisagan"]["ms"] / programs[found["fastest_twin"]]["ms"]
    assert programs["minisagan"]["peak_mib"] < programs["channels_last"]["peak_mib"]
