"""The three claims in miniature: the data set and its decoder, the control, the log, the numbers over seeds."""

import importlib
import json
import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import minisagan
from minisagan import data, nn
from minisagan.autograd import Tensor, no_tape
from minisagan.errors import Diverged
from minisagan.init import Init
from minisagan.judge import classifier
from minisagan.module import Module

CLAIMS = Path(__file__).parents[1] / "examples" / "claims"
sys.path.insert(0, str(CLAIMS))
attention, attention_alone, common, control, digits, discs, spectral_norm, ttur = map(
    importlib.import_module,
    ("attention", "attention_alone", "common", "control", "digits", "discs", "spectral_norm", "ttur"),
)


# The discs.


def test_discs_keep_their_distance_and_have_one_shade_or_one_each():
    images, places, shades = discs.draw(200, 4, 9, seed=1)
    gaps = np.linalg.norm(places[:, :, None] - places[:, None], axis=-1)[:, ~np.eye(4, dtype=bool)]
    assert images.shape == (200, 32, 32, 1) and gaps.min() >= 9 and gaps.min() < 9.2
    assert (np.ptp(shades, axis=1) == 0).all() and 0.3 <= shades.min() < 0.32 and 0.98 < shades.max() <= 1
    for image, at, shade in zip(images[..., 0] / 255, places, shades, strict=True):
        inside = [image[tuple(np.rint(middle).astype(int))] for middle in at]
        np.testing.assert_allclose(inside, shade, atol=1 / 255)
    assert (discs.draw(200, 4, 9, seed=1)[0] == images).all() and (discs.draw(200, 4, 9, seed=2)[0] != images).any()
    _, _, shades = discs.draw(2000, 2, 18, seed=3, same=False)
    assert abs(np.corrcoef(shades.T)[0, 1]) < 0.08


def test_auc_counts_pairs_and_a_tie_as_half():
    assert discs.auc(np.array([3.0, 4.0]), np.array([1.0, 2.0])) == 1
    assert discs.auc(np.array([1.0, 2.0]), np.array([3.0, 4.0])) == 0
    assert discs.auc(np.array([1.0, 2.0]), np.array([1.0, 3.0])) == pytest.approx(3 / 8)


def test_what_a_map_falls_on():
    places = np.array([[7.5, 7.5], [7.5, 23.5], [23.5, 7.5]])  # each in the middle of four keys' cells
    maps = np.zeros((1, 3, 8, 8))
    maps[0, 0, 1:3, 5:7] = 1 / 4  # the first looks at the second
    maps[0, 1, 1:3, 5:7] = 1 / 4  # the second at itself
    maps[0, 2] = 1 / 64  # the third everywhere
    covered = discs.disc(*places[:1].T).sum() / 64  # of the four cells, 8x8 pixels
    found = attention_alone.falling(places[None], maps)
    third = covered * 64 / 1024
    assert found["own"] == pytest.approx((covered + third) / 3, rel=1e-3)
    assert found["others"] == pytest.approx((covered + 2 * third) / 3, rel=1e-3)
    assert found["others_share"] == pytest.approx(2 * third, rel=1e-3)


@pytest.mark.parametrize("count, apart", attention.SETTINGS)
def test_discs_are_found_and_their_shades_read(count, apart):
    images, _, shades = discs.draw(300, count, apart, seed=5)
    matches, found, rest = discs.decode(images, count)
    assert matches.min() > 0.998 and rest.max() < 1e-6
    np.testing.assert_allclose(found, shades, atol=1 / 255)
    assert discs.measure(images, count) == {"legible": 1, "consistent": 1, "above_chance": 1}
    images, _, shades = discs.draw(300, count, apart, seed=6, same=False)
    np.testing.assert_allclose(np.sort(discs.decode(images, count)[1]), np.sort(shades), atol=1 / 255)
    found, truth = discs.measure(images, count), (np.ptp(shades, axis=1) <= discs.SAME).mean()
    assert found["legible"] == 1 and found["consistent"] == pytest.approx(truth, abs=0.01)
    assert abs(found["above_chance"]) < 0.03


