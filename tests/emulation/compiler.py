"""CUDA kernels as functions of a shared library: g++ compiles the text of a .cu file for the CPU.

A library is kept under the system's folder for temporary files, named by a hash of all that it was made from.
"""

import ctypes
import functools
import hashlib
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).parent
CACHE = Path(tempfile.gettempdir(), f"minisagan-emulation-{os.getuid()}") if hasattr(os, "getuid") else None
FLAGS = ["-std=c++20", "-O1", "-g1", "-w", "-fPIC", "-fvisibility=hidden", "-fno-threadsafe-statics"]
CHECKS = "-fsanitize=thread,alignment,bounds,signed-integer-overflow,integer-divide-by-zero,shift-exponent"

_KERNEL = re.compile(r'extern\s+"C"\s+__global__\s+(?:__launch_bounds__\s*\([^()]*\)\s*)?void\s+'
                     r"(?:__launch_bounds__\s*\([^()]*\)\s*)?(\w+)\s*\(")  # fmt: skip
_DYNAMIC = re.compile(r"extern\s+__shared__\s+(?:__align__\s*\(\s*\d+\s*\)\s*)?([\w\s:]+?)\s*(\w+)\s*\[\s*\]\s*;")

_INCLUDE = re.compile(r"^#include .*\n", re.MULTILINE)


def available():
    """Whether kernels can be compiled here: g++ on Linux."""
    return sys.platform == "linux" and shutil.which("g++") is not None


class CompileError(Exception):
    """What g++ says of the .cu text."""


class Library:
    """The kernels of one .cu text: `types[name]` are those of the arguments, `functions[name]` runs the kernel."""

    def __init__(self, path, names):
        self.path, library = path, ctypes.CDLL(str(path))
        self.functions = {name: getattr(library, f"run_{name}") for name in names}
        self.types = {}
        for name in names:
            self.functions[name].restype = ctypes.c_bool
            types = getattr(library, f"types_{name}")
            types.restype = ctypes.c_char_p
            self.types[name] = list(filter(None, types().decode().split(", ")))

    def locate(self, message):
        """A report with @offset of an instruction at its start, as file:line."""
        found = re.match(r"@(\w+) ", message)
        if not found:
            return message
        command = ["addr2line", "--inlines", "--exe", self.path, found[1]]
        places = subprocess.run(command, capture_output=True, text=True).stdout.split("\n")
        places = [Path(place.split(" ")[0]).name for place in places]
        own = [place for place in places if ".cu:" in place] or places
        return f"{own[0]}: {message[found.end() :]}"


def kernels(code):
    """The names of the kernels in CUDA text."""
    return _KERNEL.findall(code)


@functools.cache
def library(code, defines=(), checked=False):
    """Compile CUDA text with `defines`, ("-DREAL=float", ...), and load it. CompileError if g++ doesn't take it."""
    names = kernels(code)
    code = _DYNAMIC.sub(r"\1* const \2 = reinterpret_cast<\1*>(emulated::now.dynamic);", code)
    text = '#include "cuda_on_cpu.h"\n' + "".join(_INCLUDE.findall(code))
    text += '\nnamespace {\n#line 1 "kernels.cu"\n' + _INCLUDE.sub("\n", code) + "\n}  // namespace\n"
    text += "".join(f"KERNEL({name})\n" for name in names)
    machine = _object((HERE / "machine.cpp").read_text(), "-O2")
    checks = [CHECKS] if checked else []
    own = _object(text, "-ffp-contract=fast", "-march=native", *checks, *defines)
    # linked without -fsanitize: machine.cpp is what checked code calls, not g++'s own libraries
    path = made("so", [machine, own], lambda out: run("g++", "-shared", machine, own, "-o", out))
    return Library(path, names)


def _object(text, *flags):
    def compile(out):
        source = out.with_suffix(".cpp")
        source.write_text(text)
        run("g++", *FLAGS, *flags, f"-I{HERE}", "-c", source, "-o", out)

    headers = [path.read_text() for path in sorted(HERE.glob("*.h"))]
    return made("o", [text, *headers, *FLAGS, *flags], compile)


def made(suffix, parts, make):
    """The file of the cache that `make(path)` makes from these parts."""
    path = CACHE / f"{hashlib.sha256(repr(parts).encode()).hexdigest()[:24]}.{suffix}"
    if not path.exists():
        CACHE.mkdir(mode=0o700, exist_ok=True)
        assert CACHE.stat().st_uid == os.getuid(), f"{CACHE} is somebody else's"
        with tempfile.TemporaryDirectory(dir=CACHE) as folder:  # so that several processes may do this at once
            make(Path(folder, path.name))
            os.replace(Path(folder, path.name), path)
    return path


def run(*command):
    """What the compiler says; CompileError if it fails."""
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise CompileError(done.stderr)
    return done.stderr
