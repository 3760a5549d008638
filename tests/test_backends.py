"""Backends among themselves: the same kernels, signatures, numbers and errors; how much memory they take."""

import functools
import inspect
import sys
import tracemalloc
from types import FunctionType

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matlab import error

import dagnn.backends.numpy as kernels
from dagnn.backends import NAMES, get
from dagnn.backends.base import Backend
from dagnn.backends.cupy import CuPyBackend
from dagnn.backends.numpy import NumPyBackend, patches, pooling
from dagnn.backends.numpy.tiles import tiles
from dagnn.errors import BackendError, DTypeError, OptionError, ShapeError

REFERENCE, FAST = get("reference"), get("numpy")
SERVICES = {"name", "xp", "asarray", "to_numpy", "owns", "rng", "evaluation", "release_idle"} | {
    "parameter", "constant", "cast", "finite", "empty", "empty_maps", "zeros",
    "memory_use", "prefetcher", "fetch", "recorder", "steps",
}  # fmt: skip


def test_get_gives_one_object_per_name():
    assert get("numpy") is get("numpy") is kernels.backend
    assert (REFERENCE.name, FAST.name) == ("reference", "numpy")
    with pytest.raises(OptionError, match=r"backend is one of numpy, cupy, reference. Received: 'torch'"):
        get("torch")


def test_a_missing_cupy_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "cupy", None)
    with pytest.raises(BackendError, match=r"pip install 'dagnn\[cuda13\]'"):
        CuPyBackend()


def test_options_are_checked_and_shown(monkeypatch, emulated):
    monkeypatch.setitem(sys.modules, "cupy", emulated.xp)
    assert repr(CuPyBackend(tf32=True, workspace_limit="1GiB")) == "<CuPyBackend 'cupy' tf32=True>"
    for options, message in [
        ({"device": -1}, "device is the number of a device, from 0. Received: -1"),
        ({"tf32": 1}, "tf32 is True or False. Received: 1"),
        ({"workspace_limit": "much"}, "workspace_limit is a number of bytes"),
        ({"speed": 2}, "Backend 'cupy' has the options device, tf32, .*. Received: speed"),
    ]:
        with pytest.raises(OptionError, match=message):
            get("cupy", **options)
    with pytest.raises(OptionError, match="Backend 'numpy' has no options. Received: device"):
        get("numpy", device=0)


def test_a_backend_is_one_object_per_set_of_options(monkeypatch, emulated):
    monkeypatch.setitem(sys.modules, "cupy", emulated.xp)
    backends = sys.modules[get.__module__]
    monkeypatch.setattr(backends, "_made", functools.cache(backends._made.__wrapped__))
    first = get("cupy", device=0, tf32=True)
    assert first is get("cupy", tf32=True, workspace_limit="1GiB") and first is not get("cupy")
    assert get(first) is first


def test_arrays_come_to_the_device_of_their_backend(monkeypatch, emulated):
    monkeypatch.setitem(sys.modules, "cupy", emulated.xp)
    if emulated.xp.cuda.runtime.getDeviceCount() == 1:
        pytest.skip("needs two devices")
    second = CuPyBackend(device=1)
    x = second.asarray(emulated.asarray(np.ones((2, 3))))
    assert x.device.id == second.empty((2,), "float32").device.id == 1
    with second.evaluation():
        assert second.to_numpy(second.relu(x)).sum() == 6
    with pytest.raises(BackendError, match=r"kernels of CUDA device 1 run inside `with backend.evaluation"):
        second.relu(x)
    with pytest.raises(BackendError, match="there is no CUDA device 9: this machine has"):
        CuPyBackend(device=9)


def public(kind):
    return {name for name in dir(kind) if not name.startswith("_")}


@pytest.mark.parametrize("kind", [NumPyBackend, CuPyBackend])
def test_a_backend_adds_nothing_and_keeps_every_signature(kind):
    assert public(kind) == public(Backend)
    for name in public(Backend):
        ours, theirs = getattr(Backend, name), getattr(kind, name)
        if isinstance(ours, FunctionType):
            parameters = [
                [(p.name, p.kind, p.default) for p in inspect.signature(method).parameters.values()]
                for method in (ours, theirs)
            ]
            assert parameters[0] == parameters[1], name


