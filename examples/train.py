"""Training SAGAN through the API: a data set, a configuration, steps, and samples in a picture.

    python examples/train.py --steps 1000

The digits are drawn by the program itself, so nothing is downloaded. Each row of the picture is a class that the
generator was asked for.
"""

from dataclasses import replace

import click
import numpy as np

from minisagan import data
from minisagan.config import recipe
from minisagan.look import pictures
from minisagan.sampling import generate, latents
from minisagan.train import Training


@click.command()
@click.option("--steps", default=30, show_default=True, help="Training steps.")
@click.option("--batch-size", default=64, show_default=True, help="Images in a step.")
@click.option("--out", default="samples.png", show_default=True, help="The picture to write.")
def main(steps, batch_size, out):
    """Train on drawn digits and write what the generator draws."""
    dataset = data.load("drawn-digits")
    config = replace(recipe(dataset), steps=steps, batch_size=batch_size)
    training = Training(config, dataset, processes=None)  # on all cores
    print(f"{len(dataset):,} digits; weights: G {training.adam_g.weights.size:,}, D {training.adam_d.weights.size:,}")

    print("step   loss D   loss G  D(real)  D(fake)")
    while training.step < steps:
        record = training.advance()
        if training.step % 10 == 0 or training.step == steps:
            columns = "  ".join(f"{record[name]:7.3f}" for name in ("loss_d", "loss_g", "d_real", "d_fake"))
            print(f"{training.step:4}  {columns}")

    generator, labels = training.sampler(), np.repeat(np.arange(10), 10)  # a row for each class
    z = latents(generator, 100, config.seed)  # (100, latent)
    images = data.to_uint8(generate(generator, z, labels), dataset.image_size)  # (100, 28, 28, 1)
    pictures.write_png(out, pictures.grid(images, columns=10, names=dataset.classes))
    print(f"{out}: 10 samples of each digit")


if __name__ == "__main__":
    main()
