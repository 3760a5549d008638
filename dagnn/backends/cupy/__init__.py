"""The CuPy backend: kernels on a CUDA device, and convolutions of cuDNN."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any, ClassVar
from weakref import WeakSet

import numpy as np

from ...errors import BackendError, OptionError
from ...nbytes import as_bytes
from ..base import Array, Backend
from .convolution import Convolution
from .elementwise import Activation, Elementwise
from .graphs import Recorder
from .losses import Losses
from .many import Many, memory_order
from .modules import Kernels
from .normalisation import Normalisation
from .pooling import Pooling
from .random import Philox
from .sampling import Sampling
from .services import Services
from .solvers import Steps
from .tables import Tables

INSTALL = "pip install 'dagnn[cuda13]' (or 'dagnn[cuda12]' for CUDA 12)"


class CuPyBackend(
    Services, Convolution, Pooling, Normalisation, Sampling, Losses, Activation, Elementwise, Many, Backend
):
    """Kernels on CuPy arrays; BackendError where CuPy or a CUDA device is missing.

    device : the number of the device that its arrays are on.
    tf32 : let float32 convolutions and products round their factors to tf32, 10 bits (default False).
    autotune : time the plans that cuDNN has for a convolution, and keep the best (default False).
    workspace_limit : the most memory that a convolution may work in, in bytes or as "256MiB".
    deterministic : leave out what adds up in an order that varies from run to run (default True).
    channels_last : whether convolutions compute in channels-last memory (None: as suits the precision).

    Raises OptionError for other options, or values of them.
    """

    name: ClassVar[str] = "cupy"

    def __init__(
        self,
        device: int = 0,
        tf32: bool = False,
        autotune: bool = False,
        workspace_limit: int | str = "1GiB",
        deterministic: bool = True,
        channels_last: bool | None = None,
    ) -> None:
        self._options = checked(
            device=device,
            tf32=tf32,
            autotune=autotune,
            workspace_limit=workspace_limit,
            deterministic=deterministic,
            channels_last=channels_last,
        )
        self._index = self._options["device"]
        self._cupy = _cupy(self._index)
        self._kernels = Kernels(self._cupy, self._index)
        self._tables = Tables(self._cupy)
        self._recorders: WeakSet[Recorder] = WeakSet()

    def __repr__(self) -> str:
        others = {key: value for key, value in self._options.items() if value != DEFAULTS[key]}
        text = "".join(f" {key}={value!r}" for key, value in others.items())
        return f"<{type(self).__name__} {self.name!r}{text}>"

    @property
    def xp(self) -> Any:
        return self._cupy

    def asarray(self, a: Any) -> Array:
        with self.evaluation():
            if not self.owns(a):
                return self._number(np.asarray(a)) if self._capturing() else self._cupy.asarray(a)
            return a if a.device.id == self._index else self._from_elsewhere(a)

    def to_numpy(self, a: Array) -> np.ndarray:
        return self._cupy.asnumpy(a)

    def owns(self, a: Any) -> bool:
        return isinstance(a, self._cupy.ndarray)

    def rng(self, *keys: int) -> Any:
        return Philox(self._cupy, self._kernels, keys)

    def evaluation(self) -> AbstractContextManager[Any]:
        return self._cupy.cuda.Device(self._index)

    def steps(self, rule: str) -> Steps:
        return Steps(self._kernels, self._cupy, self._tables, rule)

    def empty(self, shape, dtype):
        with self.evaluation():
            return self._cupy.empty(shape, dtype)

    def zeros(self, shape, dtype):
        with self.evaluation():
            return self._cupy.zeros(shape, dtype)

    def _number(self, a: np.ndarray) -> Array:
        """A number of the host in recorded work, which keeps it; its memory may be anything's later."""
        if a.ndim:
            raise BackendError("an array of the host can't be part of recorded work")
        return self._cupy.full((), a.item(), a.dtype)

    def _from_elsewhere(self, a: Array) -> Array:
        """A copy of another device's array in its order of memory, when all is done that may write there.

        CuPy copies only what has channels first from one device to another, and no stream waits for those of
        another device.
        """
        order = memory_order(a)
        a.device.synchronize()
        here = a.transpose(order).copy().transpose(sorted(range(a.ndim), key=order.__getitem__))
        self._cupy.cuda.get_current_stream().synchronize()
        return here

    def _capturing(self) -> bool:
        """Whether work is being recorded now, so that nothing may wait for the device."""
        return self._cupy.cuda.get_current_stream().is_capturing()


DEFAULTS: dict[str, Any] = {
    "device": 0,
    "tf32": False,
    "autotune": False,
    "workspace_limit": 1 << 30,
    "deterministic": True,
    "channels_last": None,
}


def checked(**options: Any) -> dict[str, Any]:
    """All options with those given; OptionError for one that isn't there, or can't be what it is.

    >>> checked(workspace_limit="256MiB")["workspace_limit"]
    268435456
    """
    options = {**DEFAULTS, **options}
    if unknown := options.keys() - DEFAULTS.keys():
        raise OptionError(
            f"Backend 'cupy' has the options {', '.join(DEFAULTS)}. Received: {', '.join(sorted(unknown))}"
        )
    device = options["device"]
    if not isinstance(device, int | np.integer) or isinstance(device, bool) or device < 0:
        raise OptionError(f"device is the number of a device, from 0. Received: {device!r}")
    for name in ("tf32", "autotune", "deterministic", "channels_last"):
        if not isinstance(options[name], bool) and options[name] is not DEFAULTS[name]:
            raise OptionError(f"{name} is True or False. Received: {options[name]!r}")
    limit = as_bytes(options["workspace_limit"], "workspace_limit")
    return {**options, "device": int(device), "workspace_limit": limit}


def _cupy(device: int) -> Any:
    """The module; BackendError unless it can use this device."""
    try:
        import cupy
    except ImportError as error:
        raise BackendError(f"the cupy backend needs CuPy ({error}): {INSTALL}") from None
    try:
        devices = cupy.cuda.runtime.getDeviceCount()
    except cupy.cuda.runtime.CUDARuntimeError as error:
        raise BackendError(
            f"CuPy found no usable CUDA device ({error}). It must match the driver: {INSTALL}"
        ) from None
    if device >= devices:
        raise BackendError(f"there is no CUDA device {device}: this machine has {devices}, counted from 0")
    return cupy
