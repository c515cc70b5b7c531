"""Flat arrays that forks share."""

from minisagan import cpu


def zeros(like, size):
    """All processes that are forked from this one write to them."""
    return cpu.shared(size, like.dtype)
