"""A trained generator in PyTorch, from the file of weights that `minisagan export RUN --to safetensors` writes.

    python examples/sample_in_pytorch.py generator.safetensors

The names of the weights are explained in minisagan/export.py. Needs torch, safetensors and pillow, and no minisagan.
"""

import json
import sys

import torch
import torch.nn.functional as F
from PIL import Image
from safetensors import safe_open


def generate(weights, z, labels, attention, form):
    """z (N, latent), labels (N,) or None -> images (N, channels, S, S) in (-1, 1); attention and form as in config."""
    def conv(path, x):
        return F.conv2d(x, weights[f"{path}.w"], weights.get(f"{path}.b"), padding="same")

    def norm(path, x):
        rows = (weights[f"{path}.{name}"] for name in ("scale", "shift"))
        scale, shift = ((r if r.ndim == 1 else r[labels])[..., None, None] for r in rows)  # (C, 1, 1) or (N, C, 1, 1)
        return F.relu(scale * x + shift)

    def up(x):
        return x.repeat_interleave(2, 2).repeat_interleave(2, 3)

    x, r = F.linear(z, weights["input.w"], weights["input.b"]).reshape(len(z), -1, 4, 4), 8
    while f"up{r}.conv1.w" in weights:
        h = conv(f"up{r}.conv1", up(norm(f"up{r}.norm1", x)))
        x = conv(f"up{r}.conv2", norm(f"up{r}.norm2", h)) + up(conv(f"up{r}.shortcut", x))
        if r == attention:
            pool = (lambda t: F.max_pool2d(t, 2)) if form == "official" else (lambda t: t)
            query, key, value = (conv(f"attention.{name}", x) for name in ("query", "key", "value"))
            query, key, value = query.flatten(2), pool(key).flatten(2), pool(value).flatten(2)  # (N, d, J), (N, d, I)
            beta = (query.mT @ key).softmax(-1)  # (N, J, I)
            x = x + weights["attention.gamma"] * conv("attention.output", (value @ beta.mT).unflatten(2, (r, r)))
        r *= 2
    return torch.tanh(conv("output", norm("norm", x)))


def main(path):
    with safe_open(path, "pt") as file:
        weights, about = {name: file.get_tensor(name) for name in file.keys()}, file.metadata()  # noqa: SIM118
    arch, names = json.loads(about["config"])["architecture"], json.loads(about["classes"])
    rows = len(names) or 8
    z, labels = torch.randn(8 * rows, arch["latent"]), torch.arange(rows).repeat_interleave(8)
    images = generate(weights, z, labels, arch["attention"], arch["attention_form"])  # (8 rows, channels, S, S)
    pixels = ((images + 1) * 127.5).round().byte().unflatten(0, (rows, 8)).permute(0, 3, 1, 4, 2)  # (rows, S, 8, S, C)
    sheet = pixels.flatten(2, 3).flatten(0, 1)  # (rows S, 8 S, channels)
    Image.fromarray(sheet.squeeze(2).numpy()).save("pytorch.png")
    print(f"pytorch.png: 8 images {f'of each of {names}' if names else 'in each of 8 rows'}")


if __name__ == "__main__":
    main(sys.argv[1])
