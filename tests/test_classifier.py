"""The classifier: what it learns, that it is the same each time, where it is kept, and the one that is shipped."""

import os
from dataclasses import replace

import numpy as np
import pytest

from minisagan import cpu, data
from minisagan.autograd import no_tape
from minisagan.data import idx
from minisagan.errors import DataError, UsageError
from minisagan.judge import classifier
from minisagan.judge.classifier import FEATURES, Classifier
from minisagan.run import checkpoint


def stripes(count=60, size=28, channels=1):
    """Stripes that lie (class 0) or stand (class 1), of random phase and brightness."""
    draw = np.random.RandomState(0)
    wave = np.sin(np.arange(size) + draw.uniform(0, 6, (count, 1))) > 0  # (N, size)
    images = (wave[:, :, None, None] * draw.uniform(99, 255, (count, 1, 1, channels))).repeat(size, 2)
    labels = np.arange(count) % 2
    images[labels == 1] = images[labels == 1].swapaxes(1, 2)
    return data.Dataset("stripes", images.astype(np.uint8), labels, ("lying", "standing"), {"images": str(count)})


@pytest.fixture(autouse=True)
def quick(monkeypatch):
    monkeypatch.setattr(classifier, "STEPS", 12)
    monkeypatch.setattr(classifier, "BATCH", 16)


def trained(dataset, seed=0):
    net = Classifier(dataset.size, dataset.channels, len(dataset.classes), seed)
    classifier.train(net, *classifier.splits(dataset), seed)
    return net


def test_it_learns_and_is_judged_on_what_it_has_not_seen():
    dataset = stripes()
    (_, learned), (_, held) = classifier.splits(dataset)
    assert sorted([*learned, *held]) == list(range(60)) and len(held) == 12
    net = trained(dataset)
    assert net.accuracy == 1 and net.tested == 12 and not net.training
    _, probabilities = net.look(dataset, held)
    assert np.array_equal(probabilities.argmax(1), dataset.labels[held]) and probabilities.max(1).mean() > 0.8
    wrong = replace(dataset, labels=np.where(np.isin(np.arange(60), held), 1 - dataset.labels, dataset.labels))
    assert trained(wrong).accuracy == 0  # nothing was learned of the images that it is judged on


def test_it_learns_the_training_images_each_time_shifted_anew(monkeypatch):
    batch, shifted, seen, moves = data.batch, classifier._shifted, [], []
    monkeypatch.setattr(data, "batch", lambda dataset, indices: (seen.append(indices), batch(dataset, indices))[1])
    monkeypatch.setattr(classifier, "_shifted", lambda x, words: (moves.append(tuple(words)), shifted(x, words))[1])
    parts = classifier.splits(stripes())
    classifier.train(Classifier(32, 1, 2), *parts)
    (_, learned), (_, held) = parts
    assert set(np.concatenate(seen[:12])) == set(learned) and np.array_equal(seen[12], held)
    assert len(set(moves)) == 12 and all(len(words) == 32 for words in moves)


def test_one_seed_makes_one_classifier_whatever_the_threads():
    dataset, threads = stripes(), cpu.threads()
    hashes = []
    for count, seed in ((1, 0), (2, 0), (1, 1)):
        cpu.set_threads(count)
        hashes.append(trained(dataset, seed).hash)
    cpu.set_threads(threads)
    assert hashes[0] == hashes[1] != hashes[2] and len(hashes[0]) == 12


@pytest.mark.parametrize("size, channels", [(28, 1), (64, 3)])
def test_what_it_sees_in_images(size, channels, monkeypatch):
    dataset = stripes(7, size, channels)
    net = trained(dataset)
    features, probabilities = net.look(dataset, np.arange(7))
    assert features.shape == (7, FEATURES) and features.min() >= 0 and features.dtype == np.float32
    assert probabilities.shape == (7, 2) and np.abs(probabilities.sum(1) - 1).max() < 1e-6
    monkeypatch.setattr(classifier, "LOOK", 3)
    again, _ = net.look(dataset, np.arange(7)[::-1])
    assert np.allclose(again[::-1], features, atol=1e-5)
    frozen = net.state()["down4.norm.mean"].copy()
    net.look(dataset, np.arange(7))
    assert np.array_equal(net.state()["down4.norm.mean"], frozen)


