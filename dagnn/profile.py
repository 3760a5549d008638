"""Where an evaluation's time goes: one row for each step of the Plan.

The Plan has no code for this. A copy of the net is evaluated whose Plan runs each layer through a `_Timed`,
which takes the time and hands everything on.
"""

from __future__ import annotations

import json
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from math import prod
from os import PathLike
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .backends.numpy import convolution as numpy_convolution
from .backends.numpy.threads import num_threads
from .errors import OptionError
from .keeping import TRIED
from .layers import Conv, ConvTranspose, Loss, LossSmoothL1, PDist
from .preprocess import Preprocessor
from .run import USUAL_INPUTS
from .summary import human_bytes, table, times

if TYPE_CHECKING:
    from .backends.base import Backend, MemoryUse
    from .geometry import Shape
    from .layers.layer import Context, Layer
    from .net import DagNN
    from .plan import Plan, Step

KINDS = ("forward", "dzdx", "dzdw")
WIDTH = 120  # characters


@dataclass(frozen=True)
class Row:
    """One step: times are medians over the evaluations, in ms; backward is 0 where nothing went back.

    `name` is the layer's, `type` its class; where one kernel does several layers, it is the first one's name,
    and `type` all of their classes, as in "Conv+ReLU". What a memory budget makes again counts as forward.
    `share` is its part of the time of all steps, `nbytes` the size of its outputs. For convolutions,
    `forward_gflops` and `backward_gflops` are billions of multiplications and additions of the definition
    a second (Winograd's algorithm makes do with fewer); `algorithms` is what the backend chose for
    "forward", "dzdx" and "dzdw"; of "kept" patches, the Plan's choice.
    """

    name: str
    type: str
    outputs: tuple[Shape, ...]
    nbytes: int
    forward_ms: float
    backward_ms: float
    share: float
    forward_gflops: float | None = None
    backward_gflops: float | None = None
    algorithms: Mapping[str, str] | None = None


@dataclass(frozen=True)
class Total:
    """All steps of one type."""

    type: str
    steps: int
    forward_ms: float
    backward_ms: float
    share: float


@dataclass(frozen=True, repr=False)
class Profile:
    """What `net.profile` measured; printed, it is a table.

    Attributes
    ----------
    rows : a `Row` for each step, in order of execution.
    evaluation_ms : the median time of a whole evaluation.
    between_ms : of that, what the steps did not take: the Plan's own work, sums of derivatives.
    repeats : how many evaluations were measured.
    backend, threads, mode : by what, and in which mode.
    memory : what arrays of the backend take afterwards, as `backend.memory_use()` says it.
    """

    rows: tuple[Row, ...]
    evaluation_ms: float
    between_ms: float
    repeats: int
    backend: str
    threads: int
    mode: str
    memory: MemoryUse

    @property
    def forward_ms(self) -> float:
        """The time of all forward steps."""
        return sum(row.forward_ms for row in self.rows)

    @property
    def backward_ms(self) -> float:
        """The time of all backward steps."""
        return sum(row.backward_ms for row in self.rows)

    def by_type(self) -> list[Total]:
        """The sums over the steps of each type, the longest first."""
        totals = []
        for kind in dict.fromkeys(row.type for row in self.rows):
            rows = [row for row in self.rows if row.type == kind]
            sums = (sum(getattr(r, f) for r in rows) for f in ("forward_ms", "backward_ms", "share"))
            totals.append(Total(kind, len(rows), *sums))
        return sorted(totals, key=lambda total: -total.share)

    def to_json(self, path: str | PathLike[str] | None = None) -> str:
        """The figures as JSON; written to a file if `path` is given."""
        text = json.dumps(asdict(self) | {"memory": self.memory._asdict()}, indent=1) + "\n"
        if path is not None:
            Path(path).write_text(text, encoding="utf-8")
        return text

    def __str__(self) -> str:
        heads = (
            "layer",
            "type",
            "output size",
            "memory",
            "forward",
            "backward",
            "share",
            "GFLOP/s",
            "algorithm",
        )
        back = self.backward_ms > 0
        cells = [_cells(row) for row in self.rows]
        totals = [
            (
                t.type,
                str(t.steps),
                _ms(t.forward_ms),
                _ms(t.backward_ms) if t.backward_ms else "",
                f"{t.share:.1%}",
            )
            for t in self.by_type()
        ]
        parts = f"forward {self.forward_ms:.3g}" + (f", backward {self.backward_ms:.3g}" if back else "")
        threads = f", {self.threads} thread{'s' * (self.threads != 1)}" if self.backend == "numpy" else ""
        return "\n".join(
            [
                *table(heads, cells, elastic=(0, 8), right=(3, 4, 5, 6, 7), width=WIDTH),
                "",
                *table(("type", "steps", "forward", "backward", "share"), totals, (0,), (1, 2, 3, 4)),
                f"An evaluation takes {self.evaluation_ms:.3g} ms: {parts}, "
                f"between the steps {self.between_ms:.2g}.",
                f"Medians of {self.repeats} in ms; {self.backend}{threads}, mode {self.mode!r}.",
                f"Memory: {self.memory}.",
            ]
        )

    __repr__ = __str__


