"""What all kernels check before they compute."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...dtypes import is_floating
from ...errors import DTypeError, ShapeError

Array = Any
"""An array of the backend at hand (`numpy.ndarray`, `cupy.ndarray`)."""


def one_dtype(**arrays: Array | None) -> None:
    """DTypeError unless the given arrays are floating and of one type; None is skipped.

    >>> import numpy as np
    >>> one_dtype(x=np.zeros(2, "float32"), w=None, b=np.zeros(1))
    Traceback (most recent call last):
        ...
    dagnn.errors.DTypeError: floating types differ: x is float32, b is float64
    """
    given = {name: a.dtype for name, a in arrays.items() if a is not None}
    for name, dtype in given.items():
        if not is_floating(dtype):
            raise DTypeError(f"{name} must be floating, got {dtype}")
    if len(set(given.values())) > 1:
        what = ", ".join(f"{name} is {dtype}" for name, dtype in given.items())
        raise DTypeError(f"floating types differ: {what}")


def same_shape(what: str, array: Array, shape: Sequence[int]) -> None:
    """ShapeError unless `array` has this shape."""
    if tuple(array.shape) != tuple(shape):
        raise ShapeError(f"{what} has shape {tuple(array.shape)}, expected {tuple(shape)}")
