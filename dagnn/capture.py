"""Evaluations as graphs: what a Plan has the device do, recorded once and then launched as one.

The first evaluation with inputs of some shapes and types runs as always: it compiles, plans and shows what
layers remember. The second is recorded, and it and those after it are launches. A graph has arrays of its
own, into which inputs and states are copied, and out of which results are. It reads parameters where they
are, and is recorded anew where these arrays, or the options of a layer, are others than they were.
"""

from __future__ import annotations

import logging
from collections import Counter, OrderedDict
from collections.abc import Collection, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from .capturable import Uncapturable, check, check_labels, layers_of, reason
from .layers.layer import Context, Layer
from .plan import Arrays, Form, Plan, Request, Step
from .variables import Param

if TYPE_CHECKING:
    from .backends.services import Recorder
    from .net import DagNN

LOG = logging.getLogger("dagnn")
MOST_GRAPHS = 8
"""So many are kept: those used last."""
MOST_SEEN = 64
"""Of so many kinds of evaluations it is remembered that they were seen."""
PATIENCE = 2
"""A parameter that was replaced so often is copied into the graph, which then needn't be recorded anew."""

State = dict[str, Any]


@dataclass(frozen=True)
class Results:
    """What an evaluation leaves: values and derivatives of variables, derivatives of parameters."""

    values: Arrays
    ders: Arrays
    ders_of_params: Arrays

    def copied(self) -> Results:
        """The same in arrays of their own."""
        kinds = self.values, self.ders, self.ders_of_params
        return Results(*({name: a.copy(order="K") for name, a in kind.items()} for kind in kinds))


class Update(Protocol):
    """What a graph does with the results of its evaluation, at its end: a step of a solver."""

    def record(self, results: Results) -> None:
        """Do it; that is recorded."""

    def held(self) -> list[Param]:
        """Parameters that it moves, and whose arrays somebody else holds now."""

    def fits(self) -> bool:
        """Whether what was recorded still is what there is to do, but for numbers."""

    def ready(self) -> None:
        """Bring the numbers of the next launch to the device."""


class Updates(Protocol):
    """Makes updates."""

    def begin(self, derived: Collection[str]) -> Update:
        """That of a graph to come, which leaves derivatives of these parameters."""


@dataclass
class Seen:
    """An evaluation that ran as always, what it takes to record those like it, and their graph."""

    plan: Plan
    forms: Mapping[str, Form]
    states: Mapping[str, Mapping[str, Form]]
    options: list[tuple[Layer, dict[str, Any]]]
    graph: Graph | None = None
    derived: frozenset[str] | None = None  # parameters with a derivative, once all is compiled
    replaced: Counter[Param] = field(default_factory=Counter)
    numbers: dict[tuple[str, float], Any] = field(default_factory=dict)  # seeds that were numbers

    def seed(self, net: DagNN, name: str, der: Any) -> Any:
        """The derivative given for a variable, as an array; for the same number the same one."""
        if not isinstance(der, int | float):
            return net._seed(name, der, self.forms)
        if (name, der) not in self.numbers:
            self.numbers = {key: seed for key, seed in self.numbers.items() if key[0] != name}
            self.numbers[name, der] = net._seed(name, der, self.forms)
        return self.numbers[name, der]

    def holds(self, plan: Plan, states: Mapping[str, State]) -> bool:
        """Whether Plan, options of layers, and the kind of what these remember are as they were."""
        return (
            plan is self.plan
            and all(_same(vars(layer), options) for layer, options in self.options)
            and all(
                _fits(step, states.get(step.name, {}), self.states.get(step.name, {})) for step in plan.steps
            )
        )


