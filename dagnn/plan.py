"""The Plan: what one kind of evaluation runs, in which order, and how long each array lives.

Everything that depends only on names (which inputs are given, what is asked for) is decided here once;
the net caches the Plan until its structure changes, and `forward` and `backward` only follow it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from . import graph
from .errors import BackendError, DagnnError, DTypeError, GraphError, PlaceholderError, ShapeError
from .graph import Graph, Wire
from .layers.layer import Context, Layer
from .variables import Param, Var

Arrays = dict[str, Any]
Form = tuple[tuple[int, ...], Any]  # shape and dtype


@dataclass(frozen=True)
class Request:
    """What an evaluation asks for, by names: the key under which its Plan is cached."""

    given: frozenset[str]
    outputs: tuple[str, ...] | None
    der_outputs: frozenset[str]
    keep: frozenset[str]
    ders: frozenset[str]


@dataclass(frozen=True)
class Step:
    """One layer of the Plan: what it reads and writes, forward and backward."""

    name: str
    layer: Layer
    inputs: tuple[str, ...]
    outputs: tuple[str | None, ...]  # None: the variable was given, and what the layer makes is not used
    params: tuple[Param, ...]
    wants_inputs: tuple[bool, ...]
    wants_params: tuple[bool, ...]
    releases: tuple[str, ...]  # variables nobody reads after this step

    @property
    def where(self) -> str:
        return f"{type(self.layer).__name__} {self.name!r}"


@dataclass(frozen=True)
class Plan:
    """Steps in order of execution, the backward steps in theirs, and the names whose arrays stay."""

    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    backward_steps: tuple[Step, ...]
    backward_graph: Graph
    seeds: frozenset[str]  # the der_outputs that anything depends on
    kept_values: frozenset[str]
    kept_ders: frozenset[str]
    released: tuple[str, ...]  # computed, but not kept
    params: tuple[Param, ...]

    def forward(
        self, values: Arrays, context: Callable[[Step], Context]
    ) -> tuple[dict[str, Context], Arrays]:
        """Run the layers on `values` (the given inputs), which then hold what is kept.

        Returns the contexts of the layers that backward visits, and (shape, dtype) of all variables.
        """
        contexts: dict[str, Context] = {}
        forms = {name: (value.shape, value.dtype) for name, value in values.items()}
        inputs: list[Any] = []
        step = None
        try:
            for step in self.steps:
                inputs = [values[name] for name in step.inputs]
                ctx = context(step)
                params = [p._value for p in step.params]
                outputs = step.layer.forward(ctx, inputs, params)
                if not isinstance(outputs, list | tuple):
                    raise ShapeError(f"forward must return a list of outputs, not {type(outputs).__name__}")
                if len(outputs) != len(step.outputs):
                    raise ShapeError(f"{len(outputs)} outputs returned, {len(step.outputs)} are connected")
                for name, value in zip(step.outputs, outputs, strict=True):
                    if name is not None:
                        value = _checked(value, ctx, inputs, params)
                        values[name] = value
                        forms[name] = value.shape, value.dtype
                if ctx.saves:
                    contexts[step.name] = ctx
                for name in step.releases:
                    values.pop(name, None)
        except Exception as error:
            _explain(error, step, zip(step.inputs, inputs, strict=False) if step else ())
            raise
        return contexts, forms

    def backward(
        self, seeds: Arrays, contexts: dict[str, Context], forms: Mapping[str, Form]
    ) -> tuple[Arrays, Arrays]:
        """Carry `seeds` back through the BP-reversed graph: (derivatives of variables, of parameters)."""
        ders, der_params = _Sums(seeds), _Sums({})
        step, arriving = None, []
        try:
            for step in self.backward_steps:
                keep = self.kept_ders
                arriving = [
                    None if n is None else ders.get(n) if n in keep else ders.pop(n, None)
                    for n in step.outputs
                ]
                if all(der is None for der in arriving):
                    continue
                ctx = contexts.pop(step.name)
                der_inputs, der_ws = _pair(
                    step.layer.backward(ctx, [p._value for p in step.params], arriving)
                )
                if len(der_inputs) != len(step.inputs) or len(der_ws) != len(step.params):
                    raise ShapeError(
                        f"backward returned {len(der_inputs)} and {len(der_ws)} derivatives for "
                        f"{len(step.inputs)} inputs and {len(step.params)} parameters"
                    )
                for name, wanted, der in zip(step.inputs, step.wants_inputs, der_inputs, strict=True):
                    if wanted and der is not None:
                        ders.add(name, _fitting(der, *forms[name], name))
                for param, wanted, der in zip(step.params, step.wants_params, der_ws, strict=True):
                    if wanted and der is not None:
                        w = param._value
                        der_params.add(param.name, _fitting(der, w.shape, w.dtype, param.name))
                del der_inputs, der_ws, ctx
        except Exception as error:
            _explain(error, step, zip(step.outputs, arriving, strict=False) if step else (), "der of ")
            raise
        return ders, der_params


class _Sums(dict[str, Any]):
    """The summation nodes: what arrives under one name is added up, never into somebody else's array."""

    def __init__(self, seeds: Arrays) -> None:
        super().__init__(seeds)
        self._own: set[str] = set()

    def add(self, name: str, der: Any) -> None:
        before = self.get(name)
        if before is None:
            self[name] = der
            self._own.discard(name)
        elif name in self._own:
            self[name] += der
        else:
            self[name] = before + der
            self._own.add(name)


