"""Convolutions as graphs of cuDNN, through the module `cudnn` of nvidia-cudnn-frontend.

A problem (shapes, types, order of memory, options and what follows) becomes a graph with one plan, made once.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from math import prod
from threading import Lock
from typing import Any, NamedTuple

from ...geometry import Pair, Quad
from ..reference.checks import Array

X, W, Y, BIASES, ADD = range(1, 6)
"""The names of tensors in the graphs. Derivatives stand where what they derive stood."""

ALIGNMENT = 16  # bytes, of every tensor
RUNS = 3  # of a plan, to time it
PLANS = 4096  # that are kept: nets on images of any size ask for new ones again and again

log = logging.getLogger(__name__)


class Problem(NamedTuple):
    """A convolution ("fprop"), its derivative for x ("dgrad") or for w ("wgrad"), as cuDNN has to plan it.

    `last`: all maps and filters are channels-last. What follows is + add, + biases, and max(0, y); cuDNN has
    the sum and the ReLU only where there are biases. `apart`: the strides of a y that is part of larger maps,
    to which nothing may be added.
    """

    kind: str
    dtype: str
    last: bool
    x: Quad
    w: Quad
    y: Quad
    stride: Pair
    pad: Quad
    dilate: Pair
    biases: bool = False
    add: bool = False
    relu: bool = False
    apart: tuple[int, ...] = ()


class Rules(NamedTuple):
    """What a plan may do: round float32 to tf32, add up in an order that varies, take so many bytes."""

    tf32: bool = False
    deterministic: bool = True
    workspace: int = 1 << 30


def strides(shape: Sequence[int], last: bool) -> list[int]:
    """Of dense maps, in elements.

    >>> strides((2, 3, 4, 5), last=False), strides((2, 3, 4, 5), last=True)
    ([60, 20, 5, 1], [60, 1, 15, 3])
    """
    _, c, h, w = shape
    return [c * h * w, 1, w * c, c] if last else [c * h * w, h * w, w, 1]


def graph(cudnn: Any, problem: Problem, **place: Any) -> Any:
    """The graph of a problem; `place` is a `handle=`, or the `device_property=` of a device anywhere."""
    types = cudnn.data_type
    kinds = {
        "float16": types.HALF,
        "bfloat16": types.BFLOAT16,
        "float32": types.FLOAT,
        "float64": types.DOUBLE,
    }
    kind = kinds[problem.dtype]
    sums = types.DOUBLE if problem.dtype == "float64" else types.FLOAT
    made = cudnn.pygraph(io_data_type=kind, intermediate_data_type=sums, compute_data_type=sums, **place)

    def tensor(name: str, uid: int, shape: Sequence[int]) -> Any:
        layout = strides(shape, problem.last)
        return made.tensor(name=name, dim=list(shape), stride=layout, data_type=kind, uid=uid)

    top, bottom, left, right = problem.pad
    window = {
        "pre_padding": [top, left],
        "post_padding": [bottom, right],
        "stride": list(problem.stride),
        "dilation": list(problem.dilate),
    }
    if problem.kind == "dgrad":
        loss, w = tensor("dzdy", Y, problem.y), tensor("w", W, problem.w)
        result, uid, shape = made.conv_dgrad(loss=loss, filter=w, **window), X, problem.x
    elif problem.kind == "wgrad":
        x, loss = tensor("x", X, problem.x), tensor("dzdy", Y, problem.y)
        result, uid, shape = made.conv_wgrad(image=x, loss=loss, **window), W, problem.w
    else:
        x, w = tensor("x", X, problem.x), tensor("w", W, problem.w)
        result, uid, shape = made.conv_fprop(image=x, weight=w, **window), Y, problem.y
    layout = list(problem.apart) or strides(shape, problem.last)
    # In this order cuDNN has engines compiled beforehand, for all types.
    if problem.add:
        result.set_dim(list(shape)).set_stride(layout)
        result = made.add(a=result, b=tensor("add", ADD, shape))
    if problem.biases:
        result.set_dim(list(shape)).set_stride(layout)
        result = made.bias(input=result, bias=tensor("biases", BIASES, (1, shape[1], 1, 1)))
    if problem.relu:
        result.set_dim(list(shape)).set_stride(layout)
        result = made.relu(input=result)
    result.set_output(True).set_data_type(kind).set_dim(list(shape)).set_stride(layout).set_uid(uid)
    return made


def flat(problem: Problem) -> Problem:
    """Filters as large as the maps as filters of 1x1 on the same memory: a product of matrices.

    For 7x7 filters on maps of 7x7 cuDNN 9.28 knows nothing but its slowest engine for some derivatives.

    >>> shapes, options = ((8, 2, 7, 7), (9, 2, 7, 7), (8, 9, 1, 1)), ((1, 1), (0, 0, 0, 0), (1, 1))
    >>> flat(Problem("fprop", "float32", False, *shapes, *options))[3:6]
    ((8, 98, 1, 1), (9, 98, 1, 1), (8, 9, 1, 1))
    """
    n, *x = problem.x
    k, *w = problem.w
    if x != w or any(problem.pad):
        return problem
    size = prod(x)
    return problem._replace(x=(n, size, 1, 1), w=(k, size, 1, 1), stride=(1, 1), dilate=(1, 1))


def planned(cudnn: Any, problem: Problem, rules: Rules, **place: Any) -> Any:
    """The graph of a problem with the plan that cuDNN's heuristics like best; raises where there is none."""
    made = graph(cudnn, flat(problem), **place)
    made.validate()
    made.build_operation_graph()
    made.create_execution_plans([cudnn.heur_mode.A, cudnn.heur_mode.FALLBACK])
    made.deselect_numeric_notes(_unwanted(cudnn.numerical_note, problem, rules))
    made.deselect_workspace_greater_than(rules.workspace)
    made.check_support()
    made.build_plans()
    return made


