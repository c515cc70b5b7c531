"""First weights, each a function of the seed and of its number in the order of creation."""

import math

import numpy as np

from minisagan import rng
from minisagan.autograd import Tensor
from minisagan.errors import UsageError


class Init:
    """Draws weights, and the first u's of spectral norm, from one seed, in a float type of choice.

    "orthogonal": as a matrix (all but C_out, C_out) it has orthonormal columns or rows.
    "xavier": uniform within sqrt(6 / (fan_in + fan_out)).
    """

    def __init__(self, seed, kind="orthogonal", dtype=np.float32):
        if kind not in ("orthogonal", "xavier"):
            raise UsageError(f"init must be orthogonal or xavier, not {kind!r}")
        self.seed, self.kind, self.dtype, self.count = seed, kind, dtype, 0

    def _next(self, draw, shape):
        self.count += 1
        return draw(shape, self.seed, rng.Stream.INIT, self.count)

    def weight(self, shape):
        """A weight (..., C_in, C_out)."""
        fan_in, fan_out = math.prod(shape[:-1]), math.prod(shape[:-2]) * shape[-1]
        if self.kind == "xavier":
            w = (2 * self._next(rng.uniform, shape) - 1) * math.sqrt(6 / (fan_in + fan_out))
        else:
            normal = self._next(rng.normal, (fan_in, shape[-1])).astype(np.float64)
            tall = normal if fan_in >= shape[-1] else normal.T
            q, r = np.linalg.qr(tall)
            q = q * np.sign(np.diag(r))  # makes the draw uniform over orthogonal matrices
            w = (q if fan_in >= shape[-1] else q.T).reshape(shape)
        return Tensor(w.astype(self.dtype))

    def constant(self, shape, value):
        return Tensor(np.full(shape, value, self.dtype))

    def direction(self, size):
        """A random unit vector: the first u of a power iteration."""
        u = self._next(rng.normal, (size,)).astype(np.float64)
        return (u / np.linalg.norm(u)).astype(self.dtype)