def test_every_kernel_is_a_function_of_the_numpy_package():
    for name in public(Backend) - SERVICES:
        assert getattr(kernels, name) == getattr(FAST, name)


def test_every_kernel_and_service_is_documented_with_an_example():
    for name in public(Backend) - {"name", "xp"}:
        assert ">>>" in (inspect.getdoc(getattr(NumPyBackend, name)) or ""), name


def test_services(backend):
    a = backend.asarray(np.arange(6.0).reshape(2, 3))
    assert backend.asarray(a) is a and backend.owns(a) and not backend.owns([1.0])
    assert isinstance(backend.to_numpy(a), np.ndarray) and backend.to_numpy(a).sum() == 15
    assert backend.empty((2, 3), np.float32).shape == (2, 3)
    assert backend.to_numpy(backend.zeros((2,), np.float32)).tolist() == [0, 0]
    drawn = [backend.to_numpy(backend.rng(*keys).random(4)) for keys in ((1, 2), (1, 2), (2, 1))]
    assert (drawn[0] == drawn[1]).all() and (drawn[0] != drawn[2]).all()
    for dtype in (np.float16, np.float32, np.float64):
        (b,) = backend.cast([backend.asarray(np.float16([3, 40000]))], dtype, 0.5)
        assert b.dtype == dtype and backend.to_numpy(b).tolist() == [1.5, 20000]
        assert backend.cast([b], dtype)[0] is b
    wrong = [backend.asarray(np.float32([1, value, 3e38])) for value in (2, np.inf, -np.inf, np.nan)]
    good = [*wrong[:1], backend.asarray(np.float16([65504])), backend.asarray([1])]
    assert bool(backend.finite(good)) and bool(backend.finite([])) and backend.finite(good).shape == ()
    assert not any(bool(backend.finite([*good, array])) for array in wrong[1:])
    kept = backend.asarray(np.float32([1, 2]))
    read = backend.fetch([kept, backend.finite(good)])
    kept[...] = 0
    for found, expected in zip(read(), (np.float32([1, 2]), np.array(True)), strict=True):
        np.testing.assert_array_equal(found, expected, strict=True)
    assert backend.name in NAMES and backend.name in repr(backend)


# Agreement of the fast kernels with the reference.


def maps(draw, shape, dtype=np.float64):
    """Random (N, C, H, W) maps, read-only, in one of several memory orders."""
    values = np.random.default_rng(draw(st.integers(0, 99))).standard_normal(shape).astype(dtype)
    order = draw(st.sampled_from([(0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0)]))
    values = np.ascontiguousarray(values.transpose(order)).transpose(np.argsort(order))
    values.flags.writeable = False
    return values


