"""A training that replays CUDA graphs is the same, to the bit, as one that doesn't."""

from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import pytest
from test_capture import assert_same, batch, count_launches, host, small_net  # noqa: F401

import dagnn
from dagnn import capture
from dagnn.errors import TrainingError
from dagnn.train import SGD, Adam, AdamW, RMSProp, Solver, Trainer


def data(n=22):
    whole = batch(0, n)
    return whole | {"x": whole["x"] + 0.5 * whole["label"][:, None, None, None].astype(np.float32)}


def trained(backend, solver, capture, net=None, **options):
    """The history of a training, the net and the solver, from the same start."""
    net = small_net(backend) if net is None else net
    options = {"num_epochs": 3, "batch_size": 6, "learning_rate": [0.1, 0.05], "progress": False} | options
    trainer = Trainer(net, solver, capture=capture, **options)
    history = trainer.fit(data(), train=np.arange(16), val=np.arange(16, 22))
    return history, net, trainer


def after(trainer):
    """All that a training leaves, on the host."""
    net, slots = trainer.net, trainer.solver.state_dict()["params"]
    return {
        "values": host(net, {name: param.value for name, param in net.params.items()}),
        "ders": host(net, {name: param.der for name, param in net.params.items()}),
        "slots": {f"{name} {slot}": a for name, state in slots.items() for slot, a in state.items()},
        "history": {"": trainer.history},
        "scaling": trainer.scaling.state_dict(),
        "evaluation": {"": net.evaluation},
    }


@pytest.fixture
def beside(emulated, monkeypatch):
    """The kernels of solvers that were launched, with the flag that they read; graphs launch none."""
    found, blocks = [], emulated._kernels.blocks

    def counted(file, name, *args):
        if name in ("sgd", "adam", "rmsprop"):
            found.append(args[-1])
        return blocks(file, name, *args)

    monkeypatch.setattr(emulated._kernels, "blocks", counted)
    return found


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        (SGD, {}),
        (SGD, {"post_epoch": lambda trainer: setattr(trainer.solver, "momentum", 0.5)}),
        (Adam, {"learning_rate": lambda time: 0.01 / (1 + time)}),
        (AdamW, {"weight_decay": 0.1}),
        (RMSProp, {"loss_scale": 64}),
        (SGD, {"loss_scale": "dynamic"}),
        (SGD, {"num_sub_batches": 2}),
        (SGD, {"nesterov": True, "prefetch": 0, "freeze": "bn_multipliers"}),
    ],
)
def test_a_training_is_the_same_to_the_bit(emulated, launches, beside, solver, options):
    found = []
    for capture_it in (False, True):
        beside.clear()
        _, net, trainer = trained(emulated, solver(), capture_it, **options)
        assert not net.capture
        found.append(after(trainer))
    if "num_sub_batches" not in options:  # two sizes in training, one in validation; parameters stay in place
        assert launches == {"launch": 9, "record": 3}
        # One step as always for each size; in each recording one that compiles, and the one recorded.
        assert [go is None for go in beside] == [True, False, False] * 2
    assert launches["launch"] > launches["record"] > 0
    assert_same(*found)


@pytest.mark.parametrize("scale", [2.0**16, 2.0**30])
@pytest.mark.parametrize("solver", [SGD, Adam])
def test_float16_and_steps_that_are_skipped(emulated, launches, solver, scale):
    found = []
    for capture_it in (False, True):
        net = dagnn.DagNN(emulated)
        net.add_layer("conv", dagnn.Conv(size=(4, 4, 3, 3), pad=1), "x", "a")
        net.add_layer("bn", dagnn.BatchNorm(4), "a", "b")
        net.add_layer("fc", dagnn.Conv(size=(4, 4, 4, 4)), "b", "scores")
        net.add_layer("loss", dagnn.Loss(), ["scores", "label"], "objective")
        net.init_params(0)
        trainer = Trainer(
            net, solver(), precision="float16", learning_rate=0.01, batch_size=4, num_epochs=3,
            capture=capture_it, progress=False,
        )  # fmt: skip
        trainer.scaling.scale = scale
        trainer._scaling = lambda trainer=trainer: trainer.scaling
        trainer.fit(data())
        found.append(after(trainer))
    assert_same(*found)
    assert launches["launch"] > 10
    skipped = [epoch["train"].get("skipped_steps", 0) for epoch in trainer.history]
    assert (sum(skipped) > 6) == (scale > 2**20) and skipped[-1] < 6


