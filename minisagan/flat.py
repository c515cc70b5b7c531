"""Weights in one flat array: an optimiser's update is then one sweep, and processes exchange one array."""

import numpy as np

from minisagan.primitives import primitive


def flatten(parameters):
    """Move these parameters (name -> Tensor) into a flat array and return it: each one's data becomes a view of it."""
    arrays = [p.data for p in parameters.values()]
    flat = zeros(arrays[0], sum(a.size for a in arrays))
    np.concatenate([a.reshape(-1) for a in arrays], out=flat)
    start = 0
    for p, a in zip(parameters.values(), arrays, strict=True):
        p.data = flat[start : start + a.size].reshape(a.shape)
        start += a.size
    return flat


@primitive
def put(flat, arrays, part):
    """Write this part of the arrays, one behind the other, into the same part of `flat`."""
    flat[part] = np.concatenate([x.ravel() for x in arrays])[part]


@primitive
def zeros(like, size):
    """Zeros (size,) of the dtype of `like`, and where it lies."""
    return np.zeros(size, like.dtype)
