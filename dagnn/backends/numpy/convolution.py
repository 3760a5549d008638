"""Convolution as matrix products: a bounded patch matrix at a time, maps in channels-last memory."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import groupby
from math import prod

import numpy as np

from ...geometry import dilated
from ..reference import convolution as reference
from ..reference.checks import Array, one_dtype, same_shape
from ..reference.convolution import Sizes, conv_sizes
from .threads import each, share
from .tiles import Tile, channels_last, channels_second, overlap, tap_overlaps, tiles

PATCH_BYTES = 2 << 20
"""The most memory the patch matrix of a thread takes: it stays in cache, and is enough for BLAS."""


class Convolution(reference.Convolution):
    """A row of the patch matrix is what one output pixel sees: h x w pixels of C/groups channels."""

    def conv(self, x, w, b=None, *, stride=1, pad=0, dilate=1, add=None, relu=None):
        if w is None:
            return super().conv(x, w, b, stride=stride, pad=pad, dilate=dilate, add=add, relu=relu)
        sizes = conv_sizes(x.shape, w.shape, stride, pad, dilate)
        self._check_conv(x, w, b, add, sizes)
        n, k, *maps = sizes.output
        y = np.empty((n, *maps, k), x.dtype)
        add = None if add is None else channels_last(add)
        if _whole_map(sizes, x.shape):
            np.matmul(x.reshape(n, w[0].size), w.reshape(k, -1).T, out=y.reshape(n, k))
            _finish(y, b, add, relu)
            return channels_second(y)
        bank = _bank(w, sizes).swapaxes(1, 2)

        def work(tile):
            np.matmul(_patches(x, tile, sizes), bank, out=_by_group(y[tile], sizes))
            _finish(y[tile], b, None if add is None else add[tile], relu)

        each(work, _tiles(sizes, w.shape, x.dtype))
        return channels_second(y)

    def conv_dzdx(self, dzdy, w, x_shape, *, stride=1, pad=0, dilate=1):
        if w is None:
            return super().conv_dzdx(dzdy, w, x_shape, stride=stride, pad=pad, dilate=dilate)
        sizes = conv_sizes(x_shape, w.shape, stride, pad, dilate)
        one_dtype(dzdy=dzdy, w=w)
        same_shape("dzdy", dzdy, sizes.output)
        n, k, *_ = sizes.output
        if _whole_map(sizes, x_shape):
            return (dzdy.reshape(n, k) @ w.reshape(k, -1)).reshape(x_shape)
        if (flipped := _flipped(w, sizes, x_shape)) is not None:
            bank, pad = flipped
            return self.conv(dzdy, bank, pad=pad, dilate=dilate)
        dzdy, bank = channels_last(dzdy), _bank(w, sizes)
        dzdx = np.zeros((n, *x_shape[2:], x_shape[1]), dzdy.dtype)

        def work(tiles):  # those of one image, which overlap
            for tile in tiles:
                _scatter(np.matmul(_by_group(dzdy[tile], sizes), bank), dzdx, tile, sizes)

        each(work, _by_image(_tiles(sizes, w.shape, dzdy.dtype)))
        return channels_second(dzdx)

    def conv_dzdw(self, dzdy, x, w_shape, *, stride=1, pad=0, dilate=1):
        sizes = conv_sizes(x.shape, w_shape, stride, pad, dilate)
        one_dtype(dzdy=dzdy, x=x)
        same_shape("dzdy", dzdy, sizes.output)
        n, k, *_ = sizes.output
        if _whole_map(sizes, x.shape):
            return (dzdy.reshape(n, k).T @ x.reshape(n, prod(w_shape[1:]))).reshape(w_shape)
        dzdy = channels_last(dzdy)

        def work(tiles):
            total = np.zeros((sizes.groups, k // sizes.groups, prod(w_shape[1:])), x.dtype)
            part = np.empty_like(total)
            for tile in tiles:
                ders = _by_group(dzdy[tile], sizes).swapaxes(1, 2)
                total += np.matmul(ders, _patches(x, tile, sizes), out=part)
            return total

        total = sum(each(work, share(_tiles(sizes, w_shape, x.dtype))), np.zeros((), x.dtype))
        if not total.ndim:  # of an empty batch
            return np.zeros(w_shape, x.dtype)
        return np.ascontiguousarray(total.reshape(k, *sizes.window, -1).transpose(0, 3, 1, 2))


def _whole_map(sizes: Sizes, x_shape: Sequence[int]) -> bool:
    """Whether each filter meets the image once, all of it: a fully connected layer."""
    return sizes.groups == 1 and sizes.window == tuple(x_shape[2:]) and not any(sizes.pad)


def _tiles(sizes: Sizes, w_shape: Sequence[int], dtype: np.dtype) -> list[Tile]:
    row_bytes = sizes.groups * prod(w_shape[1:]) * dtype.itemsize
    n, _, *maps = sizes.output
    return list(tiles((n, *maps), max(1, PATCH_BYTES // row_bytes)))


def _by_image(pieces: list[Tile]) -> list[list[Tile]]:
    """Tiles in lists, those of one image in the same."""
    return [list(group) for _, group in groupby(pieces, key=lambda tile: tile[0].start)]


def _flipped(w: Array, sizes: Sizes, x_shape: Sequence[int]) -> tuple[Array, tuple[int, ...]] | None:
    """At stride 1 the data derivative is a convolution too, with this bank and padding; else None.

    It has a product for every pixel of x, the other way one for every pixel of y: None where x has many more.
    """
    height, width = dilated(sizes.window, sizes.dilate)
    pad = tuple(span - 1 - p for span, p in zip((height, height, width, width), sizes.pad, strict=True))
    many_more = 4 * prod(x_shape[2:]) > 5 * prod(sizes.output[2:])
    if sizes.stride != (1, 1) or min(pad) < 0 or many_more:
        return None
    k, depth = w.shape[:2]
    by_group = w.reshape(sizes.groups, k // sizes.groups, depth, *sizes.window)[..., ::-1, ::-1]
    return by_group.swapaxes(1, 2).reshape(x_shape[1], k // sizes.groups, *sizes.window), pad


def _bank(w: Array, sizes: Sizes) -> Array:
    """The filters as (groups, K/groups, h w C/groups)."""
    k = w.shape[0]
    return np.ascontiguousarray(w.transpose(0, 2, 3, 1)).reshape(sizes.groups, k // sizes.groups, -1)


def _by_group(piece: Array, sizes: Sizes) -> Array:
    """A channels-last tile as (groups, pixels, channels/groups)."""
    return piece.reshape(-1, sizes.groups, piece.shape[-1] // sizes.groups).swapaxes(0, 1)


def _patches(x: Array, tile: Tile, sizes: Sizes) -> Array:
    """The rows of the patch matrix for the output pixels in `tile`: (groups, pixels, h w C/groups)."""
    images, *outputs = tile
    # The part of the padded input that the tile sees; on an axis with one tap, only what it meets.
    hops, cuts = [], []
    for axis, (seen, taps) in enumerate(zip(outputs, sizes.window, strict=True)):
        stride, count = sizes.stride[axis], seen.stop - seen.start
        start = seen.start * stride - sizes.pad[2 * axis]
        length = (count - 1) * stride + (taps - 1) * sizes.dilate[axis] + 1
        hops.append(stride if taps > 1 else 1)
        cuts.append((start, length, 1) if taps > 1 else (start, count, stride))
    strip = _strip(channels_last(x)[images], *cuts)
    if sizes.window == (1, 1):
        return _by_group(strip, sizes)
    strip = np.ascontiguousarray(strip)
    n, _, _, c = strip.shape
    image, row, pixel, item = strip.strides
    depth, (below, beside) = c // sizes.groups, sizes.dilate
    windows = np.ndarray(
        (sizes.groups, n, *(s.stop - s.start for s in outputs), *sizes.window, depth),
        strip.dtype,
        strip,
        strides=(depth * item, image, row * hops[0], pixel * hops[1], row * below, pixel * beside, item),
    )
    return np.ascontiguousarray(windows).reshape(sizes.groups, -1, depth * sizes.window[0] * sizes.window[1])


def _strip(x: Array, rows: tuple[int, int, int], columns: tuple[int, int, int]) -> Array:
    """Pixels of channels-last maps at (start, count, step) along each axis; zeros outside the image."""
    (row, height, down), (column, width, across) = rows, columns
    into, out = zip(
        overlap(slice(0, height), row, down, x.shape[1]),
        overlap(slice(0, width), column, across, x.shape[2]),
        strict=True,
    )
    inside = x[:, *out]
    if inside.shape[1:3] == (height, width):
        return inside
    strip = np.zeros((x.shape[0], height, width, x.shape[3]), x.dtype)
    strip[:, *into] = inside
    return strip


def _scatter(patches: Array, x: Array, tile: Tile, sizes: Sizes) -> None:
    """Add the rows of a patch matrix to the pixels of channels-last `x` they were gathered from."""
    images, *outputs = tile
    n, groups, maps = images.stop - images.start, sizes.groups, x.shape[1:3]
    patches = patches.reshape(groups, n, *(s.stop - s.start for s in outputs), *sizes.window, -1)
    patches, x = patches.transpose(1, 2, 3, 4, 5, 0, 6), x[images].reshape(n, *maps, groups, -1)
    rows, columns = tap_overlaps(outputs, sizes, maps)
    for u, (of_rows, to_rows) in enumerate(rows):
        for v, (of_columns, to_columns) in enumerate(columns):
            x[:, to_rows, to_columns] += patches[:, of_rows, of_columns, u, v]


def _finish(y: Array, b: Array | None, add: Array | None, relu: float | None) -> None:
    """The epilogue, in place, while the channels-last tile `y` is in cache."""
    if b is not None:
        y += b
    if add is not None:
        y += add
    if relu is not None:
        if relu:
            larger = np.maximum if relu <= 1 else np.minimum
            larger(y, y * relu, out=y)
        else:
            np.fmax(y, 0, out=y)
