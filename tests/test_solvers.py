"""Solvers: against PyTorch's, MatConvNet's solver task, and their own rules."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

import dagnn
from dagnn.backends.numpy import memory
from dagnn.backends.numpy.finite import all_finite
from dagnn.train import SGD, AdaDelta, AdaGrad, Adam, AdamW, RMSProp, Solver
from dagnn.train.solvers import average

SOLVERS = [SGD, AdaGrad, AdaDelta, RMSProp, Adam, AdamW]
X = np.random.default_rng(0).standard_normal((4, 3, 6, 6))


def small_net(dtype=np.float64):
    net = dagnn.DagNN()
    net.add_layer("conv", dagnn.Conv(size=(5, 3, 3, 3)), "x", "c")
    net.add_layer("relu", dagnn.ReLU(), "c", "y")
    net.init_params(0, dtype)
    return net


def steps(net, solver, number=5):
    for _ in range(number):
        y = net.eval({"x": X.astype(net.dtype)})["y"]
        net.eval({"x": X.astype(net.dtype)}, {"y": y})
        solver.step(net)


def values(net):
    return {name: param.value.copy() for name, param in net.params.items()}


def assert_same_bits(one, other):
    assert one.keys() == other.keys()
    for name in one:
        np.testing.assert_array_equal(one[name], other[name], err_msg=name, strict=True)


@pytest.mark.parametrize(
    ("ours", "theirs", "options"),
    [
        (SGD(0.003, weight_decay=0.01), "SGD", {"momentum": 0.9}),
        (SGD(0.003, weight_decay=0.01, nesterov=True), "SGD", {"momentum": 0.9, "nesterov": True}),
        (SGD(0.003, momentum=0, weight_decay=0.01), "SGD", {}),
        (AdaGrad(0.003, weight_decay=0.01), "Adagrad", {"eps": 1e-10}),
        (AdaDelta(0.003, weight_decay=0.01), "Adadelta", {"rho": 0.9, "eps": 1e-6}),
        (RMSProp(0.003, weight_decay=0.01), "RMSprop", {"alpha": 0.99, "eps": 1e-8}),
        (Adam(0.003, weight_decay=0.01), "Adam", {}),
        (Adam(0.003, 0.01, 0.5, 0.8, 1e-3), "Adam", {"betas": (0.5, 0.8), "eps": 1e-3}),
        (AdamW(0.003, weight_decay=0.01), "AdamW", {}),
    ],
    ids=str,
)
def test_steps_are_those_of_pytorch(ours, theirs, options):
    torch = pytest.importorskip("torch")
    net = small_net()
    net.params["conv_biases"].learning_rate = 2
    net.params["conv_biases"].weight_decay = 0
    w, b = (torch.tensor(p.value.copy(), requires_grad=True) for p in net.params.values())
    # PyTorch has one rate and decay per group, where we have factors per parameter.
    groups = [
        {"params": [w], "lr": 0.003, "weight_decay": 0.01},
        {"params": [b], "lr": 0.006, "weight_decay": 0.0},
    ]
    optimiser = getattr(torch.optim, theirs)(groups, lr=0.003, **options)
    for _ in range(20):
        steps(net, ours, number=1)
        optimiser.zero_grad()
        y = torch.nn.functional.relu(torch.nn.functional.conv2d(torch.tensor(X), w, b))
        y.backward(y.detach())
        optimiser.step()
        for param, tensor in zip(net.params.values(), (w, b), strict=True):
            np.testing.assert_allclose(param.value, tensor.detach(), rtol=1e-12, atol=1e-13)


def test_adam_of_matconvnet_differs_by_a_corrected_epsilon():
    rng = np.random.default_rng(3)
    value, m, v = rng.standard_normal((3, 4)), 0.0, 0.0
    theirs, state = value, Adam().initial(value)
    for t in range(1, 30):
        der = 1e-3 * rng.standard_normal((3, 4))
        m, v = 0.9 * m + 0.1 * der, 0.999 * v + 0.001 * der**2
        theirs = theirs - 0.01 * (1 - 0.999**t) ** 0.5 / (1 - 0.9**t) * m / (v**0.5 + 1e-5)
        corrected = Adam(epsilon=1e-5 / np.sqrt(1 - 0.999**t))
        value, state = corrected.update(value, der, state, 0.01, 0.0)
    np.testing.assert_allclose(value, theirs, rtol=1e-12)


def test_adagrad_with_a_window_forgets():
    s = AdaGrad().initial(np.ones(1))
    for der in (3.0, 0.0, 4.0):
        value, s = AdaGrad(rho=0.5, epsilon=1e-10).update(np.ones(1), np.array([der]), s, 1.0, 0.0)
    assert s["s"].item() == pytest.approx(9 / 4 + 16)
    assert value.item() == pytest.approx(1 - 4 / np.sqrt(9 / 4 + 16))


def test_momentum_accumulates_and_decay_pulls_towards_zero():
    solver = SGD(momentum=0.5)
    value, state = np.array([10.0]), solver.initial(np.array([10.0]))
    value, state = solver.update(value, np.array([1.0]), state, 0.1, 0.2)
    assert (value.item(), state["m"].item()) == pytest.approx((9.7, -3.0))
    value, state = solver.update(value, np.array([0.0]), state, 0.1, 0.0)
    assert (value.item(), state["m"].item()) == pytest.approx((9.55, -1.5))


@pytest.mark.parametrize("solver", SOLVERS)
def test_average_is_a_running_mean_over_all_layers_that_share_the_parameter(solver):
    assert average(1.0, 6.0, rate=0.1, fanout=2) == pytest.approx(0.9 + 0.3)
    net = dagnn.DagNN()
    shared = ["g", "b", "moments"]
    net.add_layer("bn1", dagnn.BatchNorm(3), "x1", "y1", shared)
    net.add_layer("bn2", dagnn.BatchNorm(3), "x2", "y2", shared)
    net.init_params(0, np.float64)
    net.eval({"x1": X + 5, "x2": X - 5}, {"y1": np.zeros_like(X), "y2": np.zeros_like(X)})
    solver(learning_rate=1e6).step(net)
    mean, sigma = net.params["moments"].value.T
    np.testing.assert_allclose(mean, 0.1 * X.mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(sigma, 0.9 + 0.1 * np.sqrt(X.var(axis=(0, 2, 3)) + 1e-5))


@pytest.mark.parametrize("solver", SOLVERS)
def test_what_is_frozen_or_has_no_derivative_or_no_rates_stays(solver):
    net = small_net()
    before = {name: param.value for name, param in net.params.items()}
    solver(1.0).step(net)
    net.freeze("*biases")
    steps(net, solver(learning_rate=0, weight_decay=0), number=1)
    assert all(net.params[name].value is before[name] for name in before)
    some = solver(0.1)
    steps(net, some, number=1)
    assert net.params["conv_biases"].value is before["conv_biases"]
    assert not np.array_equal(net.params["conv_filters"].value, before["conv_filters"])
    assert set(some.state) == {"conv_filters"}


@pytest.mark.parametrize("solver", SOLVERS)
def test_rates_that_are_numpy_numbers_keep_float32(solver):
    net = small_net(np.float32)
    some = solver(np.float64(0.1), weight_decay=np.float64(1e-4))
    net.params["conv_biases"].learning_rate = np.float64(2)
    for some.learning_rate in np.linspace(0.1, 0.01, 3):
        steps(net, some, number=1)
    arrays = [a for slots in some.state.values() for k, a in slots.items() if k in some.slots]
    assert (
        {a.dtype for a in arrays} == {param.value.dtype for param in net.params.values()} == {np.dtype("f4")}
    )


@pytest.mark.parametrize("solver", SOLVERS)
def test_values_given_out_earlier_never_change_and_versions_count(solver):
    net, some = small_net(), solver()
    given_out, copies, versions = [], [], []
    for _ in range(3):
        given_out.append(net.params["conv_filters"].value)
        copies.append(given_out[-1].copy())
        versions.append(net.params["conv_filters"].version)
        steps(net, some, number=1)
    np.testing.assert_array_equal(given_out, copies)
    assert np.diff(versions).tolist() == [1, 1]
    assert not any(param.value.flags.writeable for param in net.params.values())


@pytest.mark.parametrize("solver", SOLVERS)
def test_half_precision_moves_in_single(solver):
    net = small_net(np.float16)
    some = solver(0.01)
    for param in net.params.values():
        param.der = np.zeros_like(param.value)
        param.der.flat[0] = 1e-4
    some.step(net)
    assert all(np.isfinite(p.value).all() and p.value.dtype == np.float16 for p in net.params.values())
    assert all(slots[slot].dtype == np.float32 for slots in some.state.values() for slot in some.slots)


@pytest.mark.parametrize("solver", SOLVERS)
def test_scalars_and_empty_arrays_are_parameters_too(solver):
    some = solver()
    for value in (np.array(2.0), np.ones((0, 3))):
        state = some.initial(value)
        for _ in range(2):
            new, state = some.update(value, np.ones_like(value), state, 0.1, 0.1)
        assert new.shape == value.shape and (new < value).all()


finite = st.floats(-(2.0**50), 2.0**50, width=32)


@pytest.mark.parametrize("solver", [SGD, AdaGrad, RMSProp])
@given(value=arrays(np.float32, (7,), elements=finite), rate=st.floats(0, 1e3))
def test_without_derivative_and_decay_every_bit_stays(solver, value, rate):
    some = solver()
    new, state = value, some.initial(value)
    for _ in range(3):
        new, state = some.update(new, np.zeros_like(value), state, rate, 0.0)
    # + 0 takes the sign from zeros, the one bit that may go.
    assert (new + np.float32(0)).tobytes() == (value + np.float32(0)).tobytes()


@given(
    value=arrays(np.float64, (5,), elements=st.floats(-100, 100)),
    der=arrays(np.float64, (5,), elements=st.floats(-100, 100)),
    solver=st.sampled_from(SOLVERS),
)
def test_an_update_is_a_function_that_only_reads_value_and_derivative(value, der, solver):
    value.flags.writeable = der.flags.writeable = False
    results = [solver().update(value, der, solver().initial(value), 0.1, 0.01) for _ in range(2)]
    (one, state), (other, same) = results
    np.testing.assert_array_equal(one, other)
    for key in state:
        np.testing.assert_array_equal(state[key], same[key])


@pytest.mark.parametrize("solver", SOLVERS)
def test_state_goes_through_a_file_and_training_continues_bit_by_bit(solver, tmp_path):
    straight, some = small_net(np.float32), solver(0.01)
    steps(straight, some, number=3)
    path = tmp_path / "net.h5"
    dagnn.save(straight, path, extra={"solver": some.state_dict()})
    resumed, another = dagnn.load(path), solver(0.01)
    another.load_state(dagnn.io.load_extra(path)["solver"])
    assert_same_bits(flat(some), flat(another))
    steps(straight, some, number=3)
    steps(resumed, another, number=3)
    assert_same_bits(values(straight), values(resumed))
    assert_same_bits(flat(some), flat(another))


def flat(solver):
    return {f"{name}/{k}": np.array(a) for name, s in solver.state.items() for k, a in s.items()}


def test_state_dict_and_load_state_copy():
    net, solver = small_net(), Adam()
    steps(net, solver, number=1)
    saved = solver.state_dict()
    before = saved["params"]["conv_filters"]["m"].copy()
    assert set(saved) == {"solver", "params"} and set(saved["params"]["conv_filters"]) == {"m", "v", "t"}
    another = Adam()
    another.load_state(saved)
    steps(net, solver)
    steps(net, another)
    np.testing.assert_array_equal(saved["params"]["conv_filters"]["m"], before)
    assert saved["params"]["conv_filters"]["t"] == 1 and solver.state["conv_filters"]["t"] == 6


@pytest.mark.parametrize("solver", SOLVERS)
def test_buffers_are_reused_and_move_with_the_net(solver):
    class Elsewhere(type(small_net().backend)):
        pass

    net, twin, some, same = small_net(), small_net(), solver(), solver()
    steps(net, some, number=2)
    steps(twin, same, number=2)
    buffers = {slot: some.state["conv_filters"][slot] for slot in some.slots}
    steps(net, some, number=1)
    assert all(some.state["conv_filters"][slot] is array for slot, array in buffers.items())
    net.backend = Elsewhere()
    steps(net, some, number=2)
    steps(twin, same, number=3)
    assert not any(some.state["conv_filters"][slot] is array for slot, array in buffers.items())
    assert_same_bits(values(net), values(twin))
    assert_same_bits(flat(some), flat(same))


def test_state_follows_names_and_refuses_other_shapes_and_dtypes():
    net, solver = small_net(), Adam()
    steps(net, solver, number=2)
    net.rename_param("conv_biases", "b")
    steps(net, solver, number=1)
    assert {name: slots["t"] for name, slots in solver.state.items()} == {"conv_filters": 3, "b": 1}

    param = net.params["conv_filters"]
    before = net.params["b"].value
    net.params["b"].der = np.ones(5)
    param.value, param.der = np.ones((2, 3, 3, 3)), np.ones((2, 3, 3, 3))
    with pytest.raises(dagnn.ShapeError, match=r"'conv_filters'.*\(5, 3, 3, 3\).*Received.*\(2, 3, 3, 3\)"):
        solver.step(net)
    param.value, param.der = (np.ones((5, 3, 3, 3), np.float32),) * 2
    with pytest.raises(dagnn.DTypeError, match=r"float64.*del solver.state.*Received.*float32"):
        solver.step(net)
    assert net.params["b"].value is before and solver.state["b"]["t"] == 1
    del solver.state["conv_filters"]
    solver.step(net)
    assert solver.state["conv_filters"]["t"] == 1


@pytest.mark.parametrize(
    "state",
    [
        {},
        {"solver": "SGD", "params": {}},
        {"solver": "Adam"},
        {"solver": "Adam", "params": {"w": {"m": np.ones(2)}}},
        {"solver": "Adam", "params": {"w": 3}},
    ],
)
def test_state_of_another_kind_is_refused(state):
    solver = Adam()
    with pytest.raises(dagnn.OptionError, match="Received"):
        solver.load_state(state)
    assert solver.state == {}


@pytest.fixture(scope="module")
def gaussians():
    """MatConvNet's solver task (xtest/suite/nnsolvers.m): two Gaussian classes of 15 × 10 × 5 arrays."""
    rng = np.random.default_rng(1)
    shape = (5, 15, 10)
    centre = 2 * rng.standard_normal(shape)
    x = 2 * rng.standard_normal((200, *shape))
    x[100:] += centre
    w = 1e-3 * rng.standard_normal((2, *shape))
    return x.astype(np.float32), np.repeat([0, 1], 100), w.astype(np.float32)


