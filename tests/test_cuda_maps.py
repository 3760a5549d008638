"""The CUDA kernels of pooling and normalisation, run on a CPU, against the reference kernels in float64."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagnn.backends.base import Backend
from dagnn.backends.cupy import modules, normalisation
from dagnn.backends.numpy import NumPyBackend
from dagnn.dtypes import floating
from dagnn.errors import DTypeError, MissingPackageError, OptionError

REFERENCE = Backend()
LAYOUTS = {"channels first": (0, 1, 2, 3), "channels last": (0, 2, 3, 1), "odd": (3, 1, 0, 2)}
# Of the largest number, or of 1: roundings of the result, and of what is rounded before.
TOLERANCES = {"float64": 1e-12, "float32": 2e-6, "float16": 2e-3, "bfloat16": 1.5e-2}
few = settings(max_examples=40)


def dtypes():
    names = ["float32", "float64", "float16", "bfloat16"]
    try:
        floating("bfloat16")
    except MissingPackageError:
        names.pop()
    return names


layouts, types = st.sampled_from([*LAYOUTS]), st.sampled_from(dtypes())


class OnDevice:
    """The kernels of a backend on NumPy arrays, laid out as asked; results in float64."""

    def __init__(self, backend, layout="channels first"):
        self.backend, self.layout = backend, layout

    def __getattr__(self, name):
        kernel = getattr(self.backend, name)

        def run(*args, **options):
            results = kernel(*map(self.into, args), **{k: self.into(v) for k, v in options.items()})
            return [self.out(a) for a in (results if isinstance(results, tuple) else (results,))]

        return run

    def into(self, a):
        if not isinstance(a, np.ndarray):
            return a
        a = self.backend.asarray(a)
        if a.ndim < 4:
            return a
        order = LAYOUTS[self.layout]
        return self.backend.xp.ascontiguousarray(a.transpose(order)).transpose(*np.argsort(order))

    def out(self, a):
        return None if a is None else self.backend.to_numpy(a)


def close(actual, expected, dtype, scale=1.0):
    """Within the tolerance of `dtype`, relative to the largest number that is expected, or to 1."""
    assert actual.dtype == dtype
    actual, expected = actual.astype(float), expected.astype(float)
    largest = np.abs(np.nan_to_num(expected, posinf=0, neginf=0)).max(initial=1)
    tolerance = TOLERANCES[np.dtype(dtype).name] * largest * scale
    np.testing.assert_allclose(actual, expected, rtol=0, atol=tolerance)


def same(emulated, layout, dtype, name, *args, scale=1.0, **options):
    """What kernel `name` gives on the device is what the reference gives on the same numbers in float64."""
    device = OnDevice(emulated, layout)
    results = getattr(device, name)(*args, **options)
    again = getattr(device, name)(*args, **options)
    expected = getattr(REFERENCE, name)(*map(wide, args), **{k: wide(v) for k, v in options.items()})
    expected = expected if isinstance(expected, tuple) else (expected,)
    for one, other, right in zip(results, again, expected, strict=True):
        if right is None:
            assert one is None
        elif right.dtype.kind in "iu":
            np.testing.assert_array_equal(one, right, strict=True)
        else:
            close(one, right, one.dtype, scale)
            np.testing.assert_array_equal(one, other)  # bit by bit, from run to run
    assert results[0].dtype == dtype
    return results


def wide(a):
    return a.astype(np.float64) if isinstance(a, np.ndarray) and a.dtype.kind in "fV" else a


def numbers(seed, shape, dtype):
    return np.random.default_rng(seed).standard_normal(shape).astype(floating(dtype))


@st.composite
def pools(draw):
    """Shape, window, stride and pad that fit together."""
    window = draw(st.tuples(*[st.integers(1, 4)] * 2))
    stride = draw(st.tuples(*[st.integers(1, 5)] * 2))
    pad = tuple(draw(st.integers(0, window[k // 2] - 1)) for k in range(4))
    least = (max(1, window[k] - pad[2 * k] - pad[2 * k + 1]) for k in range(2))
    size = [draw(st.integers(m, m + 9)) for m in least]
    channels = draw(st.sampled_from([1, 3, 4, 8, 16]))
    return (draw(st.integers(0, 3)), channels, *size), window, stride, pad


@settings(max_examples=100)
@given(pools(), layouts, types, st.integers(0, 99), st.sampled_from([2, np.nan, np.inf, -np.inf]))
def test_pooling(emulated, sizes, layout, dtype, seed, special):
    shape, window, stride, pad = sizes
    x = np.random.default_rng(seed).integers(-2, 3, shape).astype(floating(dtype))  # with ties
    options = {"stride": stride, "pad": pad}
    same(emulated, layout, x.dtype, "avg_pool", x, window, **options)
    x[x == 2] = special
    y, winner = same(emulated, layout, x.dtype, "max_pool", x, window, **options)
    same(emulated, layout, x.dtype, "max_pool", x, window, **options, wants_winner=False)
    dzdy = numbers(seed, y.shape, dtype)
    same(emulated, layout, x.dtype, "max_pool_dzdx", dzdy, winner, shape, window, **options)
    same(emulated, layout, x.dtype, "avg_pool_dzdx", dzdy, shape, window, **options)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("size, pad", [((7, 6), 0), ((17, 16), 0), ((6, 7), 3)])
def test_large_windows(emulated, layout, size, pad):
    """Averages are made by warps, and taps don't fit into a byte."""
    x = numbers(0, (2, 4, 17, 19), "float32")
    same(emulated, layout, x.dtype, "avg_pool", x, size, stride=(1, 2), pad=pad)
    y, winner = same(emulated, layout, x.dtype, "max_pool", x, size, stride=(1, 2), pad=pad)
    assert winner.dtype == (np.uint8 if size[0] * size[1] <= 256 else np.int32)
    same(emulated, layout, x.dtype, "max_pool_dzdx", y, winner, x.shape, size, stride=(1, 2), pad=pad)


