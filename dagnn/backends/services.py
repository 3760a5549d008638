"""What the services of backends speak of."""

from __future__ import annotations

from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, NamedTuple, Protocol

Ready = Callable[[], Mapping[str, Any]]
"""Gives arrays that were on their way, by name."""


class Live(int):
    """A key of `rng` that recorded work reads from `array` each time it is done again.

    Outside of recorded work it is the number that it was made of.
    """

    array: Any

    def set(self, number: int) -> None:
        """Let recorded work see this `number` from now on."""
        self.array.fill(number)


class Recorder(Protocol):
    """Records work on a device, to have it done again as one.

    Work of one recorder uses the same memory by turns: nothing that one leaves is there after another.
    """

    def record(self, work: Callable[[], Any]) -> Callable[[], None]:
        """What does again all that `work` has the device do, with the same arrays; nothing is done before.

        Numbers of the host stay what they are; results are in the arrays that `work` keeps, for as long as
        what is returned is kept. An error says what can't be recorded.
        """

    def place(self, array: Any) -> Hashable:
        """Where an array lies, and how: to recorded work, arrays with the same place are the same."""

    def live(self, number: int) -> Live:
        """`number`, as a key of `rng` that may change between what is done again."""


class Move(NamedTuple):
    """A parameter in a step of a solver: `new`, which may be `value` itself, is where its value will be.

    `numbers` are what the rule computes with, in its own order; without slots the parameter is averaged:
    new = numbers[0] value + numbers[1] der. Elsewhere the derivative is multiplied by `factor` first.
    """

    new: Any
    value: Any
    der: Any
    slots: tuple[Any, ...]
    numbers: Sequence[float]
    factor: float = 1.0


class Steps(Protocol):
    """Steps of a solver, of all parameters at once."""

    def slots(self, values: Sequence[Any], number: int) -> list[tuple[Any, ...]]:
        """For each value, so many arrays like it in the type of the step, with arbitrary contents."""

    def prepare(self, moves: Sequence[Move]) -> None:
        """Say what the next launches are about."""

    def renumber(self, numbers: Sequence[Sequence[float]], factor: float) -> None:
        """Change the numbers and factors of what was prepared, also for launches that were recorded."""

    def launch(self, go: Any = None) -> None:
        """Make a step, unless `go`, an array without axes, then says no; nothing waits for it."""


class MemoryUse(NamedTuple):
    """Bytes that arrays take (`used`), that are held for them, used or idle (`held`), and of what.

    `held` shrinks only by `release_idle`, or where memory is short: it is nearly the most that was ever used.
    `device` names the place, "" for the memory of the machine, `total` is its size and `free` what nobody
    holds there, other programs included; `limit` is the most that may be held. None: not known, or none.

    >>> print(MemoryUse(3 << 30, 4 << 30, "device 0", 141 << 30, 130 << 30))
    3,221.2 MB in use, 4,295.0 MB held, 139,586.4 MB of the 151,397.6 MB of device 0 free
    """

    used: int
    held: int
    device: str = ""
    total: int | None = None
    free: int | None = None
    limit: int | None = None

    def __str__(self) -> str:
        text = f"{_mb(self.used)} in use, {_mb(self.held)} held"
        if self.limit is not None:
            text += f", {_mb(self.limit)} allowed"
        if self.total is not None and self.free is not None:
            text += f", {_mb(self.free)} of the {_mb(self.total)} of {self.device} free"
        return text


def _mb(n: int) -> str:
    return f"{n / 1e6:,.1f} MB"
