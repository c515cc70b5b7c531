"""How far generated images are from real ones, by features (N, D) of each that some classifier computes.

    Frechet distance   |mean_x - mean_y|^2 + tr(S_x + S_y - 2 sqrt(S_x S_y))        of the normals with their moments
    KID                E k(x, x') + E k(y, y') - 2 E k(x, y)                        k(a, b) = (a.b / D + 1)^3
    precision          share of the fakes within reach of a real image             reach: as far as an image's
    recall             share of the real images within reach of a fake             k-th neighbour of its own kind
    classifier score   exp mean KL(p(class | image) || p(class))

Everything is computed in float64, and a chunk of rows at a time: of 10,000 x 10,000 distances, a few hundred rows are
in memory. Chunks are added up in order, so that the number of threads does not matter.
"""

import numpy as np

from minisagan import cpu
from minisagan.errors import UsageError

ROWS = 256  # of a kernel's or distances' matrix that a thread works on at once


def frechet(x, y):
    """The Frechet distance, squared, between normals fitted to x (n, D) and y (m, D); 0 if their moments are equal.

    (Dowson and Landau 1982; on a classifier's features, Heusel et al. 2017.) With A and B the centred features over
    sqrt(n - 1) and sqrt(m - 1), the covariances are S_x = A^T A and S_y = B^T B, and the square roots of the
    eigenvalues of S_x S_y are the singular values of A B^T:

        tr sqrt(S_x S_y) = |A B^T|_*  (the nuclear norm)  = |R_A R_B^T|_*  with A = Q_A R_A, B = Q_B R_B

    so no matrix is ever rooted, and singular covariances (n <= D) need no epsilon. The estimate is too large for few
    samples, by an amount that falls as 1 / n: compare values of one n only. UsageError for fewer than 2 samples.
    """
    (mean_x, A), (mean_y, B) = (_centred(features, "the Frechet distance") for features in (x, y))
    R_A, R_B = np.linalg.qr(A, "r"), np.linalg.qr(B, "r")  # (min(n, D), D), (min(m, D), D)
    nuclear = np.linalg.svd(R_A @ R_B.T, compute_uv=False).sum()
    return float(((mean_x - mean_y) ** 2).sum() + (A * A).sum() + (B * B).sum() - 2 * nuclear)


def _centred(x, metric):
    """The mean (D,), and the deviations from it over sqrt(n - 1), (n, D)."""
    n = _at_least(2, x, metric)
    mean = x.mean(0, dtype=np.float64)
    return mean, (x - mean) / np.sqrt(n - 1)


def kid(x, y):
    """The kernel distance (Binkowski et al. 2018) of x (n, D) and y (m, D): a squared maximum mean discrepancy.

        sum_{i != j} k(x_i, x_j) / n(n - 1) + sum_{i != j} k(y_i, y_j) / m(m - 1) - 2 sum_ij k(x_i, y_j) / nm

    Unbiased: its expectation does not depend on n, and it can be negative. It is taken over all samples at once;
    the mean over many subsets, as others print it, has the same expectation and more noise. UsageError for
    fewer than 2 samples.
    """
    n, m = (_at_least(2, features, "KID") for features in (x, y))
    x, y = x.astype(np.float64), y.astype(np.float64)
    own_x, own_y = (_kernel_sum(z, z) - _cube(np.einsum("nd,nd->n", z, z), z.shape[1]).sum() for z in (x, y))
    return float(own_x / (n * (n - 1)) + own_y / (m * (m - 1)) - 2 * _kernel_sum(x, y) / (n * m))


def _kernel_sum(x, y):
    """The sum of k(x_i, y_j) over all pairs."""
    return np.sum(_by_rows(lambda rows: _cube(rows @ y.T, x.shape[1]).sum(), x))


def _cube(dots, width):
    """(dots / width + 1)^3, by products: NumPy's own power takes several times as long."""
    dots /= width
    dots += 1
    return dots * dots * dots


def precision_recall(real, fake, k=3):
    """(precision, recall) of fake (n, D) against real (m, D), each in [0, 1] (Kynkaanniemi et al. 2019).

    r(a), the reach of an image, is the distance to its k-th nearest neighbour among the others of its own kind:

        precision = share of fakes f with |f - a| <= r(a) for some real a         are the fakes like real images?
        recall    = share of real a with |f - a| <= r(f) for some fake f          is each real image like some fake?

    UsageError for k or fewer samples.
    """
    for features in (real, fake):
        _at_least(k + 1, features, f"precision and recall (k = {k})")
    centre = real.mean(0, dtype=np.float64)
    real, fake = real - centre, fake - centre  # distances are differences of squares: small ones lose less
    reach_real, reach_fake = _reach(real, k), _reach(fake, k)  # squared: (m,), (n,)

    def reached(fakes, reach):
        near = _squared_distances(fakes, real)  # (rows, m)
        return (near <= reach_real).any(1), (near <= reach[:, None]).any(0)

    precise, recalled = zip(*_by_rows(reached, fake, reach_fake), strict=True)
    return float(np.concatenate(precise).mean()), float(np.any(recalled, axis=0).mean())


def _reach(x, k):
    """The squared distance of each x to its k-th nearest other: (n,)."""

    def reach(rows, index):
        far = _squared_distances(rows, x)  # (rows, n)
        far[np.arange(len(rows)), index] = np.inf  # itself
        far.partition(k - 1, axis=1)
        return far[:, k - 1].copy()  # a view would keep all of them

    return np.concatenate(_by_rows(reach, x, np.arange(len(x))))


def _squared_distances(x, y):
    """|x_i - y_j|^2 = |x_i|^2 - 2 x_i . y_j + |y_j|^2, (n, m)."""
    far = x @ (-2 * y.T)
    far += np.einsum("nd,nd->n", x, x)[:, None]
    far += np.einsum("nd,nd->n", y, y)
    return far


def classifier_score(probabilities):
    """exp mean_i sum_c p_ic log(p_ic / p_c), with p_c = mean_i p_ic, of p (N, classes) with rows that sum to 1.

    From 1 (nothing told apart) to the number of classes (each image surely one class, all equally often). Salimans et
    al. 2016 have it as the Inception score; here it is the score by our classifier, over all samples at once.
    """
    p = probabilities.astype(np.float64)
    _at_least(1, p, "the classifier score")
    ratio = np.log(np.maximum(p, 1e-300) / np.maximum(p.mean(0), 1e-300))  # 0 log 0 = 0
    return float(np.exp((p * ratio).sum(1).mean()))


def class_accuracy(asked, found):
    """How often the class `found` (N,) in an image is the one `asked` for (N,): (share, worst share, its class).

    The worst is the least share among the classes that were asked for at all, the first of equals.
    """
    _at_least(1, asked, "accuracy")
    right = asked == found
    shares = {int(c): float(right[asked == c].mean()) for c in np.unique(asked)}
    worst = min(shares, key=shares.get)
    return float(right.mean()), shares[worst], worst


def _at_least(least, samples, metric):
    """How many samples there are; UsageError if that is not enough."""
    if len(samples) < least:
        raise UsageError(f"{metric} needs at least {least} images of each kind, not {len(samples)}")
    return len(samples)


def _by_rows(function, *arrays):
    """[function(ROWS of each array), ...] for all of their rows, in order, computed by all threads."""
    cuts = [slice(start, start + ROWS) for start in range(0, len(arrays[0]), ROWS)]
    found = [None] * len(cuts)

    def body(i):
        found[i] = function(*(a[cuts[i]] for a in arrays))

    cpu.parallel(body, len(cuts))
    return found
