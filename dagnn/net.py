"""DagNN: the network, and its evaluation."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from functools import partial
from os import PathLike
from typing import TYPE_CHECKING, Any, Self

import numpy as np

from . import backends
from .dtypes import floating, is_floating
from .errors import DTypeError, GraphError, OptionError, ShapeError, shortage_explained, shorten
from .geometry import Shape
from .keeping import attach, settled
from .layers.layer import Context, ParamSpec
from .nbytes import as_bytes
from .overwriting import derivatives_in_place, values_in_place
from .plan import Arrays, Form, Plan, Request, Step, owner, shape_and_type
from .planning import make_plan
from .precision import FULL, Copies, mixed
from .rewrites import apart, fuse, outdated
from .settings import Settings
from .structure import Names
from .variables import RELEASED, Param

if TYPE_CHECKING:
    from .backends.base import Array, Backend
    from .capture import Captures, Updates
    from .profile import Profile
    from .simplenn import SimpleNN

MOST_PLANS = 16  # different requests remembered at once


class DagNN(Settings):
    """A neural network that is a directed acyclic graph of layers.

    >>> import numpy as np, dagnn
    >>> net = dagnn.DagNN()
    >>> net.add_layer("conv", dagnn.Conv(size=(8, 1, 3, 3), pad=1), "x", "c")
    >>> net.add_layer("relu", dagnn.ReLU(), "c", "r")
    >>> net.add_layer("fc", dagnn.Conv(size=(10, 8, 8, 8)), "r", "scores")
    >>> net.add_layer("loss", dagnn.Loss(), ["scores", "label"], "objective")
    >>> net.init_params(seed=0)
    >>> x, label = np.ones((2, 1, 8, 8), "float32"), np.array([3, 7])
    >>> out = net.eval({"x": x, "label": label}, {"objective": 1}, ders=["x"])
    >>> net.vars["x"].der.shape, net.params["fc_filters"].der.shape
    ((2, 1, 8, 8), (10, 8, 8, 8))

    Parameters
    ----------
    backend, options : what it runs on: "numpy", or "cupy" with options such as `device=1`; see `move`.

    Attributes
    ----------
    backend : what it runs on.
    conserve_memory : let go of every array nobody needs any more (default True).
    precision : "float16" or "bfloat16", for most layers to compute in (default None: all in one type).
    accumulate_param_ders : add parameter derivatives to those already there (default False).
    parameter_server : an object whose `push(name, der)` takes the parameter derivatives instead of `der`.
    hold_on : don't push yet; with `accumulate_param_ders`, sub-batches add up first (default False).
    meta : free information about the net, stored with it.
    seed, evaluation : together with a layer's name the key of its random numbers; `evaluation` counts.
    watch : makes of each Plan the one that runs: `net.profile` looks on through it (default None).
    state : per layer, what survives evaluations (a loss's average, a frozen dropout mask).
    """

    def __init__(self, backend: str | Backend = "numpy", **options: Any) -> None:
        super().__init__()
        self.backend = backends.get(backend, **options)
        self.watch: Callable[[Plan], Plan] | None = None
        self._borrows = False  # whether evaluations may leave the arrays of graphs; see `capture.borrowing`
        self._updates: Updates | None = None  # what their graphs end with
        self.accumulate_param_ders = False
        self.parameter_server: Any = None
        self.hold_on = False
        self.meta: dict[str, Any] = {}
        self.seed = 0
        self.evaluation = 0

    # ---- evaluation

    def eval(
        self,
        inputs: Mapping[str, Any],
        der_outputs: Mapping[str, Any] | None = None,
        *,
        outputs: Names | None = None,
        keep: Names = (),
        ders: Names = (),
        memory_budget: int | str | None = None,
    ) -> dict[str, Array]:
        """Run the net forward and, if `der_outputs` is given, backward.

        Parameters
        ----------
        inputs : arrays by variable name. Some suffice: what they don't reach isn't run. A variable in
            the middle of the net may be given too; then what produces it isn't run.
        der_outputs : derivatives of z with respect to variables (mostly outputs, but any will do): arrays
            of their shapes, or a number for a variable of one element. z = sum <der_output, variable>.
        outputs : names of the variables to compute; default: all outputs of the net that can be.
        keep : names of further variables to compute and keep.
        ders : names of the variables, inputs too, whose derivative is wanted.
        memory_budget : the most memory to take, in bytes or as "2GB", "512MiB". The evaluation then makes
            again in backward what it can't keep from forward, with the same results. It counts all that it
            allocates: values, derivatives of variables and parameters, what layers save, kernels' own
            needs (by estimate); not inputs, parameters and `net.state`. Derivatives of parameters from
            earlier evaluations are forgotten first, unless they accumulate. The first evaluation with
            inputs so large looks at all sizes, which takes as long as a forward evaluation.

        Returns
        -------
        The requested outputs by name. Values and derivatives are in `net.vars`, parameter derivatives in
        `net.params[...].der`.

        Raises
        ------
        MemoryBudgetError : not with this budget; the message says what is needed at least.
        OutOfMemoryError : there was no memory for an array; the message says for what and what helps.
        """
        budget = None if memory_budget is None else as_bytes(memory_budget)
        request = self._request(inputs, der_outputs, outputs, keep, ders)
        plan = self._plan(request)
        self._check_params(plan)
        self._clear_vars()
        self.evaluation += 1
        context: Callable[[Step], Context] = self._context
        before = captures = None
        with self.backend.evaluation(), shortage_explained(self.backend.memory_use):
            values = {name: self._moved_in(name, value) for name, value in inputs.items()}
            if self.capture and self.watch is None:
                captures = self._captures()
                if left := captures.replay(plan, request, inputs, values, der_outputs, budget):
                    self._keep_values(plan, left.values)
                    if der_outputs:
                        self._keep_ders(plan, left.ders, left.ders_of_params)
                    return {name: left.values[name] for name in plan.outputs}
            plan = plan if budget is None else self._within(budget, plan, values)
            plan = plan if self.watch is None else self.watch(plan)
            if budget is not None:
                from .recompute import Replay

                replay = Replay(plan, values, self._context, self.backend)
                context, before = replay.first, replay.before
            contexts, forms = plan.forward(values, context)
            self._keep_values(plan, values)
            if der_outputs:
                self._forget_ders()
                seeds = {name: self._seed(name, der, forms) for name, der in der_outputs.items()}
                useful = {name: seeds[name] for name in seeds if name in plan.seeds}
                self._keep_ders(plan, *_apart(plan, seeds, *plan.backward(useful, contexts, forms, before)))
            if captures is not None and budget is None:
                captures.saw(plan, request, forms)
        return {name: values[name] for name in plan.outputs}

    def _request(
        self,
        inputs: Mapping[str, Any],
        der_outputs: Mapping[str, Any] | None,
        outputs: Names | None,
        keep: Names,
        ders: Names,
    ) -> Request:
        for what, given in (("inputs", inputs), ("der_outputs", der_outputs or {})):
            if not isinstance(given, Mapping):
                raise OptionError(
                    f"{what} is a mapping {{variable: array}}. Received: {type(given).__name__}"
                )
        if ders and not der_outputs:
            raise OptionError(f"ders={ders!r} needs der_outputs: derivatives of what?")
        return Request(
            self._mode,
            frozenset(self._known_vars(inputs)),
            None if outputs is None else tuple(dict.fromkeys(self._known_vars(outputs))),
            frozenset(self._known_vars(der_outputs or ())),
            frozenset(self._known_vars(keep)),
            frozenset(self._known_vars(ders)),
        )

    def _plan(self, request: Request) -> Plan:
        plan = self._cache.get(request)
        if plan is None or outdated(plan):
            wires, net_graph = self._wires(), self._graph()
            if len(self._cache) > MOST_PLANS:
                self._cache.pop(next(key for key in self._cache if isinstance(key, Request)))
            plan = make_plan(
                wires,
                net_graph,
                {name: node.layer for name, node in self._nodes.items()},
                self._vars,
                self._params,
                request,
                self._conserve_memory,
            )
            if self._conserve_memory:
                plan = fuse(plan, request, self._cache.setdefault("folded", {}), self.backend.constant)
            if self._precision:
                copies = self._cache.setdefault("copies", Copies(self._precision, self.backend))
                plan = mixed(plan, copies)
            if self._conserve_memory:
                plan = derivatives_in_place(values_in_place(plan, request))
            plan = attach(plan, self._cache.setdefault("keepings", {}), self._keep_patches)
            self._cache[request] = plan
        return plan

    def _within(self, budget: int, plan: Plan, values: Arrays) -> Plan:
        """The plan rewritten for a budget; one made for inputs at least as large will do."""
        from .recompute import at_most, within

        self._forget_ders()
        known: list[Any] = self._cache.setdefault("budgets", [])
        forms = {name: (value.shape, value.dtype) for name, value in values.items()}
        kept = {name for name, keeping in self._cache["keepings"].items() if keeping.pays}
        for source, key, its_forms, made in known:
            if source is plan and key == (budget, kept) and at_most(forms, its_forms):
                return made
        made = within(settled(apart(plan), kept), budget, values, self._context)
        known[MOST_PLANS:] = []
        known.insert(0, (plan, (budget, kept), forms, made))
        return made

    @property
    def undecided(self) -> bool:
        """Whether next evaluations try out what is faster; see `keep_patches`."""
        return any(keeping.undecided for keeping in self._cache.get("keepings", {}).values())

    def _forget_ders(self) -> None:
        """Let go of the parameters' derivatives that new ones replace, before there are both."""
        if not self.accumulate_param_ders:
            for param in self._params.values():
                param.der = None

    def _captures(self) -> Captures:
        from .capture import Captures

        if "captures" not in self._cache:
            self._cache["captures"] = Captures(self)
        return self._cache["captures"]

    def _context(
        self, step: Step, evaluation: int | None = None, state: dict[str, Any] | None = None
    ) -> Context:
        number = self.evaluation if evaluation is None else evaluation
        return Context(
            self.backend,
            self._mode,
            partial(self.backend.rng, self.seed, number, step.key),
            step.wants_inputs,
            step.wants_params,
            self.state.get(step.name, {}) if state is None else state,
        )

    def _moved_in(self, name: str, value: Any) -> Array:
        """An input as an array of the net's backend."""
        try:
            return self.backend.asarray(value)
        except (TypeError, ValueError) as error:
            raise OptionError(
                f"inputs[{name!r}] is an array of numbers ({error}). Received: {type(value).__name__}"
            ) from error

    def _seed(self, name: str, der: Any, forms: Mapping[str, Form]) -> Array:
        """The derivative given for variable `name`, as an array of its shape and of the net's type."""
        shape, own = forms[name]
        kinds = (own, *(dtype for _, dtype in forms.values()))
        wanted = next((dtype for dtype in kinds if is_floating(dtype)), self.dtype)
        array = self.backend.asarray(der)
        if not is_floating(array.dtype) and array.dtype.kind not in "biu":
            raise OptionError(f"der_outputs[{name!r}] is an array of numbers. Received: {der!r}")
        if array.ndim == 0 and np.prod(shape) == 1:
            array = array.reshape(shape)
        elif (
            self._precision is None
            and hasattr(der, "dtype")
            and is_floating(array.dtype)
            and wanted not in (None, array.dtype)
        ):
            raise DTypeError(f"der_outputs[{name!r}] is {array.dtype}, the net computes in {wanted}")
        if array.shape != shape:
            raise ShapeError(
                f"der_outputs[{name!r}] must have the variable's shape {shape}. "
                f"Received: {shape_and_type(array)}"
            )
        return array.astype(wanted or array.dtype, copy=False)

    def _check_params(self, plan: Plan) -> None:
        """All parameters have values, of one type."""
        values = [param._value for param in plan.params]
        if any(value is None for value in values):
            empty = [param.name for param in plan.params if param._value is None]
            raise GraphError(f"No value yet for {shorten(map(repr, empty))}: call net.init_params()")
        if len({value.dtype for value in values}) > 1:
            types = ", ".join(f"{p.name} is {p._value.dtype}" for p in plan.params)
            raise DTypeError(f"Parameters have different types: {types}. Convert them with net.astype(...)")
        if self._precision and values and values[0].dtype != FULL:
            raise DTypeError(
                f"With precision {self._precision!r} parameters are {FULL}: net.astype({FULL!r}). "
                f"Received: {values[0].dtype}"
            )

    def _clear_vars(self) -> None:
        for var in self._vars.values():
            var._value = var._der = None

    def _keep_values(self, plan: Plan, values: Mapping[str, Any]) -> None:
        for name in plan.released:
            self._vars[name]._value = RELEASED
        for name in plan.kept_values:
            self._vars[name]._value = values[name]

    def _keep_ders(self, plan: Plan, ders: Mapping[str, Any], ders_of_params: Mapping[str, Any]) -> None:
        for kind, name in plan.backward_graph:
            if kind == "der_var":
                self._vars[name]._der = RELEASED
        for name in plan.kept_ders:
            self._vars[name]._der = ders.get(name)
        for name, param in self._params.items():
            der = ders_of_params.get(name)
            if not self.accumulate_param_ders or param.der is None:
                param.der = der
            elif der is not None:
                param.der = param.der + der
            if self.parameter_server is not None and not self.hold_on and param.der is not None:
                self.parameter_server.push(name, param.der)
                param.der = None

    def reset(self) -> None:
        """Forget values, derivatives and what layers remember between evaluations; parameters stay."""
        self._clear_vars()
        for param in self._params.values():
            param.der = None
        for state in self.state.values():
            state.clear()

    # ---- parameters

    def init_params(self, seed: Any = 0, dtype: Any = np.float32) -> None:
        """Fresh values for all parameters: `seed` is a number or a NumPy generator.

        `dtype` is their floating type, also "float16" or "bfloat16" (which needs the package `ml_dtypes`).
        """
        dtype = floating(dtype)
        rng = np.random.default_rng(seed)
        fresh: dict[str, np.ndarray] = {}
        for node in self._nodes.values():
            for name, value in zip(node.params, node.layer.init_params(rng), strict=False):
                if name in fresh and fresh[name].shape != np.shape(value):
                    raise ShapeError(
                        f"Layer {node.name!r} needs parameter {name!r} of shape {np.shape(value)}, "
                        f"another layer that shares it {fresh[name].shape}"
                    )
                fresh.setdefault(name, value)
        for name, value in fresh.items():
            self._params[name].value = np.asarray(value, dtype)

    def astype(self, dtype: Any) -> None:
        """Convert all parameters to the floating type `dtype`."""
        dtype = floating(dtype)
        for param in self._params.values():
            if param.value is not None:
                param.value = param.value.astype(dtype)

    def move(self, backend: str | Backend, **options: Any) -> None:
        """Move parameters and state to `backend`; values and derivatives are forgotten.

        `backend` is "numpy" or "cupy", with options such as `device=1, tf32=True` (see docs/gpu.md), or a
        backend. A solver's state follows at its next step. OutOfMemoryError leaves everything where it was.

        >>> import dagnn
        >>> net = dagnn.DagNN()
        >>> net.move("reference")
        >>> net.backend
        <Backend 'reference'>
        """
        new, old = backends.get(backend, **options), self.backend

        def moved(array: Any, take: Any = new.asarray) -> Any:
            return take(old.to_numpy(array)) if old.owns(array) else array

        with shortage_explained(new.memory_use):
            values = {name: moved(param._value, new.parameter) for name, param in self._params.items()}
            states = {name: {k: moved(v) for k, v in state.items()} for name, state in self.state.items()}
        self._clear_vars()
        self._changed()
        self.backend = new
        for name, param in self._params.items():
            param.der = None
            param._adopt = new.parameter
            if values[name] is not None:
                param._own(values.pop(name))
        for name, state in states.items():
            self.state[name].update(state)

    # ---- copies, files, text

    def copy(self) -> Self:
        """An independent net: the same structure and settings, its own parameters."""
        return self.subnet()

    @classmethod
    def from_simple_nn(cls, simple: SimpleNN | Mapping[str, Any], canonical_names: bool = False) -> DagNN:
        """A SimpleNN, or a dict with its `layers` and `meta`, as a DagNN; see `SimpleNN.to_dagnn`."""
        from .simplenn import SimpleNN

        if isinstance(simple, Mapping):
            simple = SimpleNN(simple["layers"], simple.get("meta"))
        return simple.to_dagnn(canonical_names)

    def deploy(self) -> DagNN:
        """A copy for inference: no losses and dropouts, batch normalisation folded; see `dagnn.deploy`."""
        from .deploy import deploy

        return deploy(self)

    def _blank(self) -> Self:
        net = type(self)(self.backend)
        net._mode, net._conserve_memory, net._precision = self._mode, self._conserve_memory, self._precision
        net._keep_patches = dict(self._keep_patches)
        net.capture = self.capture
        net.accumulate_param_ders, net.hold_on = self.accumulate_param_ders, self.hold_on
        net.seed, net.evaluation = self.seed, self.evaluation
        net.meta = copy.deepcopy(self.meta)
        return net

    def _new_param(self, name: str, spec: ParamSpec) -> Param:
        param = super()._new_param(name, spec)
        param._adopt = self.backend.parameter
        return param

    def save(self, path: str | PathLike[str], layers: Mapping[str, Any] | None = None) -> None:
        """Write the net to a file: MatConvNet's .mat by that ending, else HDF5; see `dagnn.save`.

        `layers` names custom classes and the callables of `Custom`.
        """
        from .io import save

        save(self, path, layers)

    def summary(self, input_shapes: Mapping[str, Shape] | None = None) -> str:
        """A table of the layers: shapes, receptive fields, parameters, memory."""
        from .summary import summarize

        return summarize(self, input_shapes or {})

    def profile(
        self,
        inputs: Mapping[str, Any],
        der_outputs: Mapping[str, Any] | None = None,
        *,
        repeats: int = 5,
        **options: Any,
    ) -> Profile:
        """Where the time of `eval` goes: per layer, forward and backward, medians of `repeats` evaluations.

        Arguments and `options` are those of `eval`. A copy of the net is evaluated: nothing here changes.
        The `dagnn.profile.Profile` is a table when printed; its `rows`, `by_type()` and `to_json()` are for
        programs.

        >>> import numpy as np, dagnn
        >>> net = dagnn.DagNN()
        >>> net.add_layer("conv", dagnn.Conv(size=(8, 3, 5, 5)), "x", "c")
        >>> net.add_layer("relu", dagnn.ReLU(), "c", "y")
        >>> net.init_params()
        >>> profile = net.profile({"x": np.ones((4, 3, 32, 32), np.float32)}, repeats=3)
        >>> profile.rows[0].name, profile.rows[0].forward_ms > 0, profile.rows[0].forward_gflops > 0
        ('conv', True, True)
        >>> print(profile)
        layer ... forward ...
        """
        from .profile import profile

        return profile(self, inputs, der_outputs, repeats=repeats, **options)

    def __repr__(self) -> str:
        from .summary import describe

        return describe(self)


def _apart(plan: Plan, seeds: Arrays, *found: Mapping[str, Any]) -> list[Arrays]:
    """Derivatives of variables that are kept, and of parameters, each in memory of its own.

    A layer may hand on one array, or a seed, as several derivatives.
    """
    owners = {id(owner(seed)) for seed in seeds.values()}

    def alone(der: Any) -> Any:
        if id(owner(der)) in owners:
            return der.copy()
        owners.add(id(owner(der)))
        return der

    ders, of_params = found
    kept = {name: ders[name] for name in plan.kept_ders if ders.get(name) is not None}
    return [{name: alone(der) for name, der in some.items()} for some in (kept, of_params)]
