"""Evaluations replayed as CUDA graphs leave what plain ones leave, whatever changes in between."""

import gc
import logging
import weakref
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cudnn import made
from test_layers import CASES, case, data
from test_rewrites import SHAPE, networks, some

import dagnn
from dagnn import capture
from dagnn.backends.cupy.graphs import Recorder
from dagnn.train import SGD

OBJECTIVE = {"objective": 1.0}


def small_net(backend, *, frozen=False, seed=0):
    """Parameters, moments, random numbers, averages and fan-out, in few layers, none a convolution."""
    net = dagnn.DagNN(backend=backend)
    net.add_layer("scale", dagnn.Scale(size=(1, 4, 1, 1)), "x", "a")
    net.add_layer("bn", dagnn.BatchNorm(4), "a", "b")
    net.add_layer("relu", dagnn.ReLU(), "b", "c")
    net.add_layer("drop", dagnn.DropOut(rate=0.3, frozen=frozen), "c", "d")
    net.add_layer("pool", dagnn.Pooling(method="avg", pool_size=4), "d", "scores")
    net.add_layer("loss", dagnn.Loss(), ["scores", "label"], "objective")
    net.add_layer("error", dagnn.Loss(loss="classerror"), ["scores", "label"], "top1err")
    net.init_params(seed)
    net.seed = 3
    return net


def batch(k, n=6):
    rng = np.random.default_rng(k)
    return {"x": rng.standard_normal((n, 4, 4, 4), np.float32), "label": rng.integers(0, 4, n)}


def host(net, arrays):
    return {name: None if a is None else net.backend.to_numpy(a) for name, a in arrays.items()}


def left(net, out):
    """All that an evaluation leaves, on the host."""
    values = {name: var._value for name, var in net.vars.items() if hasattr(var._value, "shape")}
    ders = {name: var._der for name, var in net.vars.items() if hasattr(var._der, "shape")}
    params = {name: param.der for name, param in net.params.items()}
    states = {
        f"{name}.{key}": np.asarray(net.backend.to_numpy(net.backend.asarray(value)), np.float64)
        for name, state in net.state.items()
        for key, value in state.items()
    }
    return {
        "out": host(net, out),
        "values": host(net, values),
        "ders": host(net, ders),
        "params": host(net, params),
        "states": states,
        "evaluation": {"": net.evaluation},
    }


def assert_same(one, two):
    for kind, arrays in one.items():
        assert arrays.keys() == two[kind].keys(), kind
        for name, a in arrays.items():
            np.testing.assert_array_equal(a, two[kind][name], err_msg=f"{kind} {name}")


class Pair:
    """A net that captures, and one that doesn't."""

    def __init__(self, backend, make=small_net, **options):
        self.nets = [make(backend, **options) for _ in range(2)]
        self.nets[0].capture = True

    def __iter__(self):
        return iter(self.nets)

    def eval(self, *args, **options):
        """Evaluate both; what they leave is the same."""
        found = [left(net, net.eval(*args, **options)) for net in self]
        assert_same(*found)
        return found[0]

    @property
    def graphs(self):
        seen = self.nets[0]._cache["captures"]._seen if "captures" in self.nets[0]._cache else {}
        return [one.graph for one in seen.values() if one.graph is not None]


@pytest.fixture
def pair(emulated):
    return Pair(emulated)


@pytest.fixture(name="launches")
def count_launches(monkeypatch):
    """The number of launches, and of recordings."""
    count = {"launch": 0, "record": 0}
    launch, record = capture.Graph.launch, Recorder.record

    def counted_launch(self, *args, **options):
        count["launch"] += 1
        return launch(self, *args, **options)

    def counted_record(self, work):
        count["record"] += 1
        return record(self, work)

    monkeypatch.setattr(capture.Graph, "launch", counted_launch)
    monkeypatch.setattr(Recorder, "record", counted_record)
    return count


