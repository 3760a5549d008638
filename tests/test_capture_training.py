"""A training that replays CUDA graphs is the same, to the bit, as one that doesn't."""

import numpy as np
import pytest
from test_capture import assert_same, batch, count_launches, host, small_net  # noqa: F401

import dagnn
from dagnn.errors import TrainingError
from dagnn.train import SGD, Adam, Solver, Trainer


def data(n=22):
    whole = batch(0, n)
    return whole | {"x": whole["x"] + 0.5 * whole["label"][:, None, None, None].astype(np.float32)}


def trained(backend, solver, capture, **options):
    """The history of a training, the net and the solver, from the same start."""
    net = small_net(backend)
    options = {"num_epochs": 3, "batch_size": 6, "learning_rate": [0.1, 0.05], "progress": False} | options
    trainer = Trainer(net, solver, capture=capture, **options)
    history = trainer.fit(data(), train=np.arange(16), val=np.arange(16, 22))
    return history, net, trainer


@pytest.mark.parametrize(
    ("solver", "options"),
    [
        (SGD, {}),
        (Adam, {"learning_rate": lambda time: 0.01 / (1 + time)}),
        (SGD, {"num_sub_batches": 2}),
        (SGD, {"nesterov": True, "prefetch": 0, "freeze": "bn_multipliers"}),
    ],
)
def test_a_training_is_the_same_to_the_bit(emulated, launches, solver, options):
    found = []
    for capture_it in (False, True):
        history, net, trainer = trained(emulated, solver(), capture_it, **options)
        values = {name: param.value for name, param in net.params.items()}
        slots = {
            f"{name} {slot}": emulated.to_numpy(emulated.asarray(array))
            for name, state in trainer.solver.state.items()
            for slot, array in state.items()
        }
        assert not net.capture
        found.append({"params": host(net, values), "slots": slots, "history": {"": history}})
    if "num_sub_batches" not in options:  # two sizes in training, one in validation; parameters stay in place
        assert launches == {"launch": 9, "record": 3}
    assert launches["launch"] > launches["record"] > 0
    assert_same(*found)


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
    whole, said = data(), []
    whole["label"][13] = 4
    for capture_it in (False, True):
        trainer = Trainer(
            small_net(emulated), batch_size=4, num_epochs=3, progress=False, capture=capture_it, random_seed=1
        )
        with pytest.raises(dagnn.LabelError) as error:
            trainer.fit(whole)
        said.append(str(error.value))
    assert "is number 13 of the data" in said[0]
    assert said[0] == said[1]


def test_objectives_that_are_not_finite(emulated):
    whole, said = data(), []
    whole["x"][13] = np.inf
    for capture_it in (False, True):
        trainer = Trainer(small_net(emulated), batch_size=4, num_epochs=3, progress=False, capture=capture_it)
        with pytest.raises(TrainingError) as error:
            trainer.fit(whole)
        said.append(str(error.value))
    assert said[0] == said[1]
