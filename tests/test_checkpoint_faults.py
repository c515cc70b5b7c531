"""What a checkpoint survives: failing disks, kill -9, damage, and files made to deceive."""

import errno
import json
import os
import pickle
import random
import resource
import signal
import stat
import subprocess
import sys
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from checkpoints import check_equal, state

from minisagan.errors import DataError, Fault
from minisagan.run import checkpoint

# A save that fails or is killed


def raising(code):
    def call(*args, **kwargs):
        raise OSError(code, os.strerror(code))

    return call


def corrupting(offset):
    def fsync(fd):  # the disk takes all and keeps something else
        os.pwrite(fd, b"\xee", os.fstat(fd).st_size + offset)

    return fsync


@pytest.mark.parametrize(
    "name, fake, reason",
    [
        ("fsync", raising(errno.ENOSPC), "No space left on device"),
        ("fsync", raising(errno.EIO), "Input/output error"),
        ("replace", raising(errno.EROFS), "Read-only file system"),
        ("fsync", corrupting(-4), "tensor 'D.mask' is damaged"),
        ("fsync", corrupting(0), "cut short or grown"),
    ],
)
@pytest.mark.parametrize("old", [True, False])
def test_a_failed_save_keeps_the_old_file_and_leaves_no_other(tmp_path, monkeypatch, name, fake, reason, old):
    path = tmp_path / "x.safetensors"
    if old:
        checkpoint.save(path, state(1), {"step": "1"})
    with monkeypatch.context() as patch:
        patch.setattr(os, name, fake)
        with pytest.raises(Fault, match=reason) as caught:
            checkpoint.save(path, state(2) | {"D.mask": np.zeros(6, np.uint8)}, {"step": "2"})
    assert str(caught.value).startswith(f"{path}: not saved: ") and caught.value.exit_code == 1
    assert os.listdir(tmp_path) == (["x.safetensors"] if old else [])
    if old:
        check_equal(checkpoint.load(path)[0], state(1))
        assert checkpoint.read_metadata(path) == {"step": "1"}


def test_a_disk_that_fills_up_in_the_middle_of_a_write(tmp_path):
    """For real: the kernel refuses to let any file of this process grow past 50,000 bytes."""
    path = tmp_path / "x"
    checkpoint.save(path, state(), {})
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(Fault, match="x: not saved: File too large"):
            checkpoint.save(path, {"w": np.ones(100_000, np.float32)}, {})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    check_equal(checkpoint.load(path)[0], state())
    assert os.listdir(tmp_path) == ["x"]


def test_a_folder_that_is_missing_or_not_writable(tmp_path, monkeypatch):
    with pytest.raises(Fault, match="No such file or directory"):
        checkpoint.save(tmp_path / "missing" / "x", state(), {})
    with pytest.raises(Fault, match="Is a directory"):
        checkpoint.save(tmp_path, state(), {})
    monkeypatch.setattr("builtins.open", raising(errno.EACCES))
    with pytest.raises(Fault, match="Permission denied"):
        checkpoint.save(tmp_path / "x", state(), {})
    assert os.listdir(tmp_path) == []


def test_a_file_system_that_cannot_sync_folders_is_no_error(tmp_path, monkeypatch):
    def fsync(fd):
        if stat.S_ISDIR(os.fstat(fd).st_mode):
            raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(os, "fsync", fsync)
    checkpoint.save(tmp_path / "x", state(), {})
    check_equal(checkpoint.load(tmp_path / "x")[0], state())


def test_the_file_is_on_the_disk_before_it_gets_its_name_and_the_name_is_synced_too(tmp_path, monkeypatch):
    path, calls, fsync, replace = tmp_path / "x", [], os.fsync, os.replace

    def watched_fsync(fd):
        calls.append("folder" if stat.S_ISDIR(os.fstat(fd).st_mode) else f"{os.fstat(fd).st_size} bytes")
        fsync(fd)

    def watched_replace(one, two):
        calls.append("replace")
        replace(one, two)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(os, "replace", watched_replace)
    checkpoint.save(path, state(), {})
    assert calls == [f"{path.stat().st_size} bytes", "replace", "folder"]


