"""Images with a dependency over a distance: discs that can lie far apart and have one shade.

An image is black, with `discs` discs of radius 3 at random places, their middles at least `apart` pixels from each
other. A real image's discs have one shade, uniform in [0.3, 1] from image to image; those of a mismatched image have
one each. Where a disc lies says nothing about its shade, and no part of an image with one disc in it does: discs have
to be compared over the distance between them.
"""

import numpy as np

SIZE, RADIUS, MARGIN = 32, 3.0, 4  # pixels; MARGIN: of a middle from the border
DARKEST = 0.3  # of shades, of 1


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


def disc(y, x):
    """How much of each pixel a disc with its middle at y, x (N,) covers: (N, 32, 32)."""
    rows, columns = np.mgrid[:SIZE, :SIZE]
    return np.clip(RADIUS + 0.5 - np.hypot(rows - y[:, None, None], columns - x[:, None, None]), 0, 1)


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
