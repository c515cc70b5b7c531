"""Self-attention step by step, with the numbers of a real generator: eq. 1 to 3 of the paper, line by line.

    python examples/attention_walkthrough.py runs/mnist --label 3 --point 14,14
    python examples/attention_walkthrough.py                  an untrained one, whose gate is opened by hand

Each step shows the line of NumPy that makes a tensor, its shape, and what it holds for one query. At the end stands
what minisagan's own layer (nn.SelfAttention) says: the same, to rounding.
"""

import argparse

import numpy as np

from minisagan import data
from minisagan.autograd import Tensor, no_tape
from minisagan.commands import choices
from minisagan.config import Architecture
from minisagan.errors import Fault
from minisagan.look import attention_maps
from minisagan.measures import attended
from minisagan.models import Generator
from minisagan.run import folder as runs
from minisagan.sampling import latents

SHADES = " .:-=+*#%@"


def letters(image):
    """A picture of values in letters, the largest darkest: (H, W) -> text."""
    span = image.max() - image.min() or 1
    rows = (image - image.min()) / span
    return "\n".join("    " + " ".join(SHADES[int(9.999 * v)] for v in row).rstrip() for row in rows)


def numbers(grid):
    """A grid of numbers, rounded to integers."""
    return "\n".join("    " + "".join(f"{value:4.0f}" for value in row) for row in grid)


def step(title, code, name, tensor):
    print(f"\n{title}\n    {code}\n    {name}: {' x '.join(map(str, tensor.shape))}, "
          f"mean {tensor.mean():+.3f}, deviation {tensor.std():.3f}")  # fmt: skip


def open_generator(run):
    """(a generator, its images' own size): a run's, or one of random weights with an open gate."""
    if run:
        generator, _, about, _ = runs.load_generator(run)
        return generator, about["image_size"]
    generator = Generator(Architecture())
    z = latents(generator, 64, seed=1)
    with no_tape():
        for _ in range(20):
            generator(z, np.arange(64) % 10)  # moves batch norm's statistics and spectral norm's u
    generator.attention.gamma.data[...] = 0.5
    return generator.eval(), 28


def walk(generator, image_size, label, seed, py, px):
    """All steps for the image of a label and a seed, with the query at its pixel (py, px)."""
    layer, S = generator.attention, generator.arch.size
    labels = np.array([label]) if generator.arch.classes else None
    with no_tape(), attended(generator) as seen:
        image = generator(latents(generator, 1, seed), labels).data
    x, y = seen[0]  # what the layer was given and what it made of it, each (1, H, W, C)
    _, H, W, C = x.shape
    row, column = ((p + (S - image_size) // 2) * H // S for p in (py, px))
    j = row * W + column
    print(f"The image, {image_size}x{image_size}:\n{letters(data.crop(image, image_size)[0, ::2, ::2].mean(-1))}")

    step(f"1. The features at {H}x{W}, in the middle of the generator", f"x = up{H}(... input(z))", "x", x)
    print(f"    the query j is position ({row}, {column}), number {j} of {H * W}, with pixel ({py}, {px}) of the image")
    x = x.reshape(H * W, C)

    def projection(conv):
        """The weight of a 1x1 convolution as a matrix (C_in, C_out), over its largest singular value."""
        with no_tape():
            return conv.weight().data[0, 0]

    query = x @ projection(layer.query)
    step("2. What each position asks for", "query = x @ W_query / sigma", "query", query)
    key, value = x @ projection(layer.key), x @ projection(layer.value)
    step("3. What each position can be found by", "key = x @ W_key / sigma", "key", key)
    step("4. What each position has to give", "value = x @ W_value / sigma", "value", value)
    h, w = H, W
    if layer.pooled:
        h, w = H // 2, W // 2
        key, value = (t.reshape(h, 2, w, 2, -1).max((1, 3)).reshape(h * w, -1) for t in (key, value))
        step("5. Of each 2x2 positions the largest (the official form)",
             "key, value = max over 2x2 positions", "key", key)  # fmt: skip

    s = query @ key.T
    step("6. How well key i fits query j (eq. 1)", "s = query @ key.T", "s", s)
    print(f"    the row of j, by position of the key, times 10:\n{numbers(10 * s[j].reshape(h, w))}")

    beta = np.exp(s - s.max(1, keepdims=True))
    beta /= beta.sum(1, keepdims=True)
    step("7. Softmax over the keys: each row sums to 1 (eq. 1)", "beta = exp(s) / exp(s).sum(1)", "beta", beta)
    entropy = -(beta[j] * np.log2(beta[j])).sum()
    print(f"    the row of j, in percent:\n{numbers(100 * beta[j].reshape(h, w))}")
    print(f"    its sum {beta[j].sum():.6f}, its entropy {entropy:.2f} of {np.log2(h * w):.2f} bits")

    mixed = beta @ value
    step("8. Each query's mean of the values (eq. 2)", "mixed = beta @ value", "mixed", mixed)
    o = mixed @ projection(layer.output)
    step("9. Back to as many channels as x has (eq. 2)", "o = mixed @ W_output / sigma", "o", o)
    gamma = float(layer.gamma.data)
    by_hand = x + gamma * o
    step(f"10. Through the gate (eq. 3), gamma = {gamma:+.4f}", "y = x + gamma * o", "y", by_hand)
    print(f"    |gamma o| / |x|: {np.linalg.norm(gamma * o) / np.linalg.norm(x):.3f} in all, "
          f"{np.linalg.norm(gamma * o[j]) / np.linalg.norm(x[j]):.3f} at j")  # fmt: skip

    print(f"\nnn.SelfAttention makes the same y, within {abs(by_hand - y[0].reshape(H * W, C)).max():.0e}")
    with no_tape():
        ours = layer.beta(Tensor(x.reshape(1, H, W, C))).data[0]
    print(f"and its beta is the same, within {abs(beta - ours).max():.0e}")


def main():
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("run", nargs="?", help="a run's folder or a checkpoint")
    parser.add_argument("--label", type=int, default=3, help="the class to draw")
    parser.add_argument("--seed", type=int, default=0, help="of the latent")
    parser.add_argument("--point", default="14,14", help="y,x: the pixel to look from")
    args = parser.parse_args()
    try:
        generator, image_size = open_generator(args.run)
        attention_maps.check(generator, args.run)
        ((py, px),) = choices.points([args.point], image_size)
        classes = generator.arch.classes
        if classes and not 0 <= args.label < classes:
            parser.error(f"--label {args.label}: the classes are 0 to {classes - 1}")
    except Fault as error:
        parser.error(error)
    walk(generator, image_size, args.label, args.seed, py, px)


if __name__ == "__main__":
    main()
