"""Steps of solvers, for all parameters in one launch per floating type."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from ..reference.checks import Array
from ..services import Move
from .layout import strides
from .many import memory_order, places
from .modules import THREADS, Kernels
from .tables import Tables

COLUMNS, NUMBERS = 15, 8  # as in kernels/many.cu
AVERAGE, SINGLE, ELSEWHERE = 1, 2, 4
ALIGNMENT = 32  # elements between the beginnings of slots


class Steps:
    """Moves all parameters by the kernel `rule` of many.cu; see `services.Steps`.

    Slots live in flat buffers: they are made, cleared and found in one piece. Values and derivatives stay
    where kernels read and make them, and are found by their addresses: a buffer for them would cost a
    copy of all derivatives in every step.
    """

    def __init__(self, kernels: Kernels, cupy: Any, tables: Tables, rule: str) -> None:
        self._kernels, self._cupy, self._rule, self._device = kernels, cupy, rule, tables
        self._tables: dict[str, _Table] = {}  # by types
        self._types: list[str] = []  # of what was prepared
        self._held: list[Any] = []

    def slots(self, values: Sequence[Array], number: int) -> list[tuple[Array, ...]]:
        found: list[tuple[Array, ...]] = [()] * len(values)
        for dtype, members in _by_type(values).items():
            sizes = [-(-values[k].size // ALIGNMENT) * ALIGNMENT for k in members]
            flat = self._cupy.empty((number, sum(sizes)), np.promote_types(dtype, np.float32))
            for k, stop, size in zip(members, accumulate(sizes), sizes, strict=True):
                start = stop - size
                pieces = flat[:, start : start + values[k].size]
                found[k] = tuple(_lying_as(values[k], piece) for piece in pieces)
        return found

    def prepare(self, moves: Sequence[Move]) -> None:
        self._held = []
        self._types = [move.value.dtype.name for move in moves]
        rows = self._apart([self._row(move) for move in moves])
        numbers = self._apart([_padded(move.numbers, move.factor) for move in moves])
        self._tables = {name: self._tables.get(name) or _Table(self._device) for name in rows}
        for name, table in self._tables.items():
            table.fill(rows[name], np.array(numbers[name]))

    def renumber(self, numbers: Sequence[Sequence[float]], factor: float) -> None:
        found = self._apart([_padded(given, factor) for given in numbers])
        for name, table in self._tables.items():
            table.renumber(np.array(found[name]))

    def launch(self, go: Array | None = None) -> None:
        for name, table in self._tables.items():
            if table.blocks:
                args = table.rows, table.places, table.numbers, go
                self._kernels.blocks("many", self._rule, name, (table.blocks,), (THREADS,), *args)
        self._held = []

    def _apart(self, rows: Sequence[list[Any]]) -> dict[str, list[list[Any]]]:
        """Rows of what was prepared, by type."""
        found: dict[str, list[list[Any]]] = {}
        for name, row in zip(self._types, rows, strict=True):
            found.setdefault(name, []).append(row)
        return found

    def _row(self, move: Move) -> list[int]:
        """A row of the table but for the first block; its arrays are kept until the launch."""
        value, der, flags = move.value, move.der, 0 if move.slots else AVERAGE
        if der.dtype != value.dtype and der.dtype != np.float32:
            der = der.astype(value.dtype)
        if der.dtype != value.dtype:
            flags |= SINGLE
        order = memory_order(value)
        layout = [0] * 7
        if strides(der) != strides(value):
            if value.ndim > 4:
                der = self._cupy.ascontiguousarray(der.transpose(order)).transpose(np.argsort(order).tolist())
            else:
                flags |= ELSEWHERE
                missing = 4 - value.ndim
                sizes = [1] * missing + [value.shape[k] for k in order]
                layout = sizes[1:] + [0] * missing + [strides(der)[k] for k in order]
        self._held.append((move, der))
        one, two, *_ = (*(slot.data.ptr for slot in move.slots), 0, 0)
        return [value.size, move.new.data.ptr, value.data.ptr, der.data.ptr, one, two, flags, *layout]


class _Table:
    """Rows of one floating type, on the device, at the same address for as long as there are as many."""

    def __init__(self, tables: Tables) -> None:
        self._tables = tables
        self._host: tuple[Any, Any] = np.empty((0, COLUMNS), np.int64), np.empty((0, NUMBERS))
        self.places: Any = None
        self.numbers: Any = None
        self.blocks = 0

    @property
    def rows(self) -> int:
        return len(self._host[0])

    def fill(self, rows: Sequence[Sequence[int]], numbers: np.ndarray) -> None:
        """Bring to the device what changed of these rows."""
        table, self.blocks = places(rows)
        if len(rows) != self.rows:
            self.places, self.numbers = self._tables.new(table), self._tables.new(numbers)
            self._host = table, numbers
            return
        if not np.array_equal(table, self._host[0]):
            self._tables.write(self.places, table)
            self._host = table, self._host[1]
        self.renumber(numbers)

    def renumber(self, numbers: np.ndarray) -> None:
        """Bring these numbers to the device if they changed."""
        if not np.array_equal(numbers, self._host[1]):
            self._tables.write(self.numbers, numbers)
            self._host = self._host[0], numbers


def _padded(numbers: Sequence[float], factor: float) -> list[float]:
    """A row of numbers."""
    return [*numbers, *[0.0] * (NUMBERS - 1 - len(numbers)), factor]


def _by_type(values: Sequence[Array]) -> dict[str, list[int]]:
    """The numbers of arrays, by the names of their types."""
    found: dict[str, list[int]] = {}
    for k, value in enumerate(values):
        found.setdefault(value.dtype.name, []).append(k)
    return found


def _lying_as(value: Array, flat: Array) -> Array:
    """A view of flat memory with the shape of `value` and its order of memory."""
    order = memory_order(value)
    inverse = sorted(range(value.ndim), key=order.__getitem__)
    return flat.reshape([value.shape[axis] for axis in order]).transpose(inverse)
