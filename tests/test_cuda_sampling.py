"""The CUDA kernels of the sampler, run on a CPU, against the reference kernels in float64."""

import numpy as np
import pytest
import test_golden_sampling as golden
from hypothesis import given, settings
from hypothesis import strategies as st
from matlab import cases, error
from test_cuda_maps import LAYOUTS, TOLERANCES, OnDevice, layouts, types

from dagnn.backends.base import Backend
from dagnn.dtypes import floating
from dagnn.errors import ShapeError

REFERENCE = Backend()


@settings(max_examples=100)
@given(st.data(), layouts, types)
def test_the_sampler_is_the_reference(emulated, data, layout, dtype):
    n, channels = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 3, 40]))
    h, w, down, across = data.draw(st.tuples(*[st.integers(1, 5)] * 4))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    grids = n * data.draw(st.integers(1, 2))
    # Multiples of 1/8, so that kinks are met, and met in all types.
    x, dzdy = rng.integers(-8, 9, (n, channels, h, w)) / 8.0, rng.random((grids, channels, down, across))
    grid = rng.integers(-10, 11, (grids, 2, down, across)) / 8.0
    x, dzdy, grid = (a.astype(floating(dtype)) for a in (x, dzdy, grid))
    wide = [a.astype(np.float64) for a in (dzdy, x, grid)]
    device = OnDevice(emulated, layout)
    results = *device.bilinear_sampler(x, grid), *device.bilinear_sampler_ders(dzdy, x, grid)
    expected = REFERENCE.bilinear_sampler(*wide[1:]), *REFERENCE.bilinear_sampler_ders(*wide)
    for actual, right in zip(results, expected, strict=True):
        assert actual.dtype == floating(dtype)
        assert error(actual.astype(np.float64), right) <= TOLERANCES[dtype]


@pytest.mark.parametrize("exponent", [-900, -300, 0, 300, 1015])
def test_derivatives_of_any_size_are_summed_exactly(emulated, exponent):
    rng = np.random.default_rng(2)
    dzdy = rng.integers(-99, 100, (1, 2, 20, 20)) * 2.0**exponent
    x, grid = np.zeros((1, 2, 3, 3)), rng.integers(-8, 9, (1, 2, 20, 20)) / 8.0
    (dzdx,) = OnDevice(emulated).bilinear_sampler_ders(dzdy, x, grid, wants=(True, False))[:1]
    expected, _ = REFERENCE.bilinear_sampler_ders(dzdy, x, grid, wants=(True, False))
    np.testing.assert_array_equal(dzdx, expected)


def test_the_sum_does_not_depend_on_the_order_of_samples(emulated):
    rng = np.random.default_rng(3)
    dzdy, grid = rng.standard_normal((1, 1, 1, 500)), 2 * rng.random((1, 2, 1, 500)) - 1
    x, order = np.zeros((1, 1, 4, 4)), rng.permutation(500)
    device = OnDevice(emulated)
    one, _ = device.bilinear_sampler_ders(dzdy, x, grid)
    other, _ = device.bilinear_sampler_ders(dzdy[..., order], x, grid[..., order])
    np.testing.assert_array_equal(one, other)


def test_what_is_not_finite_reaches_the_pixels_that_it_meets(emulated):
    dzdy = np.array([1.0, np.nan, np.inf, 2.0]).reshape(1, 1, 1, 4)
    grid = np.array([[-0.9, -0.1, 0.9, 5.0], [-1.0, 1.0, -1.0, 0.0]]).reshape(1, 2, 1, 4)
    args = dzdy, np.zeros((1, 1, 3, 2)), grid
    with np.errstate(invalid="ignore"):
        expected, _ = REFERENCE.bilinear_sampler_ders(*args)
    dzdx, _ = OnDevice(emulated).bilinear_sampler_ders(*args)
    assert 0 < np.isfinite(expected).sum() < 6
    np.testing.assert_allclose(dzdx, np.where(np.isfinite(expected), expected, np.nan), rtol=1e-15)
    golden.test_samples_far_outside_are_zero_and_nan_stays_nan(emulated)


def test_no_samples_and_no_images(emulated):
    x, grid = np.zeros((2, 3, 4, 4)), np.zeros((2, 2, 0, 5))
    device = OnDevice(emulated)
    (y,) = device.bilinear_sampler(x, grid)
    dzdx, dzdgrid = device.bilinear_sampler_ders(y, x, grid)
    assert (y.shape, dzdgrid.shape) == ((2, 3, 0, 5), grid.shape) and not dzdx.any()
    with pytest.raises(ShapeError, match="2 grids for 0 images"):
        device.bilinear_sampler(x[:0], grid)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_samples_have_the_memory_order_of_the_images(emulated, layout):
    order = LAYOUTS[layout]
    x = emulated.xp.zeros([(2, 3, 4, 5)[k] for k in order]).transpose(np.argsort(order).tolist())
    grid = emulated.xp.zeros((2, 2, 3, 3))
    y = emulated.bilinear_sampler(x, grid)
    dzdx, none = emulated.bilinear_sampler_ders(y, x, grid, wants=(True, False))
    last = layout == "channels last"
    for maps in (y, dzdx):
        assert maps.transpose(0, 2, 3, 1).flags.c_contiguous == last != maps.flags.c_contiguous
    assert none is None and emulated.bilinear_sampler_ders(y, x, grid, wants=(False, True))[0] is None


def test_sampling_can_be_recorded(emulated):
    x, affine = np.arange(9.0).reshape(1, 1, 3, 3), np.array([1.0, 0, 0, 1, 0, 0]).reshape(1, 6, 1, 1)
    on_device, kept = [emulated.asarray(a) for a in (x, affine)], []

    def work():
        grid = emulated.affine_grid(on_device[1], height=2, width=2)
        y = emulated.bilinear_sampler(on_device[0], grid)
        dzdx, dzdgrid = emulated.bilinear_sampler_ders(y, on_device[0], grid)
        kept[:] = y, dzdx, emulated.affine_grid_der(dzdgrid)

    work()
    launch = emulated.recorder().record(work)
    affine *= 0.5
    on_device[1].set(affine)
    launch()
    grid = REFERENCE.affine_grid(affine, height=2, width=2)
    y = REFERENCE.bilinear_sampler(x, grid)
    dzdx, dzdgrid = REFERENCE.bilinear_sampler_ders(y, x, grid)
    for actual, expected in zip(kept, (y, dzdx, REFERENCE.affine_grid_der(dzdgrid)), strict=True):
        np.testing.assert_allclose(actual.get(), expected, rtol=1e-14)


@pytest.mark.parametrize("case", cases("bilinearsampler"))
def test_golden_samples(emulated, case):
    golden.test_bilinear_sampler(emulated, case)
