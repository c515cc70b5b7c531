"""A GPU's emulation on a CPU, for tests.

The kernels' own text is compiled by g++ (compiler.py, cuda_on_cpu.h) and run with CUDA's blocks, warps, barriers and
shared memory (machine.cpp), on request with a check of every access (checks.h: races, bounds, alignment, overflow).
Stand-ins for CuPy (cupy_stand_in.py on runtime.py and kernels.py) and cuBLAS (cublas_stand_in.py) compute by NumPy.

With the same kernels the real CuPy computes on a driver of ours: with_cupy.py.

It shows that formulas, indices and barriers are right. It does not show: inline PTX, which kernels leave out under
CUDA_ON_CPU; what NVRTC and CuPy themselves do; how fast anything is; sums rounded as a GPU rounds them; blocks that run
at the same time, so that nothing may wait for another block; memory orders finer than a barrier; half precision;
limits of a GPU other than the sizes of blocks, grids and shared memory.
"""
