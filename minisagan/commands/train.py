"""`minisagan train`: a new run, one after another's configuration, or more steps of one."""

import json
import math
import os
import shlex
import signal
import subprocess
import sys
import time
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import click
from click.core import ParameterSource

from minisagan import cpu, data, variety
from minisagan.commands import hardware
from minisagan.commands.progress import Progress
from minisagan.config import RECIPES, Config, recipe
from minisagan.errors import Collapsed, DataError, UsageError
from minisagan.look.words import duration
from minisagan.run import checkpoint, loop
from minisagan.run import folder as runs
from minisagan.stderr import note

DEFAULTS = Config().to_dict() | Config().to_dict()["architecture"]
SMALL, PHOTOS = (DEFAULTS | recipe | recipe["architecture"] for recipe in (RECIPES["digits"], RECIPES["folder"]))
USUAL = {  # in words
    "size": "of a folder of images 64, else the data's own",
    "channels": "of a folder of images 3, else the data's own",
    "attention": "16 at 32x32, else 32",
    "attention_key": "C/8, at least 8",
    "lr_g": f"{SMALL['lr_g']}; drawn digits {RECIPES['drawn-digits']['lr_g']}; photos {PHOTOS['lr_g']}",
}
NEW = {"out": "--out", "force": "--force", "replay": "--config", "init_from": "--init-from", "strict": "--strict"}
RATES = ("lr_g", "lr_d")  # which a resumed run may change
WARM_UP, PACE, SAFETY = 3, 20, 0.97  # steps before the pace is measured, and over which; the share that is planned
ARCHITECTURE = ("width", "pack", "attention", "attention_form", "attention_key", "spectral_norm", "init")
HEADINGS = {  # of the help, and the options below them
    "The run": "dataset out steps minutes seed resume init_from config force watch",
    "Data": "data_dir size channels fit labels skip_unreadable strict flip augment",
    "Networks": "width conditional attention attention_form attention_key spectral_norm pack init",
    "Training": "batch_size accumulate lr_g lr_d fall d_steps beta1 beta2 ema",
    "What is kept": "sample_every checkpoint_every checkpoint_minutes keep evaluate_every stop_on_collapse",
    "What computes": "device threads parts tf32 graph help",
}


class Grouped(click.Command):
    """A command whose help has its options below HEADINGS."""

    def format_options(self, ctx, formatter):
        rows = {max(p.opts, key=len).strip("-").replace("-", "_"): p.get_help_record(ctx) for p in self.get_params(ctx)}
        for title, names in HEADINGS.items():
            with formatter.section(title):
                formatter.write_dl([rows[name] for name in names.split()])


def setting(flag, **kwargs):
    """An option that is a field of Config or Architecture: None if not given, and the help shows what that means."""
    name = flag.split("/")[0].strip("-").replace("-", "_")
    small, photos = (str(recipe[name]).replace("True", "on").replace("False", "off") for recipe in (SMALL, PHOTOS))
    usual = USUAL.get(name) or (small if small == photos else f"{small}; photos {photos}")
    return click.option(flag, default=None, show_default=usual, **kwargs)


@click.command(cls=Grouped, short_help="Train a GAN on a data set, or go on with a run.")
@setting("--dataset", metavar="NAME", help=f"{', '.join(data.NAMES)}, emnist-NAME, or a path: a "
         "folder of images or of IDX files, or an .npz with images and labels.")
@click.option("--data-dir", metavar="DIR", show_default="$MINISAGAN_DATA, or the cache folder",
              help="Where data sets lie, or are put.")
@click.option("--out", metavar="DIR", show_default="runs/NAME, or the next number", help="The new run's folder.")
@setting("--steps", type=int, help="Train until this step. Paper: 1,000,000.")
@click.option("--minutes", type=float,
              help="Stop after so many minutes. A new run without --steps: as many steps as fit in.")
@setting("--batch-size", type=int, help="Images in a batch. Paper's code: 256.")
@setting("--accumulate", type=int, metavar="K", help="See a batch as K micro-batches, in the memory of one. Paper: 1.")
@setting("--parts", type=int, metavar="P",
         help="Sums over a batch are made in P parts, a power of 2: up to P processes share it.")
