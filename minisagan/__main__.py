"""`python -m minisagan` is `minisagan`."""

from minisagan.commands import cli

if __name__ == "__main__":
    cli()
