"""Pictures, by their pixels: what is drawn lies where it should, and files come back as they went in."""

import contextlib
import os
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from minisagan.data.drawn import draw
from minisagan.errors import DataError, Fault, UsageError
from minisagan.look import pictures
from minisagan.look.pictures import colormap, grid, overlay, read_png, write_gif, write_png
from minisagan.look.plot import Axis, Panel, curves, plot, running_mean, svg

pytestmark = pytest.mark.filterwarnings("error")

GREYS = pictures.GREYS
BLUE, VERMILLION = pictures.SERIES[:2]
HEADER = 30  # rows of a panel that hold its title and a legend of one line


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape, dtype=np.uint8)


def near(image, colour, distance=40):
    """Where a picture (H, W, 3) has a colour, "#rrggbb"."""
    rgb = np.array(list(bytes.fromhex(colour[1:])))
    return (np.abs(image.astype(int) - rgb) <= distance).all(-1)


def rows(image, colour):
    """For each column the mean row in which the colour is drawn, below the header; NaN if nowhere."""
    mask = near(image, colour)
    mask[:HEADER] = False
    at = np.arange(len(image))[:, None]
    return np.where(mask.any(0), (mask * at).sum(0) / np.maximum(mask.sum(0), 1), np.nan)


def inked(rows):
    """The columns, from the first to the last, in which something is drawn."""
    return np.flatnonzero(np.isfinite(rows))


def one_panel(*series, **options):
    return plot([Panel("title", "x", "y", list(series))], **options)


def read(path):
    with Image.open(path) as image:
        return np.asarray(image)


# Grids


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_shows_image_k_in_cell_k_enlarged_pixel_by_pixel(channels):
    images = noise(7, 5, 6, channels)
    sheet = grid(images, columns=3, scale=4)
    assert sheet.dtype == np.uint8 and sheet.shape == (3 * 20 + 2 * 2, 3 * 24 + 2 * 2, channels)
    rest = np.ones(sheet.shape, bool)
    for k, image in enumerate(images):
        y, x = k // 3 * 22, k % 3 * 26
        cell = sheet[y:y + 20, x:x + 24]
        np.testing.assert_array_equal(cell, np.kron(image, np.ones((4, 4, 1), np.uint8)))
        rest[y:y + 20, x:x + 24] = False
    assert (sheet[rest] == 128).all() and rest.sum() > 2 * 20 * 24  # gaps and the two empty cells


@pytest.mark.parametrize("width, scale", [(20, 3), (28, 2), (32, 2), (55, 2), (56, 1), (64, 1), (128, 1)])
def test_grid_makes_small_images_at_least_56_pixels_wide(width, scale):
    assert grid(noise(2, 3, width, 1), columns=1).shape == (2 * 3 * scale + 2, width * scale, 1)


def test_grid_of_fewer_images_than_columns_has_no_empty_cells():
    images = noise(2, 64, 64, 3)
    np.testing.assert_array_equal(grid(images, columns=9), grid(images, columns=2))


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_writes_the_name_of_each_row_beside_it(channels):
    images = noise(6, 60, 60, channels)
    sheet, plain = grid(images, 2, names=["ship", "", "ship"]), grid(images, 2)
    width = sheet.shape[1] - plain.shape[1]
    np.testing.assert_array_equal(sheet[:, width:], plain)
    left = sheet[:, :width]
    first, second, third = left[:60], left[62:122], left[124:]
    assert (second == 255).all() and (left[:, [0, -1]] == 255).all()
    np.testing.assert_array_equal(first, third)
    ink = np.flatnonzero((first < 100).any((1, 2)))
    assert len(ink) >= 12 and abs(ink.mean() - 30) < 3  # high enough to read, halfway down the row


@pytest.mark.parametrize("channels", [1, 3])
def test_grid_writes_heads_above_the_columns_and_captions_below_the_images(channels):
    images = noise(5, 60, 60, channels)
    plain = grid(images, 3)
    sheet = grid(images, 3, heads=["a", "", "b"], captions=["x", "", "y", "x", ""], names=["", ""])
    left = sheet.shape[1] - plain.shape[1]
    assert sheet.shape[0] == plain.shape[0] + 3 * 18 and (sheet[:18, :left] == 255).all()
    for k in range(6):
        top, x = 18 + k // 3 * (60 + 18 + 2), left + k % 3 * 62
        cell = sheet[top:top + 60, x:x + 60]
        np.testing.assert_array_equal(cell, images[k] if k < 5 else 128)
    heads = sheet[:18, left:]
    first, second = sheet[78:96, left:], sheet[158:176, left:]
    for strip, texts in ((heads, "a b"), (first, "x y")):
        for k, text in enumerate(texts):
            part = strip[:, 62 * k:62 * k + 60]
            ink = np.argwhere(part.min(-1) < 100)
            assert (part == 255).all() if text == " " else len(ink) > 6 and np.abs(ink.mean(0) - [9, 30]).max() < 3
    assert not np.array_equal(heads[:, :60], heads[:, 124:])
    np.testing.assert_array_equal(first[:, :60], second[:, :60])
    with pytest.raises(ValueError):
        grid(images, 3, heads=["one for three columns"])


