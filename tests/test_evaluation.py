"""`minisagan evaluate`, and what a run keeps of measurements on its way."""

import json
import re
import shutil
from dataclasses import replace

import command_line
import numpy as np
import pytest
from command_line import SMALL, minisagan, refused

from minisagan import data
from minisagan.judge import classifier, metrics
from minisagan.judge.evaluation import Judge
from minisagan.run import checkpoint, loop
from minisagan.run import folder as runs
from minisagan.sampling import draw

apart = command_line.apart  # a fixture
pytestmark = pytest.mark.usefixtures("apart", "enough")  # in this order

ENOUGH = {"train": (300, 0), "test": (200, 1)}
TRAIN = ("train", *SMALL, "--steps", 4, "--evaluate-every", 1, "--checkpoint-every", 2, "--keep", 1)
KEYS = {"frechet", "kid", "precision", "recall", "score"}


@pytest.fixture
def enough(trained, monkeypatch):
    """Enough digits for the Frechet distance, and the classifier that `trained` has made of them."""
    patched(monkeypatch)
    monkeypatch.setenv("MINISAGAN_DATA", str(trained / "data"))


def patched(patch):
    patch.setattr(data, "DRAWN", ENOUGH)
    patch.setattr(classifier, "STEPS", 60)
    patch.setattr(classifier, "BATCH", 50)
    patch.setattr(loop, "EVALUATED", 150)


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    """A run that was measured after each of its 4 steps, and the data folder with its classifier."""
    root = tmp_path_factory.mktemp("trained")
    with pytest.MonkeyPatch.context() as patch:
        patched(patch)
        minisagan(*TRAIN, "--data-dir", root / "data", "--out", root / "run")
    return root


@pytest.fixture
def copy(trained, tmp_path):
    """The same, to be changed."""
    return shutil.copytree(trained / "run", tmp_path / "run")


# A judge


def test_the_data_themselves_are_perfect_and_others_are_not(tmp_path):
    dataset, test = data.load("drawn-digits"), data.load("drawn-digits", split="test")
    judge = Judge(dataset, 200)
    found = judge.measure(test.images, test.labels)
    assert abs(found["frechet"]) < 1e-9 and found["precision"] == found["recall"] == 1
    assert found["accuracy"] == judge.classifier.accuracy > 0.7 and judge.classifier.tested == 200
    floor = judge.floor()
    assert floor["accuracy"] == judge.classifier.accuracy and floor["score"] == pytest.approx(found["score"])
    assert set(floor) == set(found) == {*KEYS, "accuracy", "worst_accuracy", "worst_class"}
    assert set(judge.measure(test.images)) == KEYS

    noise = judge.measure(np.random.RandomState(0).randint(0, 256, (200, 28, 28, 1)).astype(np.uint8), test.labels)
    assert noise["frechet"] > 10 * floor["frechet"] > 0 and noise["kid"] > 10 * abs(floor["kid"])
    assert noise["precision"] < floor["precision"] and noise["accuracy"] < 0.3
    collapsed = judge.measure(test.images[np.arange(200) % 10], test.labels[np.arange(200) % 10])
    assert collapsed["recall"] < 0.1 < collapsed["precision"] == 1
    shifted = judge.measure(test.images, (test.labels + 1) % 10)
    assert shifted["accuracy"] < 0.2 and shifted["frechet"] == found["frechet"]


def test_the_floor_is_training_against_test_images():
    dataset = data.load("drawn-digits")
    judge = Judge(dataset, 150, seed=3)
    assert len(set(judge.train_indices)) == len(set(judge.test_indices)) == 150
    features, _ = judge.classifier.look(dataset, judge.train_indices)
    reference, p = judge.classifier.look(data.load("drawn-digits", split="test"), judge.test_indices)
    floor = judge.floor()
    assert floor["frechet"] == pytest.approx(metrics.frechet(features, reference))
    assert floor["kid"] == pytest.approx(metrics.kid(features, reference))
    assert (floor["precision"], floor["recall"]) == metrics.precision_recall(reference, features, 3)
    assert floor["score"] == metrics.classifier_score(p)
    other = Judge(dataset, 150, seed=4)
    assert set(other.test_indices) != set(judge.test_indices) and set(other.train_indices) != set(judge.train_indices)


