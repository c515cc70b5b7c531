"""Every kernel compiles for the GPUs that minisagan serves, without a warning, and keeps its floats in registers.

Run as a script it prints what each kernel takes:  python tests/test_kernels_compile.py
"""

import functools
import re
import shutil
from pathlib import Path

import machine_code
import pytest
from emulation import compiler

import minisagan
from minisagan import cuda

FOLDER = Path(minisagan.__file__).parent
FILES = sorted(path for path in FOLDER.rglob("*.cu") if compiler.kernels(path.read_text()))
VARIANTS = [
    (path, real, tf32)
    for path in FILES
    for real, tf32 in (("float", 0), ("float", 1), ("double", 0))
    if not tf32 or "TF32" in cuda.text(path)
]
ARCHITECTURES = (75, 80, 90)  # Turing, Ampere, Hopper
NVCC = ["nvcc", "-std=c++17", "-ftz=true", "-Werror=all-warnings", "-Xptxas=-v", "--threads=2", "-fatbin"]
NVCC += [f"-gencode=arch=compute_{arch},code=sm_{arch}" for arch in ARCHITECTURES]


@functools.cache
def compiled(path, real, tf32):
    """{(kernel, architecture): (registers, bytes of shared memory, bytes spilled)}, as nvcc says, now or before."""
    code = cuda.text(path)
    command = [*NVCC, f"-DREAL={real}", f"-DTF32={tf32}"]

    def compile(out):
        source = out.with_suffix(".cu")
        source.write_text(code)
        out.write_text(compiler.run(*command, "-o", out.with_suffix(".fatbin"), source))

    said = compiler.made("log", [code, *command], compile).read_text()
    numbers = r"(\d+) registers", r"(\d+) bytes smem", r"(\d+) bytes spill"
    kernels = re.findall(r"entry function '(\w+)' for 'sm_(\d+)'(.*?)(?=entry function|\Z)", said, re.S)
    return {
        (name, int(arch)): tuple(sum(map(int, re.findall(number, text))) for number in numbers)
        for name, arch, text in kernels
    }


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc to compile kernels with")
@pytest.mark.parametrize("path, real, tf32", VARIANTS, ids=lambda part: getattr(part, "stem", str(part)))
def test_kernels_compile_without_spills(path, real, tf32):
    found = compiled(path, real, tf32)
    assert set(found) == {(name, arch) for name in compiler.kernels(path.read_text()) for arch in ARCHITECTURES}
    if real == "float":  # double is for gradient checks, which may take their time
        assert {kernel: spilled for kernel, (_, _, spilled) in found.items() if spilled} == {}


BUDGETS = {  # instructions of the loop for each product of the tensor cores, itself included
    **{"gather_128": 5, "gather_128_swapped": 5, "gather_64": 8, "gather_64_swapped": 8},
    **{"outer_128": 5.5, "outer_64": 9},
}


@pytest.mark.skipif(not shutil.which("nvcc"), reason="no nvcc to compile kernels with")
@pytest.mark.skipif(not machine_code.nvdisasm(), reason="no nvdisasm: pip install nvidia-cuda-nvdisasm")
def test_the_loops_of_convolution_stay_within_their_budgets():
    found = machine_code.compiled()
    assert {name: (loop.each <= BUDGETS[name], loop.spilled) for name, loop in found.items() if name in BUDGETS} == {
        name: (True, 0) for name in BUDGETS
    }, {name: round(loop.each, 2) for name, loop in found.items()}
    assert all(loop.blocks >= 2 for loop in found.values())
    assert {loop.products for name, loop in found.items() if "128" in name} == {64}  # it is the loop that was meant


if __name__ == "__main__":
    print(f"{'file':16}{'kernel':24}{'real':8}TF32   shared   registers on", *(f"sm_{arch}" for arch in ARCHITECTURES))
    for path, real, tf32 in VARIANTS:
        found = compiled(path, real, tf32)
        for name in compiler.kernels(path.read_text()):
            rows = [found[name, arch] for arch in ARCHITECTURES]
            registers = "".join(f"{registers:6}" for registers, _, _ in rows)
            spilled = "  spills" if any(spilled for _, _, spilled in rows) else ""
            print(f"{path.name:16}{name:24}{real:8}{tf32:4}{rows[0][1]:9}{'':13}{registers}{spilled}")
