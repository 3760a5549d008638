"""What can be recorded as a graph, and what has to be looked at before one is launched."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from . import backends, layers
from .backends.reference.losses import ATTRIBUTE
from .errors import DagnnError
from .layers import Custom, Loss, Placeholder
from .layers.layer import Layer
from .plan import Form, Plan, Request, Step, explain

if TYPE_CHECKING:
    from .backends.base import Backend


class Uncapturable(Exception):
    """What can't be recorded, and why."""


def check(plan: Plan, request: Request) -> None:
    """Uncapturable if it is known without trying that the Plan can't be recorded."""
    for step in plan.steps:
        for layer in layers_of(step):
            if not (type(layer).capturable or _is_own(layer)):
                raise Uncapturable(
                    f"{step.where} may do what can't be recorded; if it doesn't, set {type(layer).__name__}."
                    f"capturable = True"
                )
        if type(step.layer) is Loss and step.inputs[1] not in request.given:
            raise Uncapturable(f"{step.where} has labels {step.inputs[1]!r} that another layer makes")


def check_labels(
    plan: Plan,
    forms: Mapping[str, Form],
    inputs: Mapping[str, Any],
    backend: Backend,
    trusted: Collection[str] = (),
) -> None:
    """LabelError, as a loss would raise it, where a label cannot be.

    Labels on the host are read there; for those on the device one waits, unless a loss of them, which then
    is nan, is one of the `trusted`, at which the caller looks.
    """
    losses: dict[Any, list[Step]] = {}
    for step in plan.steps:
        if type(step.layer) is Loss:
            name, (shape, _) = step.inputs[1], forms[step.inputs[0]]
            losses.setdefault((name, shape, step.layer.loss in ATTRIBUTE), []).append(step)
    for (name, shape, _), (step, *others) in losses.items():
        labels, judge = inputs[name], backends.get("numpy")
        if backend.owns(labels):
            if any(one.outputs[0] in trusted for one in (step, *others)):
                continue
            judge = backend
        try:
            kind = cast(Loss, step.layer).loss
            judge.check_labels(np.broadcast_to(np.float32(0), shape), labels, kind=kind)
        except DagnnError as error:
            received = ((n, SimpleNamespace(shape=forms[n][0], dtype=forms[n][1])) for n in step.inputs)
            explain(error, step, received)
            raise


def _is_own(layer: Layer) -> bool:
    kind = type(layer)
    return getattr(layers, kind.__name__, None) is kind and kind not in (Custom, Placeholder)


def layers_of(step: Step) -> list[Layer]:
    """The layers of a step, of which several may be fused."""
    return [step.layer] if step.fused is None else [part.layer for part in step.fused.plain]


def reason(error: Exception) -> str:
    """An error in a line, with the layer that a note names."""
    notes = [note.splitlines()[0] for note in getattr(error, "__notes__", [])]
    return " ".join([*notes, f"{type(error).__name__}: {error}".splitlines()[0]])
