"""The ways between latents and classes: ends, lengths and middles; and what `minisagan interpolate` draws on them."""

import re

import command_line
import numpy as np
import pytest
from command_line import minisagan, refused
from PIL import Image

from minisagan import data, rng
from minisagan.config import Architecture
from minisagan.look import pictures
from minisagan.look.interpolation import blend_classes, lerp, slerp, way
from minisagan.models import Generator
from minisagan.nn import BatchNorm
from minisagan.run import folder as runs
from minisagan.sampling import generate

apart, run, photos = command_line.apart, command_line.run, command_line.photos  # fixtures


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def test_slerp_keeps_the_length_and_turns_evenly():
    a, b = random(128), random(128, seed=1)
    b *= np.linalg.norm(a) / np.linalg.norm(b)
    t = np.linspace(0, 1, 11)
    z = slerp(a, b, t)
    np.testing.assert_allclose(z[[0, -1]], [a, b], atol=1e-12)
    np.testing.assert_allclose(np.linalg.norm(z, axis=1), np.linalg.norm(a), rtol=1e-12)
    cosines = (z[1:] * z[:-1]).sum(1) / (a @ a)
    np.testing.assert_allclose(cosines, np.cos(np.arccos(a @ b / (a @ a)) / 10), rtol=1e-10)
    assert np.linalg.norm(lerp(a, b, [0.5])) < 0.8 * np.linalg.norm(a)  # what the arc is for


def test_slerp_in_the_plane():
    z = slerp(np.array([2.0, 0]), np.array([0.0, 4]), [0, 1 / 3, 0.5, 1])
    wanted = [[2, 0], [8 / 3 * np.cos(np.pi / 6), 8 / 3 * 0.5], [3 * 0.5**0.5, 3 * 0.5**0.5], [0, 4]]
    np.testing.assert_allclose(z, wanted, atol=1e-12)
    same = slerp(np.array([1.0, 1]), np.array([3.0, 3]), [0.25])
    np.testing.assert_allclose(same, [[1.5, 1.5]])


def test_a_way_goes_through_all_stops_in_even_steps():
    stops = np.array([[0.0], [3], [9]])
    np.testing.assert_allclose(way(stops, lerp, 3, closed=False)[:, 0], [0, 1, 2, 3, 5, 7, 9])
    np.testing.assert_allclose(way(stops, lerp, 3, closed=True)[:, 0], [0, 1, 2, 3, 5, 7, 9, 6, 3])
    np.testing.assert_allclose(way(stops, lerp, 1, closed=False)[:, 0], [0, 3, 9])


def generator(**changes):
    made = Generator(Architecture(width=8, latent=12, **changes)).eval()
    for k, p in enumerate(made.parameters().values()):
        p.data[...] += 0.3 * random(*p.shape, seed=k).astype(np.float32)
    return made


def test_pure_blends_are_the_classes_themselves():
    z = random(4, 12).astype(np.float32)
    known = generate(generator(), z, np.array([7, 0, 7, 3]))
    blended = generator()
    blend_classes(blended, np.eye(10)[[3, 7, 0]])
    np.testing.assert_array_equal(generate(blended, z, np.array([1, 2, 1, 0])), known)
    assert blended.up8.norm1.gain.shape == (3, 32) and blended.up8.norm1.gain.dtype == np.float32


def test_a_mixed_class_has_the_mean_of_gains_and_biases():
    mixed, plain = generator(), generator()
    blend_classes(mixed, np.array([[0.25] + [0] * 8 + [0.75]]))
    norms = list(zip(mixed.modules(BatchNorm), plain.modules(BatchNorm), strict=True))
    assert len(norms) == 7
    for new, old in norms[:-1]:
        for kind in ("gain", "bias"):
            rows = getattr(old, kind).data
            np.testing.assert_allclose(getattr(new, kind).data, [0.25 * rows[0] + 0.75 * rows[9]], atol=1e-6)
    assert norms[-1][0].gain.shape == (8,)  # the last one does not know the class
    z, zero = random(2, 12).astype(np.float32), np.zeros(2, int)
    image = generate(mixed, z, zero)
    assert all(np.abs(image - generate(plain, z, zero + k)).max() > 0.01 for k in (0, 9))


# The command


def cells(path, columns, size=28, scale=2, top=18):
    """The cells of a strip (rows, columns, size, size), at the right edge of the picture."""
    sheet = pictures.read_png(path)[top:, :, 0]
    step = size * scale + 2
    left = sheet.shape[1] - columns * step + 2
    rows = (len(sheet) + 2) // step
    assert len(sheet) == rows * step - 2
    return np.stack([[sheet[r * step :, left + c * step :][: size * scale : scale, : size * scale : scale]
                      for c in range(columns)] for r in range(rows)])  # fmt: skip


