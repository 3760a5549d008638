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
from threading import RLock, get_ident
from typing import Any, NamedTuple

import numpy as np

SMALLEST = 1 << 15
"""Smaller arrays come from NumPy, whose allocator keeps small memory itself."""
ALIGNMENT = 64  # bytes: a cache line, and the widest vector registers
SLACK = 1.25
"""Idle blocks may bring all memory to the most ever in use, times this, before some are let go."""
WASTE = 4
"""A block this many times larger than a request isn't spent on it: the next large request would miss it."""
LIKELY, SIMILAR = 4, 1.25
"""Among so many blocks, up to so much larger than the request, one is looked for that this thread had."""


class _Memory(np.ndarray):
    """The memory of a block. NumPy makes the base of a view's base the view's, except where types differ."""


class Block(NamedTuple):
    """A piece of memory; blocks sort by size, those that came back last first."""

    nbytes: int
    number: int  # counts down as blocks come back
    memory: np.ndarray
    thread: int = 0  # which gave it back: it may still be in the cache of its core


class _Lease(np.ndarray):
    """A block while arrays lie over it; views of a lease don't own it and return nothing."""

    block: Block
    pool: Pool

    def __del__(self) -> None:
        block = self.__dict__.get("block")
        if block is not None:
            self.pool._returned.append(block._replace(thread=get_ident()))


class Pool:
    """Blocks of memory, those in use and those lying idle.

    A request is served by the smallest idle block that is large enough, unless it is far too large; else with
    fresh memory, for which the blocks idle for longest are given up once the pool would be larger than ever
    needed.

    >>> pool = Pool()
    >>> first = pool.empty((1000, 1000), "float32")
    >>> where = first.ctypes.data
    >>> first = None
    >>> pool.empty((999, 1000), "float32").ctypes.data == where
    True
    """

    def __init__(self) -> None:
        self._forked()
        self._idle: list[Block] = []  # sorted
        # Leases end at any time, garbage collection within our own lines included: without the lock.
        self._returned: deque[Block] = deque()
        self._in_use = self._most_in_use = 0
        self._number = 0

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
            block = self._take(size)
            if block is None:
                self._make_room(size)
                block = Block(size, 0, _aligned(size))
            self._in_use += block.nbytes
            self._most_in_use = max(self._most_in_use, self._in_use)
        lease = block.memory.view(_Lease)
        lease.pool, lease.block = self, block
        return np.ndarray(shape, dtype, lease)

    def _take(self, size: int) -> Block | None:
        """An idle block that is large enough: of the smallest ones rather one that this thread gave back."""
        first = bisect_left(self._idle, (size,))
        likely = self._idle[first : first + LIKELY]
        if not likely or likely[0].nbytes > WASTE * size:
            return None
        here = get_ident()
        own = (k for k, b in enumerate(likely) if b.thread == here and b.nbytes <= SIMILAR * size)
        return self._idle.pop(first + next(own, 0))

    def clear(self) -> None:
        """Give up all idle blocks."""
        with self._lock:
            self._take_back()
            self._idle.clear()
            self._most_in_use = self._in_use

    @property
    def used(self) -> int:
        """Bytes of the blocks that arrays lie over."""
        with self._lock:
            self._take_back()
            return self._in_use

    @property
    def held(self) -> int:
        """Bytes in use and idle."""
        with self._lock:
            self._take_back()
            return self._in_use + sum(block.nbytes for block in self._idle)

    def _take_back(self) -> None:
        while self._returned:
            block = self._returned.popleft()
            self._number -= 1
            self._in_use -= block.nbytes
            insort(self._idle, block._replace(number=self._number))

    def _make_room(self, nbytes: int) -> None:
        """Give up idle blocks, the longest idle first, where `nbytes` more would be too much."""
        most = SLACK * max(self._most_in_use, self._in_use + nbytes)
        excess = self._in_use + sum(block.nbytes for block in self._idle) + nbytes - most
        while excess > 0 and self._idle:
            oldest = max(range(len(self._idle)), key=lambda k: self._idle[k].number)
            excess -= self._idle.pop(oldest).nbytes


def _aligned(nbytes: int) -> np.ndarray:
    memory = np.empty(nbytes + ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % ALIGNMENT
    return memory[start : start + nbytes].view(_Memory)


pool = Pool()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=pool._forked)
empty = pool.empty


def copied(a: np.ndarray) -> np.ndarray:
    """A copy of `a`, its elements one after the other."""
    copy = empty(a.shape, a.dtype)
    copy[...] = a
    return copy
