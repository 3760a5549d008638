"""Cropping to the size of another variable (MatConvNet's `dagnn.Crop`)."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ShapeError
from ..geometry import NOTHING, ReceptiveField, pair, shape4
from .layer import Layer, count
from .options import PairLike
from .slice import along


@dataclass
class Crop(Layer):
    """The part of the first input that starts at `crop` and has the second's height and width: a view.

    Parameters
    ----------
    crop : (top, left) pixels to leave out, or one number for both.

    Inputs x (N, C, H, W) and one of which only the size counts (N', C', H', W'); output (N, C, H', W').

    >>> Crop((2, 2)).output_shapes([(1, 21, 36, 36), (1, 3, 32, 32)])
    [(1, 21, 32, 32)]
    """

    crop: PairLike = (0, 0)

    def __post_init__(self):
        self.crop = pair("crop", self.crop, least=0)

    def forward(self, ctx, inputs, params):
        ((_, _, h, w),) = self.output_shapes([x.shape for x in inputs])
        ctx.save(inputs[0].shape)
        return [inputs[0][self._window(h, w)]]

    def backward(self, ctx, params, der_outputs):
        (x_shape,), (dzdy,), dzdx = ctx.saved, der_outputs, None
        if ctx.wants_inputs[0]:
            dzdx = ctx.backend.zeros(x_shape, dzdy.dtype)
            dzdx[self._window(*dzdy.shape[2:])] = dzdy
        return [dzdx, None], []

    def _window(self, h, w):
        top, left = self.crop
        return (*along(2, top, top + h), slice(left, left + w))

    def output_shapes(self, input_shapes):
        count(self, "inputs", len(input_shapes), 2)
        n, c, height, width = shape4("x", input_shapes[0])
        _, _, h, w = shape4("second input", input_shapes[1])
        top, left = self.crop
        if top + h > height or left + w > width:
            raise ShapeError(f"{h}x{w} pixels from {self.crop} on do not fit into {height}x{width}")
        return [(n, c, h, w)]

    def receptive_fields(self, n_inputs):
        return [ReceptiveField(offset=self.crop), NOTHING]
