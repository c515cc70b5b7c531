"""The command line as a user meets it: help, errors, and `train`."""

import fcntl
import io
import json
import os
import pty
import re
import shlex
import shutil
import signal
import struct
import subprocess
import sys
import termios
import time
from pathlib import Path

import click
import command_line
import imageio.v3 as iio
import numpy as np
import pytest
from click.testing import CliRunner
from command_line import ROOT, SMALL, minisagan, refused, start

from minisagan.commands import COMMANDS, cli, progress, train
from minisagan.commands.progress import Progress
from minisagan.config import RECIPES, Architecture, Config
from minisagan.look.words import duration
from minisagan.models import Discriminator, Generator
from minisagan.run import folder as runs
from minisagan.run import loop

apart, run, photos = command_line.apart, command_line.run, command_line.photos  # fixtures
pytestmark = pytest.mark.usefixtures("apart")


# The program itself


def test_python_dash_m_and_no_arguments_show_the_help():
    done = subprocess.run([sys.executable, "-m", "minisagan"], cwd=ROOT, capture_output=True, text=True, check=True,
                          env={**os.environ, "COLUMNS": "80"})
    assert done.stdout.startswith("Usage: minisagan [OPTIONS] COMMAND") and done.stderr == ""
    assert done.stdout == minisagan("-h")[0]


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_help_that_begins_as_the_list_says(name):
    line = next(line for line in minisagan("--help")[0].splitlines() if line.startswith(f"  {name} "))
    text = minisagan(name, "-h")[0]
    assert text.startswith(f"Usage: minisagan {name}") and "-h, --help" in text
    command = cli.resolve_command(None, [name])[1]
    assert command.get_short_help_str(100) == line.removeprefix(f"  {name}").strip()


def test_version(monkeypatch):
    monkeypatch.setenv("MINISAGAN_VERSION", "set by somebody's container")
    assert re.fullmatch(r"minisagan \d+\.\d+\.\d+\n", minisagan("--version")[0])
    minisagan("inspect", "--help")


def test_the_help_of_train_tells_where_the_paper_differs_and_what_depends_on_the_data():
    text = " ".join(minisagan("train", "--help")[0].split())
    assert "Paper's code: 256. [default: (64)]" in text
    assert "Paper: 0.0001. [default: (0.00045; drawn digits 0.0006; photos 0.0004)]" in text
    assert re.search(r"--width INTEGER .{,60}\[default: \(16; photos 32\)\]", text)


def test_the_help_of_train_has_each_option_once_below_a_heading():
    shown = [name for names in train.HEADINGS.values() for name in names.split()]
    params = train.command.get_params(click.Context(train.command))
    assert sorted(shown) == sorted(max(p.opts, key=len).strip("-").replace("-", "_") for p in params)
    lines = minisagan("train", "-h")[0].splitlines()
    assert [line[:-1] for line in lines if re.fullmatch(r"[A-Z].+:", line)] == list(train.HEADINGS)


