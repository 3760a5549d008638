"""Memory budgets: the same results, under the budget, or an error that says what is needed."""

import tracemalloc
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_rewrites import SHAPE, networks, results, some

import dagnn
from dagnn.backends.numpy import memory
from dagnn.errors import MemoryBudgetError, OptionError
from dagnn.nbytes import as_bytes, readable
from dagnn.train import Trainer


@given(st.integers(1, 10**13))
def test_budgets_are_read_and_written(n):
    assert n <= as_bytes(readable(n)) <= 1.11 * n + 1
    assert as_bytes(n) == n


@pytest.mark.parametrize("budget", ["", "2", "GB", "-1GB", "2XB", 0, -5, 1.5, True, None, [1]])
def test_what_is_no_budget(budget):
    with pytest.raises(OptionError, match=r'such as "2GB" or "512MiB"'):
        as_bytes(budget)


def same(one, other):
    assert one.keys() == other.keys()
    for key, a in one.items():
        b = other[key]
        if a is None or isinstance(a, str) or b is None or isinstance(b, str):
            assert type(a) is type(b), key
        else:
            assert a.dtype == b.dtype and np.array_equal(a, b), key


def smallest(net, inputs, seeds, **options):
    """The smallest budget there is, as the error has it."""
    try:
        net.eval(inputs, seeds, memory_budget=1, **options)
    except MemoryBudgetError as error:
        assert "1 B is too small: this evaluation needs at least" in str(error)
        return str(error).rsplit("at least ", 1)[1]
    return "1 B"  # a net that makes nothing


@given(net=networks(most=20), data=st.data(), mode=st.sampled_from(["train", "test"]))
def test_any_budget_gives_the_same_bits(net, data, mode):
    """Small arrays: what is rehearsed is nearly all overhead, which is left out here."""
    net.mode = mode
    rng = np.random.default_rng(0)
    inputs = {name: rng.standard_normal(SHAPE) for name in net.inputs}
    shapes = net.var_shapes(dict.fromkeys(inputs, SHAPE))
    seeds = {n: rng.standard_normal(shapes[n]) for n in {*net.outputs, *some(data.draw, net.vars)}}
    options = {"keep": some(data.draw, net.vars), "ders": some(data.draw, net.vars)}
    states = {name: dict(state) for name, state in net.state.items()}
    plain = results(net, inputs, seeds, **options)
    after = {name: dict(state) for name, state in net.state.items()}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dagnn.rehearsal.OVERHEAD", 0)
        least = as_bytes(smallest(net, inputs, seeds, **options))
        share = data.draw(st.sampled_from([1.0, 1.2, 2.0]))
        net.state.update(states)
        net.evaluation = 0
        same(results(net, inputs, seeds, memory_budget=int(least * share), **options), plain)
    assert after.keys() == net.state.keys()
    for name, state in after.items():
        assert state.keys() == net.state[name].keys()
        assert all(np.array_equal(state[key], net.state[name][key]) for key in state)


def deep(kind, length=20, channels=16):
    """A deep net whose activations all take 1 MiB, at 4 images."""
    net = dagnn.DagNN()
    x, k = "x", channels
    for i in range(length):
        net.add_layer(f"conv{i}", dagnn.Conv(size=(k, k, 3, 3), pad=1), x, f"c{i}")
        x = f"c{i}"
        if kind == "norm":
            net.add_layer(f"norm{i}", dagnn.BatchNorm(num_channels=k), x, f"n{i}")
            x = f"n{i}"
        if kind == "residual" and i % 2:
            net.add_layer(f"sum{i}", dagnn.Sum(), [x, f"r{i - 2}" if i > 1 else "x"], f"s{i}")
            x = f"s{i}"
        net.add_layer(f"relu{i}", dagnn.ReLU(), x, f"r{i}")
        x = f"r{i}"
        if kind == "dropout":
            net.add_layer(f"drop{i}", dagnn.DropOut(rate=0.1), x, f"d{i}")
            x = f"d{i}"
    net.add_layer("fc", dagnn.Conv(size=(10, k, 64, 64)), x, "scores")
    net.add_layer("loss", dagnn.Loss(), ["scores", "label"], "objective")
    net.add_layer("error", dagnn.Loss(loss="classerror"), ["scores", "label"], "top1err")
    net.init_params(0)
    return net