@setting("--seed", type=int, help="Seed of all random numbers: weights, noise, the order of the data.")
@setting("--width", type=int, help="Channels at full resolution. Paper's code: 64.")
@setting("--size", type=int, help="Side of the images in pixels: 32, 64, 128, 256; but 32 in named sets. Paper: 128.")
@setting("--channels", type=click.Choice([1, 3]), help="1: grey, 3: RGB. Folders only.")
@setting("--fit", type=click.Choice(["crop", "pad"]), help="Cut a folder's images to squares, or frame them in black.")
@click.option("--labels", metavar="FILE", show_default="folders are classes", help="CSV or JSON: each image's class.")
@setting("--skip-unreadable/--no-skip-unreadable", help="Leave damaged images of a folder out.")
@click.option("--strict", is_flag=True, show_default=False, help="Refuse a folder that holds anything but images.")
@setting("--pack", type=int, metavar="K", help="D sees K images of one class at once. Paper: 1.")
@setting("--attention", metavar="LEVEL|none", help="Resolution at which both networks attend. Paper: 64 at 128.")
@setting("--attention-form", type=click.Choice(["official", "paper"]), help="As in the authors' code, or the paper.")
@setting("--attention-key", type=int, metavar="K", help="Queries and keys have C/K of C channels. Paper: K = 8.")
@setting("--spectral-norm", type=click.Choice(["both", "discriminator", "none"]),
         help="Which networks have spectral norm.")
@click.option("--conditional/--unconditional", default=None, show_default="conditional, if there are classes",
              help="Whether the networks are told the classes. Paper: conditional.")
@setting("--d-steps", type=int, help="Steps of D for each one of G. Paper: 1.")
@setting("--lr-g", type=float, help="Learning rate of G. Paper: 0.0001.")
@setting("--lr-d", type=float, help="Learning rate of D. Paper: 0.0004.")
@setting("--beta1", type=float, help="Adam's beta1. Paper: 0.")
@setting("--beta2", type=float, help="Adam's beta2. Paper: 0.9.")
@setting("--ema", type=float, help="Decay of the average of G's weights, 0 for none. Paper: none.")
@setting("--fall", type=float, help="Share of the steps, at the end, in which both rates fall to 0. Paper: none.")
@setting("--flip/--no-flip", help="Mirror half of the images.")
@setting("--augment/--no-augment", help="D sees all images, real and generated, shifted and with a square cut out: "
         "for small sets. With --flip it mirrors, too. Paper: none.")
@setting("--init", type=click.Choice(["orthogonal", "xavier"]), help="First weights. Paper's code: xavier.")
@click.option("--sample-every", type=click.IntRange(0), default=loop.USUAL.sample_every,
              help="Steps between pictures, 0 for none.")
@click.option("--checkpoint-every", type=click.IntRange(0), default=loop.USUAL.checkpoint_every,
              help="Steps between checkpoints, 0 for none.")
@click.option("--checkpoint-minutes", type=click.FloatRange(0), default=loop.USUAL.checkpoint_minutes,
              help="Minutes between checkpoints at most, 0 for no such limit.")
@click.option("--keep", type=click.IntRange(1), default=loop.USUAL.keep, help="How many checkpoints stay.")
@click.option("--evaluate-every", type=click.IntRange(0), default=loop.USUAL.evaluate_every,
              help="Steps between measurements, 0 for none. RUN/best is then the best checkpoint.")
@click.option("--stop-on-collapse", is_flag=True, show_default=False,
              help="End, with exit code 6, when the samples of a class are nearly one image. It is noted in any case; "
              "the last checkpoint from before stays.")
@click.option("--resume", metavar="RUN",
              help="Go on with this run, or from this checkpoint in it: what came after it is deleted.")
@click.option("--init-from", metavar="RUN",
              help="Begin with the weights of this run, as far as they fit. Its networks' options are the defaults.")
