"""The emulation of a GPU is itself tested: with broken kernels, each of which has to be reported, and where."""

import gc
import re
from pathlib import Path

import numpy as np
import pytest
from emulation import compiler, cublas_stand_in
from emulation import cupy_stand_in as cp

pytestmark = pytest.mark.skipif(not compiler.available(), reason="no g++ to emulate a GPU with")

BROKEN = (Path(compiler.__file__).parent / "broken.cu").read_text()
f4, i4 = np.float32, np.int32


@pytest.fixture(autouse=True)
def settings(monkeypatch):
    for name, value in vars(cp.settings).items():
        monkeypatch.setattr(cp.settings, name, value)
    stream = cp.Stream(non_blocking=True).use()
    yield cp.settings
    assert not stream.is_capturing()
    cp.Stream.null.use()


def kernel(name):
    return cp.RawModule(code='#line 1 "broken.cu"\n' + BROKEN).get_function(name)


def launch(name, blocks, threads, *args, shared=0):
    kernel(name)((blocks,), (threads,), args, shared_mem=shared)


def report(name, blocks, threads, *args, shared=0, within=None):
    """What is said of the kernel; it has to name a line of it, or of the function `within`, that says BUG."""
    with pytest.raises(cp.EmulationError) as error:
        launch(name, blocks, threads, *args, shared=shared)
    file, line, text = str(error.value).removeprefix(f"{name}: ").split(":", 2)
    before, here = BROKEN.split("\n")[: int(line)], BROKEN.split("\n")[int(line) - 1]
    assert file == "broken.cu" and "BUG" in here
    assert f" {within or name}(" in [text for text in before if text.endswith("{") and "__" in text][-1]
    return text


def some(*shape):
    return cp.asarray(np.random.default_rng(0).standard_normal(shape).astype(f4))


# ---- Kernels

UNWRITTEN = "read of shared memory that the block has not written"
RACE = f"race: .* of shared memory, after a (read|write) by thread .* of block 0|{UNWRITTEN}"


@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
@pytest.mark.parametrize(
    "name, blocks, threads, args, what",
    [
        ("missing_barrier", 1, 64, (64, 64), RACE),
        ("missing_second_barrier", 1, 64, (128, 64, 128), RACE),
        ("missing_syncwarp", 1, 32, (32,), RACE),
        ("shuffle_is_no_fence", 1, 32, (32,), RACE),
        ("missing_dynamic_barrier", 1, 64, (64,), RACE),
        ("uninitialised_shared", 1, 32, (32,), UNWRITTEN),
        ("lost_update", 1, 2, (1,), "race: .* of global memory, after a write by thread [01] of block 0"),
        ("lost_update", 2, 1, (1,), "race: .* of global memory, after a write by thread 0 of block [01]"),
        ("block_order", 4, 32, (4,), "race: .* of global memory"),
        ("divergent_barrier", 1, 32, (32,), "divergent __syncthreads: others wait at broken.cu:[0-9]+ "),
        ("early_return", 1, 32, (32, 20), r"waits for a thread that has returned .*thread \(20, 0, 0\)"),
        ("write_past_end", 4, 32, (40, 40), r"out-of-bounds write of 4 bytes \[block \(1, 0, 0\), thread \(8, 0, 0\)"),
        ("read_past_end", 1, 32, (32, 32, 32), r"out-of-bounds read of 4 bytes .*thread \(31, 0, 0\)"),
        ("read_before_start", 1, 32, (32, 32, 32), r"out-of-bounds read of 4 bytes .*thread \(0, 0, 0\)"),
        ("past_dynamic_shared", 1, 64, (64,), r"out-of-bounds write of 4 bytes .*thread \(63, 0, 0\)"),
        ("past_a_row", 1, 32, (32,), "index out of the array's bounds"),
        ("copy_without_barrier", 1, 64, (64, 64), RACE),
        ("copy_over_what_is_read", 1, 64, (64, 64), RACE),
        ("misaligned", 1, 8, (64, 8), "misaligned access"),
        ("overflow", 1, 8, (8, 50000), "integer overflow"),
        ("division_by_zero", 1, 8, (8, 0), "integer division by zero"),
        ("lanes_not_there", 1, 32, (32,), "waits for lanes of its mask ffffffff that never come"),
        ("lane_not_in_mask", 1, 32, (32,), "is not in the mask 0000ffff"),
        ("two_shuffles", 1, 32, (32,), r"lane \d+ is at a warp function with mask ffffffff, lane \d+ at broken.cu:"),
    ],
)
def test_broken_kernels_are_reported(settings, order, name, blocks, threads, args, what):
    settings.checked, settings.order = True, order
    pointers = 2 if name in ("missing_barrier", "missing_second_barrier", "misaligned") else 1
    pointers += "read_" in name or "copy_" in name
    args = [some(n) for n in args[:pointers]] + [i4(n) for n in args[pointers:]]
    shared = {"missing_dynamic_barrier": 256, "past_dynamic_shared": 256}.get(name, 0)
    text = report(name, blocks, threads, *args, shared=shared)
    assert re.search(what, text), text


