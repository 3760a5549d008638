"""Rewrites of the Plan, Plan -> Plan: several layers as one step, where one kernel can do them.

A convolution or batch normalisation takes the sum of two variables behind it, and these and any sum the ReLU
behind them, into its kernel's epilogue: the maps are finished while they are in cache. In mode "test", where
nothing goes back, a batch normalisation disappears in the filters and biases of the convolution before it,
and what kernels make of filters is kept until they change. Convolutions whose outputs are concatenated write
them into the concatenation.

The net stays as it is. A variable is only fused away if one layer alone reads it and nobody asked for it; and
as a derived class may do anything, only the layers' own classes are known.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from heapq import heapify, heappop, heappush
from itertools import accumulate, pairwise
from typing import Any

from .errors import ShapeError
from .layers import BatchNorm, Concat, Conv, ReLU, Sum
from .plan import Fused, Place, Plan, Request, Step, with_lifetimes
from .variables import Param

Folds = dict[tuple[Param, ...], "Folded"]


def fuse(plan: Plan, request: Request, folds: Folds, constant: Callable[[Any], Any]) -> Plan:
    """The plan with fewer steps and the same results.

    `folds` keeps the folded filters, by parameters, for all plans of a net; `constant` is the backend's.
    """
    search = _Search(plan, request)
    folding = request.mode == "test" and not request.der_outputs
    groups = search.groups(folding)
    fused = {}
    for chain in groups:
        step = _fused(chain)
        if folding and type(step.layer) is Conv:
            step = _folded(step, chain, folds, constant)
        fused[step.name] = step
    gone = {step.name for chain in groups for step in chain[1:]}
    left = [fused.get(step.name, step) for step in plan.steps if step.name not in gone]
    steps = with_lifetimes(_placed(_ordered(left), search.asked), plan.kept_values)
    return replace(plan, steps=steps, backward_steps=tuple(step for step in reversed(steps) if step.carries))


def outdated(plan: Plan) -> bool:
    """Whether options of layers, which their owner may change, are others than when they were fused."""
    for step in plan.steps:
        fused = step.fused
        if fused is None:
            continue
        if fused.relu is not None:
            layer = fused.plain[-1].layer
            if isinstance(layer, ReLU) and (layer.leak != fused.relu or layer.backprop != "relu"):
                return True
        if fused.joins is not None and isinstance(step.layer, Concat) and step.layer.axis != 1:
            return True
        if fused.place is not None and isinstance(step.layer, Conv):
            first, end = fused.place.channels.start, fused.place.channels.stop
            if step.layer.size[0] != end - first:
                return True
    return False


class _Search:
    """Finds chains of steps that one kernel can do."""

    def __init__(self, plan: Plan, request: Request) -> None:
        self.steps = plan.steps
        self.asked = plan.kept_values | plan.kept_ders | request.der_outputs
        self.readers: dict[str, list[Step]] = defaultdict(list)
        for step in plan.steps:
            for name in step.inputs:
                self.readers[name].append(step)
        self.taken: set[str] = set()  # steps that are the tail of a chain

    def groups(self, folding: bool) -> list[list[Step]]:
        """Chains of at least two steps; where folding, also single convolutions."""
        chains = {step.name: [step] for step in self.steps}
        if folding:
            for step in self.steps:
                if type(step.layer) is Conv:
                    self._append(chains[step.name], BatchNorm)
        # A sum goes with the one of its terms that is computed last: the other one is there by then.
        for step in reversed(self.steps):
            if type(step.layer) in (Conv, BatchNorm) and step.name not in self.taken:
                self._append(chains[step.name], Sum)
        for step in self.steps:
            if type(step.layer) in (Conv, BatchNorm, Sum) and step.name not in self.taken:
                self._append(chains[step.name], ReLU)
        return [c for c in chains.values() if len(c) > 1 or (folding and type(c[0].layer) is Conv)]

    def _append(self, chain: list[Step], kind: type) -> None:
        step = self.only_reader(chain[-1])
        if step is None or type(step.layer) is not kind or step.name in self.taken:
            return
        if isinstance(step.layer, ReLU) and step.layer.backprop != "relu":
            return
        if isinstance(step.layer, Sum) and len(step.inputs) != 2:
            return
        chain.append(step)
        self.taken.add(step.name)

    def only_reader(self, step: Step) -> Step | None:
        """The one step that reads the output of this one, which nobody else wants to see."""
        if len(step.outputs) != 1 or step.outputs[0] is None or step.outputs[0] in self.asked:
            return None
        readers = self.readers[step.outputs[0]]
        return readers[0] if len(readers) == 1 else None


def _fused(chain: Sequence[Step]) -> Step:
    head, last = chain[0], chain[-1]
    fused = Fused(plain=tuple(chain))
    for before, step in pairwise(chain):
        if isinstance(step.layer, Sum):
            slot = 1 - step.inputs.index(str(before.outputs[0]))
            fused = replace(fused, add=step.inputs[slot], wants_add=step.wants_inputs[slot])
        elif isinstance(step.layer, ReLU):
            fused = replace(fused, relu=step.layer.leak)
    return replace(head, outputs=last.outputs, fused=fused)


def _folded(step: Step, chain: Sequence[Step], folds: Folds, constant: Callable[[Any], Any]) -> Step:
    """The step of a convolution whose parameters don't change meanwhile, nor what is made of them."""
    norm = chain[1].params if len(chain) > 1 and isinstance(chain[1].layer, BatchNorm) else ()
    folded = folds.setdefault((*step.params, *norm), Folded(step.params, norm, constant))
    fused = replace(step.fused or Fused(plain=tuple(chain)), folded=folded)
    return replace(step, params=(), wants_params=(), fused=fused)


