"""The metrics against numbers found by hand or by other programs, and against loops that spell their definitions."""

import math
import tracemalloc

import numpy as np
import pytest

from minisagan import cpu
from minisagan.errors import UsageError
from minisagan.judge import metrics


def with_moments(mean, covariance):
    """Points whose sample mean and covariance (over n - 1) are exactly these: (2 D, D)."""
    mean, root = np.array(mean, float), np.linalg.cholesky(np.array(covariance, float))
    n = 2 * len(mean)
    return np.concatenate([mean + math.sqrt((n - 1) / 2) * root.T, mean - math.sqrt((n - 1) / 2) * root.T])


def two_clouds(n=2000, width=64):
    draw = np.random.RandomState(0).randn
    return draw(n, width), 1.1 * draw(n, width) + 0.1


@pytest.mark.parametrize(
    "mean_x, covariance_x, mean_y, covariance_y, distance",
    [
        ([0], [[1]], [3], [[4]], 10),  # 3^2 + (1 - 2)^2
        ([0, 0, 0], np.diag([1, 4, 9]), [1, 2, 2], np.diag([4, 4, 1]), 14),  # 9 + 1 + 0 + 4
        ([0, 0], [[2, 1], [1, 2]], [0, 0], [[5, 2], [2, 3]], 12 - 2 * math.sqrt(20 + 2 * math.sqrt(33))),
    ],
)
def test_frechet_distance_of_known_moments(mean_x, covariance_x, mean_y, covariance_y, distance):
    x, y = with_moments(mean_x, covariance_x), with_moments(mean_y, covariance_y)
    assert metrics.frechet(x, y) == pytest.approx(distance, rel=1e-12)
    assert metrics.frechet(y, x) == pytest.approx(distance, rel=1e-12)


def test_the_last_of_these_written_out():
    x, y = with_moments([0, 0], [[2, 1], [1, 2]]), with_moments([0, 0], [[5, 2], [2, 3]])
    assert metrics.frechet(x, y) == pytest.approx(0.77696559872045, abs=1e-13)


def test_all_metrics_of_two_clouds():
    """The expected values were found once, by another program."""
    x, y = two_clouds()
    assert metrics.frechet(x, y) == pytest.approx(2.533249520382, abs=1e-11)
    assert metrics.kid(x, y) == pytest.approx(0.032175346807, abs=1e-11)
    assert metrics.precision_recall(x, y) == (0.2605, 0.8910)
    assert metrics.precision_recall(y, x) == (0.8910, 0.2605)


def test_frechet_distance_of_singular_covariances():
    draw = np.random.RandomState(1).randn
    assert metrics.frechet(draw(100, 256), draw(120, 256) + 0.05) == pytest.approx(249.021359100, abs=1e-8)


def test_frechet_distance_is_that_of_the_eigenvalues():
    draw = np.random.RandomState(2).randn
    x, y = draw(50, 7) @ draw(7, 7), draw(40, 7) @ draw(7, 7) + draw(7)
    S_x, S_y = np.cov(x.T), np.cov(y.T)
    root = np.sqrt(np.linalg.eigvals(S_x @ S_y).real).sum()
    expected = ((x.mean(0) - y.mean(0)) ** 2).sum() + np.trace(S_x) + np.trace(S_y) - 2 * root
    assert metrics.frechet(x, y) == pytest.approx(expected, rel=1e-12)
    turn = np.linalg.qr(draw(7, 7))[0]
    assert metrics.frechet(x @ turn + 5, y @ turn + 5) == pytest.approx(expected, rel=1e-11)


def test_equal_samples_are_at_no_distance():
    x, _ = two_clouds(300, 8)
    assert abs(metrics.frechet(x, x[::-1])) < 1e-12
    assert metrics.precision_recall(x, x) == (1, 1)


def test_float32_features_are_computed_with_in_float64():
    x, y = (features.astype(np.float32) + np.float32(100) for features in two_clouds(300, 8))
    wide = x.astype(np.float64), y.astype(np.float64)
    for metric in (metrics.frechet, metrics.kid, metrics.precision_recall):
        assert metric(x, y) == metric(*wide)


def test_kid_of_four_points():
    """The pair in x has k = 1, the one in y (1 / 2 + 1)^3; the crossed ones 1, 1, 1 and (1 / 2 + 1)^3."""
    x, y = np.array([(0, 0), (1, 0)]), np.array([(0, 1), (1, 1)])
    assert metrics.kid(x, y) == 1.1875 == 1 + 1.5**3 - 2 * (1 + 1 + 1 + 1.5**3) / 4


def test_kid_is_its_definition():
    x, y = two_clouds(9, 5)
    x = x[:6]
    k = lambda a, b: (sum(p * q for p, q in zip(a, b, strict=True)) / 5 + 1) ** 3
    own = lambda z: [k(z[i], z[j]) for i in range(len(z)) for j in range(len(z)) if i != j]
    expected = np.mean(own(x)) + np.mean(own(y)) - 2 * np.mean([k(a, b) for a in x for b in y])
    assert metrics.kid(x, y) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("k", [1, 3])