# The command


def test_evaluate_measures_samples_of_the_classes_of_the_test_images(trained):
    run = trained / "run"
    stdout, _ = minisagan("evaluate", run, "--count", 160, "--seed", 5, "--json")
    facts = json.loads(stdout)
    assert facts == json.loads((run / "evaluation.json").read_text())
    assert (facts["step"], facts["count"], facts["test_count"], facts["train_count"]) == (4, 160, 160, 160)

    dataset, test = data.load("drawn-digits"), data.load("drawn-digits", split="test")
    net, judge = classifier.obtain(dataset), Judge(dataset, 160, 5)
    asked = test.labels[judge.test_indices]
    assert len(np.unique(np.bincount(asked))) > 1, "each class is as often there: evenly spread labels would do"
    drawn, labels = draw(runs.load_generator(run)[0], 160, asked, 5, 28)
    np.testing.assert_array_equal(labels, asked)
    features, p = net.look(replace(dataset, images=drawn, labels=labels), np.arange(160))
    reference, _ = net.look(test, judge.test_indices)
    found = facts["metrics"]
    assert found["frechet"] == pytest.approx(metrics.frechet(reference, features))
    assert found["kid"] == pytest.approx(metrics.kid(reference, features))
    assert (found["precision"], found["recall"]) == metrics.precision_recall(reference, features)
    assert found["score"] == pytest.approx(metrics.classifier_score(p))
    right = asked == p.argmax(1)
    shares = [right[asked == c].mean() for c in range(10)]
    assert found["accuracy"] == pytest.approx(right.mean())
    assert (found["worst_accuracy"], found["worst_class"]) == (min(shares), str(np.argmin(shares)))
    assert facts["classifier"] == {"hash": net.hash, "accuracy": net.accuracy, "tested": 200, "features": 128}


def test_evaluate_prints_each_number_beside_its_floor(copy):
    stdout, _ = minisagan("evaluate", copy, "--count", 150)
    facts = json.loads((copy / "evaluation.json").read_text())
    for name, metric in (("Frechet distance", "frechet"), ("precision (k = 3)", "precision")):
        line = next(line for line in stdout.splitlines() if line.startswith(name))
        numbers = [float(word) for word in line.removeprefix(name).split()]
        assert numbers == pytest.approx([facts["metrics"][metric], facts["floor"][metric]], abs=6e-4)
    assert f"150 test images of drawn-digits, on 128 features of classifier {facts['classifier']['hash']}, " in stdout
    assert f"Written to {copy / 'evaluation.json'}" in stdout


def test_a_checkpoint_that_a_training_deletes_meanwhile_is_measured_all_the_same(copy, monkeypatch):
    judged = Judge.judged

    def slow(*args):
        shutil.rmtree(copy / "checkpoints")
        return judged(*args)

    monkeypatch.setattr(Judge, "judged", slow)
    assert "Frechet distance" in minisagan("evaluate", copy, "--count", 150)[0]
    assert json.loads((copy / "evaluation.json").read_text())["step"] == 4


def test_a_checkpoint_and_one_outside_of_a_run(copy, tmp_path):
    file = next((copy / "checkpoints").iterdir())
    minisagan("evaluate", file, "--count", 150)
    facts = json.loads((copy / "evaluation.json").read_text())
    assert facts["checkpoint"] == str(file) and facts["step"] == int(file.stem.split("-")[1])
    loose = shutil.copy(file, tmp_path / "loose.safetensors")
    stdout, _ = minisagan("evaluate", loose, "--count", 150)
    assert "Written" not in stdout and "Frechet distance" in stdout
    assert not list(tmp_path.rglob("*.tmp"))