def test_replays_leave_what_plain_evaluations_leave(pair, launches):
    objectives = set()
    for k in range(6):
        found = pair.eval(batch(k), {"objective": 1 + k / 2}, ders=["x", "scores"])
        objectives.add(float(found["values"]["objective"]))
    assert launches == {"launch": 5, "record": 1}
    assert len(objectives) == 6


def test_forward_alone_and_in_mode_test(pair, launches):
    for mode in ("train", "test"):
        for net in pair:
            net.mode = mode
        for k in range(3):
            pair.eval(batch(k), keep=["b"])
    assert launches == {"launch": 4, "record": 2}


def test_dropout_draws_new_numbers_in_every_replay(emulated):
    net = small_net(emulated)
    net.capture = True
    masks = []
    for _ in range(4):
        net.eval(batch(0), keep=["c", "d"])
        masks.append(net.backend.to_numpy(net.vars["d"].value) != 0)
    assert all((a != b).any() for a in masks[1:] for b in masks[1:] if a is not b)


def test_another_seed_and_another_number_of_evaluation(pair):
    for number, seed in ((5, 0), (5, 0), (5, 0), (900, 0), (7, 1), (7, 1), (2**31 + 5, 1)):
        for net in pair:
            net.evaluation, net.seed = number, seed
        pair.eval(batch(0), OBJECTIVE)


def test_parameters_that_the_user_replaces(pair, launches):
    for k in range(8):
        for net in pair:
            param = net.params["scale_multipliers"]
            param.value = param.value * 1.5
        pair.eval(batch(k), OBJECTIVE)
    assert launches["record"] == 1 + capture.PATIENCE  # from then on it is copied
    for k in range(2):
        pair.eval(batch(k), OBJECTIVE)
    assert launches["record"] == 1 + capture.PATIENCE


def test_parameters_kept_by_the_user_stay_as_they_are(pair):
    net, kept = pair.nets[0], []
    for k in range(8):
        value = net.params["bn_multipliers"].value
        kept.append((value, net.backend.to_numpy(value).copy()))
        for other in pair:
            other.params["bn_multipliers"].value = other.params["bn_multipliers"].value + 1
        pair.eval(batch(k), OBJECTIVE)
    for value, before in kept:
        np.testing.assert_array_equal(net.backend.to_numpy(value), before)


def test_what_is_given_out_is_nobody_elses(pair):
    kept = []
    for k in range(5):
        pair.eval(batch(k), OBJECTIVE, ders=["x"])
        net = pair.nets[0]
        arrays = [net.vars["scores"]._value, net.vars["objective"].value, net.vars["x"].der]
        arrays += [param.der for param in net.params.values()] + [net.state["loss"]["average"]]
        arrays = [a for a in arrays if hasattr(a, "shape")]
        kept.append([(a, net.backend.to_numpy(a).copy()) for a in arrays])
    for a, before in (pair_of for each in kept for pair_of in each):
        np.testing.assert_array_equal(net.backend.to_numpy(a), before)
    for a in arrays:
        a.fill(7)
    pair.nets[1].state["loss"]["average"].fill(7)
    pair.eval(batch(9), OBJECTIVE, ders=["x"])


def test_averages_after_reset_and_as_the_user_sets_them(pair, launches):
    for k in range(9):
        if k in (3, 6):
            for net in pair:
                net.reset()
        if k == 4:
            for net in pair:
                net.state["loss"].update(average=2.0, num_averaged=10)
        pair.eval(batch(k), OBJECTIVE)
    assert launches == {"launch": 8, "record": 1}
    assert int(pair.nets[0].state["loss"]["num_averaged"]) == 18


def test_frozen_masks(emulated, launches):
    pair = Pair(emulated, frozen=True)
    for k in range(4):
        pair.eval(batch(k), OBJECTIVE)
    assert launches == {"launch": 3, "record": 1}
    for net in pair:
        net.state["drop"]["mask"] = net.backend.asarray(np.ones((6, 4, 4, 4), np.float32))
    pair.eval(batch(4), OBJECTIVE)
    for net in pair:
        net.state["drop"]["mask"][:, 1] = 0
    pair.eval(batch(4), OBJECTIVE)
    for net in pair:
        net.state["drop"]["mask"] = np.ones((6, 4, 4, 4), bool)
    pair.eval(batch(4), OBJECTIVE)
    for net in pair:
        net.reset()
    for k in range(3):
        pair.eval(batch(k), OBJECTIVE)
    pair.eval(batch(0, n=3), OBJECTIVE)
    pair.eval(batch(0), OBJECTIVE)