def test_grid_refuses_what_cannot_be_a_grid():
    for arguments in [dict(columns=0), dict(columns=2, scale=0)]:
        with pytest.raises(UsageError, match="0"):
            grid(noise(4, 8, 8, 1), **arguments)
    with pytest.raises(UsageError, match="0 images"):
        grid(noise(0, 8, 8, 1), 2)
    for images in [noise(4, 8, 8), noise(4, 8, 8, 2), np.zeros((4, 8, 8, 1), np.float32)]:
        with pytest.raises(ValueError, match="not uint8"):
            grid(images, 2)
    with pytest.raises(ValueError):
        grid(noise(4, 8, 8, 1), 2, names=["one name for two rows"])


# Files


@pytest.mark.parametrize("shape", [(9, 7, 1), (9, 7, 3), (1, 1, 1), (5, 3, 1), (3, 4, 3), (4, 1, 3)])
def test_png_comes_back_as_it_went_in(tmp_path, shape):
    image = noise(*shape)
    write_png(tmp_path / "a.png", image)
    np.testing.assert_array_equal(read(tmp_path / "a.png"), image[..., 0] if shape[-1] == 1 else image)
    np.testing.assert_array_equal(read_png(tmp_path / "a.png"), image)
    assert os.listdir(tmp_path) == ["a.png"]


def test_a_missing_or_damaged_png_is_named(tmp_path):
    write_png(tmp_path / "good.png", noise(40, 40, 3))
    whole = (tmp_path / "good.png").read_bytes()
    for name, data in {"short": whole[:-2000], "tiny": whole[:10], "empty": b"", "text": b"<html>"}.items():
        (tmp_path / f"{name}.png").write_bytes(data)
    for name in ("short", "tiny", "empty", "text", "absent"):
        with pytest.raises(DataError, match=rf"{name}\.png: not a picture that can be read"):
            read_png(tmp_path / f"{name}.png")


def film_of(path):
    """([frames (H, W, 3)], [durations], loop) of a GIF."""
    with Image.open(path) as film:
        frames, durations = [], []
        for k in range(film.n_frames):
            film.seek(k)
            durations.append(film.info["duration"])
            frames.append(np.asarray(film.convert("RGB")))
        return frames, durations, film.info["loop"]


@pytest.mark.parametrize("channels", [1, 3])
def test_gif_has_each_frame_for_its_time_and_repeats(tmp_path, channels):
    frames = [noise(8, 9, channels, seed=k).repeat(5, 0).repeat(5, 1) for k in range(4)]
    write_gif(tmp_path / "a.gif", frames, 120, last=1500)
    shown, durations, loop = film_of(tmp_path / "a.gif")
    assert durations == [120, 120, 120, 1500] and loop == 0
    for frame, wanted in zip(shown, frames, strict=True):
        error = np.abs(frame.astype(int) - wanted)
        assert error.max() <= (8 if channels == 1 else 128) and error.mean() < 16
        assert channels == 3 or (frame == frame[..., :1]).all()  # grey stays grey
    write_gif(tmp_path / "a.gif", frames, 120)
    assert film_of(tmp_path / "a.gif")[1] == [120] * 4


def test_gif_of_narrow_grey_frames_is_not_taken_for_one_in_colour(tmp_path):
    frames = [GREYS[noise(5, 3, 1, seed=k)] for k in range(2)]
    write_gif(tmp_path / "a.gif", frames, 100)
    for frame, wanted in zip(film_of(tmp_path / "a.gif")[0], frames, strict=True):
        np.testing.assert_array_equal(frame, np.broadcast_to(wanted, (5, 3, 3)))


def test_gif_keeps_few_colours_as_they_are_through_all_frames(tmp_path):
    few = noise(40, 3)
    frames = [few[noise(30, 30, seed=k) % 40] for k in range(3)]
    write_gif(tmp_path / "a.gif", frames, 100)
    for frame, wanted in zip(film_of(tmp_path / "a.gif")[0], frames, strict=True):
        assert np.abs(frame.astype(int) - wanted).max() <= 1


