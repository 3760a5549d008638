"""Arrays brought to the device ahead of their use, from page-locked memory on a stream of their own.

From ordinary memory the driver copies by way of page-locked memory of its own, and the caller waits
(CUDA C++ Programming Guide, "Page-Locked Host Memory" and "Overlap of Data Transfer and Kernel Execution").
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import Any

import numpy as np

from ..services import Ready

Entered = Callable[[], AbstractContextManager[Any]]


class Prefetcher:
    """Copies arrays to the device that `on_device()` enters, by the side of what `stream` computes there.

    They are memory of `stream`'s pool: whoever had it before has used it on that stream, and the copy begins
    after that. Page-locked memory is used again once its copy has ended.
    """

    def __init__(self, cupy: Any, on_device: Entered, stream: Any) -> None:
        self._cupy, self._on_device, self._stream = cupy, on_device, stream
        with on_device():
            self._copies = cupy.cuda.Stream(non_blocking=True)
        self._locked: deque[tuple[Any, dict[str, np.ndarray]]] = deque()  # by the events that end its use

    def __call__(self, arrays: Mapping[str, Any]) -> Ready:
        """Begin to copy all arrays of numbers; anything else, and where memory is short all, stays here."""
        hosts = {name: a for name, a in arrays.items() if isinstance(a, np.ndarray) and _are_numbers(a.dtype)}
        with self._on_device():
            locked = self._locked.popleft()[1] if self._locked and self._locked[0][0].done else {}
            try:
                with self._stream:
                    there = {name: self._cupy.empty(a.shape, a.dtype) for name, a in hosts.items()}
                copies = {name: self._lock(locked, name, a) for name, a in hosts.items()}
            except (MemoryError, self._cupy.cuda.runtime.CUDARuntimeError):
                return lambda: arrays  # the evaluation will say for want of what, if it can't do without
            self._copies.wait_event(self._stream.record())
            for name, copy in copies.items():
                there[name].set(copy, stream=self._copies)
            copied = self._copies.record()
        self._locked.append((copied, locked))
        return _Arriving(self._cupy, self._on_device, self._stream, copied, {**arrays, **there})

    def _lock(self, locked: dict[str, np.ndarray], name: str, array: np.ndarray) -> np.ndarray:
        """A copy of `array` in page-locked memory, which `locked` keeps for arrays of this name."""
        if name not in locked or locked[name].nbytes < array.nbytes:
            locked[name] = np.frombuffer(self._cupy.cuda.alloc_pinned_memory(max(1, array.nbytes)), np.uint8)
        copy = locked[name][: array.nbytes].view(array.dtype).reshape(array.shape)
        copy[...] = array
        return copy


def _are_numbers(dtype: np.dtype) -> bool:
    """Whether bytes of this type are numbers on a device too, where the smallest comes first."""
    return dtype.kind in "biuf" and dtype.isnative


class _Arriving:
    """Arrays on their way; called, it gives them to what the current stream does from now on."""

    def __init__(
        self, cupy: Any, on_device: Entered, stream: Any, copied: Any, arrays: Mapping[str, Any]
    ) -> None:
        self._cupy, self._on_device, self._stream = cupy, on_device, stream
        self._copied, self._arrays = copied, arrays

    def __call__(self) -> Mapping[str, Any]:
        with self._on_device():
            self._cupy.cuda.get_current_stream().wait_event(self._copied)
        return self._arrays

    def __del__(self) -> None:
        # Arrays that nobody came for: their memory is used again on that stream, but not before the copy.
        with self._on_device():  # the default stream is that of the current one
            self._stream.wait_event(self._copied)
