"""Checkpoints: what goes in comes out, in a format others read; a folder of them; and into a model."""

import hashlib
import json
import os

import numpy as np
import pytest
from checkpoints import check_equal, state

from minisagan.errors import DataError, Diverged, UsageError
from minisagan.run import checkpoint

DTYPES = ["float64", "float32", "float16", "int64", "int32", "uint64", "uint32", "uint8"]


# What goes in comes out


@pytest.mark.parametrize("dtype", DTYPES)
def test_round_trip_of_every_dtype_and_shape(tmp_path, dtype):
    r = np.random.RandomState(1)
    shapes = {"scalar": (), "empty": (0,), "hollow": (3, 0, 1000), "one": (1,), "odd": (3, 5, 7)}
    wanted = {name: np.array(100 * r.rand(*shape)).astype(dtype) for name, shape in shapes.items()}
    metadata = {"step": "12", "config": '{"width": 16}', "née": "\n\"\\\0 ☃"}
    path = tmp_path / "x.safetensors"
    checkpoint.save(path, wanted, metadata)
    tensors, read = checkpoint.load(path)
    check_equal(tensors, wanted)
    assert read == metadata == checkpoint.read_metadata(path)
    assert all(x.flags.writeable and x.flags.c_contiguous for x in tensors.values())


def test_round_trip_of_extremes_of_mixed_dtypes_and_of_any_layout(tmp_path):
    x = np.arange(24, dtype=np.float32).reshape(4, 6)
    wanted = {
        "u8": np.array([0, 255], np.uint8),
        "u64": np.array([0, 2**64 - 1], np.uint64),
        "i64": np.array([-(2**63), 2**63 - 1]),
        "f32": np.array([-0.0, 1e-45, 3.4e38], np.float32),
        "transposed": x.T,
        "strided": x[::2, ::-3],
        "broadcast": np.broadcast_to(np.float64(3), (2, 2)),
    }
    checkpoint.save(tmp_path / "x", wanted, {})
    tensors, metadata = checkpoint.load(tmp_path / "x")
    check_equal(tensors, wanted)
    assert metadata == {}


def test_no_tensors_at_all(tmp_path):
    checkpoint.save(tmp_path / "x", {}, {"step": "1"})
    assert checkpoint.load(tmp_path / "x") == ({}, {"step": "1"})


def test_the_file_holds_what_the_format_says(tmp_path):
    x, n = np.arange(3, dtype=np.float32), np.array(5, np.int64)
    checkpoint.save(tmp_path / "x", {"w": x, "n": n}, {"step": "1"})
    file = (tmp_path / "x").read_bytes()
    length = int.from_bytes(file[:8], "little")
    header = json.loads(file[8 : 8 + length])
    assert length % 8 == 0
    assert header["n"] == {"dtype": "I64", "shape": [], "data_offsets": [0, 8]}  # wide types first
    assert header["w"] == {"dtype": "F32", "shape": [3], "data_offsets": [8, 20]}
    assert file[8 + length :] == n.tobytes() + x.tobytes()
    hashes = json.loads(header["__metadata__"]["sha256"])
    assert hashes["w"] == hashlib.sha256(x.tobytes()).hexdigest()


def test_the_safetensors_package_reads_our_files(tmp_path):
    package = pytest.importorskip("safetensors")
    numpy = pytest.importorskip("safetensors.numpy")
    wanted = {dtype: np.arange(6).reshape(2, 3).astype(dtype) for dtype in DTYPES}
    wanted |= {"scalar": np.array(1.5, np.float32), "empty": np.zeros((0, 4), np.float32)}
    checkpoint.save(tmp_path / "x", wanted, {"step": "3"})
    check_equal(numpy.load_file(tmp_path / "x"), wanted)
    with package.safe_open(tmp_path / "x", framework="np") as file:
        assert file.metadata()["step"] == "3"
        rewritten = dict(file.metadata())
    numpy.save_file(wanted, tmp_path / "y", metadata=rewritten)  # in its own order, our hashes carried over
    tensors, metadata = checkpoint.load(tmp_path / "y")
    check_equal(tensors, wanted)
    assert metadata == {"step": "3"}


def test_files_of_the_safetensors_package_are_read_without_hashes(tmp_path):
    numpy = pytest.importorskip("safetensors.numpy")
    wanted = {dtype: np.arange(6).reshape(2, 3).astype(dtype) for dtype in DTYPES}
    for metadata in (None, {"format": "pt"}):
        numpy.save_file(wanted, tmp_path / "x", metadata=metadata)
        tensors, read = checkpoint.load(tmp_path / "x")
        check_equal(tensors, wanted)
        assert read == (metadata or {})


