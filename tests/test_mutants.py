"""Would the tests notice a fault in a kernel? Faults are put into the kernels, one at a time, and the tests run.

A few are tried here. As a script it tries all that it knows, or those in some files, and prints what noticed each:

    python tests/test_mutants.py [hinge.cu ...]
"""

import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from emulation import compiler

import minisagan

FOLDER = Path(minisagan.__file__).parent
PYTEST = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider"]
TESTS = {  # of each file's kernels
    "cuda.cu": ("test_cuda.py", "block_sum or numbers or last_block"),
    "rng.cu": ("test_rng_gpu.py", ""),
    "flat.cu": ("test_gpu_training.py", "adam"),
    "optim.cu": ("test_gpu_training.py", "adam or average or optimisers"),
    "batches.cu": ("test_gpu_training.py", "batches"),
    "arithmetic.cu": ("test_ops_gpu_conv.py", "matmul"),
    "nccl.cu": ("test_nccl.py", "gathered_sums"),
    "activation.cu": ("test_ops_gpu.py", "relu or tanh or kinks"),
    "attention.cu": ("test_ops_gpu.py", "softmax or attend"),
    "augment.cu": ("test_ops_gpu.py", "augment"),
    "batch_norm.cu": ("test_ops_gpu.py", "batch or kinks"),
    "embedding.cu": ("test_ops_gpu.py", "embed"),
    "hinge.cu": ("test_ops_gpu.py", "hinge or kinks"),
    "spectral.cu": ("test_ops_gpu.py", "spectral"),
    "product.cu": ("test_ops_gpu_conv.py", "conv"),
    "conv.cu": ("test_ops_gpu_conv.py", "conv"),
    "resampled_conv.cu": ("test_ops_gpu_conv.py", "conv_down or up_conv"),
    "resample.cu": ("test_ops_gpu_conv.py", "resampling or pool"),
}
LATE = {  # what a test sees that comes late, for which all before it would be compiled: a minute
    "h / size) * (s.Wo / size)": "takes_along",
}
FAULTS = [  # (pattern, what to put there)
    (r"__sync(threads|warp)\(\);", ";"),  # no barrier
    *((f" {a} ", f" {b} ") for a, b in (("<", "<="), ("<=", "<"), (">", ">="), (">=", ">"))),  # a bound off by one
    (r"(?<=Idx\.)x", "y"),  # axes swapped
    (r"(?<=Idx\.)y", "x"),
    (" % ", " / "),
]


def mutants(path):
    """(line number, line before, line after, text) for each fault that can be put into the file."""
    lines = path.read_text().split("\n")
    for number, line in enumerate(lines):
        code = re.sub(r"//.*|^#if.*|template <[^>]*>", lambda found: "\0" * len(found[0]), line)
        for pattern, replacement in FAULTS:
            for found in re.finditer(pattern, code):
                changed = line[: found.start()] + replacement + line[found.end() :]
                text = "\n".join([*lines[:number], changed, *lines[number + 1 :]])
                yield number + 1, line.strip(), changed.strip(), text


def noticed(path, text, environment=None, selection=None):
    """What the tests say of the package with `text` for this file: "report", "values", "hangs", or "" if they pass.

    They are those of TESTS, or those of its file that `selection` selects.
    """
    file, usual = TESTS[path.name]
    selection = selection or usual
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(FOLDER, Path(folder, "minisagan"))
        shutil.copytree(Path(__file__).parent, Path(folder, "tests"))
        Path(folder, "minisagan", path.relative_to(FOLDER)).write_text(text)
        for kind in ("checked", "emulated"):
            wanted = f"{kind} and ({selection})" if selection else kind
            command = [*PYTEST, f"tests/{file}", "-k", wanted]
            try:
                done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, timeout=600)
            except subprocess.TimeoutExpired:
                return "hangs"
            if done.returncode == 1:
                kinds = ("CompileError", "not compiled"), ("EmulationError", "report")
                return next((kind for error, kind in kinds if error in done.stdout), "values")
            if done.returncode < 0:
                return "crash"
            assert done.returncode == 0, done.stdout + done.stderr
    return ""


