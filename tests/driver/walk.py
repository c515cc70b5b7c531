"""A whole training of the default network on the real CuPy, and that the driver notices what must not happen in it.

Kernels compute nothing here, which takes a minute; with_cupy.py runs the tests of values, too, if it is asked to.
"""

import numpy as np
import pytest
from test_gpu_training import NODES

from driver import on_driver
from minisagan import cuda, parity
from minisagan.config import Config
from minisagan.measures import measure
from minisagan.run import checkpoint
from minisagan.sampling import generate
from minisagan.train import Training

on_driver.compute(False)
pytestmark = pytest.mark.parametrize("gpu", ["gpu"], indirect=True)
CONFIG = Config()  # of --dataset mnist: 28x28, width 16, batches of 64
CONCATENATED = 2  # arrays of two, images and labels: a copy for each of the two by CuPy, a single node by the stand-in
COUNTED = "captures", "nodes", "allocations", "copies between host and GPU", "launches", "launches of graphs"


@pytest.fixture(autouse=True)
def clean(gpu, monkeypatch):
    monkeypatch.setattr(cuda, "tf32", True)
    on_driver.faults()


def counted(work):
    """What `work` asked of the driver."""
    before = {what: on_driver.count(what) for what in COUNTED}
    work()
    return {what: on_driver.count(what) - before[what] for what in COUNTED}


@pytest.mark.parametrize("graph", [True, False])
def test_a_whole_training(gpu, graph, tmp_path):
    training = Training(CONFIG, parity.noise_images(CONFIG, 3 * CONFIG.batch_size), gpu=True, graph=graph)
    training.advance(cuda.WARM_UP)
    recording, after = counted(lambda: training.advance(1)), counted(lambda: training.advance(5))
    assert (recording["captures"], after["captures"]) == (graph, 0)
    assert recording["nodes"] <= NODES + CONCATENATED, on_driver.nodes()
    assert after["launches of graphs"] == 5 * graph
    if graph:  # beside the graphs, images' numbers go in and losses go out: a copy each in a step, and once to the host
        assert recording["nodes"] > 0
        assert (after["launches"], after["copies between host and GPU"]) == (10, 2), after
    measure(training)
    noise = np.zeros((20, CONFIG.architecture.latent), np.float32), np.arange(20) % CONFIG.architecture.classes
    assert generate(training.sampler(), *noise, batch=8).shape[0] == 20
    checkpoint.save(tmp_path / "x.safetensors", training.state(), {})
    checkpoint.match(checkpoint.load(tmp_path / "x.safetensors")[0], training.state())
    assert on_driver.faults() == []


def copy(to, source, size, kind):
    cuda.cupy().cuda.runtime.memcpyAsync(to, source, size, kind, cuda.cupy().cuda.get_current_stream().ptr)


def a_copy(x):
    host = np.zeros(x.shape, x.dtype)  # not by CuPy's own functions: they see the capture, and refuse
    copy(x.data.ptr, host.ctypes.data, host.nbytes, 1)


def a_copy_home(x):
    host = np.zeros(x.shape, x.dtype)
    copy(host.ctypes.data, x.data.ptr, host.nbytes, 2)


def on_another_stream(x):
    with cuda.cupy().cuda.Stream(non_blocking=True):
        x.fill(1)


@pytest.mark.parametrize(
    "fault, said",
    [
        (a_copy, "a copy from the host while a stream captures"),
        (a_copy_home, "a copy to the host while a stream captures"),
        (lambda x: cuda.cupy().empty(12345), "cudaMalloc while a stream captures"),
        (lambda x: cuda.cupy().cuda.runtime.deviceSynchronize(), "cudaDeviceSynchronize while a stream captures"),
        (lambda x: cuda.cupy().cuda.runtime.mallocManaged(64), "cudaMallocManaged: not in this driver"),
        (on_another_stream, "kernel cupy_fill on another stream than the one that captures"),
    ],
)
def test_what_must_not_happen_in_a_recorded_step_is_noticed(gpu, fault, said):
    x = gpu.cupy.zeros(5)
    x.fill(1)  # its kernel is loaded

    def step():
        x.fill(2)
        fault(x)

    graph = cuda.Graph(step)
    with pytest.raises(Exception, match="cudaError|CUDA_ERROR"):
        graph._record()
    assert said in on_driver.faults()


def test_a_node_more_is_counted(gpu):
    x, nodes = gpu.cupy.zeros(5), []
    for launches in (3, 4):
        graph = cuda.Graph(lambda: [x.fill(i) for i in range(launches)])  # noqa: B023
        nodes.append(counted(graph._record)["nodes"])
    assert nodes == [3, 4]
