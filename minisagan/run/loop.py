"""A training in its folder: the loop of its steps, and what is due between them."""

import contextlib
import functools
import itertools
import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from minisagan import cuda, data, variety
from minisagan.data.scan import is_run
from minisagan.errors import Diverged, Fault, UsageError
from minisagan.files import replacing
from minisagan.judge.evaluation import Judge
from minisagan.look import pictures, plot
from minisagan.measures import measure
from minisagan.run import checkpoint
from minisagan.run import folder as runs
from minisagan.run.lockfile import locked
from minisagan.sampling import generate, in_turn, latents
from minisagan.stderr import note
from minisagan.train import Training

LOG_EVERY = 10
EVALUATED = 1000  # images that are measured during training


class Options(NamedTuple):
    """Steps between two pictures, checkpoints and measurements (0: never), and how many checkpoints stay."""

    sample_every: int = 250
    checkpoint_every: int = 500
    keep: int = 3
    evaluate_every: int = 0
    checkpoint_minutes: float = 10  # between two checkpoints at most, since a step may take long; 0: no such limit


USUAL = Options()


class Run:
    """A training in its folder, which no other process can use meanwhile:

        with Run.create(folder, config, dataset) as run:  # or Run.resume(folder)
            while run.advance():
                ...
            run.finish()

    With `evaluate_every` some images are measured every so many steps, and the checkpoint of the least Frechet distance
    is written and kept, too; that needs the data set's test images, and its classifier. `where` (gpu, graph,
    processes) is Training's: a run may go on where it did not begin.
    """

    def __init__(self, folder, training, seconds=0.0, options=USUAL, data_dir=None):
        self.folder, self.training, self.seconds = Path(folder), training, seconds
        self.options, self.judge = options, None
        if self.options.evaluate_every:
            self.judge = Judge(training.dataset, EVALUATED, training.config.seed, data_dir)
        self.started = time.monotonic() - seconds
        self.saved, self.saved_at = None, time.monotonic()  # the step and the time of the last checkpoint
        self.notes = {}  # what config.json says beside config, data, versions and changes
        self.changes = []  # that config alone can't replay: [{"after_step": step, "was": {name: value}, "is": ...}]
        self.news = {}  # what the next line of the log says beside its numbers
        self.collapse = None  # the variety.Collapse that the last samples showed

    @classmethod
    @contextlib.contextmanager
    def create(
        cls, folder, config, dataset, options=USUAL, force=False, data_dir=None, numbered=False, init_from=None, **where
    ):
        """A new run in an empty or new folder; with `force`, what an older run left there is deleted first.

        With `numbered` it is FOLDER-2, FOLDER-3, ... if there is a FOLDER: of two starts at once each gets its own.
        `init_from` is a run or a checkpoint whose weights it begins with, as far as they fit. Writes config.json and a
        first checkpoint, so that a disk that refuses does so before step 1.
        """
        folder, training = Path(folder), Training(config, dataset, **where)  # what can't be trained leaves no folder
        notes = {"init_from": runs.take_weights(init_from, training)} if init_from else {}
        new = numbered or not folder.exists()
        try:
            if not new:
                _check_contents(folder, force)
            run = cls(folder, training, options=options, data_dir=data_dir)
            run.notes = notes
            if numbered:
                run.folder = folder = _next_free(folder)
            else:
                folder.mkdir(parents=True, exist_ok=not new)  # not new any more: another start was faster
        except OSError as error:
            raise Fault(f"{error.filename or folder}: cannot write the run: {error.strerror}") from error
        with locked(folder):
            if not new:
                _check_contents(folder, force)  # again: another start may have filled it meanwhile
            try:
                runs.clear(folder)
                for name in ("checkpoints", "samples"):
                    (folder / name).mkdir(exist_ok=True)
                run._describe()
                (folder / "log.jsonl").write_text("")
                run.save()
                run.sample()
            except BaseException as error:
                shutil.rmtree(folder, ignore_errors=True) if new else runs.clear(folder)
                for name in ("checkpoints", "samples"):
                    with contextlib.suppress(OSError):
                        (folder / name).rmdir()
                if isinstance(error, OSError):
                    raise Fault(f"{error.filename or folder}: cannot write the run: {error.strerror}") from error
                raise
            yield run

    @classmethod
    @contextlib.contextmanager
    def resume(cls, path, steps=None, data_dir=None, options=USUAL, places=None, rates=None, **where):
        """The run at `path`, as it was at its newest checkpoint; or `path` is the checkpoint in a run to go back to.

        `places`: where the data, the "dataset" or its "labels", were moved to. `rates`: the lr_g or lr_d that holds
        from here on; such changes are saved in the checkpoint at once. What the run wrote after that checkpoint is
        deleted, to be written anew.
        """
        file = runs.find(path)
        folder = runs.folder_of(file)
        if folder is None:
            raise UsageError(f"{file}: this checkpoint does not lie in a run, there is no config.json above it")
        with locked(folder):
            file = runs.find(path)
            tensors, about = checkpoint.load(file)
            config, step = runs.read_config(about, file), int(about["step"])
            if steps is not None and steps < step:
                raise UsageError(f"--steps {steps}: {folder} is at step {step} already")
            whole = Path(path).is_dir()
            if whole:
                runs.check_newer(file)
                runs.note_unreadable(file)
            here = runs.moved(config, **runs.places_now(config, file))
            places = places or {}
            dataset = runs.load_data(here, json.loads(about["data"]), folder, data_dir, **places)
            here = runs.moved(here, dataset.name, places.get("labels"))
            asked = (rates or {}) | ({} if steps is None else {"steps": steps})
            changed = {name: value for name, value in asked.items() if value != getattr(config, name)}
            training = Training(replace(here, **changed), dataset, **where)
            checkpoint.match(tensors, training.state())
            training.step = step
            run = cls(folder, training, float(about["seconds"]), options, data_dir)
            run.saved = step
            recorded = runs.recorded(folder)
            run.notes = {"init_from": recorded["init_from"]} if "init_from" in recorded else {}
            run.changes = json.loads(about["changes"]) if "changes" in about else [*recorded.get("changes", [])]
            falling = step > (1 - config.fall) * min(config.steps, training.config.steps)  # or will not have been
            if other := {name: value for name, value in changed.items() if name != "steps" or falling}:
                was = {name: getattr(config, name) for name in other}
                run.changes.append({"after_step": step, "was": was, "is": other})
            for change in run.changes:
                if change["after_step"] == step:
                    run.news |= {name: value for name, value in change["is"].items() if name != "steps"}
            try:
                if not whole:
                    runs.note_left_behind(file)
                runs.clear(folder, runs.STEP_FILES, after=step)
                runs.clear_evaluation(folder, after=step)
                (folder / "samples").mkdir(exist_ok=True)
                with open(folder / "log.jsonl", "ab") as log:
                    if log.tell() < int(about["log_bytes"]):
                        note(f"{log.name} has lost lines since {file.name} was written")
                    log.truncate(min(int(about["log_bytes"]), log.tell()))
                if changed:
                    run.save()
                if recorded.get("config") != training.config.to_dict() or recorded.get("changes", []) != run.changes:
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
        if cuda.on_gpu(training.losses) and training.step and not self.news:
            every = LOG_EVERY, options.sample_every, options.checkpoint_every, options.evaluate_every
            count = min(training.config.steps - training.step, *(n - training.step % n for n in every if n))
        try:
            record = training.advance(count)
        except Diverged as error:
            newest = checkpoint.newest(self.folder / "checkpoints")
            raise Diverged(f"{error}. The last good checkpoint is {newest}") from None
        self.seconds = time.monotonic() - self.started
        record = {"step": training.step, "seconds": round(self.seconds, 3)} | record
        try:
            self._do_what_is_due(record)
        except Fault:
            with contextlib.suppress(Fault, OSError):  # a picture that can't be written must not cost the steps
                if self.saved != training.step:
                    self.save()
            raise
        return record

    def _do_what_is_due(self, record):
        """After the steps of `record`, which is filled: measure, draw, log, save."""
        training, options, better = self.training, self.options, False
        if self._due(options.evaluate_every):
            record |= self.evaluate()
            before = runs.best(self.folder)
            better = before is None or record["frechet"] < before[0]
        sampled = self.sample() if self._due(options.sample_every) else {}
        if self._due(LOG_EVERY) or training.step == 1 or "frechet" in record or sampled or self.news:
            record |= measure(training) | sampled | self.news
            self._log(record)
            self.news = {}
        if sampled:
            self.collapse = variety.collapse(runs.read_log(self.folder))
        late = 0 < 60 * options.checkpoint_minutes <= time.monotonic() - self.saved_at
        if self._due(options.checkpoint_every) or better or late:
            self.save()

    def _due(self, every):
        return every and self.training.step % every == 0

    def end_at(self, steps):
        """Let the run end after so many steps, and keep that in a checkpoint and in config.json."""
        self.training.end_at(steps)
        self.save()
        self._describe()

    def finish(self):
        """The last checkpoint and pictures."""
        if self.saved != self.training.step:
            self.save()
        if not self.picture().exists():
            self.sample()
        pictures.write_png(self.folder / "curves.png", plot.curves(runs.read_log(self.folder)))
        frames = runs.sampled(self.folder)
        files, captions = [path for _, path in frames], [f"step {step}" for step, _ in frames]
        pictures.write_gif(self.folder / "progress.gif", files, 400, last=2000, captions=captions)

    def save(self):
        """Write a checkpoint; only when it is whole are older ones deleted, but the last `keep`."""
        training, folder = self.training, self.folder / "checkpoints"
        if training.broken:
            raise Fault(f"{self.folder}: interrupted in the middle of a step, which is not saved: resume it")
        training.sampler()  # leaves the averaged generator with its own statistics
        about = {
            "step": str(training.step),
            "config": json.dumps(training.config.to_dict()),
            "data": json.dumps(runs.about_data(training.dataset)),
            "versions": json.dumps(runs.versions()),
            "changes": json.dumps(self.changes),
            "seconds": repr(self.seconds),
            "log_bytes": str((self.folder / "log.jsonl").stat().st_size),
        }
        checkpoint.save(checkpoint.path_of(folder, training.step), training.state(), about)
        best = runs.best(self.folder)
        checkpoint.prune(folder, self.options.keep, best and best[1], *runs.varied(self.folder).values())
        self.saved, self.saved_at = training.step, time.monotonic()

    def evaluate(self):
        """Metric -> number, of EVALUATED images; always of the same latents and classes."""
        training = self.training
        labels = in_turn(self.judge.labels if training.config.architecture.classes else None, EVALUATED)
        images = self._images(EVALUATED, labels)
        found = self.judge.measure(images, labels)
        found.pop("worst_class", None)  # a name among numbers
        return found

    def sample(self):
        """Write the picture of this step: a row for each class, always of the same latents. Returns its variety."""
        training = self.training
        classes = training.config.architecture.classes
        rows = min(classes, 10) or 8
        labels = np.repeat(np.arange(rows), 10) if classes else None
        images = self._images(rows * 10, labels)
        names = pictures.legible(dict(enumerate(training.dataset.classes[:rows]))) if classes else None
        pictures.write_png(self.picture(), pictures.grid(images, 10, names=names and names.values()))
        return self.reference.measure(images.reshape(rows if classes else 1, -1, *images.shape[1:]))

    def _images(self, count, labels):
        """The first `count` samples of the run's seed: uint8 (count, size, size, C)."""
        training = self.training
        generator = training.sampler()
        z = latents(generator, count, training.config.seed)
        return data.to_uint8(generate(generator, z, labels), training.dataset.image_size)

    @functools.cached_property
    def reference(self):
        """What the variety of the samples is compared with."""
        return variety.Reference(self.training.dataset, min(self.training.config.architecture.classes, 10))

    def _describe(self):
        """Write config.json."""
        config, dataset = self.training.config, self.training.dataset
        about = {"config": config.to_dict(), "data": runs.about_data(dataset), "versions": runs.versions()}
        about |= {"changes": self.changes} if self.changes else {}
        with replacing(self.folder / "config.json") as temp:
            temp.write_text(json.dumps(about | self.notes, indent=2) + "\n")

    def picture(self):
        """Where the samples of the step that was done last are."""
        return self.folder / "samples" / f"step-{self.training.step:08d}.png"

    def _log(self, record):
        try:
            with open(self.folder / "log.jsonl", "a") as log:
                log.write(json.dumps(record) + "\n")
        except OSError as error:
            raise Fault(f"{self.folder / 'log.jsonl'}: cannot write the log: {error.strerror}") from error


def _check_contents(folder, force):
    """UsageError if the folder holds anything; with `force` it may be a run."""
    if (force and is_run(folder)) or all(path.name == "lock" for path in folder.iterdir()):
        return
    if force:
        raise UsageError(f"{folder} holds files, but no run that --force could replace: --out names another folder")
    raise UsageError(
        f"{folder} is not empty: --resume {folder} goes on with a run, --force replaces it, --out names another folder"
    )


def _next_free(folder):
    """Make FOLDER, or the first of FOLDER-2, FOLDER-3, ... that is not there yet: of two processes one can."""
    for path in itertools.chain([folder], (folder.with_name(f"{folder.name}-{k}") for k in itertools.count(2))):
        with contextlib.suppress(FileExistsError):
            path.mkdir(parents=True)
            return path