@settings(max_examples=80)
@given(
    st.tuples(*[st.integers(1, 3)] * 2, *[st.integers(1, 9)] * 2),
    st.lists(st.tuples(st.integers(-1, 3), *[st.integers(-3, 22)] * 4), min_size=1, max_size=5),
    st.tuples(*[st.integers(1, 4)] * 2),
    st.sampled_from([1.0, 0.37, (0.5, 1.5), ((0.5, 0.1, 0.3), (-0.1, 0.7, 1.1))]),
    st.sampled_from(["max", "avg"]),
    layouts,
    types,
    st.integers(0, 99),
)
def test_roi_pooling(emulated, shape, rois, bins, transform, method, layout, dtype, seed):
    x = np.random.default_rng(seed).integers(-2, 3, shape).astype(floating(dtype))
    rois = np.array(rois, np.float32).T / 2
    options = {"subdivisions": bins, "transform": transform, "method": method}
    real = np.float64 if dtype == "float64" else np.float32  # which decides where bins begin
    expected, taken = REFERENCE.roi_pool(x.astype(real), rois, **options)
    device = OnDevice(emulated, layout)
    y, winner = device.roi_pool(x, rois, **options)
    close(y, expected, x.dtype)
    if method == "max":
        np.testing.assert_array_equal(winner, taken, strict=True)
    dzdy = numbers(seed, y.shape, dtype)
    (dzdx,) = device.roi_pool_dzdx(dzdy, winner, rois, shape, **options)
    (again,) = device.roi_pool_dzdx(dzdy, winner, rois, shape, **options)
    np.testing.assert_array_equal(dzdx, again)
    expected = REFERENCE.roi_pool_dzdx(dzdy.astype(real), winner, rois, shape, **options)
    close(dzdx, expected, x.dtype)


maps = st.tuples(st.integers(0, 4), st.integers(1, 40), *[st.integers(1, 8)] * 2)


@few
@given(maps, layouts, types, st.integers(0, 99), st.integers(1, 12), st.sampled_from([0.5, 0.75, 1.3]))
def test_lrn(emulated, shape, layout, dtype, seed, size, beta):
    x, dzdy = numbers(seed, shape, dtype), numbers(seed + 1, shape, dtype)
    options = {"size": size, "kappa": 1.5, "alpha": 0.7, "beta": beta}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(normalisation, "BLOCKS", seed % 2)  # runs of channels, or one channel a thread
        same(emulated, layout, x.dtype, "lrn", x, **options)
        same(emulated, layout, x.dtype, "lrn_dzdx", dzdy, x, **options)


