"""Mixed precision and nets of 16 bits: what computes in which type, and what training makes of it."""

import importlib
import re
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pytest
from test_examples import run
from test_recompute import peak, smallest

import dagnn
from dagnn.cli import main
from dagnn.errors import DTypeError, MissingPackageError, OptionError, TrainingError
from dagnn.nbytes import as_bytes
from dagnn.train import SGD, Trainer
from dagnn.train.scaling import EVERY, START, LossScale

EPSILON = {"float16": 2.0**-11, "bfloat16": 2.0**-8}  # half the distance from 1 to the next number
PRECISIONS = tuple(EPSILON)


@pytest.fixture(params=PRECISIONS)
def precision(request):
    if request.param == "bfloat16":
        pytest.importorskip("ml_dtypes")
    return request.param


def network(*, dropout=False):
    """Two convolutions with all that can be fused, LRN, softmax and two losses."""
    net = dagnn.DagNN()
    net.add_layer("conv1", dagnn.Conv(size=(8, 3, 3, 3), pad=1), "x", "c1")
    net.add_layer("bnorm1", dagnn.BatchNorm(8), "c1", "b1")
    net.add_layer("relu1", dagnn.ReLU(), "b1", "r1")
    net.add_layer("conv2", dagnn.Conv(size=(8, 8, 3, 3), pad=1), "r1", "c2")
    net.add_layer("bnorm2", dagnn.BatchNorm(8), "c2", "b2")
    net.add_layer("sum", dagnn.Sum(), ["b2", "c1"], "s")
    net.add_layer("relu2", dagnn.ReLU(), "s", "r2")
    net.add_layer("lrn", dagnn.LRN(), "r2", "n")
    if dropout:
        net.add_layer("dropout", dagnn.DropOut(0.2), "n", "d")
    net.add_layer("fc", dagnn.Conv(size=(5, 8, 6, 6)), "d" if dropout else "n", "scores")
    net.add_layer("softmax", dagnn.SoftMax(), "scores", "p")
    net.add_layer("loss", dagnn.Loss(), ["scores", "label"], "objective")
    net.add_layer("log", dagnn.Loss("log"), ["p", "label"], "log")
    net.init_params(1)
    return net


def batch(n=16):
    rng = np.random.default_rng(0)
    label = rng.integers(5, size=n)
    x = rng.standard_normal((n, 3, 6, 6)).astype("float32")
    x[np.arange(n), 0, label, :] += 2
    return {"x": x, "label": label}


def types(net):
    return {name: str(var._value.dtype) for name, var in net.vars.items() if hasattr(var._value, "dtype")}


def apart(a, b):
    """The distance of two arrays, against the size of the second."""
    a, b = (np.asarray(c, "float32") for c in (a, b))
    return np.linalg.norm(a - b) / np.linalg.norm(b)


def of_each(precision, **options):
    """What the network leaves, in float32 and in the precision."""
    left = []
    for name in (None, precision):
        net = network()
        net.precision = name
        net.eval(batch(), {"objective": 1.0, "log": 0.5}, ders=["x"], **options)
        left.append(net)
    return left


# ---- what computes in which type


def test_variables_have_the_type_they_are_computed_in(precision):
    net = network()
    net.precision, net.conserve_memory = precision, False
    net.eval(batch(), {"objective": 1.0})
    half = {"c1", "b1", "r1", "c2", "b2", "s", "r2", "n", "scores"}
    assert types(net) == {name: precision if name in half else "float32" for name in net.vars} | {
        "label": "int64"
    }
    ders = {name: str(var._der.dtype) for name, var in net.vars.items() if hasattr(var._der, "dtype")}
    assert ders.items() <= types(net).items() and {"c1", "scores", "x"} <= ders.keys()
    assert {str(p.value.dtype) for p in net.params.values()} == {"float32"}
    assert {str(p.der.dtype) for p in net.params.values()} == {"float32"}


