"""What an evaluation takes: sizes seen in a forward evaluation, and evaluations rehearsed without arrays.

How large everything is, and which arrays are one and the same, is seen in a forward evaluation that keeps
nothing. With these sizes, the evaluation of any plan that does the same can be gone through, block by block.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any, NamedTuple

import numpy as np

from .backends.numpy.threads import num_threads
from .dtypes import is_half
from .layers import Concat, Conv, Sum
from .layers.layer import Context
from .plan import PIECE, Arrays, Form, Plan, Segment, Step, owner, run

TILES, TILE = 48 << 20, 5 << 20
"""The most that a convolution's kernel gathers at a time, and for each thread if its bank is a small one."""
SMALL_BANK = 3 << 18
OVERHEAD = 1 << 19
"""Python's own objects, and what is too small to count."""


@dataclass(frozen=True)
class Ref:
    """An array as a step sees it: the variable it reads whose memory it is, or memory of its own."""

    variable: str | None
    place: int = 0
    nbytes: int = 0


@dataclass
class Made:
    """What a step made and saved in one evaluation."""

    outputs: dict[str, Ref] = field(default_factory=dict)
    saved: list[Ref] = field(default_factory=list)
    patches: list[Ref] = field(default_factory=list)  # of a convolution that keeps them
    workspace: int = 0  # what its kernels need besides, by estimate
    cost: int = 0  # of running it again, in products or so

    @property
    def nbytes(self) -> int:
        """Memory of its own."""
        own = {ref for ref in (*self.outputs.values(), *self.saved) if ref.variable is None}
        return sum(ref.nbytes for ref in own)


def record(
    plan: Plan, values: Arrays, context: Callable[[Step], Context]
) -> tuple[dict[str, Made], dict[str, Form]]:
    """Run the plan forward for its sizes alone: by step, and (shape, dtype) by variable."""
    values = dict(values)
    forms = {name: (value.shape, value.dtype) for name, value in values.items()}
    made = {}
    for step in plan.steps:
        contexts: list[Context] = []

        def apart(step: Step, contexts: list[Context] = contexts) -> Context:
            ctx = context(step)
            ctx.backend.release_idle()
            ctx.state = copy.deepcopy(ctx.state)
            contexts.append(ctx)
            return ctx

        run([replace(step, releases=())], values, forms, apart)
        made[step.name] = _made(step, contexts[0], values)
        contexts.clear()
        for name in step.releases:
            values.pop(name, None)
    return made, forms


def _made(step: Step, ctx: Context, values: Arrays) -> Made:
    elsewhere = [*(p._value for p in step.params), *_arrays(ctx.state)]
    known = {id(owner(array)): Ref(None) for array in elsewhere}
    # Two that are one array count as the layer's own input: what a silent step adds is not there again.
    known |= {id(owner(values[name])): Ref(name) for name in reversed(step.reads)}
    made, place = Made(), 0

    def ref(array: Any) -> Ref:
        nonlocal place
        place += 1
        base = array.base if type(array.base) is type(array) else array
        return known.setdefault(id(owner(array)), Ref(None, place, max(array.nbytes, base.nbytes)))

    made.outputs = {name: ref(values[name]) for name in step.outputs if name is not None}
    made.patches = [ref(array) for array in ctx.patches or ()]
    made.saved = [ref(array) for array in _arrays((ctx.saved, ctx.output))]
    arrays = [*(values[name] for name in step.reads), *(values[n] for n in made.outputs)]
    made.workspace, made.cost = _workspace(step, arrays), _cost(step, arrays)
    return made


def _arrays(saved: Any) -> Iterator[Any]:
    if isinstance(saved, Mapping):
        saved = saved.values()
    elif hasattr(saved, "nbytes") and hasattr(saved, "base"):
        yield saved
        return
    elif not isinstance(saved, Sequence) or isinstance(saved, str):
        return
    for item in saved:
        yield from _arrays(item)


def _workspace(step: Step, arrays: Sequence[Any]) -> int:
    """What kernels take besides their results: of convolutions tiles and rearranged banks, else one array."""
    x, y, layer = arrays[0] if arrays else None, arrays[-1] if arrays else None, step.layer
    if any(is_half(array.dtype) for array in arrays):  # NumPy's kernels compute in single precision
        wide = [_Wide(array.shape, 2 * array.nbytes) for array in arrays if is_half(array.dtype)]
        return _workspace(step, wide) + sum(array.nbytes for array in wide)
    if type(layer) in (Sum, Concat) or x is None or y is None:
        return 0
    if type(layer) is Conv:
        if prod(y.shape[2:]) == 1:
            return PIECE
        bank = prod(layer.size) * y.dtype.itemsize
        seen = x.shape[1] * prod(layer.size[2:]) * y.dtype.itemsize  # by one pixel of y
        most = TILES if bank > SMALL_BANK else TILE * num_threads()
        return min(most, 2 * seen * y.shape[0] * prod(y.shape[2:])) + 6 * bank
    return max(array.nbytes for array in arrays)


class _Wide(NamedTuple):
    """The size of an array of 16 bits in single precision."""

    shape: tuple[int, ...]
    nbytes: int
    dtype: np.dtype = np.dtype(np.float32)


