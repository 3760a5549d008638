"""A range along one axis, as a view."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import OptionError, ShapeError
from ..geometry import ReceptiveField
from .layer import Layer, count
from .options import whole


@dataclass
class Slice(Layer):
    """y = x[..., start:stop, ...] along `axis`: a view, nothing is copied.

    The derivative is zeros with dzdy written into them as one block; `Split` takes several ranges at once
    without the zeros.

    >>> Slice(axis=1, start=0, stop=3).output_shapes([(8, 4, 32, 32)])
    [(8, 3, 32, 32)]
    """

    axis: int
    start: int
    stop: int

    def __post_init__(self):
        self.axis = whole("axis", self.axis)
        self.start = whole("start", self.start)
        self.stop = whole("stop", self.stop)
        if self.start >= self.stop:
            raise OptionError(f"start must be less than stop. Received: start={self.start}, stop={self.stop}")

    def forward(self, ctx, inputs, params):
        self.output_shapes([x.shape for x in inputs])
        (x,) = inputs
        ctx.save(x.shape)
        return [x[along(self.axis, self.start, self.stop)]]

    def backward(self, ctx, params, der_outputs):
        (x_shape,), (dzdy,) = ctx.saved, der_outputs
        dzdx = ctx.backend.zeros(x_shape, dzdy.dtype)
        dzdx[along(self.axis, self.start, self.stop)] = dzdy
        return [dzdx], []

    def output_shapes(self, input_shapes):
        count(self, "input", len(input_shapes), 1)
        shape = list(input_shapes[0])
        if self.axis >= len(shape) or self.stop > shape[self.axis]:
            wanted = f"{self.start}:{self.stop} along axis {self.axis}"
            raise ShapeError(f"input of shape {tuple(shape)} has no {wanted}")
        shape[self.axis] = self.stop - self.start
        return [tuple(shape)]

    def receptive_fields(self, n_inputs):
        offset = (self.start * (self.axis == 2), self.start * (self.axis == 3))
        return [ReceptiveField(offset=offset)]


def along(axis: int, start: int, stop: int) -> tuple[slice, ...]:
    """The index of `start:stop` along `axis`, everything along the axes before and after."""
    return (slice(None),) * axis + (slice(start, stop),)