def test_short_last_batches_have_a_graph_of_their_own(pair, launches):
    for epoch in range(3):
        for n in (6, 6, 2):
            pair.eval(batch(epoch, n), OBJECTIVE)
    assert launches == {"launch": 7, "record": 2}
    assert len(pair.graphs) == 2


def test_few_graphs_are_kept(pair):
    for n in range(1, capture.MOST_GRAPHS + 4):
        for k in range(2):
            pair.eval(batch(k, n), OBJECTIVE)
    assert len(pair.graphs) == capture.MOST_GRAPHS


def test_memory_is_freed_with_the_graph(emulated):
    pair = Pair(emulated)
    for k in range(3):
        pair.eval(batch(k), OBJECTIVE)
    graph = weakref.ref(pair.graphs[0])
    recorder = weakref.ref(pair.nets[0]._cache["captures"]._recorder)
    with_graph = emulated.memory_use().used
    assert recorder().nbytes > 0
    pair.nets[0].capture = False
    gc.collect()
    assert graph() is None
    assert recorder() is None
    assert emulated.memory_use().used < with_graph
    pair.eval(batch(4), OBJECTIVE)


@pytest.mark.parametrize("change", ["structure", "capture"])
def test_what_is_borrowed_outlives_its_graph(pair, change):
    """The memory of a pool goes with it, also where arrays are left."""
    net = pair.nets[0]
    with capture.borrowing(net):
        for k in range(3):
            pair.eval(batch(k), OBJECTIVE)
        if change == "structure":
            net.add_layer("new", dagnn.ReLU(), "x", "unused")
        else:
            net.capture = False
        gc.collect()
        for name in OBJECTIVE:
            assert np.isfinite(float(net.vars[name].value))
        for param in net.params.values():
            assert param.der is None or np.isfinite(net.backend.to_numpy(param.der)).all()


def test_robust_regression_and_weights(emulated, launches):
    def make(backend):
        net = dagnn.DagNN(backend=backend)
        net.add_layer("scale", dagnn.Scale(size=(1, 4, 1, 1)), "x", "a")
        net.add_layer("loss", dagnn.LossSmoothL1(), ["a", "target", "weights"], "objective")
        net.init_params(0)
        return net

    pair = Pair(emulated, make)
    for k in range(5):
        rng = np.random.default_rng(k)
        arrays = {name: rng.standard_normal((3, 4, 2, 2), np.float32) for name in ("x", "target", "weights")}
        pair.eval(arrays | {"weights": abs(arrays["weights"])}, OBJECTIVE)
        if k == 2:
            for net in pair:
                net.reset()
    assert launches == {"launch": 4, "record": 1}


@pytest.mark.parametrize("precision", ["float16", "bfloat16"])
def test_mixed_precision(emulated, launches, precision):
    pytest.importorskip("ml_dtypes", reason="the package ml_dtypes isn't installed")

    @dataclass
    class Half(Doubling):
        in_half = True

    def make(backend):
        net = small_net(backend)
        net.set_layer_inputs("scale", "h")
        net.add_layer("half", Half(), "x", "h")
        net.precision = precision
        return net

    pair = Pair(emulated, make)
    for mode in ("train", "test"):
        for k in range(4):
            for net in pair:
                net.mode = mode
            pair.eval(batch(k), OBJECTIVE if mode == "train" else None)
            for net in pair:
                net.params["scale_multipliers"].value = net.params["scale_multipliers"].value * 1.25
    assert launches["launch"] == 6


def test_derivatives_add_up(pair):
    for net in pair:
        net.accumulate_param_ders = True
    for k in range(5):
        pair.eval(batch(k), OBJECTIVE)


