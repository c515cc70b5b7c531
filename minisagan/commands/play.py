"""`minisagan play`: a page to touch a run's networks."""

import click

from minisagan.commands import serving
from minisagan.look import play


@click.command(short_help="Touch a generator in the browser: latents, classes, attention.")
@click.argument("run")
@serving.options
@click.option("--data-dir", metavar="DIR", show_default="$MINISAGAN_DATA", help="Where the real images lie.")
def command(run, port, browser, data_dir):
    """Draw with the networks of RUN, a run's folder or a checkpoint file, on a page for the browser of this machine.

    Choose classes and latents, go between two, truncate, turn gamma, the gate of attention; click a point of an image
    to see where it looks. The same for the discriminator on real images, and for two checkpoints side by side.
    """
    return serving.serve(play.Play(run, data_dir).routes(), "play", run, port, browser)
