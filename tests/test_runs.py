"""What a run folder survives: being stopped anywhere, resumed, disturbed, replaced, replayed."""

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from command_line import ROOT, minisagan

from minisagan import cpu, data
from minisagan.config import Architecture, Config
from minisagan.errors import DataError, Diverged, Fault, UsageError
from minisagan.judge import classifier
from minisagan.look import pictures
from minisagan.optim import falling
from minisagan.run import checkpoint, loop
from minisagan.run import folder as runs
from minisagan.sampling import generate, latents
from minisagan.train import Training

CONFIG = Config(steps=6, batch_size=8, d_steps=2, flip=True, architecture=Architecture(width=8))
OPTIONS = loop.Options(sample_every=2, checkpoint_every=2, keep=3)


@pytest.fixture(autouse=True)
def small(tmp_path, monkeypatch):
    """A folder for each test, few digits to draw, a log of every step."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "DRAWN", {"train": (30, 0)})  # 16 images a step: an epoch ends in the middle of one
    monkeypatch.setattr(loop, "LOG_EVERY", 1)
    threads = cpu.threads()
    yield
    cpu.set_threads(threads)


def train(opened, stop=None):
    """Train until the step `stop` (default: the last), and finish."""
    with opened as run:
        while run.training.step != stop and run.advance():
            pass
        run.finish()
    return run.folder


def new(folder, config=CONFIG, **kwargs):
    return loop.Run.create(folder, config, data.load("drawn-digits"), OPTIONS, **kwargs)


def contents(folder):
    """The tensors of the newest checkpoint, and the log without its clock."""
    tensors, about = checkpoint.load(checkpoint.newest(folder / "checkpoints"))
    log = [{key: value for key, value in record.items() if key != "seconds"} for record in runs.read_log(folder)]
    return {name: x.tobytes() for name, x in tensors.items()}, about["step"], about["config"], log


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    """A run of 6 steps without interruption."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "DRAWN", {"train": (30, 0)})
        patch.setattr(loop, "LOG_EVERY", 1)
        return train(new(tmp_path_factory.mktemp("whole") / "run"))


def test_a_run_leaves_what_its_description_says(whole):
    assert files(whole) == sorted([
        *("config.json", "curves.png", "lock", "log.jsonl", "progress.gif"),
        *(f"checkpoints/step-{k:08d}.safetensors" for k in (2, 4, 6)),  # of 0, 2, 4 and 6 the last three are kept
        *(f"samples/step-{k:08d}.png" for k in (0, 2, 4, 6)),
    ])  # fmt: skip
    about = json.loads((whole / "config.json").read_text())
    assert Config.from_dict(about["config"]) == CONFIG and about["versions"]["numpy"] == np.__version__
    assert set(about["data"]["hashes"]) == {"images", "labels"}
    log = runs.read_log(whole)
    assert [record["step"] for record in log] == [1, 2, 3, 4, 5, 6]
    assert set(log[0]) == {
        *("step", "seconds", "loss_d", "loss_g", "d_real", "d_fake"),
        *(f"{name}_{net}" for name in ("grad", "gamma", "ratio") for net in ("d", "g")),
        *(f"sigma_{net}_{which}" for net in ("d", "g") for which in ("min", "median", "max")),
    }
    assert len(iio.imread(whole / "progress.gif")) == 4


# Stopped and resumed is as if not stopped


def test_a_rate_that_falls_reaches_0_after_the_last_step_and_goes_on_falling_when_resumed(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "DRAWN", {"train": (30, 0)})
    config = replace(CONFIG, fall=0.5, architecture=replace(CONFIG.architecture, attention_key=2))
    with new(tmp_path / "a", config) as run:
        weights, moves = run.training.adam_g.weights, []
        while run.advance():
            moves.append(weights.copy())
        run.finish()
    with new(tmp_path / "b", config) as run:
        for _ in range(4):
            run.advance()
        run.finish()
    train(loop.Run.resume(tmp_path / "b", options=OPTIONS))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    assert [round(falling(t, 6, 0.5), 9) for t in range(1, 8)] == [1, 1, 1, 1, 0.666666667, 0.333333333, 0]
    steps = [np.linalg.norm(b - a) for a, b in zip(moves, moves[1:], strict=False)]  # beta1 = 0: near lr sqrt(numbers)
    assert steps[-1] < 0.6 * steps[0]