def test_what_is_no_such_image_is_not_legible():
    r = np.random.default_rng(0)
    images, _, _ = discs.draw(100, 4, 9, seed=5)
    blurred = sum(np.roll(images.astype(float), k, axis) for k in (-3, 0, 3) for axis in (1, 2)) / 6
    for other in (
        discs.draw(100, 3, 9, seed=5)[0],  # a disc too few
        discs.draw(100, 5, 8, seed=5)[0],  # one too many
        np.zeros_like(images),
        r.integers(0, 256, images.shape),
        blurred,
    ):
        assert discs.measure(other.astype(np.uint8), 4) == {"legible": 0, "consistent": 0, "above_chance": 0}
    noisy = np.clip(images + r.normal(0, 6, images.shape), 0, 255).astype(np.uint8)
    assert discs.measure(noisy, 4)["legible"] > 0.95


def test_a_generator_of_one_shade_earns_nothing():
    images, _, shades = discs.draw(2000, 4, 9, seed=7)
    alike = images[abs(shades[:, 0] - 0.6) < 0.02]
    assert len(alike) > 50
    assert discs.measure(alike, 4) == {"legible": 1, "consistent": 1, "above_chance": 0}


# The networks.


def test_the_control_has_as_many_weights_as_attention():
    weights = {}
    for kind in ("none", "residual", "official"):
        training = attention.start(kind, 4, 9, seed=0, steps=1)
        weights[kind] = training.adam_g.weights.size, training.adam_d.weights.size
        block = control.ResidualBlock if kind == "residual" else nn.SelfAttention
        assert kind == "none" or {type(net.attention) for net in (training.G, training.D, training.average)} == {block}
    G, D = (a - b for a, b in zip(weights["official"], weights["none"], strict=True))
    assert (G, D) == (16 * (2 * 8 + 2 * 8) + 1, 8 * (2 * 8 + 2 * 4) + 1)  # 16 and 8 channels, and gamma
    G, D = (a - b for a, b in zip(weights["residual"], weights["none"], strict=True))
    assert (G, D) == (10 * 16 * 4 + 1, 10 * 8 * 3 + 1)  # 3 and 2 channels inside would be too few


def test_the_residual_block():
    block = control.ResidualBlock(Init(0, dtype=np.float64), 16, spectral=False)
    x = np.random.default_rng(0).standard_normal((2, 4, 4, 16))
    assert (block(Tensor(x)).data == x).all()  # gamma is 0
    block.gamma.data[...] = 0.5
    padded = np.pad(np.maximum(x, 0), ((0, 0), (1, 1), (1, 1), (0, 0)))
    h = sum(padded[:, i : i + 4, j : j + 4] @ block.conv1.w.data[i, j] for i in range(3) for j in range(3))
    np.testing.assert_allclose(block(Tensor(x)).data, x + 0.5 * np.maximum(h, 0) @ block.conv2.w.data[0, 0], atol=1e-12)


def test_what_the_discriminators_features_see():
    """The docstrings' widths: 6 pixels at 16x16, 16 at 8x8, 36 at 4x4; weights of 1 let everything through."""
    D = attention.start("none", 4, 9, seed=0, steps=1).D
    for layer in D.modules(nn.Layer):
        layer.w.data[...], layer.u = 1, None
    column = np.eye(32, dtype=np.float32)[:, None, :, None]  # image k: a white column at k
    x = Tensor(np.ascontiguousarray(column.repeat(32, 1)))
    seen = {}
    with no_tape():
        for r in (16, 8, 4):
            x = getattr(D, f"down{r}")(x)
            seen[r] = [np.flatnonzero(x.data[:, 1, k, 0]) for k in range(r)]
    assert len(seen[16][8]) == 6 and len(seen[8][4]) == 16
    assert seen[4][0].max() == 21 and seen[4][1].max() == 29 and seen[4][2].min() == 2  # 36 wide, cut at the borders


# Logs, and numbers over seeds.


def counted(seed, folder):
    """A run that leaves a trace of being made."""
    with open(Path(folder) / f"made{seed}", "a") as file:
        file.write("x")
    return {"step": [1, 2], "value": [seed, 10 * seed]}


def test_a_stopped_series_of_runs_is_continued(tmp_path, capsys):
    log, runs = tmp_path / "some" / "log.jsonl", [{"seed": k, "folder": str(tmp_path)} for k in range(3)]
    first = common.carry_out(counted, runs[:2], log, jobs=1)
    with log.open("a") as file:
        file.write('{"run": {"seed": 2')  # stopped here
    all_of_them = common.carry_out(counted, runs, log, jobs=2)
    assert "2 of 3 runs are in" in capsys.readouterr().out
    assert all_of_them == [(run, {"step": [1, 2], "value": [k, 10 * k]}) for k, run in enumerate(runs)]
    assert first == all_of_them[:2]
    assert [(tmp_path / f"made{k}").read_text() for k in range(3)] == ["x"] * 3
    rows = [json.loads(line) for line in log.read_text().splitlines()]
    assert [row["run"]["seed"] for row in rows] == [0, 1, 2]
    assert common.chosen(all_of_them, seed=2) == [{"step": [1, 2], "value": [2, 20]}]


