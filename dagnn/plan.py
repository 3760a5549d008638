"""The Plan: what one kind of evaluation runs, in which order, and how long each array lives.

Everything that depends only on names (which inputs are given, what is asked for) is decided here once;
the net caches the Plan until its structure changes, and `forward` and `backward` only follow it.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import TYPE_CHECKING, Any
from zlib import crc32

from . import graph
from .dtypes import is_floating, is_half
from .errors import BackendError, DagnnError, DTypeError, PlaceholderError, ShapeError
from .graph import Graph, Wire
from .keeping import Keeping
from .layers.layer import Context, Layer
from .variables import Param

if TYPE_CHECKING:
    from .precision import Copies

Arrays = dict[str, Any]
Form = tuple[tuple[int, ...], Any]  # shape and dtype
SEQUENCE = (list, tuple)
PIECE = 8 << 20
"""Bytes of a derivative that are rectified in place at a time."""
CAST = "\u200b as "
"""Stands between the name of a variable and the type it is cast to; no name of a user's has it."""


@dataclass(frozen=True)
class Request:
    """What an evaluation asks for, by names, and in which mode: the key under which its Plan is cached."""

    mode: str
    given: frozenset[str]
    outputs: tuple[str, ...] | None
    der_outputs: frozenset[str]
    keep: frozenset[str]
    ders: frozenset[str]


@dataclass(frozen=True)
class Step:
    """One layer of the Plan, or several that one kernel does: what it reads and writes, both ways."""

    name: str
    layer: Layer
    inputs: tuple[str, ...]
    outputs: tuple[str | None, ...]  # None: the variable was given, and what the layer makes is not used
    params: tuple[Param, ...]
    wants_inputs: tuple[bool, ...]
    wants_params: tuple[bool, ...]
    releases: tuple[str, ...] = ()  # variables nobody reads after this step
    fused: Fused | None = None
    saves: bool = True  # False: what backward needs is made again, by a segment
    mixed: bool = False  # its data, parameters and outputs may differ in type
    over: str | None = None  # the input whose array the output is written over
    keeping: Keeping | None = None  # who decides whether a convolution keeps its patches

    @property
    def where(self) -> str:
        return f"{type(self.layer).__name__} {self.name!r}"

    @cached_property
    def key(self) -> int:
        """What keys its random numbers, by the side of seed and evaluation."""
        return crc32(self.name.encode())

    @cached_property
    def reads(self) -> tuple[str, ...]:
        """All variables it reads."""
        added = self.fused.add if self.fused else None
        return self.inputs if added is None else (*self.inputs, added)

    @cached_property
    def wants(self) -> bool:
        """Whether the layer has a derivative to compute."""
        return True in self.wants_inputs or True in self.wants_params

    @cached_property
    def carries(self) -> bool:
        """Whether a derivative passes: the layer's, or that of the variable its kernel adds."""
        return self.wants or (self.fused is not None and self.fused.wants_add)

    @cached_property
    def remembers(self) -> bool:
        """Whether backward needs anything from forward."""
        return self.wants or (self.carries and self.fused is not None and self.fused.relu is not None)


@dataclass(frozen=True)
class Fused:
    """What the kernel of a step does behind its own layer: + the variable `add`, then a ReLU of leak `relu`.

    `folded` gives the layer other values for its parameters; `plain` are the steps it all stands for. `owns`:
    the derivative that arrives is certainly nobody else's array, and the ReLU's is written over it. `place`
    is where in the output of a concatenation its own goes, `joins` that of the concatenation itself.
    """

    plain: tuple[Step, ...]
    add: str | None = None
    wants_add: bool = False
    relu: float | None = None
    folded: Callable[[], list[Any]] | None = None
    owns: bool = False
    place: Place | None = None
    joins: str | None = None

    def epilogue(self, values: Arrays, joined: Arrays) -> dict[str, Any]:
        """What the kernel is told; `joined` are the outputs of concatenations to come."""
        options: dict[str, Any] = {}
        if self.place is not None:
            options["out"] = self.place.of(joined)
        elif self.joins is not None:
            options["out"] = joined.pop(self.joins, None)
        if self.add is not None:
            options["add"] = values[self.add]
        if self.relu is not None:
            options["relu"] = self.relu
        return options


