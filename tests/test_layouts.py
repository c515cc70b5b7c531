"""Data sets where other programs put them, and arrays of one's own."""

import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import zipfile

import command_line
import numpy as np
import pytest
import test_data
from command_line import ROOT, SMALL, minisagan, refused
from PIL import Image
from test_data import put, spell

from minisagan import data
from minisagan.data import Reading, cifar
from minisagan.errors import DataError, UsageError
from minisagan.look import pictures

apart, mnist = command_line.apart, test_data.mnist  # fixtures
DIGITS = np.random.default_rng(0).integers(0, 256, (6, 28, 28), np.uint8)


@pytest.mark.parametrize("name, place", [("mnist", "MNIST/raw"), ("kmnist", "KMNIST/raw"), ("mnist", "mnist")])
@pytest.mark.parametrize("spelling", ["-idx", ".idx"])
@pytest.mark.parametrize("ending", ["", ".gz"])
def test_idx_files_where_people_have_them(tmp_path, mnist, name, place, spelling, ending):
    images, labels, raw, zipped = mnist
    files = {file.replace("-idx", spelling): blob for file, blob in (zipped if ending else raw).items()}
    put(tmp_path / place, files, ending)
    dataset = data.load(name, tmp_path)
    np.testing.assert_array_equal(dataset.images[..., 0], images)
    np.testing.assert_array_equal(dataset.labels, labels)


@pytest.mark.parametrize("place", ["cifar10", "."])
def test_cifar_unpacked(tmp_path, monkeypatch, place):
    monkeypatch.setattr(cifar, "BYTES", 2 * cifar.RECORD)
    records = np.random.default_rng(0).integers(0, 256, (12, cifar.RECORD), np.uint8)
    records[:, 0] = np.arange(12) % 10
    folder = tmp_path / place / "cifar-10-batches-bin"
    folder.mkdir(parents=True)
    for k, name in enumerate([*cifar.MEMBERS["train"], *cifar.MEMBERS["test"]]):
        (folder.parent / name).write_bytes(records[2 * k : 2 * k + 2].tobytes())
    train, test = data.load("cifar10", tmp_path), data.load("cifar10", tmp_path, "test")
    assert train.labels.tolist() == [*range(10)] and test.labels.tolist() == [0, 1]
    assert train.images[3, 0, 0].tolist() == [records[3, 1], records[3, 1025], records[3, 2049]]
    assert list(train.hashes) == cifar.MEMBERS["train"]
    (folder / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match="data_batch_3.bin: missing"):
        data.load("cifar10", tmp_path)
    (folder / "data_batch_1.bin").write_bytes(b"short")
    with pytest.raises(DataError, match="data_batch_1.bin: missing, or not a file of CIFAR-10's binary version"):
        data.load("cifar10", tmp_path)


def idx_pair(folder, images, labels, stem="train-", kind="idx1-ubyte", zipped=False):
    put(folder, {f"{stem}images-idx{images.ndim}-ubyte": spell(images)})
    raw = spell(labels) if labels.dtype == np.uint8 else b"\0\0\x0c" + spell(labels.astype(">i4"))[3:]
    put(folder, {f"{stem}labels-{kind}": gzip.compress(raw) if zipped else raw})


def test_a_folder_of_ones_own_idx_files(tmp_path):
    idx_pair(tmp_path / "own", DIGITS, np.array([5, 3, 3, 9, 5, 5], np.uint8), zipped=True)
    idx_pair(tmp_path / "own", DIGITS[:1], np.array([3], np.uint8), "t10k-")
    dataset = data.load(str(tmp_path / "own"), tmp_path)
    np.testing.assert_array_equal(dataset.images[..., 0], DIGITS)
    assert dataset.classes == ("3", "5", "9") and dataset.labels.tolist() == [1, 0, 0, 2, 1, 1]
    assert (dataset.size, dataset.image_size) == (32, 28)
    (tmp_path / "own" / "classes.txt").write_text("drei\nfünf\nneun\n", encoding="utf-8")
    assert data.load(str(tmp_path / "own"), tmp_path).classes == ("drei", "fünf", "neun")


def test_qmnists_labels(tmp_path):
    labels = np.arange(48).reshape(6, 8)
    labels[:, 0] = [4, 0, 4, 0, 1, 2]
    idx_pair(tmp_path / "own", DIGITS, labels, "qmnist-train-", "idx2-int")
    assert data.load(str(tmp_path / "own"), tmp_path).labels.tolist() == [3, 0, 3, 0, 1, 2]


