"""Variety: the measure against loops, and runs that collapse, that don't, that go on, that have nothing to vary."""

import itertools
import re
import shutil

import command_line
import numpy as np
import pytest
from command_line import SMALL, minisagan, refused

from minisagan import data, variety
from minisagan.config import Architecture, Config
from minisagan.data.drawn import draw
from minisagan.look import report, watch
from minisagan.run import folder as runs

apart = command_line.apart  # a fixture
pytestmark = pytest.mark.usefixtures("apart")


def dataset(images, labels):
    return data.Dataset("x", np.asarray(images, np.uint8), np.asarray(labels), tuple(map(str, range(10))), {})


def noise(*shape, seed=0):
    return np.random.default_rng(seed).integers(0, 256, shape).astype(np.uint8)


# The measure


def squared(a, b):
    return ((a.astype(float) - b) ** 2).sum()


def within(images):
    """Half the mean squared distance of two images, of all pairs of different ones."""
    return np.mean([squared(a, b) for a, b in itertools.combinations(images, 2)]) / 2


def test_the_measure_is_its_definition():
    x, shades = noise(60, 4, 4, 1) // 4, np.arange(60) % 3
    x += (40 * shades[:, None, None, None]).astype(np.uint8)  # three classes of different means
    samples = noise(3, 5, 4, 4, 1, seed=1)
    found = variety.Reference(dataset(x, shades), 3).measure(samples)

    def population(k):  # of all pairs, also of an image with itself: the data are all that there is
        return np.mean([squared(a, b) for a, b in itertools.product(x[shades == k], repeat=2)]) / 2

    ratios = [(within(samples[k]) / population(k)) ** 0.5 for k in range(3)]
    assert found["variety"] == pytest.approx(sorted(ratios)[1]) and found["variety_min"] == pytest.approx(min(ratios))
    means = [x[shades == k].astype(float).mean(0) for k in range(3)]
    between = np.mean([squared(a, b) for a, b in itertools.combinations(means, 2)]) / 2
    across = np.mean([
        np.mean([squared(a, b) for a, b in itertools.product(samples[k], samples[l])]) / 2
        for k, l in itertools.combinations(range(3), 2)
    ])  # fmt: skip
    of_samples = across - np.mean([within(samples[k]) for k in range(3)])
    assert found["contrast"] == pytest.approx((max(0, of_samples) / between) ** 0.5)


@pytest.mark.parametrize("classes", [0, 10])
def test_the_datas_own_images_have_a_variety_and_a_contrast_of_one(classes):
    digits = dataset(*_drawn(2000))
    reference = variety.Reference(digits, classes)
    which = [np.flatnonzero(digits.labels == k)[-10:] for k in range(10)] if classes else [np.arange(1000, 1080)]
    found = reference.measure(digits.images[np.array(which)])
    assert found.keys() == ({"variety", "variety_min", "contrast"} if classes else {"variety"})
    assert found["variety"] == pytest.approx(1, abs=0.1) and found.get("variety_min", 1) > 0.7
    assert found.get("contrast", 1) == pytest.approx(1, abs=0.2)
    one = np.broadcast_to(digits.images[:1], (len(which), 10, 28, 28, 1))
    assert reference.measure(one) == dict.fromkeys(found, 0)
    alike = reference.measure(digits.images[: 10 * len(which)].reshape(-1, 10, 28, 28, 1))  # of any classes
    assert alike["variety"] > 0.9 and alike.get("contrast", 0) < 0.4


def _drawn(count):
    images, labels = draw(count, seed=0)
    return images[..., None], labels


def test_the_images_that_stand_for_a_class_are_spread_over_it():
    x = np.concatenate([np.zeros((100, 4, 4, 1)), noise(100, 4, 4, 1)])  # the first hundred are all alike
    for shown in (0, 1):  # also where there are no classes
        within = variety.Reference(dataset(x, np.zeros(200, int)), shown).within[0]
        assert within == pytest.approx(variety.spread([x[::4].astype(np.uint8)], [200])[0][0]) and within > 0