def test_the_header_may_name_the_tensors_in_any_order(tmp_path):
    header = json.dumps(
        {
            "second": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]},
            "first": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
        }
    ).encode()
    (tmp_path / "x").write_bytes(len(header).to_bytes(8, "little") + header + b"\1\2\3")
    tensors, _ = checkpoint.load(tmp_path / "x")
    check_equal(tensors, {"first": np.array([1], np.uint8), "second": np.array([2, 3], np.uint8)})


# What cannot be saved


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_tensor_that_is_not_finite_is_never_saved(tmp_path, value, dtype):
    path = tmp_path / "x"
    checkpoint.save(path, state(), {})
    bad = state() | {"G.conv.w": np.array([0, value], dtype)}
    with pytest.raises(Diverged, match="x: not saved, because tensor 'G.conv.w' holds a NaN or an infinity"):
        checkpoint.save(path, bad, {})
    check_equal(checkpoint.load(path)[0], state())
    assert os.listdir(tmp_path) == ["x"]


@pytest.mark.parametrize(
    "tensors, metadata, error",
    [
        ({"x": np.zeros(2, complex)}, {}, TypeError),
        ({"x": np.zeros(2, ">f4")}, {}, TypeError),
        ({"x": np.zeros(2, bool)}, {}, TypeError),
        ({}, {"step": 1}, TypeError),
        ({}, {1: "step"}, TypeError),
        ({}, {"sha256": "0"}, ValueError),
        ({}, {"format": "0"}, ValueError),
        ({"__metadata__": np.zeros(2)}, {}, ValueError),
        ({}, {"config": "x" * checkpoint.HEADER_CAP}, ValueError),
    ],
)
def test_what_the_format_cannot_hold_is_refused_before_a_file_is_opened(tmp_path, tensors, metadata, error):
    with pytest.raises(error):
        checkpoint.save(tmp_path / "x", tensors, metadata)
    assert os.listdir(tmp_path) == []


# A folder of them


def fill(folder, *steps):
    for step in steps:
        checkpoint.save(checkpoint.path_of(folder, step), state(step), {"step": str(step)})


def flip(path, offset):
    data = bytearray(path.read_bytes())
    data[offset] ^= 1
    path.write_bytes(data)


def names(folder):
    return sorted(os.listdir(folder))


def test_path_of(tmp_path):
    assert checkpoint.path_of(tmp_path, 1000) == tmp_path / "step-00001000.safetensors"
    assert checkpoint.path_of(str(tmp_path), 123456789).name == "step-123456789.safetensors"


def test_newest_goes_by_the_step_inside_not_by_name_or_time(tmp_path):
    assert checkpoint.newest(tmp_path) is None and checkpoint.newest(tmp_path / "missing") is None
    fill(tmp_path, 9, 100_000_000, 20)
    os.utime(checkpoint.path_of(tmp_path, 20), (2e9, 2e9))
    assert checkpoint.newest(tmp_path) == checkpoint.path_of(tmp_path, 100_000_000)
    checkpoint.save(tmp_path / "a.safetensors", state(), {"step": "100000001"})
    assert checkpoint.newest(tmp_path) == tmp_path / "a.safetensors"


def test_newest_skips_what_it_cannot_read(tmp_path):
    fill(tmp_path, 1, 2, 3)
    flip(checkpoint.path_of(tmp_path, 3), 20)
    os.truncate(checkpoint.path_of(tmp_path, 2), 1000)
    checkpoint.path_of(tmp_path, 4).write_bytes(b"")
    checkpoint.path_of(tmp_path, 5).mkdir()
    checkpoint.save(tmp_path / "step-9.safetensors", state(), {})
    checkpoint.save(tmp_path / "step-8.safetensors", state(), {"step": "nine"})
    (tmp_path / "step-00000007.safetensors.tmp").write_bytes(checkpoint.path_of(tmp_path, 1).read_bytes())
    assert checkpoint.newest(tmp_path) == checkpoint.path_of(tmp_path, 1)