@pytest.mark.parametrize(
    "args, words",
    [
        (["--bogus"], "No such option '?--bogus"),
        (["trian"], "No such command 'trian'"),
        (["train", "--stepz", "3"], "No such option '?--stepz"),
        (["train", "--steps", "many"], "'--steps'.*many"),
        (["train", "--keep", "0"], "'--keep'"),
        (["train", "--steps", "-1"], "steps must be at least 0"),
        (["train", "--lr-g", "nan"], "lr-g must be .*finite; not nan"),
        (["train", "--lr-g", "nan", "--dataset", "mnist"], "lr-g must be .*not nan"),  # before a download
        (["train", "--lr-d", "inf"], "lr-d must be .*finite; not inf"),
        (["train", "--beta2", "1"], "beta2 must be .*below 1"),
        (["train", "--batch-size", "0"], "batch-size must be at least 1"),
        (["train", "--batch-size", "66"], "a batch of 66 is larger than drawn-digits's 64 images: .*--batch-size 64"),
        (["train", "--batch-size", "70", "--pack", "5"], "a batch of 70 is larger than .*--batch-size 60 or less"),
        (["train", "--seed", "-1"], "seed must be an integer from 0"),
        (["train", "--size", "64"], "drawn-digits has size 32, not 64"),
        (["train", "--width", "0"], "width must be 1 to 2.20, not 0"),
        (["train", "--width", "1" + 20 * "0"], "width must be 1 to 2.20"),
        (["train", "--width", "4"], "attention at 16 needs 8 channels .*width of 8 or more"),
        (["train", "--attention", "32"], "attention at 32: at 32x32 it is at 8, 16 or none"),
        (["train", "--attention", "high"], "--attention high: neither a resolution nor none"),
        (["train", "--attention-form", "new"], "'--attention-form'.*official"),
        (["train", "--dataset", "mnits"], "mnits: neither a data set .*drawn-digits, mnist"),
        (["train", "--minutes", "nan"], "--minutes must be above 0"),
        (["train", "--minutes", "-1"], "--minutes must be above 0"),
        (["train", "--device", "tpu"], "--device tpu: there are auto, cpu, cuda"),
        (["train", "--device", "cuda:x"], "--device cuda:x: there are auto"),
        (["train", "--resume", "nowhere"], "nowhere: no such run folder or checkpoint"),
        (["train", "--config", "nowhere.json"], "--config nowhere.json: No such file"),
        (["sample", "nowhere"], "nowhere: no such run folder or checkpoint"),
        (["sample"], "Missing argument 'RUN'"),
        (["inspect", "nowhere"], "nowhere: no such run folder or checkpoint"),
        (["gradcheck", "--op", "conf"], "no op 'conf' to check; there are add, .*conv"),
    ],
)
def test_what_cannot_be_asked_is_one_line_and_leaves_nothing(args, words, tmp_path):
    out = ["--out", tmp_path / "x"] if args[0] == "train" and "--resume" not in args else []
    assert re.search(words, refused(*args, *out))
    assert list(tmp_path.iterdir()) == []


def test_missing_data_is_exit_code_3_and_leaves_no_run(tmp_path):
    (tmp_path / "data" / "mnist").mkdir(parents=True)
    (tmp_path / "data" / "mnist" / "train-images-idx3-ubyte").write_bytes(b"<html>")
    (tmp_path / "data" / "mnist" / "train-labels-idx1-ubyte").write_bytes(b"<html>")
    line = refused("train", "--dataset", "mnist", "--out", "x", code=3)
    assert str(tmp_path / "data" / "mnist" / "train-images-idx3-ubyte") in line
    assert not (tmp_path / "x").exists()


def test_a_container_without_a_home_works_without_a_cache(tmp_path, photos):
    nobody = (
        "import pathlib, os; [os.environ.pop(k, None) for k in ('HOME', 'XDG_CACHE_HOME', 'MINISAGAN_DATA')]; "
        "import pwd; pwd.getpwuid = lambda uid: {}[uid]; "
    )

    def told(*args, code=0):
        with start(*args, extra=nobody, text=True) as child:
            stdout, stderr = child.communicate(timeout=100)
        assert child.returncode == code and "internal" not in stderr, stderr
        return stdout + stderr

    told("train", *SMALL, "--steps", 0, "--out", tmp_path / "a")
    pets = "--dataset", photos / "pets", "--size", 32, *SMALL, "--steps", 0
    assert "note: no cache in the home folder" in told("train", *pets, "--out", tmp_path / "b")
    says = told("train", "--dataset", "mnist", "--out", tmp_path / "c", code=3)
    assert "no home folder to look for it" in says and "--data-dir" in says
    assert "none: no home folder; $MINISAGAN_DATA names another" in told("doctor")


