"""What the steps of a training are given: which classes, which noise, and which generated images."""

from dataclasses import replace

import numpy as np
import pytest

from minisagan import parity, train
from minisagan.autograd import recording
from minisagan.config import Architecture, Config
from minisagan.inputs import Inputs
from minisagan.train import Training

CONFIG = Config(batch_size=12, architecture=Architecture(width=8, classes=3))


def imbalanced(config, count=60):
    """Noise for images, four fifths of them of class 0."""
    made = parity.noise(config, count)
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
    data = parity.noise(config, 60)
    inputs = Inputs(config, data, data)
    assert inputs.of_d(inputs.seen(0), 0)[1] is None


@pytest.mark.parametrize("more", [{}, {"d_steps": 2}, {"accumulate": 2}, {"d_steps": 2, "accumulate": 2}])
def test_g_learns_from_the_images_that_d_saw_last_of_the_classes_of_the_real_ones(monkeypatch, more):
    given_d, given_g, calls = [], [], []
    of_d, of_g, call = train.discriminator_step, train.generator_step, train.Generator.__call__
    monkeypatch.setattr(train, "discriminator_step", lambda *given: given_d.append(given[2:6]) or of_d(*given))
    monkeypatch.setattr(train, "generator_step", lambda *given: given_g.append(given[4:6]) or of_g(*given))
    monkeypatch.setattr(train.Generator, "__call__", lambda *given: calls.append(recording()) or call(*given))
    config = replace(CONFIG, architecture=replace(CONFIG.architecture, spectral_norm="discriminator"), **more)
    Training(config, imbalanced(config)).advance(2)
    K, steps = config.accumulate, config.d_steps
    assert len(given_d) == 2 * steps * K and len(given_g) == 2 * K
    # G runs once for each micro-batch of D, and keeps the last one's tape; or, to save memory, makes them once more.
    assert calls == 2 * ([False] * (steps - 1) + [True] if K == 1 else [False] * K * steps + [True] * K)
    for images, labels, fakes, fake_labels in given_d:
        np.testing.assert_array_equal(labels, fake_labels)
        assert images.shape == fakes.shape
    for step in range(2):
        last = given_d[(step + 1) * steps * K - K : (step + 1) * steps * K]
        for (_, _, seen, labels), (fakes, asked) in zip(last, given_g[step * K : (step + 1) * K], strict=True):
            np.testing.assert_array_equal(fakes.data, seen)
            np.testing.assert_array_equal(asked, labels)
    assert len({tuple(labels) for _, labels, _, _ in given_d}) > 1
    assert len({fakes.tobytes() for _, _, fakes, _ in given_d}) == len(given_d)
