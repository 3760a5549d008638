"""Nets on other backends and devices: moving there and back, memory, arrays that come ahead."""

import gc
import re
import sys

import cudnn_on_cpu
import numpy as np
import pytest

import dagnn
from dagnn.backends import get
from dagnn.backends.cupy import CuPyBackend
from dagnn.backends.cupy.prefetch import Prefetcher
from dagnn.data import Arrays
from dagnn.errors import BackendError, OptionError, OutOfMemoryError
from dagnn.train import SGD, Adam, Trainer
from dagnn.train.loader import Loader, parts


def small_net():
    net = dagnn.DagNN()
    net.add_layer("conv", dagnn.Conv(size=(4, 2, 3, 3), pad=1, has_bias=False), "x", "c")
    net.add_layer("bn", dagnn.BatchNorm(4), "c", "b")
    net.add_layer("relu", dagnn.ReLU(), "b", "r")
    net.add_layer("fc", dagnn.Conv(size=(3, 4, 5, 5)), "r", "scores")
    net.add_layer("loss", dagnn.Loss(), ["scores", "label"], "objective")
    net.init_params(0)
    return net


def batch(n=6):
    rng = np.random.default_rng(0)
    return {"x": rng.standard_normal((n, 2, 5, 5)).astype("float32"), "label": rng.integers(0, 3, n)}


TAKEN = []  # arrays that take what is idle


@pytest.fixture
def cupy(emulated):
    """The module, with as much memory as there is again afterwards."""
    yield emulated.xp
    TAKEN.clear()
    emulated.xp.get_default_memory_pool().set_limit(size=0)


def limit(backend, more):
    """Let the pool have so many bytes more than are in use, with nothing idle to take instead.

    Pieces of blocks of which others are in use stay idle in CuPy's pool, so that they are taken here.
    """
    gc.collect()
    backend.release_idle()
    pool = backend.xp.get_default_memory_pool()
    pool.set_limit(size=max(1, pool.total_bytes()))
    size = pool.free_bytes()
    while size >= 512:
        try:
            TAKEN.append(backend.empty((size,), "uint8"))
        except MemoryError:
            size //= 2
    pool.set_limit(size=pool.total_bytes() + more)


# Moving.


def test_a_net_moves_there_and_back(emulated):
    net, inputs = small_net(), batch()
    net.freeze("conv*")
    net.params["fc_filters"].learning_rate = 3.0
    expected = net.eval(inputs, {"objective": 1}, outputs=["scores"])["scores"]
    der = net.params["fc_filters"].der
    before = {name: (param.value, param.version) for name, param in net.params.items()}

    net.move(emulated)
    assert net.backend is emulated
    assert all(var.value is None and var.der is None for var in net.vars.values())
    assert all(param.der is None for param in net.params.values())
    assert all(emulated.owns(param.value) for param in net.params.values())
    assert all(param.version > before[name][1] for name, param in net.params.items())
    assert not net.params["conv_filters"].trainable and net.params["fc_filters"].learning_rate == 3
    found = net.eval(inputs, {"objective": 1}, outputs=["scores"])["scores"]
    assert emulated.owns(found) and net.params["conv_filters"].der is None
    np.testing.assert_allclose(emulated.to_numpy(found), expected, rtol=1e-4, atol=1e-4)
    np.testing.assert_allclose(emulated.to_numpy(net.params["fc_filters"].der), der, rtol=1e-3, atol=1e-5)
    assert net.copy().backend is emulated and net.deploy().backend is emulated

    net.move("numpy")
    for name, (value, _) in before.items():
        np.testing.assert_array_equal(net.params[name].value, value)
    assert {type(value) for value in net.state["loss"].values()} <= {float, int, np.ndarray, np.float64}
    net.eval(inputs, {"objective": 1})