def test_shared_memory_in_templates_is_checked_and_poisoned_too(settings):
    x, y = some(64), cp.empty(64, f4)
    launch("missing_barrier_in_a_template", 1, 64, x, y)
    assert np.isnan(y.get()).any()
    settings.checked = True
    assert re.search(RACE, report("missing_barrier_in_a_template", 1, 64, x, y, within="turn"))


def test_unchecked_kernels_report_barriers_that_never_open():
    report("divergent_barrier", 1, 32, some(32))
    report("early_return", 1, 32, some(32), i4(20))
    report("lanes_not_there", 1, 32, some(32))
    with pytest.raises(cp.EmulationError, match="wrote before or after an array"):
        launch("write_past_end", 4, 32, some(40), i4(40))


def test_after_a_report_the_machine_still_works():
    for _ in range(3):
        report("early_return", 2, 64, some(64), i4(20))
        x, y = some(64), cp.empty(64, f4)
        launch("swap_neighbours", 1, 64, x, y)
        np.testing.assert_array_equal(y.get().reshape(32, 2), x.get().reshape(32, 2)[:, ::-1])


def test_the_order_of_threads_shows_what_depends_on_it(settings):
    x, results = some(64), []
    for settings.order in ("forward", "reverse", "random"):
        y = cp.empty(64, f4)
        launch("missing_barrier", 1, 64, x, y)
        results.append(y.get())
    assert all(np.isnan(y).any() for y in results)  # it read what nobody had written yet
    assert len({y.tobytes() for y in results}) == 3


def test_the_random_order_is_the_same_for_a_seed(settings):
    def result(seed):
        settings.seed, y = seed, cp.zeros(8, f4)
        launch("block_order", 8, 1, y)
        return y.get().tolist()

    assert result(1) == result(1) != result(2)


def test_what_is_undefined_is_nan():
    y = cp.empty(32, f4)
    assert np.isnan(y.get()).all()
    launch("uninitialised_shared", 1, 32, y)
    assert np.flatnonzero(np.isnan(y.get())).tolist() == [31]
    y = cp.empty(16, f4)
    launch("lane_beyond_the_block", 1, 16, y)
    assert np.flatnonzero(np.isnan(y.get())).tolist() == [15]


@pytest.mark.parametrize("groups, done", [(0, 4), (1, 2), (2, 0)])
def test_a_copy_under_way_is_nan_until_the_wait_that_covers_it(groups, done):
    x, y = some(5, 32), cp.empty((5, 32), f4)
    launch(f"wait_for_all_but_{groups}", 1, 32, x, y)
    wanted = np.where([[i < done] for i in range(5)], x.get(), np.nan)  # the fifth is in a group that was never ended
    if done > 1:
        wanted[1] = 0  # not wanted: zeros
    np.testing.assert_array_equal(y.get(), wanted.astype(f4))


def test_matrices_are_loaded_by_the_rule_of_ldmatrix():
    x, y = cp.asarray(np.arange(128, dtype=np.uint32)), cp.empty((4, 32), np.uint32)
    launch("load_matrices", 1, 32, x, y)
    assert y.get().tolist() == np.arange(128).reshape(4, 32).tolist()  # row g, element t of (8, 4) is number 4 g + t