def test_what_is_fused_has_the_same_type(precision):
    net = dagnn.DagNN()
    net.add_layer("conv", dagnn.Conv(size=(3, 3, 3, 3), pad=1), "x", "c")
    net.add_layer("sum", dagnn.Sum(), ["c", "x"], "s")
    net.add_layer("sums", dagnn.Sum(), ["x", "x"], "t")
    net.init_params(0)
    net.precision = precision
    for net.conserve_memory in (True, False):
        out = net.eval({"x": batch(2)["x"]})
        assert (out["s"].dtype, out["t"].dtype) == (precision, "float32")


def test_results_are_those_of_float32_up_to_rounding(precision):
    single, half = of_each(precision)
    epsilon = EPSILON[precision]
    assert apart(half.vars["objective"].value, single.vars["objective"].value) < 4 * epsilon
    for name, param in single.params.items():
        if name not in ("conv2_biases", "bnorm1_biases"):  # of the first: 0, up to rounding
            # A ReLU whose input is rounded across 0 has another slope: that share of them, not its square.
            assert apart(half.params[name].der, param.der) < 2 * epsilon**0.5, name
    assert apart(half.vars["x"].der, single.vars["x"].der) < 2 * epsilon**0.5


def test_fused_and_not_fused_agree(precision):
    ders = []
    for conserve in (True, False):
        net = network()
        net.precision, net.conserve_memory = precision, conserve
        net.eval(batch(), {"objective": 1.0})
        ders.append({name: param.der for name, param in net.params.items()})
    for name in ders[0]:
        if name != "conv2_biases":
            assert apart(ders[0][name], ders[1][name]) < 2 * EPSILON[precision] ** 0.5, name


def test_folded_filters_are_rounded_once_and_made_anew_when_parameters_change(precision):
    net = network()
    net.mode = "test"
    before = net.eval(batch(), outputs="scores")["scores"]
    net.precision = precision
    scores = net.eval(batch(), outputs="scores")["scores"]
    assert scores.dtype == precision and apart(scores, before) < 8 * EPSILON[precision]
    net.params["fc_filters"].value = 2 * net.params["fc_filters"].value
    net.params["fc_biases"].value = 2 * net.params["fc_biases"].value
    twice = net.eval(batch(), outputs="scores")["scores"]
    np.testing.assert_array_equal(twice.astype("float32"), 2 * scores.astype("float32"))


def test_copies_of_parameters_are_made_when_these_change(precision, monkeypatch):
    net = network()
    net.precision = precision
    cast, casts = type(net.backend).cast, []

    def counted(self, arrays, dtype, scale=1.0):
        casts.append(len(arrays))
        return cast(self, arrays, dtype, scale)

    monkeypatch.setattr(type(net.backend), "cast", counted)
    net.eval(batch(), {"objective": 1.0})
    filters_and_biases = 6
    assert casts.count(filters_and_biases) == 2  # to 16 bits, and the derivatives back
    casts.clear()
    net.params["fc_biases"].value = net.params["fc_biases"].value + 1
    net.eval(batch(), outputs="scores")
    assert casts == [1, 1]  # x, and the one that changed


def test_a_memory_budget_is_kept_and_changes_nothing(precision):
    net = network(dropout=True)
    net.precision = precision
    inputs = batch(512)
    net.eval(inputs, {"objective": 1.0})
    ders = {name: param.der for name, param in net.params.items()}
    budget = smallest(net, inputs, {"objective": 1.0})
    net.evaluation = 0
    taken = peak(lambda: net.eval(inputs, {"objective": 1.0}, memory_budget=budget))
    dagnn.set_num_threads(None)
    assert taken <= as_bytes(budget)
    for name, param in net.params.items():
        np.testing.assert_array_equal(param.der, ders[name], err_msg=name)


