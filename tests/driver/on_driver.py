"""A plugin of pytest's that puts the real CuPy on driver.cpp. It has to be imported before CuPy.

CuPy's kernels and ours go through NVRTC, as on a GPU, and then through g++: what the driver is given to load is the
library that emulation/compiler.py made of the same text. Matrix products are the ones of the stand-in for cuBLAS.
CuPy's sums are its own kernels here; on a GPU it may take CUB's, which are machine code in its wheel.
"""

import collections
import ctypes
import functools
import os
import sys
from pathlib import Path

import numpy as np

os.environ |= {"CUPY_ACCELERATORS": "", "CUPY_CACHE_IN_MEMORY": "1"}
driver = ctypes.CDLL(str(Path(sys.prefix, "lib", "libcuda.so.1")), ctypes.RTLD_GLOBAL)
driver.driver_faults.restype = ctypes.c_char_p
driver.driver_nodes.restype = ctypes.c_char_p
driver.driver_count.restype = ctypes.c_long
driver.driver_owns.argtypes = [ctypes.c_void_p, ctypes.c_size_t]
driver.driver_submit.argtypes = [ctypes.c_void_p, ctypes.c_void_p]
WORK = ctypes.CFUNCTYPE(ctypes.c_int)

import cupy  # noqa: E402
from cupy.cuda import compiler as cupys  # noqa: E402
from emulation import compiler, cublas_stand_in  # noqa: E402
from emulation.runtime import EmulationError  # noqa: E402

from minisagan import cuda  # noqa: E402

INCLUDE = Path(cupy.__file__).parent / "_core" / "include"
computes = True


def faults():
    """What the driver has refused since it was last asked, a sentence each."""
    found = driver.driver_faults().decode().splitlines()
    driver.driver_forget()
    return found


def nodes():
    """How many nodes of each name were recorded since faults() was last asked for."""
    return collections.Counter(driver.driver_nodes().decode().splitlines())


def count(what):
    """How many of "launches", "allocations", "captures", "nodes", "copies between host and GPU" there were."""
    return driver.driver_count(what.encode())


def compute(yes):
    """Whether kernels and products compute: without that a large network takes seconds."""
    global computes
    computes = yes
    driver.driver_computes(yes)


@functools.cache  # each test loads its kernels anew
def compiled(source, options=(), *args):
    image, names = by_nvrtc(source, options, *args)
    if computes:
        defines = tuple(option for option in options if option.startswith("-D"))
        text = source.replace("#include <cupy/complex.cuh>", "")  # it needs Thrust, and nothing here is complex
        library = compiler.library(text, (*defines, f"-I{INCLUDE}", "-include", "cassert", "-include", "cstddef"))
        image = str(library.path).encode() + b"\0"
    return image, names


class Cublas(cublas_stand_in.Cublas):
    """The stand-in, on the driver's memory and streams."""

    def memory(self, address, size):
        if not driver.driver_owns(address, size):
            raise EmulationError(f"cuBLAS was given {size} bytes at {address:#x} that are not an array's")
        data = (ctypes.c_ubyte * size).from_address(address) if size else b""
        return None, np.frombuffer(data, np.uint8)

    def stream_at(self, address):
        return Stream(address)


class Stream:
    kept = []  # what graphs call

    def __init__(self, address):
        self.address = address

    def submit(self, call, blocks, *_):
        work = WORK(lambda: (call() if computes else None, 0)[1])
        self.kept.append(work)
        if error := driver.driver_submit(self.address, ctypes.cast(work, ctypes.c_void_p)):
            raise EmulationError(f"the driver refused a matrix product: error {error}")


by_nvrtc, cupys._compile_using_nvrtc_no_warning = cupys._compile_using_nvrtc_no_warning, compiled
cuda.load_cublas = Cublas
