"""Batch and local response normalisation on rows of channels-last memory, in pieces that stay in cache."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import NamedTuple

import numpy as np

from ..reference import normalisation as reference
from ..reference.checks import Array, one_dtype, same_shape
from . import memory
from .elementwise import rectify
from .rows import as_maps, as_rows, by_channel, empty_rows, row_pieces
from .threads import each

SMALL = 1 << 15
"""Up to so many elements the reference kernel's few calls are the quicker way to normalise a batch."""
SUMMED = np.dtype(np.float32), np.dtype(np.float64)
"""The types whose products BLAS adds up, into memory of theirs."""
ROWS = 64, 4096
"""Least and most rows that get sums of their own: few beside the data, and none too long for rounding."""
NEAR = 2.0
"""Where no mean is more sigmas than this away from 0, sums around 0 lose no digits that matter."""

MOST_SHIFTS = 16
"""The widest window whose sums are sums of shifted memory."""


class Normalisation(reference.Normalisation):
    """Batch normalisation reads x twice; local response normalisation does all its steps on a piece."""

    def batch_norm(self, x, multipliers, biases, *, epsilon=1e-4, moments=None, add=None, relu=None):
        if x.size <= SMALL or x.dtype not in SUMMED:
            return super().batch_norm(
                x, multipliers, biases, epsilon=epsilon, moments=moments, add=add, relu=relu
            )
        self._check_batch_norm(x, multipliers, biases, moments, add)
        rows = as_rows(x)
        if moments is None:
            mean, variance = _moments(rows)
            sigma = np.sqrt(variance + float(epsilon))
            moments = np.stack([mean, sigma], axis=1).astype(x.dtype)
        else:
            mean, sigma = moments.T.astype(np.float64)
        scale, centre = multipliers / sigma, _centre(moments)
        shift = biases - scale * (mean - centre)
        y = empty_rows(rows)

        def work(pieces, values):
            (x, y, *added), (scale, shift, *centre) = pieces, values
            if centre:
                x = np.subtract(x, centre[0], out=y)
            np.multiply(x, scale, out=y)
            np.add(y, shift, out=y)
            if added:
                np.add(y, added[0], out=y)
            rectify(y, relu, y)

        maps = [rows, y] if add is None else [rows, y, as_rows(add)]
        by_channel(work, maps, [scale.astype(x.dtype), shift.astype(x.dtype), *_if_any(centre)])
        return as_maps(y, x.shape), moments

    def batch_norm_ders(self, dzdy, x, multipliers, moments, *, given=False):
        if x.size <= SMALL or x.dtype not in SUMMED:
            return super().batch_norm_ders(dzdy, x, multipliers, moments, given=given)
        self._check_batch_norm_ders(dzdy, x, multipliers, moments)
        dtype, ders, rows = x.dtype, as_rows(dzdy), as_rows(x)
        (mean, sigma), centre = moments.T.astype(np.float64), _centre(moments)
        dzdb, along, rest = _sums(ders, rows, centre)
        count = max(len(rows), 1)
        # Of the mean, what the centre is not.
        rest = mean - centre if given or rest is None else rest / count
        dzdg = (along - rest * dzdb) / sigma
        scale = (multipliers / sigma).astype(dtype)
        dzdx = empty_rows(rows)
        if given:
            by_channel(lambda maps, of: np.multiply(maps[0], of[0], out=maps[1]), [ders, dzdx], [scale])
        else:
            slope = -dzdg / (sigma * count)
            shift = -dzdb / count - slope * rest

            def work(pieces, values):
                (ders, x, dzdx), (scale, slope, shift, *centre) = pieces, values
                if centre:
                    x = np.subtract(x, centre[0], out=dzdx)
                np.multiply(x, slope, out=dzdx)
                np.add(dzdx, ders, out=dzdx)
                np.add(dzdx, shift, out=dzdx)
                np.multiply(dzdx, scale, out=dzdx)

            values = [scale, slope.astype(dtype), shift.astype(dtype), *_if_any(centre)]
            by_channel(work, [ders, rows, dzdx], values)
        return as_maps(dzdx, x.shape), dzdg.astype(dtype), dzdb.astype(dtype)

    def lrn(self, x, *, size, kappa, alpha, beta):
        if not _narrow(size, x.shape):
            return super().lrn(x, size=size, kappa=kappa, alpha=alpha, beta=beta)
        one_dtype(x=x)
        rows, window = as_rows(x), Window.of_lrn(size, x.shape[1])
        y = empty_rows(rows)

        def work(piece):
            energy = _energy(rows[piece], window, kappa, alpha)
            _power(energy, beta, out=energy)
            np.divide(rows[piece], window.inside(energy), out=y[piece])

        each(work, row_pieces(rows))
        return as_maps(y, x.shape)

    def lrn_dzdx(self, dzdy, x, *, size, kappa, alpha, beta):
        if not _narrow(size, x.shape):
            return super().lrn_dzdx(dzdy, x, size=size, kappa=kappa, alpha=alpha, beta=beta)
        one_dtype(dzdy=dzdy, x=x)
        same_shape("dzdy", dzdy, x.shape)
        rows, ders, window = as_rows(x), as_rows(dzdy), Window.of_lrn(size, x.shape[1])
        dzdx = empty_rows(rows)

        def work(piece):
            x, slopes = rows[piece], dzdx[piece]
            energy = _energy(x, window, kappa, alpha)
            power = _power(energy, beta, out=empty_rows(energy))
            np.divide(ders[piece], window.inside(power), out=slopes)
            product = np.multiply(slopes, x, out=empty_rows(x))
            np.divide(product, window.inside(energy), out=product)
            shared = window.backward().sums(product)
            np.multiply(shared, 2 * float(alpha) * float(beta), out=shared)
            np.multiply(window.inside(shared), x, out=product)
            np.subtract(slopes, product, out=slopes)

        each(work, row_pieces(rows))
        return as_maps(dzdx, x.shape)


