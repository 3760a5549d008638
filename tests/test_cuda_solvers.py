"""The steps of solvers on CUDA, run on a CPU, against NumPy's rules."""

from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cuda_maps import dtypes

import dagnn
from dagnn.backends.cupy.many import CHUNK
from dagnn.dtypes import floating
from dagnn.layers.layer import Layer, ParamSpec
from dagnn.train import SGD, AdaDelta, AdaGrad, Adam, AdamW, RMSProp, fit
from dagnn.train.update import Updates

SOLVERS = [SGD, AdaGrad, AdaDelta, RMSProp, Adam, AdamW]
# Of the largest number. On a device products are added without being rounded before.
TOLERANCES = {"float64": 1e-14, "float32": 1e-6, "float16": 1e-3, "bfloat16": 8e-3}
SHAPES = [(3, 2, 1, 1), (5, 3, 40, 40), (2, 300), (7,), (), (0, 3), (CHUNK,), (2, 2, 2, 2, 2)]


class Params(Layer):
    """A layer whose parameters have these shapes."""

    param_specs = tuple(ParamSpec(f"p{k}") for k in range(len(SHAPES)))


def net_of(backend, dtype):
    net = dagnn.DagNN(backend)
    net.add_layer("all", Params(), "x", "y")
    rng = np.random.default_rng(0)
    for k, (shape, param) in enumerate(zip(SHAPES, net.params.values(), strict=True)):
        param._own(rng.standard_normal(shape).astype(floating(dtype)))
        param.learning_rate, param.weight_decay = 1 + k % 3, k % 2
    net.params["all_p2"].train_method = "average"
    net.params["all_p2"].learning_rate = 0.1
    return net


def derive(net, seed, dtype=None, order="C"):
    """Give all parameters the same random derivatives on each backend."""
    rng = np.random.default_rng(seed)
    for param in net.params.values():
        der = rng.standard_normal(param.value.shape).astype(dtype or param.value.dtype)
        param.der = net.backend.asarray(np.asarray(der, order=order))


def values(net):
    return {name: net.backend.to_numpy(param.value) for name, param in net.params.items()}


def agree(actual, expected, dtype, slack=1):
    assert actual.keys() == expected.keys()
    for name, right in expected.items():
        one = actual[name]
        assert one.dtype == right.dtype and one.shape == right.shape, name
        largest = np.abs(right.astype(np.float64)).max(initial=0)
        np.testing.assert_allclose(
            one.astype(np.float64), right.astype(np.float64), rtol=0, atol=TOLERANCES[dtype] * slack * largest
        )


def flat(solver):
    """The state, by parameter and slot."""
    params = solver.state_dict()["params"]
    return {f"{name}/{k}": np.asarray(a) for name, slots in params.items() for k, a in slots.items()}


@pytest.mark.parametrize("dtype", dtypes())
@pytest.mark.parametrize("kind", [*SOLVERS, lambda **options: SGD(nesterov=True, **options)])
@settings(max_examples=8)
@given(st.data())
def test_steps_are_numpys(emulated, kind, dtype, data):
    draw = data.draw
    decay, order = draw(st.sampled_from([0.0, 0.01])), draw(st.sampled_from("CF"))
    net, twin = net_of(emulated, dtype), net_of("numpy", dtype)
    some, same = kind(weight_decay=decay), kind(weight_decay=decay)
    ders = draw(st.sampled_from([None, np.float32])) if dtype.endswith("16") else None
    for step in range(3):
        some.learning_rate = same.learning_rate = draw(st.sampled_from([0.1, 0.01]))
        derive(net, step, ders, order), derive(twin, step, ders, order)
        some.step(net), same.step(twin)
        agree(values(net), values(twin), dtype)
    # Values that were rounded to 16 bits are in slots, too, times the decay.
    agree(flat(some), flat(same), dtype, 0.1 if dtype.endswith("16") else 1)
    assert some.state.keys() == net.params.keys() - {"all_p2"}


