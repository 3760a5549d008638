"""Devices, memory pools, streams and graphs without CUDA: what stands for `cupy.cuda`."""

import threading
import time
import weakref
from collections.abc import Callable
from contextlib import contextmanager
from types import SimpleNamespace

import numpy as np

DEVICES = 2
MEMORY = 4 << 30  # bytes of every device
ALIGNMENT = 256
_local = threading.local()


class CUDARuntimeError(RuntimeError):
    """An error of CUDA, with its number."""

    NAMES = {
        2: "cudaErrorMemoryAllocation: out of memory",
        101: "cudaErrorInvalidDevice: invalid device ordinal",
        900: "cudaErrorStreamCaptureUnsupported: operation not permitted when stream is capturing",
        901: "cudaErrorStreamCaptureInvalidated: operation failed due to a previous error during capture",
    }

    def __init__(self, status: int) -> None:
        super().__init__(self.NAMES[status])
        self.status = status


class OutOfMemoryError(MemoryError):
    """A pool's limit or the device's memory is reached."""


class Device:
    """A device, which may be entered."""

    def __init__(self, device: object = None) -> None:
        self.id = current_device() if device is None else int(getattr(device, "id", device))
        if not 0 <= self.id < DEVICES:
            raise CUDARuntimeError(101)

    def use(self) -> None:
        _local.device = self.id

    def __enter__(self) -> "Device":
        _local.outer = (*getattr(_local, "outer", ()), current_device())
        self.use()
        return self

    def __exit__(self, *_: object) -> None:
        *_local.outer, _local.device = _local.outer

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Device) and self.id == other.id

    __hash__ = None

    def __repr__(self) -> str:
        return f"<CUDA Device {self.id}>"

    def __int__(self) -> int:
        return self.id

    def synchronize(self) -> None:
        not_while_capturing()

    @property
    def compute_capability(self) -> str:
        return "90"

    @property
    def attributes(self) -> dict[str, int]:
        return {"MultiProcessorCount": 132, "MaxSharedMemoryPerBlock": 48 << 10}

    @property
    def mem_info(self) -> tuple[int, int]:
        return MEMORY - _held(self.id), MEMORY


def current_device() -> int:
    return getattr(_local, "device", 0)


class Memory:
    """A piece of device memory, filled with rubbish: of a pool, which gets it back, or the device's own."""

    def __init__(self, size: int, pool: "MemoryPool | None" = None) -> None:
        self.size, self.device = size, current_device()
        self._room: list[np.ndarray] = []
        self._pool = None if pool is None else weakref.ref(pool)
        if pool is not None:
            pool._take(self)
            self._end = weakref.finalize(self, _give_back, self._pool, size, self.device, self._room)
        else:
            if _held(self.device) + size > MEMORY:
                raise CUDARuntimeError(2)
            _own[self.device] += size
            self._end = weakref.finalize(self, _let_go, size, self.device)
        self._end.atexit = False

    @property
    def bytes(self) -> np.ndarray:
        if not self._room:
            room = self.pool._idle_room(self.size) if self._pool is not None else None
            self._room.append(_new_room(self.size) if room is None else room)
            self._room[0].fill(0xFF)
            if capturing() and self.pool is not _default_pool:
                get_current_stream()._graph.kept.append(
                    self._room[0]
                )  # as long as the pool, that is the graph
        return self._room[0][: self.size]

    @property
    def ptr(self) -> int:
        return self.bytes.ctypes.data

    @property
    def pool(self) -> "MemoryPool | None":
        """The pool it is of."""
        self.must_be_there()
        return None if self._pool is None else self._pool()

    def must_be_there(self) -> None:
        """RuntimeError where its pool is gone, and the memory of all of the pool's arrays with it."""
        if self._pool is not None and self._pool() is None:
            raise RuntimeError("an array was used whose memory pool is gone")


