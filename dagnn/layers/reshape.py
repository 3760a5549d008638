"""Another shape for the same numbers."""

from __future__ import annotations

from dataclasses import dataclass
from math import prod

from ..errors import OptionError, ShapeError
from ..geometry import ReceptiveField
from .layer import Layer, count
from .options import integers


@dataclass
class Reshape(Layer):
    """Read the elements, the last axis fastest, into another shape: a view where memory order allows it.

    Parameters
    ----------
    shape : the new sizes; 0 keeps the input's size of the same axis, one -1 is inferred.

    >>> Reshape((0, -1, 1, 1)).output_shapes([(8, 16, 5, 5)])
    [(8, 400, 1, 1)]
    """

    shape: tuple[int, ...]

    def __post_init__(self):
        self.shape = integers("shape", self.shape, least=-1)
        if self.shape.count(-1) > 1:
            raise OptionError(f"shape may have one -1. Received: {self.shape}")

    def forward(self, ctx, inputs, params):
        (shape,) = self.output_shapes([x.shape for x in inputs])
        (x,) = inputs
        ctx.save(x.shape)
        return [x.reshape(shape)]

    def backward(self, ctx, params, der_outputs):
        (x_shape,), (dzdy,) = ctx.saved, der_outputs
        return [dzdy.reshape(x_shape)], []

    def output_shapes(self, input_shapes):
        count(self, "input", len(input_shapes), 1)
        old = tuple(input_shapes[0])
        if any(size == 0 and k >= len(old) for k, size in enumerate(self.shape)):
            raise ShapeError(f"shape {self.shape} keeps an axis that an input of shape {old} does not have")
        new = [size or old[k] for k, size in enumerate(self.shape)]
        if -1 in new:
            known = -prod(new)
            new[new.index(-1)] = prod(old) // known if known else 0
        if prod(new) != prod(old):
            raise ShapeError(f"input of shape {old} ({prod(old)} elements) does not fit shape {self.shape}")
        return [tuple(new)]

    def receptive_fields(self, n_inputs):
        return [ReceptiveField() if len(self.shape) == 4 and self.shape[2:] == (0, 0) else None]
