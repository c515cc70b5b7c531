"""The examples run, and what they print is true."""

import os
import re
import subprocess
import sys
from pathlib import Path

import imageio.v3 as iio
import numpy as np
import pytest

import minisagan

ROOT = Path(minisagan.__file__).parents[1]
EXAMPLES = Path(__file__).parents[1] / "examples"


@pytest.fixture
def run(tmp_path):
    """Run an example in an empty folder: run("train.py", "--steps", 2) -> what it printed."""

    def run(name, *args):
        command = [sys.executable, EXAMPLES / name, *map(str, args)]
        environment = os.environ | {"PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=120)
        assert done.returncode == 0 and not done.stderr, done.stderr
        return done.stdout

    return run


def table(text, columns):
    """The rows of `text` that are `columns` numbers and nothing else, as an array (rows, columns)."""
    rows = []
    for line in text.splitlines():
        try:
            rows.append([float(word) for word in line.split()])
        except ValueError:
            continue
    return np.array([row for row in rows if len(row) == columns])


def test_train(run, tmp_path):
    printed = run("train.py", "--steps", 3, "--batch-size", 16, "--out", "some.png")
    assert "20,000 digits; weights: G 254,530, D 149,714" in printed
    # step, loss D, loss G, D(real), D(fake): OpenBLAS's code for four kinds of processor differs by 0.0001
    np.testing.assert_allclose(table(printed, 5), [[3, 2.130, 0.080, -0.960, -4.624]], atol=0.02)
    picture = iio.imread(tmp_path / "some.png")
    cells = picture[:, -578:]
    assert picture.dtype == np.uint8 and cells.shape == (578, 578)  # 10 x 10 of 56 pixels with gaps of 2
    assert (cells[56:58] == 128).all() and len(np.unique(cells[:56, :56])) > 50


def test_new_op(run):
    printed = run("new_op.py")
    right, *wrong = printed.splitlines()[1:4]
    assert re.match(r"  ok +swish +\d\.\de-1\d ", right)
    for line, name in zip(wrong, ("forgetful", "hasty"), strict=True):
        claimed, true = map(float, re.match(rf"  FAILED +{name} .* is (\S+) and should be (\S+)$", line).groups())
        assert abs(claimed - true) > 0.1
    losses = table(printed, 2)[:, 1].reshape(2, 6)  # of the right one, of the forgetful one
    assert (np.diff(losses) < 0).all() and (losses[:, -1] < 0.01).all() and (losses[:, 0] > 1).all()


def test_power_iteration(run):
    printed = run("power_iteration.py", "--steps", 10, "--ratio", 0.6)
    assert "sigma = 3.000000000000, the next 1.800000000000; so q = 0.3600, q^2 = 0.1296" in printed
    rows = table(printed, 6)  # the first step has no ratios
    assert rows[:, 0].tolist() == list(range(2, 11))
    np.testing.assert_allclose(1 - rows[:, 1] / 3, rows[:, 2], rtol=0.01, atol=1e-12)
    np.testing.assert_allclose(rows[-3:, 3], 0.6**4, atol=1e-3)
    np.testing.assert_allclose(rows[-3:, 5], 0.6**2, atol=1e-3)


def test_attention_toy(run):
    printed = run("attention_toy.py")
    found = re.search(r"on itself (\S+), on the cross at \(9, 8\) (\S+), on all others (\S+)\n", printed)
    itself, other, rest = map(float, found.groups())
    assert itself == other > 0.45 and abs(itself + other + rest - 1) < 0.002
    assert f"dye at (2, 3): 0.000 before, {other:.3f} after" in printed
    heat = printed.split("Attention from the cross at (2, 3):\n")[1].splitlines()[:12]
    dark = [(h, w // 2 - 1) for h, line in enumerate(heat) for w, letter in enumerate(line) if letter == "@"]
    assert dark == [(2, 3), (9, 8)] and "".join(heat).split() == ["@", "@"]
    assert float(re.search(r"sums to 1, within (\S+)\n", printed)[1]) < 1e-14
    asymmetry = {tuple(line.split()[:2]): float(line.split()[-1]) for line in printed.splitlines()[-4:]}
    assert asymmetry.pop(("official", "positions")) > 0.1
    assert len(asymmetry) == 3 and max(asymmetry.values()) < 1e-13


def test_attention_walkthrough(run):
    printed = run("attention_walkthrough.py", "--label", 7, "--point", "3,20")
    assert "position (2, 11), number 43 of 256, with pixel (3, 20)" in printed  # with its frame of 2: (5, 22) of 32
    shapes = dict(re.findall(r"^    (\w+): ([\dx ]+), mean", printed, re.M))
    assert [shapes.pop(name) for name in ("x", "key", "value")] == ["1 x 16 x 16 x 32", "64 x 8", "256 x 16"]
    assert [shapes.pop(name) for name in ("s", "beta")] == ["256 x 64"] * 2
    assert shapes == {"query": "256 x 8", "mixed": "256 x 16", "o": "256 x 32", "y": "256 x 32"}
    scores, percent = table(printed, 8).reshape(2, 64)
    beta = np.exp(scores / 10) / np.exp(scores / 10).sum()
    np.testing.assert_allclose(percent / 100, beta, atol=0.03)  # of rounded scores, rounded
    found = re.search(r"its sum (\S+), its entropy (\S+) of 6.00 bits", printed)
    total, entropy = map(float, found.groups())
    assert abs(total - 1) < 1e-5 and entropy == pytest.approx(-(beta * np.log2(beta)).sum(), abs=0.05)
    for difference in re.findall(r"within (\S+)", printed):
        assert float(difference) < 1e-5
    assert float(re.search(r"\|x\|: (\S+) in all", printed)[1]) > 0.01
    assert printed.count("within") == 2


def test_faults(run):
    printed = run("faults.py", "--kills", 5, "--flips", 500)
    counts = re.findall(r"^(\w[^:]*): .* (\d+) of (\d+)$", printed, re.M)
    assert [what.split()[0] for what, *_ in counts] == ["killed", "bits", "inputs", "full", "two"]
    assert all(survived == tried for _, survived, tried in counts)
    assert int(counts[0][2]) == 5 and int(counts[1][2]) >= 500 and int(counts[2][2]) == len(codes(printed)) >= 20


def codes(printed):
    return re.findall(r"^       +([0-5])  (?:train|sample), ", printed, re.M)