def classify(gaussians, solver, epochs):
    """Per epoch (objective, error), averaged over its batches of 10 while training; and the final values."""
    x, labels, w = gaussians
    net = dagnn.DagNN()
    net.add_layer("conv", dagnn.Conv(size=w.shape), "x", "scores")
    net.add_layer("loss", dagnn.Loss(loss="softmaxlog"), ["scores", "labels"], "objective")
    net.add_layer("top1err", dagnn.Loss(loss="classerror"), ["scores", "labels"], "error")
    net.params["conv_filters"].value = w
    net.params["conv_biases"].value = np.zeros(2, np.float32)
    rng, history = np.random.default_rng(2), []
    for _ in range(epochs):
        sums = np.zeros(2)
        for batch in rng.permutation(len(x)).reshape(-1, 10):
            out = net.eval({"x": x[batch], "labels": labels[batch]}, {"objective": 1 / 10})
            sums += out["objective"], out["error"]
            solver.step(net)
        history.append(sums / len(x))
    return np.array(history), values(net)


@pytest.mark.parametrize("solver", SOLVERS)
def test_two_gaussian_classes(gaussians, solver):
    """MatConvNet's criterion, error < 0.35 and objective < 0.5 over epoch 1; and error < 0.1 over epoch 3."""
    history, final = classify(gaussians, solver(), epochs=3)
    assert history[0, 0] < 0.5 and history[0, 1] < 0.35
    assert history[2, 1] < 0.1
    again, same = classify(gaussians, solver(), epochs=3)
    np.testing.assert_array_equal(history, again)
    assert_same_bits(final, same)


