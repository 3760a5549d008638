"""Memory that is used again: at its first touch a fresh page costs several times what filling it costs.

`empty` hands out arrays over blocks of a pool. A block comes back when the last array over it has died: its
arrays have a lease as their base, and it is the lease's end that returns the block. So whoever keeps an
array, or a view of it, keeps its memory, and nobody else is ever given it.
"""

from __future__ import annotations

import os
from bisect import bisect_left, insort
from collections import deque
from collections.abc import Sequence
from math import prod
from threading import RLock
from typing import Any

import numpy as np

SMALLEST = 1 << 15
"""Smaller arrays come from NumPy, whose allocator keeps small memory itself."""
ALIGNMENT = 64  # bytes: a cache line, and the widest vector registers
SLACK = 1.25
"""Idle blocks may bring all memory to the most ever in use, times this, before some are let go."""


class _Memory(np.ndarray):
    """The memory of a block. NumPy makes the base of a view's base the view's, except where types differ."""


class _Lease(np.ndarray):
    """A block while arrays lie over it; views of a lease don't own it and return nothing."""

    block: tuple[int, int, np.ndarray]
    pool: Pool

    def __del__(self) -> None:
        block = self.__dict__.get("block")
        if block is not None:
            self.pool._returned.append(block)


class Pool:
    """Blocks of memory, those in use and those lying idle.

    A request is served by the smallest idle block that is large enough; else with fresh memory, for which
    the blocks idle for longest are given up once the pool would be larger than ever needed.

    >>> pool = Pool()
    >>> first = pool.empty((1000, 1000), "float32")
    >>> where = first.ctypes.data
    >>> first = None
    >>> pool.empty((999, 1000), "float32").ctypes.data == where
    True
    """

    def __init__(self) -> None:
        self._forked()
        # (bytes, number, memory), by size; of one size, first that which came back last: it may be in cache.
        self._idle: list[tuple[int, int, np.ndarray]] = []
        # Leases end at any time, garbage collection within our own lines included: without the lock.
        self._returned: deque[tuple[int, int, np.ndarray]] = deque()
        self._in_use = self._most_in_use = 0
        self._number = 0  # counts down as blocks come back

    def _forked(self) -> None:
        """A lock of its own: in a forked process nobody would open one that a thread had closed."""
        # One that its holder can pass: garbage collected within our own lines may ask for memory.
        self._lock = RLock()

    def empty(self, shape: Sequence[int], dtype: Any) -> np.ndarray:
        """An array with arbitrary contents."""
        dtype = np.dtype(dtype)
        size = prod(shape) * dtype.itemsize
        if size < SMALLEST:
            return np.empty(shape, dtype)
        with self._lock:
            self._take_back()
            if (k := bisect_left(self._idle, (size,))) < len(self._idle):
                nbytes, _, memory = self._idle.pop(k)
            else:
                nbytes = size
                self._make_room(nbytes)
                memory = _aligned(nbytes)
            self._in_use += nbytes
            self._most_in_use = max(self._most_in_use, self._in_use)
        lease = memory.view(_Lease)
        lease.pool, lease.block = self, (nbytes, 0, memory)
        return np.ndarray(shape, dtype, lease)

    def clear(self) -> None:
        """Give up all idle blocks."""
        with self._lock:
            self._take_back()
            self._idle.clear()
            self._most_in_use = self._in_use

    @property
    def held(self) -> int:
        """Bytes in use and idle."""
        with self._lock:
            self._take_back()
            return self._in_use + sum(nbytes for nbytes, _, _ in self._idle)

    def _take_back(self) -> None:
        while self._returned:
            nbytes, _, memory = self._returned.popleft()
            self._number -= 1
            self._in_use -= nbytes
            insort(self._idle, (nbytes, self._number, memory))

    def _make_room(self, nbytes: int) -> None:
        """Give up idle blocks, the longest idle first, where `nbytes` more would be too much."""
        most = SLACK * max(self._most_in_use, self._in_use + nbytes)
        excess = self._in_use + sum(block[0] for block in self._idle) + nbytes - most
        while excess > 0 and self._idle:
            oldest = max(self._idle, key=lambda block: block[1])
            self._idle.remove(oldest)
            excess -= oldest[0]


def _aligned(nbytes: int) -> np.ndarray:
    memory = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + nbytes].view(_Memory)


pool = Pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pool._forked)
empty = pool.empty
