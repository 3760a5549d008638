"""Convolution (MatConvNet manual, section 4.1)."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from ..errors import ShapeError
from ..geometry import ReceptiveField, pair, quad, shape4, window_output
from .layer import Layer, ParamSpec, count
from .options import PairLike, QuadLike, flag, sizes


@dataclass
class Conv(Layer):
    """Convolve with a bank of filters (a cross-correlation, as everywhere in deep learning).

    y[n, k, i, j] = b[k] + sum over c, u, v of w[k, c, u, v] x[n, c, i stride + u dilate - pad, ...]

    Parameters
    ----------
    size : (K, C/groups, h, w) of the filter bank; the number of groups follows from the input.
    has_bias : whether there is a bias per output channel.
    stride, dilate : (vertical, horizontal) steps in pixels, or one number for both.
    pad : (top, bottom, left, right) zeros in pixels, or one number for all.

    Inputs x (N, C, H, W); outputs y (N, K, H', W') with
    H' = floor((H + top + bottom - dilate (h - 1) - 1) / stride) + 1.
    Filters start as Gaussians of variance 2 / (h w C/groups) (He et al. 2015, arXiv:1502.01852).

    >>> Conv(size=(96, 3, 11, 11), stride=4).output_shapes([(1, 3, 227, 227)])
    [(1, 96, 55, 55)]
    """

    size: tuple[int, int, int, int]
    has_bias: bool = True
    stride: PairLike = 1
    pad: QuadLike = 0
    dilate: PairLike = 1

    param_specs = (ParamSpec("filters"), ParamSpec("biases"))

    def __post_init__(self):
        self.has_bias = flag("has_bias", self.has_bias)
        self.size = sizes("size", self.size, "K, C/groups, h, w")
        self.stride = pair("stride", self.stride)
        self.pad = quad("pad", self.pad)
        self.dilate = pair("dilate", self.dilate)

    @property
    def params(self):
        return self.param_specs[: 1 + self.has_bias]

    @property
    def _window(self):
        return {"stride": self.stride, "pad": self.pad, "dilate": self.dilate}

    def forward(self, ctx, inputs, params):
        count(self, "input", len(inputs), 1)
        (x,), (w, b) = inputs, (*params, None)[:2]
        y = ctx.backend.conv(x, w, b, **self._window, **ctx.epilogue, patches=ctx.patches)
        self.keep(ctx, inputs)
        return [y]

    def keep(self, ctx, inputs):
        """Save what backward needs; the output has no part in it."""
        (x,) = inputs
        ctx.save(x.shape, x if any(ctx.wants_params[:1]) else None)

    def backward(self, ctx, params, der_outputs):
        (x_shape, x), w, (dzdy,) = ctx.saved, params[0], der_outputs
        dzdx = dzdw = dzdb = None
        if ctx.wants_inputs[0]:
            dzdx = ctx.backend.conv_dzdx(dzdy, w, x_shape, **self._window)
        if ctx.wants_params[0]:
            dzdw = ctx.backend.conv_dzdw(dzdy, x, w.shape, **self._window, patches=ctx.patches or ())
        if self.has_bias and ctx.wants_params[1]:
            dzdb = ctx.backend.conv_dzdb(dzdy)
        return [dzdx], [dzdw, dzdb][: len(params)]

    def init_params(self, rng):
        from numpy import zeros

        k, c, h, w = self.size
        filters = rng.standard_normal(self.size) * sqrt(2 / (h * w * c))
        return [filters, zeros(k)][: len(self.params)]

    def output_shapes(self, input_shapes):
        count(self, "input", len(input_shapes), 1)
        n, c, h, w = shape4("x", input_shapes[0])
        k, depth, *_ = self.size
        if c % depth:
            raise ShapeError(f"input has {c} channels, filters expect {depth} or a multiple of it")
        if k % (c // depth):
            raise ShapeError(f"{k} filters do not divide into {c // depth} groups")
        maps = window_output("filters", (h, w), self.size[2:], self.stride, self.pad, self.dilate)
        return [(n, k, *maps)]

    def receptive_fields(self, n_inputs):
        return [ReceptiveField.of_window(self.size[2:], self.stride, self.pad, self.dilate)]
