"""Convolutions with too few channels for patches to pay: a pass for each tap of the filters.

Where a group has one channel and one filter (depthwise), a tap scales every channel by its own weight; with
several filters, copies of the channel. Where there are few filters, one product makes the contributions of
all taps at every pixel of the input.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import prod

import numpy as np

from ..reference.checks import Array
from ..reference.convolution import Sizes
from .epilogue import Epilogue
from .memory import empty
from .threads import each
from .tiles import Tile, channels_last, channels_second, tap_overlaps, tiles

TILE_BYTES = 1 << 18
FEW = 4
"""Most filters for which their contributions are made tap by tap: of a convolution, or of each channel."""
MANY_GROUPS = 16
"""With fewer, memory that a pass goes through lies in too small pieces for several filters of a channel."""


def depthwise(x: Array, w: Array, sizes: Sizes, y: Array, epilogue: Epilogue) -> None:
    """Write into channels-last `y` what filters (C m, 1, h, w), m each, make of the channels of `x`."""
    weights, x = _weights(w), _copies(x, len(w))

    def work(tile: Tile) -> None:
        part, scratch = y[tile], empty(y[tile].shape, y.dtype)
        part.fill(0)
        for tap, outputs, inputs in _taps(sizes, tile, x.shape):
            scaled = np.multiply(x[inputs], weights[tap], out=scratch[outputs])
            part[outputs] += scaled
        epilogue.finish(part, tile)

    each(work, _tiles(y))


def depthwise_dzdx(dzdy: Array, w: Array, sizes: Sizes, dzdx: Array) -> None:
    """The derivative of `depthwise` for x, into channels-last `dzdx`."""
    weights, times = _weights(w), len(w) // dzdx.shape[3]
    if times > 1:
        each_copy = empty((*dzdx.shape[:3], len(w)), dzdx.dtype)
        depthwise_dzdx(dzdy, w, sizes, each_copy)
        _add_copies(each_copy, dzdx)
        return

    def work(image: int) -> None:
        part = dzdx[image : image + 1]
        part.fill(0)
        for tile in tiles((1, *dzdy.shape[1:3]), _most(dzdy)):
            ders = dzdy[image : image + 1][tile]
            scratch = empty(ders.shape, ders.dtype)
            for tap, outputs, inputs in _taps(sizes, tile, dzdx.shape):
                part[inputs] += np.multiply(ders[outputs], weights[tap], out=scratch[outputs])

    each(work, range(len(dzdy)))


def depthwise_dzdw(dzdy: Array, x: Array, sizes: Sizes) -> Array:
    """The derivative of `depthwise` for its filters, (C m, h, w, 1)."""
    pieces, x = _tiles(dzdy), _copies(x, dzdy.shape[3])

    def work(tile: Tile) -> Array:
        ders, sums = dzdy[tile], np.zeros((prod(sizes.window), dzdy.shape[3]), dzdy.dtype)
        scratch = empty(ders.shape, ders.dtype)
        for tap, outputs, inputs in _taps(sizes, tile, x.shape):
            product = np.multiply(ders[outputs], x[inputs], out=scratch[outputs])
            sums[tap] = product.sum(axis=(0, 1, 2))
        return sums

    total = np.sum(each(work, pieces), axis=0).astype(dzdy.dtype, copy=False)
    return total.T.reshape(-1, *sizes.window, 1)


def few_filters(x: Array, w: Array, sizes: Sizes, epilogue: Epilogue) -> Array:
    """y (N, H', W', K) of channels-last `x` and w (K, C, h, w) at stride 1, in planes for each filter."""
    n, k, *maps = sizes.output
    c, taps = x.shape[3], prod(sizes.window)
    bank = np.ascontiguousarray(w.transpose(2, 3, 0, 1)).reshape(taps * k, c)
    y = empty((n, k, *maps), x.dtype)
    add = None if epilogue.add is None else channels_second(epilogue.add)

    def work(tile: Tile) -> None:
        images, rows, _ = tile
        reach = (sizes.window[0] - 1) * sizes.dilate[0] + 1
        first = max(0, rows.start - sizes.pad[0])
        last = min(x.shape[1], rows.stop - 1 - sizes.pad[0] + reach)
        part = y[images, :, rows]
        part[...] = 0 if epilogue.b is None else epilogue.b[:, None, None]
        if last > first:
            seen = x[images, first:last].reshape(-1, c)
            made = np.matmul(bank, seen.T, out=empty((len(bank), len(seen)), x.dtype))
            made = made.reshape(taps, k, -1, last - first, x.shape[2]).swapaxes(1, 2)
            for tap, outputs, inputs in _taps(sizes, tile, x.shape):
                down, across = inputs[1], inputs[2]
                seen_rows = slice(down.start - first, down.stop - first)
                part[:, :, outputs[1], outputs[2]] += made[tap, :, :, seen_rows, across]
        last_steps = Epilogue(None, None if add is None else add[images, :, rows], epilogue.relu)
        last_steps.finish(part, np.s_[:, :, :])

    pixel_bytes = (c + len(bank)) * x.itemsize
    rows_of = max(1, TILE_BYTES * 4 // (pixel_bytes * x.shape[2]))
    each(work, list(tiles((n, *maps), rows_of * maps[1])))
    return channels_last(y)


def _copies(x: Array, channels: int) -> Array:
    """Channels-last maps with `channels`: each channel of `x` so often, one copy beside the other."""
    times = channels // x.shape[3]
    if times == 1:
        return x
    copies = empty((*x.shape, times), x.dtype)

    def work(tile: Tile) -> None:
        for number in range(times):  # inner loops over as few as `times` elements would be slow
            copies[tile][..., number] = x[tile]

    each(work, _tiles(x))
    return copies.reshape(*x.shape[:3], channels)


def _add_copies(copies: Array, x: Array) -> None:
    """The reverse of `_copies`: into `x` their sums."""
    copies = copies.reshape(*x.shape, copies.shape[3] // x.shape[3])

    def work(tile: Tile) -> None:
        part = np.add(copies[tile][..., 0], copies[tile][..., 1], out=x[tile])
        for number in range(2, copies.shape[4]):
            part += copies[tile][..., number]

    each(work, _tiles(x))


def _weights(w: Array) -> Array:
    """Depthwise filters (C, 1, h, w) as (h w, C)."""
    return np.ascontiguousarray(w.reshape(len(w), -1).T)


def _most(maps: Array) -> int:
    return max(1, TILE_BYTES // (maps.shape[3] * maps.itemsize))


def _tiles(maps: Array) -> list[Tile]:
    return list(tiles(maps.shape[:3], _most(maps)))


def _taps(sizes: Sizes, tile: Tile, shape: Sequence[int]) -> list[tuple[int, tuple, tuple]]:
    """For each tap of the filters: its number, and indices into `tile` and into maps of `shape`."""
    images, *outputs = tile
    rows, columns = tap_overlaps(outputs, sizes, shape[1:3])
    return [
        (u * len(columns) + v, np.s_[:, out_rows, out_columns], np.s_[images, in_rows, in_columns])
        for u, (out_rows, in_rows) in enumerate(rows)
        for v, (out_columns, in_columns) in enumerate(columns)
        if in_rows.stop > in_rows.start and in_columns.stop > in_columns.start
    ]
