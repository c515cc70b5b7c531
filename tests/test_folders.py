"""Data as people have it: nothing is left out in silence, nothing strange is trained on."""

import json
import os
import signal
import struct
import subprocess
import sys
import time
import zlib

import numpy as np
import pytest
from command_line import ROOT
from PIL import Image

from minisagan import data
from minisagan.data import Reading, decode, parts, pixels, pool
from minisagan.errors import DataError, UsageError
from minisagan.files import lock


def paint(path, colour=(255, 0, 0), size=(32, 32), mode="RGB", **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, colour).save(path, **options)


@pytest.fixture
def pets(tmp_path):
    """cat/ and dog/ with two images each, in tmp_path / "pets"."""
    for kind in ("cat", "dog"):
        for k in range(2):
            paint(tmp_path / "pets" / kind / f"{k}.png", (100 * k, 0, 0))
    return tmp_path / "pets"


@pytest.fixture
def load(tmp_path, capsys):
    """load(root, ...) -> (Dataset, what was said on stderr)."""

    def loaded(root, size=32, **how):
        dataset = data.load(str(root), tmp_path / "data", size=size, how=Reading(**how))
        return dataset, capsys.readouterr().err

    return loaded


# --- what is data -------------------------------------------------------------------------------------------


def test_a_file_is_what_its_content_says(pets, load):
    for file in (pets / "dog").iterdir():
        Image.open(file).save(file.with_suffix(".jfif"), "jpeg")
        file.unlink()
    paint(pets / "dog" / "no ending", format="webp")
    dataset, said = load(pets)
    assert dataset.classes == ("cat", "dog") and dataset.labels.tolist() == [0, 0, 1, 1, 1] and said == ""


def test_what_is_no_image_is_counted_and_named(pets, load):
    for name in "abc":
        (pets / "cat" / f"{name}.heic").write_bytes(b"\0\0\0\x18ftypheic" + bytes(40))
    (pets / "bird").mkdir()
    (pets / "bird" / "d.txt").write_text("a bird")
    dataset, said = load(pets)
    assert len(dataset) == 4 and dataset.classes == ("cat", "dog")
    assert "4 files are no images that can be read: bird/d.txt, cat/a.heic, cat/b.heic, cat/c.heic" in said
    assert "pip install pillow-heif" in said and "no image in class bird" in said
    assert load(pets)[1] == said  # of the cache, too
    with pytest.raises(DataError, match="4 files would be left out, which --strict forbids: bird/d.txt"):
        load(pets, strict=True)


@pytest.mark.parametrize("train", ["train", "Training"])
@pytest.mark.parametrize("others", [["test"], ["val", "test"], ["Valid"], []])
def test_splits_are_not_classes(tmp_path, load, train, others):
    for split in (train, *others):
        for kind in ("cat", "dog"):
            paint(tmp_path / "pets" / split / kind / "1.png")
    (tmp_path / "pets" / "notes").mkdir()
    (tmp_path / "pets" / "notes" / "a.txt").write_text("from where they are")
    dataset, said = load(tmp_path / "pets")
    assert dataset.classes == ("cat", "dog") and len(dataset) == 2
    assert f"{train} is its training split" in said and all(name in said for name in others)


def test_what_lies_beside_splits_is_named(tmp_path, load):
    for path in ("train/cat/1.png", "train/dog/1.png", "test/cat/1.png", "extra/cat/1.png", "all of them.png"):
        paint(tmp_path / "pets" / path)
    dataset, said = load(tmp_path / "pets")
    assert dataset.classes == ("cat", "dog") and len(dataset) == 2
    assert "train is its training split; not trained on: test, all of them.png, extra" in said


@pytest.mark.parametrize("name", ["train", "test"])
def test_a_class_may_have_the_name_of_a_split(pets, load, name):
    paint(pets / name / "1.png")
    assert load(pets)[0].classes == ("cat", "dog", name)


def test_splits_without_one_to_train_on(tmp_path, load):
    paint(tmp_path / "pets" / "test" / "1.png")
    paint(tmp_path / "pets" / "val" / "1.png")
    with pytest.raises(DataError, match="has test and val, but no train; name the folder"):
        load(tmp_path / "pets")


