"""A small classifier, made and trained by this package itself: what the metrics see images through.

    image (S, S, C) -> conv 5x5, stride 2 -> [conv 3x3, average pool] until 16x16 -> conv 3x3
                    -> conv 3x3, average pool -> conv 3x3, average pool (4, 4, ...) -> linear (FEATURES,) -> linear

All but the last end in batch norm and ReLU; what the last one reads are the features.

It learns a data set's training images by cross-entropy and Adam, each image shifted by up to SHIFT pixels, and is then
judged on the test images, or on a fifth of a folder's images, always the same ones. One for MNIST comes with the
package; others are trained when they are first asked for, and kept in

    <data folder>/classifiers/<data set>-<key>.safetensors

where the key stands for the images and for the training. All weights are rounded to float16 in the end: half the
bytes. Features of two classifiers can't be compared: `hash` tells them apart.
"""

import hashlib
import json
import os
import sys
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np

from minisagan import data, nn, ops, rng
from minisagan.autograd import Tensor, grad, no_tape
from minisagan.errors import DataError, Fault, UsageError
from minisagan.init import Init
from minisagan.judge.cross_entropy import cross_entropy
from minisagan.launcher import launched
from minisagan.module import Module
from minisagan.optim import Adam
from minisagan.processes import mpi
from minisagan.run import checkpoint
from minisagan.stderr import note, progress

FEATURES = 128
RECIPE = 1  # raise it when the same images and the numbers below give another classifier
BATCH, STEPS, EPOCHS, LR, SHIFT = 128, 2400, 40, 3e-3, 2  # whichever is less: so many steps, or so many epochs
SHIPPED = Path(__file__).parent / "classifiers"
LOOK = 250  # images looked at together


class Block(Module):
    """A layer without bias or spectral norm, then batch norm and ReLU: (N, H, W, C) -> (N, H', W', O)."""

    def __init__(self, init, inputs, outputs, kernel=3, op=ops.conv):
        self.conv = nn.Conv(init, inputs, outputs, kernel, bias=False, spectral=False, op=op)
        self.norm = nn.BatchNorm(init, outputs)

    def __call__(self, x):
        return self.norm(self.conv(x))