@pytest.mark.parametrize("place", ["emnist", "EMNIST/raw", "."])
def test_emnist_by_name_is_upright(tmp_path, place):
    for subset in ("letters", "digits"):
        labels = np.array([1, 2, 1, 2, 1, 1], np.uint8)
        idx_pair(tmp_path / place, DIGITS.swapaxes(1, 2).copy(), labels, f"emnist-{subset}-train-")
    put(tmp_path / place, {"emnist-letters-mapping.txt": b"1 65 97\n2 66 98\n"})
    dataset = data.load("emnist-letters", tmp_path)
    np.testing.assert_array_equal(dataset.images[..., 0], DIGITS)
    assert dataset.classes == ("A", "B") and dataset.labels.tolist() == [0, 1, 0, 1, 0, 0]
    with pytest.raises(DataError, match="no emnist-balanced-train-images-idx3-ubyte"):
        data.load("emnist-balanced", tmp_path)
    with pytest.raises(DataError, match="several sets"):
        data.load(str(tmp_path / place), tmp_path)


@pytest.mark.parametrize(
    "content, message",
    [
        (b"", "not an IDX file of uint8 or int32, it starts with b''$"),
        (b"\0\0\x0d\x03" + bytes(12), "not an IDX file of uint8 or int32"),
        (b"\0\0\x08\x03" + b"\xff" * 12, "16 bytes do not fit its header's shape"),
        (b"\0\0\x08\x64" + bytes(400), "not an IDX file of 100-d uint8"),
        (gzip.compress(bytes(100), mtime=0)[:-9], r"cannot be read \(Compressed file ended.*\)$"),
    ],
)
def test_idx_files_of_ones_own_that_are_none(tmp_path, content, message):
    idx_pair(tmp_path / "own", DIGITS, np.zeros(6, np.uint8))
    (tmp_path / "own" / "train-images-idx3-ubyte").write_bytes(content)
    with pytest.raises(DataError, match=message):
        data.load(str(tmp_path / "own"), tmp_path)


@pytest.mark.parametrize("file", cifar.PICKLED)
def test_cifars_pickles_are_named_where_only_they_are(tmp_path, monkeypatch, file):
    monkeypatch.setattr(cifar, "MIRRORS", ())
    put(tmp_path / os.path.dirname(file), {os.path.basename(file): b"x"})
    with pytest.raises(DataError, match=f"put cifar-10-binary.tar.gz into .*; .*{file} is pickled: to read"):
        data.load("cifar10", tmp_path)


@pytest.mark.parametrize("name", ["", "/dev/null", "none.npz"])
def test_names_of_nothing(tmp_path, apart, name):
    assert "data set" in refused("train", "--dataset", name)


@pytest.mark.parametrize(
    "shape, size", [((6, 28, 28), 32), ((6, 33, 20, 3), 64), ((6, 256, 256, 1), 256), ((6, 9, 9), 32)]
)
def test_npz(tmp_path, shape, size):
    images = np.random.default_rng(0).integers(0, 256, shape, np.uint8)
    np.savez(tmp_path / "a.npz", images=images, labels=np.array([-1, 7, 7, -1, 8, 8]), classes=["x", "y", "z"])
    dataset = data.load(str(tmp_path / "a.npz"), tmp_path)
    assert dataset.classes == ("x", "y", "z") and dataset.labels.tolist() == [0, 1, 1, 0, 2, 2]
    assert dataset.size == size and dataset.image_size == shape[1]
    left = (shape[1] - shape[2]) // 2
    inside = dataset.images[:, :, left : left + shape[2]]
    np.testing.assert_array_equal(inside.reshape(shape), images)
    assert dataset.images.sum() == images.sum()  # the rest is black
    x, _ = data.batch(dataset, np.arange(6))
    assert x.shape == (6, size, size, dataset.channels)
    np.testing.assert_array_equal(data.to_uint8(x, dataset.image_size), dataset.images)


def test_npz_with_texts_or_nothing_for_labels(tmp_path):
    np.savez(tmp_path / "a.npz", images=DIGITS, labels=["k10", "k2", "k2", "k2", "k2", "k2"])
    assert data.load(str(tmp_path / "a.npz")).classes == ("k2", "k10")
    labels, names = ["dog", "cat", "cat", "class10", "class2", "dog"], ["dog", "cat", "class10", "class2", "rat"]
    for classes in (names, sorted(names), [*names[:4]]):  # in any order, and one that no image has
        np.savez(tmp_path / "a.npz", images=DIGITS, labels=labels, classes=classes)
        dataset = data.load(str(tmp_path / "a.npz"))
        assert [dataset.classes[k] for k in dataset.labels] == labels
    np.savez(tmp_path / "a.npz", images=DIGITS, labels=["k10", "k2"] * 3, classes=["two", "ten"])
    assert data.load(str(tmp_path / "a.npz")).classes == ("two", "ten")
    np.savez(tmp_path / "a.npz", images=DIGITS)
    assert data.load(str(tmp_path / "a.npz")).classes == ("all",)


