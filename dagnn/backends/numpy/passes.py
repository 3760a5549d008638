"""Passes over whole arrays on threads, in pieces that stay in cache between the steps of a pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from ..reference.checks import Array
from . import memory
from .threads import each

PIECE = 1 << 17
"""Elements of a piece: of shorter ones, what threads wait for the interpreter costs more than cache saves."""


def like(x: Array, dtype: Any = None) -> Array:
    """An array of the shape and memory order of `x`, with arbitrary contents.

    >>> like(np.zeros((2, 3, 4, 5)).transpose(0, 3, 1, 2)).strides
    (480, 8, 160, 40)
    """
    order = _memory_order(x)
    y = memory.empty([x.shape[axis] for axis in order], x.dtype if dtype is None else dtype)
    return y.transpose(np.argsort(order)) if x.ndim else y


def in_pieces(work: Callable[..., Any], *arrays: Array) -> None:
    """Call work(*pieces) for all pieces of `arrays`, which have one shape; work treats elements alike.

    >>> x = np.arange(6.0).reshape(2, 3)
    >>> y = like(x)
    >>> in_pieces(lambda a, b: np.add(a, 1, out=b), x, y)
    >>> y
    array([[1., 2., 3.],
           [4., 5., 6.]])
    """
    flat = _in_step(arrays)
    if flat is not None:
        arrays, step = flat, PIECE
    elif not arrays[0].ndim:
        work(*arrays)
        return
    else:  # memory in different orders: along the axis outermost in most
        axis = _memory_order(arrays[0])[0]
        arrays = tuple(a.swapaxes(0, axis) for a in arrays)
        step = max(1, PIECE * len(arrays[0]) // max(1, arrays[0].size))
    n = len(arrays[0])
    if n <= step:
        work(*arrays)
        return
    each(lambda k: work(*(a[k : k + step] for a in arrays)), range(0, n, step))


def _memory_order(x: Array) -> list[int]:
    """The axes from the outermost to the innermost in memory."""
    return sorted(range(x.ndim), key=lambda axis: -abs(x.strides[axis]) if x.shape[axis] > 1 else 0)


def _in_step(arrays: tuple[Array, ...]) -> tuple[Array, ...] | None:
    """The arrays as flat views, if all are dense and go through memory in the same order."""
    if all(a.flags.c_contiguous for a in arrays):
        return tuple(a.reshape(-1) for a in arrays)
    order = _memory_order(arrays[0])
    turned = tuple(a.transpose(order) for a in arrays)
    if all(a.flags.c_contiguous for a in turned):
        return tuple(a.reshape(-1) for a in turned)
    return None