def test_parameters_that_layers_of_both_precisions_share(precision):
    net = dagnn.DagNN()
    net.add_layer("conv", dagnn.Conv(size=(4, 3, 1, 1), has_bias=False), "x", "a", params=["w"])
    net.add_layer("own", Own(size=(4, 3, 1, 1), has_bias=False), "x", "b", params=["w"])
    net.add_layer("more", dagnn.Conv(size=(4, 3, 1, 1), has_bias=False), "x", "c", params=["w"])
    for name in "abc":
        net.add_layer(f"loss_{name}", dagnn.Loss(), [name, "label"], f"objective_{name}")
    net.init_params(0)
    x = np.random.default_rng(0).standard_normal((8, 3, 1, 1)).astype("float32")
    inputs = {"x": x, "label": np.arange(8) % 4}
    seeds = {f"objective_{name}": 1.0 for name in "abc"}
    net.eval(inputs, seeds)
    single = net.params["w"].der
    net.precision = precision
    net.eval(inputs, seeds)
    assert net.params["w"].der.dtype == "float32"
    assert apart(net.params["w"].der, single) < 4 * EPSILON[precision]


@dataclass
class Own(dagnn.Conv):
    """A class that nobody knows."""


@dataclass
class Willing(dagnn.Layer):
    in_half: ClassVar[bool] = True

    def forward(self, ctx, inputs, params):
        return [inputs[0] + inputs[0]]

    def backward(self, ctx, params, der_outputs):
        return [der_outputs[0] + der_outputs[0]], []


def test_layers_of_ones_own_compute_in_float32_unless_they_say_otherwise(precision):
    net = dagnn.DagNN()
    net.add_layer("conv", dagnn.Conv(size=(4, 3, 1, 1)), "x", "a")
    net.add_layer("own", Own(size=(4, 4, 1, 1)), "a", "b")
    net.add_layer("willing", Willing(), "b", "c")
    net.init_params(0)
    net.precision = precision
    out = net.eval({"x": np.ones((2, 3, 1, 1), "float32")}, {"c": np.ones((2, 4, 1, 1), "float32")}, keep="b")
    assert (net.vars["b"].value.dtype, out["c"].dtype) == ("float32", precision)


def test_regions_keep_their_coordinates(precision):
    net = dagnn.DagNN()
    net.add_layer("conv", dagnn.Conv(size=(1, 1, 1, 1)), "x", "a")
    net.add_layer("pool", dagnn.ROIPooling(subdivisions=1), ["a", "rois"], "y")
    net.params["conv_filters"].value = np.ones((1, 1, 1, 1), "float32")
    net.params["conv_biases"].value = np.zeros(1, "float32")
    x = (np.arange(3000) % 101).astype("float32").reshape(1, 1, 1, 3000)
    rois = np.array([[0], [2901], [0], [2903], [0]], "float32")
    net.precision = precision
    assert net.eval({"x": x, "rois": rois})["y"].item() == 2903 % 101


def test_errors_name_variables_of_the_net(precision):
    net = network()
    net.precision = precision
    with pytest.raises(dagnn.errors.ShapeError, match=r"Conv 'conv1'(.|\n)*Received: x \(2, 4, 6, 6\)"):
        net.eval({"x": np.ones((2, 4, 6, 6), "float32"), "label": [0, 1]})
    with pytest.raises(DTypeError, match="x is float64"):
        net.eval({"x": np.ones((2, 3, 6, 6)), "label": [0, 1]})


# ---- the switch


def test_precision_is_checked_and_copied():
    net = network()
    with pytest.raises(OptionError, match="precision is float32, float16 or bfloat16. Received: 'half'"):
        net.precision = "half"
    net.precision = "float16"
    assert net.copy().precision == "float16"
    net.precision = "float32"
    assert net.precision is None
    net.astype("float64")
    net.precision = "float16"
    with pytest.raises(DTypeError, match="parameters are float32.*Received: float64"):
        net.eval(batch())


def test_bfloat16_needs_a_package(monkeypatch):
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    net = network()
    for switch in (lambda: setattr(net, "precision", "bfloat16"), lambda: net.astype("bfloat16")):
        with pytest.raises(MissingPackageError, match="bfloat16 needs ml_dtypes: pip install ml_dtypes"):
            switch()


