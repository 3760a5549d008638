"""Sampling grids of scaled and shifted images (MatConvNet's `dagnn.UniformScalingGridGenerator`)."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ShapeError
from ..geometry import shape4
from .layer import Layer, count
from .options import whole


@dataclass
class UniformScalingGridGenerator(Layer):
    """A grid for `BilinearSampler` from three numbers per image: (y, x) of a grid, scaled and shifted.

    With y_i, x_j evenly spaced from -1 to 1 and the input (s, t_y, t_x),
    grid[n, :, i, j] = s (y_i, x_j) + (t_y, t_x).

    Parameters
    ----------
    height, width : of the grid.

    Input (N, 3, 1, 1), where (1, 0, 0) is the identity; output (N, 2, height, width).

    >>> UniformScalingGridGenerator(28, 28).output_shapes([(8, 3, 1, 1)])
    [(8, 2, 28, 28)]
    """

    height: int
    width: int

    def __post_init__(self):
        self.height = whole("height", self.height, least=1)
        self.width = whole("width", self.width, least=1)

    def forward(self, ctx, inputs, params):
        self.output_shapes([x.shape for x in inputs])
        return [ctx.backend.uniform_scaling_grid(inputs[0], height=self.height, width=self.width)]

    def backward(self, ctx, params, der_outputs):
        return [ctx.backend.uniform_scaling_grid_der(der_outputs[0])], []

    def output_shapes(self, input_shapes):
        count(self, "input", len(input_shapes), 1)
        n, *others = shape4("transform", input_shapes[0])
        if others != [3, 1, 1]:
            raise ShapeError(f"transform must be (N, 3, 1, 1), got {tuple(input_shapes[0])}")
        return [(n, 2, self.height, self.width)]

    def receptive_fields(self, n_inputs):
        return [None]
