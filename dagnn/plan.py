"""The Plan: what one kind of evaluation runs, in which order, and how long each array lives.

Everything that depends only on names (which inputs are given, what is asked for) is decided here once;
the net caches the Plan until its structure changes, and `forward` and `backward` only follow it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from . import graph
from .errors import BackendError, DagnnError, DTypeError, PlaceholderError, ShapeError
from .graph import Graph, Wire
from .layers.layer import Context, Layer
from .variables import Param

Arrays = dict[str, Any]


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
    outputs: tuple[str, ...]
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
    params: tuple[Param, ...] = field(default=())

    def forward(
        self, values: Arrays, context: Callable[[Step], Context]
    ) -> tuple[dict[str, Context], Arrays]:
        """Run the layers on `values` (the given inputs), which then hold what is kept.

        Returns the contexts of the layers that backward visits, and the shapes of all variables.
        """
        contexts: dict[str, Context] = {}
        shapes = {name: value.shape for name, value in values.items()}
        given = frozenset(values)
        inputs: list[Any] = []
        step = None
        try:
            for step in self.steps:
                inputs = [values[name] for name in step.inputs]
                ctx = context(step)
                outputs = step.layer.forward(ctx, inputs, [p._value for p in step.params])
                if len(outputs) != len(step.outputs):
                    raise ShapeError(f"{len(outputs)} outputs returned, {len(step.outputs)} are connected")
                for name, value in zip(step.outputs, outputs, strict=True):
                    if name not in given:
                        value = _checked(value, ctx, inputs)
                        values[name] = value
                        shapes[name] = value.shape
                if ctx.saves:
                    contexts[step.name] = ctx
                for name in step.releases:
                    values.pop(name, None)
        except Exception as error:
            _explain(error, step, zip(step.inputs, inputs, strict=False) if step else ())
            raise
        return contexts, shapes

    def backward(
        self, seeds: Arrays, contexts: dict[str, Context], shapes: Mapping[str, Any]
    ) -> tuple[Arrays, Arrays]:
        """Carry `seeds` back through the BP-reversed graph: (derivatives of variables, of parameters)."""
        ders, der_params = _Sums(seeds), _Sums({})
        step, arriving = None, []
        try:
            for step in self.backward_steps:
                keep = self.kept_ders
                arriving = [ders.get(n) if n in keep else ders.pop(n, None) for n in step.outputs]
                if all(der is None for der in arriving):
                    continue
                ctx = contexts.pop(step.name)
                der_inputs, der_ws = step.layer.backward(ctx, [p._value for p in step.params], arriving)
                if len(der_inputs) != len(step.inputs) or len(der_ws) != len(step.params):
                    raise ShapeError(
                        f"backward returned {len(der_inputs)} and {len(der_ws)} derivatives for "
                        f"{len(step.inputs)} inputs and {len(step.params)} parameters"
                    )
                for name, wanted, der in zip(step.inputs, step.wants_inputs, der_inputs, strict=True):
                    if wanted and der is not None:
                        ders.add(name, _fitting(der, shapes[name], name))
                for param, wanted, der in zip(step.params, step.wants_params, der_ws, strict=True):
                    if wanted and der is not None:
                        der_params.add(param.name, _fitting(der, param._value.shape, param.name))
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
    params: Mapping[str, Param],
    request: Request,
    precious: Collection[str],
    conserve_memory: bool,
) -> Plan:
    """The Plan for `request`; `wires` are the layers in order of execution."""
    running, available = graph.runnable(wires, request.given)
    produced = graph.producers(wires)
    read = graph.consumers(wires)
    outputs = request.outputs
    if outputs is None:
        outputs = tuple(n for n in produced if not read[n] and n in available)
        if not outputs and not request.der_outputs:
            final = next((n for n in produced if not read[n]), None)
            raise (
                graph.unreachable(wires, final, request.given)
                if final
                else DagnnError("The net has no layers.")
            )
    targets = {*outputs, *request.der_outputs, *request.keep}
    for target in sorted(targets - available):
        raise graph.unreachable(wires, target, request.given)
    chosen = graph.needed(running, targets, request.given) if conserve_memory else running
    touched = {n for wire in chosen for n in (*wire.inputs, *wire.outputs)} | set(outputs)

    precious = touched.intersection(precious)
    wanted = frozenset(touched if not conserve_memory else request.ders | precious)
    if request.der_outputs:
        trained = {n for wire in chosen for n in wire.params if params[n].trainable}
        back = graph.backward_graph(net_graph, chosen, request.der_outputs, wanted, trained)
    else:
        back = Graph()
    if conserve_memory:
        kept = {*outputs, *request.keep, *precious}
        if request.der_outputs:
            kept |= request.given & touched
    else:
        kept = touched
    last = graph.last_uses(chosen)
    steps = {
        wire.name: _step(wire, layers[wire.name], [params[n] for n in wire.params], back, kept, last)
        for wire in chosen
    }
    return Plan(
        outputs=outputs,
        steps=tuple(steps.values()),
        backward_steps=tuple(
            steps[n] for n in graph.backward_order(back, {n: i for i, n in enumerate(steps)})
        ),
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
    kept: Collection[str],
    last: Mapping[str, str],
) -> Step:
    written = set(back.successors(("der_layer", wire.name))) if ("der_layer", wire.name) in back else set()
    return Step(
        name=wire.name,
        layer=layer,
        inputs=wire.inputs,
        outputs=wire.outputs,
        params=tuple(params),
        wants_inputs=tuple(bool({("der_var", n), ("sum_var", n)} & written) for n in wire.inputs),
        wants_params=tuple(bool({("der_param", n), ("sum_param", n)} & written) for n in wire.params),
        releases=tuple(
            n for n in dict.fromkeys((*wire.inputs, *wire.outputs)) if last[n] == wire.name and n not in kept
        ),
    )


def _checked(value: Any, ctx: Context, inputs: Sequence[Any]) -> Any:
    """An output as the backend's array, of the floating type of the layer's data."""
    if not ctx.backend.owns(value):
        raise BackendError(
            f"the output is a {type(value).__name__}, not an array of backend {ctx.backend.name!r}"
        )
    value = ctx.backend.asarray(value)
    if value.dtype.kind == "f" and inputs and inputs[0].dtype.kind == "f" and value.dtype != inputs[0].dtype:
        raise DTypeError(f"the output is {value.dtype}, the input {inputs[0].dtype}: keep the input's type")
    return value


def _fitting(der: Any, shape: tuple[int, ...], name: str) -> Any:
    if der.shape != shape:
        raise ShapeError(f"backward gave {name!r}, of shape {shape}, a derivative of shape {der.shape}")
    return der


def _explain(error: Exception, step: Step | None, arrays: Any, prefix: str = "") -> None:
    """Say once, in whatever went wrong, in which layer it was and what that layer had received."""
    if step is None:
        return
    received = "; ".join(f"{prefix}{name} {describe(array)}" for name, array in arrays) or "nothing"
    if isinstance(error, PlaceholderError):
        error.add_context(f"Layer {step.name!r}", received)
    elif isinstance(error, DagnnError):
        error.add_context(step.where, received)
    else:
        error.add_note(f"In layer {step.where}.\nReceived: {received}")


def describe(array: Any) -> str:
    """Shape and type of an array, for messages."""
    return "None" if array is None else f"{tuple(array.shape)} {array.dtype}"