def test_numbers_too_small_for_a_float_are_zero_as_cupy_has_kernels_compiled():
    x, y = cp.asarray(np.array([3e-38, 2e-38, 1e-38, -2e-38], f4)), cp.empty(4, f4)
    launch("half", 1, 4, x, y)
    assert y.get().tolist() == [f4(1.5e-38).item(), 0, 0, 0]  # the third was too small as it came
    assert np.float32(2e-38) * np.float32(0.5) > 0  # elsewhere it is not


@pytest.mark.parametrize("checked", [False, True])
@pytest.mark.parametrize("order", ["forward", "reverse", "random"])
class TestCorrectKernels:
    @pytest.fixture(autouse=True)
    def _settings(self, settings, checked, order):
        settings.checked, settings.order = checked, order

    def test_atomics(self):
        y = cp.zeros(1, i4)
        launch("count", 3, 64, y)
        assert y.item() == 192

    def test_barriers(self):
        x, y = some(64), cp.empty(64, f4)
        launch("swap_neighbours", 1, 64, x, y)
        np.testing.assert_array_equal(y.get().reshape(32, 2), x.get().reshape(32, 2)[:, ::-1])

    def test_warp_functions(self):
        y = cp.empty(224, i4)
        launch("shuffles", 1, 32, y)
        i = np.arange(32)
        expected = [i * 0 + 5, np.where(i < 3, i, i - 3), np.where(i % 8 < 5, i + 3, i), i ^ 16, i * 0 + 7, i * 0 + 3]
        np.testing.assert_array_equal(y.get().reshape(7, 32), [*expected, np.where(i % 2, 31, 30)])

    def test_grids(self):
        y = cp.empty(2 * 3 * 4 * 5 * 3 * 2, i4)
        kernel("grid")((4, 3, 2), (5, 3, 2), (y,))
        z, y_, x, tz, ty, tx = np.indices((2, 3, 4, 2, 3, 5))
        np.testing.assert_array_equal(y.get(), (10000 * z + 1000 * y_ + 100 * x + 30 * tz + 10 * ty + tx).ravel())

    def test_mma(self):
        a, b, d = some(16, 8), some(8, 8), cp.empty((16, 8), f4)
        launch("mma", 1, 32, a, b, d)
        rounded = cublas_stand_in._tf32(a.get()).astype(float) @ cublas_stand_in._tf32(b.get())
        np.testing.assert_allclose(d.get(), rounded, rtol=1e-5, atol=1e-6)
        assert np.abs(d.get() - a.get() @ b.get()).max() > 1e-5  # it did round


def test_a_launch_that_cuda_refuses(settings):
    for blocks, threads in ((0, 32), (1, 0), (1, 1025)):
        with pytest.raises(cp.EmulationError, match="CUDA_ERROR_INVALID_VALUE"):
            launch("count", blocks, threads, cp.zeros(1, i4))
    with pytest.raises(cp.EmulationError, match="CUDA_ERROR_INVALID_VALUE"):
        launch("missing_dynamic_barrier", 1, 64, some(64), shared=50000)
    count = kernel("missing_dynamic_barrier")
    count.max_dynamic_shared_size_bytes = 50000
    count((1,), (64,), (some(64),), shared_mem=50000)
    with pytest.raises(cp.EmulationError, match="sm_75"):
        count.max_dynamic_shared_size_bytes = 70000
    with pytest.raises(cp.EmulationError, match='no extern "C" __global__ void scatter'):
        kernel("scatter")


