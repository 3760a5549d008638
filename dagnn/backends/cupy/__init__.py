"""The CuPy backend: the reference kernels on a CUDA device."""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np

from ...errors import BackendError
from ..base import Array, Backend

INSTALL = "pip install 'dagnn[cuda13]' (or 'dagnn[cuda12]' for CUDA 12)"


class CuPyBackend(Backend):
    """Reference kernels on CuPy arrays; BackendError where CuPy or a CUDA device is missing."""

    name: ClassVar[str] = "cupy"

    def __init__(self) -> None:
        try:
            import cupy  # type: ignore[import-not-found, unused-ignore]
        except ImportError as error:
            raise BackendError(f"the cupy backend needs CuPy ({error}): {INSTALL}") from None
        try:
            cupy.cuda.runtime.getDeviceCount()
        except cupy.cuda.runtime.CUDARuntimeError as error:
            raise BackendError(
                f"CuPy found no usable CUDA device ({error}). It must match the driver: {INSTALL}"
            ) from None
        self._cupy = cupy

    @property
    def xp(self) -> Any:
        return self._cupy

    def asarray(self, a: Any) -> Array:
        return self._cupy.asarray(a)

    def to_numpy(self, a: Array) -> np.ndarray:
        return self._cupy.asnumpy(a)

    def owns(self, a: Any) -> bool:
        return isinstance(a, self._cupy.ndarray)

    def rng(self, *keys: int) -> Any:
        return self._cupy.random.default_rng(np.random.SeedSequence(keys))