def _unwanted(notes: Any, problem: Problem, rules: Rules) -> list[Any]:
    """What a plan must not do, in cuDNN's words."""
    unwanted = [] if not rules.deterministic else [notes.NONDETERMINISTIC]
    if problem.dtype == "float32" and not rules.tf32:
        unwanted += [notes.TENSOR_CORE, notes.DOWN_CONVERT_INPUTS, notes.REDUCED_PRECISION_REDUCTION]
        unwanted += [notes.WINOGRAD_TILE_13x13]  # which loses digits
    return unwanted


class Plan:
    """An executable graph and its workspace in bytes; whether it was chosen by time, and ever recorded."""

    def __init__(self, made: Any) -> None:
        self.graph, self.workspace = made, made.get_workspace_size()
        self.tuned = self.recorded = False


class Dnn:
    """Runs problems on a device; what cuDNN can't do is left to others, and logged once."""

    def __init__(self, cupy: Any, cudnn: Any, rules: Rules, autotune: bool) -> None:
        self._cupy, self._cudnn = cupy, cudnn
        self._rules, self._autotune = rules, autotune
        self._plans: dict[Problem, Plan | None] = {}
        self._handle, self._stream = cudnn.create_handle(), None
        self._lock = Lock()  # cuDNN has a stream per handle, and threads have theirs

    def run(self, problem: Problem, arrays: dict[int, Array], capturing: bool) -> bool:
        """Run a problem on these arrays by the name of the tensor; False where cuDNN has no plan for it.

        Every array must be aligned to `ALIGNMENT` and, but for a y apart, dense in the problem's order.
        """
        with self._lock:
            return self._run(problem, {name: array.data.ptr for name, array in arrays.items()}, capturing)

    def _run(self, problem: Problem, pointers: dict[int, int], capturing: bool) -> bool:
        if problem not in self._plans:
            self._make_room()
            self._plans[problem] = self._plan(problem)
        plan = self._plans[problem]
        if plan is None:
            return False
        plan.recorded |= capturing
        stream = self._cupy.cuda.get_current_stream().ptr
        if stream != self._stream:
            self._cudnn.set_stream(handle=self._handle, stream=stream)
            self._stream = stream
        if self._autotune and not plan.tuned and not capturing:
            self._tune(plan, pointers)
        workspace = self._cupy.cuda.alloc(plan.workspace)
        plan.graph.execute(pointers, workspace.ptr, handle=self._handle)
        return True

    def _make_room(self) -> None:
        """Forget the oldest of too many plans; a CUDA graph may still run those that were recorded."""
        if len(self._plans) >= PLANS:
            plans = self._plans.items()
            oldest = next((key for key, plan in plans if plan is None or not plan.recorded), None)
            if oldest is not None:
                del self._plans[oldest]

    def _plan(self, problem: Problem) -> Plan | None:
        try:
            return Plan(planned(self._cudnn, problem, self._rules, handle=self._handle))
        except (self._cudnn.cudnnGraphNotSupportedError, RuntimeError, ValueError) as error:
            log.info("cuDNN has no plan for %s: %s", problem, str(error).partition("\n")[0])
            return None

    def _tune(self, plan: Plan, pointers: dict[int, int]) -> None:
        """Time every plan that the rules allow, and keep the fastest."""
        plan.tuned = True
        times = {}
        for index in range(plan.graph.get_execution_plan_count()):
            try:
                plan.graph.build_plan_at_index(index)
                size = plan.graph.get_workspace_size_plan_at_index(index)
                if size <= self._rules.workspace:
                    times[index] = self._time(plan.graph, index, size, pointers), size
            except (self._cudnn.cudnnGraphNotSupportedError, RuntimeError, ValueError, MemoryError):
                continue  # not allowed, or it doesn't run here: the others remain
        if times:
            best = min(times, key=lambda index: times[index][0])
            plan.graph.build_plan_at_index(best)
            plan.workspace = times[best][1]

    def _time(self, made: Any, index: int, size: int, pointers: dict[int, int]) -> float:
        """Milliseconds of the fastest of some runs, after one that doesn't count."""
        cuda, times = self._cupy.cuda, []
        workspace = cuda.alloc(size)
        for _ in range(1 + RUNS):
            start, end = cuda.Event(), cuda.Event()
            start.record()
            made.execute_plan_at_index(pointers, workspace.ptr, index, handle=self._handle)
            end.record()
            end.synchronize()
            times.append(cuda.get_elapsed_time(start, end))
        return min(times[1:])


def find(cupy: Any, rules: Rules, autotune: bool) -> Dnn | None:
    """cuDNN for the current device, or None where it isn't installed, which is logged."""
    try:
        import cudnn  # type: ignore[import-not-found, unused-ignore]

        return Dnn(cupy, cudnn, rules, autotune)
    except (ImportError, OSError, RuntimeError) as error:
        log.info("convolutions go without cuDNN (%s): pip install 'dagnn[cuda13]'", error)
        return None
