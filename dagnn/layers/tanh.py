"""Hyperbolic tangent (layer type `tanh` of a fork of MatConvNet's SimpleNN)."""

from __future__ import annotations

from dataclasses import dataclass

from .layer import OneToOne, count


@dataclass
class Tanh(OneToOne):
    """y = tanh(x), element by element.

    >>> Tanh().output_shapes([(2, 3, 4, 5)])
    [(2, 3, 4, 5)]
    """

    def forward(self, ctx, inputs, params):
        count(self, "input", len(inputs), 1)
        y = ctx.backend.tanh(inputs[0], **ctx.epilogue)
        ctx.save(y)
        return [y]

    def backward(self, ctx, params, der_outputs):
        return [ctx.backend.tanh_dzdx(der_outputs[0], *ctx.saved)], []
