"""The CUDA sources in `kernels/`, compiled once per floating type and launched on the current stream."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache
from pathlib import Path
from types import NoneType
from typing import Any

import numpy as np

from ...errors import BackendError

SOURCES = Path(__file__).with_name("kernels")
THREADS = 256  # of a block, where a kernel doesn't say
MOST_BLOCKS = 1 << 20  # threads then do more than one element
REALS = {"float32": "float", "float64": "double", "float16": "float16", "bfloat16": "bfloat16"}
LARGE = 1 << 30  # elements, from which on 32 bits don't count them and what a grid goes beyond them


def source(name: str) -> str:
    """The text of kernels/NAME.cu, with the types that all kernels share in front."""
    return "\n".join((SOURCES / part).read_text("utf-8") for part in ("types.cuh", f"{name}.cu"))


def options(dtype: str, index: str) -> tuple[str, ...]:
    """What the compiler is told: the type of the data, of their sums, and of what counts elements."""
    acc = "double" if dtype == "float64" else "float"
    return ("-std=c++17", f"-DREAL={REALS[dtype]}", f"-DACC={acc}", f"-DINDEX={index}")


@lru_cache(1 << 12)
def reciprocal(divisor: int) -> np.uint64:
    """What `quotient` of types.cuh divides numbers below 2^31 by `divisor` with: a factor and a shift.

    With 2^(s - 1) < d <= 2^s and m = ceil(2^(31 + s) / d), floor(i / d) = floor(i m / 2^(31 + s)) for
    i < 2^31, since i (m - 2^(31 + s) / d) < 2^31 2^s / d (Granlund & Montgomery 1994, theorem 4.2).

    >>> m, s = int(reciprocal(7)) % 2**32, int(reciprocal(7)) >> 32
    >>> [(2 * i * m >> 32) >> s for i in (0, 6, 7, 2**31 - 1)] == [i // 7 for i in (0, 6, 7, 2**31 - 1)]
    True
    """
    divisor = max(divisor, 1)  # 0 divides the numbers of nothing
    shift = (divisor - 1).bit_length()
    return np.uint64(shift << 32 | -(-(1 << 31 + shift) // divisor))


class Kernels:
    """Compiles and launches the kernels on one device, with `cupy` as the array module.

    Arguments of a kernel become what its signature says by one rule: an array its pointer, None a null
    pointer, an int an INDEX, a float an ACC, and a NumPy number itself.
    """

    def __init__(self, cupy: Any, device: int = 0) -> None:
        self._cupy, self._device = cupy, device
        self._current_device = cupy.cuda.runtime.getDevice
        self._functions: dict[tuple[str, str, str, str], Any] = {}
        self._modules: dict[tuple[str, str, str], Any] = {}
        self._names: dict[Any, str] = {}  # of types

    def each(self, file: str, name: str, dtype: Any, count: int, *args: Any, per: int = 1) -> None:
        """Launch a kernel whose threads do `count` elements, its first argument, between them.

        `per` is how many a thread does at once. Nothing is launched for no elements.
        """
        if count:
            blocks = min(-(-count // (THREADS * per)), MOST_BLOCKS)
            self.blocks(file, name, dtype, (blocks,), (THREADS,), count, *args)

    def blocks(
        self, file: str, name: str, dtype: Any, grid: Sequence[int], block: Sequence[int], *args: Any
    ) -> None:
        """Launch a kernel on a grid of blocks of threads.

        Raises BackendError on another device than the kernels', where it would read wild memory.
        """
        if self._current_device() != self._device:
            raise BackendError(
                f"kernels of CUDA device {self._device} run inside `with backend.evaluation():`, "
                f"not on device {self._current_device()}"
            )
        name_of_type = self._name(dtype)
        sizes = [arg if type(arg) is int else getattr(arg, "size", 0) for arg in args]
        large = max(sizes, default=0) >= LARGE
        casts: dict[type, Callable[[Any], Any]] = {
            int: np.int64 if large else np.int32,
            float: np.float64 if name_of_type == "float64" else np.float32,
            NoneType: np.uint64,
        }
        native = [casts[type(arg)](arg or 0) if type(arg) in casts else arg for arg in args]
        index = "long long" if large else "int"
        self._function(file, name, name_of_type, index)(tuple(grid), tuple(block), tuple(native))

    def _name(self, dtype: Any) -> str:
        """The name of a type, which NumPy makes anew each time."""
        if dtype not in self._names:
            self._names[dtype] = np.dtype(dtype).name
        return self._names[dtype]

    def _function(self, file: str, name: str, dtype: str, index: str) -> Any:
        key = file, name, dtype, index
        if key not in self._functions:
            self._functions[key] = self._module(file, dtype, index).get_function(name)
        return self._functions[key]

    def _module(self, file: str, dtype: str, index: str) -> Any:
        key = file, dtype, index
        if key not in self._modules:
            self._modules[key] = self._cupy.RawModule(code=source(file), options=options(dtype, index))
        return self._modules[key]
