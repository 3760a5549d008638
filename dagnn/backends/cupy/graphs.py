"""CUDA graphs: work that is recorded once, and launched as one."""

from __future__ import annotations

from collections.abc import Callable, Hashable
from contextlib import suppress
from functools import partial
from traceback import clear_frames
from typing import Any

from ..services import Live
from .tables import Tables


class Recorder:
    """Records work as CUDA graphs, which share a memory pool and keep it alive.

    cuBLAS can't be recorded, nor what waits for the device.
    """

    def __init__(self, cupy: Any, tables: Tables) -> None:
        self._cupy, self._tables = cupy, tables
        self._blocks: list[Any] = []
        self._pool = cupy.cuda.MemoryPool(partial(_block, cupy, self._blocks))
        self._stream = cupy.cuda.Stream(non_blocking=True)  # one for all graphs: pools keep memory by stream

    @property
    def nbytes(self) -> int:
        """Bytes of the device that its graphs take, whether or not they use them just now."""
        return sum(block.size for block in self._blocks)

    def record(self, work: Callable[[], Any]) -> Callable[[], None]:
        """The launch of a graph of all kernels that `work` launches on the current stream."""
        with self._cupy.cuda.using_allocator(self._pool.malloc), self._stream as stream:
            held = len(self._blocks)
            stream.begin_capture()
            try:
                work()
            except BaseException as error:
                with suppress(self._cupy.cuda.runtime.CUDARuntimeError):  # another one, about the same
                    stream.end_capture()
                self._tables.recorded(failed=True)
                clear_frames(error.__traceback__)  # whose arrays may be why memory was short
                del self._blocks[held:]
                self._pool.free_all_blocks()
                raise
            graph = stream.end_capture()
        return partial(_launch, graph, self._pool, self._tables.recorded())

    def place(self, array: Any) -> Hashable:
        """The address of an array, and what else kernels are told of it."""
        return array.data.ptr, array.shape, array.strides, array.dtype

    def live(self, number: int) -> Live:
        """A key whose number is on the device too."""
        key = Live(number)
        key.array = self._cupy.full((), number, "uint64")
        return key


def _block(cupy: Any, kept: list[Any], size: int) -> Any:
    """Memory for a pool that graphs work in, kept as long as the pool.

    Where memory is short, CuPy's pools give back what no array has: here graphs still work there. What
    evaluations without graphs left idle is given back instead.
    """
    try:
        block = cupy.cuda.Memory(size)
    except cupy.cuda.runtime.CUDARuntimeError:
        cupy.get_default_memory_pool().free_all_blocks()
        block = cupy.cuda.Memory(size)
    kept.append(block)
    return cupy.cuda.MemoryPointer(block, 0)


def _launch(graph: Any, *_: Any) -> None:
    graph.launch()