def test_a_damaged_checkpoint_offers_the_newest_intact_one(tmp_path):
    fill(tmp_path, 1, 2, 3, 4)
    flip(checkpoint.path_of(tmp_path, 4), -1)  # in the data: only reading it all shows it
    assert checkpoint.newest(tmp_path) == checkpoint.path_of(tmp_path, 4)
    flip(checkpoint.path_of(tmp_path, 3), -1)
    with pytest.raises(DataError, match="tensor 'D.mask' is damaged") as caught:
        checkpoint.load(checkpoint.path_of(tmp_path, 4))
    assert str(caught.value).endswith(f"; an intact one, of step 2, is {checkpoint.path_of(tmp_path, 2)}")
    flip(checkpoint.path_of(tmp_path, 1), -1)
    flip(checkpoint.path_of(tmp_path, 2), -1)
    with pytest.raises(DataError, match="damaged, its sha256 differs$"):
        checkpoint.load(checkpoint.path_of(tmp_path, 4))


def test_prune_keeps_the_last_and_the_best(tmp_path):
    fill(tmp_path, 1, 2, 3, 10, 20)
    (tmp_path / "step-00000030.safetensors.tmp").write_bytes(b"half")
    (tmp_path / "notes.txt").write_text("mine")
    checkpoint.save(tmp_path / "exported.safetensors", state(), {"step": "0"})
    checkpoint.path_of(tmp_path, 5).write_bytes(b"damaged")
    others = ["exported.safetensors", "notes.txt", "step-00000005.safetensors"]
    checkpoint.prune(tmp_path, 2, str(checkpoint.path_of(tmp_path, 2)))
    assert names(tmp_path) == sorted([*others, *(f"step-{n:08d}.safetensors" for n in (2, 10, 20))])
    checkpoint.prune(tmp_path, 1, checkpoint.path_of(tmp_path, 20))
    assert names(tmp_path) == sorted([*others, "step-00000020.safetensors"])
    checkpoint.prune(tmp_path, keep=5)
    assert names(tmp_path) == sorted([*others, "step-00000020.safetensors"])


def test_prune_never_deletes_all(tmp_path):
    fill(tmp_path, 1)
    with pytest.raises(UsageError, match="at least 1 checkpoint"):
        checkpoint.prune(tmp_path, keep=0)
    assert names(tmp_path) == ["step-00000001.safetensors"]


# Into a model


def model():
    return {"w": np.zeros((2, 3), np.float32), "b": np.zeros(3, np.float32), "t": np.array(0, np.int64)}


def test_match_copies_in_place():
    wanted = model()
    before = dict(wanted)
    tensors = {"t": np.array(9), "w": np.ones((2, 3), np.float32), "b": np.arange(3, dtype=np.float32)}
    checkpoint.match(tensors, wanted)
    check_equal(wanted, tensors)
    assert all(wanted[name] is before[name] for name in before)
    tensors["w"][0, 0] = 5
    assert wanted["w"][0, 0] == 1


@pytest.mark.parametrize(
    "change, differences",
    [
        ({"b": None}, ["'b' is missing"]),
        ({"more": np.zeros(1)}, ["'more' is not in the model"]),
        ({"w": np.ones((3, 2), "f4")}, [r"'w' is float32 \(3, 2\), the model's float32 \(2, 3\)"]),
        ({"b": np.ones((1, 3), "f4")}, [r"'b' is float32 \(1, 3\), the model's float32 \(3,\)"]),
        ({"b": np.float32(1)}, [r"'b' is float32 \(\), the model's float32 \(3,\)"]),
        ({"b": np.ones(3)}, [r"'b' is float64 \(3,\), the model's float32 \(3,\)"]),
        ({"t": np.array(1.0)}, [r"'t' is float64 \(\), the model's int64 \(\)"]),
        ({"b": None, "w": np.ones(1), "n": np.ones(1)}, ["'b' is missing", "'w' is float64", "'n' is not"]),
    ],
)
def test_match_lists_each_difference_and_assigns_nothing(change, differences):
    wanted = model()
    tensors = {name: x + 1 for name, x in model().items()} | change
    tensors = {name: x for name, x in tensors.items() if x is not None}
    with pytest.raises(DataError, match=rf"fit the model \(differences: {len(differences)}\)") as caught:
        checkpoint.match(tensors, wanted)
    for difference in differences:
        assert caught.match(difference)
    check_equal(wanted, model())


def test_match_shows_a_few_of_many_differences():
    with pytest.raises(DataError, match=r"differences: 100\)") as caught:
        checkpoint.match({}, {f"w{i}": np.zeros(1) for i in range(100)})
    assert str(caught.value).count("missing") == 8 and str(caught.value).endswith("; ...")