def profile(
    net: DagNN,
    inputs: Mapping[str, Any],
    der_outputs: Mapping[str, Any] | None = None,
    *,
    repeats: int = 5,
    **options: Any,
) -> Profile:
    """What `net.profile` does."""
    if not isinstance(repeats, int) or repeats < 1:
        raise OptionError(f"repeats is a number of evaluations from 1. Received: {repeats!r}")
    net = net.copy()  # whose values, derivatives and states nobody looks at
    watch = _Watch(net.backend)
    # Once, so that errors name layers, and memory and plans are there; more often while these are tried out.
    for number in range(TRIED):
        if number == 0 or net.undecided:
            net.eval(inputs, der_outputs, **options)
    net.watch = watch.timed
    for _ in range(repeats):
        watch.evaluation(lambda: net.eval(inputs, der_outputs, **options))
    whole, between = (median(figures) for figures in zip(*watch.evaluations, strict=True))
    how = net.backend.name, num_threads(), net.mode, net.backend.memory_use()
    return Profile(watch.rows(), whole, between, repeats, *how)


def example_inputs(net: DagNN, input_shapes: Mapping[str, Shape], batch: int | None = None) -> dict[str, Any]:
    """Random inputs to profile a net with: of the given shapes, by default that of its images; and labels.

    `batch` is how many images at once, in place of the number in the shapes.

    >>> from dagnn.zoo import lenet
    >>> inputs = example_inputs(lenet(), {"input": (1, 1, 28, 28)}, batch=8)
    >>> {name: array.shape for name, array in inputs.items()}
    {'input': (8, 1, 28, 28), 'label': (8,)}
    """
    shapes = dict(input_shapes) or _image(net)
    if batch is not None:
        shapes = {name: (batch, *shape[1:]) for name, shape in shapes.items()}
    rng, dtype = np.random.default_rng(0), net.dtype or np.dtype(np.float32)
    sizes = net.var_shapes(shapes)
    made = {}
    for node in net.layers.values():
        for name in node.inputs[1:2]:
            if name in net.inputs and isinstance(node.layer, Loss | LossSmoothL1 | PDist):
                made[name] = _labels(node.layer, sizes.get(node.inputs[0]), shapes.get(name), dtype)
    images = {
        name: rng.standard_normal(shape).astype(dtype) for name, shape in shapes.items() if name not in made
    }
    return images | {name: label for name, label in made.items() if label is not None}


def _image(net: DagNN) -> dict[str, Shape]:
    """The input that takes images, and the size of one as the net's meta has it."""
    name = next((name for name in USUAL_INPUTS if name in net.inputs), None)
    images = Preprocessor.from_meta(net.meta)
    if name is None or images.image_size is None:
        some = name or next(iter(net.inputs), "x")
        raise OptionError(f"The net doesn't say how large its inputs are: give sizes, as in {some}=3x224x224")
    return {name: (1, images.channels or 3, *images.image_size)}


