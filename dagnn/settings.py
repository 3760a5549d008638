"""The settings of a net that decide how it is evaluated."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from .errors import OptionError
from .keeping import as_asked
from .precision import as_precision
from .structure import Structure


class Settings(Structure):
    """Mode, memory, and what else is chosen for all evaluations of a net."""

    def __init__(self) -> None:
        super().__init__()
        self._mode = "train"
        self._conserve_memory = True
        self._precision: str | None = None
        self._capture = False
        self._keep_patches: dict[str, bool] = {}

    @property
    def mode(self) -> str:
        """ "train" or "test"; "normal", MatConvNet's word for it, is read as "train"."""
        return self._mode

    @mode.setter
    def mode(self, mode: str) -> None:
        modes = {"train": "train", "normal": "train", "test": "test"}
        if mode not in modes:
            raise OptionError(f"mode is 'train' or 'test'. Received: {mode!r}")
        self._mode = modes[mode]
        if self._mode == "train":  # filters are about to change
            for folded in self._cache.get("folded", {}).values():
                folded.forget()

    @property
    def conserve_memory(self) -> bool:
        """Whether values and derivatives nobody asked to keep are released."""
        return self._conserve_memory

    @conserve_memory.setter
    def conserve_memory(self, flag: bool) -> None:
        self._conserve_memory = bool(flag)
        self._changed()

    @property
    def capture(self) -> bool:
        """Whether evaluations whose like came before are replayed as CUDA graphs (default False).

        A graph is launched at once, where otherwise each kernel is, which takes the host longer than small
        kernels take the device. Results are the same. The first evaluation that asks for the same by inputs
        of the same shapes and types runs as always, the second is recorded; what it allocated stays
        allocated. The graphs of the last 8 kinds of evaluations are kept, until this is set to False.

        Arrays that are given out are copies. What can't be recorded runs as always, after one warning by the
        logger "dagnn" that names the layer: convolutions without cuDNN, labels that a layer makes, an
        evaluation with `memory_budget`, layers of your own unless their class says `capturable = True`.
        Backends without graphs, such as NumPy's, ignore it.

        >>> from dagnn.zoo import lenet
        >>> net = lenet()
        >>> net.capture = True
        """
        return self._capture

    @capture.setter
    def capture(self, flag: bool) -> None:
        self._capture = bool(flag)
        if not flag and (captures := self._cache.pop("captures", None)):
            captures.take_back()

    @property
    def keep_patches(self) -> Mapping[str, bool]:
        """For convolutions by name, whether they keep their patch matrix from forward to backward.

        That takes memory and may save time; results are the same. For layers not named here the first
        evaluations that train them measure it; `net.profile` shows what they found. Not saved to files.

        >>> from dagnn.zoo import lenet
        >>> net = lenet()
        >>> net.keep_patches = {"conv1": True, "conv2": False}
        """
        return dict(self._keep_patches)

    @keep_patches.setter
    def keep_patches(self, asked: Mapping[str, bool]) -> None:
        self._keep_patches = as_asked(asked, self._nodes)
        self._changed()

    @property
    def precision(self) -> str | None:
        """ "float16" or "bfloat16": convolutions and what lies between compute in it; None: all in one type.

        Parameters stay float32, losses compute in it; see `dagnn.precision`. Not saved to files, like the
        backend.

        >>> from dagnn.zoo import lenet
        >>> net = lenet()
        >>> net.precision = "float16"
        """
        return self._precision

    @precision.setter
    def precision(self, name: str | None) -> None:
        if (name := as_precision(name)) != self._precision:
            self._precision = name
            self._changed()

    @property
    def dtype(self) -> np.dtype | None:
        """The floating type of the parameters; None while there are none."""
        return next((p._value.dtype for p in self._params.values() if p._value is not None), None)
