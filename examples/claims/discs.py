"""Images with a dependency over a distance: discs that can lie far apart and have one shade.

An image is black, with `discs` discs of radius 3 at random places, their middles at least `apart` pixels from each
other. A real image's discs have one shade, uniform in [0.3, 1] from image to image; those of a mismatched image have
one each. Where a disc lies says nothing about its shade, and no part of an image with one disc in it does: discs have
to be compared over the distance between them.

`decode` finds the discs in an image that a generator made.
"""

import numpy as np

SIZE, RADIUS, MARGIN = 32, 3.0, 4  # pixels; MARGIN: of a middle from the border
DARKEST = 0.3  # of shades, of 1
WINDOW = 9  # pixels: the side of what is looked at about a disc
MATCH, LEAST, REST = 0.95, 0.15, 0.1  # of a legible image: each disc's correlation and shade, and what is no disc
SAME = 0.1  # of shades: how far apart those of agreeing discs are at most


def draw(count, discs, apart, seed, same=True):
    """Images uint8 (count, 32, 32, 1), their discs' middles (count, discs, 2), y and x, and shades (count, discs).

    `seed` is a number or a list of numbers; same=False: a shade for each disc.
    """
    r = np.random.default_rng(seed)
    places = np.empty((0, discs, 2))
    while len(places) < count:
        tried = r.uniform(MARGIN, SIZE - 1 - MARGIN, (8 * count, discs, 2))
        gaps = np.linalg.norm(tried[:, :, None] - tried[:, None], axis=-1) + SIZE * np.eye(discs)
        places = np.concatenate([places, tried[(gaps >= apart).all((1, 2))]])
    places = places[:count]
    shades = np.broadcast_to(r.uniform(DARKEST, 1, (count, 1 if same else discs)), (count, discs))
    images = sum(shade[:, None, None] * disc(*at.T) for at, shade in zip(places.swapaxes(0, 1), shades.T, strict=True))
    return np.rint(255 * images).astype(np.uint8)[..., None], places, shades


def disc(y, x, radius=RADIUS):
    """How much of each pixel a disc with its middle at y, x (N,) covers: (N, 32, 32)."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return np.clip(radius + 0.5 - np.hypot(rows - y[:, None, None], columns - x[:, None, None]), 0, 1)


def inputs(images):
    """As networks see them: float32 (N, 32, 32, 1) in [-1, 1]."""
    return np.float32(images) / np.float32(127.5) - 1


def auc(real, fake):
    """How often a real image's score is above a mismatched one's, over all pairs: 1 is perfect, 0.5 is chance."""
    return float((real[:, None] > fake).mean() + (real[:, None] == fake).mean() / 2)


def falls_on(weights, places):
    """How much of an attention map (h, w), which sums to 1, falls on discs with these middles (n, 2).

    A key's weight counts by how much of its cell they cover: of a map that is the same everywhere, it is their share
    of the area.
    """
    cell = SIZE // len(weights)
    covered = disc(*places.T).sum(0).reshape(len(weights), cell, len(weights), cell).mean((1, 3))  # (h, w)
    return float((weights * covered).sum())


def decode(images, discs):
    """The discs in uint8 (N, 32, 32, 1), the clearest first: how well each matches an ideal one, and its shade,
    (N, discs) each, and how much of an image is none of them, (N,).

    Again and again the place is taken where a disc would explain most. The centroid of what is around it is the disc's
    middle; its match is the correlation with an ideal disc there, its shade the best factor of that; then it is taken
    out. The rest is of the sum of squares.
    """
    rest = images[..., 0] / np.float32(255)
    whole, half = (rest**2).sum((1, 2)), WINDOW // 2
    middle = np.full(1, float(half))
    ideal = disc(middle, middle)[0, :WINDOW, :WINDOW]
    wanted = (ideal - ideal.mean()).astype(np.float32)  # light with dark around it
    rows = np.arange(len(images))
    matches, shades = np.empty((2, len(images), discs))
    for k in range(discs):
        padded = np.pad(rest, ((0, 0), (half, half), (half, half)))
        windows = np.lib.stride_tricks.sliding_window_view(padded, (WINDOW, WINDOW), (1, 2))  # (N, 32, 32, 9, 9)
        place = np.einsum("nyxij,ij->nyx", windows, wanted, optimize=True).reshape(len(images), -1).argmax(1)
        y, x = np.divmod(place, SIZE)
        seen = windows[rows, y, x]  # (N, 9, 9)
        mass, offset = np.maximum(seen.sum((1, 2)), 1e-6), np.arange(WINDOW) - half
        y, x = y + seen.sum(2) @ offset / mass, x + seen.sum(1) @ offset / mass
        there = disc(y, x)  # (N, 32, 32)
        found = np.where(disc(y, x, RADIUS + 1.5) > 0, rest, 0)  # with what is close around
        power, norms = (found * there).sum((1, 2)), (there**2).sum((1, 2))
        matches[:, k] = power / np.maximum(np.sqrt((found**2).sum((1, 2)) * norms), 1e-6)
        shades[:, k] = power / norms
        rest = rest - found
    return matches, shades, (rest**2).sum((1, 2)) / np.maximum(whole, 1e-6)


def measure(images, discs):
    """{"legible", "consistent", "above_chance"}, shares of these images, uint8 (N, 32, 32, 1).

    legible: all discs are discs, and there is little else; consistent: legible, and the discs have one shade, to SAME;
    above chance: (a - c) / (1 - c), a the share of consistent among legible images, c the same share when discs are put
    together that are of different legible images: a generator of few shades gains nothing by its own.
    """
    matches, shades, rest = decode(images, discs)
    legible = (matches >= MATCH).all(1) & (shades >= LEAST).all(1) & (rest <= REST)
    shades = np.random.default_rng(0).permuted(shades[legible], axis=1)  # decode has the brightest first
    agree = lambda shades: np.ptp(shades, axis=1) <= SAME
    found = {"legible": legible.mean(), "consistent": agree(shades).sum() / len(images), "above_chance": 0.0}
    if len(shades) > discs:
        mixed = [
            np.stack([np.roll(disc, k * by) for k, disc in enumerate(shades.T)], axis=1)
            for by in range(1, (len(shades) - 1) // (discs - 1) + 1)  # no two discs of one image
        ]
        chance = agree(np.concatenate(mixed)).mean()
        found["above_chance"] = (agree(shades).mean() - chance) / (1 - chance) if chance < 1 else 0.0
    return {name: float(value) for name, value in found.items()}