def test_resumed_with_more_steps(whole, tmp_path):
    train(new(tmp_path / "a", replace(CONFIG, steps=3)))
    train(loop.Run.resume(tmp_path / "a", steps=6, options=OPTIONS))
    assert contents(tmp_path / "a") == contents(whole)
    assert json.loads((tmp_path / "a" / "config.json").read_text())["config"] == CONFIG.to_dict()
    for k in (0, 2, 4, 6):
        picture = f"samples/step-{k:08d}.png"
        assert (tmp_path / "a" / picture).read_bytes() == (whole / picture).read_bytes()


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_by_a_signal_and_resumed(number, whole, tmp_path, monkeypatch):
    advance = Training.advance

    def signalled(self, count):
        if self.step == 2:
            os.kill(os.getpid(), number)  # in the middle of step 3
        return advance(self, count)

    monkeypatch.setattr(Training, "advance", signalled)
    before = signal.getsignal(number)
    args = "--steps", 6, "--batch-size", 8, "--d-steps", 2, "--flip", "--width", 8, "--sample-every", 2
    rates = "--lr-g", CONFIG.lr_g, "--lr-d", CONFIG.lr_d, "--fall", 0, "--pack", 1, "--beta2", CONFIG.beta2
    minisagan("train", *args, *rates, "--out", "a", code=128 + number)
    assert signal.getsignal(number) is before
    assert checkpoint.newest(tmp_path / "a" / "checkpoints").name == "step-00000003.safetensors"
    minisagan("train", "--resume", "a", "--threads", 1, "--sample-every", 2)
    assert contents(tmp_path / "a") == contents(whole)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_stopped_by_a_signal_before_the_run_is_open(number, tmp_path, monkeypatch):
    def signalled(*_, **__):
        os.kill(os.getpid(), number)  # as when a classifier is trained for --evaluate-every
        pytest.fail("it went on")

    monkeypatch.setattr(loop, "Judge", signalled)
    before = signal.getsignal(number)
    minisagan("train", "--steps", 1, "--batch-size", 8, "--evaluate-every", 1, "--out", "a", code=128 + number)
    assert signal.getsignal(number) is before and not (tmp_path / "a").exists()


def test_killed_and_resumed(whole, tmp_path):
    with new(tmp_path / "a") as run:
        for _ in range(5):
            run.advance()
    # Now it is as after kill -9: the last checkpoint is of step 4, the log goes on to 5, a line and a file are torn.
    with open(tmp_path / "a" / "log.jsonl", "a") as log:
        log.write('{"step": 6, "seconds": 1.5, "los')
    (tmp_path / "a" / "checkpoints" / "step-00000006.safetensors.tmp").write_bytes(b"half")
    (tmp_path / "a" / "samples" / ".minisagan-abc.tmp").mkdir()
    (tmp_path / "a" / "samples" / ".minisagan-abc.tmp" / "step-00000005.png").write_bytes(b"half")
    assert [record["step"] for record in runs.read_log(tmp_path / "a")] == [1, 2, 3, 4, 5]
    train(loop.Run.resume(tmp_path / "a", options=OPTIONS))
    assert contents(tmp_path / "a") == contents(whole) and files(tmp_path / "a") == files(whole)


def test_pictures_that_are_damaged_are_not_in_the_film(whole, tmp_path, capsys):
    shutil.copytree(whole, tmp_path / "a")
    pictures = sorted((tmp_path / "a" / "samples").iterdir())
    pictures[0].write_bytes(b"")  # as after a power cut
    film, curves = tmp_path / "a" / "progress.gif", tmp_path / "a" / "curves.png"
    before = len(iio.imread(film))
    film.unlink(), curves.unlink()
    train(loop.Run.resume(tmp_path / "a", options=OPTIONS))
    assert len(iio.imread(film)) == before - 1 and curves.is_file()
    note = f"note: not in the film: {pictures[0]}: not a picture that can be read"
    assert capsys.readouterr().err.startswith(note)
    film.unlink()
    for picture in pictures:
        picture.write_bytes(b"")
    train(loop.Run.resume(tmp_path / "a", options=OPTIONS))
    assert not film.exists()


def test_gone_back_to_an_older_checkpoint(whole, tmp_path, capsys):
    train(new(tmp_path / "a", replace(CONFIG, seed=1)))
    known = contents(tmp_path / "a")
    older = tmp_path / "a" / "checkpoints" / "step-00000002.safetensors"
    (measured := tmp_path / "a" / "evaluation.json").write_text('{"step": 3}')
    newer = sorted(path.name for path in older.parent.iterdir() if path.name > older.name)
    with loop.Run.resume(older, options=OPTIONS) as run:
        said = f"note: back at {older.name}: what came after it is deleted ({', '.join(newer)})\n"
        assert newer and capsys.readouterr().err == said
        assert run.training.step == 2 and len(runs.read_log(tmp_path / "a")) == 2
        assert [path.name for path in older.parent.iterdir()] == [older.name] and not measured.exists()
        assert sorted(path.name for path in (tmp_path / "a" / "samples").iterdir())[-1] == "step-00000002.png"
    assert known != contents(whole)
    measured.write_text('{"step": 2}')
    assert contents(train(loop.Run.resume(tmp_path / "a", options=OPTIONS))) == known and measured.exists()