def test_a_folder_name_that_is_no_utf8_goes_in_and_comes_out(tmp_path):
    name = os.fsdecode(b"caf\xe9")
    with start("train", *SMALL, "--steps", 1, "--out", name) as child:
        stdout, stderr = child.communicate(timeout=60)
    assert child.returncode == 0 and stdout.startswith(b"caf\xe9: all 1 steps") and b"drawn-digits, 64" in stderr
    for command in (["report"], ["sample", "-o", f"{name}.png"], ["inspect"], ["inspect", "--json"]):
        with start(*command, name) as child:
            stdout, stderr = child.communicate(timeout=60)
        assert (child.returncode, stderr) == (0, b""), command
    assert "caf?" in (tmp_path / name / "report.html").read_text(encoding="utf-8")
    with start("sample", name + "no") as child:
        assert child.communicate(timeout=60)[1].startswith(b"Error: caf\\udce9no: no such run")


def test_letters_that_stdout_lacks_are_written_as_numbers(run, tmp_path):
    env = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONIOENCODING": "latin-1"}
    command = [sys.executable, "-m", "minisagan", "sample", run, "--count", "2", "-o", "\u72ac\u00e9.png"]
    ended = subprocess.run(command, env=env, capture_output=True, timeout=60)
    assert (ended.returncode, ended.stderr) == (0, b"") and b"\\u72ac\xe9.png" in ended.stdout
    assert (tmp_path / "\u72ac\u00e9.png").is_file()


def test_a_variable_is_called_as_its_option_is(run, monkeypatch):
    for command, option, value in (
        ("sample", "DEVICE", "nonsense"), ("train", "DEVICE", "nonsense"), ("train", "CONFIG", "nonsense"),
        ("interpolate", "LATENTS", "1"), ("attention", "POINT", "nonsense"), ("sample", "COUNT", "nonsense"),
    ):  # fmt: skip
        with monkeypatch.context() as patch:
            patch.setenv(f"MINISAGAN_{command}_{option}".upper(), value)
            refused(command, *([] if command == "train" else [run]))
    monkeypatch.setenv("MINISAGAN_INSPECT_JSON", "1")
    assert json.loads(minisagan("inspect", run)[0])


def test_variables_of_new_runs_do_not_stop_a_resumed_one(run, monkeypatch):
    shutil.copytree(run, "copy")
    for name, value in (("WIDTH", 16), ("BETA2", 0.5), ("DATASET", "mnist"), ("CONFIG", "x")):
        monkeypatch.setenv(f"MINISAGAN_TRAIN_{name}", str(value))
    assert "nothing to do, all 3 steps" in minisagan("train", "--resume", "copy")[0]
    monkeypatch.setenv("MINISAGAN_TRAIN_STEPS", "4")  # what a resumed run may change
    assert "all 4 steps are done" in minisagan("train", "--resume", "copy")[0]


def test_debug_shows_a_traceback_and_keeps_the_exit_code():
    result = CliRunner().invoke(cli, ["--debug", "train", "--steps", "-1"])
    assert result.exit_code == 2 and result.stderr.startswith("Traceback")
    assert result.stderr.splitlines()[-1].startswith("Error: steps must be")
    assert "Traceback" not in CliRunner().invoke(cli, ["train", "--steps", "-1"]).stderr


@pytest.mark.parametrize(
    "error, code, line",
    [
        (ZeroDivisionError("a\nb"), 1, "internal error, ZeroDivisionError: a b; minisagan --debug COMMAND .* where"),
        (MemoryError("for an array"), 1, "not enough memory .*: for an array"),
        (PermissionError(13, "Permission denied", "a.txt"), 1, "a.txt: Permission denied"),
        (KeyboardInterrupt(), 130, "interrupted"),
    ],
)
def test_whatever_is_raised_is_one_line(error, code, line, monkeypatch):
    def fail(*args):
        raise error

    monkeypatch.setattr(runs, "load_generator", fail)
    result = CliRunner().invoke(cli, ["sample", "x"])
    assert result.exit_code == code and re.fullmatch(f"Error: {line}\n", result.stderr.lstrip("\n"))


