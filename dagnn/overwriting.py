"""Values and derivatives written over those they are made of, where these die there: a rewrite of the Plan.

An element-by-element layer then reads and writes one array in place of two, which is faster, and takes no
memory of its own. An array is only written over if it is certainly nobody else's: a known layer made it, one
step alone reads it, nobody asked for it, and no backward step will want it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from math import prod

from .layers import LRN, BatchNorm, Conv, ConvTranspose, Pooling, ReLU, Sigmoid, Sum, Tanh
from .plan import Form, Plan, Request, Step

OVERWRITES = (ReLU, Sigmoid, Tanh, Sum)
"""Layers whose kernels may put their output over their first input, which they don't save."""
APART = (Conv, ConvTranspose, BatchNorm, LRN, Pooling, Sum)
"""Layers whose output is an array of its own, which they don't save."""


def values_in_place(plan: Plan, request: Request) -> Plan:
    """The plan whose element-by-element steps write their output over an input that dies."""
    readers: dict[str, int] = {}
    for step in plan.steps:
        for name in step.reads:
            readers[name] = readers.get(name, 0) + 1
    makers = {name: step for step in plan.steps for name in step.outputs}

    def overwriting(step: Step) -> Step:
        if type(step.layer) not in OVERWRITES or not step.inputs or step.outputs[0] is None:
            return step
        name = step.inputs[0]
        dies = name in step.releases and readers[name] == 1 and name not in request.der_outputs
        return replace(step, over=name) if dies and name in makers and _makes_own(makers[name]) else step

    return plan.changed(overwriting)


def _makes_own(step: Step) -> bool:
    """Whether the output is an array of its own, of which nothing is needed in backward."""
    fused = step.fused
    if fused is not None and (fused.place is not None or (step.carries and fused.relu is not None)):
        return False
    if type(step.layer) is Pooling:
        return step.layer.pool_size != (1, 1)
    if type(step.layer) is Sum:
        return len(step.inputs) > 1
    return type(step.layer) in APART or (type(step.layer) in OVERWRITES and not step.carries)


def derivatives_in_place(plan: Plan, forms: Mapping[str, Form] | None = None) -> Plan:
    """The plan with derivatives of fused ReLUs written over those that arrive.

    Their memory orders must agree: with `forms`, the shapes, it is only there; else it is seen at each step.
    """
    givers: dict[str, list[Step]] = {}
    shared = {*plan.kept_ders, *plan.seeds}
    for step in plan.backward_steps:
        for name, wanted in zip(step.inputs, step.wants_inputs, strict=True):
            if wanted:
                givers.setdefault(name, []).append(step)
        if step.fused is not None and step.fused.wants_add and step.fused.add is not None:
            shared.add(step.fused.add)
    own = {name for name, steps in givers.items() if name not in shared and len(steps) == 1}

    def rectifying(step: Step) -> Step:
        name = step.outputs[0]
        if step.fused is None or step.fused.relu is None or name not in own:
            return step
        return replace(step, fused=replace(step.fused, owns=_gives_own(givers[name][0], forms)))

    return plan.changed(rectifying)


def _gives_own(step: Step, forms: Mapping[str, Form] | None) -> bool:
    """Whether the layer's derivative for its input is certainly an array of its own, laid out like others."""
    layer = step.layer
    if type(layer) is Conv:
        # A fully connected layer gives one laid out like its filters.
        return forms is None or prod(forms[str(step.outputs[0])][0][2:]) > 1
    return type(layer) is BatchNorm or (type(layer) is Pooling and layer.pool_size != (1, 1))