def test_a_run_that_is_replaced_loses_its_evaluation(copy):
    (copy / "evaluation.json").write_text("{}")
    minisagan("train", *SMALL, "--steps", 0, "--out", copy, "--force")
    assert not (copy / "evaluation.json").exists()


def test_without_classes_nothing_was_asked_for(tmp_path):
    minisagan("train", *SMALL, "--steps", 1, "--unconditional", "--out", "run")
    stdout, _ = minisagan("evaluate", "run", "--count", 200)
    facts = json.loads((tmp_path / "run" / "evaluation.json").read_text())
    assert set(facts["metrics"]) == KEYS and "class asked for" not in stdout
    assert facts["floor"]["accuracy"] == facts["classifier"]["accuracy"] and facts["test_count"] == 200


def test_too_few_images_are_refused(copy, monkeypatch):
    assert "128 images are too few for a Frechet distance that means anything: with 128 features more" in refused(
        "evaluate", copy, "--count", 128
    )
    monkeypatch.setattr(data, "DRAWN", ENOUGH | {"test": (90, 1)})
    assert "90 test images of drawn-digits are too few for a Frechet distance" in refused(
        "evaluate", copy, "--count", 150
    )


def test_more_images_than_the_data_set_has(copy):
    stdout, stderr = minisagan("evaluate", copy, "--count", 310, "--json")
    facts = json.loads(stdout)
    assert (facts["count"], facts["test_count"], facts["train_count"]) == (310, 200, 300)
    assert stderr.startswith("note: only 300 training images stand for real ones beside 310 generated: that alone")
    stdout, stderr = minisagan("evaluate", copy, "--json")
    facts = json.loads(stdout)
    assert (facts["count"], facts["test_count"], facts["train_count"], stderr) == (300, 200, 300, "")


def test_folders_of_one_class_gone_or_changed(tmp_path):
    draw = np.random.RandomState(0)
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i in range(8):
        command_line.iio.imwrite(folder / f"{i}.png", draw.randint(0, 256, (32, 32, 3)).astype(np.uint8))
    minisagan("train", "--dataset", folder, "--size", 32, *SMALL, "--steps", 1, "--out", "run")
    assert "has one class only: no classifier can be trained on it. Write images with minisagan sample" in refused(
        "evaluate", "run"
    )
    (folder / "0.png").unlink()
    assert "not the data that run was trained on: hashes was" in refused("evaluate", "run", code=3)
    shutil.rmtree(folder)
    assert f"{folder}: the images that run was trained on are not there" in refused("evaluate", "run", code=3)


def test_what_was_measured_is_written_even_if_nobody_reads_it(copy, monkeypatch):
    def gone(*_, **__):
        raise BrokenPipeError

    (copy / "evaluation.json").unlink(missing_ok=True)
    monkeypatch.setattr("minisagan.commands.evaluate._show", gone)
    minisagan("evaluate", copy, "--count", 150, code=1)
    assert json.loads((copy / "evaluation.json").read_text())["count"] == 150


def test_a_run_that_can_not_be_written(copy, monkeypatch):
    (copy / "evaluation.json").unlink(missing_ok=True)
    (copy / "evaluation.json").mkdir()
    stdout, stderr = minisagan("evaluate", copy, "--count", 150, code=1)
    assert re.search(r"Frechet distance +\d", stdout) and "Written" not in stdout
    assert stderr.startswith(f"Error: {copy / 'evaluation.json'}: not written: ") and stderr.count("\n") == 1


# On the way


def log_of(run):
    return [{key: value for key, value in record.items() if key != "seconds"} for record in runs.read_log(run)]


def test_training_logs_measurements_and_keeps_the_best(trained):
    run = trained / "run"
    log = log_of(run)
    assert [record["step"] for record in log] == [1, 2, 3, 4]
    assert set(log[2]) >= {*KEYS, "accuracy", "worst_accuracy", "loss_d", "gamma_g"}
    distances = {record["step"]: record["frechet"] for record in log}
    best = min(distances, key=distances.get)
    kept = [file.name for file in sorted((run / "checkpoints").iterdir())]
    assert kept == sorted({f"step-{step:08d}.safetensors" for step in (best, 4)})
    assert runs.best(run) == (distances[best], checkpoint.path_of(run / "checkpoints", best))


