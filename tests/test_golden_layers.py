"""Single layers against MatConvNet's own outputs and derivatives."""

import matlab
import numpy as np
import pytest

import dagnn
from dagnn import backends

LAYERS = matlab.load("dagnn_layers")
RENAMED = {"Ho": "height", "Wo": "width", "hasBias": "has_bias", "dim": "axis"}
AXES = {1: 2, 2: 3, 3: 1, 4: 0}


def grid(array):
    """2 x Ho x Wo x N as (N, 2, Ho, Wo)."""
    return matlab.nchw(array).transpose(0, 2, 3, 1)


def config(case):
    options = {RENAMED.get(name, name): value for name, value in matlab.opts(case).items()}
    if "size" in options:
        h, w, c, n = (*options["size"], 1)[:4]
        options["size"] = (n, c, h, w)
    if "axis" in options:
        options["axis"] = AXES[options["axis"]]
    return options


def arrays(case, field):
    """The arrays of a field in our axes, None where MatConvNet gives nothing."""
    is_grid = case["class"].endswith("GridGenerator") and field in ("outputs", "derOutputs")
    values = []
    for position, value in enumerate(case[field]):
        if np.size(value) == 0:
            values.append(None)
        elif np.ndim(value) == 0:
            values.append(np.array(float(value)))
        elif case["class"] == "dagnn.ROIPooling" and field == "inputs" and position == 1:
            values.append(value - 1)
        else:
            values.append(grid(value) if is_grid else matlab.nchw(value))
    return values


def compare(backend, actual, reference):
    assert (actual is None) == (reference is None)
    if reference is not None:
        assert matlab.error(backend.to_numpy(actual), reference) < 1e-9


@pytest.mark.parametrize("case", LAYERS, ids=[case["name"] for case in LAYERS])
def test_layer(backend, case):
    layer = getattr(dagnn, case["class"].removeprefix("dagnn."))(**config(case))
    inputs, params, dzdy = (
        [None if a is None else backend.asarray(a) for a in arrays(case, field)]
        for field in ("inputs", "params", "derOutputs")
    )
    assert all(p.shape == layer.size for p in params)
    ctx = dagnn.Context(backend, wants_inputs=(True,) * len(inputs), wants_params=(True,) * len(params))
    outputs = layer.forward(ctx, inputs, params)
    der_inputs, der_params = layer.backward(ctx, params, dzdy)
    assert [y.shape for y in outputs] == layer.output_shapes([x.shape for x in inputs])
    for actual, reference in zip(
        [*outputs, *der_inputs, *der_params],
        [*arrays(case, "outputs"), *arrays(case, "derInputs"), *arrays(case, "derParams")],
        strict=True,
    ):
        compare(backend, actual, reference)


def test_running_average_of_a_loss():
    layer, state = dagnn.Loss(), {}
    for step in matlab.load("dagnn_loss_average", "steps"):
        ctx = dagnn.Context(backends.get("numpy"), state=state)
        (y,) = layer.forward(ctx, [matlab.nchw(step["x"]), matlab.nchw(step["c"]) - 1], [])
        assert y == pytest.approx(step["y"], rel=1e-12)
        assert state["average"] == pytest.approx(step["average"], rel=1e-12)
        assert state["num_averaged"] == step["numAveraged"]
