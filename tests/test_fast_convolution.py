"""The algorithms of the NumPy backend's convolutions against the reference kernels and double precision."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matlab import error

import dagnn
from dagnn.backends import get
from dagnn.backends.numpy import convolution, patches, winograd
from dagnn.backends.numpy.convolution import algorithms, filters, in_channels_last, use
from dagnn.backends.numpy.tiles import tiles

REFERENCE, FAST = get("reference"), get("numpy")


@pytest.fixture
def every_algorithm():
    """Restores the choice of algorithms."""
    yield
    use(None)


def draw_maps(draw, shape, dtype):
    values = np.random.default_rng(draw(st.integers(0, 99))).standard_normal(shape).astype(dtype)
    if draw(st.booleans()):
        values = np.ascontiguousarray(values.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    values.flags.writeable = False
    return values


def agree(x, w, b, dzdy, add, leak, options, most):
    """All three kernels agree with the reference in double precision."""
    exact = [None if a is None else a.astype(np.float64) for a in (x, w, b, dzdy, add)]
    expected = (
        REFERENCE.conv(*exact[:3], add=exact[4], relu=leak, **options),
        REFERENCE.conv_dzdx(exact[3], exact[1], x.shape, **options),
        REFERENCE.conv_dzdw(exact[3], exact[0], w.shape, **options),
    )
    found = (
        FAST.conv(x, w, b, add=add, relu=leak, **options),
        FAST.conv_dzdx(dzdy, w, x.shape, **options),
        FAST.conv_dzdw(dzdy, x, w.shape, **options),
    )
    for mine, theirs in zip(found, expected, strict=True):
        assert mine.shape == theirs.shape and mine.dtype == x.dtype
        assert error(mine, theirs) <= most


SMALL = {"FUSED_BYTES": 1 << 12, "FUSED_DZDW": 1 << 12, "STAGED_BYTES": 1 << 14}


@settings(deadline=None, max_examples=120)
@given(
    st.data(),
    st.sampled_from(["winograd2", "winograd3", "winograd4", "winograd5"]),
    st.sampled_from([3, 5]),
    st.sampled_from([np.float32, np.float64]),
    st.sampled_from([0, 1 << 30]),
    st.booleans(),
)
def test_minimal_filtering(data, algorithm, taps, dtype, staged_bank, small):
    draw = data.draw
    n, groups, depth, k = (draw(st.integers(1, most)) for most in (3, 2, 20, 20))
    pad = draw(st.tuples(*[st.integers(0, taps)] * 4))
    size = [draw(st.integers(max(1, taps - pad[2 * i] - pad[2 * i + 1]), taps + 12)) for i in range(2)]
    x, w = (
        draw_maps(draw, (n, groups * depth, *size), dtype),
        draw_maps(draw, (groups * k, depth, taps, taps), dtype),
    )
    b = draw(st.sampled_from([None, np.linspace(-1, 1, groups * k, dtype=dtype)]))
    shape = REFERENCE.conv(x, w, pad=pad).shape
    dzdy, add = draw_maps(draw, shape, dtype), draw(st.sampled_from([None, draw_maps(draw, shape, dtype)]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(winograd, "STAGED_BANK", staged_bank)
        patch.setattr(winograd, "STAGED_DZDW", staged_bank)
        for name, value in SMALL.items() if small else ():
            patch.setattr(winograd, name, value)
        use(algorithm)
        try:
            leak = draw(st.sampled_from([None, 0.0, 0.2, 2.0]))
            agree(x, w, b, dzdy, add, leak, {"pad": pad}, 1e-12 if dtype == np.float64 else 3e-5)
        finally:
            use(None)


@settings(deadline=None, max_examples=80)
@given(st.data(), st.sampled_from([np.float32, np.float64]), st.sampled_from(["depthwise", "few", "many"]))
def test_few_channels(data, dtype, kind):
    draw = data.draw
    n, c = draw(st.integers(1, 3)), draw(st.integers(2, 40))
    groups, depth, k = (
        (c, 1, c * draw(st.integers(1, 5))) if kind == "depthwise" else (1, c, draw(st.integers(1, 4)))
    )
    if kind == "many":
        k, depth, groups = 40, draw(st.integers(1, 3)), 1
    window = draw(st.tuples(st.integers(1, 4), st.integers(1, 4)))
    pairs = st.tuples(st.integers(1, 3), st.integers(1, 3))
    options = {"pad": draw(st.tuples(*[st.integers(0, 3)] * 4)), "dilate": draw(pairs)}
    options["stride"] = draw(pairs) if draw(st.booleans()) else (1, 1)
    span = [(t - 1) * d + 1 for t, d in zip(window, options["dilate"], strict=True)]
    size = [draw(st.integers(s, s + 7)) for s in span]
    x, w = draw_maps(draw, (n, groups * depth, *size), dtype), draw_maps(draw, (k, depth, *window), dtype)
    b = draw(st.sampled_from([None, np.linspace(-1, 1, k, dtype=dtype)]))
    shape = REFERENCE.conv(x, w, **options).shape
    dzdy, add = draw_maps(draw, shape, dtype), draw(st.sampled_from([None, draw_maps(draw, shape, dtype)]))
    agree(
        x,
        w,
        b,
        dzdy,
        add,
        draw(st.sampled_from([None, 0.0, 0.2])),
        options,
        1e-5 if dtype == np.float32 else 1e-12,
    )


@pytest.mark.parametrize("bank", [0, 1 << 40], ids=["large banks", "small banks"])
@pytest.mark.parametrize("window, stride, pad", [(1, 1, 0), (3, 1, 1), (3, 2, 1), (5, 1, 2), (1, 2, 0)])
def test_large_banks(monkeypatch, bank, window, stride, pad):
    """Products shared out by filters and by taps."""
    monkeypatch.setattr(patches, "LARGE_BANK", bank)
    rng = np.random.default_rng(0)
    x = rng.standard_normal((2, 24, 9, 8))
    w = rng.standard_normal((70, 24, window, window))
    options = {"stride": stride, "pad": pad}
    dzdy = rng.standard_normal(REFERENCE.conv(x, w, **options).shape)
    use("patches")
    try:
        agree(x, w, np.linspace(-1, 1, 70), dzdy, dzdy[::-1].copy(), 0.0, options, 1e-12)
    finally:
        use(None)


@pytest.mark.parametrize(
    "x_shape, w_shape, options, expected",
    [
        ((8, 64, 56, 56), (64, 64, 3, 3), {"pad": 1}, ("winograd4", "winograd4", "winograd4")),
        ((16, 96, 27, 27), (256, 48, 5, 5), {"pad": 2}, ("winograd4", "winograd4", "winograd4")),
        ((8, 32, 56, 56), (32, 1, 3, 3), {"pad": 1}, ("depthwise", "depthwise", "depthwise")),
        ((8, 32, 56, 56), (64, 1, 3, 3), {"pad": 1}, ("depthwise", "depthwise", "depthwise")),
        ((8, 32, 56, 56), (256, 1, 3, 3), {"pad": 1}, ("patches", "patches", "patches")),
        ((1, 64, 99, 99), (1, 64, 3, 3), {"pad": 1}, ("few", "patches", "turned")),
        ((4, 512, 7, 7), (99, 512, 7, 7), {}, ("dense", "dense", "dense")),
        ((8, 3, 224, 224), (64, 3, 7, 7), {"stride": 2, "pad": 3}, ("patches", "scatter", "patches")),
    ],
)
def test_the_choice(x_shape, w_shape, options, expected):
    assert tuple(algorithms(x_shape, w_shape, **options).values()) == expected
    if expected[0].startswith("winograd"):
        double = algorithms(x_shape, w_shape, **options, dtype="float64")
        assert set(double.values()) == {"patches"}, "double precision keeps its digits"


def test_an_unknown_algorithm():
    with pytest.raises(dagnn.OptionError, match="winograd4, winograd5, or None. Received: 'fft'"):
        use("fft")


def test_single_precision_on_a_real_size(every_algorithm):
    """1e-4 of double precision, with maps and derivatives as large as in VGG's layers."""
    rng = np.random.default_rng(0)
    x, w = rng.standard_normal((1, 128, 56, 56), dtype="f"), rng.standard_normal((128, 128, 3, 3), dtype="f")
    x = np.maximum(x, 0)
    dzdy = rng.standard_normal((1, 128, 56, 56), dtype="f")
    for algorithm in convolution.ALGORITHMS:
        use(algorithm)
        agree(x, w, None, dzdy, None, None, {"pad": 1}, 2e-5 if algorithm == "winograd5" else 1e-5)


