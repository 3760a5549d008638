"""Pooling by whole-map steps in channels-last memory, without padding copies."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from ..reference import pooling as reference
from ..reference.checks import Array, one_dtype, same_shape
from ..reference.convolution import Sizes
from ..reference.pooling import first_taps, pixels_inside, pool_sizes
from .tiles import Tile, channels_last, channels_second, tap_overlaps, tiles

TILE_BYTES = 1 << 19
"""The memory of one tile of the output: small enough for all that a tap touches to stay in cache."""


class Pooling(reference.Pooling):
    """Max pooling visits the window's taps in place; average pooling sums rows, then columns."""

    def max_pool(self, x, size, *, stride=1, pad=0):
        sizes = pool_sizes(x.shape, size, stride, pad)
        one_dtype(x=x)
        x, first = channels_last(x), first_taps(sizes)
        n, c, *maps = sizes.output
        y = np.full((n, *maps, c), -np.inf, x.dtype)
        winner = np.empty((n, *maps, c), first.dtype)
        winner[...] = first[..., None]
        for tile in _tiles(sizes, x.dtype):
            best, taps = y[tile], winner[tile]
            for tap, outputs, inputs in _taps(sizes, tile, x.shape):
                pixels = x[inputs]
                better = np.greater(pixels, best[outputs]).astype(first.dtype)
                np.fmax(pixels, best[outputs], out=best[outputs])
                # Taps come in rising order, so the latest to be better is the largest.
                better *= first.dtype.type(tap)
                np.maximum(taps[outputs], better, out=taps[outputs])
        return channels_second(y), channels_second(winner)

    def max_pool_dzdx(self, dzdy, winner, x_shape, size, *, stride=1, pad=0):
        sizes = pool_sizes(x_shape, size, stride, pad)
        one_dtype(dzdy=dzdy)
        same_shape("dzdy", dzdy, sizes.output)
        same_shape("winner", winner, sizes.output)
        dzdy, winner = channels_last(dzdy), channels_last(winner)
        dzdx = np.zeros((x_shape[0], *x_shape[2:], x_shape[1]), dzdy.dtype)
        for tile in _tiles(sizes, dzdy.dtype):
            ders, taps = dzdy[tile], winner[tile]
            for tap, outputs, inputs in _taps(sizes, tile, dzdx.shape):
                dzdx[inputs] += _only(ders[outputs], taps[outputs] == taps.dtype.type(tap))
        return channels_second(dzdx)

    def avg_pool(self, x, size, *, stride=1, pad=0):
        sizes = pool_sizes(x.shape, size, stride, pad)
        one_dtype(x=x)
        x = channels_last(x)
        n, c, height, width = sizes.output
        down, across = tap_overlaps((slice(0, height), slice(0, width)), sizes, x.shape[1:3])
        rows = np.zeros((n, height, x.shape[2], c), x.dtype)
        for outputs, inputs in down:
            rows[:, outputs] += x[:, inputs]
        y = np.zeros((n, height, width, c), x.dtype)
        for outputs, inputs in across:
            y[:, :, outputs] += rows[:, :, inputs]
        y /= pixels_inside(sizes, channels_second(x).shape, x.dtype)[..., None]
        return channels_second(y)

    def avg_pool_dzdx(self, dzdy, x_shape, size, *, stride=1, pad=0):
        sizes = pool_sizes(x_shape, size, stride, pad)
        one_dtype(dzdy=dzdy)
        same_shape("dzdy", dzdy, sizes.output)
        n, c, height, width = x_shape
        share = channels_last(dzdy) / pixels_inside(sizes, x_shape, dzdy.dtype)[..., None]
        maps = sizes.output[2:]
        down, across = tap_overlaps([slice(0, m) for m in maps], sizes, (height, width))
        rows = np.zeros((n, maps[0], width, c), dzdy.dtype)
        for outputs, inputs in across:
            rows[:, :, inputs] += share[:, :, outputs]
        dzdx = np.zeros((n, height, width, c), dzdy.dtype)
        for outputs, inputs in down:
            dzdx[:, inputs] += rows[:, outputs]
        return channels_second(dzdx)


def _tiles(sizes: Sizes, dtype: np.dtype) -> Iterator[Tile]:
    n, c, *maps = sizes.output
    return tiles((n, *maps), max(1, TILE_BYTES // (c * dtype.itemsize)))


def _taps(sizes: Sizes, tile: Tile, shape: Sequence[int]) -> Iterator[tuple[int, tuple, tuple]]:
    """For each tap of the window, column by column: its number, and indices into `tile` and into maps."""
    images, *outputs = tile
    rows, columns = tap_overlaps(outputs, sizes, shape[1:3])
    for v, (out_columns, in_columns) in enumerate(columns):
        for u, (out_rows, in_rows) in enumerate(rows):
            yield u + v * len(rows), np.s_[:, out_rows, out_columns], np.s_[images, in_rows, in_columns]


def _only(values: Array, where: Array) -> Array:
    """`values` where a mask is true and 0 elsewhere: `np.where`, ten times faster."""
    bits = np.dtype(f"i{values.itemsize}")
    return (values.view(bits) & -where.astype(bits)).view(values.dtype)
