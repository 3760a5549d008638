"""Normalisation on a CUDA device, with channels first or last."""

from __future__ import annotations

from math import prod
from typing import Any, NamedTuple

import numpy as np

from ...geometry import shape4
from ..reference import normalisation as reference
from ..reference.checks import Array, one_dtype, same_shape
from .elementwise import packed
from .layout import channels_last, dense, empty_maps, split
from .modules import THREADS, reciprocal

WARP = 32
TERMS = 16
"""At least so many elements are summed up by a thread."""
BLOCKS = 8 * 132
"""So many of them fill all multiprocessors of an H200."""
RUN = 8
"""The channels that a thread of local response normalisation does where there are threads enough."""


class Normalisation(reference.Normalisation):
    """Batch normalisation sums in double and reads maps twice; so does its derivative."""

    xp: Any
    _kernels: Any

    def batch_norm(self, x, multipliers, biases, *, epsilon=1e-4, moments=None, add=None, relu=None):
        self._check_batch_norm(x, multipliers, biases, moments, add)
        x = dense(self.xp, x)
        maps, last = Maps.of(x), channels_last(x)
        factors = self.xp.empty((3, maps.channels), _sum_type(x))
        parameters = self._wide(multipliers), self._wide(biases)
        if moments is None:
            found = self.xp.empty((maps.channels, 2), factors.dtype)
            sums, slices = self._sums("batch_norm_sums", maps, x.dtype, 2, x)
            sizes = maps.channels, maps.inner, maps.elements, slices
            args = x, sums, *parameters, found, factors, *sizes, float(epsilon)
            self._warps("batch_norm_moments", maps, x.dtype, *args)
            moments = found.astype(multipliers.dtype, copy=False)
        else:
            given = *parameters, self._wide(moments), factors
            self._kernels.each("batch_norm", "batch_norm_given", x.dtype, maps.channels, *given)
        y = empty_maps(self.xp, x.shape, x.dtype, last)
        add = None if add is None else dense(self.xp, add, last)
        args = x, add, y, factors, *maps.args, int(relu is not None), float(relu or 0)
        self._kernels.each("batch_norm", "batch_norm", x.dtype, x.size, *args, per=packed(x))
        return y, moments

    def batch_norm_ders(self, dzdy, x, multipliers, moments, *, given=False):
        self._check_batch_norm_ders(dzdy, x, multipliers, moments)
        x = dense(self.xp, x)
        maps, last = Maps.of(x), channels_last(x)
        dzdy, wide = dense(self.xp, dzdy, last), self._wide(moments)
        factors = self.xp.empty((4, maps.channels), _sum_type(x))
        ders = self.xp.empty((2, maps.channels), factors.dtype)
        sums, slices = self._sums("batch_norm_ders_sums", maps, x.dtype, 3, dzdy, x, wide)
        args = sums, self._wide(multipliers), wide, ders, factors, maps.channels, maps.elements, slices
        self._warps("batch_norm_ders_factors", maps, x.dtype, *args, int(given))
        dzdx = empty_maps(self.xp, x.shape, x.dtype, last)
        args = dzdy, None if given else x, dzdx, factors, *maps.args
        self._kernels.each("batch_norm", "batch_norm_ders", x.dtype, x.size, *args, per=packed(x))
        dzdg, dzdb = ders.astype(multipliers.dtype, copy=False)
        return dzdx, dzdg, dzdb

    def lrn(self, x, *, size, kappa, alpha, beta):
        x, threads, sizes = self._runs(x, size, kappa, alpha, beta)
        y = empty_maps(self.xp, x.shape, x.dtype, channels_last(x))
        self._kernels.each("lrn", "lrn", x.dtype, threads, x, y, *sizes)
        return y

    def lrn_dzdx(self, dzdy, x, *, size, kappa, alpha, beta):
        one_dtype(dzdy=dzdy, x=x)
        same_shape("dzdy", dzdy, x.shape)
        x, threads, sizes = self._runs(x, size, kappa, alpha, beta)
        dzdy = dense(self.xp, dzdy, channels_last(x))
        shared = self.xp.empty(x.size, _sum_type(x))
        dzdx = empty_maps(self.xp, x.shape, x.dtype, channels_last(x))
        self._kernels.each("lrn", "lrn_shared", x.dtype, threads, dzdy, x, shared, *sizes)
        self._kernels.each("lrn", "lrn_dzdx", x.dtype, threads, dzdy, x, shared, dzdx, *sizes)
        return dzdx

    def _runs(self, x: Array, size: int, kappa: float, alpha: float, beta: float) -> tuple[Array, int, Any]:
        """x in dense memory, how many threads work on it, and the arguments SIZES of lrn.cu."""
        shape4("x", x.shape)
        one_dtype(x=x)
        before, after = reference.channel_window(size)
        x = dense(self.xp, x)
        inner, channels = split(x.shape, channels_last(x))[1], x.shape[1]
        # With channels last, neighbouring threads share windows already.
        run = RUN if inner > 1 and x.size >= RUN * BLOCKS * THREADS else 1
        runs = -(-channels // run)
        sizes = channels, inner, reciprocal(inner), run, runs, reciprocal(runs), before, after
        threads = x.size // max(channels, 1) * runs
        return x, threads, (*sizes, float(kappa), float(alpha), float(beta))

    def _wide(self, a: Array) -> Array:
        """A parameter in the type of sums."""
        return self.xp.ascontiguousarray(a.astype(_sum_type(a), copy=False))

    def _sums(self, name: str, maps: Maps, dtype: Any, terms: int, *arrays: Array) -> tuple[Array, int]:
        """The sums that kernel `name` makes of slices of the channels: (terms, channels, slices)."""
        # Blocks read neighbouring numbers, which with channels last are of neighbouring channels.
        lanes = 1 if maps.inner > 1 else min(WARP, 1 << (maps.channels - 1).bit_length())
        groups = -(-maps.channels // lanes)
        least = THREADS // lanes * TERMS
        slices = max(1, min(-(-maps.elements // least), -(-BLOCKS // groups)))
        sums = self.xp.empty((terms, maps.channels, slices), np.float64)
        sizes = maps.elements, -(-maps.elements // slices), lanes
        args = *arrays, sums, *maps.args, *sizes
        self._kernels.blocks("batch_norm", name, dtype, (groups, slices), (THREADS,), *args)
        return sums, slices

    def _warps(self, name: str, maps: Maps, dtype: Any, *args: Any) -> None:
        """Launch a kernel in which a warp does a channel."""
        grid = (-(-maps.channels * WARP // THREADS),)
        self._kernels.blocks("batch_norm", name, dtype, grid, (THREADS,), *args)


class Maps(NamedTuple):
    """Dense maps as (outer, channels, inner), with so many elements of a channel."""

    channels: int
    inner: int
    elements: int

    @classmethod
    def of(cls, x: Array) -> Maps:
        channels = x.shape[1]
        return cls(channels, split(x.shape, channels_last(x))[1], prod(x.shape) // channels)

    @property
    def args(self) -> tuple[Any, ...]:
        """The arguments MAPS of batch_norm.cu."""
        return self.channels, reciprocal(self.channels), self.inner, reciprocal(self.inner)


def _sum_type(x: Array) -> Any:
    """What kernels call ACC."""
    return np.float64 if x.dtype == np.float64 else np.float32
