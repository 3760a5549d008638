"""Rectified linear unit (MatConvNet manual, section 4.4)."""

from __future__ import annotations

from dataclasses import dataclass

from ..errors import OptionError
from .layer import OneToOne, count
from .options import one_of, real


@dataclass
class ReLU(OneToOne):
    """y = max(x, 0) + leak min(x, 0).

    `backprop` chooses the derivative: "relu" is the true one; the others are the visualisation
    variants of Mahendran & Vedaldi (ECCV 2016), defined for leak = 0: "eccv16" clamps the true one at
    zero, "deconvnet" clamps dzdy at zero without the mask, "none" passes dzdy unchanged.

    >>> ReLU(leak=0.1).output_shapes([(2, 3, 4, 5)])
    [(2, 3, 4, 5)]
    """

    leak: float = 0.0
    backprop: str = "relu"

    def __post_init__(self):
        one_of("backprop", self.backprop, ("relu", "eccv16", "deconvnet", "none"))
        self.leak = real("leak", self.leak, least=0)
        if self.leak and self.backprop != "relu":
            raise OptionError(f"backprop={self.backprop!r} has no leak. Received: leak={self.leak}")

    def forward(self, ctx, inputs, params):
        count(self, "input", len(inputs), 1)
        (x,) = inputs
        y = ctx.backend.relu(x, self.leak, **ctx.epilogue)
        # The signs of y are those of x, and the next layer most likely keeps y anyway.
        ctx.save(y if self.backprop in ("relu", "eccv16") else None)
        return [y]

    def backward(self, ctx, params, der_outputs):
        (y,), (dzdy,) = ctx.saved, der_outputs
        if self.backprop in ("relu", "eccv16"):
            dzdy = ctx.backend.relu_dzdx(dzdy, y, self.leak)
        if self.backprop in ("eccv16", "deconvnet"):
            dzdy = ctx.backend.relu(dzdy)
        return [dzdy], []
