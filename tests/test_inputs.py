"""What the steps of a training are given: which classes, which noise."""

from dataclasses import replace

import numpy as np
import pytest

from minisagan import parity, train
from minisagan.config import Architecture, Config
from minisagan.inputs import Inputs
from minisagan.train import Training

CONFIG = Config(batch_size=12, architecture=Architecture(width=8, classes=3))


def imbalanced(config, count=60):
    """Noise for images, four fifths of them of class 0."""
    made = parity.noise(config, count)
    return replace(made, labels=np.where(np.arange(count) % 5, 0, 1 + np.arange(count) % 2))


@pytest.mark.parametrize("pack", [1, 2])
def test_generated_images_have_the_classes_of_the_real_ones(pack):
    config = replace(CONFIG, architecture=replace(CONFIG.architecture, pack=pack))
    data = imbalanced(config)
    inputs = Inputs(config, data, data)
    for t in range(3):
        seen = inputs.seen(t)
        _, labels, of_d, fake_labels, _ = inputs.of_d(seen, t)
        of_g, labels_of_g, _ = inputs.of_g(seen, t)
        for found in (labels, fake_labels, labels_of_g):
            np.testing.assert_array_equal(found, data.labels[seen], strict=True)
            np.testing.assert_array_equal(found, np.tile(found[: 12 // pack], pack))  # a pack is of one class
        assert of_d.shape == of_g.shape == (12, config.architecture.latent)
        assert (of_d != of_g).all() and len(np.unique(of_d)) == of_d.size


def test_an_unconditional_network_is_given_no_classes():
    config = replace(CONFIG, architecture=replace(CONFIG.architecture, classes=0))
    data = parity.noise(config, 60)
    inputs = Inputs(config, data, data)
    _, labels, _, fake_labels, _ = inputs.of_d(inputs.seen(0), 0)
    assert labels is fake_labels is inputs.of_g(inputs.seen(0), 0)[1] is None


@pytest.mark.parametrize("more", [{}, {"d_steps": 2}, {"accumulate": 2}, {"d_steps": 2, "accumulate": 2}])
def test_g_is_asked_for_the_classes_that_d_saw_last(monkeypatch, more):
    seen, asked = [], []
    of_d, of_g = train.discriminator_step, train.generator_step
    monkeypatch.setattr(train, "discriminator_step", lambda *given: seen.append(given[4]) or of_d(*given))
    monkeypatch.setattr(train, "generator_step", lambda *given: asked.append(given[5]) or of_g(*given))
    config = replace(CONFIG, **more)
    Training(config, imbalanced(config)).advance(2)
    K, steps = config.accumulate, config.d_steps
    assert len(seen) == 2 * steps * K and len(asked) == 2 * K
    for step in range(2):
        last = seen[(step + 1) * steps * K - K : (step + 1) * steps * K]
        np.testing.assert_array_equal(asked[step * K : (step + 1) * K], last)
    assert len({tuple(labels) for labels in seen}) > 1