def make_plan(
    wires: Sequence[Wire],
    net_graph: Graph,
    layers: Mapping[str, Layer],
    variables: Mapping[str, Var],
    params: Mapping[str, Param],
    request: Request,
    conserve_memory: bool,
) -> Plan:
    """The Plan for `request`; `wires` are the layers in order of execution."""
    running, available = graph.runnable(wires, request.given)
    produced, read = graph.producers(wires), graph.consumers(wires)
    outputs = request.outputs
    if outputs is None:
        ends = [n for n in variables if n in produced and not read[n]]
        outputs = tuple(n for n in ends if n in available)
        if not outputs and not request.der_outputs:
            if not ends:
                raise GraphError("The net has no layers: add some with net.add_layer(...)")
            raise graph.unreachable(wires, ends[0], request.given)
    targets = {*outputs, *request.der_outputs, *request.keep, *request.ders.intersection(available)}
    for target in sorted(targets - available):
        raise graph.unreachable(wires, target, request.given)
    chosen = graph.needed(running, targets, request.given) if conserve_memory else running
    touched = {n for wire in chosen for n in (*wire.inputs, *wire.outputs)} | targets

    precious = {n for n in touched if variables[n].precious}
    wanted = frozenset(request.ders | precious if conserve_memory else request.ders | touched)
    # A given variable is an input here, also where a layer that runs for its other outputs would make it.
    cut = [replace(w, outputs=tuple(n for n in w.outputs if n not in request.given)) for w in chosen]
    back = Graph()
    if request.der_outputs:
        trained = {n for wire in chosen for n in wire.params if params[n].trainable}
        back = graph.backward_graph(net_graph, cut, request.der_outputs, wanted, trained)
    if not conserve_memory:
        kept = touched
    else:
        kept = {*outputs, *request.keep, *precious}
        if request.der_outputs:
            kept |= request.given & touched
    last = graph.last_uses(cut)
    steps = {}
    for wire in chosen:
        own = [params[n] for n in wire.params]
        steps[wire.name] = _step(wire, layers[wire.name], own, back, request.given, kept, last)
    position = {name: k for k, name in enumerate(steps)}
    return Plan(
        outputs=outputs,
        steps=tuple(steps.values()),
        backward_steps=tuple(steps[n] for n in graph.backward_order(back, position)),
        backward_graph=back,
        seeds=frozenset(n for kind, n in back if kind == "seed_var"),
        kept_values=frozenset(kept),
        kept_ders=wanted,
        released=tuple(touched - kept),
        params=tuple(dict.fromkeys(p for step in steps.values() for p in step.params)),
    )


def _step(
    wire: Wire,
    layer: Layer,
    params: Sequence[Param],
    back: Graph,
    given: Collection[str],
    kept: Collection[str],
    last: Mapping[str, str],
) -> Step:
    written = set(back.successors(("der_layer", wire.name))) if ("der_layer", wire.name) in back else set()
    names = dict.fromkeys((*wire.inputs, *wire.outputs))
    return Step(
        name=wire.name,
        layer=layer,
        inputs=wire.inputs,
        outputs=tuple(None if n in given else n for n in wire.outputs),
        params=tuple(params),
        wants_inputs=tuple(bool({("der_var", n), ("sum_var", n)} & written) for n in wire.inputs),
        wants_params=tuple(bool({("der_param", n), ("sum_param", n)} & written) for n in wire.params),
        releases=tuple(n for n in names if last.get(n) == wire.name and n not in kept),
    )


def _checked(value: Any, ctx: Context, inputs: Sequence[Any], params: Sequence[Any]) -> Any:
    """An output as the backend's array, of the floating type of the layer's data and parameters."""
    if not ctx.backend.owns(value):
        raise BackendError(
            f"the output is a {type(value).__name__}, not an array of backend {ctx.backend.name!r}"
        )
    value = ctx.backend.asarray(value)
    if value.dtype.kind == "f":
        for what, array in (("input is", inputs[:1]), ("parameters are", params[:1])):
            if array and array[0].dtype.kind == "f" and array[0].dtype != value.dtype:
                raise DTypeError(f"the output is {value.dtype}, the {what} {array[0].dtype}: keep one type")
    return value


def _pair(result: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """What backward returned, if it is (der_inputs, der_params)."""
    if isinstance(result, tuple) and len(result) == 2 and all(isinstance(r, list | tuple) for r in result):
        return result
    raise ShapeError("backward must return two lists, (der_inputs, der_params)")


def _fitting(der: Any, shape: tuple[int, ...], dtype: Any, name: str) -> Any:
    if getattr(der, "shape", None) != shape:
        raise ShapeError(
            f"backward gave {name!r}, of shape {shape}, a derivative of shape {getattr(der, 'shape', None)}"
        )
    if dtype.kind == "f" and der.dtype != dtype:
        raise DTypeError(f"backward gave {name!r}, which is {dtype}, a derivative of type {der.dtype}")
    return der


def _explain(error: Exception, step: Step | None, arrays: Any, prefix: str = "") -> None:
    """Say once, in whatever went wrong, in which layer it was and what that layer had received."""
    if step is None:
        return
    received = "; ".join(f"{prefix}{name} {shape_and_type(array)}" for name, array in arrays) or "nothing"
    if isinstance(error, PlaceholderError):
        error.add_context(f"Layer {step.name!r}", received)
    elif isinstance(error, DagnnError):
        error.add_context(step.where, received)
    else:
        error.add_note(f"In layer {step.where}.\nReceived: {received}")


def shape_and_type(array: Any) -> str:
    """Shape and type of an array, for messages."""
    return "None" if array is None else f"{tuple(array.shape)} {array.dtype}"
