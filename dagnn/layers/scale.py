"""Multiply and add, by parameters or by variables (MatConvNet's `dagnn.Scale`)."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import zip_longest

from ..errors import DTypeError, ShapeError
from ..geometry import ReceptiveField
from .layer import Layer, ParamSpec, count
from .options import flag, sizes


@dataclass
class Scale(Layer):
    """y = a x + b, where axes of size 1 broadcast.

    Parameters
    ----------
    size : four sizes of the parameters a and b, (1, C, 1, 1) for one number per channel; None where a
        (and b) are further inputs.
    has_bias : whether there is a parameter b.

    Inputs x with `size`; x, a or x, a, b without. Parameters start as a = 1, b = 0.

    >>> Scale(size=(1, 64, 1, 1)).output_shapes([(8, 64, 28, 28)])
    [(8, 64, 28, 28)]
    >>> Scale().output_shapes([(8, 64, 28, 28), (8, 64, 1, 1)])
    [(8, 64, 28, 28)]
    """

    size: tuple[int, int, int, int] | None = None
    has_bias: bool = True

    param_specs = (ParamSpec("multipliers"), ParamSpec("biases"))

    def __post_init__(self):
        self.has_bias = flag("has_bias", self.has_bias)
        if self.size is not None:
            self.size = sizes("size", self.size, "N, C, H, W")

    @property
    def params(self):
        return () if self.size is None else self.param_specs[: 1 + self.has_bias]

    def forward(self, ctx, inputs, params):
        self.output_shapes([v.shape for v in inputs])
        x, a, *b = factors = [*inputs, *params]
        wants = (*ctx.wants_inputs, *ctx.wants_params)
        ctx.save(x if any(wants[1:2]) else None, a if any(wants[:1]) else None, *(f.shape for f in factors))
        for other in (a, *b):
            if other.dtype != x.dtype:
                raise DTypeError(f"x is {x.dtype}, what it is multiplied with or added to {other.dtype}")
        y = a * x
        return [y + b[0] if b else y]

    def backward(self, ctx, params, der_outputs):
        (x, a, *shapes), (dzdy,) = ctx.saved, der_outputs
        wants, n_inputs = (*ctx.wants_inputs, *ctx.wants_params), len(ctx.wants_inputs)
        factors = (a, x, None)[: len(shapes)]
        ders = [
            ctx.backend.sum_to(dzdy if factor is None else factor * dzdy, shape) if wanted else None
            for factor, shape, wanted in zip(factors, shapes, wants, strict=True)
        ]
        return ders[:n_inputs], ders[n_inputs:]

    def init_params(self, rng):
        from numpy import ones, zeros

        return [make(self.size) for make, _ in zip((ones, zeros), self.params, strict=False)]

    def output_shapes(self, input_shapes):
        if self.size is None:
            count(self, "inputs (no size is given)", len(input_shapes), 2, 3)
        else:
            count(self, "input (size is given)", len(input_shapes), 1)
        shapes: list = [tuple(shape) for shape in input_shapes]
        shapes += [self.size] * len(self.params)
        stretched = [set(lengths) - {1} for lengths in zip_longest(*shapes, fillvalue=0)]
        if len({len(shape) for shape in shapes}) > 1 or any(len(lengths) > 1 for lengths in stretched):
            raise ShapeError(f"shapes {' and '.join(map(str, dict.fromkeys(shapes)))} do not broadcast")
        return [tuple(max(lengths, default=1) for lengths in stretched)]

    def receptive_fields(self, n_inputs):
        return [ReceptiveField(), *[None] * (n_inputs - 1)]  # what broadcasts sees everything
