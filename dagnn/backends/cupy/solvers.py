"""Steps of solvers, for all parameters in one launch per floating type."""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from ..reference.checks import Array
from ..services import Move
from .layout import strides
from .many import memory_order, places
from .modules import THREADS, Kernels

COLUMNS, NUMBERS = 15, 8  # as in kernels/many.cu
AVERAGE, SINGLE, ELSEWHERE = 1, 2, 4
ALIGNMENT = 32  # elements between the beginnings of slots


class Steps:
    """Moves all parameters by the kernel `rule` of many.cu; see `services.Steps`.

    Slots live in flat buffers: they are made, cleared and found in one piece. Values and derivatives stay
    where kernels read and make them, and are found by their addresses: a buffer for them would cost a
    copy of all derivatives in every step.
    """

    def __init__(self, kernels: Kernels, cupy: Any, rule: str) -> None:
        self._kernels, self._cupy, self._rule = kernels, cupy, rule
        self._tables: dict[str, _Table] = {}
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

    def prepare(self, moves: Sequence[Move]) -> Hashable:
        self._held = []
        rows: dict[str, list[tuple[list[int], Sequence[float]]]] = {}
        for move in moves:
            rows.setdefault(move.value.dtype.name, []).append((self._row(move), move.numbers))
        self._tables = {name: self._tables.get(name) or _Table() for name in rows}
        for name, table in self._tables.items():
            table.fill(self._cupy, rows[name])
        return tuple((name, *table.form) for name, table in self._tables.items())

    def launch(self) -> None:
        for name, table in self._tables.items():
            if table.blocks:
                args = table.rows, table.places, table.numbers
                self._kernels.blocks("many", self._rule, name, (table.blocks,), (THREADS,), *args)
        self._held = []

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

    places: Any = None
    numbers: Any = None
    blocks = 0

    def __init__(self) -> None:
        self._host: tuple[Any, Any] = np.empty((0, COLUMNS), np.int64), np.empty((0, NUMBERS))

    @property
    def rows(self) -> int:
        return len(self._host[0])

    @property
    def form(self) -> tuple[Hashable, ...]:
        """What a launch is about, but for what the device reads."""
        return self.rows, self.blocks, self.places.data.ptr, self.numbers.data.ptr

    def fill(self, cupy: Any, rows: Sequence[tuple[list[int], Sequence[float]]]) -> None:
        """Bring to the device what changed of these rows."""
        table, self.blocks = places([place for place, _ in rows])
        numbers = np.zeros((len(rows), NUMBERS))
        for k, (_, given) in enumerate(rows):
            numbers[k, : len(given)] = given
        if len(rows) != self.rows:
            self.places, self.numbers = cupy.asarray(table), cupy.asarray(numbers)
        else:
            on_device = (self.places, table, self._host[0]), (self.numbers, numbers, self._host[1])
            for array, new, old in on_device:
                if not np.array_equal(new, old):
                    array.set(new)
        self._host = table, numbers


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
