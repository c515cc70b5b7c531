"""Counter-based noise: the published vectors, our layout of the counter, and the distributions."""

import math

import numpy as np
import pytest

from minisagan import rng
from minisagan.errors import UsageError
from minisagan.rng import Stream

TOP = 2**64 - 1

# Random123's own vectors for philox4x64-10: counter, key, result.
KNOWN = [
    (
        (0, 0, 0, 0),
        (0, 0),
        (0x16554D9ECA36314C, 0xDB20FE9D672D0FDC, 0xD7E772CEE186176B, 0x7E68B68AEC7BA23B),
    ),
    (
        (TOP, TOP, TOP, TOP),
        (TOP, TOP),
        (0x87B092C3013FE90B, 0x438C3C67BE8D0224, 0x9CC7D7C69CD777B6, 0xA09CAEBF594F0BA0),
    ),
    (  # digits of pi
        (0x243F6A8885A308D3, 0x13198A2E03707344, 0xA4093822299F31D0, 0x082EFA98EC4E6C89),
        (0x452821E638D01377, 0xBE5466CF34E90C6C),
        (0xA528F45403E61D95, 0x38C72DBD566E9788, 0xA5A1610E72FD18B5, 0x57BD43B5E52B7FE6),
    ),
]


def philox(counter, key):
    """Ten rounds in Python's own integers: the text a kernel follows."""
    c0, c1, c2, c3 = counter
    k0, k1 = key
    for _ in range(10):
        p0, p1 = 0xD2E7470EE14C6C93 * c0, 0xCA5A826395121157 * c2
        c0, c1, c2, c3 = (p1 >> 64) ^ c1 ^ k0, p1 & TOP, (p0 >> 64) ^ c3 ^ k1, p0 & TOP
        k0, k1 = (k0 + 0x9E3779B97F4A7C15) & TOP, (k1 + 0xBB67AE8584CAA73B) & TOP
    return c0, c1, c2, c3


@pytest.mark.parametrize("counter, key, result", KNOWN)
def test_ten_rounds_give_the_published_vectors(counter, key, result):
    assert philox(counter, key) == result


def test_seed_0_stream_0_step_0_is_the_published_vector_of_zeros():
    assert rng.bits(4, 0, 0, 0).tolist() == list(KNOWN[0][2])


@pytest.mark.parametrize("seed", [0, 1, 0xDEADBEEF, TOP])
@pytest.mark.parametrize("stream", [0, 1, 5, TOP])
@pytest.mark.parametrize("step", [0, 1, 1000, 2**32, TOP])
def test_block_b_of_a_step_has_the_counter_b_step_0_0(seed, stream, step):
    words = rng.bits(14, seed, stream, step)
    blocks = [word for b in range(4) for word in philox((b, step, 0, 0), (seed, stream))]
    assert words.dtype == np.uint64
    assert words.tolist() == blocks[:14]


def test_a_count_is_a_prefix_of_a_longer_one():
    long = rng.bits(1001, 7, 3, 9)
    for count in (0, 1, 3, 4, 5, 1000):
        np.testing.assert_array_equal(rng.bits(count, 7, 3, 9), long[:count])


def test_streams_are_distinct_numbers():
    numbers = [value for name, value in vars(Stream).items() if name.isupper()]
    assert sorted(numbers) == list(range(len(numbers)))


def test_pinned_values():
    """Checkpoints and published runs depend on these."""
    assert rng.bits(2, 1234, 3, 77).tolist() == [0x66F30D9249020F96, 0xC1DE11FE8F0F3195]
    assert rng.uniform((2,), 1234, 0, 77).tolist() == [0.9699529415425175, 0.7098551251997431]
    assert rng.labels(12, 10, 1234, 2, 77).tolist() == [3, 8, 9, 7, 9, 8, 0, 4, 7, 9, 5, 9]
    assert rng.permutation(10, 1234, 3).tolist() == [3, 2, 7, 5, 1, 0, 4, 8, 9, 6]
    x = np.float32([-0.06164741, -0.23919666, -3.1803827, -0.02183755, 0.36958012, 1.5205481])
    np.testing.assert_array_max_ulp(rng.normal((6,), 1234, 0, 77), x, maxulp=1)