def _ordered(steps: Sequence[Step]) -> list[Step]:
    """Steps in an order of execution: among those that could run, the first one.

    A fused step may have to wait for the variable it adds.
    """
    made = {name: k for k, step in enumerate(steps) for name in step.outputs if name is not None}
    waits = [{made[name] for name in step.reads if name in made} for step in steps]
    followers = defaultdict(list)
    for k, before in enumerate(waits):
        for other in before:
            followers[other].append(k)
    ready = [k for k, before in enumerate(waits) if not before]
    heapify(ready)
    ordered = []
    while ready:
        k = heappop(ready)
        ordered.append(steps[k])
        for follower in followers[k]:
            waits[follower].discard(k)
            if not waits[follower]:
                heappush(ready, follower)
    return ordered


def _placed(steps: Sequence[Step], asked: Collection[str | None]) -> list[Step]:
    """Let convolutions write their outputs where a concatenation of channels would copy them to.

    Not outputs that somebody asked for, who would keep the others' memory with them.
    """
    makers = {step.outputs[0]: step for step in steps}
    placed = {step.name: step for step in steps}
    for step in steps:
        if type(step.layer) is not Concat or step.layer.axis != 1 or len({*step.inputs}) < len(step.inputs):
            continue
        sources = [makers[name] for name in step.inputs if name in makers]
        counts = [source.layer.size[0] for source in sources if type(source.layer) is Conv]
        if len(counts) < len(step.inputs) or step.outputs[0] is None:
            continue
        for source, end in zip(sources, accumulate(counts), strict=True):
            fused = placed[source.name].fused or Fused(plain=(source,))
            if fused.place is None and source.outputs[0] not in asked:
                channels = slice(end - counts[sources.index(source)], end)
                place = Place(step.name, channels, sum(counts))
                placed[source.name] = replace(placed[source.name], fused=replace(fused, place=place))
        placed[step.name] = replace(step, fused=Fused(plain=(step,), joins=step.name))
    return list(placed.values())


def apart(plan: Plan) -> Plan:
    """The plan in which each array has memory of its own, that it can be let go of alone."""

    def alone(step: Step) -> Step:
        fused = step.fused and replace(step.fused, place=None, joins=None, owns=False)
        return replace(step, fused=fused, over=None)

    return plan.changed(alone)


class Folded:
    """Filters and biases of a convolution, with a batch normalisation in them, made anew when any changed.

    w' = w g / sigma, b' = (b - mean) g / sigma + beta.
    """

    def __init__(self, conv: Sequence[Param], norm: Sequence[Param], constant: Callable[[Any], Any]) -> None:
        self._conv, self._norm, self._constant = conv, norm, constant
        self.cast: Callable[[list[Any]], list[Any]] = list  # to another type
        self.forget()

    def forget(self) -> None:
        """Let go of what is kept."""
        self._versions: tuple[int, ...] | None = None
        self._arrays: list[Any] = []

    def __call__(self) -> list[Any]:
        """[filters, biases], or filters alone."""
        versions = tuple(param.version for param in (*self._conv, *self._norm))
        if versions != self._versions:
            self.forget()
            w, *bias = self.cast(self._fold() if self._norm else [param._value for param in self._conv])
            self._arrays = [self._constant(w), *bias]
            self._versions = versions
        return self._arrays

    def _fold(self) -> list[Any]:
        w, *bias = (param._value for param in self._conv)
        g, beta, moments = (param._value for param in self._norm)
        if w.ndim != 4 or any(len(array) != len(w) for array in (*bias, g, beta, moments)):
            raise ShapeError("the sizes of convolution and batch normalisation disagree")
        scale = g / moments[:, 1]
        shift = bias[0] - moments[:, 0] if bias else -moments[:, 0]
        return [w * scale[:, None, None, None], shift * scale + beta]
