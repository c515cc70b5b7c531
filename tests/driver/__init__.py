"""A CUDA driver for machines without a GPU, and what lets the real CuPy work on it: see with_cupy.py."""
