"""What self-attention looks at: the maps lie where they should, their measures are right, gamma = 0 is no attention."""

import json
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import command_line
import numpy as np
import pytest
from command_line import SMALL, minisagan, refused
from PIL import Image

from minisagan import data, measures, nn, ops, parity, rng
from minisagan.autograd import Tensor, no_tape
from minisagan.commands import attention as commands
from minisagan.config import Architecture, Config
from minisagan.init import Init
from minisagan.look import attention_maps as maps
from minisagan.look import pictures
from minisagan.measures import attended, measure
from minisagan.models import Discriminator, Generator
from minisagan.run import folder as runs
from minisagan.sampling import draw
from minisagan.train import Training

apart, run, photos = command_line.apart, command_line.run, command_line.photos  # fixtures


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape)


def layer(form, gamma=0.7):
    made = nn.SelfAttention(Init(3, dtype=np.float64), 16, form).eval()
    made.gamma.data[...] = gamma
    return made


def generator(gamma, **changes):
    """A small generator, none of whose weights is 0."""
    made = Generator(Architecture(width=8, latent=12, **changes)).eval()
    for k, p in enumerate(made.parameters().values()):
        p.data[...] += 0.3 * random(*p.shape, seed=k).astype(np.float32)
    if changes.get("attention", 16):
        made.attention.gamma.data[...] = gamma
    return made


def noise(count, classes=10):
    return random(count, 12).astype(np.float32), np.arange(count) % classes


# The weights


