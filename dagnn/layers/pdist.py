"""p-distance (MatConvNet manual, section 4.8.1)."""

from __future__ import annotations

from dataclasses import dataclass

from ..geometry import ReceptiveField, shape4
from .layer import Layer, count
from .options import flag, real


@dataclass
class PDist(Layer):
    """y = (sum over channels of |x - x0|^p)^(1/p) at each position.

    Parameters
    ----------
    p : exponent, more than 0.
    no_root : leave out the power 1/p.
    epsilon : in the derivative, the least value of what it divides by.
    aggregate : y is the sum over all positions and images.

    Inputs x (N, C, H, W), x0 of the same shape or (N, C, 1, 1), and optionally weights of the output map,
    which have no derivative. Output y (N, 1, H, W), or 0-d with `aggregate`.

    >>> PDist(p=1).output_shapes([(2, 3, 4, 5), (2, 3, 1, 1)])
    [(2, 1, 4, 5)]
    """

    p: float = 2.0
    no_root: bool = False
    epsilon: float = 1e-6
    aggregate: bool = False

    def __post_init__(self):
        self.no_root = flag("no_root", self.no_root)
        self.aggregate = flag("aggregate", self.aggregate)
        self.p = real("p", self.p, above=0)
        self.epsilon = real("epsilon", self.epsilon, least=0)

    @property
    def sums_samples(self):
        return self.aggregate

    @property
    def _options(self):
        return {
            "p": self.p,
            "no_root": self.no_root,
            "epsilon": self.epsilon,
            "aggregate": self.aggregate,
        }

    def forward(self, ctx, inputs, params):
        count(self, "inputs", len(inputs), 2, 3)
        ctx.save(*inputs)
        return [ctx.backend.pdist(*inputs, **self._options)]

    def backward(self, ctx, params, der_outputs):
        dzdx = dzdx0 = None
        if any(ctx.wants_inputs[:2]):
            dzdx = ctx.backend.pdist_dzdx(der_outputs[0], *ctx.saved, **self._options)
        if ctx.wants_inputs[1]:
            dzdx0 = -ctx.backend.sum_to(dzdx, ctx.saved[1].shape)
        return [dzdx, dzdx0, None][: len(ctx.saved)], []

    def output_shapes(self, input_shapes):
        count(self, "inputs", len(input_shapes), 2, 3)
        n, _, h, w = shape4("x", input_shapes[0])
        return [() if self.aggregate else (n, 1, h, w)]

    def receptive_fields(self, n_inputs):
        return [None if self.aggregate else ReceptiveField()] * n_inputs
