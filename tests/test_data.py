"""Data sets: every reader gives the pixels that went in, and every damaged file is refused by name."""

import gzip
import hashlib
import io
import os
import struct
import tarfile
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from shutil import copytree
from urllib.error import URLError
from urllib.request import Request

import numpy as np
import pytest
from PIL import Image

from minisagan import data, rng
from minisagan.data import Dataset, by_class, cifar, companions, decode, download, idx
from minisagan.data import pixels as cache_of_pixels
from minisagan.errors import DataError, UsageError


def real_data(name):
    """The folder of a real data set, or a visible skip."""
    for place in (os.environ.get("MINISAGAN_DATA"), Path(__file__).parents[2] / "shared" / "data"):
        if place and Path(place, name).is_dir():
            return Path(place)
    pytest.skip(f"no {name} in $MINISAGAN_DATA or ../shared/data")


def sha256(blob):
    return hashlib.sha256(blob).hexdigest()


# --- batches ------------------------------------------------------------------------------------------------


def digits(n=3, size=28, channels=1):
    images = np.random.default_rng(0).integers(0, 256, (n, size, size, channels), np.uint8)
    images.reshape(-1)[:256] = np.arange(256)
    return Dataset("some", images, np.arange(n, dtype=np.int64), tuple("abc"), {})


def test_batch_scales_and_frames():
    dataset = digits()
    assert (dataset.size, dataset.image_size, dataset.channels, len(dataset)) == (32, 28, 1, 3)
    x, y = data.batch(dataset, np.array([2, 0, 0]))
    assert x.shape == (3, 32, 32, 1) and x.dtype == np.float32
    assert y.tolist() == [2, 0, 0] and y.dtype == np.int64
    np.testing.assert_allclose(x[0, 2:30, 2:30], dataset.images[2] / 127.5 - 1, atol=1e-7)
    frame = np.ones((32, 32), bool)
    frame[2:30, 2:30] = False
    assert (x[:, frame] == -1).all()
    assert x[1, 2, 2] == -1 and x[1, 2 + 255 // 28, 2 + 255 % 28] == 1  # 0 -> -1 and 255 -> 1, exactly


@pytest.mark.parametrize("size, channels", [(28, 1), (32, 3), (64, 3)])
def test_to_uint8_undoes_batch(size, channels):
    dataset = digits(size=size, channels=channels)
    x, _ = data.batch(dataset, np.arange(3))
    back = data.to_uint8(x, dataset.image_size)
    assert back.dtype == np.uint8
    np.testing.assert_array_equal(back, dataset.images)


def test_to_uint8_rounds_and_clips():
    x = np.array([-9, -1, -1 + 0.6 / 127.5, 0.999, 1, 9], np.float32).reshape(6, 1, 1, 1)
    assert data.to_uint8(x, 1).ravel().tolist() == [0, 0, 1, 255, 255, 255]


def test_flip_mirrors_only_the_masked():
    dataset = digits()
    original = dataset.images.copy()
    x, _ = data.batch(dataset, np.array([0, 1, 2]))
    flipped, _ = data.batch(dataset, np.array([0, 1, 2]), flip_mask=np.array([True, False, True]))
    np.testing.assert_array_equal(flipped[[0, 2]], x[[0, 2], :, ::-1])
    np.testing.assert_array_equal(flipped[1], x[1])
    np.testing.assert_array_equal(dataset.images, original)


def test_batch_indices_is_one_stream_of_permutations():
    n, seed = 10, 7
    stream = np.concatenate([rng.permutation(n, seed, epoch) for epoch in range(4)])
    np.testing.assert_array_equal(data.batch_indices(0, 40, n, seed), stream)  # larger than the data
    for position, count in [(0, 3), (8, 4), (9, 1), (10, 10), (25, 12), (5, 0)]:
        part = data.batch_indices(position, count, n, seed)
        assert part.dtype == np.int64
        np.testing.assert_array_equal(part, stream[position : position + count])
    assert data.batch_indices(0, 40, n, seed + 1).tolist() != stream.tolist()


# --- names and places ---------------------------------------------------------------------------------------


def test_companions_are_any_of_the_same_class():
    labels = np.array([2, 0, 2, 2, 0, 4, 2])  # of class 4 there is one, of 1 and 3 none
    index, asked = by_class(labels), np.tile(np.arange(7), 400)
    found = companions(asked, 3, index, seed=5, step=8)
    assert found.shape == (3, 2800) and (labels[found] == labels[asked]).all()
    for label in (0, 2):
        members, counts = np.unique(found[:, labels[asked] == label], return_counts=True)
        assert members.tolist() == np.flatnonzero(labels == label).tolist()
        assert abs(counts / counts.mean() - 1).max() < 0.1  # 1,200 of each, whose deviation is 30 to 35
    np.testing.assert_array_equal(companions(asked, 3, index, 5, 8), found)
    assert (companions(asked, 3, index, 5, 9) != found).any() and (companions(asked, 3, index, 6, 8) != found).any()


def test_data_folder(monkeypatch, tmp_path):
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.delenv("MINISAGAN_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", "")
    assert data.data_folder() == Path("/home/me/.cache/minisagan")
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert data.data_folder() == Path("/cache/minisagan")
    monkeypatch.setenv("MINISAGAN_DATA", "~/sets")
    assert data.data_folder() == Path("/home/me/sets")
    assert data.data_folder(tmp_path) == tmp_path


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("mnits", {}, "neither a data set"),
        ("mnist", {"split": "valid"}, "no split"),
        ("mnist", {"size": 64}, "has size 32"),
        (".", {"split": "test"}, "no test split"),
        (".", {"size": 48}, "32, 64, 128, 256"),
    ],
)
def test_what_cannot_be_asked(tmp_path, name, options, message):
    with pytest.raises(UsageError, match=message):
        data.load(name, tmp_path, **options)


