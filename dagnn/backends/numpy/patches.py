"""Convolution as matrix products: a row of the patch matrix is what one output pixel sees.

A pixel sees h x w pixels of C/groups channels. Only a bounded part of the patch matrix is there at a time.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from math import prod

import numpy as np
from numpy.lib.stride_tricks import as_strided

from ..reference.checks import Array
from ..reference.convolution import Sizes
from .epilogue import Epilogue
from .memory import copied, empty
from .products import added_up, multiply, summed
from .threads import each, num_threads
from .tiles import Tile, overlap, slices, tap_overlaps, tiles

PATCH_BYTES = 3 << 20
"""The most memory a thread's patches and their outputs take: of smaller pieces, what threads wait for the
interpreter costs more than cache saves."""
WORTH_SHARING = 1 << 24
"""Multiplications that take longer than another thread needs to wake up."""
WHOLE_BYTES = 24 << 20
"""A patch matrix up to this size may be made whole, where a large bank would be read for each small tile."""
LARGE_BANK = 1 << 21


def conv(
    x: Array, bank: Array, sizes: Sizes, y: Array, epilogue: Epilogue, kept: list[Array] | None = None
) -> None:
    """Write into channels-last `y` what `bank` (groups, h w C/groups, K/groups) makes of maps `x`.

    The patches of all tiles go into the list `kept`, if that is where `conv_dzdw` takes them from.
    """
    n, k, *maps = sizes.output
    patch_bytes = sizes.groups * bank.shape[1] * x.itemsize
    if kept is not None and _by_taps(bank.nbytes, sizes, patch_bytes):
        kept = None
    if sizes.groups == 1 and bank.nbytes > LARGE_BANK and 0 < n * prod(maps) * patch_bytes <= WHOLE_BYTES:
        _by_filters(x, bank[0], sizes, y.reshape(-1, k), epilogue)
        return

    def work(tile: Tile) -> Array | None:
        part, seen = y[tile], patches(x, tile, sizes)
        multiply(seen, bank, by_group(part, sizes))
        epilogue.finish(part, tile)
        return None if kept is None else seen

    made = each(work, _tiles(sizes, patch_bytes + k * x.itemsize, bank.size))
    if kept is not None:
        kept += made


def _by_filters(x: Array, bank: Array, sizes: Sizes, y: Array, epilogue: Epilogue) -> None:
    """The product of the whole patch matrix with a large bank (h w C, K), its columns shared out."""
    if sizes.window == (1, 1) and sizes.stride == (1, 1) and not any(sizes.pad):
        whole = x.reshape(len(y), -1)
    else:
        whole = empty((len(y), len(bank)), x.dtype)
        pieces = _tiles(sizes, whole[:1].nbytes, bank.size)
        ends = np.cumsum([prod(s.stop - s.start for s in tile) for tile in pieces])

        def gather(k: int) -> None:
            rows = patches(x, pieces[k], sizes)[0]
            whole[ends[k] - len(rows) : ends[k]] = rows

        each(gather, range(len(pieces)))
    add = None if epilogue.add is None else epilogue.add.reshape(y.shape)

    def work(part: slice) -> None:
        multiply(whole, bank[:, part], y[:, part])
        Epilogue(epilogue.b, add, epilogue.relu).of_group(part).finish(y[:, part], np.s_[:, :])

    each(work, slices(bank.shape[1], least=16, times=2))


def conv_dzdx(dzdy: Array, bank: Array, sizes: Sizes, dzdx: Array) -> None:
    """Add to channels-last `dzdx`, zeros, the derivative from channels-last `dzdy`: patches, added up.

    `bank` is (groups, K/groups, h w C/groups).
    """
    groups, k, _ = bank.shape
    taps = np.ascontiguousarray(bank.reshape(groups, k, prod(sizes.window), -1).transpose(2, 0, 1, 3))

    def work(tiles: list[Tile]) -> None:  # those of one image, which overlap
        for tile in tiles:
            ders = by_group(dzdy[tile], sizes)
            made = empty((len(taps), ders.shape[1], groups, taps.shape[3]), bank.dtype)
            np.matmul(ders, taps, out=made.swapaxes(1, 2))
            _scatter(made, dzdx, tile, sizes)

    pieces = _tiles(sizes, sizes.groups * bank[0, 0].nbytes, bank.size)
    each(work, [list(group) for _, group in groupby(pieces, key=lambda tile: tile[0].start)])


def conv_dzdw(dzdy: Array, x: Array, sizes: Sizes, depth: int, kept: Sequence[Array] = ()) -> Array:
    """The derivative for the filters, (groups, K/groups, h w C/groups), from channels-last `dzdy` and `x`.

    `kept` are the patches of x, if `conv` kept them; sums are the same, bit for bit, without.
    """
    k, groups = dzdy.shape[3], sizes.groups
    shape = (groups, k // groups, prod(sizes.window) * depth)
    row_bytes = groups * shape[2] * x.itemsize
    pixels = dzdy.size // k
    if _by_taps(prod(shape) * x.itemsize, sizes, row_bytes):
        total = empty(shape, x.dtype)
        _taps_dzdw(dzdy.reshape(pixels, k), x, sizes, total.reshape(k, -1, depth))
        return total

    pieces = _tiles(sizes, row_bytes + k * x.itemsize, prod(shape))  # those of `conv`
    if [seen.shape[1] for seen in kept] != [prod(s.stop - s.start for s in tile) for tile in pieces]:
        kept = ()  # or it was with another number of threads

    # BLAS is quicker with fewer columns than rows, and with the rows of patches that lie in planes.
    by_patch = shape[1] <= shape[2] or in_planes(x)
    made_shape = (groups, shape[2], shape[1]) if by_patch else shape

    def product(number: int, out: Array) -> None:
        ders = by_group(dzdy[pieces[number]], sizes)
        seen = kept[number] if kept else patches(x, pieces[number], sizes)
        left, right = (seen, ders) if by_patch else (ders, seen)
        summed(left, right, out)

    made = added_up(product, range(len(pieces)), lambda: empty(made_shape, x.dtype))
    return copied(made.swapaxes(1, 2)) if by_patch else made


def _by_taps(bank_bytes: int, sizes: Sizes, row_bytes: int) -> bool:
    """Whether the derivative for the filters is made tap by tap: of a large bank and few pixels."""
    n, _, *maps = sizes.output
    few = n * prod(maps) * row_bytes <= 4 * WHOLE_BYTES
    return few and sizes.groups == 1 and bank_bytes > LARGE_BANK // 4


def _taps_dzdw(dzdy: Array, x: Array, sizes: Sizes, dzdw: Array) -> None:
    """The derivative (K, h w, C) for a large bank and few pixels: one product for each tap, none to add."""
    c = x.shape[3]
    (_, across), (height, width) = sizes.window, sizes.output[2:]

    def work(job: tuple[int, slice]) -> None:
        tap, filters = job
        u, v = divmod(tap, across)
        cuts = (
            (u * sizes.dilate[0] - sizes.pad[0], height, sizes.stride[0]),
            (v * sizes.dilate[1] - sizes.pad[2], width, sizes.stride[1]),
        )
        seen = np.ascontiguousarray(strip(x, *cuts)).reshape(-1, c)
        summed(dzdy[:, filters], seen, dzdw[filters, tap])

    taps = prod(sizes.window)
    k = dzdw.shape[0]
    filters = slices(k, least=64, times=2) if taps < 2 * num_threads() else [slice(0, k)]
    each(work, [(tap, part) for tap in range(taps) for part in filters])


def _tiles(sizes: Sizes, row_bytes: int, multiplications: int) -> list[Tile]:
    """Pieces of the output by the bytes of patches, and the multiplications, for one of its pixels."""
    n, _, *maps = sizes.output
    threads = 1 if n * prod(maps) * multiplications < WORTH_SHARING else num_threads()
    return list(tiles((n, *maps), PATCH_BYTES // row_bytes, threads))


def by_group(piece: Array, sizes: Sizes) -> Array:
    """A channels-last tile as (groups, pixels, channels/groups)."""
    return piece.reshape(-1, sizes.groups, piece.shape[-1] // sizes.groups).swapaxes(0, 1)


def patches(x: Array, tile: Tile, sizes: Sizes) -> Array:
    """The rows of the patch matrix of channels-last `x` for the output pixels in `tile`.

    They are (groups, pixels, h w C/groups).
    """
    images, *outputs = tile
    # The part of the padded input that the tile sees; on an axis with one tap, only what it meets.
    hops, cuts = [], []
    for axis, (seen, taps) in enumerate(zip(outputs, sizes.window, strict=True)):
        stride, count = sizes.stride[axis], seen.stop - seen.start
        start = seen.start * stride - sizes.pad[2 * axis]
        length = (count - 1) * stride + (taps - 1) * sizes.dilate[axis] + 1
        hops.append(stride if taps > 1 else 1)
        cuts.append((start, length, 1) if taps > 1 else (start, count, stride))
    planes = in_planes(x) and sizes.groups == 1 and 1 in (sizes.stride[1], sizes.dilate[1])
    piece = strip(x[images], cuts[0], cuts[1], planes)
    if sizes.window == (1, 1):
        return by_group(piece, sizes)
    if planes:
        return _planes(piece, [s.stop - s.start for s in outputs], hops, sizes)
    if piece.strides[3] != piece.itemsize or piece.strides[2] != piece.itemsize * piece.shape[3]:
        piece = copied(piece)
    n, _, _, c = piece.shape
    image, row, pixel, item = piece.strides
    depth, (below, beside) = c // sizes.groups, sizes.dilate
    windows = as_strided(
        piece,
        (sizes.groups, n, *(s.stop - s.start for s in outputs), *sizes.window, depth),
        (depth * item, image, row * hops[0], pixel * hops[1], row * below, pixel * beside, item),
    )
    return copied(windows).reshape(sizes.groups, -1, depth * sizes.window[0] * sizes.window[1])


def in_planes(x: Array) -> bool:
    """Whether channels-last `x` lies in memory as a plane for each channel, as images often do."""
    return x.shape[3] == 1 or x.strides[3] > x.strides[2]


def _planes(piece: Array, counts: Sequence[int], hops: Sequence[int], sizes: Sizes) -> Array:
    """`patches` of a piece in planes: gathered tap by tap, for then pixels of a row are together."""
    n, _, _, c = piece.shape
    (high, wide), (below, beside), across = sizes.window, sizes.dilate, hops[1]
    made = empty((high, wide, c, n, *counts), piece.dtype)
    if across > 1:
        piece = _phases(piece, across)
    *phase, image, row, pixel, channel = piece.strides
    # Of `across` neighbouring taps, each has a phase of its own.
    for first, last, step in ((0, wide - wide % across, across), (wide - wide % across, wide, wide % across)):
        if first < last:
            shape = high, (last - first) // step, step, c, n, *counts
            strides = row * below, pixel * beside, *(phase or [0]), channel, image, row * hops[0], pixel
            np.copyto(
                made[:, first:last].reshape(shape),
                as_strided(piece[..., first // across * beside :, :], shape, strides),
            )
    return made.reshape(1, -1, n * prod(counts)).swapaxes(1, 2)


def _phases(piece: Array, step: int) -> Array:
    """Channels-last maps in planes as (step, N, H, W/step, C): columns 0, step, ..., then 1, step + 1, ..."""
    n, height, width, c = piece.shape
    phases = empty((step, n, c, height, -(-width // step)), piece.dtype).transpose(0, 1, 3, 4, 2)
    for k in range(step):
        part = piece[:, :, k::step]
        phases[k, :, :, : part.shape[2]] = part
    return phases


def strip(x: Array, rows: tuple[int, int, int], columns: tuple[int, int, int], planes: bool = False) -> Array:
    """Pixels of channels-last maps at (start, count, step) along each axis; zeros outside the image.

    Where there are such zeros it is new memory: channels-last, or `planes`.
    """
    (row, height, down), (column, width, across) = rows, columns
    into, out = zip(
        overlap(slice(0, height), row, down, x.shape[1]),
        overlap(slice(0, width), column, across, x.shape[2]),
        strict=True,
    )
    inside = x[:, *out]
    if inside.shape[1:3] == (height, width):
        return inside
    n, _, _, c = x.shape
    if planes:
        padded = empty((n, c, height, width), x.dtype).transpose(0, 2, 3, 1)
    else:
        padded = empty((n, height, width, c), x.dtype)
    (top, left), (bottom, right) = (s.start for s in into), (s.stop for s in into)
    padded[:, :top] = padded[:, bottom:] = 0
    padded[:, :, :left] = padded[:, :, right:] = 0
    padded[:, *into] = inside
    return padded


def _scatter(made: Array, x: Array, tile: Tile, sizes: Sizes) -> None:
    """Add what each tap makes of each output, (taps, outputs, groups, C/groups), to its pixel of `x`."""
    images, *outputs = tile
    counts = [part.stop - part.start for part in tile]
    made, x = made.reshape(*sizes.window, *counts, x.shape[3]), x[images]
    rows, columns = tap_overlaps(outputs, sizes, x.shape[1:3])
    for u, (of_rows, to_rows) in enumerate(rows):
        for v, (of_columns, to_columns) in enumerate(columns):
            x[:, to_rows, to_columns] += made[u, v, :, of_rows, of_columns]
