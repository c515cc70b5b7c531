"""minisagan.cuda on an emulation, and on a GPU where there is one."""

import gc

import numpy as np
import pytest

from minisagan import cuda

KERNELS = """
extern "C" __global__ void row_sums(const real* x, real* y, int n) {
  __shared__ real shared[WARP];
  real sum = 0, squares = 0;
  for (int i = threadIdx.x; i < n; i += blockDim.x) sum += x[blockIdx.x * n + i];
  sum = block_sum(sum, shared);
  for (int i = threadIdx.x; i < n; i += blockDim.x) squares += x[blockIdx.x * n + i] * x[blockIdx.x * n + i];
  squares = block_sum(squares, shared);
  y[blockIdx.x * blockDim.x + threadIdx.x] = sum + 3 * squares;
}

extern "C" __global__ void total(const real* x, real* each, real* y, unsigned* counter) {
  int blocks = gridDim.x * gridDim.y, block = blockIdx.y * gridDim.x + blockIdx.x, threads = blockDim.x * blockDim.y;
  int i = threadIdx.y * blockDim.x + threadIdx.x;
  each[block * threads + i] = 2 * x[block * threads + i];
  if (!last_block(counter, blocks)) return;
  real sum = 0;
  for (int b = 0; b < blocks; b++) sum += each[b * threads + threads - 1 - i];
  y[i] = sum;
}

extern "C" __global__ void affine(const real* x, real* y, const long long* offset, real factor, int n) {
  int i = THREAD;
  if (i < n) y[i] = factor * x[i] + (offset ? real(*offset) : real(0));
}

extern "C" __global__ void says_tf32(int* y) { *y = TF32; }
extern "C" __global__ void says_tf32_and_real(int* y, const real* x) { *y = TF32; }
"""


@pytest.fixture
def kernels(gpu, tmp_path):
    (tmp_path / "toy.cu").write_text(KERNELS)
    return cuda.Kernels(tmp_path / "toy.py")


def normal(*shape, dtype=np.float32):
    return np.random.default_rng(0).standard_normal(shape).astype(dtype)


# ---- Kernels


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize("threads, n", [(32, 1), (32, 100), (96, 77), (1024, 3000)])
def test_block_sum_gives_every_thread_the_sum(gpu, kernels, dtype, threads, n):
    x, y = normal(2, n, dtype=dtype), gpu.cupy.empty((2, threads), dtype)
    kernels("row_sums", 2, threads, gpu.put(x), y, n)
    expected = np.repeat(x.sum(1)[:, None] + 3 * (x * x).sum(1)[:, None], threads, axis=1)
    np.testing.assert_allclose(gpu.get(y), expected, rtol=1e-5 if dtype == np.float32 else 1e-13)


@pytest.mark.parametrize("blocks", [(1, 1), (3, 5)])
def test_last_block_reads_what_all_wrote_and_leaves_the_counter_at_0(gpu, kernels, blocks):
    count = blocks[0] * blocks[1]
    x, each, y = normal(count, 64), gpu.cupy.empty((count, 64), np.float32), gpu.cupy.empty(64, np.float32)
    for _ in range(3):
        y[...] = np.float32(np.nan)
        kernels("total", blocks, (8, 8), gpu.put(x), each, y, cuda.counters())
        np.testing.assert_allclose(gpu.get(y), 2 * x.sum(0)[::-1], rtol=1e-5, atol=1e-5)
        assert not gpu.get(cuda.counters()).any()


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_numbers_arrive_as_int_and_real_and_none_as_null(gpu, kernels, dtype):
    x, y = normal(1000, dtype=dtype), gpu.cupy.empty(1000, dtype)
    kernels("affine", cuda.blocks_for(1000), 256, gpu.put(x), y, None, 0.3, 1000)
    np.testing.assert_array_equal(gpu.get(y), dtype(0.3) * x)
    kernels("affine", (cuda.blocks_for(1000),), (256,), gpu.put(x), y, gpu.put(np.array(7)), dtype(2), np.int32(1000))
    np.testing.assert_allclose(gpu.get(y), 2 * x + 7, rtol=1e-6)


