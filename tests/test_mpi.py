"""Ranks that mpiexec started: the bits of one process, one writer, and an end of all when one can't go on."""

import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import command_line
import numpy as np
import pytest
from command_line import PROGRAM, minisagan
from ranks import CONFIG, DATA, ENVIRONMENT, MPIEXEC, PACKS, digest, looked, ranks, script, trained

from minisagan import launcher, team
from minisagan.errors import UsageError
from minisagan.train import Training

apart = command_line.apart  # a fixture
needs_mpiexec = pytest.mark.skipif(not MPIEXEC.exists(), reason="no mpiexec beside Python: pip install mpich mpi4py")
pytestmark = [needs_mpiexec, pytest.mark.usefixtures("apart")]
FEW = PROGRAM + "cli()"  # `minisagan` with few digits to draw
TINY = ("--width", "4", "--attention", "8", "--batch-size", "32", "--sample-every", "0", "--fall", "0")


def tensors(run, step):
    """The bytes of a checkpoint's tensors."""
    whole = (run / "checkpoints" / f"step-{step:08}.safetensors").read_bytes()
    return whole[8 + int.from_bytes(whole[:8], "little") :]


@pytest.fixture(scope="module")
def alone():
    return [trained(CONFIG, 20), trained(PACKS, 2)]


@pytest.mark.parametrize("count", [2, 4, 8])
def test_forks_and_ranks_end_in_the_bits_of_one_process(tmp_path, count, alone):
    first = "print(trained(CONFIG, 20, None))"
    if count < 8:  # four parts are for at most four processes
        first += "\nprint(trained(PACKS, 2, None))"
    done = ranks(count, script(tmp_path, first))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == alone[: 1 if count == 8 else 2]
    if sys.platform == "linux":
        assert trained(CONFIG, 20, count) == alone[0]


def test_another_number_of_parts_is_another_order_of_additions_of_the_same_numbers():
    runs = [Training(replace(CONFIG, parts=parts), DATA) for parts in (1, 8, 16)]
    losses = [np.array(list(training.advance().values())) for training in runs]
    for other in losses[1:]:
        np.testing.assert_allclose(other, losses[0], rtol=1e-5)
    assert len({digest(training) for training in runs}) == 3


def test_a_run_of_ranks_goes_on_in_one_process_and_back_and_all_ranks_draw_its_images(tmp_path):
    new = *TINY, "--batch-size", 64, "--accumulate", 2
    done = ranks(2, "-c", FEW, "train", *new, "--steps", 1, "--out", "run")
    assert done.returncode == 0 and "processes: 2" in done.stderr, done.stderr
    assert done.stdout.count("all 1 steps are done") == done.stderr.count("processes: 2") == 1
    minisagan("train", "--resume", "run", "--steps", 2, "--threads", 1)
    done = ranks(4, "-c", FEW, "train", "--resume", "run", "--steps", 3)
    assert done.returncode == 0 and "processes: 4" in done.stderr, done.stderr
    minisagan("train", *new, "--steps", 3, "--out", "whole", "--threads", 1)
    assert tensors(tmp_path / "run", 3) == tensors(tmp_path / "whole", 3)

    done = ranks(2, "-c", FEW, "sample", "run", "--count", 20, "-o", "two.npz")
    assert done.returncode == 0, done.stderr
    minisagan("sample", "run", "--count", 20, "-o", "one.npz")
    one, two = np.load("one.npz"), np.load("two.npz")
    assert one["images"].std() > 1
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])


def test_all_ranks_look_at_images_and_find_what_one_finds(tmp_path):
    done = ranks(2, script(tmp_path, "print(looked())"))
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == [looked()]


def test_what_ranks_can_not_share_is_one_line_and_leaves_no_run(tmp_path, monkeypatch):
    done = ranks(3, "-c", FEW, "train", *TINY, "--out", "run")
    message = "3 processes: must divide the 8 parts (--parts) and the 16 packs in a batch"
    assert done.returncode == 2 and done.stderr.splitlines()[0] == f"Error: {message}", done.stderr
    assert not (tmp_path / "run").exists()
    monkeypatch.setattr(team, "launched", lambda: (0, 4))
    with pytest.raises(UsageError, match="4 processes need 16 images each: --batch-size 64 or more"):
        team.size(None, replace(PACKS, batch_size=32), gpu=False)


