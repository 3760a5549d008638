"""net.profile: what it counts, what it leaves alone, on which backend and plan it works."""

import json
from contextlib import nullcontext
from inspect import signature
from types import SimpleNamespace

import numpy as np
import pytest
from networks import SIAMESE_SHAPES, siamese

import dagnn
import dagnn.zoo
from dagnn.backends.numpy import convolution
from dagnn.errors import OptionError, ShapeError
from dagnn.profile import _Watch, example_inputs


def chain():
    net = dagnn.DagNN()
    net.add_layer("conv", dagnn.Conv(size=(8, 3, 3, 3), pad=1), "x", "c")
    net.add_layer("relu", dagnn.ReLU(), "c", "r")
    net.add_layer("up", dagnn.ConvTranspose(size=(8, 4, 4, 4), upsample=2, crop=1), "r", "u")
    net.add_layer("drop", dagnn.DropOut(), "u", "y")
    net.init_params()
    return net


X = np.random.default_rng(0).standard_normal((2, 3, 16, 16)).astype(np.float32)
SEED = np.ones((2, 4, 32, 32), np.float32)


FOUR = {"a": (4, 1, 8, 8), "b": (4, 1, 8, 8)}


def siamese_inputs():
    rng = np.random.default_rng(0)
    images = {side: rng.standard_normal((2, 1, 8, 8)).astype(np.float32) for side in "ab"}
    return {**images, "label": np.array([0, 2])}


def test_rows_have_the_steps_in_order():
    profile = chain().profile({"x": X}, {"y": SEED}, ders=["x"], repeats=3)
    assert profile.rows[0].name == "conv"
    assert profile.rows[-1].outputs == ((2, 4, 32, 32),)
    assert profile.rows[-1].nbytes == 4 * 2 * 4 * 32 * 32
    assert all(row.forward_ms > 0 and row.backward_ms > 0 for row in profile.rows)
    assert sum(row.share for row in profile.rows) == pytest.approx(1)
    assert profile.forward_ms + profile.backward_ms <= 3 * profile.evaluation_ms
    assert (profile.repeats, profile.backend, profile.mode) == (3, "numpy", "train")
    assert profile.threads == dagnn.num_threads()


def test_operations_are_those_of_the_definition():
    net = chain()
    net.conserve_memory = False  # so that nothing is fused
    profile = net.profile({"x": X}, {"y": SEED}, ders=["x"], repeats=2)
    rows = {row.name: row for row in profile.rows}
    products = {"conv": 2 * 8 * 16 * 16 * 27, "up": 2 * 8 * 16 * 16 * 4 * 16}
    for name, count in products.items():
        row = rows[name]
        assert row.forward_gflops == pytest.approx(2e-6 * count / row.forward_ms)
        assert row.backward_gflops == pytest.approx(2 * 2e-6 * count / row.backward_ms), "dzdx and dzdw"
    assert rows["relu"].forward_gflops is None
    (row,) = net.subnet(outputs="c").profile({"x": X}, {"c": np.ones((2, 8, 16, 16), "f4")}, repeats=2).rows
    assert row.backward_gflops == pytest.approx(2 * 2e-6 * products["conv"] / row.backward_ms)
    net.conserve_memory = True
    (row,) = net.subnet(outputs="c").profile({"x": X}, {"c": np.ones((2, 8, 16, 16), "f4")}, repeats=2).rows
    assert row.backward_gflops == pytest.approx(2e-6 * products["conv"] / row.backward_ms), "dzdw alone"


def test_forward_alone():
    profile = chain().profile({"x": X}, outputs=["c"], repeats=1)
    assert [row.name for row in profile.rows] == ["conv"]
    assert profile.backward_ms == 0
    assert profile.rows[0].backward_gflops is None
    assert "backward" not in str(profile)


def test_the_net_stays_as_it_was():
    net = siamese()
    net.init_params()
    net.accumulate_param_ders = True
    net.eval(siamese_inputs(), {"objective": 1})
    before = net.params["filters"].der.copy()
    state, evaluation, value = dict(net.state["loss"]), net.evaluation, net.vars["objective"].value
    net.profile(siamese_inputs(), {"objective": 1}, repeats=2)
    assert np.array_equal(net.params["filters"].der, before)
    assert dict(net.state["loss"]) == state
    assert net.evaluation == evaluation
    assert net.vars["objective"].value is value
    again = net.eval(siamese_inputs())
    assert np.array_equal(again["objective"], value), "layers without a clock"


def test_shared_layers_have_a_row_each():
    net = dagnn.DagNN()
    layer = dagnn.ReLU()
    net.add_layer("a", layer, "x", "y")
    net.add_layer("b", layer, "y", "z")
    net.vars["y"].precious = True
    assert [row.name for row in net.profile({"x": X}, repeats=1).rows] == ["a", "b"]


@pytest.mark.parametrize("mode", ["train", "test"])
def test_any_backend(backend, mode):
    net = siamese()
    net.init_params()
    net.mode = mode
    net.move(backend)
    profile = net.profile(siamese_inputs(), {"objective": 1}, repeats=1)
    assert profile.backend == backend.name
    assert f"Memory: {profile.memory}." in str(profile)
    assert json.loads(profile.to_json())["memory"]["held"] == profile.memory.held
    assert profile.mode == mode
    assert {"Conv", "Loss"} <= {total.type for total in profile.by_type()}


def test_where_kernels_go_on_after_the_call_they_are_waited_for():
    waited = []
    stream = SimpleNamespace(synchronize=lambda: waited.append(1))
    cuda = SimpleNamespace(get_current_stream=lambda: stream)
    watch = _Watch(SimpleNamespace(xp=SimpleNamespace(cuda=cuda), evaluation=nullcontext))
    assert watch.now() <= watch.now()
    assert len(waited) == 2