def test_an_array_with_strides_is_refused(gpu, kernels):
    x, y = gpu.put(normal(20, 10)), gpu.cupy.empty(100, np.float32)
    with pytest.raises(ValueError, match=r"affine was given an array of shape \(10, 10\) that is not contiguous"):
        kernels("affine", 1, 256, x[::2], y, None, 1.0, 100)
    kernels("affine", 1, 256, x[5:15], y, None, 1.0, 100)
    np.testing.assert_array_equal(gpu.get(y), gpu.get(x)[5:15].ravel())


@pytest.mark.parametrize("tf32, of_float32, of_float64", [(False, 0, 0), (True, 1, 0)])
def test_kernels_are_compiled_with_and_without_tf32(gpu, kernels, monkeypatch, tf32, of_float32, of_float64):
    monkeypatch.setattr(cuda, "tf32", tf32)
    y = gpu.cupy.empty(1, np.int32)
    for dtype, expected in ((np.float32, of_float32), (np.float64, of_float64)):
        kernels("says_tf32_and_real", 1, 1, y, gpu.cupy.zeros(1, dtype))
        assert y.item() == expected
    kernels("says_tf32", 1, 1, y)  # no array of floats: float32
    assert y.item() == of_float32


def test_blocks_for():
    assert [cuda.blocks_for(n) for n in (0, 1, 256, 257)] == [1, 1, 1, 2]
    assert cuda.blocks_for(100, 32) == 4


# ---- Products


def turn(x):
    """A view of the transpose of x, laid out as x is."""
    return x.swapaxes(-1, -2)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
@pytest.mark.parametrize(
    "a, b",
    [
        ((3, 4), (4, 5)),
        ((1, 4), (4, 1)),
        ((3, 1), (1, 5)),
        ((2, 3, 4), (4, 5)),
        ((3, 4), (2, 4, 5)),
        ((2, 3, 4), (2, 4, 5)),
        ((6, 1, 3, 4), (2, 4, 5)),
        ((2, 1, 4), (1, 4, 1)),
    ],
)
def test_matmul_of_any_layout(gpu, dtype, a, b):
    tolerance = 1e-5 if dtype == np.float32 else 1e-13
    x, y = normal(*a, dtype=dtype), normal(*b, dtype=dtype) + 1
    xs = (gpu.put(x), turn(gpu.put(turn(x).copy())), gpu.put(np.repeat(x, 2, -1))[..., ::2])
    ys = (gpu.put(y), turn(gpu.put(turn(y).copy())), gpu.put(np.repeat(y, 2, -2))[..., ::2, :])
    for i, left in enumerate(xs):
        for k, right in enumerate(ys):
            out = cuda.matmul(left, right)
            assert out.dtype == dtype and out.flags.c_contiguous
            np.testing.assert_allclose(gpu.get(out), x @ y, rtol=tolerance, atol=tolerance, err_msg=f"layouts {i} {k}")


def test_tf32_rounds_the_operands_of_float32_only(gpu, monkeypatch):
    x, y = normal(16, 64), normal(64, 16)

    def error(dtype):
        a, b = x.astype(dtype), y.astype(dtype)
        return abs(gpu.get(cuda.matmul(gpu.put(a), gpu.put(b))) - x.astype(float) @ y).max()

    assert error(np.float32) < 1e-5
    monkeypatch.setattr(cuda, "tf32", True)
    assert 1e-4 < error(np.float32) < 3e-2  # a product of rounded numbers is off by up to 2 x 2^-11
    assert error(np.float64) < 1e-13


def test_matmul_refuses_what_does_not_fit(gpu):
    x = gpu.put(normal(3, 4))
    with pytest.raises(ValueError, match=r"matmul of float32 \(3, 4\) and float32 \(3, 4\)"):
        cuda.matmul(x, x)
    with pytest.raises(ValueError, match=r"matmul of float32 \(3, 4\) and float64 \(4, 3\)"):
        cuda.matmul(x, gpu.put(normal(4, 3, dtype=np.float64)))
    with pytest.raises(ValueError, match="broadcast"):
        cuda.matmul(gpu.put(normal(2, 3, 4)), gpu.put(normal(3, 4, 3)))


# ---- Graphs


