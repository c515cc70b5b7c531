"""The GPU's tests on the real CuPy, where there is no GPU: CuPy's wheel and NVRTC on a CUDA driver of ours.

    python tests/with_cupy.py                                    # driver/walk.py: a whole training, nothing computed
    python tests/with_cupy.py -m gpu test_gpu_training.py        # any tests, with pytest's options: kernels compute

driver/driver.cpp is the driver; where kernels compute, CuPy's own ones, too, the emulation of the other tests does it.
CuPy's wheel holds NVIDIA's runtime library, which works with NVIDIA's driver only: the one module of CuPy's that calls
it is compiled anew from CuPy's source, and calls driver.cpp. This needs Linux, g++, Python's headers and pip's access
to packages (250 MB). cuBLAS and CUB, which come as machine code, are left out. $MINISAGAN_CUPY names the folder of the
environment, which is kept for the next time.
"""

import os
import subprocess
import sys
import sysconfig
import tarfile
import tempfile
import venv
from pathlib import Path

TESTS = Path(__file__).parent
CUPY = "14.2.0"
PACKAGES = [
    *(f"cupy-cuda13x=={CUPY}", "nvidia-cuda-nvrtc==13.*", "nvidia-cuda-runtime==13.*"),
    *("nvidia-cuda-crt==13.*", "nvidia-cuda-cccl==13.*", "nvidia-cuda-profiler-api==13.*"),  # headers
    *("Cython>=3.2,<3.3", "setuptools>=77", "wheel"),  # what CuPy's source asks for
    *("numpy>=2", "imageio", "pillow", "click>=8.2", "threadpoolctl", "pytest>=8", "pytest-xdist", "safetensors"),
]


def main(tests):
    default = Path(tempfile.gettempdir(), f"minisagan-cupy-{os.getuid()}")
    folder = Path(os.environ.get("MINISAGAN_CUPY", default)).absolute()
    python = folder / "bin" / "python"
    if not (folder / "lib" / "libcuda.so.1").exists():
        environment(folder, python)
    driver(folder)
    command = [python, "-m", "pytest", "-q", "-p", "driver.on_driver", "-p", "no:cacheprovider"]
    paths = os.pathsep.join([str(TESTS.parent), str(TESTS)])
    return subprocess.run([*command, *tests], cwd=TESTS, env=os.environ | {"PYTHONPATH": paths}).returncode


def environment(folder, python):
    """CuPy and what it needs, with its module for the runtime library compiled anew."""
    venv.create(folder, with_pip=True)
    pip = [python, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    run(*pip, "install", *PACKAGES)
    with tempfile.TemporaryDirectory() as temp:
        stub = {"CUPY_INSTALL_USE_STUB": "1"}  # so that pip may ask the source for its name without CUDA
        source = ["--no-deps", "--no-build-isolation", "--no-binary", "cupy"]
        run(*pip, "download", *source, "--dest", temp, f"cupy=={CUPY}", **stub)
        with tarfile.open(Path(temp, f"cupy-{CUPY}.tar.gz")) as packed:
            packed.extractall(temp, filter="data")
        api = Path(temp, f"cupy-{CUPY}", "cupy_backends", "cuda", "api")
        constants = "CUPY_CUDA_VERSION=13000,CUPY_HIP_VERSION=0,CUPY_USE_CUDA_PYTHON=0"
        run(python, "-m", "cython", "-3", "--cplus", "-E", constants, api / "runtime.pyx")
        (module,) = packages(folder).glob("cupy_backends/cuda/api/runtime.*.so")
        headers = [f"-I{sysconfig.get_path('include')}", *nvidia(folder), f"-I{api}"]
        run("g++", "-shared", "-fPIC", "-w", *headers, api / "runtime.cpp", "-o", module)


def driver(folder):
    """libcuda.so.1: driver.cpp, and a refusal for each function that CuPy knows and it does not."""
    built = folder / "lib" / "libcuda.so.1"
    command = ["g++", "-std=c++20", "-O1", "-w", "-shared", "-fPIC", f"-Wl,-soname,{built.name}", *nvidia(folder)]
    command += [f"-I{TESTS / 'emulation'}", TESTS / "driver" / "driver.cpp", "-o", built]
    run(*command)
    (module,) = packages(folder).glob("cupy_backends/cuda/api/runtime.*.so")
    missing = symbols("--undefined-only", module) - symbols("--defined-only", built)
    with tempfile.TemporaryDirectory() as temp:
        refusals = Path(temp, "refusals.cpp")
        refusals.write_text('extern "C" {\nint driver_refuse(const char*);\n' + "".join(
            f'int {name}() {{ return driver_refuse("{name}"); }}\n' for name in sorted(missing)) + "}\n")  # fmt: skip
        run(*command, refusals)


def symbols(which, library):
    said = subprocess.run(["nm", "-D", which, library], check=True, capture_output=True, text=True).stdout
    return {line.split()[-1] for line in said.splitlines() if line.split()[-1].startswith("cuda")}


def packages(folder):
    return Path(sysconfig.get_path("purelib", vars={"base": str(folder)}))


def nvidia(folder):
    include = packages(folder) / "nvidia" / "cu13" / "include"
    return [f"-I{include}", f"-I{include / 'cccl'}"]


def run(*command, **environment):
    subprocess.run(command, check=True, env=os.environ | environment)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:] or ["driver/walk.py"]))