def test_threads_do_not_matter(whole, tmp_path):
    cpu.set_threads(1)
    train(new(tmp_path / "a"), stop=3)
    cpu.set_threads(3)
    assert contents(train(loop.Run.resume(tmp_path / "a", options=OPTIONS))) == contents(whole)


def test_no_average_of_weights(tmp_path):
    config = replace(CONFIG, ema=0, steps=4)
    train(new(tmp_path / "a", config))
    train(new(tmp_path / "b", config), stop=1)
    train(loop.Run.resume(tmp_path / "b", options=OPTIONS))
    assert contents(tmp_path / "a") == contents(tmp_path / "b")
    tensors, _ = checkpoint.load(runs.find(tmp_path / "a"))
    assert np.array_equal(tensors["average.output.w"], tensors["G.output.w"])


# Replayed


def test_a_configuration_replayed_gives_the_same_weights(whole, tmp_path):
    minisagan("train", "--config", whole / "config.json", "--sample-every", 2, "--out", "a")
    assert contents(tmp_path / "a") == contents(whole)
    minisagan("train", "--config", whole / "config.json", "--steps", 1, "--lr-g", 0, "--out", "b")
    _, _, config, log = contents(tmp_path / "b")
    assert json.loads(config) == replace(CONFIG, steps=1, lr_g=0.0).to_dict()
    assert log[0]["loss_d"] == runs.read_log(whole)[0]["loss_d"]


@pytest.mark.parametrize("text", ["{", "[]", "[" * 100_000, '{"config": {}}', *(
    f'{{"config": {config}, "data": {{}}}}' for config in (
        '{"warp": 9}', '{"lr_g": "fast"}', '{"flip": "no"}', '{"d_steps": 1.0}', '{"seed": true}', '{"dataset": null}',
        '{"architecture": {"latent": 16.0}}', '{"lr_g": NaN}', "3"
    )
)])  # fmt: skip
def test_a_damaged_configuration_is_refused(text, tmp_path):
    (tmp_path / "config.json").write_text(text)
    assert "not the config.json of a run" in minisagan("train", "--config", "config.json", "--out", "a", code=3)[1]
    assert not (tmp_path / "a").exists()


# Gone on with otherwise, begun otherwise

SMALL = "--width", 8, "--batch-size", 8


def test_other_rates_hold_from_there_on_and_are_recorded(tmp_path):
    minisagan("train", *SMALL, "--steps", 2, "--out", "a")
    minisagan("train", "--resume", "a", "--lr-g", 1e-5, "--steps", 4)
    minisagan("train", "--resume", "a", "--lr-g", 1e-5, "--steps", 5)  # now it is the run's own
    about = json.loads((tmp_path / "a" / "config.json").read_text())
    assert (about["config"]["lr_g"], about["config"]["lr_d"], about["config"]["steps"]) == (1e-5, 2.4e-3, 5)
    assert about["changes"] == [
        {"after_step": 2, "was": {"lr_g": 6e-4, "steps": 2}, "is": {"lr_g": 1e-5, "steps": 4}},
        {"after_step": 4, "was": {"steps": 4}, "is": {"steps": 5}},  # in the middle of their fall
    ]
    assert [(r["step"], r.get("lr_g")) for r in runs.read_log(tmp_path / "a")][2:] == [(3, 1e-5), (4, None), (5, None)]
    for flag, value in (("--width", 16), ("--batch-size", 16), ("--dataset", "mnist")):
        assert f"another {flag[2:]} {value}" in minisagan("train", "--resume", "a", flag, value, code=2)[1]
    assert "does not replay" in minisagan("train", "--config", "a/config.json", "--steps", 0, "--out", "b")[1]


