"""Self-attention on a toy image: from one of two equal crosses, far apart, it finds the other.

Nothing is learned here, the weights are set by hand. A position's features are the 3x3 pixels around it (9 channels)
and a dye, which only the second cross has. Query and key are the pixels, so s_ij is large where i looks like j; the
value is the dye, so y = x + gamma o carries the dye to the first cross. 3x3 convolutions need seven layers to reach
as far.

Then the symmetries: the paper's form does not know where a position is, and so commutes with any permutation of the
positions; the official form pools its keys and values, and commutes only with those that keep the four positions of
each 2x2 window together.
"""

import numpy as np

from minisagan import nn
from minisagan.autograd import Tensor, no_tape
from minisagan.init import Init

SIZE, FIRST, SECOND = 12, (2, 3), (9, 8)  # of the image; the middles of the crosses
DYE = 9  # the channel after the pixels
C = 72  # channels: query and key have C / 8 = 9 of them


def toy_image(rng):
    """Faint noise with two crosses, and its features (1, SIZE, SIZE, C)."""
    image = 0.3 * rng.standard_normal((SIZE, SIZE))
    for h, w in (FIRST, SECOND):
        image[h - 1 : h + 2, w - 1 : w + 2] = [[-1, 1, -1], [1, 1, 1], [-1, 1, -1]]
    around = np.lib.stride_tricks.sliding_window_view(np.pad(image, 1), (3, 3))  # (SIZE, SIZE, 3, 3)
    x = np.zeros((1, SIZE, SIZE, C))
    x[0, :, :, :9] = around.reshape(SIZE, SIZE, 9)
    x[0, *SECOND, DYE] = 1
    return image, x


def attention_by_hand():
    """The paper's form: query and key the first 9 channels, value the dye, output the dye again, gamma = 1."""
    layer = nn.SelfAttention(Init(0, dtype=np.float64), C, form="paper", spectral=False)
    for projection in (layer.query, layer.key, layer.value, layer.output):
        projection.w.data[...] = 0  # (1, 1, C_in, C_out)
    layer.query.w.data[0, 0, :9] = layer.key.w.data[0, 0, :9] = np.eye(9)
    layer.value.w.data[0, 0, DYE, 0] = layer.output.w.data[0, 0, 0, DYE] = 1
    layer.gamma.data[...] = 1
    return layer


def text(image):
    """A picture of values in letters, the largest darkest."""
    levels = (image - image.min()) / (image.max() - image.min()) * 9.999
    return "\n".join("  " + " ".join(" .:-=+*#%@"[int(level)] for level in row) for row in levels)


def asymmetry(form, side, rng):
    """The largest difference that it makes to permute windows of side x side positions before attention, or after."""
    layer = nn.SelfAttention(Init(1, dtype=np.float64), 16, form).eval()
    layer.gamma.data[...] = 1
    n = 8 // side
    x, order = rng.standard_normal((1, 8, 8, 16)), rng.permutation(n * n)

    def permuted(x):
        windows = x.reshape(n, side, n, side, 16).swapaxes(1, 2).reshape(n * n, side, side, 16)[order]
        return windows.reshape(n, n, side, side, 16).swapaxes(1, 2).reshape(1, 8, 8, 16)

    return abs(layer(Tensor(permuted(x))).data - permuted(layer(Tensor(x)).data)).max()


def main():
    rng = np.random.default_rng(0)
    image, x = toy_image(rng)
    layer = attention_by_hand()
    with no_tape():
        beta = layer.beta(Tensor(x)).data[0]  # (queries, keys)
        y = layer(Tensor(x)).data
    row = beta.reshape(SIZE, SIZE, SIZE, SIZE)[FIRST]  # (SIZE, SIZE): what the first cross looks at
    others = row.copy()
    others[FIRST] = others[SECOND] = 0
    print(f"The image:\n{text(image)}\n")
    print(f"Attention from the cross at {FIRST}:\n{text(row)}\n")
    print(f"on itself {row[FIRST]:.3f}, on the cross at {SECOND} {row[SECOND]:.3f}, on all others {others.sum():.3f}")
    print(f"dye at {FIRST}: {x[0, *FIRST, DYE]:.3f} before, {y[0, *FIRST, DYE]:.3f} after")
    print(f"every row of beta sums to 1, within {abs(beta.sum(1) - 1).max():.0e}\n")
    print("layer(permuted x) - permuted layer(x), at most:")
    for form in ("paper", "official"):
        for side, what in ((1, "positions permuted"), (2, "2x2 windows permuted")):
            print(f"  {form:8}  {what:20}  {asymmetry(form, side, rng):.0e}")


if __name__ == "__main__":
    main()
