"""Convolution with 3x3 and 5x5 filters at stride 1 by minimal filtering: fewer products, cheap sums.

F(m x m, r x r) makes a tile of m x m outputs y from the i x i inputs d they see, i = m + r - 1. With matrices
A, B, G, y = A' ((G g G') * (B d B')) A for one filter g and one channel, * element by element; the sum over
channels makes i² matrix products over all tiles. F(4x4, 3x3) has a quarter of the products of the plain
sum, F(2x2, 3x3) four ninths, F(4x4, 5x5) four twenty-fifths. All is linear, so the derivative for the filters
is the same chain backwards, and that for the data the convolution with the filters turned around.

Behind it are products of polynomials, known by their values at i points, the last one infinity. Rounding
errors are up to ten times those of the plain sum. What isn't finite spreads over its tile.

Source: Winograd, "Arithmetic complexity of computations", 1980; Lavin & Gray, "Fast algorithms for
convolutional neural networks", CVPR 2016, arXiv:1509.09308.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import cache, partial
from math import prod
from typing import NamedTuple

import numpy as np

from ..reference.checks import Array
from ..reference.convolution import Sizes
from .epilogue import Epilogue
from .memory import empty
from .products import added_up, multiply, summed
from .threads import each, num_threads
from .tiles import Tile, slices, tiles
from .transforms import Collect, PerThread, Spread

FUSED_BYTES, FUSED_DZDW = 2 << 20, 6 << 20
"""Transformed inputs and outputs of tiles that one thread takes through all stages, in its cache; more for
the derivative for the filters, which adds to all of that for each chunk."""
STAGED_BYTES = 32 << 20
"""Those of a chunk that all threads take through one stage after another."""
STAGED_BANK, STAGED_DZDW = 6 << 20, 3 << 20
"""Larger transformed banks are not read, and derivatives for them not added to, for every small chunk:
threads share out the products of a large one instead."""
FEW_BYTES, HARDLY_MORE = 6 << 20, 4
"""Nor are derivatives for smaller ones, if tiles take so little, and not so many times what the bank does."""
APART = 16  # elements between rows of transformed data: rows a power of two apart would share cache lines

OF_BANK, OF_MAPS = 60, 4
"""What an element of a transformed bank costs in multiplications; one of maps, by pixel of a tile's side."""
WORTH_SHARING = 100_000_000
"""Such work that takes longer than another thread needs to wake up."""
SHARED_BANK = 2 << 20
"""Bytes of a transformed bank that takes several threads less time than one."""
POINTS = (0, 1, -1, 2, -2, 0.5, -0.5)
"""The first ones are those of smaller tiles; the second has to be 1, see `conv`."""


class Scheme(NamedTuple):
    """F(m x m, r x r) in one floating type; each matrix acts on both axes of a tile."""

    out: int  # m
    taps: int  # r
    of_inputs: Array  # B, (i, i)
    of_filters: Array  # G, (i, r)
    of_outputs: Array  # A', (m, i)

    @property
    def side(self) -> int:
        """i, the pixels a side of the inputs of a tile."""
        return len(self.of_inputs)

    @property
    def points(self) -> int:
        """i²."""
        return self.side**2


def tile_sizes(taps: int) -> range:
    """The m of tiles for filters of taps x taps: of larger ones fewer digits are right."""
    return range(2, min(5, len(POINTS) + 2 - taps) + 1)


def cheapest(sizes: Sizes, depth: int, k: int) -> int:
    """The m of least work: multiplications of products, and what making and reading their operands costs."""
    return min(tile_sizes(sizes.window[0]), key=lambda out: _cost(sizes, out, depth, k))


def _cost(sizes: Sizes, out: int, depth: int, k: int) -> int:
    side, count = out + sizes.window[0] - 1, prod(_grid(sizes, out))
    return side**2 * ((count + OF_BANK) * depth * k + OF_MAPS * side * count * (depth + k))


def _threads(plan: Scheme, sizes: Sizes, depth: int, k: int) -> int:
    return num_threads() if _cost(sizes, plan.out, depth, k) >= WORTH_SHARING else 1


