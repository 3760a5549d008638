"""Subtraction of a power of the feature norm (MatConvNet's `vl_nnnoffset`)."""

from __future__ import annotations

from dataclasses import dataclass

from .layer import OneToOne, count
from .options import reals


@dataclass
class NormOffset(OneToOne):
    """y[c] = x[c] - alpha (sum over d of x[d]^2)^beta, over the channels at each position.

    Parameters
    ----------
    param : (alpha, beta).

    >>> NormOffset().param
    (1.0, 0.5)
    """

    param: tuple[float, ...] = (1.0, 0.5)

    def __post_init__(self):
        self.param = reals("param", self.param, "alpha, beta")

    @property
    def _options(self):
        return {"alpha": self.param[0], "beta": self.param[1]}

    def forward(self, ctx, inputs, params):
        count(self, "input", len(inputs), 1)
        (x,) = inputs
        ctx.save(x)
        return [ctx.backend.norm_offset(x, **self._options)]

    def backward(self, ctx, params, der_outputs):
        return [ctx.backend.norm_offset_dzdx(der_outputs[0], *ctx.saved, **self._options)], []