def test_what_is_better_is_saved_and_kept(tmp_path, monkeypatch):
    distances, saved, save = [5, 9, 3, 7, 8, 6], [], loop.Run.save
    monkeypatch.setattr(loop.Run, "evaluate", lambda self: {"frechet": distances[self.training.step - 1]})
    monkeypatch.setattr(loop.Run, "save", lambda self: (saved.append(self.training.step), save(self)))
    given = "--steps", 6, "--evaluate-every", 1, "--checkpoint-every", 4, "--keep", 1
    minisagan("train", *SMALL, *given, "--out", "run")
    assert saved == [0, 1, 3, 4, 6]
    left = sorted(file.name for file in (tmp_path / "run" / "checkpoints").iterdir())
    assert left == ["step-00000003.safetensors", "step-00000006.safetensors"]
    assert runs.best(tmp_path / "run") == (3, tmp_path / "run" / "checkpoints" / left[0])
    (tmp_path / "run" / "checkpoints" / left[0]).unlink()
    assert runs.best(tmp_path / "run") == (6, tmp_path / "run" / "checkpoints" / left[1])


def test_what_is_logged_is_the_distance_of_that_steps_images(trained):
    run, dataset = trained / "run", data.load("drawn-digits")
    generator, config, _, _ = runs.load_generator(run)
    judge = Judge(dataset, 150, config.seed)
    found = judge.measure(*draw(generator, 150, judge.labels, config.seed, 28))
    last = runs.read_log(run)[-1]
    assert last["frechet"] == pytest.approx(found["frechet"], rel=1e-5) and last["accuracy"] == found["accuracy"]


def test_every_command_finds_the_best(copy):
    log = copy / "log.jsonl"
    records = runs.read_log(copy)
    best = runs.best(copy)[1]
    assert str(best) in minisagan("sample", copy / "best", "--count", 10, "-o", "best.png")[0]
    assert str(best) in minisagan("evaluate", copy / "best", "--count", 150)[0]
    log.write_text("".join(json.dumps(r | {"frechet": -r["step"]}) + "\n" for r in records))
    assert runs.find(copy / "best").name == "step-00000004.safetensors"
    log.write_text("".join(json.dumps({"step": r["step"]}) + "\n" for r in records))
    assert "best: this run has no evaluated checkpoint; train --evaluate-every" in refused("sample", copy / "best")


def test_resumed_it_is_the_same_and_keeps_the_same(trained, tmp_path):
    run, again = trained / "run", tmp_path / "again"
    few = [2 if option == 4 else option for option in TRAIN]
    minisagan(*few, "--out", again)
    minisagan(*TRAIN, "--resume", again)
    assert log_of(again) == log_of(run)
    names = lambda folder: sorted(file.name for file in (folder / "checkpoints").iterdir())
    assert names(again) == names(run) and runs.best(again)[0] == runs.best(run)[0]
    for name in names(run):
        one, other = (checkpoint.load(folder / "checkpoints" / name)[0] for folder in (run, again))
        assert all(np.array_equal(one[key], other[key]) for key in one)


def test_resumed_without_measuring_the_best_stays(copy, monkeypatch):
    log, records = copy / "log.jsonl", runs.read_log(copy)
    minisagan("train", "--resume", copy, "--steps", 5, "--keep", 1, "--threads", 1)
    best = runs.best(copy)[1]
    assert best.is_file() and (copy / "checkpoints" / "step-00000005.safetensors").is_file()
    assert len(runs.read_log(copy)) == len(records) and log.is_file()


def test_what_can_not_be_measured_is_refused_before_the_first_step(tmp_path, monkeypatch):
    monkeypatch.setattr(data, "DRAWN", ENOUGH | {"test": (50, 1)})
    assert "50 test images of drawn-digits are too few" in refused(*TRAIN, "--out", "run")
    assert not (tmp_path / "run").exists()