def test_uniform_takes_the_top_53_bits():
    words = rng.bits(100, 5, Stream.INIT, 2).tolist()
    assert rng.uniform((10, 10), 5, Stream.INIT, 2).ravel().tolist() == [(w >> 11) / 2**53 for w in words]


def test_normal_follows_its_formula_element_by_element():
    words = rng.bits(20, 5, Stream.Z_D, 2).tolist()
    x = rng.normal((20,), 5, Stream.Z_D, 2)
    for i in range(10):
        radius = math.sqrt(-2 * math.log(((words[2 * i] >> 11) + 1) / 2**53))
        angle = 2 * math.pi * ((words[2 * i + 1] >> 11) / 2**53)
        wanted = np.float32([radius * math.cos(angle), radius * math.sin(angle)])
        np.testing.assert_array_max_ulp(x[2 * i : 2 * i + 2], wanted, maxulp=1)


@pytest.mark.parametrize("word", [0, TOP])
def test_normal_is_finite_at_both_ends_of_u1(monkeypatch, word):
    monkeypatch.setattr(rng, "bits", lambda count, *_: np.full(count, word, np.uint64))
    x = rng.normal((2,), 0, 0, 0)
    radius = math.sqrt(106 * math.log(2)) if word == 0 else 0.0
    assert np.hypot(*x) == pytest.approx(radius, rel=1e-6)


def test_draws_do_not_depend_on_the_shape():
    flat = rng.normal((20,), 1, Stream.Z_G, 3)
    np.testing.assert_array_equal(rng.normal((4, 5), 1, Stream.Z_G, 3).ravel(), flat)
    np.testing.assert_array_equal(rng.normal((19,), 1, Stream.Z_G, 3), flat[:19])
    np.testing.assert_array_equal(rng.uniform((2, 3), 1, 0, 3).ravel(), rng.uniform((6,), 1, 0, 3))
    assert rng.normal((), 1, Stream.Z_G, 3) == flat[0]
    assert rng.normal((0, 5), 1, Stream.Z_G, 3).shape == (0, 5)
    assert flat.dtype == np.float32


def test_normal_has_the_moments_and_the_distribution_function():
    n = 100_000
    x = rng.normal((n,), 3, Stream.Z_D, 0).astype(np.float64)
    moments = [np.mean(x**k) for k in (1, 2, 3, 4)]
    for moment, wanted, variance in zip(moments, (0, 1, 0, 3), (1, 2, 15, 96), strict=True):
        assert abs(moment - wanted) < 3 * math.sqrt(variance / n)
    distribution = np.array([0.5 * math.erfc(-value / math.sqrt(2)) for value in np.sort(x)])
    kolmogorov = np.max(np.abs(distribution - (np.arange(n) + 0.5) / n)) + 0.5 / n
    assert kolmogorov * math.sqrt(n) < 1.36  # 5 % of true samples exceed it; this seed does not


def test_seeds_streams_steps_and_neighbours_are_uncorrelated():
    n = 50_000
    base = rng.normal((n,), 3, Stream.Z_D, 10)
    others = [
        rng.normal((n,), 4, Stream.Z_D, 10),
        rng.normal((n,), 3, Stream.Z_G, 10),
        rng.normal((n,), 3, Stream.Z_D, 11),
        np.roll(base, 1),
        np.roll(base, 2),
    ]
    for other in others:
        assert abs(np.mean(base * other)) < 3 / math.sqrt(n)


@pytest.mark.parametrize("classes", [1, 2, 10, 1000])
def test_labels_are_uniform(classes):
    n = 200_000
    y = rng.labels(n, classes, 1, Stream.LABELS_D, 0)
    assert y.dtype == np.int64 and y.min() == 0 and y.max() == classes - 1
    counts = np.bincount(y, minlength=classes)
    chi2 = np.sum((counts - n / classes) ** 2) / (n / classes)
    assert chi2 <= classes - 1 + 3 * math.sqrt(2 * (classes - 1))


def test_labels_are_the_high_word_times_classes():
    words = rng.bits(50, 1, Stream.LABELS_G, 4).tolist()
    for classes in (3, 10, 2**32 - 1):
        y = rng.labels(50, classes, 1, Stream.LABELS_G, 4)
        assert y.tolist() == [(w >> 32) * classes >> 32 for w in words]


