"""`minisagan export`: a trained generator as a file for other programs."""

from pathlib import Path

import click

from minisagan import export
from minisagan.commands import choices
from minisagan.errors import UsageError
from minisagan.files import replacing
from minisagan.run import checkpoint
from minisagan.run import folder as runs

FORMATS = ("onnx", "safetensors")


@click.command(short_help="Write a trained generator as an ONNX graph.")
@click.argument("run")
@click.option("-o", "--output", metavar="FILE", show_default="generator.onnx, or .safetensors by --to",
              help="NAME.onnx: a graph that draws images. NAME.safetensors: its weights alone.")
@click.option("--to", type=click.Choice(FORMATS), show_default="what FILE ends in", help="The format of the file.")
@click.option("--uint8", is_flag=True, show_default=False,
              help="The graph's images are uint8 and of the data's size, not float32 in -1 to 1 and with its frame.")
def command(run, output, to, uint8):
    """Write the generator of RUN, a run's folder (its newest checkpoint) or a checkpoint file, for other programs.

    Spectral norm and batch norm's statistics are folded into the weights. A graph takes z (N, latent) and, with
    classes, labels (N,); it gives images (N, H, W, C). It is written only if it draws our own images.
    """
    output = output or f"generator.{to or 'onnx'}"
    suffix = choices.check_suffix("-o", output, *(f".{known}" for known in FORMATS if to in (None, known)))
    if uint8 and suffix != ".onnx":
        raise UsageError("--uint8 is for graphs: a file of weights has no images")
    generator, config, about, file = runs.load_generator(run)
    metadata = export.metadata(config, about, file)
    compared = ""
    if suffix == ".onnx":
        size = about["image_size"] if uint8 else None
        model = export.to_onnx(generator, metadata, size)
        difference, ours, theirs = export.compare(generator, model, size)
        times = f"{theirs * 1000:.0f} ms in onnxruntime, {ours * 1000:.0f} ms in minisagan"
        compared = f"\n{export.CHECKED} images: {times}; they differ by {difference:.2g} at most"
        with replacing(output) as temp:
            temp.write_bytes(model)
    else:
        with replacing(output) as temp:
            checkpoint.write(temp, export.folded(generator), metadata)
    click.echo(f"{output}: {Path(output).stat().st_size / 1e6:.1f} MB, the generator of {file}{compared}")
