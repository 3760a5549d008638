"""Steps that treat every element alike: one pass over memory, and in place where nobody could see it."""

from __future__ import annotations

import sys
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from ...backends.numpy import memory, passes, threads
from ...backends.services import Move
from .solver import Moving, Solver, State, wide

if TYPE_CHECKING:
    from ...backends.base import Array
    from ...backends.services import Steps
    from ...net import DagNN
    from ...variables import Param

Rule = Callable[..., None]
PIECE = 1 << 17
"""Elements of a piece: enough for threads to seldom wait for the interpreter, few enough for the caches."""


class Elementwise(Solver):
    """Base of solvers whose step of one element needs no other: they define `rule` instead of `update`.

    NumPy's arrays are cut into pieces that stay in cache while a thread does all of a step to them. Where a
    backend knows the rule by the name `kernel`, it moves all parameters at once, by `numbers`.
    """

    kernel: ClassVar[str] = ""

    def rule(self, state: State, learning_rate: float, weight_decay: float) -> Rule:
        """A step as work(new, value, der, *slots) on pieces of arrays, which writes `new` and the slots.

        `new` may be `value` itself.
        """
        raise NotImplementedError

    def numbers(self, state: State, learning_rate: float, weight_decay: float) -> tuple[float, ...]:
        """What `rule` computes with, but for arrays."""
        raise NotImplementedError

    def update(
        self, value: Array, der: Array, state: State, learning_rate: float, weight_decay: float
    ) -> tuple[Array, State]:
        """(w, state) of one parameter after one step; see `Solver.update`."""
        new = passes.like(value) if isinstance(value, np.ndarray) else np.empty_like(value)
        return new, self._move(new, value, der, state, learning_rate, weight_decay)

    def _move(
        self, new: Array, value: Array, der: Array, state: State, learning_rate: float, weight_decay: float
    ) -> State:
        state = self._counted({k: _in_order_of(value, a) if k in self.slots else a for k, a in state.items()})
        work = self.rule(state, learning_rate, weight_decay)
        in_pieces(work, new, value, der, *(state[slot] for slot in self.slots))
        return state

    def _counted(self, state: State) -> State:
        """`state` with what it has beside arrays as of this step."""
        return state

    def _step(self, param: Param, state: State) -> State:
        if type(self).update is not Elementwise.update or not _may_write(param):
            return super()._step(param, state)
        value: Any = param._value
        value.setflags(write=True)
        try:
            return self._move(value, value, param.der, state, *self._rates(param))
        finally:
            param._own(value)

    def _follow(self, net: DagNN) -> None:
        if self._backend is not net.backend:
            self._at_once: Steps | None = None
            self._homes: dict[str, State] = {}  # slots in the flat buffers of the backend
            kernel = self._known_kernel()
            self._at_once = net.backend.steps(kernel) if kernel else None
        super()._follow(net)

    def _known_kernel(self) -> str:
        """The kernel's name, unless a subclass without a kernel of its own has changed the step."""
        steps = ("rule", "update", "initial", "kernel")
        owner = next(kind for kind in type(self).__mro__ if any(name in vars(kind) for name in steps))
        return vars(owner).get("kernel", "")

    @property
    def keeps_nothing(self) -> bool:
        """Whether a step certainly keeps no array of a derivative: where nobody has changed the rule."""
        return bool(self._known_kernel())

    def _step_all(self, moving: Sequence[Moving]) -> None:
        if self._at_once is None:
            super()._step_all(moving)
        else:
            self._prepare(self._at_once, moving)
            self._at_once.launch()

    def _prepare(self, steps: Steps, moving: Sequence[Moving]) -> None:
        """Let the next launch of `steps` move these parameters, which have their new arrays already."""
        self._settle(steps, moving)
        numbers, moves = self._counted_numbers(moving), []
        for one, given in zip(moving, numbers, strict=True):
            param = one.param
            mine = only_holder(param, "_value")
            value: Any = param._value
            if mine:
                param.version += 1
            else:
                param._own(np.empty_like(value))
            moves.append(Move(param._value, value, param.der, self._slots_of(one), given))
        steps.prepare(moves)

    def _slots_of(self, one: Moving) -> tuple[Any, ...]:
        return () if one.state is None else tuple(self.state[one.name][slot] for slot in self.slots)

    def _counted_numbers(self, moving: Sequence[Moving]) -> list[tuple[float, ...]]:
        """What a step of each parameter computes with; the step is counted."""
        found: list[tuple[float, ...]] = []
        for name, param, state, fanout in moving:
            if state is None:
                rate = float(param.learning_rate)
                found.append((1 - rate, rate / fanout))
            else:
                state = self.state[name] = self._counted(self.state[name])
                found.append(self.numbers(state, *self._rates(param)))
        return found

    def _settle(self, steps: Steps, moving: Sequence[Moving]) -> None:
        """Bring slots that are elsewhere, or in another order of memory, into flat buffers."""
        loose = []
        for name, param, state, _ in moving:
            if state is None:
                continue
            self.state[name], home, order = state, self._homes.get(name, {}), _order(param._value)
            if any(state[k] is not home.get(k) or _order(state[k]) != order for k in self.slots):
                loose.append((name, param._value))
        self._homes = {name: home for name, home in self._homes.items() if name in self.state}
        flat = steps.slots([value for _, value in loose], len(self.slots)) if loose else []
        for (name, _), arrays in zip(loose, flat, strict=True):
            home = self._homes[name] = dict(zip(self.slots, arrays, strict=True))
            for slot, array in home.items():
                array[...] = self.state[name][slot]
            self.state[name] = self.state[name] | home


