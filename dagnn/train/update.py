"""Steps of a solver as part of the graphs of evaluations, which then are whole steps of training."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from operator import is_
from typing import TYPE_CHECKING, Any

from ..backends.services import Move
from .solvers.elementwise import Elementwise, only_holder

if TYPE_CHECKING:
    from ..capture import Results
    from ..net import DagNN
    from ..variables import Param
    from .solvers import Solver


class Updates:
    """Makes the steps of a solver with which the graphs of a net end; see `capture.borrowing`.

    Nobody waits for the device before a step: it moves nothing there if an objective or a derivative isn't
    finite, nor does any step after it until `good` is set to True again.
    """

    def __init__(self, net: DagNN, solver: Elementwise, objectives: Iterable[str]) -> None:
        self.net, self.solver, self.objectives = net, solver, tuple(objectives)
        self.scale = 1.0  # of derivatives
        self.made = False  # whether the last evaluation made a step
        with net.backend.evaluation():
            self.good = net.backend.finite([])
            self.good &= net.backend.finite([])  # compiled now, not while a graph is recorded

    @staticmethod
    def of(net: DagNN, solver: Solver, objectives: Iterable[str]) -> Updates | None:
        """None where evaluations aren't captured, or the solver doesn't move all parameters at once."""
        if not net.capture or not isinstance(solver, Elementwise):
            return None
        kernel = solver._known_kernel()
        known = bool(kernel) and net.backend.steps(kernel) is not None
        return Updates(net, solver, objectives) if known else None

    def begin(self, derived: Collection[str]) -> Update:
        """The step of a graph to come; what it can't do while it is recorded is done now."""
        return Update(self, derived)


class Update:
    """A step of all parameters that have a derivative, in their arrays, of which nobody else holds one."""

    def __init__(self, updates: Updates, derived: Collection[str]) -> None:
        net, solver = updates.net, updates.solver
        self._updates, self._solver = updates, solver
        self._moving = solver._moving(net, derived)
        for param in self.held():
            param._own(param._value.copy(order="K"))
        kernel = solver._known_kernel()
        steps = net.backend.steps(kernel)
        assert steps is not None
        self._steps = steps
        solver._settle(steps, self._moving)
        self._slots = [solver._slots_of(one) for one in self._moving]
        self._states: list[Any] = []  # of the solver, as the last launch left them
        self._numbers: Any = None  # of the last launch
        moves = {one.name for one in self._moving}
        self._methods = [(net.params[name], net.params[name].train_method, name in moves) for name in derived]
        self._prepare({one.name: one.param._value for one in self._moving})
        steps.launch(net.backend.zeros((), bool))  # compiles, and moves nothing

    def _prepare(self, ders: Any) -> None:
        moves = [
            Move(one.param._value, one.param._value, ders[one.name], slots, ())
            for one, slots in zip(self._moving, self._slots, strict=True)
        ]
        self._steps.prepare(moves)

    def record(self, results: Results) -> None:
        """Look whether all is finite, and make a step if so."""
        updates, ders = self._updates, results.ders_of_params
        objectives = [results.values[name] for name in updates.objectives]
        updates.good &= updates.net.backend.finite([*objectives, *ders.values()])
        self._prepare(ders)
        self._steps.launch(updates.good)

    def held(self) -> list[Param]:
        """Parameters that it moves, and whose arrays somebody else holds now."""
        return [one.param for one in self._moving if not only_holder(one.param, "_value")]

    def fits(self) -> bool:
        """Whether the same parameters move, by the same arrays of the solver."""
        solver = self._solver
        rate, decay, state = solver.learning_rate, solver.weight_decay, solver.state
        for param, method, moves in self._methods:
            moves_now = bool(rate * param.learning_rate or decay * param.weight_decay)
            if param.train_method != method or (method == "gradient" and moves_now != moves):
                return False
        if len(state) == len(self._states) and all(map(is_, state.values(), self._states)):
            return True
        return all(
            one.state is None or (one.name in state and all(map(is_, solver._slots_of(one), slots)))
            for one, slots in zip(self._moving, self._slots, strict=True)
        )

    def ready(self) -> None:
        """Bring rates, and the numbers of the steps, to the device, where they changed."""
        numbers = self._solver._counted_numbers(self._moving), 1 / self._updates.scale
        if numbers != self._numbers:
            self._steps.renumber(*numbers)
            self._numbers = numbers
        self._states = list(self._solver.state.values())
        for one in self._moving:
            one.param.version += 1
        self._updates.made = True