def test_numbers_by_hand():
    assert common.mean_std([1, 2, 3, 4]) == "2.50 ± 1.29" and common.mean_std([7], 0) == "7"
    assert common.permutation_p([1, 2, 3], [4, 5, 6]) == 2 / 20
    assert common.permutation_p([1, 5], [2, 4]) == 1
    assert common.rounded(123456.0) == 123500 and common.rounded(np.nan) is None
    assert common.table(["", "a"], [["long", 1], ["x", "23"]]) == "       a\nlong   1\nx     23\n"
    logs = [{"t": [1, 2], "y": [10, 1000]}, {"t": [3, 2], "y": [1000, 0]}]
    label, *rows = common.series("name", logs, "t", "y", log=True)
    assert label == "name"
    np.testing.assert_allclose(rows, [[2, 2], [2, np.nan], [2 - 2**0.5, np.nan], [2 + 2**0.5, np.nan]])
    rows = common.series("name", logs[:1], "t", "y")[1:]
    np.testing.assert_allclose(rows, [[1, 2], [10, 1000], [10, 1000], [10, 1000]])


@pytest.mark.parametrize(
    "distances, gradients, step",
    [
        ([9, 8, 7, 6], [1, 1, 1, 1], None),
        ([9, 4, 9, 9], [1, 1, 1, 1], 30),
        ([9, 4, 9, 7, 9], [1, 1, 1, 1, 1], None),  # back under twice the least, and the last stands alone
        ([9, 4, 5, 20], [1, 1, 1, 1], None),  # one alone
        ([9, 4, None, None], [1, 1, None, None], 30),
        ([9, 4, 9, 20, 3, 4], [1, 1, 1, 1, 1, 1], None),
        ([9, 9, 9, 9], [1, 0.009, 0, 1e-7], 20),
        ([9, 9, 9, 9], [1, 0, 0.02, 0], None),
    ],
)
def test_collapse(distances, gradients, step):
    steps = list(range(10, 10 * len(distances) + 1, 10))
    assert spectral_norm.collapse(steps, distances, gradients) == step


def test_plans_are_fair():
    runs = ttur.plan("mnist", full=False, quick=False)
    assert {(run["d_steps"], run["lr_g"], run["lr_d"]) for run in runs} == {
        (1, 6e-4, 24e-4), (1, 12e-4, 48e-4), *((d_steps, r, r) for d_steps in (1, 5) for r in (12e-4, 24e-4))
    }
    assert len(runs) == 18 and all(run["beta2"] == 0.98 and run["fall"] == 0.5 and run["pack"] == 2 for run in runs)
    time = {run["d_steps"]: run["steps"] * (run["d_steps"] * 0.036 + 0.034) for run in runs}
    assert time == {1: pytest.approx(105), 5: pytest.approx(105, abs=0.1)}
    runs = spectral_norm.plan("mnist", full=False, quick=False)
    assert [(run["lr_g"] / 4e-4, run["lr_d"] / 16e-4, run["seed"]) for run in runs[::2]] == [
        (1, 1, 0), (2, 2, 0), (4, 4, 0), (4, 4, 1), (8, 2, 0), (8, 2, 1), (8, 8, 0)
    ]  # fmt: skip
    assert [run["spectral_norm"] for run in runs] == ["discriminator", "both"] * 7
    assert all(run["lr_g"] * run["lr_d"] == pytest.approx(16e-4 * 64e-4) for run in runs[4:12])  # equal rates: the mean
    differ = {"spectral_norm", "lr_g", "lr_d", "seed"}
    assert len({json.dumps({name: run[name] for name in run if name not in differ}) for run in runs}) == 1
    runs = attention.plan(full=False, quick=False)
    assert len(runs) == 40 and len({json.dumps(run) for run in runs}) == 40
    assert {run["seed"] for run in runs} == set(range(5))
    full = attention.plan(full=True, quick=False)
    assert all(run in full for run in runs) and len({json.dumps(run) for run in full}) == len(full)