@cache
def scheme(out: int, taps: int, dtype: np.dtype) -> Scheme:
    """F(out x out, taps x taps).

    >>> plan = scheme(2, 3, np.dtype("float64"))
    >>> plan.points, plan.of_filters.shape
    (16, (4, 3))
    """
    points = np.array(POINTS[: out + taps - 2], float)
    # The polynomials that are 0 at all points but one, and that which is 0 at all.
    others = [np.poly(np.delete(points, k))[::-1] for k in range(len(points))]
    b = np.vstack([np.pad(other, (0, 1)) for other in others] + [np.poly(points)[::-1]])
    a, g = (_powers(points, n) for n in (out, taps))
    g[:-1] /= np.array([np.polyval(other[::-1], p) for other, p in zip(others, points, strict=True)])[:, None]
    return Scheme(out, taps, *(np.ascontiguousarray(matrix, dtype) for matrix in (b, g, a.T)))


def _powers(points: Array, n: int) -> Array:
    """A row of powers 0 ... n - 1 for each point; of infinity only the highest counts."""
    return np.vstack([np.vander(points, n, increasing=True), np.eye(n)[-1:]])


def bank(plan: Scheme, w: Array, flipped: bool = False) -> Array:
    """The transformed filters of w (K, C, r, r): (i², C, K), or for filters turned around (i², K, C)."""
    k, c = w.shape[:2]
    nbytes = plan.points * k * c * w.itemsize
    # Few filters are turned before: BLAS would turn what is made of them for every chunk of tiles.
    turned = not flipped and nbytes <= STAGED_BANK
    spread = Spread(
        plan.of_filters[:, ::-1] if flipped else plan.of_filters,
        plan.taps,
        w.transpose(1, 2, 3, 0) if turned else w.transpose(0, 2, 3, 1),
    )
    rows, _, _, columns = spread.maps.shape
    made = _maps(plan.points, rows, columns, w.dtype)
    parts = slices(rows, least=16, times=2)
    each(lambda part: spread(part, (0, 0), (1, 1), made[:, part]), parts, None if nbytes > SHARED_BANK else 1)
    return made if turned or flipped else made.swapaxes(1, 2)


def conv(plan: Scheme, x: Array, bank: Array, sizes: Sizes, y: Array, epilogue: Epilogue) -> None:
    """Write into channels-last `y` what a transformed `bank` (i², C, K) makes of channels-last `x`."""
    c, k = bank.shape[1:]
    rest = epilogue._replace(b=None)
    spread, collect = Spread(plan.of_inputs, plan.out, x), Collect(plan.of_outputs)
    rooms, room = PerThread(), partial(_room, plan, c, k, x.dtype)

    def transform(tile: Tile, seen: Array) -> None:
        spread(tile[0], _start(plan, tile, sizes.pad), _counts(tile)[1:], seen)

    def complete(tile: Tile, products: Array) -> None:
        if epilogue.b is not None:
            # What is added to the product at the point (1, 1) is added to every output of the tile.
            products[plan.side + 1] += epilogue.b
        place = _pixels(plan, tile, sizes)
        collect(products, _counts(tile), y[place])
        rest.finish(y[place], place)

    def fused(tile: Tile) -> None:
        seen, products = rooms.get(room, _count(tile))
        transform(tile, seen)
        complete(tile, multiply(seen, bank, products))

    def staged(count: int, parts: list[tuple[Tile, slice]]) -> None:
        seen, products = room(count)
        each(lambda part: transform(part[0], seen[:, part[1]]), parts)
        each(lambda p: multiply(seen[p], bank[p], products[p]), range(plan.points))
        each(lambda part: complete(part[0], products[:, part[1]]), parts)

    if plan.points * c * k * x.itemsize <= STAGED_BANK:
        each(fused, _tiles(plan, sizes, c + k, x.dtype, FUSED_BYTES), _threads(plan, sizes, c, k))
        return
    for count, parts in _groups(plan, sizes, c + k, x.dtype):
        staged(count, parts)


