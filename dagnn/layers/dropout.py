"""Dropout (Srivastava et al., JMLR 15, 2014)."""

from __future__ import annotations

from dataclasses import dataclass

from .layer import OneToOne, count
from .options import flag, real


@dataclass
class DropOut(OneToOne):
    """y = mask x in mode "train", y = x in mode "test".

    The mask is 0 with probability `rate` and 1 / (1 - rate) elsewhere, so that its mean is 1.

    Parameters
    ----------
    rate : probability of dropping an element, in [0, 1).
    frozen : keep the mask in `net.state[name]["mask"]` and use it again while inputs have its shape;
        assigning an array there sets it.

    >>> DropOut(rate=0.1)
    DropOut(rate=0.1, frozen=False)
    """

    rate: float = 0.5
    frozen: bool = False

    def __post_init__(self):
        self.frozen = flag("frozen", self.frozen)
        self.rate = real("rate", self.rate, least=0, below=1)

    def forward(self, ctx, inputs, params):
        count(self, "input", len(inputs), 1)
        (x,) = inputs
        if not ctx.training:
            ctx.save(None)
            return [x]
        mask = self._mask(ctx, x)
        ctx.save(mask)
        return [x * mask]

    def _mask(self, ctx, x):
        if self.frozen and (mask := ctx.state.get("mask")) is not None and mask.shape == x.shape:
            return ctx.backend.asarray(mask).astype(x.dtype, copy=False)
        mask = ctx.backend.dropout_mask(ctx.rng, x.shape, self.rate, x.dtype)
        if self.frozen:
            ctx.state["mask"] = mask
        return mask

    def backward(self, ctx, params, der_outputs):
        (mask,), (dzdy,) = ctx.saved, der_outputs
        return [dzdy if mask is None else dzdy * mask], []