def test_what_the_data_have_none_of_is_not_measured():
    samples = noise(3, 10, 4, 4, 1)
    one_each = variety.Reference(dataset(noise(3, 4, 4, 1), [0, 1, 2]), 3)
    assert one_each.measure(samples).keys() == {"contrast"}
    equal = dataset(np.full((9, 4, 4, 1), 7), np.arange(9) % 3)
    assert variety.Reference(equal, 3).measure(samples) == {} == variety.Reference(equal, 0).measure(samples[:1])
    images = np.concatenate([np.full((4, 4, 4, 1), 7, np.uint8), noise(4, 4, 4, 1)])
    found = variety.Reference(dataset(images, np.repeat([0, 1], 4)), 2).measure(samples[:2])  # one class varies
    assert found["variety"] > 0.5 and "variety_min" not in found
    alike = dataset(noise(200, 8, 8, 1), np.arange(200) % 2)  # labels that mean nothing
    assert "contrast" not in variety.Reference(alike, 2).measure(noise(2, 10, 8, 8, 1))


# When it is collapse


def log(*values, every=250, name="variety"):
    return [{"step": every * (k + 1), "loss_d": 1.0} | ({} if v is None else {name: v}) for k, v in enumerate(values)]


@pytest.mark.parametrize(
    "records, wanted",
    [
        (log(0.9, 0.8, 0.3, 0.2), None),  # twice
        (log(0.9, 0.8, 0.3, 0.2, 0.1), ("variety", 0.1, 750, 1250)),
        (log(0.3, None, 0.2, None, 0.1, None), ("variety", 0.1, 250, 1250)),  # records between
        (log(0.3, 0.2, 0.39, 0.4), None),  # it has recovered
        (log(*[0.1] * 9, every=50), None),  # not for long
        (log(*[0.1] * 11, every=50), ("variety", 0.1, 50, 550)),
        (log(0.1, 0.1, every=5000), None),
        (log(*[0.2] * 8, name="contrast"), None),
        (log(*[0.2] * 9, name="contrast"), ("contrast", 0.2, 250, 2250)),
        ([], None),
        (log(None, None, None), None),
    ],
)
def test_collapse_is_too_little_of_it_for_long(records, wanted):
    assert variety.collapse(records) == wanted


def test_the_last_step_at_which_a_measure_was_not_too_low():
    assert variety.last_varied(log(0.9, 0.8, 0.3, 0.2), "variety") == 500
    assert variety.last_varied(log(0.2, 0.3), "variety") == variety.last_varied([], "variety") == 0
    both = [{"step": 1, "variety": 0.9, "contrast": 0.8}, {"step": 2, "variety": 0.9, "contrast": 0.1}, {"step": 3}]
    assert [variety.last_varied(both, name) for name in ("variety", "contrast")] == [2, 1]


def test_what_to_try_is_not_what_the_run_has():
    arch = Architecture(spectral_norm="none")
    assert "--spectral-norm both, --pack 2, or" in variety.advice(Config(architecture=arch))
    found = variety.advice(Config(lr_g=0.01, architecture=Architecture(pack=2)))
    assert found == "a lower --lr-g than 0.01, a higher --lr-d than 0.0016, or a larger --batch-size"


# Runs

OPTIONS = "--sample-every", 10, "--checkpoint-every", 10, "--keep", 1
ABSURD = "--lr-g", 0.2, "--steps", 60


@pytest.fixture
def soon(monkeypatch):
    monkeypatch.setattr(variety, "STEPS", {"variety": 20, "contrast": 500})


@pytest.fixture(scope="module")
def healthy(tmp_path_factory):
    """A run of 20 steps, and what it said."""
    folder = tmp_path_factory.mktemp("runs") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "DRAWN", command_line.FEW)
        chosen = "--pack", 1, "--lr-g", 0.0006, "--beta2", 0.9, "--ema", 0.5, "--steps", 20
        said = minisagan("train", *SMALL, *OPTIONS, *chosen, "--out", folder)
    return folder, *said


@pytest.fixture(scope="module")
def collapsed(healthy, tmp_path_factory):
    """The same, gone on with at a rate that makes it collapse, and what it said."""
    folder = shutil.copytree(healthy[0], tmp_path_factory.mktemp("runs") / "run")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(data, "DRAWN", command_line.FEW)
        patch.setattr(variety, "STEPS", {"variety": 20, "contrast": 500})
        said = minisagan("train", "--resume", folder, *ABSURD, *OPTIONS, "--threads", 1)
    return folder, *said


def varieties(folder):
    return [(r["step"], r["variety"], r["variety_min"], r["contrast"]) for r in runs.read_log(folder) if "variety" in r]


def test_a_healthy_run_logs_its_variety_and_says_nothing(healthy):
    folder, _, stderr = healthy
    assert [step for step, *_ in varieties(folder)] == [10, 20]
    assert all(0.6 < least <= value < 1.5 for _, value, least, _ in varieties(folder))
    assert re.search(rf"^step 20/20 .* variety {varieties(folder)[1][1]:.2f}  gamma", stderr, re.M)
    assert "note" not in stderr and "collapsed" not in report.page(folder)
    assert ">a class" in report.page(folder) and "collapsed" not in watch.standing(folder)


