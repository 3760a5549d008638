"""Mixed precision, Plan -> Plan: 16 bits where they are enough, single precision where they are not.

Convolutions compute in float16 or bfloat16, and what lies between them goes along. Losses, softmax, distances
and sampling grids, and layers nobody here knows, compute in float32. Parameters stay float32: layers see
copies of them, batch normalisation the parameters themselves, and derivatives arrive in float32.

That is the recipe of Micikevicius et al. 2018 (arXiv:1710.03740, section 3), with the layers divided as by
PyTorch's autocast. Kernels add up in single precision in any case.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, cast

from . import layers
from .dtypes import floating, is_floating, is_half
from .errors import OptionError
from .layers import BatchNorm, Crop, Loss, LossSmoothL1, PDist, ROIPooling
from .layers.layer import Context, Layer
from .plan import CAST, Arrays, Plan, Step, with_lifetimes
from .rewrites import Folded
from .variables import Param

NAMES = ("float16", "bfloat16")
FULL = "float32"
HALF: set[type] = {layers.Conv, layers.ConvTranspose}
"""Layers that compute in 16 bits."""
ALONG: set[type] = {BatchNorm, Crop, ROIPooling} | {
    *(layers.Concat, layers.DropOut, layers.LRN, layers.NormOffset, layers.NormalizeLp, layers.Permute),
    *(layers.Pooling, layers.ReLU, layers.Reshape, layers.Scale, layers.Sigmoid, layers.Slice),
    *(layers.SpatialNorm, layers.Split, layers.Sum, layers.Tanh),
}
"""Layers that compute in 16 bits where one of their inputs has them, as kernels do they are fused into."""
DATA = {Loss: 1, PDist: 2, LossSmoothL1: 2, ROIPooling: 1, Crop: 1}
"""How many of the inputs are data; what follows may have any type."""


def as_precision(name: Any) -> str | None:
    """ "float16", "bfloat16", or None, which "float32" means too; OptionError for others.

    >>> as_precision("float16"), as_precision("float32"), as_precision(None)
    ('float16', None, None)
    """
    if name in (None, FULL):
        return None
    if name not in NAMES:
        raise OptionError(f"precision is float32, {' or '.join(NAMES)}. Received: {name!r}")
    floating(name)
    return name


def mixed(plan: Plan, copies: Copies) -> Plan:
    """The plan with the steps that may computing in the type of `copies`, and casts where types meet."""
    rewrite = _Rewrite(plan, copies)
    steps = with_lifetimes(rewrite.steps, plan.kept_values)
    backward = tuple(step for step in reversed(steps) if step.carries)
    return replace(plan, steps=steps, backward_steps=backward, copies=copies)


class _Rewrite:
    def __init__(self, plan: Plan, copies: Copies) -> None:
        self.copies, self.half = copies, copies.dtype.name
        self.types: dict[str, str] = {}  # of variables; those given may have any
        self.steps: list[Step] = []
        self._casts: dict[str, int] = {}
        self._wanted = _casts_with_derivatives(plan)
        for step in plan.steps:
            self._add(step)

    def _add(self, step: Step) -> None:
        dtype = self._type(step)
        data = _data(step)
        names = {name: self._in(name, dtype, (step.name, name) in self._wanted) for name in data}
        self.steps.append(self._rewritten(step, dtype, names))
        self.types.update((name, dtype) for name in step.outputs if name is not None)

    def _type(self, step: Step) -> str:
        kind = type(step.layer)
        along = kind in ALONG and any(self.types.get(name) == self.half for name in _data(step))
        return self.half if along or kind in HALF or kind.in_half else FULL

    def _in(self, name: str, dtype: str, carries: bool) -> str:
        """The name of a variable in this type, which a step makes that may have to be added."""
        if self.types.get(name) == dtype:
            return name
        other = f"{name}{CAST}{dtype}"
        if other not in self._casts:
            self._casts[other] = len(self.steps)
            self.steps.append(Step(other, Cast(dtype), (name,), (other,), (), (carries,), (), mixed=True))
        elif carries:
            place = self._casts[other]
            self.steps[place] = replace(self.steps[place], wants_inputs=(True,))
        return other

    def _rewritten(self, step: Step, dtype: str, names: Mapping[str, str]) -> Step:
        """The step on other variables and parameters."""
        inputs = tuple(names.get(name, name) for name in step.inputs)
        params = step.params
        own = type(step.layer) is BatchNorm
        if dtype != FULL and not own:
            params = tuple(cast(Param, self.copies.of(param)) for param in params)
        fused = step.fused
        if fused is not None:
            if fused.folded is not None:
                cast("Folded", fused.folded).cast = self.copies.cast
            plain = tuple(self._rewritten(part, dtype, names) for part in fused.plain)
            added = None if fused.add is None else names.get(fused.add, fused.add)
            fused = replace(fused, plain=plain, add=added)
        return replace(step, inputs=inputs, params=params, fused=fused, mixed=own)


def _data(step: Step) -> Sequence[str]:
    """The variables a step reads that have its type."""
    count = DATA.get(type(step.layer))
    return step.reads if count is None else step.inputs[:count]


def _casts_with_derivatives(plan: Plan) -> set[tuple[str, str]]:
    """(step, variable) where the step has a derivative for what it reads."""
    found = {
        (step.name, name)
        for step in plan.steps
        for name, wanted in zip(step.inputs, step.wants_inputs, strict=True)
        if wanted
    }
    return found | {
        (step.name, step.fused.add)
        for step in plan.steps
        if step.fused is not None and step.fused.wants_add and step.fused.add is not None
    }


class Cast(Layer):
    """A variable in another type; float64, and what isn't floating, stays as it is."""

    capturable = True

    def __init__(self, dtype: str) -> None:
        self.dtype = floating(dtype)

    def forward(self, ctx: Context, inputs: Sequence[Any], params: Sequence[Any]) -> list[Any]:
        (x,) = inputs
        ctx.save(x.dtype)
        changes = is_floating(x.dtype) and x.dtype.itemsize <= 4
        return ctx.backend.cast([x], self.dtype) if changes else [x]

    def backward(
        self, ctx: Context, params: Sequence[Any], der_outputs: Sequence[Any]
    ) -> tuple[list[Any], list[Any]]:
        (dtype,) = ctx.saved
        return ctx.backend.cast(der_outputs, dtype), []


