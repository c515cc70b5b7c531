"""What the tests of checkpoints share: a small state, and whether one came back."""

import numpy as np


def state(value=0):
    r = np.random.RandomState(value)
    return {
        "G.linear.w": r.randn(3, 5).astype(np.float32),
        "D.count": np.array(7 + value, np.int64),
        "D.mask": np.arange(3, dtype=np.uint8),
    }


def check_equal(tensors, wanted):
    assert tensors.keys() == wanted.keys()
    for name, x in wanted.items():
        assert tensors[name].dtype == x.dtype and tensors[name].shape == x.shape
        assert tensors[name].tobytes() == x.tobytes()
