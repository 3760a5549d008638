"""The NumPy backend's pooling: its tiles, bands, threads and layouts against the reference kernels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dagnn
from dagnn.backends.base import Backend
from dagnn.backends.numpy import NumPyBackend, pooling
from dagnn.layers.layer import Context

FAST, REFERENCE = NumPyBackend(), Backend()
LAYOUTS = {"channels first": (0, 1, 2, 3), "channels last": (0, 2, 3, 1), "odd": (3, 1, 0, 2)}


def laid_out(x, layout):
    order = LAYOUTS[layout]
    return np.ascontiguousarray(x.transpose(order)).transpose(np.argsort(order))


@st.composite
def pools(draw):
    """Shape, window, stride and pad that fit together."""
    window = draw(st.tuples(*[st.integers(1, 4)] * 2))
    stride = draw(st.tuples(*[st.integers(1, 5)] * 2))
    pad = tuple(draw(st.integers(0, window[k // 2] - 1)) for k in range(4))
    least = (max(1, window[k] - pad[2 * k] - pad[2 * k + 1]) for k in range(2))
    size = [draw(st.integers(m, m + 9)) for m in least]
    return (draw(st.integers(0, 4)), draw(st.integers(1, 5)), *size), window, stride, pad


@pytest.fixture
def two_threads():
    dagnn.set_num_threads(2)
    yield
    dagnn.set_num_threads(None)


@settings(deadline=None, max_examples=300)
@given(st.data(), pools(), st.sampled_from([np.float32, np.float64]), st.sampled_from([1, 200, 1 << 20]))
def test_pooling_is_the_reference(data, sizes, dtype, tile_bytes):
    shape, window, stride, pad = sizes
    rng, layout = np.random.default_rng(data.draw(st.integers(0, 99))), data.draw(st.sampled_from([*LAYOUTS]))
    x = laid_out(rng.integers(-2, 3, shape).astype(dtype), layout)  # with ties
    x[x == 2] = data.draw(st.sampled_from([2, np.nan, np.inf, -np.inf]))
    x.flags.writeable = False
    options = {"stride": stride, "pad": pad}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pooling, "TILE_BYTES", tile_bytes)
        patch.setattr(pooling, "SCATTER_BYTES", tile_bytes)
        patch.setattr(pooling, "MOST_GROUPS", data.draw(st.sampled_from([0, 4, 99])))
        patch.setattr("dagnn.backends.numpy.threads._chosen", data.draw(st.integers(1, 3)))
        y, winner = FAST.max_pool(x, window, **options)
        expected, expected_winner = REFERENCE.max_pool(x, window, **options)
        np.testing.assert_array_equal(y, expected, strict=True)
        np.testing.assert_array_equal(winner, expected_winner, strict=True)
        alone, nothing = FAST.max_pool(x, window, **options, wants_winner=False)
        np.testing.assert_array_equal(alone, expected, strict=True)
        assert nothing is None
        dzdy = laid_out(rng.standard_normal(y.shape).astype(dtype), layout)
        same(FAST, REFERENCE, "max_pool_dzdx", dzdy, winner, shape, window, **options)
        same(FAST, REFERENCE, "avg_pool_dzdx", dzdy, shape, window, **options)
        same(FAST, REFERENCE, "avg_pool", np.nan_to_num(x, posinf=3, neginf=-3), window, **options)


def same(one, other, kernel, *args, **options):
    actual, expected = (getattr(backend, kernel)(*args, **options) for backend in (one, other))
    tolerance = 1e-12 if expected.dtype == np.float64 else 1e-5
    np.testing.assert_allclose(actual, expected, rtol=tolerance, atol=tolerance)
    assert actual.dtype == expected.dtype


@pytest.mark.parametrize("images", [1, 2, 3])
def test_tiles_of_usual_size(two_threads, images):
    """Maps of several tiles and bands: what threads do at once has no pixel in common."""
    rng = np.random.default_rng(0)
    x = laid_out(rng.standard_normal((images, 40, 160, 120)).astype(np.float32), "channels last")
    for size, options in ((3, {"stride": 2, "pad": 1}), (2, {"stride": 2}), (3, {"pad": 1})):
        y, winner = FAST.max_pool(x, size, **options)
        expected, expected_winner = REFERENCE.max_pool(x, size, **options)
        np.testing.assert_array_equal(y, expected)
        np.testing.assert_array_equal(winner, expected_winner)
        same(FAST, REFERENCE, "max_pool_dzdx", y, winner, x.shape, size, **options)
        same(FAST, REFERENCE, "avg_pool_dzdx", y, x.shape, size, **options)


def test_the_winner_is_looked_for_only_where_a_derivative_follows():
    asked = []

    class Watched(NumPyBackend):
        def max_pool(self, x, size, *, stride=1, pad=0, wants_winner=True):
            asked.append(wants_winner)
            return super().max_pool(x, size, stride=stride, pad=pad, wants_winner=wants_winner)

    x = np.arange(32.0).reshape(1, 2, 4, 4)
    for wants in (False, True):
        dagnn.Pooling("max", 2).forward(Context(Watched(), wants_inputs=(wants,)), [x], [])
    dagnn.Pooling("max", 2, backprop="center").forward(Context(Watched(), wants_inputs=(True,)), [x], [])
    assert asked == [False, True, False]