def test_precision_and_recall_are_their_definition(k):
    """Sizes that are no multiple of the rows that are computed together."""
    draw = np.random.RandomState(3).randn
    real, fake = draw(300, 2), 0.7 * draw(270, 2) + 1
    far = lambda a, b: ((a - b) ** 2).sum()

    def reach(points):
        return [sorted(far(a, b) for j, b in enumerate(points) if i != j)[k - 1] for i, a in enumerate(points)]

    reach_real, reach_fake = reach(real), reach(fake)
    precision = np.mean([any(far(f, a) <= r for a, r in zip(real, reach_real, strict=True)) for f in fake])
    recall = np.mean([any(far(f, a) <= r for f, r in zip(fake, reach_fake, strict=True)) for a in real])
    assert metrics.precision_recall(real, fake, k) == (precision, recall)
    assert 0.1 < recall < precision < 1


def test_what_is_just_within_reach_counts():
    real, fake = np.array([[-1.0], [1]]), np.array([[-3.0], [3]])  # real images reach 2 far, fakes 6
    assert metrics.precision_recall(real, fake, k=1) == (1, 1)
    assert metrics.precision_recall(real, 1.01 * fake, k=1) == (0, 1)


def test_fakes_that_are_all_the_same_have_no_recall():
    real, _ = two_clouds(300, 8)
    assert metrics.precision_recall(real, np.tile(real[5], (10, 1))) == (1, 1 / 300)


def test_distances_are_never_all_in_memory():
    x, y = two_clouds(4000, 8)
    for metric in (metrics.kid, metrics.precision_recall):
        tracemalloc.start()
        metric(x, y)
        peak = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        assert peak < 0.4 * 8 * 4000**2  # of one matrix of distances


def test_threads_do_not_matter():
    x, y = two_clouds(1500, 8)
    found = set()
    threads = cpu.threads()
    for count in (1, 2, 3):
        cpu.set_threads(count)
        found.add((metrics.frechet(x, y), metrics.kid(x, y), metrics.precision_recall(x, y)))
    cpu.set_threads(threads)
    assert len(found) == 1


def test_classifier_score():
    score = metrics.classifier_score
    assert score(np.full((5, 4), 0.25)) == 1  # nothing told apart
    assert score(np.eye(4)[[0, 0, 0]]) == 1  # one class only
    assert score(np.eye(4)[[0, 1, 2, 3, 0, 1, 2, 3]]) == pytest.approx(4, rel=1e-12)
    assert score(np.eye(4)[[0, 0, 0, 1]]) == pytest.approx(math.exp(0.75 * math.log(4 / 3) + 0.25 * math.log(4)))
    assert score(np.array([[0.9, 0.1], [0.1, 0.9]])) == pytest.approx(1.8**0.9 * 0.2**0.1)
    p = np.random.RandomState(4).dirichlet(np.ones(3), 7)
    marginal = p.mean(0)
    kl = [sum(q * math.log(q / m) for q, m in zip(row, marginal, strict=True)) for row in p]
    assert score(p) == pytest.approx(math.exp(np.mean(kl)), rel=1e-12)


def test_class_accuracy():
    asked, found = np.array([0, 0, 0, 2, 2, 5, 5, 5]), np.array([0, 0, 1, 2, 0, 5, 5, 5])
    assert metrics.class_accuracy(asked, found) == (0.75, 0.5, 2)
    assert metrics.class_accuracy(asked[:3], asked[:3]) == (1.0, 1.0, 0)


def test_too_few_samples_are_refused():
    one, two, four = np.zeros((1, 4)), np.eye(4)[:2], np.eye(4)
    for metric, name in ((metrics.frechet, "the Frechet distance"), (metrics.kid, "KID")):
        for x, y in ((one, four), (four, one)):
            with pytest.raises(UsageError, match=f"^{name} needs at least 2 images of each kind, not 1$"):
                metric(x, y)
    for x, y in ((two, four), (four, two)):
        with pytest.raises(UsageError, match=r"^precision and recall \(k = 3\) needs at least 4 images .*, not 2$"):
            metrics.precision_recall(x, y)
    assert metrics.precision_recall(four, four) == (1, 1)
    with pytest.raises(UsageError, match="the classifier score needs at least 1 image"):
        metrics.classifier_score(np.zeros((0, 3)))
    with pytest.raises(UsageError, match="accuracy needs at least 1 image"):
        metrics.class_accuracy(np.zeros(0), np.zeros(0))


def test_the_worst_class_is_one_that_was_asked_for_and_may_never_be_found():
    assert metrics.class_accuracy(np.array([1, 2]), np.array([1, 1])) == (0.5, 0.0, 2)
    assert metrics.class_accuracy(np.array([1, 1, 2]), np.array([0, 1, 2])) == (2 / 3, 0.5, 1)