@click.option("--force", is_flag=True, show_default=False, help="Replace the run that is in --out.")
@click.option("--config", "replay", metavar="FILE", help="A run's config.json: its values are the defaults.")
@hardware.threads_option
@click.option("--watch", is_flag=True, show_default=False, help="Show the run in the browser, as minisagan watch does.")
@hardware.gpu_options
def command(
    data_dir, out, minutes, sample_every, checkpoint_every, checkpoint_minutes, keep, evaluate_every, stop_on_collapse,
    resume, init_from, force, replay, threads, watch, where, graph, tf32, strict, **given
):  # fmt: skip
    """Train a GAN on a data set, or go on with a run.

    \b
    minisagan train                                 digits that it draws itself: no download
    minisagan train --dataset mnist --minutes 10
    minisagan train --resume runs/mnist --steps 4000

    A run is a folder: pictures of samples, checkpoints, a log, config.json. Ctrl-C saves before it stops, as does a
    terminal that closes.
    """
    where = hardware.choose(where, tf32)
    on = {"gpu": where != "cpu", "graph": graph, "processes": None}
    if minutes is not None and not 0 < minutes < math.inf:
        raise UsageError(f"--minutes must be above 0, not {minutes}")
    if math.isnan(checkpoint_minutes):
        raise UsageError("--checkpoint-minutes must be a number")
    if stop_on_collapse and not sample_every:
        raise UsageError("--stop-on-collapse looks at the samples: --sample-every must not be 0")
    cpu.set_threads(threads)
    source = click.get_current_context().get_parameter_source
    said = {name for name in (*given, *NEW) if source(name) == ParameterSource.COMMANDLINE}
    taken = {*said, "steps", *RATES} if resume else given  # other options from the environment are for new runs
    given = {name: value for name, value in given.items() if value is not None and name in taken}
    if given.get("dataset") and data.is_path(given["dataset"]):
        given["dataset"] = os.path.abspath(given["dataset"])
    if "labels" in given:
        given["labels"] = os.path.abspath(given["labels"])
    if "attention" in given:
        given["attention"] = _level(given["attention"])
    options = loop.Options(sample_every, checkpoint_every, keep, evaluate_every, checkpoint_minutes)
    if resume:
        for name, flag in NEW.items():
            if name in said:
                raise UsageError(f"{flag} is for new runs: a resumed one keeps its folder and its configuration")
        config = _refuse_differences(resume, given)
        rates = {name: given[name] for name in RATES if name in given}
        places = {name: given[name] for name in ("dataset", "labels") if name in given}
        opened = loop.Run.resume(resume, given.get("steps"), data_dir, options, places, rates, **on)
    else:
        if force and not out:
            raise UsageError("--force needs --out, the folder of the run to replace")
        if init_from:
            given = _networks(init_from, given) | given
        config, dataset = _configure(given, data_dir, replay, strict)
        folder = out or Path("runs", Path(config.dataset).name)
        opened = loop.Run.create(folder, config, dataset, options, force, data_dir, not out, init_from, **on)

    room = hardware.memory(config.batch_size, f"{hardware.SMALLER}, as does --accumulate")
    with room, opened as run, watched(run, watch), interrupts() as caught:
        _introduce(run, where)
        done, late, collapsed, noted = run.training.step, False, None, False
        with Progress(run, math.inf if minutes is None else 60 * minutes) as progress:
            end = math.inf if minutes is None else time.monotonic() + 60 * minutes
            reckon = None if minutes is None or resume or "steps" in given else Reckoning(end)
            for record in iter(run.advance, None):
                progress.update(record)
                if reckon and (steps := reckon(run.training.step)):
                    run.end_at(steps)
                    reckon = None
                collapsed = run.collapse and stop_on_collapse
                if run.collapse and not (noted or collapsed):
                    progress.note(_collapse(run))
                    noted = True
                late = time.monotonic() >= end
                if caught or late or collapsed:
                    break
        run.finish()
        why = f" (--minutes {minutes:g} are over)" if late else " (collapsed)" if collapsed else ""
        why = f" ({signal.Signals(caught[0]).name})" if caught else why
        _conclude(run, run.training.step > done, why, data_dir)
        if collapsed and not caught:
            raise Collapsed(_collapse(run))
    return 128 + caught[0] if caught else 0


