"""Convolutions of the CuPy backend on a CPU: graphs of cuDNN that a stand-in interprets, and patches."""

import logging
import sys

import cudnn_on_cpu
import emulated
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matlab import error
from test_backends import maps, windows
from test_golden_convolution import test_conv, test_conv_transpose  # noqa: F401  (on this module's backend)

from dagnn import Conv, DagNN
from dagnn.backends import get
from dagnn.backends.cupy import CuPyBackend, dnn, patches

REFERENCE = get("reference")
DTYPES = list(cudnn_on_cpu.TYPES.values())
TOLERANCE = {"float32": 2e-5, "float64": 1e-12, "float16": 2e-3, "bfloat16": 1.6e-2}


def made(kind, **options):
    """A backend with cuDNN's stand-in, or without cuDNN."""
    if why := emulated.missing():
        pytest.skip(why)
    with pytest.MonkeyPatch.context() as patch:
        emulated.installed(patch)
        patch.setitem(sys.modules, "cudnn", cudnn_on_cpu.make() if kind == "cudnn" else None)
        backend = CuPyBackend(**options)
        assert (backend._dnn is not None) == (kind == "cudnn")
    return backend


@pytest.fixture(scope="module", params=["cudnn", "patches"])
def backend(request):
    return made(request.param)


@pytest.fixture
def cudnn():
    """A new backend with cuDNN's stand-in, of which this test may count the calls."""
    cudnn_on_cpu.pygraph.log = []
    return made("cudnn")


def happened(what):
    return [name for name, _ in cudnn_on_cpu.pygraph.log].count(what)


def some(backend, *shape, dtype=np.float32, seed=0):
    return backend.asarray(np.random.default_rng(seed).standard_normal(shape).astype(dtype))


def agree(actual, expected):
    assert actual.dtype == expected.dtype and actual.shape == expected.shape
    worst = error(actual.get().astype(float), expected.astype(float))
    assert worst <= TOLERANCE[expected.dtype.name]


@settings(max_examples=60)
@given(
    st.data(),
    windows(),
    st.sampled_from(DTYPES),
    st.sampled_from([1, 3000, 4 << 20]),
    st.sampled_from([None, False, True]),
)
def test_convolutions_are_the_reference(backend, data, sizes, dtype, patch_bytes, last):
    (window, options, size), draw = sizes, data.draw
    groups, depth, k, n = (draw(st.integers(1, most)) for most in (3, 4, 4, 3))
    x = maps(draw, (n, groups * depth, *size), dtype)
    w = maps(draw, (groups * k, depth, *window), dtype)
    b = draw(st.sampled_from([None, np.linspace(-1, 1, groups * k).astype(dtype)]))
    y = REFERENCE.conv(x, w, b, **options)
    dzdy, add = maps(draw, y.shape, dtype), draw(st.sampled_from([None, maps(draw, y.shape, dtype)]))
    leak = draw(st.sampled_from([None, 0.0, 0.2, 1.5]))
    gx, gw, gb, gadd, gdzdy = (None if a is None else backend.asarray(a) for a in (x, w, b, add, dzdy))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "PATCH_BYTES", patch_bytes)
        patch.setitem(backend._options, "channels_last", last)
        expected = REFERENCE.conv(x, w, b, add=add, relu=leak, **options)
        agree(backend.conv(gx, gw, gb, add=gadd, relu=leak, **options), expected)
        agree(
            backend.conv_dzdx(gdzdy, gw, x.shape, **options), REFERENCE.conv_dzdx(dzdy, w, x.shape, **options)
        )
        agree(
            backend.conv_dzdw(gdzdy, gx, w.shape, **options), REFERENCE.conv_dzdw(dzdy, x, w.shape, **options)
        )
        agree(backend.conv_dzdb(gdzdy), REFERENCE.conv_dzdb(dzdy))


