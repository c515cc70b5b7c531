"""What a run wrote: its newest and its best checkpoint, their networks, its data, its log, its pictures."""

import contextlib
import json
import math
import os
import platform
import re
import shutil
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np

from minisagan import __version__, cpu, cuda, data, variety
from minisagan.config import Config
from minisagan.errors import DataError, Fault, UsageError
from minisagan.files import UNFINISHED, replacing
from minisagan.models import Discriminator, Generator
from minisagan.run import checkpoint
from minisagan.stderr import note

BESIDE_CONFIG = {"init_from", "changes"}  # where config.json says one of these, config alone does not replay the run
STEP_FILES = ("checkpoints/step-*.safetensors", "samples/step-*.png")
# All that we delete:
OURS = ("config.json", "log.jsonl", *STEP_FILES, "progress.gif", "curves.png", "evaluation.json", "report.html")


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


def note_unreadable(file):
    """Say on stderr which checkpoints newer than `file`, the newest readable one, are passed over."""
    if bad := _newer(file):
        note(f"cannot be read: {', '.join(bad)} in {file.parent}; going on from {file.name}")


def note_left_behind(file):
    """Say on stderr which checkpoints are deleted when the run goes on from the older `file`."""
    if left := _newer(file):
        note(f"back at {file.name}: what came after it is deleted ({', '.join(left)})")


def check_newer(file):
    """Fault if the system refuses a checkpoint newer than `file`: it may be whole, and would be deleted."""
    for name in _newer(file):
        try:
            with open(file.parent / name, "rb") as newer:
                newer.read(1)
        except OSError as error:
            raise Fault(
                f"{file.parent / name}: cannot be opened ({error.strerror}), and may be newer than {file.name}: mend "
                "that, or move it away"
            ) from error


def _newer(file):
    """The names of the checkpoints beside `file` that are newer, by the step in their names."""
    step = int(checkpoint.read_metadata(file)["step"])
    return [path.name for number, path in checkpoint.of_steps(file.parent).items() if number > step]


def check_has(wanted, found, file):
    """DataError unless all these names, of what a run's checkpoint has, are among those found in it."""
    if lacks := wanted - found.keys():
        raise DataError(f"{file}: not a checkpoint of a run, it lacks {', '.join(sorted(lacks))}")


def read_config(about, file):
    """The Config in a checkpoint's metadata; DataError if there is none that this version understands."""
    check_has({"step", "config", "data", "versions", "seconds", "log_bytes"}, about, file)
    try:
        config, then = Config.from_dict(json.loads(about["config"])), json.loads(about["data"])
        names, size, classes = then["classes"], then["image_size"], config.architecture.classes
        if not (isinstance(names, list) and all(isinstance(name, str) for name in names) and classes <= len(names)):
            raise ValueError(f"{classes} classes cannot be called {names!r:.100}")
        if type(size) is not int or not 1 <= size <= config.architecture.size:
            raise ValueError(f"its images cannot have {size!r:.100} pixels")
        json.loads(about["versions"]).items(), then["hashes"].items()
        if min(int(about["step"]), int(about["log_bytes"])) < 0 or not math.isfinite(float(about["seconds"])):
            raise ValueError("its step, time or length of the log cannot be")
        return config
    except (KeyError, TypeError, ValueError, AttributeError, RecursionError, UsageError) as error:
        raise DataError(f"{file}: no usable configuration in this checkpoint: {error}") from error


def load_generator(path):
    """The averaged generator of a run or checkpoint, ready to sample from: (generator, config, its data, file)."""
    return _load(path, Generator, "average")


def load_discriminator(path):
    """The discriminator of a run or checkpoint, in evaluation mode: (discriminator, config, its data, file)."""
    return _load(path, Discriminator, "D")


