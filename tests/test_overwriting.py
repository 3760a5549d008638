"""Values and derivatives written over others: the same results, and nobody's array is touched."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_rewrites import SHAPE, networks, results, some

import dagnn
from dagnn import net as net_module
from dagnn.backends import get

FAST, REFERENCE = get("numpy"), get("reference")
X = np.random.default_rng(0).standard_normal((4, 8, 40, 40), dtype="f")


@pytest.fixture
def plainly(monkeypatch):
    """Makes nets overwrite nothing."""

    def plain():
        monkeypatch.setattr(net_module, "values_in_place", lambda plan, request: plan)
        monkeypatch.setattr(net_module, "derivatives_in_place", lambda plan: plan)

    return plain


def bits(results):
    return {key: a.tobytes() if hasattr(a, "tobytes") else a for key, a in results.items()}


@settings(deadline=None, max_examples=60)
@given(net=networks(most=14), data=st.data(), mode=st.sampled_from(["train", "test"]))
def test_random_networks_have_the_same_bits(net, data, mode):
    net.mode = mode
    rng = np.random.default_rng(0)
    inputs = {name: rng.standard_normal(SHAPE) for name in net.inputs}
    before = {name: a.copy() for name, a in inputs.items()}
    shapes = net.var_shapes(dict.fromkeys(inputs, SHAPE))
    seeds = {n: rng.standard_normal(shapes[n]) for n in {*net.outputs, *some(data.draw, net.vars)}}
    options = {"keep": some(data.draw, net.vars), "ders": some(data.draw, net.vars)}
    seeds = data.draw(st.sampled_from([seeds, None]))
    if seeds is None:
        options["ders"] = []
    found = results(net, inputs, seeds, **options)
    assert all(np.array_equal(inputs[name], before[name]) for name in inputs)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(net_module, "values_in_place", lambda plan, request: plan)
        patch.setattr(net_module, "derivatives_in_place", lambda plan: plan)
        net._changed()
        net.evaluation = 0
        assert bits(results(net, inputs, seeds, **options)) == bits(found)


def chain(*layers):
    """A convolution and `layers` behind it."""
    net = dagnn.DagNN()
    net.add_layer("conv", dagnn.Conv(size=(8, 8, 3, 3), pad=1), "x", "v0")
    for number, layer in enumerate(layers):
        net.add_layer(f"l{number}", layer, f"v{number}", f"v{number + 1}")
    net.init_params()
    return net


def overwritten(net, **options):
    """The variables whose arrays are written over."""
    inputs = {"x": X}
    seeds = options.pop("seeds", None)
    request = net._request(inputs, seeds, None, options.get("keep", ()), options.get("ders", ()))
    return [step.over for step in net._plan(request).steps if step.over]


@pytest.mark.parametrize("layer", [dagnn.Sigmoid(), dagnn.Tanh(), dagnn.ReLU(leak=0.1)])
def test_what_dies_is_written_over(layer, plainly):
    net = chain(dagnn.Pooling(pool_size=2, stride=2), layer)
    assert overwritten(net) == ["v1"]
    seeds = {"v2": np.ones((4, 8, 39 // 2 + 1, 20), "f")}
    assert overwritten(net, seeds=seeds) == ["v1"]
    found = results(net, {"x": X}, seeds, keep=["v0"], ders=["x"])
    plainly()
    net._changed()
    net.evaluation = 0
    assert overwritten(net) == []
    assert bits(results(net, {"x": X}, seeds, keep=["v0"], ders=["x"])) == bits(found)


def test_what_lives_on_is_left_alone():
    net = chain(dagnn.Sigmoid(), dagnn.Tanh())
    assert overwritten(net) == ["v0", "v1"]
    assert overwritten(net, keep=["v0"]) == ["v1"]
    assert overwritten(net, seeds={"v2": 1}) == ["v0"], "the sigmoid's derivative is made of v1"
    net.vars["v1"].precious = True
    assert overwritten(net) == ["v0"]
    net.vars["v1"].precious = False
    net.add_layer("too", dagnn.Pooling(pool_size=2), "v0", "side")
    assert overwritten(net) == ["v1"]
    net.conserve_memory = False
    assert overwritten(net) == []


def test_given_variables_are_their_owners():
    net = dagnn.DagNN()
    net.add_layer("sigmoid", dagnn.Sigmoid(), "x", "y")
    assert overwritten(net) == []
    before = X.copy()
    net.eval({"x": X})
    assert np.array_equal(X, before)


@dataclass
class Keeper(dagnn.Layer):
    """Keeps what it hands on."""

    def forward(self, ctx, inputs, params):
        ctx.state["kept"] = inputs[0]
        return [inputs[0]]


def test_what_another_layer_may_hold_is_left_alone():
    net = chain(Keeper(), dagnn.Sigmoid(), dagnn.DropOut(), dagnn.Tanh())
    net.mode = "test"
    assert overwritten(net) == []
    net.eval({"x": X})
    assert np.array_equal(
        net.state["l0"]["kept"], FAST.conv(X, *(p.value for p in net.params.values()), pad=1)
    )


def test_a_sum_is_written_over_its_first_term():
    net = chain(dagnn.Pooling(pool_size=3, pad=1))
    net.add_layer("sum", dagnn.Sum(), ["v1", "x"], "s")
    net.add_layer("twice", dagnn.Sum(), ["s", "s"], "t")
    assert overwritten(net) == ["v1"]
    before = X.copy()
    y = net.eval({"x": X})["t"]
    pooled = FAST.max_pool(FAST.conv(X, *(p.value for p in net.params.values()), pad=1), 3, pad=1)[0]
    assert np.allclose(y, 2 * (pooled + X)) and np.array_equal(X, before)


@pytest.mark.parametrize("kernels", [FAST, REFERENCE], ids=["numpy", "reference"])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (4, 8, 60, 60)])
@pytest.mark.parametrize("leak", [0.0, 0.3, 2.0])
def test_kernels_write_over_their_first_argument(kernels, shape, leak):
    rng = np.random.default_rng(0)
    x, other = rng.standard_normal((2, *shape))
    x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    for kernel in (
        lambda a, **out: kernels.relu(a, leak, **out),
        lambda a, **out: kernels.relu_dzdx(a, other, leak, **out),
        kernels.sigmoid,
        kernels.tanh,
        lambda a, **out: kernels.sum([a, other, other], **out),
        lambda a, **out: kernels.sum([a, other], relu=leak, **out),
        lambda a, **out: kernels.sum([a], relu=leak, **out),
    ):
        expected, own = kernel(x), x.copy(order="K")
        assert kernel(own, out=own) is own
        assert np.array_equal(own, expected)
        apart = np.empty_like(x)
        assert kernel(x, out=apart) is apart and np.array_equal(apart, expected)


def test_a_sum_of_derivatives_is_rectified_in_place(monkeypatch):
    """Nobody else's: but where a derivative is kept, or handed in."""
    net = chain(dagnn.ReLU())
    for number in range(3):
        net.add_layer(f"branch{number}", dagnn.Conv(size=(8, 8, 3, 3), pad=1), "v1", f"b{number}")
    net.init_params()
    rng = np.random.default_rng(1)
    seeds = {f"b{number}": rng.standard_normal(X.shape, dtype="f") for number in range(3)}
    outs = []
    rectify = type(net.backend).relu_dzdx

    def looking(self, dzdy, y, leak=0.0, *, out=None):
        outs.append(out is not None)
        return rectify(self, dzdy, y, leak, out=out)

    monkeypatch.setattr(type(net.backend), "relu_dzdx", looking)
    found = results(net, {"x": X}, seeds, ders=["x"])
    kept = results(net, {"x": X}, seeds, ders=["x", "v1"])
    assert outs == [True, False]
    assert all(np.array_equal(found[key], kept[key]) for key in found if key[0] == "param")
    full = net.vars["v1"].der
    both = results(net, {"x": X}, seeds | {"v1": full}, ders=["x"])
    assert outs[2] and np.array_equal(full, kept["der", "v1"])
    assert not np.array_equal(both["der", "x"], found["der", "x"])


