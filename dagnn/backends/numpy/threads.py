"""Pieces of work on threads, each with BLAS on one: NumPy lets go of the interpreter in copies and products.

BLAS's own threads wait for each other by spinning, at a product of every tile; on a machine that does
something else as well, that costs several times the work itself.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from contextvars import copy_context
from functools import cache
from itertools import product
from pathlib import Path
from queue import SimpleQueue
from threading import Lock, RLock, Thread, local
from typing import Any, TypeVar

from ...errors import OptionError

T = TypeVar("T")

_chosen: int | None = None  # what set_num_threads said


def num_threads() -> int:
    """How many threads kernels use: what `set_num_threads` said, DAGNN_NUM_THREADS, or one for each core.

    Cores are those this process may run on: its CPU affinity, and the share of a container (cgroup).

    >>> num_threads() >= 1
    True
    """
    return _chosen or _default()


def set_num_threads(n: int | None) -> None:
    """Let kernels use `n` threads from now on; None: as many as there are cores for this process.

    Results are the same, bit for bit, for one number of threads; between different numbers they may differ
    by rounding.

    >>> import dagnn
    >>> dagnn.set_num_threads(None)
    """
    global _chosen
    if n is not None and (not isinstance(n, int) or n < 1):
        raise OptionError(f"the number of threads is at least 1, or None. Received: {n!r}")
    _chosen = n


@cache
def _default() -> int:
    given = os.environ.get("DAGNN_NUM_THREADS", "")
    if given.isdecimal() and int(given):
        return int(given)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min(cores, _cgroup_cores()))


def _cgroup_cores(root: Path = Path("/sys/fs/cgroup")) -> int:
    """The cores that the quota of a Linux container comes to, rounded up; very many without a quota."""
    try:  # version 2, else version 1
        quota, period = (root / "cpu.max").read_text().split()
    except (OSError, ValueError):
        try:
            quota, period = ((root / "cpu" / f"cpu.cfs_{k}_us").read_text() for k in ("quota", "period"))
        except OSError:
            return 1 << 16
    if not quota.strip().isdecimal():  # "max", or -1
        return 1 << 16
    return max(1, -(-int(quota) // int(period)))


def share(pieces: Sequence[T], threads: int | None = None) -> list[Sequence[T]]:
    """`pieces` dealt out to the threads, always in the same way."""
    number = threads or num_threads()  # asked once: somebody may set it meanwhile
    return [pieces[k::number] for k in range(min(number, len(pieces)))]


def each(work: Callable[[T], Any], pieces: Sequence[T], threads: int | None = None) -> list[Any]:
    """[work(piece) for piece in pieces], as many at once as there are threads; the caller is one of them.

    Waking another thread takes as long as a few million multiplications: `threads=1` for less.
    """
    helpers = min(threads or num_threads(), len(pieces)) - 1
    if helpers < 1 or getattr(_here, "works", False):
        with one_thread:
            return [work(piece) for piece in pieces]
    job = _Job(work, pieces)
    with one_thread:
        _crew.call(job, helpers)
        job.run()
        job.wait()
    return job.results


_here = local()  # .works: whether this thread is at a piece of a job


class _Job:
    """Work shared among threads: each takes the next piece nobody has."""

    def __init__(self, work: Callable[[Any], Any], pieces: Sequence[Any]) -> None:
        self.work, self.pieces = work, pieces
        self.results: list[Any] = [None] * len(pieces)
        self.error: BaseException | None = None
        self._next = iter(range(len(pieces)))
        self._context = copy_context()  # np.errstate, for one, is the caller's
        self._lock, self._ended = Lock(), Lock()
        self._active, self._closed = 0, False

    def run(self) -> None:
        """Work until no piece is left."""
        _here.works = True
        try:
            for k in self._next:
                if self.error is not None:
                    break
                self.results[k] = self.work(self.pieces[k])
        except BaseException as error:
            self.error = error
        finally:
            _here.works = False

    def help(self) -> None:
        """What a helper does: `run`, unless the job has ended before it came."""
        with self._lock:
            if self._closed:
                return
            self._active += 1
        self._context.copy().run(self.run)
        with self._lock:
            self._active -= 1
            if self._closed and not self._active:
                self._ended.release()

    def wait(self) -> None:
        """Wait for the helpers at work, and raise what went wrong."""
        with self._lock:
            self._closed = True
            active = self._active
            if active:
                self._ended.acquire()
        while active:
            try:
                self._ended.acquire()
                break
            except BaseException as error:  # an interruption: helpers still write into the caller's arrays
                self.error = error
        # A helper that comes late still has the job in its hands, but none of the arrays in it.
        del self.work, self.pieces
        if self.error is not None:
            try:
                raise self.error
            finally:  # its traceback has this frame: in a circle, it would keep all arrays of all frames
                self.error = None


class _Crew:
    """Threads that help with jobs; there are as many as were ever needed at once."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._jobs: SimpleQueue[_Job] = SimpleQueue()
        # One that its holder can pass: what is garbage collected meanwhile may have work for the crew.
        self._size, self._lock = 0, RLock()

    def call(self, job: _Job, helpers: int) -> None:
        with self._lock:
            for k in range(self._size, helpers):
                Thread(target=self._serve, args=(self._jobs,), name=f"dagnn-{k}", daemon=True).start()
            self._size = max(self._size, helpers)
        for _ in range(helpers):
            self._jobs.put(job)

    @staticmethod
    def _serve(jobs: SimpleQueue[_Job]) -> None:
        while True:
            jobs.get().help()


_crew = _Crew()


class _OneThread:
    """BLAS on one thread while anybody is inside: one switch for the process, for it has no more."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._lock = RLock()
        self._inside = 0
        # What sets the number of threads of each BLAS, and what it was.
        self._before: list[tuple[Callable[[int], Any], int]] = []

    def __enter__(self) -> None:
        with self._lock:
            self._inside += 1
            if self._inside == 1:
                self._before = [(setter, library.get_num_threads()) for library, setter in _blas()]
                for setter, _ in self._before:
                    setter(1)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self._inside -= 1
            if not self._inside:
                for setter, number in self._before:
                    setter(number)


one_thread = _OneThread()


@cache
def _blas() -> list[tuple[Any, Callable[[int], Any]]]:
    """The BLAS libraries there are, each with what sets its number of threads."""
    from threadpoolctl import ThreadpoolController

    libraries = ThreadpoolController().select(user_api="blas").lib_controllers
    return [(library, _setter(library)) for library in libraries]


def blas_architectures() -> set[str]:
    """The processors that the kernels of BLAS are for, by OpenBLAS's names."""
    return {getattr(library, "architecture", "") for library, _ in _blas()}


def _setter(library: Any) -> Callable[[int], Any]:
    """What sets the number of threads of a BLAS library, whichever thread calls it.

    From 3.8 on threadpoolctl ignores all threads but the first that set OpenBLAS's, until it lets go of it;
    here the first that comes in sets it, and the last that leaves sets it back.
    """
    if library.internal_api == "openblas" and library.threading_layer != "openmp":
        for prefix, suffix in product(("scipy_", ""), ("64_", "_64", "")):
            setter = getattr(library.dynlib, f"{prefix}openblas_set_num_threads{suffix}", None)
            if setter is not None:
                return setter
    return library.set_num_threads


def _after_fork() -> None:
    """A forked process has none of the threads, and locks as they were."""
    _crew.reset()
    one_thread.reset()
    _here.works = False


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_after_fork)
