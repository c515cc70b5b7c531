"""Ranks that mpiexec started: the bits of one process, one writer, and an end of all when one can't go on."""

import hashlib
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from minisagan import launcher, parity
from minisagan.config import Architecture, Config
from minisagan.train import Training

MPIEXEC = Path(sys.executable).with_name("mpiexec")
pytestmark = pytest.mark.skipif(not MPIEXEC.exists(), reason="no mpiexec beside Python: pip install mpich mpi4py")
ENVIRONMENT = os.environ | {"OPENBLAS_NUM_THREADS": "1"}
TINY = ("--width", "8", "--batch-size", "32", "--sample-every", "0", "--fall", "0")
CONFIG = Config(batch_size=32, flip=True, architecture=Architecture(width=8, classes=3))
SCRIPT = """
import sys
from minisagan.errors import Fault
from minisagan.launcher import launched
from minisagan.processes import mpi
{head}
def first():
{first}
if launched()[0]:
    sys.exit(mpi.serve())
code = 0
try:
    first()
except Fault as error:
    print("refused:", error)
    code = error.exit_code
mpi.end(code)
sys.exit(code)
"""


def ranks(count, *command, **options):
    """The finished mpiexec of so many processes."""
    options = {"capture_output": True, "text": True, "timeout": 200, "env": ENVIRONMENT} | options
    return subprocess.run([MPIEXEC, "-n", str(count), sys.executable, *command], **options)


def scripted(tmp_path, count, first, head):
    """A script on so many ranks: all do `head`, then rank 0 does `first`, and the others what it tells them to."""
    first = textwrap.indent(textwrap.dedent(first), "    ")
    (tmp_path / "script.py").write_text(SCRIPT.format(head=textwrap.dedent(head), first=first))
    return ranks(count, tmp_path / "script.py")


def minisagan(count, *arguments, **options):
    return ranks(count, "-m", "minisagan", *map(str, arguments), **options)


def alone(*arguments, **options):
    command = [sys.executable, "-m", "minisagan", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=200, env=ENVIRONMENT, **options)


def digest(training):
    return hashlib.sha256(b"".join(x.tobytes() for x in training.state().values())).hexdigest()


def tensors(run, step):
    """The bytes of a checkpoint's tensors."""
    whole = (run / "checkpoints" / f"step-{step:08}.safetensors").read_bytes()
    return whole[8 + int.from_bytes(whole[:8], "little") :]


@pytest.mark.parametrize("count", [1, 2, 4])
@pytest.mark.parametrize("more", [{}, {"d_steps": 2, "pack": 2, "parts": 4}], ids=["plain", "packs, four parts"])
def test_ranks_have_the_bits_of_one_process(tmp_path, count, more):
    config = replace(CONFIG, **{name: value for name, value in more.items() if name != "pack"})
    config = replace(config, architecture=replace(config.architecture, pack=more.get("pack", 1)))
    training = Training(config, parity.noise(config, 100))
    losses = [training.advance(2), training.advance()]
    first = f"""
        from minisagan import parity
        from minisagan.config import Config
        from minisagan.train import Training
        from test_mpi import digest
        config = Config.from_dict({config.to_dict()})
        training = Training(config, parity.noise(config, 100), processes=None)
        assert training.processes == {count}
        print([training.advance(2), training.advance()])
        print(digest(training))
    """
    head = f"sys.path.insert(0, {str(Path(__file__).parent)!r})"
    if count == 1:
        head += "\nfrom minisagan import cpu\ncpu.set_threads(1)"  # else as many forks as there are cores
    done = scripted(tmp_path, count, first, head)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [str(losses), digest(training)]


def test_another_number_of_parts_is_another_order_of_additions_of_the_same_numbers():
    runs = [Training(replace(CONFIG, parts=parts), parity.noise(CONFIG, 100)) for parts in (1, 8, 16)]
    losses = [np.array(list(training.advance().values())) for training in runs]
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], rtol=1e-5)
    assert len({digest(training) for training in runs}) == 3


def test_a_run_begun_by_ranks_goes_on_in_one_process_and_back(tmp_path):
    done = minisagan(2, "train", *TINY, "--steps", 2, "--out", tmp_path / "run")
    assert done.returncode == 0 and "processes: 2" in done.stderr, done.stderr
    assert done.stdout.count("all 2 steps are done") == done.stderr.count("processes: 2") == 1
    assert alone("train", "--resume", tmp_path / "run", "--steps", 3, "--threads", 1).returncode == 0
    done = minisagan(4, "train", "--resume", tmp_path / "run", "--steps", 5)
    assert done.returncode == 0 and "processes: 4" in done.stderr, done.stderr
    assert alone("train", *TINY, "--steps", 5, "--out", tmp_path / "whole", "--threads", 1).returncode == 0
    assert tensors(tmp_path / "run", 5) == tensors(tmp_path / "whole", 5)


def test_all_ranks_draw_the_images_that_one_draws(tmp_path):
    assert alone("train", *TINY, "--steps", 1, "--out", tmp_path / "run").returncode == 0
    done = minisagan(2, "sample", tmp_path / "run", "--count", 40, "-o", tmp_path / "two.npz")
    assert done.returncode == 0, done.stderr
    assert alone("sample", tmp_path / "run", "--count", 40, "-o", tmp_path / "one.npz").returncode == 0
    one, two = np.load(tmp_path / "one.npz"), np.load(tmp_path / "two.npz")
    assert one["images"].std() > 1
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