@pytest.mark.parametrize("kind", SOLVERS)
def test_a_step_is_one_launch(emulated, kind, monkeypatch):
    net, solver, launches = net_of(emulated, "float32"), kind(), []
    blocks = emulated._kernels.blocks
    monkeypatch.setattr(emulated._kernels, "blocks", lambda *a: launches.append(a[:2]) or blocks(*a))
    for step in range(2):
        derive(net, step)
        solver.step(net)
    assert launches == [("many", solver.kernel)] * 2


@pytest.mark.parametrize("kind", SOLVERS)
def test_derivatives_in_another_order_of_memory(emulated, kind):
    net, twin, some, same = net_of(emulated, "float32"), net_of("numpy", "float32"), kind(), kind()
    filters = net.params["all_p1"]
    filters._adopt = emulated.asarray  # in any order
    filters._own(emulated.xp.ascontiguousarray(filters.value.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2))
    for step in range(2):
        derive(net, step), derive(twin, step)
        some.step(net), same.step(twin)
        assert filters.value.transpose(0, 2, 3, 1).flags.c_contiguous
    agree(values(net), values(twin), "float32")
    filters._own(emulated.xp.ascontiguousarray(filters.value))  # the slots follow
    derive(net, 2), derive(twin, 2)
    some.step(net), same.step(twin)
    agree(values(net), values(twin), "float32")
    agree(flat(some), flat(same), "float32")


@pytest.mark.parametrize("kind", SOLVERS)
def test_slots_are_pieces_of_one_buffer_and_go_on_from_a_state(emulated, kind):
    net, solver = net_of(emulated, "float16"), kind()
    derive(net, 0)
    solver.step(net)
    arrays = [slots[slot] for slots in solver.state.values() for slot in solver.slots]
    arrays = [a for a in arrays if a.size]
    assert len({id(a.base) for a in arrays}) == 1 and {a.dtype.name for a in arrays} == {"float32"}
    assert all(a.data.ptr % 128 == 0 for a in arrays)
    saved, before = solver.state_dict(), values(net)
    again, other = net_of(emulated, "float16"), kind()
    for name, value in before.items():
        again.params[name]._own(emulated.asarray(value))
    other.load_state(saved)
    for step in (1, 2):
        derive(net, step), derive(again, step)
        solver.step(net), other.step(again)
    for name, value in values(net).items():
        np.testing.assert_array_equal(values(again)[name], value)
    assert flat(solver).keys() == flat(other).keys()
    other.step(net_of("numpy", "float16"))  # moves to another backend, where nothing moves
    assert all(isinstance(slots[slot], np.ndarray) for slots in other.state.values() for slot in other.slots)


def test_parameters_come_and_go(emulated):
    net, twin, some, same = net_of(emulated, "float32"), net_of("numpy", "float32"), Adam(), Adam()
    for step in range(6):
        for one, solver in ((net, some), (twin, same)):
            one.params["all_p3"].trainable = step != 2
            one.params["all_p1"].learning_rate = one.params["all_p1"].weight_decay = step % 2
            if step == 4:
                one.rename_param("all_p0", "new")
            derive(one, step)
            solver.step(one)
    agree(values(net), values(twin), "float32")
    agree(flat(some), flat(same), "float32")
    assert some.state["all_p3"]["t"] == 5 and some.state["new"]["t"] == 2


def test_a_value_that_somebody_holds_never_changes(emulated):
    net, solver = net_of(emulated, "float32"), SGD()
    param = net.params["all_p1"]
    derive(net, 0)
    solver.step(net)
    where, version = param.value.data.ptr, param.version
    solver.step(net)
    assert param.value.data.ptr == where and param.version == version + 1
    for hold in (lambda value: value, lambda value: value[0], lambda value: value.T[1:]):
        held = hold(param.value)
        copy, where = held.get(), param.value.data.ptr
        solver.step(net)
        np.testing.assert_array_equal(held.get(), copy)
        assert param.value.data.ptr != where and (param.value != 0).any()


def test_a_step_of_ones_own_goes_parameter_by_parameter(emulated):
    class Mine(Adam):
        def rule(self, state, learning_rate, weight_decay):
            def work(new, value, der, m, v):
                new[...] = value - learning_rate * der

            return work

    net, twin = net_of(emulated, "float32"), net_of("numpy", "float32")
    derive(net, 0), derive(twin, 0)
    some = Mine()
    some.step(net), Mine().step(twin)
    agree(values(net), values(twin), "float32")
    assert some._at_once is None


