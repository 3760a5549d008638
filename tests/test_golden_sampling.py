"""The bilinear sampler and the grid generators against MatConvNet."""

import numpy as np
import pytest
from agreement import outputs
from matlab import cases, error, load

GENERATORS = {
    "dagnn.AffineGridGenerator": "affine_grid",
    "dagnn.UniformScalingGridGenerator": "uniform_scaling_grid",
}


def grid_from_matlab(grid):
    """2 x H x W x N as (N, 2, H, W)."""
    return grid.reshape(grid.shape + (1,) * (4 - grid.ndim)).transpose(3, 0, 1, 2)


def numbers_from_matlab(numbers):
    """1 x 1 x K x N as (N, K, 1, 1)."""
    return numbers.reshape(numbers.shape[2], -1, order="F").T[..., None, None]


@pytest.mark.parametrize("case", cases("bilinearsampler"))
def test_bilinear_sampler(backend, case):
    given = grid_from_matlab(case.raw["in"]["grid"])
    dzdgrid = grid_from_matlab(case.raw["out"]["dzdgrid"])
    golden = {"y": case.y("y"), "dzdx": case.y("dzdx"), "dzdgrid": dzdgrid}

    def run(*dtypes):
        grid = given
        for dtype in dtypes:
            grid = grid.astype(dtype)
        grid = backend.asarray(grid)

        def kernel(get):
            dzdx, dzdgrid = backend.bilinear_sampler_ders(get("dzdy"), get("x"), grid)
            return {"y": backend.bilinear_sampler(get("x"), grid), "dzdx": dzdx, "dzdgrid": dzdgrid}

        return outputs(backend, case, kernel, *dtypes)

    for name, value in run(np.float64).items():
        assert error(value, golden[name]) <= (1e-5 if case.single else 1e-9), name
    double = run(np.float32, np.float64)
    for name, value in run(np.float32).items():
        assert value.dtype == np.float32
        assert error(value, double[name]) <= 1e-5, name


@pytest.mark.parametrize("case", [c for c in load("dagnn_layers") if c["class"] in GENERATORS])
@pytest.mark.parametrize("dtype, most", [(np.float64, 1e-9), (np.float32, 1e-5)])
def test_grid_generators(backend, case, dtype, most):
    name = GENERATORS[case["class"]]
    size = {"height": int(case["opts"]["Ho"]), "width": int(case["opts"]["Wo"])}
    (numbers, grid, dzdy, der) = (case[part][0] for part in ("inputs", "outputs", "derOutputs", "derInputs"))
    y = getattr(backend, name)(backend.asarray(numbers_from_matlab(numbers).astype(dtype)), **size)
    assert error(backend.to_numpy(y), grid_from_matlab(grid)) <= most
    dzdx = getattr(backend, f"{name}_der")(backend.asarray(grid_from_matlab(dzdy).astype(dtype)))
    assert error(backend.to_numpy(dzdx), numbers_from_matlab(der)) <= most
    assert y.dtype == dzdx.dtype == dtype


def test_samples_far_outside_are_zero_and_nan_stays_nan(backend):
    x = backend.asarray(np.ones((1, 1, 3, 3)))
    grid = np.array([[1e30, np.inf, -1e30, np.nan], [0, 0, 0, 0]]).reshape(1, 2, 1, 4)
    y = backend.to_numpy(backend.bilinear_sampler(x, backend.asarray(grid)))
    np.testing.assert_array_equal(y.ravel(), [0, 0, 0, np.nan])


def test_a_grid_of_one_pixel_reads_the_last(backend):
    identity = backend.asarray(np.array([1.0, 0, 0, 1, 0, 0]).reshape(1, 6, 1, 1))
    assert backend.to_numpy(backend.affine_grid(identity, height=1, width=1)).ravel().tolist() == [1, 1]
