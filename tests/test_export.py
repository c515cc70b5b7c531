"""An exported generator draws our own images: by onnxruntime, and in PyTorch by the example, for every architecture."""

import importlib.util
import json
import subprocess
import sys
from pathlib import Path

import command_line
import imageio.v3 as iio
import numpy as np
import pytest
from command_line import minisagan, refused

from minisagan import __version__, data, export, nn
from minisagan.config import Architecture
from minisagan.errors import Fault
from minisagan.models import Generator
from minisagan.run import checkpoint
from minisagan.run.folder import load_generator
from minisagan.sampling import generate, latents

onnx = pytest.importorskip("onnx")
onnxruntime = pytest.importorskip("onnxruntime")

apart, run, photos = command_line.apart, command_line.run, command_line.photos  # fixtures

EXAMPLE = Path(__file__).parents[1] / "examples" / "sample_in_pytorch.py"
ARCHITECTURES = [
    {},
    {"classes": 0},
    {"attention_form": "paper"},
    {"attention": None},
    {"attention": 8, "classes": 3},
    {"attention_key": 1},
    {"attention_key": 4, "attention_form": "paper", "classes": 0, "channels": 3},
    {"spectral_norm": "discriminator"},
    {"spectral_norm": "none", "classes": 0, "attention_form": "paper"},
    {"init": "xavier", "latent": 5, "channels": 3},
    {"size": 64, "channels": 3, "attention": 32},
    {"size": 64, "channels": 3, "attention": 32, "attention_form": "paper", "classes": 0},
    {"size": 64, "attention": None, "spectral_norm": "none"},
    {"size": 128, "channels": 3, "attention": 16, "classes": 2},
    {"size": 256, "channels": 3, "width": 4, "classes": 0},
]


def trained(**options):
    """A generator as after training: no gain, bias, gamma or statistic is what it began as."""
    generator, random = Generator(Architecture(**{"width": 8} | options)).eval(), np.random.default_rng(0)
    for p in generator.parameters().values():
        if p.ndim < 3:
            p.data += np.float32(0.3) * random.standard_normal(p.shape).astype(np.float32)
    for norm in generator.modules(nn.BatchNorm):
        norm.mean += random.normal(0, 0.5, norm.mean.shape).astype(np.float32)
        norm.var *= random.uniform(0.3, 2, norm.var.shape).astype(np.float32)
    generator.norm.gain.data *= np.float32(0.3)  # tanh, where it is flat, would hide a difference
    if generator.arch.attention:
        generator.attention.gamma.data += np.float32(1)
    return generator


def inputs(generator, count):
    z, classes = latents(generator, count, seed=1), generator.arch.classes
    return z, np.arange(count) % classes if classes else None


def drawn_by(model, z, labels):
    session = onnxruntime.InferenceSession(model)
    return session.run(["images"], {"z": z} | ({} if labels is None else {"labels": labels}))[0]