def _cost(step: Step, arrays: Sequence[Any]) -> int:
    """Products of parameters with pixels, and some for each element that is read or written."""
    if not arrays:
        return 0
    y = arrays[-1]
    pixels = y.size // y.shape[1] if y.ndim > 1 and y.shape[1] else y.size
    weights = sum(param._value.size for param in step.params)
    return pixels * weights + 8 * sum(array.size for array in arrays)


@dataclass(eq=False)
class Block:
    """Memory, and how many hold it."""

    nbytes: int
    holders: int = 0


class Rehearsal:
    """Goes through an evaluation of a plan as `Plan` does, with blocks in place of arrays."""

    def __init__(self, plan: Plan, made: Mapping[str, Made], forms: Mapping[str, Form]) -> None:
        self.plan, self.made = plan, made
        self.nbytes = {name: prod(shape) * dtype.itemsize for name, (shape, dtype) in forms.items()}
        self.live = self.peak = 0
        self.ders: dict[str, Block] = {}
        self.own: set[str] = set()
        produced = {name for step in plan.steps for name in step.outputs}
        values = {name: Block(0) for name in forms if name not in produced}
        saved: dict[str, list[Block]] = {}
        self.run(plan.steps, values, saved)
        for name in plan.seeds:
            self.ders[name] = self.held(Block(self.nbytes[name]))
        for step in plan.backward_steps:
            if (segment := plan.segments.get(step.name)) is not None:
                self.again(segment, values, saved)
            self.back(step, saved.pop(step.name))
        if plan.copies is not None:  # derivatives of parameters once more, in single precision
            self.mark(2 * sum(block.nbytes for name, block in self.ders.items() if name.endswith(" ")))

    def held(self, block: Block) -> Block:
        self.live += 0 if block.holders else block.nbytes
        block.holders += 1
        return block

    def drop(self, block: Block) -> None:
        block.holders -= 1
        self.live -= 0 if block.holders else block.nbytes

    def mark(self, extra: int = 0) -> None:
        self.peak = max(self.peak, int(1.02 * (self.live + extra)) + OVERHEAD)

    def run(self, steps: Sequence[Step], values: dict[str, Block], saved: dict[str, list[Block]]) -> None:
        for step in steps:
            made, fresh = self.made[step.name], dict[Ref, Block]()

            def block(ref: Ref, values: dict[str, Block] = values, fresh: dict[Ref, Block] = fresh) -> Block:
                if ref.variable is not None:
                    return self.held(values[ref.variable])
                return self.held(fresh.setdefault(ref, Block(ref.nbytes)))

            outputs = {name: block(ref) for name, ref in made.outputs.items() if name in step.outputs}
            kept = [] if step.keeping is None else made.patches
            own = [block(ref) for ref in (*kept, *made.saved)]
            self.mark(made.workspace if outputs else 0)
            if step.carries and step.saves:
                saved[step.name] = own
            else:
                for one in own:
                    self.drop(one)
            values.update(outputs)
            for name in step.releases:
                if name in values:
                    self.drop(values.pop(name))

    def again(self, segment: Segment, values: dict[str, Block], saved: dict[str, list[Block]]) -> None:
        local = {name: self.held(values[name]) for name in segment.reads}
        self.run(segment.steps, local, saved)
        for block in local.values():
            self.drop(block)
        for name in segment.releases:
            self.drop(values.pop(name))

    def back(self, step: Step, saved: list[Block]) -> None:
        arriving = []
        for name in step.outputs:
            if name in self.ders:
                kept = name in self.plan.kept_ders
                arriving.append(self.held(self.ders[name]) if kept else self.ders.pop(name))
        if arriving:
            self._layer(step, arriving, saved)
        for block in (*saved, *arriving):
            self.drop(block)

    def _layer(self, step: Step, arriving: list[Block], saved: list[Block]) -> None:
        workspace, fused = self.made[step.name].workspace, step.fused
        if fused is not None and fused.relu is not None:
            if fused.owns:
                self.mark(PIECE)
            else:
                rectified = self.held(Block(arriving[0].nbytes))
                self.mark()
                self.drop(arriving[0])
                arriving[0] = rectified
            self.drop(saved.pop())  # the output, which is saved last
        if fused is not None and fused.wants_add and fused.add is not None:
            self.add(fused.add, self.held(arriving[0]))
        if not step.wants:
            return
        inputs = [name for name, wanted in zip(step.inputs, step.wants_inputs, strict=True) if wanted]
        shared = type(step.layer) is Sum  # hands the derivative on; the views of a Concat are copied
        ders = [(n, self.held(arriving[0] if shared else Block(self.nbytes[n]))) for n in inputs]
        wanted = [p for p, wanted in zip(step.params, step.wants_params, strict=True) if wanted]
        ders += [(f"{p.name} ", self.held(Block(p._value.nbytes))) for p in wanted]
        self.mark(workspace)
        while saved:
            self.drop(saved.pop())
        for name, block in ders:
            self.add(name, block)

    def add(self, name: str, block: Block) -> None:
        before = self.ders.get(name)
        if before is None:
            self.ders[name] = block
            self.own.discard(name)
            return
        if name not in self.own:
            self.ders[name] = self.held(Block(block.nbytes))
            self.own.add(name)
            self.mark()
            self.drop(before)
        self.drop(block)