def test_drawn_digits(monkeypatch):
    monkeypatch.setattr(data, "DRAWN", {"train": (20, 0), "test": (10, 1)})
    train, test = data.load("drawn-digits", "/nowhere"), data.load("drawn-digits", "/nowhere", "test")
    assert train.images.shape == (20, 28, 28, 1) and train.images.dtype == np.uint8 and train.size == 32
    assert sorted(set(train.labels)) == list(range(10)) and len(train.classes) == 10
    assert train.hashes == {"images": sha256(train.images), "labels": sha256(train.labels)}
    assert not np.array_equal(train.images[:10], test.images)


# --- IDX ----------------------------------------------------------------------------------------------------

IMAGES, LABELS = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"


def spell(array):
    return bytes((0, 0, 8, array.ndim)) + struct.pack(f">{array.ndim}I", *array.shape) + array.tobytes()


@pytest.fixture
def mnist(monkeypatch):
    """Five digits published as "mnist", every hash known, and as "kmnist", those of the .gz alone."""
    images = np.random.default_rng(1).integers(0, 256, (5, 28, 28), np.uint8)
    labels = np.array([3, 0, 9, 1, 3], np.uint8)
    raw = {IMAGES: spell(images), LABELS: spell(labels)}
    zipped = {file: gzip.compress(blob) for file, blob in raw.items()}
    known = [(len(zipped[file]), sha256(zipped[file]), sha256(raw[file])) for file in raw]
    monkeypatch.setitem(idx.FILES, ("mnist", "train"), known)
    monkeypatch.setitem(idx.FILES, ("kmnist", "train"), [(size, digest, None) for size, digest, _ in known])
    for name in idx.MIRRORS:
        monkeypatch.setitem(idx.MIRRORS, name, ())
    return images, labels, raw, zipped


def put(folder, files, suffix=""):
    folder.mkdir(parents=True, exist_ok=True)
    for file, blob in files.items():
        (folder / (file + suffix)).write_bytes(blob)


