"""What is done to many arrays in one launch per floating type."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import Any

import numpy as np

from ...dtypes import is_floating
from ..base import Backend
from ..reference.checks import Array
from .modules import THREADS, Kernels
from .tables import Tables

CHUNK = 4096  # elements of a block, as in kernels/many.cu
TYPES = ("float16", "bfloat16", "float32", "float64")  # numbered as there


class Many(Backend):
    """Casts and checks of all arrays at once."""

    _cupy: Any
    _kernels: Kernels
    _tables: Tables

    def cast(self, arrays, dtype, scale=1.0):
        if len(arrays) == 1:
            return super().cast(arrays, dtype, scale)
        with self.evaluation():
            changing = [k for k, a in enumerate(arrays) if a.dtype != dtype or scale != 1]
            dense = [_dense(self._cupy, arrays[k]) for k in changing]
            made = [self._cupy.empty_like(a, dtype=dtype) for a in dense]
            self._each_type("cast", dense, made, TYPES.index(np.dtype(dtype).name), float(scale))
        results = list(arrays)
        for k, new in zip(changing, made, strict=True):
            results[k] = new
        return results

    def finite(self, arrays):
        with self.evaluation():
            dense = [_dense(self._cupy, a) for a in arrays if is_floating(a.dtype)]
            found = self._cupy.zeros((), np.int32)
            self._each_type("not_finite", dense, dense, found)
            return found == 0

    def _each_type(self, name: str, arrays: Sequence[Array], made: Sequence[Array], *args: Any) -> None:
        """Launch a kernel for all arrays of a type, and those that it makes of them."""
        rows: dict[str, list[list[int]]] = {}
        for a, new in zip(arrays, made, strict=True):
            rows.setdefault(a.dtype.name, []).append([a.size, new.data.ptr, a.data.ptr])
        for dtype, members in rows.items():
            table, blocks = places(members)
            if blocks:
                given = len(members), self._tables.new(table), *args
                self._kernels.blocks("many", name, dtype, (blocks,), (THREADS,), *given)


def _dense(cupy: Any, a: Array) -> Array:
    """`a` without gaps, in any order of memory; copied if it has some."""
    return a if a.transpose(memory_order(a)).flags.c_contiguous else cupy.ascontiguousarray(a)


def places(rows: Sequence[Sequence[int]]) -> tuple[np.ndarray, int]:
    """A table for kernels of many arrays, whose rows begin with the size, and the number of blocks.

    >>> places([[5000, 7], [0, 8], [1, 9]])
    (array([[   0, 5000,    7],
           [   2,    0,    8],
           [   2,    1,    9]]), 3)
    """
    *firsts, blocks = accumulate((-(-row[0] // CHUNK) for row in rows), initial=0)
    return np.array([[first, *row] for first, row in zip(firsts, rows, strict=True)], np.int64), blocks


def memory_order(a: Array) -> list[int]:
    """The axes from the outermost to the innermost in memory."""
    return sorted(range(a.ndim), key=lambda axis: -abs(a.strides[axis]) if a.shape[axis] > 1 else 0)