def test_what_was_asked_for_on_the_way_outlives_a_kill_and_goes_with_what_is_deleted(tmp_path):
    """Kills: runs that are left without saving. config.json says what the next will do, whatever is gone back to."""

    def stored():
        about = json.loads((folder / "config.json").read_text())
        assert checkpoint.read_metadata(runs.find(folder))["config"] == json.dumps(about["config"])
        return about["config"]["steps"], about["config"]["lr_g"], about.get("changes", [])

    folder, change = tmp_path / "a", {"after_step": 2, "was": {"lr_g": CONFIG.lr_g}, "is": {"lr_g": 1e-5}}
    options = loop.Options(checkpoint_every=1)
    with loop.Run.create(folder, replace(CONFIG, steps=4, fall=0.5), data.load("drawn-digits"), options) as run:
        run.advance()
        run.advance()
    for again in {"steps": 40, "rates": {"lr_g": 1e-5}}, {"steps": 40, "rates": {"lr_g": 1e-5}}, {}:
        with loop.Run.resume(folder, **again) as run:
            assert run.training.step == 2 and run.training.adam_g.steps == 40
            assert run.advance()["lr_g"] == 1e-5
        assert stored() == (40, 1e-5, [change])
    with loop.Run.resume(folder) as run:
        run.end_at(30)
    with loop.Run.resume(folder) as run:
        assert run.training.adam_g.steps == 30
    with loop.Run.resume(checkpoint.path_of(folder / "checkpoints", 1), options=options) as run:
        assert stored() == (4, CONFIG.lr_g, [])
        for _ in range(2):
            run.advance()
    with loop.Run.resume(folder, steps=6) as run:  # its rates fell already, towards step 4
        pass
    assert stored() == (6, CONFIG.lr_g, [{"after_step": 3, "was": {"steps": 4}, "is": {"steps": 6}}])


def test_another_runs_weights_are_taken_as_far_as_they_fit(tmp_path):
    minisagan("train", *SMALL, "--steps", 2, "--out", "a")
    args = "--init-from", "a", "--batch-size", 8, "--steps", 0
    stderr = minisagan("train", *args, "--unconditional", "--lr-d", 1e-4, "--out", "b")[1]
    was, now = (checkpoint.load(runs.find(tmp_path / name))[0] for name in "ab")
    line = next(line for line in stderr.splitlines() if "; new are " in line)
    new = line.split("; new are ")[1].split(", ")
    known = [name for name in now if name.startswith(("G.", "D.", "average."))]
    assert line.startswith(f"{len(known) - len(new)} of {len(known)} tensors are those of a/checkpoints/step-00000002")
    assert "G.up8.norm1.gain" in new and "G.up8.conv1.w" not in new
    for name in known:
        same = name in was and was[name].shape == now[name].shape
        assert same == (name not in new) and (not same or name.endswith((".u", ".mean", ".var"))
                                              or np.array_equal(was[name], now[name])), name  # fmt: skip
    assert not now["adam_g.m"].any() and now["adam_g.t"] == 0
    about = json.loads((tmp_path / "b" / "config.json").read_text())
    assert about["init_from"]["step"] == 2 and about["init_from"]["new"] == new
    assert about["config"]["architecture"]["width"] == 8 and about["config"]["lr_d"] == 1e-4
    minisagan("train", "--resume", "b", "--steps", 1)
    assert json.loads((tmp_path / "b" / "config.json").read_text())["init_from"] == about["init_from"]
    assert "none of its weights fit" in minisagan("train", *args, "--width", 24, "--out", "c", code=2)[1]
    assert "--init-from is for new runs" in minisagan("train", "--resume", "b", "--init-from", "a", code=2)[1]
    assert not (tmp_path / "c").exists()