# ---- nets of 16 bits


def test_a_net_of_16_bits_computes_as_one_of_32(precision, tmp_path):
    single, half = network(), network()
    half.astype(precision)
    assert {str(p.value.dtype) for p in half.params.values()} == {precision}
    inputs = batch()
    single.eval(inputs, {"objective": 1.0})
    inputs["x"] = inputs["x"].astype(half.dtype)
    half.eval(inputs, {"objective": 1.0})
    assert half.vars["objective"].value.dtype == precision
    assert apart(half.vars["objective"].value, single.vars["objective"].value) < 8 * EPSILON[precision]
    for name, param in single.params.items():
        der = half.params[name].der
        assert der.dtype == precision
        if name != "conv2_biases":
            assert apart(der, param.der) < 3 * EPSILON[precision] ** 0.5, name

    half.save(tmp_path / "net.h5")
    loaded = dagnn.load(tmp_path / "net.h5")
    for name, param in half.params.items():
        assert loaded.params[name].value.dtype == precision
        np.testing.assert_array_equal(loaded.params[name].value, param.value)
    half.save(tmp_path / "net.mat")
    assert dagnn.load(tmp_path / "net.mat").dtype == "float32"


def test_a_file_with_bfloat16_says_what_it_needs(tmp_path, monkeypatch):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    net = network()
    net.meta = {"scalar": ml_dtypes.bfloat16(1.5), "array": np.ones(3, ml_dtypes.bfloat16)}
    net.save(tmp_path / "net.h5")
    loaded = dagnn.load(tmp_path / "net.h5").meta
    assert loaded["scalar"] == 1.5 and loaded["array"].dtype == loaded["scalar"].dtype == "bfloat16"
    monkeypatch.setitem(sys.modules, "ml_dtypes", None)
    with pytest.raises(MissingPackageError, match="bfloat16 needs ml_dtypes"):
        dagnn.load(tmp_path / "net.h5")


PIXELS = (2, 4, 5, 5)
LAYERS = [
    (dagnn.ConvTranspose(size=(4, 3, 2, 2), upsample=2), [PIXELS]),
    (dagnn.DropOut(0.5), [PIXELS]),
    (dagnn.LossSmoothL1(), [PIXELS, PIXELS]),
    (dagnn.LRN(), [PIXELS]),
    (dagnn.NormOffset(), [PIXELS]),
    (dagnn.NormalizeLp(scale=3.0), [PIXELS]),
    (dagnn.PDist(), [PIXELS, (2, 4, 1, 1)]),
    (dagnn.Pooling(method="avg", pool_size=2), [PIXELS]),
    (dagnn.Pooling(pool_size=3, stride=2), [PIXELS]),
    (dagnn.ReLU(leak=0.1), [PIXELS]),
    (dagnn.Scale(size=(1, 4, 1, 1)), [PIXELS]),
    (dagnn.Sigmoid(), [PIXELS]),
    (dagnn.SpatialNorm(), [PIXELS]),
    (dagnn.Tanh(), [PIXELS]),
    (dagnn.AffineGridGenerator(3, 3), [(2, 6, 1, 1)]),
    (dagnn.BilinearSampler(), [PIXELS, (2, 2, 3, 3)]),
]


@pytest.mark.parametrize(("layer", "shapes"), LAYERS, ids=lambda x: type(x).__name__)
def test_layers_in_16_bits(layer, shapes, precision):
    results = []
    inputs = [np.random.default_rng(k).uniform(0.1, 0.9, shape) for k, shape in enumerate(shapes)]
    for dtype in (precision, "float32"):
        net = dagnn.DagNN()
        net.add_layer("layer", layer, [f"x{k}" for k in range(len(shapes))], "y")
        net.init_params(0, dtype)
        data = {f"x{k}": x.astype(precision).astype(dtype) for k, x in enumerate(inputs)}
        y = net.eval(data, outputs="y")["y"]
        seed = np.random.default_rng(9).standard_normal(y.shape).astype(precision).astype(dtype)
        net.evaluation = 0
        net.eval(data, {"y": seed}, ders=list(data))
        ders = [net.vars[name].der for name in data] + [param.der for param in net.params.values()]
        assert {str(array.dtype) for array in (y, *ders)} == {dtype}
        results.append([y, *ders])
    for half, single in zip(*results, strict=True):
        assert apart(half, single) < 4 * EPSILON[precision]


