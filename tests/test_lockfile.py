"""The run folder's lock, between processes."""

import errno
import os
import signal
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest

from minisagan import files
from minisagan.errors import Fault
from minisagan.run.lockfile import locked

pytest.importorskip("fcntl")

HOLD = """
import sys
from minisagan.run.lockfile import locked
with locked(sys.argv[1]):
    print("locked", flush=True)
    sys.stdin.read()
"""


@contextmanager
def another_process(folder):
    command = [sys.executable, "-c", HOLD, str(folder)]
    root = Path(__file__).parent.parent
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, cwd=root) as child:
        assert child.stdout.readline() == b"locked\n"
        yield child
        child.stdin.close()


def test_the_second_process_is_refused_with_the_pid_of_the_first(tmp_path):
    with another_process(tmp_path) as child:
        with pytest.raises(Fault, match=f"in use by process {child.pid}; ") as caught, locked(tmp_path):
            pytest.fail("both hold the lock")
        assert str(tmp_path) in str(caught.value) and caught.value.exit_code == 1
        assert (tmp_path / "lock").read_text() == f"{child.pid}\n"  # the refused one left it alone
    with locked(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_killed_process_leaves_no_stale_lock(tmp_path):
    with another_process(tmp_path) as child:
        child.send_signal(signal.SIGKILL)
        child.wait()
        assert (tmp_path / "lock").read_text() == f"{child.pid}\n"
        with locked(tmp_path):
            assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_an_old_lock_file_of_any_content_does_not_block(tmp_path):
    (tmp_path / "lock").write_bytes(b"\xff" * 100)
    with locked(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_the_lock_ends_with_the_block_also_after_an_error(tmp_path):
    with pytest.raises(OSError, match="mine"), locked(tmp_path):  # an OSError of the body is not the lock's
        raise OSError("mine")
    with locked(tmp_path), pytest.raises(Fault, match=f"process {os.getpid()}"), locked(tmp_path):
        pytest.fail("locked twice")
    with locked(tmp_path):
        pass


def test_two_folders_have_two_locks(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    with locked(tmp_path / "a"), locked(tmp_path / "b"):
        pass


def test_a_folder_that_cannot_hold_a_lock_is_a_fault(tmp_path, monkeypatch):
    with pytest.raises(Fault, match="cannot lock this run folder: No such"), locked(tmp_path / "missing"):
        pass

    def write(*_):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "write", write)
    with pytest.raises(Fault, match="No space left on device"), locked(tmp_path):
        pass


@pytest.mark.parametrize("code", [errno.ENOSYS, errno.ENOLCK, errno.ENOTSUP])
def test_a_file_system_without_locks_runs_unprotected(tmp_path, monkeypatch, code):
    def flock(*_):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(files.fcntl, "flock", flock)
    with locked(tmp_path):
        assert (tmp_path / "lock").read_text() == f"{os.getpid()}\n"


def test_a_system_without_flock_runs_unprotected(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "fcntl", None)
    with locked(tmp_path), locked(tmp_path):
        pass