def pets(folder, count=300):
    images = np.random.RandomState(0).randint(0, 256, (count, 32, 32, 3)).astype(np.uint8)
    for i, image in enumerate(images):
        path = folder / ("cat", "dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        iio.imwrite(path, image)
    return folder


def test_data_that_moved_are_found_where_they_are_said_to_be(tmp_path, monkeypatch):
    monkeypatch.setenv("MINISAGAN_DATA", str(tmp_path / "cache"))
    monkeypatch.setattr(classifier, "STEPS", 1)
    monkeypatch.setattr(loop, "EVALUATED", 130)
    pets(tmp_path / "pets", 700)
    minisagan("train", "--dataset", "pets", "--size", 32, *SMALL, "--steps", 1, "--out", "a")
    (tmp_path / "pets").rename(tmp_path / "animals")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a").rename(tmp_path / "elsewhere" / "a")
    monkeypatch.chdir(tmp_path / "elsewhere")
    for command in (["train", "--resume", "a"], ["evaluate", "a", "--count", 130]):
        assert "are not there; --dataset names" in minisagan(*command, code=3)[1]
    assert "training a classifier" in minisagan("evaluate", "a", "--count", 130, "--dataset", "../animals")[1]
    minisagan("train", "--resume", "a", "--dataset", "../animals")  # nothing to do but to learn the place
    about = json.loads(Path("a/config.json").read_text())
    assert about["config"]["dataset"] == str(tmp_path / "animals")
    minisagan("evaluate", "a", "--count", 130)  # whose checkpoint says otherwise
    minisagan("train", "--resume", "a", "--steps", 2)
    (tmp_path / "animals").rename(tmp_path / "beasts")
    stderr = minisagan("evaluate", "a", "--count", 130, "--dataset", "../beasts")[1]
    assert "training a classifier" not in stderr  # that of the same images is there
    (tmp_path / "beasts").rename(tmp_path / "animals")
    iio.imwrite(tmp_path / "animals" / "cat" / "0.png", np.zeros((32, 32, 3), np.uint8))
    assert "not the data that a was" in minisagan("train", "--resume", "a", "--dataset", "../animals", code=3)[1]


def test_a_newest_checkpoint_that_is_cut_short_is_named_and_the_one_before_taken(tmp_path):
    train(new(tmp_path / "a"))
    last = tmp_path / "a" / "checkpoints" / "step-00000006.safetensors"
    last.write_bytes(last.read_bytes()[:-1])
    says = f"note: cannot be read: {last.name} in a/checkpoints; going on from step-00000004.safetensors\n"
    assert minisagan("sample", "a", "--count", 1)[1] == says
    stderr = minisagan("train", "--resume", "a")[1]
    assert stderr.startswith(says) and stderr.count("note") == 1
    assert minisagan("sample", "a", "--count", 1)[1] == ""


def test_a_checkpoint_is_due_by_the_clock_too(tmp_path, monkeypatch):
    saved, save = [], loop.Run.save
    monkeypatch.setattr(loop.Run, "save", lambda self: (saved.append(self.training.step), save(self)))
    now = [0.0]
    monkeypatch.setattr(loop.time, "monotonic", lambda: now[0])
    for minutes, steps in ((10, [0, 4, 7]), (0, [0, 7])):
        saved.clear()
        folder = tmp_path / str(minutes)
        options = loop.Options(0, 0, checkpoint_minutes=minutes)
        with loop.Run.create(folder, replace(CONFIG, steps=7), data.load("drawn-digits"), options) as run:
            while run.advance():
                now[0] += 250
            run.finish()
        assert saved == steps
    assert "--checkpoint-minutes" in minisagan("train", "-h")[0]


def test_of_two_starts_at_once_each_gets_a_folder(tmp_path, monkeypatch):
    init = loop.Run.__init__

    def late(self, *args, **kwargs):
        (tmp_path / "runs" / "drawn-digits").mkdir(parents=True)  # as another start does meanwhile
        init(self, *args, **kwargs)

    monkeypatch.setattr(loop.Run, "__init__", late)
    stdout = minisagan("train", *SMALL, "--steps", 0)[0]
    assert stdout.startswith("runs/drawn-digits-2: ") and "--resume runs/drawn-digits-2 " in stdout
    assert files(tmp_path / "runs" / "drawn-digits") == []


# Other processes, other files


def test_a_run_in_use_is_left_alone(whole):
    hold = "import sys, minisagan.run.lockfile as l\nwith l.locked(sys.argv[1]): print(flush=True); sys.stdin.read()"
    with subprocess.Popen([sys.executable, "-c", hold, whole], cwd=ROOT, stdin=-1, stdout=-1) as child:
        child.stdout.readline()
        before = {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()}
        for args in (["--resume", whole, "--steps", 9], ["--out", whole, "--force", "--batch-size", 8]):
            assert f"in use by process {child.pid}; " in minisagan("train", *args, code=1)[1]
        assert {path: path.read_bytes() for path in whole.rglob("*") if path.is_file()} == before
        child.stdin.close()


def test_a_folder_that_is_not_empty_is_refused_and_stays_as_it_was(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "thesis.txt").write_text("all of it")
    with pytest.raises(UsageError, match="a is not empty: --resume .* --force .* --out "), new(tmp_path / "a"):
        pytest.fail("it was opened")
    assert files(tmp_path / "a") == ["thesis.txt"]  # not even a lock


def test_of_two_starts_in_an_empty_folder_the_later_one_leaves_the_run_of_the_other(tmp_path, monkeypatch):
    """The other one begins and ends between the later one's look into the folder and its lock."""
    (tmp_path / "a").mkdir()
    make = loop.Run.__init__

    def meanwhile(self, *args, **kwargs):
        monkeypatch.setattr(loop.Run, "__init__", make)
        train(new(tmp_path / "a"))
        make(self, *args, **kwargs)

    monkeypatch.setattr(loop.Run, "__init__", meanwhile)
    with pytest.raises(UsageError, match="a is not empty"), new(tmp_path / "a"):
        pytest.fail("it was opened")
    assert len(runs.read_log(tmp_path / "a")) == CONFIG.steps


def test_interrupted_while_it_begins_in_an_empty_folder_it_leaves_that_empty(tmp_path, monkeypatch):
    (tmp_path / "a").mkdir()
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(loop.Run, "sample", lambda self: os.kill(os.getpid(), signal.SIGINT))
        with new(tmp_path / "a"):
            pytest.fail("it was opened")
    assert [path.name for path in (tmp_path / "a").iterdir()] in ([], ["lock"])
    train(new(tmp_path / "a", replace(CONFIG, steps=1)))


def test_force_deletes_only_what_a_run_wrote(tmp_path):
    train(new(tmp_path / "a"))
    known = files(tmp_path / "a")
    mine = "thesis.txt", "samples/me.png", "checkpoints/best.safetensors.bak", "samples/step-00000002 (copy).png"
    mine += ("checkpoints/step-00000002-good.safetensors",)
    for name in mine:
        (tmp_path / "a" / name).write_text(name)
    train(new(tmp_path / "a", replace(CONFIG, steps=1, seed=1), force=True))
    assert all((tmp_path / "a" / name).read_text() == name for name in mine)
    left = set(files(tmp_path / "a")) - set(mine)
    assert left - set(known) == {"checkpoints/step-00000001.safetensors", "samples/step-00000001.png",
                                 "checkpoints/step-00000000.safetensors"}  # fmt: skip
    assert not any("00000002" in name or "00000006" in name for name in left)
    assert [record["step"] for record in runs.read_log(tmp_path / "a")] == [1]


def test_force_replaces_nothing_but_runs(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "config.json").write_text('{"my": "app"}')
    with pytest.raises(UsageError, match="holds files, but no run that --force could replace"):
        train(new(tmp_path / "a", force=True))
    assert files(tmp_path / "a") == ["config.json"]


def test_copies_of_checkpoints_and_pictures_are_somebodys_own(whole, tmp_path):
    run = Path(shutil.copytree(whole, tmp_path / "a"))
    (newest,) = (run / "checkpoints").glob("step-00000006.safetensors")
    mine = [newest.with_stem(f"{newest.stem}-good"), run / "samples" / "step-00000006 (copy).png"]
    for path in mine:
        shutil.copy(newest, path)
    train(loop.Run.resume(run, steps=9, options=OPTIONS._replace(keep=1)))
    assert all(path.exists() for path in mine)
    assert not newest.exists()


def test_going_back_names_what_is_deleted_whatever_the_checkpoint_is_called(whole, tmp_path, capsys):
    run = Path(shutil.copytree(whole, tmp_path / "a"))
    newest = runs.find(run)
    shutil.copy(newest, run / "checkpoints" / "good.safetensors")
    with loop.Run.resume(run / "checkpoints" / "good.safetensors", options=OPTIONS):
        assert capsys.readouterr().err == "" and newest.exists()
    older = sorted((run / "checkpoints").glob("step-*"))[0].rename(run / "checkpoints" / "vorher.safetensors")
    with loop.Run.resume(older, options=OPTIONS):
        assert f"back at {older.name}: what came after it is deleted (" in (said := capsys.readouterr().err)
        assert newest.name in said and not newest.exists()


def test_a_checkpoint_that_the_system_refuses_is_not_taken_for_damaged(whole, tmp_path, monkeypatch):
    run = Path(shutil.copytree(whole, tmp_path / "a"))
    newest, opened = runs.find(run), open

    def refused(path, *args, **kwargs):
        if Path(path) == newest:
            raise PermissionError(errno.EACCES, "Permission denied", str(path))
        return opened(path, *args, **kwargs)

    monkeypatch.setattr("builtins.open", refused)
    message = f"{newest.name}: cannot be opened .Permission denied., and may be newer than step-0"
    with pytest.raises(Fault, match=message), loop.Run.resume(run, options=OPTIONS):
        pytest.fail("it was opened")
    assert newest.exists()


def test_a_line_of_the_log_that_is_none_hides_no_other_and_lost_ones_are_noticed(whole, tmp_path, capsys):
    run = Path(shutil.copytree(whole, tmp_path / "a"))
    lines = (run / "log.jsonl").read_text().splitlines(keepends=True)
    (run / "log.jsonl").write_text("".join([lines[0], "\0" + lines[1], *lines[2:]]))
    assert [record["step"] for record in runs.read_log(run)] == [1, 3, 4, 5, 6]
    (run / "log.jsonl").write_text("".join(lines[3:]))
    with loop.Run.resume(run, options=OPTIONS):
        assert "log.jsonl has lost lines since step-00000006.safetensors was written" in capsys.readouterr().err


def test_a_picture_that_can_not_be_written_costs_no_steps(tmp_path):
    with new(tmp_path / "a", replace(CONFIG, steps=4)) as run:
        run.options = OPTIONS._replace(sample_every=3, checkpoint_every=0)
        run.advance(), run.advance()
        shutil.rmtree(tmp_path / "a" / "samples")
        with pytest.raises(Fault, match="step-00000003.png: not written"):
            run.advance()
    assert runs.find(tmp_path / "a").name == "step-00000003.safetensors"


def test_a_checkpoint_outside_of_a_run_cannot_be_gone_on_with(whole, tmp_path):
    (tmp_path / "a.safetensors").write_bytes(runs.find(whole).read_bytes())
    with pytest.raises(UsageError, match="does not lie in a run"), loop.Run.resume(tmp_path / "a.safetensors"):
        pytest.fail("it was opened")
    assert files(tmp_path) == ["a.safetensors"]
    assert runs.load_generator(tmp_path / "a.safetensors")[1] == CONFIG  # but drawn from


def test_other_data_is_refused_by_name(tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (8, 32, 32, 3)).astype(np.uint8)
    for i, image in enumerate(images):
        (tmp_path / "pets").mkdir(exist_ok=True)
        iio.imwrite(tmp_path / "pets" / f"{i}.png", image)
    dataset = data.load(str(tmp_path / "pets"), tmp_path / "data", size=32)
    config = replace(CONFIG, dataset=dataset.name, architecture=replace(CONFIG.architecture, classes=0, channels=3))
    with loop.Run.create(tmp_path / "a", config, dataset) as run:
        run.advance()
        run.save()
    iio.imwrite(tmp_path / "pets" / "8.png", images[0])
    with pytest.raises(DataError, match="not the data that .*hashes was"), \
            loop.Run.resume(tmp_path / "a", data_dir=tmp_path / "data"):  # fmt: skip
        pytest.fail("it was opened")


def test_a_checkpoint_of_another_model_is_refused(tmp_path):
    train(new(tmp_path / "a", replace(CONFIG, steps=0)))
    file = runs.find(tmp_path / "a")
    tensors, about = checkpoint.load(file)
    about["config"] = json.dumps(replace(CONFIG, architecture=replace(CONFIG.architecture, width=16)).to_dict())
    checkpoint.save(file, tensors, about)
    for args in (["train", "--resume", "a"], ["sample", "a"]):
        assert "does not fit the model (differences: " in minisagan(*args, code=3)[1]


# NaN


def test_a_nan_ends_the_run_and_the_last_good_checkpoint_stays(tmp_path, monkeypatch):
    advance = Training.advance

    def poisoned(self, count):
        if self.step == 4:
            self.G.up8.conv1.w.data[0, 0, 0, 0] = np.nan
        return advance(self, count)

    monkeypatch.setattr(Training, "advance", poisoned)
    args = "train", "--steps", 6, "--batch-size", 8, "--width", 8, "--checkpoint-every", 1, "--out", "a"
    stderr = minisagan(*args, code=4)[1]
    last = checkpoint.newest(tmp_path / "a" / "checkpoints")
    assert last.name == "step-00000004.safetensors"
    assert "step 5: a loss is not finite; first tensor with a NaN or an infinity: G." in stderr
    assert stderr.endswith(f"The last good checkpoint is {last.relative_to(tmp_path)}\n")
    assert all(np.isfinite(x).all() for x in checkpoint.load(last)[0].values())
    assert [record["step"] for record in runs.read_log(tmp_path / "a")] == [1, 2, 3, 4]
    monkeypatch.undo()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "DRAWN", {"train": (30, 0)})
    minisagan("train", "--resume", "a")
    assert checkpoint.newest(tmp_path / "a" / "checkpoints").name == "step-00000006.safetensors"


