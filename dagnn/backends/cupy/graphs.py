"""CUDA graphs: work that is recorded once, and launched as one."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import suppress
from functools import partial
from typing import Any

from ..services import Live


class Recorder:
    """Records work as CUDA graphs, which share a memory pool and keep it alive.

    cuBLAS can't be recorded, nor what waits for the device.
    """

    def __init__(self, cupy: Any) -> None:
        self._cupy = cupy
        self._pool = cupy.cuda.MemoryPool()

    def record(self, work: Callable[[], Any]) -> Callable[[], None]:
        """The launch of a graph of all kernels that `work` launches on the current stream."""
        cuda = self._cupy.cuda
        stream = cuda.Stream(non_blocking=True)
        with cuda.using_allocator(self._pool.malloc), stream:
            stream.begin_capture()
            try:
                work()
            except BaseException:
                self._break_off(stream)
                raise
            graph = stream.end_capture()
        return partial(_launch, graph, self._pool)

    def place(self, array: Any) -> Hashable:
        return array.data.ptr, array.shape, array.strides, array.dtype

    def live(self, number: int) -> Live:
        """A key whose number is on the device too."""
        key = Live(number)
        key.array = self._cupy.full((), number, "uint64")
        return key

    def _break_off(self, stream: Any) -> None:
        """End the capture after an error, of which CUDA then makes another one."""
        with suppress(self._cupy.cuda.runtime.CUDARuntimeError):
            stream.end_capture()


def _launch(graph: Any, pool: Any) -> None:
    graph.launch()