def test_init_params_in_16_bits(precision):
    net = network()
    before = net.params["fc_filters"].value
    net.init_params(1, dtype=precision)
    after = net.params["fc_filters"].value
    assert after.dtype == precision
    np.testing.assert_array_equal(after, before.astype(after.dtype))


def test_sums_are_made_in_single_precision(backend):
    x = backend.asarray(np.full((1, 4096, 1, 1), 4, "float16"))
    w = backend.asarray(np.full((1, 4096, 1, 1), 1, "float16"))
    assert backend.to_numpy(backend.conv(x, w)).item() == 16384
    assert backend.to_numpy(backend.sum_to(x, (1, 1, 1, 1))).item() == 16384


# ---- training


def trained(precision, steps=40, **options):
    """The objectives of the epochs, of one step each."""
    net = network()
    options = {"learning_rate": 0.02, "batch_size": 32, "num_epochs": steps, "progress": False} | options
    trainer = Trainer(net, SGD(momentum=0.9), precision=precision, **options)
    history = trainer.fit(batch(32))
    return trainer, [epoch["train"]["objective"] for epoch in history]


def test_training_follows_that_in_float32(precision):
    _, expected = trained("float32")
    trainer, losses = trained(precision)
    assert trainer.net.precision is None and expected[-1] < expected[0] / 4
    skipped = sum(epoch["train"].get("skipped_steps", 0) for epoch in trainer.history)
    lag = int(skipped)
    differences = [abs(a - b) for a, b in zip(losses[lag:], expected, strict=False)]
    assert max(differences) < 0.03 * expected[0]


def test_small_derivatives_survive_only_if_scaled():
    """A weight so small that all derivatives are below the least float16."""
    options = {"der_outputs": {"objective": 1e-7}, "steps": 1, "momentum": 0.0, "weight_decay": 0.0}
    moved = {}
    for scale in (1, "dynamic"):
        trainer, _ = trained("float16", learning_rate=1e6, loss_scale=scale, **options)
        moved[scale] = apart(
            trainer.net.params["conv1_filters"].value, network().params["conv1_filters"].value
        )
    assert moved[1] < 0.5 * moved["dynamic"]


def test_moments_have_no_scale():
    moments = []
    for options in ({"precision": "float32"}, {"precision": "float32", "loss_scale": 1024}):
        net = network()
        Trainer(net, batch_size=16, num_epochs=2, progress=False, **options).fit(batch())
        moments.append({name: param.value for name, param in net.params.items()})
    for name in moments[0]:  # a power of two changes no digit
        np.testing.assert_array_equal(moments[0][name], moments[1][name], err_msg=name)


def test_overflow_halves_the_scale_and_skips_the_step():
    net = network()
    before = {name: param.value.copy() for name, param in net.params.items()}
    trainer = Trainer(net, precision="float16", batch_size=16, num_epochs=1, progress=False)
    trainer.solver.momentum = 0.0
    trainer.scaling.scale = 2.0**40  # as large as only overflows are
    trainer._scaling = lambda: trainer.scaling
    history = trainer.fit(batch())
    assert trainer.scaling.scale == 2.0**39
    assert history[0]["train"]["skipped_steps"] == 1
    for name, param in net.params.items():
        np.testing.assert_array_equal(param.value, before[name], err_msg=name)


