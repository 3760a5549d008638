"""Pooling on a CUDA device, with channels first or last."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np

from ...errors import OptionError
from ..reference import pooling as reference
from ..reference.checks import Array, one_dtype, same_shape
from ..reference.convolution import Sizes
from .elementwise import packed
from .layout import channels_last, dense, empty_maps, split
from .modules import THREADS, reciprocal

WARP = 32
"""From so many pixels on a window of channels-first maps is the work of a warp, not of a thread."""


class Pooling(reference.Pooling):
    """Every result is the work of one thread, and in the same order of memory as what it is made from."""

    _kernels: Any

    def max_pool(self, x, size, *, stride=1, pad=0, wants_winner=True):
        sizes = reference.pool_sizes(x.shape, size, stride, pad)
        one_dtype(x=x)
        x, last = self._dense(x)
        y, winner = empty_maps(self.xp, sizes.output, x.dtype, last), None
        taps, name = _taps(sizes)
        if wants_winner:
            winner = empty_maps(self.xp, sizes.output, taps, last)
        walk = _walk(sizes.output, x.shape, sizes, last)
        self._each(f"max_pool_of_{name}", y, walk, x, y, winner)
        return y, winner

    def max_pool_dzdx(self, dzdy, winner, x_shape, size, *, stride=1, pad=0):
        sizes = reference.pool_sizes(x_shape, size, stride, pad)
        one_dtype(dzdy=dzdy)
        same_shape("dzdy", dzdy, sizes.output)
        same_shape("winner", winner, sizes.output)
        dzdy, last = self._dense(dzdy)
        taps, name = _taps(sizes)
        winner = dense(self.xp, winner.astype(taps, copy=False), last)
        dzdx = empty_maps(self.xp, x_shape, dzdy.dtype, last)
        walk = _walk(x_shape, sizes.output, sizes, last)
        self._each(f"max_pool_dzdx_of_{name}", dzdx, walk, dzdy, winner, dzdx)
        return dzdx

    def avg_pool(self, x, size, *, stride=1, pad=0):
        sizes = reference.pool_sizes(x.shape, size, stride, pad)
        one_dtype(x=x)
        x, last = self._dense(x)
        y = empty_maps(self.xp, sizes.output, x.dtype, last)
        walk = _walk(sizes.output, x.shape, sizes, last)
        if prod(sizes.window) >= WARP and not last and y.size:
            grid, axes = (-(-y.size * WARP // THREADS),), walk[:-2]
            self._kernels.blocks(
                "pooling", "avg_pool_by_warps", x.dtype, grid, (THREADS,), y.size, x, y, *axes
            )
        else:
            self._each("avg_pool", y, walk, x, y)
        return y

    def avg_pool_dzdx(self, dzdy, x_shape, size, *, stride=1, pad=0):
        sizes = reference.pool_sizes(x_shape, size, stride, pad)
        one_dtype(dzdy=dzdy)
        same_shape("dzdy", dzdy, sizes.output)
        dzdy, last = self._dense(dzdy)
        dzdx = empty_maps(self.xp, x_shape, dzdy.dtype, last)
        walk = _walk(x_shape, sizes.output, sizes, last)
        self._each("avg_pool_dzdx", dzdx, walk, dzdy, dzdx)
        return dzdx

    def roi_pool(self, x, rois, *, subdivisions, transform=1.0, method="max"):
        bins = self._checked_bins(x, rois, x.shape, subdivisions, method)
        edges = self._edges(x, rois, x.shape, bins, transform)
        x, last = self._dense(x)
        shape = (rois.shape[1], x.shape[1], *bins)
        y, winner = empty_maps(self.xp, shape, x.dtype, last), None
        if method == "max":
            winner = empty_maps(self.xp, shape, np.int32, last)
        pixel_step, channel_step = split(x.shape, last)
        where = x.shape[3], prod(x.shape[1:]), channel_step, pixel_step, *bins, reciprocal(bins[1])
        order = _order(shape, last)
        self._kernels.each("roi", "roi_pool", x.dtype, y.size, x, edges, y, winner, *order, *where)
        return y, winner

    def roi_pool_dzdx(self, dzdy, winner, rois, x_shape, *, subdivisions, transform=1.0, method="max"):
        bins = self._checked_bins(dzdy, rois, x_shape, subdivisions, method)
        shape = (rois.shape[1], x_shape[1], *bins)
        same_shape("dzdy", dzdy, shape)
        edges = self._edges(dzdy, rois, x_shape, bins, transform)
        dzdy, last = self._dense(dzdy)
        if method == "avg":
            winner = None
        elif winner is None:
            raise OptionError("method 'max' needs the winner that roi_pool returned. Received: None")
        else:
            same_shape("winner", winner, shape)
            winner = dense(self.xp, winner.astype(np.int32, copy=False), last)
        dzdx = empty_maps(self.xp, x_shape, dzdy.dtype, last)
        bin_step, channel_step = split(shape, last)
        where = x_shape[3], reciprocal(x_shape[3]), shape[0], prod(shape[1:]), channel_step, bin_step, *bins
        args = dzdy, edges, winner, dzdx, *_order(x_shape, last), *where
        self._kernels.each("roi", "roi_pool_dzdx", dzdy.dtype, dzdx.size, *args)
        return dzdx

    def _edges(
        self, x: Array, rois: Array, x_shape: Sequence[int], bins: Sequence[int], transform: Any
    ) -> Array:
        """Where the bins of each region lie in its image: what roi.cu calls edges."""
        real = np.float64 if x.dtype == np.float64 else np.float32
        matrix = [float(value) for value in reference.affine(transform).astype(real).ravel()]
        rois = self.xp.ascontiguousarray(rois.astype(real))
        edges = self.xp.empty((rois.shape[1], 1 + 2 * sum(bins)), np.int32)
        sizes = x_shape[0], *x_shape[2:], *bins
        self._kernels.each("roi", "roi_edges", x.dtype, rois.shape[1], rois, edges, *sizes, *matrix)
        return edges

    def _each(self, name: str, result: Array, walk: Sequence[Any], *arrays: Array | None) -> None:
        """Launch a kernel of sliding windows over all numbers of its result."""
        per = packed(result) if channels_last(result) else 1
        self._kernels.each("pooling", name, result.dtype, result.size, *arrays, *walk, per=per)

    def _dense(self, x: Array) -> tuple[Array, bool]:
        """x in dense memory, and whether its channels are last."""
        x = dense(self.xp, x)
        return x, channels_last(x)


def _taps(sizes: Sizes) -> tuple[Any, str]:
    """The type of a winner, and what the kernels call it."""
    return (np.uint8, "bytes") if prod(sizes.window) <= 256 else (np.int32, "ints")


def _walk(shape: Sequence[int], other: Sequence[int], sizes: Sizes, last: bool) -> list[Any]:
    """The arguments AXIS(down), AXIS(across), inner and by_inner of pooling.cu."""
    args: list[Any] = []
    for axis in range(2):
        extent, stride = shape[2 + axis], sizes.stride[axis]
        args += extent, reciprocal(extent), other[2 + axis], sizes.window[axis]
        args += stride, reciprocal(stride), sizes.pad[2 * axis]
    inner = shape[1] if last else 1
    return [*args, inner, reciprocal(inner)]


def _order(shape: Sequence[int], last: bool) -> tuple[Any, ...]:
    """The arguments last, inner, by_inner, middle and by_middle of roi.cu."""
    channels, pixels = shape[1], prod(shape[2:])
    inner, middle = (channels, pixels) if last else (pixels, channels)
    return int(last), inner, reciprocal(inner), middle, reciprocal(middle)