def test_what_ranks_can_not_share_is_one_line_and_leaves_no_run(tmp_path):
    for count, options, message in (
        (3, (), "3 processes: must divide the 8 parts (--parts) and a batch of 16"),
        (4, ("--batch-size", 16), "4 processes need 8 images each: --batch-size 32 or more"),
    ):
        done = minisagan(count, "train", *TINY, *options, "--out", tmp_path / "run")
        assert done.returncode == 2 and done.stderr.splitlines()[0] == f"Error: {message}", done.stderr
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "every, message",
    [
        ("mpi.__version__ = '0.1'", "another version of minisagan than rank 0 has: 0.1, not "),
        ("data.load = lambda *a: replace(load(*a), hashes={'x': 1})", "another data than rank 0 has: {'x': 1}, not"),
        ("data.load = lambda *a: load('/nowhere')", "UsageError: /nowhere: neither a data set"),
    ],
    ids=["version", "data", "no data"],
)  # fmt: skip
def test_ranks_that_differ_are_refused_by_name_before_the_first_step(tmp_path, every, message):
    first = """
        from minisagan.config import recipe
        from minisagan.train import Training
        dataset = load("drawn-digits")
        Training(recipe(dataset), dataset, processes=None)
        print("not refused")
    """
    head = "from dataclasses import replace\nfrom minisagan import data\nload = data.load\n"
    done = scripted(tmp_path, 2, first, head + f"if launched()[0] == 1: {every}")
    assert re.match(rf"refused: rank 1 on \S+: {re.escape(message)}", done.stdout), (done.stdout, done.stderr)
    assert done.returncode == 3


def test_an_error_on_a_rank_is_one_line_that_names_it_and_ends_all(tmp_path):
    head = """
        def boom(rank, world):
            if rank == 1:
                raise MemoryError("no room")
    """
    done = scripted(tmp_path, 2, "mpi.spread(boom)", head)
    assert done.returncode != 0
    assert re.match(r"Error: rank 1 on \S+: MemoryError: no room\n", done.stderr), done.stderr


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_ends_all_and_leaves_whole_checkpoints(tmp_path, rank):
    with started(tmp_path) as mpiexec:
        victim = pid_of(mpiexec, rank)
        os.kill(victim, signal.SIGKILL)
        assert mpiexec.wait(20) != 0
    assert alone("inspect", tmp_path / "run").returncode == 0
    assert alone("train", "--resume", tmp_path / "run", "--steps", 3).returncode in (0, 2)  # 2: it is further already


@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_mpiexec_saves_first(tmp_path, number, code):
    with started(tmp_path) as mpiexec:
        mpiexec.send_signal(number)
        assert mpiexec.wait(60) == code
    log = (tmp_path / "run" / "log.jsonl").read_text().splitlines()
    newest = max(path.name for path in (tmp_path / "run" / "checkpoints").iterdir())
    assert len(log) >= 1 and newest > "step-00000000.safetensors"


class started:
    """Inside, an mpiexec of two ranks that has written its first line of the log; none of them is left outside."""

    def __init__(self, tmp_path):
        self.run = tmp_path / "run"

    def __enter__(self):
        train = "train", *TINY, "--steps", "600", "--checkpoint-every", "1", "--out", str(self.run)
        self.process = subprocess.Popen(
            [MPIEXEC, "-n", "2", sys.executable, "-m", "minisagan", *train],
            env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        log, end = self.run / "log.jsonl", time.monotonic() + 100
        while not (log.exists() and log.read_text()):
            assert time.monotonic() < end and self.process.poll() is None
            time.sleep(0.05)
        self.pids = [pid_of(self.process, rank) for rank in (0, 1)]
        return self.process

    def __exit__(self, *raised):
        self.process.kill()
        self.process.communicate()
        end = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in self.pids) and time.monotonic() < end:
            time.sleep(0.05)
        assert not any(Path(f"/proc/{pid}").exists() for pid in self.pids)


def pid_of(mpiexec, rank):
    """The process of this rank: a grandchild of mpiexec's."""
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            variables = path.read_bytes().split(b"\0")
            parent = int((path.parent / "stat").read_text().rsplit(")")[-1].split()[1])
            grandparent = int(Path(f"/proc/{parent}/stat").read_text().rsplit(")")[-1].split()[1])
        except OSError:
            continue  # it has ended meanwhile, or is another user's
        if grandparent == mpiexec.pid and f"PMI_RANK={rank}".encode() in variables:
            return int(path.parent.name)
    raise AssertionError(f"no rank {rank}")


def test_a_launcher_is_known_by_its_environment_alone(monkeypatch):
    for names in launcher.LAUNCHERS:
        for name in names:
            monkeypatch.delenv(name, raising=False)
    assert launcher.launched() == (0, 1)
    for rank, world in launcher.LAUNCHERS:
        with monkeypatch.context() as patch:
            patch.setenv(rank, "3")
            assert launcher.launched() == (0, 1)
            patch.setenv(world, "8")
            assert launcher.launched() == (3, 8)


def test_without_a_launcher_nobody_notices_mpi():
    check = "import minisagan.train, minisagan.commands, sys; sys.exit('mpi4py' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", check]).returncode == 0


def test_without_mpi4py_each_rank_says_what_to_install(tmp_path):
    (tmp_path / "mpi4py").mkdir()
    (tmp_path / "mpi4py" / "__init__.py").write_text("raise ImportError('No module named mpi4py')")
    path = os.pathsep.join([str(tmp_path), os.environ.get("PYTHONPATH", "")])
    done = minisagan(2, "train", *TINY, "--steps", 1, "--out", tmp_path / "run", env=ENVIRONMENT | {"PYTHONPATH": path})
    assert done.returncode == 1 and not (tmp_path / "run").exists()
    line = "Error: started by an MPI launcher, but without mpi4py: No module named mpi4py; pip install 'minisagan[mpi]'"
    assert done.stderr.splitlines().count(line) == 2, done.stderr
