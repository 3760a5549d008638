"""Categorical and attribute losses (MatConvNet manual, section 4.7)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from .layer import Layer, count
from .options import flag, one_of, real, whole

START = {"average": 0.0, "num_averaged": 0}  # of a running average


@dataclass
class Loss(Layer):
    """Compare scores with labels: one number, the mean over the N images of what each contributes.

    An image contributes the sum over its positions, where with scores x and class c

    "softmaxlog" is -log softmax(x)[c], "log" is -log x[c], "mhinge" is max(0, 1 - x[c]), "mshinge" is
    max(0, 1 - x[c] + max of the other scores), "classerror" is 1 unless c has the highest score,
    "topkerror" is 1 unless it is among the `top_k` highest;

    or the sum over all scores, where with attribute c = -1 or +1 of score x

    "binaryerror" is 1 unless x - threshold has the sign of c, "binarylog" is -log x for +1 and
    -log(1 - x) for -1, "logistic" is log(1 + exp(-c x)), "hinge" is max(0, 1 - c x).

    Parameters
    ----------
    loss : one of the above.
    top_k, threshold : options of "topkerror" and "binaryerror".
    normalise : divide by N; if not, the sum (as in MatConvNet before December 2017).
    ignore_average : do not keep the running average.

    Inputs scores x (N, C, H, W), labels, and optionally instance weights of the labels' shape, which have no
    derivative. Labels are (N,) or (N, 1, H, W), 0-based, negative to ignore; or attributes (N, C, H, W),
    0 to ignore. Output y is 0-d. Ignored labels contribute nothing, but N counts them.

    `net.state[name]` keeps `average`, the mean over all positions of all images since `net.reset()`, and
    `num_averaged`, their number.

    >>> Loss("topkerror", top_k=5).output_shapes([(8, 1000, 1, 1), (8,)])
    [()]
    """

    loss: str = "softmaxlog"
    top_k: int = 5
    threshold: float = 0.0
    normalise: bool = True
    ignore_average: bool = False

    kinds: ClassVar[tuple[str, ...]] = (
        *("softmaxlog", "log", "mhinge", "mshinge", "classerror", "topkerror"),
        *("binaryerror", "binarylog", "logistic", "hinge"),
    )

    initial_state = START

    def __post_init__(self):
        self.normalise = flag("normalise", self.normalise)
        self.ignore_average = flag("ignore_average", self.ignore_average)
        one_of("loss", self.loss, self.kinds)
        self.top_k = whole("top_k", self.top_k, least=1)
        self.threshold = real("threshold", self.threshold)

    @property
    def sums_samples(self):
        return not self.normalise

    @property
    def _options(self):
        return {
            "kind": self.loss,
            "top_k": self.top_k,
            "threshold": self.threshold,
            "normalise": self.normalise,
        }

    def forward(self, ctx, inputs, params):
        count(self, "inputs", len(inputs), 2, 3)
        y = ctx.backend.loss(*inputs, **self._options)
        if not self.ignore_average and inputs[0].size:
            n, c = inputs[0].shape[:2]
            total = y.astype("float64") * n if self.normalise else y.astype("float64")
            update_average(ctx.state, total, inputs[0].size // c)
        ctx.save(*inputs)
        return [y]

    def backward(self, ctx, params, der_outputs):
        dzdx = None
        if ctx.wants_inputs[0]:
            dzdx = ctx.backend.loss_dzdx(der_outputs[0], *ctx.saved, **self._options)
        return [dzdx, None, None][: len(ctx.saved)], []

    def output_shapes(self, input_shapes):
        count(self, "inputs", len(input_shapes), 2, 3)
        return [()]

    def receptive_fields(self, n_inputs):
        return [None] * n_inputs


def update_average(state, total, number):
    """Let `total`, the sum of `number` losses, take part in the running `average` of `state`."""
    before, average = (state.get(key, START[key]) for key in ("num_averaged", "average"))
    state["average"] = (before * average + total) / (before + number)
    state["num_averaged"] = before + number