def test_permutation_visits_each_image_once_and_changes_with_the_epoch_and_the_seed():
    orders = [rng.permutation(1000, seed, epoch) for seed, epoch in [(0, 0), (0, 1), (1, 0)]]
    for order in orders:
        assert order.dtype == np.int64
        np.testing.assert_array_equal(np.sort(order), np.arange(1000))
    for one, two in [(0, 1), (0, 2), (1, 2)]:
        assert np.sum(orders[one] == orders[two]) < 10  # one match is expected
    np.testing.assert_array_equal(orders[0], np.argsort(rng.bits(1000, 0, Stream.SHUFFLE, 0), kind="stable"))
    assert rng.permutation(0, 0, 0).shape == (0,) and rng.permutation(1, 0, 0).tolist() == [0]


def test_permutation_gives_each_image_each_place_equally_often():
    places = np.stack([rng.permutation(5, 0, epoch) for epoch in range(4000)])  # (4000, 5)
    counts = np.stack([np.bincount(column, minlength=5) for column in places.T])
    chi2 = np.sum((counts - 800) ** 2) / 800  # (5 - 1)^2 = 16 degrees of freedom
    assert chi2 < 16 + 3 * math.sqrt(32)


@pytest.mark.parametrize("bad", [-1, 2**64, 1.0, "1", None])
def test_a_seed_or_step_outside_of_64_bits_is_refused_by_name(bad):
    with pytest.raises(UsageError, match=r"seed must be an integer from 0 to 2\^64 - 1"):
        rng.bits(4, bad, 0, 0)
    with pytest.raises(UsageError, match="step must be"):
        rng.permutation(4, 0, bad)


def test_numpy_integers_serve_as_seeds():
    np.testing.assert_array_equal(rng.bits(4, np.int64(5), 0, np.uint8(200)), rng.bits(4, 5, 0, 200))


@pytest.mark.parametrize("classes", [0, -1, 2**32])
def test_a_number_of_classes_that_cannot_be_is_refused(classes):
    with pytest.raises(UsageError, match="classes"):
        rng.labels(4, classes, 0, Stream.LABELS_D, 0)


# Truncated normals


def test_redraws_have_the_third_word_of_the_counter():
    for redraw in (0, 1, 7):
        blocks = [word for b in range(3) for word in philox((b, 5, redraw, 0), (11, 3))]
        assert rng.bits(12, 11, 3, 5, redraw).tolist() == blocks


@pytest.mark.parametrize("limit", [0.1, 0.5, 1.0, 3.0])
def test_a_truncated_normal_is_the_first_draw_within_the_limit_element_by_element(limit):
    x = rng.truncated_normal((20, 15), limit, 1234, 7, 2)
    assert x.dtype == np.float32 and x.shape == (20, 15) and np.abs(x).max() <= limit
    draws = np.stack([rng.normal((20, 15), 1234, 7, 2, redraw) for redraw in range(200)])
    first = (np.abs(draws) <= limit).argmax(0)
    np.testing.assert_array_equal(x, np.take_along_axis(draws, first[None], 0)[0])
    np.testing.assert_array_equal(x[:4], rng.truncated_normal((4, 15), limit, 1234, 7, 2))  # of any number of them


def test_a_limit_beyond_all_draws_changes_nothing():
    for beyond in (8.6, 1e39, 1e308, np.inf):
        np.testing.assert_array_equal(rng.truncated_normal((999,), beyond, 3, 7, 0), rng.normal((999,), 3, 7, 0))


def test_the_distribution_is_the_normal_one_between_the_limits():
    limit = 0.8
    x = np.sort(rng.truncated_normal((20_000,), limit, 0, 7, 0))
    phi = np.vectorize(lambda t: 0.5 + 0.5 * math.erf(t / math.sqrt(2)))
    wanted = (phi(x) - phi(-limit)) / (phi(limit) - phi(-limit))
    distance = np.abs(wanted - (np.arange(20_000) + 0.5) / 20_000).max()
    assert distance < 1.63 / math.sqrt(20_000)  # Kolmogorov and Smirnov, 1 %


@pytest.mark.parametrize("limit", [0.0999, 0, -1, math.nan])
def test_a_limit_that_almost_nothing_is_within_is_refused(limit):
    with pytest.raises(UsageError, match="truncation must be at least 0.1"):
        rng.truncated_normal((3,), limit, 0, 0, 0)
