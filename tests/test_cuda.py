"""minisagan.cuda on an emulation, and on a GPU where there is one."""

import numpy as np
import pytest

from minisagan import cuda

KERNELS = """
extern "C" __global__ void row_sums(const real* x, real* y, int n) {
  __shared__ real shared[32];
  real sum = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[blockIdx.x * n + i];
  sum = block_sum(sum, shared);
  if (threadIdx.x == 0) y[blockIdx.x] = sum;
}

extern "C" __global__ void scale(const real* x, real* y, const long long* offset, real factor, int n) {
  int i = THREAD;
  if (i < n) y[i] = factor * x[i] + (offset ? real(*offset) : real(0));
}
"""


@pytest.fixture
def kernels(tmp_path):
    (tmp_path / "toy.cu").write_text(KERNELS)
    return cuda.Kernels(tmp_path / "toy.py")


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threads, n", [(32, 1), (32, 100), (256, 77), (1024, 3000)])
def test_block_sum(gpu, kernels, dtype, threads, n):
    x = np.random.default_rng(0).standard_normal((3, n)).astype(dtype)
    y = gpu.cupy.empty(3, dtype)
    kernels("row_sums", 3, threads, gpu.put(x), y, n)
    np.testing.assert_allclose(gpu.get(y), x.sum(1), rtol=1e-4 if dtype == np.float32 else 1e-12)


def test_scale(gpu, kernels):
    x = np.arange(1000, dtype=np.float32)
    y = gpu.cupy.empty(1000, np.float32)
    kernels("scale", cuda.blocks_for(1000), 256, gpu.put(x), y, None, 0.5, 1000)
    np.testing.assert_array_equal(gpu.get(y), x / 2)
    kernels("scale", cuda.blocks_for(1000), 256, gpu.put(x), y, gpu.put(np.array(7)), 0.5, 1000)
    np.testing.assert_array_equal(gpu.get(y), x / 2 + 7)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_matmul(gpu, dtype):
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((5, 3, 4)).astype(dtype), rng.standard_normal((6, 4)).astype(dtype)
    y = cuda.matmul(gpu.put(a), gpu.put(b).T)
    np.testing.assert_allclose(gpu.get(y), a @ b.T, rtol=1e-5)


def test_graph(gpu, kernels):
    n = 300
    x, state = gpu.put(np.arange(n, dtype=np.float32)), gpu.cupy.zeros(n, np.float32)
    w = gpu.put(np.eye(n, dtype=np.float32))

    def step():
        y = gpu.cupy.empty(n, np.float32)
        kernels("scale", 2, 256, x, y, None, 2.0, n)
        y = cuda.matmul(y[None], w)[0]
        state[...] += y + 1.0

    graph = cuda.Graph(step)
    for _ in range(5):
        graph()
    np.testing.assert_array_equal(gpu.get(state), 5 * (2 * np.arange(n) + 1))
