"""`sample`, `inspect`, `gradcheck` and `doctor` as a user meets them."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import command_line
import imageio.v3 as iio
import numpy as np
import pytest
from click.testing import CliRunner
from command_line import ROOT, SMALL, minisagan, refused, start

from minisagan import selfcheck
from minisagan.autograd import Tensor
from minisagan.commands import choices, cli, hardware, sample
from minisagan.config import Architecture
from minisagan.models import Generator
from minisagan.run import checkpoint
from minisagan.run import folder as runs
from minisagan.selfcheck.table import Case

apart, run, photos = command_line.apart, command_line.run, command_line.photos  # fixtures
pytestmark = pytest.mark.usefixtures("apart")


# sample


def arrays(*args):
    minisagan("sample", *args, "-o", "a.npz")
    return dict(np.load("a.npz"))


def test_a_sample_depends_on_the_seed_and_its_number_alone(run):
    few, many = arrays(run, "--count", 5, "--classes", "7,0,3"), arrays(run, "--count", 37, "--classes", "7,0,3")
    assert few["images"].shape == (5, 28, 28) and few["images"].dtype == np.uint8
    assert many["labels"].dtype == np.int64 and many["labels"].tolist() == ([7, 0, 3] * 13)[:37]
    assert np.array_equal(few["images"], many["images"][:5]) and np.array_equal(few["labels"], many["labels"][:5])
    assert len(np.unique(many["images"], axis=0)) == 37
    other = arrays(run, "--count", 5, "--classes", "7,0,3", "--seed", 1)
    assert not np.array_equal(other["images"], few["images"])
    file = run / "checkpoints" / "step-00000001.safetensors"
    assert not np.array_equal(arrays(file, "--count", 5, "--classes", "7,0,3")["images"], few["images"])


def test_a_folder_of_samples_holds_the_same_images(run, tmp_path):
    known = arrays(run, "--count", 12)
    for name in ("made/", "also.made/"):
        minisagan("sample", run, "--count", 12, "-o", name)
        files = sorted((tmp_path / name).iterdir())
        assert [file.name for file in files] == [f"{i:05d}-{i % 10}.png" for i in range(12)]
        assert all(np.array_equal(iio.imread(file), image) for file, image in zip(files, known["images"], strict=True))
    assert "is there already" in refused("sample", run, "-o", "made")
    assert len(list((tmp_path / "made").iterdir())) == 12


def test_files_beside_an_output_are_not_touched(run, tmp_path):
    mine = [f"{name}.tmp" for name in ("made", "a.png", "a.npz", "a.safetensors")]
    for name in mine:
        (tmp_path / name).mkdir()
        (tmp_path / name / "thesis.txt").write_text("all of it")
    for name in ("made/", "a.png", "a.npz"):
        minisagan("sample", run, "--count", 2, "-o", name)
    minisagan("export", run, "-o", "a.safetensors")
    assert all((tmp_path / name / "thesis.txt").read_text() == "all of it" for name in mine)
    assert {path.name for path in tmp_path.iterdir()} >= {*mine, "made", "a.png", "a.npz", "a.safetensors"}
    assert not list(tmp_path.glob(".*"))  # nothing of ours is left


@pytest.mark.parametrize("args", [
    *(["sample", "-o", f"no/such/{name}"] for name in ("x.npz", "x.png", "x/")),
    *(["interpolate", "-o", f"no/such/x.{suffix}"] for suffix in ("gif", "png")),
    *(["attention", flag, f"no/such/x.{suffix}"] for flag, suffix in (("-o", "png"), ("--gif", "gif"))),
    ["report", "-o", "no/such/x.html"],
    ["sample", "-o", "/proc/x.npz"],
    ["interpolate", "-o", "x.d/x.gif"],
], ids=" ".join)  # fmt: skip
def test_where_output_cannot_go_is_found_before_the_work(args, run, tmp_path, monkeypatch):
    monkeypatch.setattr(runs, "load_generator", lambda *_: pytest.fail("it went to work"))
    (tmp_path / "x.d").write_text("no folder")
    line = refused(args[0], run, *args[1:], code=1)
    assert f"{args[2].rstrip('/')}" in line and ": not written: " in line
    assert [path.name for path in tmp_path.iterdir()] == ["x.d"]


def test_a_grid_has_a_row_for_each_class(run):
    known = arrays(run, "--count", 5, "--classes", "4,2")
    stdout, _ = minisagan("sample", run, "--count", 5, "--classes", "4,2", "-o", "g.png")
    assert stdout.startswith("g.png: 5 images of 28x28 by ")
    sheet = iio.imread("g.png")
    cell, gap = 2 * 28, 2
    assert sheet.shape[0] == 2 * cell + gap and sheet.shape[1] > 3 * cell + 2 * gap  # the names stand to the left
    for row, column, i in [(0, 0, 0), (0, 1, 2), (0, 2, 4), (1, 0, 1), (1, 1, 3), (1, 2, None)]:
        top, left = row * (cell + gap), sheet.shape[1] - 3 * cell - 2 * gap + column * (cell + gap)
        shown = sheet[top : top + cell, left : left + cell]
        wanted = np.full((28, 28), 128) if i is None else known["images"][i]
        assert np.array_equal(shown, wanted.repeat(2, 0).repeat(2, 1))


def test_classes_by_name_or_number_and_colour(photos):
    pets = os.path.relpath(photos / "pets")
    args = "--dataset", pets, "--data-dir", photos / "data", "--size", 32
    minisagan("train", *args, *SMALL, "--steps", 1, "--out", "x")
    assert arrays("x", "--count", 4, "--classes", "hot dog")["labels"].tolist() == [1, 1, 1, 1]
    known = arrays("x", "--count", 3, "--classes", "1,cat,0")
    assert known["labels"].tolist() == [1, 0, 1] and known["images"].shape == (3, 32, 32, 3)
    minisagan("sample", "x", "--count", 3, "-o", "made")
    assert sorted(os.listdir("made")) == ["00000-cat.png", "00001-hot-dog.png", "00002-cat.png"]
    assert "no class 'dog'; there are cat, hot dog, or 0 to 1" in refused("sample", "x", "--classes", "dog")
    assert "no class '2'" in refused("sample", "x", "--classes", "2")
    # the folder is known by its full path: a run can be resumed from anywhere
    os.chdir("made")
    minisagan("train", "--resume", "../x", "--steps", 2, "--data-dir", photos / "data")


def test_without_classes(photos):
    known = arrays(photos / "run", "--count", 5)
    assert set(known) == {"images"} and known["images"].shape == (5, 32, 32, 3)
    assert "trained without classes" in refused("sample", photos / "run", "--classes", "all")
    minisagan("sample", photos / "run", "--count", 5, "-o", "g.png")
    assert iio.imread("g.png").shape == (2 * 64 + 2, 3 * 64 + 2 * 2, 3)
    minisagan("sample", photos / "run", "--count", 1, "-o", "made")
    assert os.listdir("made") == ["00000.png"]


def test_a_folder_of_samples_takes_the_place_of_an_empty_one(run, tmp_path, monkeypatch):
    for name in ("here", "there"):
        (tmp_path / name).mkdir()
    (tmp_path / "link").symlink_to("there")
    minisagan("sample", run, "--count", 1, "-o", "link/")
    assert os.listdir("there") == ["00000-0.png"]
    monkeypatch.chdir(tmp_path / "here")
    minisagan("sample", run, "--count", 1, "-o", ".")
    assert os.listdir(tmp_path / "here") == ["00000-0.png"]


def test_a_class_has_as_much_of_its_name_in_a_files_as_this_can_hold(monkeypatch):
    assert sample._file_name("hot dog/7", 1) == "hot-dog-7" and sample._file_name("x" * 250, 1) == "x" * 200
    assert sample._file_name("x" + "犬" * 90, 1) == "x" + "犬" * 66  # of 3 bytes each
    monkeypatch.setattr(os, "fsencode", lambda name: name.encode("ascii"))
    assert sample._file_name("犬", 7) == "7"


@pytest.mark.parametrize(
    "args",
    [
        ("sample", "--count"), ("interpolate", "--latents"), ("interpolate", "--steps"), ("attention", "--count"),
        ("attention", "--metrics"), ("evaluate", "--count"),
    ],
    ids=" ".join,
)  # fmt: skip
def test_counts_beyond_all_bounds_are_refused(run, args):
    assert "1<=x<=1000000000" in refused(args[0], run, args[1], 10**21)


def test_a_class_with_a_comma_in_its_name(tmp_path):
    names = ["wet, cold", "dry", "wet"]
    assert choices.classes(" wet, cold ", names, 3) == [0] and choices.classes("wet,dry", names, 3) == [2, 1]


def test_names_in_messages_are_as_they_were_given(tmp_path):
    assert "Error: no  such   run: no such run folder" in refused("sample", "no  such   run")


@pytest.mark.parametrize("name", ["g.png", "a.npz", "made/"])
def test_samples_that_cannot_be_written(run, name, tmp_path):
    line = refused("sample", run, "--count", 1, "-o", f"absent/{name}", code=1)
    assert "absent" in line and "No such file or directory" in line
    assert "not .png, .npz" in refused("sample", run, "-o", "a.jpg")
    assert list(tmp_path.iterdir()) == []


# inspect, gradcheck, doctor


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_a_signal_while_something_is_written_leaves_nothing_of_it(run, number):
    kill = "from minisagan.look import pictures; import os; pictures.png = lambda x: os.kill(os.getpid(), {}); "
    with start("sample", run, "--count", 2, "-o", "x.png", extra=kill.format(int(number))) as child:
        child.communicate(timeout=120)
    assert child.returncode == 128 + number and list(Path().iterdir()) == []


def test_without_a_stderr_it_works_all_the_same(run):
    command = f"{shlex.quote(sys.executable)} -m minisagan sample {shlex.quote(str(run))} --count 2 -o x.png 2>&-"
    subprocess.run(command, shell=True, check=True, env=os.environ | {"PYTHONPATH": str(ROOT)}, timeout=120)
    assert Path("x.png").is_file()


def test_inspect_shows_what_is_there(run, monkeypatch):
    facts = json.loads(minisagan("inspect", run, "--json", "--tensors")[0])
    G = Generator(Architecture(width=8))
    assert facts["step"] == 3 and facts["config"]["architecture"]["width"] == 8 and facts["log"]["step"] == 1
    assert facts["parameters"]["G"] == sum(p.data.size for p in G.parameters().values())
    assert facts["checkpoints"] == {f"step-{k:08d}.safetensors": "intact" for k in (3, 2, 1)}
    assert facts["tensors"]["G.input.w"] == {"shape": [128, 16 * 32], "dtype": "float32"}
    text = minisagan("inspect", run)[0]
    assert "step        3 of 3" in text and f"{facts['parameters']['D']:,} in D" in text and "G.input.w" not in text
    assert "G.input.w  128x512  float32" in minisagan("inspect", run, "--tensors")[0]
    monkeypatch.chdir(run / "checkpoints")
    assert json.loads(minisagan("inspect", "step-00000003.safetensors", "--json")[0])["log"] == facts["log"]


def test_inspect_finds_damage_and_train_and_sample_refuse_it(run):
    file = run / "checkpoints" / "step-00000003.safetensors"
    whole = file.read_bytes()
    try:
        file.write_bytes(whole[:-1] + bytes([whole[-1] ^ 1]))
        result = CliRunner().invoke(cli, ["inspect", str(run), "--json"])
        facts = json.loads(result.stdout)
        assert result.exit_code == 3 and facts["step"] == 2
        assert facts["checkpoints"]["step-00000003.safetensors"].startswith("damaged: ")
        assert facts["checkpoints"]["step-00000002.safetensors"] == "intact"
        for args in (["sample", run], ["train", "--resume", run, "--steps", 5], ["inspect", file]):
            line = refused(*args, code=3)
            assert str(file) in line and f"an intact one, of step 2, is {run / 'checkpoints' / 'step-00000002'}" in line
        file.write_bytes(whole[:1000])
        assert "cut short" in CliRunner().invoke(cli, ["inspect", str(run)]).stdout
    finally:
        file.write_bytes(whole)


def test_inspect_takes_what_a_training_deleted_meanwhile_for_no_damage(run, tmp_path, monkeypatch):
    folder = shutil.copytree(run, tmp_path / "copy")
    load = checkpoint.load

    def slow(file):
        (folder / "checkpoints" / "step-00000001.safetensors").unlink(missing_ok=True)
        return load(file)

    monkeypatch.setattr(checkpoint, "load", slow)
    assert json.loads(minisagan("inspect", folder, "--json")[0])["checkpoints"] == {
        f"step-{k:08d}.safetensors": "intact" for k in (3, 2)
    }


@pytest.mark.parametrize(
    "name, value",
    [
        ("config", "[" * 100_000),
        ("data", "[" * 100_000),
        *(("data", {"image_size": size}) for size in (0, -4, 33, "28", 1.5, True, None)),
        *(("data", {"classes": classes}) for classes in (["a"], None, list(range(10)), "0123456789")),
        ("data", {"hashes": []}),
        *(("seconds", text) for text in ("inf", "nan", "soon")),
        *(("step", text) for text in ("-5", "1.5")),
        ("log_bytes", "-1"),
        *(("versions", text) for text in ("x", "[]", "3")),
    ],
)
def test_a_forged_checkpoint_is_refused_in_one_line(run, tmp_path, name, value):
    tensors, about = checkpoint.load(run / "checkpoints" / "step-00000003.safetensors")
    value = value if isinstance(value, str) else json.dumps(json.loads(about[name]) | value)
    checkpoint.save(forged := tmp_path / "forged.safetensors", tensors, about | {name: value})
    for command in ("sample", "inspect"):
        assert "no usable configuration in this checkpoint" in refused(command, forged, code=3)


def test_inspect_of_a_checkpoint_without_optimisers(run, tmp_path):
    tensors, about = checkpoint.load(run / "checkpoints" / "step-00000003.safetensors")
    some = {name: x for name, x in tensors.items() if not name.startswith("adam")}
    checkpoint.save(lone := tmp_path / "some.safetensors", some, about)
    assert "it lacks adam_d.m, adam_g.m" in refused("inspect", lone, code=3)


def test_a_line_of_the_log_without_a_step_is_none(run, tmp_path):
    folder = shutil.copytree(run, tmp_path / "copy")
    known = runs.read_log(folder)
    with open(folder / "log.jsonl", "a") as log:
        log.write('{"frechet": 3}\n{"step": true}\n{"step": 2.5}\n{"step": 9, "seconds": Infinity}\n')
    assert runs.read_log(folder) == known and "no evaluated checkpoint" in refused("sample", folder / "best")


def test_a_checkpoint_of_no_run(tmp_path):
    checkpoint.save(tmp_path / "a.safetensors", {"w": np.zeros(3)}, {"step": "1"})
    for args in (["inspect"], ["sample"], ["train", "--resume"]):
        assert "not a checkpoint of a run, it lacks config" in refused(*args, tmp_path / "a.safetensors", code=3)


def test_gradcheck_has_a_row_for_each_case():
    lines = minisagan("gradcheck", "--op", "matmul")[0].splitlines()
    count = sum(1 + case.linear for case in selfcheck.cases("matmul"))
    assert len(lines) == count + 2 and lines[-1] == f"all {count} checks passed"
    assert re.fullmatch(r"PASS  matmul: matrices +every element +\d\.\de-\d+ +1e-08 +\d+\.\d\d  3x5 5x2", lines[1])
    assert "adjoint" in lines[2] and "1e-12" in lines[2]


def test_a_wrong_gradient_is_exit_code_5_and_names_the_element(monkeypatch):
    def wrong(draw):
        def square(x):
            return Tensor(x.data**2, (x,), lambda g, needs: (g * x.data * np.where(np.arange(4) == 2, 2.02, 2),))

        yield Case("one element off by 1 %", square, (np.array([1.0, 2, 3, 4]),))

    monkeypatch.setattr(selfcheck, "CASES", {"wrong": wrong, "relu": selfcheck.CASES["relu"]})
    text, _ = minisagan("gradcheck", code=5)
    assert re.search(r"^FAIL  wrong: one element off by 1 % ", text, re.M) and "\nPASS  relu" in text
    _, analytic, numeric = re.search(r"(dx\[2\]) is (\S+) and should be (\S+)", text).groups()
    assert float(analytic) == pytest.approx(1.01 * float(numeric), rel=1e-6)
    assert "again: minisagan gradcheck --op wrong" in text
    result = CliRunner().invoke(cli, ["gradcheck", "--json"])
    found = json.loads(result.stdout, parse_constant=pytest.fail)
    assert result.exit_code == 5 and [row["passed"] for row in found][:2] == [False, True]
    assert found[0]["error"] == pytest.approx(0.01 / 1.01, rel=1e-4) and "again: " in result.stderr
    minisagan("gradcheck", "--op", "relu")


def test_doctor(tmp_path, monkeypatch):
    monkeypatch.setattr(hardware, "gpus", lambda: ["Tesla T4"])
    file = tmp_path / "data" / "kmnist" / "train-images-idx3-ubyte.gz"
    file.parent.mkdir(parents=True)
    file.touch()
    text = minisagan("doctor")[0]
    for name, value in {"numpy": np.__version__, "GPU": "1: Tesla T4; ", "data folder": f"{tmp_path / 'data'}\n",
                        "  kmnist": f"{file}\n", "  mnist": "not there", "  drawn-digits": "needs no file"}.items():
        assert re.search(rf"^{name} +{re.escape(value)}", text, re.M), name
    assert re.search(r"^self-test +attend: \d+ checks, 0 failed, largest error \d\.\de-(09|1\d)", text, re.M)
