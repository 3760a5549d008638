"""Results, and the custom layers that read and write them."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from ..backends.base import Array
from ..errors import OptionError
from ..layers.layer import Layer, ParamSpec
from .layers import Link


@dataclass
class Result:
    """What `SimpleNN.eval` leaves at one point of the chain: `res[0]` before, `res[i + 1]` behind layer i.

    `x` and `dzdx` are the value there and its derivative; `dzdw` (derivatives of the weights), `time` and
    `backward_time` (seconds) of `res[i]` belong to layer i, and so does `aux` (the mask of a dropout) of
    `res[i + 1]`. `stats` is for custom layers. None or [] where there is nothing.
    """

    x: Any = None
    dzdx: Any = None
    dzdw: list[Array | None] = field(default_factory=list)
    aux: Any = None
    stats: Any = None
    time: float = 0.0
    backward_time: float = 0.0

    def __repr__(self) -> str:
        arrays = {name: getattr(self, name) for name in ("x", "dzdx", "aux")}
        texts = [f"{name} {tuple(a.shape)} {a.dtype}" for name, a in arrays.items() if hasattr(a, "dtype")]
        return f"Result({', '.join([*texts, *[f'dzdw of {len(self.dzdw)}'] * bool(self.dzdw)])})"


def call(link: Link, role: str, before: Result, after: Result) -> Result:
    """Run the function "forward" or "backward", which changes a result in place or returns another one."""
    function = link.get(role)
    if not callable(function):
        raise OptionError(f"{role} must be a function. Received: {function!r}")
    changed = function(link, before, after)
    if not isinstance(changed, Result | None):
        raise OptionError(f"{role} must return a Result. Received: {type(changed).__name__}")
    if changed is None:
        return after if role == "forward" else before
    return changed


@dataclass
class CustomLink(Layer):
    """A custom layer of a SimpleNN in a DagNN: its functions see two `Result`s, as in the chain."""

    link: Link

    @property
    def params(self):
        return (ParamSpec("weights"),) * len(self.link["weights"])

    def forward(self, ctx, inputs, params):
        link, before = {**self.link, "weights": list(params)}, Result(inputs[0])
        after = call(link, "forward", before, Result())
        ctx.save(link, before, after)
        return [after.x]

    def backward(self, ctx, params, der_outputs):
        link, before, after = ctx.saved
        after.dzdx = der_outputs[0]
        before = call(link, "backward", before, after)
        return [before.dzdx], [*before.dzdw, *[None] * len(params)][: len(params)]

    def init_params(self, rng):
        return list(self.link["weights"])

    def receptive_fields(self, n_inputs):
        return [None]
