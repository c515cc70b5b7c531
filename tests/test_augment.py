"""Training with --augment: what D sees of real and generated images, and when."""

from dataclasses import replace

import numpy as np
import pytest

from minisagan import data, parity, rng
from minisagan.autograd import Tensor
from minisagan.beyond.augment import augment
from minisagan.config import Architecture, Config
from minisagan.models import Discriminator, Generator
from minisagan.train import Training

CONFIG = Config(batch_size=8, augment=True, d_steps=2, architecture=Architecture(width=8, classes=3))
DATA = parity.noise_images(CONFIG, 20)


def noted(kind, monkeypatch):
    """What the networks of this kind are given and return from here on: pairs of arrays."""
    calls, call = [], kind.__call__

    def note(self, x, *args):
        y = call(self, x, *args)
        calls.append((np.array(x.data if isinstance(x, Tensor) else x), np.array(y.data)))
        return y

    monkeypatch.setattr(kind, "__call__", note)
    return calls


def augmented(x, step, stream, columns):
    return augment(Tensor(x), rng.uniform((len(x), columns), 0, stream, step)).data


@pytest.mark.parametrize("flip", [False, True])
def test_D_sees_every_image_by_draws_of_its_own(flip, monkeypatch):
    training = Training(replace(CONFIG, flip=flip), DATA)
    generated, judged = noted(Generator, monkeypatch), noted(Discriminator, monkeypatch)
    training.advance(2)
    columns = 5 if flip else 4
    fakes, seen = [y for _, y in generated], [x for x, _ in judged]
    assert (len(seen), len(fakes)) == (6, 4)
    for t, k in enumerate((0, 1, 3, 4)):  # steps of D; --flip mirrors there, and not before
        real = data.batch(DATA, data.batch_indices(8 * t, 8, 20, 0))[0]
        assert np.array_equal(seen[k][:8], augmented(real, t, rng.Stream.AUGMENT_REAL, columns))
        assert np.array_equal(seen[k][8:], augmented(fakes[t], t, rng.Stream.AUGMENT_FAKE, columns))
    for t, k in enumerate((2, 5)):  # of G, which learns from what D saw last, by other draws
        assert np.array_equal(seen[k], augmented(fakes[2 * t + 1], t, rng.Stream.AUGMENT_G, columns))


def test_the_images_of_a_pack_have_each_their_own(monkeypatch):
    training = Training(replace(CONFIG, architecture=replace(CONFIG.architecture, pack=2)), DATA)
    generated, judged = noted(Generator, monkeypatch), noted(Discriminator, monkeypatch)
    training.advance()
    wanted = augmented(generated[1][1], 0, rng.Stream.AUGMENT_G, 4)
    assert np.array_equal(judged[2][0], np.concatenate([wanted[:4], wanted[4:]], axis=-1))


def test_a_configuration_from_before_has_none():
    old = CONFIG.to_dict()
    del old["augment"]
    assert Config.from_dict(old).augment is False and Config.from_dict(CONFIG.to_dict()) == CONFIG