@pytest.mark.parametrize(
    ("loss_scale", "replayed"),
    [(None, ["launch", *["launch", "look"] * 4, "look"]), ("dynamic", ["launch", "look"] * 5)],
)
def test_the_next_step_is_launched_before_anybody_looks(emulated, monkeypatch, loss_scale, replayed):
    log, launch, fetch, get = [], capture.Graph.launch, emulated.fetch, emulated.xp.ndarray.get

    def looked(arrays):
        read = fetch(arrays)
        return lambda: log.append("look") or read()

    def waited(self, *args, blocking=True, **options):
        if blocking:
            log.append("wait")
        return get(self, *args, blocking=blocking, **options)

    monkeypatch.setattr(capture.Graph, "launch", lambda *a, **b: log.append("launch") or launch(*a, **b))
    monkeypatch.setattr(emulated, "fetch", looked)
    if not hasattr(emulated.xp, "__path__"):  # CuPy's own arrays can't be changed
        monkeypatch.setattr(emulated.xp.ndarray, "get", waited)
    options = {"batch_size": 4, "num_epochs": 1, "capture": True, "progress": False}
    Trainer(small_net(emulated), Adam(), loss_scale=loss_scale, **options).fit(data(24))
    assert log[log.index("launch") : len(log) - log[::-1].index("look")] == replayed


def test_casts_of_a_recorded_step_are_one_launch_each(emulated, monkeypatch):
    names, blocks = [], emulated._kernels.blocks

    def counted(file, name, *args):
        if emulated._capturing():
            names.append(name)
        return blocks(file, name, *args)

    monkeypatch.setattr(emulated._kernels, "blocks", counted)
    net = dagnn.DagNN(emulated)
    for k in range(3):
        net.add_layer(f"conv{k}", dagnn.Conv(size=(4, 4, 1, 1)), f"x{k}" if k else "x", f"x{k + 1}")
    net.add_layer("pool", dagnn.Pooling(method="avg", pool_size=4), "x3", "scores")
    net.add_layer("loss", dagnn.Loss(), ["scores", "label"], "objective")
    net.init_params(0)
    Trainer(net, precision="float16", batch_size=11, num_epochs=1, capture=True, progress=False).fit(data())
    assert names.count("cast") == 2  # of the parameters, and of their derivatives
    assert names.count("not_finite") == names.count("sgd") == 1


def test_parameters_that_somebody_holds_or_changes(emulated, launches):
    found = []
    for capture_it in (False, True):
        kept = []

        def post_epoch(trainer, kept=kept):
            scale, bn = trainer.net.params["scale_multipliers"], trainer.net.params["bn_multipliers"]
            kept.append((scale.value, emulated.to_numpy(scale.value).copy()))
            if trainer.epoch == 2:
                bn.learning_rate = bn.weight_decay = 0
            if trainer.epoch == 4:
                trainer.solver = Adam(0.01)
                bn.learning_rate = 1
            if trainer.epoch == 5:
                trainer.net.params["bn_biases"].value = np.ones(4, np.float32)

        _, _, trainer = trained(emulated, SGD(), capture_it, post_epoch=post_epoch, num_epochs=8)
        for value, before in kept:
            np.testing.assert_array_equal(emulated.to_numpy(value), before)
        found.append(after(trainer))
    assert_same(*found)
    assert launches["launch"] > launches["record"]


class Momentum(Solver):
    """A solver of the user's, which keeps the last derivative, not a copy of it."""

    slots = ("last",)
    learning_rate, weight_decay = 0.1, 0.0

    def __init__(self):
        super().__post_init__()

    def update(self, value, der, state, learning_rate, weight_decay):
        return value - learning_rate * (der + 0.5 * state["last"]), {"last": der}


