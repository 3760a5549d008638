"""Pooling over windows and over regions of interest against MatConvNet."""

import numpy as np
import pytest
from agreement import agree
from matlab import cases, numbers


@pytest.mark.parametrize("case", cases("pool"))
def test_pool(backend, case):
    options, size = case.opts, numbers(case.raw["in"]["pool"])
    method = options.pop("method", "max")

    def kernel(get):
        x, dzdy = get("x"), get("dzdy")
        if method == "avg":
            y = backend.avg_pool(x, size, **options)
            return {"y": y, "dzdx": backend.avg_pool_dzdx(dzdy, x.shape, size, **options)}
        y, winner = backend.max_pool(x, size, **options)
        return {"y": y, "dzdx": backend.max_pool_dzdx(dzdy, winner, x.shape, size, **options)}

    agree(backend, case, kernel)


@pytest.mark.parametrize("case", cases("roipool"))
def test_roi_pool(backend, case):
    options, transform = case.opts, np.asarray(case.raw["opts"].get("transform", 1.0))
    if transform.shape == (2, 3):  # with coordinates from 0, t becomes A 1 + t - 1
        transform = np.c_[transform[:, :2], transform.sum(axis=1) - 1]
    options["transform"] = transform
    rois = backend.asarray(case.raw["in"]["rois"] - 1)

    def kernel(get):
        x, dzdy = get("x"), get("dzdy")
        y, winner = backend.roi_pool(x, rois, **options)
        return {"y": y, "dzdx": backend.roi_pool_dzdx(dzdy, winner, rois, x.shape, **options)}

    agree(backend, case, kernel)


# A window of max pooling -> its maximum and the tap that wins it.
WINDOWS = {
    "one": ([[1, 2], [4, 3]], 4, 1),
    "ties": ([[1, 7], [7, 7]], 7, 1),
    "nan first": ([[np.nan, 5], [5, 2]], 5, 1),
    "nan later": ([[3, 2], [np.nan, np.nan]], 3, 0),
    "all nan": ([[np.nan, np.nan], [np.nan, np.nan]], -np.inf, 0),
    "all -inf": ([[-np.inf, -np.inf], [-np.inf, -np.inf]], -np.inf, 0),
}


@pytest.mark.parametrize("window, best, tap", WINDOWS.values(), ids=WINDOWS)
def test_max_pool_of_one_window(backend, window, best, tap):
    x = backend.asarray(np.array(window, float)[None, None])
    y, winner = backend.max_pool(x, 2)
    assert (y.item(), winner.item(), winner.dtype) == (best, tap, np.uint8)


def test_max_pool_of_nothing_but_nan_sends_its_derivative_inside_the_image(backend):
    x = backend.asarray(np.full((1, 1, 2, 2), np.nan))
    y, winner = backend.max_pool(x, 2, pad=1)
    assert (backend.to_numpy(y) == -np.inf).all()
    dzdx = backend.max_pool_dzdx(backend.asarray(np.ones(y.shape)), winner, x.shape, 2, pad=1)
    assert backend.to_numpy(dzdx).sum() == y.size


def test_large_windows_count_their_taps_in_more_than_a_byte(backend):
    x = backend.asarray(np.arange(17.0 * 18).reshape(1, 1, 17, 18))
    y, winner = backend.max_pool(x, (17, 18))
    assert (y.item(), winner.item(), winner.dtype) == (305, 305, np.int32)
    dzdy = backend.asarray(np.ones(y.shape))
    dzdx = backend.to_numpy(backend.max_pool_dzdx(dzdy, winner, x.shape, (17, 18)))
    assert dzdx.sum() == dzdx[0, 0, 16, 17] == 1


def test_roi_pool_ignores_nan_and_leaves_empty_bins_zero(backend):
    x = np.full((1, 1, 3, 3), np.nan)
    x[0, 0, 1, 1] = 2
    rois = backend.asarray(np.array([[0, 0, 0, 2, 2], [0, 5, 5, 7, 7]]).T)
    y, winner = backend.roi_pool(backend.asarray(x), rois, subdivisions=1)
    assert backend.to_numpy(y).ravel().tolist() == [2, 0]
    assert backend.to_numpy(winner).ravel().tolist() == [4, -1]


# Coordinates from 0 -> the first and last column of the region, and the image it is cut from.
REGIONS = {
    "image index truncated": ((1.9, 0, 0, 1, 0), (1, 0, 1)),
    "image index clamped": ((7, 0, 0, 1, 0), (1, 0, 1)),
    "negative image index": ((-3, 0, 0, 1, 0), (0, 0, 1)),
    "halves away from zero": ((0, 0.5, 0, 2.5, 0), (0, 1, 3)),
    "half a pixel outside": ((0, -0.5, 0, 1, 0), (0, 0, 1)),
    "reversed": ((0, 2, 0, 1, 0), (0, 2, 2)),
    "across the border": ((0, 3, 0, 9, 0), (0, 3, 4)),
}


@pytest.mark.parametrize("roi, expected", REGIONS.values(), ids=REGIONS)
def test_where_a_region_lies(backend, roi, expected):
    image, first, last = expected
    dzdy, rois = backend.asarray(np.ones((1, 1, 1, 1))), backend.asarray(np.array([roi]).T)
    der = backend.roi_pool_dzdx(dzdy, None, rois, (2, 1, 1, 5), subdivisions=1, method="avg")
    rows = np.zeros((2, 1, 1, 5))
    rows[image, 0, 0, first : last + 1] = 1 / (last - first + 1)
    np.testing.assert_allclose(backend.to_numpy(der), rows)
