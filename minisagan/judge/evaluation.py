"""How good a generator is: its images against a data set's test images, through the data set's classifier.

Beside each number stands what real images get, the floor. For what compares two sets (distances, precision and recall)
as many training images stand in for the generated ones; the classifier score and the accuracy, which look at one set
alone, are those of the test images. No number here means anything without its floor, the number of images, and the
classifier's hash. A distance is one of all images, whatever their class: so generated ones are to have each class as
often as the test images have it (of MNIST's, 11 % are ones and 9 % fives: real digits, each class equally often, are
0.29 from them in place of 0.22).
"""

import numpy as np

from minisagan import data, rng
from minisagan.errors import UsageError
from minisagan.judge import classifier, metrics
from minisagan.judge.classifier import FEATURES
from minisagan.sampling import draw

COUNT = 10_000  # images that are usually measured
K = 3  # of precision and recall
ROWS = {  # metric: its name, its format, in the order in which they are shown
    "frechet": ("Frechet distance", "{:.3f}"),
    "kid": ("KID", "{:.5f}"),
    "precision": (f"precision (k = {K})", "{:.3f}"),
    "recall": (f"recall (k = {K})", "{:.3f}"),
    "score": ("classifier score", "{:.3f}"),
    "accuracy": ("class asked for", "{:.2%}"),
    "worst_accuracy": ("  the worst class", "{:.2%}"),
    "worst_class": ("  which is", "{}"),
}


class Judge:
    """Measures images against `count` test images of `dataset` (its training images), or as many as there are.

    Its floor is that of `count` training images, or of all of them. That many should be measured, since a distance
    falls with the number of images: so without a `count` it is COUNT, or all training images. Which images stand for
    the data set is a matter of the seed. `labels` (M,) are the classes of these test images, and those to ask a
    generator for, over and over. Trains the data set's classifier if there is none yet. UsageError if there are too few
    images for the Frechet distance.
    """

    def __init__(self, dataset, count=None, seed=0, data_dir=None):
        self.classes = dataset.classes
        (train, learned), (test, held) = classifier.splits(dataset, data_dir)
        self.count = count = min(COUNT, len(learned)) if count is None else count
        for number, what in (
            (len(held), f"test images of {dataset.name}"),
            (len(learned), f"training images of {dataset.name}"),
            (count, "images"),
        ):
            if number <= FEATURES:
                raise UsageError(
                    f"{number} {what} are too few for a Frechet distance that means anything: with {FEATURES} features "
                    f"more than {FEATURES} are needed"
                )
        self.train, self.train_indices = train, learned[rng.permutation(len(learned), seed, 0)[:count]]
        self.test, self.test_indices = test, held[rng.permutation(len(held), seed, 0)[:count]]
        self.labels = test.labels[self.test_indices]
        self.classifier = classifier.obtain(dataset, data_dir)
        self.features, self.probabilities = self.classifier.look(self.test, self.test_indices)  # (M, D), (M, classes)

    def measure(self, images, asked=None):
        """Metric -> value, of images uint8 (N, H, H, C) of the classes `asked` for (N,), or None.

        frechet, kid, precision, recall and score as in `metrics`; and if classes were asked for, accuracy (of the
        asked-for class), worst_accuracy and worst_class (its name).
        """
        made = data.Dataset("generated", images, np.zeros(len(images), np.int64), self.classes, {})
        features, probabilities = self.classifier.look(made, np.arange(len(images)))
        return self._distances(features) | self._alone(probabilities, asked)

    def judged(self, generator, seed, image_size):
        """`measure` of `count` samples of this generator, whose classes are those of the test images."""
        classes = self.labels if generator.arch.classes else None
        return self.measure(*draw(generator, self.count, classes, seed, image_size))

    def floor(self):
        """The same metrics of real images."""
        features, _ = self.classifier.look(self.train, self.train_indices)
        return self._distances(features) | self._alone(self.probabilities, self.labels)

    def _distances(self, features):
        precision, recall = metrics.precision_recall(self.features, features, K)
        return {
            "frechet": metrics.frechet(self.features, features),
            "kid": metrics.kid(self.features, features),
            "precision": precision,
            "recall": recall,
        }

    def _alone(self, probabilities, asked):
        found = {"score": metrics.classifier_score(probabilities)}
        if asked is not None:
            accuracy, worst, k = metrics.class_accuracy(asked, probabilities.argmax(1))
            found |= {"accuracy": accuracy, "worst_accuracy": worst, "worst_class": self.classes[k]}
        return found
