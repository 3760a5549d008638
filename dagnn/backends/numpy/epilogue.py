"""What follows the products of a convolution while a piece of its output is in cache: bias, sum, ReLU."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

from ..reference.checks import Array
from .elementwise import ZEROS, rectify
from .rows import WIDE, repeated


def _add_biases(y: Array, b: Array) -> None:
    """Add a bias to each channel of `y`, many pixels at a time: a ufunc has to start for every row."""
    if not y.flags.c_contiguous or y.size < 4 * WIDE:
        np.add(y, b, out=y)
        return
    flat, wide = y.reshape(-1), repeated(b, -(-WIDE // len(b)))
    whole = y.size // len(wide) * len(wide)
    rows = flat[:whole].reshape(-1, len(wide))
    np.add(rows, wide, out=rows)
    flat[whole:] += wide[: y.size - whole]


def _rectify(y: Array, leak: float) -> None:
    if not y.flags.c_contiguous:
        rectify(y, leak, y)
        return
    flat = y.reshape(-1)
    for start in range(0, flat.size, ZEROS):
        piece = flat[start : start + ZEROS]
        rectify(piece, leak, piece)


class Epilogue(NamedTuple):
    """y + b + add, then a ReLU of leak `relu`; each may be None. Maps are channels-last."""

    b: Array | None = None
    add: Array | None = None
    relu: float | None = None

    def finish(self, part: Array, tile: tuple[slice, ...]) -> None:
        """Complete `part`, the `tile` of the output, in place."""
        if self.b is not None:
            _add_biases(part, self.b)
        if self.add is not None:
            np.add(part, self.add[tile], out=part)
        if self.relu is not None:
            _rectify(part, self.relu)

    def of_group(self, channels: slice) -> Epilogue:
        """The epilogue of some of the channels."""
        b, add = (None if a is None else a[..., channels] for a in (self.b, self.add))
        return Epilogue(b, add, self.relu)
