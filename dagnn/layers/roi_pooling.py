"""Pooling of regions of interest (MatConvNet's `vl_nnroipool`; Girshick 2015, arXiv:1504.08083)."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import OptionError, ShapeError
from ..geometry import pair, shape4
from .layer import Layer, count
from .options import PairLike, flag, one_of, real, reals


@dataclass
class ROIPooling(Layer):
    """Divide each region into a grid of bins and take the maximum or the mean of each bin.

    Parameters
    ----------
    method : "max" or "avg".
    subdivisions : (vertical, horizontal) number of bins, or one number for both.
    transform : from the regions' coordinates to pixels of x: a factor, two factors (of x, of y), or the
        two rows of [A t], which maps (x, y) to A (x, y) + t.
    flatten : give (R, C h w, 1, 1), the row of the bin fastest, then its column, then the channel.

    Inputs x (N, C, H, W) and R regions (5, R): index of the image, x1, y1, x2, y2, all counted from 0;
    output (R, C, h, w). Regions have no derivative.

    >>> ROIPooling(subdivisions=6, transform=1 / 16).output_shapes([(1, 256, 38, 50), (5, 128)])
    [(128, 256, 6, 6)]
    """

    method: str = "max"
    subdivisions: PairLike = (6, 6)
    transform: float | tuple[float, ...] | tuple[tuple[float, ...], ...] = 1.0
    flatten: bool = False

    def __post_init__(self):
        self.flatten = flag("flatten", self.flatten)
        one_of("method", self.method, ("max", "avg"))
        self.subdivisions = pair("subdivisions", self.subdivisions)
        self.transform = _transform(self.transform)

    @property
    def _options(self):
        return {"subdivisions": self.subdivisions, "transform": self.transform, "method": self.method}

    def forward(self, ctx, inputs, params):
        count(self, "inputs", len(inputs), 2)
        x, rois = inputs
        y, winner = ctx.backend.roi_pool(x, rois, **self._options)
        ctx.save(winner, rois, x.shape)
        return [y.swapaxes(2, 3).reshape(y.shape[0], -1, 1, 1) if self.flatten else y]

    def backward(self, ctx, params, der_outputs):
        (winner, rois, x_shape), (dzdy,), dzdx = ctx.saved, der_outputs, None
        if self.flatten:
            h, w = self.subdivisions
            dzdy = dzdy.reshape(-1, x_shape[1], w, h).swapaxes(2, 3)
        if ctx.wants_inputs[0]:
            dzdx = ctx.backend.roi_pool_dzdx(dzdy, winner, rois, x_shape, **self._options)
        return [dzdx, None], []

    def output_shapes(self, input_shapes):
        count(self, "inputs", len(input_shapes), 2)
        _, c, _, _ = shape4("x", input_shapes[0])
        rois = tuple(input_shapes[1])
        if len(rois) != 2 or rois[0] != 5:
            raise ShapeError(f"regions must have shape (5, R), got {rois}")
        h, w = self.subdivisions
        return [(rois[1], c * h * w, 1, 1) if self.flatten else (rois[1], c, h, w)]

    def receptive_fields(self, n_inputs):
        return [None, None]


def _transform(value):
    if not hasattr(value, "__iter__"):
        return real("transform", value)
    rows = tuple(value)
    if len(rows) != 2:
        raise OptionError(f"transform takes a number, 2 numbers, or 2 rows of 3 numbers. Received: {value!r}")
    if any(hasattr(row, "__iter__") for row in rows):
        return tuple(reals("a row of transform", row, "xx, xy, x0") for row in rows)
    return reals("transform", rows, "x, y")