SAVE_FOR_EVER = """
import sys
import numpy as np
from minisagan.run import checkpoint
n = 0
while True:
    n += 1
    x = np.full(150_000, n, np.float32)
    checkpoint.save(sys.argv[1], {"a": x, "b": x}, {"step": str(n)})
    if n == 1:
        print("saved", flush=True)
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="no SIGKILL here")
def test_kill_9_in_a_save_leaves_a_whole_file(tmp_path):
    path, rng, left = tmp_path / "step-00000001.safetensors", random.Random(0), 0
    command, root = [sys.executable, "-c", SAVE_FOR_EVER, str(path)], Path(__file__).parent.parent
    for _ in range(10):
        with subprocess.Popen(command, stdout=subprocess.PIPE, cwd=root) as child:
            assert child.stdout.readline() == b"saved\n"
            with pytest.raises(subprocess.TimeoutExpired):
                child.wait(rng.uniform(0.002, 0.03))
            child.kill()
        tensors, metadata = checkpoint.load(path)
        assert np.all(tensors["a"] == int(metadata["step"])) and np.all(tensors["b"] == int(metadata["step"]))
        left += path.with_name(path.name + ".tmp").exists()
    assert left > 0  # or no kill came in the middle, and nothing was tested
    checkpoint.prune(tmp_path, keep=1)
    assert os.listdir(tmp_path) == [path.name]


def test_prune_says_what_it_cannot_delete(tmp_path, monkeypatch):
    for step in (1, 2):
        checkpoint.save(checkpoint.path_of(tmp_path, step), {}, {"step": str(step)})
    monkeypatch.setattr(os, "unlink", raising(errno.EROFS))
    with pytest.raises(Fault, match="step-00000001.safetensors: cannot delete .*Read-only file system"):
        checkpoint.prune(tmp_path, keep=1)


# What cannot be loaded


def compose(header, data=b""):
    """A safetensors file of any header, right or wrong."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data


def entry(dtype="F32", shape=(2,), offsets=(0, 8)):
    return {"dtype": dtype, "shape": list(shape), "data_offsets": list(offsets)}


def refused(path, reason):
    with pytest.raises(DataError, match=reason) as caught:
        checkpoint.load(path)
    message = str(caught.value)
    assert message.startswith(f"{path}: cannot use this checkpoint: ") and "\n" not in message
    return message


@pytest.fixture(scope="module")
def whole(tmp_path_factory):
    path = tmp_path_factory.mktemp("whole") / "x"
    tensors = {"G.w": np.arange(6, dtype=np.float32).reshape(2, 3), "t": np.array(7), "u": np.zeros((0, 2))}
    checkpoint.save(path, tensors, {"step": "5"})
    return path.read_bytes()


