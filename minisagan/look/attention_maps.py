"""What self-attention looks at: its weights as maps over the images, their measures, and what is lost without it.

For the query at position j, the map is beta_ji over the positions i of the keys (nn.SelfAttention; SAGAN eq. 1), and

    entropy    - sum_i beta_ji log2 beta_ji            bits: 0 for one key alone, log2 I for all I alike
    distance   sum_i beta_ji |place_i - place_j|       pixels
    ratio      |gamma o| / |x|                         how much of y = x + gamma o came through the gate

The queries are the cells of an H x W grid over the network's image of S x S pixels, the keys those of one as fine (the
paper's form) or, being max-pooled, half as fine (the official one); a cell's place is its middle.

The causal test sets gamma to 0 and draws the same images again.
"""

from contextlib import contextmanager

import numpy as np

from minisagan import data, rng
from minisagan.autograd import Tensor, no_tape
from minisagan.errors import UsageError
from minisagan.look import pictures
from minisagan.measures import attended
from minisagan.models import Generator
from minisagan.sampling import BATCH

CELL = 112  # the least width of an image in the figure, in pixels
COLOURS = tuple(pictures.SERIES[k] for k in (1, 5, 3, 4, 2, 0))  # of the points: first those that stand out on viridis
POINTS = 3  # in each image, if none are asked for
VISIBLE = 16  # grey levels of 255 from which on a pixel counts as changed


def check(network, name):
    """UsageError, naming the run or file `name`, if the network has no self-attention."""
    if not network.arch.attention:
        raise UsageError(f"{name}: this run was trained without attention, there is nothing to see")


def looks(network, *inputs):
    """For a few of the inputs (N, ...) at a time: (the network's outputs, its attention's x and y), as arrays."""
    for i in range(0, len(inputs[0]), BATCH):
        with no_tape(), attended(network) as seen:
            output = network(*(None if x is None else x[i : i + BATCH] for x in inputs))
        yield output.data, *seen[0]


def look(network, *inputs):
    """The same for all inputs: outputs (N, ...), x and y (N, H, W, C)."""
    return tuple(np.concatenate(parts) for parts in zip(*looks(network, *inputs), strict=True))


def without(network):
    """Inside, gamma is 0: attention adds nothing."""
    return gamma_times(network, 0)


@contextmanager
def gamma_times(network, factor):
    """Inside, gamma is `factor` times its own value; yields that product."""
    gamma = network.attention.gamma
    before = gamma.data.copy()
    gamma.data[...] = factor * before
    try:
        yield float(gamma.data)
    finally:
        gamma.data[...] = before


def beta(layer, x):
    """The weights for one image at a time, x (N, H, W, C): yields arrays (H W, keys)."""
    for image in x:
        with no_tape():
            weights = layer.beta(Tensor(image[None]))
        yield weights.data[0]


def places(cells, size):
    """The middles of cells x cells squares over size x size pixels, row by row: (cells^2, 2), y and x."""
    middles = (np.arange(cells) + 0.5) * size / cells
    return np.stack(np.meshgrid(middles, middles, indexing="ij"), -1).reshape(-1, 2)


def entropy(beta):
    """Of each query, in bits: (queries, keys) -> (queries,)."""
    return -(beta * np.log2(np.maximum(beta, np.finfo(beta.dtype).tiny))).sum(1)


def distances(queries, keys, size):
    """From each query to each key in pixels, for so many of them over size x size pixels: (queries, keys)."""
    places_of = [places(round(n**0.5), size) for n in (queries, keys)]
    return np.linalg.norm(places_of[0][:, None] - places_of[1], axis=-1)