def _labels(layer: Layer, scores: Shape | None, given: Shape | None, dtype: Any) -> Any:
    """Labels that are right for all scores: the first class, attributes to ignore, maps of zeros."""
    if scores is None:
        return None
    if isinstance(layer, Loss) and layer.loss in Loss.kinds[:6]:
        n, _, *maps = scores
        return np.zeros(given or ((n,) if prod(maps) == 1 else (n, 1, *maps)), np.int64)
    return np.zeros(given or scores, dtype)


class _Watch:
    """Takes the time of the steps of one net's plan."""

    def __init__(self, backend: Backend) -> None:
        self.spent: list[dict[tuple[str, str], float]] = []  # per evaluation: (step, way) -> ms
        self.evaluations: list[tuple[float, float]] = []  # ms: the whole, and what no step took
        self.seen: dict[str, _Seen] = {}
        self.last = 0.0  # when the last step of a layer ended
        self._made: dict[int, tuple[Plan, Plan]] = {}  # plans and theirs with times, by id
        self._backend = backend
        cuda = getattr(backend.xp, "cuda", None)  # whose kernels go on after the call
        with backend.evaluation():
            self._wait = cuda.get_current_stream().synchronize if cuda else None

    def now(self) -> float:
        """Milliseconds."""
        if self._wait:
            self._wait()
        return 1000 * perf_counter()

    def evaluation(self, work: Callable[[], Any]) -> None:
        """Take the time of an evaluation, whose steps take theirs."""
        self.spent.append(defaultdict(float))
        begun = self.now()
        work()
        whole = self.now() - begun
        self.evaluations.append((whole, whole - sum(self.spent[-1].values())))

    def timed(self, plan: Plan) -> Plan:
        """The plan with steps that take their time."""
        if id(plan) not in self._made:
            self._made[id(plan)] = plan, self._timed_plan(plan)
        return self._made[id(plan)][1]

    def _timed_plan(self, plan: Plan) -> Plan:
        def timed(steps: Sequence[Step]) -> tuple[Step, ...]:
            return tuple(replace(step, layer=cast("Layer", _Timed(step, self))) for step in steps)

        steps: dict[str, Any] = {"steps": timed(plan.steps), "backward_steps": timed(plan.backward_steps)}
        if segments := getattr(plan, "segments", None):
            steps["segments"] = {
                key: replace(part, steps=timed(part.steps)) for key, part in segments.items()
            }
        return replace(plan, **steps)

    def rows(self) -> tuple[Row, ...]:
        """The rows of the steps that ran, in order."""

        def typical(name: str, way: str) -> float:
            return median(spent.get((name, way), 0.0) for spent in self.spent)

        spent = {name: (typical(name, "forward"), typical(name, "backward")) for name in self.seen}
        total = sum(map(sum, spent.values())) or 1.0
        return tuple(
            Row(
                name,
                seen.type,
                seen.outputs,
                seen.nbytes,
                *spent[name],
                sum(spent[name]) / total,
                *seen.gflops(*spent[name]),
                seen.algorithms(self._backend),
            )
            for name, seen in self.seen.items()
        )


class _Timed:
    """Stands for the layer of a step: the same, and the time is taken.

    What a step of several layers does to the derivative before it reaches the first of them is the Plan's
    work: its time is that since the step before.
    """

    def __init__(self, step: Step, watch: _Watch) -> None:
        self._step, self._layer, self._watch = step, step.layer, watch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._layer, name)

    def forward(self, ctx: Context, inputs: Sequence[Any], params: Sequence[Any]) -> list[Any]:
        begun = self._watch.now()
        outputs = self._layer.forward(ctx, inputs, params)
        self._took("forward", begun)
        if self._step.name not in self._watch.seen:
            self._watch.seen[self._step.name] = _Seen.of(self._step, ctx, inputs, params, outputs)
        return outputs

    def backward(self, ctx: Context, params: Sequence[Any], der_outputs: Sequence[Any]) -> Any:
        begun = self._watch.last if self._step.fused else self._watch.now()
        ders = self._layer.backward(ctx, params, der_outputs)
        self._took("backward", begun)
        return ders

    def _took(self, way: str, begun: float) -> None:
        self._watch.last = self._watch.now()
        self._watch.spent[-1][self._step.name, way] += self._watch.last - begun


