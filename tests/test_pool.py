"""Pictures are decoded on all cores, whatever becomes of the processes that do it."""

import multiprocessing
import os
import signal
import sys
import time
from itertools import islice

import pytest
from command_line import start
from PIL import Image

from minisagan import cpu
from minisagan.data import decode, pool

forks = pytest.mark.skipif(sys.platform != "linux", reason="no forks here")
NAMES = [f"{k:03}" for k in range(200)]
WANTED = [(name.encode(), name) for name in NAMES]


@pytest.fixture
def decoder(monkeypatch):
    """decoder(f): f(path) is called for each picture, in the fork that has it, and "decoded" into its name."""
    assert cpu.threads() == 2

    def replaced(f):
        monkeypatch.setattr(decode, "decode", lambda path, *how: f(path) or (path.encode(), path))

    return replaced


def test_all_in_order_by_several_processes(decoder, tmp_path):
    decoder(lambda path: (tmp_path / str(os.getpid())).touch())
    assert list(pool.decoded(NAMES, 8)) == WANTED
    workers = {int(path.name) for path in tmp_path.iterdir()}
    if sys.platform == "linux":
        assert len(workers) == 2 and os.getpid() not in workers


def test_nothing_at_all():
    assert list(pool.decoded([], 8)) == []


@pytest.mark.parametrize("failing", ["Lock", "fork"])
def test_threads_where_no_process_can_be_made(decoder, monkeypatch, failing):
    def refuse(*_):
        raise OSError(38, "Function not implemented")

    decoder(lambda path: None)
    monkeypatch.setattr(multiprocessing if failing == "Lock" else os, failing, refuse)
    assert list(pool.decoded(NAMES, 8)) == WANTED


@forks
def test_a_killed_process_takes_nothing_with_it(decoder, tmp_path):
    def kill_once(path):
        if path == "100" and not (tmp_path / "done").exists():
            (tmp_path / "done").touch()
            os.kill(os.getpid(), signal.SIGKILL)

    decoder(kill_once)
    assert list(pool.decoded(NAMES, 8)) == WANTED


@forks
def test_a_picture_that_kills_its_decoder_is_named(decoder):
    bad = "007", "100", "199"
    decoder(lambda path: os.kill(os.getpid(), signal.SIGKILL) if path in bad else None)
    found = list(pool.decoded(NAMES, 8))
    assert [name for name, result in zip(NAMES, found, strict=True) if result == (None, pool.KILLED)] == [*bad]
    assert [result for result in found if result[0]] == [each for each in WANTED if each[1] not in bad]


@forks
def test_what_is_decoded_ahead_is_bounded(decoder, tmp_path):
    decoder(lambda path: ((tmp_path / path).touch(), (bytes(192), path))[1])
    names = [f"{k:05}" for k in range(5000)]
    before = children(os.getpid())  # what other tests have left to this process
    results = pool.decoded(names, 8)
    assert len(list(islice(results, 500))) == 500
    time.sleep(0.3)  # while nobody takes anything
    assert 500 <= len(list(tmp_path.iterdir())) < 4000  # a pipe has 64 KiB
    results.close()
    assert set(children(os.getpid())) <= set(before)


@forks
def test_large_pictures_one_at_a_time(decoder, tmp_path):
    def large(path):
        with decode.large_pictures:
            if (tmp_path / "busy").exists():
                (tmp_path / "two at once").touch()
            (tmp_path / "busy").touch()
            time.sleep(0.01)
            (tmp_path / "busy").unlink(missing_ok=True)

    decoder(large)
    assert list(pool.decoded(NAMES[:40], 64)) == WANTED[:40] and list(tmp_path.iterdir()) == []


# --- by the command line ------------------------------------------------------------------------------------

SLOW = (
    "from minisagan.data import decode, pixels; pixels.CHUNK, quick = 4, decode.decode; "
    "decode.decode = lambda *args: time.sleep(0.1) or quick(*args); "
)


def children(pid):
    with open(f"/proc/{pid}/task/{pid}/children") as file:
        return [int(child) for child in file.read().split()]


def lives(pid):
    try:
        with open(f"/proc/{pid}/stat") as file:
            return file.read().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False


@pytest.mark.skipif(not os.path.exists(f"/proc/self/task/{os.getpid()}/children"), reason="no /proc with children")
@pytest.mark.parametrize("name, code", [("SIGINT", 130), ("SIGTERM", 143), ("SIGHUP", 129), ("SIGKILL", -9)])
@pytest.mark.parametrize("group", [False, True])  # the terminal sends Ctrl-C to all
def test_no_process_is_left_and_what_is_decoded_stays(tmp_path, name, code, group):
    (tmp_path / "set").mkdir()
    for k in range(100):
        Image.new("RGB", (8, 8), (k, 0, 0)).save(tmp_path / "set" / f"{k}.png")
    cache = tmp_path / "data" / "folder-cache"
    args = "train", "--dataset", tmp_path / "set", "--data-dir", tmp_path / "data", "--out", tmp_path / "run"
    with start(*args, "--threads", 2, extra=SLOW, start_new_session=True) as child:
        while not any(path.read_text().count("\n") > 2 for path in cache.glob("*.journal")):
            time.sleep(0.02)
            assert child.poll() is None, child.stderr.read()
        workers = children(child.pid)
        (os.killpg if group else os.kill)(child.pid, getattr(signal, name))
        _, stderr = child.communicate(timeout=20)
        assert child.returncode == code
        assert stderr.decode().strip() == ("Error: interrupted" if code == 130 else "")
    end = time.monotonic() + 10
    while any(map(lives, workers)):
        assert time.monotonic() < end, "a process outlived the first"
        time.sleep(0.02)
    assert len(workers) == 2 and sorted(path.suffix for path in cache.iterdir()) == [".journal", ".part"]
    assert not (tmp_path / "run").exists()
