"""A run on disk: its folder, its log, its checkpoints and pictures, and the loop that fills them.

    RUN/config.json                                what was asked for, on what data, with which versions
    RUN/log.jsonl                                  a line of numbers for the first step and every LOG_EVERY
    RUN/checkpoints/step-00001000.safetensors      everything needed to go on, and to sample
    RUN/samples/step-00001000.png                  the same latents and classes each time
    RUN/progress.gif  RUN/curves.png               the samples over time; losses, scores, gates of attention
    RUN/evaluation.json  RUN/report.html           what minisagan evaluate measured last; minisagan report's page
    RUN/lock                                       held by the process that trains

RUN/best stands for the checkpoint with the least Frechet distance in the log, among those that are there.
"""

import contextlib
import json
import os
import platform
import re
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minisagan import __version__, checkpoint, cuda, data, device, pictures, rng
from minisagan.errors import DataError, Diverged, Fault, UsageError
from minisagan.evaluation import Judge
from minisagan.lockfile import locked
from minisagan.models import Discriminator, Generator
from minisagan.train import Config, Training, generate

LOG_EVERY = 10
EVALUATED = 1000  # images that are measured during training
STEP_FILES = ("checkpoints/step-*.safetensors", "samples/step-*.png")
# All that we delete:
OURS = ("config.json", "log.jsonl", *STEP_FILES, "progress.gif", "curves.png", "evaluation.json", "report.html")


class Options(NamedTuple):
    """What a run does beside training: steps between two times (0: never), and how many checkpoints stay."""

    sample_every: int = 250
    checkpoint_every: int = 500
    keep: int = 3
    evaluate_every: int = 0