def measure(network, *inputs):
    """The measures of the network's attention, means over the inputs (N, ...) and all queries, name -> number."""
    layer, size = network.attention, network.arch.size
    total = np.zeros(2)  # entropy, distance
    squares = np.zeros(2)  # of gamma o, of x
    far = None
    for _, x, y in looks(network, *inputs):
        squares += [np.vdot(y - x, y - x), np.vdot(x, x)]
        for weights in beta(layer, x):
            far = distances(*weights.shape, size) if far is None else far
            total += [entropy(weights).mean(), (weights * far).sum(1).mean()]
    queries, keys = far.shape
    mean = total / len(inputs[0])
    return {
        "gamma": float(layer.gamma.data),
        "queries": queries,
        "keys": keys,
        "entropy_bits": float(mean[0]),
        "entropy_uniform": float(np.log2(keys)),
        "distance_pixels": float(mean[1]),
        "distance_uniform": float(far.mean()),
        "ratio": float(np.sqrt(squares[0] / squares[1])),
        "images": len(inputs[0]),
    }


def causal_test(network, image_size, *inputs):
    """What gamma = 0 changes, name -> number. The weights and batch statistics stay as they are.

    Generator: grey_levels, mean |difference| of the images, which have 0 to 255; changed_pixels, the share that
    differs by VISIBLE or more. Discriminator: score, mean |difference|, beside score_deviation, the scores' own.
    """
    whole = np.concatenate([output for output, *_ in looks(network, *inputs)])
    with without(network):
        bare = np.concatenate([output for output, *_ in looks(network, *inputs)])
    if whole.ndim == 1:
        return {"score": float(np.abs(bare - whole).mean()), "score_deviation": float(whole.std())}
    delta = np.abs(data.to_uint8(bare, image_size).astype(int) - data.to_uint8(whole, image_size))  # (N, H, W, C)
    return {
        "grey_levels": float(delta.mean()),
        "changed_pixels": float((delta.max(-1) >= VISIBLE).mean()),
    }


def in_words(facts, without, arch):
    """What `measure` and `causal_test` found, name -> text."""
    queries, keys = (f"{n**0.5:.0f}x{n**0.5:.0f}" for n in (facts["queries"], facts["keys"]))
    if "score" in without:
        lost = f"the scores change by {without['score']:.3f} on the mean; they vary by {without['score_deviation']:.3f}"
    else:
        lost = (
            f"the images change by {without['grey_levels']:.1f} of 255 grey levels on the mean, "
            f"{without['changed_pixels']:.1%} of their pixels by {VISIBLE} or more"
        )
    alike = "if all keys were alike"
    return {
        "attention": f"{queries} queries, {keys} keys ({arch.attention_form} form)",
        "gamma": f"{facts['gamma']:+.4f}",
        "ratio": f"|gamma o| / |x| = {facts['ratio']:.3f}",
        "entropy": f"{facts['entropy_bits']:.2f} bits; {facts['entropy_uniform']:.2f} {alike}",
        "distance": f"{facts['distance_pixels']:.1f} of {arch.size} pixels; {facts['distance_uniform']:.1f} {alike}",
        "gamma = 0": lost,
    }


def ink_points(image, count):
    """`count` pixels (y, x) of uint8 (H, W, C), spread over what differs from its border: (count, 2).

    The first is the most different one, smoothed over 3x3 pixels, near the middle if there are several; each next one
    is that farthest from those before, among all at least half as different.
    """
    border = np.concatenate([image[0], image[-1], image[:, 0], image[:, -1]])  # (2 H + 2 W, C)
    ink = np.abs(image.astype(float) - np.median(border, axis=0)).mean(-1)  # (H, W)
    padded = np.pad(ink, 1, mode="edge")
    ink = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).mean((2, 3))
    candidates = np.argwhere(ink >= ink.max() / 2)  # (K, 2)
    middle = (np.array(ink.shape) - 1) / 2
    first = np.lexsort((np.linalg.norm(candidates - middle, axis=1), -ink[tuple(candidates.T)]))[0]
    points = [candidates[first]]
    for _ in range(count - 1):
        nearest = np.linalg.norm(candidates[:, None] - points, axis=-1).min(1)
        points.append(candidates[nearest.argmax()])
    return np.array(points)


