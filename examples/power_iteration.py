"""Spectral norm's power iteration beside a full singular value decomposition: how fast is it right?

    v = l2(W^T u)        u <- l2(W v)        sigma = u^T W v

Every step multiplies what u has of the second singular vector, relative to the first, by q = (sigma2 / sigma1)^2. The
angle between u and the first singular vector falls as q^k, and the error of sigma, which is of second order in that
angle, as q^2k. Training takes one step each time that it uses a weight: the weights move little from step to step, and
u keeps up with them.
"""

import click
import numpy as np

from minisagan import ops
from minisagan.autograd import Tensor


def weight_with(values, rng):
    """A convolution's weight (3, 3, 8, C_out) whose matrix (C_out, 72) has these singular values and random vectors."""
    left = np.linalg.qr(rng.standard_normal((len(values), len(values))))[0]  # (C_out, C_out)
    right = np.linalg.qr(rng.standard_normal((72, len(values))))[0]  # (72, C_out)
    return ((left * values) @ right.T).T.reshape(3, 3, 8, -1)


@click.command()
@click.option("--steps", default=20, show_default=True, help="Steps of power iteration.")
@click.option("--ratio", default=0.8, show_default=True, help="Of each singular value to the one before it.")
def main(steps, ratio):
    """Print sigma, its error and the angle of u after each step."""
    rng = np.random.default_rng(0)
    w = Tensor(weight_with(3 * ratio ** np.arange(16.0), rng))
    vectors, values, _ = np.linalg.svd(w.data.reshape(72, 16).T)  # (16, 16), (16,)
    u = rng.standard_normal(16)
    u /= np.linalg.norm(u)

    q = (values[1] / values[0]) ** 2
    print(f"numpy.linalg.svd: sigma = {values[0]:.12f}, the next {values[1]:.12f}; so q = {q:.4f}, q^2 = {q * q:.4f}\n")
    print("step  sigma           relative error     ratio    angle of u     ratio")
    before = None
    for step in range(1, steps + 1):
        y = ops.spectral_norm(w, u, move=True)  # w / sigma, and u one step on
        sigma = np.linalg.norm(w.data) / np.linalg.norm(y.data)
        error = 1 - sigma / values[0]
        angle = np.linalg.norm(u - vectors[:, 0] * (vectors[:, 0] @ u))  # its sine
        ratios = [f"{now / then:8.4f}" for now, then in zip((error, angle), before or (), strict=False)] or ["", ""]
        print(f"{step:4}  {sigma:.12f}  {error:14.2e}  {ratios[0]:8}  {angle:10.2e}  {ratios[1]:8}".rstrip())
        before = error, angle


if __name__ == "__main__":
    main()