def test_averages_of_losses_go_on_after_a_move(emulated):
    nets, inputs = [small_net(), small_net()], batch()
    for net in nets:
        net.mode = "test"
        net.eval(inputs)
    nets[1].move(emulated)
    for net in nets:
        net.eval(inputs)
    averages = [float(net.state["loss"]["average"]) for net in nets]
    assert averages[0] == pytest.approx(averages[1], rel=1e-5)


@pytest.mark.parametrize("solver", [SGD, Adam])
def test_a_solver_follows(emulated, solver):
    nets, solvers, inputs = [small_net(), small_net()], [solver(), solver()], batch()
    for step in range(3):
        for net, its in zip(nets, solvers, strict=True):
            net.eval(inputs, {"objective": 1})
            its.step(net)
        nets[1].move([emulated, "numpy", "numpy"][step])
    for name, param in nets[0].params.items():
        np.testing.assert_allclose(nets[1].params[name].value, param.value, rtol=1e-3, atol=1e-5)


def test_a_net_is_made_on_a_backend(emulated):
    net = dagnn.DagNN(emulated)
    net.add_layer("fc", dagnn.Conv(size=(1, 2, 1, 1)), "x", "y")
    net.init_params()
    assert emulated.owns(net.params["fc_filters"].value)
    assert emulated.owns(net.eval({"x": np.ones((1, 2, 1, 1), "float32")})["y"])
    with pytest.raises(OptionError, match="Backend 'numpy' has no options. Received: device"):
        dagnn.DagNN("numpy", device=1)
    with pytest.raises(OptionError, match="Received: gpu"):
        net.move("cupy", gpu=1)


def test_a_simplenn_moves(emulated):
    w = np.ones((1, 1, 2, 2), np.float32)
    net = dagnn.SimpleNN([{"type": "conv", "weights": [w, None]}])
    net.move(emulated)
    assert emulated.owns(net.layers[0]["weights"][0])
    assert emulated.to_numpy(net.eval(np.ones((1, 1, 2, 2), np.float32))[-1].x).item() == 4
    assert net.to_dagnn().backend is emulated
    net.move("numpy")
    assert isinstance(net.layers[0]["weights"][0], np.ndarray)


def test_a_simplenn_runs_on_its_device(emulated, cupy, monkeypatch):
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("this machine has one device")
    monkeypatch.setitem(sys.modules, "cupy", cupy)
    w = np.ones((1, 1, 2, 2), np.float32)
    net = dagnn.SimpleNN([{"type": "conv", "weights": [w, None]}, {"type": "relu"}])
    net.move(CuPyBackend(device=1))
    y = net.eval(np.ones((1, 1, 2, 2), np.float32), 1)[-1].x
    assert y.device.id == 1 and y.item() == 4


def test_arrays_of_another_device_are_moved(emulated, cupy):
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("this machine has one device")
    net, inputs = small_net(), batch()
    net.move(emulated)
    with cupy.cuda.Device(1):
        there = {name: cupy.asarray(array) for name, array in inputs.items()}
    found = net.eval(there)["objective"]
    assert found.device.id == 0
    assert float(found) == pytest.approx(float(net.eval(inputs)["objective"]))


def test_recorded_work_keeps_numbers_of_the_host_but_no_arrays(emulated):
    made = []
    launch = emulated.recorder().record(lambda: made.append(emulated.asarray(np.float32(2.5)) * 2))
    launch()
    assert float(made[0]) == 5 and made[0].dtype == np.float32
    with pytest.raises(BackendError, match="an array of the host can't be part of recorded work"):
        emulated.recorder().record(lambda: emulated.asarray([1.0]))


