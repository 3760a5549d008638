"""Random networks in float64: all derivatives against central differences, conserving memory or not.

The nets have fan-out, shared parameters, several inputs and outputs, layers with two outputs, seeds on
inner variables, and are edited after an evaluation.
"""

from dataclasses import dataclass

import numpy as np
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import dagnn

SHAPE = (2, 4, 5, 5)  # every variable has it, so that anything connects to anything
STEP = 1e-6


@dataclass
class Swirl(dagnn.Layer):
    """Two smooth outputs of two inputs: p = a sin b, q = a + b."""

    def forward(self, ctx, inputs, params):
        a, b = inputs
        ctx.save(a, b)
        return [a * np.sin(b), a + b]

    def backward(self, ctx, params, der_outputs):
        (a, b), (p, q) = ctx.saved, der_outputs
        p = np.zeros_like(a) if p is None else p
        q = np.zeros_like(a) if q is None else q
        return [p * np.sin(b) + q, p * a * np.cos(b) + q], []

    def output_shapes(self, input_shapes):
        return [input_shapes[0]] * 2


@dataclass
class HalfWeights(dagnn.Layer):
    """Two outputs from one input and one parameter; the second output ignores the parameter."""

    param_specs = (dagnn.ParamSpec("weights"),)

    def forward(self, ctx, inputs, params):
        (x,), (w,) = inputs, params
        ctx.save(x)
        return [x * w, x * x]

    def backward(self, ctx, params, der_outputs):
        (x,), (w,), (p, q) = ctx.saved, params, der_outputs
        dzdx = dzdw = None
        if p is not None:
            dzdx, dzdw = p * w, (p * x).sum((0, 2, 3), keepdims=True)
        if q is not None:
            dzdx = 2 * x * q if dzdx is None else dzdx + 2 * x * q
        return [dzdx], [dzdw]

    def output_shapes(self, input_shapes):
        return [input_shapes[0]] * 2

    def init_params(self, rng):
        return [rng.standard_normal((1, 4, 1, 1))]


FILTERS = {"conv": (4, 4, 3, 3), "grouped": (4, 2, 3, 3)}


@st.composite
def networks(draw):
    net = dagnn.DagNN()
    variables = [f"in{k}" for k in range(draw(st.integers(1, 3)))]
    for k in range(draw(st.integers(2, 9))):
        grow(net, draw, f"f{k}", variables)
    net.init_params(draw(st.integers(0, 2**16)), np.float64)
    return net


def grow(net, draw, name, variables):
    """Add one random layer; parameters of a kind are often shared."""
    pick = st.sampled_from(variables)
    kind = draw(
        st.sampled_from(["conv", "grouped", "tanh", "sum", "swirl", "half", "scale", "bnorm", "slice"])
    )
    outputs = [f"{name}.0"]
    share = draw(st.booleans())
    if kind in ("conv", "grouped"):
        params = [f"{kind}_w", f"{kind}_b"] if share else None
        net.add_layer(name, dagnn.Conv(size=FILTERS[kind], pad=1), draw(pick), outputs, params)
    elif kind == "tanh":
        net.add_layer(name, dagnn.Tanh(), draw(pick), outputs)
    elif kind == "sum":
        net.add_layer(name, dagnn.Sum(), draw(st.lists(pick, min_size=1, max_size=4)), outputs)
    elif kind == "swirl":
        outputs.append(f"{name}.1")
        net.add_layer(name, Swirl(), [draw(pick), draw(pick)], outputs)
    elif kind == "half":
        outputs.append(f"{name}.1")
        net.add_layer(name, HalfWeights(), draw(pick), outputs, ["half_w"] if share else None)
    elif kind == "scale":
        params = ["scale_w", "scale_b"] if share else None
        net.add_layer(name, dagnn.Scale(size=(1, 4, 1, 1)), draw(pick), outputs, params)
    elif kind == "bnorm":
        net.add_layer(name, dagnn.BatchNorm(num_channels=4), draw(pick), outputs)
    else:
        net.add_layer(name, dagnn.Split(axis=1, sizes=(2, 2)), draw(pick), [f"{name}.p", f"{name}.q"])
        net.add_layer(f"{name}c", dagnn.Concat(axis=1), [f"{name}.q", f"{name}.p"], outputs)
    variables.extend(outputs)


def scalar(net, inputs, seeds):
    """z = sum <seed, variable>."""
    net.eval(inputs, keep=list(seeds))
    return sum(float((net.vars[name].value * seed).sum()) for name, seed in seeds.items())


def check(net, seed, cut=None):
    """Compare; the variable `cut`, if any, is given rather than computed."""
    rng = np.random.default_rng(seed)
    inputs = {name: rng.standard_normal(SHAPE) for name in net.inputs}
    starts = {*net.outputs, *rng.choice(list(net.vars), size=2, replace=False).tolist()}
    shapes = net.var_shapes(dict.fromkeys(inputs, SHAPE))
    if cut is not None:
        inputs[cut] = rng.standard_normal(shapes[cut])
    seeds = {name: rng.standard_normal(shapes[name]) for name in sorted(starts)}
    results = {}
    for conserve in (True, False):
        net.conserve_memory = conserve
        net.eval(inputs, seeds, ders=list(inputs))
        results[conserve] = {
            **{name: net.vars[name].der for name in inputs},
            **{n: p.der for n, p in net.params.items() if p.train_method == "gradient"},
        }
    for name, der in results[True].items():
        other = results[False][name]
        assert (der is None) == (other is None), name
        # A fused step may give its derivatives in another order, of which sums round differently.
        assert der is None or np.abs(der - other).max() <= 1e-13 * max(1, np.abs(other).max()), name

    for name, der in results[True].items():
        base = inputs[name] if name in inputs else net.params[name].value
        direction = rng.standard_normal(base.shape)
        values = []
        for sign in (1, -1):
            moved = base + sign * STEP * direction
            if name in inputs:
                values.append(scalar(net, {**inputs, name: moved}, seeds))
            else:
                net.params[name].value = moved
                values.append(scalar(net, inputs, seeds))
        if name in net.params:
            net.params[name].value = base
        numeric = (values[0] - values[1]) / (2 * STEP)
        analytic = 0.0 if der is None else float((der * direction).sum())
        scale = max(abs(numeric), abs(analytic), abs(values[0]), 1.0)
        assert abs(numeric - analytic) < 1e-6 * scale, (name, numeric, analytic)


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(networks(), st.integers(0, 2**16), st.data())
def test_random_networks(net, seed, data):
    check(net, seed)
    check(net, seed + 2, data.draw(st.sampled_from(list(net.vars))))
    variables = [name for name in net.vars if not name.endswith((".p", ".q"))]
    grow(net, data.draw, "late", variables)
    removable = [n for n, node in net.layers.items() if set(node.outputs) <= set(net.outputs) and n != "late"]
    if removable and len(net.layers) > 2:
        net.remove_layer(data.draw(st.sampled_from(removable)))
    net.init_params(seed, np.float64)
    check(net, seed + 1)
