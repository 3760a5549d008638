"""The kernels, once per kind of array: `get("numpy")`, `get("cupy")`, and the readable `get("reference")`."""

from __future__ import annotations

from functools import cache
from importlib import import_module
from types import ModuleType
from typing import TYPE_CHECKING, Any

from ..errors import OptionError

if TYPE_CHECKING:
    from .base import Backend

NAMES = ("numpy", "cupy", "reference")


def __getattr__(name: str) -> ModuleType:
    """`dagnn.backends.numpy` without importing it first."""
    if name in ("numpy", "cupy", "base"):
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def get(name: str | Backend, **options: Any) -> Backend:
    """The backend of this name with these options, always the same object; a backend itself as it is.

    Raises OptionError for an unknown name or option, BackendError where it cannot run here (no CuPy, no
    device).

    >>> get("numpy")
    <NumPyBackend 'numpy'>
    """
    if not isinstance(name, str):
        if options or not hasattr(name, "xp"):
            raise OptionError(f"backend is one of {', '.join(NAMES)}. Received: {name!r}")
        return name
    if name == "cupy":
        from .cupy import checked

        options = checked(**options)
    elif options and name in NAMES:
        raise OptionError(f"Backend {name!r} has no options. Received: {', '.join(options)}")
    return _made(name, **options)


@cache
def _made(name: str, **options: Any) -> Backend:
    if name == "numpy":
        from .numpy import backend

        return backend
    if name == "cupy":
        from .cupy import CuPyBackend

        return CuPyBackend(**options)
    if name == "reference":
        from .base import Backend

        return Backend()
    raise OptionError(f"backend is one of {', '.join(NAMES)}. Received: {name!r}")
