"""MatConvNet's own SimpleNN runs: every res entry, and what is kept of it under its options."""

import matlab
import numpy as np
import pytest

from dagnn.simplenn import Result, SimpleNN

CASES = matlab.load("simplenn")
TEST_CASES = [case for case in CASES if case["mode"] == "test"]
TOLERANCE = 1e-9


def named(case):
    return case["name"]


def weights(layer):
    """The weights of a layer in our axes; [] in a cell is None."""
    first = "vector" if layer["type"] == "bnorm" else "bank"
    kinds = (first, "vector", "moments")
    return [weight(w, kind) for w, kind in zip(layer["weights"], kinds, strict=False)]


def weight(array, kind):
    if np.size(array) == 0:
        return None
    if kind == "bank":
        return matlab.nchw(array)
    return np.asarray(array, float) if kind == "moments" else np.asarray(array, float).ravel()


def build(case):
    layers = []
    for layer in case["net"]["layers"]:
        ours = {key: matlab.numbers(v) for key, v in layer.items() if key not in ("weights", "class")}
        if layer["weights"]:
            ours["weights"] = weights(layer)
        if "class" in layer:
            labels = np.asarray(layer["class"])
            ours["class"] = matlab.nchw(labels) if labels.ndim == 4 else labels.ravel()
            if layer["type"] != "pdist":
                ours["class"] = ours["class"].astype(int) - 1
        layers.append(ours)
    return SimpleNN(layers)


def blank(net):
    return [Result() for _ in range(len(net.layers) + 1)]


def run(case, net=None, **options):
    """Evaluate with the masks MatConvNet drew."""
    net, res = net or build(case), options.pop("res", None)
    if res is None:
        res = blank(net)
        for layer, entry, golden in zip(net.layers, res[1:], case["res"][1:], strict=True):
            if np.size(golden["aux"]):
                layer["frozen"], entry.aux = True, matlab.nchw(golden["aux"])
    return net.eval(matlab.nchw(case["x"]), options.pop("dzdy", 1.0), res, mode=case["mode"], **options)


def eval_case(case, **options):
    return run(case, dzdy=case["dzdy"], **options)


def trusted(case):
    """Index of the first entry whose derivatives match the forward pass: above any bnorm in mode test."""
    kinds = [layer["type"] for layer in case["net"]["layers"]]
    return kinds.index("bnorm") + 1 if case["mode"] == "test" and "bnorm" in kinds else 0


def entry_error(ours, golden, like):
    return matlab.error(ours, matlab.nchw(golden).reshape(np.shape(like)))


@pytest.mark.parametrize("case", CASES, ids=named)
def test_every_entry(case):
    net = build(case)
    res = eval_case(case, net=net)
    compared = 0
    for i, (ours, golden) in enumerate(zip(res, case["res"], strict=True)):
        assert entry_error(ours.x, golden["x"], ours.x) < TOLERANCE, i
        if i >= trusted(case):
            assert entry_error(ours.dzdx, golden["dzdx"], ours.x) < TOLERANCE, i
            compared += compare_dzdw(ours.dzdw, golden["dzdw"], net, i)
        if np.size(golden["aux"]):
            assert np.array_equal(ours.aux, matlab.nchw(golden["aux"]))
        else:
            assert ours.aux is None
        assert ours.stats is None
    assert compared


def compare_dzdw(ours, golden, net, i):
    """How many arrays agreed."""
    if not isinstance(golden, list):
        assert ours == []
        return 0
    expected = weights({"type": net.layers[i]["type"], "weights": golden})
    assert [w is None for w in ours] == [w is None for w in expected]
    pairs = [(o, e) for o, e in zip(ours, expected, strict=True) if e is not None]
    # a bias below bnorm has the derivative 0: its scale is that of the filters
    scale = max(np.abs(e).max() for _, e in pairs)
    assert all(np.abs(o - e).max() < TOLERANCE * scale for o, e in pairs), i
    return len(pairs)