def test_maps_of_another_device_keep_their_order_of_memory(emulated, cupy):
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("this machine has one device")
    host = np.arange(120.0).reshape(2, 4, 5, 3)
    with cupy.cuda.Device(1):
        last = cupy.asarray(host).transpose(0, 3, 1, 2)
        every_other = last[:, :, ::2]
    for there, wanted in (
        (last, host.transpose(0, 3, 1, 2)),
        (every_other, host.transpose(0, 3, 1, 2)[:, :, ::2]),
    ):
        here = emulated.asarray(there)
        assert here.device.id == 0 and here.transpose(0, 2, 3, 1).flags.c_contiguous
        np.testing.assert_array_equal(emulated.to_numpy(here), wanted)


def test_arrays_of_the_device_are_moved_to_a_net_on_numpy(emulated):
    net, inputs = small_net(), batch()
    wanted = net.eval(inputs, {"objective": 1})["objective"]
    there = {name: emulated.asarray(a) for name, a in inputs.items()}
    assert net.eval(there, {"objective": emulated.asarray(np.float32(1))})["objective"] == wanted
    filters = net.params["conv_filters"]
    before = filters.value
    filters.value = emulated.asarray(before)
    assert type(filters.value) is type(before)


@pytest.mark.parametrize("wrong", [np.array(["a", "b"]), [[1], [1, 2]], None])
def test_inputs_that_are_no_numbers_are_named(emulated, wrong):
    net = small_net()
    net.move(emulated)
    with pytest.raises(OptionError, match=r"inputs\['label'\] is an array of numbers"):
        net.eval(batch() | {"label": wrong})


def test_a_foreign_array_in_the_middle_raises(emulated):
    net = dagnn.DagNN(emulated)
    net.add_layer("f", Foreign(), "x", "y")
    with pytest.raises(BackendError, match="not an array of backend 'cupy'"):
        net.eval({"x": np.ones((1, 2, 1, 1), "float32")})


class Foreign(dagnn.Layer):
    def forward(self, ctx, inputs, params):
        return [np.ones(inputs[0].shape, inputs[0].dtype)]


# Memory.


@pytest.mark.parametrize("name", ["numpy", "cupy"])
def test_memory_is_counted(emulated, name):
    backend = emulated if name == "cupy" else get(name)
    gc.collect()
    backend.release_idle()
    before = backend.memory_use()
    array = backend.empty((1 << 20,), "uint8")
    use = backend.memory_use()
    assert use.used - before.used == array.nbytes <= use.held
    array = None
    assert backend.memory_use().used == before.used
    assert backend.memory_use().held >= before.held + (1 << 20)
    backend.release_idle()
    assert backend.memory_use().held == before.held
    assert ("device 0" in str(use)) == (name == "cupy") == (use.total is not None)


def test_a_limit_is_told(emulated, cupy):
    cupy.get_default_memory_pool().set_limit(size=1 << 30)
    assert emulated.memory_use().limit == 1 << 30
    assert "1,073.7 MB allowed" in str(emulated.memory_use())


def test_want_of_memory_says_where_and_what_helps(emulated, cupy):
    net, inputs = small_net(), batch(n=1000)
    net.move(emulated)
    limit(emulated, 300_000)
    with pytest.raises(OutOfMemoryError) as caught:
        net.eval(inputs, {"objective": 1})
    assert isinstance(caught.value, MemoryError)
    first, *_, layer, last = str(caught.value).splitlines()
    assert re.match(r"Not enough memory: Out of memory allocating [\d,]+ bytes", first)
    assert " MB in use, " in first and "allowed" in first and "device 0 free" in first
    for remedy in ("smaller batches", "num_sub_batches", "memory_budget", "release_idle"):
        assert remedy in first
    assert layer == "In layer Conv 'conv'." and last == "Received: x (1000, 2, 5, 5) float32"
    caught = None
    cupy.get_default_memory_pool().set_limit(size=0)
    assert float(net.eval(inputs)["objective"]) > 0


def test_want_of_memory_for_an_input(emulated, cupy):
    net = small_net()
    net.move(emulated)
    limit(emulated, 1000)
    with pytest.raises(OutOfMemoryError, match="Not enough memory: Out of memory allocating"):
        net.eval(batch(n=1000))