def test_weights_that_are_not_finite_are_never_saved(tmp_path):
    with new(tmp_path / "a") as run:
        run.advance()
        run.training.D.output.w.data[0] = np.inf
        before = files(tmp_path / "a")
        with pytest.raises(Diverged, match=r"not saved, because tensor 'D.output.w'"):
            run.finish()
    assert files(tmp_path / "a") == before


# Disks


def full(*args, **kwargs):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_disk_that_is_full_at_the_start_leaves_no_run(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "fsync", full)
    assert "No space left on device" in minisagan("train", "--width", 8, "--batch-size", 8, "--out", "a", code=1)[1]
    assert list(tmp_path.iterdir()) == []


def test_a_disk_that_fills_up_stops_the_run_and_the_older_checkpoints_stay(tmp_path, monkeypatch):
    with new(tmp_path / "a") as run:
        run.advance()
        with monkeypatch.context() as patch, pytest.raises(Fault, match="step-00000002.*No space left"):
            patch.setattr(os, "fsync", full)
            run.advance()
    assert [path.name for path in (tmp_path / "a" / "checkpoints").iterdir()] == ["step-00000000.safetensors"]
    assert not list(tmp_path.rglob("*.tmp"))
    train(loop.Run.resume(tmp_path / "a", options=OPTIONS))