@pytest.mark.parametrize(
    ("solver", "option", "value"),
    [(s, "learning_rate", v) for s in SOLVERS for v in (-1, np.nan, np.inf)]
    + [(s, "weight_decay", -0.1) for s in SOLVERS]
    + [(SGD, "momentum", 1.0), (RMSProp, "rho", 1.0), (AdaDelta, "rho", 1.0), (AdaGrad, "rho", 1.1)]
    + [(Adam, "beta1", 1.0), (AdamW, "beta2", -0.5), (AdaGrad, "epsilon", 0), (Adam, "epsilon", 0.0)],
)
def test_impossible_options_raise_at_once(solver, option, value):
    with pytest.raises(dagnn.OptionError, match=f"{solver.__name__}: {option} .*Received: "):
        solver(**{option: value})
    some = solver()
    with pytest.raises(dagnn.OptionError, match="Received"):
        setattr(some, option, value)


def test_the_base_moves_nothing():
    with pytest.raises(NotImplementedError):
        Solver().update(np.ones(1), np.ones(1), {}, 0.1, 0.0)


def test_options_are_shown():
    assert repr(RMSProp(0.1)) == "RMSProp(learning_rate=0.1, weight_decay=0.0005, rho=0.99, epsilon=1e-08)"


def held(how, param):
    """Something that keeps the value of a parameter, or its memory."""
    value = param.value
    return {
        "array": value,
        "view": value[0],
        "view of a view": value.T[1:][::-1],
        "memoryview": memoryview(value) if value.flags.c_contiguous else memoryview(value.T),
        "list": [value],
        "base": value.base if value.base is not None else value,
        "iterator": value.flat,
    }[how]


