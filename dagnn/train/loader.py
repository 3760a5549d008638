"""From numbers of samples to batches of arrays, prepared while the network computes."""

from __future__ import annotations

from collections import deque
from collections.abc import Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from itertools import islice
from time import perf_counter
from typing import Any

import numpy as np

from .. import backends
from ..backends.base import Backend
from ..backends.services import Ready
from ..data import Batch, Data
from ..errors import DataError, OptionError, shorten


@dataclass(frozen=True)
class Part:
    """A sub-batch: which samples it has, and the share of its batch they are."""

    batch: int  # from 1
    indices: np.ndarray
    share: float
    last: bool  # of its batch
    key: tuple[int, ...]  # of the random changes to its samples


def parts(samples: np.ndarray, batch_size: int, num_sub_batches: int, key: tuple[int, ...]) -> list[Part]:
    """Cut `samples` into batches, and each of these, interleaved as in MatConvNet, into sub-batches.

    >>> [part.indices.tolist() for part in parts(np.arange(5), 4, 2, key=())]
    [[0, 2], [1, 3], [4]]
    """
    found = []
    for number, start in enumerate(range(0, len(samples), batch_size), 1):
        batch = samples[start : start + batch_size]
        pieces = [piece for i in range(num_sub_batches) if len(piece := batch[i::num_sub_batches])]
        for i, piece in enumerate(pieces):
            share = len(piece) / len(batch)
            found.append(Part(number, piece, share, i == len(pieces) - 1, (*key, number, i)))
    return found


class Loader:
    """Iterates over (part, its arrays); the `prefetch` parts to come are prepared in the background.

    What a batch holds depends on its key and samples alone, not on `prefetch`. Prepared in the background,
    it is brought to where `backend` computes, too. `waited` counts the seconds in which nothing could be
    done because the next part wasn't there yet.
    """

    def __init__(
        self,
        data: Data,
        parts: Sequence[Part],
        *,
        random: bool,
        prefetch: int,
        backend: Backend | None = None,
    ) -> None:
        self.data, self.parts = data, parts
        self.random, self.prefetch = random, prefetch
        self.backend = backend or backends.get("numpy")
        self.waited = 0.0

    def __iter__(self) -> Generator[tuple[Part, Batch]]:
        if not self.prefetch:
            for part in self.parts:
                yield part, self._timed(self._load, part)
            return
        pending: deque[tuple[Part, Future[Ready]]] = deque()
        bring = self.backend.prefetcher()

        def load(part: Part) -> Ready:
            return bring(self._load(part))

        with ThreadPoolExecutor(1, "dagnn-prefetch") as background:

            def prepare(parts: Iterable[Part]) -> None:
                pending.extend((part, background.submit(load, part)) for part in parts)

            coming = iter(self.parts)
            prepare(islice(coming, self.prefetch))
            try:
                while pending:
                    part, future = pending.popleft()
                    prepare(islice(coming, 1))
                    yield part, dict(self._timed(future.result)())
            finally:
                for _, future in pending:
                    future.cancel()

    def _timed(self, get: Any, *args: Any) -> Any:
        started = perf_counter()
        try:
            return get(*args)
        finally:
            self.waited += perf_counter() - started

    def _load(self, part: Part) -> Batch:
        rng = np.random.default_rng(part.key) if self.random else None
        try:
            batch = self.data.batch(part.indices, rng)
            if not isinstance(batch, dict):
                raise OptionError(f"a batch is a dict {{variable: array}}. Received: {type(batch).__name__}")
            return batch
        except Exception as error:
            samples = shorten(part.indices.tolist(), most=8)
            raise DataError(
                f"batch {part.batch} (samples {samples}) cannot be had from {type(self.data).__name__}: "
                f"{type(error).__name__}: {error}"
            ) from error
