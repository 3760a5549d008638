"""Pieces of work on threads, each with BLAS on one: NumPy lets go of the interpreter in copies and products.

BLAS's own threads wait for each other by spinning, at a product of every tile; on a machine that does
something else as well, that costs several times the work itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Lock, current_thread
from typing import Any, TypeVar

T = TypeVar("T")


@cache
def num_threads() -> int:
    """DAGNN_NUM_THREADS, or as many as there are cores for this process."""
    given = os.environ.get("DAGNN_NUM_THREADS", "")
    if given.isdecimal() and int(given):
        return int(given)
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share(pieces: Sequence[T]) -> list[Sequence[T]]:
    """`pieces` dealt out to the threads, always in the same way."""
    return [pieces[k :: num_threads()] for k in range(min(num_threads(), len(pieces)))]


def each(work: Callable[[T], Any], pieces: Sequence[T]) -> list[Any]:
    """[work(piece) for piece in pieces], as many at once as there are threads."""
    if num_threads() == 1 or len(pieces) < 2 or current_thread().name.startswith("dagnn"):
        return [work(piece) for piece in pieces]
    with _one_thread:
        return list(_pool().map(work, pieces))


@cache
def _pool() -> ThreadPoolExecutor:
    return ThreadPoolExecutor(num_threads(), "dagnn")


class _OneThread:
    """BLAS on one thread while anybody is inside: one switch for the process, for it has no more."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._lock = Lock()
        self._inside = 0
        self._limit: Any = None

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._limit = _controller().limit(limits=1, user_api="blas")

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                self._limit.restore_original_limits()


_one_thread = _OneThread()


@cache
def _controller() -> Any:
    from threadpoolctl import ThreadpoolController

    return ThreadpoolController()


def _after_fork() -> None:
    """A forked process has none of the threads, and locks as they were."""
    _pool.cache_clear()
    _one_thread.reset()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