def test_derivatives_of_rectified_maps(plainly):
    net = chain(dagnn.ReLU(), dagnn.Conv(size=(8, 8, 3, 3)), dagnn.ReLU(leak=0.2), dagnn.Pooling(pool_size=2))
    seeds = {"v4": np.random.default_rng(1).standard_normal((4, 8, 37, 37), dtype="f")}
    plan = net._plan(net._request({"x": X}, seeds, None, (), ()))
    assert [step.fused.owns for step in plan.steps if step.fused] == [True, True]
    found = results(net, {"x": X}, seeds, ders=["x"])
    asked = net._plan(net._request({"x": X}, seeds, None, (), ["v1"]))
    assert [step.fused.owns for step in asked.steps if step.fused] == [False, True]
    plainly()
    net._changed()
    net.evaluation = 0
    assert bits(results(net, {"x": X}, seeds, ders=["x"])) == bits(found)


@pytest.mark.parametrize("shape", [(), (1,), (0,), (3, 2)])
def test_sums_of_any_shape_are_rectified_in_place(shape):
    net = dagnn.DagNN()
    net.add_layer("sum", dagnn.Sum(), ["a", "b"], "s")
    net.add_layer("relu", dagnn.ReLU(), "s", "r")
    net.add_layer("one", dagnn.Sum(), ["r", "a"], "y")
    net.add_layer("other", dagnn.Sum(), ["r", "b"], "z")
    ones = np.ones(shape)
    net.eval({"a": ones, "b": ones}, {"y": ones, "z": ones}, ders=["a"])
    assert np.array_equal(net.vars["a"].der, 3 * ones)
