"""What tests share: the number of threads, real data where there is some, a GPU or its emulation, the marks."""

import os
import signal
from pathlib import Path

import pytest

from minisagan import cpu, cuda


def pytest_configure(config):
    config.addinivalue_line("markers", "gpu: needs a CUDA device")
    if hasattr(signal, "SIGHUP"):
        signal.signal(signal.SIGHUP, signal.SIG_DFL)  # under nohup it is ignored, here and in all children
    if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # as a shell has it for what it starts in the background
        signal.signal(signal.SIGINT, signal.default_int_handler)
    cpu.set_threads(2)  # on any machine: what threads do is tested, and in the same way


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_auto_num_workers():
    """`pytest -n auto`: a process for each core that this one may use, but not so many that memory runs short."""
    return min(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(), 8)


@pytest.fixture
def real_data():
    """real_data("mnist") is the folder that holds the folder mnist; without one the test is skipped, visibly."""

    def find(name):
        for place in (os.environ.get("MINISAGAN_DATA"), Path(__file__).parents[2] / "shared" / "data"):
            if place and Path(place, name).is_dir():
                return Path(place)
        pytest.skip(f"no {name} in $MINISAGAN_DATA or ../shared/data")

    return find


class Gpu:
    """What a test of GPU code works with: `put` an array on the GPU, `get` it back; `cupy` is the module."""

    def __init__(self, kind, cupy):
        self.kind, self.cupy = kind, cupy

    def put(self, x):
        return self.cupy.asarray(x)

    def get(self, x):
        return x.get()


@pytest.fixture(params=["emulated", "checked", pytest.param("gpu", marks=pytest.mark.gpu)])
def gpu(request, monkeypatch):
    """minisagan.cuda on an emulation, on one that reports races and stray accesses, and on a GPU where there is one.

    Products of float32 are not rounded to TF32 unless the test sets cuda.tf32.
    """
    if request.param == "gpu":
        cupy = pytest.importorskip("cupy", reason="no CuPy", exc_type=ImportError)
        if not cupy.cuda.is_available():
            pytest.skip("no GPU")
    else:
        from emulation import compiler, cublas_stand_in, cupy_stand_in

        if not compiler.available():
            pytest.skip("no g++ to emulate a GPU with")
        cupy = cupy_stand_in
        monkeypatch.setattr(cuda, "cupy", lambda: cupy)
        monkeypatch.setattr(cuda, "load_cublas", cublas_stand_in.Cublas)
        monkeypatch.setattr(cuda, "nccl", lambda: None)
        monkeypatch.setattr(cupy.settings, "checked", request.param == "checked")
    monkeypatch.setattr(cuda, "tf32", False)
    monkeypatch.setattr(cuda, "_stream", None)
    cuda._module.cache_clear()
    cuda.use(0)
    yield Gpu(request.param, cupy)
    cuda._module.cache_clear()
    cuda._blas.cache_clear()
    cupy.cuda.Stream.null.use()
