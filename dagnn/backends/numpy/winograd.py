"""Convolution with 3x3 and 5x5 filters at stride 1 by minimal filtering: fewer products, cheap sums.

F(m x m, r x r) makes a tile of m x m outputs y from the i x i inputs d they see, i = m + r - 1. With matrices
A, B, G, y = A ((G g G') * (B d B')) A' for one filter g and one channel, * element by element; the sum over
channels makes i² matrix products over all tiles. F(4x4, 3x3) has a quarter of the products of the plain
sum, F(2x2, 3x3) four ninths, F(2x2, 5x5) nine twenty-fifths. Each transformation is one matrix product too,
with a Kronecker square. All are linear, so the derivative for the filters is the same chain backwards, and
that for the data the convolution with the filters turned around.

Behind it are products of polynomials, known by their values at i points: 0, 1, -1, 2, -2, infinity. Rounding
errors are up to ten times those of the plain sum. What isn't finite spreads over its tile.

Source: Winograd, "Arithmetic complexity of computations", 1980; Lavin & Gray, "Fast algorithms for
convolutional neural networks", CVPR 2016, arXiv:1509.09308.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache
from math import prod
from typing import NamedTuple

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..reference.checks import Array
from ..reference.convolution import Sizes
from .elementwise import rectify
from .epilogue import Epilogue
from .memory import empty
from .patches import strip
from .threads import each, num_threads, share
from .tiles import Tile, slices, tiles

FUSED_BYTES = 1 << 21
"""Transformed inputs and outputs of tiles that one thread takes through all stages, in its cache."""
STAGED_BYTES = 24 << 20
"""Those of a chunk that all threads take through one stage after another."""
STAGED_BANK = 3 << 20
"""Larger transformed banks are not read for every small chunk: threads share out the products instead."""
FEW_BYTES = 6 << 20
"""Nor are smaller ones if there are so few tiles: all of them stay in cache."""
APART = 16  # elements between rows of transformed data: rows a power of two apart would share cache lines

POINTS = {4: (0, 1, -1), 6: (0, 1, -1, 2, -2)}  # by i; infinity is the last
INPUTS = {  # B, by i
    4: [[1, 0, -1, 0], [0, 1, 1, 0], [0, -1, 1, 0], [0, -1, 0, 1]],
    6: [
        [4, 0, -5, 0, 1, 0],
        [0, -4, -4, 1, 1, 0],
        [0, 4, -4, -1, 1, 0],
        [0, -2, -1, 2, 1, 0],
        [0, 2, -1, -2, 1, 0],
        [0, 4, 0, -5, 0, 1],
    ],
}
WEIGHTS = {4: (1, 2, 2, 1), 6: (4, -6, -6, 24, 24, 1)}  # the rows of G are powers of the points over these


class Scheme(NamedTuple):
    """F(m x m, r x r) in one floating type; matrices act on both axes of a tile at once."""

    out: int  # m
    taps: int  # r
    points: int  # i²
    of_inputs: Array  # (i², i²)
    of_filters: Array  # (i², r²)
    of_flipped: Array  # (i², r²), for filters turned around
    of_outputs: Array  # (m², i²)

    @property
    def side(self) -> int:
        """i, the pixels a side of the inputs of a tile."""
        return self.out + self.taps - 1


@cache
def scheme(out: int, taps: int, dtype: np.dtype) -> Scheme:
    """The matrices for tiles of `out` x `out` outputs and filters of `taps` x `taps`.

    >>> plan = scheme(2, 3, np.dtype("float64"))
    >>> plan.points, plan.of_filters.shape
    (16, (16, 9))
    """
    side = out + taps - 1
    b = np.array(INPUTS[side], float)
    a, g = (_powers(POINTS[side], n) for n in (out, taps))
    g /= np.array(WEIGHTS[side], float)[:, None]
    squares = (np.kron(m, m).astype(dtype) for m in (b, g, g[:, ::-1], a.T))
    return Scheme(out, taps, side**2, *squares)


def _powers(points: Sequence[int], n: int) -> Array:
    """A row of powers 0 ... n - 1 for each point; of infinity only the highest counts."""
    return np.vstack([np.vander(points, n, increasing=True), np.eye(n)[-1:]]).astype(float)


def bank(plan: Scheme, w: Array, flipped: bool = False) -> Array:
    """The transformed filters of w (K, C, r, r): (i², C, K), or for filters turned around (i², K, C)."""
    k, c = w.shape[:2]
    taps = w.transpose(0, 2, 3, 1).reshape(k, plan.taps**2, c)
    matrix = plan.of_flipped if flipped else plan.of_filters
    transformed = _maps(plan.points, k, c, w.dtype)
    by_filter = transformed.swapaxes(0, 1)
    each(lambda part: np.matmul(matrix, taps[part], out=by_filter[part]), slices(k, least=16, most=16))
    if flipped:
        return transformed
    turned = transformed.swapaxes(1, 2)
    if transformed.nbytes > STAGED_BANK:
        return turned
    small = _maps(plan.points, c, k, w.dtype)  # BLAS would turn it for every chunk of tiles
    small[...] = turned
    return small


def conv(plan: Scheme, x: Array, bank: Array, sizes: Sizes, y: Array, epilogue: Epilogue) -> None:
    """Write into channels-last `y` what a transformed `bank` (i², C, K) makes of channels-last `x`."""
    c, k = bank.shape[1:]

    def transform(tile: Tile, seen: Array) -> None:
        np.matmul(plan.of_inputs, _seen(plan, x, tile, sizes), out=_rows(seen))

    def complete(tile: Tile, products: Array) -> None:
        if epilogue.b is not None:
            # What is added to the product at the point (1, 1) is added to every output of the tile.
            products[plan.side + 1] += epilogue.b
        outputs = _maps(plan.out**2, products.shape[1], k, x.dtype)
        rows = np.matmul(plan.of_outputs, _rows(products), out=_rows(outputs))
        if epilogue.add is None:
            rectify(rows, epilogue.relu, rows)
        _scatter(plan, outputs, y, tile, epilogue)

    def fused(tile: Tile) -> None:
        seen = _maps(plan.points, _count(tile), c, x.dtype)
        transform(tile, seen)
        complete(tile, np.matmul(seen, bank, out=_maps(plan.points, seen.shape[1], k, x.dtype)))

    def staged(count: int, parts: list[tuple[Tile, slice]]) -> None:
        seen, products = (_maps(plan.points, count, channels, x.dtype) for channels in (c, k))
        each(lambda part: transform(part[0], seen[:, part[1]]), parts)
        each(lambda p: np.matmul(seen[p], bank[p], out=products[p]), range(plan.points))
        each(lambda part: complete(part[0], products[:, part[1]]), parts)

    if not _staged(plan, sizes, c, k, x.dtype):
        each(fused, _tiles(plan, sizes, c + k, x.dtype))
        return
    for count, parts in _groups(plan, sizes, c + k, x.dtype):
        staged(count, parts)


def conv_dzdw(plan: Scheme, dzdy: Array, x: Array, sizes: Sizes) -> Array:
    """The derivative for the filters, (K, r r, C), from channels-last `dzdy` and `x`."""
    k, c = dzdy.shape[3], x.shape[3]

    def transform(tile: Tile, seen: Array, ders: Array) -> None:
        np.matmul(plan.of_inputs, _seen(plan, x, tile, sizes), out=_rows(seen))
        np.matmul(plan.of_outputs.T, _ders(plan, dzdy, tile, sizes), out=_rows(ders))

    def fused(pieces: Sequence[Tile]) -> Array:
        own, part = (_maps(plan.points, k, c, x.dtype) for _ in range(2))
        for number, tile in enumerate(pieces):
            seen, ders = (_maps(plan.points, _count(tile), channels, x.dtype) for channels in (c, k))
            transform(tile, seen, ders)
            np.matmul(ders.swapaxes(1, 2), seen, out=part if number else own)
            if number:
                own += part
        return own

    def staged(count: int, parts: list[tuple[Tile, slice]]) -> Array:
        total = _maps(plan.points, k, c, x.dtype)
        seen, ders = (_maps(plan.points, count, channels, x.dtype) for channels in (c, k))
        each(lambda part: transform(part[0], seen[:, part[1]], ders[:, part[1]]), parts)
        each(lambda p: np.matmul(ders[p].T, seen[p], out=total[p]), range(plan.points))
        return total

    if not _staged(plan, sizes, c, k, x.dtype):
        total, *others = each(fused, share(_tiles(plan, sizes, c + k, x.dtype)))
        for other in others:
            total += other
        return _to_filters(plan, total)
    first, *groups = _groups(plan, sizes, c + k, x.dtype)
    total = staged(*first)
    for group in groups:
        total += staged(*group)
    return _to_filters(plan, total)


def _to_filters(plan: Scheme, total: Array) -> Array:
    """Derivatives for the filters, (K, r r, C), of those for the transformed ones, (i², K, C)."""
    _, k, c = total.shape
    dzdw = empty((k, plan.taps**2, c), total.dtype)
    by_filter = total.swapaxes(0, 1)
    each(
        lambda part: np.matmul(plan.of_filters.T, by_filter[part], out=dzdw[part]),
        slices(k, least=16, most=16),
    )
    return dzdw


def _staged(plan: Scheme, sizes: Sizes, c: int, k: int, dtype: np.dtype) -> bool:
    """Whether threads go through the stages together, sharing out the products of each point."""
    n, _, *maps = sizes.output
    tiles = n * prod(-(-size // plan.out) for size in maps)
    bank, data = (plan.points * values * dtype.itemsize for values in (c * k, tiles * (c + k)))
    return bank > STAGED_BANK or (data <= FEW_BYTES and 4 * bank > data)


def _maps(points: int, n: int, channels: int, dtype: np.dtype) -> Array:
    """(points, n, channels) with arbitrary contents, whose points lie apart in the cache."""
    return empty((points, n * channels + APART), dtype)[:, :-APART].reshape(points, n, channels)


def _rows(maps: Array) -> Array:
    """(points, n, channels) as (points, n channels)."""
    return maps.reshape(len(maps), -1)


def _tiles(plan: Scheme, sizes: Sizes, channels: int, dtype: np.dtype) -> list[Tile]:
    """Chunks of tiles: slices of (images, rows of tiles, columns of tiles)."""
    n, _, *maps = sizes.output
    counts = (n, *(-(-size // plan.out) for size in maps))
    most = FUSED_BYTES // (plan.points * channels * dtype.itemsize)
    return list(tiles(counts, most, num_threads()))


def _groups(
    plan: Scheme, sizes: Sizes, channels: int, dtype: np.dtype
) -> Iterator[tuple[int, list[tuple[Tile, slice]]]]:
    """Groups of chunks small enough to be kept whole: the number of tiles, and each chunk's place in it."""
    most = STAGED_BYTES // (plan.points * channels * dtype.itemsize)
    parts: list[tuple[Tile, slice]] = []
    count = 0
    for tile in _tiles(plan, sizes, channels, dtype):
        if parts and count + _count(tile) > most:
            yield count, parts
            parts, count = [], 0
        parts.append((tile, slice(count, count + _count(tile))))
        count += _count(tile)
    yield count, parts