INPUTS = {
    "x": np.random.default_rng(0).standard_normal((4, 16, 64, 64)).astype(np.float32),
    "label": np.arange(4),
}


def peak(run):
    """The most memory `run` takes, what lies idle included."""
    dagnn.set_num_threads(1)  # whose work is done when it is said to be done
    memory.pool.clear()
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


@pytest.fixture(autouse=True)
def threads():
    """As many as there are cores again, after a test of one."""
    yield
    dagnn.set_num_threads(None)


@pytest.mark.parametrize("kind", ["plain", "norm", "residual", "dropout"])
@pytest.mark.parametrize("share", [1.0, 1.3, 2.0])
def test_the_budget_is_kept(kind, share):
    net = deep(kind)
    dagnn.set_num_threads(1)  # each would need memory of its own
    most = peak(lambda: net.eval(INPUTS, {"objective": 1}))
    plain = results(net, INPUTS, {"objective": 1})
    net.reset()
    net.evaluation -= 1
    budget = int(share * as_bytes(smallest(net, INPUTS, {"objective": 1})))
    assert budget < 0.75 * share * most
    net.evaluation -= 1
    taken = peak(lambda: net.eval(INPUTS, {"objective": 1}, memory_budget=budget))
    assert taken <= budget
    net.reset()
    net.evaluation -= 1
    same(results(net, INPUTS, {"objective": 1}, memory_budget=budget), plain)
    assert net.state["loss"]["num_averaged"] == 4, "the loss was averaged once"


@dataclass
class Counting(dagnn.Layer):
    """y = x times how often it has been evaluated, which it counts in an array of its state."""

    calls: int = 0

    def forward(self, ctx, inputs, params):
        self.calls += 1
        count = ctx.state.setdefault("count", np.zeros(1, np.float32))
        count += 1
        ctx.save(inputs[0], count.copy())
        return [inputs[0] * count]

    def backward(self, ctx, params, der_outputs):
        return [der_outputs[0] * ctx.saved[1]], []


def test_states_are_as_they_were_when_a_layer_runs_again():
    net, layer = deep("plain"), Counting()
    net.insert("counting", layer, after="r1")
    budget = smallest(net, INPUTS, {"objective": 1})
    plain = [results(net, INPUTS, {"objective": 1}) for _ in range(3)]
    net.reset()
    layer.calls = 0
    for expected in plain:
        same(results(net, INPUTS, {"objective": 1}, memory_budget=budget), expected)
    assert net.state["counting"]["count"].item() == 3
    assert layer.calls == 1 + 2 * 3, "once for sizes; in each evaluation forward, and again"


def test_a_step_that_only_hands_a_derivative_on_has_nothing_to_make_again():
    net = dagnn.DagNN()
    net.add_layer("stem", dagnn.Conv(size=(16, 16, 1, 1)), "x", "y0")
    for k in range(12):
        net.add_layer(f"tanh{k}", dagnn.Tanh(), f"y{k}", f"t{k}")
        net.add_layer(f"side{k}", dagnn.Conv(size=(16, 16, 1, 1)), "z", f"s{k}")
        net.add_layer(f"sum{k}", dagnn.Sum(), [f"t{k}", f"s{k}"], f"y{k + 1}")
    net.init_params(0)
    net.freeze("side*")
    arguments = {"x": INPUTS["x"], "z": INPUTS["x"]}, {"y12": np.ones_like(INPUTS["x"])}
    plain = results(net, *arguments)
    budget = smallest(net, *arguments)
    same(results(net, *arguments, memory_budget=budget), plain)