@dataclass(frozen=True)
class Place:
    """Channels of the output of a concatenation, called by its name."""

    name: str
    channels: slice
    total: int

    def make(self, joined: Arrays, shape: Sequence[int], backend: Any, dtype: Any) -> None:
        """Make room in `joined` for maps of `shape`, unless there is some; None where it doesn't suit."""
        n, _, height, width = shape
        if self.name not in joined:
            joined[self.name] = backend.empty_maps((n, self.total, height, width), dtype)
        elif getattr(joined[self.name], "shape", None) != (n, self.total, height, width):
            joined[self.name] = None

    def of(self, joined: Arrays) -> Any:
        """The part of the room, if there is room."""
        return None if joined[self.name] is None else joined[self.name][:, self.channels]


@dataclass(frozen=True)
class Segment:
    """Steps that run forward again, reading variables kept for it, some of which then are `released`."""

    steps: tuple[Step, ...]
    reads: tuple[str, ...]
    releases: tuple[str, ...]


@dataclass(frozen=True)
class Plan:
    """Steps in order of execution, the backward steps in theirs, and the names whose arrays stay.

    Within a memory budget, `segments` run again before the backward step of this name; see `dagnn.recompute`.
    """

    outputs: tuple[str, ...]
    steps: tuple[Step, ...]
    backward_steps: tuple[Step, ...]
    backward_graph: Graph
    seeds: frozenset[str]  # the der_outputs that anything depends on
    kept_values: frozenset[str]
    kept_ders: frozenset[str]
    released: tuple[str, ...]  # computed, but not kept
    params: tuple[Param, ...]
    copies: Copies | None = None  # of parameters, in lower precision
    segments: Mapping[str, Segment] = field(default_factory=dict)

    def changed(self, change: Callable[[Step], Step]) -> Plan:
        """The plan with every step as `change` makes it; none is left out or renamed."""
        steps = {step.name: change(step) for step in self.steps}
        backward = tuple(steps[step.name] for step in self.backward_steps)
        return replace(self, steps=tuple(steps.values()), backward_steps=backward)

    def forward(
        self, values: Arrays, context: Callable[[Step], Context]
    ) -> tuple[dict[str, Context], dict[str, Form]]:
        """Run the layers on `values` (the given inputs), which then hold what is kept.

        Returns the contexts of the layers that backward visits, and (shape, dtype) of all variables.
        """
        forms = {name: (value.shape, value.dtype) for name, value in values.items()}
        return run(self.steps, values, forms, context), forms

    def backward(
        self,
        seeds: Arrays,
        contexts: dict[str, Context],
        forms: Mapping[str, Form],
        before: Callable[[Step], dict[str, Context]] | None = None,
    ) -> tuple[Arrays, Arrays]:
        """Carry `seeds` back through the BP-reversed graph: (derivatives of variables, of parameters).

        `before`, if given, is called before each step, for contexts that aren't there yet.
        """
        ders, der_params, keep = _Sums(seeds), _Sums({}), self.kept_ders
        step: Step | None = None
        arriving: list[Any] = []
        try:
            for step in self.backward_steps:
                if before is not None:
                    arriving = []
                    contexts.update(before(step))
                arriving = [
                    None if n is None else ders.get(n) if n in keep else ders.pop(n, None)
                    for n in step.outputs
                ]
                ctx = contexts.pop(step.name)
                if arriving[0] is None and all(der is None for der in arriving):
                    continue
                backend = ctx.backend
                if step.fused is not None:
                    own = step.fused.owns or (step.outputs[0] in ders.own and step.outputs[0] not in keep)
                    _through_epilogue(step.fused, ctx, arriving, ders, forms, own)
                    if not step.wants:
                        continue
                params = [p._value for p in step.params]
                if step.keeping is None:
                    der_inputs, der_ws = _pair(step.layer.backward(ctx, params, arriving))
                else:
                    der_inputs, der_ws = _pair(step.keeping.backward(step.layer, ctx, params, arriving))
                del ctx  # and with it what was saved
                if len(der_inputs) != len(step.inputs) or len(der_ws) != len(step.params):
                    raise ShapeError(
                        f"backward returned {len(der_inputs)} and {len(der_ws)} derivatives for "
                        f"{len(step.inputs)} inputs and {len(step.params)} parameters"
                    )
                for name, wanted, der in zip(step.inputs, step.wants_inputs, der_inputs, strict=True):
                    if wanted and der is not None:
                        der = _fitting(der, *forms[name], name)
                        ders.add(name, der if before is None else compact(der), backend)
                for param, wanted, der in zip(step.params, step.wants_params, der_ws, strict=True):
                    if wanted and der is not None:
                        w = param._value
                        der = _fitting(der, w.shape, w.dtype, param.name)
                        der_params.add(param.name, der if before is None else compact(der), backend)
                der = None
                del der_inputs, der_ws
        except Exception as error:
            explain(error, step, zip(step.outputs, arriving, strict=False) if step else (), "der of ")
            raise
        return ders, der_params if self.copies is None else self.copies.widened(der_params)


