"""Convolutions without cuDNN: patches of the maps (own kernels), and matrix products (cuBLAS).

Row (g, n, i, j) of the patch matrices is what the filters of group g see at output pixel (i, j) of image n.
Data of 16 bits is multiplied and summed in single precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from math import prod
from typing import Any

import numpy as np

from ..reference.checks import Array
from ..reference.convolution import Sizes
from .layout import LAST, channels_last, dense, empty_maps, split
from .modules import Kernels

PATCH_BYTES = 256 << 20
"""A piece of the images has patches of at most so many bytes, or is one image."""


class Patches:
    """Convolutions on arrays of `xp` whose sizes were checked, without bias or anything else that follows.

    Filters may be None, the identity bank. `last`: whether the result is channels-last.
    """

    def __init__(self, xp: Any, kernels: Kernels) -> None:
        self._xp, self._kernels = xp, kernels

    def conv(self, y: Array, x: Array, w: Array | None, sizes: Sizes) -> None:
        """Write the convolution of x to y, which is dense."""
        n, k, *maps = sizes.output
        groups, bank = self._bank(w, sizes)
        for images in _pieces(n, x, sizes):
            sums = self._gather(x[images], groups, sizes)
            if bank is not None:
                sums = self._product(sums, bank.swapaxes(1, 2))
            part = y[images].transpose(LAST).reshape(-1, *maps, groups, k // groups)
            part[...] = sums.reshape(groups, -1, *maps, k // groups).transpose(1, 2, 3, 0, 4)

    def dzdx(self, dzdy: Array, w: Array | None, x_shape: Sequence[int], sizes: Sizes, last: bool) -> Array:
        dzdx = empty_maps(self._xp, x_shape, dzdy.dtype, last)
        groups, bank = self._bank(w, sizes)
        depth = x_shape[1] // groups
        for images in _pieces(x_shape[0], dzdx, sizes):
            part, patches = dzdx[images], self._rows(dzdy[images], groups)
            if bank is not None:
                patches = self._product(patches, bank)
            walk = (patches.shape[1], *sizes.window, depth, x_shape[1], int(last), *_axes(x_shape, sizes))
            self._kernels.each("patches", "fold", part.dtype, part.size, patches, part, *walk)
        return dzdx

    def dzdw(self, dzdy: Array, x: Array, w_shape: Sequence[int], sizes: Sizes, last: bool) -> Array:
        k, depth, *window = w_shape
        groups = sizes.groups
        sums = self._xp.zeros((groups, k // groups, depth * prod(window)), _sums(x.dtype))
        for images in _pieces(x.shape[0], x, sizes):
            rows = self._rows(dzdy[images], groups).swapaxes(1, 2)
            sums += self._product(rows, self._gather(x[images], groups, sizes))
        dzdw = sums.reshape(k, *window, depth).transpose(0, 3, 1, 2)
        return dense(self._xp, dzdw.astype(x.dtype, copy=False), last)

    def _gather(self, x: Array, groups: int, sizes: Sizes) -> Array:
        """The patches (groups, rows, taps x depth) of dense maps."""
        if sizes.window == sizes.stride == (1, 1) and not any(sizes.pad):
            return self._rows(x, groups)
        n, c, height, width = x.shape
        rows, taps, depth = n * prod(sizes.output[2:]), prod(sizes.window), c // groups
        patches = self._xp.empty((groups, rows, taps * depth), _sums(x.dtype))
        by_pixel, by_channel = split(x.shape, channels_last(x))
        walk = (rows, taps, sizes.window[1], depth, c * height * width, by_channel, by_pixel)
        axes = _axes(x.shape, sizes)
        self._kernels.each("patches", "gather", x.dtype, patches.size, x, patches, *walk, *axes)
        return patches

    def _rows(self, maps: Array, groups: int) -> Array:
        """Maps as matrices (groups, pixels, channels / groups)."""
        rows = maps.transpose(LAST).reshape(-1, groups, maps.shape[1] // groups)
        rows = rows.astype(_sums(maps.dtype), copy=False).transpose(1, 0, 2)
        return self._xp.ascontiguousarray(rows)

    def _bank(self, w: Array | None, sizes: Sizes) -> tuple[int, Array | None]:
        """The number of groups, and filters as matrices (groups, K / groups, taps x depth)."""
        if w is None:
            return 1, None
        bank = w.transpose(LAST).reshape(sizes.groups, w.shape[0] // sizes.groups, -1)
        return sizes.groups, bank.astype(_sums(w.dtype), copy=False)

    def _product(self, a: Array, b: Array) -> Array:
        """A product per group; one alone needs no batch, and no copy of what is transposed."""
        return self._xp.matmul(a[0], b[0])[None] if len(a) == 1 else self._xp.matmul(a, b)


def _sums(dtype: Any) -> np.dtype:
    """The type in which products of this type are added up."""
    return np.dtype(np.float64 if np.dtype(dtype) == np.float64 else np.float32)


def _pieces(images: int, x: Array, sizes: Sizes) -> Iterator[slice]:
    """Slices of so many images as have patches of `PATCH_BYTES`."""
    per_image = x.shape[1] * prod(sizes.window) * prod(sizes.output[2:]) * _sums(x.dtype).itemsize
    step = max(1, PATCH_BYTES // max(1, per_image))
    return (slice(first, min(first + step, images)) for first in range(0, images, step))


def _axes(x_shape: Sequence[int], sizes: Sizes) -> list[int]:
    """What the kernels call AXES."""
    axes: list[int] = []
    for k in (0, 1):
        axes += sizes.stride[k], sizes.dilate[k], sizes.pad[2 * k], x_shape[2 + k], sizes.output[2 + k]
    return axes