class Captures:
    """What a net has captured, by what was asked for and the shapes and types of the inputs."""

    def __init__(self, net: DagNN) -> None:
        self._net = net
        self._recorder = net.backend.recorder()
        self._seen: OrderedDict[Any, Seen] = OrderedDict()
        self._refused: set[Request] = set()
        self._told: set[str] = set()

    def replay(
        self,
        plan: Plan,
        request: Request,
        inputs: Mapping[str, Any],
        values: Arrays,
        der_outputs: Mapping[str, Any] | None,
        budget: int | None,
    ) -> Results | None:
        """What the evaluation leaves, by a graph; None where it has to run as always.

        `values` are `inputs` on the device, which stay as they are. LabelError where a label cannot be.
        """
        net = self._net
        if self._recorder is None or request in self._refused:
            return None
        if budget is not None:
            self._tell("memory_budget makes again what a graph would keep")
            return None
        key = self._key(request, {name: (value.shape, value.dtype) for name, value in values.items()})
        seen = self._seen.get(key)
        if seen is None or not seen.holds(plan, net.state):
            return None
        trusted = request.der_outputs if net._borrows else frozenset()
        check_labels(plan, seen.forms, inputs, net.backend, trusted)
        seeds = {name: seen.seed(net, name, der) for name, der in (der_outputs or {}).items()}
        self._seen.move_to_end(key)
        if (graph := self._graph(seen, request, values, seeds)) is None:
            return None
        changed = {name: seed for name, seed in seeds.items() if seed is not graph.numbers.get(name)}
        graph.numbers = {name: seed for (name, _), seed in seen.numbers.items()}
        return graph.launch(values, changed, net.state, net.evaluation, lend=net._borrows)

    def saw(self, plan: Plan, request: Request, forms: Mapping[str, Form]) -> None:
        """Take note of an evaluation that ran as always, of variables of these shapes and types."""
        if self._recorder is None or request in self._refused:
            return
        try:
            check(plan, request)
            states = {step.name: _forms(step, self._net.state.get(step.name, {})) for step in plan.steps}
        except Uncapturable as why:
            self._refuse(request, str(why))
            return
        seen = self._seen.get(key := self._key(request, forms))
        if seen is not None and seen.holds(plan, self._net.state):
            return
        options = [(layer, dict(vars(layer))) for step in plan.steps for layer in layers_of(step)]
        self._seen.pop(key, None)
        self._seen[key] = Seen(plan, forms, {name: forms for name, forms in states.items() if forms}, options)
        if len(self._seen) > MOST_SEEN:
            self._seen.popitem(last=False)

    def take_back(self) -> None:
        """Put copies where the net has arrays of graphs."""
        own = {id(array) for seen in self._seen.values() if seen.graph for array in seen.graph.lent}

        def freed(value: Any) -> Any:
            if id(value) not in own:
                return value
            with self._net.backend.evaluation():  # whose device the copy is on, too
                return value.copy(order="K")

        for var in self._net.vars.values():
            var._value, var._der = freed(var._value), freed(var._der)
        for param in self._net.params.values():
            param.der = freed(param.der)
        for state in self._net.state.values():
            state.update({key: freed(value) for key, value in state.items()})

    def _key(self, request: Request, forms: Mapping[str, Form]) -> Any:
        given = frozenset((name, *forms[name]) for name in request.given)
        return request, given, self._net.seed, self._net.dtype, self._net._updates

    def _graph(self, seen: Seen, request: Request, values: Arrays, seeds: Arrays) -> Graph | None:
        """The graph for such evaluations, recorded if there is none that fits; None where that fails."""
        assert self._recorder is not None
        if seen.graph is not None and not seen.graph.fits(seen.replaced):
            seen.graph = None
        if seen.graph is None:
            copied = {param for param, times in seen.replaced.items() if times >= PATIENCE}
            try:
                seen.graph = Graph(self._net, self._recorder, seen, values, seeds, copied)
            except Exception as error:  # of whatever kind; what isn't about recording comes again without
                self._refuse(request, str(error) if isinstance(error, Uncapturable) else reason(error))
            for one in [one for one in self._seen.values() if one.graph is not None][:-MOST_GRAPHS]:
                one.graph = None
        return seen.graph

    def _refuse(self, request: Request, reason: str) -> None:
        """Never try again."""
        self._refused.add(request)
        self._tell(reason)

    def _tell(self, reason: str) -> None:
        """Say once why there is no graph."""
        if reason not in self._told:
            LOG.warning("Evaluations run without CUDA graphs: %s", reason)
            self._told.add(reason)


