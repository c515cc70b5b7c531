"""Imports run one way: each module may import those before it in one list, and the list is complete."""

import ast
import subprocess
import sys
from fnmatch import fnmatch
from pathlib import Path

import pytest

import minisagan

# Of modules that share a `*`, none imports another. A folder's own name stands for its __init__.py.
ORDER = [
    *("errors", "files", "stderr", "launcher", "kinks", "cuda", "processes", "cpu", "batch"),
    *("processes.fork", "processes.mpi"),
    *("primitives", "autograd", "joint", "rng"),
    *("ops.activation", "ops.arithmetic", "ops.attention", "ops.batch_norm", "ops.resample", "ops.conv"),
    *("ops.embedding", "ops.hinge", "ops.resampled_conv", "ops.spectral"),
    *("ops.winograd_numpy", "ops.conv_numpy", "ops.conv_cuda", "ops.*_numpy", "ops.*_cuda", "ops"),
    *("beyond", "beyond.augment", "beyond.augment_cuda", "beyond.pack"),
    *("flat", "flat_numpy", "flat_cuda", "optim", "optim_numpy", "optim_cuda", "processes.nccl"),
    *("data.places", "data.reading", "data.download"),
    *("data.decode", "data.scan", "data.labels", "data.parts", "data.pool", "data.pixels"),
    *("data.idx", "data.*"),
    *("data", "config"),
    *("gradcheck", "init", "module", "nn", "together", "models", "sampling", "inputs", "measures", "variety"),
    *("judge", "judge.cross_entropy", "selfcheck.table", "selfcheck.*", "selfcheck"),
    *("run", "run.checkpoint", "run.lockfile", "judge.metrics", "judge.classifier", "judge.evaluation"),
    *("look", "look.words", "look.server", "look.pictures", "look.plot", "look.attention_maps", "look.interpolation"),
    *("team", "train", "export", "run.folder", "run.loop", "look.report", "look.watch", "look.play", "bench", "parity"),
    *("commands.choices", "commands.hardware", "commands.progress", "commands.serving"),
    *("commands.*", "commands", "__main__"),
]

# Which modules may import what is not Python's own.
OTHERS = {
    "numpy": ["*"],
    "threadpoolctl": ["cpu"],
    "mpi4py": ["processes.mpi"],
    "cupy": ["cuda"],
    "cuda": ["cuda"],
    "PIL": ["data.decode", "look.pictures", "look.plot"],
    "imageio": ["look.pictures"],
    "onnx": ["export"],
    "onnxruntime": ["export"],
    "pillow_heif": ["data.decode"],
    "click": ["commands", "commands.*"],
}

FOLDER = Path(minisagan.__file__).parent


def name_of(path):
    """minisagan/ops/conv.py -> "ops.conv"; minisagan/ops/__init__.py -> "ops"; minisagan/__init__.py -> ""."""
    return ".".join(path.relative_to(FOLDER).with_suffix("").parts).removesuffix("__init__").removesuffix(".")


MODULES = {name_of(path): path.read_text(encoding="utf-8") for path in sorted(FOLDER.rglob("*.py"))}


def rank(module):
    """The module's place in ORDER, under its own name or else its family's; the package itself stands before all."""
    if module in ("", *ORDER):
        return ORDER.index(module) if module else -1
    places = [i for i, entry in enumerate(ORDER) if fnmatch(module, entry)]
    assert len(places) == 1, f"{module} has no place, or several, in ORDER"
    return places[0]


def imports(source):
    """Every dotted name that the source imports, wherever in it: a.b for `from a import b` and for `import a.b`."""
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"line {node.lineno}: relative import"
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


def ours(name):
    """The module of ours that this name is or lies in, "minisagan.ops.conv.conv" -> "ops.conv"; None of others."""
    head, *parts = name.split(".")
    if head != "minisagan":
        return None
    while ".".join(parts) not in MODULES:
        parts.pop()
    return ".".join(parts)


def wrong_way(module, source):
    """The modules of ours that `source` imports, though they do not stand before `module`."""
    found = {ours(name) for name in imports(source)} - {None}
    return sorted(name for name in found if rank(name) >= rank(module))


PAGES = [name for name in MODULES if name.startswith("ops.") and not name.endswith(("_numpy", "_cuda"))]


def test_every_module_has_its_place_and_every_place_a_module():
    places = [rank(module) for module in MODULES if module]
    assert set(places) == set(range(len(ORDER)))


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    assert wrong_way(module, MODULES[module]) == []


@pytest.mark.parametrize("page", PAGES)
def test_an_ops_page_knows_no_processes_threads_or_devices(page):
    found = {ours(name) for name in imports(MODULES[page])}
    assert {name for name in found if name in ("cpu", "cuda") or str(name).startswith("processes")} == set()


@pytest.mark.parametrize(
    "module, source, wrong",
    [
        ("ops.resample", "from minisagan.ops.conv import conv", ["ops.conv"]),
        ("ops.conv", "def f():\n    from minisagan import nn, cpu", ["nn"]),
        ("ops.conv", "from minisagan import ops", ["ops"]),
        ("ops", "from minisagan.ops.conv import conv", []),
        ("errors", "import minisagan.run.loop", ["run.loop"]),
        ("errors", "from minisagan import __version__", []),
        ("commands.train", "import minisagan.commands.sample as s, minisagan.run.loop", ["commands.sample"]),
        ("data.idx", "from minisagan.data import download, Dataset", ["data"]),
    ],
)
def test_an_import_of_the_wrong_way_is_found(module, source, wrong):
    assert wrong_way(module, source) == wrong


@pytest.mark.parametrize("module", MODULES)
def test_other_packages_are_imported_where_they_belong(module):
    packages = {name.split(".")[0] for name in imports(MODULES[module])} - {"minisagan", *sys.stdlib_module_names}
    assert [name for name in packages if not any(fnmatch(module, place) for place in OTHERS.get(name, []))] == []


def test_the_command_line_starts_without_numpy():
    code = (
        "import sys\n"
        "sys.modules.update(numpy=None, cupy=None)  # to import them is an ImportError\n"
        "from minisagan.commands import cli\n"
        "cli(['--help'])"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER.parent, capture_output=True, text=True, timeout=60)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("Usage: minisagan") and "gradcheck" in done.stdout