def test_what_a_state_refuses(emulated):
    net, solver = net_of(emulated, "float32"), Adam()
    derive(net, 0)
    solver.step(net)
    before = values(net)
    param = net.params["all_p3"]
    param._own(emulated.asarray(np.ones(9, np.float32)))
    derive(net, 1)
    with pytest.raises(dagnn.ShapeError, match=r"remembers 'm' of parameter 'all_p3' with shape \(7,\)"):
        solver.step(net)
    np.testing.assert_array_equal(values(net)["all_p1"], before["all_p1"])
    assert solver.state["all_p1"]["t"] == 1


@pytest.mark.parametrize("kind", SOLVERS)
def test_recorded_steps_stay_live(emulated, kind):
    """What changes between steps is read from the device: rates, momentum, decay, the number of the step,
    the scale of derivatives, and whether to move at all."""
    net, twin, some, same = net_of(emulated, "float32"), net_of("numpy", "float32"), kind(), kind()
    derive(net, 0), derive(twin, 0)
    some.step(net), same.step(twin)
    updates = Updates(net, some, ())
    update = updates.begin(net.params.keys())
    ders, made = {name: param.der for name, param in net.params.items()}, {}

    def work():
        made.update((name, der * 2) for name, der in ders.items())
        update.record(SimpleNamespace(values={}, ders_of_params=made))

    work()  # on rubbish that isn't finite, or what is; either way it is compiled
    updates.good.fill(False)
    launch = emulated.recorder().record(work)
    for param, value in zip(net.params.values(), twin.params.values(), strict=True):
        param._value.set(value.value)
    for name, state in same.state.items():
        for slot in same.slots:
            some.state[name][slot].set(state[slot])
    for step in range(1, 5):
        some.learning_rate = same.learning_rate = 0.1 / step
        some.weight_decay = same.weight_decay = 0.01 * step
        if kind is SGD:
            some.momentum = same.momentum = 0.5
        derive(twin, step)
        for name, param in twin.params.items():
            ders[name].set(param.der)
            param.der = (2 if param.train_method == "average" else 1) * param.der
        updates.scale, before = 2.0, dict(some.state)
        updates.good.fill(step != 2)
        versions, held = [param.version for param in net.params.values()], values(net)
        assert update.fits() and not update.held()
        update.ready()
        launch()
        assert [param.version for param in net.params.values()] == [version + 1 for version in versions]
        if step == 2:
            some.state = before
            assert_same(values(net), held)
        else:
            same.step(twin)
    agree(values(net), values(twin), "float32")
    agree(flat(some), flat(same), "float32")
    some.weight_decay = 0.0
    net.params["all_p3"].learning_rate = 0
    assert not update.fits()


def assert_same(some, others):
    for name, value in some.items():
        np.testing.assert_array_equal(value, others[name])


def test_training_on_the_device_is_training_on_the_host(emulated):
    rng = np.random.default_rng(0)
    x = rng.standard_normal((40, 2, 5, 5), np.float32)
    data, nets = {"x": x, "label": (x.mean((1, 2, 3)) > 0).astype(int)}, []
    for backend in ("numpy", emulated):
        net = dagnn.DagNN(backend)
        net.add_layer("conv", dagnn.Conv(size=(2, 2, 5, 5)), "x", "c")
        net.add_layer("bn", dagnn.BatchNorm(2), "c", "scores")
        net.add_layer("loss", dagnn.Loss(), ["scores", "label"], "objective")
        net.add_layer("top1err", dagnn.Loss("classerror"), ["scores", "label"], "error")
        net.init_params(0)
        history = fit(net, data, learning_rate=0.1, batch_size=10, num_epochs=3, progress=False)
        nets.append((history[-1]["train"], values(net)))
    (stats, expected), (on_device, actual) = nets
    assert on_device == pytest.approx(stats, rel=1e-4)
    for name, value in expected.items():
        np.testing.assert_allclose(actual[name], value, rtol=1e-4, atol=1e-5)
