"""Concatenation (MatConvNet's `vl_nnconcat`)."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ShapeError
from ..geometry import ReceptiveField
from .layer import Layer
from .options import whole
from .slice import along


@dataclass
class Concat(Layer):
    """Put the inputs one behind the other along `axis` (default: channels). Derivatives are views of dzdy.

    >>> Concat().output_shapes([(1, 64, 28, 28), (1, 128, 28, 28)])
    [(1, 192, 28, 28)]
    """

    axis: int = 1

    def __post_init__(self):
        self.axis = whole("axis", self.axis)

    def forward(self, ctx, inputs, params):
        self.output_shapes([x.shape for x in inputs])
        ctx.save(*(x.shape[self.axis] for x in inputs))
        return [ctx.backend.concat(inputs, self.axis, **ctx.epilogue)]

    def backward(self, ctx, params, der_outputs):
        (dzdy,), der_inputs, start = der_outputs, [], 0
        for size, wanted in zip(ctx.saved, ctx.wants_inputs, strict=True):
            block = along(self.axis, start, start + size)
            der_inputs.append(dzdy[block] if wanted else None)
            start += size
        return der_inputs, []

    def output_shapes(self, input_shapes):
        if not input_shapes:
            raise ShapeError("Concat takes at least 1 input, got 0")
        first = tuple(input_shapes[0])
        if self.axis >= len(first):
            raise ShapeError(f"inputs of shape {first} have no axis {self.axis}")
        before, after = first[: self.axis], first[self.axis + 1 :]
        for shape in input_shapes:
            if (*shape[: self.axis], *shape[self.axis + 1 :]) != before + after:
                raise ShapeError(f"inputs must agree but for axis {self.axis}, got {first}, {tuple(shape)}")
        return [(*before, sum(shape[self.axis] for shape in input_shapes), *after)]

    def receptive_fields(self, n_inputs):
        return [ReceptiveField() if self.axis < 2 else None] * n_inputs
