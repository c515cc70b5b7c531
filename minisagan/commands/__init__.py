"""The command line: `minisagan COMMAND`, a module of this folder for each command, imported when it is called.

What goes wrong ends here, as one line on stderr and an exit code: 0 done, 1 failure, 2 usage, 3 data, 4 diverged,
5 a gradient check failed, 6 stopped on collapse, 129, 130 and 143 stopped by SIGHUP, Ctrl-C and SIGTERM. Results go to
stdout, all else to stderr.

Nothing here may import NumPy: `minisagan --help` and the shell's completion are to be there at once.
"""

import codecs
import contextlib
import importlib
import os
import signal
import sys
import traceback

import click

from minisagan import __version__
from minisagan.errors import Fault
from minisagan.launcher import guard, launched, named

COMMANDS = {
    "train": "Train a GAN on a data set, or go on with a run.",
    "sample": "Draw images with a trained generator.",
    "interpolate": "Morph between latents or classes, as a film or a strip.",
    "evaluate": "Measure images: distances, precision, recall, class asked for.",
    "attention": "Show what self-attention looks at, and what is lost without it.",
    "watch": "Show a run in the browser while it trains, or later.",
    "play": "Touch a generator in the browser: latents, classes, attention.",
    "report": "Write a page with all there is to see of a run.",
    "export": "Write a trained generator as an ONNX graph.",
    "inspect": "Show what a run or a checkpoint holds, and if it is intact.",
    "gradcheck": "Compare the backward pass of every op with finite differences.",
    "bench": "Time whole training steps, and each op in them.",
    "doctor": "Show what is installed and found here, and test it.",
}


class Commands(click.Group):
    """Its commands are names and short helps, until one is called and its module imported."""

    debug = False

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        for name, short_help in COMMANDS.items():
            self.add_command(click.Command(name, short_help=short_help))

    def list_commands(self, ctx):
        return list(COMMANDS)  # in this order

    def resolve_command(self, ctx, args):
        name, stub, args = super().resolve_command(ctx, args)
        if not stub:  # completion asks
            return name, stub, args
        command = importlib.import_module(f"minisagan.commands.{name}").command
        for option in command.params:
            if isinstance(option, click.Option):  # its variable is called as its flag is, not as our argument
                flag = max(option.opts, key=len).strip("-").replace("-", "_")
                option.envvar = f"MINISAGAN_{name}_{flag}".upper()
        return name, command, args

    def main(self, args=None, prog_name=None, **kwargs):
        """Run a command line (default: the process's own), and exit with its code."""
        args = list(sys.argv[1:] if args is None else args) or ["--help"]
        with contextlib.suppress(AttributeError):  # there may be no stdout
            codecs.register_error("minisagan", _as_it_is)
            sys.stdout.reconfigure(errors="minisagan")
        # Whoever started us may have closed it.
        sys.stderr = sys.stderr or open(os.devnull, "w")  # noqa: SIM115
        rank, world = launched()
        if world > 1:
            guard()
            from minisagan.processes import mpi
        if not rank:  # the other ranks end as this one does
            _end_in_good_order()
        try:
            code = mpi.serve() if rank else super().main(args, "minisagan", **{**kwargs, "standalone_mode": False})
        except click.exceptions.Abort:  # what click makes of a KeyboardInterrupt
            code = self._fail(130, "interrupted")
        except click.ClickException as error:
            code = self._fail(error.exit_code, f"{error.format_message()} (-h shows the options)")
        except Fault as error:
            code = self._fail(error.exit_code, error)
        except SystemExit as ended:  # by SIGTERM or SIGHUP: MPI's other ranks have to be told
            code = ended.code
        except MemoryError as error:
            where = f"{named()}: " if world > 1 else ""
            code = self._fail(1, f"{where}not enough memory for this size, width or batch: {error}")
        except OSError as error:
            code = self._fail(1, f"{error.filename or 'an operation of the system'}: {error.strerror or error}")
        except Exception as error:
            kind = type(error).__name__
            code = self._fail(1, f"internal error, {kind}: {error}; minisagan --debug COMMAND ... shows where")
        if world > 1 and not rank:
            mpi.end(code or 0)
        sys.exit(code or 0)

    def _fail(self, code, message):
        if self.debug:
            traceback.print_exc()
        click.echo(f"Error: {' '.join(str(message).splitlines())}", err=True)
        return code


def _end_in_good_order():
    """Let SIGTERM and SIGHUP end the program as Ctrl-C does, by an exception: what is half-written is taken away."""
    for name in ("SIGTERM", "SIGHUP"):
        with contextlib.suppress(AttributeError, ValueError):  # Windows has no SIGHUP; a thread sets no handler
            number = getattr(signal, name)
            if signal.getsignal(number) == signal.SIG_DFL:  # nohup ignores SIGHUP
                signal.signal(number, lambda number, frame: sys.exit(128 + number))


def _as_it_is(error):
    """What stdout's encoding lacks: bytes of a file's name that are no text go out as they are, letters as \\u72ac."""
    try:
        return codecs.lookup_error("surrogateescape")(error)
    except UnicodeEncodeError:
        return codecs.lookup_error("backslashreplace")(error)


@click.group(
    cls=Commands,
    context_settings={
        "help_option_names": ["-h", "--help"],
        "show_default": True,
        "auto_envvar_prefix": "MINISAGAN",
        "max_content_width": 100,
    },
    epilog="""\b
Every option can also be set by a variable: train's --width by MINISAGAN_TRAIN_WIDTH.
Completion in bash: put this into ~/.bashrc (zsh: zsh_source and ~/.zshrc; fish: fish_source)
    eval "$(_MINISAGAN_COMPLETE=bash_source minisagan)"
""",
)
@click.version_option(__version__, message="%(prog)s %(version)s", allow_from_autoenv=False)
@click.option("--debug", is_flag=True, show_default=False, help="Show a traceback with an error.")
@click.pass_context
def cli(ctx, debug):
    """SAGAN, the self-attention GAN, from scratch on NumPy and CuPy.

    Begin with: minisagan train
    """
    ctx.command.debug = debug
