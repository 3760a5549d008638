"""Softmax (MatConvNet manual, section 4.6.4)."""

from __future__ import annotations

from dataclasses import dataclass

from .layer import OneToOne, count


@dataclass
class SoftMax(OneToOne):
    """y[n, c, i, j] = exp(x[n, c, i, j]) / sum over d of exp(x[n, d, i, j]): probabilities over channels.

    For training, `Loss("softmaxlog")` on the scores is more accurate than "log" on this layer's output.

    >>> SoftMax().output_shapes([(8, 1000, 1, 1)])
    [(8, 1000, 1, 1)]
    """

    def forward(self, ctx, inputs, params):
        count(self, "input", len(inputs), 1)
        y = ctx.backend.softmax(inputs[0])
        ctx.save(y)
        return [y]

    def backward(self, ctx, params, der_outputs):
        return [ctx.backend.softmax_dzdx(der_outputs[0], *ctx.saved)], []