def run(
    steps: Iterable[Step], values: Arrays, forms: dict[str, Form], context: Callable[[Step], Context]
) -> dict[str, Context]:
    """Run steps forward on `values`, which then hold what isn't released; the contexts for backward."""
    contexts: dict[str, Context] = {}
    native = {type(value) for value in values.values()}  # arrays of the backend: `eval` made them so
    inputs: list[Any] = []
    joined: Arrays = {}  # outputs of concatenations to come, made by the first that writes into them
    step = None
    try:
        for step in steps:
            inputs = [values[name] for name in step.inputs]
            ctx = context(step)
            ctx.saves &= step.saves
            fused = step.fused
            params = [p._value for p in step.params]
            if fused is not None:
                params = fused.folded() if fused.folded else params
                if fused.place is not None:
                    (shape,) = fused.plain[0].layer.output_shapes([x.shape for x in inputs])
                    fused.place.make(joined, shape, ctx.backend, inputs[0].dtype)
                ctx.epilogue = fused.epilogue(values, joined)
            # In another order of memory than that of a new output, later sums would be rounded differently.
            if step.over is not None and all(x.strides == inputs[0].strides for x in inputs):
                ctx.epilogue["out"] = values[step.over]
            if step.keeping is None:
                outputs = step.layer.forward(ctx, inputs, params)
            else:
                outputs = step.keeping.forward(step.layer, ctx, inputs, params)
            if not isinstance(outputs, SEQUENCE):
                raise ShapeError(f"forward must return a list of outputs, not {type(outputs).__name__}")
            if len(outputs) != len(step.outputs):
                raise ShapeError(f"{len(outputs)} outputs returned, {len(step.outputs)} are connected")
            for name, value in zip(step.outputs, outputs, strict=True):
                if name is not None:
                    if type(value) not in native or not (step.mixed or _of_one_type(value, inputs, params)):
                        value = _checked(value, ctx, *(([], []) if step.mixed else (inputs, params)))
                    values[name] = value
                    forms[name] = value.shape, value.dtype
            if step.carries and step.saves:
                contexts[step.name] = ctx
                ctx.epilogue = {}
                if fused is not None:
                    ctx.output = None if fused.relu is None else outputs[0]
            for name in step.releases:
                values.pop(name, None)
    except Exception as error:
        if step is not None:
            if step.fused is not None:
                _run_apart(step.fused.plain, values, context)
            explain(error, step, zip(step.inputs, inputs, strict=False))
        raise
    return contexts


def _run_apart(steps: Sequence[Step], values: Arrays, context: Callable[[Step], Context]) -> None:
    """Run the steps that a fused one stands for: what failed in it fails again, in the layer it is about."""
    run([replace(step, releases=()) for step in steps], dict(values), {}, context)


def _through_epilogue(
    fused: Fused, ctx: Context, arriving: list[Any], ders: _Sums, forms: Mapping[str, Form], own: bool
) -> None:
    """Carry the derivative that arrives back to behind the layer itself, and to what was added.

    If it is nobody else's `own`, that of a ReLU is written over it.
    """
    if fused.relu is not None:
        y, ctx.output = ctx.output, None
        # Elsewhere than in y's order of memory, sums of it would be rounded differently.
        if own and arriving[0].strides == y.strides:
            _rectify(arriving[0], y, fused.relu, ctx.backend)
        else:
            arriving[0] = ctx.backend.relu_dzdx(arriving[0], y, fused.relu)
    if fused.wants_add and fused.add is not None:
        ders.add(fused.add, _fitting(arriving[0], *forms[fused.add], fused.add), ctx.backend)