def test_a_reader_who_goes_away_is_no_error():
    with start("gradcheck", "--op", "conv") as child:
        assert child.stdout.readline()
        child.stdout.close()
        assert child.stderr.read() == b"" and child.wait() == 1


# train


def test_train_alone_makes_a_run_and_then_another_one(monkeypatch, tmp_path):
    monkeypatch.setenv("MINISAGAN_TRAIN_STEPS", "1")
    for name in ("WIDTH", "BATCH_SIZE"):
        monkeypatch.setenv(f"MINISAGAN_TRAIN_{name}", "8")
    for name in ("drawn-digits", "drawn-digits-2", "drawn-digits-3"):
        stdout, _ = minisagan("train")
        assert f"runs/{name}: all 1 steps are done" in stdout
        assert (tmp_path / "runs" / name / "checkpoints" / "step-00000001.safetensors").is_file()
    assert len(list((tmp_path / "runs").iterdir())) == 3


def test_what_train_says_and_leaves(tmp_path):
    stdout, stderr = minisagan("train", *SMALL, "--steps", 3, "--out", "x y")
    first, *lines = stderr.splitlines()
    networks = Generator(Architecture(width=8)), Discriminator(Architecture(width=8, pack=2))
    g, d = (sum(p.data.size for p in network.parameters().values()) for network in networks)
    known = "x y: drawn-digits, 64 images of 28x28, 10 classes"
    assert first == f"{known}; {g:,} weights in G, {d:,} in D; cpu, threads: 1"
    number = r"[+-]?\d+\.\d+"
    shape = (
        rf"step \d/3  \d+ s left  \d+ images/s  loss D {number} G {number}  D\(real\) {number} D\(fake\) {number}"
        rf"(  gamma {number})?"
    )
    assert [line.split()[1] for line in lines] == ["1/3", "3/3"] and all(re.fullmatch(shape, line) for line in lines)
    assert "gamma" in lines[-1]
    named = [line.split(maxsplit=1)[1] for line in stdout.splitlines()[1:5]]
    assert named[0] == "x y/samples/step-00000003.png" and all((tmp_path / path).is_file() for path in named)
    assert "minisagan sample 'x y' -o samples.png" in stdout and "minisagan train --resume 'x y' --steps 6" in stdout
    names = {path.name for path in (tmp_path / "x y").iterdir()}
    assert names == {"config.json", "log.jsonl", "checkpoints", "samples", "progress.gif", "curves.png", "lock"}
    assert not list(tmp_path.rglob("*.tmp"))
    assert "not empty" in refused("train", "--out", "x y")
    assert "--force needs --out" in refused("train", "--force")


@pytest.mark.parametrize("out", ["x y", "-x", "it's", "sub/x"])
def test_what_it_says_to_go_on_with_works_from_where_it_was_said(out, photos, monkeypatch, tmp_path):
    monkeypatch.setenv("MINISAGAN_TRAIN_OUT", out)  # as somebody's script may have it
    for name in ("pets", "data"):
        (tmp_path / name).symlink_to(photos / name)
    given = "--dataset", "pets", "--data-dir", "data", "--size", 32, *SMALL, "--steps", 1
    stdout = minisagan("train", *given)[0]
    for step in (2, 4):
        program, *args = shlex.split(stdout.splitlines()[-1].removeprefix("go on:"))
        assert program == "minisagan" and "data" in args
        stdout = minisagan(*args[:-1], step)[0]
        assert f"all {step} steps are done" in stdout
    draw = next(line for line in stdout.splitlines() if line.startswith("draw more:"))
    minisagan(*shlex.split(draw.removeprefix("draw more:"))[1:])
    assert (tmp_path / "samples.png").is_file()


def test_zero_steps_make_a_run_to_go_on_with():
    stdout, _ = minisagan("train", *SMALL, "--steps", 0, "--out", "x")
    assert "--resume x --steps 1000" in stdout
    assert "step 1/1 " in minisagan("train", "--resume", "x", "--steps", 1)[1]


