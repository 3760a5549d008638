"""Sampling grids of affine maps (MatConvNet's `dagnn.AffineGridGenerator`; Jaderberg et al. 2015)."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ShapeError
from ..geometry import shape4
from .layer import Layer, count
from .options import whole


@dataclass
class AffineGridGenerator(Layer):
    """A grid for `BilinearSampler` from six numbers per image: (y, x) of a regular grid under an affine map.

    With y_i, x_j evenly spaced from -1 to 1, grid[n, :, i, j] = A (y_i, x_j) + t, where the input holds
    A11, A12, A21, A22, t1, t2.

    Parameters
    ----------
    height, width : of the grid.

    Input (N, 6, 1, 1), where (1, 0, 0, 1, 0, 0) is the identity; output (N, 2, height, width).

    >>> AffineGridGenerator(28, 28).output_shapes([(8, 6, 1, 1)])
    [(8, 2, 28, 28)]
    """

    height: int
    width: int

    def __post_init__(self):
        self.height = whole("height", self.height, least=1)
        self.width = whole("width", self.width, least=1)

    def forward(self, ctx, inputs, params):
        self.output_shapes([x.shape for x in inputs])
        return [ctx.backend.affine_grid(inputs[0], height=self.height, width=self.width)]

    def backward(self, ctx, params, der_outputs):
        return [ctx.backend.affine_grid_der(der_outputs[0])], []

    def output_shapes(self, input_shapes):
        count(self, "input", len(input_shapes), 1)
        n, *others = shape4("transform", input_shapes[0])
        if others != [6, 1, 1]:
            raise ShapeError(f"transform must be (N, 6, 1, 1), got {tuple(input_shapes[0])}")
        return [(n, 2, self.height, self.width)]

    def receptive_fields(self, n_inputs):
        return [None]
