"""Spatial pooling (MatConvNet manual, section 4.3)."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import OptionError
from ..geometry import ReceptiveField, pair, quad, shape4, window_output
from .layer import Layer, count
from .options import PairLike, QuadLike, one_of


@dataclass
class Pooling(Layer):
    """The maximum or the mean of each window, channel by channel.

    Padding never takes part: windows that straddle the border are cropped to the image, so a mean is
    over the pixels inside it. Among equal maxima the first one in column-major order wins.

    Parameters
    ----------
    method : "max" or "avg".
    pool_size : (height, width) of the window in pixels, or one number for both.
    stride : (vertical, horizontal) step in pixels, or one number for both.
    pad : (top, bottom, left, right) in pixels, or one number for all; less than the window.
    backprop : "pool" is the derivative; "center" (the `pool_center` of a fork of MatConvNet, for
        visualisation) sends each dzdy to where max pooling would take it from an image of window
        centres, and spreads that of "avg" over whole windows.

    Inputs x (N, C, H, W); outputs y (N, C, H', W') with H' = floor((H + top + bottom - h) / stride) + 1.

    >>> Pooling(pool_size=3, stride=2, pad=(0, 1, 0, 1)).output_shapes([(1, 64, 54, 54)])
    [(1, 64, 27, 27)]
    """

    method: str = "max"
    pool_size: PairLike = 1
    stride: PairLike = 1
    pad: QuadLike = 0
    backprop: str = "pool"

    def __post_init__(self):
        one_of("method", self.method, ("max", "avg"))
        one_of("backprop", self.backprop, ("pool", "center"))
        self.pool_size = h, w = pair("pool_size", self.pool_size)
        self.stride = pair("stride", self.stride)
        self.pad = quad("pad", self.pad)
        if max(self.pad[:2]) >= h or max(self.pad[2:]) >= w:
            raise OptionError(f"pad must be less than pool_size {self.pool_size}. Received: {self.pad}")

    def forward(self, ctx, inputs, params):
        count(self, "input", len(inputs), 1)
        (x,), winner = inputs, None
        if self.method == "max":
            y, winner = ctx.backend.max_pool(
                x,
                self.pool_size,
                stride=self.stride,
                pad=self.pad,
                wants_winner=ctx.saves and self.backprop == "pool",
            )
        else:
            y = ctx.backend.avg_pool(x, self.pool_size, stride=self.stride, pad=self.pad)
        ctx.save(x.shape, winner)
        return [y]

    def backward(self, ctx, params, der_outputs):
        (x_shape, winner), (dzdy,) = ctx.saved, der_outputs
        if self.backprop == "center":
            return [self._to_centres(ctx.backend, dzdy, x_shape)], []
        return [self._spread(ctx.backend, dzdy, winner, x_shape, self.pad)], []

    def _spread(self, backend, dzdy, winner, x_shape, pad):
        if self.method == "avg":
            return backend.avg_pool_dzdx(dzdy, x_shape, self.pool_size, stride=self.stride, pad=pad)
        return backend.max_pool_dzdx(dzdy, winner, x_shape, self.pool_size, stride=self.stride, pad=pad)

    def _to_centres(self, backend, dzdy, x_shape):
        """Pool the padded image without padding: what goes to a centre outside the image is lost."""
        (n, c, height, width), (top, bottom, left, right) = x_shape, self.pad
        padded, winner = (height + top + bottom, width + left + right), None
        if self.method == "max":
            centres = backend.zeros((1, 1, *padded), dzdy.dtype)
            (h, w), (down, across) = self.pool_size, self.stride
            centres[:, :, (h - 1) // 2 :: down, (w - 1) // 2 :: across] = 1
            _, winner = backend.max_pool(centres, self.pool_size, stride=self.stride)
            winner = backend.xp.broadcast_to(winner, dzdy.shape)
        dzdx = self._spread(backend, dzdy, winner, (n, c, *padded), 0)
        return dzdx[:, :, top : top + height, left : left + width]

    def output_shapes(self, input_shapes):
        count(self, "input", len(input_shapes), 1)
        n, c, *size = shape4("x", input_shapes[0])
        return [(n, c, *window_output("pooling window", size, self.pool_size, self.stride, self.pad))]

    def receptive_fields(self, n_inputs):
        return [ReceptiveField.of_window(self.pool_size, self.stride, self.pad)]
