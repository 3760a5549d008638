"""What follows the products of a convolution while a piece of its output is in cache: bias, sum, ReLU."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import numpy as np

from ..reference.checks import Array
from .tiles import Tile

ZEROS = 1 << 17


@cache
def _zeros(dtype: np.dtype) -> Array:
    return np.zeros(ZEROS, dtype)


def rectify(x: Array, leak: float, out: Array) -> Array:
    """max(x, 0) + leak min(x, 0) into `out`; without a leak NaN becomes 0.

    >>> rectify(np.array([-1.0, 2.0]), 0.5, np.empty(2))
    array([-0.5,  2. ])
    """
    if leak:
        larger = np.maximum if leak <= 1 else np.minimum
        return larger(x, x * float(leak), out=out)
    # Against an array: NumPy's comparison with a number is four times slower.
    if x.size <= ZEROS and x.flags.c_contiguous and out.flags.c_contiguous:
        np.fmax(x.reshape(-1), _zeros(x.dtype)[: x.size], out=out.reshape(-1))
        return out
    if x.ndim and x.shape[-1] <= ZEROS:
        return np.fmax(x, _zeros(x.dtype)[: x.shape[-1]], out=out)
    return np.fmax(x, 0, out=out)


class Epilogue(NamedTuple):
    """y + b + add, then a ReLU of leak `relu`; each may be None. Maps are channels-last."""

    b: Array | None = None
    add: Array | None = None
    relu: float | None = None

    def finish(self, part: Array, tile: Tile) -> None:
        """Complete `part`, the `tile` of the output, in place."""
        if self.b is not None:
            np.add(part, self.b, out=part)
        if self.add is not None:
            np.add(part, self.add[tile], out=part)
        if self.relu is not None:
            rectify(part, self.relu, part)

    def write(self, values: Array, part: Array, where: Tile) -> None:
        """Write `values`, which have their bias already, into `part`, which lies at `where` in the output."""
        if self.add is not None:
            values = np.add(values, self.add[where], out=part)
        if self.relu is not None:
            rectify(values, self.relu, part)
        elif values is not part:
            part[...] = values

    def of_group(self, channels: slice) -> Epilogue:
        """The epilogue of some of the channels."""
        b, add = (None if a is None else a[..., channels] for a in (self.b, self.add))
        return Epilogue(b, add, self.relu)
