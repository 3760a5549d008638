"""What all solvers share: which parameters move, and the state that moves them."""

from __future__ import annotations

import sys
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from math import inf
from typing import TYPE_CHECKING, Any, ClassVar, NamedTuple, cast

import numpy as np

from ...errors import DTypeError, OptionError, ShapeError

if TYPE_CHECKING:
    from ...backends.base import Array, Backend
    from ...net import DagNN
    from ...variables import Param

State = dict[str, Any]


class Moving(NamedTuple):
    """A parameter that moves; `state` is None where it is averaged, over `fanout` layers."""

    name: str
    param: Param
    state: State | None
    fanout: int


class Solver:
    """Base of all solvers: a dataclass of options, and `update`, which moves one parameter.

    A step moves every trainable parameter that has a derivative, except where learning rate and weight
    decay are both 0, as MatConvNet's `cnn_train_dag` does:

        learning rate = solver's learning_rate × parameter's learning_rate
        weight decay  = solver's weight_decay × parameter's weight_decay

    Parameters trained by "average" (batch-normalisation moments) follow `average` in every solver.
    Derivatives are taken as they are: seed with {"objective": 1 / batch_size} for the mean over a batch.
    Half-precision parameters move in float32 and are rounded once, at the end.

    Attributes
    ----------
    learning_rate, weight_decay : options, which may change between steps.
    state : what is remembered of each parameter, by its name; `slots` are its arrays. It appears with the
        parameter's first step and is forgotten when the net no longer has the name, so that a new or
        renamed parameter starts afresh. Where shape or dtype changed, `step` raises before anything moved.

    A solver of your own has its options as fields, names its arrays in `slots`, and defines `update`:

    >>> from dataclasses import dataclass
    >>> @dataclass(eq=False)
    ... class SignDescent(Solver):
    ...     learning_rate: float = 0.001
    ...     weight_decay: float = 0.0
    ...
    ...     def update(self, value, der, state, learning_rate, weight_decay):
    ...         return value - learning_rate * np.sign(decayed(value, der, weight_decay)), state
    >>> SignDescent(0.5).update(np.array([1.0, 2.0]), np.array([-3.0, 4.0]), {}, 0.5, 0)[0]
    array([1.5, 1.5])
    """

    learning_rate: float
    weight_decay: float

    slots: ClassVar[tuple[str, ...]] = ()
    limits: ClassVar[dict[str, tuple[float, float]]] = {  # at least, less than
        "learning_rate": (0, inf),
        "weight_decay": (0, inf),
        "momentum": (0, 1),
        "rho": (0, 1),
        "beta1": (0, 1),
        "beta2": (0, 1),
        "epsilon": (sys.float_info.min, inf),
    }

    def __post_init__(self) -> None:
        self.state: dict[str, State] = {}
        self._backend: Backend | None = None

    def __setattr__(self, name: str, value: Any) -> None:
        if name in self.limits:
            low, high = self.limits[name]
            if not isinstance(value, int | float | np.number) or not low <= value < high:
                raise OptionError(
                    f"{type(self).__name__}: {name} is at least {low} and less than {high}. "
                    f"Received: {value!r}"
                )
            value = float(value)  # NumPy's float64 would make float64 of float32
        super().__setattr__(name, value)

    def update(
        self, value: Array, der: Array, state: State, learning_rate: float, weight_decay: float
    ) -> tuple[Array, State]:
        """One parameter's (value, state) after a step; its rates are products of the solver's and its own.

        A function of its arguments and the options alone. `value` and `der` are only read; `state` is given
        away: its arrays may be reused for the one returned.
        """
        raise NotImplementedError

    def initial(self, value: Array) -> State:
        """The state before the first step: zeros like `value` in every slot."""
        return {slot: np.zeros_like(value) for slot in self.slots}

    def step(self, net: DagNN) -> None:
        """Move the parameters of `net` along the derivatives its last evaluation left.

        Raises
        ------
        ShapeError, DTypeError : the state of a parameter is not like its value any more.
        """
        with net.backend.evaluation():
            self._step_all(self._moving(net))

    def _moving(self, net: DagNN, derived: Collection[str] | None = None) -> list[Moving]:
        """The parameters to move, checked: of those `derived`, default: of those that have a derivative."""
        self._follow(net)
        if derived is None:
            derived = {name for name, param in net.params.items() if param.der is not None}
        fanout = Counter(name for node in net.layers.values() for name in node.params)
        moving = []
        for name, param in net.params.items():
            if not param.trainable or name not in derived:
                continue
            if param.train_method == "average":
                moving.append(Moving(name, param, None, fanout[name]))
            elif any(self._rates(param)):
                moving.append(Moving(name, param, self._state_for(name, param), fanout[name]))
        return moving

    @property
    def keeps_nothing(self) -> bool:
        """Whether a step certainly keeps no array of a derivative, which may then be written over."""
        return False

    def _step_all(self, moving: Sequence[Moving]) -> None:
        for name, param, state, fanout in moving:
            if state is not None:
                self.state[name] = self._step(param, state)
            else:
                value = average(_wide(param.value), _wide(param.der), float(param.learning_rate), fanout)
                self._give(param, value)

    def state_dict(self) -> dict[str, Any]:
        """A copy of the state as NumPy arrays and integers, for `dagnn.save(net, path, extra=...)`:

        {"solver": class name, "params": {parameter: {slot: array, ...}}}. Options are not in it.
        """
        params = {name: {k: self._to_numpy(a) for k, a in s.items()} for name, s in self.state.items()}
        return {"solver": type(self).__name__, "params": params}

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state_dict` returned, exactly; what was remembered is replaced.

        Raises
        ------
        OptionError : it is another solver's, or no solver's.
        """
        kind, params = state.get("solver"), state.get("params")
        if kind != type(self).__name__ or not isinstance(params, dict):
            raise OptionError(
                f"{type(self).__name__} reads the state of {type(self).__name__}. Received: that of {kind}"
            )
        expected = set(self.initial(np.zeros(())))
        for name, slots in params.items():
            if not isinstance(slots, dict) or set(slots) != expected:
                raise OptionError(
                    f"{type(self).__name__} remembers {sorted(expected)} of every parameter. "
                    f"Received: {sorted(slots) if isinstance(slots, dict) else slots!r} of {name!r}"
                )
        self.state = {
            name: {k: a if k not in self.slots else np.array(a) for k, a in slots.items()}
            for name, slots in params.items()
        }
        self._backend = None

    def _rates(self, param: Param) -> tuple[float, float]:
        return (
            self.learning_rate * float(param.learning_rate),
            self.weight_decay * float(param.weight_decay),
        )

    def _step(self, param: Param, state: State) -> State:
        """Move one parameter; returns its state."""
        value, state = self.update(_wide(param.value), _wide(param.der), state, *self._rates(param))
        self._give(param, value)
        return state

    def _give(self, param: Param, value: Any) -> None:
        backend, old = cast("Backend", self._backend), cast("Array", param.value)
        param._own(backend.asarray(value).astype(old.dtype, copy=False))

    def _follow(self, net: DagNN) -> None:
        """Forget what the net no longer has, and move what is remembered to its backend."""
        self.state = {name: slots for name, slots in self.state.items() if name in net.params}
        if self._backend is not net.backend:
            move = net.backend.asarray
            self.state = {
                name: {k: move(self._to_numpy(a)) if k in self.slots else a for k, a in slots.items()}
                for name, slots in self.state.items()
            }
            self._backend = net.backend

    def _state_for(self, name: str, param: Param) -> State:
        state, value = self.state.get(name), cast("Array", param.value)
        dtype = wide(value.dtype)
        if state is None:
            return self.initial(value.astype(dtype, copy=False))
        for slot in self.slots:
            for what, error in (("shape", ShapeError), ("dtype", DTypeError)):
                had, has = getattr(state[slot], what), dtype if what == "dtype" else value.shape
                if had != has:
                    raise error(
                        f"{type(self).__name__} remembers {slot!r} of parameter {name!r} with {what} {had}. "
                        f"To start it afresh: del solver.state[{name!r}]. "
                        f"Received: a parameter of {what} {has}"
                    )
        return state

    def _to_numpy(self, a: Any) -> Any:
        if isinstance(a, int):
            return a
        return np.array(a if self._backend is None else self._backend.to_numpy(a))


def average(value: Any, new: Any, rate: float, fanout: int) -> Any:
    """A running mean: (1 - rate) value + rate new / fanout, `fanout` the number of layers fed."""
    return (1 - rate) * value + (rate / fanout) * new


def decayed(value: Array, der: Array, weight_decay: float) -> Array:
    """der + weight_decay value: the derivative with that of weight_decay / 2 |value|² added."""
    return der + weight_decay * value if weight_decay else der


def wide(dtype: Any) -> np.dtype:
    """`dtype`, or single precision where that is more."""
    return np.promote_types(dtype, np.float32)


def _wide(a: Any) -> Any:
    return a.astype(wide(a.dtype), copy=False)