@st.composite
def windows(draw, dilates=True):
    """Options of a sliding window, its size, and a map it fits into."""
    pairs, window = st.tuples(st.integers(1, 3), st.integers(1, 3)), draw(st.tuples(*[st.integers(1, 4)] * 2))
    options = {"stride": draw(pairs), "pad": draw(st.tuples(*[st.integers(0, 3)] * 4))}
    if dilates:
        options["dilate"] = draw(pairs)
    else:
        options["pad"] = tuple(min(p, window[k // 2] - 1) for k, p in enumerate(options["pad"]))
    dilate = options.get("dilate", (1, 1))
    span = [(w - 1) * d + 1 for w, d in zip(window, dilate, strict=True)]
    pad = options["pad"]
    least = max(1, span[0] - pad[0] - pad[1]), max(1, span[1] - pad[2] - pad[3])
    return window, options, tuple(draw(st.integers(m, m + 6)) for m in least)


DTYPES = st.sampled_from([np.float32, np.float64])


def close(actual, expected):
    assert actual.dtype == expected.dtype
    assert error(actual, expected) <= (1e-12 if expected.dtype == np.float64 else 2e-5)


@settings(deadline=None, max_examples=150)
@given(st.data(), windows(), DTYPES, st.sampled_from([1, 300, 4000, 4 << 20]))
def test_fast_convolution_is_the_reference(data, sizes, dtype, patch_bytes):
    (window, options, size), draw = sizes, data.draw
    groups, depth, k, n = (draw(st.integers(1, most)) for most in (3, 4, 4, 3))
    x = maps(draw, (n, groups * depth, *size), dtype)
    w = maps(draw, (groups * k, depth, *window), dtype)
    b = draw(st.sampled_from([None, np.linspace(-1, 1, groups * k, dtype=dtype)]))
    y = REFERENCE.conv(x, w, b, **options)
    dzdy, add = maps(draw, y.shape, dtype), draw(st.sampled_from([None, maps(draw, y.shape, dtype)]))
    leak = draw(st.sampled_from([None, 0.0, 0.2]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(patches, "PATCH_BYTES", patch_bytes)
        expected = REFERENCE.conv(x, w, b, add=add, relu=leak, **options)
        close(FAST.conv(x, w, b, add=add, relu=leak, **options), expected)
        close(FAST.conv_dzdx(dzdy, w, x.shape, **options), REFERENCE.conv_dzdx(dzdy, w, x.shape, **options))
        close(FAST.conv_dzdw(dzdy, x, w.shape, **options), REFERENCE.conv_dzdw(dzdy, x, w.shape, **options))


@settings(deadline=None, max_examples=100)
@given(st.data(), windows(dilates=False), DTYPES, st.sampled_from([1, 100, 1 << 19]))
def test_fast_pooling_is_the_reference(data, sizes, dtype, tile_bytes):
    window, options, size = sizes
    x = np.round(maps(data.draw, (2, 3, *size), dtype))  # with ties
    x[x == 2] = data.draw(st.sampled_from([2, np.nan, np.inf, -np.inf]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pooling, "TILE_BYTES", tile_bytes)
        y, winner = FAST.max_pool(x, window, **options)
        expected, expected_winner = REFERENCE.max_pool(x, window, **options)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(winner, expected_winner)
        assert y.dtype == expected.dtype and winner.dtype == expected_winner.dtype
        dzdy = maps(data.draw, y.shape, dtype)
        ders = (b.max_pool_dzdx(dzdy, winner, x.shape, window, **options) for b in (FAST, REFERENCE))
        close(*ders)
        x = maps(data.draw, x.shape, dtype)
        close(FAST.avg_pool(x, window, **options), REFERENCE.avg_pool(x, window, **options))
        ders = (b.avg_pool_dzdx(dzdy, x.shape, window, **options) for b in (FAST, REFERENCE))
        close(*ders)


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_a_derivative_that_is_not_finite_stays_with_its_winner(backend, value):
    x = backend.asarray(np.array([[[[1.0, 2.0]]]]))
    _, winner = backend.max_pool(x, (1, 2))
    dzdx = backend.max_pool_dzdx(backend.asarray(np.full((1, 1, 1, 1), value)), winner, x.shape, (1, 2))
    np.testing.assert_array_equal(backend.to_numpy(dzdx).ravel(), [0, value])


@given(st.tuples(*[st.integers(0, 9)] * 3), st.integers(0, 200))
def test_tiles_cover_everything_once(shape, most):
    covered = np.zeros(shape, int)
    for tile in tiles(shape, most):
        covered[tile] += 1
        assert 0 < covered[tile].size <= max(1, most)
    assert (covered == 1).all()


def test_an_empty_batch_goes_through(backend):
    x, w = backend.zeros((0, 2, 5, 5), np.float32), backend.zeros((3, 2, 3, 3), np.float32)
    y = backend.conv(x, w)
    assert y.shape == (0, 3, 3, 3)
    assert backend.conv_dzdx(y, w, x.shape).shape == x.shape
    assert backend.to_numpy(backend.conv_dzdw(y, x, w.shape)).max() == 0
    assert backend.max_pool(x, 2)[0].shape == (0, 2, 4, 4)
    whole = backend.zeros((3, 2, 5, 5), np.float32)
    assert backend.conv(x, whole).shape == (0, 3, 1, 1)
    assert backend.conv_dzdw(backend.conv(x, whole), x, whole.shape).shape == whole.shape


# Errors that MatConvNet's list does not have.


@pytest.mark.parametrize(
    "kernel, shapes, dtypes, message",
    [
        ("conv", [(1, 2, 3, 3), (1, 2, 1, 1), (1,)], "ffd", "x is float32, w is float32, b is float64"),
        ("conv", [(1, 2, 3, 3), (1, 2, 1, 1)], "if", "x must be floating, got int32"),
        ("bilinear_sampler", [(1, 2, 3, 3), (1, 2, 3, 3)], "fd", "x is float32, grid is float64"),
        ("bilinear_sampler_ders", [(1, 2, 3, 3)] * 3, "dff", "dzdy is float64, x is float32"),
        ("conv_transpose", [(1, 2, 3, 3), (2, 1, 2, 2)], "fd", "x is float32, w is float64"),
    ],
)
def test_floating_types_must_agree(backend, kernel, shapes, dtypes, message):
    arrays = [backend.zeros(shape, dtype) for shape, dtype in zip(shapes, dtypes, strict=True)]
    with pytest.raises(DTypeError, match=message):
        getattr(backend, kernel)(*arrays)


@pytest.mark.parametrize(
    "kernel, shapes, options, message",
    [
        ("conv", [(2, 3, 3), (1, 2, 1, 1)], {}, r"x must have 4 axes \(N, C, H, W\), got shape \(2, 3, 3\)"),
        ("conv", [(1, 2, 3, 3), (2, 1)], {}, r"filters must be \(K, C/groups, h, w\), got shape \(2, 1\)"),
        ("conv_transpose", [(1, 2, 3, 3), (2, 1)], {}, r"filters must be \(C, K/num_groups, h, w\)"),
        ("bilinear_sampler", [(2, 2, 3, 3), (3, 2, 3, 3)], {}, "3 grids for 2 images"),
        ("affine_grid", [(2, 5, 1, 1)], {"height": 2, "width": 2}, r"affine must be \(N, 6, 1, 1\)"),
        ("affine_grid_der", [(2, 3, 1, 1)], {}, r"dzdy must be \(N, 2, H, W\)"),
    ],
)
def test_shapes_must_agree(backend, kernel, shapes, options, message):
    with pytest.raises(ShapeError, match=message):
        getattr(backend, kernel)(*(backend.zeros(shape, np.float32) for shape in shapes), **options)


def test_the_epilogue_adds_maps_of_its_own_shape_only(backend):
    x, w = backend.zeros((1, 2, 3, 3), np.float32), backend.zeros((1, 2, 1, 1), np.float32)
    with pytest.raises(ShapeError, match=r"add has shape \(1, 1, 1, 1\), expected \(1, 1, 3, 3\)"):
        backend.conv(x, w, add=backend.zeros((1, 1, 1, 1), np.float32))


@pytest.mark.parametrize(
    "options, message",
    [
        ({"method": "median"}, "method is 'max' or 'avg'. Received: 'median'"),
        ({"transform": (1, 2, 3)}, r"transform is a scale, 2 scales or a 2 x 3 matrix, got shape \(3,\)"),
    ],
)
def test_options_of_roi_pool(backend, options, message):
    x, rois = backend.zeros((1, 2, 3, 3), np.float32), backend.zeros((5, 1), np.float32)
    with pytest.raises(OptionError, match=message):
        backend.roi_pool(x, rois, subdivisions=1, **options)
    with pytest.raises(OptionError, match="needs the winner"):
        backend.roi_pool_dzdx(backend.zeros((1, 2, 1, 1), np.float32), None, rois, x.shape, subdivisions=1)


# Memory: never the whole patch matrix, here 162 MiB.


@pytest.mark.parametrize("kernel", ["conv", "conv_dzdx", "conv_dzdw"])
def test_a_convolution_takes_little_more_than_its_output(kernel):
    x = np.ones((2, 64, 192, 192), np.float32)
    w = np.ones((64, 64, 3, 3), np.float32)
    dzdy = np.ones((2, 64, 192, 192), np.float32)
    arguments = {"conv": (x, w), "conv_dzdx": (dzdy, w, x.shape), "conv_dzdw": (dzdy, x, w.shape)}[kernel]
    tracemalloc.start()
    try:
        result = getattr(FAST, kernel)(*arguments, pad=1)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    most = 32 << 20 if kernel == "conv_dzdw" else 12 << 20
    assert peak < result.nbytes + most
