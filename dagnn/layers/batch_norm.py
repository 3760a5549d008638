"""Batch normalisation (MatConvNet manual, section 4.6.2; Ioffe & Szegedy 2015, arXiv:1502.03167)."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import ShapeError
from ..geometry import shape4
from .layer import Layer, ParamSpec, count
from .options import real, whole


@dataclass
class BatchNorm(Layer):
    """y = multipliers (x - mean) / sigma + biases, with mean and sigma of each channel.

    In mode "train" they are the batch's: the mean over N, H, W and the square root of biased variance +
    epsilon. In mode "test" they are the parameter `moments` (C, 2) = [mean, sigma], to which epsilon is not
    added again, and y is linear in x.

    `moments` has no derivative. In its place backward returns the moments of the batch, of which training
    keeps a running mean (`train_method` "average", `learning_rate` 0.1); in mode "test", nothing.

    Parameters
    ----------
    num_channels : C.
    epsilon : added to the variance, at least 0.

    Inputs x (N, C, H, W); outputs y of the same shape. Multipliers start as 1, biases as 0, moments as
    mean 0 and sigma 1: an untrained layer in mode "test" changes nothing (MatConvNet starts sigma as 0).

    >>> [spec.role for spec in BatchNorm(64).params]
    ['multipliers', 'biases', 'moments']
    """

    num_channels: int
    epsilon: float = 1e-5

    param_specs = (
        ParamSpec("multipliers"),
        ParamSpec("biases"),
        ParamSpec("moments", learning_rate=0.1, weight_decay=0.0, train_method="average"),
    )

    def __post_init__(self):
        self.num_channels = whole("num_channels", self.num_channels, least=1)
        self.epsilon = real("epsilon", self.epsilon, least=0)

    def forward(self, ctx, inputs, params):
        count(self, "input", len(inputs), 1)
        (x,), (multipliers, biases, moments) = inputs, params
        given = None if ctx.training else moments
        options = {"epsilon": self.epsilon, "moments": given, **ctx.epilogue}
        y, used = ctx.backend.batch_norm(x, multipliers, biases, **options)
        propagates = any(ctx.wants_inputs) or any(ctx.wants_params[:2])
        ctx.save(x if propagates else None, used)
        return [y]

    def backward(self, ctx, params, der_outputs):
        (x, moments), (dzdy,), given = ctx.saved, der_outputs, not ctx.training
        dzdx = dzdg = dzdb = None
        if x is not None:
            dzdx, dzdg, dzdb = ctx.backend.batch_norm_ders(dzdy, x, params[0], moments, given=given)
        return [dzdx], [dzdg, dzdb, None if given else moments]

    def init_params(self, rng):
        from numpy import ones, zeros

        c = self.num_channels
        return [ones(c), zeros(c), zeros((c, 2)) + (0, 1)]

    def output_shapes(self, input_shapes):
        count(self, "input", len(input_shapes), 1)
        n, c, h, w = shape4("x", input_shapes[0])
        if c != self.num_channels:
            raise ShapeError(f"input has {c} channels, num_channels is {self.num_channels}")
        return [(n, c, h, w)]
