"""Noise on the GPU: the integers of the CPU, its normals to 1 ulp, a step that is read where it lies."""

import numpy as np
import pytest

from minisagan import cuda, rng
from minisagan.errors import UsageError
from minisagan.rng import Stream

TOP = 2**64 - 1
SIZES = [(1,), (2,), (3,), (4,), (5,), (7, 3), (1025,)]  # some end in the middle of a block of four words


@pytest.mark.parametrize("seed", [0, 0xDEADBEEF, TOP])
@pytest.mark.parametrize("step", [0, 1, 2**40])
def test_uniform_numbers_are_the_cpus(gpu, seed, step):
    for shape in SIZES:
        x = rng.uniform(shape, seed, Stream.FLIP, gpu.put(np.int64(step)))
        np.testing.assert_array_equal(gpu.get(x), rng.uniform(shape, seed, Stream.FLIP, step), strict=True)


@pytest.mark.parametrize("seed, step", [(0, 0), (5, 77), (TOP, 2**40)])
def test_normals_agree_to_1_ulp(gpu, seed, step):
    for shape in [*SIZES, (64, 128)]:
        x = gpu.get(rng.normal(shape, seed, Stream.Z_D, gpu.put(np.int64(step))))
        assert x.dtype == np.float32 and x.shape == shape
        np.testing.assert_array_max_ulp(x, rng.normal(shape, seed, Stream.Z_D, step), maxulp=1)


@pytest.mark.parametrize("classes", [1, 10, 1000, 2**32 - 1])
def test_labels_are_the_cpus(gpu, classes):
    for count in (1, 4, 6, 1025):
        y = rng.labels(count, classes, 3, Stream.LABELS_G, gpu.put(np.int64(9)))
        np.testing.assert_array_equal(gpu.get(y), rng.labels(count, classes, 3, Stream.LABELS_G, 9), strict=True)


def test_a_graph_draws_by_the_step_that_it_finds(gpu):
    step, x = gpu.put(np.int64(0)), gpu.cupy.zeros((3, 5), np.float32)

    def draw():
        x[...] = rng.normal(x.shape, 1, Stream.Z_G, step)
        step[...] += 1

    graph = cuda.Graph(draw)
    for k in range(cuda.WARM_UP + 3):
        graph()
        np.testing.assert_array_max_ulp(gpu.get(x), rng.normal(x.shape, 1, Stream.Z_G, k), maxulp=1)


def test_what_cannot_be_is_refused_there_too(gpu):
    step = gpu.put(np.int64(0))
    with pytest.raises(UsageError, match="seed must be"):
        rng.normal((4,), -1, 0, step)
    with pytest.raises(UsageError, match="classes"):
        rng.labels(4, 0, 0, Stream.LABELS_D, step)
