"""What the kernels of conv.cu come to in machine code: how many instructions their loops issue for each product of the
tensor cores, from nvcc's output for Hopper. Nothing is run, and nothing here is a time.

    python tests/machine_code.py        # needs nvcc, and pip install nvidia-cuda-nvdisasm

Counted is the loop over chunks of K terms in the form that copies by fours (struct Gather, Outer with both FOURS; in
blocks that do not find db on the way): all its instructions, also those that only some passes execute, over its HMMA,
each a product of (16, 8) and (8, 8).
"""

import importlib.util
import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

import minisagan
from minisagan import cuda

FOLDER = Path(minisagan.__file__).parent
PROCESSOR = {"registers": 65536, "shared": 227 << 10, "reserved": 1 << 10, "threads": 2048}  # of sm_90, for blocks
THREADS = 128
WIDE = r"LDGSTS\.E\S*\.128"  # a copy of 16 bytes


def nvdisasm():
    """The disassembler's path, or None."""
    found = importlib.util.find_spec("nvidia")
    places = [Path(place, "cu13", "bin", "nvdisasm") for place in found.submodule_search_locations] if found else []
    return next((str(place) for place in places if place.exists()), shutil.which("nvdisasm"))


@dataclass
class Loop:
    """The loop of a kernel: its instructions and those of kinds, and what a block of the kernel takes."""

    instructions: int
    products: int
    copies: int
    registers: int
    spilled: int  # bytes
    shared: int  # bytes

    @property
    def each(self):
        """Instructions for each product, itself included."""
        return self.instructions / self.products

    @property
    def blocks(self):
        """How many blocks a processor has room for."""
        registers = -(-self.registers // 8) * 8 * THREADS
        shared = self.shared + PROCESSOR["reserved"]
        return min(PROCESSOR["registers"] // registers, PROCESSOR["shared"] // shared, PROCESSOR["threads"] // THREADS)


def compiled(arch=90):
    """{kernel: its Loop} of conv.cu in float32 with TF32."""
    with tempfile.TemporaryDirectory() as folder:
        source, cubin = Path(folder, "conv.cu"), Path(folder, "conv.cubin")
        source.write_text(cuda.text(FOLDER / "ops" / "conv.cu"))
        options = "-std=c++17", "-ftz=true", "-DREAL=float", "-DTF32=1", f"-arch=sm_{arch}", "-Xptxas=-v", "-cubin"
        done = subprocess.run(["nvcc", *options, "-o", cubin, source], capture_output=True, text=True, check=True)
        code = subprocess.run([nvdisasm(), "-c", cubin], capture_output=True, text=True, check=True).stdout
    numbers = r"(\d+) bytes spill", r"(\d+) registers", r"(\d+) bytes smem"
    said = {
        name: [sum(map(int, re.findall(number, text))) for number in numbers]
        for name, text in re.findall(r"entry function '(\w+)'(.*?)(?=entry function|\Z)", done.stderr, re.S)
    }
    found = {}
    for name, text in re.findall(r"^\s*\.section\s+\.text\.(\w+),.*?\n(.*?)(?=^\s*\.section|\Z)", code, re.M | re.S):
        spilled, registers, shared = said[name]
        body = main_loop(text)
        if body:
            counts = len(body), sum("HMMA" in line for line in body), sum(bool(re.search(WIDE, line)) for line in body)
            found[name] = Loop(*counts, registers, spilled, shared)
    return found


def main_loop(text):
    """The instructions of the innermost loop with the most products that copies by fours alone; [] if there is none."""
    lines, labels = [], {}
    for line in text.split("\n"):
        if label := re.match(r"^(\.L_x_\d+):", line):
            labels[label[1]] = len(lines)
        elif re.match(r"\s+/\*[0-9a-f]{4,}\*/", line):
            lines.append(line)
    loops = []
    for end, line in enumerate(lines):
        target = re.search(r"BRA\S* .*\(?(\.L_x_\d+)\)?", line)
        if target and labels.get(target[1], end + 1) <= end:
            loops.append(lines[labels[target[1]] : end + 1])
    fours = [loop for loop in loops if all(re.search(WIDE, line) for line in loop if "LDGSTS" in line)]
    fours = [loop for loop in fours if any("LDGSTS" in line for line in loop) and any("HMMA" in line for line in loop)]
    most = max((sum("HMMA" in line for line in loop) for loop in fours), default=0)
    return min((loop for loop in fours if sum("HMMA" in line for line in loop) == most), key=len, default=[])


if __name__ == "__main__":
    print(f"{'sm_90':22}{'loop':>6}{'HMMA':>6}{'each':>7}{'copies':>8}{'registers':>11}{'spilled':>9}{'blocks':>8}")
    for name, loop in sorted(compiled().items()):
        row = f"{name:22}{loop.instructions:6}{loop.products:6}{loop.each:7.1f}{loop.copies:8}"
        print(f"{row}{loop.registers:11}{loop.spilled:9}{loop.blocks:8}")
