"""What `minisagan watch` and `minisagan play` share: their options, and serving a page until Ctrl-C."""

from pathlib import Path

import click

from minisagan.look import server


def options(command):
    """--port and --browser, to be given to `serve`."""
    for option in (
        click.option("--browser/--no-browser", default=True, help="Open the page in the browser."),
        click.option("--port", type=click.IntRange(1, 65535), show_default="a free one", help="Where the page is."),
    ):
        command = option(command)
    return command


def serve(routes, what, run, port, browser):
    """Answers for the page of RUN until Ctrl-C; the exit code. `what` is the command's name."""
    with server.Server(routes, f"{what} {Path(run).resolve()}", port or 0) as page:
        try:
            click.echo(f"{page.url}  {what} {run}, for this machine alone; Ctrl-C ends it")
            if browser:
                server.show(page.url)
            page.serve_forever()
        except KeyboardInterrupt:
            return 130