def in_pieces(work: Rule, *arrays: Array) -> None:
    """work(*pieces) for all pieces of `arrays`; for CuPy's arrays, of which none are made, work(*arrays)."""
    if not all(isinstance(a, np.ndarray) for a in arrays):
        work(*arrays)
        return
    order = _order(arrays[0])
    flat = [a.transpose(order) for a in arrays]
    if all(a.flags.c_contiguous for a in flat):
        flat = [a.reshape(-1) for a in flat]
        threads.each(lambda k: work(*(a[k : k + PIECE] for a in flat)), range(0, flat[0].size, PIECE))
    else:  # memory in different orders
        passes.in_pieces(work, *arrays)


def scratch(piece: Array) -> Array:
    """An array like `piece` with arbitrary contents."""
    if isinstance(piece, np.ndarray):
        return memory.empty(piece.shape, piece.dtype)
    return np.empty_like(piece)


def decayed_piece(value: Array, der: Array, weight_decay: float, out: Array) -> Array:
    """der + weight_decay value, in `out`; without decay der itself."""
    if not weight_decay:
        return der
    np.multiply(value, weight_decay, out=out)
    return np.add(out, der, out=out)


def only_holder(owner: Any, name: str) -> bool:
    """Whether `owner` alone, by its attribute `name`, holds an array and its memory.

    Views, buffers and tensors made of an array hold the array itself or one that it is a view of,
    therefore all of these are counted. Where references can't be counted, the answer is no.
    """
    while _ALONE is not None and _references(owner, name) == _ALONE:
        owner, name = getattr(owner, name), "base"
        if isinstance(owner, memory._Lease):
            return True
        if owner.base is None and not isinstance(owner, np.ndarray):
            return True  # an array of CuPy
        if type(owner) is not np.ndarray or owner.base is None:
            return type(owner) is np.ndarray and owner.flags.owndata
    return False


def _references(owner: Any, name: str) -> int:
    return sys.getrefcount(getattr(owner, name))


_ALONE = None
if hasattr(sys, "getrefcount") and getattr(sys, "_is_gil_enabled", lambda: True)():
    _ALONE = _references(SimpleNamespace(array=np.empty(0)), "array")


def _may_write(param: Param) -> bool:
    """Whether a step may write into the value: NumPy's, in the type of the step, held by nobody else."""
    if not isinstance(param._value, np.ndarray) or param._value.dtype != wide(param._value.dtype):
        return False
    if param._value.dtype != getattr(param.der, "dtype", None):
        return False
    base = param._value.base
    writeable = base is None or getattr(getattr(base, "flags", None), "writeable", False)
    del base
    return writeable and only_holder(param, "_value")


def _in_order_of(value: Array, a: Array) -> Array:
    """`a` in the memory order of `value`, where both are NumPy's: copied where it has another."""
    if not isinstance(a, np.ndarray) or _order(a) == _order(value):
        return a
    new = passes.like(value, a.dtype)
    np.copyto(new, a)
    return new


def _order(a: Array) -> list[int]:
    """The axes from the outermost to the innermost in memory."""
    return sorted(range(a.ndim), key=lambda axis: -abs(a.strides[axis]) if a.shape[axis] > 1 else 0)