class Reckoning:
    """How many steps fit in until the time `end`, from the pace of a few; rates that fall have to know it early."""

    def __init__(self, end):
        self.end, self.first = end, None

    def __call__(self, step):
        """Called after each step (or more of them at once): the number of steps, once it is known; None before."""
        now = time.monotonic()
        if self.first is None:  # the very first steps are slow
            self.first = (step, now) if step >= WARM_UP else None
        elif step >= self.first[0] + PACE:
            pace = (now - self.first[1]) / (step - self.first[0])
            return max(step, step + int(SAFETY * (self.end - now) / pace))
        return None


def _level(text):
    if text == "none":
        return None
    try:
        return int(text)
    except ValueError:
        raise UsageError(f"--attention {text}: neither a resolution nor none") from None


def _configure(given, data_dir, replay, strict):
    """(Config, Dataset) from the options that were given, then `replay`'s values, then the data set's recipe."""
    base, data_then = _read(replay) if replay else (None, None)
    asked = dict(given)
    architecture = {name: asked.pop(name) for name in ARCHITECTURE if name in asked}
    name = asked.pop("dataset", base.dataset if base else DEFAULTS["dataset"])
    size = asked.pop("size", base.architecture.size if base and name not in data.NAMES else None)
    then = base if base and base.dataset == name else None  # how this very data set was read
    channels = asked.pop("channels", then and then.architecture.channels)
    conditional = asked.pop("conditional", None)
    how = replace(then or Config(), **asked).reading(channels=channels, strict=strict)  # bad numbers are refused here
    dataset = data.load(name, data_dir, size=size, how=how)
    if conditional and len(dataset.classes) < 2:
        raise UsageError(f"--conditional: {dataset.name} has only one class")
    if conditional is None:
        conditional = not base or base.architecture.classes > 0
    own = recipe(dataset, conditional)
    facts = {name: getattr(own.architecture, name) for name in ("size", "channels", "classes")}
    if base and base.dataset == dataset.name != DEFAULTS["dataset"] and data_then != runs.about_data(dataset):
        note(f"{dataset.name} has changed since {replay} was written")
    base = base or own
    asked |= {"fit": how.fit, "labels": how.labels, "skip_unreadable": how.skip_unreadable}
    asked |= {"dataset": dataset.name, "architecture": replace(base.architecture, **facts, **architecture)}
    return replace(base, **asked), dataset


def _read(path):
    """The Config in a config.json, and what that says about the data."""
    try:
        about = json.loads(Path(path).read_text())
        if isinstance(about, dict) and about.keys() & runs.BESIDE_CONFIG:
            note(f"{path} alone does not replay its run: see init_from and changes in it")
        return Config.from_dict(about["config"]), about["data"]
    except OSError as error:
        raise UsageError(f"--config {path}: {error.strerror}") from error
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, UsageError) as error:
        raise DataError(f"{path}: not the config.json of a run: {error}") from error


def _networks(run, given):
    """The options of a run's networks that do not follow from the data; of a folder's images, their size does not."""
    file = runs.find(run)
    architecture = runs.read_config(checkpoint.read_metadata(file), file).architecture
    free = (*ARCHITECTURE, *(["size"] if given.get("dataset", data.NAMES[0]) not in data.NAMES else []))
    return {name: getattr(architecture, name) for name in free}


def _refuse_differences(run, given):
    """The run's Config; UsageError, naming each, for options that are not the run's own and may not change.

    Steps and rates may, and where data lie that have no name of ours: whether they are the same, their hashes tell.
    """
    file = runs.find(run)
    config = runs.read_config(checkpoint.read_metadata(file), file)
    has = config.to_dict() | config.to_dict()["architecture"] | {"conditional": config.architecture.classes > 0}
    named = {given.get("dataset"), config.dataset} & set(data.NAMES)
    may_change = {"steps", *RATES} | (set() if named else {"dataset", "labels"} if config.labels else {"dataset"})
    differences = [
        f"{name.replace('_', '-')} {value} (the run has {has[name]})"
        for name, value in given.items()
        if value != has[name] and name not in may_change
    ]
    if differences:
        raise UsageError(f"{run} can't go on with another {', '.join(differences)}: leave that out, or start a new run")
    return config