class Run:
    """A training in its folder, which no other process can use meanwhile:

        with Run.create(folder, config, dataset) as run:  # or Run.resume(folder)
            while run.advance():
                ...
            run.finish()

    With `evaluate_every` some images are measured every so many steps, and the checkpoint of the least Frechet distance
    is written and kept, too; that needs the data set's test images, and its classifier. `where` (gpu, graph) is
    Training's: a run may go on where it did not begin.
    """

    def __init__(self, folder, training, seconds=0.0, options=(), data_dir=None):
        self.folder, self.training, self.seconds = Path(folder), training, seconds
        self.options, self.judge = Options(*options), None
        if self.options.evaluate_every:
            self.judge = Judge(training.dataset, EVALUATED, training.config.seed, data_dir)
        self.started = time.monotonic() - seconds
        self.saved = None  # the step of the last checkpoint of this process

    @classmethod
    @contextlib.contextmanager
    def create(cls, folder, config, dataset, options=(), force=False, data_dir=None, **where):
        """A new run in an empty or new folder; with `force`, what an older run left there is deleted first.

        Writes config.json and a first checkpoint, so that a disk that refuses does so before step 1.
        """
        folder, training = Path(folder), Training(config, dataset, **where)  # what can't be trained leaves no folder
        new = not folder.exists()
        try:
            if not (new or force) and any(path.name != "lock" for path in folder.iterdir()):
                raise UsageError(
                    f"{folder} is not empty: --resume {folder} goes on with a run, "
                    "--force replaces it, --out names another folder"
                )
            run = cls(folder, training, options=options, data_dir=data_dir)
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise Fault(f"{error.filename or folder}: cannot write the run: {error.strerror}") from error
        with locked(folder):
            try:
                _clear(folder)
                for name in ("checkpoints", "samples"):
                    (folder / name).mkdir(exist_ok=True)
                run._describe()
                _write(folder / "log.jsonl", "")
                run.save()
                run.sample()
            except BaseException as error:
                shutil.rmtree(folder, ignore_errors=True) if new else _clear(folder)
                if isinstance(error, OSError):
                    raise Fault(f"{error.filename or folder}: cannot write the run: {error.strerror}") from error
                raise
            yield run

    @classmethod
    @contextlib.contextmanager
    def resume(cls, path, steps=None, data_dir=None, options=(), **where):
        """The run at `path`, as it was at its newest checkpoint; or `path` is the checkpoint in a run to go back to.

        What the run wrote after that checkpoint is deleted: it will be written anew.
        """
        file = find(path)
        folder = _folder_of(file)
        if folder is None:
            raise UsageError(f"{file}: this checkpoint does not lie in a run, there is no config.json above it")
        with locked(folder):
            file = find(path)
            tensors, about = checkpoint.load(file)
            config, step = read_config(about, file), int(about["step"])
            if steps is not None and steps < step:
                raise UsageError(f"--steps {steps}: {folder} is at step {step} already")
            dataset = load_data(config, json.loads(about["data"]), folder, data_dir)
            training = Training(config if steps is None else replace(config, steps=steps), dataset, **where)
            checkpoint.match(tensors, training.state())
            training.step = step
            run = cls(folder, training, float(about["seconds"]), options, data_dir)
            run.saved = step
            try:
                _clear(folder, STEP_FILES, after=step)
                (folder / "samples").mkdir(exist_ok=True)
                with open(folder / "log.jsonl", "ab") as log:
                    log.truncate(min(int(about["log_bytes"]), log.tell()))
                if training.config != config:
                    run._describe()
            except OSError as error:
                raise Fault(f"{error.filename or folder}: cannot write the run: {error.strerror}") from error
            yield run

    def advance(self):
        """One training step with all that is due after it; returns its record, or None when all steps are done.

        On a GPU it is all steps until something is due: they follow one another without a wait for Python.
        """
        training, options, count = self.training, self.options, 1
        if training.step >= training.config.steps:
            return None
        if cuda.on_gpu(training.losses) and training.step:
            every = LOG_EVERY, options.sample_every, options.checkpoint_every, options.evaluate_every
            count = min(training.config.steps - training.step, *(n - training.step % n for n in every if n))
        try:
            record = training.advance(count)
        except Diverged as error:
            newest = checkpoint.newest(self.folder / "checkpoints")
            raise Diverged(f"{error}. The last good checkpoint is {newest}") from None
        self.seconds = time.monotonic() - self.started
        record = {"step": training.step, "seconds": round(self.seconds, 3)} | record
        better = False
        if self._due(self.options.evaluate_every):
            record |= self.evaluate()
            before = best(self.folder)
            better = before is None or record["frechet"] < before[0]
        if self._due(LOG_EVERY) or training.step == 1 or "frechet" in record:
            record |= training.measures()
            self._log(record)
        if self._due(self.options.sample_every):
            self.sample()
        if self._due(self.options.checkpoint_every) or better:
            self.save()
        return record

    def _due(self, every):
        return every and self.training.step % every == 0

    def finish(self):
        """The last checkpoint and pictures."""
        if self.saved != self.training.step:
            self.save()
        if not self.picture().exists():
            self.sample()
        frames = sampled(self.folder)
        images, captions = [pictures.read_png(path) for _, path in frames], [f"step {step}" for step, _ in frames]
        pictures.write_gif(self.folder / "progress.gif", images, 400, last=2000, captions=captions)
        pictures.curves(self.folder / "curves.png", read_log(self.folder))

    def save(self):
        """Write a checkpoint; only when it is whole are older ones deleted, but the last `keep`."""
        training, folder = self.training, self.folder / "checkpoints"
        training.sampler()  # leaves the averaged generator with its own statistics
        about = {
            "step": str(training.step),
            "config": json.dumps(training.config.to_dict()),
            "data": json.dumps(about_data(training.dataset)),
            "versions": json.dumps(versions()),
            "seconds": repr(self.seconds),
            "log_bytes": str((self.folder / "log.jsonl").stat().st_size),
        }
        checkpoint.save(checkpoint.path_of(folder, training.step), training.state(), about)
        kept = best(self.folder)
        checkpoint.prune(folder, self.options.keep, kept and kept[1])
        self.saved = training.step

    def evaluate(self):
        """Metric -> number, of EVALUATED images; always of the same latents and classes."""
        training = self.training
        arch, seed = training.config.architecture, training.config.seed
        z = rng.normal((EVALUATED, arch.latent), seed, rng.Stream.SAMPLE_Z, 0)
        labels = np.arange(EVALUATED) % arch.classes if arch.classes else None
        images = data.to_uint8(generate(training.sampler(), z, labels), training.dataset.image_size)
        found = self.judge.measure(images, labels)
        found.pop("worst_class", None)  # a name among numbers
        return found

    def sample(self):
        """Write the picture of this step: a row for each class, always of the same latents."""
        training = self.training
        arch, seed = training.config.architecture, training.config.seed
        rows = min(arch.classes, 10) or 8
        z = rng.normal((rows * 10, arch.latent), seed, rng.Stream.SAMPLE_Z, 0)
        labels = np.repeat(np.arange(rows), 10) if arch.classes else None
        images = data.to_uint8(generate(training.sampler(), z, labels), training.dataset.image_size)
        names = training.dataset.classes[:rows] if arch.classes else None
        pictures.write_png(self.picture(), pictures.grid(images, 10, names=names))

    def _describe(self):
        training = self.training
        about = {"config": training.config.to_dict(), "data": about_data(training.dataset), "versions": versions()}
        _write(self.folder / "config.json", json.dumps(about, indent=2) + "\n")

    def picture(self):
        """Where the samples of the step that was done last are."""
        return self.folder / "samples" / f"step-{self.training.step:08d}.png"

    def _log(self, record):
        try:
            with open(self.folder / "log.jsonl", "a") as log:
                log.write(json.dumps(record) + "\n")
        except OSError as error:
            raise Fault(f"{self.folder / 'log.jsonl'}: cannot write the log: {error.strerror}") from error