@dataclass(frozen=True)
class _Seen:
    """What a layer was given and made: shapes."""

    step: Step
    wanted: tuple[bool, bool]  # the derivatives of x, of w
    inputs: tuple[Shape, ...]
    params: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    nbytes: int
    kept: bool  # the patches, for backward

    @classmethod
    def of(
        cls, step: Step, ctx: Context, inputs: Sequence[Any], params: Sequence[Any], outputs: Sequence[Any]
    ) -> _Seen:
        x, w, y = (tuple(tuple(array.shape) for array in arrays) for arrays in (inputs, params, outputs))
        wanted = any(ctx.wants_inputs[:1]), any(ctx.wants_params[:1])
        return cls(step, wanted, x, w, y, sum(array.nbytes for array in outputs), bool(ctx.patches))

    @property
    def type(self) -> str:
        """The layers of the step, with + between."""
        steps = self.step.fused.plain if self.step.fused else (self.step,)
        return "+".join(type(step.layer).__name__ for step in steps)

    @property
    def convolution(self) -> Conv | ConvTranspose | None:
        """The layer, if it convolves (not by single numbers, as without filters)."""
        layer = self.step.layer
        return layer if isinstance(layer, Conv | ConvTranspose) and self.inputs and self.params else None

    def gflops(self, forward_ms: float, backward_ms: float) -> tuple[float | None, float | None]:
        """Billions of operations a second, forward and backward."""
        if self.convolution is None:
            return None, None
        # Each output pixel of a convolution, or input pixel of its transpose, meets a filter of w.
        pixels = self.outputs[0] if isinstance(self.convolution, Conv) else self.inputs[0]
        operations = 2e-6 * prod(pixels) * prod(self.params[0][1:])
        back = operations * sum(self.wanted)
        return (
            operations / forward_ms if forward_ms else None,
            back / backward_ms if back and backward_ms else None,
        )

    def algorithms(self, backend: Backend) -> Mapping[str, str] | None:
        """What the backend chooses for a convolution's forward, dzdx and dzdw, where it says so."""
        conv = self.convolution
        choice = None if backend.name != "numpy" else getattr(numpy_convolution, "algorithms", None)
        if choice is None or not isinstance(conv, Conv):
            return None
        chosen = choice(self.inputs[0], self.params[0], conv.stride, conv.pad, conv.dilate)
        if self.kept:
            chosen |= {"dzdw": "kept"}
        wanted = zip(KINDS, (True, *self.wanted), strict=True)
        return {kind: chosen[kind] for kind, is_wanted in wanted if is_wanted and kind in chosen}


def _cells(row: Row) -> tuple[str, ...]:
    rates = [f"{r:.0f}" if r >= 10 else f"{r:.2g}" for r in (row.forward_gflops, row.backward_gflops) if r]
    chosen = list((row.algorithms or {}).values())
    return (
        row.name,
        row.type,
        ", ".join(map(times, row.outputs)),
        human_bytes(row.nbytes),
        _ms(row.forward_ms),
        _ms(row.backward_ms) if row.backward_ms else "",
        f"{row.share:.1%}",
        "/".join(rates),
        " ".join(chosen if len(set(chosen)) > 1 else chosen[:1]),
    )


def _ms(value: float) -> str:
    return f"{value:.1f}" if value >= 100 else f"{value:.2f}" if value >= 1 else f"{value:.3f}"
