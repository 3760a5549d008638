"""Another order of axes."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import OptionError, ShapeError
from ..geometry import ReceptiveField
from .layer import Layer, count
from .options import integers


@dataclass
class Permute(Layer):
    """y's axis k is x's axis `axes[k]`: a view, nothing is copied.

    >>> Permute((0, 2, 3, 1)).output_shapes([(8, 16, 4, 5)])
    [(8, 4, 5, 16)]
    """

    axes: tuple[int, ...]

    def __post_init__(self):
        self.axes = integers("axes", self.axes)
        if sorted(self.axes) != list(range(len(self.axes))):
            raise OptionError(f"axes must be a permutation of 0, 1, ... Received: {self.axes}")

    def forward(self, ctx, inputs, params):
        self.output_shapes([x.shape for x in inputs])
        (x,) = inputs
        return [x.transpose(self.axes)]

    def backward(self, ctx, params, der_outputs):
        inverse = [self.axes.index(k) for k in range(len(self.axes))]
        return [der_outputs[0].transpose(inverse)], []

    def output_shapes(self, input_shapes):
        count(self, "input", len(input_shapes), 1)
        shape = tuple(input_shapes[0])
        if len(shape) != len(self.axes):
            raise ShapeError(f"input of shape {shape} does not have the {len(self.axes)} axes of {self.axes}")
        return [tuple(shape[axis] for axis in self.axes)]

    def receptive_fields(self, n_inputs):
        return [ReceptiveField() if self.axes[2:] == (2, 3) else None]