def test_the_scale_grows_after_many_steps():
    scale = LossScale.of(None, "float16")
    assert (scale.scale, scale.dynamic) == (START, True)
    for _ in range(EVERY):
        scale.step(finite=True)
    assert (scale.scale, scale.steps) == (2 * START, 0)
    scale.step(finite=True)
    scale.step(finite=False)
    assert (scale.scale, scale.steps, scale.skipped) == (START, 0, 1)
    assert LossScale.of(None, "bfloat16") == LossScale.of(None, None) == LossScale(1.0)
    assert LossScale.of(128, "float16") == LossScale(128.0)


@dataclass
class Exploding(dagnn.Layer):
    def forward(self, ctx, inputs, params):
        return list(inputs)

    def backward(self, ctx, params, der_outputs):
        return [der_outputs[0] * np.float32(np.inf)], []


@pytest.mark.parametrize("loss_scale", ["dynamic", 8])
def test_an_overflow_that_never_ends_is_an_error(loss_scale):
    net = network()
    net.add_layer("explode", Exploding(), "scores", "e")
    net.add_layer("loss2", dagnn.Loss(), ["e", "label"], "exploded")
    trainer = Trainer(
        net, precision="float16", loss_scale=loss_scale, der_outputs={"exploded": 1}, batch_size=8,
        num_epochs=40, progress=False,
    )  # fmt: skip
    with (
        np.errstate(all="ignore"),
        pytest.raises(TrainingError, match=r"is not finite.*first derivative to go wrong is that of"),
    ):
        trainer.fit(batch())
    skipped = {"dynamic": 16, 8: 0}[loss_scale]
    assert trainer.scaling.scale == (1 if skipped else 8)


@pytest.mark.parametrize("value", [0, -1, np.inf, "large", True])
def test_loss_scale_is_checked(value):
    with pytest.raises(OptionError, match="loss_scale is a positive number or"):
        Trainer(network(), loss_scale=value)


def test_resuming_goes_on_with_the_scale(tmp_path):
    options = {"precision": "float16", "batch_size": 8, "progress": False, "plots": ()}
    whole = Trainer(network(dropout=True), num_epochs=4, **options)
    whole.fit(batch())
    Trainer(network(dropout=True), num_epochs=2, exp_dir=tmp_path, **options).fit(batch())
    rest = Trainer(network(dropout=True), num_epochs=4, exp_dir=tmp_path, continue_=True, **options)
    assert rest.fit(batch()) == whole.history
    assert rest.scaling == whole.scaling
    for name, param in whole.net.params.items():
        np.testing.assert_array_equal(rest.net.params[name].value, param.value, err_msg=name)


def test_evaluation_has_the_trainers_precision(precision):
    net, seen = network(), []
    trainer = Trainer(
        net, precision=precision, progress=False, extract_stats=lambda net: seen.append(net.precision) or {}
    )
    trainer.evaluate(batch())
    assert seen == [precision] and net.precision is None


def test_the_command_takes_a_precision(tmp_path, capsys, precision):
    file = tmp_path / "net.toml"
    file.write_text(
        'network = { python = "parts.py:network" }\n'
        'data = { python = "parts.py:data" }\n'
        'training = { num_epochs = 1, batch_size = 8, exp_dir = "out", plots = [], precision = "float32" }\n'
    )
    (tmp_path / "parts.py").write_text(PARTS)
    assert main(["train", str(file), "--precision", precision]) == 0
    assert set(re.findall("computes in (.*)", capsys.readouterr().out)) == {precision}


PARTS = """
import dagnn
from dagnn.data import Arrays
from test_precision import batch
from test_precision import network as build

class Seen(dagnn.Layer):
    in_half = True

    def forward(self, ctx, inputs, params):
        print("computes in", inputs[0].dtype)
        return list(inputs)

    def backward(self, ctx, params, der_outputs):
        return list(der_outputs), []

def network():
    net = build()
    net.insert("seen", Seen(), "n")
    return net

def data():
    return Arrays(batch(), [1] * 8 + [2] * 8)
"""