def test_gif_of_many_frames_is_thinned_between_the_first_and_the_last(tmp_path):
    frames = np.arange(0, 256, 2, dtype=np.uint8)[:, None, None, None] * np.ones((6, 6, 1), np.uint8)
    write_gif(tmp_path / "a.gif", frames // 17 * 17, 50, last=1000)
    shown, durations, _ = film_of(tmp_path / "a.gif")
    assert (shown[0] == 0).all() and (shown[-1] == frames[-1] // 17 * 17).all()
    assert sum(durations) == 39 * 50 + 1000  # equal neighbours became one, their time is kept
    levels = [frame[0, 0, 0] for frame in shown]
    assert levels == sorted(levels) and len(levels) == 15


@pytest.mark.parametrize("channels", [1, 3])
def test_gif_captions_stand_below_the_frames(tmp_path, channels):
    frames = [np.full((20, 150, channels), 17 * k, np.uint8) for k in range(3)]
    write_gif(tmp_path / "a.gif", frames, 100, captions=["step 100", "step 250", ""])
    shown, _, _ = film_of(tmp_path / "a.gif")
    for k, frame in enumerate(shown):
        assert frame.shape == (48, 150, 3)
        assert np.abs(frame[:20].astype(int) - 17 * k).max() <= 1
    strips = [frame[20:] for frame in shown]
    assert (strips[2] == 255).all()
    same = (strips[0] == strips[1]).all((0, 2))
    ink = (strips[0] < 100).any((0, 2)).nonzero()[0]
    assert same[:ink[0] + 30].all() and not same.all()  # "step " alike, the number not
    assert (strips[0] < 100).any((1, 2)).sum() >= 10


def test_gif_grows_as_wide_as_its_captions_need(tmp_path):
    write_gif(tmp_path / "a.gif", [noise(16, 16, 1)], 100, captions=["step 1,000,000"])
    frame = film_of(tmp_path / "a.gif")[0][0]
    assert frame.shape[1] > 100 and (frame[:16, 16:] == 255).all() and (frame[:, -7:] == 255).all()
    assert np.abs(frame[:16, :16, :1].astype(int) - noise(16, 16, 1)).max() <= 8


def test_gif_of_20_grids_of_digits_stays_below_a_megabyte(tmp_path):
    images = draw(500, seed=3)[0][..., None]
    sheets = [grid(images[k % 5 * 100:][:100], columns=10) for k in range(20)]
    assert sheets[0].shape == (578, 578, 1)
    write_gif(tmp_path / "a.gif", sheets, 200, captions=[f"step {k}" for k in range(20)])
    assert os.path.getsize(tmp_path / "a.gif") < 1e6


def test_gif_of_files_is_the_gif_of_their_pictures(tmp_path):
    frames = [noise(20, 30, 3, seed=k) for k in range(3)]
    files = [tmp_path / f"{k}.png" for k in range(3)]
    for file, frame in zip(files, frames, strict=True):
        write_png(file, frame)
    write_gif(tmp_path / "a.gif", frames, 100)
    write_gif(tmp_path / "b.gif", files, 100)
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()


def test_gif_of_frames_of_several_sizes_has_the_largest(tmp_path):
    small, wide = noise(20, 30, 1, seed=1) // 17 * 17, noise(20, 40, 1, seed=2) // 17 * 17
    write_gif(tmp_path / "a.gif", [small, wide], 100)
    frames = film_of(tmp_path / "a.gif")[0]
    assert frames[0].shape == frames[1].shape == (20, 40, 3)
    np.testing.assert_array_equal(frames[0][:, 10:], np.broadcast_to(small, (20, 30, 3)))
    np.testing.assert_array_equal(frames[1], np.broadcast_to(wide, (20, 40, 3)))
    assert (np.abs(frames[0][:, :10].astype(int) - 128) < 10).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_gif_is_scaled_down_until_it_is_small_enough(tmp_path, monkeypatch, channels):
    frames = [noise(120, 160, channels, seed=k) for k in range(5)]
    captions = [f"step {k}" for k in range(5)]
    monkeypatch.setattr(pictures, "LARGEST", 30_000)
    write_gif(tmp_path / "a.gif", frames, 100, captions=captions)
    shown, durations, _ = film_of(tmp_path / "a.gif")
    assert 15_000 < os.path.getsize(tmp_path / "a.gif") <= 30_000 and durations == [100] * 5
    h, w = shown[0].shape[0] - 28, shown[0].shape[1]  # the captions' letters are as they were
    assert 40 < h < 120 and 1.2 < w / h < 1.45


def test_gif_of_many_large_pictures_takes_little_memory(tmp_path):
    for k in range(2):
        write_png(tmp_path / f"{k}.png", noise(1600, 1600, 3, seed=k))
    code = (
        "import resource\nfrom pathlib import Path\nfrom minisagan.look.pictures import write_gif\n"
        "peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss >> 10\n"
        "before = peak()\nwrite_gif('a.gif', [Path(f'{k % 2}.png') for k in range(81)], 400)\nprint(peak() - before)"
    )
    env = {**os.environ, "PYTHONPATH": str(Path(pictures.__file__).parents[2])}
    run = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=env, stdout=-1, check=True)
    assert int(run.stdout) < 200  # MiB; the 40 frames alone would be 300
    assert os.path.getsize(tmp_path / "a.gif") <= 10 << 20


@contextlib.contextmanager
def full_disk(_):
    """No file can grow past 100 bytes."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


@contextlib.contextmanager
def no_replace(patch):
    def replace(*_):
        raise PermissionError(1, "Operation not permitted")

    with patch.context() as inside:
        inside.setattr(os, "replace", replace)
        yield


FAULTS = [(full_disk, "File too large"), (no_replace, "Operation not permitted")]


@pytest.mark.parametrize("fault, reason", FAULTS)
@pytest.mark.parametrize("write", [write_png, lambda path, image: write_gif(path, [image], 100)])
def test_a_failed_write_leaves_the_old_picture_and_no_other_file(tmp_path, monkeypatch, fault, reason, write):
    path = tmp_path / "a.gif"
    path.write_bytes(b"the old one")
    with fault(monkeypatch), pytest.raises(Fault, match=rf"^.*a\.gif: not written: {reason}$"):
        write(path, noise(50, 50, 1))
    assert os.listdir(tmp_path) == ["a.gif"] and path.read_bytes() == b"the old one"


def test_a_folder_that_is_not_there_is_named_and_not_made(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "folder").mkdir()
    for place in ["absent/a.png", "file/a.png", "folder"]:
        with pytest.raises(Fault, match=f"{place}: not written"):
            write_png(tmp_path / place, noise(4, 4, 1))
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"] and not os.listdir(tmp_path / "folder")


# Curves


def test_a_rising_series_rises_and_a_falling_one_falls():
    image = one_panel(("up", [0, 1, 2, 3], [0, 1, 2, 3]), ("down", [0, 1, 2, 3], [3, 2, 1, 0]))
    assert image.shape == (250, 900, 3) and image.dtype == np.uint8
    up, down = rows(image, BLUE), rows(image, VERMILLION)
    inner = slice(inked(up)[0] + 10, inked(down)[-1] - 10)
    assert np.nanmax(np.diff(up[inner])) <= 0.5 and np.nanmin(np.diff(down[inner])) >= -0.5
    assert up[inner][0] > 180 and up[inner][-1] < 60  # from the bottom to the top
    straight = np.linspace(up[inner][0], up[inner][-1], len(up[inner]))
    assert np.nanmax(np.abs(up[inner] - straight)) < 1.5


def test_values_stand_where_the_axis_says():
    image = one_panel(("low", [0, 8], [0, 0]), ("high", [0, 8], [9, 9]), ("between", [2, 6], [3, 3]))
    low, high, between = (rows(image, colour) for colour in pictures.SERIES[:3])
    low, high, level = np.nanmedian(low), np.nanmedian(high), np.nanmedian(between)
    assert abs((low - level) / (low - high) - 1 / 3) < 0.01
    ends, part = inked(rows(image, BLUE))[[0, -1]], inked(between)[[0, -1]]
    np.testing.assert_allclose((part - ends[0]) / (ends[1] - ends[0]), [0.25, 0.75], atol=0.01)
    ruled = np.flatnonzero((image[:, 150:200].max(-1) < 245).all(1) & (np.arange(250) > HEADER))
    ticks = 9 * (low - ruled) / (low - high)  # there is a rule from side to side at each
    assert all(np.abs(ticks - tick).min() < 0.06 for tick in (2, 4, 6, 8))
    assert all(np.abs(ticks - other).min() > 0.5 for other in (1, 5, 7))


@pytest.mark.parametrize("values, labels", [
    ([0, 50_000], ["0", "10,000", "20,000", "30,000", "40,000", "50,000"]),
    ([50, 50_000], ["0", "10,000", "20,000", "30,000", "40,000", "50,000"]),  # 0 is near
    ([1, 3], ["1", "2", "3"]),  # steps: none between
    ([0, 11], ["0", "5", "10"]),
    ([7], ["7"]),
    ([95, 105], ["96", "98", "100", "102", "104"]),
    ([-0.5, 1.5], ["-0.5", "0", "0.5", "1", "1.5"]),
    ([0.5, 0.5], ["0.45", "0.46", "0.47", "0.48", "0.49", "0.5", "0.51", "0.52", "0.53", "0.54", "0.55"]),
    ([1e-7, 3e-7], ["1e-07", "1.5e-07", "2e-07", "2.5e-07", "3e-07"]),
    ([1e6, 1e6 + 1e-3], ["1,000,000", "1,000,000.0002", "1,000,000.0004", "1,000,000.0006", "1,000,000.0008",
                         "1,000,000.001"]),
    ([5e-324, 1e-323], ["-1", "-0.5", "0", "0.5", "1"]),
    ([-1e29, 1e29], ["-1e+29", "-5e+28", "0", "5e+28", "1e+29"]),
    ([], ["0", "1"]),
    ([np.nan, 2.5, np.nan, 3.5], ["2.6", "2.8", "3", "3.2", "3.4"]),
])  # fmt: skip
def test_ticks_are_round_and_their_labels_true(values, labels):
    axis = Axis([np.array(values, float)], 10 if values == [0.5, 0.5] else 5, 0)
    assert axis.labels == labels
    np.testing.assert_allclose([float(label.replace(",", "")) for label in labels], axis.ticks, rtol=1e-12)
    assert axis.low < axis.high


@pytest.mark.parametrize("width", [900, 500])  # in one line, in several
@pytest.mark.parametrize("count", [1, 2, 7])
def test_the_legend_names_the_series_inside_the_picture(count, width):
    names = [f"this is number {k}" for k in range(count)]
    image = one_panel(*[(name, [0, 1], [np.nan, np.nan]) for name in names], width=width)  # no lines
    assert (image[:, :4] == 255).all() and (image[:, -4:] == 255).all()
    for k, colour in enumerate(pictures.SERIES):
        y, x = near(image, colour, 24).nonzero()
        if k >= count:
            assert len(x) == 0 or colour == "#000000"  # the letters are dark
        elif colour != "#000000":
            assert np.ptp(x) == 19 and np.ptp(y) in (2, 3)  # a short thick line, then the name
            assert (image[y.min() - 3:y.max() + 4, x.max() + 5:x.max() + 90] < 130).any(-1).sum() > 100


def test_what_is_not_finite_leaves_a_gap():
    ys = np.sin(np.arange(101) / 9)
    ys[40:50], ys[50], ys[51:61] = np.nan, np.inf, 1e300
    image = one_panel(("a", np.arange(101), ys))
    columns = inked(rows(image, BLUE))
    left, right = columns[0], columns[-1]
    where = (columns - left) / (right - left)
    assert not ((where > 0.4) & (where < 0.6)).any()
    assert ((where > 0.3) & (where < 0.39)).sum() > 60 and ((where > 0.61) & (where < 0.7)).sum() > 60


def test_a_lone_point_is_a_dot():
    for series in [("a", [5], [2.0]), ("a", [0, 1, 2], [np.nan, 2.0, np.nan]), ("a", [1], [0.0])]:
        image = one_panel(series)
        dot = near(image[HEADER:], BLUE)
        y, x = dot.nonzero()
        assert 15 < dot.sum() < 60 and np.ptp(x) < 8 and np.ptp(y) < 8
        assert 400 < x.mean() < 560  # in the middle of the range about it


def test_the_error_band_is_tinted_between_low_and_high():
    xs = np.arange(10)
    image = one_panel(("a", xs, np.full(10, 5.0), np.full(10, 3.0), np.full(10, 7.0)),
                      ("b", xs, np.full(10, 0.0)), ("c", xs, np.full(10, 10.0)))  # fmt: skip
    zero, ten = (np.nanmedian(rows(image, colour)) for colour in pictures.SERIES[1:3])
    at = lambda value: image[round(zero + (ten - zero) * value / 10), 450].astype(int)
    tint = np.array([0xBF, 0xDC, 0xEC])  # a quarter of the blue on white
    for value in (3.2, 4.5, 5.5, 6.8):
        assert np.abs(at(value) - tint).max() < 14
    for value in (2.7, 7.3):
        assert at(value).min() > 225
    broken = one_panel(("a", xs, xs, np.where(xs < 5, xs - 1.0, np.nan), xs + 1))
    tinted, line = np.flatnonzero(near(broken, "#BFDCEC", 14).sum(0) > 8), inked(rows(broken, BLUE))
    assert abs((tinted[-1] - line[0]) / (line[-1] - line[0]) - 4 / 9) < 0.02  # to where low ends


def test_a_dense_series_is_pale_under_its_running_mean():
    xs = np.arange(1000)
    image = one_panel(("a", xs, np.where(xs % 2, 1, -1)), ("b", [0, 999], [-1, -1]), ("c", [0, 999], [1, 1]))
    bottom, top = (np.nanmedian(rows(image, colour)) for colour in pictures.SERIES[1:3])
    mean = rows(image, BLUE)
    assert abs(np.nanmedian(mean) - (top + bottom) / 2) < 2
    assert np.nanmin(mean) > top + 60 and np.nanmax(mean) < bottom - 60
    beside = image[round(top) + 20:round(top) + 30, 200:700].astype(int)
    assert (beside[..., 2] - beside[..., 0]).mean() > 30 and not near(beside, BLUE).any()


def test_the_running_mean_is_the_mean_of_what_is_in_the_window():
    ys = np.random.default_rng(0).standard_normal(23)
    wanted = [ys[max(0, k - 3):k + 4].mean() for k in range(23)]
    np.testing.assert_allclose(running_mean(ys, 7), wanted, atol=1e-14)
    np.testing.assert_allclose(running_mean(ys[:2], 7), [ys[:2].mean()] * 2, atol=1e-14)


def test_panels_stand_in_rows_and_share_the_range_of_their_xlabel():
    panels = [
        Panel("whole", "step", "", [("a", [0, 100], [0, 1])]),
        Panel("other", "time", "", [("a", [50, 100], [0, 1])]),
        Panel("half", "step", "", [("a", [50, 100], [100_000, 300_000])]),
    ]
    image = plot(panels, columns=2, width=1000, height=200)
    assert image.shape == (400, 1000, 3) and (image[200:, 500:] == 255).all()
    whole, other, half = (inked(rows(part, BLUE)) for part in
                          (image[:200, :500], image[:200, 500:], image[200:, :500]))  # fmt: skip
    assert abs(whole[0] - other[0]) <= 1 and abs(whole[-1] - half[-1]) <= 1  # the axes are aligned
    assert abs(half[0] - (whole[0] + whole[-1]) / 2) < 5


def log(count, **changes):
    keys = ("loss_d", "loss_g", "d_real", "d_fake", "gamma_d", "gamma_g")
    return [{"step": 10 * k, **{key: k + i for i, key in enumerate(keys)}, **changes} for k in range(count)]


def test_curves_draws_losses_outputs_and_gates():
    image = curves(log(50))
    assert image.shape == (750, 900, 3)
    for k in range(3):
        panel = image[250 * k:250 * (k + 1)]
        d, g = rows(panel, BLUE), rows(panel, VERMILLION)
        assert len(inked(d)) > 700 and np.nanmax(np.diff(d)) < 1
        assert 2 < np.nanmean((d - g)[100:800]) < 6  # all of G's values lie one above D's, of 50


def test_curves_without_gates_has_two_panels():
    for records in ([], log(30, gamma_d=None, gamma_g=None), [{"step": 1, "loss_d": 0.5}]):
        assert curves(records).shape == (500, 900, 3)
    assert curves(log(30, gamma_d=None)).shape == (750, 900, 3)


def test_curves_with_measurements_has_a_panel_more():
    records = log(30)
    for record in records[9::10]:
        record["frechet"] = 40.0 - record["step"]
    image = curves(records)
    assert image.shape == (1000, 900, 3)
    falling = rows(image[750:], BLUE)  # in pixels from above
    where = inked(falling)
    assert len(where) > 400 and falling[where[-1]] - falling[where[0]] > 100


def test_curves_passes_over_what_is_missing_but_leaves_a_gap_at_a_nan():
    def longest_gap(value):
        records = log(61)
        for record in records[20:40]:
            record["loss_d"] = value
        del records[50]["loss_d"], records[30]["step"]
        panel = curves(records)[:250]
        return np.diff(inked(rows(panel, BLUE))).max()

    assert longest_gap(None) < 4 and longest_gap(float("nan")) > 200


def test_curves_of_no_record_says_so_and_of_constants_draws_a_level_line():
    empty = curves([])
    assert (empty[110:130, 420:520] < 100).any()  # "no values yet"
    assert not near(empty[HEADER:250], BLUE).any()
    partly = curves([{"step": 0, "loss_d": 1.0}, {"step": 9, "loss_d": 2.0}])
    assert not (partly[HEADER:200, 420:520] < 100).all(-1).any()
    level = rows(curves(log(9, loss_d=3.0, loss_g=3.0))[:250], VERMILLION)
    assert np.nanmax(level) - np.nanmin(level) < 1 and 90 < np.nanmean(level) < 150


# Heat


def test_the_colormap_rises_evenly_in_lightness():
    colours = colormap(np.linspace(0, 1, 65)) / 255
    linear = np.where(colours <= 0.04045, colours / 12.92, ((colours + 0.055) / 1.055) ** 2.4)  # sRGB
    luminance = linear @ [0.2126, 0.7152, 0.0722]
    lightness = 116 * np.cbrt(np.maximum(luminance, 0.008856)) - 16  # CIE L*, of 100
    steps = np.diff(lightness)
    assert (steps > 0).all() and steps.max() < 1.6 * steps.mean() and steps.min() > 0.4 * steps.mean()
    assert lightness[0] < 17 and lightness[-1] > 88


def test_the_colormap_keeps_shape_and_ends():
    assert colormap(np.zeros((2, 3, 4))).shape == (2, 3, 4, 3) and colormap(0.3).shape == (3,)
    assert colormap(np.zeros(1)).dtype == np.uint8
    np.testing.assert_array_equal(colormap([-1, 0, 1, 2]), [[68, 1, 84]] * 2 + [[253, 231, 37]] * 2)
    np.testing.assert_array_equal(colormap(0.5), [33, 145, 140])
    np.testing.assert_array_equal(colormap(1 / 16), [70, 23, 104])  # halfway: 69.5, 23, 103.5


@pytest.mark.parametrize("channels", [1, 3])
def test_overlay_blends_the_colours_of_the_heat_into_the_image(channels):
    image, heat = noise(8, 6, channels), np.random.default_rng(1).random((8, 6))
    np.testing.assert_array_equal(overlay(image, heat, 0), np.broadcast_to(image, (8, 6, 3)))
    np.testing.assert_array_equal(overlay(image, heat, 1), colormap(heat.astype(np.float32)))
    mixed = 0.75 * image + 0.25 * colormap(heat.astype(np.float32))
    assert np.abs(overlay(image, heat, 0.25) - mixed).max() <= 0.5


def test_overlay_stretches_a_small_map_over_the_image():
    heat = np.zeros((4, 2))
    heat[3, 0] = 1  # below, at the left
    shown = overlay(np.zeros((40, 30, 1), np.uint8), heat, 1)
    assert shown.shape == (40, 30, 3)
    np.testing.assert_array_equal(shown[39, 0], [253, 231, 37])
    np.testing.assert_array_equal(shown[0, 29], [68, 1, 84])


# Marks


@pytest.mark.parametrize("channels", [1, 3])
def test_a_dot_is_a_disc_in_two_rings_about_its_place(channels):
    image = np.full((40, 30, channels), 90, np.uint8)
    marked = pictures.dot(image, 20, 12, VERMILLION, radius=5)  # the corner between four pixels
    assert marked.shape == (40, 30, 3) and (image == 90).all()
    y, x = np.indices((40, 30)) + 0.5
    distance = np.hypot(y - 20, x - 12)
    for low, high, colour in ((0, 4.5, VERMILLION), (5.6, 5.9, "#ffffff"), (8.1, 99, "#5a5a5a")):
        ring = (distance >= low) & (distance <= high)
        assert ring.sum() >= 4 and near(marked, colour, 30)[ring].all(), colour
    assert marked[distance < 9].astype(int).min() < 60  # the dark ring
    np.testing.assert_array_equal(marked[:, ::-1], pictures.dot(image, 20, 18, VERMILLION, radius=5))
    corner = pictures.dot(image, 0, 30, VERMILLION)
    assert near(corner, VERMILLION)[0, 29] and (corner[10:] == 90).all() and (corner[:, :20] == 90).all()


def test_a_frame_covers_the_border_alone():
    image = noise(20, 30, 3)
    shown = pictures.framed(image, BLUE, width=4)
    assert near(shown, BLUE, 0).sum() >= 20 * 30 - 12 * 22
    np.testing.assert_array_equal(shown[4:-4, 4:-4], image[4:-4, 4:-4])
    assert near(shown, BLUE, 0)[[0, 3, -4, -1]].all() and near(shown, BLUE, 0)[:, [0, 3, -4, -1]].all()


@pytest.mark.parametrize("channels", [1, 3])
def test_notes_stand_below_the_picture_line_by_line(channels):
    image = noise(20, 30, channels)
    shown = pictures.noted(image, ["a line", "", "a line"])
    np.testing.assert_array_equal(shown[:20, :30], image)
    assert shown.shape[0] == 20 + 3 * 18 and shown.shape[1] > 40 and (shown[:20, 30:] == 255).all()
    first, second, third = shown[20:38], shown[38:56], shown[56:]
    np.testing.assert_array_equal(first, third)
    assert (second == 255).all() and (first < 100).any(0).sum() > 15 and (first[:, -8:] == 255).all()


def drawn(text):
    return pictures.strip(30, 300, 1, 16, "lm", [(8, 15, text)])


@pytest.fixture
def fonts(monkeypatch):
    """fonts(folder, ...): only there fonts are found."""
    caches = pictures.letters, pictures._legible, pictures._font_with, pictures._font_files

    def only(*folders):
        monkeypatch.setattr(pictures, "FONT_FOLDERS", folders)
        for cache in caches:
            cache.cache_clear()

    yield only
    monkeypatch.undo()
    only(*pictures.FONT_FOLDERS)


@pytest.fixture
def dejavu():
    file = next((file for file in pictures._font_files() if file.endswith("DejaVuSans.ttf")), None)
    return Path(file) if file else pytest.skip("DejaVu Sans is not here")


ASCII = "Uni", "?n?", "a\nb", "anb"
CLASSES = *ASCII, "Ünï", "Unï", "\u4e2d\u6587", "\u65e5\u672c", "Ж", "\udcff", "\udcfe", "\U0001f431"


@pytest.mark.parametrize("found", [True, False])
def test_names_beyond_ascii_never_look_alike(fonts, found):
    if not found:
        fonts()
    assert len({drawn(name).tobytes() for name in CLASSES}) == len(CLASSES)
    shown = pictures.legible(dict(enumerate(CLASSES)))
    assert list(shown) == list(range(len(CLASSES)))
    assert len({drawn(name).tobytes() for name in shown.values()}) == len(CLASSES)
    np.testing.assert_array_equal(drawn("e\u0301"), drawn("é"))


def test_a_font_that_has_the_letters_is_found_in_the_systems_folders(fonts, dejavu, tmp_path, capsys):
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "aaa.ttf").write_bytes(b"no font")
    shutil.copy(dejavu, tmp_path / "a" / "b" / "some.ttf")
    fonts(tmp_path / "none", tmp_path / "a")
    assert pictures.letters("Ünï", 16)[0] == "Ünï" and pictures.letters("\udcff", 16)[0] == "\\udcff"
    assert pictures.letters("plain", 16)[1] is pictures._font(16)
    names = {3: "Жук", 5: "Ünï"}
    assert pictures.legible(names) == names and capsys.readouterr().err == ""


def test_names_that_no_font_has_are_numbers_and_those_are_told(fonts, capsys):
    fonts()
    names = {0: "cat", 7: "\u4e2d", 12: "\udcff"}
    for _ in range(2):  # told once
        assert pictures.legible(names) == {0: "cat", 7: "#7", 12: "#12"}
    assert capsys.readouterr().err == (
        "note: the pictures say #7 for \u4e2d, #12 for \\udcff: "
        "no font found here shows these names, or tells them apart\n"
    )
    assert pictures.legible({0: "#1", 1: "\u4e2d"}) == {0: "#1", 1: "##1"}
    capsys.readouterr()
    assert pictures.legible({0: "a\nb\x1b[31m"}) == {0: "#0"}
    assert "note: the pictures say #0 for a\\nb\\x1b[31m: no font" in capsys.readouterr().err


def test_names_that_look_alike_are_numbers(dejavu, capsys):
    names = {0: "A", 1: "\u0410", 2: "B", 3: "cat", 4: "cat\u200b"}
    shown = pictures.legible(names)
    assert (shown[0], shown[1], shown[2]) == ("#0", "#1", "B")
    assert "#0 for A, #1 for \u0410" in capsys.readouterr().err


def test_a_caption_of_any_length_makes_no_film_wider_than_it_may_be(tmp_path):
    frames = [np.full((20, 150, 1), 51 * k, np.uint8) for k in range(2)]
    write_gif(tmp_path / "a.gif", frames, 100, captions=["x" * 250 + " to y", "x"])
    with Image.open(tmp_path / "a.gif") as film:
        assert 600 < film.width <= pictures.WIDEST
    short = pictures._shortened("x" * 250 + " to y", 16, 300)
    assert short.startswith("xx") and short.endswith(" to y") and "..." in short
    assert pictures._shortened("3 to 8", 16, 300) == "3 to 8"


def test_captions_go_with_their_frames(tmp_path):
    frames = [np.full((20, 150, 1), 51 * (k % 2), np.uint8) for k in range(6)]
    captions = [f"step {k}" for k in range(6)]
    write_gif(tmp_path / "a.gif", frames, 100, captions=captions, most=2)
    write_gif(tmp_path / "b.gif", [frames[0], frames[5]], 100, captions=[captions[0], captions[5]])
    assert (tmp_path / "a.gif").read_bytes() == (tmp_path / "b.gif").read_bytes()


def test_up_to_thirty_points_have_dots():
    dots = [svg(Panel("t", "x", "y", [("s", range(n), range(n))])).count('class="dots') for n in (30, 31)]
    assert dots == [1, 0]
