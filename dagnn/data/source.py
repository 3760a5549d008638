"""What the trainer trains on: samples by number, in sets."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from ..errors import DataError, OptionError, ShapeError, shorten

SETS = ("train", "val", "test")  # MatConvNet's sets 1, 2 and 3
Batch = dict[str, Any]  # arrays by the name of the variable they are for


class Data:
    """Samples 0 .. len - 1 that belong to the sets "train", "val" and "test".

    A subclass defines `__len__` and `batch`, and calls `__init__` with the sets, if not all samples are for
    training. `batch` is called from a background thread, one call at a time unless trainers share the data.

    Parameters
    ----------
    sets : for every sample 1 (train), 2 (val), 3 (test) or 0 (none), as in MatConvNet's `imdb.images.set`;
        None means that all samples are for training.

    >>> class Squares(Data):
    ...     def __len__(self):
    ...         return 10
    ...
    ...     def batch(self, indices, rng=None):
    ...         x = np.asarray(indices, np.float32).reshape(-1, 1, 1, 1)
    ...         return {"x": x, "y": x**2}
    >>> data = Squares([1] * 8 + [2] * 2)
    >>> data.train, data.val, data.test
    (array([0, 1, 2, 3, 4, 5, 6, 7]), array([8, 9]), array([], dtype=int64))
    >>> data.batch([3])["y"].item()
    9.0
    """

    sets: Any = None

    def __init__(self, sets: Any = None) -> None:
        sets = np.ones(len(self), np.uint8) if sets is None else np.asarray(sets).ravel()
        if sets.shape != (len(self),):
            raise ShapeError(f"sets has one number per sample, {len(self)}. Received: {len(sets)}")
        wrong = np.setdiff1d(sets, (0, 1, 2, 3)) if sets.dtype.kind in "biuf" else sets
        if len(wrong):
            raise OptionError(
                f"sets are 1 (train), 2 (val), 3 (test) or 0 (none). Received: {shorten(wrong.tolist())}"
            )
        self.sets = sets.astype(np.uint8)

    def __len__(self) -> int:
        raise NotImplementedError

    def batch(self, indices: Any, rng: np.random.Generator | None = None) -> Batch:
        """The samples with these numbers, as arrays by variable name.

        `rng` is what random changes of training samples are drawn from, so that they repeat; None, in
        validation, means no random changes.
        """
        raise NotImplementedError

    @property
    def train(self) -> np.ndarray:
        """Numbers of the training samples."""
        return self._of_set(1)

    @property
    def val(self) -> np.ndarray:
        """Numbers of the validation samples."""
        return self._of_set(2)

    @property
    def test(self) -> np.ndarray:
        """Numbers of the test samples."""
        return self._of_set(3)

    def _of_set(self, number: int) -> np.ndarray:
        sets = np.ones(len(self)) if self.sets is None else self.sets
        return np.flatnonzero(sets == number)

    def map(self, function: Callable[[Batch, np.random.Generator | None], Batch]) -> Mapped:
        """These samples, with `function(batch, rng)` applied to every batch.

        >>> data = Arrays({"x": np.arange(4.0)}).map(lambda batch, rng: {"x": 2 * batch["x"]})
        >>> data.batch([1, 3])["x"]
        array([2., 6.])
        """
        return Mapped(self, function)


class Mapped(Data):
    """The samples of `data`, changed by `function(batch, rng)`; see `Data.map`."""

    def __init__(self, data: Data, function: Callable[[Batch, np.random.Generator | None], Batch]) -> None:
        self.data, self.function = data, function
        super().__init__(data.sets)

    def __len__(self) -> int:
        return len(self.data)

    def batch(self, indices: Any, rng: np.random.Generator | None = None) -> Batch:
        """The batch of the underlying data, changed."""
        return self.function(self.data.batch(indices, rng), rng)


class Arrays(Data):
    """Samples in memory: arrays by variable name, whose first axis counts the samples.

    >>> images, labels = np.zeros((6, 1, 8, 8), np.float32), np.arange(6)
    >>> data = Arrays({"image": images, "label": labels}, sets=[1, 1, 1, 1, 2, 2])
    >>> batch = data.batch([4, 1])
    >>> batch["image"].shape, batch["label"]
    ((2, 1, 8, 8), array([4, 1]))
    """

    def __init__(self, arrays: Mapping[str, Any], sets: Any = None) -> None:
        self.arrays = {name: _array(name, array) for name, array in arrays.items()}
        lengths = {name: len(array) if array.ndim else None for name, array in self.arrays.items()}
        if len(set(lengths.values())) != 1 or None in lengths.values():
            raise ShapeError(f"Arrays of one length, the number of samples, are needed. Received: {lengths}")
        super().__init__(sets)

    def __len__(self) -> int:
        return len(next(iter(self.arrays.values())))

    def batch(self, indices: Any, rng: np.random.Generator | None = None) -> Batch:
        """The rows `indices` of every array."""
        samples = sample_numbers(indices, len(self))
        return {name: array[samples] for name, array in self.arrays.items()}


def sample_numbers(indices: Any, count: int) -> np.ndarray:
    """`indices` as an array of numbers below `count`; DataError if there are no such samples.

    >>> sample_numbers(range(2), 6)
    array([0, 1])
    """
    samples = np.asarray(indices)
    if samples.ndim != 1 or (samples.size and samples.dtype.kind not in "iu"):
        raise OptionError(f"indices are numbers of samples, in one dimension. Received: {indices!r:.200}")
    wrong = samples[(samples < 0) | (samples >= count)]
    if len(wrong):
        raise DataError(f"there are {count} samples, from 0. Received: {shorten(wrong.tolist())}")
    return samples.astype(np.int64)


def two_names(names: Sequence[str]) -> tuple[str, str]:
    """`names`, if they are those of two variables; else OptionError."""
    if isinstance(names, str) or len(names) != 2 or names[0] == names[1]:
        raise OptionError(f"names are two variables, for images and labels. Received: {names!r:.200}")
    return names[0], names[1]


def _array(name: str, array: Any) -> np.ndarray:
    try:
        return np.asarray(array)
    except ValueError as error:  # lists of different lengths
        raise ShapeError(f"{name!r} should be an array. {error}") from error
    except TypeError as error:
        raise OptionError(
            f"{name!r} should be an array of NumPy: batches are taken here, and brought to a device ahead "
            f"of their use. Received: {type(array).__name__} ({error})"
        ) from error
