"""How the tests call the command line, and the small runs that they look at."""

import os
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest
from click.testing import CliRunner

from minisagan import cpu, data
from minisagan.commands import cli

ROOT = Path(__file__).parent.parent
SMALL = ("--batch-size", "8", "--width", "8", "--threads", "1")
FEW = {"train": (64, 0), "test": (32, 1)}
PROGRAM = (
    f"import time; from minisagan import data; from minisagan.run import loop; data.DRAWN = {FEW}; "
    "from minisagan.commands import cli; "
)


def minisagan(*args, code=0):
    """Run a command line in this process; returns its stdout and stderr."""
    threads = cpu.threads()
    result = CliRunner().invoke(cli, [str(arg) for arg in args])
    cpu.set_threads(threads)
    assert result.exit_code == code, result.output
    assert "Traceback" not in result.stderr
    return result.stdout, result.stderr


def refused(*args, code=2):
    """Run one that fails; returns its one line."""
    stdout, stderr = minisagan(*args, code=code)
    assert stdout == "" and stderr.startswith("Error: ") and stderr.count("\n") == 1 and stderr.endswith("\n"), stderr
    return stderr


@contextmanager
def start(*args, extra="", **kwargs):
    """Another process, which doesn't outlive the `with`; `extra`: statements that it runs first."""
    env = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", PROGRAM + extra + "cli()", *map(str, args)]
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | kwargs
    with subprocess.Popen(command, env=env, **streams) as child:
        try:
            yield child
        finally:
            child.kill()


@pytest.fixture
def apart(tmp_path, monkeypatch):
    """A folder of its own for each test, few digits to draw, no options from the environment."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(data, "DRAWN", FEW)
    for name in [name for name in os.environ if name.startswith("MINISAGAN")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("MINISAGAN_DATA", str(tmp_path / "data"))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 3 steps."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "DRAWN", FEW)
        minisagan("train", *SMALL, "--steps", 3, "--checkpoint-every", 1, "--out", folder)
    return folder


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """A folder of 12 images in two classes, and an unconditional run on them."""
    root = tmp_path_factory.mktemp("photos")
    images = np.random.RandomState(0).randint(0, 256, (12, 32, 32, 3)).astype(np.uint8)
    for i, image in enumerate(images):
        path = root / "pets" / ("cat", "hot dog")[i % 2] / f"{i}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        iio.imwrite(path, image)
    minisagan("train", "--dataset", root / "pets", "--data-dir", root / "data", "--size", 32, *SMALL, "--steps", 1,
              "--unconditional", "--out", root / "run")
    return root
