"""Convolution transpose, also called deconvolution (MatConvNet manual, section 4.2)."""

from __future__ import annotations

from dataclasses import dataclass
from math import sqrt

from ..errors import OptionError, ShapeError
from ..geometry import ReceptiveField, pair, quad, shape4, upsampled_output
from .layer import Layer, ParamSpec, count
from .options import PairLike, QuadLike, flag, sizes, whole


@dataclass
class ConvTranspose(Layer):
    """Spread each input pixel over a window of the output: the transpose of a convolution.

    y[n, k, i upsample + u - top, j upsample + v - left] sums w[c, k, u, v] x[n, c, i, j] over c, i, j,
    u, v; b[k] is added.

    Parameters
    ----------
    size : (C, K/groups, h, w) of the filter bank for C input and K output channels.
    has_bias : whether there is a bias per output channel.
    upsample : (vertical, horizontal) distance in output pixels, or one number for both.
    crop : (top, bottom, left, right) output pixels to leave out, or one number for all.
    num_groups : number of groups the channels divide into.

    Inputs x (N, C, H, W); outputs y (N, K, H', W') with H' = (H - 1) upsample - top - bottom + h.
    Filters start as Gaussians of variance 2 / (h w C), as in MatConvNet.

    >>> ConvTranspose(size=(21, 21, 4, 4), upsample=2, crop=1).output_shapes([(1, 21, 16, 16)])
    [(1, 21, 32, 32)]
    """

    size: tuple[int, int, int, int]
    has_bias: bool = True
    upsample: PairLike = 1
    crop: QuadLike = 0
    num_groups: int = 1

    param_specs = (ParamSpec("filters"), ParamSpec("biases"))

    def __post_init__(self):
        self.has_bias = flag("has_bias", self.has_bias)
        self.size = sizes("size", self.size, "C, K/groups, h, w")
        self.upsample = pair("upsample", self.upsample)
        self.crop = quad("crop", self.crop)
        self.num_groups = whole("num_groups", self.num_groups, least=1)
        if self.size[0] % self.num_groups:
            raise OptionError(
                f"num_groups must divide the {self.size[0]} input channels. Received: {self.num_groups}"
            )

    @property
    def params(self):
        return self.param_specs[: 1 + self.has_bias]

    @property
    def _window(self):
        return {"upsample": self.upsample, "crop": self.crop, "num_groups": self.num_groups}

    def forward(self, ctx, inputs, params):
        count(self, "input", len(inputs), 1)
        (x,), (w, b) = inputs, (*params, None)[:2]
        ctx.save(x.shape, x if any(ctx.wants_params[:1]) else None)
        return [ctx.backend.conv_transpose(x, w, b, **self._window)]

    def backward(self, ctx, params, der_outputs):
        (x_shape, x), w, (dzdy,) = ctx.saved, params[0], der_outputs
        dzdx = dzdw = dzdb = None
        if ctx.wants_inputs[0]:
            dzdx = ctx.backend.conv_transpose_dzdx(dzdy, w, x_shape, **self._window)
        if ctx.wants_params[0]:
            dzdw = ctx.backend.conv_transpose_dzdw(dzdy, x, w.shape, **self._window)
        if self.has_bias and ctx.wants_params[1]:
            dzdb = ctx.backend.conv_dzdb(dzdy)
        return [dzdx], [dzdw, dzdb][: len(params)]

    def init_params(self, rng):
        from numpy import zeros

        c, k, h, w = self.size
        filters = rng.standard_normal(self.size) * sqrt(2 / (h * w * c))
        return [filters, zeros(k * self.num_groups)][: len(self.params)]

    def output_shapes(self, input_shapes):
        count(self, "input", len(input_shapes), 1)
        n, c, *size = shape4("x", input_shapes[0])
        channels, k, *_ = self.size
        if c != channels:
            raise ShapeError(f"input has {c} channels, filters expect {channels}")
        maps = upsampled_output(size, self.size[2:], self.upsample, self.crop)
        return [(n, k * self.num_groups, *maps)]

    def receptive_fields(self, n_inputs):
        return [ReceptiveField.of_transposed(self.size[2:], self.upsample, self.crop)]