@pytest.mark.parametrize(
    "arrays, message",
    [
        ({"x": DIGITS}, "no array named images"),
        ({"images": DIGITS / 255}, "images are float64, 0 to 1; save them as uint8"),
        ({"images": DIGITS[0]}, "images of shape"),
        ({"images": DIGITS[:0]}, "images of shape"),
        ({"images": DIGITS[:, :, :, None].repeat(4, 3)}, "images of shape"),
        ({"images": np.zeros((1, 257, 8), np.uint8)}, "up to 256 wide"),
        ({"images": DIGITS, "labels": np.arange(5)}, r"labels of int64 \(5,\) for 6 images"),
        ({"images": DIGITS, "labels": np.ones(6)}, "labels of float64"),
        ({"images": DIGITS, "labels": np.arange(6) + 7, "classes": ["a"]}, "1 names of classes for labels 7 to 12"),
        ({"images": np.array([{}])}, "cannot be read as an .npz file"),  # a pickle
    ],
)
def test_npz_that_is_no_data(tmp_path, arrays, message):
    np.savez(tmp_path / "a.npz", **arrays)
    with pytest.raises(DataError, match=message):
        data.load(str(tmp_path / "a.npz"), tmp_path)


def test_hostile_npz(tmp_path):
    for name, content in (
        ("huge", b"{'descr': '|u1', 'fortran_order': False, 'shape': (10000000000000, 28, 28)}"),
        ("beyond", b"{'descr': '|u1', 'fortran_order': False, 'shape': (%d,)}" % 2**70),
        ("torn", b"{'descr': '|u1', 'fortran_order': False, 'shape': (1,"),
    ):
        with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
            header = content.ljust(117) + b"\n"
            file.writestr("images.npy", b"\x93NUMPY\1\0" + len(header).to_bytes(2, "little") + header)
        with pytest.raises(DataError, match="a.npz: cannot be read as an .npz file"):
            pytest.fail(f"{name}: {data.load(str(tmp_path / 'a.npz'), tmp_path)}")
    with zipfile.ZipFile(tmp_path / "a.npz", "w") as file:
        file.writestr("images", b"no array")
    with pytest.raises(DataError, match="cannot be read as an .npz file .images is no array"):
        data.load(str(tmp_path / "a.npz"), tmp_path)


