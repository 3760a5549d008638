"""Memory of the device, and arrays on their way there."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

from ..services import MemoryUse, Ready
from .prefetch import Prefetcher


class Services:
    """What the backend does besides computing."""

    _cupy: Any
    _index: int
    evaluation: Callable[[], AbstractContextManager[Any]]

    def release_idle(self) -> None:
        with self.evaluation():
            self._cupy.get_default_memory_pool().free_all_blocks()
            self._cupy.get_default_pinned_memory_pool().free_all_blocks()

    def memory_use(self) -> MemoryUse:
        with self.evaluation():
            pool = self._cupy.get_default_memory_pool()
            free, total = self._cupy.cuda.runtime.memGetInfo()
            limit = pool.get_limit() or None
            device = f"device {self._index}"
            return MemoryUse(pool.used_bytes(), pool.total_bytes(), device, total, free, limit)

    def prefetcher(self) -> Callable[[Mapping[str, Any]], Ready]:
        with self.evaluation():
            stream = self._cupy.cuda.get_current_stream()
        return Prefetcher(self._cupy, self._cupy.cuda.Device(self._index), stream)
