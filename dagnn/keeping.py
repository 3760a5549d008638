"""Patches kept from forward to backward: more memory for less time, where that is so.

A convolution gathers in forward what each output pixel sees, the patch matrix phi(pad(x)), and does it again
for the derivative of its filters. Whether it is faster to keep it depends on the layer, its sizes and the
machine: the first evaluations that train a layer go both ways by turns, and the faster one stays. Results are
the same, bit for bit.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from time import perf_counter
from typing import TYPE_CHECKING, Any

from .errors import GraphError, OptionError
from .layers import Conv

if TYPE_CHECKING:
    from .layers.layer import Context, Layer
    from .plan import Plan, Step

ROUNDS = 3
"""So often each way is measured, after a first time that touches fresh memory."""
TRIED = 2 * (ROUNDS + 1)
"""After so many evaluations it is decided."""
GAIN = 0.95
"""Keeping patches has to take less than this share of the time: the memory is a price, too."""
MOST_BYTES = 1 << 25
"""Larger patch matrices are only kept where that is asked for."""
MOST_SIZES = 64
"""So many sizes of inputs are remembered of each layer: images may all have their own."""


@dataclass
class Trial:
    """One layer at one size: seconds of its steps, forward and backward, without and with patches kept."""

    kept: bool | None = None  # the decision
    seconds: tuple[list[float], list[float]] = field(default_factory=lambda: ([], []))

    @property
    def turn(self) -> bool:
        """What to do next; first without, for most sizes of images may come but once."""
        return len(self.seconds[0]) > len(self.seconds[1]) if self.kept is None else self.kept

    def took(self, kept: bool, seconds: float) -> None:
        """Take note; decide after so many rounds."""
        self.seconds[kept].append(seconds)
        if min(map(len, self.seconds)) > ROUNDS:
            without, within = (min(times[1:]) for times in self.seconds)
            self.kept = within < GAIN * without


class Keeping:
    """Decides for one convolution of a net, by size of its input, whether its patches are kept.

    `asked` says so by name for some layers; for the others it is measured.
    """

    def __init__(self, name: str, asked: Mapping[str, bool]) -> None:
        self.name, self.asked = name, asked
        self.trials: dict[Any, Trial] = {}
        self._began: tuple[Trial, bool, float] | None = None  # a step that is measured: its seconds forward

    @property
    def pays(self) -> bool:
        """Whether patches are kept, as far as is known, for at least one size."""
        return self.asked.get(self.name, any(trial.kept for trial in self.trials.values()))

    @property
    def undecided(self) -> bool:
        """Whether more evaluations are needed to know."""
        return self.name not in self.asked and any(trial.kept is None for trial in self.trials.values())

    def forward(self, layer: Layer, ctx: Context, inputs: Sequence[Any], params: Sequence[Any]) -> list[Any]:
        """What `layer.forward` does."""
        self._began = None
        if not ctx.saves or not inputs:
            return layer.forward(ctx, inputs, params)
        if self.name in self.asked:
            ctx.patches = [] if self.asked[self.name] else None
            return layer.forward(ctx, inputs, params)
        x = inputs[0]
        trial = self.trials.get((x.shape, x.dtype))
        if trial is None:
            if len(self.trials) >= MOST_SIZES:
                self.trials.pop(next(iter(self.trials)))
            trial = self.trials[x.shape, x.dtype] = Trial(
                False if patch_bytes(layer, x) > MOST_BYTES else None
            )
        turn = trial.turn
        ctx.patches = [] if turn else None
        begun = perf_counter()
        outputs = layer.forward(ctx, inputs, params)
        if trial.kept is None:
            self._began = trial, turn, perf_counter() - begun
            if turn and not ctx.patches:  # there are none
                trial.kept = False
        return outputs

    def backward(
        self, layer: Layer, ctx: Context, params: Sequence[Any], der_outputs: Sequence[Any]
    ) -> tuple[Any, Any]:
        """What `layer.backward` does."""
        began, self._began = self._began, None
        if began is None:
            return layer.backward(ctx, params, der_outputs)
        begun = perf_counter()
        ders = layer.backward(ctx, params, der_outputs)
        trial, kept, forward = began
        if trial.kept is None:
            trial.took(kept, forward + perf_counter() - begun)
        return ders


def as_asked(asked: Mapping[str, bool], layers: Collection[str]) -> dict[str, bool]:
    """What was asked for, checked."""
    for name, keep in asked.items():
        if name not in layers:
            raise GraphError(f"keep_patches: the net has no layer {name!r}")
        if not isinstance(keep, bool):
            raise OptionError(f"keep_patches[{name!r}] is True or False. Received: {keep!r}")
    return dict(asked)


def patch_bytes(layer: Layer, x: Any) -> int:
    """The size of the patch matrix: for each output pixel the pixels it sees."""
    (y,) = layer.output_shapes([x.shape])
    window = layer.size[2:]  # type: ignore[attr-defined]
    return y[0] * prod(y[2:]) * x.shape[1] * prod(window) * x.dtype.itemsize


def attach(plan: Plan, keepings: dict[str, Keeping], asked: Mapping[str, bool]) -> Plan:
    """The plan in which convolutions whose filters are trained may keep their patches.

    `keepings` remembers, by layer, what was found for all plans of a net.
    """

    def attached(step: Step) -> Step:
        if type(step.layer) is not Conv or True not in step.wants_params[:1]:
            return step
        return replace(step, keeping=keepings.setdefault(step.name, Keeping(step.name, asked)))

    return plan.changed(attached)


def settled(plan: Plan, names: Collection[str] = ()) -> Plan:
    """The plan in which the layers of these names keep their patches, and nothing is measured."""

    def decided(step: Step) -> Step:
        kept = step.name in names and step.keeping is not None
        return replace(step, keeping=Keeping(step.name, {step.name: True}) if kept else None)

    return plan.changed(decided)
