"""Floating types: NumPy's own, and bfloat16, which the package `ml_dtypes` brings."""

from __future__ import annotations

from typing import Any

import numpy as np

from .errors import MissingPackageError, OptionError


def is_floating(dtype: Any) -> bool:
    """Whether arrays of `dtype` hold data that derivatives exist for.

    >>> is_floating(np.dtype("float16")), is_floating(np.dtype("int64"))
    (True, False)
    """
    return dtype.kind == "f" or is_half(dtype)


def is_half(dtype: Any) -> bool:
    """Whether `dtype` is a floating type of 16 bits.

    >>> is_half(np.dtype("float16")), is_half(np.dtype("float32")), is_half(np.dtype("int16"))
    (True, False, False)
    """
    return dtype.itemsize == 2 and (dtype.kind == "f" or (dtype.kind == "V" and dtype.name == "bfloat16"))


def rounded(array: Any, dtype: Any) -> Any:
    """`array` as `dtype`; numbers that are too large for it are infinite without a warning, as on a GPU.

    Scaled derivatives are expected to be, now and then.

    >>> rounded(np.float32([1, 70000]), np.float16)
    array([ 1., inf], dtype=float16)
    """
    with np.errstate(over="ignore"):
        return array.astype(dtype)


def floating(dtype: Any) -> np.dtype:
    """`dtype`, which may be a name such as "bfloat16", as a floating type.

    Raises OptionError for other types, MissingPackageError for bfloat16 without `ml_dtypes`.

    >>> floating("float32")
    dtype('float32')
    """
    try:
        found = _bfloat16() if isinstance(dtype, str) and dtype == "bfloat16" else np.dtype(dtype)
    except TypeError:
        found = None
    if found is None or not is_floating(found):
        raise OptionError(f"dtype must be a floating type such as 'float32'. Received: {dtype!r}")
    return found


def _bfloat16() -> np.dtype:
    try:
        from ml_dtypes import bfloat16
    except ImportError:
        raise MissingPackageError("bfloat16 needs ml_dtypes: pip install ml_dtypes") from None
    return np.dtype(bfloat16)