HOLDS = ["array", "view", "view of a view", "memoryview", "list", "base", "iterator"]
PLACES = {
    "NumPy's own": lambda v: v.copy(),
    "of a pool": lambda v: pooled(v, (0, 1, 2, 3)),
    "of a pool, channels last": lambda v: pooled(v, (0, 2, 3, 1)),
}


def pooled(value, order):
    order = order[: value.ndim] if value.ndim == 4 else range(value.ndim)
    array = memory.empty([value.shape[axis] for axis in order], value.dtype).transpose(np.argsort(order))
    array[...] = value
    return array


def large_net(place):
    """A net whose filters are large enough for the pool."""
    net = dagnn.DagNN()
    net.add_layer("conv", dagnn.Conv(size=(64, 32, 3, 3)), "x", "y")
    net.init_params(0, np.float64)
    param = net.params["conv_filters"]
    param._own(PLACES[place](param.value))
    for p in net.params.values():
        p.der = np.ones_like(p.value)
    return net, param


def address(param):
    return param.value.__array_interface__["data"][0]


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("solver", SOLVERS)
def test_a_value_that_nobody_holds_is_written_in_place_with_the_same_numbers(solver, place):
    (net, param), (twin, other) = large_net(place), large_net(place)
    some, same = solver(0.1), solver(0.1)
    some.step(net), same.step(twin)
    where, version = address(param), param.version
    for _ in range(3):
        keeps = other.value
        some.step(net), same.step(twin)
        assert other.value is not keeps
    assert address(param) == where and param.version == version + 3 and not param.value.flags.writeable
    assert_same_bits(values(net), values(twin))
    assert_same_bits(flat(some), flat(same))