@pytest.mark.parametrize("place", ["mnist", "."])
@pytest.mark.parametrize("form", ["gz", "unzipped", "unzipped, named .gz", "zipped anew"])
def test_idx_reads_every_form_of_a_copy(tmp_path, mnist, capsys, place, form):
    images, labels, raw, zipped = mnist
    anew = {file: gzip.compress(blob, 1, mtime=7) for file, blob in raw.items()}
    blobs = {"gz": zipped, "zipped anew": anew}.get(form, raw)
    put(tmp_path / place, blobs, "" if form == "unzipped" else ".gz")
    dataset = data.load("mnist", tmp_path)
    np.testing.assert_array_equal(dataset.images[..., 0], images)
    np.testing.assert_array_equal(dataset.labels, labels)
    assert dataset.labels.dtype == np.int64 and dataset.classes == tuple("0123456789")
    assert dataset.hashes == {file: sha256(blob) for file, blob in raw.items()}
    assert capsys.readouterr().err == ""


def test_idx_of_unknown_hash_needs_its_folder(tmp_path, mnist, capsys):
    images, _, raw, zipped = mnist
    put(tmp_path / "kmnist", zipped, ".gz")
    data.load("kmnist", tmp_path)
    assert capsys.readouterr().err == ""
    put(tmp_path / "own" / "kmnist", raw)
    dataset = data.load("kmnist", tmp_path / "own")
    np.testing.assert_array_equal(dataset.images[..., 0], images)
    assert dataset.classes[1] == "ki" and dataset.hashes[IMAGES] == sha256(raw[IMAGES])
    assert capsys.readouterr().err.count("not the published .gz") == 2
    with pytest.raises(DataError, match=f"{IMAGES}: not the published kmnist file"):
        put(tmp_path / "mixed", raw)
        data.load("kmnist", tmp_path / "mixed")


def test_idx_refuses_another_file(tmp_path, mnist):
    _, _, raw, _ = mnist
    other = raw[LABELS][:-1] + b"\x04"
    put(tmp_path / "mnist", raw | {LABELS: other})
    found, expected = sha256(other), sha256(raw[LABELS])
    with pytest.raises(DataError, match=f"{LABELS}: .*sha256 {found}, expected {expected}"):
        data.load("mnist", tmp_path)


@pytest.mark.parametrize(
    "file, damage, message",
    [
        (IMAGES, lambda raw: b"<!DOCTYPE html>", "not an IDX file of 3-d uint8"),
        (IMAGES, lambda raw: b"", "not an IDX file"),
        (IMAGES, lambda raw: b"\0\0\x0d\x03" + raw[4:], "not an IDX file"),  # floats
        (LABELS, lambda raw: b"\0\0\x08\x03" + raw[4:], "not an IDX file of 1-d"),
        (IMAGES, lambda raw: raw[:-1], "do not fit"),
        (IMAGES, lambda raw: raw + b"\0", "do not fit"),
        (IMAGES, lambda raw: raw[:10], "do not fit"),
        (IMAGES, lambda raw: raw[:4] + b"\xff" * 12 + raw[16:], "do not fit"),  # a header that lies
        (IMAGES, lambda raw: gzip.compress(raw)[:-20], "cannot be read"),
        (IMAGES, lambda raw: gzip.compress(raw)[:-8] + bytes(8), "cannot be read .*CRC"),
        (IMAGES, lambda raw: gzip.compress(raw)[:10] + b"\xff" * 400, "cannot be read .*invalid block"),
        (IMAGES, lambda raw: spell(np.zeros((5, 20, 28), np.uint8)), "images of shape"),
        (IMAGES, lambda raw: spell(np.zeros((0, 28, 28), np.uint8)), "images of shape"),
        (LABELS, lambda raw: spell(np.zeros(4, np.uint8)), "4 labels for 5 images"),
        (LABELS, lambda raw: spell(np.full(5, 10, np.uint8)), "label 10, where kmnist has 10 classes"),
    ],
)
def test_damaged_idx_is_named(tmp_path, mnist, file, damage, message):
    _, _, raw, _ = mnist
    put(tmp_path / "kmnist", raw | {file: damage(raw[file])})
    with pytest.raises(DataError, match=f"{file}: .*{message}"):
        data.load("kmnist", tmp_path)