@few
@given(st.data(), maps, layouts, types, st.integers(0, 99), st.sampled_from([None, 0.0, 0.2, 3.0]))
def test_batch_norm(emulated, data, shape, layout, dtype, seed, leak):
    c = shape[1]
    mean = data.draw(st.sampled_from([0, 20, 1000]) if dtype in ("float32", "float64") else st.just(0))
    x = (numbers(seed, shape, "float64") + mean).astype(floating(dtype))
    parameters = data.draw(st.sampled_from([x.dtype, np.dtype("float32")])) if x.itemsize == 2 else x.dtype
    g, b = (numbers(seed + k, (c,), "float64").astype(parameters) for k in (1, 2))
    options = {"relu": leak, "add": data.draw(st.sampled_from([None, numbers(seed + 3, shape, dtype)]))}
    scale = 1 + mean / 2  # of roundings of x - mean, and where there are few numbers, of what sigma divides
    _, moments = same(emulated, layout, x.dtype, "batch_norm", x, g, b, scale=scale, epsilon=0.1, **options)
    assert moments.dtype == parameters
    dzdy = numbers(seed + 4, shape, dtype)
    given = np.stack([moments[:, 0], moments[:, 1]], axis=1)
    _, *ders = same(emulated, layout, x.dtype, "batch_norm_ders", dzdy, x, g, moments, scale=10 * scale)
    assert {der.dtype for der in ders} == {parameters}
    same(emulated, layout, x.dtype, "batch_norm", x, g, b, moments=given, scale=scale, **options)
    same(emulated, layout, x.dtype, "batch_norm_ders", dzdy, x, g, given, given=True, scale=10 * scale)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("dtype", dtypes())
@pytest.mark.parametrize("shape", [(3, 16, 40, 40), (2, 70, 5, 8), (8, 3, 35, 35), (70, 24, 1, 1)])
def test_batch_norm_by_several_blocks(emulated, layout, dtype, shape):
    """Slices of channels, packs of elements, groups of channels that aren't full."""
    x, dzdy, add = (numbers(seed, shape, dtype) for seed in range(3))
    g, b = (numbers(seed, shape[1:2], dtype) for seed in (3, 4))
    _, moments = same(emulated, layout, x.dtype, "batch_norm", x, g, b, add=add, relu=0.0)
    same(emulated, layout, x.dtype, "batch_norm_ders", dzdy, x, g, moments, scale=2)


@pytest.mark.parametrize("dtype", dtypes())
@pytest.mark.parametrize("layout", ["channels first", "channels last"])
def test_memory_that_begins_anywhere(emulated, layout, dtype):
    """What is read 16 bytes at a time begins at a multiple of them, or else it is not."""
    shape = (2, 16, 6, 7)

    def unaligned(a):
        memory = emulated.empty(a.size + 1, a.dtype)[1:]
        if layout == "channels first":
            memory = memory.reshape(a.shape)
        else:
            n, c, h, w = a.shape
            memory = memory.reshape(n, h, w, c).transpose(0, 3, 1, 2)
        memory[...] = a
        return memory

    arrays = [OnDevice(emulated, layout).into(numbers(seed, shape, dtype)) for seed in range(2)]
    g = emulated.asarray(numbers(3, (16,), dtype))
    results = []
    for x, dzdy in (arrays, [unaligned(a) for a in arrays]):
        y, moments = emulated.batch_norm(x, g, g, add=dzdy)
        best, winner = emulated.max_pool(x, 2)
        dzdx = emulated.max_pool_dzdx(unaligned(best), unaligned(winner), shape, 2)
        mean = emulated.avg_pool(x, 2)
        ders = emulated.avg_pool_dzdx(unaligned(mean), shape, 2)
        results.append(
            [y, moments, *emulated.batch_norm_ders(dzdy, x, g, moments), best, winner, dzdx, mean, ders]
        )
    for one, other in zip(*results, strict=True):  # compilers add products as it suits each way
        one, other = (emulated.to_numpy(a).astype(np.float64) for a in (one, other))
        np.testing.assert_allclose(
            one, other, rtol=0, atol=TOLERANCES[np.dtype(floating(dtype)).name] * abs(other).max()
        )