@pytest.mark.parametrize("how", HOLDS)
@pytest.mark.parametrize("place", PLACES)
def test_what_anybody_holds_of_a_value_never_changes(place, how):
    net, param = large_net(place)
    solver = SGD(0.1)
    for _ in range(2):
        keeps, before = held(how, param), param.value.copy()
        again, where = held(how, param), address(param)
        assert type(keeps) is type(again)
        del again
        solver.step(net)
        assert address(param) != where and not np.array_equal(param.value, before)
        kept = np.array(keeps[0] if how == "list" else list(keeps) if how == "iterator" else keeps)
        assert np.isin(kept, before).all() and not np.isin(kept, param.value).any()
        del keeps
    where = address(param)
    solver.step(net)
    assert address(param) == where


def test_copies_of_a_net_and_memory_of_others_are_left_alone():
    net, param = large_net("of a pool")
    copy = net.copy()
    before = copy.params["conv_filters"].value.copy()
    SGD(0.1).step(net)
    np.testing.assert_array_equal(copy.params["conv_filters"].value, before)
    buffer = np.ones(param.value.size * 2)
    for memory_of_others in (buffer[: param.value.size], np.frombuffer(bytearray(param.value.nbytes))):
        param._own(memory_of_others.reshape(param.value.shape))
        before = memory_of_others.copy()
        SGD(0.1).step(net)
        np.testing.assert_array_equal(memory_of_others, before)