def test_a_log_that_cannot_be_written_is_a_fault(tmp_path, monkeypatch):
    with new(tmp_path / "a") as run:
        monkeypatch.setattr(loop, "open", full, raising=False)
        with pytest.raises(Fault, match="log.jsonl: cannot write the log: No space left on device"):
            run.advance()
    assert runs.find(tmp_path / "a").name == "step-00000001.safetensors"


def test_a_place_where_nothing_can_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    args = "train", "--width", 8, "--batch-size", 8
    for out in ("file", "file/a", "/proc/minisagan/a"):
        assert f"Error: {out.split('/a')[0]}" in minisagan(*args, "--out", out, code=1)[1]
    assert files(tmp_path) == ["file"]


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write anywhere")
def test_a_read_only_folder(whole, tmp_path):
    (tmp_path / "a").mkdir(mode=0o500)
    for out in ("a", "a/b"):
        assert "Permission denied" in minisagan("train", "--width", 8, "--batch-size", 8, "--out", out, code=1)[1]


def test_a_runs_pictures_are_of_its_seed_and_a_resumed_run_says_nothing(tmp_path, capsys):
    config = replace(CONFIG, seed=5, steps=1)
    with loop.Run.create(tmp_path / "a", config, data.load("drawn-digits")) as run:
        G = run.training.sampler()
        images = data.to_uint8(generate(G, latents(G, 100, 5), np.repeat(np.arange(10), 10)), 28)
        wanted = pictures.grid(images, 10, names=[*"0123456789"])
        np.testing.assert_array_equal(pictures.read_png(run.picture()), wanted)
        run.advance()
        run.finish()
    capsys.readouterr()
    with loop.Run.resume(tmp_path / "a", steps=2):
        assert capsys.readouterr().err == ""