class Copies:
    """Copies of parameters in 16 bits, made anew when parameters have changed; all of these at once."""

    def __init__(self, dtype: str, backend: Any) -> None:
        self.dtype, self._backend = floating(dtype), backend
        self._copies: dict[Param, Copy] = {}

    def of(self, param: Param) -> Copy:
        """The copy of a parameter."""
        return self._copies.setdefault(param, Copy(param, self))

    def cast(self, arrays: Sequence[Any]) -> list[Any]:
        """Arrays in 16 bits."""
        return self._backend.cast(arrays, self.dtype)

    def refresh(self) -> None:
        """Make all copies anew whose parameters have changed."""
        stale = [copy for copy in self._copies.values() if copy.stale and copy.param._value is not None]
        arrays = self.cast([copy.param._value for copy in stale])
        for copy, array in zip(stale, arrays, strict=True):
            copy.array, copy.version = self._backend.parameter(array), copy.param.version

    @contextmanager
    def anew(self) -> Iterator[None]:
        """Inside of it copies are made anew, for recorded work to do so; afterwards they are as before."""
        before = [(copy, copy.array, copy.version) for copy in self._copies.values()]
        for copy, _, _ in before:
            copy.version = None
        try:
            yield
        finally:
            for copy, array, version in before:
                copy.array, copy.version = array, version

    def widened(self, ders: Arrays) -> Arrays:
        """Derivatives of parameters in single precision."""
        names = [name for name, der in ders.items() if is_half(der.dtype)]
        wide = self._backend.cast([ders[name] for name in names], FULL)
        return ders | dict(zip(names, wide, strict=True))


class Copy:
    """What steps see in place of a parameter."""

    def __init__(self, param: Param, copies: Copies) -> None:
        self.param, self._copies = param, copies
        self.name = param.name
        self.array: Any = None
        self.version: int | None = None

    @property
    def stale(self) -> bool:
        """Whether the parameter has changed since."""
        return self.version != self.param.version

    @property
    def _value(self) -> Any:
        if self.stale:
            self._copies.refresh()
        return self.array