SPOILED = """
    from minisagan import data
    data.DRAWN = {"train": (64, 0)}
    load, batch, version = data.load, data.batch, mpi.__version__

    def other_version():
        mpi.__version__ = "0.1"

    def other_data():
        mpi.__version__, data.load = version, lambda *given: replace(load(*given), hashes={"x": 1})

    def no_data():
        data.load = lambda *given: load("/nowhere")

    def nan():
        data.batch = lambda *given: (float("nan") * batch(*given)[0], batch(*given)[1])

    def no_memory(rank, world):
        if rank == 1:
            raise MemoryError("no room")
"""
FIRST = """
    dataset = load("drawn-digits")
    for spoil in other_version, other_data, no_data:
        mpi.call(spoil)
        try:
            Training(CONFIG, dataset, processes=None)
        except Fault as error:
            print(error, flush=True)
    training = opened(processes=None)
    training.advance()
    mpi.call(nan)
    for _ in range(2):
        try:
            training.advance(2)
        except Fault as error:
            print(error, flush=True)
    mpi.spread(no_memory)
"""


def test_what_is_wrong_on_a_rank_is_one_line_that_names_it(tmp_path):
    """Refused before the first step, a NaN in a step, and, which ends all, an error in what it was told to do."""
    done = ranks(2, script(tmp_path, FIRST, SPOILED))
    version, data, none, *nan = done.stdout.splitlines()
    assert re.match(r"rank 1 on \S+: another version of minisagan than rank 0 has: 0.1, not ", version)
    assert re.match(r"rank 1 on \S+: another data than rank 0 has: {'x': 1}, not ", data)
    assert re.match(r"rank 1 on \S+: UsageError: /nowhere: neither a data set", none)
    assert re.match(r"step 2: a loss is not finite, first on rank 1 on \S+; first tensor .* infinity: G\.", nan[0])
    assert nan[1].startswith("step 4: a loss is not finite on all ranks; first tensor")
    assert done.returncode != 0 and len(nan) == 2
    assert re.match(r"Error: rank 1 on \S+: MemoryError: no room\n", done.stderr), done.stderr


def test_rank_0_without_memory_names_itself_and_ends_all(tmp_path):
    full = """
def steps(self, count, step):
    if step and not self.team.rank:
        raise MemoryError("no room")
    return plain(self, count, step)
from minisagan.train import Training
plain, Training.make_steps = Training.make_steps, steps
"""
    done = ranks(2, "-c", full + FEW, "train", *TINY, "--steps", 3, "--out", "run")
    assert done.returncode == 1
    (line,) = (line for line in done.stderr.splitlines() if line.startswith("Error"))
    assert re.fullmatch(r"Error: rank 0 on \S+: not enough memory for this size, width or batch: no room", line)


@pytest.mark.parametrize("rank", [0, 1])
def test_a_rank_that_is_killed_is_named_and_ends_all_and_leaves_whole_checkpoints(rank):
    with started() as mpiexec:
        os.kill(pid_of(mpiexec, rank), signal.SIGKILL)
        _, err = mpiexec.communicate(timeout=60)
        assert mpiexec.returncode != 0
    ours = [line for line in err.splitlines() if line.startswith("Error:")]
    assert len(ours) == 1 and re.fullmatch(rf"Error: rank {rank} on \S+ was killed by SIGKILL.*", ours[0]), err
    minisagan("inspect", "run")
    step = max(int(path.stem.removeprefix("step-")) for path in Path("run/checkpoints").glob("*.safetensors"))
    minisagan("train", "--resume", "run", "--steps", step + 1)


SLOWLY_NAMED = """
import os, signal, subprocess, time
import numpy as np
from minisagan import launcher
from minisagan.processes import mpi
launcher.guard()
world = mpi.comm()
other = world.bcast(os.getpid())
if world.rank:
    time.sleep(0.5)  # rank 0 waits for this one's numbers meanwhile
    os.kill(other, signal.SIGSTOP)
    death = "sleep 0.5; kill -STOP $0; kill -KILL $1; kill -CONT $2; sleep 1; kill -CONT $0"
    subprocess.Popen(["sh", "-c", death, *map(str, (os.getppid(), os.getpid(), other))])
world.Allgather(np.ones(10_000), np.empty(20_000))
"""


@pytest.mark.skipif(sys.platform != "linux", reason="nobody waits for a rank to name it")
def test_a_killed_rank_is_named_though_another_reads_its_numbers_first(tmp_path):
    (tmp_path / "script.py").write_text(SLOWLY_NAMED)
    done = ranks(2, tmp_path / "script.py", timeout=60)
    assert done.returncode != 0
    assert re.match(r"Error: rank 1 on \S+ was killed by SIGKILL", done.stderr), done.stderr