def test_a_parameter_server_gets_derivatives_of_its_own(emulated):
    class Server:
        def __init__(self):
            self.got = []

        def push(self, name, der):
            self.got.append((name, der))

    pair = Pair(emulated)
    for net in pair:
        net.parameter_server = Server()
    for k in range(4):
        pair.eval(batch(k), OBJECTIVE)
    for (name, one), (other, two) in zip(*(net.parameter_server.got for net in pair), strict=True):
        assert name == other
        np.testing.assert_array_equal(emulated.to_numpy(one), emulated.to_numpy(two))


def test_options_of_layers_and_the_net_change(pair):
    changes = [
        lambda net: setattr(net.layers["drop"].layer, "rate", 0.6),
        lambda net: setattr(net.layers["relu"].layer, "leak", 0.1),
        lambda net: setattr(net.vars["b"], "precious", True),
        lambda net: net.freeze("bn_biases"),
        lambda net: setattr(net, "conserve_memory", False),
        lambda net: net.set_layer_inputs("pool", "c"),
        lambda net: net.remove_layer("error"),
    ]
    for change in changes:
        for k in range(3):
            pair.eval(batch(k), OBJECTIVE)
        for net in pair:
            change(net)
        for k in range(3):
            pair.eval(batch(k), OBJECTIVE)


def test_types_of_parameters_change(pair):
    for dtype in (np.float32, np.float64):
        for net in pair:
            net.astype(dtype)
        for k in range(3):
            inputs = batch(k)
            pair.eval(inputs | {"x": inputs["x"].astype(dtype)}, OBJECTIVE)


def test_copies_and_moves(emulated, pair):
    for k in range(3):
        pair.eval(batch(k), OBJECTIVE)
    copies = Pair.__new__(Pair)
    copies.nets = [net.copy() for net in pair]
    assert copies.nets[0].capture
    for k in range(3):
        copies.eval(batch(k), OBJECTIVE)
        pair.eval(batch(k + 3), OBJECTIVE)
    for net in pair:
        net.move("numpy")
    pair.eval(batch(0), OBJECTIVE)
    for net in pair:
        net.move(emulated)
    for k in range(3):
        pair.eval(batch(k), OBJECTIVE)


def test_wrong_labels(pair):
    for k in range(3):
        pair.eval(batch(k), OBJECTIVE)
    for where in (np.asarray, pair.nets[0].backend.asarray):
        wrong = batch(3)
        wrong["label"][4] = 4
        messages = []
        for net in pair:
            with pytest.raises(dagnn.LabelError) as error:
                net.eval(wrong | {"label": where(wrong["label"])}, OBJECTIVE)
            messages.append(str(error.value))
            assert error.value.sample == 4
        assert messages[0] == messages[1]
        assert "label 4 of sample 4" in messages[0]
        for net in pair:  # the plain one has looked at the first loss alone
            net.evaluation = 10
            net.reset()
        pair.eval(batch(4), OBJECTIVE)


def test_other_errors_are_those_of_plain_evaluations(pair):
    for k in range(3):
        pair.eval(batch(k), OBJECTIVE)
    for arguments in (
        ({**batch(0), "x": np.ones((6, 3, 4, 4), np.float32)}, OBJECTIVE),
        (batch(0), {"objective": np.ones(3, np.float32)}),
        (batch(0), {"scores": np.ones((6, 4, 1, 1))}),
    ):
        messages = []
        for net in pair:
            with pytest.raises(dagnn.DagnnError) as error:
                net.eval(*arguments)
            messages.append(str(error.value))
        assert messages[0] == messages[1]


# ---- all layers