@pytest.mark.parametrize("litter", ["@eaDir", "__MACOSX", ".ipynb_checkpoints", "cat/@eaDir"])
def test_litter_is_passed_over_and_named(pets, load, litter):
    paint(pets / litter / "0.png" / "THUMB.jpg")
    (pets / "Thumbs.db").write_bytes(b"\xd0\xcf\x11\xe0")
    dataset, said = load(pets)
    assert dataset.classes == ("cat", "dog") and len(dataset) == 4
    assert said == f"note: {pets}: passed over: {', '.join(sorted([litter, 'Thumbs.db']))}\n"


def test_each_file_once_by_what_it_resolves_to(pets, tmp_path, load):
    (pets / "all of them").symlink_to(".")
    (pets / "above").symlink_to("..")
    (pets / "aardvark").symlink_to("dog")  # before dog, but dog is really there
    (pets / "cat" / "again.png").symlink_to("../dog/0.png")
    paint(tmp_path / "elsewhere" / "1.png")
    (pets / "linked").symlink_to(tmp_path / "elsewhere")
    dataset, said = load(pets)
    assert dataset.classes == ("cat", "dog", "linked") and np.bincount(dataset.labels).tolist() == [2, 2, 1]
    for name in ("all of them", "above", "aardvark", "cat/again.png"):
        assert f"{name} (a link to what is here already)" in said


def test_a_link_to_nowhere_is_one_file(pets, load):
    (pets / "cat" / "gone.png").symlink_to("nowhere")
    (pets / "notes").symlink_to("nowhere")
    with pytest.raises(DataError, match=r"1 of 5 images cannot be read: cat/gone.png \(a link to nowhere\)"):
        load(pets)
    dataset, said = load(pets, skip_unreadable=True)
    assert len(dataset) == 4 and dataset.skipped == ("cat/gone.png",)
    assert "1 file cannot be read, skipped: cat/gone.png" in said and "notes (a link to nowhere)" in said


def test_a_run_is_no_data(pets, load):
    run = pets / "runs" / "pets"
    paint(run / "samples" / "step-1.png")
    (run / "checkpoints").mkdir()
    (run / "config.json").write_text("{}")
    dataset, said = load(pets)
    assert dataset.classes == ("cat", "dog") and "passed over: runs/pets (a run)" in said
    with pytest.raises(DataError, match="the folder of a run, not of images"):
        load(run)


def test_a_pipe_is_not_waited_for(pets, load):
    os.mkfifo(pets / "cat" / "pipe.png")
    assert "cat/pipe.png (not a file)" in load(pets)[1]


def test_classes_in_natural_order(tmp_path, load):
    for k in range(1, 13):
        paint(tmp_path / "pets" / str(k) / "1.png")
    assert load(tmp_path / "pets")[0].classes == tuple(str(k) for k in range(1, 13))


# --- damage -------------------------------------------------------------------------------------------------


def chunk(kind, content):
    return struct.pack(">I", len(content)) + kind + content + struct.pack(">I", zlib.crc32(kind + content))


@pytest.mark.parametrize(
    "extra",
    [
        chunk(b"eXIf", b"MM\0*\0\0\0\x08\xff\xff"),
        chunk(b"zTXt", b"note\0\0" + zlib.compress(bytes(1 << 21))),
        chunk(b"iTXt", b"note\0\1\0\0\0" + zlib.compress(bytes(1 << 21))),
        chunk(b"iCCP", b"profile\0\0" + zlib.compress(bytes(1 << 21))),
        chunk(b"tEXt", b"note\0hello")[:-1] + b"!",  # a wrong checksum
    ],
    ids=["exif", "text", "text in UTF-8", "profile", "checksum"],
)
def test_damage_to_what_is_no_pixel_does_no_harm(pets, load, recwarn, extra):
    path = pets / "cat" / "1.png"
    whole = path.read_bytes()
    path.write_bytes(whole[:33] + extra + whole[33:])  # behind IHDR
    dataset, said = load(pets)
    assert len(dataset) == 4 and (dataset.images[1] == (100, 0, 0)).all() and said == ""
    assert decode.decode(path, 32)[0] and not recwarn  # Pillow's warnings name no file


