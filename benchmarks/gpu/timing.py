"""Time and memory on the device."""

from __future__ import annotations

import gc
import math
from collections.abc import Callable, Mapping
from time import perf_counter
from typing import Any

from ..measure import Work

TURN, LEAST = 0.2, 5
"""Seconds of a turn, and how many there are at least."""
MOST_ROUNDS = 100
"""In a turn: the device's queue is long, but not endless."""


class Clock:
    """Takes time with events on the device's default stream, which PyTorch uses too."""

    def __init__(self, cupy: Any) -> None:
        self._cuda = cupy.cuda

    def ms(self, work: Work, rounds: int) -> float:
        """Milliseconds of a round, where `rounds` follow each other."""
        begin, end = self._cuda.Event(), self._cuda.Event()
        self._cuda.Device().synchronize()
        begin.record()
        for _ in range(rounds):
            work()
        end.record()
        end.synchronize()
        return self._cuda.get_elapsed_time(begin, end) / rounds


def turns(
    works: Mapping[str, Work], seconds: float, clock: Clock, least: int | None = None
) -> dict[str, list[float]]:
    """Milliseconds of a round of each work, in each of its turns.

    The works take turns for about `seconds`, each turn begun by another of them, after some for warming up:
    kernels are compiled and chosen, evaluations captured.
    """
    names = list(works)
    times: dict[str, list[float]] = {name: [] for name in names}
    rounds = {}
    for name, work in works.items():
        clock.ms(work, 3)
        rounds[name] = min(MOST_ROUNDS, max(1, math.ceil(1000 * TURN / max(clock.ms(work, 1), 1e-3))))
    end, turn = perf_counter() + seconds, 0
    least = least or LEAST
    while perf_counter() < end or turn < least:
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            times[name].append(clock.ms(works[name], rounds[name]))
        turn += 1
    return times


def with_memory(cupy: Any, make: Callable[[], Work], steps: int = 3) -> tuple[Work, float]:
    """What `make` makes, after some steps, and the MB of the device that it took to make it and to make them.

    Pools keep what they once had: parameters, solver, variables, workspaces, graphs and code are all in it.
    """
    gc.collect()
    cupy.get_default_memory_pool().free_all_blocks()
    before = cupy.cuda.runtime.memGetInfo()[0]
    work = make()
    for _ in range(steps):
        work()
    cupy.cuda.Device().synchronize()
    return work, (before - cupy.cuda.runtime.memGetInfo()[0]) / 1e6
