"""Bilinear sampling at the points of a grid (MatConvNet manual, section 4.5; Jaderberg et al. 2015)."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ShapeError
from ..geometry import shape4
from .layer import Layer, count


@dataclass
class BilinearSampler(Layer):
    """y[m, c, i, j] = x of image m // (M / N), interpolated at (grid[m, 0, i, j], grid[m, 1, i, j]) = (y, x).

    Coordinates run from -1 (first pixel) to 1 (last pixel); the image is surrounded by zeros.

    Inputs x (N, C, H, W) and grid (M, 2, H', W') with M a multiple of N; output (M, C, H', W').

    >>> BilinearSampler().output_shapes([(2, 3, 32, 32), (2, 2, 10, 20)])
    [(2, 3, 10, 20)]
    """

    def forward(self, ctx, inputs, params):
        count(self, "inputs", len(inputs), 2)
        ctx.save(*inputs)
        return [ctx.backend.bilinear_sampler(*inputs)]

    def backward(self, ctx, params, der_outputs):
        (dzdy,), wants = der_outputs, ctx.wants_inputs
        return list(ctx.backend.bilinear_sampler_ders(dzdy, *ctx.saved, wants=wants)), []

    def output_shapes(self, input_shapes):
        count(self, "inputs", len(input_shapes), 2)
        n, c, _, _ = shape4("x", input_shapes[0])
        m, two, h, w = shape4("grid", input_shapes[1])
        if two != 2 or m % n:
            raise ShapeError(
                f"grid must be (M, 2, H, W) with M a multiple of {n}, got {tuple(input_shapes[1])}"
            )
        return [(m, c, h, w)]

    def receptive_fields(self, n_inputs):
        return [None, None]
