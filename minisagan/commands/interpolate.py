"""`minisagan interpolate`: images on the way from latent to latent, or from class to class, as a film or a strip."""

import click
import numpy as np

from minisagan import data
from minisagan.commands import choices
from minisagan.errors import UsageError
from minisagan.look import pictures
from minisagan.look.interpolation import blend_classes, lerp, slerp, way
from minisagan.run import folder as runs
from minisagan.sampling import generate, latents

COLUMNS, WIDE = 5, 112  # in a frame of the film: images side by side, and the least width of one in pixels
MILLISECONDS = 80  # for which a frame is shown


@click.command(short_help="Morph between latents or classes, as a film or a strip.")
@click.argument("run")
@click.option("--along", type=click.Choice(["latents", "classes"]), default="latents",
              help="What changes on the way. The other one makes the rows: each class, or each latent.")
@click.option("--latents", "count", type=choices.COUNT, default=5, help="How many latents.")
@choices.classes_option
@click.option("--seed", type=int, default=0, help="Of the latents: they are those of minisagan sample.")
@click.option("--truncation", metavar="T", type=click.FloatRange(0.1), show_default="none",
              help="As in minisagan sample.")
@click.option("--steps", type=choices.COUNT, show_default="12 in a film, 4 in a strip",
              help="How many steps from one latent or class to the next.")
@click.option("-o", "--output", metavar="FILE", default="interpolation.gif",
              help="NAME.gif: a film that comes back to where it began. NAME.png: a strip for each row.")
def command(run, along, count, classes, seed, truncation, steps, output):
    """Draw images on the way through several latents, or through several classes, with the generator of RUN.

    \b
    minisagan interpolate RUN                                     each class along five latents
    minisagan interpolate RUN --along classes --classes 3,8,5     five latents along three classes

    Between latents the way is an arc (spherical interpolation), between classes the blend of their gains and biases in
    batch norm.
    """
    film = choices.check_suffix("-o", output, ".gif", ".png") == ".gif"
    generator, config, about, file = runs.load_generator(run)
    chosen = choices.classes(classes, about["classes"], config.architecture.classes)
    z = latents(generator, count, seed, truncation)  # (latents, D); of too many for the memory, this says so
    legible = pictures.legible({k: about["classes"][k] for k in chosen or ()})
    names = {"latents": [f"z{k}" for k in range(count)], "classes": list(legible.values())}
    if along == "classes" and chosen is None:
        raise UsageError(f"--along classes: {file} was trained without classes")
    if len(names[along]) < 2:
        raise UsageError(f"--along {along}: a way needs at least two of them, not {len(names[along])}")
    steps = steps or (12 if film else 4)
    if along == "latents":
        z = way(z, slerp, steps, closed=film).astype(z.dtype)[None]  # (1, K, D)
        rows, labels = names["classes"] or [""], np.array(chosen or [0])[:, None]  # (rows, 1)
    else:
        mixtures = way(np.eye(config.architecture.classes)[chosen], lerp, steps, closed=film)  # (K, classes)
        blend_classes(generator, mixtures)
        rows, labels, z = names["latents"], np.arange(len(mixtures))[None], z[:, None]  # (1, K), (rows, 1, D)
    images = _draw(generator, z, None if chosen is None else labels, about["image_size"])  # (rows, K, H, W, C)
    if film:
        _write_film(output, images, rows, names[along], steps)
    else:
        heads = [names[along][k // steps] if k % steps == 0 else "" for k in range(images.shape[1])]
        sheet = pictures.grid(images.reshape(-1, *images.shape[2:]), images.shape[1], names=rows, heads=heads)
        pictures.write_png(output, sheet)
    click.echo(f"{output}: {images.shape[1]} images along {len(names[along])} {along}, rows: {len(rows)}, by {file}")


def _draw(generator, z, labels, size):
    """Images for latents (rows or 1, K or 1, D) and labels (rows or 1, K or 1) or None: (rows, K, size, size, C)."""
    shape = z.shape[:2] if labels is None else np.broadcast_shapes(z.shape[:2], labels.shape)
    flat = np.broadcast_to(z, (*shape, z.shape[2])).reshape(-1, z.shape[2])
    images = generate(generator, flat, None if labels is None else np.broadcast_to(labels, shape).reshape(-1))
    return data.to_uint8(images, size).reshape(*shape, size, size, -1)


def _write_film(path, images, rows, stops, steps):
    """A frame for each of the K places on the way: the rows' images side by side, and between which stops that is."""
    scale = max(1, -(-WIDE // images.shape[3]))
    frames = [pictures.grid(images[:, k], COLUMNS, scale, captions=rows) for k in range(images.shape[1])]
    legs = [f"{a} to {b}" for a, b in zip(stops, stops[1:] + stops[:1], strict=True)]
    captions = [leg for leg in legs for _ in range(steps)]
    pictures.write_gif(path, frames, MILLISECONDS, captions=captions, most=len(frames))
