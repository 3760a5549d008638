"""Building and editing: the part of DagNN that deals in names, never in arrays passing through."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any, Self

from . import graph
from .errors import DagnnError, GraphError, OptionError, ShapeError, unknown_name
from .geometry import NOTHING, ReceptiveField, Shape
from .graph import Graph, Wire
from .layers.layer import Layer, ParamSpec, check_fields
from .layers.placeholder import Placeholder
from .variables import Named, Node, Param, Var

Names = str | Iterable[str]


class Structure:
    """Layers, variables and parameters by name, and the operations that connect them.

    Every edit is checked as a whole before it happens: one that would make a cycle or a variable with
    two producers raises GraphError and changes nothing.
    """

    def __init__(self) -> None:
        self._nodes: dict[str, Node] = {}
        self._vars: dict[str, Var] = {}
        self._params: dict[str, Param] = {}
        self._producers: dict[str, str] = {}
        self.state: dict[str, dict[str, Any]] = {}
        self._cache: dict[Any, Any] = {}

    # ---- looking

    @property
    def layers(self) -> Named[Node]:
        """The layers by name, in the order they were added."""
        return Named("layer", self._nodes)

    @property
    def vars(self) -> Named[Var]:
        """The variables by name."""
        return Named("variable", self._vars)

    @property
    def params(self) -> Named[Param]:
        """The parameters by name."""
        return Named("parameter", self._params)

    @property
    def inputs(self) -> list[str]:
        """Names of the variables no layer produces."""
        return [name for name in self._vars if name not in self._producers]

    @property
    def outputs(self) -> list[str]:
        """Names of the variables no layer reads."""
        read = graph.consumers(node.wire for node in self._nodes.values())
        return [name for name in self._vars if not read[name]]

    def graph(self) -> Graph:
        """A networkx graph of ("layer" | "var" | "param", name) nodes; `slots` of an edge are positions."""
        return self._graph().copy()

    def backward_graph(self, der_outputs: Names | None = None, *, ders: Names | None = None) -> Graph:
        """The BP-reversed graph (MatConvNet manual, section 2.3.5) that backpropagates `der_outputs`.

        Its nodes are "der_layer", "der_var", "der_param", "seed_var" (a given output derivative) and,
        where a variable or parameter feeds several layers, the summation nodes "sum_var", "sum_param".
        By default it starts at all outputs and reaches everything; with `ders` it carries, as `eval`
        does, only what those variables and the trainable parameters need.
        """
        starts = self.outputs if der_outputs is None else self._known_vars(der_outputs)
        if ders is None:
            return graph.backward_graph(self._graph(), self._wires(), starts)
        trainable = {name for name, param in self._params.items() if param.trainable}
        return graph.backward_graph(self._graph(), self._wires(), starts, self._known_vars(ders), trainable)

    def var_shapes(self, input_shapes: Mapping[str, Shape]) -> dict[str, Shape]:
        """The shape of every variable that inputs of `input_shapes` reach; nothing is computed.

        >>> import dagnn
        >>> net = dagnn.DagNN()
        >>> net.add_layer("pool", dagnn.Pooling(pool_size=2, stride=2), "x", "y")
        >>> net.var_shapes({"x": (1, 3, 32, 32)})["y"]
        (1, 3, 16, 16)
        """
        self._known_vars(input_shapes)
        shapes = {name: tuple(shape) for name, shape in input_shapes.items()}
        running, _ = graph.runnable(self._wires(), shapes)
        for wire in running:
            layer = self._nodes[wire.name].layer
            if isinstance(layer, Placeholder) or not shapes.keys() >= set(wire.inputs):
                continue  # nobody knows what comes out of a class that isn't known
            given = [shapes[name] for name in wire.inputs]
            try:
                found = layer.output_shapes(given)
                if len(found) != len(wire.outputs):
                    raise ShapeError(
                        f"output_shapes gave {len(found)} shapes, {len(wire.outputs)} are connected"
                    )
                for name, shape in zip(wire.outputs, found, strict=True):
                    shapes.setdefault(name, tuple(shape))
            except DagnnError as error:
                received = "; ".join(f"{n} {s}" for n, s in zip(wire.inputs, given, strict=True))
                error.add_context(f"{type(layer).__name__} {wire.name!r}", received)
                raise
        return shapes

    def receptive_fields(self, of: str) -> dict[str, ReceptiveField | None]:
        """For every variable computed from `of`: what one pixel of it sees of `of`; None if unbounded."""
        (of,) = self._known_vars(of)
        fields: dict[str, ReceptiveField | None] = {of: ReceptiveField()}
        for wire in self._wires():
            layer = self._nodes[wire.name].layer
            own = layer.receptive_fields(len(wire.inputs))
            if len(own) != len(wire.inputs):
                raise ShapeError(
                    f"{type(layer).__name__} {wire.name!r} takes {len(own)} inputs, "
                    f"{len(wire.inputs)} are connected"
                )
            through = [
                earlier.then(field) if (earlier := fields[name]) and field else None
                for name, field in zip(wire.inputs, own, strict=True)
                if name in fields and field != NOTHING
            ]
            if not through:
                continue
            seen = through[0]
            for field in through[1:]:
                seen = seen.union(field) if seen and field and seen.moves_like(field) else None
            fields.update((name, seen) for name in wire.outputs if name != of)
        return fields

    # ---- editing

    def add_layer(
        self, name: str, layer: Layer, inputs: Names, outputs: Names, params: Names | None = None
    ) -> None:
        """Add `layer` under `name`, reading `inputs`, writing `outputs`; variables appear as they are named.

        Parameters are called `<name>_<role>` unless `params` names them; naming one that exists shares it.
        """
        if name in self._nodes:
            raise GraphError(f"There is already a layer {name!r}")
        node = self._node(name, layer, inputs, outputs, params)
        if self._clashes(node.wire):
            self._rewire({**self._nodes, name: node})
            return
        self._nodes[name] = node
        self._register(node)
        self._changed()

    def remove_layer(self, names: Names) -> None:
        """Remove layers, and with them the variables and parameters only they used."""
        gone = {self.layers[name].name for name in as_names(names)}
        self._rewire({name: node for name, node in self._nodes.items() if name not in gone})

    def replace_layer(self, name: str, layer: Layer, params: Names | None = None) -> None:
        """Put `layer` in the place of layer `name`; parameters are kept where their number agrees."""
        old = self.layers[name]
        if params is None and len(layer.params) == len(old.params):
            params = old.params
        self._rewire({**self._nodes, name: self._node(name, layer, old.inputs, old.outputs, params)})

    def set_layer_inputs(self, name: str, inputs: Names) -> None:
        """Let layer `name` read `inputs`."""
        old = self.layers[name]
        self._rewire({**self._nodes, name: self._node(name, old.layer, inputs, old.outputs, old.params)})

    def set_layer_outputs(self, name: str, outputs: Names) -> None:
        """Let layer `name` write `outputs`."""
        old = self.layers[name]
        self._rewire({**self._nodes, name: self._node(name, old.layer, old.inputs, outputs, old.params)})

    def set_layer_params(self, name: str, params: Names) -> None:
        """Let layer `name` use the parameters `params`; naming an existing one shares it."""
        old = self.layers[name]
        self._rewire({**self._nodes, name: self._node(name, old.layer, old.inputs, old.outputs, params)})

    def rename_layer(self, old: str, new: str) -> None:
        """Give layer `old` the name `new`; its place, variables and parameters stay."""
        self._check_rename("layer", old, new, self._nodes)
        self.state = _renamed(self.state, old, new)
        self._rename("name", old, new)

    def rename_var(self, old: str, new: str) -> None:
        """Give variable `old` the name `new` wherever it is used."""
        self._check_rename("variable", old, new, self._vars)
        self._vars[old].name = new
        _become(self._vars, _renamed(self._vars, old, new))
        self._rename("inputs", old, new)
        self._rename("outputs", old, new)

    def rename_param(self, old: str, new: str) -> None:
        """Give parameter `old` the name `new` wherever it is used."""
        self._check_rename("parameter", old, new, self._params)
        self._params[old].name = new
        _become(self._params, _renamed(self._params, old, new))
        self._rename("params", old, new)

    def insert(
        self, name: str, layer: Layer, after: str, output: str | None = None, params: Names | None = None
    ) -> None:
        """Insert `layer` behind variable `after`: whoever read `after` reads its `output` (default: `name`).

        >>> import dagnn
        >>> net = dagnn.DagNN()
        >>> net.add_layer("sum", dagnn.Sum(), ["a", "b"], "y")
        >>> net.insert("relu", dagnn.ReLU(), after="a", output="a1")
        >>> net.layers["sum"].inputs
        ['a1', 'b']
        """
        (after,) = self._known_vars(after)
        output = output or name
        if output in self._vars or name in self._nodes:
            raise GraphError(f"Variable {output!r} or layer {name!r} exists already: choose another name")
        nodes = {}
        for other in self._nodes.values():
            inputs = [output if n == after else n for n in other.inputs]
            nodes[other.name] = self._node(other.name, other.layer, inputs, other.outputs, other.params)
        self._rewire({**nodes, name: self._node(name, layer, after, output, params)})

    def splice(self, name: str) -> None:
        """Take layer `name` (one input, one output) out and join its ends.

        The readers of its output read its input instead; at the end of the net, the input becomes an output.
        """
        old = self.layers[name]
        if len(old.inputs) != 1 or len(old.outputs) != 1:
            raise GraphError(
                f"splice takes out a layer with one input and one output. Received: {name!r} with "
                f"{len(old.inputs)} and {len(old.outputs)}"
            )
        nodes = {}
        for other in self._nodes.values():
            if other is not old:
                inputs = [old.inputs[0] if n == old.outputs[0] else n for n in other.inputs]
                nodes[other.name] = self._node(other.name, other.layer, inputs, other.outputs, other.params)
        self._rewire(nodes)

    def freeze(self, pattern: Names) -> list[str]:
        """Stop training the parameters whose names match `pattern` (shell wildcards); returns their names."""
        return self._set_trainable(pattern, False)

    def unfreeze(self, pattern: Names) -> list[str]:
        """Train the parameters whose names match `pattern` again; returns their names."""
        return self._set_trainable(pattern, True)

    def _set_trainable(self, patterns: Names, flag: bool) -> list[str]:
        chosen = []
        for pattern in as_names(patterns):
            matching = [name for name in self._params if fnmatchcase(name, pattern)]
            if not matching:
                raise unknown_name("parameter", pattern, self._params)
            chosen += [name for name in matching if name not in chosen]
        for name in chosen:
            self._params[name].trainable = flag
        return chosen

    def subnet(self, outputs: Names | None = None, inputs: Names | None = None) -> Self:
        """A copy of the part that computes `outputs` from `inputs`: any variables, by default the net's.

        >>> import dagnn
        >>> net = dagnn.DagNN()
        >>> net.add_layer("f", dagnn.ReLU(), "x0", "x1")
        >>> net.add_layer("g", dagnn.ReLU(), "x1", "x2")
        >>> net.add_layer("h", dagnn.ReLU(), "x2", "x3")
        >>> list(net.subnet(outputs="x3", inputs="x1").layers)
        ['g', 'h']
        """
        targets = self.outputs if outputs is None else self._known_vars(outputs)
        given = self.inputs if inputs is None else self._known_vars(inputs)
        wires = self._wires()
        if inputs is not None:
            _, available = graph.runnable(wires, given)
            for target in targets:
                if target not in available:
                    raise graph.unreachable(wires, target, given)
        chosen = {wire.name for wire in graph.needed(wires, targets, given)}
        net = self._blank()
        for node in self._nodes.values():
            if node.name in chosen:
                net.add_layer(node.name, copy.deepcopy(node.layer), node.inputs, node.outputs, node.params)
                net.state[node.name].update(copy.deepcopy(self.state[node.name]))
        _become(net._vars, {name: net._vars[name] for name in self._vars if name in net._vars})
        _become(net._params, {name: net._params[name] for name in self._params if name in net._params})
        for name, var in net._vars.items():
            var.precious = self._vars[name].precious
        for name, param in net._params.items():
            param._copy_from(self._params[name])
        return net

    # ---- inside

    def _blank(self) -> Self:
        """An empty net with this one's settings."""
        return type(self)()

    def _node(
        self, name: str, layer: Layer, inputs: Names, outputs: Names, params: Names | None = None
    ) -> Node:
        _check_name(name)
        if not isinstance(layer, Layer):
            hint = f": did you mean {layer.__name__}(...)?" if isinstance(layer, type) else ""
            raise OptionError(f"Layer {name!r} must be a dagnn.Layer object. Received: {layer!r}{hint}")
        check_fields(layer)
        specs = layer.params
        param_names = [f"{name}_{s.role}" for s in specs] if params is None else as_names(params)
        if len(param_names) != len(specs) and not isinstance(layer, Placeholder):
            roles = ", ".join(spec.role for spec in specs) or "none"
            raise GraphError(
                f"{type(layer).__name__} {name!r} has {len(specs)} parameters ({roles}). "
                f"Received: {param_names}"
            )
        output_names = as_names(outputs)
        if not output_names:
            raise GraphError(f"Layer {name!r} needs at least one output")
        wire = Wire(name, tuple(as_names(inputs)), tuple(output_names), tuple(param_names))
        return Node(wire, layer)

    def _clashes(self, wire: Wire) -> bool:
        """Whether adding `wire` could make a cycle or a second producer: most layers only add new outputs."""
        outputs = set(wire.outputs)
        if len(outputs) < len(wire.outputs) or not outputs.isdisjoint(self._producers):
            return True
        if outputs.isdisjoint(self._vars) and outputs.isdisjoint(wire.inputs):
            return False
        ancestors, left = set[str](), list(wire.inputs)
        while left:
            name = left.pop()
            if name in outputs:
                return True
            if name in self._producers and name not in ancestors:
                left += self._nodes[self._producers[name]].wire.inputs
            ancestors.add(name)
        return False

    def _register(self, node: Node) -> None:
        for name in (*node.inputs, *node.outputs):
            if name not in self._vars:
                self._vars[name] = Var(name, self._changed)
        specs = node.layer.params or [ParamSpec("value")] * len(node.params)
        for name, spec in zip(node.params, specs, strict=True):
            if name not in self._params:
                self._params[name] = self._new_param(name, spec)
        self._producers.update(dict.fromkeys(node.outputs, node.name))
        self.state.setdefault(node.name, {})

    def _new_param(self, name: str, spec: ParamSpec) -> Param:
        return Param(name, spec, self._changed)

    def _rewire(self, nodes: dict[str, Node]) -> None:
        """Replace the structure by `nodes`, if it is one; otherwise raise and change nothing."""
        new_graph = graph.forward_graph(node.wire for node in nodes.values())
        order = graph.layer_order(new_graph)
        used_vars = {name for node in nodes.values() for name in (*node.inputs, *node.outputs)}
        used_params = {name for node in nodes.values() for name in node.params}
        _become(self._vars, {name: var for name, var in self._vars.items() if name in used_vars})
        _become(self._params, {name: param for name, param in self._params.items() if name in used_params})
        self.state = {name: state for name, state in self.state.items() if name in nodes}
        _become(self._nodes, nodes)
        self._producers = {}
        for node in nodes.values():
            self._register(node)
        self._changed()
        self._cache |= {"graph": new_graph, "wires": [nodes[name].wire for name in order]}

    def _rename(self, field: str, old: str, new: str) -> None:
        """Rewrite one field of all wires; the structure stays what it was."""
        for node in list(self._nodes.values()):
            names: Any = getattr(node.wire, field)
            if field == "name":
                changed: Any = new if names == old else names
            else:
                changed = tuple(new if name == old else name for name in names)
            self._nodes[node.name] = Node(replace(node.wire, **{field: changed}), node.layer)
        if field == "name":
            _become(self._nodes, _renamed(self._nodes, old, new))
        self._producers = graph.producers(node.wire for node in self._nodes.values())
        self._changed()

    def _check_rename(self, kind: str, old: str, new: str, there: Mapping[str, Any]) -> None:
        if old not in there:
            raise unknown_name(kind, old, there)
        _check_name(new)
        if new in there:
            raise GraphError(f"There is already a {kind} {new!r}")

    def _known_vars(self, names: Iterable[str]) -> list[str]:
        return [self.vars[name].name for name in as_names(names)]

    def _graph(self) -> Graph:
        if "graph" not in self._cache:
            self._cache["graph"] = graph.forward_graph(node.wire for node in self._nodes.values())
        return self._cache["graph"]

    def _wires(self) -> list[Wire]:
        """The layers in order of execution."""
        if "wires" not in self._cache:
            self._cache["wires"] = [self._nodes[name].wire for name in graph.layer_order(self._graph())]
        return self._cache["wires"]

    def _changed(self) -> None:
        if captures := self._cache.get("captures"):
            captures.take_back()  # arrays of graphs don't outlive these
        self._cache.clear()


def as_names(names: Names) -> list[str]:
    """One name or an ordered collection of them as a list."""
    if isinstance(names, str):
        names = [names]
    if isinstance(names, set | frozenset) or not isinstance(names, Iterable):
        raise OptionError(f"Names come as a string or a list of strings. Received: {names!r}")
    names = list(names)
    for name in names:
        _check_name(name)
    return names


def _check_name(name: Any) -> None:
    if not isinstance(name, str) or not name or not name.isprintable():
        raise OptionError(f"A name is a non-empty, printable string. Received: {name!r}")


def _become(items: dict[str, Any], others: Mapping[str, Any]) -> None:
    """Change a dict in place, so that views of it that users hold stay true."""
    others = dict(others)
    items.clear()
    items.update(others)


def _renamed(items: dict[str, Any], old: str, new: str) -> dict[str, Any]:
    return {new if name == old else name: item for name, item in items.items()}
