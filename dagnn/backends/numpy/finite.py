"""Whether numbers are finite: mostly in one pass, for where one is not a sum of squares is not either."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite

import numpy as np

from ...dtypes import is_floating
from ..reference.checks import Array
from .threads import each

PIECE = 1 << 18
"""Elements whose squares are added up at once."""


def all_finite(arrays: Sequence[Array]) -> bool:
    """Whether no element of any array is nan or inf."""
    flat = [a.ravel(order="K") for a in arrays if is_floating(a.dtype)]  # views, where arrays are dense
    pieces = [a[k : k + PIECE] for a in flat for k in range(0, a.size, PIECE)]
    return all(each(_is_finite, pieces))


def _is_finite(piece: np.ndarray) -> bool:
    """Large elements have squares that are not finite: then each is looked at by itself."""
    with np.errstate(over="ignore", invalid="ignore"):
        summed = piece.itemsize > 2 and isfinite(np.dot(piece, piece))
        return summed or bool(np.isfinite(piece).all())