def test_arguments_have_the_kernels_types():
    good = [np.bool_(True), np.uint8(1), cp.zeros(2, np.int64), np.float64(1), cp.zeros(2, np.uint64), cp.zeros(8, f4)]
    kernel("types")((1,), (1,), good)
    kernel("types")((1,), (1,), [*good[:2], np.uint64(0), *good[3:]])  # a null pointer
    for i, bad, what in (
        (0, 1, "argument 0 of types is int64 1, the kernel takes bool"),
        (1, np.int8(1), "argument 1 of types is int8 1, the kernel takes uint8"),
        (1, cp.zeros(1, np.uint8), "argument 1 of types is a uint8 array, the kernel takes uint8"),
        (2, cp.zeros(2, i4), "argument 2 of types is a int32 array, the kernel takes int64*"),
        (2, np.zeros(2, np.int64), "argument 2 of types lies in the host's memory"),
        (2, np.uint64(8), "argument 2 of types is uint64 8, the kernel takes int64*"),
        (2, cp.zeros(4, np.int64)[::2], "argument 2 of types is not contiguous"),
        (2, None, "argument 2 of types is a NoneType"),
        (3, f4(1), "argument 3 of types is float32 1.0, the kernel takes float64"),
        (4, cp.zeros(2, f4), "argument 4 of types is a float32 array, the kernel takes float32**"),
    ):
        with pytest.raises(TypeError, match=what.replace("*", r"\*")):
            kernel("types")((1,), (1,), [bad if k == i else value for k, value in enumerate(good)])
    with pytest.raises(TypeError, match="types takes 6 arguments .*, not 5"):
        kernel("types")((1,), (1,), good[:5])


def test_a_text_that_does_not_compile():
    with pytest.raises(compiler.CompileError, match="k.cu:2:.*undeclared|k.cu:2:.*not declared"):
        cp.RawModule(code='#line 1 "k.cu"\nextern "C" __global__ void f(float* y) {\n *y = z; }').get_function("f")


# ---- Arrays


def test_arrays_are_not_numpys_and_do_not_turn_into_them():
    x = some(2, 3)
    assert not isinstance(x, np.ndarray)
    for convert in (np.asarray, np.array, np.ascontiguousarray, np.float32):
        with pytest.raises(TypeError, match="Implicit conversion to a NumPy array is not allowed"):
            convert(x)
    for mix in (lambda h: x + h, lambda h: h + x, lambda h: np.add(x, h), lambda h: np.maximum(x, x, out=h)):
        with pytest.raises(TypeError, match="host"):
            mix(np.ones((2, 3), f4))
    with pytest.raises(ValueError, match="non-scalar numpy.ndarray"):
        x[...] = np.ones((2, 3), f4)
    with pytest.raises(TypeError, match="where"):
        x.sum(where=True)
    with pytest.raises(TypeError, match="no implementation found"):
        np.fft.fft(x)


def test_everything_computed_is_a_gpu_array():
    h = np.random.default_rng(0).standard_normal((2, 3, 4)).astype(f4)
    x = cp.asarray(h)
    for compute in (
        lambda x: x * 2 - 1 / x,
        lambda x: x < 3.0,
        lambda x: np.float32(2) ** x,
        lambda x: np.maximum(x, 0.0),
        lambda x: x.sum((0, 2), keepdims=True),
        lambda x: x.max(),
        lambda x: x.argmax(1),
        lambda x: x.astype(np.float64).mean(0),
        lambda x: x.transpose(2, 0, 1).reshape(4, 6),
        lambda x: x.swapaxes(0, 1)[1:, None, ::-1],
        lambda x: x[1, 2, 3],
        lambda x: x[x > 0],
        lambda x: np.concatenate([x, x], axis=1),
        lambda x: np.where(x > 0, x, -1),
        lambda x: np.zeros_like(x),
        lambda x: np.broadcast_to(x, (5, 2, 3, 4)),
        lambda x: x.ravel().T,
        lambda x: x @ x.swapaxes(1, 2),
    ):
        y, expected = compute(x), compute(h)
        assert type(y) is cp.ndarray and y.dtype == expected.dtype and y.shape == expected.shape
        np.testing.assert_array_equal(y.get(), expected)
    for part in np.split(x, 3, axis=1):
        assert part.shape == (2, 1, 4) and type(part) is cp.ndarray
    assert np.result_type(x, np.float64) == np.float64 and np.shape(x) == (2, 3, 4)


