"""minisagan: SAGAN (Zhang et al. 2018) from scratch on NumPy and CuPy."""

__version__ = "0.1.0"