def _rectify(dzdy: Any, y: Any, leak: float, backend: Any) -> None:
    """Write the derivative of a ReLU over that of its output, some images or rows at a time."""
    if not dzdy.ndim:
        backend.relu_dzdx(dzdy, y, leak, out=dzdy)
        return
    axis = 0 if len(dzdy) > 1 or dzdy.ndim < 3 else 2
    step = max(1, PIECE * dzdy.shape[axis] // max(1, dzdy.nbytes))
    for start in range(0, dzdy.shape[axis], step):
        piece = (slice(None),) * axis + (slice(start, start + step),)
        backend.relu_dzdx(dzdy[piece], y[piece], leak, out=dzdy[piece])


class _Sums(dict[str, Any]):
    """The summation nodes: what arrives under one name is added up, never into somebody else's array."""

    def __init__(self, seeds: Arrays) -> None:
        super().__init__(seeds)
        self.own: set[str] = set()

    def add(self, name: str, der: Any, backend: Any) -> None:
        before = self.get(name)
        if before is None:
            self[name] = der
            self.own.discard(name)
        elif name in self.own and der.dtype == before.dtype and is_floating(der.dtype):
            backend.sum([before, der], out=before)
        else:
            if is_half(der.dtype) != is_half(before.dtype):  # of a parameter, in two precisions
                before, der = backend.cast([before, der], "float32")
            alike = is_floating(der.dtype) and der.dtype == before.dtype
            self[name] = backend.sum([before, der]) if alike else before + der
            self.own.add(name)


def with_lifetimes(steps: Sequence[Step], kept: Collection[str]) -> tuple[Step, ...]:
    """`steps`, each releasing the variables that nobody reads after it and that aren't `kept`."""
    wires = [Wire(step.name, step.reads, tuple(n for n in step.outputs if n is not None)) for step in steps]
    last = graph.last_uses(wires)
    releases: dict[str, list[str]] = {step.name: [] for step in steps}
    for name, reader in last.items():
        if name not in kept:
            releases[reader].append(name)
    return tuple(replace(step, releases=tuple(releases[step.name])) for step in steps)


def _of_one_type(value: Any, inputs: Sequence[Any], params: Sequence[Any]) -> bool:
    """Whether an output certainly has the type of the layer's data and parameters."""
    dtype = value.dtype
    return (not inputs or inputs[0].dtype is dtype) and (not params or params[0].dtype is dtype)


def _checked(value: Any, ctx: Context, inputs: Sequence[Any], params: Sequence[Any]) -> Any:
    """An output as the backend's array, of the floating type of the layer's data and parameters."""
    if not ctx.backend.owns(value):
        raise BackendError(
            f"the output is a {type(value).__name__}, not an array of backend {ctx.backend.name!r}"
        )
    value = ctx.backend.asarray(value)
    if is_floating(value.dtype):
        for what, array in (("input is", inputs[:1]), ("parameters are", params[:1])):
            if array and is_floating(array[0].dtype) and array[0].dtype != value.dtype:
                raise DTypeError(f"the output is {value.dtype}, the {what} {array[0].dtype}: keep one type")
    return value


def _pair(result: Any) -> tuple[Sequence[Any], Sequence[Any]]:
    """What backward returned, if it is (der_inputs, der_params)."""
    if isinstance(result, tuple) and len(result) == 2:
        der_inputs, der_params = result
        if isinstance(der_inputs, SEQUENCE) and isinstance(der_params, SEQUENCE):
            return result
    raise ShapeError("backward must return two lists, (der_inputs, der_params)")


def _fitting(der: Any, shape: tuple[int, ...], dtype: Any, name: str) -> Any:
    if getattr(der, "shape", None) != shape:
        raise ShapeError(
            f"backward gave {name!r}, of shape {shape}, a derivative of shape {getattr(der, 'shape', None)}"
        )
    if is_floating(dtype) and der.dtype != dtype:
        raise DTypeError(f"backward gave {name!r}, which is {dtype}, a derivative of type {der.dtype}")
    return der


def explain(error: Exception, step: Step | None, arrays: Any, prefix: str = "") -> None:
    """Say once, in whatever went wrong, in which layer it was and what that layer had received."""
    if step is None:
        return
    received = "; ".join(f"{prefix}{_given(name)} {shape_and_type(array)}" for name, array in arrays)
    received = received or "nothing"
    if isinstance(error, PlaceholderError):
        error.add_context(f"Layer {step.name!r}", received)
    elif isinstance(error, DagnnError):
        error.add_context(step.where, received)
    else:
        error.add_note(f"In layer {step.where}.\nReceived: {received}")


def _given(name: str | None) -> str | None:
    """The name that the user gave a variable, or what it was cast from."""
    return name and name.partition(CAST)[0]


def owner(array: Any) -> Any:
    """The array whose memory `array` is a view of."""
    while getattr(array, "base", None) is not None:
        array = array.base
    return array


def compact(array: Any) -> Any:
    """`array`, copied if it holds much more memory than it needs: in a large block that is used again."""
    most = 1.25 * array.nbytes + 4096
    return array.copy(order="K") if getattr(owner(array), "nbytes", 0) > most else array


def shape_and_type(array: Any) -> str:
    """Shape and type of an array, for messages."""
    return "None" if array is None else f"{tuple(array.shape)} {array.dtype}"
