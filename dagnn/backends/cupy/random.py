"""Random numbers on a CUDA device, made of their keys and places alone."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from operator import index
from typing import Any

import numpy as np

from ...errors import OptionError
from ..reference.checks import Array
from ..services import Live

MASK = (1 << 64) - 1
GOLDEN = 0x9E3779B97F4A7C15


def mixed(z: int) -> int:
    """SplitMix64's way of spreading a key over 64 bits (Steele, Lea & Flood, OOPSLA 2014).

    >>> hex(mixed(GOLDEN))
    '0xe220a8397b1dcdaf'
    """
    z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9 & MASK
    z = (z ^ (z >> 27)) * 0x94D049BB133111EB & MASK
    return z ^ (z >> 31)


class Philox:
    """A generator whose numbers are what Philox4x32-10 makes of its keys and of their place.

    Like NumPy's, each call goes on with new numbers. A key that is `Live` is read on the device.
    """

    def __init__(self, cupy: Any, kernels: Any, keys: Sequence[int]) -> None:
        self._cupy, self._kernels, self._calls = cupy, kernels, 0
        self._live, self._position, total = None, 0, 0
        for k, key in enumerate(keys, 1):
            position = k * GOLDEN & MASK
            if isinstance(key, Live) and cupy.cuda.get_current_stream().is_capturing():
                if self._live is not None:
                    raise OptionError("only one key of random numbers may change")
                self._live, self._position = key.array, position
            else:
                total += mixed(_folded(key) + position & MASK)
        self._keys = total & MASK

    def random(self, size: Any = None, dtype: Any = np.float64) -> Array:
        """Numbers from 0 to 1, 1 left out."""
        return self._numbers("uniforms", size, dtype)

    def standard_normal(self, size: Any = None, dtype: Any = np.float64) -> Array:
        """Numbers of mean 0 and variance 1, normally distributed."""
        return self._numbers("normals", size, dtype)

    def fill(self, name: str, y: Array, *args: Any) -> Array:
        """`y`, with what the kernel of this name makes of new numbers and of `args`."""
        call, self._calls = self._calls, self._calls + 1
        generator = np.uint64(self._keys), self._live, np.uint64(self._position), np.uint32(call)
        per = 2 if y.dtype == np.float64 else 4
        self._kernels.each("random", name, y.dtype, y.size, y, *args, *generator, per=per)
        return y

    def _numbers(self, name: str, size: Any, dtype: Any) -> Array:
        shape = () if size is None else (size,) if np.isscalar(size) else tuple(size)
        return self.fill(name, self._cupy.empty(shape, _single_or_double(dtype)))


@cache
def _folded(key: int) -> int:
    """A key as a number of 64 bits, other keys as others."""
    number = index(key)
    if number < 0:
        raise OptionError(f"keys of random numbers are at least 0. Received: {key!r}")
    if number <= MASK:
        return number
    low, high = np.random.SeedSequence(number).generate_state(2, np.uint64).tolist()
    return low ^ high


def _single_or_double(dtype: Any) -> np.dtype:
    found = np.dtype(dtype)
    if found not in (np.float32, np.float64):
        raise OptionError(f"random numbers are float32 or float64. Received: {found}")
    return found