def test_a_graph_repeats_the_function_on_state_changed_in_place(gpu, kernels):
    n = 300
    x, t, total = gpu.put(normal(n)), gpu.put(np.zeros(1, np.int64)), gpu.cupy.zeros(n, np.float32)
    w, calls = gpu.put(2 * np.eye(n, dtype=np.float32)), []

    def step():
        calls.append(len(calls))
        t[...] += 1
        y = gpu.cupy.empty(n, np.float32)
        kernels("affine", cuda.blocks_for(n), 256, x, y, t, 3.0, n)
        total[...] += cuda.matmul(y[None], w)[0]

    graph, expected = cuda.Graph(step), np.zeros(n, np.float32)
    for number in range(1, 7):
        if number == 5:
            x[...] = x * 2.0  # what the graph reads may change between its launches
        graph()
        expected += 2 * (3 * gpu.get(x) + number)
        np.testing.assert_allclose(gpu.get(total), expected, rtol=1e-5)
    assert len(calls) == 3 and t.item() == 6  # twice at once, once to record


def test_other_work_does_not_get_a_graphs_memory(gpu):
    total = gpu.cupy.zeros(1000, np.float32)

    def step():
        y = total * 2.0
        y = y + 1.0
        total[...] = y

    graph, held = cuda.Graph(step), []
    for number in range(1, 8):
        graph()
        held.append(gpu.cupy.full(1000, 123.0, np.float32))  # as large as what the graph works in
        np.testing.assert_array_equal(gpu.get(total), 2.0**number - 1)
        assert all((gpu.get(x) == 123).all() for x in held)


def test_graphs_share_memory_and_take_what_other_work_has_freed(gpu):
    if gpu.kind == "gpu":
        pytest.skip("how much memory there is, only the emulation lets a test say")
    gpu.cupy.get_default_memory_pool().free_all_blocks()
    before, size = gpu.cupy.cuda.Device().mem_info[1] - gpu.cupy.cuda.Device().mem_info[0], 1 << 20
    totals = [gpu.cupy.zeros(size // 4, np.float32) for _ in range(2)]

    def adds(total, number):
        def step():
            y = total * 1
            y += number
            total[...] = y

        return step

    first = cuda.Graph(adds(totals[0], 1))
    second = cuda.Graph(adds(totals[1], 10), like=first)
    cached = [gpu.cupy.zeros(size // 4, np.float32) for _ in range(4)]
    del cached  # it is the default pool's now
    gpu.cupy.settings.memory = before + 4 * size
    try:
        for _ in range(cuda.WARM_UP + 2):
            first(), second()
    finally:
        gpu.cupy.settings.memory = 1 << 40
    assert [gpu.get(total)[0] for total in totals] == [4, 40]


def test_a_large_array_is_copied_in_pieces(gpu, monkeypatch):
    sizes, put = [], gpu.cupy.ndarray.set
    if gpu.kind != "gpu":
        monkeypatch.setattr(gpu.cupy.ndarray, "set", lambda self, x: (sizes.append(x.nbytes), put(self, x))[1])
    for x in (normal(100, 7), np.arange(3), normal(0, 5)):
        np.testing.assert_array_equal(gpu.get(cuda.put(x, piece=300)), x, strict=True)
    assert gpu.kind == "gpu" or (max(sizes) <= 300 and len(sizes) > 9)


def test_a_graph_that_could_not_be_recorded_is_not_launched(gpu):
    x, fail = gpu.cupy.zeros(4, np.float32), [True]

    def step():
        x[...] += 1
        if fail[0] and graph.calls == 3:
            raise KeyboardInterrupt
        x[...] += 10

    graph = cuda.Graph(step)
    graph(), graph()
    with pytest.raises(KeyboardInterrupt):
        graph()
    assert gc.isenabled() and not gpu.cupy.cuda.get_current_stream().is_capturing()
    np.testing.assert_array_equal(gpu.get(x), 22)
    graph()  # which is the fourth call, and recorded
    np.testing.assert_array_equal(gpu.get(x), 33)


def test_a_function_that_reads_from_the_gpu_cannot_be_recorded(gpu):
    x = gpu.cupy.zeros(4, np.float32)
    graph = cuda.Graph(lambda: float(x.sum()))
    graph(), graph()
    with pytest.raises(RuntimeError):  # CuPy's CUDARuntimeError is one
        graph()