def test_pytorch_computes_the_same():
    torch = pytest.importorskip("torch")
    F = torch.nn.functional
    net = trained(stripes())
    state = {name: torch.tensor(x) for name, x in net.state().items()}
    x, _ = data.batch(stripes(), np.arange(9))

    def block(x, name, stride=1, pool=False):
        w = state[f"{name}.conv.w"]
        x = F.conv2d(x, w.permute(3, 2, 0, 1), stride=stride, padding=w.shape[0] // 2)
        x = F.avg_pool2d(x, 2) if pool else x
        return F.relu(F.batch_norm(x, *(state[f"{name}.norm.{key}"] for key in ("mean", "var", "gain", "bias"))))

    h = block(torch.tensor(x).permute(0, 3, 1, 2), "first", stride=2)
    h = block(block(block(h, "second"), "down8", pool=True), "down4", pool=True)  # (N, 32, 4, 4)
    h = block(h.permute(0, 2, 3, 1).reshape(9, -1, 1, 1), "last")[:, :, 0, 0]
    with no_tape():
        assert np.allclose(net.features(x).data, h, atol=1e-5)
        assert np.allclose(net(x).data, h @ state["output.w"] + state["output.b"], atol=1e-5)


def test_images_are_shifted_and_their_edges_repeated():
    x = np.arange(2 * 32 * 32, dtype=np.float32).reshape(2, 32, 32, 1)
    words = np.array([0, 4, 2, 3], np.uint64)  # down and right by 2 - 0 and 2 - 2; by 2 - 4 and 2 - 3
    first, second = classifier._shifted(x, words)
    assert np.array_equal(first[2:], x[0, :-2]) and np.array_equal(first[:2], x[0, [0, 0]])
    assert np.array_equal(second[:-2, :-1], x[1, 2:, 1:]) and np.array_equal(second[:-2, -1], x[1, 2:, -1])


# Where it is kept


def test_it_is_trained_once_and_then_kept(tmp_path, monkeypatch, capsys):
    net = classifier.obtain(stripes(), tmp_path)
    (kept,) = (tmp_path / "classifiers").iterdir()
    assert capsys.readouterr().err == f"training a classifier of stripes, once: it is kept as {kept}\n"
    with monkeypatch.context() as patch:
        patch.delattr(classifier, "train")
        again = classifier.obtain(stripes(), tmp_path)
    assert (again.hash, again.accuracy, again.tested) == (net.hash, 1.0, 12) and not again.training
    assert capsys.readouterr().err == ""
    classifier.obtain(stripes(50), tmp_path)  # other images
    monkeypatch.setattr(classifier, "STEPS", 11)  # another training
    classifier.obtain(stripes(), tmp_path)
    assert len(list((tmp_path / "classifiers").iterdir())) == 3


def test_one_folder_read_in_two_ways_has_two_classifiers(tmp_path):
    crop, colour = stripes(), replace(stripes(), images=stripes().images.repeat(3, 3))
    pad = replace(crop, images=crop.images * (np.abs(np.arange(28) - 13.5) < 8)[:, None, None])  # the same files
    nets = [classifier.obtain(images, tmp_path) for images in (crop, pad, colour, crop)]
    assert nets[0].hash == nets[3].hash != nets[1].hash
    assert nets[2].features(np.zeros((1, 32, 32, 3), np.float32)).shape == (1, FEATURES)
    assert len(list((tmp_path / "classifiers").iterdir())) == 3


def test_a_damaged_file_is_named(tmp_path):
    classifier.obtain(stripes(), tmp_path)
    (kept,) = (tmp_path / "classifiers").iterdir()
    content = bytearray(kept.read_bytes())
    content[-5] ^= 1
    kept.write_bytes(content)
    with pytest.raises(DataError, match=rf"damaged, its sha256 differs; delete {kept}: .* trained anew"):
        classifier.obtain(stripes(), tmp_path)
    checkpoint.save(kept, Classifier(32, 1, 2).state(), {})
    with pytest.raises(DataError, match=f"'accuracy'.*delete {kept}"):
        classifier.obtain(stripes(), tmp_path)
    checkpoint.save(kept, Classifier(32, 1, 3).state(), {"accuracy": "1", "tested": "1"})
    with pytest.raises(DataError, match=f"does not fit the model.*delete {kept}"):
        classifier.obtain(stripes(), tmp_path)


def test_a_folder_that_can_not_be_written_is_no_obstacle(tmp_path, capsys):
    (tmp_path / "classifiers").write_text("a file in the way")
    assert classifier.obtain(stripes(), tmp_path).accuracy == 1
    assert "note: the classifier is not kept (" in capsys.readouterr().err
    assert [path.name for path in tmp_path.iterdir()] == ["classifiers"]


def test_what_can_not_be_classified_is_refused(tmp_path):
    with pytest.raises(UsageError, match="stripes has one class only: .*minisagan sample RUN -o FOLDER"):
        classifier.obtain(replace(stripes(), labels=np.zeros_like(stripes().labels), classes=("all",)), tmp_path)
    with pytest.raises(UsageError, match="stripes: 4 images are too few to judge a classifier by a fifth of them"):
        classifier.obtain(stripes(4), tmp_path)
    assert list(tmp_path.iterdir()) == []


# The one that comes with the package


@pytest.fixture
def as_shipped(monkeypatch, quick):
    monkeypatch.undo()


def test_the_shipped_file_is_small_and_that_of_mnist(as_shipped):
    (file,) = classifier.SHIPPED.iterdir()
    assert file.stat().st_size < 300_000
    names = "train-images-idx3-ubyte", "train-labels-idx1-ubyte"
    hashes = {name: known[2] for name, known in zip(names, idx.FILES["mnist", "train"], strict=True)}
    mnist = data.Dataset("mnist", np.zeros((1, 28, 28, 1), np.uint8), np.zeros(1, int), idx.CLASSES["mnist"], hashes)
    net = classifier.obtain(mnist, "no such folder")
    assert net.accuracy >= 0.993 and net.tested == 10_000
    assert net.hash == "4d3dcc1ef147"


def test_the_shipped_classifier_is_as_good_as_it_says(as_shipped, real_data):
    test = data.load("mnist", real_data("mnist"), split="test")
    net = classifier.obtain(data.load("mnist", real_data("mnist")), "no such folder")
    _, probabilities = net.look(test, np.arange(10_000))
    assert (probabilities.argmax(1) == test.labels).mean() == pytest.approx(net.accuracy, abs=2e-4)


def test_the_rate_rises_for_a_tenth_of_the_steps_and_falls_to_0_from_there(monkeypatch):
    rates, step = [], classifier.Adam.step
    monkeypatch.setattr(classifier.Adam, "step", lambda adam, *given: (rates.append(adam.lr), step(adam, *given)))
    monkeypatch.setattr(classifier, "BATCH", 4)
    monkeypatch.setattr(classifier, "STEPS", 20)
    classifier.train(Classifier(32, 1, 2), *classifier.splits(stripes()))
    assert np.divide(rates, classifier.LR) == pytest.approx([0.5, 1, *np.arange(18, 0, -1) / 18])


@pytest.mark.parametrize("most, steps", [(2400, 120), (12, 12)])
def test_so_many_steps_or_so_many_epochs_whichever_is_less(monkeypatch, most, steps):
    told = []
    monkeypatch.setattr(classifier, "BATCH", 16)
    monkeypatch.setattr(classifier, "STEPS", most)

    def progress(what, done, total):
        told.append(total)
        raise KeyboardInterrupt

    monkeypatch.setattr(classifier, "progress", progress)
    with pytest.raises(KeyboardInterrupt):  # 48 images are 3 batches: 40 times
        classifier.train(Classifier(32, 1, 2), *classifier.splits(stripes()))
    assert told == [steps]


def test_a_classifier_is_found_though_the_folder_has_another_name(tmp_path, monkeypatch):
    net = classifier.obtain(stripes(), tmp_path)
    monkeypatch.delattr(classifier, "train")
    assert classifier.obtain(replace(stripes(), name="moved/stripes 2"), tmp_path).hash == net.hash


def test_what_can_not_be_kept_leaves_no_part(tmp_path, monkeypatch):
    net, path, replace = Classifier(32, 1, 2), tmp_path / "a" / "x.safetensors", os.replace
    net.accuracy = 1.0

    def refused(source, target):
        if target == path:
            raise PermissionError(1, "no")
        replace(source, target)

    monkeypatch.setattr(os, "replace", refused)
    with pytest.raises(PermissionError):
        classifier._keep(net, path)
    assert list(path.parent.iterdir()) == []
