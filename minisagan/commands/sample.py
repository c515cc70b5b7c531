"""`minisagan sample`: images from a trained generator, as a grid, as arrays or as files."""

import os
import re
import sys
from pathlib import Path

import click
import numpy as np

from minisagan import cuda
from minisagan.commands import choices, hardware
from minisagan.errors import UsageError
from minisagan.files import replacing
from minisagan.look import pictures
from minisagan.run import folder as runs
from minisagan.sampling import BATCH, draw

LONGEST = 200  # bytes of a class's name in that of a file, which has at most 255


@click.command(short_help="Draw images with a trained generator.")
@click.argument("run")
@click.option("--count", type=choices.COUNT, default=100, help="How many images, spread evenly over the classes.")
@choices.classes_option
@click.option("--seed", type=int, default=0, help="Of the noise: an image depends on it and its own number alone.")
@click.option("--truncation", metavar="T", type=click.FloatRange(0.1), show_default="none",
              help="Redraw each number of the noise until it is within -T to T: less variety, fewer odd images.")
@click.option("-o", "--output", metavar="FILE", default="samples.png",
              help="NAME.png: a grid, a row for each class. NAME.npz: arrays images and labels. "
              "NAME or NAME/: a new folder, a PNG for each image.")
@hardware.device_option()
def command(run, count, classes, seed, truncation, output, where):
    """Draw images with the generator of RUN, a run's folder (its newest checkpoint) or a checkpoint file."""
    write = _writer(output)
    generator, config, about, file = runs.load_generator(run)
    chosen = choices.classes(classes, about["classes"], config.architecture.classes)
    if hardware.choose(where) != "cpu":
        generator.to(cuda.cupy().empty(0))
    with hardware.memory(BATCH, "--device cpu has more"):
        images, labels = draw(generator, count, chosen, seed, about["image_size"], truncation)
    write(Path(output), images, labels, chosen and {k: about["classes"][k] for k in chosen})
    click.echo(f"{output}: {count} images of {images.shape[1]}x{images.shape[2]} by {file}")


def _writer(output):
    """What writes to `output`; UsageError or Fault before anything is drawn if that can't be."""
    suffix = "" if output.endswith("/") or Path(output).is_dir() else Path(output).suffix
    if suffix not in (".png", ".npz", ""):
        raise UsageError(f"-o {output}: not .png, .npz or the name of a folder (NAME/)")
    if not suffix and Path(output).exists() and not (Path(output).is_dir() and not any(Path(output).iterdir())):
        raise UsageError(f"-o {output} is there already: name a new folder")
    choices.check_place(output)
    return {".png": _write_grid, ".npz": _write_arrays, "": _write_folder}[suffix]


def _write_grid(path, images, labels, names):
    """A row for each class; without classes, as square as can be."""
    if labels is None:
        pictures.write_png(path, pictures.grid(images, int(np.ceil(len(images) ** 0.5))))
        return
    rows = [images[labels == k] for k in names if k in labels]
    sheet = np.full((len(rows), len(rows[0]), *images.shape[1:]), pictures.GAP_GREY, np.uint8)  # (K, columns, H, W, C)
    for cells, row in zip(sheet, rows, strict=True):
        cells[: len(row)] = row
    names = list(pictures.legible(names).values())[: len(rows)]
    picture = pictures.grid(sheet.reshape(-1, *images.shape[1:]), len(rows[0]), names=names)
    pictures.write_png(path, picture)


def _write_arrays(path, images, labels, names):
    """images (N, H, W) if they are grey, (N, H, W, 3) if not; labels (N,) if there are classes."""
    arrays = {"images": images[..., 0] if images.shape[-1] == 1 else images}
    if labels is not None:
        arrays["labels"] = labels
    with replacing(path) as temp, open(temp, "wb") as file:
        np.savez_compressed(file, **arrays)


def _write_folder(path, images, labels, names):
    """00000-CLASS.png, 00001-CLASS.png, ...: all of them, or no folder."""
    with replacing(os.path.realpath(path)) as temp:  # an empty folder may be there, behind a link or "."
        temp.mkdir()
        for i, image in enumerate(images):
            name = "" if labels is None else "-" + _file_name(names[labels[i]], labels[i])
            (temp / f"{i:05d}{name}.png").write_bytes(pictures.png(image))


def _file_name(name, label):
    """What stands for a class in the names of files: its name, as far as this system's can hold it."""
    try:
        whole = os.fsencode(re.sub(r"[^\w.-]+", "-", name))
    except UnicodeEncodeError:
        return str(label)
    return whole[:LONGEST].decode(sys.getfilesystemencoding(), "ignore")