@pytest.mark.parametrize("case", TEST_CASES, ids=named)
def test_memory_flags(case):
    n = len(case["net"]["layers"]) + 1
    forward = run(case, dzdy=None, conserve_memory=True)
    backward = eval_case(case, conserve_memory=True)
    net = build(case)
    net.layers[1]["precious"] = True
    precious = eval_case(case, net=net, conserve_memory=True)
    depth = eval_case(case, backprop_depth=3)

    def has(res, field):
        values = [getattr(entry, field) for entry in res]
        return [int(v is not None and not (isinstance(v, list) and not v)) for v in values]

    flags = {
        "conserve_fwd_has_x": has(forward, "x"),
        "conserve_bwd_has_x": has(backward, "x"),
        "conserve_bwd_has_dzdx": has(backward, "dzdx"),
        "conserve_bwd_has_dzdw": has(backward, "dzdw"),
        "precious2_bwd_has_x": has(precious, "x"),
        "precious2_bwd_has_dzdx": has(precious, "dzdx"),
        "depth3_has_dzdx": has(depth, "dzdx"),
        "depth3_has_dzdw": has(depth, "dzdw"),
    }
    assert {k for k in case if "_has_" in k} == set(flags)
    for name, ours in flags.items():
        golden = [int(v) for v in np.ravel(case[name])]
        assert len(golden) == n and ours == golden, name


@pytest.mark.parametrize("case", TEST_CASES, ids=named)
def test_conserving_memory_changes_no_number(case):
    full, lean = eval_case(case), eval_case(case, conserve_memory=True)
    for a, b in zip(full, lean, strict=True):
        for field in ("x", "dzdx"):
            assert getattr(b, field) is None or np.array_equal(getattr(a, field), getattr(b, field))
        assert all(
            (old is None and new is None) or np.array_equal(old, new)
            for old, new in zip(a.dzdw, b.dzdw, strict=True)
        )


@pytest.mark.parametrize("case", TEST_CASES, ids=named)
def test_accumulation(case):
    net = build(case)
    res = eval_case(case, net=net)
    res = eval_case(case, net=net, res=res, accumulate=True)
    compared = 0
    for i, golden in enumerate(case["accumulate_dzdw"]):
        if i >= trusted(case):
            compared += compare_dzdw(res[i].dzdw, golden, net, i)
    assert compared


@pytest.mark.parametrize("case", [c for c in TEST_CASES if trusted(c)], ids=named)
def test_derivatives_below_bnorm_in_test_mode_by_finite_differences(case):
    net, x = build(case), matlab.nchw(case["x"])
    res = eval_case(case, net=net)
    rng = np.random.default_rng(0)

    def z(x):
        return float(net.eval(x, mode="test")[-1].x) * case["dzdy"]

    def check(der, numeric):
        assert abs(der - numeric) < 1e-6 * max(1, abs(numeric))

    step, checked = 1e-6, 0
    for i in range(trusted(case)):
        for k, der in enumerate(res[i].dzdw):
            if der is None:  # moments have none in mode test
                assert (net.layers[i]["type"], k) == ("bnorm", 2)
                continue
            direction, value = rng.standard_normal(der.shape), net.layers[i]["weights"][k]
            ends = []
            for sign in (1, -1):
                net.layers[i]["weights"][k] = value + sign * step * direction
                ends.append(z(x))
            net.layers[i]["weights"][k] = value
            check(np.vdot(der, direction), (ends[0] - ends[1]) / (2 * step))
            checked += 1
    direction = rng.standard_normal(x.shape)
    numeric = (z(x + step * direction) - z(x - step * direction)) / (2 * step)
    check(np.vdot(res[0].dzdx, direction), numeric)
    assert checked >= 5


def agree(a, b):
    return a is b is None or np.allclose(a, b, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("case", CASES, ids=named)
def test_the_dagnn_computes_the_same(case):
    simple = build(case)
    res = eval_case(case, net=simple)
    net = simple.to_dagnn()
    net.mode, net.conserve_memory = case["mode"], False
    for layer, entry in zip(simple.layers, res[1:], strict=True):
        if entry.aux is not None:
            net.state[layer["name"]]["mask"] = entry.aux
    inputs = {"x0": matlab.nchw(case["x"])}
    if "label" in net.vars:
        inputs["label"] = simple.layers[-1]["class"]
    net.eval(inputs, {f"x{len(simple.layers)}": case["dzdy"]})
    for i, entry in enumerate(res):
        # Up to rounding: a DagNN keeps its filters in the order in which its kernels read them.
        assert agree(net.vars[f"x{i}"].value, entry.x)
        assert agree(net.vars[f"x{i}"].der, entry.dzdx)
        names = net.layers[simple.layers[i]["name"]].params if i < len(simple.layers) else []
        for name, der in zip(names, entry.dzdw, strict=False):
            ours = net.params[name].der
            assert ours is der is None or agree(ours, der)
