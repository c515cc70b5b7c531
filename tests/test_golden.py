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
from minisagan.init import Init
from minisagan.models import Discriminator, Generator
from minisagan.optim import EMA, Adam, flatten
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


def losses(arch):
    """L_D, mean D(real), mean D(fake) and L_G of each step: (STEPS, 4) float64; gates of attention are open."""
    G, D, average = (kind(arch, Init(0, dtype=np.float64)) for kind in (Generator, Discriminator, Generator))
    for network in (G, D):
        network.attention.gamma.data[...] = 0.5
    adam_g, adam_d = Adam(G.parameters(), 1e-4), Adam(D.parameters(), 2e-4)
    ema, found = EMA(adam_g.weights, flatten(average.parameters())), []
    data = parity.noise(Config(architecture=arch), 3 * N)
    for step in range(STEPS):
        images, labels = batch(data, np.arange(step * N, step * N + N) % len(data))
        z = [rng.normal((N, arch.latent), 0, stream, step).astype(np.float64) for stream in (0, 1)]
        fakes = [rng.labels(N, arch.classes, 0, stream, step) if arch.classes else None for stream in (2, 3)]
        labels = labels if arch.classes else None
        of_d = discriminator_step(G, D, adam_d, images.astype(np.float64), labels, z[0], fakes[0])
        of_g = generator_step(G, D, adam_g, ema, z[1], fakes[1])
        found.append([float(x) for x in (*of_d, *of_g)])
    return np.array(found)


@pytest.mark.parametrize("name", CASES)
def test_twenty_steps_have_the_losses_that_they_had(name):
    np.testing.assert_allclose(losses(CASES[name]), json.loads(FILE.read_text())[name], rtol=0, atol=1e-10)


if __name__ == "__main__":
    json.dump({name: losses(arch).tolist() for name, arch in CASES.items()}, sys.stdout, indent=1)
