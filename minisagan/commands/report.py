"""`minisagan report`: a run as one page of HTML."""

from pathlib import Path

import click

from minisagan.commands import choices
from minisagan.files import replacing
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
    with replacing(output) as temp:
        temp.write_text(text, encoding="utf-8", errors="replace")  # of a file's name that is no UTF-8
    click.echo(f"{output}: {len(text) / 1e6:.1f} MB, to be opened in a browser")
