"""Digits drawn by the program itself: a data set without a file or a network.

A digit is the path of a pen, given by a few points (`FORMS`). The pen runs through them on a Catmull-Rom
spline, which is linear in its points: path = basis @ points, with one constant basis for each form. For every
image the points are moved by a smooth random warp; the path is slanted, turned, stretched, fitted into the
frame of MNIST and inked.

Ink: each of the path's segments, of length l_j and middle c_j, adds a Gaussian of width s to a density. The
density's logarithm gives the distance to the path (a soft minimum over the segments, exact beside a straight
stroke), and the distance gives the ink:

    density(x)    = sum_j l_j exp(-|x - c_j|^2 / 2 s^2) / (s sqrt(2 pi))
    distance(x)^2 = -2 s^2 log density(x)
    ink(x)        = 1/2 + (radius - distance(x)) / edge,  clipped to [0, 1]

A Gaussian is a factor in x times a factor in y: the sum over the segments is one matrix product for an image.
"""

import functools
from itertools import pairwise

import numpy as np

from minisagan import cpu
from minisagan.errors import UsageError

# The forms of each digit: points "x,y" in a box of 20 x 20, y downwards. The pen passes smoothly through the
# points; a point given twice is a corner, "/" lifts the pen. The forms of a digit are equally frequent.
FORMS = (
    (  # 0: open at the top, overlapping, wide
        "11,0 5,3 3,10 5,17 10,20 15,17 17,10 15,3 9,0",
        "13,3 8,0 3,7 4,15 9,20 15,16 17,8 13,1 8,2",
        "8,1 2,6 2,14 9,19 17,16 19,8 14,2 7,1",
    ),
    (  # 1: plain (two shares), bowed, with a flag, with flag and foot
        "10,0 10,20",
        "10,0 10,20",
        "10,0 11,10 10,20",
        "6,4 10,0 10,0 10,20",
        "6,4 10,0 10,0 10,20 / 5,20 15,20",
    ),
    (  # 2: flat foot, like a Z, small loop, large loop, curved foot
        "3,5 6,1 11,0 15,4 13,10 8,15 3,20 3,20 17,20",
        "2,3 7,1 14,2 14,5 9,12 3,19 3,19 18,18",
        "3,4 8,0 14,2 14,8 8,16 4,19 3,17 6,15 11,18 17,19",
        "3,4 8,0 14,2 14,9 10,16 5,20 2,17 5,14 11,16 18,20",
        "4,4 9,0 14,3 13,9 7,16 3,19 3,19 9,18 17,19",
    ),
    (  # 3: two bows and a cusp, without the cusp, small loop between, flat top
        "4,2 9,0 14,2 14,6 8,9 8,9 15,12 16,16 11,20 3,18",
        "4,3 10,0 15,4 12,8 8,9 13,10 16,14 12,19 4,19",
        "4,2 10,0 15,3 12,8 7,10 8,8 13,10 16,15 11,20 4,18",
        "4,0 15,0 15,0 8,8 8,8 15,11 15,17 9,20 3,17",
    ),
    (  # 4: open and straight, open and round, in one go, closed
        "5,0 3,11 3,11 16,11 / 13,1 13,20",
        "6,0 4,6 4,10 8,12 16,10 / 15,2 13,11 12,20",
        "4,1 3,8 6,11 12,10 15,3 15,3 13,20",
        "13,20 13,0 13,0 3,13 3,13 18,13",
    ),
    (  # 5: in one go, long top bar drawn last, round like an S
        "15,0 6,0 6,0 5,8 5,8 11,7 15,12 12,18 4,19",
        "6,1 5,9 5,9 11,8 13,13 10,18 3,19 / 6,1 19,0",
        "7,1 4,9 4,9 10,8 14,12 11,18 3,19 / 7,2 16,1",
        "16,0 8,1 6,5 8,9 13,11 14,16 9,20 3,18",
    ),
    (  # 6: round, tall, wide loop and short stem, small loop
        "13,0 7,5 4,12 5,18 10,20 14,16 12,11 7,11 4,15",
        "9,0 5,7 4,15 8,20 14,18 14,13 9,12 5,16",
        "8,0 3,8 3,16 9,20 16,17 17,11 11,9 5,14 6,18",
        "12,0 6,8 4,16 7,20 12,18 11,14 7,14 5,18",
    ),
    (  # 7: plain, with a bar, with a serif, curved, round
        "3,1 16,1 16,1 9,20",
        "3,1 16,1 16,1 9,20 / 6,11 16,11",
        "3,5 4,1 4,1 16,1 16,1 11,10 9,20",
        "3,2 9,2 16,0 13,8 10,20",
        "2,3 8,0 14,0 15,5 12,12 9,20",
    ),
    (  # 8: from the top right, in two loops, small below, tail at the top
        "14,3 8,0 5,4 9,9 14,14 11,19 6,18 5,14 10,9 14,4 13,1",
        "10,0 6,4 10,9 14,4 10,0 / 10,9 5,15 10,20 15,15 10,9",
        "15,3 10,0 5,2 6,7 11,11 12,16 8,20 5,17 8,12 14,7 15,3",
        "17,1 10,0 5,3 8,8 12,12 12,18 8,20 5,16 9,11 16,4",
    ),
    (  # 9: straight tail, tail curved to the left, slender, tail from the loop's end
        "14,4 9,0 4,4 6,9 11,9 14,4 14,4 14,20",
        "14,4 10,0 5,3 5,8 10,10 14,5 15,9 14,16 12,20",
        "14,3 8,1 5,6 8,10 14,5 14,5 12,12 10,20",
        "15,2 8,1 4,6 7,10 13,7 15,2 15,2 15,12 12,18 6,19",
    ),
)

