"""Tables that kernels read, of addresses and numbers, on their way to the device."""

from __future__ import annotations

from typing import Any

import numpy as np


class Tables:
    """Brings tables to the device; where work is being recorded, once that has ended."""

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._waiting: list[tuple[Any, np.ndarray]] = []

    def new(self, table: np.ndarray) -> Any:
        """An array of these numbers, which also recorded work finds there each time it is done again.

        So it isn't memory of the recorder's, which what else is recorded has by turns.
        """
        with self._cupy.cuda.using_allocator(self._cupy.get_default_memory_pool().malloc):
            array = self._cupy.empty(table.shape, table.dtype)
        self.write(array, table)
        return array

    def write(self, array: Any, table: np.ndarray) -> None:
        """Let an array have these numbers; nobody waits for it."""
        if self._cupy.cuda.get_current_stream().is_capturing():
            self._waiting.append((array, table))
        elif table.size:
            array[...] = self._cupy.asarray(table)  # which copies from page-locked memory

    def recorded(self, failed: bool = False) -> list[Any]:
        """The arrays that recorded work reads, with their numbers unless that was in vain."""
        waiting, self._waiting = self._waiting, []
        for array, table in waiting if not failed else ():
            self.write(array, table)
        return [array for array, _ in waiting]
