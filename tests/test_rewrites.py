"""The Plan's rewrites: fewer steps, the same results, and the net as it was."""

from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import dagnn
import dagnn.train
from dagnn.errors import DTypeError, ReleasedError, ShapeError

SHAPE = (2, 4, 6, 6)  # every variable has it, so that anything connects to anything


def random_layer(draw):
    """A layer that keeps SHAPE, and how many inputs it takes."""
    kind = draw(
        st.sampled_from(["conv", "conv", "norm", "relu", "relu", "sum", "sum", "pool", "concat", "drop"])
    )
    if kind == "conv":
        window = draw(st.sampled_from([(1, 0), (3, 1)]))
        groups, bias = draw(st.sampled_from([1, 2])), draw(st.booleans())
        size = (4, 4 // groups, window[0], window[0])
        return dagnn.Conv(size=size, pad=window[1], has_bias=bias), 1
    if kind == "relu":
        leak = draw(st.sampled_from([0.0, 0.0, 0.3, 1.5]))
        backprop = draw(st.sampled_from(["relu", "relu", "eccv16", "none"])) if not leak else "relu"
        return dagnn.ReLU(leak=leak, backprop=backprop), 1
    if kind == "sum":
        return dagnn.Sum(), draw(st.integers(1, 3))
    if kind == "concat":
        return dagnn.Concat(axis=1), 2  # followed by a convolution that halves the channels
    layer = {
        "norm": dagnn.BatchNorm(num_channels=4),
        "pool": dagnn.Pooling(method=draw(st.sampled_from(["max", "avg"])), pool_size=3, pad=1),
        "drop": dagnn.DropOut(rate=0.3, frozen=draw(st.booleans())),
    }[kind]
    return layer, 1


@st.composite
def networks(draw, most=14):
    """Random nets, with a preference for chains; what is frozen and precious is random too."""
    net = dagnn.DagNN()
    variables = ["x", "z"]
    for k in range(draw(st.integers(2, most))):
        layer, n = random_layer(draw)
        recent = variables[-2:] if draw(st.booleans()) else variables[-1:]
        pick = st.sampled_from(variables if draw(st.integers(0, 3)) == 0 else recent)
        inputs = [draw(pick), *(draw(st.sampled_from(variables)) for _ in range(n - 1))]
        net.add_layer(f"f{k}", layer, inputs, f"v{k}")
        if isinstance(layer, dagnn.Concat):
            net.add_layer(f"f{k}half", dagnn.Conv(size=(4, 8, 1, 1)), f"v{k}", f"v{k}half")
        variables.append(net.layers[f"f{k}half"].outputs[0] if f"f{k}half" in net.layers else f"v{k}")
    net.init_params(draw(st.integers(0, 99)), np.float64)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    for name, param in net.params.items():
        if name.endswith("moments"):
            param.value = np.stack([rng.standard_normal(4), rng.uniform(0.5, 2, 4)], axis=1)
        elif name.endswith(("biases", "multipliers")):
            param.value = rng.standard_normal(param.value.shape)
        param.trainable = draw(st.integers(0, 4)) > 0
    for name in net.vars:
        net.vars[name].precious = draw(st.integers(0, 9)) == 0
    return net


def some(draw, names, most=2):
    return draw(st.lists(st.sampled_from(list(names)), max_size=most, unique=True))


def results(net, *args, **options):
    """All an evaluation leaves behind; what was let go of as "released"."""

    def seen(var, what):
        try:
            return getattr(var, what)
        except ReleasedError:
            return "released"

    out = net.eval(*args, **options)
    found = {("out", name): value for name, value in out.items()}
    found |= {(what, n): seen(var, what) for n, var in net.vars.items() for what in ("value", "der")}
    return found | {("param", n): p.der for n, p in net.params.items()}


def agree(one, other):
    assert one.keys() == other.keys()
    for key, a in one.items():
        b = other[key]
        if a is None or isinstance(a, str) or b is None or isinstance(b, str):
            assert type(a) is type(b), key
        else:
            assert a.shape == b.shape and a.dtype == b.dtype, key
            scale = max(1.0, np.abs(b).max(initial=0))
            np.testing.assert_allclose(a, b, rtol=1e-12, atol=1e-12 * scale, err_msg=str(key))


def plan_of(net):
    return next(p for p in net._cache.values() if isinstance(p, dagnn.plan.Plan))


def steps_of(net):
    return [step.name for step in plan_of(net).steps]


@pytest.mark.parametrize("backend", ["numpy", "reference"])
@given(net=networks(), data=st.data(), mode=st.sampled_from(["train", "test"]))
def test_rewrites_change_no_result(backend, net, data, mode):
    net.move(backend)
    net.mode = mode
    rng = np.random.default_rng(0)
    arrays = {name: rng.standard_normal(SHAPE) for name in net.inputs}
    shapes = net.var_shapes(dict.fromkeys(arrays, SHAPE))
    options = {"keep": some(data.draw, net.vars)}
    if data.draw(st.booleans()):
        options["outputs"] = some(data.draw, net.vars)
    if data.draw(st.integers(0, 4)) == 0:
        name = data.draw(st.sampled_from(list(net.vars)))
        arrays[name] = rng.standard_normal(shapes[name])
    seeds = {}
    if data.draw(st.integers(0, 3)):
        seeds = {n: rng.standard_normal(shapes[n]) for n in {*net.outputs, *some(data.draw, net.vars)}}
        options["ders"] = some(data.draw, net.vars)
    fused = results(net, arrays, seeds, **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dagnn.net.fuse", lambda plan, *_: plan)
        net.evaluation -= 1
        net._cache.clear()
        plain = results(net, arrays, seeds, **options)
    agree(fused, plain)


def residual(add="x"):
    """x -> conv -> norm -> (+ add) -> relu -> head."""
    net = dagnn.DagNN()
    net.add_layer("conv", dagnn.Conv(size=(4, 4, 3, 3), pad=1, has_bias=False), "x", "c")
    net.add_layer("norm", dagnn.BatchNorm(num_channels=4), "c", "n")
    net.add_layer("sum", dagnn.Sum(), ["n", add], "s")
    net.add_layer("relu", dagnn.ReLU(), "s", "r")
    net.add_layer("head", dagnn.Conv(size=(2, 4, 6, 6)), "r", "y")
    net.init_params(0, np.float64)
    return net


X = np.random.default_rng(3).standard_normal(SHAPE)
SEED = np.ones((2, 2, 1, 1))


def test_a_residual_block_is_one_step_in_test_and_two_in_training():
    net = residual()
    net.mode = "test"
    net.eval({"x": X})
    assert steps_of(net) == ["conv", "head"]
    with pytest.raises(ReleasedError, match=r"keep=\['n'\]"):
        _ = net.vars["n"].value
    net._cache.clear()
    net.mode = "train"
    net.eval({"x": X}, {"y": SEED})
    assert steps_of(net) == ["conv", "norm", "head"]
    with pytest.raises(ReleasedError):
        _ = net.vars["s"].der


@pytest.mark.parametrize(
    "change, steps",
    [
        (lambda net: None, ["conv", "norm", "head"]),
        (lambda net: setattr(net.vars["c"], "precious", True), ["conv", "norm", "head"]),
        (lambda net: setattr(net.vars["n"], "precious", True), ["conv", "norm", "sum", "head"]),
        (lambda net: setattr(net.vars["s"], "precious", True), ["conv", "norm", "relu", "head"]),
        (lambda net: setattr(net, "conserve_memory", False), ["conv", "norm", "sum", "relu", "head"]),
        (
            lambda net: net.replace_layer("relu", dagnn.ReLU(backprop="eccv16")),
            ["conv", "norm", "relu", "head"],
        ),
        (lambda net: net.add_layer("more", dagnn.Tanh(), "n", "t"), ["conv", "norm", "sum", "head", "more"]),
        (lambda net: net.set_layer_inputs("sum", ["n", "n"]), ["conv", "norm", "sum", "head"]),
        (lambda net: net.set_layer_inputs("sum", ["x", "n", "x"]), ["conv", "norm", "sum", "head"]),
    ],
)
def test_only_what_nobody_sees_is_fused_away(change, steps):
    net = residual()
    change(net)
    net.eval({"x": X}, {"y": SEED})
    assert sorted(steps_of(net)) == sorted(steps)


@pytest.mark.parametrize(
    "options, steps",
    [
        ({"keep": "s"}, ["conv", "norm", "relu", "head"]),
        ({"ders": "n"}, ["conv", "norm", "sum", "head"]),
        ({"outputs": ["y", "n"]}, ["conv", "norm", "sum", "head"]),
        ({"der_outputs": {"y": SEED, "s": X}}, ["conv", "norm", "relu", "head"]),
    ],
)
def test_what_is_asked_for_is_not_fused_away(options, steps):
    net = residual()
    net.eval({"x": X}, **{"der_outputs": {"y": SEED}, **options})
    assert steps_of(net) == steps


def test_a_subclass_may_do_anything():
    @dataclass
    class Mine(dagnn.Conv):
        def forward(self, ctx, inputs, params):
            return [-y for y in super().forward(ctx, inputs, params)]

    @dataclass
    class MyReLU(dagnn.ReLU):
        pass

    net = residual()
    net.replace_layer("head", Mine(size=(2, 4, 6, 6)))
    net.add_layer("last", dagnn.ReLU(), "y", "z")
    net.replace_layer("relu", MyReLU())
    net.eval({"x": X}, {"z": SEED})
    assert steps_of(net) == ["conv", "norm", "relu", "head", "last"]


def test_a_step_waits_for_what_it_adds():
    net = dagnn.DagNN()
    net.add_layer("conv", dagnn.Conv(size=(4, 4, 1, 1)), "x", "c")
    net.add_layer("tanh", dagnn.Tanh(), "x", "t")
    net.add_layer("pool", dagnn.Pooling(pool_size=3, pad=1), "t", "p")
    net.add_layer("sum", dagnn.Sum(), ["c", "p"], "y")
    net.init_params(0, np.float64)
    net.eval({"x": X}, {"y": X}, ders="x")
    assert steps_of(net) == ["tanh", "pool", "conv"]


def test_errors_name_the_layer_they_are_about():
    net = residual(add="z")
    with pytest.raises(ShapeError) as caught:
        net.eval({"x": X, "z": X[:1]})
    assert str(caught.value).splitlines() == [
        "Sum 'sum': inputs differ in shape: (2, 4, 6, 6) and (1, 4, 6, 6)",
        "Received: n (2, 4, 6, 6) float64; z (1, 4, 6, 6) float64",
    ]
    with pytest.raises(DTypeError, match="^Sum 'sum': "):
        net.eval({"x": X, "z": X.astype(np.float32)})
    with pytest.raises(ShapeError, match="^Conv 'conv': "):
        net.eval({"x": X[:, :3], "z": X})
    net.mode = "test"
    net.params["norm_biases"].value = np.ones(3)
    with pytest.raises(ShapeError, match="^BatchNorm 'norm': "):
        net.eval({"x": X, "z": X})


def test_folded_filters_are_made_once_and_again_when_a_parameter_changes(monkeypatch):
    made = []
    fold = dagnn.rewrites.Folded._fold
    monkeypatch.setattr(dagnn.rewrites.Folded, "_fold", lambda self: made.append(1) or fold(self))
    net, plain = residual(), residual()
    plain.conserve_memory = False
    for name in ("norm_moments", "norm_multipliers", "norm_biases", "conv_filters"):
        for other in (net, plain):
            other.mode = "test"
            other.params[name].value = other.params[name].value * 2 + 1
        before = len(made)
        for keep in ([], ["r"], []):
            found, expected = (n.eval({"x": X}, keep=keep)["y"] for n in (net, plain))
            np.testing.assert_allclose(found, expected, rtol=1e-12)
        assert len(made) == before + 1, "one for all plans"


def test_modes_have_plans_of_their_own():
    net = residual()
    training = net.eval({"x": X})["y"]
    net.mode = "test"
    test = net.eval({"x": X})["y"]
    net.mode = "train"
    assert np.array_equal(net.eval({"x": X})["y"], training)
    assert not np.allclose(test, training)


@pytest.mark.parametrize("budget", [None, "1GB"])
def test_options_of_a_fused_layer_may_change_between_evaluations(budget):
    net = dagnn.DagNN()
    net.add_layer("c", dagnn.Conv((4, 4, 1, 1)), "x", "y")
    net.add_layer("r", dagnn.ReLU(), "y", "z")
    net.init_params(0)
    x = np.random.default_rng(0).standard_normal((1, 4, 5, 5), dtype=np.float32)

    def agree():
        plain, results = net.copy(), []
        plain.conserve_memory = False
        for one, options in ((net, {"memory_budget": budget}), (plain, {})):
            one.eval({"x": x}, {"z": np.ones_like(x)}, ders=["x"], **options)
            results.append((one.vars["z"].value, one.vars["x"].der))
        np.testing.assert_array_equal(*results)

    agree()
    net.layers["r"].layer.leak = 0.5
    agree()
    net.layers["r"].layer.leak, net.layers["r"].layer.backprop = 0.0, "deconvnet"
    agree()


def test_options_of_what_is_written_in_place_may_change():
    """The axis of a concatenation, and the number of filters."""
    net = dagnn.DagNN()
    for name in "ab":
        net.add_layer(name, dagnn.Conv(size=(4, 4, 3, 3), pad=1, has_bias=False), "x", name)
    net.add_layer("join", dagnn.Concat(), ["a", "b"], "y")
    net.init_params(0)
    x = np.random.default_rng(0).standard_normal((1, 4, 6, 6), dtype=np.float32)
    assert net.eval({"x": x})["y"].shape == (1, 8, 6, 6)
    net.layers["join"].layer.axis = 2
    assert net.eval({"x": x})["y"].shape == (1, 4, 12, 6)
    net.layers["join"].layer.axis = 1
    assert net.eval({"x": x})["y"].shape == (1, 8, 6, 6)
    net.layers["a"].layer.size = (6, 4, 3, 3)
    net.params["a_filters"].value = np.ones((6, 4, 3, 3), "f")
    y = net.eval({"x": x})["y"]
    assert y.shape == (1, 10, 6, 6)
    assert np.allclose(y[0, :6, 1, 1], x[:, :, :3, :3].sum(), atol=1e-4)


def test_frozen_layers_are_left_out_of_backward(monkeypatch):
    called = []
    for name in ("conv_dzdx", "conv_dzdw", "conv_dzdb", "batch_norm_ders", "relu_dzdx"):
        kernel = getattr(dagnn.backends.get("numpy"), name)
        record = lambda *args, _n=name, _k=kernel, **kwargs: (called.append(_n), _k(*args, **kwargs))[1]  # noqa: E731
        monkeypatch.setattr(dagnn.backends.get("numpy"), name, record)
    net = residual()
    net.freeze(["conv*", "norm*"])
    net.eval({"x": X}, {"y": SEED})
    assert sorted(called) == ["conv_dzdb", "conv_dzdw"], "of the head"
    called.clear()
    net.set_layer_inputs("sum", ["n", "z"])
    net.eval({"x": X, "z": X}, {"y": SEED}, ders="z")
    assert sorted(called) == ["conv_dzdb", "conv_dzdw", "conv_dzdx", "relu_dzdx"], "through the sum to z"
    assert net.vars["z"].der is not None
    called.clear()
    net.freeze("*")
    net.unfreeze("norm_biases")
    net.eval({"x": X, "z": X}, {"y": SEED})
    assert sorted(called) == ["batch_norm_ders", "conv_dzdx", "relu_dzdx"]


def test_what_kernels_make_of_filters_is_kept_until_they_change():
    rng = np.random.default_rng(0)
    net = dagnn.DagNN()
    net.add_layer("c", dagnn.Conv((32, 32, 3, 3), pad=1), "x", "y")
    net.add_layer("f", dagnn.Conv((4, 32, 12, 12)), "y", "z")
    net.init_params(0)
    x = rng.standard_normal((2, 32, 12, 12), dtype=np.float32)

    def agree():
        plain = {name: p.value for name, p in net.params.items()}
        y = net.backend.conv(x, plain["c_filters"], plain["c_biases"], pad=1)
        z = net.backend.conv(y, plain["f_filters"], plain["f_biases"])
        np.testing.assert_array_equal(net.eval({"x": x})["z"], z)

    net.mode = "test"
    agree()
    (folded, *_) = net._cache["folded"].values()
    before = folded()[0]
    agree()
    assert folded()[0] is before and before.prepared, "made once"
    net.params["c_filters"].value = 2 * net.params["c_filters"].value
    agree()
    net.mode = "train"
    assert not folded._arrays, "training changes filters: nothing is kept for them"
    solver = dagnn.train.SGD(learning_rate=0.1)
    for _ in range(2):
        net.mode = "train"
        out = net.eval({"x": x})
        net.eval({"x": x}, {"z": np.ones_like(out["z"])})
        solver.step(net)
        net.mode = "test"
        agree()


@pytest.mark.parametrize("depth", [4, 32])
def test_what_is_kept_of_filters_is_for_so_many_groups(depth):
    net = dagnn.DagNN()
    net.add_layer("c", dagnn.Conv((2 * depth, depth, 3, 3), pad=1), "x", "y")
    net.init_params(0)
    net.mode = "test"
    filters, biases = (p.value for p in net.params.values())
    for groups in (1, 2, 1):
        x = np.ones((2, groups * depth, 20, 20), np.float32)
        plain = net.backend.conv(x, filters, biases, pad=1)
        np.testing.assert_allclose(net.eval({"x": x})["y"], plain, rtol=1e-5, atol=1e-5)


def inception(aside=False):
    """Two convolutions that are concatenated, and one of them read elsewhere too."""
    net = dagnn.DagNN()
    net.add_layer("a", dagnn.Conv((20, 6, 1, 1)), "x", "a")
    net.add_layer("ra", dagnn.ReLU(), "a", "ra")
    net.add_layer("b", dagnn.Conv((24, 6, 3, 3), pad=1), "x", "b")
    net.add_layer("join", dagnn.Concat(), ["ra", "b"], "y")
    if aside:
        net.add_layer("c", dagnn.Conv((5, 24, 1, 1)), "b", "c")
    net.init_params(0)
    return net


@pytest.mark.parametrize("mode", ["train", "test"])
@pytest.mark.parametrize("keep", [(), ("b",), ("ra", "b"), ("a",)])
@pytest.mark.parametrize("aside", [False, True])
def test_convolutions_write_into_their_concatenation(mode, keep, aside):
    x = np.random.default_rng(0).standard_normal((3, 6, 20, 20)).astype(np.float32)
    net, plain = inception(aside), inception(aside)
    plain.conserve_memory = False
    for each in (net, plain):
        each.mode = mode
    for _ in range(2):
        out, expected = net.eval({"x": x}, keep=keep), plain.eval({"x": x})
        for name in (*out, *keep):
            np.testing.assert_array_equal(net.vars[name].value, plain.vars[name].value)
        kept = {name: net.vars[name].value.copy() for name in (*out, *keep)}
        arrays = {name: net.vars[name].value for name in kept}
        net.eval({"x": 2 * x}, keep=keep)
        for name, array in arrays.items():
            np.testing.assert_array_equal(array, kept[name])
        seeds = {name: np.ones_like(value) for name, value in expected.items()}
        net.eval({"x": x}, seeds, ders=["x"])
        plain.eval({"x": x}, seeds)
        np.testing.assert_array_equal(net.vars["x"].der, plain.vars["x"].der)
        for name, param in net.params.items():
            np.testing.assert_array_equal(param.der, plain.params[name].der)


def test_an_output_lies_where_it_is_concatenated():
    net = inception()
    x = np.ones((3, 6, 20, 20), np.float32)
    seen = []

    def watch(xs, axis, *, out=None):
        seen.append([x.base is not None and out is not None and np.shares_memory(x, out) for x in xs])
        return type(net.backend).concat(net.backend, xs, axis, out=out)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(net.backend, "concat", watch, raising=False)
        net.eval({"x": x})
        net.eval({"x": x}, keep=["b"])
    assert seen == [[True, True], [True, False]], "what is kept would keep the other's memory too"


def test_maps_that_do_not_fit_together_are_named_where_they_are_concatenated():
    net = inception()
    net.replace_layer("b", dagnn.Conv((24, 6, 3, 3)))
    with pytest.raises(ShapeError, match="Concat 'join'"):
        net.eval({"x": np.ones((1, 6, 20, 20), np.float32)})