def test_the_variance_keeps_its_digits(emulated):
    """Of numbers far from 0, and of a channel whose first element is far from the others."""
    x = numbers(0, (8, 3, 20, 20), "float64")
    x[:, 0] += 1e4
    x[0, 1, 0, 0] = 1e3
    x[:, 2] = 7
    x = x.astype(np.float32)
    _, moments = OnDevice(emulated).batch_norm(x, np.ones(3, "float32"), np.zeros(3, "float32"), epsilon=0.0)
    wide = x.astype(float)
    mean, sigma = wide.mean(axis=(0, 2, 3)), wide.std(axis=(0, 2, 3))
    assert (np.abs(moments[:, 0] - mean) <= 6e-8 * np.abs(mean) + 3e-7 * sigma).all()
    assert (np.abs(moments[:, 1] - sigma) <= np.array([1e-6, 1e-5, 0]) * sigma).all()


def test_nan_stays_in_its_channel(emulated):
    x = numbers(0, (2, 3, 4, 4), "float32")
    x[0, 1, 2, 2] = np.nan
    y, moments = OnDevice(emulated).batch_norm(x, np.ones(3, "float32"), np.zeros(3, "float32"))
    assert (
        np.isnan(moments).any(axis=1).tolist()
        == np.isnan(y).any(axis=(0, 2, 3)).tolist()
        == [False, True, False]
    )


@pytest.mark.parametrize("layout", ["channels first", "channels last"])
def test_results_have_the_layout_of_what_they_are_made_from(emulated, layout):
    device = OnDevice(emulated, layout)
    x, g = device.into(numbers(0, (2, 3, 6, 7), "float32")), emulated.asarray(np.ones(3, "float32"))
    rois = emulated.asarray(np.array([[0, 0, 0, 5, 5.0]]).T)
    y, winner = emulated.max_pool(x, 2)
    dzdx = emulated.max_pool_dzdx(y, emulated.xp.ascontiguousarray(winner), x.shape, 2)
    mean = emulated.avg_pool(x, 2)
    normal, moments = emulated.batch_norm(x, g, g)
    regions, taken = emulated.roi_pool(x, rois, subdivisions=2)
    lrn = {"size": 3, "kappa": 1.0, "alpha": 1.0, "beta": 0.5}
    results = [y, winner, dzdx, mean, emulated.avg_pool_dzdx(mean, x.shape, 2), normal, regions, taken]
    results += [emulated.roi_pool_dzdx(regions, taken, rois, x.shape, subdivisions=2)]
    results += [emulated.batch_norm_ders(normal, x, g, moments)[0], emulated.lrn(x, **lrn)]
    results += [emulated.lrn_dzdx(emulated.xp.ascontiguousarray(x), x, **lrn)]
    pixel = emulated.avg_pool(x, (6, 7))  # in both orders at once
    results += [emulated.avg_pool_dzdx(emulated.relu(pixel), x.shape, (6, 7))]
    for a in results:
        assert a.transpose(LAYOUTS[layout]).flags.c_contiguous


def test_more_elements_than_32_bits_count(emulated, monkeypatch):
    """The same kernels with 64-bit numbers of elements."""
    monkeypatch.setattr(modules, "LARGE", 1)
    x, dzdy, g = (
        numbers(0, (2, 4, 9, 8), "float32"),
        numbers(1, (2, 4, 4, 4), "float32"),
        np.ones(4, "float32"),
    )
    _, winner = same(emulated, "channels last", x.dtype, "max_pool", x, 3, stride=2, pad=(0, 0, 1, 0))
    same(
        emulated,
        "channels last",
        x.dtype,
        "max_pool_dzdx",
        dzdy,
        winner,
        x.shape,
        3,
        stride=2,
        pad=(0, 0, 1, 0),
    )
    same(emulated, "channels first", x.dtype, "avg_pool", x, 7)
    _, moments = same(emulated, "channels first", x.dtype, "batch_norm", x, g, g)
    same(emulated, "channels last", x.dtype, "batch_norm_ders", x, x, g, moments)
    same(emulated, "channels first", x.dtype, "lrn", x, size=3, kappa=1.0, alpha=1.0, beta=0.5)