@contextmanager
def watched(run, wanted):
    """Inside, if it is wanted, a process of its own shows the run in the browser, and its address on stderr.

    It ends by itself, soon after its standard input does: that is, after this process, however this one dies. It
    imports the package that runs here, and nothing that lies in the current folder (-P).
    """
    if not wanted:
        yield
        return
    command = [sys.executable, "-P", "-m", "minisagan", "watch", os.path.abspath(run.folder), "--beside"]
    here, there = str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH")
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([here, there] if there else [here])}
    new = {"env": environment, "start_new_session": True}  # Ctrl-C is not for it
    child = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=2, **new)
    try:
        yield
    finally:
        child.stdin.close()


@contextmanager
def interrupts():
    """Yields a list, to which the first SIGINT, SIGTERM or SIGHUP is appended; a later SIGINT interrupts at once.

    Under nohup, which ignores SIGHUP, that stays so.
    """
    caught = []

    def note(number, frame):
        if caught and number == signal.SIGINT:
            raise KeyboardInterrupt
        caught.append(number)
        for stream, text in (1, b""), (2, b"\nfinishing this step and saving; Ctrl-C (again) quits at once\n"):
            try:
                os.write(stream, text)  # not print: the signal may have come in the middle of one
            except OSError:  # a terminal that is closed: what is written from here on may go nowhere
                os.dup2(os.open(os.devnull, os.O_WRONLY), stream)

    numbers = [signal.SIGINT, signal.SIGTERM]
    if hasattr(signal, "SIGHUP") and signal.getsignal(signal.SIGHUP) != signal.SIG_IGN:  # Windows has none
        numbers.append(signal.SIGHUP)
    before = {number: signal.signal(number, note) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _introduce(run, where):
    training = run.training
    images, classes, size = training.dataset, training.config.architecture.classes, training.dataset.image_size
    click.echo(
        f"{run.folder}: {images.name}, {len(images):,} images of {size}x{size}, {classes or 'no'} classes; "
        f"{len(training.adam_g.weights):,} weights in G, {len(training.adam_d.weights):,} in D; "
        f"{hardware.describe(where)}, {cpu.busy(training.processes)}",
        err=True,
    )


def _collapse(run):
    """What has happened, what to try, and where to go back to."""
    before = runs.varied(run.folder).get(run.collapse.name)
    before = f"{before} is from before" if before else "no checkpoint from before is there"
    about = f"step {run.collapse.step:,}: the generator has collapsed: {run.collapse}"
    return f"{about}. Try {variety.advice(run.training.config)}; {before}"


def _conclude(run, moved, why, data_dir):
    """On stdout: where the run is, and what can be done with it."""
    folder, step, steps = run.folder, run.training.step, run.training.config.steps
    quoted = shlex.quote(f"./{folder}" if str(folder).startswith("-") else str(folder))
    more = f" --data-dir {shlex.quote(data_dir)}" if data_dir else ""
    best = runs.best(folder)
    best = f"  best        {folder / 'best'}: {best[1].name}, Frechet distance {best[0]:.2f}\n" if best else ""
    if step < steps:
        state = f"stopped at step {step} of {steps}{why}"
    else:
        state = f"all {steps} steps are done" if moved else f"nothing to do, all {steps} steps were done before"
        more += f" --steps {2 * steps or 1000}"
    click.echo(
        f"{folder}: {state}, {duration(run.seconds)} of training\n"
        f"  samples     {run.picture()}\n"
        f"  film        {folder / 'progress.gif'}\n"
        f"  curves      {folder / 'curves.png'}\n"
        f"  checkpoint  {checkpoint.path_of(folder / 'checkpoints', step)}\n"
        f"{best}"
        f"draw more:    minisagan sample {quoted} -o samples.png\n"
        f"go on:        minisagan train --resume {quoted}{more}"
    )