class Graph:
    """One evaluation, recorded, and the arrays that it reads and writes."""

    def __init__(
        self,
        net: DagNN,
        recorder: Recorder,
        seen: Seen,
        values: Arrays,
        seeds: Arrays,
        copied: Collection[Param],
    ) -> None:
        self.plan, self.backend = seen.plan, net.backend
        self.inputs = {name: value.copy(order="K") for name, value in values.items()}
        self.seeds = {name: der.copy(order="K") for name, der in seeds.items() if name in seen.plan.seeds}
        self.states = {
            step: {key: self.backend.zeros(*form) for key, form in forms.items()}
            for step, forms in seen.states.items()
        }
        self.numbers: Arrays = {}  # seeds that it has already, as nobody else has these arrays
        self.evaluation = recorder.live(net.evaluation)
        self.copies = {p: p._value.copy(order="K") for p in self.plan.params if p in copied}
        self.update: Update | None = None
        self._backward = bool(seeds)
        self._changed: list[tuple[str, str]]  # what layers write in their states
        with _in_place_of(self.copies):
            if seen.derived is None:  # kernels for numbers that are arrays now: nothing is compiled later
                self._run(net)
                seen.derived = frozenset(self.results.ders_of_params)
            if net._updates is not None and self._backward and not copied:
                self.update = net._updates.begin(seen.derived)
        self.versions = {param: param.version for param in self.plan.params}
        self._place = recorder.place  # to hold parameters would keep solvers from moving them in place
        self.params = {p: recorder.place(p._value) for p in self.plan.params if p not in copied}
        self.made = [] if seeds else [recorder.place(array) for array in _made(self.plan)]
        with _in_place_of(self.copies):
            self._launch = recorder.record(lambda: self._run(net, self.update))

    def _run(self, net: DagNN, update: Update | None = None) -> None:
        plan, values, states = self.plan, dict(self.inputs), dict[str, State]()
        self._changed = []

        def context(step: Step) -> Context:
            states[step.name] = dict(self.states.get(step.name, {}))
            return net._context(step, self.evaluation, states[step.name])

        ders: Mapping[str, Any] = {}
        ders_of_params: Mapping[str, Any] = {}
        with plan.copies.anew() if plan.copies and self._backward else nullcontext():
            contexts, forms = plan.forward(values, context)
            if self._backward:
                ders, ders_of_params = plan.backward(dict(self.seeds), contexts, forms)
        for step in plan.steps:
            self._remember(step, states[step.name])
        kept = {name: values[name] for name in plan.kept_values if name not in self.inputs}
        self.results = Results(
            kept,
            {name: ders[name] for name in plan.kept_ders if ders.get(name) is not None},
            dict(ders_of_params),
        )
        if update is not None:
            update.record(self.results)

    def _remember(self, step: Step, state: State) -> None:
        """Write into the graph's own states what the layer has in its state now."""
        own = self.states.get(step.name, {})
        for key, value in state.items():
            if key not in own or not self.backend.owns(value) or _form(value) != _form(own[key]):
                raise Uncapturable(f"{step.where} keeps in its state {key!r} what isn't always of one kind")
            if value is not own[key]:
                own[key][...] = value
                self._changed.append((step.name, key))

    def fits(self, replaced: Counter[Param]) -> bool:
        """Whether the arrays are still those that it reads; counts parameters of which they aren't."""
        others = [
            param
            for param, place in self.params.items()
            if param.version != self.versions[param] and self._place(param._value) != place
        ]
        if self.update is not None:
            others += self.update.held()
        replaced.update(others)
        self.versions.update((param, param.version) for param in self.params)
        made = [] if self._backward else [self._place(array) for array in _made(self.plan)]
        return not others and made == self.made and (self.update is None or self.update.fits())

    @property
    def lent(self) -> Iterator[Any]:
        """The arrays that it may have lent."""
        for arrays in (*vars(self.results).values(), *self.states.values()):
            yield from arrays.values()

    def launch(
        self, values: Arrays, seeds: Arrays, states: Mapping[str, State], evaluation: int, lend: bool
    ) -> Results:
        """Evaluate `values` with `seeds` that are new; layers remember in `states`.

        With `lend`, results are in the graph's own arrays.
        """
        for name, array in self.inputs.items():
            array[...] = values[name]
        for name in self.seeds.keys() & seeds.keys():
            self.seeds[name][...] = seeds[name]
        for param, array in self.copies.items():
            if param.version != self.versions[param]:
                array[...] = param._value
                self.versions[param] = param.version
        self.evaluation.set(evaluation)
        self._read(states)
        if self.update is not None:
            self.update.ready()
            self.versions.update((param, param.version) for param in self.params)  # moved where they are
        self._launch()
        for name, key in self._changed:
            own = self.states[name][key]
            states[name][key] = own if lend else own.copy()
        results = self.results if lend else self.results.copied()
        given = {name: values[name] for name in self.plan.kept_values if name in values}
        return Results(results.values | given, dict(results.ders), dict(results.ders_of_params))

    def _read(self, states: Mapping[str, State]) -> None:
        """Copy what layers remember, where it isn't lent by this graph."""
        for step in self.plan.steps:
            for key, array in self.states.get(step.name, {}).items():
                value = (states[step.name] or step.layer.initial_state)[key]
                if value is not array:
                    array[...] = value if isinstance(value, int | float) else self.backend.asarray(value)


