"""What the steps of a training are given: which classes, which noise, and which generated images."""

from dataclasses import replace

import numpy as np
import pytest

from minisagan import ops, parity, train
from minisagan.autograd import grad, recording
from minisagan.beyond.augment import augmented
from minisagan.beyond.pack import packed
from minisagan.config import Architecture, Config
from minisagan.inputs import Inputs
from minisagan.measures import measure
from minisagan.train import Training

CONFIG = Config(batch_size=12, architecture=Architecture(width=8, classes=3))


def imbalanced(config, count=60):
    """Noise for images, four fifths of them of class 0."""
    made = parity.noise_images(config, count)
    return replace(made, labels=np.where(np.arange(count) % 5, 0, 1 + np.arange(count) % 2))


@pytest.mark.parametrize("pack", [1, 2])
def test_real_images_bring_their_classes_and_noise_is_new_each_time(pack):
    config = replace(CONFIG, architecture=replace(CONFIG.architecture, pack=pack))
    data = imbalanced(config)
    inputs, drawn = Inputs(config, data, data), []
    for t in range(3):
        seen = inputs.seen(t)
        _, labels, z, _ = inputs.of_d(seen, t)
        np.testing.assert_array_equal(labels, data.labels[seen], strict=True)
        np.testing.assert_array_equal(labels, np.tile(labels[: 12 // pack], pack))  # a pack is of one class
        assert z.shape == (12, config.architecture.latent)
        drawn.append(z)
    assert len(np.unique(drawn)) == np.size(drawn)  # no number twice


def test_an_unconditional_network_is_given_no_classes():
    config = replace(CONFIG, architecture=replace(CONFIG.architecture, classes=0))
    data = parity.noise_images(config, 60)
    inputs = Inputs(config, data, data)
    assert inputs.of_d(inputs.seen(0), 0)[1] is None


@pytest.mark.parametrize("more", [{}, {"d_steps": 2}, {"accumulate": 2}, {"d_steps": 2, "accumulate": 2}])
def test_g_learns_from_the_images_that_d_saw_last_of_the_classes_of_the_real_ones(monkeypatch, more):
    given_d, given_g, calls = [], [], []
    of_d, of_g, call = train.discriminator_step, train.generator_step, train.Generator.__call__
    monkeypatch.setattr(train, "discriminator_step", lambda *given: given_d.append(given[2:6]) or of_d(*given))
    monkeypatch.setattr(train, "generator_step", lambda *given: given_g.append(given[4:6]) or of_g(*given))
    monkeypatch.setattr(train.Generator, "__call__", lambda *given: calls.append(recording()) or call(*given))
    config = replace(CONFIG, **more)
    Training(config, imbalanced(config)).advance(2)
    K, steps = config.accumulate, config.d_steps
    assert len(given_d) == 2 * steps * K and len(given_g) == 2 * K
    # G runs once for each micro-batch of D, and keeps the last one's tape; or, to save memory, makes its own once more.
    assert calls == 2 * ([False] * (steps - 1) + [True] if K == 1 else [False] * K * steps + [True] * K)
    for images, labels, fakes, fake_labels in given_d:
        np.testing.assert_array_equal(labels, fake_labels)
        assert images.shape == fakes.shape
    for step in range(2):
        last = given_d[(step + 1) * steps * K - K : (step + 1) * steps * K]
        for (_, _, seen, labels), (fakes, asked) in zip(last, given_g[step * K : (step + 1) * K], strict=True):
            if K == 1:
                np.testing.assert_array_equal(fakes.data, seen)
            np.testing.assert_allclose(fakes.data, seen, atol=1e-2)  # spectral norm's u has moved on
            np.testing.assert_array_equal(asked, labels)
    assert len({tuple(labels) for _, labels, _, _ in given_d}) > 1
    assert len({fakes.tobytes() for _, _, fakes, _ in given_d}) == len(given_d)


@pytest.mark.parametrize(
    "more",
    [
        {},
        {"d_steps": 2, "augment": True, "flip": True},
        {"architecture": replace(CONFIG.architecture, pack=2, spectral_norm="none", attention=None)},
        {"architecture": replace(CONFIG.architecture, classes=0, attention_form="paper")},
    ],
)
def test_the_tape_that_outlives_a_step_of_d_gives_the_gradient_of_images_made_anew(monkeypatch, more):
    """Bit for bit: of G as it was before D's step, and by D as it is after it."""
    config = replace(CONFIG, **more)
    training = Training(config, imbalanced(config))
    parity.open_gates(training.G, training.D)
    step, call, last, gradients = train.generator_step, train.Generator.__call__, [], []

    def noted(G, *given):
        last[:] = given, {name: x.copy() for name, x in G.buffers().items()}
        return call(G, *given)

    def twice(G, D, adam, ema, fakes, labels, draws):
        (given, before), used, after = last, G.used, {name: x.copy() for name, x in G.buffers().items()}
        for name, x in G.buffers().items():
            x[...] = before[name]
        anew = call(G, *given)
        np.testing.assert_array_equal(anew.data, fakes.data)
        loss = ops.hinge_generator(D.eval()(*packed(augmented(anew, draws), labels, D.arch.pack)))
        shares = grad(loss, G.used)
        gradients.append(np.concatenate([g.ravel() for g in grad(G.used, adam.parameters, shares)]))
        for name, x in G.buffers().items():
            np.testing.assert_array_equal(x, after[name])
        G.used = used
        found = step(G, D, adam, ema, fakes, labels, draws)
        np.testing.assert_array_equal(adam.g, gradients[-1])
        return found

    monkeypatch.setattr(train, "generator_step", twice)
    monkeypatch.setattr(train.Generator, "__call__", noted)
    training.advance()
    measure(training)  # looks on, between steps
    training.advance(2)
    assert len(gradients) == 3 and all(np.abs(g).max() > 0 for g in gradients)
