"""The emulator itself: arrays that don't mix with NumPy's, barriers, shuffles, graphs, memory."""

import gc

import emulated as stand_in
import emulated_cuda
import numpy as np
import pytest

CODE = r"""
extern "C" __global__ void twice(int count, const float* x, float* y) {
    int i = blockIdx.x * blockDim.x + threadIdx.x;
    if (i < count) y[i] = 2 * x[i];
}
extern "C" __global__ void reverse(const float* x, float* y) {
    __shared__ float all[64];
    all[threadIdx.x] = x[blockIdx.x * 64 + threadIdx.x];
    __syncthreads();
    y[blockIdx.x * 64 + threadIdx.x] = all[63 - threadIdx.x];
}
extern "C" __global__ void sums_of_warps(const float* x, float* y) {
    float sum = x[threadIdx.x];
    for (int lanes = 16; lanes; lanes /= 2) sum += __shfl_xor_sync(0xffffffffu, sum, lanes);
    y[threadIdx.x] = sum;
}
extern "C" __global__ void next_lane(const float* x, float* y) {
    if (threadIdx.x < 20) y[threadIdx.x] = __shfl_down_sync(0x000fffffu, x[threadIdx.x], 1);
}
extern "C" __global__ void parted(float* y) {
    if (threadIdx.x) __syncthreads(); else y[0] = __shfl_down_sync(0xffffffffu, y[0], 1);
}
extern "C" __global__ void not_set(float* y) {
    __shared__ float all[2];
    y[threadIdx.x] = all[threadIdx.x];
    all[threadIdx.x] = 0;
}
"""


@pytest.fixture(scope="module")
def cupy():
    if why := stand_in.missing():
        pytest.skip(why)
    return stand_in.cupy


@pytest.fixture(scope="module")
def kernel(cupy):
    module = cupy.RawModule(code=CODE)
    return module.get_function


def launch(cupy, function, n, *args, blocks=1):
    y = cupy.empty(n * blocks, np.float32)
    function((blocks,), (n,), (*args, y))
    return y.get()


def test_a_barrier_keeps_every_thread_until_all_are_there(cupy, kernel):
    x = np.arange(128, dtype=np.float32)
    y = launch(cupy, kernel("reverse"), 64, cupy.asarray(x), blocks=2)
    np.testing.assert_array_equal(y, np.concatenate([x[:64][::-1], x[64:][::-1]]))


def test_shuffles_exchange_within_a_warp(cupy, kernel):
    x = np.arange(96, dtype=np.float32)
    y = launch(cupy, kernel("sums_of_warps"), 96, cupy.asarray(x))
    np.testing.assert_array_equal(y, np.repeat(x.reshape(3, 32).sum(1), 32))
    y = launch(cupy, kernel("next_lane"), 32, cupy.asarray(x))
    np.testing.assert_array_equal(y[:19], x[1:20])


def test_threads_at_different_barriers_are_an_error(cupy, kernel):
    with pytest.raises(RuntimeError, match="parted: threads of a block wait at different barriers"):
        launch(cupy, kernel("parted"), 32)


def test_memory_that_nobody_set_is_rubbish(cupy, kernel):
    assert np.isnan(launch(cupy, kernel("not_set"), 2, blocks=2)).all()
    assert np.isnan(cupy.empty(3).get()).all()


def test_arguments_are_what_the_parameters_take(cupy, kernel):
    x, y = cupy.zeros(3, np.float32), cupy.zeros(3, np.float32)
    twice = kernel("twice")
    for args, message in [
        ((np.int32(3), x), "takes 3 arguments, got 2"),
        ((np.int64(3), x, y), "argument 1 of twice is i4, got a int64"),
        ((np.int32(3), x.astype(np.float64), y), "argument 2 of twice is Pf4, got an array of float64"),
        ((np.int32(3), np.zeros(3, np.float32), y), "argument 2 of twice must be on the device"),
    ]:
        with pytest.raises(TypeError, match=message):
            twice((1,), (32,), args)
    twice((1,), (32,), (np.int32(0), np.uint64(0), y))  # a null pointer


def test_arrays_do_not_mix_with_those_of_the_host(cupy):
    x, host = cupy.ones(3), np.ones(3)
    for mix in (lambda: x + host, lambda: host + x, lambda: cupy.stack([x, host]), lambda: cupy.exp(host)):
        with pytest.raises(TypeError):
            mix()
    with pytest.raises(TypeError, match="Implicit conversion"):
        np.asarray(x)
    with pytest.raises(TypeError):
        x[:] = host


def test_numbers_and_functions_of_numpy_go_with_them(cupy):
    x = cupy.asarray(np.arange(6, dtype=np.float32).reshape(2, 3))
    y = np.exp(2 * x + np.float32(1)) / (x.sum() + 1)
    assert isinstance(y, cupy.ndarray) and y.dtype == np.float32
    expected = x.get()
    np.testing.assert_allclose(y.get(), np.exp(2 * expected + 1) / (expected.sum() + 1), rtol=1e-6)
    assert isinstance(x.max(), cupy.ndarray) and x.max().shape == () and float(x.max()) == 5
    assert isinstance(np.concatenate([x, x]), cupy.ndarray)


def test_views_share_memory_and_new_arrays_are_in_c_order(cupy):
    x = cupy.zeros((2, 3))
    x.T[0, 1] = 7
    assert x.get()[1, 0] == 7 and x.T.strides == (8, 24)
    assert (x.T + 1).flags.c_contiguous and x.T.astype(np.float32).strides == (4, 12)