def test_real_mnist():
    place = real_data("mnist")
    train, test = data.load("mnist", place), data.load("mnist", place / "mnist", "test")
    assert train.images.shape == (60000, 28, 28, 1) and test.images.shape == (10000, 28, 28, 1)
    assert train.labels[:10].tolist() == [5, 0, 4, 1, 9, 2, 1, 3, 1, 4]
    assert np.bincount(train.labels)[:3].tolist() == [5923, 6742, 5958]
    assert round(train.images.mean(dtype=np.float64) / 255, 4) == 0.1307


# --- downloads ----------------------------------------------------------------------------------------------

GOOD = os.urandom(1 << 19)  # two chunks


@pytest.fixture
def server(monkeypatch):
    """A server on this machine that answers /<fault>/file: (address, what was asked, reader hung up)."""
    stop, asked, hung_up = threading.Event(), [], threading.Event()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self):
            asked.append(self.path)
            fault = self.path.split("/")[1]
            body = {"other": GOOD[::-1], "html": b"<html>login</html>", "longer": GOOD * 64}.get(fault, GOOD)
            self.send_response({"absent": 404, "moved": 302}.get(fault, 200))
            if fault == "moved":
                self.send_header("Location", "/good/file")
            self.send_header("Content-Type", "text/html; charset=utf-8" if fault == "html" else "x/y")
            if fault != "unsized":
                self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            try:
                self.wfile.write(body[: len(body) // 2] if fault in ("cut", "stalled", "unsized") else body)
            except OSError:
                hung_up.set()
            if fault == "stalled":
                stop.wait(10)

        def log_message(self, *_):
            pass

    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(download, "TIMEOUT", 0.3)
    httpd = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=httpd.serve_forever, args=(0.01,))
    thread.start()
    yield f"http://127.0.0.1:{httpd.server_port}", asked, hung_up
    stop.set()
    httpd.shutdown()
    thread.join()
    httpd.server_close()


def fetch(server, mirrors, tmp_path):
    files = {"file": (len(GOOD), sha256(GOOD))}
    download.fetch(files, [f"{server[0]}/{mirror}/" for mirror in mirrors], tmp_path / "set")


def test_download(server, tmp_path, monkeypatch):
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr("sys.stderr", terminal)
    fetch(server, ["good", "absent"], tmp_path)
    assert (tmp_path / "set" / "file").read_bytes() == GOOD
    assert os.listdir(tmp_path / "set") == ["file"] and server[1] == ["/good/file"]
    assert terminal.getvalue() == "downloading file  50 %\rdownloading file 100 %\n"


@pytest.mark.parametrize(
    "fault, message",
    [
        ("absent", "404"),
        ("other", f"sha256 {sha256(GOOD[::-1])} came, not {sha256(GOOD)}"),
        ("html", "a web page came"),
        ("longer", f"more than {len(GOOD)} bytes came"),
        ("cut", f"{len(GOOD) // 2} bytes came, not {len(GOOD)}|IncompleteRead"),
        ("unsized", f"{len(GOOD) // 2} bytes came, not {len(GOOD)}"),
        ("stalled", "timed out"),
    ],
)
def test_failed_download_leaves_nothing_and_says_what_to_do(server, tmp_path, capsys, fault, message):
    with pytest.raises(DataError, match=message) as failure:
        fetch(server, [fault], tmp_path)
    line = str(failure.value)
    assert f"put file into {tmp_path / 'set'}" in line and "drawn-digits" in line and "\n" not in line
    assert os.listdir(tmp_path / "set") == [] and capsys.readouterr().err == ""
    fetch(server, [fault, "good"], tmp_path)  # the next mirror has it
    assert (tmp_path / "set" / "file").read_bytes() == GOOD
    assert server[1] == [f"/{fault}/file", f"/{fault}/file", "/good/file"]


def test_a_killed_downloads_part_is_removed(server, tmp_path):
    (tmp_path / "set").mkdir()
    for name, age in (("file.1.part", 10_000), ("file.2.part", 0)):
        (tmp_path / "set" / name).write_bytes(GOOD)
        os.utime(tmp_path / "set" / name, (time.time() - age,) * 2)
    fetch(server, ["good"], tmp_path)
    assert sorted(os.listdir(tmp_path / "set")) == ["file", "file.2.part"]  # somebody may be writing the young one


def test_download_hangs_up_at_the_published_size(server, tmp_path):
    with pytest.raises(DataError, match="more than"):
        fetch(server, ["longer"], tmp_path)
    assert server[2].wait(5)


def test_no_network_names_every_file(server, tmp_path, mnist, monkeypatch):
    monkeypatch.setitem(idx.MIRRORS, "mnist", ("http://127.0.0.1:1/",))
    with pytest.raises(DataError, match="refused.*put") as failure:
        data.load("mnist", tmp_path)
    assert f"put {IMAGES}.gz and {LABELS}.gz into {tmp_path / 'mnist'}" in str(failure.value)


def test_unwritable_folder(server, tmp_path):
    (tmp_path / "set").write_text("a file where the folder should be")
    with pytest.raises(DataError, match="File exists"):
        fetch(server, ["good"], tmp_path)


def test_https_is_never_redirected_to_http(server, tmp_path, monkeypatch):
    fetch(server, ["moved"], tmp_path)
    assert server[1] == ["/moved/file", "/good/file"]
    handler, request = download._NeverToPlainHttp(), Request("https://a.org/file")
    with pytest.raises(URLError, match="refused"):
        handler.redirect_request(request, None, 302, "", {}, "http://a.org/file")
    assert handler.redirect_request(request, None, 302, "", {}, "https://b.org/file").type == "https"

    def refuse(self, *_):
        raise URLError("our handler")

    monkeypatch.setattr(download._NeverToPlainHttp, "redirect_request", refuse)
    with pytest.raises(DataError, match="our handler"):
        fetch(server, ["moved"], tmp_path)


def test_missing_files_are_downloaded_where_load_finds_them(tmp_path, mnist, monkeypatch):
    images, _, raw, zipped = mnist
    asked = []

    def fetch(files, mirrors, folder):
        asked.extend(files)
        put(folder, {file: zipped[file.removesuffix(".gz")] for file in files})

    monkeypatch.setattr(download, "fetch", fetch)
    put(tmp_path / "mnist", {LABELS: raw[LABELS]})
    np.testing.assert_array_equal(data.load("mnist", tmp_path).images[..., 0], images)
    data.load("mnist", tmp_path)
    assert asked == [f"{IMAGES}.gz"]


def test_only_https_mirrors():
    mirrors = [*cifar.MIRRORS, *(mirror for mirrors in idx.MIRRORS.values() for mirror in mirrors)]
    assert all(mirror.startswith("https://") and mirror.endswith("/") for mirror in mirrors)


# --- CIFAR-10 -----------------------------------------------------------------------------------------------


def test_cifar(tmp_path, monkeypatch):
    generator = np.random.default_rng(2)
    images = generator.integers(0, 256, (12, 32, 32, 3), np.uint8)
    labels = np.arange(12, dtype=np.uint8) % 10
    planes = images.transpose(0, 3, 1, 2)
    records = [bytes([label]) + plane.tobytes() for label, plane in zip(labels, planes, strict=True)]
    members = {f"data_batch_{i + 1}.bin": b"".join(records[2 * i : 2 * i + 2]) for i in range(5)}
    members["test_batch.bin"] = b"".join(records[10:])
    members["../../evil.bin"] = b"not to be written anywhere"
    path = tmp_path / "cifar10" / cifar.FILE
    path.parent.mkdir()
    with tarfile.open(path, "w:gz") as tar:
        for name, blob in reversed(members.items()):
            info = tarfile.TarInfo(f"cifar-10-batches-bin/{name}")
            info.size = len(blob)
            tar.addfile(info, io.BytesIO(blob))

    with pytest.raises(DataError, match=f"{cifar.FILE}: not the published file .*{cifar.KNOWN[1]}"):
        data.load("cifar10", tmp_path)
    known = (path.stat().st_size, sha256(path.read_bytes()))
    monkeypatch.setattr(cifar, "KNOWN", known)
    for split, part in (("train", slice(10)), ("test", slice(10, 12))):
        dataset = data.load("cifar10", tmp_path, split)
        np.testing.assert_array_equal(dataset.images, images[part])
        np.testing.assert_array_equal(dataset.labels, labels[part])
        assert dataset.labels.dtype == np.int64 and dataset.size == 32 and dataset.classes[9] == "truck"
        assert dataset.hashes == {cifar.FILE: known[1]}
    assert [p.name for p in tmp_path.rglob("*") if p.is_file()] == [cifar.FILE]


# --- folders of images --------------------------------------------------------------------------------------


def paint(path, colour=(255, 0, 0), size=(40, 40), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)


@pytest.fixture
def pets(tmp_path):
    root = tmp_path / "pets"
    paint(root / "dog" / "b.png", (0, 0, 255))
    paint(root / "dog" / "a.png", (0, 255, 0))
    paint(root / "cat" / "kittens" / "1.PNG", (255, 0, 0))
    paint(root / "cat" / ".hidden.png")
    paint(root / "cat" / ".trash" / "1.png")
    paint(root / ".thumbnails" / "a.png")
    (root / "notes").mkdir()
    (root / "notes" / "read.txt").write_text("no image")
    return root


def test_folder_classes_in_order(pets, tmp_path):
    dataset = data.load(str(pets), tmp_path, size=32)
    assert dataset.classes == ("cat", "dog") and dataset.labels.tolist() == [0, 1, 1]
    assert dataset.images.shape == (3, 32, 32, 3) and dataset.labels.dtype == np.int64
    assert dataset.images[:, 5, 5].tolist() == [[255, 0, 0], [0, 255, 0], [0, 0, 255]]
    assert data.load(str(pets), tmp_path).size == 64
    x, y = data.batch(dataset, np.array([2, 0]))
    assert x[0, 0, 0].tolist() == [-1, -1, 1] and y.tolist() == [1, 0]


def test_folder_order_is_that_of_names(tmp_path):
    names = "hcagbfed"
    for name in names:
        paint(tmp_path / "set" / "class" / f"{name}.bmp", (ord(name),) * 3)
    dataset = data.load(str(tmp_path / "set"), tmp_path, size=32)
    assert dataset.images[:, 0, 0, 0].tolist() == sorted(map(ord, names))


def test_folder_without_classes(tmp_path):
    paint(tmp_path / "b.jpg", (0, 0, 0))
    paint(tmp_path / "a.jpg", (255, 255, 255))
    dataset = data.load(str(tmp_path), tmp_path / "cache", size=32)
    assert dataset.classes == ("all",) and dataset.labels.tolist() == [0, 0]
    assert dataset.images[:, 0, 0, 0].tolist() == [255, 0]


def decoded(tmp_path, image, **options):
    path = tmp_path / "one.png"
    image.save(path, **options)
    pixels, content = decode.decode(path, 32)
    assert pixels is not None, content
    assert content == hashlib.sha256(path.read_bytes()).digest()
    return np.frombuffer(pixels, np.uint8).reshape(32, 32, 3)


def test_decode_crops_the_middle(tmp_path):
    stripes = np.repeat(np.eye(3, dtype=np.uint8) * 255, 32, axis=0)[None].repeat(32, axis=0)  # R | G | B
    for image in (Image.fromarray(stripes), Image.fromarray(stripes.transpose(1, 0, 2).copy())):
        assert (decoded(tmp_path, image) == (0, 255, 0)).all()


def test_decode_scales_by_lanczos(tmp_path):
    image = Image.fromarray(np.random.default_rng(3).integers(0, 256, (64, 64, 3), np.uint8))
    wanted = np.asarray(image.resize((32, 32), Image.Resampling.LANCZOS))
    np.testing.assert_array_equal(decoded(tmp_path, image), wanted)


def test_decode_turns_as_exif_says(tmp_path):
    pixels = np.zeros((32, 32, 3), np.uint8)
    pixels[:16] = 255  # the top
    exif = Image.Exif()
    exif[0x0112] = 6  # turn by 90 degrees, clockwise
    turned = decoded(tmp_path, Image.fromarray(pixels), exif=exif)
    np.testing.assert_array_equal(turned, np.rot90(pixels, -1))


def test_decode_lays_over_white(tmp_path):
    assert (decoded(tmp_path, Image.new("RGBA", (32, 32), (255, 0, 0, 0))) == 255).all()
    half = decoded(tmp_path, Image.new("RGBA", (32, 32), (0, 0, 0, 128)))
    assert (half == 127).all()
    grey = decoded(tmp_path, Image.new("LA", (32, 32), (10, 255)))
    assert (grey == 10).all()
    palette = Image.new("P", (32, 32), 1)
    palette.putpalette([9, 9, 9, 0, 0, 200])
    assert (decoded(tmp_path, palette) == (0, 0, 200)).all()
    assert (decoded(tmp_path, palette, transparency=1) == 255).all()


def test_decode_makes_grey_rgb(tmp_path):
    assert (decoded(tmp_path, Image.new("L", (32, 32), 77)) == 77).all()
    deep = Image.fromarray(np.full((32, 32), 77 * 256 + 3, np.uint16))
    assert (decoded(tmp_path, deep) == 77).all()


def test_folder_is_decoded_once(pets, tmp_path, monkeypatch):
    first = data.load(str(pets), tmp_path, size=32)
    assert isinstance(first.images, np.memmap) and not first.images.flags.writeable
    pixels = np.array(first.images)
    with monkeypatch.context() as patch:
        patch.setattr(cache_of_pixels, "decoded", lambda *_: pytest.fail("decoded again"))
        again = data.load(str(pets), tmp_path, size=32)
    np.testing.assert_array_equal(again.images, pixels)
    assert again.hashes == first.hashes and again.labels.tolist() == first.labels.tolist()
    cache = tmp_path / "folder-cache"
    (old,) = cache.iterdir()
    assert old.name.endswith(f"-{first.hashes['images']}.npy")

    whole = old.read_bytes()
    open_bracket = whole.replace(b"(3, 32, 32, 3)", b"((3, 32, 32,3)")  # a TokenError of Python's own reader
    assert open_bracket != whole and len(open_bracket) == len(whole)
    for damaged in (whole[:-1], whole[:20], bytes(len(whole)), b"", open_bracket, whole[:-2] + b"[]"):
        old.write_bytes(damaged)
        np.testing.assert_array_equal(data.load(str(pets), tmp_path, size=32).images, pixels)
        assert list(cache.iterdir()) == [old] and old.read_bytes() == whole

    paint(pets / "dog" / "a.png", (1, 2, 3))  # changed
    changed = data.load(str(pets), tmp_path, size=32)
    assert changed.images[1, 0, 0].tolist() == [1, 2, 3] and changed.hashes != first.hashes
    assert data.load(str(pets), tmp_path, size=64).hashes == changed.hashes  # of the files, whatever the size
    assert len(list(cache.iterdir())) == 3


def test_hash_of_a_folder_does_not_depend_on_its_place(pets, tmp_path):
    copytree(pets, tmp_path / "copy")
    hashes = [data.load(str(tmp_path / name), tmp_path, size=32).hashes for name in ("pets", "copy")]
    assert hashes[0] == hashes[1]


def test_folders_that_look_alike_are_told_apart(tmp_path):
    for name, colour in (("one", 10), ("two", 20)):
        paint(tmp_path / name / "a.bmp", (colour,) * 3)
        os.utime(tmp_path / name / "a.bmp", (0, 0))
        assert data.load(str(tmp_path / name), tmp_path, size=32).images[0, 0, 0, 0] == colour


def test_unwritable_cache_stays_in_memory(pets, tmp_path, monkeypatch, capsys):
    wanted = data.load(str(pets), tmp_path, size=32)
    (tmp_path / "file").write_text("where the folder should be")

    def full(*_):
        raise OSError(28, "No space left on device")

    for where in ("file", "full"):
        with monkeypatch.context() as patch:
            if where == "full":
                patch.setattr(cache_of_pixels.os, "replace", full)
            dataset = data.load(str(pets), tmp_path / where, size=32)
        assert "the images stay in memory" in capsys.readouterr().err
        np.testing.assert_array_equal(dataset.images, wanted.images)
        assert dataset.hashes == wanted.hashes
    assert list((tmp_path / "full" / "folder-cache").iterdir()) == []


def test_bad_images_are_all_named(pets, tmp_path, monkeypatch):
    (pets / "cat" / "short.png").write_bytes(b"\x89PNG\r\n\x1a\n\0\0")  # a SyntaxError, in Pillow
    (pets / "cat" / "page.jpg").write_text("<html>")
    (pets / "cat" / "gone.png").symlink_to("nowhere")
    with pytest.raises(DataError, match="gone.png"):
        data.load(str(pets), tmp_path)
    (pets / "cat" / "gone.png").unlink()
    paint(pets / "dog" / "cut.bmp")
    cut = (pets / "dog" / "cut.bmp").read_bytes()
    (pets / "dog" / "cut.bmp").write_bytes(cut[: len(cut) // 2])
    paint(pets / "dog" / "bomb.png", size=(101, 100))
    Image.new("F", (8, 8)).save(pets / "dog" / "float.tif")
    monkeypatch.setattr(decode, "MAX_PIXELS", 10_000)
    with pytest.raises(DataError) as failure:
        data.load(str(pets), tmp_path)
    line = str(failure.value)
    assert "5 of 8 images" in line and "more" not in line.split("more than")[-1] and "\n" not in line
    for name in ("cat/short.png", "cat/page.jpg (not an image)", "dog/cut.bmp", "dog/float.tif"):
        assert name in line
    assert "dog/bomb.png (101x100 is more than 10000 pixels)" in line
    assert list((tmp_path / "folder-cache").iterdir()) == []

    (pets / "dog" / "sixth.gif").write_bytes(b"")
    with pytest.raises(DataError, match="6 of 9 .* and 1 more; repair"):
        data.load(str(pets), tmp_path)


def test_folder_that_is_no_data_set(pets, tmp_path):
    with pytest.raises(DataError, match="notes: no images"):
        data.load(str(pets / "notes"), tmp_path)
    paint(pets / "loose.png")
    with pytest.raises(DataError, match="pets: images both in it and in its folders"):
        data.load(str(pets), tmp_path)


def test_real_cifar_folder(tmp_path):
    place = real_data("cifar10-folder") / "cifar10-folder"
    for name in ("ship", "airplane"):
        copytree(place / name, tmp_path / "some" / name)
    dataset = data.load(str(tmp_path / "some"), tmp_path, size=32)
    assert dataset.classes == ("airplane", "ship") and np.bincount(dataset.labels).tolist() == [500, 500]
    first = np.asarray(Image.open(place / "airplane" / "0000.jpg").convert("RGB"))
    np.testing.assert_array_equal(dataset.images[0], first)  # 32x32 already: untouched


def test_drawn_test_digits_are_not_those_of_the_training():
    assert data.DRAWN == {"train": (20_000, 0), "test": (10_000, 1)}  # count and seed


def test_the_middle_of_an_odd_rest_lies_a_pixel_nearer_to_the_corner():
    assert data.crop(np.arange(32)[None, :, None] * np.ones((1, 32, 32)), 27)[0, 0, 0] == 2


def test_cifar_of_a_label_that_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr(cifar, "BYTES", cifar.RECORD)
    for name in cifar.MEMBERS["test"]:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(bytes([10]) + bytes(3072))
    with pytest.raises(DataError, match="test_batch.bin: missing, or not a file of CIFAR-10"):
        data.load("cifar10", tmp_path, "test")