def test_damaged_images_are_left_out_when_asked(pets, load, tmp_path):
    paint(pets / "cat" / "cut.jpg", (0, 0, 255))
    path = pets / "cat" / "cut.jpg"
    path.write_bytes(path.read_bytes()[:-200])
    whole = load(pets, skip_unreadable=True)[0]
    assert whole.skipped == ("cat/cut.jpg",) and len(whole) == 4
    with pytest.raises(DataError, match="1 of 5 images .*cut.jpg .*--skip-unreadable"):
        load(pets)  # though it is in the cache
    with pytest.raises(UsageError, match="choose one"):
        load(pets, skip_unreadable=True, strict=True)


def test_all_of_many_damaged_images_are_named_in_a_file(pets, load, tmp_path):
    for k in range(12):
        (pets / "cat" / f"bad {k:02}.png").write_bytes(b"")
    with pytest.raises(DataError, match="12 of 16 .* and 7 more; .*all are named in ") as failure:
        load(pets)
    (listing,) = (tmp_path / "data" / "folder-cache").iterdir()
    assert str(failure.value).endswith(str(listing))
    named = [line.split("\t")[0] for line in listing.read_text().splitlines()]
    assert named == [f"cat/bad {k:02}.png" for k in range(12)]


def test_a_pgm_of_16_bits_is_read_by_its_own_maximum(tmp_path, load):
    root = tmp_path / "set"
    root.mkdir()
    for name, most in (("a.pgm", 65535), ("b.pgm", 1023)):
        (root / name).write_bytes(b"P5 32 32 %d\n" % most + struct.pack(">H", most // 2) * 1024)
    assert load(root)[0].images[:, 0, 0, 0].tolist() == [127, 127]


def test_floats_are_refused_with_their_range(tmp_path, load):
    root = tmp_path / "set"
    root.mkdir()
    Image.fromarray(np.linspace(-1, 2, 64, dtype=np.float32).reshape(8, 8)).save(root / "a.tif")
    with pytest.raises(DataError, match="its pixels, -1 to 2, have no known range: save it with 8 or 16 bits"):
        load(root)


def test_huge_pictures_are_decoded_smaller(pets, load, monkeypatch):
    paint(pets / "cat" / "huge.jpg", (200, 200, 200), (400, 400))
    monkeypatch.setattr(decode, "LARGE", 10_000)
    monkeypatch.setattr(decode, "MAX_PIXELS", 40_000)
    assert len(load(pets)[0]) == 5
    paint(pets / "cat" / "huge.png", size=(400, 400))
    with pytest.raises(DataError, match="huge.png .400x400 is more than 40000 pixels"):
        load(pets)


def test_more_megapixels_than_pillow_likes(pets, load, recwarn):
    paint(pets / "cat" / "scan.png", 0, (14_000, 13_000), "1")  # beyond twice its limit
    assert len(load(pets)[0]) == 5 and not recwarn


# --- how it is read -----------------------------------------------------------------------------------------


def test_grey_and_padded(tmp_path, load):
    paint(tmp_path / "set" / "wide.png", (0, 0, 255), (64, 32))
    wide = load(tmp_path / "set", fit="pad", channels=1)[0]
    assert wide.images.shape == (1, 32, 32, 1) and wide.channels == 1
    assert (wide.images[0, 8:24] == 29).all() and (wide.images[0, :8] == 0).all() and (wide.images[0, 24:] == 0).all()
    assert (load(tmp_path / "set")[0].images == (0, 0, 255)).all()
    with pytest.raises(UsageError, match="crop or pad"):
        Reading(fit="stretch")
    with pytest.raises(UsageError, match="only of a folder of images"):
        data.load("drawn-digits", how=Reading(fit="pad"))


LISTS = {
    "a.csv": "a.png,cat\nsub/b.png,dog\n",
    "b.csv": "id;note;breed\na;x;cat\nb;y;dog\n",
    "c.csv": "set/a.png,cat\n.\\sub\\b.png,dog\n",
    "a.json": json.dumps({"a.png": "cat", "b.png": "dog"}),
    "b.json": json.dumps([{"file": "a.png", "label": "cat"}, {"file": "sub/b.png", "label": "dog"}]),
    "c.json": json.dumps({"labels": [["a.png", "cat"], ["sub/b.png", "dog"]]}),
}


@pytest.mark.parametrize("name", LISTS)
def test_labels_from_a_list(tmp_path, load, name):
    for file in ("a.png", "sub/b.png", "c.png"):
        paint(tmp_path / "set" / file)
    path = tmp_path / name
    path.write_text(LISTS[name])
    dataset, said = load(tmp_path / "set", labels=str(path))
    assert dataset.classes == ("cat", "dog") and dataset.labels.tolist() == [0, 1]
    assert "1 file without a label, left out: c.png" in said
    path.write_text(LISTS[name].replace("dog", "cow"))
    assert load(tmp_path / "set", labels=str(path))[0].hashes != dataset.hashes


def test_a_list_of_labels_in_the_folder_is_nothing_left_out(tmp_path, load):
    paint(tmp_path / "set" / "a.png")
    path = tmp_path / "set" / "dataset.json"
    path.write_text('{"labels": [["a.png", 0]]}')
    assert load(tmp_path / "set", labels=str(path), strict=True)[1] == ""


@pytest.mark.parametrize(
    "text, message",
    [
        ("z.png,cat\n", "1 of 1 files not in .*: z.png"),
        ("a.png,cat\nb.png\n", "1 of 2 lines have no label: 'b.png'"),
        ('a.png,"cat\nb.png,dog\n', "not a list of files and labels .unexpected end"),
        ("picture,kind\na.png,cat\n", "1 of 2 files not in .*: picture; a header has to name"),
        ("file,label\n", "it names no file"),
        ('{"a.png": {"label": 1}}', 'not a list of files and labels, as {"1.png": "cat"'),
        ('["a.png"]', "not a list of files and labels, as"),
        ("5", "not a list of files and labels, as"),
        ("[" * 100_000, "not a list of files and labels, as"),
        ('{"a.png": null}', "a.png has no label"),
        ("a.png,cat\na.png,dog\n", "a.png has two labels"),
        ("a.png,\n", "a.png has no label"),
        ('{"a.png": "cat", "a.png": "dog"}', "a name stands twice in it"),
        ("", "it names no file"),
    ],
)
def test_lists_that_fit_no_folder(tmp_path, load, text, message):
    paint(tmp_path / "set" / "a.png")
    path = tmp_path / ("list.json" if text[:1] in ("{", "[", "5") else "list.csv")
    path.write_text(text)
    with pytest.raises(DataError, match=message):
        load(tmp_path / "set", labels=str(path))
    with pytest.raises(UsageError, match="No such file"):
        load(tmp_path / "set", labels=str(tmp_path / "none.csv"))


# --- decoding that is interrupted ---------------------------------------------------------------------------

SLOW = """
import sys, time
from minisagan import data
from minisagan.data import decode, pixels, pool
pixels.CHUNK, pool.TASK, quick = 4, (2, 1 << 18), decode.decode
decode.decode = lambda *args: time.sleep(0.05) or quick(*args)
data.load(sys.argv[1], sys.argv[2], size=32)
"""


def test_a_killed_decoding_goes_on(tmp_path, load, monkeypatch):
    for k in range(80):
        paint(tmp_path / "set" / f"{k:02}.png", (k, 0, 0))
    wanted = np.array(load(tmp_path / "set")[0].images)
    cache = tmp_path / "data" / "folder-cache"
    for file in cache.iterdir():
        file.unlink()
    child = subprocess.Popen([sys.executable, "-c", SLOW, tmp_path / "set", tmp_path / "data"], cwd=ROOT)
    while not (journals := list(cache.glob("*.journal"))) or journals[0].read_text().count("\n") < 4:
        time.sleep(0.02)
        assert child.poll() is None
    child.send_signal(signal.SIGKILL)
    child.wait()
    decoded = []
    monkeypatch.setattr(pixels, "decoded", lambda paths, *how: decoded.extend(paths) or pool.decoded(paths, *how))
    np.testing.assert_array_equal(load(tmp_path / "set")[0].images, wanted)
    assert 0 < len(decoded) < 80
    assert [file.suffix for file in cache.iterdir()] == [".npy"]


def test_torn_notes_of_a_decoding_are_decoded_again(pets, load, tmp_path):
    wanted = np.array(load(pets)[0].images)
    cache = tmp_path / "data" / "folder-cache"
    (file,) = cache.iterdir()
    key, owner = file.name.split("-")[0], os.fsencode(pets.resolve()).hex()
    for journal in ("", owner, f"{owner}\n", f'{owner}\n["00", "00"', f'{owner}\n["00", "00"]\n', "other\n[]\n"):
        file.unlink()
        (cache / f"{key}.part").write_bytes(b"torn")
        (cache / f"{key}.journal").write_text(journal)
        np.testing.assert_array_equal(load(pets)[0].images, wanted)
        assert list(cache.iterdir()) == [file]


def test_parts_that_nobody_writes_are_removed(pets, load, tmp_path):
    cache = tmp_path / "data" / "folder-cache"
    cache.mkdir(parents=True)
    day, owner = time.time() - 2 * parts.DAY, os.fsencode(pets.resolve()).hex()
    for name, of in (("same", owner), ("young", "another"), ("old", "another"), ("busy", owner)):
        (cache / f"{name}.part").write_bytes(bytes(100))
        (cache / f"{name}.journal").write_text(of + "\n")
    (cache / "1234.567.part").write_bytes(bytes(100))  # as the last version named them
    (cache / "done.journal").write_text("another\n")  # killed when its part had just got its name
    for name in ("old.part", "1234.567.part"):
        os.utime(cache / name, (day, day))
    with parts.claim(cache / "busy.part", None):
        load(pets)
    assert sorted(file.name for file in cache.glob("*.part")) == ["busy.part", "young.part"]
    assert sorted(file.name for file in cache.glob("*.journal")) == ["busy.journal", "young.journal"]


def test_two_readers_of_one_folder_decode_it_once(tmp_path, load):
    for k in range(20):
        paint(tmp_path / "set" / f"{k:02}.png", (k, 0, 0))
    command = [sys.executable, "-c", SLOW, tmp_path / "set", tmp_path / "data"]
    children = [subprocess.Popen(command, cwd=ROOT, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    said = [child.communicate(timeout=60)[1] for child in children]
    assert [child.returncode for child in children] == [0, 0]
    assert sum("waiting for it" in text for text in said) == 1
    assert load(tmp_path / "set")[0].images[:, 0, 0, 0].tolist() == list(range(20))


def test_added_removed_and_changed_files_are_noticed(pets, load):
    paint(pets / "cat" / "2.png")
    assert len(load(pets)[0]) == 5
    (pets / "cat" / "2.png").unlink()
    before = load(pets)[0]
    assert len(before) == 4
    paint(pets / "cat" / "1.png", (1, 2, 3))
    assert load(pets)[0].hashes != before.hashes


def test_a_class_without_files_is_named(pets, load):
    (pets / "eel" / "old").mkdir(parents=True)
    dataset, said = load(pets)
    assert dataset.classes == ("cat", "dog") and said == f"note: {pets}: no image in class eel\n"


def test_a_newline_in_a_name_does_not_end_the_line(pets, load):
    (pets / "cat" / "a\nb.txt").write_text("no image")
    assert load(pets)[1] == f"note: {pets}: 1 file is no image that can be read: cat{os.sep}a\\nb.txt\n"


def test_what_could_not_be_opened_is_tried_again(pets, load, monkeypatch):
    """Not only is a refusal of the system forgotten: of two caches of one list of files the old one goes."""
    real, refusal = decode.decode, (None, "[Errno 13] Permission denied: x")
    with monkeypatch.context() as patch:
        patch.setattr(decode, "decode", lambda path, *how: refusal if path.endswith("1.png") else real(path, *how))
        assert len(load(pets, skip_unreadable=True)[0]) == 2
    dataset, said = load(pets)
    assert len(dataset) == 4 and said == ""
    assert len(list((pets.parent / "data" / "folder-cache").glob("*.npy"))) == 1


def test_other_formats_are_another_cache(pets, load, monkeypatch):
    before = pixels.key(pets, ["cat/0.png"], (32, 32, 3), "crop")
    monkeypatch.setattr(pixels, "FORMATS", [*pixels.FORMATS, "NEW"])
    assert pixels.key(pets, ["cat/0.png"], (32, 32, 3), "crop") != before


def test_a_name_that_two_images_have_is_no_images(tmp_path, load):
    for file in ("a/1.png", "b/1.png", "b/2.png"):
        paint(tmp_path / "set" / file)
    (tmp_path / "list.csv").write_text("1.png,cat\n2.png,dog\n")
    with pytest.raises(DataError, match="1 of 2 files not in .*: 1.png"):
        load(tmp_path / "set", labels=str(tmp_path / "list.csv"))


def test_a_folder_read_in_two_ways_has_two_caches(tmp_path, load):
    paint(tmp_path / "set" / "wide.png", (0, 0, 255), (64, 32))
    crop, pad = (load(tmp_path / "set", fit=fit)[0].images for fit in ("crop", "pad"))
    assert (crop == (0, 0, 255)).all() and (pad[0, :8] == 0).all()


def test_huge_pictures_keep_their_detail(tmp_path, monkeypatch):
    x = np.random.default_rng(0).integers(0, 256, (16, 16, 3), np.uint8)
    Image.fromarray(x).resize((128, 128), Image.Resampling.BICUBIC).save(tmp_path / "a.jpg", quality=95)
    whole = np.frombuffer(decode.decode(tmp_path / "a.jpg", 32)[0], np.uint8).astype(int)
    monkeypatch.setattr(decode, "LARGE", 10_000)
    smaller = np.frombuffer(decode.decode(tmp_path / "a.jpg", 32)[0], np.uint8)
    assert 0 < np.abs(smaller - whole).mean() < 3


def test_a_picture_of_just_the_most_pixels_is_taken(tmp_path, monkeypatch):
    paint(tmp_path / "a.png", 0, (40, 40))
    monkeypatch.setattr(decode, "MAX_PIXELS", 1600)
    assert decode.decode(tmp_path / "a.png", 32)[0]


def test_a_png_with_a_damaged_chunk_is_turned_as_its_exif_says(tmp_path, load):
    exif = Image.Exif()
    exif[0x0112] = 3  # upside down
    image = Image.new("RGB", (32, 32))
    image.paste((255, 0, 0), (0, 0, 32, 16))
    (tmp_path / "set").mkdir()
    image.save(tmp_path / "set" / "a.png", exif=exif)
    whole = (tmp_path / "set" / "a.png").read_bytes()
    wanted = np.array(load(tmp_path / "set")[0].images)
    assert (wanted[0, 31, 0] == (255, 0, 0)).all()
    broken = struct.pack(">I", 4) + b"iCCP" + b"\0\0\0\0" + b"bad!"
    (tmp_path / "set" / "a.png").write_bytes(whole[:33] + broken + whole[33:])
    np.testing.assert_array_equal(load(tmp_path / "set")[0].images, wanted)


def test_two_splits_to_train_on(tmp_path, load):
    for name in ("train", "training"):
        paint(tmp_path / "pets" / name / "cat" / "1.png")
    with pytest.raises(DataError, match="has train and training; name the folder to take"):
        load(tmp_path / "pets")


def test_a_sweep_leaves_the_own_part_and_others_for_a_day(tmp_path):
    for name, of in (("mine", "me"), ("young", "another"), ("old", "another")):
        (tmp_path / f"{name}.part").write_bytes(b"")
        (tmp_path / f"{name}.journal").write_text(of + "\n")
    for name, hours in (("young", 23), ("old", 25)):
        os.utime(tmp_path / f"{name}.part", (time.time() - hours * 3600,) * 2)
    parts.sweep(tmp_path, "me", tmp_path / "mine.part")
    left = ["mine.journal", "mine.part", "young.journal", "young.part"]
    assert sorted(file.name for file in tmp_path.iterdir()) == left


def test_a_file_that_lost_its_name_meanwhile_is_not_written(tmp_path):
    path, other = tmp_path / "a.part", open(tmp_path / "a.part", "w+b")  # noqa: SIM115
    assert lock(other)

    def wait():
        os.replace(path, tmp_path / "a.npy")
        other.close()

    with parts.claim(path, wait) as file:
        assert os.path.samestat(os.stat(path), os.fstat(file.fileno()))


def test_a_list_with_tabs(tmp_path, load):
    paint(tmp_path / "set" / "a.png")
    (tmp_path / "list.tsv").write_text("a.png\tcat\n")
    assert load(tmp_path / "set", labels=str(tmp_path / "list.tsv"))[0].classes == ("cat",)
