"""Kernels on data of 16 bits: they compute in single precision, and round once at the end."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Any, TypeVar

import numpy as np

from ...dtypes import is_floating, is_half, rounded
from .activation import Activation
from .checks import one_dtype
from .convolution import Convolution
from .elementwise import Elementwise
from .losses import Losses
from .normalisation import Normalisation
from .pooling import Pooling
from .sampling import Sampling

ROOMS = (Convolution, Pooling, Sampling, Activation, Normalisation, Losses, Elementwise)
OWN = ("batch_norm", "batch_norm_ders")  # whose arrays may differ in type: they see to it themselves
ANY_TYPE = ("labels", "weights", "rois", "winner")  # beside data of any type

B = TypeVar("B", bound=type)


def in_single_precision(backend: B) -> B:
    """Let all kernels that the class has take data of 16 bits as if it was float32.

    What they return is of the type they got: 65504 is the largest finite float16, and sums of bfloat16
    numbers have 8 bits.

    >>> from dagnn.backends import numpy as kernels
    >>> kernels.sum_to(np.full((1, 4097), 4, "float16"), (1, 1)).item()
    16384.0
    """
    for room in ROOMS:
        for name, kernel in vars(room).items():
            if inspect.isfunction(kernel) and name[0] != "_" and name not in OWN:
                setattr(backend, name, _widened(getattr(backend, name)))
    return backend


def _widened(kernel: Callable[..., Any]) -> Callable[..., Any]:
    signature = inspect.signature(kernel)

    @wraps(kernel)
    def call(self: Any, *args: Any, **options: Any) -> Any:
        for value in (*args, *options.values()):
            if getattr(value, "itemsize", 2) == 2 and _half(value):
                break
        else:
            return kernel(self, *args, **options)
        given = signature.bind(self, *args, **options).arguments
        data = {name: value for name, value in given.items() if name not in ANY_TYPE}
        half = next(filter(None, map(_half, data.values())), None)
        if half is None:  # labels have 16 bits, data has not
            return kernel(self, *args, **options)
        one_dtype(**_arrays(data))
        out, _ = data.pop("out", None), data.pop("patches", None)
        free = {name: value for name, value in given.items() if name in ANY_TYPE}
        result = kernel(**free, **{name: _wide(value) for name, value in data.items()})
        if out is None:
            return _narrow(result, half)
        out[...] = rounded(result, half)
        return out

    call.__doc__ = inspect.getdoc(kernel)  # that of the reference, where a faster one has none
    return call


def _half(value: Any) -> Any:
    """The type of a 16-bit array, of the first in a list, or the type itself; else None."""
    if type(value) in (list, tuple):
        value = value[0] if value else None
    dtype = value if isinstance(value, np.dtype) else getattr(value, "dtype", None)
    return dtype if dtype is not None and is_half(dtype) else None


def _arrays(data: dict[str, Any]) -> dict[str, Any]:
    """The floating arrays by name, also those in lists."""
    found = {}
    for name, value in data.items():
        several = type(value) in (list, tuple)
        for k, array in enumerate(value if several else [value]):
            if hasattr(array, "dtype") and is_floating(array.dtype):
                found[f"input {k}" if several else name] = array
    return found


def _wide(value: Any) -> Any:
    if type(value) in (list, tuple):
        return type(value)(map(_wide, value))
    if _half(value) is None:
        return value
    return np.dtype(np.float32) if isinstance(value, np.dtype) else value.astype(np.float32)


def _narrow(result: Any, half: Any) -> Any:
    if isinstance(result, tuple):
        return tuple(_narrow(part, half) for part in result)
    if getattr(result, "dtype", None) != np.float32:
        return result
    return rounded(result, half)
