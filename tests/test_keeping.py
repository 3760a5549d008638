"""Patches kept from forward to backward: the same bits, by measurement or as asked, within memory budgets."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dagnn
from dagnn import keeping
from dagnn.backends import get
from dagnn.backends.numpy import memory
from dagnn.backends.numpy.convolution import use
from dagnn.zoo import lenet

FAST, REFERENCE = get("numpy"), get("reference")
SEED = {"objective": 1}


def batch(n=4):
    rng = np.random.default_rng(0)
    return {"input": rng.standard_normal((n, 1, 28, 28), dtype="f"), "label": rng.integers(0, 10, n)}


def ders(net):
    return {name: param.der for name, param in net.params.items()}


def assert_same(one, other):
    assert one.keys() == other.keys()
    assert all(np.array_equal(one[name], other[name]) for name in one)


@pytest.fixture
def clock(monkeypatch):
    """Time goes by when told so."""
    now = [0.0]
    monkeypatch.setattr(keeping, "perf_counter", lambda: now[0])
    return now


def slow(monkeypatch, clock, kept, plain):
    """Let backward take `kept` seconds of patches, else `plain`."""
    backward = dagnn.Conv.backward

    def timed(self, ctx, params, der_outputs):
        clock[0] += kept if ctx.patches else plain
        return backward(self, ctx, params, der_outputs)

    monkeypatch.setattr(dagnn.Conv, "backward", timed)


@settings(deadline=None, max_examples=80)
@given(st.data(), st.sampled_from([np.float32, np.float64]))
def test_derivatives_have_the_same_bits(data, dtype):
    draw = data.draw
    n, groups, depth, k = (draw(st.integers(1, most)) for most in (3, 2, 5, 6))
    window = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    options = {"stride": draw(pairs), "pad": draw(st.tuples(*[st.integers(0, 2)] * 4)), "dilate": draw(pairs)}
    size = [(t - 1) * d + draw(st.integers(1, 9)) for t, d in zip(window, options["dilate"], strict=True)]
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    x = rng.standard_normal((n, *size, groups * depth)).astype(dtype).transpose(0, 3, 1, 2)
    x = draw(st.sampled_from([x, np.ascontiguousarray(x)]))
    w = rng.standard_normal((groups * k, depth, *window)).astype(dtype)
    patches = []
    y = FAST.conv(x, w, **options, patches=patches)
    assert np.array_equal(y, FAST.conv(x, w, **options))
    dzdy = rng.standard_normal(y.shape).astype(dtype)
    plain = FAST.conv_dzdw(dzdy, x, w.shape, **options)
    assert np.array_equal(FAST.conv_dzdw(dzdy, x, w.shape, **options, patches=patches), plain)
    assert np.array_equal(FAST.conv_dzdw(dzdy, x, w.shape, **options, patches=[]), plain)


def test_other_threads_in_backward_than_in_forward():
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((3, 2, 99, 99)), rng.standard_normal((4, 2, 5, 5))
    patches = []
    dagnn.set_num_threads(3)
    try:
        dzdy = FAST.conv(x, w, patches=patches)
        dagnn.set_num_threads(1)
        plain = FAST.conv_dzdw(dzdy, x, w.shape)
        assert len(patches) > 1
        assert np.array_equal(FAST.conv_dzdw(dzdy, x, w.shape, patches=patches), plain)
    finally:
        dagnn.set_num_threads(None)


@pytest.mark.parametrize(
    "x_shape, w_shape, options, gathers",
    [
        ((2, 3, 32, 32), (16, 3, 5, 5), {"stride": 2}, True),
        ((2, 64, 9, 9), (32, 64, 1, 1), {"stride": 2}, True),
        ((2, 64, 9, 9), (64, 64, 1, 1), {}, False),  # nothing to gather
        ((2, 64, 14, 14), (64, 64, 3, 3), {"pad": 1}, False),  # minimal filtering
        ((2, 16, 9, 9), (16, 1, 3, 3), {}, False),  # depthwise
        ((2, 16, 9, 9), (16, 16, 9, 9), {}, False),  # fully connected
        ((2, 64, 9, 9), (3, 64, 3, 3), {"stride": 1}, False),  # few filters
        ((2, 64, 19, 19), (8, 64, 5, 5), {"pad": 2}, False),  # dzdy is gathered
        ((2, 256, 9, 9), (512, 256, 3, 3), {"stride": 2}, False),  # a large bank
    ],
)
def test_what_gathers_twice(x_shape, w_shape, options, gathers):
    x, w = np.ones(x_shape, "f"), np.ones(w_shape, "f")
    patches = []
    FAST.conv(x, w, **options, patches=patches)
    assert bool(patches) == gathers
    nothing = []
    REFERENCE.conv(x, w, **options, patches=nothing)
    assert not nothing


@pytest.mark.parametrize("kept, plain, decision", [(1, 2, True), (2, 1, False), (0.97, 1, False)])
def test_what_is_faster_stays(monkeypatch, clock, kept, plain, decision):
    slow(monkeypatch, clock, kept, plain)
    net = lenet()
    net.init_params()
    results = []
    for _ in range(2 * keeping.ROUNDS + 4):
        net.eval(batch(), SEED)
        results.append(ders(net))
    for other in results[1:]:
        assert_same(results[0], other)
    found = {name: [t.kept for t in k.trials.values()] for name, k in net._cache["keepings"].items()}
    assert found == {"conv1": [decision]} | {key: [False] for key in ("conv2", "conv3", "conv4")}
    rows = {row.name: row for row in net.profile(batch(), SEED, repeats=1).rows}
    assert rows["conv1"].algorithms == {"forward": "patches", "dzdw": "kept" if decision else "patches"}


def test_every_size_has_its_own_decision(monkeypatch, clock):
    slow(monkeypatch, clock, 1, 2)
    net = lenet()
    net.init_params()
    for _ in range(2 * keeping.ROUNDS + 2):
        net.eval(batch(), SEED)
    net.eval(batch(2), SEED)
    assert [trial.kept for trial in net._cache["keepings"]["conv1"].trials.values()] == [True, None]
    assert net._cache["keepings"]["conv1"].undecided


def test_sizes_that_never_come_again_take_no_memory(monkeypatch):
    """Neither patches nor, in the long run, what is remembered of each."""
    monkeypatch.setattr(keeping, "MOST_SIZES", 5)
    net = dagnn.DagNN()
    net.add_layer("conv", dagnn.Conv(size=(8, 3, 3, 3)), "x", "y")
    net.init_params()
    kept = []
    conv = type(net.backend).conv

    def looking(*args, patches=None, **options):
        kept.append(patches is not None)
        return conv(*args, patches=patches, **options)

    monkeypatch.setattr(type(net.backend), "conv", looking)
    for width in range(10, 40):
        net.eval({"x": np.ones((1, 3, 10, width), "f")}, {"y": np.ones((1, 8, 8, width - 2), "f")})
    assert kept == [False] * 30
    assert [x[3] for x, _ in net._cache["keepings"]["conv"].trials] == [35, 36, 37, 38, 39]


@pytest.mark.parametrize("asked", [True, False])
def test_what_is_asked_for_is_not_measured(monkeypatch, asked):
    net = lenet()
    net.init_params()
    seen = []
    backward = dagnn.Conv.backward

    def looking(self, ctx, params, der_outputs):
        seen.append(bool(ctx.patches))
        return backward(self, ctx, params, der_outputs)

    monkeypatch.setattr(dagnn.Conv, "backward", looking)
    net.keep_patches = {"conv1": asked, "conv2": asked}
    assert net.copy().keep_patches == {"conv1": asked, "conv2": asked}
    for _ in range(3):
        net.eval(batch(), SEED)
    assert seen[3::4] == [asked] * 3
    assert seen[2::4] == [False] * 3, "minimal filtering gathers nothing"
    assert not net._cache["keepings"]["conv1"].trials
    rows = net.profile(batch(), SEED, repeats=1).rows
    assert rows[0].algorithms["dzdw"] == ("kept" if asked else "patches")


def test_too_much_is_only_kept_where_asked_for(monkeypatch):
    monkeypatch.setattr(keeping, "MOST_BYTES", 1000)
    net = lenet()
    net.init_params()
    net.eval(batch(), SEED)
    assert [t.kept for k in net._cache["keepings"].values() for t in k.trials.values()] == [False] * 4


def test_nothing_is_kept_for_nobody():
    """Neither without a backward pass, nor for frozen filters."""
    net = lenet()
    net.init_params()
    net.eval(batch())
    assert not any(k.trials for k in net._cache["keepings"].values())
    net.freeze("conv1*")
    net.eval(batch(), SEED)
    assert net._cache["keepings"].keys() == {"conv2", "conv3", "conv4"}


@pytest.mark.parametrize(
    "asked, message",
    [({"conv9": True}, "the net has no layer 'conv9'"), ({"conv1": 1}, "is True or False. Received: 1")],
)
def test_what_cannot_be_asked(asked, message):
    with pytest.raises(dagnn.DagnnError, match=message):
        lenet().keep_patches = asked


def test_a_budget_counts_what_is_kept():
    use("patches")
    try:
        net, plain = dagnn.DagNN(), None
        net.add_layer("conv", dagnn.Conv(size=(8, 4, 5, 5)), "x", "c")
        net.add_layer("relu", dagnn.ReLU(), "c", "y")
        net.init_params()
        inputs = {"x": np.random.default_rng(0).standard_normal((4, 4, 64, 64), dtype="f")}
        seeds = {"y": np.ones((4, 8, 60, 60), "f")}
        net.keep_patches = {"conv": False}
        net.eval(inputs, seeds, memory_budget="1GB")
        plain = ders(net)
        before = peak(net)
        net.keep_patches = {"conv": True}
        net.eval(inputs, seeds, memory_budget="1GB")
        assert_same(plain, ders(net))
        matrix = 4 * 60 * 60 * 4 * 25 * 4
        assert matrix <= peak(net) - before <= 1.1 * matrix
        net.eval(inputs, seeds, memory_budget=before)  # without
        assert_same(plain, ders(net))
        assert peak(net) == before
    finally:
        use(None)


def peak(net):
    """What the budget's last plan was rehearsed to take."""
    from dagnn.keeping import settled
    from dagnn.rehearsal import Rehearsal, record
    from dagnn.rewrites import apart

    plan = net._cache["budgets"][0][3]
    values = {"x": np.random.default_rng(0).standard_normal((4, 4, 64, 64), dtype="f")}
    assert apart(plan) and settled(plan)
    made, forms = record(plan, values, net._context)
    memory.pool.clear()
    return Rehearsal(plan, made, forms).peak