def test_damaged_npz(tmp_path):
    path = tmp_path / "a.npz"
    np.savez_compressed(path, images=DIGITS)
    whole = path.read_bytes()
    for damaged in (b"", b"no npz", whole[: len(whole) // 2], whole[:200] + bytes(50) + whole[250:], DIGITS.tobytes()):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="a.npz: cannot be read"):
            data.load(str(path), tmp_path)


def test_arrays_are_not_converted(tmp_path):
    np.savez(tmp_path / "a.npz", images=DIGITS)
    for asked, message in (({"size": 64}, "size 32, not 64"), ({"how": Reading(channels=3)}, "channels 1, not 3")):
        with pytest.raises(UsageError, match=message):
            data.load(str(tmp_path / "a.npz"), tmp_path, **asked)


# --- by the command line ------------------------------------------------------------------------------------


@pytest.fixture
def photos(apart, tmp_path):
    """photos/cat and photos/dog, six images each, as the working folder."""
    for kind in ("cat", "dog"):
        (tmp_path / "photos" / kind).mkdir(parents=True)
        for k in range(6):
            Image.new("RGB", (40, 32), (40 * k, 0, 0)).save(tmp_path / "photos" / kind / f"{k}.png")
    os.chdir(tmp_path / "photos")
    return tmp_path / "photos"


TRAIN = "train", *SMALL, "--size", 32, "--steps", 1


def about(run):
    return json.loads((run / "config.json").read_text())


def test_the_command_to_go_on_with_and_a_second_training_beside_the_first(photos, tmp_path):
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "minisagan").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m minisagan "$@"\n')
    (tmp_path / "bin" / "minisagan").chmod(0o755)
    env = os.environ | {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT)}

    def shell(line):
        done = subprocess.run(line, shell=True, env=env, cwd=photos, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0, done.stderr
        return done

    train = " ".join(map(str, ("minisagan", *TRAIN, "--dataset", ".")))
    first = shell(train).stdout
    go_on = re.search("^go on: +(.*)$", first, re.MULTILINE)[1]
    assert go_on == "minisagan train --resume runs/photos --steps 2"
    second = shell(go_on)
    assert "all 2 steps are done" in second.stdout and "passed over: runs/photos (a run)" in second.stderr
    beside = shell(train)
    assert beside.stdout.startswith("runs/photos-2: ") and "12 images of 32x32, 2 classes" in beside.stderr
    assert "passed over: runs/photos (a run)" in beside.stderr
    assert about(photos / "runs" / "photos-2")["data"]["classes"] == ["cat", "dog"]


def test_how_a_folder_is_read_belongs_to_the_run(photos):
    (photos / "cat" / "bad.png").write_bytes(b"")
    assert "--skip-unreadable" in refused(*TRAIN, "--dataset", ".", code=3)
    how = "--skip-unreadable", "--fit", "pad", "--channels", 1
    _, said = minisagan(*TRAIN, "--dataset", ".", *how, "--out", "../run")
    run = photos.parent / "run"
    config = about(run)["config"]
    assert (config["fit"], config["skip_unreadable"], config["architecture"]["channels"]) == ("pad", True, 1)
    assert about(run)["data"]["skipped"] == ["cat/bad.png"] and "skipped: cat/bad.png" in said
    minisagan("train", "--resume", run, "--steps", 2, *how, "--threads", 1)
    line = refused("train", "--resume", run, "--fit", "crop", "--channels", 3)
    assert "fit crop (the run has pad)" in line and "channels 3 (the run has 1)" in line
    minisagan("train", "--config", run / "config.json", "--out", "../again", "--threads", 1)
    assert about(photos.parent / "again")["config"] == about(run)["config"]
    (photos / "cat" / "bad.png").unlink()
    assert "skipped was ['cat/bad.png'], is None" in refused("train", "--resume", run, code=3)


def test_numbers_beyond_all_bounds(apart):
    for flag in ("--steps", "--batch-size", "--threads"):
        assert flag.strip("-") in refused("train", flag, 10**20)
    assert "--checkpoint-minutes must be a number" in refused("train", "--checkpoint-minutes", "nan")


def test_options_of_folders(photos):
    assert "--strict is for new runs" in refused("train", "--resume", "x", "--strict")
    (photos / "notes.txt").write_text("")
    assert "1 file would be left out" in refused(*TRAIN, "--dataset", ".", "--strict", code=3)
    assert "only of a folder of images" in refused("train", "--fit", "pad")
    assert "channels 1, not 3" in refused("train", "--channels", 3)
    shutil.rmtree("cat")
    for k in range(6):
        os.rename(f"dog/{k}.png", f"{k}.png")
    (photos / "list.csv").write_text("".join(f"{k}.png,{'ab'[k % 2]}\n" for k in range(6)))
    minisagan(*TRAIN, "--batch-size", 4, "--dataset", ".", "--labels", "list.csv", "--out", "../run")
    os.chdir(photos.parent)
    minisagan("train", "--resume", "run", "--steps", 2, "--threads", 1)
    assert about(photos.parent / "run")["data"]["classes"] == ["a", "b"]


def test_what_sample_writes_can_be_trained_on(apart, tmp_path):
    minisagan(*TRAIN[:-4], "--steps", 1, "--out", "run")
    minisagan("sample", "run", "--count", 20, "-o", "drawn.npz")
    minisagan(*TRAIN[:-4], "--steps", 1, "--dataset", "drawn.npz", "--out", "again")
    config = about(tmp_path / "again")
    assert config["config"]["architecture"]["classes"] == 10 and config["data"]["image_size"] == 28
    assert config["config"]["steps"] == 1 and not config["config"]["flip"]
    minisagan("train", "--resume", "again", "--steps", 2, "--threads", 1)


def test_classes_beyond_ascii(photos, monkeypatch):
    os.rename("dog", "u\u0308")  # as macOS writes ü
    os.rename("cat", "\u732b")
    minisagan(*TRAIN, "--dataset", ".", "--out", "../run")
    os.chdir(photos.parent)
    minisagan("sample", "run", "--classes", "ü", "--count", 3, "-o", "one.npz")
    assert np.load("one.npz")["labels"].tolist() == [0, 0, 0]
    minisagan("sample", "run", "--classes", "\u732b", "--count", 3, "-o", "two.npz")
    assert np.load("two.npz")["labels"].tolist() == [1, 1, 1]
    monkeypatch.setattr(pictures, "letters", lambda text, size: (ascii(text)[1:-1], pictures._font(size)))  # no fonts
    pictures._legible.cache_clear()
    assert "the pictures say #0 for u\u0308, #1 for \u732b: " in minisagan("sample", "run", "-o", "all.png")[1]
    pictures._legible.cache_clear()


def test_a_replayed_configuration_says_that_its_images_have_changed(photos):
    minisagan(*TRAIN, "--dataset", ".", "--out", "../run")
    config = photos.parent / "run" / "config.json"
    again = "train", "--config", config, "--threads", 1
    assert "has changed" not in minisagan(*again, "--out", "../same")[1]
    next((photos / "cat").iterdir()).unlink()
    assert f"has changed since {config} was written" in minisagan(*again, "--out", "../other")[1]
