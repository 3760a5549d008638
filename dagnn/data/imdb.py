"""Image databases, MatConvNet's `imdb`: HDF5 files that may be larger than memory, and MatConvNet's own."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np

from ..errors import DagnnError, DataError, FileFormatError, OptionError, ShapeError
from ..io import mat
from .source import Batch, Data, sample_numbers


class Rows(Protocol):
    """What is stored for every sample: an array, or a dataset of a file."""

    @property
    def shape(self) -> tuple[int, ...]: ...
    def __getitem__(self, samples: np.ndarray) -> np.ndarray: ...


class Contents(Protocol):
    """The `images` and `meta` of an open file."""

    centred: bool  # whether the data of such files usually have their mean subtracted already

    def rows(self, name: str) -> Rows: ...
    def sets(self) -> np.ndarray | None: ...
    def data_mean(self) -> np.ndarray | None: ...
    def meta(self) -> dict[str, Any]: ...
    def close(self) -> None: ...


class Imdb(Data):
    """Samples in an image database.

        HDF5               .mat                 what
        images/data        images.data          the images, (N, C, H, W); in MATLAB H x W x C x N
        images/labels      images.labels        (N,) classes, (N, 1, H, W) classes of pixels, or others
        images/set         images.set           1, 2, 3 for train, val, test; all train if it is missing
        images/data_mean   images.data_mean     optional: an image (C, H, W), colour (C, 1, 1) or (C,), number
        images/...         images....           anything else for every sample, numbers of any shape
        meta/...           meta                 optional: texts, JSON, arrays, such as `classes`

    Of an HDF5 file only the samples of a batch are read, and what is small once; it stays open until `close`,
    or the end of a `with`. Its labels are 0-based, negative to ignore. A .mat file is read into memory. Its
    labels count from 1, and 0 is ignored: they become 0-based, and -1; numbers that cannot be classes (some
    are negative or no whole numbers, or there are several channels) stay as they are.

    A batch has the images, of whatever type, as float32 in the units of the file, usually 0 to 255, less the
    mean; other floating numbers as float32, all else in its own type.

    Parameters
    ----------
    path : of a file as `write_imdb` and `ImdbWriter` write it, or of MatConvNet's imdb.mat.
    names : the variables that the images and labels are for; or a dict of what is in `images` by variable,
        `{"input": "data", "label": "labels", "rois": "boxes"}`.
    sets : used instead of the file's.
    subtract_mean : whether to subtract data_mean. None: if an HDF5 file has one, but not of a .mat file, for
        there it tells what was subtracted before saving, as in MatConvNet's cnn_mnist.

    `meta` is a dict, `classes` the list of their names or None, `data_mean` a float32 array or None.

    Raises FileFormatError for a file that is damaged, truncated, or no image database.

    >>> import tempfile
    >>> from dagnn.data import write_imdb
    >>> path = tempfile.mkdtemp() + "/imdb.h5"
    >>> images = np.full((4, 3, 8, 8), 200, np.uint8)
    >>> write_imdb(path, images, [0, 1, 1, 0], [1, 1, 1, 2], data_mean=[90, 100, 110],
    ...            meta={"classes": ["cat", "dog"]})
    >>> with Imdb(path) as imdb:
    ...     batch = imdb.batch(imdb.train)
    >>> batch["input"].shape, batch["input"][0, :, 0, 0], batch["label"], imdb.classes
    ((3, 3, 8, 8), array([110., 100.,  90.], dtype=float32), array([0, 1, 1]), ['cat', 'dog'])
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        names: Sequence[str] | Mapping[str, str] = ("input", "label"),
        sets: Any = None,
        *,
        subtract_mean: bool | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self.names = _by_variable(names)
        self._file: Contents | None = _open(self.path)
        try:
            self._rows = {name: self._file.rows(name) for name in self.names.values()}
            self._length = self._common_length()
            self._subtracts = not self._file.centred if subtract_mean is None else bool(subtract_mean)
            self.data_mean = self._mean(self._file.data_mean())
            self.meta = self._file.meta()
            self._set_sets(self._file.sets() if sets is None else sets, sets is None)
            if subtract_mean and self.data_mean is None:
                raise FileFormatError(f"{self.path}: images/data_mean is missing, so it can't be subtracted")
        except BaseException:
            self.close()
            raise

    def __len__(self) -> int:
        return self._length

    def __enter__(self) -> Imdb:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file; there are no batches from then on."""
        if self._file is not None:
            self._file.close()
        self._file, self._rows = None, {}

    @property
    def classes(self) -> list[str] | None:
        """Names of the classes, by label."""
        classes = self.meta.get("classes", self.meta.get("classes/name"))
        if isinstance(classes, dict):  # as in the meta of a network
            classes = classes.get("name")
        if isinstance(classes, list) and all(isinstance(name, str) for name in classes):
            return [name.strip() for name in classes]
        return None

    def batch(self, indices: Any, rng: np.random.Generator | None = None) -> Batch:
        """The samples with these numbers, in this order, as arrays by variable name.

        Raises DataError for numbers there are no samples for, FileFormatError if the file cannot be read.
        """
        if self._file is None:
            raise DataError(f"{self.path} was closed")
        samples = sample_numbers(indices, len(self))
        return {variable: self._part(name, samples) for variable, name in self.names.items()}

    def _part(self, name: str, samples: np.ndarray) -> np.ndarray:
        rows = self._rows[name][samples]
        floating = name == "data" or rows.dtype.kind == "f"
        rows = np.ascontiguousarray(rows, np.float32 if floating else None)
        if name == "data" and self._subtracts and self.data_mean is not None:
            rows -= self.data_mean
        return rows

    # ---- what the file must agree on

    def _common_length(self) -> int:
        shapes = {name: rows.shape for name, rows in self._rows.items()}
        if "data" in shapes and len(shapes["data"]) != 4:
            raise FileFormatError(f"{self.path}: images/data: expected (N, C, H, W), found {shapes['data']}")
        lengths = {shape[0] for shape in shapes.values()}
        if len(lengths) != 1:
            raise FileFormatError(f"{self.path}: images: expected as many samples of each, found {shapes}")
        return lengths.pop()

    def _mean(self, mean: np.ndarray | None) -> np.ndarray | None:
        if mean is None or not self._subtracts or "data" not in self._rows:
            return mean
        try:
            return mean_for(mean, self._rows["data"].shape[1:])
        except ShapeError as error:
            raise FileFormatError(f"{self.path}: {error}") from error

    def _set_sets(self, sets: Any, from_file: bool) -> None:
        try:
            super().__init__(sets)
        except DagnnError as error:
            if not from_file:
                raise
            raise FileFormatError(f"{self.path}: images/set: {error}") from error


def mean_for(mean: Any, shape: tuple[int, ...]) -> np.ndarray:
    """A mean as float32, in a shape that broadcasts to `shape`, an image's (C, H, W).

    >>> mean_for([1, 2, 3], (3, 8, 8)).shape
    (3, 1, 1)
    """
    try:
        array = np.asarray(mean, np.float32)
    except (TypeError, ValueError) as error:
        raise ShapeError(f"data_mean should be an array of numbers. Received: {mean!r:.200}") from error
    array = array.reshape((-1, 1, 1) if array.ndim == 1 else (1,) * (3 - array.ndim) + array.shape)
    if array.ndim > 3 or any(m not in (1, n) for m, n in zip(array.shape, shape, strict=True)):
        raise ShapeError(f"data_mean should fit images (C, H, W) = {shape}. Received: {np.shape(mean)}")
    return array


def _by_variable(names: Sequence[str] | Mapping[str, str]) -> dict[str, str]:
    """What is read from `images` for every variable."""
    if isinstance(names, Mapping):
        found = dict(names)
    elif isinstance(names, str) or len(set(names)) != 2 or len(names) != 2:
        found = {}
    else:
        found = dict(zip(names, ("data", "labels"), strict=True))
    if not found or not all(isinstance(text, str) for item in found.items() for text in item):
        raise OptionError(
            "names are the variables for images and labels, or a dict {variable: what is in images}. "
            f"Received: {names!r:.200}"
        )
    return found


def _open(path: str) -> Contents:
    if mat.is_mat(path):
        from .imdb_mat import MatImages

        return MatImages(path)
    from .imdb_hdf5 import Hdf5Images

    return Hdf5Images(path)
