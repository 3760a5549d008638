"""Names only: the network as a networkx graph, its orders, and its BP-reversed graph.

Nodes are (kind, name) pairs. The forward graph has kinds "layer", "var" and "param"; the BP-reversed
graph (MatConvNet manual, section 2.3.5) adds "der_layer", "der_var", "der_param", the "seed_var" of every
output derivative that is given, and "sum_var"/"sum_param" wherever a variable or parameter feeds
several layers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

from .errors import GraphError, shorten

if TYPE_CHECKING:
    import networkx as nx  # else imported where it is used: it is a third of the time of `import dagnn`

Node = tuple[str, str]
Graph: TypeAlias = "nx.DiGraph"


@dataclass(frozen=True)
class Wire:
    """What the graph knows of a layer: its name and the names it connects."""

    name: str
    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    params: tuple[str, ...] = ()


def empty() -> Graph:
    """A graph without nodes."""
    import networkx as nx

    return nx.DiGraph()


def forward_graph(wires: Iterable[Wire]) -> Graph:
    """The bipartite graph of layers and what they connect; an edge's `slots` are its argument positions."""
    graph = empty()
    for position, wire in enumerate(wires):
        layer = ("layer", wire.name)
        graph.add_node(layer, position=position)
        for names, kind in ((wire.inputs, "var"), (wire.params, "param")):
            for slot, name in enumerate(names):
                _add_use(graph, (kind, name), layer, slot)
        for slot, name in enumerate(wire.outputs):
            output = ("var", name)
            for other in graph.predecessors(output) if output in graph else ():
                raise GraphError(
                    f"Variable {name!r} would be produced twice: "
                    f"by layer {other[1]!r} and by layer {wire.name!r}"
                )
            _add_use(graph, layer, output, slot)
    return graph


def _add_use(graph: Graph, source: Node, target: Node, slot: int) -> None:
    slots = graph.edges[source, target]["slots"] if graph.has_edge(source, target) else ()
    graph.add_edge(source, target, slots=(*slots, slot))


def layer_order(graph: Graph) -> list[str]:
    """Names of the layers in an order of execution: among those that could run, the one added first."""
    import networkx as nx

    position = graph.nodes(data="position", default=-1)
    try:
        nodes = list(nx.lexicographical_topological_sort(graph, key=lambda node: position[node]))
    except nx.NetworkXUnfeasible:
        raise GraphError(f"The layers form a cycle: {cycle(graph)}") from None
    return [name for kind, name in nodes if kind == "layer"]


def cycle(graph: Graph) -> str:
    """One cycle, written as layer -> variable -> layer."""
    import networkx as nx

    edges = nx.find_cycle(graph)
    return " -> ".join(name for _, name in [edges[0][0], *(target for _, target in edges)])


def producers(wires: Iterable[Wire]) -> dict[str, str]:
    """The layer that produces each variable; inputs of the network have none."""
    return {output: wire.name for wire in wires for output in wire.outputs}


def consumers(wires: Iterable[Wire]) -> Counter[str]:
    """How often each variable is read."""
    return Counter(name for wire in wires for name in wire.inputs)


def runnable(wires: Sequence[Wire], given: Collection[str]) -> tuple[list[Wire], set[str]]:
    """The layers (in the order of `wires`) that `given` variables suffice for, and all they reach."""
    available = set(given)
    running = []
    for wire in wires:
        if available.issuperset(wire.inputs) and not available.issuperset(wire.outputs):
            running.append(wire)
            available.update(wire.outputs)
    return running, available


def needed(wires: Sequence[Wire], targets: Collection[str], given: Collection[str]) -> list[Wire]:
    """The layers (in the order of `wires`) without which `targets` can't be computed from `given`."""
    wanted = set(targets) - set(given)
    chosen = []
    for wire in reversed(wires):
        if not wanted.isdisjoint(wire.outputs):
            chosen.append(wire)
            wanted.update(set(wire.inputs) - set(given))
    return chosen[::-1]


def missing_inputs(wires: Sequence[Wire], target: str, given: Collection[str]) -> list[str]:
    """The inputs of the network that `target` depends on and that are not `given`."""
    produced = producers(wires)
    read = {name for wire in needed(wires, [target], given) for name in wire.inputs} | {target}
    return sorted(name for name in read if name not in produced and name not in given)


