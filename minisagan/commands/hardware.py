"""Which device computes: what `--device` means, and which GPUs there are."""

import ctypes

from minisagan.errors import Fault, UsageError

CPU_ONLY = "this version of minisagan computes on the CPU only"


def choose(name):
    """The device meant by "auto", "cpu", "cuda" or "cuda:N"; UsageError for other names, Fault if it can't be used."""
    kind, colon, number = name.partition(":")
    if kind not in ("auto", "cpu", "cuda") or (colon and (kind != "cuda" or not number.isdecimal())):
        raise UsageError(f"--device {name}: there are auto, cpu, cuda, and cuda:0, cuda:1, ...")
    if kind == "cuda":
        raise Fault(f"--device {name}: {CPU_ONLY}; use --device cpu, or leave that out")
    return "cpu"


def gpus():
    """The names of the GPUs that the driver shows; none without a driver."""
    for library in ("libcuda.so.1", "nvcuda.dll"):
        try:
            cuda = ctypes.CDLL(library)
            break
        except OSError:
            continue
    else:
        return []
    count, name = ctypes.c_int(0), ctypes.create_string_buffer(100)
    if cuda.cuInit(0) or cuda.cuDeviceGetCount(ctypes.byref(count)):
        return []
    found = (name.value.decode() for i in range(count.value) if cuda.cuDeviceGetName(name, len(name), i) == 0)
    return list(found)
