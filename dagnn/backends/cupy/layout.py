"""The two orders in memory that kernels know: dense maps with channels first, and with channels last."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from ..reference.checks import Array

LAST = (0, 2, 3, 1)
"""The axes of channels-last maps (N, C, H, W) in the order of their memory."""


def channels_last(a: Array) -> bool:
    """Whether (N, C, H, W) maps are dense with channels last.

    Maps of one pixel are so with channels first as well: then strides that don't count tell how they were
    made, so that the derivative of a mean over all pixels has the order of the net's other maps.

    >>> import numpy as np
    >>> channels_last(np.zeros((1, 2, 2, 3))), channels_last(np.zeros((1, 2, 3, 2)).transpose(0, 3, 1, 2))
    (False, True)
    >>> channels_last(np.zeros((5, 2, 1, 1))), channels_last(np.zeros((5, 1, 1, 2)).transpose(0, 3, 1, 2))
    (False, True)
    """
    if not a.transpose(LAST).flags.c_contiguous:
        return False
    return a.strides[3] > a.strides[1] or not a.flags.c_contiguous


def dense(xp: Any, a: Array, last: bool | None = None) -> Array:
    """`a` in dense memory, channels last or first as it is or as asked; not copied if it already is so."""
    if last if last is not None else channels_last(a):
        return xp.ascontiguousarray(a.transpose(LAST)).transpose(0, 3, 1, 2)
    return a if a.flags.c_contiguous else xp.ascontiguousarray(a)  # which gives those without axes one


def empty_maps(xp: Any, shape: Sequence[int], dtype: Any, last: bool) -> Array:
    """New (N, C, H, W) maps with arbitrary contents, dense with channels last or first."""
    if not last:
        return xp.empty(tuple(shape), dtype)
    n, c, h, w = shape
    return xp.empty((n, h, w, c), dtype).transpose(0, 3, 1, 2)


def split(shape: Sequence[int], last: bool) -> tuple[int, int]:
    """How many numbers lie between two of neighbouring pixels, and between two of neighbouring channels.

    >>> split((8, 3, 5, 5), last=False), split((8, 3, 5, 5), last=True)
    ((1, 25), (3, 1))
    """
    return (shape[1], 1) if last else (1, prod(shape[2:]))


def strides(a: Array) -> list[int]:
    """The elements between neighbours on each axis, 0 where there are none.

    >>> import numpy as np
    >>> strides(np.zeros((5, 1, 3)))
    [3, 0, 1]
    """
    return [0 if n < 2 else s // a.itemsize for n, s in zip(a.shape, a.strides, strict=True)]
