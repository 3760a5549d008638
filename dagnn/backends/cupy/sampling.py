"""Sampling images on grids: one thread per sample and channel, its four pixels read where they lie."""

from __future__ import annotations

from math import prod

import numpy as np

from ..reference import sampling as reference
from ..reference.checks import Array, one_dtype, same_shape
from .layout import channels_last, dense, empty_maps
from .losses import sharing
from .modules import MOST_BLOCKS, THREADS, Kernels


class Sampling(reference.Sampling):
    """Kernels of sampling.cu.

    The derivative for x is the same in every run: it is summed as integers, with 62 bits for the largest
    sum that is possible. Where a derivative or a grid isn't finite, it is nan at the pixels they meet.
    """

    _kernels: Kernels

    def bilinear_sampler(self, x, grid):
        self._check_sampler(x, grid)
        x, grid, sizes = self._sampled(x, grid)
        y = empty_maps(self.xp, (grid.shape[0], x.shape[1], *grid.shape[2:]), x.dtype, bool(sizes[-1]))
        self._kernels.each("sampling", "bilinear_sampler", x.dtype, y.size, x, grid, *sizes, y)
        return y

    def bilinear_sampler_ders(self, dzdy, x, grid, *, wants=(True, True)):
        self._check_sampler(x, grid)
        one_dtype(dzdy=dzdy, x=x)
        same_shape("dzdy", dzdy, (grid.shape[0], x.shape[1], *grid.shape[2:]))
        x, grid, sizes = self._sampled(x, grid)
        dzdy = dense(self.xp, dzdy, bool(sizes[-1]))
        return (
            self._sampler_dzdx(dzdy, x, grid, sizes) if wants[0] else None,
            self._sampler_dzdgrid(dzdy, x, grid, sizes) if wants[1] else None,
        )

    def _sampled(self, x: Array, grid: Array) -> tuple[Array, Array, tuple[int, ...]]:
        """x and grid in dense memory, and what the kernels call SIZES."""
        x, grid = dense(self.xp, x), self.xp.ascontiguousarray(grid)
        share = max(1, grid.shape[0] // x.shape[0])
        return x, grid, (*x.shape[1:], prod(grid.shape[2:]), share, int(channels_last(x)))

    def _sampler_dzdx(self, dzdy: Array, x: Array, grid: Array, sizes: tuple[int, ...]) -> Array:
        dzdx, sums = self.xp.zeros_like(x), self.xp.zeros(x.size, np.uint64)
        exponent = self.xp.full(1, -2000, np.int32)
        bits = (prod(grid.shape[2:]) * grid.shape[0] // x.shape[0]).bit_length()
        each = self._kernels.each
        each("sampling", "largest_exponent", x.dtype, dzdy.size, dzdy, exponent)
        each("sampling", "spread", x.dtype, dzdy.size, dzdy, grid, *sizes, exponent, bits, sums, dzdx)
        each("sampling", "gather", x.dtype, x.size, sums.view(np.int64), exponent, bits, dzdx)
        return dzdx

    def _sampler_dzdgrid(self, dzdy: Array, x: Array, grid: Array, sizes: tuple[int, ...]) -> Array:
        samples, dzdgrid = grid.size // 2, self.xp.empty_like(grid)
        lanes = sharing(x.shape[1], samples, bool(sizes[-1]))
        if samples:
            blocks = min(-(-samples * lanes // THREADS), MOST_BLOCKS)
            args = samples, dzdy, x, grid, *sizes, lanes, dzdgrid
            self._kernels.blocks(
                "sampling", "bilinear_sampler_dzdgrid", x.dtype, (blocks,), (THREADS,), *args
            )
        return dzdgrid