def find(path):
    """The checkpoint meant by `path`: the file itself, the newest of a run folder, or with RUN/best its best."""
    path = Path(path)
    if path.is_file():
        return path
    if path.name == "best" and (path.parent / "log.jsonl").is_file():
        if not (found := best(path.parent)):
            raise UsageError(f"{path}: this run has no evaluated checkpoint; train --evaluate-every keeps the best one")
        return found[1]
    if not path.is_dir():
        raise UsageError(f"{path}: no such run folder or checkpoint")
    newest = checkpoint.newest(path / "checkpoints")
    if newest is None:
        raise DataError(f"{path}: no readable checkpoint in {path / 'checkpoints'}; is it a run folder?")
    return newest


def read_config(about, file):
    """The Config in a checkpoint's metadata; DataError if there is none that this version understands."""
    lacks = {"step", "config", "data", "versions", "seconds", "log_bytes"} - about.keys()
    if lacks:
        raise DataError(f"{file}: not a checkpoint of a run, it lacks {', '.join(sorted(lacks))}")
    try:
        int(about["step"]), int(about["log_bytes"]), float(about["seconds"]), json.loads(about["data"])["classes"]
        return Config.from_dict(json.loads(about["config"]))
    except (KeyError, TypeError, ValueError, AttributeError, UsageError) as error:
        raise DataError(f"{file}: no usable configuration in this checkpoint: {error}") from error


def load_generator(path):
    """The averaged generator of a run or checkpoint, ready to sample from: (generator, config, its data, file)."""
    return _load(path, Generator, "average")


def load_discriminator(path):
    """The discriminator of a run or checkpoint, in evaluation mode: (discriminator, config, its data, file)."""
    return _load(path, Discriminator, "D")


def _load(path, kind, prefix):
    file = find(path)
    tensors, about = checkpoint.load(file)
    config = read_config(about, file)
    network = kind(config.architecture)
    wanted = {f"{prefix}.{name}": p.data for name, p in network.parameters().items()}
    wanted |= {f"{prefix}.{name}": buffer for name, buffer in network.buffers().items()}
    checkpoint.match({name: x for name, x in tensors.items() if name.startswith(f"{prefix}.")}, wanted)
    return network.eval(), config, json.loads(about["data"]), file


