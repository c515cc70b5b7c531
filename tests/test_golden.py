"""Golden losses: what twenty training steps in float64 come to, pinned.

A change of the order in which numbers are added moves them by 1e-13; a change of what is computed moves them by far
more. As a script it prints the table anew:

    python tests/test_golden.py
"""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from minisagan import parity, rng
from minisagan.config import Architecture, Config
from minisagan.data import batch
from minisagan.flat import flatten
from minisagan.init import Init
from minisagan.inputs import Inputs
from minisagan.models import Discriminator, Generator
from minisagan.optim import EMA, Adam
from minisagan.train import discriminator_step, generator_step

FILE = Path(__file__).with_name("golden.json")
OLD = {"width": 8, "latent": 16, "attention_key": 8}  # what they were pinned with
CASES = {
    "conditional, official": Architecture(classes=3, **OLD),
    "unconditional, paper": Architecture(classes=0, **OLD, attention_form="paper"),
    "spectral norm in D only": Architecture(classes=3, **OLD, spectral_norm="discriminator"),
    "no spectral norm": Architecture(classes=3, **OLD, spectral_norm="none"),
}
STEPS, N = 20, 8
RECIPE = "digits' recipe, augmented"


def losses(arch):
    """L_D, mean D(real), mean D(fake) and L_G of each step: (STEPS, 4) float64; gates of attention are open."""
    G, D, average = (kind(arch, Init(0, dtype=np.float64)) for kind in (Generator, Discriminator, Generator))
    parity.open_gates(G, D)
    adam_g, adam_d = Adam(G.parameters(), 1e-4), Adam(D.parameters(), 2e-4)
    ema, found = EMA(adam_g.weights, flatten(average.parameters())), []
    data = parity.noise_images(Config(architecture=arch), 3 * N)
    for step in range(STEPS):
        images, labels = batch(data, np.arange(step * N, step * N + N) % len(data))
        z = rng.normal((N, arch.latent), 0, rng.Stream.Z_D, step).astype(np.float64)
        classes = rng.labels(N, arch.classes, 0, rng.Stream.LABELS_D, step) if arch.classes else None
        fakes = G(z, classes)
        labels = labels if arch.classes else None
        of_d = discriminator_step(D, adam_d, images.astype(np.float64), labels, fakes.data, classes)
        of_g = generator_step(G, D, adam_g, ema, fakes, classes)
        found.append([float(x) for x in (*of_d, *of_g)])
    return np.array(found)


def losses_of_the_recipe():
    """The same of what `train` does with digits, packs and falling rates, and with augmented images."""
    arch = Architecture(width=8, latent=16, classes=3, pack=2)
    config = Config(architecture=arch, batch_size=N, steps=STEPS, fall=0.5, augment=True, flip=True)
    G, D, average = (kind(arch, Init(0, dtype=np.float64)) for kind in (Generator, Discriminator, Generator))
    same = {"fall": config.fall, "steps": STEPS}
    adam_g, adam_d = Adam(G.parameters(), config.lr_g, **same), Adam(D.parameters(), config.lr_d, **same)
    ema, found = EMA(adam_g.weights, flatten(average.parameters())), []
    data = parity.noise_images(config, 3 * N)
    inputs = Inputs(config, data, data)
    for step in range(STEPS):
        images, labels, z, draws = inputs.of_d(inputs.seen(step), step)
        fakes = G(z.astype(np.float64), labels)
        of_d = discriminator_step(D, adam_d, images.astype(np.float64), labels, fakes.data, labels, draws)
        draws = inputs.draws(rng.Stream.AUGMENT_G, step)
        of_g = generator_step(G, D, adam_g, ema, fakes, labels, draws)
        found.append([float(x) for x in (*of_d, *of_g)])
    return np.array(found)


def test_the_recipes_twenty_steps_have_the_losses_that_they_had():
    np.testing.assert_allclose(losses_of_the_recipe(), json.loads(FILE.read_text())[RECIPE], rtol=0, atol=1e-10)


@pytest.mark.parametrize("name", CASES)
def test_twenty_steps_have_the_losses_that_they_had(name):
    np.testing.assert_allclose(losses(CASES[name]), json.loads(FILE.read_text())[name], rtol=0, atol=1e-10)


if __name__ == "__main__":
    table = {name: losses(arch) for name, arch in CASES.items()} | {RECIPE: losses_of_the_recipe()}
    json.dump({name: losses.tolist() for name, losses in table.items()}, sys.stdout, indent=1)