def test_the_judge_of_a_run_has_the_runs_seed(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(loop, "Judge", lambda *given: asked.append(given))
    dataset, options = data.load("drawn-digits"), loop.Options(evaluate_every=1)
    with loop.Run.create(tmp_path / "a", replace(CONFIG, seed=5), dataset, options, data_dir=tmp_path):
        assert asked == [(dataset, 1000, 5, tmp_path)]


def test_of_more_than_ten_classes_ten_are_shown_and_compared(tmp_path):
    images = np.random.default_rng(0).integers(0, 256, (48, 28, 28, 1), np.uint8)
    dataset = data.Dataset("letters", images, np.arange(48) % 12, tuple("abcdefghijkl"))
    config = replace(CONFIG, dataset="letters", architecture=replace(CONFIG.architecture, classes=12))
    with loop.Run.create(tmp_path / "a", config, dataset) as run:
        assert len(run.reference.within) == 10 and set(run.sample()) >= {"variety", "variety_min"}


def test_each_measure_has_its_own_last_varied_step(tmp_path):
    (tmp_path / "checkpoints").mkdir()
    for step in (10, 20, 30):
        checkpoint.save(checkpoint.path_of(tmp_path / "checkpoints", step), {}, {"step": str(step)})
    log = [{"step": 10, "variety": 0.9, "contrast": 0.9}, {"step": 25, "variety": 0.9, "contrast": 0.1}]
    (tmp_path / "log.jsonl").write_text("".join(json.dumps(record) + "\n" for record in log))
    found = {name: file.name[-14:-12] for name, file in runs.varied(tmp_path).items()}
    assert found == {"variety": "20", "contrast": "10"}


def test_pictures_are_in_the_order_of_their_steps(tmp_path):
    (tmp_path / "samples").mkdir()
    steps = [0, 250, 500, 99_999_999, 100_000_000]
    for step in [500, 100_000_000, 0, 99_999_999, 250]:
        (tmp_path / "samples" / f"step-{step:08d}.png").touch()
    assert [step for step, _ in runs.sampled(tmp_path)] == steps


def test_the_film_rests_on_its_last_picture(tmp_path):
    with loop.Run.create(tmp_path / "a", replace(CONFIG, steps=1), data.load("drawn-digits")) as run:
        run.advance()
        run.finish()
    times = [iio.immeta(tmp_path / "a" / "progress.gif", index=k)["duration"] for k in range(2)]
    assert times == [400, 2000]