@pytest.mark.skipif(MPIEXEC.with_name("ompi_info").exists(), reason="Open MPI's mpiexec kills all ranks at once")
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_a_signal_to_mpiexec_saves_first(number, code):
    with started() as mpiexec:
        mpiexec.send_signal(number)
        _, err = mpiexec.communicate(timeout=60)
        assert mpiexec.returncode == code and "Error" not in err, err
    assert Path("run/log.jsonl").read_text()
    assert max(path.name for path in Path("run/checkpoints").iterdir()) > "step-00000000.safetensors"


WAITING = """
import pathlib, sys, time
import minisagan.sampling
from minisagan.processes import mpi
from minisagan.run import folder

def wait(*_):
    mpi.comm()  # which waits for the other rank, whose signals are rank 0's affair from then on
    pathlib.Path("here").touch()
    time.sleep(60)

def load(run):
    return mpi.spread(slow) if sys.argv.pop() == "spread" else wait()

def slow(rank, world):
    return wait() if rank == 0 else None

folder.load_generator = load
from minisagan.commands import cli
cli(["sample", "nowhere"])
"""


@pytest.mark.skipif(MPIEXEC.with_name("ompi_info").exists(), reason="Open MPI's mpiexec kills all ranks at once")
@pytest.mark.parametrize("number, code", [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
@pytest.mark.parametrize("where", ["alone", "spread"])
def test_a_signal_ends_all_ranks_of_any_command(tmp_path, number, code, where):
    """Whether the others wait for something to do, or for rank 0's part of what all do."""
    (tmp_path / "script.py").write_text(WAITING)
    command = [MPIEXEC, "-n", "2", sys.executable, tmp_path / "script.py", where]
    mpiexec = subprocess.Popen(command, env=ENVIRONMENT, stderr=subprocess.PIPE, text=True, cwd=tmp_path)
    try:
        end = time.monotonic() + 60
        while not (tmp_path / "here").exists():
            assert time.monotonic() < end and mpiexec.poll() is None
            time.sleep(0.05)
        mpiexec.send_signal(number)
        mpiexec.communicate(timeout=20)
    finally:
        mpiexec.kill()
    assert mpiexec.returncode == code


class started:
    """Inside, an mpiexec of two ranks that has written its first line of the log; none of them is left outside."""

    def __enter__(self):
        train = "train", *TINY, "--steps", "10000", "--checkpoint-every", "5", "--out", "run"
        self.process = subprocess.Popen(
            [MPIEXEC, "-n", "2", sys.executable, "-c", FEW, *train],
            env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip
        log, end = Path("run/log.jsonl"), time.monotonic() + 100
        while not (log.exists() and log.read_text()):
            assert time.monotonic() < end and self.process.poll() is None
            time.sleep(0.05)
        self.pids = [pid_of(self.process, rank) for rank in (0, 1)]
        return self.process

    def __exit__(self, *raised):
        self.process.kill()
        self.process.wait()
        end = time.monotonic() + 10
        while any(Path(f"/proc/{pid}").exists() for pid in self.pids) and time.monotonic() < end:
            time.sleep(0.05)
        assert not any(Path(f"/proc/{pid}").exists() for pid in self.pids)


def pid_of(mpiexec, rank):
    """The process of this rank: the child of one that waits for it, and that mpiexec or a helper of its started."""
    found = {}  # pid: (parent, whether it was given this rank)
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            parent = int((path.parent / "stat").read_text().rsplit(")")[-1].split()[1])
            variables = path.read_bytes().split(b"\0")
        except OSError:
            continue  # it has ended meanwhile, or is another user's
        given = any(f"{name}={rank}".encode() in variables for name, _ in launcher.LAUNCHERS)
        found[int(path.parent.name)] = parent, given
    for pid, (parent, given) in found.items():
        if given and found.get(parent, (0, False))[1]:
            while parent in found and parent != mpiexec.pid:
                parent = found[parent][0]
            if parent == mpiexec.pid:
                return pid
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
    path = os.pathsep.join([str(tmp_path), ENVIRONMENT["PYTHONPATH"]])
    environment = ENVIRONMENT | {"PYTHONPATH": path}
    done = ranks(2, "-c", FEW, "train", *TINY, "--steps", 1, "--out", "run", env=environment)
    assert done.returncode == 1 and not (tmp_path / "run").exists()
    line = "Error: started by an MPI launcher, but without mpi4py: No module named mpi4py; pip install 'minisagan[mpi]'"
    assert done.stderr.splitlines().count(line) in (1, 2), done.stderr  # Open MPI ends the others at once