SEGMENTS = 64  # of a path, whatever its form: each about a pixel of 28 long, or shorter
CHUNK = 100  # images drawn together, from one block of the generator's counter: part of what a seed means
WAVES, FREQUENCY, AMPLITUDE = 4, 1.4, 0.12  # of the warp, in half boxes (10 units of FORMS)
BRUSH, EDGE = 0.7, 1.4  # s and edge of the equations above, in pixels of 28
FAR = -40  # exponents of the Gaussians end here, where there is no ink: subnormal numbers multiply slowly


def _spline(form):
    """A form's points with the time of the pen at each, (M, 3); the basis of its path at even distances,
    (SEGMENTS + 1, M); the segments on which the pen is down, (SEGMENTS,)."""
    strokes = [np.array([point.split(",") for point in stroke.split()], float) for stroke in form.split("/")]
    points = np.concatenate(strokes) / 10 - 1  # (M, 2) in [-1, 1]
    time = np.append(0, np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))) / 2  # (M,), in boxes

    # Between p1 and p2 the spline is cubic(u) @ (p0, p1, p2, p3), the ends of a stroke taken twice. A corner
    # has no piece between its two equal points, and no piece sees across it.
    u = np.linspace(0, 1, 65)[:, None]
    cubic = u ** np.arange(4) @ np.array([[0, 2, 0, 0], [-1, 0, 1, 0], [2, -5, 4, -1], [-1, 3, -3, 1]]) / 2
    ends = np.cumsum([0] + [len(stroke) for stroke in strokes])
    four = [np.clip(np.arange(a, b - 1)[:, None] + [-1, 0, 1, 2], a, b - 1) for a, b in pairwise(ends)]
    four = np.concatenate(four)
    four = four[np.any(points[four[:, 1]] != points[four[:, 2]], axis=1)]  # (pieces, 4)
    fine = (cubic @ np.eye(len(points))[four]).reshape(-1, len(points))  # (pieces * 65, M)
    stroke_of = np.repeat(np.searchsorted(ends, four[:, 1], side="right"), len(u))

    step = np.linalg.norm(np.diff(fine @ points, axis=0), axis=1) * (np.diff(stroke_of) == 0)
    length = np.append(0, np.cumsum(step))
    even = np.searchsorted(length, np.linspace(0, length[-1], SEGMENTS + 1) - 1e-9)
    return np.column_stack([points, time]), fine[even], np.diff(stroke_of[even]) == 0


@functools.cache
def _splines(forms):
    """`_spline` of all forms of all digits, stacked: (F, M, 3), (F, SEGMENTS + 1, M), (F, SEGMENTS); forms of
    fewer points are padded with points of no weight."""
    points, basis, down = zip(*(_spline(form) for digit in forms for form in digit), strict=True)
    most = max(len(p) for p in points)
    points = np.stack([np.pad(p, ((0, most - len(p)), (0, 0))) for p in points])
    basis = np.stack([np.pad(b, ((0, 0), (0, most - b.shape[1]))) for b in basis])
    return np.float32(points), np.float32(basis), np.stack(down)