def test_filters_keep_one_memory_order():
    w = filters(np.ones((4, 3, 3, 3), "f"))
    assert w.transpose(0, 2, 3, 1).flags.c_contiguous and filters(w) is not None
    assert np.shares_memory(filters(w), w)
    assert not in_channels_last((4, 3, 7, 7)) and filters(np.ones((4, 3, 7, 7))).flags.c_contiguous
    x, dzdy = np.ones((1, 3, 9, 9), "f"), np.ones((1, 4, 7, 7), "f")
    assert FAST.conv_dzdw(dzdy, x, w.shape).strides == w.strides


@given(st.tuples(*[st.integers(1, 40)] * 3), st.integers(1, 900), st.integers(1, 4))
def test_tiles_are_shared_out(shape, most, share):
    covered = np.zeros(shape, int)
    parts = list(tiles(shape, most, share))
    for tile in parts:
        covered[tile] += 1
        assert covered[tile].size <= most
    assert (covered == 1).all()


def test_threads_get_as_many_tiles_each():
    assert len(list(tiles((100, 8, 8), most=1430, share=2))) == 6
    assert len(list(tiles((1, 100, 100), most=4000, share=2))) == 4
    assert len(list(tiles((1, 3, 3), most=4000, share=2))) == 2


@pytest.mark.parametrize(
    "x_shape, w_shape, options",
    [
        ((0, 256, 7, 5), (260, 256, 3, 3), {"stride": 2, "pad": 1}),  # a large bank
        ((0, 512, 7, 5), (1100, 512, 1, 1), {}),
        ((0, 16, 9, 8), (48, 1, 3, 2), {}),  # filters of each channel
        ((0, 16, 9, 8), (16, 1, 3, 3), {"pad": 1}),
        ((0, 64, 12, 12), (64, 64, 3, 3), {"pad": 1}),
        ((0, 16, 12, 12), (2, 16, 3, 3), {"pad": 1}),
        ((0, 16, 6, 6), (40, 16, 6, 6), {}),
        ((0, 6, 9, 9), (8, 3, 3, 3), {"dilate": 2}),
    ],
)
def test_empty_batches(x_shape, w_shape, options):
    x, w = np.ones(x_shape, "f"), np.ones(w_shape, "f")
    y = FAST.conv(x, w, np.ones(len(w), "f"), **options)
    assert y.shape == REFERENCE.conv(x, w, **options).shape
    assert FAST.conv_dzdx(y, w, x_shape, **options).shape == x_shape
    assert np.array_equal(FAST.conv_dzdw(y, x, w_shape, **options), np.zeros(w_shape))
    assert np.array_equal(FAST.conv_dzdb(y), np.zeros(len(w)))


@pytest.mark.parametrize("depth", [1, 2, 4, 5])
@pytest.mark.parametrize("stride, pad, dilate", [(1, 1, 1), (1, (2, 0, 0, 1), 1), (1, 0, 2), (2, 1, 1)])
def test_groups_of_one_filter(depth, stride, pad, dilate):
    """Their derivative for the data is a convolution with several filters of each channel."""
    rng, groups = np.random.default_rng(0), 17
    options = {"stride": stride, "pad": pad, "dilate": dilate}
    for layout in (filters, np.ascontiguousarray):
        w = layout(rng.standard_normal((groups, depth, 3, 2)))
        x = rng.standard_normal((2, groups * depth, 9, 8))
        y = REFERENCE.conv(x, w, **options)
        dzdy = rng.standard_normal(y.shape)
        agree(x, w, None, dzdy, None, None, options, 1e-12)


def test_bytes_in_another_order():
    x, w = np.ones((2, 3, 6, 8), ">f4"), np.ones((3, 1, 3, 3), ">f4")
    y = FAST.conv(x, w)
    assert FAST.conv_dzdw(y, x, w.shape).dtype == FAST.conv_dzdx(y, w, x.shape).dtype == y.dtype == x.dtype
