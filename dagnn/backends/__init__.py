"""The kernels, once per kind of array: `get("numpy")`, `get("cupy")`, and the readable `get("reference")`."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING

from ..errors import OptionError

if TYPE_CHECKING:
    from .base import Backend

NAMES = ("numpy", "cupy", "reference")


def __getattr__(name: str) -> ModuleType:
    """`dagnn.backends.numpy` without importing it first."""
    if name in ("numpy", "cupy", "base"):
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


@cache
def get(name: str) -> Backend:
    """The backend of this name, always the same object.

    Raises OptionError for an unknown name, BackendError where it cannot run here (no CuPy, no device).

    >>> get("numpy")
    <NumPyBackend 'numpy'>
    """
    if name == "numpy":
        from .numpy import backend

        return backend
    if name == "cupy":
        from .cupy import CuPyBackend

        return CuPyBackend()
    if name == "reference":
        from .base import Backend

        return Backend()
    raise OptionError(f"backend is one of {', '.join(NAMES)}. Received: {name!r}")
