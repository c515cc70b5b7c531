"""What the steps of a training are given: which classes, which noise, and which generated images."""

from dataclasses import replace

import numpy as np
import pytest

from minisagan import nn, ops, parity, rng, train
from minisagan.autograd import grad, no_tape, recording
from minisagan.beyond.augment import augmented
from minisagan.beyond.pack import packed
from minisagan.config import Architecture, Config
from minisagan.errors import Diverged
from minisagan.init import Init
from minisagan.inputs import Inputs
from minisagan.measures import measure
from minisagan.models import Generator
from minisagan.sampling import noise, take_statistics
from minisagan.train import Training

CONFIG = Config(batch_size=12, architecture=Architecture(width=8, classes=3))


def imbalanced(config, count=60):
    """Noise for images, four fifths of them of class 0."""
    made = parity.noise_images(config, count)
    return replace(made, labels=np.where(np.arange(count) % 5, 0, 1 + np.arange(count) % 2), classes=tuple("abc"))


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


def test_an_unconditional_d_of_packs_sees_images_of_any_class_together():
    config = replace(CONFIG, architecture=replace(CONFIG.architecture, pack=2, classes=0))
    made = replace(parity.noise_images(config, 60), labels=np.arange(60) % 2, classes=("a", "b"))
    one, other = made.labels[Inputs(config, made, made).seen(0)].reshape(2, -1)
    assert (one != other).any()


def test_standing_statistics_are_the_means_of_those_of_16_batches():
    arch = Architecture(width=8, classes=3, latent=12)
    config = Config(batch_size=8, accumulate=2, architecture=arch)
    trained, average, again = (Generator(arch, Init(0)) for _ in range(3))
    with no_tape():
        trained(np.ones((2, 12), np.float32), np.array([0, 1]))  # its u has moved
    for name, x in trained.buffers().items():
        again.buffers()[name][...] = x
    take_statistics(average, trained, config)
    norms, found = list(again.modules(nn.BatchNorm)), []
    for k in range(16):
        for norm in norms:
            norm.momentum = 0.0  # the batch's own
        with no_tape():
            again(*noise(config.micro, rng.Stream.STANDING_Z, rng.Stream.STANDING_LABELS, k))
        found.append([x.copy() for norm in norms for x in (norm.mean, norm.var)])
    standing = [x for norm in average.modules(nn.BatchNorm) for x in (norm.mean, norm.var)]
    for x, each in zip(standing, zip(*found, strict=True), strict=True):
        np.testing.assert_allclose(x, np.mean(each, axis=0), rtol=1e-5, atol=1e-6)
    for a, b in zip(average.modules(nn.Layer), again.modules(nn.Layer), strict=True):
        np.testing.assert_array_equal(a.u, b.u)
    assert {norm.momentum for norm in average.modules(nn.BatchNorm)} == {0.9} and not average.training


def test_the_images_of_a_pack_are_of_one_class_in_noise_too():
    config = Config(batch_size=12, architecture=Architecture(pack=2, classes=5))
    _, labels = noise(config, rng.Stream.Z_G, rng.Stream.LABELS_G, 3)
    np.testing.assert_array_equal(labels, np.tile(rng.labels(6, 5, 0, rng.Stream.LABELS_G, 3), 2))


def test_the_rates_of_d_fall_over_all_steps_of_d():
    config = replace(CONFIG, steps=6, d_steps=2, fall=0.5)
    training = Training(config, parity.noise_images(config, 20))
    assert (training.adam_g.steps, training.adam_d.steps) == (6, 12)
    training.end_at(9)
    assert (training.adam_g.steps, training.adam_d.steps) == (9, 18)


def test_of_several_steps_the_first_that_diverged_is_named(monkeypatch):
    training = Training(CONFIG, parity.noise_images(CONFIG, 20))
    history = np.zeros((4, 1, 1, 4), np.float32)
    history[1, 0, 0, 2] = np.nan  # and later ones are finite again
    monkeypatch.setattr(training, "make_steps", lambda count, step: history)
    with pytest.raises(Diverged, match="^step 2: a loss is not finite; .*: the losses alone"):
        training.advance(4)
