"""check_layer must find every kind of wrong layer, and pass right ones."""

from dataclasses import dataclass

import numpy as np
import pytest

import dagnn
from dagnn.errors import CheckError, DagnnError
from dagnn.layers.layer import ParamSpec

X = (2, 3, 4)


@dataclass
class Affine(dagnn.Layer):
    """y = w x + b and, as a second output, x^2. Each flaw breaks one promise."""

    flaw: str = ""

    param_specs = (ParamSpec("w"), ParamSpec("b"))

    def forward(self, ctx, inputs, params):
        (x,), (w, b) = inputs, params
        if self.flaw == "writes inputs":
            x += 1
        ctx.save(x)
        y = w * x + b
        if self.flaw == "upcasts":
            y = y + np.float64(0).reshape(1)
        if self.flaw == "notices wants" and not any(ctx.wants_inputs):
            y = y * 1.5
        if self.flaw == "draws":
            y = y + ctx.state.setdefault("noise", np.random.default_rng().standard_normal())
        if self.flaw == "not finite":
            y = y * np.inf
        return [y, x * x]

    def backward(self, ctx, params, der_outputs):
        (x,), (w, _), (dy, ds) = ctx.saved, params, der_outputs
        zero = x * 0
        dy, ds = zero if dy is None else dy, zero if ds is None else ds
        if self.flaw == "needs all outputs":
            dy = dy + 1e-3 * (der_outputs[1] is None)
        dzdx, dzdw, dzdb = w * dy + 2 * x * ds, (dy * x).sum(0), dy.sum(0)
        match self.flaw:
            case "wrong input":
                dzdx = w * dy + x * ds
            case "wrong scale":
                dzdx = dzdx * (1 + 1e-4)
            case "wrong parameter":
                dzdb = 2 * dzdb
            case "no parameter":
                dzdb = None
            case "unreduced":
                dzdb = dy
            case "too few":
                return [dzdx], [dzdw]
            case "writes ders" if der_outputs[0] is not None:
                der_outputs[0][...] = 0
            case "wants all" if not all(ctx.wants_params):
                dzdw = dzdw * 0
            case "gives nothing alone" if not all(ctx.wants_params):
                dzdx = None
            case "upcasts backward":
                dzdx = dzdx.astype(np.float64)
        return [dzdx], [dzdw, dzdb]

    def init_params(self, rng):
        return [rng.standard_normal(X[1:]), np.zeros(X[1:])]

    def output_shapes(self, input_shapes):
        (shape,) = input_shapes
        return [shape, (1,) if self.flaw == "wrong shape" else shape]

    def save(self):
        return {"flaw": self.flaw} if self.flaw != "forgets" else {}


def test_a_right_layer_passes():
    assert dagnn.check_layer(Affine(), [X]) is None


@pytest.mark.parametrize(
    ("flaw", "message"),
    [
        ("wrong input", r"derivative for input 0 is wrong: along a random direction backward gives -?\d.*, "
                        r"differences of the outputs -?\d.* \(tolerance 1e-06\)"),
        ("wrong scale", "derivative for input 0 is wrong"),
        ("wrong parameter", "derivative for parameter 'b' is wrong"),
        ("no parameter", "derivative for parameter 'b' is None"),
        ("unreduced", r"derivative for parameter 'b' has shape \(2, 3, 4\), expected \(3, 4\)"),
        ("too few", r"backward gives \(1, 1\) derivatives for \(inputs, params\), expected \(1, 2\)"),
        ("wrong shape", r"outputs have shapes .*, output_shapes says \[\(2, 3, 4\), \(1,\)\]"),
        ("not finite", "output 0 is not finite"),
        ("notices wants", "output 0 depends on which derivatives are wanted"),
        ("draws", "output 0 depends on which derivatives are wanted, or on chance"),
        ("wants all", "derivative for parameter 'w' differs by up to .* when it alone is wanted"),
        ("gives nothing alone", "derivative for input 0 is None when it alone is wanted"),
        ("needs all outputs", "differs by up to .* summed over outputs, None for the others"),
        ("writes ders", "argument 3 of .* was written into"),
        ("writes inputs", "argument 0 of .* was written into"),
        ("upcasts", "output 0 is float64 for float32 data"),
        ("upcasts backward", "derivative for input 0 is float64 for float32 data"),
    ],
)  # fmt: skip
def test_every_flaw_is_found(flaw, message):
    with pytest.raises(CheckError, match="Affine: .*" + message):
        dagnn.check_layer(Affine(flaw), [X])


def test_a_configuration_that_gets_lost_is_found():
    with pytest.raises(CheckError, match=r"load\(save\(\)\) gives \{'flaw': ''\}"):
        dagnn.check_layer(Forgetful("x"), [X])


@dataclass
class Forgetful(Affine):
    @classmethod
    def load(cls, config):
        return cls()


def test_errors_are_of_the_family():
    assert issubclass(CheckError, DagnnError)


@pytest.mark.parametrize(
    "layer",
    [
        dagnn.ReLU(backprop="deconvnet"),
        dagnn.ReLU(backprop="none"),
        dagnn.LRN((3, 1, 1, 1), backprop="none"),
        dagnn.Pooling("max", 3, 2, backprop="center"),
    ],
)
def test_variants_that_are_no_derivatives_fail(layer):
    with pytest.raises(CheckError, match="is wrong"):
        dagnn.check_layer(layer, [(2, 3, 5, 5)])


def test_given_inputs_and_parameters_are_used():
    x = np.full(X, 2, np.float32)
    seen = []

    def forward(ctx, inputs, params):
        seen.append(inputs[0].copy())
        return [inputs[0] * inputs[1]]

    def backward(ctx, params, der_outputs):
        return [None, None], []

    dagnn.check_layer(dagnn.Custom(forward, backward), [X, X], inputs=[x, np.ones(X, np.int8)])
    assert seen[0].dtype == np.float64 and (seen[0] == 2).all()
    with pytest.raises(CheckError, match="not finite"):
        dagnn.check_layer(Affine(), [X], params=[np.full(X[1:], np.inf), np.zeros(X[1:])])


def test_integer_inputs_are_not_moved():
    labels = np.array([0, 2])
    dagnn.check_layer(dagnn.Loss(), [(2, 3, 1, 1), (2,)], inputs=[None, labels])
    assert labels.tolist() == [0, 2]


def test_mode_backend_seed_and_tolerance():
    class Counting(type(dagnn.backends.get("reference"))):
        seeds = set()

        def rng(self, *keys):
            self.seeds.add(keys)
            return super().rng(*keys)

    backend = Counting()
    dagnn.check_layer(dagnn.DropOut(), [X], mode="test", backend=backend)
    assert not backend.seeds
    dagnn.check_layer(dagnn.DropOut(), [X], backend=backend, seed=5)
    assert backend.seeds == {(5,)}
    dagnn.check_layer(Affine("wrong scale"), [X], tolerance=1e-3)
    dagnn.check_layer(dagnn.Sigmoid(), [X], backend="reference", directions=1)


def test_random_inputs_are_apart_and_away_from_zero():
    from dagnn.check import _distinct

    for shape in [(5,), (7, 3), (2, 3, 4)]:
        values = np.sort(np.append(_distinct(np.random.default_rng(1), shape).ravel(), 0))
        n = values.size
        assert np.diff(values).min() > 3 / n / 5
        assert abs(values).max() < 1.5
    assert _distinct(np.random.default_rng(1), (0, 3)).shape == (0, 3)