def test_a_move_for_which_there_is_no_memory_changes_nothing(emulated, cupy):
    net = small_net()
    limit(emulated, 600)
    with pytest.raises(OutOfMemoryError):
        net.move(emulated)
    assert net.backend is get("numpy") and isinstance(net.params["fc_filters"].value, np.ndarray)
    net.eval(batch(), {"objective": 1})


class Huge(dagnn.Layer):
    def forward(self, ctx, inputs, params):
        return [np.empty((1 << 52, *inputs[0].shape), inputs[0].dtype)]


def test_want_of_memory_on_numpy():
    net = dagnn.DagNN()
    net.add_layer("huge", Huge(), "x", "y")
    with pytest.raises(OutOfMemoryError, match="(?s)Unable to allocate.* MB in use.*In layer Huge 'huge'"):
        net.eval({"x": np.ones((1, 2, 2, 2), np.float32)})


def test_training_says_in_which_batch_memory_was_short(emulated, cupy):
    net = small_net()
    net.move(emulated)
    trainer = Trainer(net, batch_size=1000, num_epochs=1, progress=False)
    limit(emulated, 300_000)
    with pytest.raises(OutOfMemoryError, match="Epoch 1, training: batch 1: Not enough memory"):
        trainer.fit(batch(n=1000))


# Arrays that come ahead.


def test_arrays_come_ahead_in_this_order(emulated, cupy, monkeypatch):
    """The copy waits for what used its memory before, and what computes waits for the copy."""
    events, compute = [], cupy.cuda.get_current_stream()

    def noted(kind, name, what):
        method = getattr(kind, name)

        def call(self, *args, **kwargs):
            events.append((what, "compute" if getattr(self, "ptr", None) == compute.ptr else "copies"))
            return method(self, *args, **kwargs)

        monkeypatch.setattr(kind, name, call)

    prefetch = Prefetcher(cupy, lambda: cupy.cuda.Device(0), compute)
    noted(cupy.cuda.Stream, "record", "record")
    noted(cupy.cuda.Stream, "wait_event", "wait")
    inputs = batch()
    ready = prefetch(inputs)
    assert events == [("record", "compute"), ("wait", "copies"), ("record", "copies")]
    events.clear()
    there = ready()
    assert events == [("wait", "compute")]
    for name, array in inputs.items():
        assert emulated.owns(there[name]) and there[name].dtype == array.dtype
        np.testing.assert_array_equal(emulated.to_numpy(there[name]), array)
    events.clear()
    del ready
    assert events == [("wait", "compute")], "as for arrays that nobody came for"


def test_arrays_come_ahead_to_their_device(emulated, cupy, monkeypatch):
    if cupy.cuda.runtime.getDeviceCount() < 2:
        pytest.skip("this machine has one device")
    devices = []
    for name in ("record", "wait_event"):
        monkeypatch.setattr(cupy.cuda.Stream, name, lambda *_: devices.append(cupy.cuda.Device().id))
    with cupy.cuda.Device(1):
        prefetch = Prefetcher(cupy, lambda: cupy.cuda.Device(1), cupy.cuda.get_current_stream())
    ready = prefetch(batch())
    assert ready()["x"].device.id == 1
    del ready
    assert devices == [1] * 5


def test_page_locked_memory_is_used_again_after_its_copy(emulated, cupy, monkeypatch):
    sizes, alloc = [], cupy.cuda.alloc_pinned_memory
    monkeypatch.setattr(cupy.cuda, "alloc_pinned_memory", lambda size: sizes.append(size) or alloc(size))
    prefetch = Prefetcher(cupy, lambda: cupy.cuda.Device(0), cupy.cuda.get_current_stream())
    ready = []
    for n in (8, 8, 4, 16):
        ready.append(prefetch({"x": np.full(n, n, np.float32)}))
        cupy.cuda.Device().synchronize()
    assert sizes == [32, 64]
    assert [emulated.to_numpy(r()["x"]).tolist() for r in ready] == [[n] * n for n in (8, 8, 4, 16)]
    monkeypatch.setattr(cupy.cuda.Event, "done", False)
    prefetch({"x": np.zeros(4, np.float32)})
    assert sizes == [32, 64, 16], "the copy from the other one has not ended"


