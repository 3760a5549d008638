"""Spatial normalisation (MatConvNet manual, section 4.6.3)."""

from __future__ import annotations

from dataclasses import dataclass

from ..geometry import ReceptiveField
from .layer import OneToOne, count
from .options import reals, whole


@dataclass
class SpatialNorm(OneToOne):
    """y = x (1 + alpha m)^-beta, where m is the mean of x^2 in a window around the pixel, per channel.

    A window of h x w reaches floor((h - 1) / 2) up and ceil((h - 1) / 2) down, and likewise sideways; the
    mean is over its pixels inside the image.

    Parameters
    ----------
    param : (height, width, alpha, beta).

    >>> SpatialNorm((3, 3, 10, 2)).receptive_fields(1)
    [ReceptiveField(size=(3, 3), stride=(1, 1), offset=(0.0, 0.0))]
    """

    param: tuple[int, int, float, float] = (2, 2, 10.0, 2.0)

    def __post_init__(self):
        height, width, alpha, beta = reals("param", self.param, "height, width, alpha, beta")
        window = whole("height in param", height, least=1), whole("width in param", width, least=1)
        self.param = (*window, alpha, beta)

    @property
    def _options(self):
        height, width, alpha, beta = self.param
        return {"size": (height, width), "alpha": alpha, "beta": beta}

    def forward(self, ctx, inputs, params):
        count(self, "input", len(inputs), 1)
        (x,) = inputs
        ctx.save(x)
        return [ctx.backend.spatial_norm(x, **self._options)]

    def backward(self, ctx, params, der_outputs):
        return [ctx.backend.spatial_norm_dzdx(der_outputs[0], *ctx.saved, **self._options)], []

    def receptive_fields(self, n_inputs):
        height, width = self.param[:2]
        pad = ((height - 1) // 2, height // 2, (width - 1) // 2, width // 2)
        return [ReceptiveField.of_window((height, width), (1, 1), pad)]