def test_minutes_end_a_training_in_good_order():
    stdout, _ = minisagan("train", *SMALL, "--steps", 100_000, "--minutes", 0.002, "--out", "x")
    step = int(re.match(r"x: stopped at step (\d+) of 100000 \(--minutes 0.002 are over\)", stdout)[1])
    assert step >= 1 and (Path("x/checkpoints") / f"step-{step:08d}.safetensors").is_file()
    assert stdout.endswith("minisagan train --resume x\n")


def test_minutes_alone_train_as_many_steps_as_fit(monkeypatch):
    monkeypatch.setattr(train, "PACE", 2)
    monkeypatch.setattr(train, "WARM_UP", 1)
    stdout, _ = minisagan("train", *SMALL, "--minutes", 0.05, "--fall", 0.5, "--out", "x")
    step, steps = map(int, re.search(r"(?:step|all) (\d+)(?: of (\d+))?", stdout).groups(default=0))
    config = json.loads(Path("x/config.json").read_text())["config"]
    assert config["steps"] == (steps or step) != RECIPES["drawn-digits"]["steps"] and config["fall"] == 0.5 and step > 3
    now = iter([10.0, 10.5, 11.0, 12.0])
    monkeypatch.setattr(train.time, "monotonic", lambda: next(now))
    reckon = train.Reckoning(110.0)
    assert [reckon(0), reckon(1), reckon(2), reckon(4)] == [None, None, None, 4 + int(0.97 * 98 / 0.5)]


def test_resume_refuses_by_name_what_would_change_the_run(run):
    log = (run / "log.jsonl").read_bytes()
    line = refused("train", "--resume", run, "--steps", 9, "--width", 16, "--beta2", 0.5, "--attention", "none",
                   "--unconditional", "--dataset", "photos", "--batch-size", 8)
    for words in ("width 16 (the run has 8)", "beta2 0.5 (the run has 0.98)", "attention None (the run has 16)",
                  "conditional False (the run has True)", "photos (the run has drawn-digits)"):
        assert words in line
    assert "steps" not in line and "batch" not in line
    for option in (["--out", "x"], ["--force"], ["--config", run / "config.json"]):
        assert option[0] in refused("train", "--resume", run, *option)
    assert "at step 3 already" in refused("train", "--resume", run, "--steps", 2)
    assert (run / "log.jsonl").read_bytes() == log


def test_resuming_a_finished_run_says_so(run):
    stdout, _ = minisagan("train", "--resume", run)
    assert stdout.startswith(f"{run}: nothing to do, all 3 steps were done before") and "--steps 6" in stdout


@pytest.mark.parametrize("inside", [True, False])
def test_a_list_of_labels_moves_with_its_folder_or_is_named_anew(inside, tmp_path):
    images = np.random.RandomState(0).randint(0, 256, (12, 32, 32, 3)).astype(np.uint8)
    (tmp_path / "set").mkdir()
    for k, image in enumerate(images):
        iio.imwrite(tmp_path / "set" / f"{k}.png", image)
    listed, moved = (tmp_path / name for name in (("set/a.json", "away/a.json") if inside else ("a.json", "b.json")))
    listed.write_text(json.dumps({"labels": [[f"{k}.png", k % 2] for k in range(12)]}))
    minisagan("train", "--dataset", tmp_path / "set", "--labels", listed, "--size", 32, *SMALL, "--pack", 1,
              "--steps", 1, "--out", "run")  # fmt: skip
    (tmp_path / "set").rename(tmp_path / "away")
    place = "--dataset", tmp_path / "away"
    if inside:
        minisagan("attention", "run", "--network", "discriminator", *place)
    else:
        listed.rename(moved)
        for command in ("train", "--resume", "run", "--steps", 2), ("evaluate", "run"):
            line = refused(*command, *place, code=3)
            assert f"{listed}: the list of labels that run was trained with is not there" in line and "--labels" in line
        place += "--labels", moved
    minisagan("train", "--resume", "run", *place, "--steps", 2)
    config = json.loads(Path("run/config.json").read_text())["config"]
    assert (config["dataset"], config["labels"]) == (str(tmp_path / "away"), str(moved))
    minisagan("train", "--resume", "run", "--steps", 3)  # it has learnt that
    minisagan("attention", "run", "--network", "discriminator")
    moved.write_text(json.dumps({"labels": [[f"{k}.png", k % 3 % 2] for k in range(12)]}))
    assert "not the data that" in refused("train", "--resume", "run", "--steps", 4, code=3)


