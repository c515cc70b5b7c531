"""`minisagan watch`: the report of a run as a page that follows it."""

import os
import sys
import threading
import time

import click

from minisagan import cpu
from minisagan.commands import serving
from minisagan.look import watch

LINGER = 15  # seconds after the training's end in which a page that is open shows it


@click.command(short_help="Show a run in the browser while it trains, or later.")
@click.argument("run")
@serving.options
@click.option("--beside", is_flag=True, hidden=True, help="End soon after standard input does: train --watch.")
def command(run, port, browser, beside):
    """Show RUN, a run's folder, on a page that follows it: samples, curves, attention, metrics, configuration.

    The page is for the browser of this machine alone. It only reads the folder, so the training may be anywhere that
    writes there, be stopped, and go on. minisagan report writes the same as a file.
    """
    routes = watch.Watch(run).routes()
    cpu.set_threads(1)
    if hasattr(os, "nice"):
        os.nice(19)  # a training beside it comes first
    if beside:
        threading.Thread(target=_end_with_stdin, daemon=True).start()
    return serving.serve(routes, "watch", run, port, browser)


def _end_with_stdin():
    sys.stdin.buffer.read()
    time.sleep(LINGER)
    os._exit(0)