def unreachable(wires: Sequence[Wire], target: str, given: Collection[str]) -> GraphError:
    """The error for a `target` that the `given` inputs do not reach."""
    missing = missing_inputs(wires, target, given)
    return GraphError(
        f"Variable {target!r} can't be computed: it needs {shorten(map(repr, missing))}, not given. "
        f"Received inputs: {shorten(map(repr, given)) or 'none'}"
    )


def last_uses(wires: Sequence[Wire]) -> dict[str, str]:
    """The last layer that reads each variable; for one nobody reads, the layer that produces it."""
    last = producers(wires)
    for wire in wires:
        last.update(dict.fromkeys(wire.inputs, wire.name))
    return last


def backward_graph(
    graph: Graph,
    wires: Sequence[Wire],
    der_outputs: Collection[str],
    wanted_vars: Collection[str] | None = None,
    wanted_params: Collection[str] | None = None,
) -> Graph:
    """The BP-reversed graph that carries derivatives of `der_outputs` to the wanted variables and parameters.

    Every layer f between the two gets a node df ("der_layer"), every variable x and parameter w a node
    dx, dw. What f reads, df reads too; where f read x, df writes dx. Where several writers of one
    derivative meet (fan-out, shared parameters, a seed on a variable that is also read), a summation node
    stands between. `None` wants everything.

    >>> wires = [Wire("f", ("x",), ("y",), ("w",)), Wire("g", ("y", "x"), ("z",), ("w",))]
    >>> back = backward_graph(forward_graph(wires), wires, ["z"])
    >>> sorted(back.predecessors(("sum_var", "x")))
    [('der_layer', 'f'), ('der_layer', 'g')]
    """
    useful = _carriers(wires, wanted_vars, wanted_params)
    carrying = _influencing(wires, der_outputs) & useful
    back = empty()
    writers: Counter[Node] = Counter(("var", name) for name in der_outputs if name in useful)
    running = []
    for wire in wires:
        reads = [("var", x) for x in wire.inputs if x in carrying]
        reads += [("param", w) for w in wire.params if wanted_params is None or w in wanted_params]
        if reads and not carrying.isdisjoint(wire.outputs):
            running.append((wire, reads))
            writers.update(reads)

    def write(source: Node, target: Node) -> None:
        kind, name = target
        end = (f"der_{kind}", name)
        if writers[target] > 1:
            back.add_edge((f"sum_{kind}", name), end)
            end = (f"sum_{kind}", name)
        back.add_edge(source, end)

    for name in der_outputs:
        if name in useful:
            write(("seed_var", name), ("var", name))
    for wire, reads in reversed(running):
        der_layer = ("der_layer", wire.name)
        back.add_node(der_layer)
        for output in wire.outputs:
            if output in carrying:
                back.add_edge(("der_var", output), der_layer)
        for node in graph.predecessors(("layer", wire.name)):
            back.add_edge(node, der_layer)
        for node in reads:
            write(der_layer, node)
    return back


def backward_order(back: Graph, forward_order: Mapping[str, int]) -> list[str]:
    """The layers of a BP-reversed graph in the order their derivatives are computed."""
    import networkx as nx

    def latest_first(node: Node) -> int:
        return -forward_order[node[1]] if node[0] == "der_layer" else -len(forward_order)

    nodes = nx.lexicographical_topological_sort(back, key=latest_first)
    return [name for kind, name in nodes if kind == "der_layer"]


def _influencing(wires: Sequence[Wire], der_outputs: Collection[str]) -> set[str]:
    """The variables that `der_outputs` depend on, themselves included."""
    names = set(der_outputs)
    for wire in reversed(wires):
        if not names.isdisjoint(wire.outputs):
            names.update(wire.inputs)
    return names


def _carriers(
    wires: Sequence[Wire], wanted_vars: Collection[str] | None, wanted_params: Collection[str] | None
) -> set[str]:
    """The variables whose derivative is wanted, or is needed for a wanted one upstream."""
    if wanted_vars is None:
        return {name for wire in wires for name in (*wire.inputs, *wire.outputs)}
    names = set(wanted_vars)
    for wire in wires:
        trains = (
            bool(wire.params) if wanted_params is None else not set(wanted_params).isdisjoint(wire.params)
        )
        if trains or not names.isdisjoint(wire.inputs):
            names.update(wire.outputs)
    return names