def test_conditional_needs_classes(photos):
    args = "--dataset", photos / "pets" / "cat", "--data-dir", photos / "data", "--size", 32
    assert "only one class" in refused("train", *args, "--conditional", "--out", "x")
    assert not Path("x").exists()


@pytest.mark.parametrize("number, code", [(signal.SIGHUP, 129), (signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_finishes_the_step_and_saves(number, code, tmp_path):
    args = "train", *SMALL, "--steps", 100_000, "--out", tmp_path / "x"
    with start(*args) as child:
        assert b"64 images" in child.stderr.readline() and b"step 1/" in child.stderr.readline()
        child.send_signal(number)
        stdout, stderr = child.communicate(timeout=60)
    assert child.returncode == code and b"finishing this step and saving" in stderr and b"Error" not in stderr
    step = int(re.search(rf"stopped at step (\d+) of 100000 \({number.name}\)", stdout.decode())[1])
    facts = json.loads(minisagan("inspect", "x", "--json")[0])
    assert facts["step"] == step >= 1
    assert {path.name for path in (tmp_path / "x").iterdir()} >= {"progress.gif", "curves.png"}
    assert (tmp_path / "x" / "samples" / f"step-{step:08d}.png").is_file()


def test_a_terminal_that_closes_is_sighup_and_what_it_shows_is_lost_alone(tmp_path):
    master, slave = pty.openpty()
    lead = {"preexec_fn": lambda: fcntl.ioctl(slave, termios.TIOCSCTTY), "start_new_session": True}
    args = "train", *SMALL, "--steps", 100_000, "--out", tmp_path / "x"
    with start(*args, stdin=slave, stdout=slave, stderr=slave, **lead) as child:
        os.close(slave)
        seen = b""
        while b"step" not in seen:
            seen += os.read(master, 1000)
        os.close(master)
        assert child.wait(60) == 129
    assert json.loads(minisagan("inspect", "x", "--json")[0])["step"] >= 1
    assert {path.name for path in (tmp_path / "x").iterdir()} >= {"progress.gif", "curves.png"}


def test_under_nohup_a_terminal_that_closes_is_nothing(tmp_path):
    ignore = lambda: signal.signal(signal.SIGHUP, signal.SIG_IGN)
    with start("train", *SMALL, "--steps", 20, "--out", tmp_path / "x", preexec_fn=ignore) as child:
        assert b"64 images" in child.stderr.readline() and b"step 1/" in child.stderr.readline()
        child.send_signal(signal.SIGHUP)
        stdout, stderr = child.communicate(timeout=60)
    assert child.returncode == 0 and b"all 20 steps are done" in stdout and b"finishing" not in stderr


@pytest.mark.parametrize("first", [signal.SIGINT, signal.SIGTERM])
def test_a_second_interrupt_quits_at_once(first, tmp_path):
    slow = "loop.Training.advance = lambda *_: time.sleep(600); "
    with start("train", *SMALL, "--steps", 3, "--out", tmp_path / "x", extra=slow) as child:
        assert b"64 images" in child.stderr.readline()
        child.send_signal(first)
        while b"finishing" not in (line := child.stderr.readline()):
            assert line
        assert child.poll() is None
        begin = time.monotonic()
        child.send_signal(signal.SIGINT)
        _, stderr = child.communicate(timeout=60)
    assert child.returncode == 130 and stderr.strip() == b"Error: interrupted"
    assert time.monotonic() - begin < 10
    assert json.loads(minisagan("inspect", "x", "--json")[0])["step"] == 0


def test_on_a_terminal_progress_is_one_line_that_fits(tmp_path):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 50, 0, 0))
    fast = "from minisagan.commands import progress; progress.EVERY = 0, 0; "
    with start("train", *SMALL, "--steps", 5, "--out", tmp_path / "x", extra=fast, stderr=slave) as child:
        os.close(slave)
        seen = b""
        while True:
            try:
                part = os.read(master, 1000)
            except OSError:  # what Linux says when the other end is closed
                break
            if not part:
                break
            seen += part
        assert child.wait() == 0
    os.close(master)
    first, written, rest = seen.decode().split("\r\n")
    assert "64 images" in first and rest == "" and "\x1b" not in written
    blank, *lines = written.split("\r")
    assert blank == "" and [line.split()[1] for line in lines] == [f"{k}/5" for k in range(1, 6)]
    assert all(len(line) <= 49 for line in lines)


def test_progress_elsewhere_is_a_line_now_and_then(monkeypatch):
    monkeypatch.setattr(progress, "EVERY", (None, 0))
    lines = minisagan("train", *SMALL, "--steps", 4, "--out", "x")[1].splitlines()[1:]
    assert [line.split()[1] for line in lines] == ["1/4", "2/4", "3/4", "4/4"]
    monkeypatch.setattr(progress, "EVERY", (None, 1e9))
    lines = minisagan("train", "--resume", "x", "--steps", 8)[1].splitlines()[1:]
    assert [line.split()[1] for line in lines] == ["5/8", "8/8"]


def test_progress_reckons_with_steps_and_minutes(run, monkeypatch):
    record = {"step": 5, "loss_d": 1, "loss_g": -1, "d_real": 0.5, "d_fake": -0.5}
    monkeypatch.setattr(sys, "stderr", io.StringIO())
    with loop.Run.resume(run, steps=13) as resumed:
        line = Progress(resumed).line(record, elapsed=10)  # steps 4 and 5, of 8 images, 5 s each
        assert line == "step 5/13  40 s left  2 images/s  loss D 1.000 G -1.000  D(real) +0.50 D(fake) -0.50"
        assert "  20 s left  " in Progress(resumed, seconds=30).line(record, elapsed=10)
    assert [duration(s) for s in (0, 59.4, 60, 185, 7620)] == ["0 s", "59 s", "1 min 00 s", "3 min 05 s", "2 h 07 min"]


def test_a_replayed_configuration_without_classes_has_none():
    minisagan("train", *SMALL, "--unconditional", "--steps", 0, "--out", "a")
    minisagan("train", "--config", "a/config.json", "--out", "b")
    configs = [json.loads(Path(run, "config.json").read_text())["config"] for run in "ab"]
    assert configs[0] == configs[1] and configs[0]["architecture"]["classes"] == 0


def test_how_many_steps_fit_in_is_reckoned_from_the_pace_after_a_warm_up(monkeypatch):
    now = iter([10.0, 20.0, 50.0, 50.0, 60.0, 90.0, 200.0])
    monkeypatch.setattr(train.time, "monotonic", lambda: next(now))
    reckon = train.Reckoning(101.0)
    assert [reckon(2), reckon(3), reckon(22), reckon(23)] == [None, None, None, 23 + int(0.97 * 51 / 1.5)]  # 32.98
    late = train.Reckoning(101.0)
    assert [late(3), late(10), late(23)] == [None, None, 23]


@pytest.mark.parametrize("beside", ["init_from", "changes"])
def test_what_a_configuration_alone_does_not_replay_is_said(beside, tmp_path, capsys):
    path = tmp_path / "config.json"
    path.write_text(json.dumps({"config": Config().to_dict(), "data": {}, beside: {}}))
    assert train._read(path) == (Config(), {})
    assert f"{path} alone does not replay its run" in capsys.readouterr().err