def _draw_chunk(labels, rng, size):
    """Images (N, size, size) uint8 of the digits `labels`, (N,)."""
    n = len(labels)
    normal = lambda *shape: rng.standard_normal((n, *shape), np.float32)
    uniform = lambda *shape: rng.random((n, *shape), np.float32)
    points, basis, down = _splines(FORMS)
    count = np.array([len(digit) for digit in FORMS])
    form = (np.cumsum(count) - count + (uniform(1) * count).astype(int))[np.arange(n), labels]  # (N,)

    # Warp: a few long waves over place and time. What the pen passes twice may part, a corner stays a corner.
    p = points[form]  # (N, M, 3)
    phase = p @ (FREQUENCY * normal(3, WAVES)) + 2 * np.pi * uniform(1, WAVES)  # (N, M, WAVES)
    p = p[:, :, :2] + AMPLITUDE * np.sin(phase) @ normal(WAVES, 2)  # (N, M, 2)

    slant, turn, aspect = 0.15 + 0.25 * normal(), 0.12 * normal(), np.exp(0.25 * normal() - 0.1)
    cos, sin = np.cos(turn), np.sin(turn)
    x_axis = np.stack([aspect * cos, aspect * sin], 1)
    y_axis = np.stack([-slant * cos - sin, cos - slant * sin], 1)
    path = basis[form] @ p @ np.stack([x_axis, y_axis], 1)  # (N, SEGMENTS + 1, 2)

    # MNIST's frame: the digit's longer side is about 20 pixels of 28, its centre of mass is in the middle.
    radius = np.exp(0.25 * normal() + 0.3)[:, None, None]  # (N, 1, 1)
    path *= (20 - 2 * radius) / np.ptp(path, axis=1).max(axis=1)[:, None, None]
    length = np.linalg.norm(np.diff(path, axis=1), axis=2, keepdims=True) * down[form][:, :, None]
    middle = (path[:, 1:] + path[:, :-1]) / 2  # (N, SEGMENTS, 2)
    middle -= (length * middle).sum(1, keepdims=True) / length.sum(1, keepdims=True)

    pixel = (np.arange(size, dtype=np.float32) + 0.5) * (28 / size) - 14
    exponent = (middle[..., None] - pixel) ** 2 * np.float32(-0.5 / BRUSH**2)  # (N, SEGMENTS, 2, size)
    near = np.exp(np.maximum(exponent, FAR, out=exponent), out=exponent)
    x, y = near[:, :, 0], near[:, :, 1] * (length / np.float32(BRUSH * np.sqrt(2 * np.pi)))
    density = y.transpose(0, 2, 1) @ x  # (N, size, size)
    distance = BRUSH * np.sqrt(-2 * np.log(np.clip(density, 1e-30, 1)))
    ink = 0.5 + (radius - distance) / EDGE
    return (255 * np.clip(ink, 0, 1) + 0.5).astype(np.uint8)


def draw(count, seed=0, size=28):
    """Draw digits: images uint8 (count, size, size), white on black; labels int64 (count,), 0 to 9 in turn.

    Image i depends on (seed, i) alone: fewer images are the beginning of more. Another size is the same
    picture, larger or smaller. Raises UsageError where not count >= 0, 0 <= seed < 2**64 and size >= 8.
    """
    if count < 0 or size < 8 or not 0 <= seed < 2**64:
        raise UsageError(f"drawn digits: no such count, seed or size: {count}, {seed}, {size} "
                         "(count >= 0, 0 <= seed < 2**64, size >= 8)")
    images = np.empty((count, size, size), np.uint8)
    labels = np.arange(count, dtype=np.int64) % 10

    def body(k):  # the last chunk whole, too: the same arithmetic for any count
        start = k * CHUNK
        rng = np.random.Generator(np.random.Philox(key=seed, counter=k << 64))
        images[start:start + CHUNK] = _draw_chunk((start + np.arange(CHUNK)) % 10, rng, size)[:count - start]

    cpu.parallel(body, -(-count // CHUNK))
    return images, labels
