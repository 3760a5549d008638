"""Local response normalisation across channels (MatConvNet manual, section 4.6.1)."""

from __future__ import annotations

from dataclasses import dataclass

from .layer import OneToOne, count
from .options import one_of, reals, whole


@dataclass
class LRN(OneToOne):
    """y[c] = x[c] (kappa + alpha sum over d of x[d]^2)^-beta, at each position.

    The window of channel c is d = c - floor((size - 1) / 2) ... c + ceil((size - 1) / 2), cropped to the
    channels there are: an even size leans forward (Krizhevsky et al., NIPS 2012).

    Parameters
    ----------
    param : (size, kappa, alpha, beta).
    backprop : "lrn" is the derivative; "none" passes dzdy unchanged (`lrn_nobackprop` of a fork of
        MatConvNet, for visualisation).

    >>> LRN().param
    (5, 1.0, 2e-05, 0.75)
    """

    param: tuple[float, ...] = (5, 1.0, 0.0001 / 5, 0.75)
    backprop: str = "lrn"

    def __post_init__(self):
        size, *others = reals("param", self.param, "size, kappa, alpha, beta")
        self.param = (whole("size in param", size, least=1), *others)
        one_of("backprop", self.backprop, ("lrn", "none"))

    @property
    def _options(self):
        return dict(zip(("size", "kappa", "alpha", "beta"), self.param, strict=True))

    def forward(self, ctx, inputs, params):
        count(self, "input", len(inputs), 1)
        (x,) = inputs
        ctx.save(x if self.backprop == "lrn" else None)
        return [ctx.backend.lrn(x, **self._options)]

    def backward(self, ctx, params, der_outputs):
        (x,), (dzdy,) = ctx.saved, der_outputs
        if self.backprop == "none":
            return [dzdy], []
        return [ctx.backend.lrn_dzdx(dzdy, x, **self._options)], []