@settings(max_examples=40)
@given(st.data(), st.sampled_from(DTYPES), st.sampled_from([None, False, True]))
def test_transposed_convolutions_are_the_reference(backend, data, dtype, last):
    draw = data.draw
    groups, depth, k, n = (draw(st.integers(1, most)) for most in (3, 4, 3, 3))
    window, upsample = (draw(st.tuples(st.integers(1, 4), st.integers(1, 4))) for _ in range(2))
    size = draw(st.tuples(st.integers(1, 6), st.integers(1, 6)))
    crop = tuple(draw(st.integers(0, (window[axis] - 1) // 2)) for axis in (0, 0, 1, 1))
    x = maps(draw, (n, groups * depth, *size), dtype)
    w = maps(draw, (groups * depth, k, *window), dtype)
    b = draw(st.sampled_from([None, np.linspace(-1, 1, groups * k).astype(dtype)]))
    options = {"upsample": upsample, "crop": crop, "num_groups": groups}
    y = REFERENCE.conv_transpose(x, w, b, **options)
    dzdy = maps(draw, y.shape, dtype)
    gx, gw, gb, gdzdy = (None if a is None else backend.asarray(a) for a in (x, w, b, dzdy))
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(backend._options, "channels_last", last)
        agree(backend.conv_transpose(gx, gw, gb, **options), y)
        found = backend.conv_transpose_dzdx(gdzdy, gw, x.shape, **options)
        agree(found, REFERENCE.conv_transpose_dzdx(dzdy, w, x.shape, **options))
        found = backend.conv_transpose_dzdw(gdzdy, gx, w.shape, **options)
        agree(found, REFERENCE.conv_transpose_dzdw(dzdy, x, w.shape, **options))


@settings(max_examples=40)
@given(st.data(), windows(dilates=False), st.sampled_from(DTYPES))
def test_the_identity_bank_is_the_reference(backend, data, sizes, dtype):
    _, options, size = sizes
    x = maps(data.draw, (2, 3, *size), dtype)
    y = REFERENCE.conv(x, None, relu=0.0, **options)
    agree(backend.conv(backend.asarray(x), None, relu=0.0, **options), y)
    found = backend.conv_dzdx(backend.asarray(y), None, x.shape, **options)
    agree(found, REFERENCE.conv_dzdx(y, None, x.shape, **options))


def test_an_empty_batch_goes_through(backend):
    x, w = backend.zeros((0, 2, 5, 5), np.float32), backend.zeros((3, 2, 3, 3), np.float32)
    y = backend.conv(x, w, backend.zeros((3,), np.float32), relu=0.0)
    assert y.shape == (0, 3, 3, 3) and backend.conv(x, None).shape == x.shape
    assert backend.conv_dzdx(y, w, x.shape).shape == x.shape
    assert backend.conv_dzdw(y, x, w.shape).get().tolist() == np.zeros(w.shape).tolist()
    assert backend.conv_dzdb(y).get().tolist() == [0, 0, 0]


@pytest.mark.parametrize("leak", [0.0, 0.5, 2.0])
def test_a_relu_makes_of_nan_what_the_reference_makes_of_it(backend, leak):
    x = np.array([np.nan, np.inf, -np.inf, -1, 2], np.float32).reshape(5, 1, 1, 1)
    w = np.ones((1, 1, 1, 1), np.float32)
    found = backend.conv(backend.asarray(x), backend.asarray(w), relu=leak)
    np.testing.assert_array_equal(found.get(), REFERENCE.conv(x, w, relu=leak))


@pytest.mark.parametrize("order", [(0, 1, 2, 3), (0, 2, 3, 1), (1, 0, 2, 3)])
@pytest.mark.parametrize("leak", [0.0, 0.5])
@pytest.mark.parametrize("last", [False, True])
def test_it_writes_where_it_is_told_to(backend, monkeypatch, order, leak, last):
    monkeypatch.setitem(backend._options, "channels_last", last)
    x, w, b = some(backend, 2, 3, 6, 6), some(backend, 4, 3, 3, 3), some(backend, 4)
    expected = REFERENCE.conv(x.get(), w.get(), b.get(), relu=leak)
    whole = backend.zeros([(2, 12, 4, 4)[k] for k in order], np.float32).transpose(*np.argsort(order))
    for out in (whole[:, 4:8], whole[:, 3:7], backend.zeros((2, 4, 4, 4), np.float32)):
        whole[...] = 0
        assert backend.conv(x, w, b, relu=leak, out=out) is out
        agree(out, expected)
        assert (whole.get() != 0).sum() <= (expected != 0).sum()
        assert backend.conv(x, w, b, add=backend.asarray(expected), out=out) is out
        agree(out, REFERENCE.conv(x.get(), w.get(), b.get(), add=expected))


@pytest.mark.parametrize("last", [False, True])
def test_cudnn_writes_its_part_of_a_concatenation(last):
    backend = made("cudnn", channels_last=last)
    x, w = some(backend, 2, 3, 6, 6), some(backend, 4, 3, 3, 3)
    whole = backend.empty_maps((2, 12, 4, 4), np.float32)
    backend.conv(x, w, out=whole[:, 4:8])
    (problem,) = backend._dnn._plans
    assert problem.apart == ((192, 1, 48, 12) if last else (192, 16, 4, 1))


def test_filters_of_the_net_lie_as_convolutions_read_them(backend):
    w = np.ones((2, 3, 4, 4), np.float32)
    kept = backend.parameter(w)
    assert backend._ready(kept, backend._last(w.dtype)) is not None
    before = kept.data.ptr
    assert backend._ready(kept, backend._last(w.dtype)).data.ptr == before
    assert (
        backend.conv_dzdw(some(backend, 1, 2, 1, 1), some(backend, 1, 3, 4, 4), w.shape).strides
        == kept.strides
    )


def test_filters_of_16_bits_are_brought_into_order_once_a_step(cudnn, monkeypatch):
    net = DagNN(cudnn)
    net.add_layer("conv", Conv(size=(4, 3, 3, 3)), "x", "y")
    net.params["conv_filters"].value, net.params["conv_biases"].value = (
        np.ones((4, 3, 3, 3), "f"),
        np.ones(4, "f"),
    )
    net.precision = "float16"
    moved, ready = [], cudnn._ready
    monkeypatch.setattr(cudnn, "_ready", lambda a, last: moved.append((a, ready(a, last))) or moved[-1][1])
    net.eval({"x": np.ones((2, 3, 6, 6), "f")}, {"y": np.ones((2, 4, 4, 4), "f")}, ders=["x"])
    filters = [(a, b) for a, b in moved if a.shape == (4, 3, 3, 3)]
    assert [a.dtype.name for a, _ in filters] == ["float16"] * 2
    assert all(a.data.ptr == b.data.ptr for a, b in filters)


# What runs on cuDNN, and how often it is planned.


def test_a_problem_is_planned_once(cudnn):
    x, w, b = some(cudnn, 2, 3, 6, 6), some(cudnn, 4, 3, 3, 3), some(cudnn, 4)
    for _ in range(3):
        cudnn.conv(x, w, b, relu=0.0)
        cudnn.conv(x, w)
    assert (happened("planned"), happened("executed")) == (2, 6)
    assert [uids for what, uids in cudnn_on_cpu.pygraph.log if what == "planned"] == [[1, 2, 3, 4], [1, 2, 3]]
    cudnn.conv(x[:1], w)
    assert happened("planned") == 3


@pytest.mark.parametrize("last", [False, True])
def test_filters_as_large_as_the_maps_are_a_product_of_matrices(last):
    backend = made("cudnn", channels_last=last)
    x, w, b = some(backend, 3, 4, 5, 2), some(backend, 6, 4, 5, 2), some(backend, 6)
    dzdy = some(backend, 3, 6, 1, 1)
    agree(backend.conv(x, w, b, relu=0.0, stride=3), REFERENCE.conv(x.get(), w.get(), b.get(), relu=0.0))
    agree(backend.conv_dzdx(dzdy, w, x.shape), REFERENCE.conv_dzdx(dzdy.get(), w.get(), x.shape))
    agree(backend.conv_dzdw(dzdy, x, w.shape), REFERENCE.conv_dzdw(dzdy.get(), x.get(), w.shape))
    for plan in backend._dnn._plans.values():
        assert [3, 40, 1, 1] in [one.dim for one in plan.graph.tensors]


def test_a_sum_goes_with_biases_of_zero(cudnn):
    x, w = some(cudnn, 2, 3, 6, 6), some(cudnn, 4, 3, 3, 3)
    add = some(cudnn, 2, 4, 4, 4, seed=1)
    expected = REFERENCE.conv(x.get(), w.get(), add=add.get(), relu=0.3)
    agree(cudnn.conv(x, w, add=add, relu=0.3), expected)
    assert cudnn_on_cpu.pygraph.log[0] == ("planned", [1, 2, 3, 4, 5])


def test_the_precision_decides_what_a_plan_may_do(cudnn):
    notes = cudnn_on_cpu.numerical_note
    x, w = some(cudnn, 2, 3, 6, 6), some(cudnn, 4, 3, 3, 3)
    for backend, allowed in ((cudnn, False), (made("cudnn", tf32=True), True)):
        y = backend.conv(x, w)
        (plan,) = backend._dnn._plans.values()
        assert (notes.TENSOR_CORE not in plan.graph.notes) == allowed
        assert notes.NONDETERMINISTIC in plan.graph.notes
        assert y.flags.c_contiguous != allowed
    y = made("cudnn", deterministic=False).conv(x, w)
    assert y.flags.c_contiguous


def test_what_cudnn_refuses_goes_another_way_and_is_logged_once(cudnn, monkeypatch, caplog):
    x, w, b = some(cudnn, 2, 3, 6, 6), some(cudnn, 4, 3, 3, 3), some(cudnn, 4)
    expected = REFERENCE.conv(x.get(), w.get(), b.get(), relu=0.0)
    for refused, plans in ((lambda graph: len(graph.tensors) > 3, 1), (lambda graph: True, 0)):
        monkeypatch.setattr(cudnn_on_cpu.pygraph, "refused", staticmethod(refused))
        backend = made("cudnn")
        with caplog.at_level(logging.INFO, logger="dagnn.backends.cupy.dnn"):
            caplog.clear()
            for _ in range(2):
                agree(backend.conv(x, w, b, relu=0.0), expected)
        assert sum(plan is not None for plan in backend._dnn._plans.values()) == plans
        assert len(caplog.messages) == 2 - plans
        assert "cuDNN has no plan for Problem(kind='fprop', dtype='float32'" in caplog.messages[0]


def test_without_cudnn_one_line_says_so(caplog):
    with caplog.at_level(logging.INFO, logger="dagnn.backends.cupy.dnn"):
        backend = made("patches")
    (line,) = caplog.messages
    assert "without cuDNN" in line and "pip install" in line
    assert backend.conv(some(backend, 1, 3, 6, 6), some(backend, 4, 3, 3, 3)).strides[1] == 4


def test_a_limit_on_workspaces_is_kept():
    x = np.ones((2, 3, 6, 6), np.float32)
    backend = made("cudnn", workspace_limit=10)
    agree(backend.conv(backend.asarray(x), backend.asarray(x)), REFERENCE.conv(x, x))
    assert list(backend._dnn._plans.values()) == [None]


def test_old_plans_are_forgotten_unless_a_graph_may_run_them(cudnn, monkeypatch):
    monkeypatch.setattr(dnn, "PLANS", 2)
    x, w = some(cudnn, 4, 3, 6, 6), some(cudnn, 4, 3, 3, 3)
    cudnn.conv(x, w)
    stream = cudnn.xp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        cudnn.conv(x, w)
        stream.end_capture()
    for n in (3, 2, 1):
        cudnn.conv(x[:n], w)
    assert [problem.x[0] for problem in cudnn._dnn._plans] == [4, 1]


def test_tuning_times_every_plan_within_the_limit_once():
    cudnn_on_cpu.pygraph.log = []
    backend = made("cudnn", autotune=True, workspace_limit=2000)
    x, w = some(backend, 2, 3, 6, 6), some(backend, 4, 3, 3, 3)
    for _ in range(2):
        agree(backend.conv(x, w), REFERENCE.conv(x.get(), w.get()))
    timed = [index for what, index in cudnn_on_cpu.pygraph.log if what == "timed"]
    assert timed == [0] * 4 + [1] * 4
    (plan,) = backend._dnn._plans.values()
    assert plan.workspace == plan.graph.get_workspace_size() <= 2000


def test_arrays_that_are_not_aligned_are_copied(backend):
    shape = 3, 1, 3, 3  # of 36 bytes each
    x, w = some(backend, *shape), some(backend, *shape, seed=1)
    found = backend.conv(x[1:2], w[1:2], some(backend, 2)[1:])
    agree(found, REFERENCE.conv(x.get()[1:2], w.get()[1:2], some(backend, 2).get()[1:]))


def test_graphs_record_cudnn_but_not_cublas(cudnn):
    x, w, b = some(cudnn, 2, 3, 6, 6), some(cudnn, 4, 3, 3, 3), some(cudnn, 4)
    cudnn.conv(x, w, b, relu=0.1)
    stream = cudnn.xp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        y = cudnn.conv(x, w, b, relu=0.1)
        graph = stream.end_capture()
    x[...] = -x
    graph.launch()
    agree(y, REFERENCE.conv(x.get(), w.get(), b.get(), relu=0.1))
    agree(cudnn.conv(x, w, b), REFERENCE.conv(x.get(), w.get(), b.get()))
    other = made("patches")
    with stream:
        stream.begin_capture()
        with pytest.raises(NotImplementedError, match="cuBLAS"):
            other.conv(x, w)
        stream.end_capture()