def conv_dzdw(plan: Scheme, dzdy: Array, x: Array, sizes: Sizes) -> Array:
    """The derivative for the filters, (K, r r, C), from channels-last `dzdy` and `x`."""
    k, c = dzdy.shape[3], x.shape[3]
    of_x, of_dzdy = Spread(plan.of_inputs, plan.out, x), Spread(plan.of_outputs.T, plan.out, dzdy)
    rooms, room = PerThread(), partial(_room, plan, c, k, x.dtype)

    def transform(tile: Tile, seen: Array, ders: Array) -> None:
        of_x(tile[0], _start(plan, tile, sizes.pad), _counts(tile)[1:], seen)
        of_dzdy(tile[0], _start(plan, tile), _counts(tile)[1:], ders)

    def empty_total() -> Array:
        return _maps(plan.points, k, c, x.dtype)

    def fused(tile: Tile, out: Array) -> None:
        seen, ders = rooms.get(room, _count(tile))
        transform(tile, seen, ders)
        summed(ders, seen, out)

    def staged(count: int, parts: list[tuple[Tile, slice]]) -> Array:
        total = empty_total()
        seen, ders = room(count)
        each(lambda part: transform(part[0], seen[:, part[1]], ders[:, part[1]]), parts)
        each(lambda p: summed(ders[p], seen[p], total[p]), range(plan.points))
        return total

    if not _staged_dzdw(plan, sizes, c, k, x.dtype):
        pieces = _tiles(plan, sizes, c + k, x.dtype, FUSED_DZDW)
        return _to_filters(plan, added_up(fused, pieces, empty_total, _threads(plan, sizes, c, k)))
    first, *groups = _groups(plan, sizes, c + k, x.dtype)
    total = staged(*first)
    for group in groups:
        total += staged(*group)
    return _to_filters(plan, total)


def _to_filters(plan: Scheme, total: Array) -> Array:
    """Derivatives for the filters, (K, r r, C), of those for the transformed ones, (i², K, C)."""
    _, k, c = total.shape
    dzdw = empty((k, plan.taps, plan.taps, c), total.dtype)
    collect = Collect(plan.of_filters.T)
    each(
        lambda part: collect(total[:, part], (part.stop - part.start, 1, 1), dzdw[part]),
        slices(k, least=16, most=16),
        None if total.nbytes > SHARED_BANK else 1,
    )
    return dzdw.reshape(k, -1, c)


def _start(plan: Scheme, tile: Tile, pad: Sequence[int] = (0, 0, 0, 0)) -> tuple[int, int]:
    """The first pixel that a chunk of tiles sees."""
    _, rows, columns = tile
    return plan.out * rows.start - pad[0], plan.out * columns.start - pad[2]


def _staged_dzdw(plan: Scheme, sizes: Sizes, c: int, k: int, dtype: np.dtype) -> bool:
    """Whether threads go through the stages together: there are many filters, or hardly more tiles."""
    count = prod(_grid(sizes, plan.out))
    of_bank, of_tiles = (plan.points * values * dtype.itemsize for values in (c * k, count * (c + k)))
    return of_bank > STAGED_DZDW or of_tiles <= min(FEW_BYTES, HARDLY_MORE * of_bank)


def _room(plan: Scheme, c: int, k: int, dtype: np.dtype, count: int) -> list[Array]:
    """Memory for what `count` tiles become: with C channels, and with K."""
    return [_maps(plan.points, count, channels, dtype) for channels in (c, k)]


def _grid(sizes: Sizes, out: int) -> tuple[int, int, int]:
    """How many images, rows and columns of tiles of `out` x `out` there are."""
    n, _, height, width = sizes.output
    return n, -(-height // out), -(-width // out)


def _maps(points: int, n: int, channels: int, dtype: np.dtype) -> Array:
    """(points, n, channels) with arbitrary contents, whose points lie apart in the cache."""
    return empty((points, n * channels + APART), dtype)[:, :-APART].reshape(points, n, channels)


def _tiles(plan: Scheme, sizes: Sizes, channels: int, dtype: np.dtype, nbytes: int) -> list[Tile]:
    """Chunks of tiles: slices of (images, rows of tiles, columns of tiles)."""
    most = nbytes // (plan.points * channels * dtype.itemsize)
    return list(tiles(_grid(sizes, plan.out), most, num_threads()))


def _groups(
    plan: Scheme, sizes: Sizes, channels: int, dtype: np.dtype
) -> Iterator[tuple[int, list[tuple[Tile, slice]]]]:
    """Groups of chunks small enough to be kept whole: the number of tiles, and each chunk's place in it."""
    most = STAGED_BYTES // (plan.points * channels * dtype.itemsize)
    parts: list[tuple[Tile, slice]] = []
    count = 0
    for tile in _tiles(plan, sizes, channels, dtype, FUSED_BYTES):
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
