"""Smooth L1 loss (Girshick 2015, arXiv:1504.08083; `LossSmoothL1` of MatConvNet's Fast R-CNN example)."""

from __future__ import annotations

from dataclasses import dataclass

from .layer import Layer, count
from .loss import START, update_average
from .options import flag, real


@dataclass
class LossSmoothL1(Layer):
    """y = sum of w f(x - x0), where f(d) = (sigma d)^2 / 2 if |d| < 1/sigma^2, else |d| - 1 / (2 sigma^2).

    Parameters
    ----------
    sigma : where the parabola ends, more than 0.
    ignore_average : do not keep the running average.

    Inputs x, x0 and optionally weights w, all of one shape; output y is 0-d. The weights have no derivative.
    `net.state[name]` keeps `average` per unit of weight (per element, without weights) and `num_averaged`.

    >>> LossSmoothL1().output_shapes([(128, 84, 1, 1)] * 3)
    [()]
    """

    sigma: float = 1.0
    ignore_average: bool = False

    initial_state = START

    def __post_init__(self):
        self.ignore_average = flag("ignore_average", self.ignore_average)
        self.sigma = real("sigma", self.sigma, above=0)

    @property
    def sums_samples(self):
        return True

    def forward(self, ctx, inputs, params):
        count(self, "inputs", len(inputs), 2, 3)
        y = ctx.backend.smooth_l1(*inputs, sigma=self.sigma)
        if not self.ignore_average and inputs[0].size:
            x, _, *weights = inputs
            # A batch of zero weights must not divide 0 by 0.
            number = weights[0].sum(dtype="float64") + 1e-9 if weights else x.size
            update_average(ctx.state, y.astype("float64"), number)
        ctx.save(*inputs)
        return [y]

    def backward(self, ctx, params, der_outputs):
        dzdx = ctx.backend.smooth_l1_dzdx(der_outputs[0], *ctx.saved, sigma=self.sigma)
        dzdx0 = -dzdx if ctx.wants_inputs[1] else None
        return [dzdx, dzdx0, None][: len(ctx.saved)], []

    def output_shapes(self, input_shapes):
        count(self, "inputs", len(input_shapes), 2, 3)
        return [()]

    def receptive_fields(self, n_inputs):
        return [None] * n_inputs
