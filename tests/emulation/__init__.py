"""A GPU's stand-in: the kernels' own text on a CPU, CuPy's and cuBLAS's interfaces over NumPy, and checks of both."""
