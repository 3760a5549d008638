"""Does a layer keep its promises? Its derivatives against differences of its outputs, and all around them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from . import backends
from .errors import CheckError, OptionError
from .geometry import Shape
from .layers.layer import Context, Layer, check_fields

if TYPE_CHECKING:
    from .backends.base import Array, Backend

Ders = list[Any]

STEP = 1e-5  # of the differences


def check_layer(
    layer: Layer,
    input_shapes: Sequence[Shape],
    *,
    inputs: Sequence[Any] | None = None,
    params: Sequence[Any] | None = None,
    mode: str = "train",
    seed: int = 0,
    backend: str | Backend = "numpy",
    tolerance: float = 1e-6,
    directions: int = 3,
) -> None:
    """Raise CheckError unless `layer` does in float64, on random data, all that a net relies on:

    - outputs have the shapes `output_shapes` says, and do not depend on which derivatives are wanted;
    - each derivative, times a random direction, equals the central difference of z = sum <p, output> along
      it, for random p; parameters trained by "average" and inputs whose derivative is None are left out;
    - a derivative comes out the same when it alone is wanted, and with None for some of several outputs;
    - inputs, parameters and dzdy are left as they were, and float32 stays float32;
    - `load(save())` gives the same configuration.

    Parameters
    ----------
    input_shapes : one shape per input; random inputs are distinct and away from 0, where kinks are.
    inputs : arrays to take instead (labels, probabilities), None for random ones.
    params : values to take instead of `init_params` with a little noise.
    mode, backend : in which, and on which, it is evaluated.
    tolerance : allowed error relative to the derivative's norm.
    directions : random directions per derivative.

    Variants that are not derivatives, such as `ReLU(backprop="deconvnet")`, fail by design.

    >>> import dagnn
    >>> check_layer(dagnn.Conv(size=(4, 3, 3, 3), pad=1), [(2, 3, 5, 5)])
    >>> wrong = dagnn.Custom(
    ...     forward=lambda ctx, inputs, params: [2 * inputs[0]],
    ...     backward=lambda ctx, params, ders: (ders, []),
    ... )
    >>> check_layer(wrong, [(2, 3)])
    Traceback (most recent call last):
        ...
    dagnn.errors.CheckError: Custom: the derivative for input 0 is wrong: along a random direction backward
    gives -1.699..., differences of the outputs -3.398... (tolerance 1e-06)
    """
    if not isinstance(layer, Layer):
        raise OptionError(f"check_layer takes a layer object such as dagnn.ReLU(). Received: {layer!r}")
    check_fields(layer)
    chosen = backends.get(backend) if isinstance(backend, str) else backend
    rng = np.random.default_rng(seed)
    xs = [
        chosen.asarray(_distinct(rng, shape) if given is None else _double(given))
        for shape, given in zip(input_shapes, inputs or [None] * len(input_shapes), strict=True)
    ]
    check = _Check(layer, chosen, mode, seed, xs + _values(layer, params, rng, chosen), len(xs))
    check.outputs(rng)
    check.derivatives(rng, tolerance, directions)
    check.wanted_alone()
    check.outputs_apart()
    check.single_precision()
    check.round_trip()


def _distinct(rng: np.random.Generator, shape: Shape) -> np.ndarray:
    """Numbers between -1.5 and 1.5, no two and none and 0 closer than half of their mean distance."""
    n = int(np.prod(shape))
    cells = max(n + n % 2, 1)
    values = (rng.permutation(cells)[:n] + 0.5 + rng.uniform(-0.25, 0.25, n)) * (3 / cells) - 1.5
    return values.reshape(shape)


def _double(array: Any) -> np.ndarray:
    """Floating arrays in float64, others as they are."""
    array = np.asarray(array)
    return array.astype(np.float64) if array.dtype.kind == "f" else array


def _values(
    layer: Layer, params: Sequence[Any] | None, rng: np.random.Generator, backend: Backend
) -> list[Array]:
    if params is not None:
        return [backend.asarray(_double(w)) for w in params]
    values = [np.asarray(w, np.float64) for w in layer.init_params(rng)]
    trained = (spec.train_method == "gradient" for spec in layer.params)
    noisy = [w + 0.1 * rng.standard_normal(w.shape) * t for w, t in zip(values, trained, strict=True)]
    return [backend.asarray(w) for w in noisy]


class _Check:
    """A layer with its `arrays`: n inputs, then parameters.

    `outputs` comes first; the other checks build on the `ys` and `ders` it leaves and on the `full`
    derivatives that `derivatives` leaves.
    """

    def __init__(
        self, layer: Layer, backend: Backend, mode: str, seed: int, arrays: list[Array], n: int
    ) -> None:
        self.layer = layer
        self.backend = backend
        self.mode = mode
        self.seed = seed
        self.arrays = arrays
        self.n = n
        self.floating = [a.dtype.kind == "f" for a in arrays]
        self.nothing = [False] * len(arrays)
        self.averaged = [False] * n + [spec.train_method == "average" for spec in layer.params]
        self.ders: Ders = []
        self.before = [backend.to_numpy(a).copy() for a in arrays]

    def outputs(self, rng: np.random.Generator) -> None:
        """Shapes and finiteness; draws `ders`, the derivatives of z for the outputs."""
        self.ys, _ = self.forward(self.arrays, self.nothing)
        self.left_alone()
        shapes = [tuple(y.shape) for y in self.ys]
        input_shapes = [tuple(x.shape) for x in self.arrays[: self.n]]
        declared = [tuple(shape) for shape in self.layer.output_shapes(input_shapes)]
        if shapes != declared:
            raise self.error(f"outputs have shapes {shapes}, output_shapes says {declared}")
        for k, y in enumerate(self.ys):
            if not np.isfinite(self.backend.to_numpy(y)).all():
                raise self.error(f"output {k} is not finite: choose other inputs")
            der = rng.standard_normal(y.shape) if y.dtype.kind == "f" else None
            self.ders.append(None if der is None else self.backend.asarray(der))
            self.before += [] if der is None else [np.array(der)]

    def derivatives(self, rng: np.random.Generator, tolerance: float, directions: int) -> None:
        """Each derivative against central differences."""
        self.full = self.backward(self.ders, self.floating)
        self.left_alone()
        products = (p * y for p, y in zip(self.ders, self.ys, strict=True) if p is not None)
        noise = 1e-15 / STEP * sum(float(abs(product).sum()) for product in products)
        for k, (der, array) in enumerate(zip(self.full, self.arrays, strict=True)):
            if der is None:
                if k >= self.n and not self.averaged[k]:
                    raise self.error(f"{self.name(k)} is None")
                continue
            if der.shape != array.shape:
                raise self.error(f"{self.name(k)} has shape {der.shape}, expected {array.shape}")
            if self.averaged[k]:
                continue
            norm = float((der * der).sum()) ** 0.5
            for _ in range(directions):
                direction = self.backend.asarray(rng.standard_normal(array.shape))
                analytic, numeric = float((der * direction).sum()), self.slope(k, direction)
                allowed = tolerance * max(abs(numeric), abs(analytic), norm) + noise
                if not abs(numeric - analytic) <= allowed:
                    raise self.error(
                        f"{self.name(k)} is wrong: along a random direction backward gives {analytic:.9g}, "
                        f"differences of the outputs {numeric:.9g} (tolerance {tolerance:g})"
                    )

    def wanted_alone(self) -> None:
        """Each derivative when nothing else is wanted."""
        for k, der in enumerate(self.full):
            if der is not None:
                wants = [i == k for i in range(len(self.full))]
                self.same(self.backward(self.ders, wants)[k], der, k, "when it alone is wanted")

    def outputs_apart(self) -> None:
        """With None for all outputs but one in turn, the derivatives add up to those of all."""
        present = [k for k, der in enumerate(self.ders) if der is not None]
        if len(present) < 2:
            return
        parts = [
            self.backward([der if k == one else None for k, der in enumerate(self.ders)], self.floating)
            for one in present
        ]
        for k, der in enumerate(self.full):
            if der is not None and not self.averaged[k]:
                given = [part[k] for part in parts if part[k] is not None]
                self.same(sum(given) if given else None, der, k, "summed over outputs, None for the others")

    def left_alone(self) -> None:
        """Nothing that was passed in has changed."""
        passed = [*self.arrays, *(der for der in self.ders if der is not None)]
        for k, (array, before) in enumerate(zip(passed, self.before, strict=True)):
            if not np.array_equal(self.backend.to_numpy(array), before, equal_nan=before.dtype.kind == "f"):
                raise self.error(f"argument {k} of (*inputs, *params, *der_outputs) was written into")

    def single_precision(self) -> None:
        """float32 in, float32 out, both ways."""
        arrays = [a.astype("float32") if a.dtype.kind == "f" else a for a in self.arrays]
        ys, ctx = self.forward(arrays, self.floating)
        for k, y in enumerate(ys):
            if y.dtype.kind == "f" and y.dtype != "float32":
                raise self.error(f"output {k} is {y.dtype} for float32 data")
        ders = [None if der is None else der.astype("float32") for der in self.ders]
        for_inputs, for_params = self.layer.backward(ctx, arrays[self.n :], ders)
        for k, der in enumerate((*for_inputs, *for_params)):
            if der is not None and der.dtype != "float32":
                raise self.error(f"{self.name(k)} is {der.dtype} for float32 data")

    def round_trip(self) -> None:
        """`load(save())` gives the same configuration."""
        config = self.layer.save()
        again = type(self.layer).load(dict(config)).save()
        if again != config:
            raise self.error(f"load(save()) gives {again}, the layer has {config}")

    # ---- evaluating

    def forward(self, arrays: list[Array], wants: list[bool]) -> tuple[list[Array], Context]:
        flags = tuple(wants)
        ctx = Context(
            self.backend, self.mode, lambda: self.backend.rng(self.seed), flags[: self.n], flags[self.n :]
        )
        return list(self.layer.forward(ctx, arrays[: self.n], arrays[self.n :])), ctx

    def backward(self, ders: Ders, wants: list[bool]) -> Ders:
        """The derivatives for inputs and parameters; None for those not wanted."""
        ys, ctx = self.forward(self.arrays, wants)
        for k, (y, expected) in enumerate(zip(ys, self.ys, strict=True)):
            if not np.array_equal(self.backend.to_numpy(y), self.backend.to_numpy(expected)):
                raise self.error(f"output {k} depends on which derivatives are wanted, or on chance")
        for_inputs, for_params = self.layer.backward(ctx, self.arrays[self.n :], ders)
        counts, expected = (len(for_inputs), len(for_params)), (self.n, len(self.arrays) - self.n)
        if counts != expected:
            raise self.error(f"backward gives {counts} derivatives for (inputs, params), expected {expected}")
        both = zip((*for_inputs, *for_params), wants, strict=True)
        return [der if wanted else None for der, wanted in both]

    def slope(self, k: int, direction: Array) -> float:
        """The central difference of z when array k moves along `direction`."""
        ahead, behind = (
            self.z([*self.arrays[:k], self.arrays[k] + step * direction, *self.arrays[k + 1 :]])
            for step in (STEP, -STEP)
        )
        return (ahead - behind) / (2 * STEP)

    def z(self, arrays: list[Array]) -> float:
        ys, _ = self.forward(arrays, self.nothing)
        return sum(float((p * y).sum()) for p, y in zip(self.ders, ys, strict=True) if p is not None)

    # ---- telling

    def same(self, actual: Array | None, expected: Array, k: int, when: str) -> None:
        if actual is None:
            raise self.error(f"{self.name(k)} is None {when}")
        if not expected.size:
            return
        difference = float(abs(actual - expected).max())
        if not difference <= 1e-9 * float(abs(expected).max()):
            raise self.error(f"{self.name(k)} differs by up to {difference:.3g} {when}")

    def name(self, k: int) -> str:
        what = f"input {k}" if k < self.n else f"parameter {self.layer.params[k - self.n].role!r}"
        return f"the derivative for {what}"

    def error(self, message: str) -> CheckError:
        return CheckError(f"{type(self.layer).__name__}: {message}")
