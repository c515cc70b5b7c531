"""`python -m minisagan` is `minisagan`."""

import os


def main():
    """The command line; Ctrl-C while it is being imported ends it as later."""
    try:
        from minisagan.commands import cli
    except KeyboardInterrupt:
        os.write(2, b"Error: interrupted\n")
        os._exit(130)
    cli()


if __name__ == "__main__":
    main()
