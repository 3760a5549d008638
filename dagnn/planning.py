"""Making a Plan of what is asked for."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace

from . import graph
from .errors import GraphError
from .graph import Graph, Wire
from .layers.layer import Layer
from .plan import Plan, Request, Step, with_lifetimes
from .variables import Param, Var


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
    back = graph.empty()
    if request.der_outputs:
        trained = {n for wire in chosen for n in wire.params if params[n].trainable}
        back = graph.backward_graph(net_graph, cut, request.der_outputs, wanted, trained)
    if not conserve_memory:
        kept = touched
    else:
        kept = {*outputs, *request.keep, *precious}
        if request.der_outputs:
            kept |= request.given & touched
    made = [
        _step(wire, layers[wire.name], [params[n] for n in wire.params], back, request.given)
        for wire in chosen
    ]
    steps = {step.name: step for step in with_lifetimes(made, kept)}
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
) -> Step:
    written = set(back.successors(("der_layer", wire.name))) if ("der_layer", wire.name) in back else set()
    return Step(
        name=wire.name,
        layer=layer,
        inputs=wire.inputs,
        outputs=tuple(None if n in given else n for n in wire.outputs),
        params=tuple(params),
        wants_inputs=tuple(bool({("der_var", n), ("sum_var", n)} & written) for n in wire.inputs),
        wants_params=tuple(bool({("der_param", n), ("sum_param", n)} & written) for n in wire.params),
    )