def _counts(tile: Tile) -> tuple[int, int, int]:
    images, rows, columns = tile
    return images.stop - images.start, rows.stop - rows.start, columns.stop - columns.start


def _count(tile: Tile) -> int:
    n, rows, columns = _counts(tile)
    return n * rows * columns


def _pixels(plan: Scheme, tile: Tile, sizes: Sizes) -> Tile:
    """The output pixels of a chunk of tiles."""
    images, *parts = tile
    rows, columns = (
        slice(plan.out * part.start, min(plan.out * part.stop, size))
        for part, size in zip(parts, sizes.output[2:], strict=True)
    )
    return images, rows, columns


def _seen(plan: Scheme, x: Array, tile: Tile, sizes: Sizes) -> Array:
    """The inputs (i², tiles C) that a chunk of tiles sees."""
    (n, rows, columns), c, more = _counts(tile), x.shape[3], plan.taps - 1
    cuts = [
        (plan.out * part.start - sizes.pad[2 * axis], plan.out * (part.stop - part.start) + more, 1)
        for axis, part in enumerate(tile[1:])
    ]
    seen = strip(x[tile[0]], cuts[0], cuts[1])
    image, row, pixel, item = seen.strides
    windows = as_strided(
        seen,
        (plan.side, plan.side, n, rows, columns, c),
        (row, pixel, image, plan.out * row, plan.out * pixel, item),
    )
    gathered = _maps(plan.points, n * rows * columns, c, x.dtype)
    gathered.reshape(windows.shape)[...] = windows
    return _rows(gathered)


