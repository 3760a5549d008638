"""A memory budget: the Plan keeps what fits from forward to backward, and makes the rest again.

Cut into segments, a net needs to keep only what these read: just before the backward steps of a segment,
its forward steps run again (Chen et al. 2016, arXiv:1604.06174). Random numbers are keyed by layer and states
are put back, so that nothing comes out differently.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from .errors import MemoryBudgetError
from .keeping import settled
from .layers import Conv
from .layers.layer import Context, Layer
from .nbytes import readable
from .overwriting import derivatives_in_place
from .plan import Arrays, Form, Plan, Segment, Step, run, with_lifetimes
from .rehearsal import Made, Rehearsal, record

# ---- choosing


def at_most(forms: Mapping[str, Form], others: Mapping[str, Form]) -> bool:
    """Whether no array is larger than the other of its name, along any axis."""
    return all(
        dtype == others[name][1]
        and len(shape) == len(others[name][0])
        and all(n <= most for n, most in zip(shape, others[name][0], strict=True))
        for name, (shape, dtype) in forms.items()
    )


def within(plan: Plan, budget: int, values: Arrays, context: Callable[[Step], Context]) -> Plan:
    """The plan, rewritten so that its evaluation takes at most `budget` bytes.

    Of those that do, the one that makes the least again. MemoryBudgetError if there is none.
    """
    made, forms = record(plan, values, context)
    least: list[int] = []

    def fitting(candidate: Plan) -> Plan | None:
        rehearsal = Rehearsal(candidate, made, forms)
        least[:] = [min(*least, rehearsal.peak)] if least else [rehearsal.peak]
        return candidate if rehearsal.peak <= budget else None

    if (
        fits := fitting(plan)
        or fitting(plan := settled(plan))
        or fitting(plan := derivatives_in_place(plan, forms))
    ):
        return fits
    best, best_cost = None, 0
    for groups in _partitions(plan, made):
        cost, fits = _fewest(plan, groups, made, fitting)
        if fits is not None and (best is None or cost < best_cost):
            best, best_cost = fits, cost
    if best is None:
        raise MemoryBudgetError(
            f"memory_budget of {readable(budget)} is too small: this evaluation needs at least "
            f"{readable(least[0])}"
        )
    return best


def _fewest(
    plan: Plan,
    groups: Sequence[Sequence[Step]],
    made: Mapping[str, Made],
    fitting: Callable[[Plan], Plan | None],
) -> tuple[int, Plan | None]:
    """The plan that runs as few of the groups again as will fit, by bisection; and the cost."""
    costs = [_cost_again(group, made) for group in groups]
    weights = [sum(made[step.name].nbytes for step in group) for group in groups]
    # All but the last, whose backward comes at once; first those that save most for their cost.
    order = sorted(range(len(groups) - 1), key=lambda k: weights[k] / max(1, costs[k]), reverse=True)
    low, high = 1, len(order)
    best = fitting(_recomputing(plan, groups, sorted(order)))
    while best is not None and low < high:
        middle = (low + high) // 2
        if (fits := fitting(_recomputing(plan, groups, sorted(order[:middle])))) is None:
            low = middle + 1
        else:
            high, best = middle, fits
    return sum(costs[k] for k in order[:high]), best


def _partitions(plan: Plan, made: Mapping[str, Made]) -> Iterator[list[list[Step]]]:
    """Ways to cut the steps from the first to the last that carry derivatives into segments."""
    carrying = [k for k, step in enumerate(plan.steps) if step.carries]
    if not carrying:
        return
    steps = plan.steps[carrying[0] : carrying[-1] + 1]
    across = _across(steps, made)
    total = sum(made[step.name].nbytes for step in steps)
    seen = set()
    for convolved in (False, True):  # cut anywhere, or only where no convolution need be made again
        for parts in (2, 3, 4, 6, 8, 11, 16, 23, 32, 45, 64, 90, 128):
            groups, group = [], list[Step]()
            cuts = _cuts(steps, across, made, total / parts, convolved)
            for k, step in enumerate(steps):
                group.append(step)
                if k in cuts:
                    groups.append(group)
                    group = []
            groups += [group] if group else []
            groups = [g for g in groups if any(step.carries for step in g)]
            shape = tuple(len(g) for g in groups)
            if len(groups) > 1 and shape not in seen:
                seen.add(shape)
                yield groups


def _cuts(
    steps: Sequence[Step], across: Sequence[int], made: Mapping[str, Made], most: float, convolved: bool
) -> set[int]:
    """The numbers of the steps to cut after: the cheapest place in the second half of `most` bytes."""
    cuts, weight, best = set[int](), 0, None
    for k, step in enumerate(steps):
        weight += made[step.name].nbytes
        allowed = not convolved or _is_silent(step)
        if allowed and weight >= most / 2 and (best is None or across[k] <= across[best]):
            best = k
        if weight >= most and best is not None:
            cuts.add(best)
            weight, best = sum(made[s.name].nbytes for s in steps[best + 1 : k + 1]), None
    return cuts


def _across(steps: Sequence[Step], made: Mapping[str, Made]) -> list[int]:
    """For each step, the bytes of variables made up to it that later ones read."""
    last = {name: k for k, step in enumerate(steps) for name in step.reads}
    sizes = [0] * (len(steps) + 1)
    for k, step in enumerate(steps):
        for name, ref in made[step.name].outputs.items():
            for j in range(k, last.get(name, k)):
                sizes[j] += ref.nbytes
    return sizes


def _is_silent(step: Step) -> bool:
    """Whether all that backward needs of the step is known without its output."""
    return type(step.layer) is Conv and (step.fused is None or step.fused.relu is None)


def _cost_again(group: Sequence[Step], made: Mapping[str, Made]) -> int:
    return sum(made[step.name].cost for step in _again(group) if not isinstance(step.layer, _Silent))


def _again(group: Sequence[Step]) -> list[Step]:
    """The steps of a segment as they run again: those that backward needs, and what these need."""
    needed: set[str | None] = set()
    steps = []
    for step in reversed(group):
        read = not needed.isdisjoint(step.outputs)
        if step.remembers or read:
            if _is_silent(step) and not read:
                step = replace(step, layer=_Silent(step.layer), outputs=(None,), fused=None)
            steps.append(step)
            needed.update(step.reads)
    return steps[::-1]


class _Silent(Layer):
    """In place of a convolution whose output nobody reads: saves what backward needs, and that is all."""

    def __init__(self, layer: Any) -> None:
        self.layer = layer

    def forward(self, ctx: Context, inputs: Sequence[Any], params: Sequence[Any]) -> list[Any]:
        self.layer.keep(ctx, inputs)
        return [None]


def _recomputing(plan: Plan, groups: Sequence[Sequence[Step]], chosen: Sequence[int]) -> Plan:
    """The plan that runs the `chosen` groups of its steps again."""
    segments, claimed = {}, set(plan.kept_values)
    dropped, checkpoints = set[str](), set(plan.kept_values)
    for k in chosen:  # in the order of execution, which is the reverse of that in which they run again
        steps = _again(groups[k])
        made = {name for step in steps for name in step.outputs}
        reads = dict.fromkeys(name for step in steps for name in step.reads if name not in made)
        carrying = [step.name for step in groups[k] if step.carries]
        segments[carrying[-1]] = Segment(
            with_lifetimes(steps, ()), tuple(reads), tuple(name for name in reads if name not in claimed)
        )
        claimed.update(reads)
        checkpoints.update(reads)
        dropped.update(step.name for step in steps)
    first = [replace(step, saves=step.name not in dropped) for step in plan.steps]
    return replace(plan, steps=with_lifetimes(first, checkpoints), segments=segments)


# ---- running


class Replay:
    """Follows a plan within a budget: no memory lies idle; what runs again has what it had the first time.

    Idle memory would count; and a large block that is used again for a small array holds more than was
    rehearsed.
    """

    def __init__(self, plan: Plan, values: Arrays, context: Callable[[Step], Context], backend: Any) -> None:
        self.plan, self.values, self.context, self.backend = plan, values, context, backend
        self.states: dict[str, dict[str, Any]] = {}

    def first(self, step: Step) -> Context:
        """The context of a step in forward."""
        self.backend.release_idle()
        ctx = self.context(step)
        if not step.saves:
            self.states[step.name] = copy.deepcopy(ctx.state)
        return ctx

    def again(self, step: Step) -> Context:
        """The context of a step that runs once more, with the state it found the first time."""
        self.backend.release_idle()
        ctx = self.context(step)
        ctx.state = self.states.pop(step.name)
        return ctx

    def before(self, step: Step) -> dict[str, Context]:
        """Run what `step` needs before it goes backward: the contexts of its segment."""
        segment, contexts = self.plan.segments.get(step.name), {}
        if segment is not None:
            contexts = run(segment.steps, {n: self.values[n] for n in segment.reads}, {}, self.again)
            for name in segment.releases:
                del self.values[name]
        self.backend.release_idle()
        return contexts