@pytest.mark.parametrize("script", [spectral_norm, ttur])
def test_what_is_stored_are_the_runs_of_the_plan(script):
    path = CLAIMS / "results" / script.__name__
    rows = [json.loads(line) for line in path.with_suffix(".jsonl").read_text().splitlines()]
    assert [row["run"] for row in rows] == script.plan("mnist", full=False, quick=False)
    for row in rows:
        assert list(row["log"]) == list(digits.COLUMNS) and row["log"]["step"][-1] == row["run"]["steps"]
    shown = re.sub("^    ", "", (CLAIMS / "README.md").read_text(encoding="utf-8"), flags=re.M)
    assert path.with_suffix(".txt").read_text(encoding="utf-8") in shown


def test_what_the_stored_runs_came_to():
    """The sentences of README: which runs of claim 2 collapsed, and when; which arm of claim 3 is ahead."""
    read = lambda name: map(json.loads, (CLAIMS / "results" / name).read_text().splitlines())
    collapsed = {}
    for row in read("spectral_norm.jsonl"):
        run, log = row["run"], row["log"]
        arm = run["lr_g"], run["lr_d"], run["spectral_norm"]
        collapsed.setdefault(arm, []).append(spectral_norm.collapse(log["step"], log["distance"], log["grad_g"]))
    assert collapsed == {
        (4e-4, 16e-4, "discriminator"): [None], (4e-4, 16e-4, "both"): [None],
        (8e-4, 32e-4, "discriminator"): [None], (8e-4, 32e-4, "both"): [None],
        (16e-4, 64e-4, "discriminator"): [None, None], (16e-4, 64e-4, "both"): [2500, 1250],
        (32e-4, 32e-4, "discriminator"): [None, None], (32e-4, 32e-4, "both"): [None, 2000],
        (32e-4, 128e-4, "discriminator"): [750], (32e-4, 128e-4, "both"): [500],
    }  # fmt: skip
    ends = {}
    for row in read("ttur.jsonl"):
        arm = row["run"]["d_steps"], row["run"]["lr_g"], row["run"]["lr_d"]
        ends.setdefault(arm, []).append(row["log"]["distance"][-1])
    ahead = lambda one, other: sum(a < b for a, b in zip(ends[one], ends[other], strict=True))
    slow = (1, 6e-4, 24e-4), (1, 12e-4, 12e-4), (5, 12e-4, 12e-4)
    fast = (1, 12e-4, 48e-4), (1, 24e-4, 24e-4), (5, 24e-4, 24e-4)
    for two_rates, equal, five in (slow, fast):
        assert ahead(equal, two_rates) == ahead(equal, five) == 3
    assert ahead(fast[0], fast[2]) == 3 and ahead(slow[0], slow[2]) == 2 and ends[slow[0]][0] > 200


def test_sigma_is_the_largest_singular_value():
    net = Module()
    net.one, net.two = (nn.Linear(Init(0), 3, 2) for _ in range(2))
    net.one.w.data[...] = [[3, 0], [0, 1], [0, 0]]
    net.two.w.data[...] = [[0, 12], [1, 0], [0, 0]]
    assert digits.sigmas(net) == pytest.approx([3, 12])


def test_a_divergence_is_a_result(monkeypatch):
    class Stub:
        def __init__(self):
            self.step, self.adam_g, self.adam_d, self.G, self.D = 0, self, self, None, None
            self.g = np.array([3.0, 4.0])

        def advance(self):
            self.step += 1
            if self.step == 250:
                raise Diverged("NaN")

    found = lambda training, _: {"distance": 1000 / training.step, "accuracy": 0.5, "recall": 0.25}
    monkeypatch.setattr(digits, "start", lambda **_: Stub())
    monkeypatch.setattr(digits, "distance", found)
    monkeypatch.setattr(digits, "sigmas", lambda _: [1, 4])
    log = digits.train(dataset="mnist", steps=1000)
    assert list(log) == list(digits.COLUMNS)
    assert log["step"] == [*range(50, 1001, 50)] and log["distance"] == [20, 10, 6.667, 5, *[None] * 16]
    assert log["grad_g"] == [5] * 4 + [None] * 16 and None not in log["seconds"]
    assert log["sigma_g"][:5] == [2] * 4 + [None] and log["largest_d"][:5] == [4] * 4 + [None]
    log = digits.train(dataset="mnist", steps=491)  # no multiple of 25
    assert log["step"] == [*range(25, 491, 25), 491] and log["distance"][-11:] == [None] * 11