def _ders(plan: Scheme, dzdy: Array, tile: Tile, sizes: Sizes) -> Array:
    """The derivatives (m², tiles K) for the outputs of a chunk of tiles, from channels-last `dzdy`."""
    out, k = plan.out, dzdy.shape[3]
    given = dzdy[_pixels(plan, tile, sizes)]
    gathered = _maps(out * out, _count(tile), k, dzdy.dtype)
    places = gathered.reshape(out, out, *_counts(tile), k)
    if (whole := _by_place(plan, given, tile)) is not None:
        places[...] = whole
        return _rows(gathered)
    gathered.fill(0)
    for u in range(out):
        for v in range(out):
            part = given[:, u::out, v::out]
            places[u, v, :, : part.shape[1], : part.shape[2]] = part
    return _rows(gathered)


def _scatter(plan: Scheme, outputs: Array, y: Array, tile: Tile, epilogue: Epilogue) -> None:
    """Put outputs (m², tiles, K) into their places in channels-last `y`; those outside are left out."""
    out, (n, rows, columns), (_, height, width, k) = plan.out, _counts(tile), y.shape
    images, *parts = tile
    outputs = outputs.reshape(out, out, n, rows, columns, k)
    top, left = (out * part.start for part in parts)
    place = images, slice(top, min(height, top + out * rows)), slice(left, min(width, left + out * columns))
    if (whole := _by_place(plan, y[place], tile)) is not None:
        whole[...] = outputs
    else:
        for u in range(out):
            for v in range(out):
                part = y[place][:, u::out, v::out]
                part[...] = outputs[u, v, :, : part.shape[1], : part.shape[2]]
    if epilogue.add is not None:
        Epilogue(None, epilogue.add, epilogue.relu).finish(y[place], place)


def _by_place(plan: Scheme, maps: Array, tile: Tile) -> Array | None:
    """Channels-last maps of whole tiles as (m, m, N, rows of tiles, columns of tiles, K); else None.

    One copy instead of m²: between short ones, threads wait for the interpreter.
    """
    (n, rows, columns), out = _counts(tile), plan.out
    if maps.shape[1:3] != (out * rows, out * columns):
        return None
    return maps.reshape(n, rows, out, columns, out, -1).transpose(2, 4, 0, 1, 3, 5)