@pytest.mark.parametrize("form, side", [("official", 2), ("paper", 1)])
def test_beta_is_softmax_over_the_keys_and_what_attention_mixes_with(form, side):
    attention, x = layer(form), random(2, 4, 6, 16)
    with no_tape():
        query, key, value = (project(Tensor(x)).data for project in (attention.query, attention.key, attention.value))
        beta, o = attention.beta(Tensor(x)).data, attention.output(attention.mixed(Tensor(x))).data
        y = attention(Tensor(x)).data
    windows = [(slice(h, h + side), slice(w, w + side)) for h in range(0, 4, side) for w in range(0, 6, side)]
    keys = np.stack([key[:, h, w].max((1, 2)) for h, w in windows], 1)  # (N, keys, 2): row by row
    values = np.stack([value[:, h, w].max((1, 2)) for h, w in windows], 1)
    assert beta.shape == (2, 24, len(windows))
    mixed = np.empty((2, 24, value.shape[3]))
    for n in range(2):
        for j in range(24):
            scores = [math.exp(keys[n, i] @ query[n, j // 6, j % 6]) for i in range(len(windows))]
            np.testing.assert_allclose(beta[n, j], np.array(scores) / sum(scores), rtol=1e-12)
            mixed[n, j] = beta[n, j] @ values[n]
    with no_tape():
        np.testing.assert_allclose(o, attention.output(Tensor(mixed.reshape(2, 4, 6, -1))).data, atol=1e-13)
    np.testing.assert_allclose(y, x + 0.7 * o, atol=1e-13)


def test_entropy_in_bits():
    beta = np.array([[0.25, 0.25, 0.25, 0.25], [1, 0, 0, 0], [0.5, 0.25, 0.25, 0], [0, 1, 0, 0]])
    np.testing.assert_allclose(maps.entropy(beta), [2, 0, 1.5, 0], atol=1e-12)
    assert maps.entropy(np.full((1, 64), 1 / 64, np.float32)) == pytest.approx(6)


def test_distances_are_between_the_middles_of_cells():
    np.testing.assert_array_equal(maps.places(2, 8), [[2, 2], [2, 6], [6, 2], [6, 6]])
    far = maps.distances(16, 4, 8)  # keys of 4x4 pixels; queries of 2x2 pixels, the first with its middle at (1, 1)
    assert far.shape == (16, 4)
    np.testing.assert_allclose(far[0], np.sqrt([2, 26, 26, 50]))
    np.testing.assert_allclose(far[6], np.sqrt([10, 2, 18, 10]))  # row 1, column 2: (3, 5)
    np.testing.assert_allclose(np.diag(maps.distances(9, 9, 30)), 0)


def test_the_measures_of_a_network_are_means_over_images_and_queries():
    G = generator(gamma=-0.4)
    z, labels = noise(21)  # more than a batch
    found = maps.measure(G, z, labels)
    x = maps.look(G, z, labels)[1]
    assert x.shape == (21, 16, 16, 16)
    with no_tape():
        beta, y = G.attention.beta(Tensor(x)).data.astype(float), G.attention(Tensor(x)).data
    distance = np.linalg.norm(maps.places(16, 32)[:, None] - maps.places(8, 32), axis=2)  # (256, 64)
    wanted = {
        "gamma": -0.4,
        "queries": 256,
        "keys": 64,
        "entropy_bits": -(beta * np.log2(np.maximum(beta, 1e-99))).sum(2).mean(),
        "entropy_uniform": 6,
        "distance_pixels": (beta * distance[None]).sum(2).mean(),
        "distance_uniform": distance.mean(),
        "ratio": np.linalg.norm(y - x) / np.linalg.norm(x),
        "images": 21,
    }
    assert found == pytest.approx(wanted, rel=1e-4)
    assert 1 < found["entropy_bits"] < 5.9 and found["ratio"] > 0.01
    assert "attention.gamma" in G.parameters()  # who looked on is gone


def test_what_training_logs_of_attention_and_spectral_norm():
    dataset = data.Dataset("noise", random(8, 32, 32, 1).astype(np.uint8), np.arange(8), tuple("01234567"), {})
    config = Config(batch_size=8, architecture=Architecture(width=8, latent=12, classes=8))
    training = Training(config, dataset)
    training.advance()
    training.G.attention.gamma.data[...], training.D.attention.gamma.data[...] = 0.3, -0.2
    state = {name: x.copy() for name, x in training.state().items()}
    found = measure(training)
    assert all(np.array_equal(x, state[name]) for name, x in training.state().items())  # nothing has moved
    z, labels = rng.normal((8, 12), 0, rng.Stream.Z_G, 1), rng.labels(8, 8, 0, rng.Stream.LABELS_G, 1)
    G, D = training.G.eval(), training.D.eval()
    images, x, y = maps.look(G, z, labels)
    assert found["ratio_g"] == pytest.approx(np.linalg.norm(y - x) / np.linalg.norm(x), rel=1e-4)
    assert found["ratio_d"] == pytest.approx(maps.measure(D, images, labels)["ratio"], rel=1e-3)
    assert found["ratio_g"] > 1e-3 and found["gamma_g"] == np.float32(0.3) and found["gamma_d"] == np.float32(-0.2)
    for name, net in (("g", G), ("d", D)):
        layers = list(net.modules(nn.Layer))
        sigmas = [np.linalg.norm(layer.u @ ops.spectral.matrix(layer.w.data, layer.output_axis)) for layer in layers]
        wanted = min(sigmas), np.median(sigmas), max(sigmas)
        assert [found[f"sigma_{name}_{k}"] for k in ("min", "median", "max")] == pytest.approx(wanted, rel=1e-5)
        assert wanted[0] < wanted[1] < wanted[2]
    bare = replace(config, architecture=replace(config.architecture, attention=None, spectral_norm="discriminator"))
    training = Training(bare, dataset)
    training.advance()
    assert set(measure(training)) == {"grad_g", "grad_d", "sigma_d_min", "sigma_d_median", "sigma_d_max"}


# gamma = 0


def test_with_gamma_0_it_is_the_network_without_attention():
    G, bare = generator(gamma=0.8), Generator(Architecture(width=8, latent=12, attention=None)).eval()
    for name, p in bare.parameters().items():
        p.data[...] = G.parameters()[name].data
    for name, buffer in bare.buffers().items():
        buffer[...] = G.buffers()[name]
    z, labels = noise(5)
    with_it = maps.look(G, z, labels)[0]
    with maps.without(G):
        without = maps.look(G, z, labels)[0]
    with no_tape():
        np.testing.assert_array_equal(without, bare(z, labels).data)
    assert np.abs(with_it - without).max() > 0.01
    np.testing.assert_array_equal(maps.look(G, z, labels)[0], with_it)  # gamma is back


class Gated(nn.SelfAttention):
    """y = x + gamma everywhere in the left half."""

    def __init__(self, gamma):
        self.gamma = Tensor(np.array(gamma))

    def __call__(self, x):
        return x + self.gamma * Tensor(np.tile(np.repeat([1.0, 0.0], x.shape[2] // 2)[:, None], (x.shape[1], 1, 1)))


class Toy:
    """images (N, S, S, 1) -> the same, as `attention` leaves them, or a score for each: their sum."""

    def __init__(self, gamma, score=False):
        self.attention, self.score = Gated(gamma), score

    def __call__(self, images):
        y = self.attention(Tensor(images))
        return y.sum((1, 2, 3)) if self.score else y


def test_the_causal_test_counts_what_gamma_changes():
    images = np.zeros((20, 8, 8, 1))
    images[:10, :, 0] = 0.95  # clipped at 1
    found = maps.causal_test(Toy(0.2), 4, images)  # of 8 columns the middle 4, of which 2 are changed
    assert found == pytest.approx({"grey_levels": 25.5 / 2, "changed_pixels": 0.5}, abs=0.3)
    found = maps.causal_test(Toy(0.2), 8, images)
    assert found["grey_levels"] == pytest.approx(25.5 / 2 - 0.15 * 127.5 / 16, abs=0.3)
    assert found["changed_pixels"] == 0.5 - 1 / 16  # the clipped ones change by 6 only
    assert maps.causal_test(Toy(0.0), 8, images) == {"grey_levels": 0, "changed_pixels": 0}
    levels = np.broadcast_to(np.repeat([0.0, 1.0], 10)[:, None, None, None], (20, 8, 8, 1))
    scores = maps.causal_test(Toy(0.2, score=True), 8, levels)
    assert scores == pytest.approx({"score": 0.2 * 32, "score_deviation": 32})


# Points and pictures


def test_points_lie_on_the_ink_and_apart():
    image = np.full((28, 28, 1), 10, np.uint8)
    image[4:8, 5:9], image[20:24, 18:22] = 200, 255
    points = maps.ink_points(image, 4)
    assert points.shape == (4, 2) and len({tuple(point) for point in points}) == 4
    assert all(image[y, x] > 100 for y, x in points)
    (y0, x0), (y1, x1) = points[:2]
    assert 20 <= y0 < 24 and 18 <= x0 < 22 and 4 <= y1 < 8 and 5 <= x1 < 9  # the strongest, then the farthest
    white = np.full((28, 28, 3), 255, np.uint8)
    white[10:13, 3:6] = [255, 0, 0]
    assert (np.abs(maps.ink_points(white, 3) - [11, 4]) <= 1).all()
    assert maps.ink_points(np.zeros((8, 8, 1), np.uint8), 3).shape == (3, 2)  # nothing to see


class Pointing:
    """Attention that looks, from each query j, at one key alone: key `aim(j)` of 8x8."""

    def __init__(self, aim):
        self.aim = aim

    def beta(self, x):
        beta = np.zeros((1, 256, 64))
        beta[0, range(256), [self.aim(j) for j in range(256)]] = 1
        return Tensor(beta)


def test_the_map_is_that_of_the_cell_in_which_the_point_lies():
    opposite = Pointing(lambda j: (7 - j // 32) * 8 + 7 - j % 16 // 2)  # mirrored in both axes
    points = np.array([[(0, 0), (27, 27), (13, 2)], [(14, 0), (5, 6), (6, 5)]])
    heat = maps.maps(opposite, np.zeros((2, 16, 16, 1)), points, 32, 28)
    assert heat.shape == (2, 3, 8, 8) and (heat.sum((2, 3)) == 1).all()
    # with its frame of 2, pixel p of 28 lies in pooled cell (p + 2) // 4
    for n, p in np.ndindex(2, 3):
        y, x = (points[n, p] + 2) // 4
        assert heat[n, p, 7 - y, 7 - x] == 1, (n, p)
    exact = Pointing(lambda j: j // 4)  # 4 queries of a row for each key: which of the 16 columns is it?
    for x, cell in ((1, 1), (2, 2), (3, 2), (4, 3)):  # (x + 2) // 2
        assert maps.maps(exact, np.zeros((1, 16, 16, 1)), np.array([[(0, x)]]), 32, 28).argmax() == (16 + cell) // 4


def test_the_caption_of_a_map_has_its_largest_weight_and_its_entropy(monkeypatch):
    told, grid = [], pictures.grid

    def listening(*args, captions, **options):
        told.extend(captions)
        return grid(*args, **options)

    monkeypatch.setattr(pictures, "grid", listening)
    heat = np.stack([np.full((8, 8), 1 / 64), np.eye(8) / 8])[None].astype(np.float32)  # 64 alike, 8 alike
    maps.draw(np.zeros((1, 32, 32, 1), np.uint8), np.zeros((1, 2, 2), int), heat, 28, ["a"])
    assert told == ["a", "0.016, 6.0 bits", "0.12, 3.0 bits"]


@pytest.mark.parametrize("channels", [1, 3])
def test_the_figure_has_each_point_in_its_place_and_the_heat_where_it_looks(channels):
    framed = np.full((2, 32, 32, channels), 60, np.uint8)
    framed[:, :2], framed[:, -2:], framed[:, :, :2], framed[:, :, -2:] = 255, 255, 255, 255  # is not shown
    points = np.array([[(3, 4), (20, 25)], [(27, 0), (0, 27)]])
    heat = np.zeros((2, 2, 8, 8))
    heat[0, 0, 2, 5] = heat[0, 1, 0, 0] = heat[1, 0, 7, 3] = heat[1, 1, 4, 4] = 0.5
    picture = maps.draw(framed, points, heat, 28, ["left", "right"])
    side, scale = 112, 4
    assert picture.shape == (side + 18 + 36, 6 * side + 5 * 2, 3)
    cells = [picture[:side, k * (side + 2) : k * (side + 2) + side] for k in range(6)]
    for n in range(2):
        image, *shown = cells[3 * n : 3 * n + 3]
        for p, cell in enumerate(shown):
            colour = list(bytes.fromhex(maps.COLOURS[p][1:]))
            y, x = points[n, p] * scale + 2
            for shown_in in (image, cell):  # the middle of that pixel
                assert shown_in[y, x].tolist() == colour
            if points[n, p].min() > 4:
                for dy, dx in ((2, 0), (0, -2), (-2, 0), (0, 2)):
                    assert cell[y + dy, x + dx].tolist() == colour
            assert (cell[[0, 0, -1, -1], [20, -20, 20, -20]] == colour).all()  # the frame
            row, column = np.argwhere(heat[n, p])[0]
            y, x = (4 * row + 2 - 2) * scale, (4 * column + 2 - 2) * scale  # the middle of the key's cell
            if min(y, x) > 3 and max(y, x) < 108:  # else it is on the frame
                peak = 0.4 * 60 + 0.6 * pictures.colormap((31 / 32) ** 2)  # the nearest pixels are 1/32 cell away
                np.testing.assert_allclose(cell[y - 1 : y + 1, x - 1 : x + 1], np.tile(peak, (2, 2, 1)), atol=1)
            cold = np.median(cell.reshape(-1, 3), axis=0)
            np.testing.assert_allclose(cold, 0.4 * 60 + 0.6 * pictures.colormap(0), atol=1)
        assert (image[50, 50] == 60).all() and not (image == 255).all(-1)[:4, :40].any()


def test_pictures_of_a_network_are_what_it_makes_or_is_given():
    G, D = generator(0.5), Discriminator(Architecture(width=8, latent=12)).eval()
    z, labels = noise(3)
    picture, points = maps.figure(G, (z, labels), None, 28)
    images = data.to_uint8(maps.look(G, z, labels)[0], 28)
    assert points.tolist() == [maps.ink_points(image, 3).tolist() for image in images]
    real = maps.look(G, z, labels)[0]
    other, _ = maps.figure(D, (real, labels), points, 28)
    assert other.shape == picture.shape
    untouched = np.ones((112, 112), bool)
    for y, x in points[0] * 4 + 2:
        untouched[max(0, y - 8) : y + 8, max(0, x - 8) : x + 8] = False
    wanted = np.kron(images[0, ..., 0], np.ones((4, 4)))
    for shown in (picture, other):
        np.testing.assert_array_equal(shown[:112, :112][untouched], np.stack([wanted] * 3, -1)[untouched])
    assert not np.array_equal(picture[:112, 114:226], other[:112, 114:226])  # another network's map


# The command


@pytest.fixture
def few(monkeypatch):
    monkeypatch.setattr(commands, "MEASURED", 20)


@pytest.mark.usefixtures("apart", "few")
class TestCommand:
    def test_numbers_on_stdout_and_as_json(self, run):
        text = minisagan("attention", run, "--count", 2)[0]
        facts = json.loads(minisagan("attention", run, "--count", 2, "--json", "-o", "b.png")[0])
        G, config, about, file = runs.load_generator(run)
        z, labels = rng.normal((20, 128), 0, rng.Stream.SAMPLE_Z, 0), np.arange(20) % 10
        for name, value in maps.measure(G, z, labels).items():
            assert facts[name] == pytest.approx(value, rel=1e-6)
        assert facts["without"] == maps.causal_test(G, 28, z, labels) and facts["checkpoint"] == str(file)
        assert np.shape(facts["points"]) == (2, 3, 2)
        lines = dict(re.split(r"  +", line, maxsplit=1) for line in text.splitlines())
        assert lines["attention"] == "16x16 queries, 8x8 keys (official form)"
        assert lines["gamma"] == f"{facts['gamma']:+.4f}"
        assert lines["entropy"] == f"{facts['entropy_bits']:.2f} bits; 6.00 if all keys were alike"
        assert lines["ratio"].endswith(f"= {facts['ratio']:.3f}") and "of 255 grey levels" in lines["gamma = 0"]
        assert lines["picture"] == "attention.png: 2 images, 3 points in each"

    def test_chosen_points_and_classes_are_in_the_picture(self, run):
        minisagan("sample", run, "--count", 2, "--classes", "7,2", "--seed", 5, "-o", "a.npz")
        args = "--classes", "7,2", "--count", 2, "--seed", 5, "--point", "3,4", "--point", "27,0"
        facts = json.loads(minisagan("attention", run, *args, "--json")[0])
        assert facts["points"] == [[[3, 4], [27, 0]]] * 2
        picture = pictures.read_png("attention.png")
        assert picture[3 * 4 + 2, 4 * 4 + 2].tolist() == list(bytes.fromhex(maps.COLOURS[0][1:]))
        for k, image in enumerate(np.load("a.npz")["images"]):
            cell = picture[:112, 3 * k * 114 :][4 * 10 : 4 * 20, 4 * 10 : 4 * 20]  # away from the points
            wanted = np.kron(image[10:20, 10:20], np.ones((4, 4)))
            assert np.abs(cell - wanted[..., None]).max() <= 1  # another number of images: rounded otherwise

    def test_a_film_has_a_frame_for_each_checkpoint(self, run):
        text = minisagan("attention", run, "--count", 1, "--gif", "a.gif")[0]
        kept = sorted((run / "checkpoints").iterdir())
        assert f"a.gif: the {len(kept)} checkpoints that {run} has; train --keep N keeps more" in text
        with Image.open("a.gif") as film:
            assert film.n_frames == len(kept) == 3
        whole = kept[0].read_bytes()
        try:
            kept[0].write_bytes(whole[:-1])
            text, note = minisagan("attention", run, "--count", 1, "--gif", "c.gif")
            assert "c.gif: the 2 checkpoints" in text and "note: not in the film: " in note and kept[0].name in note
        finally:
            kept[0].write_bytes(whole)
        line = refused("attention", kept[0], "--gif", "b.gif")
        assert f"name its folder instead of {kept[0]}" in line

    def test_the_discriminator_looks_at_real_images(self, run):
        args = "--network", "discriminator", "--classes", "4", "--count", 1, "--point", "0,0"
        facts = json.loads(minisagan("attention", run, *args, "--json")[0])
        cell = pictures.read_png("attention.png")[:112, :112, 0][42::4, 42::4]  # every pixel's middle, from (10, 10) on
        dataset = data.load("drawn-digits")
        real = dataset.images[dataset.labels == 4][..., 0]
        assert any(np.array_equal(cell, image[10:, 10:]) for image in real)
        D, _, _, _ = runs.load_discriminator(run)
        assert facts["gamma"] == D.attention.gamma.data and set(facts["without"]) == {"score", "score_deviation"}
        assert "the scores change by" in minisagan("attention", run, *args)[0]

    def test_metrics_with_and_without_gamma(self, run, monkeypatch):
        class Judge:
            classifier = SimpleNamespace(hash="0123456789abcdef", accuracy=0.9)
            features = np.zeros((1, 128))
            labels = np.array([2, 7, 7])

            def __init__(self, dataset, count, seed, data_dir):
                assert (dataset.name, count, seed) == ("drawn-digits", 40, 3)

            def judged(self, generator, seed, image_size):
                images, _ = draw(generator, 40, self.labels, seed, image_size)
                return {"accuracy": 0.5, "frechet": float(images.mean())}

            def floor(self):
                return {"frechet": 0.25}

        monkeypatch.setattr(commands, "Judge", Judge)
        G, _, _, _ = runs.load_generator(run)
        G.attention.gamma.data[...] = 3
        monkeypatch.setattr(runs, "load_generator", lambda path, load=runs.load_generator: (G, *load(path)[1:]))
        args = "--metrics", 40, "--seed", 3, "--classes", "1,2"
        facts = json.loads(minisagan("attention", run, *args, "--json")[0])
        assert facts["metrics"]["frechet"] == draw(G, 40, Judge.labels, 3, 28)[0].mean()
        with maps.without(G):
            assert facts["without"]["metrics"]["frechet"] == draw(G, 40, Judge.labels, 3, 28)[0].mean()
        assert facts["metrics"] != facts["without"]["metrics"]
        text = minisagan("attention", run, *args)[0]
        assert "class asked for 50.00% -> 50.00%" in text and "real images 0.25 (128 features of classifier 01" in text
        assert "generator alone" in refused("attention", run, "--metrics", 9, "--network", "discriminator")

    def test_without_classes(self, photos):
        facts = json.loads(minisagan("attention", photos / "run", "--json")[0])
        assert np.shape(facts["points"]) == (8, 3, 2)
        assert "trained without classes" in refused("attention", photos / "run", "--classes", "1")
        minisagan("attention", photos / "run", "--network", "discriminator", "--data-dir", photos / "data")

    @pytest.mark.parametrize("args, words", [
        (["--point", "28,3"], r"--point 28,3: outside of the images, whose pixels are 0,0 to 27,27"),
        (["--point", "3"], r"--point 3: not Y,X"),
        (["--point", "-1,3"], r"--point -1,3: not Y,X"),
        (["--classes", "3,ten"], r"--classes: there is no class 'ten'; there are 0, 1"),
        (["-o", "a.jpg"], r"-o a.jpg: the name of this file has to end in .png"),
        (["--gif", "a.png"], r"--gif a.png: the name of this file has to end in .gif"),
        (["--count", "0"], r"'--count'"),
    ])  # fmt: skip
    def test_what_cannot_be_asked_is_one_line(self, run, args, words, tmp_path):
        assert re.search(words, refused("attention", run, *args))
        assert not list(tmp_path.iterdir())

    def test_a_run_without_attention_is_refused(self, tmp_path):
        minisagan("train", *SMALL, "--steps", 0, "--attention", "none", "--out", "x")
        for network in ("generator", "discriminator"):
            line = refused("attention", "x", "--network", network)
            assert "step-00000000.safetensors: this run was trained without attention" in line
        assert not (tmp_path / "attention.png").exists()


def test_attention_is_measured_on_8_packs(monkeypatch):
    config = Config(batch_size=4, architecture=Architecture(width=8, classes=3, pack=2))
    training, seen = Training(config, parity.noise_images(config, 20)), []
    training.advance()
    drawn = measures.noise
    monkeypatch.setattr(measures, "noise", lambda *given: seen.append(drawn(*given)) or seen[-1])
    measure(training)
    ((z, labels),) = seen
    assert len(z) == 16 and labels[:8].tolist() == labels[8:].tolist()


def test_real_images_come_in_an_order_of_the_seed():
    images = np.arange(40, dtype=np.uint8)[:, None, None, None] * np.ones((1, 32, 32, 1), np.uint8)
    dataset = data.Dataset("x", images, np.arange(40) % 2, ("a", "b"))
    found = [maps.real_images(dataset, 8, [1, 0], seed) for seed in (0, 1)]
    for x, labels in found:
        assert labels.tolist() == [1, 0] * 4 and len(np.unique(x)) == 8
    assert not np.array_equal(found[0][0], found[1][0])


def test_a_pixel_changed_when_one_channel_did_by_16():
    for levels, share in ((16, 0.5), (15, 0)):
        found = maps.causal_test(Toy(levels / 127.5), 8, np.full((1, 8, 8, 1), -1.0))
        assert found["changed_pixels"] == share
    blue = np.broadcast_to([1.0, 1.0, -1.0], (1, 8, 8, 3))  # red and green are clipped
    assert maps.causal_test(Toy(0.2), 8, blue)["changed_pixels"] == 0.5


def test_ink_is_what_differs_from_most_of_the_border():
    image = np.zeros((28, 28, 1), np.uint8)
    image[:11] = 255  # reaches the border: 50 of its 112 pixels
    assert (maps.ink_points(image, 3)[:, 0] < 12).all()


def test_after_an_error_gamma_and_attention_are_as_before():
    G = generator(gamma=0.8)
    layer = G.attention
    for inside in (maps.without(G), attended(G)):
        with pytest.raises(KeyError), inside:
            raise KeyError
        assert G.attention is layer and layer.gamma.data == np.float32(0.8)


@pytest.mark.parametrize("P, columns", [(5, 12), (6, 7)])
def test_the_figure_has_two_images_beside_each_other_while_there_is_room(P, columns):
    picture = maps.draw(np.zeros((2, 32, 32, 1), np.uint8), np.zeros((2, P, 2), int), np.ones((2, P, 8, 8)), 28)
    assert picture.shape[1] == 114 * columns - 2


def test_the_note_of_a_figure_has_its_numbers(monkeypatch):
    told = []
    monkeypatch.setattr(pictures, "noted", lambda image, lines: told.extend(lines))
    maps.draw(np.zeros((1, 32, 32, 1), np.uint8), np.zeros((1, 1, 2), int), np.ones((1, 1, 8, 8)), 28)
    assert "(0.016 if all 64 were alike)" in told[0] and "(at most 6 bits)" in told[1]