def test_a_run_that_collapses_says_so_once_in_one_line(collapsed, healthy, soon):
    folder, stdout, stderr = collapsed
    found = varieties(folder)
    assert found[:2] == varieties(healthy[0]) and [step for step, *_ in found] == [10, 20, 30, 40, 50, 60]
    assert all(value < 0.3 for _, value, *_ in found[2:])
    notes = [line for line in stderr.splitlines() if line.startswith("note")]
    before = folder / "checkpoints" / "step-00000020.safetensors"
    assert notes == [
        f"note: step 50: the generator has collapsed: since step 30 samples of one kind lie {found[4][1]:.2f} times as "
        "far apart as the data's. Try a lower --lr-g than 0.2, a higher --lr-d than 0.0024, --pack 2, or a larger "
        f"--batch-size; {before} is from before"
    ]
    assert "all 60 steps are done" in stdout
    assert sorted(path.name[5:13] for path in before.parent.iterdir()) == ["00000020", "00000060"]  # though --keep is 1
    assert "<strong>The generator has collapsed: since step 30 " in report.page(folder)


def test_stop_on_collapse_ends_the_run_and_keeps_what_was_before(collapsed, healthy, soon, tmp_path):
    folder = shutil.copytree(healthy[0], tmp_path / "run")
    resume = "train", "--resume", folder, *ABSURD, *OPTIONS, "--threads", 1
    stdout, stderr = minisagan(*resume, "--stop-on-collapse", code=6)
    assert "stopped at step 50 of 60 (collapsed)" in stdout and "note: " not in stderr
    *_, last = stderr.splitlines()
    before = folder / "checkpoints" / "step-00000020.safetensors"
    assert last.startswith("Error: step 50: the generator has collapsed: since step 30 ")
    assert last.endswith(f"; {before} is from before") and before.is_file()
    assert varieties(folder) == varieties(collapsed[0])[:5]
    assert "the generator has collapsed" in watch.standing(folder)

    minisagan(*resume, "--steps", 60)  # goes on, and is the run that was not stopped
    assert varieties(folder) == varieties(collapsed[0])
    back = "train", "--resume", before, "--steps", 30, "--lr-g", 0.0006, *OPTIONS, "--threads", 1
    notes = [line for line in minisagan(*back)[1].splitlines() if line.startswith("note")]
    assert notes == [f"note: back at {before.name}: what came after it is deleted (step-00000060.safetensors)"]
    assert [step for step, *_ in varieties(folder)] == [10, 20, 30] and variety.collapse(runs.read_log(folder)) is None


def test_a_run_that_was_never_varied_has_nothing_to_go_back_to(soon, tmp_path):
    options = *SMALL, *OPTIONS, *ABSURD, "--ema", 0, "--pack", 1, "--unconditional"
    stderr = minisagan("train", *options, "--out", "x", "--stop-on-collapse", code=6)[1]
    assert stderr.splitlines()[-1].endswith("or a larger --batch-size; no checkpoint from before is there")
    assert {"contrast", "variety_min"} & set().union(*runs.read_log("x")) == set()


def test_equal_images_and_one_image_of_each_class(tmp_path):
    equal, one = (np.full((8, 28, 28), 99, np.uint8), np.arange(8) % 2), (noise(8, 28, 28), np.arange(8))
    for name, (images, labels), keys in ("equal", equal, set()), ("one", one, {"contrast"}):
        np.savez(tmp_path / f"{name}.npz", images=images, labels=labels)
        minisagan("train", "--dataset", f"{name}.npz", *SMALL, "--steps", 2, "--sample-every", 1, "--out", name)
        logged = set().union(*runs.read_log(name))
        assert {"variety", "variety_min", "contrast"} & logged == keys and "loss_d" in logged


def test_to_stop_on_collapse_there_have_to_be_samples():
    assert "--sample-every must not be 0" in refused("train", "--stop-on-collapse", "--sample-every", 0)


def test_what_is_advised_where_spectral_norm_is_in_d_alone():
    arch = Architecture(spectral_norm="discriminator", pack=2)
    assert "--spectral-norm both, or" in variety.advice(Config(architecture=arch))


def test_a_measure_at_its_least_is_not_too_low():
    assert variety.last_varied([{"step": 7, "variety": variety.LEAST}], "variety") == 7
