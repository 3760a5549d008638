"""The net's variables and parameters, as its user sees them."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING, Any, Generic, TypeVar

import numpy as np

from .dtypes import is_floating
from .errors import OptionError, ReleasedError, unknown_name
from .graph import Wire
from .layers.layer import Layer, ParamSpec

if TYPE_CHECKING:
    from .backends.base import Array

T = TypeVar("T")


class Named(Mapping[str, T], Generic[T]):
    """An ordered, read-only view of things by name; a wrong name raises with the nearest ones."""

    def __init__(self, kind: str, items: dict[str, T]) -> None:
        self._kind = kind
        self._items = items

    def __getitem__(self, name: str) -> T:
        try:
            return self._items[name]
        except (KeyError, TypeError):
            raise unknown_name(self._kind, name, self._items) from None

    def __contains__(self, name: object) -> bool:
        return name in self._items

    def __iter__(self) -> Iterator[str]:
        return iter(self._items)

    def __len__(self) -> int:
        return len(self._items)

    def __repr__(self) -> str:
        return f"{self._kind}s: {', '.join(self._items)}"


@dataclass(frozen=True)
class Node:
    """A layer in its place: the `layer` object and the names of what it reads and writes.

    Places change through the net (`replace_layer`, `set_layer_inputs`, `rename_var` ...), which checks.
    """

    wire: Wire
    layer: Layer

    @property
    def name(self) -> str:
        return self.wire.name

    @property
    def inputs(self) -> list[str]:
        """Names of the variables it reads, a list of your own."""
        return list(self.wire.inputs)

    @property
    def outputs(self) -> list[str]:
        """Names of the variables it writes."""
        return list(self.wire.outputs)

    @property
    def params(self) -> list[str]:
        """Names of its parameters."""
        return list(self.wire.params)

    def __repr__(self) -> str:
        params = f", params {self.params}" if self.wire.params else ""
        return f"Node({self.name!r}: {self.inputs} -> {self.layer} -> {self.outputs}{params})"


class _State(Enum):
    RELEASED = "computed and let go of"


RELEASED = _State.RELEASED


class Var:
    """A variable: its value and derivative after `eval`, None where there was none to compute.

    A value let go of to save memory raises `ReleasedError` when read. `precious = True` keeps value and
    derivative in every evaluation.
    """

    __slots__ = ("_der", "_on_change", "_precious", "_value", "name")

    def __init__(self, name: str, on_change: Callable[[], None]) -> None:
        self.name = name
        self._value: Any = None
        self._der: Any = None
        self._precious = False
        self._on_change = on_change

    @property
    def value(self) -> Array | None:
        """The array of the last evaluation."""
        if self._value is RELEASED:
            raise ReleasedError(
                f"The value of variable {self.name!r} was released to save memory. Keep it with "
                f"net.eval(..., keep=[{self.name!r}]), net.vars[{self.name!r}].precious = True, or "
                f"net.conserve_memory = False"
            )
        return self._value

    @property
    def der(self) -> Array | None:
        """The derivative of z = sum <der_output, output> with respect to this variable."""
        if self._der is RELEASED:
            raise ReleasedError(
                f"The derivative of variable {self.name!r} was not kept. Ask for it with "
                f"net.eval(..., ders=[{self.name!r}]), net.vars[{self.name!r}].precious = True, or "
                f"net.conserve_memory = False"
            )
        return self._der

    @property
    def precious(self) -> bool:
        """Whether every evaluation keeps value and derivative."""
        return self._precious

    @precious.setter
    def precious(self, flag: bool) -> None:
        self._precious = bool(flag)
        self._on_change()

    def __repr__(self) -> str:
        if self._value is None or self._value is RELEASED:
            state = "released" if self._value is RELEASED else "no value"
        else:
            state = f"{self._value.shape} {self._value.dtype}"
        return f"Var({self.name!r}, {state}{', precious' if self._precious else ''})"


class Param:
    """A parameter: value, derivative, and how training treats it.

    `value` is read-only; assigning a new array copies it and bumps `version`, on which caches of
    transformed filters rely. `trainable = False` (see `DagNN.freeze`): no derivative is computed.
    """

    __slots__ = (
        "_adopt", "_on_change", "_train_method", "_trainable", "_value",
        "der", "learning_rate", "name", "version", "weight_decay",
    )  # fmt: skip

    def __init__(self, name: str, spec: ParamSpec, on_change: Callable[[], None]) -> None:
        self.name = name
        self._value: Any = None
        self.der: Array | None = None
        self.version = 0
        self.learning_rate = spec.learning_rate
        self.weight_decay = spec.weight_decay
        self.train_method = spec.train_method
        self._trainable = True
        self._on_change = on_change
        self._adopt: Callable[[Any], Any] = np.asarray

    @property
    def value(self) -> Array | None:
        """The array, read-only; None before `init_params`."""
        return self._value

    @value.setter
    def value(self, value: Any) -> None:
        if value is not None:
            floating = hasattr(value, "dtype") and is_floating(value.dtype)
            array = value.copy(order="K") if floating else np.array(value)
            if not floating and array.dtype.kind not in "biuf":
                raise OptionError(f"Parameter {self.name!r} takes real numbers. Received: {array.dtype}")
            if not floating:
                array = array.astype(np.float32 if self._value is None else self._value.dtype)
            value = array
        self._own(value)

    def _own(self, value: Any) -> None:
        """Take `value`, copied only to another memory order: the door for solvers and readers of files."""
        if value is not None:
            value = self._adopt(value)
        if isinstance(value, np.ndarray):
            value.setflags(write=False)
        self._value = value
        self.version += 1

    @property
    def trainable(self) -> bool:
        """Whether evaluations compute the derivative."""
        return self._trainable

    @trainable.setter
    def trainable(self, flag: bool) -> None:
        self._trainable = bool(flag)
        self._on_change()

    @property
    def train_method(self) -> str:
        """ "gradient" or "average"."""
        return self._train_method

    @train_method.setter
    def train_method(self, method: str) -> None:
        if method not in ("gradient", "average"):
            raise OptionError(f"train_method is 'gradient' or 'average'. Received: {method!r}")
        self._train_method = method

    def _copy_from(self, other: Param) -> None:
        """Take over value and settings of `other`, a parameter of another net on the same backend."""
        self.learning_rate, self.weight_decay = other.learning_rate, other.weight_decay
        self.train_method, self.trainable = other.train_method, other.trainable
        self._own(None if other._value is None else other._value.copy(order="K"))

    def __repr__(self) -> str:
        state = "no value" if self._value is None else f"{self._value.shape} {self._value.dtype}"
        return f"Param({self.name!r}, {state}{'' if self._trainable else ', frozen'})"