@pytest.mark.parametrize("name", [name for name in CASES if name != "custom"])
def test_every_layer_can_be_captured(emulated, caplog, launches, name):
    layer, _, options = case(name)
    arrays, params = data(name, np.float32)
    names = [f"x{k}" for k in range(len(arrays))]

    def make(backend):
        net = dagnn.DagNN(backend=backend)
        outputs = [f"y{k}" for k in range(len(layer.output_shapes([a.shape for a in arrays])))]
        net.add_layer("layer", layer, names, outputs)
        for param, value in zip(net.params.values(), params, strict=True):
            param.value = value
        net.mode = options.get("mode", "train")
        return net

    pair = Pair(emulated, make)
    shapes = layer.output_shapes([a.shape for a in arrays])
    ders = {f"y{k}": np.full(shape, 0.5, np.float32) for k, shape in enumerate(shapes)}
    wanted = [n for n, a in zip(names, arrays, strict=True) if a.dtype.kind == "f"]
    for scale in (1, 0.75, 0.5):
        first, *others = arrays
        inputs = dict(zip(names, [(first * scale).astype(first.dtype), *others], strict=True))
        pair.eval(inputs, ders, ders=wanted)
    assert not messages(caplog)
    assert launches == {"launch": 2, "record": 1}


@settings(max_examples=20)
@given(net=networks(), data=st.data(), mode=st.sampled_from(["train", "test"]))
def test_random_networks(emulated, net, data, mode):
    net.mode = mode
    net.move(emulated)
    pair = Pair.__new__(Pair)
    pair.nets = [net.copy(), net]
    pair.nets[0].capture = True
    shapes = net.var_shapes(dict.fromkeys(net.inputs, SHAPE))
    options = {"keep": some(data.draw, net.vars), "ders": some(data.draw, net.vars)}
    named = sorted({*net.outputs, *some(data.draw, net.vars)})
    for k in range(3):
        rng = np.random.default_rng(k)
        inputs = {name: rng.standard_normal(SHAPE) for name in net.inputs}
        pair.eval(inputs, {name: rng.standard_normal(shapes[name]) for name in named}, **options)
    assert len(pair.graphs) == 1


# ---- convolutions


def conv_net(backend):
    """Convolutions with what one kernel does with them: bias, sum, ReLU, concatenation, folding."""
    net = dagnn.DagNN(backend=backend)
    net.add_layer("conv", dagnn.Conv(size=(8, 4, 3, 3), pad=1), "x", "a")
    net.add_layer("bn", dagnn.BatchNorm(8), "a", "b")
    net.add_layer("relu", dagnn.ReLU(), "b", "c")
    net.add_layer("left", dagnn.Conv(size=(4, 4, 3, 3), pad=1), "c", "l")
    net.add_layer("right", dagnn.Conv(size=(4, 8, 1, 1)), "c", "r")
    net.add_layer("join", dagnn.Concat(), ["l", "r"], "j")
    net.add_layer("again", dagnn.Conv(size=(8, 8, 3, 3), pad=1), "j", "d")
    net.add_layer("sum", dagnn.Sum(), ["d", "c"], "e")
    net.add_layer("relu2", dagnn.ReLU(), "e", "f")
    net.add_layer("fc", dagnn.Conv(size=(4, 8, 4, 4)), "f", "scores")
    net.add_layer("loss", dagnn.Loss(), ["scores", "label"], "objective")
    net.init_params(0)
    return net


@pytest.mark.parametrize("precision", [None, "bfloat16"])
def test_convolutions_of_cudnn(emulated, launches, precision):
    if precision:
        pytest.importorskip("ml_dtypes", reason="the package ml_dtypes isn't installed")
    pair, solvers = Pair(emulated, conv_net), [SGD(learning_rate=0.01) for _ in range(2)]
    for net in pair:
        net.precision = precision
    for k in range(4):
        pair.eval(batch(k), OBJECTIVE, ders=["x"])
        for net, solver in zip(pair, solvers, strict=True):
            solver.step(net)
    for net in pair:
        net.mode = "test"
    for k in range(4):
        pair.eval(batch(k))
        if k == 2:
            for net in pair:
                net.params["conv_filters"].value = net.params["conv_filters"].value * 1.5
    assert launches == {"launch": 6, "record": 3}  # once more in mode "test", as folded filters have changed