def flipped_files(path, whole, bits):
    """Writes the file with one bit flipped, for each of `bits`, in place."""
    path.write_bytes(whole)
    with open(path, "r+b", buffering=0) as file:
        for i in bits:
            os.pwrite(file.fileno(), bytes([whole[i // 8] ^ 1 << i % 8]), i // 8)
            yield i
            os.pwrite(file.fileno(), whole[i // 8 : i // 8 + 1], i // 8)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_another_programs_file_with_a_nan_is_refused(tmp_path, value):
    (path := tmp_path / "x.safetensors").write_bytes(compose({"w": entry()}, np.float32([1, value]).tobytes()))
    refused(path, "tensor 'w' holds a NaN or an infinity")


def test_every_single_flipped_bit_is_refused(tmp_path, whole):
    path = tmp_path / "x"
    for _ in flipped_files(path, whole, range(8 * len(whole))):
        with pytest.raises(DataError):
            checkpoint.load(path)
    assert checkpoint.load(path)[1] == {"step": "5"}


def test_a_flipped_bit_of_the_header_never_changes_the_metadata(tmp_path, whole):
    path, header = tmp_path / "x", 8 + int.from_bytes(whole[:8], "little")
    for _ in flipped_files(path, whole, random.Random(0).sample(range(8 * header), 500)):
        try:
            assert checkpoint.read_metadata(path) == {"step": "5"}
        except DataError:
            continue
        refused(path, "damaged")  # the bit was in a tensor's hash


def test_a_file_cut_anywhere_is_refused(tmp_path, whole):
    path = tmp_path / "x"
    path.write_bytes(whole + b"\0")
    refused(path, "cut short or grown")
    for size in reversed(range(len(whole))):
        os.truncate(path, size)
        refused(path, "cut short")


def test_swapped_tensors_of_one_shape_are_refused(tmp_path):
    x, y = np.zeros(2, np.float32), np.ones(2, np.float32)
    checkpoint.save(tmp_path / "x", {"a": x, "b": y}, {})
    file = (tmp_path / "x").read_bytes()
    (tmp_path / "x").write_bytes(file[:-16] + file[-8:] + file[-16:-8])
    refused(tmp_path / "x", "tensor 'a' is damaged, its sha256 differs")


@pytest.mark.parametrize(
    "header, data, reason",
    [
        (b'{"a":%b,"a":%b}', 8, "a name stands twice"),
        (b'{"a":{"dtype":"F32","dtype":"F32","shape":[2],"data_offsets":[0,8]}}', 8, "a name stands twice"),
        (b'{"__metadata__":{"step":"1","step":"2"}}', 0, "a name stands twice"),
        (b' {"a":%b}', 8, "does not start with {"),
        (b"[]", 0, "does not start with {"),
        (b'{"a":%b}}', 8, "Extra data"),
        (b'{"a":%b', 8, "Expecting"),
        (b'{"a\xff":%b}', 8, "codec"),
        (json.dumps({"a": entry()}).encode("utf-16-le"), 8, "Expecting"),
        (b'{"a":' * 100_000, 0, "recursion"),
        (b'{"a":' + b"[" * 100_000, 0, "recursion"),
        (b'{"a":{"dtype":"F32","shape":[' + b"9" * 5000 + b'],"data_offsets":[0,8]}}', 8, "digits"),
        ({"__metadata__": {"step": 1}}, 0, "__metadata__ is not a table of strings"),
        ({"__metadata__": ["step"]}, 0, "__metadata__ is not a table of strings"),
        ({"a": 1}, 0, "tensor 'a' cannot be 1"),
        ({"a": {"dtype": "F32", "shape": [2]}}, 8, "tensor 'a' cannot be"),
        ({"a": {**entry(), "more": 1}}, 8, "tensor 'a' cannot be"),
        ({"a": entry(dtype="BF16", offsets=(0, 4))}, 4, "cannot be .*BF16"),
        ({"a": entry(dtype=5)}, 8, "cannot be"),
        ({"a": entry(dtype=["F32"])}, 8, "cannot be"),
        ({"a": entry(shape=(-2,))}, 8, "cannot be"),
        ({"a": entry(shape=(-1, -2))}, 8, "cannot be"),
        ({"a": entry(shape=(2.0,))}, 8, "cannot be"),
        ({"a": entry(shape=(True, 2))}, 8, "cannot be"),
        ({"a": entry(shape=(float("nan"),))}, 8, "cannot be"),
        ({"a": entry(shape=("2",))}, 8, "cannot be"),
        ({"a": entry(shape=(2**63,))}, 8, "cannot be"),
        ({"a": entry(shape=(1,) * 33 + (2,))}, 8, "cannot be"),
        ({"a": entry(offsets=(False, 8))}, 8, "cannot be"),
        ({"a": entry(offsets=(0, 8, 8))}, 8, "cannot be"),
        ({"a": entry(offsets=(-8, 0))}, 8, "cannot be"),
        ({"a": entry(shape=(3,))}, 8, "tensor 'a' is at 0:8, not 0:12"),
        ({"a": entry(shape=(1,))}, 8, "tensor 'a' is at 0:8, not 0:4"),
        ({"a": entry(shape=(2**40,), offsets=(0, 2**42))}, 8, "cut short"),
        ({"a": entry(shape=(2**62, 4), offsets=(0, 0))}, 0, "is at 0:0"),  # 2^66 bytes: 0 modulo 2^64
        ({"a": entry(shape=(0, 2**62, 2**62), offsets=(0, 0))}, 0, "cannot use"),
        ({"a": entry(offsets=(8, 0))}, 8, "is at 8:0"),
        ({"a": entry(), "b": entry()}, 8, "tensor 'b' is at 0:8, not 8:16"),  # overlap
        ({"a": entry(), "b": entry(offsets=(4, 12))}, 12, "tensor 'b' is at 4:12, not 8:16"),
        ({"a": entry(), "b": entry(offsets=(12, 20))}, 20, "tensor 'b' is at 12:20, not 8:16"),  # hole
        ({"a": entry(offsets=(4, 12))}, 12, "tensor 'a' is at 4:12, not 0:8"),
        ({"a": entry()}, 12, "cut short or grown"),
        ({"__metadata__": {"format": "minisagan-1"}, "a": entry()}, 8, "sha256 do not name the tensors"),
        ({"__metadata__": {"sha256": "{}"}, "a": entry()}, 8, "sha256 do not name the tensors"),
        ({"__metadata__": {"sha256": "[]"}, "a": entry()}, 8, "sha256 do not name the tensors"),
        ({"__metadata__": {"sha256": '{"a":1,"__metadata__":2}'}, "a": entry()}, 8, "sha256 differs"),
    ],
)
def test_a_lying_header_is_refused_by_name_in_little_memory(tmp_path, header, data, reason):
    if isinstance(header, bytes):
        header = header.replace(b"%b", json.dumps(entry()).encode())
    (tmp_path / "x").write_bytes(compose(header, bytes(data)))
    tracemalloc.start()
    refused(tmp_path / "x", reason)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 16 << 20


@pytest.mark.parametrize("length", [2**64 - 1, 2**63, 2**40, checkpoint.HEADER_CAP + 1])
def test_an_oversized_header_is_refused_before_it_is_read(tmp_path, length):
    with open(tmp_path / "x", "wb") as file:
        file.write(length.to_bytes(8, "little") + b"{")
        file.truncate(1 << 30)  # a sparse file: as large as it says, for some of these
    tracemalloc.start()
    refused(tmp_path / "x", f"a header of {length} bytes in a file of {1 << 30}")
    assert tracemalloc.get_traced_memory()[1] < 1 << 20
    tracemalloc.stop()


class Bomb:
    def __reduce__(self):
        return pytest.fail, ("the pickle was run",)


@pytest.mark.parametrize(
    "file",
    [
        b"",
        bytes(7),
        bytes(64),
        b"\2" + bytes(7),
        pickle.dumps(Bomb()),
        pickle.dumps(Bomb(), protocol=0),
        b"<html>" * 50,
    ],
)
def test_other_files_are_refused(tmp_path, file):
    (tmp_path / "x").write_bytes(file)
    refused(tmp_path / "x", "not safetensors")


def test_what_is_not_a_file_is_refused(tmp_path):
    refused(tmp_path, "a folder, not a file")
    refused(tmp_path / "x", "no such file")
    os.mkfifo(tmp_path / "pipe")
    refused(tmp_path / "pipe", "no such file")
    for path in (tmp_path, tmp_path / "x"):
        with pytest.raises(DataError, match="cannot use"):
            checkpoint.read_metadata(path)


def test_a_file_that_cannot_be_opened_is_refused(tmp_path, monkeypatch):
    checkpoint.save(tmp_path / "x", {}, {})
    monkeypatch.setattr("builtins.open", raising(errno.EACCES))
    refused(tmp_path / "x", "Permission denied")