def test_views_share_memory_and_copies_do_not():
    x = cp.zeros((2, 3), f4)
    x[1][2] = 5
    x.reshape(3, 2)[0, 1] = 7
    x.T[0, 0] += 1
    np.copyto(x[:, 1], 4.0)
    np.testing.assert_array_equal(x.get(), [[1, 4, 0], [0, 4, 5]])
    y = x.copy()
    y.fill(0)
    y.set(np.full((2, 3), 9, f4))
    assert x[0, 0].item() == 1 and y[0, 0].item() == 9 and x.sum().item() == 14
    assert (y.data.ptr - x.data.ptr) % 256 == 0 and x[1].data.ptr == x.data.ptr + 12


def test_indices_on_the_gpu():
    h, i = np.arange(12.0).reshape(4, 3), np.array([2, 0, 2])
    x, k = cp.asarray(h), cp.asarray(i)
    np.testing.assert_array_equal(x[k].get(), h[i])
    np.testing.assert_array_equal(x[:, k].get(), h[:, i])
    np.testing.assert_array_equal(x[np.array([1, 3])].get(), h[[1, 3]])
    x[k] = 0.0
    h[i] = 0
    np.testing.assert_array_equal(x.get(), h)


def test_memory_runs_out(settings):
    gc.collect()
    settings.memory = cp.Block.in_use + 1000
    x = cp.empty(200, f4)
    with pytest.raises(cp.cuda.memory.OutOfMemoryError, match="Out of memory allocating 800 bytes"):
        cp.empty(200, f4)
    del x
    cp.empty(200, f4)


# ---- Graphs


def record(function, pool=None):
    """function() as a graph, in a pool of its own if one is given."""
    stream = cp.Stream.current
    with cp.using_allocator((pool or cp.default_pool).malloc):
        stream.begin_capture()
        try:
            function()
        finally:
            graph = stream.end_capture()
    return graph


def test_a_graph_runs_when_launched_and_not_before():
    x, y, n = some(64), cp.zeros(64, f4), cp.zeros(1, i4)
    neighbours, count = kernel("swap_neighbours"), kernel("count")
    expected = x.get()

    def step():
        z = cp.empty(64, f4)
        neighbours((1,), (64,), (x, z))
        y[...] = np.maximum(z * 2.0, z) + x.mean() + cp.ones(64, f4)
        count((1,), (1,), (n,))

    pool = cp.MemoryPool()
    graph = record(step, pool)
    assert n.item() == 0 and not y.get().any()
    for launches in (1, 2):
        graph.launch()
        swapped = expected.reshape(32, 2)[:, ::-1].ravel()
        np.testing.assert_allclose(y.get(), np.maximum(2 * swapped, swapped) + expected.mean() + 1, rtol=1e-5)
        assert n.item() == launches
        x *= 3.0
        expected = x.get()


def test_replays_find_nan_in_memory_that_they_do_not_write():
    y, once, pool = cp.zeros(4, f4), [], cp.MemoryPool()

    def step():
        z = cp.empty(4, f4)
        once.append(z)  # stays alive
        y[...] += z

    graph = record(step, pool)
    once[0].fill(1.0)
    graph.launch()
    assert np.isnan(y.get()).all()


@pytest.mark.parametrize(
    "what",
    [
        lambda x, h: x.get(),
        lambda x, h: float(x.sum()),
        lambda x, h: x.max().item(),
        lambda x, h: bool(x[0] > 0),
        lambda x, h: cp.asarray(h),
        lambda x, h: x.set(h),
        lambda x, h: x[[0, 1]],
        lambda x, h: x[x > 0],
        lambda x, h: x @ x,
        lambda x, h: np.dot(x, x),
        lambda x, h: np.concatenate([x] * 9),
        lambda x, h: cp.Stream.current.synchronize(),
        lambda x, h: cp.Device(0).synchronize(),
        lambda x, h: cp.RawModule(code=BROKEN).get_function("count"),
    ],
)
def test_what_cannot_be_recorded_is_refused(what):
    x, h = some(3), np.ones(3, f4)
    with pytest.raises(RuntimeError, match="capturing"):
        record(lambda: what(x, h))


