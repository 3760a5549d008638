"""relu, sigmoid, softmax, dropout and concat against MatConvNet."""

import numpy as np
import pytest
from agreement import agree
from matlab import cases, error, load, nchw


@pytest.mark.parametrize("case", cases("relu"))
def test_relu(backend, case):
    leak = case.opts.get("leak", 0.0)

    def kernel(get):
        y = backend.relu(get("x"), leak)
        return {"y": y, "dzdx": backend.relu_dzdx(get("dzdy"), y, leak)}

    agree(backend, case, kernel)


@pytest.mark.parametrize("block, case", [(n, *c.values) for n in ("sigmoid", "softmax") for c in cases(n)])
def test_sigmoid_and_softmax(backend, block, case):
    def kernel(get):
        y = getattr(backend, block)(get("x"))
        return {"y": y, "dzdx": getattr(backend, f"{block}_dzdx")(get("dzdy"), y)}

    agree(backend, case, kernel)


@pytest.mark.parametrize("case", cases("dropout"))
def test_dropout_is_a_product_with_a_mask_of_these_values(backend, case):
    agree(backend, case, lambda get: {"y": get("x") * get("mask"), "dzdx": get("dzdy") * get("mask")})
    rate = float(case.raw["name"].removeprefix("rate_"))
    mask = backend.to_numpy(backend.dropout_mask(backend.rng(1), (50, 4, 5, 6), rate, np.float64))
    assert error(np.unique(mask), np.unique(case.x("mask"))) < 1e-12
    assert abs(mask.mean() - 1) < 0.05


@pytest.mark.parametrize("case", load("concat"), ids=lambda case: case["name"])
def test_concat(backend, case):
    xs = zip(case["in"]["x"], case["size"]["x"], strict=True)
    xs = [backend.asarray(nchw(x, size)) for x, size in xs]
    axis = {1: 2, 2: 3, 3: 1, 4: 0}[case["in"]["dim"]]
    assert error(backend.to_numpy(backend.concat(xs, axis)), nchw(case["out"]["y"], case["size"]["y"])) == 0


@pytest.mark.parametrize("leak", [0.0, 0.2])
def test_a_sum_is_rectified_last(backend, leak):
    xs = [backend.asarray(np.array([-3.0, 1.0, np.nan])), backend.asarray(np.array([2.0, 1.0, 1.0]))]
    for count in (1, 2):
        expected = backend.relu(backend.sum(xs[:count]), leak)
        y = backend.to_numpy(backend.sum(xs[:count], relu=leak))
        np.testing.assert_array_equal(y, backend.to_numpy(expected))