def test_what_is_added_may_be_the_input_itself():
    """A dropout in mode "test" hands its input on: one array under two names, of which one comes again."""
    net, x = dagnn.DagNN(), "x"
    for k in range(6):
        net.add_layer(f"first{k}", dagnn.Conv(size=(4, 4, 3, 3), pad=1), x, f"a{k}")
        net.add_layer(f"drop{k}", dagnn.DropOut(), f"a{k}", f"d{k}")
        net.add_layer(f"second{k}", dagnn.Conv(size=(4, 4, 3, 3), pad=1), f"a{k}", f"b{k}")
        net.add_layer(f"sum{k}", dagnn.Sum(), [f"b{k}", f"d{k}"], f"s{k}")
        x = f"s{k}"
    net.init_params()
    net.mode = "test"
    inputs, seeds = {"x": np.ones((4, 4, 64, 64), "f")}, {x: np.ones((4, 4, 64, 64), "f")}
    plain = results(net, inputs, seeds)
    same(results(net, inputs, seeds, memory_budget=smallest(net, inputs, seeds)), plain)


def test_what_fits_runs_once():
    net = deep("dropout")
    net.insert("counting", counting := Counting(), after="r1")
    for keep in ([], ["r3"], []):
        net.eval(INPUTS, {"objective": 1}, keep=keep, memory_budget="1GB")
    assert counting.calls == 3 + 2, "and once for the sizes of each plan"
    net.eval({name: array[:2] for name, array in INPUTS.items()}, {"objective": 1}, memory_budget="1GB")
    assert counting.calls == 3 + 2 + 1, "smaller inputs fit all the more"
    net.eval(INPUTS, memory_budget="1GB")
    assert counting.calls == 3 + 2 + 1 + 2, "forward alone"
    with pytest.raises(
        MemoryBudgetError, match=r"^memory_budget of 1 MB is too small: .*s at least [\d.]+ MB$"
    ):
        net.eval(INPUTS, memory_budget="1MB")


def test_a_budget_that_is_none_is_refused_before_anything_happens():
    net = deep("plain")
    net.eval(INPUTS, {"objective": 1})
    der = net.params["conv0_filters"].der
    with pytest.raises(OptionError, match="memory_budget is a number of bytes"):
        net.eval(INPUTS, {"objective": 1}, memory_budget="much")
    assert net.params["conv0_filters"].der is der and net.vars["objective"].value is not None


def test_derivatives_accumulate_within_a_budget():
    net = deep("norm", length=6)
    budget = smallest(net, INPUTS, {"objective": 1})
    net.eval(INPUTS, {"objective": 1}, memory_budget=budget)
    first = net.params["conv0_filters"].der.copy()
    net.accumulate_param_ders = True
    net.eval(INPUTS, {"objective": 1}, memory_budget=budget)
    np.testing.assert_array_equal(net.params["conv0_filters"].der, first + first)


def test_training_within_a_budget_is_the_same_training():
    trained = []
    for budget in (None, smallest(deep("dropout", 8), INPUTS, {"objective": 1})):
        net = deep("dropout", 8)
        trainer = Trainer(net, batch_size=2, num_epochs=2, progress=False, memory_budget=budget)
        history = trainer.fit(INPUTS, train=[0, 1, 2], val=[3])
        trained.append((history, {name: param.value for name, param in net.params.items()}))
    assert trained[0][0] == trained[1][0]
    for name, value in trained[0][1].items():
        assert np.array_equal(value, trained[1][1][name]), name
    with pytest.raises(OptionError, match="Received: 'little'"):
        Trainer(net, memory_budget="little")
    with pytest.raises(MemoryBudgetError, match="batch 1: memory_budget of 1 MB"):
        Trainer(net, progress=False, memory_budget="1MB").fit(INPUTS)
