"""What minimal filtering makes of small squares of pixels: a small matrix on one axis, then on the other.

One axis at a time it takes a sixth of the products that both at once would. Squares are never gathered: the
first matrix acts on whole lines of maps, the second on the pixels of a square, all channels side by side.
Each thread keeps its half-way results from one piece of the maps to the next.
"""

from __future__ import annotations

from collections.abc import Callable, Hashable
from threading import get_ident
from typing import Any

import numpy as np

from ..reference.checks import Array
from .memory import copied, empty
from .products import multiply

Pair = tuple[int, int]


class PerThread:
    """What each thread made last, to be used again while it asks for the same."""

    def __init__(self) -> None:
        self._made: dict[int, tuple[Hashable, Any]] = {}

    def get(self, make: Callable[..., Any], *key: Any) -> Any:
        """`make(*key)`, or what it made at the calling thread's last call."""
        last = self._made.get(get_ident())
        if last is None or last[0] != key:
            last = self._made[get_ident()] = key, make(*key)
        return last[1]


class Spread:
    """Squares of s x s pixels of channels-last `maps`, `step` apart, times `matrix` (i, s) on both axes.

    Outside the maps are zeros.
    """

    def __init__(self, matrix: Array, step: int, maps: Array) -> None:
        self.matrix, self.step = np.ascontiguousarray(matrix), step
        self.maps = maps
        self._rooms = PerThread()

    def __call__(self, images: slice, start: Pair, counts: Pair, out: Array) -> None:
        """Write into `out` (i², squares, C) what becomes of `counts` rows and columns from `start` on."""
        (points, side), (rows, columns) = self.matrix.shape, counts
        n, (_, _, width, c) = images.stop - images.start, self.maps.shape
        down, across = (self.step * (count - 1) + side for count in counts)
        first = min(across, max(0, -start[1]))
        last = max(first, min(across, width - start[1]))
        inside, squares = self._rooms.get(self._room, n, rows, columns, first, last)
        if first < last:
            maps, top, left = self.maps[images], start[0], start[1] + first
            if not maps.flags.c_contiguous:
                low = max(0, top)
                maps = copied(maps[:, low : max(low, top + down), left : start[1] + last])
                top, left = top - low, 0
            self._along_lines(maps, (top, left), inside)
        places = out.reshape(points, points, n, rows, columns, c)
        np.matmul(self.matrix, squares, out=places.transpose(0, 2, 3, 4, 1, 5))

    def _along_lines(self, maps: Array, start: Pair, out: Array) -> None:
        """The first axis: `out` (N, rows, i, pixels C) of the lines of squares from `start` on."""
        side, (top, left), (n, rows, _, size) = self.matrix.shape[1], start, out.shape
        _, height, width, c = maps.shape
        pixel = c * maps.itemsize  # not maps.strides: those of an axis of one element may be anything
        line = width * pixel
        strides = height * line, self.step * line, line, maps.itemsize

        def lines(row: int, count: int, within: slice) -> Array:
            """For `count` rows of squares their lines `within`, (N, count, lines, pixels C)."""
            shape = n, count, within.stop - within.start, size
            place = (top + self.step * row + within.start) * line + left * pixel
            return np.ndarray(shape, maps.dtype, maps, place, strides)

        whole = range(max(0, -(top // self.step)), min(rows, (height - side - top) // self.step + 1))
        if whole:
            given = lines(whole.start, len(whole), slice(0, side))
            multiply(self.matrix, given, out[:, whole.start : whole.stop])
        for row in range(rows):
            if row in whole:
                continue
            low = top + self.step * row
            within = slice(max(0, -low), min(side, height - low))
            if within.start < within.stop:
                np.matmul(self.matrix[:, within], lines(row, 1, within), out=out[:, row : row + 1])
            else:
                out[:, row] = 0

    def _room(self, n: int, rows: int, columns: int, first: int, last: int) -> tuple[Array, Array]:
        """Pixels `first` to `last` of lines, (N, rows, i, pixels C), zeros around them; squares of them."""
        (points, side), c = self.matrix.shape, self.maps.shape[3]
        half = empty((n, rows, points, self.step * (columns - 1) + side, c), self.maps.dtype)
        half[..., :first, :] = half[..., last:, :] = 0
        image, row, point, pixel, item = half.strides
        strides = point, image, row, self.step * pixel, pixel, item
        squares = np.ndarray((points, n, rows, columns, side, c), half.dtype, half, 0, strides)
        return half[..., first:last, :].reshape(n, rows, points, -1), squares


class Collect:
    """Squares of m x m pixels: `products` at i² points times `matrix` (m, i) on both axes."""

    def __init__(self, matrix: Array) -> None:
        self.matrix = np.ascontiguousarray(matrix)
        self._rooms = PerThread()

    def __call__(self, products: Array, counts: tuple[int, int, int], y: Array) -> None:
        """Write into channels-last `y` what becomes of `products` (i², squares, K).

        There are `counts` images, rows and columns of squares; what of them is outside `y` is left out.
        """
        out, points = self.matrix.shape
        k = products.shape[2]
        half = self._rooms.get(empty, (points, out, *counts, k), y.dtype)
        by_column = products.reshape(points, points, -1).swapaxes(0, 1)
        multiply(self.matrix, by_column, half.reshape(points, out, -1))
        squares = half.transpose(1, 2, 3, 4, 0, 5)  # (m, N, rows, columns, i, K)
        for rows, below in _whole_and_rest(y.shape[1], out):
            for columns, beside in _whole_and_rest(y.shape[2], out):
                part = y[:, out * rows.start :, out * columns.start :]
                part = part[:, : below * len(rows), : beside * len(columns)]
                places = part.reshape(len(y), len(rows), below, len(columns), beside, k)
                given = squares[:below, :, rows.start : rows.stop, columns.start : columns.stop]
                np.matmul(self.matrix[:beside], given, out=places.transpose(2, 0, 1, 3, 4, 5))


def _whole_and_rest(size: int, out: int) -> list[tuple[range, int]]:
    """Which squares of `out` pixels are whole on an axis of `size`; which one is not, and its pixels."""
    whole, rest = divmod(size, out)
    parts = (range(whole), out), (range(whole, whole + 1), rest)
    return [(squares, pixels) for squares, pixels in parts if squares and pixels]