@pytest.mark.slow
def test_cifar_learns_as_in_float32(tmp_path, monkeypatch, precision):
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "examples")
    cifar = importlib.import_module("cifar")
    cifar.draw(tmp_path, 0, train=250, test=50)
    losses = {}
    for name in ("float32", precision):
        data = cifar.Cifar10(tmp_path, contrast_normalization=True, whiten_data=True)
        trainer = cifar.train(data, 3, tmp_path / name, seed=0, precision=name)
        losses[name] = [epoch["train"]["objective"] for epoch in trainer.history]
    assert losses[precision][-1] < 0.97 * losses[precision][0]
    np.testing.assert_allclose(losses[precision], losses["float32"], rtol=0.03)


@pytest.mark.slow
def test_digits_reach_their_accuracy(tmp_path, precision):
    assert run("digits", "--out", tmp_path, "--precision", precision).returncode == 0


# ---- on CUDA


def on(backend, precision, **options):
    net = network()
    net.move(backend)
    net.precision = precision
    for name, value in options.items():
        setattr(net, name, value)
    return net


def test_cuda_computes_the_same(emulated, precision):
    ours, reference = on(emulated, precision), on("numpy", precision)
    for net in (ours, reference):
        net.eval(batch(), {"objective": 1.0, "log": 0.5}, keep=("r1", "n", "scores"))
    assert types(ours) == types(reference)
    for name in ("r1", "n", "scores", "objective"):
        values = (net.backend.to_numpy(net.vars[name].value) for net in (ours, reference))
        assert apart(*values) < 8 * EPSILON[precision], name
    for name, param in reference.params.items():
        if name != "conv2_biases":
            der = emulated.to_numpy(ours.params[name].der)
            assert der.dtype == "float32" and apart(der, param.der) < 2 * EPSILON[precision] ** 0.5, name


def test_cuda_trains(emulated, precision):
    losses = []
    for backend in (emulated, "numpy"):
        options = {"learning_rate": 0.02, "batch_size": 8, "num_epochs": 2, "progress": False}
        history = Trainer(on(backend, None), precision=precision, **options).fit(batch())
        losses.append([epoch["train"]["objective"] for epoch in history])
    np.testing.assert_allclose(losses[0], losses[1], rtol=0.05)


def test_graphs_cast_parameters_anew(emulated, precision):
    ders = []
    for capture in (False, True):
        net, solver = on(emulated, precision, capture=capture), SGD(learning_rate=0.05)
        for _ in range(4):
            net.eval(batch(), {"objective": 1.0})
            solver.step(net)
        net.mode = "test"
        for _ in range(3):
            scores = net.eval(batch(), outputs="scores")["scores"]
        ders.append([scores, *(param.der for param in net.params.values())])
    for a, b in zip(*ders, strict=True):
        np.testing.assert_array_equal(*(emulated.to_numpy(c).astype("float32") for c in (a, b)))


def test_overflow_is_infinite_and_nothing_to_warn_of(backend):
    x = backend.asarray(np.full((1, 2, 3, 3), 6e4, "float16"))
    for out in (None, backend.empty(x.shape, x.dtype)):
        assert np.isinf(backend.to_numpy(backend.sum([x, x], out=out))).all()
    ones = backend.asarray(np.ones(2, "float32"))
    moments = backend.asarray(np.array([[0, 1e-3], [0, 1e-3]], "float32"))
    normal, _ = backend.batch_norm(x, ones, ones, moments=moments)
    assert np.isinf(backend.to_numpy(normal)).all()


def test_labels_and_weights_of_16_bits_leave_data_its_type(backend):
    x = np.random.default_rng(0).standard_normal((3, 4, 1, 1), np.float32)
    x, whole = backend.asarray(x), np.arange(3)
    wanted = backend.to_numpy(backend.loss(x, backend.asarray(whole)))
    found = backend.loss(x, backend.asarray(whole.astype("float16")), backend.asarray(np.ones(3, "float16")))
    assert found.dtype == "float32" and backend.to_numpy(found) == wanted
    assert backend.loss_dzdx(1.0, x, backend.asarray(whole.astype("float16"))).dtype == "float32"