def test_a_solver_that_keeps_derivatives(emulated, launches):
    (one, _, _), (two, _, _) = (trained(emulated, Momentum(), capture_it) for capture_it in (False, True))
    assert one == two
    assert launches["launch"]


def test_what_a_training_leaves_is_nobody_elses(emulated):
    kept = []

    def keep(trainer):
        arrays = [param.der for param in trainer.net.params.values()]
        arrays += [value for state in trainer.net.state.values() for value in state.values()]
        kept.extend((a, emulated.to_numpy(a).copy()) for a in arrays if hasattr(a, "shape"))

    trained(emulated, SGD(), True, post_epoch=keep)
    assert kept
    for a, before in kept:
        np.testing.assert_array_equal(emulated.to_numpy(a), before)


def test_wrong_labels_in_training(emulated):
    broken(emulated, lambda whole: whole["label"].__setitem__(13, 4), dagnn.LabelError, "is number 13 of the")


@pytest.mark.parametrize("prefetch", [0, 2])
@pytest.mark.parametrize("epochs", [1, 3])
def test_objectives_that_are_not_finite(emulated, prefetch, epochs):
    def spoil(whole):
        whole["x"][13] = np.inf

    def net():
        net = small_net(emulated)
        net.replace_layer("relu", dagnn.Sigmoid())  # nan ends at a ReLU
        return net

    for scale in (None, "dynamic"):
        options = {"num_epochs": epochs, "prefetch": prefetch, "loss_scale": scale}
        broken(emulated, spoil, TrainingError, "objective is nan", net=net, **options)
    broken(emulated, spoil, TrainingError, "derivative of parameter 'scale_multipliers'", prefetch=prefetch)


def test_the_first_of_several_errors_is_said(emulated):
    def spoil(whole):
        order = np.random.default_rng((1, 1)).permutation(22)
        whole["x"][order[13]] = np.inf  # in batch 4; in the next one there is a wrong label
        whole["label"][order[16]] = 4

    for prefetch in (0, 2):
        broken(emulated, spoil, TrainingError, "batch 4: the derivative", prefetch=prefetch)


@pytest.mark.parametrize("loss_scale", [None, 8.0, "dynamic"])
def test_derivatives_that_are_not_finite(emulated, loss_scale):
    """Where inputs are large; a dynamic scale shrinks to 1 before that is an error."""

    def net():
        net = small_net(emulated)
        net.add_layer("explode", Exploding(), "a", "e")
        net.add_layer("pool2", dagnn.Pooling(method="avg", pool_size=4), "e", "scores2")
        net.add_layer("loss2", dagnn.Loss(), ["scores2", "label"], "exploded")
        return net

    def spoil(whole):
        whole["x"][13] = 100

    options = {"der_outputs": {"exploded": 1.0}, "loss_scale": loss_scale, "num_epochs": 30}
    said = broken(emulated, spoil, TrainingError, "the derivative of parameter", net=net, **options)
    assert "Epoch 1, " in said or loss_scale == "dynamic"


@dataclass
class Exploding(dagnn.Layer):
    """Finite forward, and backward where its inputs are small."""

    capturable: ClassVar[bool] = True

    def forward(self, ctx, inputs, params):
        ctx.save(inputs[0])
        return list(inputs)

    def backward(self, ctx, params, der_outputs):
        (x,) = ctx.saved
        return [der_outputs[0] / (abs(x).max() < 20)], []


def broken(backend, spoil, kind, what, net=None, **options):
    """What a training says of spoilt data, captured as not; it leaves the same behind."""
    whole = data()
    spoil(whole)
    said, found = [], []
    for capture_it in (False, True):
        options = {"batch_size": 4, "num_epochs": 3, "random_seed": 1, "learning_rate": 0.1} | options
        trainer = Trainer(
            small_net(backend) if net is None else net(),
            Adam(),
            capture=capture_it,
            progress=False,
            **options,
        )
        with pytest.raises(kind, match=what) as error:
            trainer.fit(whole)
        said.append(str(error.value))
        left = after(trainer)
        found.append({name: left[name] for name in ("values", "slots", "history", "scaling")})
    assert said[0] == said[1]
    assert_same(*found)
    return said[0]