def _new_room(size: int) -> np.ndarray:
    room = np.empty(-(-size // 512) * 512 + ALIGNMENT, np.uint8)
    start = -room.ctypes.data % ALIGNMENT
    return room[start : len(room) - ALIGNMENT + start]


def _give_back(pool: "weakref.ref[MemoryPool]", size: int, device: int, room: list[np.ndarray]) -> None:
    if (alive := pool()) is not None:
        alive._give_back(size, device, room)


def _let_go(size: int, device: int) -> None:
    _own[device] -= size


def _held(device: int) -> int:
    """Bytes of a device that aren't free."""
    return _own[device] + sum(pool._total[device] for pool in _pools if pool._allocator is None)


class MemoryPointer:
    """Where in a piece of memory an array begins."""

    def __init__(self, mem: Memory, offset: int) -> None:
        self.mem, self._offset = mem, offset

    @property
    def ptr(self) -> int:
        return self.mem.ptr + self._offset

    @property
    def device(self) -> Device:
        return Device(self.mem.device)

    @property
    def device_id(self) -> int:
        return self.mem.device

    def memset(self, value: int, size: int) -> None:
        start = self.ptr - self.mem.ptr
        where = self.mem.bytes[start : start + size]
        submit(lambda: where.fill(value), [self.mem])

    memset_async = memset

    def __add__(self, offset: int) -> "MemoryPointer":
        return MemoryPointer(self.mem, self.ptr - self.mem.ptr + offset)


class MemoryPool:
    """Counts bytes per device in 512s, as CuPy's pool does, and refuses those above a limit.

    What it needs it takes from `allocator`, the device's memory by default, and keeps it.
    """

    def __init__(self, allocator: "Callable[[int], MemoryPointer] | None" = None) -> None:
        self._allocator = allocator
        self._blocks: list[list[MemoryPointer]] = [[] for _ in range(DEVICES)]
        self._used = [0] * DEVICES
        self._total = [0] * DEVICES
        self._limit = [0] * DEVICES
        self._idle: list[np.ndarray] = []
        _pools.add(self)

    def malloc(self, size: int) -> MemoryPointer:
        return MemoryPointer(Memory(size, self), 0)

    def _take(self, memory: Memory) -> None:
        k, size = memory.device, -(-memory.size // 512) * 512
        limit, more = self._limit[k], max(0, self._used[k] + size - self._total[k])
        if limit and self._used[k] + size > limit:
            raise OutOfMemoryError(
                f"Out of memory allocating {size:,} bytes (allocated so far: {self._total[k]:,} bytes, "
                f"limit set to: {limit:,} bytes)."
            )
        if more:
            try:
                self._grow(k, more)
            except CUDARuntimeError:
                self.free_all_blocks()
                more = self._used[k] + size - self._total[k]
                try:
                    self._grow(k, more)
                except CUDARuntimeError:
                    raise OutOfMemoryError(
                        f"Out of memory allocating {size:,} bytes "
                        f"(allocated so far: {self._total[k]:,} bytes)."
                    ) from None
        self._used[k] += size

    def _grow(self, k: int, more: int) -> None:
        if self._allocator is not None:
            self._blocks[k].append(self._allocator(more))
        elif _held(k) + more > MEMORY:
            raise CUDARuntimeError(2)
        self._total[k] += more

    def _give_back(self, size: int, device: int, room: list[np.ndarray]) -> None:
        self._used[device] -= -(-size // 512) * 512
        if self is not _default_pool and device == 0:
            self._idle += room

    def _idle_room(self, size: int) -> np.ndarray | None:
        """Memory that somebody had before. The default pool hasn't any: what is gone is easier to tell so."""
        fitting = [k for k, room in enumerate(self._idle) if len(room) >= size]
        return self._idle.pop(fitting[-1]) if fitting else None

    def used_bytes(self) -> int:
        return self._used[current_device()]

    def total_bytes(self) -> int:
        return self._total[current_device()]

    def free_bytes(self) -> int:
        return self.total_bytes() - self.used_bytes()

    def n_free_blocks(self) -> int:
        return int(self.free_bytes() > 0)

    def free_all_blocks(self, stream: object = None) -> None:
        self._total[current_device()] = self._used[current_device()]
        if not self._used[current_device()]:
            self._blocks[current_device()].clear()

    def set_limit(self, size: int | None = None, fraction: float | None = None) -> None:
        self._limit[current_device()] = int(MEMORY * fraction) if size is None and fraction else size or 0

    def get_limit(self) -> int:
        return self._limit[current_device()]


_pools: weakref.WeakSet = weakref.WeakSet()
_own = [0] * DEVICES  # bytes of memory of no pool
_default_pool = MemoryPool()
_default_allocator = _default_pool.malloc


def alloc(size: int) -> MemoryPointer:
    """Memory from the allocator that is in use."""
    return getattr(_local, "allocator", _default_allocator)(size)


@contextmanager
def using_allocator(allocator: Callable[[int], MemoryPointer] | None = None):
    """Inside of it this thread's memory comes from `allocator`."""
    outer = getattr(_local, "allocator", _default_allocator)
    _local.allocator = allocator or _default_allocator
    try:
        yield
    finally:
        _local.allocator = outer


class PinnedMemoryPointer(bytearray):
    """Host memory with the buffer protocol."""

    @property
    def ptr(self) -> int:
        return np.frombuffer(self, np.uint8).ctypes.data

    def size(self) -> int:
        return len(self)


class PinnedMemoryPool:
    """Keeps nothing."""

    def free_all_blocks(self) -> None:
        pass


class Graph:
    """What a stream was told while it captured, to be done again and again."""

    def __init__(self) -> None:
        self._nodes: list[tuple[Callable[[], object], list[weakref.ref], list[np.ndarray]]] = []
        self.kept: list[np.ndarray] = []

    def launch(self, stream: "Stream | None" = None) -> None:
        """Do it all; RuntimeError where memory of the default pool has been let go of since."""
        not_while_capturing()
        if any(memory() is None for _, needed, _ in self._nodes for memory in needed):
            raise RuntimeError(
                "a graph was launched whose memory is gone: keep its arrays, or a pool of its own"
            )
        for work, _, _ in self._nodes:
            with np.errstate(all="ignore"):
                work()

    def upload(self, stream: "Stream | None" = None) -> None:
        not_while_capturing()


class Stream:
    """A stream, on which everything is done at once, or kept for a graph."""

    null: "Stream"

    def __init__(
        self, null: bool = False, non_blocking: bool = False, ptds: bool = False, priority: object = None
    ):
        self.ptr = 0 if null else id(self)
        self.device_id = -1 if null else current_device()
        self._graph: Graph | None = None
        self._broken = False

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Stream) and self.ptr == other.ptr

    def __hash__(self) -> int:
        return self.ptr

    def use(self) -> "Stream":
        streams = _streams()
        if self.device_id not in (-1, current_device()):
            raise RuntimeError(
                f"The device that the stream is created on ({self.device_id}) is not the current one"
            )
        streams[current_device()] = self
        return self

    def __enter__(self) -> "Stream":
        _local.outer_streams = (
            *getattr(_local, "outer_streams", ()),
            (current_device(), get_current_stream()),
        )
        return self.use()

    def __exit__(self, *_: object) -> None:
        *_local.outer_streams, (device, stream) = _local.outer_streams
        _streams()[device] = stream

    @property
    def done(self) -> bool:
        return True

    def synchronize(self) -> None:
        if self._graph is not None:
            self._break()

    def record(self, event: "Event | None" = None) -> "Event":
        event = event or Event()
        event.record(self)
        return event

    def wait_event(self, event: "Event") -> None:
        pass

    def begin_capture(self, mode: int | None = None) -> None:
        if self.ptr == 0:
            raise RuntimeError("cannot capture on the default (legacy) stream")
        if self._graph is not None:
            raise CUDARuntimeError(900)
        self._graph, self._broken = Graph(), False

    def end_capture(self) -> Graph:
        graph, self._graph = self._graph, None
        if graph is None or self._broken:
            raise CUDARuntimeError(901)
        return graph

    def is_capturing(self) -> bool:
        return self._graph is not None

    def _break(self) -> None:
        self._broken = True
        raise CUDARuntimeError(900)


Stream.null = Stream(null=True)


def _streams() -> dict[int, Stream]:
    return _local.__dict__.setdefault("streams", {})


def get_current_stream(device_id: int = -1) -> Stream:
    return _streams().get(current_device() if device_id == -1 else device_id, Stream.null)


def capturing() -> bool:
    """Whether what is done now is kept for a graph."""
    return get_current_stream().is_capturing()


def not_while_capturing() -> None:
    """What needs the host's copy or the device's end breaks a capture."""
    if capturing():
        get_current_stream()._break()


def submit(work: Callable[[], object], memories: list[Memory]) -> None:
    """Do `work` on these pieces of memory now, or keep it for the graph."""
    graph = get_current_stream()._graph
    if graph is None:
        with np.errstate(all="ignore"):
            work()
    else:
        needed = [weakref.ref(one if one.pool in (None, _default_pool) else one.pool) for one in memories]
        kept = [one.bytes for one in memories]  # what a private pool gave back is still its own
        graph._nodes.append((work, needed, kept))


class Event:
    """A moment on a stream."""

    def __init__(self, block: bool = False, disable_timing: bool = False, interprocess: bool = False) -> None:
        self.ptr = id(self)
        self._time = 0.0

    @property
    def done(self) -> bool:
        return True

    def record(self, stream: Stream | None = None) -> None:
        self._time = time.perf_counter()

    def synchronize(self) -> None:
        not_while_capturing()


def get_elapsed_time(start_event: Event, end_event: Event) -> float:
    return (end_event._time - start_event._time) * 1e3


def _get_device() -> int:
    return current_device()


def _set_device(device: int) -> None:
    Device(device).use()


runtime = SimpleNamespace(
    CUDARuntimeError=CUDARuntimeError,
    getDeviceCount=lambda: DEVICES,
    getDevice=_get_device,
    setDevice=_set_device,
    runtimeGetVersion=lambda: 13000,
    driverGetVersion=lambda: 13000,
    getDeviceProperties=lambda device: {"name": b"an emulated device", "totalGlobalMem": MEMORY},
    memGetInfo=lambda: Device().mem_info,
    deviceSynchronize=not_while_capturing,
    streamCaptureModeRelaxed=2,
    streamCaptureModeThreadLocal=1,
    streamCaptureModeGlobal=0,
)
memory = SimpleNamespace(
    OutOfMemoryError=OutOfMemoryError, MemoryPool=MemoryPool, MemoryPointer=MemoryPointer, Memory=Memory
)
cuda = SimpleNamespace(
    Device=Device,
    Event=Event,
    Graph=Graph,
    Memory=Memory,
    MemoryPointer=MemoryPointer,
    MemoryPool=MemoryPool,
    PinnedMemoryPointer=PinnedMemoryPointer,
    Stream=Stream,
    alloc=alloc,
    alloc_pinned_memory=PinnedMemoryPointer,
    get_current_stream=get_current_stream,
    get_elapsed_time=get_elapsed_time,
    is_available=lambda: True,
    memory=memory,
    runtime=runtime,
    using_allocator=using_allocator,
)