def _load(path, kind, prefix):
    file = find(path)
    if Path(path).is_dir():
        note_unreadable(file)
    tensors, about = checkpoint.load(file)
    config = read_config(about, file)
    config = moved(config, **places_now(config, file))
    network = kind(config.architecture)
    wanted = {f"{prefix}.{name}": x for name, x in network.state().items()}
    checkpoint.match({name: x for name, x in tensors.items() if name.startswith(f"{prefix}.")}, wanted)
    return network.eval(), config, json.loads(about["data"]), file


def load_data(config, then, run, data_dir=None, dataset=None, labels=None):
    """The training images of a run, `then` what it kept of them; DataError if they are gone or no longer the same.

    `dataset`, and the list of their `labels`: where these were moved to.
    """
    name = dataset or config.dataset
    if not (data.is_path(name) and data.is_path(config.dataset)) and name != config.dataset:
        raise UsageError(f"--dataset {name}: {run} was trained on {config.dataset}")
    if data.is_path(name) and not Path(name).exists():
        raise DataError(
            f"{name}: the images that {run} was trained on are not there; --dataset names where they are now"
        )
    config = moved(config, name, labels)
    if config.labels and not Path(config.labels).exists():
        raise DataError(
            f"{config.labels}: the list of labels that {run} was trained with is not there; "
            "train --resume RUN --labels FILE names, once, where it is now"
        )
    size = config.architecture.size if name not in data.NAMES else None
    dataset = data.load(name, data_dir, size=size, how=config.reading())
    now = about_data(dataset)
    if name != "drawn-digits" and then != now:  # drawn digits are redrawn, equal to rounding
        raise DataError(f"{name}: not the data that {run} was trained on: {_difference(then, now)}")
    return dataset


def recorded(folder):
    """What a run's config.json says, name -> value; nothing if it is damaged."""
    try:
        about = json.loads((folder / "config.json").read_text())
    except (OSError, ValueError):
        return {}
    return about if isinstance(about, dict) else {}


def places_now(config, file):
    """Where this checkpoint's data are now, {"dataset", "labels"}: config.json of its run is told if they are moved."""
    then = {"dataset": config.dataset, "labels": config.labels}
    try:
        about = recorded(folder_of(file))["config"]
        now = {name: was and str(about.get(name) or was) for name, was in then.items()}
    except (TypeError, KeyError, AttributeError):  # it lies in no run, or config.json is damaged
        return then
    return then if {now["dataset"], then["dataset"]} & set(data.NAMES) else now


def moved(config, dataset, labels=None):
    """The Config of data that lie there now; a list of labels in the folder was moved with it, if nothing is said."""
    if not labels and config.labels and Path(config.labels).is_relative_to(config.dataset):
        labels = str(Path(dataset, Path(config.labels).relative_to(config.dataset)))
    return replace(config, dataset=str(dataset), labels=labels or config.labels)


def take_weights(path, training):
    """Copies the networks of a run or checkpoint into a new Training, as far as they fit; what config.json keeps of it.

    Says on stderr what does not fit. UsageError if nothing does.
    """
    file = find(path)
    if Path(path).is_dir():
        note_unreadable(file)
    tensors, about = checkpoint.load(file)
    read_config(about, file)
    wanted = {name: x for name, x in training.state().items() if name.startswith(("G.", "D.", "average."))}
    alike = lambda name, x: name in tensors and (tensors[name].shape, tensors[name].dtype) == (x.shape, x.dtype)
    fits = [name for name, x in wanted.items() if alike(name, x)]
    left = [name for name in wanted if name not in fits]
    if not any(name.endswith(".w") for name in fits):
        raise UsageError(f"--init-from {path}: none of its weights fit these networks; --width or --size may differ")
    for name in fits:
        wanted[name][...] = np.asarray(tensors[name], like=wanted[name])
    new = f"; new are {', '.join(left)}" if left else ""
    print(f"{len(fits)} of {len(wanted)} tensors are those of {file}{new}", file=sys.stderr)
    return {"checkpoint": str(file), "step": int(about["step"]), "new": left}