def maps(layer, x, points, size, image_size):
    """Where each image's points look: x (N, H, W, C), points (N, P, 2) in pixels of the images -> (N, P, h, w).

    The images are the middle `image_size` of `size` pixels; the maps lie over all of them, and each sums to 1.
    """
    margin, cells = (size - image_size) // 2, x.shape[1]
    rows, columns = np.moveaxis((points + margin) * cells // size, -1, 0)  # (N, P): the cell that holds the pixel
    found = [weights[query] for weights, query in zip(beta(layer, x), rows * cells + columns, strict=True)]
    side = round(found[0].shape[1] ** 0.5)
    return np.stack(found).reshape(*points.shape[:2], side, side)


def figure(network, inputs, points, image_size, names=None):
    """The images of the inputs with points, and beside each the map of each point: (uint8 (H', W', 3), points).

    A generator's images are those that it makes, a discriminator's those it is given. points (N, P, 2), y and x, are
    in pixels of the images, the middle `image_size` of the network's; None: POINTS in each image's ink.
    """
    size = network.arch.size
    outputs, x, _ = look(network, *inputs)
    images = data.to_uint8(outputs if isinstance(network, Generator) else inputs[0], size)
    if points is None:
        points = np.stack([ink_points(image, POINTS) for image in data.crop(images, image_size)])
    heat = maps(network.attention, x, points, size, image_size)
    return draw(images, points, heat, image_size, names), points


def draw(framed, points, heat, image_size, names=None):
    """The figure of images uint8 (N, S, S, C), points (N, P, 2) in their middle, and heat (N, P, h, w) over all S."""
    N, P = points.shape[:2]
    scale = max(1, -(-CELL // image_size))
    big = framed.repeat(scale, 1).repeat(scale, 2)
    big = np.broadcast_to(big, (*big.shape[:3], 3))
    cells, captions = [], []
    for n in range(N):
        at = (points[n] + 0.5) * scale  # the middles of the pixels
        cell = data.crop(big[n : n + 1], image_size * scale)[0]
        for (y, x), colour in zip(at, _cycle(P), strict=True):
            cell = pictures.dot(cell, y, x, colour)
        cells.append(cell)
        captions.append(names[n] if names else "")
        for (y, x), colour, weights in zip(at, _cycle(P), heat[n], strict=True):
            cell = over(big[n], weights, image_size * scale)
            cells.append(pictures.framed(pictures.dot(cell, y, x, colour), colour))
            captions.append(f"{weights.max():.2g}, {entropy(weights.reshape(1, -1))[0]:.1f} bits")
    blocks = 2 if N > 1 and P < 6 else 1
    sheet = pictures.grid(np.stack(cells), (1 + P) * blocks, scale=1, captions=captions)
    keys = heat[0, 0].size
    return pictures.noted(sheet, [
        f"Below a map: its largest weight, drawn brightest ({1 / keys:.2g} if all {keys} were alike),",
        f"and its entropy (at most {np.log2(keys):.3g} bits). Dark blue: weight 0.",
    ])  # fmt: skip


def over(image, weights, size):
    """uint8 (S, S, C) with the weights (h, w) over it, the largest brightest; its middle (size, size, 3)."""
    return data.crop(pictures.overlay(image, weights / weights.max())[None], size)[0]


def real_images(dataset, count, classes, seed):
    """The networks' input of real images and their labels, or None for no classes.

    A class after the other, as in `sampling.draw`, each class in an order that the seed decides.
    """
    order = rng.permutation(len(dataset), seed, 0)
    if classes is None:
        return data.batch(dataset, np.resize(order, count))[0], None
    per_class = -(-count // len(classes))
    rows = [np.resize(order[dataset.labels[order] == k], per_class) for k in classes]
    return data.batch(dataset, np.stack(rows, 1).reshape(-1)[:count])


def _cycle(count):
    return [COLOURS[k % len(COLOURS)] for k in range(count)]