@contextmanager
def borrowing(net: DagNN, allowed: bool = True, updates: Updates | None = None) -> Iterator[None]:
    """Inside of it, what evaluations leave may be in arrays that the next one writes over.

    That saves copies. Whoever borrows looks at the values of der_outputs: nan may be a label that cannot be.
    Graphs of evaluations with derivatives end with what `updates` makes.
    """
    net._borrows, net._updates = allowed, updates
    try:
        yield
    finally:
        net._borrows, net._updates = False, None
        if allowed and (captures := net._cache.get("captures")):
            captures.take_back()


# ---- what may change


def _made(plan: Plan) -> list[Any]:
    """What layers read instead of parameters, made now if these changed."""
    folded = [step.fused.folded() for step in plan.steps if step.fused and step.fused.folded]
    copies = [[p._value for p in step.params if not isinstance(p, Param)] for step in plan.steps]
    return [array for arrays in (*folded, *copies) for array in arrays]


@contextmanager
def _in_place_of(copies: Mapping[Param, Any]) -> Iterator[None]:
    """Inside of it, parameters have their copies as values."""
    values = {param: param._value for param in copies}
    try:
        for param, copy in copies.items():
            param._value = copy
        yield
    finally:
        for param, value in values.items():
            param._value = value


def _same(options: dict[str, Any], others: dict[str, Any]) -> bool:
    try:
        return options == others
    except ValueError:  # arrays, of which one was replaced
        return False


def _form(value: Any) -> Form:
    return value.shape, value.dtype


def _forms(step: Step, state: State) -> dict[str, Form]:
    """Shapes and types of what a layer remembers."""
    forms: dict[str, Form] = {}
    for key, value in state.items():
        if isinstance(value, int | float):
            forms[key] = (), "int64" if isinstance(value, int) else "float64"
        elif hasattr(value, "shape") and hasattr(value, "dtype"):
            forms[key] = _form(value)
        else:
            raise Uncapturable(f"{step.where} keeps in its state a {type(value).__name__}")
    return forms


def _fits(step: Step, state: State, forms: Mapping[str, Form]) -> bool:
    """Whether what a layer remembers has these names and shapes."""
    if not state and forms:
        return forms.keys() == step.layer.initial_state.keys()
    return state.keys() == forms.keys() and all(
        getattr(value, "shape", ()) == forms[key][0] for key, value in state.items()
    )