# The scripts, as they are called.


@pytest.fixture
def run(tmp_path):
    """run("ttur.py") -> what it printed with --quick, its log and its files' names; digits are judged by an untrained
    classifier, which lies where the script looks for one."""
    digits = data.load("drawn-digits")
    net = classifier.Classifier(32, 1, 10)
    net.accuracy, net.tested = 0.1, 1000
    name = f"drawn-digits-{classifier._key(digits)}.safetensors"
    classifier._keep(net, tmp_path / "data" / "classifiers" / name)

    def run(name, *more):
        root = Path(minisagan.__file__).parents[1]
        environment = os.environ | {
            "PYTHONPATH": str(root), "MINISAGAN_DATA": str(tmp_path / "data"), "PYTHONIOENCODING": "utf-8"
        }
        command = [sys.executable, CLAIMS / name, "--quick", "--jobs", "2", "--out", tmp_path / "out", *more]
        done = subprocess.run(command, env=environment, capture_output=True, encoding="utf-8", timeout=300)
        assert done.returncode == 0 and not done.stderr, done.stderr
        out = tmp_path / "out" / name
        assert out.with_suffix(".txt").read_text(encoding="utf-8") in done.stdout
        assert (np.ptp(minisagan.look.pictures.read_png(out.with_suffix(".png")), axis=(0, 1)) > 200).all()
        rows = [json.loads(line) for line in out.with_suffix(".jsonl").read_text().splitlines()]
        return done.stdout, rows

    return run


def test_attention_quick(run):
    printed, rows = run("attention.py")
    assert "10 runs, 20 steps" in printed and len(rows) == 10
    assert re.search("4 discs, 9 apart +residual block +95,954 \\+ 37,514", printed)
    assert all(row["log"]["step"] == [1, 2] for row in rows)
    by_gamma = {row["run"]["kind"]: row["log"].get("gamma_g") for row in rows}
    assert by_gamma["none"] is None and by_gamma["official"][-1] != 0 != by_gamma["residual"][-1]
    found = {row["run"]["kind"]: row["log"] for row in rows}
    none, both = (np.array(found[kind]["parameters"]) for kind in ("none", "official"))
    for kind, here, there, where in (("in_d", "gamma_d", "gamma_g", [0, 1]), ("in_g", "gamma_g", "gamma_d", [1, 0])):
        assert found[kind]["parameters"] == np.where(where, both, none).tolist()
        assert found[kind][here][-1] != 0 and there not in found[kind]
        assert ("without_gamma" in found[kind]) == (kind == "in_g")


def test_attention_alone_quick(run):
    printed, rows = run("attention_alone.py")
    assert "8 runs, 16 steps" in printed and len(rows) == 8
    assert all(row["log"]["step"] == [1, 2] and 0.3 < row["log"]["lack"][-1] < 0.7 for row in rows)
    sizes = {row["run"]["kind"]: row["log"]["parameters"] for row in rows}
    assert sizes["none"] < sizes["narrow"] < sizes["official"] <= sizes["residual"] < 1.005 * sizes["official"]
    shares = [row["log"]["others_share"] for row in rows if row["run"]["kind"] == "official"]
    assert shares == [0.08361] * 2  # of the image, by three discs of radius 3: 3 * 9 pi / 1024, and their soft rims


def test_spectral_norm_quick(run):
    printed, rows = run("spectral_norm.py", "--dataset", "drawn-digits")
    assert len(rows) == 4 and re.search("rates x 4 +norm in D only", printed)
    assert "10.0 % right on test images" in printed
    for row in rows:
        log = row["log"]
        assert log["step"] == [1] and log["distance"][0] > 0 and 0 <= log["accuracy"][0] <= 0.4
        assert 0.9 < log["sigma_g"][0] <= log["largest_g"][0] < 1.3 and log["grad_g"][0] > 0  # orthogonal, hardly moved


def test_ttur_quick(run):
    printed, rows = run("ttur.py", "--dataset", "drawn-digits")
    assert len(rows) == 12 and "1:1 TTUR, 2.4e-3 - 5:1 equal, 2.4e-3" in printed
    time = {d: np.mean([row["log"]["seconds"][0] for row in rows if row["run"]["d_steps"] == d]) for d in (1, 5)}
    assert 1.5 < time[5] / time[1] < 6  # 1 + 5 steps to 1 + 1