def graph_of(cupy, work):
    stream = cupy.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        try:
            result = work()
        finally:
            graph = stream.end_capture()
    return graph, result


def test_a_graph_does_what_was_captured_again(cupy, kernel):
    x, y, twice = cupy.asarray(np.ones(4, np.float32)), cupy.zeros(4, np.float32), kernel("twice")

    def work():
        more = x + 1
        twice((1,), (32,), (np.int32(4), more, y))
        return more, y.sum()

    graph, (_more, total) = graph_of(cupy, work)
    assert (y == 0).all()  # nothing has run yet
    for value in (1, 5):
        x[...] = value
        graph.launch()
        assert float(total) == 4 * 2 * (value + 1)


def test_a_capture_has_no_host_and_no_cublas(cupy):
    x = cupy.ones((2, 2))
    needs_the_host = (
        lambda: float(x.sum()),
        x.get,
        lambda: x[x > 0],
        lambda: cupy.asarray([1.0]),
        x.any().__bool__,
    )
    for work in needs_the_host:
        with pytest.raises(cupy.cuda.runtime.CUDARuntimeError):
            graph_of(cupy, work)
    with pytest.raises(NotImplementedError, match="cuBLAS"):
        graph_of(cupy, lambda: x @ x)
    assert not cupy.cuda.get_current_stream().is_capturing()


def test_a_graph_whose_memory_is_gone_is_an_error(cupy):
    x = cupy.ones(3)
    graph, _ = graph_of(cupy, lambda: (x + 1).sum())
    gc.collect()
    with pytest.raises(RuntimeError, match="whose memory is gone"):
        graph.launch()
    pool = cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        graph, total = graph_of(cupy, lambda: (x + 1).sum())
    gc.collect()
    graph.launch()
    assert float(total) == 6
    del pool
    gc.collect()
    for use in (lambda: total + 1, total.get):
        with pytest.raises(RuntimeError, match="whose memory pool is gone"):
            use()
    with pytest.raises(RuntimeError, match="whose memory is gone"):
        graph.launch()


def test_memory_is_counted_and_limited(cupy):
    pool = cupy.get_default_memory_pool()
    before = pool.used_bytes()
    x = cupy.empty(1000, np.uint8)
    assert pool.used_bytes() == before + 1024
    pool.set_limit(size=before + 1024)
    try:
        with pytest.raises(cupy.cuda.memory.OutOfMemoryError, match="Out of memory allocating 512 bytes"):
            cupy.empty(1, np.uint8)
    finally:
        pool.set_limit(size=0)
    del x
    assert pool.used_bytes() == before


def test_arrays_belong_to_a_device(cupy):
    with cupy.cuda.Device(1):
        x = cupy.ones(2)
    assert x.device == cupy.cuda.Device(1)
    with pytest.raises(ValueError, match="must be same as the current device"):
        x + 1
    assert cupy.asarray(x).device == cupy.cuda.Device(1) and x.copy().device == cupy.cuda.Device(0)


@pytest.mark.filterwarnings("ignore")
def test_every_name_is_one_of_cupy(cupy):
    real = pytest.importorskip("cupy", exc_type=ImportError)

    def names(space):
        return {name for name in dir(space) if not name.startswith("_")}

    assert names(cupy) <= names(real)
    assert names(cupy.ndarray) <= names(real.ndarray)
    assert names(cupy.ufunc) <= names(real.ufunc)
    spaces = "cuda cuda.runtime cuda.memory cuda.Stream cuda.Event cuda.Graph cuda.Device"
    for space in spaces.split(" "):
        ours, theirs = cupy, real
        for part in space.split("."):
            ours, theirs = getattr(ours, part), getattr(theirs, part)
        assert names(ours) <= names(theirs), space


def test_recorded_work_has_the_memory_of_a_pool_by_turns(cupy):
    x, pool = cupy.ones(100), cupy.cuda.MemoryPool()
    with cupy.cuda.using_allocator(pool.malloc):
        first, one = graph_of(cupy, lambda: ((x + 1) * 2).sum())
        second, two = graph_of(cupy, lambda: ((x + 2) * 2).sum())
    before = pool.total_bytes()
    first.launch()
    second.launch()
    assert (float(one), float(two)) == (400, 600) and before < 3 * 1024 + 2 * 512


def test_what_graphs_work_in_is_kept_where_memory_is_short(emulated, cupy, monkeypatch):
    def doubled(n):
        return lambda: results.append((x[:n] + 1).sum() * 2)

    pool, results = cupy.get_default_memory_pool(), []
    pool.free_all_blocks()
    x = cupy.zeros(1 << 20)
    x + 1  # is left idle, as by an evaluation without a graph
    recorder = emulated.recorder()
    launch = recorder.record(doubled(100))
    taken, idle = recorder.nbytes, pool.free_bytes()
    assert taken > 0 and idle >= 8 << 20
    monkeypatch.setattr(emulated_cuda, "MEMORY", emulated_cuda._held(0))
    recorder.record(doubled(1 << 19))  # takes what is idle
    assert pool.free_bytes() == 0 and recorder.nbytes >= 4 << 20
    taken = recorder.nbytes
    monkeypatch.setattr(emulated_cuda, "MEMORY", emulated_cuda._held(0))
    monkeypatch.setattr(emulated_cuda, "MEMORY", emulated_cuda.MEMORY + (6 << 20))
    with pytest.raises(MemoryError, match="Out of memory"):
        recorder.record(lambda: (x[: 1 << 19] + 1) * (x[: 1 << 19] + 2) * (x + 1)[: 1 << 19])
    assert recorder.nbytes == taken
    launch()
    assert float(results[0]) == 200