@pytest.mark.parametrize("solver", SOLVERS)
def test_an_update_of_ones_own_is_given_values_that_are_only_read(solver):
    class Mine(solver):
        def update(self, value, der, state, learning_rate, weight_decay):
            assert not value.flags.writeable
            return super().update(value, der, state, learning_rate, weight_decay)

    (net, param), (twin, _) = large_net("of a pool"), large_net("of a pool")
    some, same = Mine(0.1), solver(0.1)
    for _ in range(2):
        where = address(param)
        some.step(net), same.step(twin)
        assert address(param) != where
    assert_same_bits(values(net), values(twin))


@pytest.mark.parametrize("solver", SOLVERS)
def test_state_comes_into_the_memory_order_of_the_value_once(solver):
    (net, param), (twin, _) = large_net("of a pool, channels last"), large_net("of a pool, channels last")
    some, same = solver(0.1), solver(0.1)
    some.step(net), same.step(twin)
    slots = some.state["conv_filters"]
    assert all(slots[slot].strides == param.value.strides for slot in some.slots)
    slots.update({slot: np.ascontiguousarray(slots[slot]) for slot in some.slots})
    some.step(net), same.step(twin)
    slots = {slot: some.state["conv_filters"][slot] for slot in some.slots}
    assert all(array.strides == param.value.strides for array in slots.values())
    some.step(net), same.step(twin)
    assert all(some.state["conv_filters"][slot] is array for slot, array in slots.items())
    assert_same_bits(values(net), values(twin))


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_one_element_that_is_not_finite_is_found_anywhere(bad):
    for shape in ((), (1,), (700_000,), (3, 500, 8, 50)):
        a = np.full(shape, 1e30, np.float32)  # whose squares are not finite
        assert all_finite([a]) and all_finite([a.T]) and all_finite([np.broadcast_to(a, (2, *shape))])
        a.flat[a.size - 1] = bad
        assert not all_finite([a]) and not all_finite([np.asfortranarray(a)])
