"""Maps as a matrix with a row for each pixel and a column for each channel: work by channel, by pixel."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from ..reference.checks import Array
from . import memory
from .passes import in_pieces
from .threads import each
from .tiles import channels_last, channels_second

PIECE = 1 << 18
"""Elements of a piece: shorter steps would have threads wait for the interpreter's lock more than compute."""
WIDE = (1 << 12) + 1
"""The least elements of a row: NumPy copies what it broadcasts to rows of half its buffer and shorter."""


def as_rows(x: Array) -> Array:
    """(N, C, H, W) maps as (pixels, C): a view of channels-last memory, of any other a copy."""
    last = channels_last(x)
    if not last.flags.c_contiguous:
        copy = memory.empty(last.shape, x.dtype)
        in_pieces(np.copyto, copy, last)
        last = copy
    return last.reshape(last.size // max(1, x.shape[1]), x.shape[1])


def as_maps(rows: Array, shape: Sequence[int]) -> Array:
    """The reverse of `as_rows`: (N, C, H, W) maps of this shape."""
    n, c, height, width = shape
    return channels_second(rows.reshape(n, height, width, c))


def empty_rows(x: Array, dtype: Any = None) -> Array:
    """A pooled matrix of the shape of `x`, and of its type unless another is given."""
    return memory.empty(x.shape, x.dtype if dtype is None else dtype)


def row_pieces(x: Array, least: int = 1, most: int = PIECE) -> list[slice]:
    """Slices that cover the rows of `x`: of `PIECE` elements about, and `least` to `most` rows."""
    count, c = x.shape
    step = min(most, max(least, PIECE // c))
    return [slice(k, min(count, k + step)) for k in range(0, count, step)]


def by_channel(
    work: Callable[[Sequence[Array], Sequence[Array]], Any],
    matrices: Sequence[Array],
    values: Sequence[Array],
) -> None:
    """Call work(pieces, values) for pieces of (pixels, C) `matrices`, with `values` (C,) to broadcast.

    A piece has several pixels in a row, and as often the values, lest a ufunc have to start for every pixel.

    >>> x, y = np.arange(6.0).reshape(3, 2), np.empty((3, 2))
    >>> by_channel(lambda xy, b: np.add(xy[0], b[0], out=xy[1]), [x, y], [np.array([10, 20])])
    >>> y
    array([[10., 21.],
           [12., 23.],
           [14., 25.]])
    """
    c = matrices[0].shape[1]
    fold = max(1, min(-(-WIDE // c), len(matrices[0])))
    period, values = fold * c, [repeated(v, fold) for v in values]
    flat = [m.reshape(-1) for m in matrices]
    size = flat[0].size
    step = max(1, PIECE // period) * period
    # All pieces are of whole periods, but for one that is shorter than a period.
    last = size // period * period
    pieces = [(k, min(last, k + step)) for k in range(0, last, step)] + [(last, size)] * (last < size)

    def run(piece):
        start, stop = piece
        width = min(period, stop - start)
        work([a[start:stop].reshape(-1, width) for a in flat], [v[:width] for v in values])

    if size <= PIECE:  # no piece but a short one is left
        for piece in pieces:
            run(piece)
    else:
        each(run, pieces)


def repeated(values: Array, times: int) -> Array:
    """`values` so many times one after the other: `np.tile`, several times faster."""
    if times == 1:
        return values
    copies = np.empty((times, len(values)), values.dtype)
    copies[...] = values
    return copies.reshape(-1)