def test_convolutions_without_cudnn(caplog):
    pair = Pair(made("patches"), conv_net)
    for k in range(3):
        pair.eval(batch(k), OBJECTIVE)
        pair.eval(batch(k, 2), OBJECTIVE)
    assert len(messages(caplog)) == 1
    assert "In layer Conv 'conv'. NotImplementedError: calling cuBLAS" in messages(caplog)[0]


# ---- what can't be captured


@dataclass
class Counting(dagnn.Layer):
    """Does something on the host that no graph would do again."""

    def __post_init__(self):
        self.calls = 0

    def forward(self, ctx, inputs, params):
        self.calls += 1
        return [inputs[0]]

    def backward(self, ctx, params, der_outputs):
        return [der_outputs[0]], []


@dataclass
class Doubling(dagnn.Layer):
    """Asks the device alone."""

    capturable = True

    def forward(self, ctx, inputs, params):
        return [2 * inputs[0]]

    def backward(self, ctx, params, der_outputs):
        return [2 * der_outputs[0]], []


@dataclass
class Peeking(Doubling):
    """Says that it can be captured, but waits for a number."""

    def forward(self, ctx, inputs, params):
        return [inputs[0] * float(inputs[0].sum())]


def messages(caplog):
    return [record.getMessage() for record in caplog.records if record.name == "dagnn"]


@pytest.mark.parametrize(
    ("layer", "says"),
    [
        (
            Counting(),
            "Counting 'extra' may do what can't be recorded; if it doesn't, set Counting.capturable",
        ),
        (Peeking(), "Peeking 'extra'"),
        (dagnn.Custom(lambda ctx, i, p: [i[0]], lambda ctx, p, d: (d, [])), "Custom 'extra'"),
    ],
)
def test_layers_that_cannot_be_captured(emulated, caplog, layer, says):
    def make(backend):
        net = small_net(backend)
        net.set_layer_inputs("pool", "e")
        net.add_layer("extra", layer, "d", "e")
        return net

    pair = Pair(emulated, make)
    with caplog.at_level(logging.WARNING, "dagnn"):
        for k in range(3):
            pair.eval(batch(k), OBJECTIVE)
            pair.eval(batch(k, 2), OBJECTIVE)
            pair.eval(batch(k, 2))
    assert len(messages(caplog)) == 1
    assert says in messages(caplog)[0]
    assert not pair.graphs


def test_layers_that_say_they_can_be_captured(emulated, caplog, launches):
    def make(backend):
        net = small_net(backend)
        net.set_layer_inputs("pool", "e")
        net.add_layer("extra", Doubling(), "d", "e")
        return net

    pair = Pair(emulated, make)
    for k in range(3):
        pair.eval(batch(k), OBJECTIVE)
    assert launches == {"launch": 2, "record": 1}
    assert not messages(caplog)


def test_labels_that_a_layer_makes(emulated, caplog):
    def make(backend):
        net = small_net(backend)
        net.add_layer("labels", dagnn.ReLU(), "label", "positive")
        for name in ("loss", "error"):
            net.set_layer_inputs(name, ["scores", "positive"])
        return net

    pair = Pair(emulated, make)
    for k in range(3):
        inputs = batch(k)
        pair.eval(inputs | {"label": inputs["label"].astype(np.float32)}, OBJECTIVE)
    assert len(messages(caplog)) == 1
    assert "Loss 'loss' has labels 'positive' that another layer makes" in messages(caplog)[0]


def test_a_memory_budget(pair, caplog):
    for k in range(3):
        pair.eval(batch(k), OBJECTIVE, memory_budget="1GB")
    assert len(messages(caplog)) == 1
    assert "memory_budget" in messages(caplog)[0]
    for k in range(3):
        pair.eval(batch(k), OBJECTIVE)
    assert len(pair.graphs) == 1


def test_numpy_ignores_it(caplog):
    pair = Pair("numpy")
    for k in range(3):
        pair.eval(batch(k), OBJECTIVE)
    assert not messages(caplog)
    assert not pair.graphs