def test_kernels_of_maps_can_be_captured(emulated):
    """Nothing waits for the device, and nothing is left to CUDA's libraries."""
    x, g = emulated.asarray(numbers(0, (2, 3, 6, 7), "float32")), emulated.asarray(np.ones(3, "float32"))
    rois = emulated.asarray(np.array([[0, 0, 0, 5, 5.0]]).T)
    lrn = {"size": 3, "kappa": 1.0, "alpha": 1.0, "beta": 0.5}

    def step():
        y, winner = emulated.max_pool(x, 2)
        regions, taken = emulated.roi_pool(x, rois, subdivisions=2)
        normal, moments = emulated.batch_norm(x, g, g, add=x, relu=0.1)
        unit, norms = emulated.normalize_lp(x)
        return [
            emulated.max_pool_dzdx(y, winner, x.shape, 2),
            emulated.avg_pool_dzdx(emulated.avg_pool(x, 3), x.shape, 3),
            emulated.roi_pool_dzdx(regions, taken, rois, x.shape, subdivisions=2),
            *emulated.batch_norm_ders(normal, x, g, moments),
            emulated.lrn_dzdx(emulated.lrn(x, **lrn), x, **lrn),
            emulated.normalize_lp_dzdx(unit, x, norms),
            emulated.spatial_norm_dzdx(x, x, size=3, alpha=1.0, beta=0.5),
            emulated.norm_offset_dzdx(x, x, alpha=1.0, beta=0.5),
        ]

    expected = [emulated.to_numpy(a) for a in step()]
    results = []
    launch = emulated.recorder().record(lambda: results.extend(step()))  # which has the results' memory
    launch()
    for a, right in zip(results, expected, strict=True):
        np.testing.assert_array_equal(emulated.to_numpy(a), right)


@pytest.mark.parametrize("backend", [REFERENCE, NumPyBackend()])
@pytest.mark.parametrize("dtype", dtypes()[2:])
@pytest.mark.parametrize("shape", [(4, 3, 5, 6), (4, 16, 40, 40)])
def test_the_reference_takes_parameters_in_float32_beside_16_bits(backend, dtype, shape):
    x, dzdy, add = (numbers(seed, shape, dtype) for seed in range(3))
    for parameters in (dtype, "float32"):
        g, b = (numbers(seed, shape[1:2], parameters) for seed in (3, 4))
        _, moments = same(backend, "channels first", x.dtype, "batch_norm", x, g, b, add=add, relu=0.1)
        _, *ders = same(backend, "channels first", x.dtype, "batch_norm_ders", dzdy, x, g, moments, scale=2)
        assert {a.dtype for a in (moments, *ders)} == {g.dtype}


@pytest.mark.parametrize("parameters", ["float16", "float64"])
def test_parameters_have_the_type_of_x_or_are_float32(emulated, parameters):
    x, g, b = (numbers(seed, shape, "float16") for seed, shape in enumerate([(2, 3, 1, 1), (3,), (3,)]))
    for backend in (emulated, REFERENCE):
        with pytest.raises(DTypeError, match="floating types differ: x is float16, multipliers is"):
            OnDevice(backend).batch_norm(x, g.astype("float32"), b.astype(parameters))


def test_the_derivative_of_maxima_needs_the_winner(emulated):
    dzdy, rois = (emulated.asarray(a) for a in (np.ones((1, 1, 1, 1)), np.zeros((5, 1))))
    with pytest.raises(OptionError, match="needs the winner"):
        emulated.roi_pool_dzdx(dzdy, None, rois, (1, 1, 2, 2), subdivisions=1)


@given(st.integers(1, 2**31 - 1), st.integers(0, 2**31 - 1))
def test_division_by_a_product(divisor, number):
    factor, shift = int(modules.reciprocal(divisor)) % 2**32, int(modules.reciprocal(divisor)) >> 32
    for i in (number, number // divisor * divisor, max(number // divisor * divisor - 1, 0)):
        assert (2 * i * factor >> 32) >> shift == i // divisor
