"""Memory of the device, and arrays on their way there."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from typing import Any
from weakref import WeakSet

import numpy as np

from ..services import MemoryUse, Ready
from .graphs import Recorder
from .prefetch import Prefetcher
from .tables import Tables


class Services:
    """What the backend does besides computing."""

    _cupy: Any
    _index: int
    _recorders: WeakSet[Recorder]
    _tables: Tables
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
            device, graphs = f"device {self._index}", sum(recorder.nbytes for recorder in self._recorders)
            used, held = pool.used_bytes() + graphs, pool.total_bytes() + graphs
            return MemoryUse(used, held, device, total, free, limit)

    def recorder(self) -> Recorder:
        with self.evaluation():
            recorder = Recorder(self._cupy, self._tables)
        self._recorders.add(recorder)
        return recorder

    def prefetcher(self) -> Callable[[Mapping[str, Any]], Ready]:
        with self.evaluation():
            stream = self._cupy.cuda.get_current_stream()
        return Prefetcher(self._cupy, self.evaluation, stream)

    def fetch(self, arrays: Sequence[Any]) -> Callable[[], list[np.ndarray]]:
        with self.evaluation():
            stream = self._cupy.cuda.get_current_stream()
            found = [self._page_locked(array) for array in arrays]
            for array, here in zip(arrays, found, strict=True):
                array.get(stream, out=here, blocking=False)
            copied = stream.record()

        def get() -> list[np.ndarray]:
            copied.synchronize()
            return found

        return get

    def _page_locked(self, array: Any) -> np.ndarray:
        """Room for an array; a copy into other memory would be waited for."""
        memory = self._cupy.cuda.alloc_pinned_memory(max(1, array.nbytes))
        return np.frombuffer(memory, array.dtype, array.size).reshape(array.shape)