def load_data(config, then, run, data_dir=None):
    """The training images of a run, `then` what it kept of them; DataError if they are gone or no longer the same."""
    if config.dataset not in data.NAMES and not Path(config.dataset).is_dir():
        raise DataError(f"{config.dataset}: the folder of images that {run} was trained on is not there")
    size = config.architecture.size if config.dataset not in data.NAMES else None
    dataset = data.load(config.dataset, data_dir, size=size)
    now = about_data(dataset)
    if config.dataset != "drawn-digits" and then != now:  # drawn digits are redrawn, equal to rounding
        changed = _difference(then, now)
        raise DataError(f"{config.dataset}: not the data that {run} was trained on: {changed}")
    return dataset


def best(folder):
    """(Frechet distance, checkpoint) of the run's best, as far as it was measured and the file is there; or None."""
    found = (
        (record["frechet"], checkpoint.path_of(Path(folder) / "checkpoints", record["step"]))
        for record in read_log(folder)
        if "frechet" in record
    )
    return min(((distance, file) for distance, file in found if file.is_file()), default=None)


def write_evaluation(file, facts):
    """Writes evaluation.json into the run that the checkpoint `file` lies in; its path, or None if it lies in none."""
    folder = _folder_of(file)
    if folder is None:
        return None
    path = folder / "evaluation.json"
    try:
        _write(path, json.dumps(facts, indent=2) + "\n")
    except OSError as error:
        raise Fault(f"{path}: not written: {error.strerror}") from error
    return path


def _folder_of(file):
    """The folder of the run that has this checkpoint, or None."""
    folder = Path(os.path.normpath(file.parent / ".."))
    inside = file.absolute().parent.name == "checkpoints" and (folder / "config.json").is_file()
    return folder if inside else None


def sampled(folder):
    """(step, path) of a run's pictures of samples, in the order of steps."""
    found = ((re.fullmatch(r"step-(\d+)\.png", path.name), path) for path in (Path(folder) / "samples").glob("step-*"))
    return sorted((int(step[1]), path) for step, path in found if step)


def read_log(folder):
    """The records of a run's log, name -> number, up to the first line that is none: the last may be torn."""
    records = []
    with open(Path(folder) / "log.jsonl", errors="replace") as log:  # what is no text is no JSON either
        for line in log:
            try:
                record = json.loads(line)
            except ValueError:
                break
            if not (isinstance(record, dict) and all(isinstance(value, int | float) for value in record.values())):
                break
            records.append(record)
    return records


def versions():
    """What computed a run: package, Python, NumPy, BLAS, threads, machine, GPU."""
    return {
        "minisagan": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": device.blas(),
        "threads": device.threads(),
        "machine": f"{platform.system()} {platform.machine()}",
    } | ({"gpu": cuda.describe()} if cuda.in_use() else {})


def about_data(dataset):
    """What a run keeps of its data set, and compares when it is resumed."""
    return {"image_size": dataset.image_size, "classes": list(dataset.classes), "hashes": dataset.hashes}


def _difference(then, now):
    return "; ".join(f"{key} was {then.get(key)}, is {now[key]}" for key in now if then.get(key) != now[key])[:400]


def _write(path, text):
    temp = path.with_name(path.name + ".tmp")
    try:
        temp.write_text(text)
        os.replace(temp, path)
    finally:
        temp.unlink(missing_ok=True)  # after the replace there is none


def _clear(folder, names=OURS, after=-1):
    """Delete a run's files, with what a killed write left of them; of those with a step, the ones `after` it."""
    for name in names:
        for path in [*folder.glob(name), *folder.glob(f"{name}.tmp")]:
            step = re.match(r"step-(\d+)\.", path.name)
            if not step or int(step[1]) > after:
                path.unlink()