@pytest.mark.skipif(not compiler.available(), reason="no g++ to emulate a GPU with")
@pytest.mark.parametrize(
    "file, before, after, what",
    [
        ("cuda.cu", "__syncthreads();  // an earlier sum's values have been read", "", "report"),
        ("hinge.cu", "x[blockIdx.x * n + i]", "x[i]", "values"),
        ("optim.cu", "__syncthreads();", "", "report"),
        ("embedding.cu", "i < ", "i <= ", "report"),
        ("activation.cu", "y[i] > 0", "y[i] >= 0", "values"),
        ("product.cu", "wait_for_all_but<STAGES - 2>();", "", "values"),
        ("product.cu", "wait_for_all_but<STAGES - 2>();", "wait_for_all_but<STAGES - 1>();", "values"),  # for too few
        ("product.cu", "source.fill(as[to], bs[to])", "source.fill(as[from], bs[from])", "report"),  # a stage too early
        ("product.cu", "% LINES, q * 8 + second_term * 4)", "% LINES, q * 8 + second_line * 4)", "values"),
        ("product.cu", "second_line * 8 + LANE % 8)", "second_line * 8 + (LANE + 1) % 8)", "values"),
        ("product.cu", "__syncthreads();  // all have read the tiles", "", "report"),
        ("product.cu", "k < K / DOWN; k++", "k < 1; k++", "values"),  # of db only what one row of threads sees
        ("conv.cu", "if (blockIdx.x == 0) sums.add_products", "if (blockIdx.y == 0) sums.add_products", "values"),
        ("product.cu", "open > 0 ? v[e] : real(0)", "v[e]", "values"),  # no gate
        ("product.cu", "open > 0 ? v[e]", "open >= 0 ? v[e]", "values"),
        ("product.cu", "(open > 0 ? v[e] : real(0)) + added", "open > 0 ? v[e] + more : real(0) + added", "values"),
        ("conv.cu", "{ return A_FOURS && B_FOURS ? RELU : s.relu; }", "{ return false; }", "values"),  # outer of x
        ("conv.cu", "{ return A_FOURS && B_FOURS ? RELU : asked; }", "{ return RELU; }", "values"),
        ("conv.cu", "a_fours && b_fours && !s.relu) add", "a_fours && b_fours) add", "values"),
        ("conv.cu", "a_fours && b_fours && s.relu) add", "a_fours && b_fours) add", "values"),
        ("product.cu", "relu && v < 0 ? 0 : v", "relu && !(v > 0) ? 0 : v", "values"),  # of a NaN
        ("product.cu", "relu && v < 0 ? real(0) : v", "relu && !(v > 0) ? real(0) : v", "values"),
        ("conv.cu", "h / size) * (s.Wo / size)", "h / size) * s.Wo", "report"),  # the rest is half as wide
        ("batch_norm.cu", "last_block(counters + blockIdx.x, chunks *", "last_block(counters, chunks *", "report"),
        ("batch_norm.cu", "i < 4; i++", "i < 3; i++", "values"),  # of what four rows of threads find, three
        ("resampled_conv.cu", "? row[16 * CO + i] :", "? row[15 * CO + i] :", "values"),
        ("resampled_conv.cu", "i % C * O + i / C", "i", "values"),
        ("cuda.cu", "__threadfence();  // what this block wrote", "//", "report"),
        ("cuda.cu", "__threadfence();  // what this block reads", "//", "report"),
        ("cuda.cu", "__syncthreads();  // all threads have written", "", "report"),
        ("cuda.cu", "atomicInc(counter, blocks - 1) == blocks - 1", "atomicInc(counter, blocks - 1) == 0", "report"),
        ("cuda.cu", "atomicInc(counter, blocks - 1)", "atomicInc(counter, blocks)", "values"),
        ("embedding.cu", "", "", ""),  # no fault, no news
    ],
)
def test_faults_are_noticed(file, before, after, what):
    path = next(FOLDER.rglob(file))
    text = path.read_text()
    assert before in text
    assert noticed(path, text.replace(before, after, 1), selection=LATE.get(before)) == what


def main(files):
    counts = {}
    with tempfile.TemporaryDirectory() as folder:  # for what is compiled, which nobody wants again
        for path in sorted(FOLDER.rglob("*.cu")):
            if files and path.name not in files:
                continue
            for number, before, after, text in mutants(path):
                by = noticed(path, text, {**os.environ, "TMPDIR": folder})
                counts[by] = counts.get(by, 0) + 1
                print(f"{path.name}:{number}: {by or 'NOT NOTICED'}\n    - {before}\n    + {after}", flush=True)
    print(", ".join(f"{by or 'not noticed'}: {count}" for by, count in sorted(counts.items())))


if __name__ == "__main__":
    main(sys.argv[1:])
