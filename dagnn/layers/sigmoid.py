"""Logistic sigmoid (MatConvNet manual, section 4.4)."""

from __future__ import annotations

from dataclasses import dataclass

from .layer import OneToOne, count


@dataclass
class Sigmoid(OneToOne):
    """y = 1 / (1 + exp(-x)), element by element.

    >>> Sigmoid().output_shapes([(2, 3, 4, 5)])
    [(2, 3, 4, 5)]
    """

    def forward(self, ctx, inputs, params):
        count(self, "input", len(inputs), 1)
        y = ctx.backend.sigmoid(inputs[0], **ctx.epilogue)
        ctx.save(y)
        return [y]

    def backward(self, ctx, params, der_outputs):
        return [ctx.backend.sigmoid_dzdx(der_outputs[0], *ctx.saved)], []