class Window(NamedTuple):
    """The channels around each: so many `before` and `after`. Rows lie with zeros between them, so that sums
    over all windows of a matrix are sums of its memory and its memory shifted.

    >>> window = Window(before=1, after=1, channels=3)
    >>> window.inside(window.sums(np.array([[1.0, 2.0, 3.0], [10.0, 20.0, 30.0]])))
    array([[ 3.,  6.,  5.],
           [30., 60., 50.]])
    """

    before: int
    after: int
    channels: int

    @classmethod
    def of_lrn(cls, size: int, channels: int) -> Window:
        return cls((int(size) - 1) // 2, int(size) // 2, channels)

    def backward(self) -> Window:
        """The channels whose windows hold a channel."""
        return Window(self.after, self.before, self.channels)

    def sums(self, x: Array, *, squares: bool = False) -> Array:
        """The sums over the windows of the rows of x, or of their squares.

        Rows of the result are longer than those of x: `inside` is what counts.
        """
        length = len(x) * self._width
        padded = memory.empty((length + self.before + self.after,), x.dtype)
        padded.fill(0)
        inside = self.inside(padded[self.before : self.before + length])
        if squares:
            np.square(x, out=inside)
        else:
            np.copyto(inside, x)
        total = memory.empty((length,), x.dtype)
        np.copyto(total, padded[:length])
        for k in range(1, self.before + self.after + 1):
            np.add(total, padded[k : k + length], out=total)
        return total

    def inside(self, sums: Array) -> Array:
        """The view of `sums` without what lies between rows."""
        return sums.reshape(-1, self._width)[:, : self.channels]

    @property
    def _width(self) -> int:
        return self.channels + max(self.before, self.after)


def _narrow(size: int, shape: Sequence[int]) -> bool:
    """Whether windows are those of LRN, of a few of the channels: sums of shifted memory are the way then."""
    many = prod(shape) > SMALL >> 5
    return many and len(shape) == 4 and 1 <= size <= min(shape[1], MOST_SHIFTS) and size == int(size)


def _energy(x: Array, window: Window, kappa: float, alpha: float) -> Array:
    energy = window.sums(x, squares=True)
    np.multiply(energy, float(alpha), out=energy)
    return np.add(energy, float(kappa), out=energy)


def _power(base: Array, exponent: float, out: Array) -> Array:
    """base^exponent of positive numbers; `power` itself takes ten times as long."""
    if exponent == 0.5:
        return np.sqrt(base, out=out)
    if exponent == 0.75:
        root = np.sqrt(base, out=empty_rows(base))
        return np.multiply(root, np.sqrt(root, out=out), out=out)
    np.log(base, out=out)
    np.multiply(out, float(exponent), out=out)
    return np.exp(out, out=out)


def _centre(moments: Array) -> Array:
    """What to subtract from every channel first, lest digits be lost: its mean; 0 if all means are near."""
    mean, sigma = moments.T
    near = (np.abs(mean) <= NEAR * sigma).all()
    return np.zeros_like(mean) if near else np.ascontiguousarray(mean)


def _if_any(centre: Array) -> list[Array]:
    return [centre] if centre.any() else []


def _moments(x: Array) -> tuple[Array, Array]:
    """The mean and biased variance of the columns of `x`, in float64, from one pass over it.

    Each piece has a mean and a sum of squares around it, which are put together in double precision by the
    formula of Chan, Golub & LeVeque 1983 (Algorithms for computing the sample variance, eq. 2.1).
    """
    pieces = row_pieces(x, *ROWS)
    counts = np.array([p.stop - p.start for p in pieces], np.float64).reshape(-1, 1)
    ones = np.ones(int(counts.max(initial=0)), x.dtype)
    sums, squares = np.empty((2, len(pieces), x.shape[1]), x.dtype)

    def around_zero(k):
        piece = x[pieces[k]]
        weights = ones[: len(piece)]
        np.dot(weights, piece, out=sums[k])
        np.dot(weights, np.square(piece, out=memory.empty(piece.shape, x.dtype)), out=squares[k])

    each(around_zero, range(len(pieces)))
    means = sums / counts
    around = squares - sums * means
    far = np.flatnonzero(~(counts * means**2 <= NEAR**2 * around).all(axis=1))

    def around_mean(k):
        piece, centre = x[pieces[k]], means[k].astype(x.dtype)
        weights = ones[: len(piece)]
        centred = memory.empty(piece.shape, x.dtype)
        np.subtract(piece, centre, out=centred)
        rest = np.dot(weights, centred) / counts[k]
        means[k] = centre + rest
        np.square(centred, out=centred)
        around[k] = np.dot(weights, centred) - counts[k] * rest**2

    each(around_mean, far.tolist())
    total = max(counts.sum(), 1)
    mean = (counts * means).sum(axis=0) / total
    around += counts * (means - mean) ** 2
    return mean, np.maximum(around.sum(axis=0), 0) / total


def _sums(ders: Array, x: Array, centre: Array) -> tuple[Array, Array, Array | None]:
    """The sums over rows of ders, of ders (x - centre), and of x - centre unless centre is 0; in float64."""
    pieces = row_pieces(x, *ROWS)
    ones = np.ones(max((p.stop - p.start for p in pieces), default=0), x.dtype)
    centred = bool(centre.any())
    sums = np.empty((2 + centred, len(pieces), x.shape[1]), x.dtype)

    def work(k):
        values, slopes = x[pieces[k]], ders[pieces[k]]
        weights, along = ones[: len(values)], memory.empty(values.shape, x.dtype)
        np.dot(weights, slopes, out=sums[0, k])
        if centred:
            values = np.subtract(values, centre, out=along)
            np.dot(weights, values, out=sums[2, k])
        np.dot(weights, np.multiply(values, slopes, out=along), out=sums[1, k])

    each(work, range(len(pieces)))
    dzdb, along, *rest = sums.sum(axis=1, dtype=np.float64)
    return dzdb, along, rest[0] if rest else None
