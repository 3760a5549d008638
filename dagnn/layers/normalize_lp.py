"""Division by the p-norm (MatConvNet's `vl_nnnormalizelp`)."""

from __future__ import annotations

from dataclasses import dataclass

from ..geometry import ReceptiveField
from .layer import OneToOne, count
from .options import flag, real


@dataclass
class NormalizeLp(OneToOne):
    """y = scale x / (sum of x^p + epsilon)^(1/p), over the channels at each position or over each plane.

    No absolute value is taken: an odd p wants x >= 0.

    Parameters
    ----------
    p : exponent, more than 0.
    epsilon : added to the sum.
    spatial : sum over height and width of each channel instead of over channels.
    scale : a constant factor.

    >>> NormalizeLp(spatial=True).output_shapes([(2, 3, 4, 5)])
    [(2, 3, 4, 5)]
    """

    p: float = 2.0
    epsilon: float = 1e-2
    spatial: bool = False
    scale: float = 1.0

    def __post_init__(self):
        self.spatial = flag("spatial", self.spatial)
        self.p = real("p", self.p, above=0)
        self.epsilon = real("epsilon", self.epsilon)
        self.scale = real("scale", self.scale)

    @property
    def _axes(self):
        return (2, 3) if self.spatial else (1,)

    def forward(self, ctx, inputs, params):
        count(self, "input", len(inputs), 1)
        (x,) = inputs
        y, norms = ctx.backend.normalize_lp(x, p=self.p, epsilon=self.epsilon, axes=self._axes)
        ctx.save(x, norms)
        return [self._scaled(y)]

    def backward(self, ctx, params, der_outputs):
        (x, norms), (dzdy,) = ctx.saved, der_outputs
        dzdx = ctx.backend.normalize_lp_dzdx(dzdy, x, norms, p=self.p, axes=self._axes)
        return [self._scaled(dzdx)], []

    def _scaled(self, array):
        return array if self.scale == 1 else (self.scale * array).astype(array.dtype, copy=False)

    def receptive_fields(self, n_inputs):
        return [None if self.spatial else ReceptiveField()]
