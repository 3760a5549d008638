"""MatConvNet's own DagNN runs: every variable and parameter, value and derivative."""

import matlab
import numpy as np
import pytest

import dagnn

# Batch normalisation takes a bias before it out again: this derivative is zero but for rounding.
ZERO = {("branches_bnorm_concat", "bB")}
ROLES = {"Conv": ("filters", "biases"), "ConvTranspose": ("filters", "biases"), "BatchNorm": ("g", "b", "m")}


def to_ours(array, name, size=None):
    """A variable's or parameter's array in our axes; labels from 1-based rows."""
    if name == "label":
        return np.asarray(array).ravel().astype(int) - 1
    return matlab.nchw(array, size)


def param_array(array, layer_type, slot):
    if ROLES[layer_type][slot] == "filters":
        return matlab.nchw(array)
    return np.asarray(array) if ROLES[layer_type][slot] == "m" else np.asarray(array).ravel()


def build(case) -> dagnn.DagNN:
    net = dagnn.DagNN()
    for spec in case["layers"]:
        options = matlab.opts(spec)
        kind = spec["type"]
        if "size" in options:
            h, w, c, k = (*options["size"], 1, 1)[:4]
            options["size"] = (k, c, h, w)
        if "dim" in options:
            options["axis"] = {1: 2, 2: 3, 3: 1, 4: 0}[options.pop("dim")]
        names = {"hasBias": "has_bias", "poolSize": "pool_size", "numChannels": "num_channels"}
        layer = getattr(dagnn, kind)(**{names.get(k, k): v for k, v in options.items()})
        inputs, outputs, params = spec["inputs"], spec["outputs"], spec["params"]
        net.add_layer(spec["name"], layer, inputs, outputs, params if layer.params else None)
    return net


def param_slots(case):
    """Parameter name -> (layer type, slot)."""
    return {name: (spec["type"], slot) for spec in case["layers"] for slot, name in enumerate(spec["params"])}


@pytest.fixture(params=matlab.load("dagnn"), ids=lambda case: case["name"])
def case(request):
    return request.param


def inputs_of(case):
    pairs = case["inputs"]
    sizes = dict(zip((v["name"] for v in case["vars"]), case["varSizes"], strict=True))
    return {n: to_ours(v, n, sizes[n]) for n, v in zip(pairs[::2], pairs[1::2], strict=True)}


def run(case, dtype, conserve, backend="numpy"):
    net = build(case)
    net.move(backend)
    net.mode, net.conserve_memory = case["mode"], conserve
    slots = param_slots(case)
    for param in case["params"]:
        net.params[param["name"]].value = param_array(param["value"], *slots[param["name"]]).astype(dtype)
    inputs = {n: a.astype(dtype) if a.dtype.kind == "f" else a for n, a in inputs_of(case).items()}
    pairs = case["derOutputs"]
    der_outputs = {
        n: np.asarray(v, dtype) if np.ndim(v) == 0 else matlab.nchw(v).astype(dtype)
        for n, v in zip(pairs[::2], pairs[1::2], strict=True)
    }
    net.eval(inputs, der_outputs or None, ders=list(net.vars) if conserve and der_outputs else ())
    return net


def check(case, net, reference=None, tolerance=1e-9):
    """Compare with golden, or with another net's results."""
    slots, compared = param_slots(case), 0
    for variable in case["vars"]:
        name = variable["name"]
        for field in ("value", "der"):
            golden = variable[field]
            if np.size(golden) == 0 or name == "label":
                continue
            ours = net.backend.to_numpy(getattr(net.vars[name], field))
            want = getattr(reference.vars[name], field) if reference else matlab.nchw(golden)
            if reference is None and np.ndim(ours) == 0:
                want = np.asarray(golden).reshape(())
            assert matlab.error(ours, want) < tolerance, (name, field)
            compared += 1
    for param in case["params"]:
        name = param["name"]
        if np.size(param["der"]):
            want = reference.params[name].der if reference else param_array(param["der"], *slots[name])
            der = net.backend.to_numpy(net.params[name].der)
            if (case["name"], name) in ZERO:
                largest = max(float(np.abs(p.der).max()) for p in net.params.values())
                assert max(np.abs(der).max(), np.abs(want).max()) < tolerance * largest
            else:
                assert matlab.error(der, want) < tolerance, name
            compared += 1
    return compared


def test_float64_matches_matconvnet(case, backend):
    assert check(case, run(case, np.float64, False, backend)) >= 13


def test_float32_matches_our_float64(case, backend):
    single = run(case, np.float32, False, backend)
    rounded = build(case)
    rounded.mode, rounded.conserve_memory = case["mode"], False
    for name, param in single.params.items():
        rounded.params[name].value = backend.to_numpy(param.value).astype(np.float64)
    inputs = {
        n: a.astype(np.float32).astype(np.float64) if a.dtype.kind == "f" else a
        for n, a in inputs_of(case).items()
    }
    pairs = case["derOutputs"]
    ders = {
        n: v if np.ndim(v) == 0 else matlab.nchw(v).astype(np.float32).astype(np.float64)
        for n, v in zip(pairs[::2], pairs[1::2], strict=True)
    }
    rounded.eval(inputs, ders or None)
    check(case, single, reference=rounded, tolerance=1e-5)


def test_conserving_memory_gives_the_same_derivatives(case):
    kept, conserved = run(case, np.float64, False), run(case, np.float64, True)
    for name, param in kept.params.items():
        assert (param.der is None) == (conserved.params[name].der is None)
        if param.der is not None:
            assert np.array_equal(param.der, conserved.params[name].der)


def test_the_order_is_one_matconvnet_could_have_used(case):
    order = [case["layers"][int(k) - 1]["name"] for k in np.ravel(case["executionOrder"])]
    assert [step.name for step in build(case)._wires()] == order
