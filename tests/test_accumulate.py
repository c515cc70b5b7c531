"""A batch in micro-batches: one step down the mean of their gradients."""

from dataclasses import replace

import numpy as np
import pytest

from minisagan import parity, train
from minisagan.autograd import no_tape
from minisagan.config import Architecture, Config
from minisagan.errors import UsageError
from minisagan.flat import flatten
from minisagan.init import Init
from minisagan.models import Discriminator, Generator
from minisagan.optim import EMA, Adam
from minisagan.train import Training, descend, discriminator_step, generator_step

ARCH = Architecture(width=4, attention=8, attention_key=8, latent=8, classes=3, pack=2)
K, N = 3, 4  # micro-batches, images in each


def gradients(of, rate, accumulate):
    """The last gradients after each of K micro-batches, how far the weights are from the first ones, and the EMA's t.

    Of D or G, in float64, with open gates.
    """
    G, D, average = (kind(ARCH, Init(0, dtype=np.float64)) for kind in (Generator, Discriminator, Generator))
    parity.open_gates(G, D)
    adam = Adam((D if of == "D" else G).parameters(), rate, accumulate=accumulate)
    ema = EMA(adam.weights, flatten(average.parameters()))
    first, found, random = adam.weights.copy(), [], np.random.default_rng(0)
    for _ in range(K):
        images, z = random.uniform(-1, 1, (N, 32, 32, 1)), random.standard_normal((N, ARCH.latent))
        labels = np.tile(random.integers(0, 3, N // 2), 2)  # D sees two of a class at once
        fakes = G(z, labels)
        if of == "D":
            discriminator_step(D, adam, images, labels, fakes.data, labels)
        else:
            generator_step(G, D, adam, ema, fakes, labels)
        found.append(adam.g.copy())
    return found, np.abs(adam.weights - first).max(), ema.t


@pytest.mark.parametrize("of", ["D", "G"])
def test_one_step_is_made_down_the_mean_of_the_micro_batches_gradients(of):
    apart, still, _ = gradients(of, rate=0.0, accumulate=1)  # nothing moves but u, as it does between micro-batches
    together, moved, averaged = gradients(of, rate=1e-3, accumulate=K)
    assert still == 0 and not together[K - 2].any()
    assert averaged == (of == "G")
    np.testing.assert_allclose(moved, 1e-3, rtol=1e-2)  # Adam's first step is the rate, and there was one
    mean = np.mean(apart, axis=0)
    np.testing.assert_allclose(together[K - 1], mean, rtol=1e-12, atol=1e-12 * np.abs(mean).max())
    assert np.abs(apart[0] - mean).max() > 0.1 * np.abs(mean).max()


def test_a_loss_of_several_calls_or_of_a_weight_is_refused():
    D = Discriminator(ARCH, Init(0, dtype=np.float64))
    adam, x, labels = Adam(D.parameters(), 1e-3), np.zeros((2, 32, 32, 2)), np.zeros(2, int)
    before = adam.weights.copy()
    for loss in (
        lambda: D(x, labels).mean() + D(x + 1, labels).mean(),  # W / sigma is the last call's alone
        lambda: D(x, labels).mean() + (D.last.conv1.w * D.last.conv1.w).sum(),
    ):
        with pytest.raises(ValueError, match="depends on weights in other ways than by the network's last call"):
            descend(loss(), D, adam)
    np.testing.assert_array_equal(adam.weights, before)
    D.train(), D(x, labels)
    assert descend(D(x, labels).mean(), D, adam) and (adam.weights != before).any()


def test_a_loss_that_the_networks_last_call_had_no_part_in_moves_nothing():
    G, D = Generator(ARCH), Discriminator(ARCH)
    adam, ema = Adam(G.parameters(), 0.1), EMA(flatten(Generator(ARCH).parameters()), flatten(G.parameters()))
    before = {name: x.copy() for name, x in G.state().items()}
    z, labels = np.ones((N, 8), np.float32), np.zeros(N, int)
    with no_tape():
        fakes = G.eval()(z, labels)
    with pytest.raises(ValueError, match="does not come from the network's last call"):
        generator_step(G, D, adam, ema, fakes, labels)
    assert adam.t == 0 and all(np.array_equal(x, before[name]) for name, x in G.state().items())


def test_as_many_real_images_as_generated_ones():
    D, (x, y) = Discriminator(ARCH), (np.zeros((2 * N, 32, 32, 1), np.float32), np.zeros(2 * N, int))
    with pytest.raises(ValueError, match=f"as many real images as generated ones, not {2 * N} and {N}"):
        discriminator_step(D, Adam(D.parameters(), 0.1), x, y, x[:N], y[:N])


def test_no_steps_and_rates_that_fall_in_no_steps_are_refused():
    config = Config(steps=0, batch_size=K * N, fall=0.5, architecture=ARCH)
    training = Training(config, parity.noise_images(config, K * N))
    with pytest.raises(ValueError, match="advance makes a step or more, not 0"):
        training.advance(0)
    with pytest.raises(ValueError, match="a training of 0 steps has no time in which rates could fall"):
        training.advance()
    training.end_at(1)
    training.advance()
    assert training.step == 1


def test_a_training_that_was_interrupted_in_a_step_does_not_go_on(monkeypatch):
    training = Training(Config(batch_size=8, architecture=ARCH), parity.noise_images(Config(architecture=ARCH), 20))
    training.advance()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "generator_step", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))  # D has moved
        training.advance()
    with pytest.raises(RuntimeError, match="interrupted in the middle of a step: make this training anew"):
        training.advance()


def test_micro_batches_see_and_draw_what_as_many_batches_would():
    config = Config(batch_size=8, accumulate=2, d_steps=1, lr_g=0, lr_d=0, augment=True, flip=True, architecture=ARCH)
    data = parity.noise_images(config, 20)
    one, two = Training(config, data), Training(replace(config.micro, d_steps=2), data)
    of_one, of_two = one.advance(), two.advance()
    np.testing.assert_array_equal(one.indices[1], two.indices[0])
    first = Training(config.micro, data).advance()
    for name in ("loss_d", "d_real", "d_fake"):  # with rates of 0 each of two steps of D is a micro-batch
        assert of_one[name] == pytest.approx((first[name] + of_two[name]) / 2, rel=1e-6)


def test_what_can_not_be_cut_is_refused():
    with pytest.raises(UsageError, match="64 is no multiple of 6 .--pack 2, --accumulate 3.: .*--batch-size 66"):
        Config(batch_size=64, accumulate=3, architecture=ARCH)
    with pytest.raises(UsageError, match="accumulate must be at least 1"):
        Config(accumulate=0)
    assert Config.from_dict({name: x for name, x in Config().to_dict().items() if name != "accumulate"}) == Config()