def best(folder):
    """(Frechet distance, checkpoint) of the run's best, as far as it was measured and the file is there; or None."""
    found = (
        (record["frechet"], checkpoint.path_of(Path(folder) / "checkpoints", record["step"]))
        for record in read_log(folder)
        if "frechet" in record
    )
    return min(((distance, file) for distance, file in found if file.is_file()), default=None)


def varied(folder):
    """{measure of variety.STEPS: the newest checkpoint up to the last step at which the samples had it, or None}.

    A measure that no step had is left out.
    """
    log, found = read_log(folder), {}
    for name in variety.STEPS:
        if step := variety.last_varied(log, name):
            found[name] = checkpoint.newest(Path(folder) / "checkpoints", step)
    return found


def write_evaluation(file, facts):
    """Writes evaluation.json into the run that the checkpoint `file` lies in; its path, or None if it lies in none."""
    folder = folder_of(file)
    if folder is None:
        return None
    path = folder / "evaluation.json"
    with replacing(path) as temp:
        temp.write_text(json.dumps(facts, indent=2) + "\n")
    return path


def folder_of(file):
    """The folder of the run that has this checkpoint, or None."""
    folder = Path(os.path.normpath(file.parent / ".."))
    inside = file.absolute().parent.name == "checkpoints" and (folder / "config.json").is_file()
    return folder if inside else None


def sampled(folder):
    """(step, path) of a run's pictures of samples, in the order of steps."""
    found = ((re.fullmatch(r"step-(\d+)\.png", path.name), path) for path in (Path(folder) / "samples").glob("step-*"))
    return sorted((int(step[1]), path) for step, path in found if step)


def read_log(folder):
    """The records of a run's log, name -> number, each with its step; no other lines: the last may be torn."""
    records = []
    with open(Path(folder) / "log.jsonl", errors="replace") as log:  # what is no text is no JSON either
        for line in log:
            try:
                record = json.loads(line)
            except ValueError:
                continue
            if not isinstance(record, dict) or not all(isinstance(value, int | float) for value in record.values()):
                continue
            if type(record.get("step")) is int and math.isfinite(record.get("seconds", 0)):
                records.append(record)
    return records


def versions():
    """What computed a run: package, Python, NumPy, BLAS, threads, machine, GPU."""
    return {
        "minisagan": __version__,
        "python": platform.python_version(),
        "numpy": np.__version__,
        "blas": cpu.blas(),
        "threads": cpu.threads(),
        "machine": f"{platform.system()} {platform.machine()}",
    } | ({"gpu": cuda.describe()} if cuda.in_use() else {})


def about_data(dataset):
    """What a run keeps of its data set, and compares when it is resumed."""
    about = {"image_size": dataset.image_size, "classes": list(dataset.classes), "hashes": dataset.hashes}
    return about | ({"skipped": list(dataset.skipped)} if dataset.skipped else {})


def _difference(then, now):
    keys = [key for key in now | then if then.get(key) != now.get(key)]
    return "; ".join(f"{key} was {then.get(key)}, is {now.get(key)}" for key in keys)[:400]


def clear_evaluation(folder, after):
    """Delete evaluation.json if it is of a step `after` this one, which the run has not made any more."""
    path = folder / "evaluation.json"
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError):  # absent, or none of evaluate's
        if int(json.loads(path.read_text())["step"]) > after:
            path.unlink()


def clear(folder, names=OURS, after=-1):
    """Delete a run's files, with what a killed write left of them; of those with a step, the ones `after` it."""
    for name in names:
        for path in [*folder.glob(name), *folder.glob(f"{name}.tmp")]:
            step = re.fullmatch(r"step-(\d+)\.[a-z]+(\.tmp)?", path.name)
            if int(step[1]) > after if step else "*" not in name:  # somebody's own copies have other names
                path.unlink()
    for place in {folder, *((folder / name).parent for name in names)}:
        for path in place.glob("*".join(UNFINISHED)):
            shutil.rmtree(path)