def test_capture_needs_a_stream_of_its_own_and_ends_once():
    with pytest.raises(RuntimeError, match="default"):
        cp.Stream.null.begin_capture()
    stream = cp.Stream.current
    stream.begin_capture()
    with pytest.raises(RuntimeError, match="captures already"):
        stream.begin_capture()
    stream.end_capture()
    with pytest.raises(RuntimeError, match="does not capture"):
        stream.end_capture()


def test_a_graph_on_freed_memory_is_reported():
    x, y = some(8), cp.zeros(8, f4)

    def step():
        y[...] = x * 2.0

    with pytest.raises(cp.EmulationError, match="memory that was freed"):
        record(step).launch()  # x * 2 lay in everybody's pool
    pool = cp.MemoryPool()
    graph = record(step, pool)
    graph.launch()
    np.testing.assert_array_equal(y.get(), 2 * x.get())
    del pool
    with pytest.raises(cp.EmulationError, match="memory that was freed"):
        graph.launch()
    pool = cp.MemoryPool()
    graph = record(step, pool)
    x = None
    with pytest.raises(cp.EmulationError, match="memory that was freed"):
        graph.launch()


def test_structs_come_by_value_and_a_graph_knows_what_they_point_at(settings):
    settings.checked = True
    x, y, z = some(8), some(8), cp.empty(8, f4)
    pair = np.array((x.data.ptr, y.data.ptr + 4, 7), [("x", np.uint64), ("y", np.uint64), ("n", np.int32, 2)])
    launch("sum_of_two", 1, 1, pair, z)
    np.testing.assert_array_equal(z.get()[:7], x.get()[:7] + y.get()[1:])
    module = cp.RawModule(code=BROKEN)
    module.get_function("count")
    graph = record(lambda: module.get_function("sum_of_two")((1,), (1,), (pair, z)))
    graph.launch()
    del y
    with pytest.raises(cp.EmulationError, match="memory that was freed"):
        graph.launch()
    with pytest.raises(cp.EmulationError, match="out-of-bounds read"):
        launch("sum_of_two", 1, 1, pair, z)
    with pytest.raises(TypeError, match="host"):
        launch("sum_of_two", 1, 1, pair["x"], z)


def test_a_pool_reuses_what_was_freed():
    pool = cp.MemoryPool()
    with cp.using_allocator(pool.malloc):
        first = cp.zeros(8, f4).data.ptr
        again = cp.empty(8, f4)
        assert again.data.ptr == first and np.isnan(again.get()).all()
        assert cp.empty(8, f4).data.ptr != first
    assert cp.empty(8, f4).data.ptr != first


# ---- cuBLAS


def test_cublas_wants_its_workspace_and_its_types():
    from minisagan import cuda

    x = some(4, 4)
    library = cublas_stand_in.Cublas()
    library.cublasSetStream_v2(None, cuda.ctypes.c_void_p(cp.Stream.current.ptr))
    gemm, one = library.cublasGemmStridedBatchedEx, cuda.ctypes.byref(cuda.ctypes.c_float(1))
    args = [1, 0, 0, 4, 4, 4, one, x.data.ptr, 0, 4, 0, x.data.ptr, 0, 4, 0, one, x.data.ptr, 0, 4, 0, 1, 68, -1]
    with pytest.raises(TypeError, match="needs its C types"):
        gemm(*args)
    gemm.argtypes = cublas_stand_in._SIGNATURE
    with pytest.raises(cp.EmulationError, match="no workspace"):
        gemm(*args)
    work = cp.empty(1024, np.uint8)
    library.cublasSetWorkspace_v2(None, cuda.ctypes.c_void_p(work.data.ptr), cuda.ctypes.c_size_t(1024))
    assert gemm(*args) == cublas_stand_in.SUCCESS
    assert gemm(*args[:9], 3, *args[10:]) == cublas_stand_in.INVALID_VALUE  # fewer than the rows
    with pytest.raises(cp.EmulationError, match="not an array's"):
        gemm(*args[:7], x.data.ptr + 4, *args[8:])
    del work
    with pytest.raises(cp.EmulationError, match="not an array's"):
        gemm(*args)
