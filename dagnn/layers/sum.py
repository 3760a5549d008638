"""Sum of variables (MatConvNet's `dagnn.Sum`)."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ShapeError
from .layer import Layer


@dataclass
class Sum(Layer):
    """y = x1 + x2 + ..., any number of inputs of one shape.

    >>> Sum().output_shapes([(1, 256, 56, 56), (1, 256, 56, 56)])
    [(1, 256, 56, 56)]
    """

    def forward(self, ctx, inputs, params):
        self.output_shapes([x.shape for x in inputs])
        return [ctx.backend.sum(inputs, **ctx.epilogue)]

    def backward(self, ctx, params, der_outputs):
        return list(der_outputs) * len(ctx.wants_inputs), []

    def output_shapes(self, input_shapes):
        if not input_shapes:
            raise ShapeError("Sum takes at least 1 input, got 0")
        shapes = [tuple(shape) for shape in input_shapes]
        if len(set(shapes)) > 1:
            raise ShapeError(f"inputs differ in shape: {' and '.join(map(str, dict.fromkeys(shapes)))}")
        return [shapes[0]]