def test_only_arrays_of_numbers_come_ahead(emulated, cupy):
    own = emulated.zeros((2,), "float32")
    inputs = {"own": own, "list": [1, 2], "names": np.array(["a"])}
    inputs |= {"none": np.zeros((0, 3)), "order": np.arange(6.0).reshape(2, 3).T, "big": np.ones(2, ">f4")}
    there = emulated.prefetcher()(inputs)()
    assert there["own"] is own and there["list"] is inputs["list"] and there["names"] is inputs["names"]
    assert there["big"] is inputs["big"] and emulated.asarray(there["big"]).sum() == 2
    assert emulated.owns(there["none"]) and there["none"].shape == (0, 3)
    np.testing.assert_array_equal(emulated.to_numpy(there["order"]), inputs["order"])


def test_arrays_for_which_there_is_no_memory_stay(emulated, cupy):
    limit(emulated, 1000)
    inputs = batch(n=1000)
    assert emulated.prefetcher()(inputs)() is inputs


def test_arrays_for_which_there_is_no_page_locked_memory_stay(emulated, cupy, monkeypatch):
    def none_left(size):
        raise cupy.cuda.runtime.CUDARuntimeError(101)

    monkeypatch.setattr(cupy.cuda, "alloc_pinned_memory", none_left)
    inputs = batch()
    assert emulated.prefetcher()(inputs)() is inputs


@pytest.mark.parametrize("prefetch", [0, 2])
def test_batches_come_to_where_the_net_is(emulated, prefetch):
    pieces = parts(np.arange(6), 2, 1, key=())
    loader = Loader(Arrays(batch()), pieces, random=False, prefetch=prefetch, backend=emulated)
    arrays = [inputs["x"] for _, inputs in loader]
    assert [emulated.owns(x) for x in arrays] == [prefetch > 0] * 3
    np.testing.assert_array_equal(
        np.concatenate([emulated.to_numpy(emulated.asarray(x)) for x in arrays]), batch()["x"]
    )


def test_training_does_not_depend_on_what_comes_ahead(emulated):
    found = []
    for prefetch in (0, 2):
        net = small_net()
        net.move(emulated)
        Trainer(net, batch_size=4, num_epochs=2, prefetch=prefetch, progress=False).fit(batch(n=10))
        found.append({name: emulated.to_numpy(param.value) for name, param in net.params.items()})
    for name, value in found[0].items():
        np.testing.assert_array_equal(found[1][name], value)


@pytest.mark.parametrize("capture", [False, True])
@pytest.mark.parametrize("solver", [SGD, Adam])
def test_training_stays_on_the_device_of_its_net(emulated, monkeypatch, solver, capture):
    monkeypatch.setitem(sys.modules, "cupy", emulated.xp)
    if emulated.xp.cuda.runtime.getDeviceCount() == 1:
        pytest.skip("needs two devices")
    if not emulated.xp.__spec__:
        monkeypatch.setitem(sys.modules, "cudnn", cudnn_on_cpu.make())
    found = []
    for backend in (emulated, CuPyBackend(device=1, channels_last=True)):
        net = small_net()
        net.move(backend)
        trainer = Trainer(net, solver(), capture=capture, batch_size=2, num_epochs=3, progress=False)
        history = trainer.fit(batch(n=10), val=[1, 4, 7])
        found.append([history[-1][part]["objective"] for part in ("train", "val")])
    assert net.params["fc_filters"].value.device.id == 1
    np.testing.assert_allclose(found[1], found[0], rtol=1e-4)