class Classifier(Module):
    """Images (N, S, S, channels) in [-1, 1] -> logits (N, classes); S = 32, 64, ... as in models.

    `accuracy`: the share of the test images that it names right; `tested`: how many those were.
    """

    def __init__(self, size, channels, classes, seed=0):
        init = Init(seed)
        self.first = Block(init, channels, 16, kernel=5, op=partial(ops.conv, stride=2))  # (N, S/2, S/2, 16)
        for r in (r for r in (64, 32, 16) if r < size // 2):
            setattr(self, f"down{r}", Block(init, 16, 16, op=ops.conv_down))  # (N, r, r, 16)
        self.second = Block(init, 16, 24)  # (N, 16, 16, 24)
        self.down8 = Block(init, 24, 48, op=ops.conv_down)
        self.down4 = Block(init, 48, 32, op=ops.conv_down)  # (N, 4, 4, 32)
        self.last = Block(init, 16 * 32, FEATURES, kernel=1)  # of one position, which has all
        self.output = nn.Linear(init, FEATURES, classes, spectral=False)
        self.accuracy, self.tested = None, 0

    def features(self, x):
        """What the output layer reads: (N, S, S, channels) -> (N, FEATURES), none negative."""
        *convolutions, last = self.modules(Block)
        h = Tensor(x)
        for block in convolutions:
            h = block(h)
        return last(h.reshape(len(x), 1, 1, -1)).reshape(len(x), -1)

    def __call__(self, x):
        return self.output(self.features(x))

    @property
    def hash(self):
        """Twelve digits of the sha256 of all weights and statistics, by the order of their names."""
        digest = hashlib.sha256()
        for name, x in sorted(self.state().items()):
            digest.update(name.encode() + b"\0" + x.tobytes())
        return digest.hexdigest()[:12]

    def look(self, dataset, indices):
        """(features (N, FEATURES), probabilities (N, classes)), float32, of these images of a data.Dataset.

        Ranks of MPI, if there are any, are given these images, and look at a share each.
        """
        if launched()[1] > 1:
            dataset = replace(dataset, images=dataset.images[indices], labels=dataset.labels[indices])
            indices = np.arange(len(indices))
        found = mpi.divided(_looked, -(-len(indices) // LOOK), self, dataset, indices)
        return tuple(np.concatenate(parts) for parts in zip(*found, strict=True))


def _looked(k, net, dataset, indices):
    """What `net` finds in the k-th batch of LOOK images: features and probabilities."""
    with no_tape():
        x, _ = data.batch(dataset, indices[k * LOOK : (k + 1) * LOOK])
        h = net.features(x)
        return h.data, ops.softmax(net.output(h)).data


def splits(dataset, data_dir=None):
    """((data set, indices), (data set, indices)): what a classifier learns, and what it is judged on.

    These are the training and the test images; of a folder of images, which `dataset` is the whole of, four fifths
    and one fifth, always the same. UsageError for a data set of one class, or of too few images for a fifth.
    """
    if len(dataset.classes) < 2:
        raise UsageError(
            f"{dataset.name} has one class only: no classifier can be trained on it. Write images with "
            "minisagan sample RUN -o FOLDER and measure them with a program that brings its own features"
        )
    if len(dataset) < 5:
        raise UsageError(f"{dataset.name}: {len(dataset)} images are too few to judge a classifier by a fifth of them")
    everything = np.arange(len(dataset))
    if dataset.name in data.NAMES:
        test = data.load(dataset.name, data_dir, split="test")
        return (dataset, everything), (test, np.arange(len(test)))
    shuffled = rng.permutation(len(dataset), 0, 0)
    held = everything % 5 == 4
    return (dataset, np.sort(shuffled[~held])), (dataset, np.sort(shuffled[held]))


def obtain(dataset, data_dir=None):
    """The classifier of a data.Dataset (its training images), in evaluation mode: shipped, kept, or trained now.

    UsageError as for `splits`; DataError for a damaged file.
    """
    net = Classifier(dataset.size, dataset.channels, len(dataset.classes))
    key = _key(dataset)  # once: it reads images
    name = f"{Path(dataset.name).name}-{key}.safetensors"
    where = data.data_folder(data_dir)
    kept = where and where / "classifiers" / name
    if kept and not kept.is_file():  # the images' folder may have had another name
        kept = next(kept.parent.glob(f"*-{key}.safetensors"), kept)
    for path in (SHIPPED / name, kept):
        if path and path.is_file():
            try:
                tensors, about = checkpoint.load(path)
                checkpoint.match({key: x.astype(np.float32) for key, x in tensors.items()}, net.state())
                net.accuracy, net.tested = float(about["accuracy"]), int(about["tested"])
            except (DataError, KeyError, ValueError) as error:
                raise DataError(f"{error}; delete {path}: the classifier is then trained anew") from error
            return net.eval()
    parts = splits(dataset, data_dir)
    kind = f"once: it is kept as {kept}" if kept else "which is not kept: no home folder; $MINISAGAN_DATA names another"
    print(f"training a classifier of {dataset.name}, {kind}", file=sys.stderr)
    train(net, *parts)
    try:
        if kept:
            _keep(net, kept)
    except (OSError, Fault) as error:
        note(f"the classifier is not kept ({error})")
    return net


def train(net, learned, held, seed=0):
    """Train `net` on the split `learned`, leave it in evaluation mode, and set its accuracy on the split `held`.

    Adam with the usual betas; its rate rises to LR over the first tenth of the steps, and falls to 0 from there. Its
    weights are those that a file will hold, rounded to float16.
    """
    (dataset, indices), (_, tested) = learned, held
    steps = min(STEPS, -(-EPOCHS * len(indices) // BATCH))
    adam = Adam(net.train().parameters(), LR, beta1=0.9, beta2=0.999)
    for step in range(steps):
        adam.lr = LR * min(10 * (step + 1) / steps, (steps - step) / (0.9 * steps), 1)
        x, labels = data.batch(dataset, indices[data.batch_indices(step * BATCH, BATCH, len(indices), seed)])
        loss = cross_entropy(net(_shifted(x, rng.bits(2 * BATCH, seed, rng.Stream.SHIFT, step))), labels)
        adam.step(grad(loss, adam.parameters))
        progress(f"training a classifier of {dataset.name}", step + 1, steps)
    for x in net.state().values():
        x[...] = x.astype(np.float16)
    _, probabilities = net.eval().look(*held)
    net.accuracy = float((probabilities.argmax(1) == held[0].labels[tested]).mean())
    net.tested = len(tested)


def _shifted(x, words):
    """Each image moved by -SHIFT to SHIFT pixels along both axes, its edges repeated: (N, S, S, C)."""
    down, right = (words % np.uint64(2 * SHIFT + 1)).astype(np.int64).reshape(2, -1)  # (N,)
    S = x.shape[1]
    wide = np.pad(x, ((0, 0), (SHIFT, SHIFT), (SHIFT, SHIFT), (0, 0)), mode="edge")
    return np.stack([image[i : i + S, j : j + S] for image, i, j in zip(wide, down, right, strict=True)])


def _key(dataset):
    """Twelve hexadecimal digits for the images and for how a classifier is trained on them.

    The hashes of a folder are its files', which may have been cropped or framed, in grey or in colour: so some of its
    images count as they are.
    """
    facts = [dataset.size, dataset.hashes, RECIPE, BATCH, STEPS, EPOCHS, LR, SHIFT]
    if dataset.name not in data.NAMES:
        some = np.ascontiguousarray(dataset.images[:: -(-len(dataset) // 100)])
        facts += [some.shape, hashlib.sha256(some).hexdigest()]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()[:12]


def _keep(net, path):
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{path.stem}.{os.getpid()}.part")  # another process may train it, too
    try:
        about = {"accuracy": repr(net.accuracy), "tested": str(net.tested)}
        checkpoint.save(part, {name: x.astype(np.float16) for name, x in net.state().items()}, about)
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)