def test_what_the_backend_chose(monkeypatch):
    def algorithms(x_shape, w_shape, stride, pad, dilate):
        assert (x_shape, w_shape) == (X.shape, (8, 3, 3, 3))
        assert (stride, pad, dilate) == ((1, 1), (1, 1, 1, 1), (1, 1))
        return {"forward": "winograd", "dzdx": "flipped", "dzdw": "patches"}

    monkeypatch.setattr(convolution, "algorithms", algorithms, raising=False)
    net = chain()
    net.keep_patches = {"conv": False}
    profile = net.profile({"x": X}, {"y": SEED}, repeats=1)
    assert profile.rows[0].algorithms == {"forward": "winograd", "dzdw": "patches"}, "nobody wants dzdx"
    assert str(profile).splitlines()[2].endswith("winograd patches")
    assert profile.rows[-1].algorithms is None
    monkeypatch.delattr(convolution, "algorithms")
    assert "algorithm" not in str(chain().profile({"x": X}, repeats=1))


def test_layers_that_are_one_step():
    net = chain()
    profile = net.profile({"x": X}, {"y": SEED}, repeats=2)
    assert (profile.rows[0].name, profile.rows[0].type) == ("conv", "Conv+ReLU")
    assert profile.rows[0].forward_gflops > 0
    assert profile.by_type()[0].steps + profile.by_type()[1].steps <= len(profile.rows)
    net.vars["c"].precious = True
    rows = net.profile({"x": X}, {"y": SEED}, repeats=2).rows
    assert [row.type for row in rows[:2]] == ["Conv", "ReLU"]


@pytest.mark.skipif(
    "memory_budget" not in signature(dagnn.DagNN.eval).parameters, reason="needs memory budgets"
)
def test_what_a_budget_makes_again_is_counted():
    net = dagnn.DagNN()
    for k in range(40):
        net.add_layer(f"c{k}", dagnn.Conv(size=(4, 4, 3, 3), pad=1), f"x{k}", f"y{k}")
        net.add_layer(f"s{k}", dagnn.Sigmoid(), f"y{k}", f"x{k + 1}")
    net.init_params()
    x = np.random.default_rng(0).standard_normal((8, 4, 64, 64)).astype(np.float32)
    rows = net.profile({"x0": x}, {"x40": x}, repeats=2, memory_budget="20MB").rows
    assert len(rows) == 80
    assert all(row.forward_ms > 0 and row.backward_ms > 0 for row in rows)


def test_totals_add_up():
    net = siamese()
    net.init_params()
    profile = net.profile(siamese_inputs(), {"objective": 1}, repeats=2)
    totals = profile.by_type()
    assert sum(total.steps for total in totals) == len(profile.rows)
    assert sum(total.forward_ms for total in totals) == pytest.approx(profile.forward_ms)
    assert sum(total.share for total in totals) == pytest.approx(1)
    assert [t.share for t in totals] == sorted((t.share for t in totals), reverse=True)


def test_text_and_json(tmp_path):
    profile = chain().profile({"x": X}, {"y": SEED}, repeats=2)
    text = str(profile)
    assert repr(profile) == text
    assert max(map(len, text.splitlines())) <= 120
    assert all(head in text for head in ("layer", "forward", "backward", "share", "GFLOP/s", "steps"))
    assert "Medians of 2" in text
    figures = json.loads(profile.to_json(tmp_path / "profile.json"))
    assert json.loads((tmp_path / "profile.json").read_text()) == figures
    assert figures["rows"][0]["forward_ms"] == profile.rows[0].forward_ms
    assert figures["rows"][-1]["outputs"] == [[2, 4, 32, 32]]


def test_a_custom_layer_is_asked_like_any_other():
    layer = dagnn.Custom(
        lambda ctx, inputs, params: [inputs[0] * 2], lambda ctx, params, ders: ([ders[0] * 2], [])
    )
    net = dagnn.DagNN()
    net.add_layer("double", layer, "x", "y")
    (row,) = net.profile({"x": X}, {"y": X}, ders=["x"], repeats=1).rows
    assert row.type == "Custom"
    assert row.backward_ms > 0


def test_example_inputs():
    shapes = {name: (1, *shape[1:]) for name, shape in SIAMESE_SHAPES.items()}
    for given in (shapes, {name: shapes[name] for name in "ab"}):
        inputs = example_inputs(siamese(), given, batch=4)
        assert {name: array.shape for name, array in inputs.items()} == {**FOUR, "label": (4,)}
        assert inputs["label"].dtype.kind == "i"
    net = siamese()
    net.replace_layer("loss", dagnn.Loss("hinge"))
    net.init_params(dtype=np.float64)
    inputs = example_inputs(net, shapes | {"label": (1, 3, 1, 1)}, batch=4)
    assert inputs["label"].shape == (4, 3, 1, 1)
    assert {array.dtype for array in inputs.values()} == {np.dtype(np.float64)}
    net.eval(inputs, {"objective": 1})


def test_example_inputs_of_a_net_that_makes_images():
    net = dagnn.zoo.dncnn(depth=3)
    net.init_params()
    inputs = example_inputs(net, {"input": (2, 1, 8, 8)})
    assert inputs["label"].shape == (2, 1, 8, 8)
    net.eval(inputs, {"objective": 1})


def test_errors_are_those_of_eval():
    with pytest.raises(ShapeError, match="Conv 'conv'"):
        chain().profile({"x": X[:, :2]})
    for repeats in (0, 1.5, "3"):
        with pytest.raises(OptionError, match="repeats"):
            chain().profile({"x": X}, repeats=repeats)
