"""Which device computes: what `--device` means, what stands in the way of a GPU, and when its memory is too small."""

import ctypes
import re
from contextlib import contextmanager

import click

from minisagan import cuda
from minisagan.errors import Fault, UsageError
from minisagan.launcher import launched
from minisagan.processes import nccl

SMALLER = "A smaller --batch-size, --width or --size needs less"  # what helps where the memory is too small

threads_option = click.option(
    "--threads",
    type=click.IntRange(1, 1024),
    show_default="all cores",
    help="Cores that compute; no weight or image depends on it.",
)


def device_option(default="auto"):
    """--device, to be given to `choose`."""
    return click.option("--device", "where", metavar="auto|cpu|cuda[:N]", default=default, help="What computes.")


def gpu_options(command):
    """--device, and what only a GPU asks: --tf32, to be given to `choose`, and --graph, to Training."""
    for option in (
        click.option("--graph/--no-graph", default=True, help="GPU: launch whole steps as graphs."),
        click.option("--tf32/--no-tf32", default=True, help="GPU: products of float32 on tensor cores, in TF32."),
        device_option(),
    ):
        command = option(command)
    return command


def choose(name, tf32=True):
    """Use the device meant by "auto", "cpu", "cuda" or "cuda:N" from now on; returns "cpu" or "cuda:N".

    "auto" is the first GPU if it works, else the CPU. UsageError for other names, Fault for a GPU that can't be used.
    """
    kind, colon, number = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (colon and (kind != "cuda" or not re.fullmatch(r"\d{1,4}", number))):
        raise UsageError(f"--device {name}: there are auto, cpu, cuda, and cuda:0, cuda:1, ...")
    cuda.tf32, number = tf32, int(number or 0)
    if number and launched()[1] > 1:
        raise UsageError(f"--device {name}: each of MPI's ranks has a GPU of its own, so give no number: --device cuda")
    if kind == "cpu":
        return "cpu"
    obstacle = use(number)
    if obstacle and kind == "cuda":
        raise Fault(f"--device {name}: {obstacle}; use --device cpu, or leave that out")
    return "cpu" if obstacle else f"cuda:{number}"


def use(number=0):
    """Use this GPU from now on if it can be used; returns what stands in the way, or ""."""
    try:
        cupy = cuda.cupy()
    except Exception as error:  # a CuPy that is there may fail in many ways
        reason = "CuPy is not installed" if isinstance(error, ModuleNotFoundError) else f"CuPy fails: {error}"
        return f"{reason}; {_remedy()}"
    try:
        count = cupy.cuda.runtime.getDeviceCount()
    except Exception as error:
        return f"no GPU can be used: {error}"
    if number >= count:
        return f"there is no GPU {number}, the last one is {count - 1}" if count else "there is no GPU"
    try:
        cupy.cuda.Device(number).use()
        int(cupy.arange(3).sum())  # the driver, the compiler and its headers
        cuda.load_cublas()
    except Exception as error:
        return f"GPU {number} does not work: {error}"
    if launched()[1] > 1 and (obstacle := nccl.obstacle()):
        return obstacle
    cuda.use(number)
    return ""


def _remedy():
    version = driver()
    if version is None:
        return "nor is there an NVIDIA driver; with one, pip install 'minisagan[cuda13]', or [cuda12] if it is older"
    if version < 12:
        return f"the driver is for CUDA {version}; with a newer one, pip install 'minisagan[cuda13]' or [cuda12]"
    return f"pip install 'minisagan[cuda{min(version, 13)}]' installs what this driver can run"


def describe(where):
    """The device that `choose` returned, in words."""
    return where if where == "cpu" else f"{where} ({cuda.describe()})"


@contextmanager
def memory(batch_size, remedy):
    """Says, if a GPU's memory does not suffice for what happens inside, how much was asked for, and what helps."""
    try:
        yield
    except MemoryError as error:
        if not cuda.in_use():
            raise
        raise Fault(
            f"the GPU's memory is too small for a batch of {batch_size} with these networks: "
            f"{str(error).rstrip('.')}. {remedy}"
        ) from error


def driver():
    """CUDA's main version that the NVIDIA driver is for, or None without a driver."""
    version, library = ctypes.c_int(), _libcuda()
    return None if library is None or library.cuDriverGetVersion(ctypes.byref(version)) else version.value // 1000


def gpus():
    """The names of the GPUs that the driver shows; none without a driver."""
    count, name, library = ctypes.c_int(0), ctypes.create_string_buffer(100), _libcuda()
    if library is None or library.cuInit(0) or library.cuDeviceGetCount(ctypes.byref(count)):
        return []
    found = (name.value.decode() for i in range(count.value) if library.cuDeviceGetName(name, len(name), i) == 0)
    return list(found)


def _libcuda():
    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            return ctypes.CDLL(library)
        except OSError:
            continue
    return None