@pytest.mark.usefixtures("apart")
class TestCommand:
    def test_a_strip_along_latents_begins_and_ends_with_samples(self, run):
        args = "interpolate", run, "--latents", 3, "--classes", "4,1", "--seed", 2
        text, _ = minisagan(*args, "-o", "a.png")
        assert text.startswith("a.png: 9 images along 3 latents, rows: 2, by ")
        shown = cells("a.png", 9)
        G, _, _, _ = runs.load_generator(run)
        z = rng.normal((3, 128), 2, rng.Stream.SAMPLE_Z, 0)
        for row, k in enumerate((4, 1)):
            stops = data.to_uint8(generate(G, z, np.full(3, k)), 28)[..., 0].astype(int)
            assert np.abs(shown[row, ::4] - stops).max() <= 1  # rounding, in batches of another size
            middle = slerp(z[1], z[2], [0.5]).astype(np.float32)
            between = data.to_uint8(generate(G, middle, np.array([k])), 28)[0, ..., 0].astype(int)
            assert np.abs(shown[row, 6] - between).max() <= 1
        assert np.abs(shown[0, 4].astype(int) - shown[0, 6]).max() > 5
        minisagan(*args, "--truncation", 0.5, "-o", "b.png")
        assert np.abs(cells("b.png", 9).astype(int) - shown).max() > 5

    def test_a_strip_along_classes_has_a_row_for_each_latent(self, run):
        args = "--along", "classes", "--latents", 3, "--classes", "4,1"
        minisagan("interpolate", run, *args, "--steps", 2, "-o", "a.png")
        shown = cells("a.png", 3)
        assert len(shown) == 3
        G, _, _, _ = runs.load_generator(run)
        z = rng.normal((3, 128), 0, rng.Stream.SAMPLE_Z, 0)
        for column, k in ((0, 4), (2, 1)):
            wanted = data.to_uint8(generate(G, z, np.full(3, k)), 28)[..., 0].astype(int)
            assert np.abs(shown[:, column] - wanted).max() <= 1

    def test_a_film_comes_back_to_its_beginning(self, run):
        minisagan("interpolate", run, "--latents", 2, "--classes", "4,1,0", "--steps", 25)
        with Image.open("interpolation.gif") as film:
            frames = []
            for k in range(film.n_frames):
                film.seek(k)
                frames.append(np.asarray(film.convert("L"))[:112].astype(int))
            assert film.n_frames == 50 and film.info["loop"] == 0 and film.info["duration"] == 80
        assert frames[0].shape == (112, 3 * 112 + 2 * 2)
        step = [np.abs(a - b).mean() for a, b in zip(frames, frames[1:] + frames[:1], strict=True)]
        assert step[-1] < 2 * max(step[:-1]) and np.abs(frames[0] - frames[25]).mean() > 3 * step[-1]
        forth_and_back = np.abs(frames[10] - frames[40]).max()  # one arc, both ways
        assert forth_and_back <= 17  # a grey of 16

    def test_without_classes(self, photos):
        text, _ = minisagan("interpolate", photos / "run", "--latents", 2, "-o", "a.png")
        assert "5 images along 2 latents, rows: 1" in text
        assert pictures.read_png("a.png").shape[0] == 18 + 64
        assert "was trained without classes" in refused("interpolate", photos / "run", "--along", "classes")

    @pytest.mark.parametrize("args, words", [
        (["--latents", "1"], "--along latents: a way needs at least two of them, not 1"),
        (["--along", "classes", "--classes", "3"], "--along classes: a way needs at least two of them, not 1"),
        (["--classes", "3,4,x"], "there is no class 'x'"),
        (["--steps", "0"], "'--steps'"),
        (["--truncation", "0.05"], "'--truncation'"),
        (["-o", "a.mp4"], "-o a.mp4: the name of this file has to end in .gif or .png"),
    ])  # fmt: skip
    def test_what_cannot_be_asked_is_one_line(self, run, args, words, tmp_path):
        assert re.search(words, refused("interpolate", run, *args))
        assert not list(tmp_path.iterdir())

    def test_truncated_samples_come_from_truncated_latents(self, run):
        minisagan("sample", run, "--count", 3, "--classes", "5", "--truncation", 0.7, "--seed", 4, "-o", "a.npz")
        G, _, _, _ = runs.load_generator(run)
        z = rng.truncated_normal((16, 128), 0.7, 4, rng.Stream.SAMPLE_Z, 0)
        wanted = data.to_uint8(generate(G, z, np.full(16, 5)), 28)[:3, ..., 0]
        np.testing.assert_array_equal(np.load("a.npz")["images"], wanted)
        assert "'--truncation'" in refused("sample", run, "--truncation", "0.01")


def test_more_latents_than_memory_holds_are_refused_at_once(run):
    assert "not enough memory" in refused("interpolate", run, "--latents", 10**9, code=1)
