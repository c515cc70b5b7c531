"""`minisagan report`: a run as one page of HTML."""

import os
from pathlib import Path

import click

from minisagan.commands import choices
from minisagan.errors import Fault
from minisagan.look import report


@click.command(short_help="Write a page with all there is to see of a run.")
@click.argument("run")
@click.option("-o", "--output", metavar="FILE", show_default="RUN/report.html", help="The page to write.")
def command(run, output):
    """Write one HTML page about RUN, a run's folder: samples, curves, attention, metrics, configuration.

    The page holds all it shows and can be moved, mailed, and read offline. What minisagan evaluate measured last is in
    it, too.
    """
    if output or Path(run).is_dir():  # of what is no run, the page says so
        output = Path(output or Path(run, "report.html"))
        choices.check_suffix("-o", output, ".html")
    text = report.page(run)
    temp = output.with_name(output.name + ".tmp")
    try:
        try:
            temp.write_text(text, encoding="utf-8", errors="replace")  # of a file's name that is no UTF-8
            os.replace(temp, output)
        finally:
            temp.unlink(missing_ok=True)  # after the replace there is none
    except OSError as error:
        raise Fault(f"{output}: not written: {error.strerror or error}") from error
    click.echo(f"{output}: {len(text) / 1e6:.1f} MB, to be opened in a browser")