@pytest.fixture(scope="module")
def example():
    pytest.importorskip("torch")
    spec = importlib.util.spec_from_file_location("sample_in_pytorch", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize("options", ARCHITECTURES, ids=str)
def test_the_graph_draws_our_images(options):
    generator = trained(**options)
    model = export.to_onnx(generator, {"classes": "[]"})
    graph = onnx.load_from_string(model)
    onnx.checker.check_model(graph, full_check=True)
    assert {x.name for x in graph.graph.initializer} <= {name for node in graph.graph.node for name in node.input}
    own = {name: p.shape for name, p in generator.parameters().items() if ".norm" not in name and name[:4] != "norm"}
    weights = {name: x for name, x in export.folded(generator).items() if not name.endswith((".scale", ".shift"))}
    assert weights.keys() == own.keys()
    assert all(sorted(x.shape) == sorted(own[name]) for name, x in weights.items())  # gamma is (), kernels are turned
    for count in (1, 5):
        z, labels = inputs(generator, count)
        ours = generate(generator, z, labels)
        theirs = drawn_by(model, z, labels)
        assert theirs.dtype == np.float32 and theirs.shape == ours.shape and ours.std() > 0.05
        np.testing.assert_allclose(theirs, ours, rtol=0, atol=1e-4)


@pytest.mark.parametrize("options", ARCHITECTURES, ids=str)
def test_the_example_draws_our_images_in_pytorch(options, example):
    import torch

    generator = trained(**options)
    z, labels = inputs(generator, 5)
    weights = {name: torch.from_numpy(w) for name, w in export.folded(generator).items()}
    given = torch.from_numpy(z), None if labels is None else torch.from_numpy(labels)
    theirs = example.generate(weights, *given, generator.arch.attention, generator.arch.attention_form)
    np.testing.assert_allclose(theirs.permute(0, 2, 3, 1), generate(generator, z, labels), rtol=0, atol=1e-4)


@pytest.mark.parametrize("options, size", [({}, 28), ({"classes": 0, "channels": 3}, 32)])
def test_uint8_images_are_ours_cropped(options, size):
    generator = trained(**options)
    z, labels = inputs(generator, 8)
    theirs = drawn_by(export.to_onnx(generator, {}, size), z, labels)
    ours = data.to_uint8(generate(generator, z, labels), size)
    assert theirs.dtype == np.uint8 and theirs.shape == ours.shape
    difference = np.abs(theirs.astype(int) - ours)
    assert difference.max() <= 1 and (difference > 0).mean() < 0.001  # where rounding decides


def test_attention_has_its_part_in_what_is_compared():
    generator = trained()
    z, labels = inputs(generator, 2)
    model = export.to_onnx(generator, {})
    generator.attention.gamma.data *= 0
    assert np.abs(drawn_by(model, z, labels) - generate(generator, z, labels)).max() > 0.01


def test_a_graph_that_draws_otherwise_is_not_written():
    generator = trained()
    model = export.to_onnx(generator, {})
    generator.output.b.data += np.float32(0.01)
    with pytest.raises(Fault, match=r"the ONNX graph's images differ from ours by 0.0\d+: not written"):
        export.compare(generator, model)


def test_export_writes_a_graph_of_the_run(run, apart):
    stdout, _ = minisagan("export", run)
    first, second = stdout.splitlines()
    assert first == f"generator.onnx: 0.4 MB, the generator of {run}/checkpoints/step-00000003.safetensors"
    assert second.startswith("64 images: ") and " ms in onnxruntime, " in second
    model = onnx.load("generator.onnx")
    assert {o.version for o in model.opset_import} == {13}
    about = {p.key: p.value for p in model.metadata_props}
    assert json.loads(about["classes"]) == list("0123456789") and about["image_size"] == "28"
    assert json.loads(about["config"])["architecture"]["width"] == 8 and about["minisagan"] == __version__
    assert about["checkpoint"] == "step-00000003.safetensors"
    minisagan("sample", run, "--count", 16, "-o", "ours.npz")
    minisagan("export", run, "--uint8", "-o", "bytes.onnx")
    theirs = drawn_by("bytes.onnx", latents(load_generator(run)[0], 16, seed=0), np.arange(16) % 10)
    difference = np.abs(theirs[..., 0].astype(int) - np.load("ours.npz")["images"])
    assert difference.max() <= 1
    assert not list(Path().glob("*.tmp"))


@pytest.mark.parametrize("which", ["run", "photos"])
def test_the_example_samples_from_an_exported_file(which, request, apart):
    pytest.importorskip("torch")
    folder = request.getfixturevalue(which)
    folder = folder / "run" if which == "photos" else folder
    stdout, _ = minisagan("export", folder, "--to", "safetensors")
    assert stdout.startswith("generator.safetensors: 0.") and stdout.count("\n") == 1
    command = [sys.executable, EXAMPLE, "generator.safetensors"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stderr) == (0, "") and done.stdout.startswith("pytorch.png: 8 images")
    shape = iio.imread("pytorch.png").shape
    assert shape == ((10 * 32, 8 * 32) if which == "run" else (8 * 32, 8 * 32, 3))


def test_what_can_not_be_exported_is_one_line(run, apart, monkeypatch):
    Path("empty").mkdir()
    assert "nothing: no such run folder or checkpoint" in refused("export", "nothing")
    assert "empty: no readable checkpoint in empty/checkpoints; is it a run" in refused("export", "empty", code=3)
    assert "has to end in .onnx or .safetensors" in refused("export", run, "-o", "generator.pt")
    assert "has to end in .safetensors" in refused("export", run, "--to", "safetensors", "-o", "generator.onnx")
    assert "--uint8 is for graphs" in refused("export", run, "--to", "safetensors", "--uint8")
    assert "absent/g.onnx: not written" in refused("export", run, "-o", "absent/g.onnx", code=1)
    minisagan("export", run, "-o", "g.safetensors")
    assert "g.safetensors: not a checkpoint of a run, it lacks" in refused("export", "g.safetensors", code=3)
    for package in ("onnx", "onnxruntime"):
        with monkeypatch.context() as patch:
            patch.setitem(sys.modules, package, None)  # to import it is an ImportError
            message = refused("export", run)
            minisagan("export", run, "--to", "safetensors")  # needs neither
        assert f"a graph needs onnx and onnxruntime (import of {package} halted" in message
        assert "pip install onnx onnxruntime, or take --to safetensors" in message
    assert not Path("generator.onnx").exists()


def test_a_run_of_another_version_is_one_line(run, apart):
    tensors, about = checkpoint.load(run / "checkpoints" / "step-00000003.safetensors")
    config = json.loads(about["config"])
    Path("old/checkpoints").mkdir(parents=True)
    checkpoint.save(Path("old/checkpoints/step-00000003.safetensors"), tensors,
                    about | {"config": json.dumps(config | {"tempo": 1})})
    assert "this version of minisagan doesn't know tempo" in refused("export", "old", code=3)
    lacking = {name: x for name, x in tensors.items() if name != "average.attention.gamma"}
    checkpoint.save(Path("old/checkpoints/step-00000003.safetensors"), lacking, about)
    assert "'average.attention.gamma' is missing" in refused("export", "old", code=3)


def test_a_graph_that_draws_nan_is_not_written():
    G = trained()
    model = export.to_onnx(G, {})
    G.output.b.data[...] = np.nan
    with pytest.raises(Fault, match="differ from ours by nan: not written"):
        export.compare(G, model)


def test_seconds_are_ours_and_theirs(monkeypatch):
    G = trained()
    timed = export._timed
    monkeypatch.setattr(export, "_timed", lambda call: (timed(call)[0], calls.append(0) or float(len(calls))))
    calls = []
    assert export.compare(G, export.to_onnx(G, {}))[1:] == (1.0, 2.0)
