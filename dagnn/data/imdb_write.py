"""Writing image databases, all of one or nothing."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from contextlib import ExitStack
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DataError, DTypeError, OptionError, ShapeError
from ..io.atomic import replacing
from .imdb import mean_for
from .source import Arrays

if TYPE_CHECKING:
    import h5py

CHUNK = 4096  # bytes, a page of a disk


def write_imdb(
    path: str | os.PathLike[str],
    data: Any,
    labels: Any = None,
    sets: Any = None,
    *,
    data_mean: Any = None,
    meta: Mapping[str, Any] | None = None,
    **others: Any,
) -> None:
    """Write an image database in HDF5 for `Imdb`, all of it or nothing; see `ImdbWriter.append`.

    >>> import tempfile
    >>> from dagnn.data import Imdb
    >>> path = tempfile.mkdtemp() + "/imdb.h5"
    >>> write_imdb(path, np.zeros((2, 3, 8, 8), np.uint8), [0, 1], boxes=[[0, 0, 4, 4], [1, 1, 6, 6]])
    >>> with Imdb(path, {"image": "data", "rois": "boxes"}) as imdb:
    ...     imdb.batch([1])["rois"]
    array([[1, 1, 6, 6]])
    """
    with ImdbWriter(path, data_mean=data_mean, meta=meta) as writer:
        writer.append(data, labels, 1 if sets is None else sets, **others)


class ImdbWriter:
    """Writes an image database in HDF5 piece by piece, for more data than fits into memory.

    The file takes its place at the end of the `with`, when it is complete; an error inside leaves what was
    there before. `data_mean` and `meta` can still be set until then.

    The file's chunks are single samples, or a few if these are smaller than 4 KiB: training reads samples in
    random order, and of each its whole chunk. Everything has checksums, so that damage is found by reading.

    Parameters
    ----------
    path : of the file, which is replaced if it exists.
    data_mean : an image (C, H, W), a colour (C, 1, 1) or (C,) or a number, which `Imdb` subtracts.
    meta : values by name that JSON can hold; arrays become lists. `classes` are the names of the classes.

    >>> import tempfile
    >>> from dagnn.data import Imdb
    >>> path = tempfile.mkdtemp() + "/imdb.h5"
    >>> with ImdbWriter(path, meta={"classes": ["even", "odd"]}) as writer:
    ...     for k in range(5):
    ...         writer.append(np.full((2, 1, 4, 4), k, np.uint8), [k % 2, k % 2], sets=1 if k < 4 else 2)
    >>> with Imdb(path) as imdb:
    ...     len(imdb), imdb.val, imdb.batch([7, 0])["label"]
    (10, array([8, 9]), array([1, 0]))
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        data_mean: Any = None,
        meta: Mapping[str, Any] | None = None,
    ) -> None:
        self.path = os.fspath(path)
        self.data_mean = data_mean
        self.meta = dict(meta or {})
        self._stack = ExitStack()
        self._images: h5py.Group | None = None

    def __enter__(self) -> ImdbWriter:
        import h5py

        _texts(self.meta)
        with ExitStack() as stack:
            file = stack.enter_context(replacing(self.path))
            # of this version of the format, all that HDF5 itself notes down has checksums too
            h5 = stack.enter_context(h5py.File(file, "w", libver=("v110", "v110")))
            self._images = h5.create_group("images")
            stack.push(self._finish)
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> bool | None:
        return self._stack.__exit__(*error)

    def append(self, images: Any, labels: Any = None, sets: Any = 1, **others: Any) -> None:
        """Add samples.

        Parameters
        ----------
        images : (n, C, H, W), with the same C, H, W and dtype each time; float64 is stored as float32.
        labels : (n,) or (n, ...), 0-based, negative to ignore; None if there are none.
        sets : 1 (train), 2 (val), 3 (test) or 0 (none), one number or (n,).
        others : further numbers (n, ...) by name.

        Raises ShapeError, DTypeError or OptionError for samples that do not go with those before, and adds
        none of them.
        """
        if self._images is None:
            raise OptionError("samples are appended inside the `with` of an ImdbWriter")
        columns = _columns(images, labels, sets, others)
        if not len(columns["data"]):  # an empty list has no type worth keeping
            return
        if len(self._images):
            _check_alike(columns, self._images)
        else:
            self._check_mean(columns["data"].shape)
            for name, array in columns.items():
                _create(self._images, name, array)
        for name, array in columns.items():
            dataset = self._images[name]
            start = len(dataset)
            dataset.resize(start + len(array), axis=0)
            dataset[start:] = array

    def _check_mean(self, shape: tuple[int, ...]) -> np.ndarray | None:
        return None if self.data_mean is None else mean_for(self.data_mean, shape[1:])

    def _finish(self, kind: Any, error: Any, trace: Any) -> None:
        """Add what is there once; after an error, nothing."""
        images, self._images = self._images, None
        if kind is not None or images is None:
            return
        if not len(images):
            raise DataError(f"{self.path}: no samples were appended, so there is no database")
        if (mean := self._check_mean(images["data"].shape)) is not None:
            images.create_dataset("data_mean", data=mean, chunks=mean.shape, fletcher32=True)
        for name, text in _texts(self.meta).items():
            images.file.create_dataset(
                f"meta/{name}", data=np.array([text], "S"), chunks=(1,), fletcher32=True
            )


def _columns(images: Any, labels: Any, sets: Any, others: dict[str, Any]) -> dict[str, np.ndarray]:
    """Arrays to append, by name."""
    if wrong := [n for n in others if not n.isidentifier() or n in ("data", "set", "data_mean")]:
        raise OptionError(f"further arrays need names of their own. Received: {wrong}")
    data = np.asarray(images)
    if data.ndim != 4:
        raise ShapeError(f"images are (n, C, H, W). Received: {data.shape}")
    if data.dtype.kind == "f" and data.itemsize > 4:
        data = data.astype(np.float32)
    given = {"data": data, **({} if labels is None else {"labels": labels}), **others}
    piece = Arrays(given, np.full(len(data), sets) if np.ndim(sets) == 0 else sets)
    columns = {**piece.arrays, "set": piece.sets}
    for name, array in columns.items():
        if array.dtype.kind not in "biuf":
            raise DTypeError(f"{name} should be numbers. Received: {array.dtype}")
        if 0 in array.shape[1:]:
            raise ShapeError(f"{name} has nothing in a sample. Received: {array.shape}")
    return columns


def _check_alike(columns: dict[str, np.ndarray], images: h5py.Group) -> None:
    """Whether these can be added to the datasets there are."""
    if set(columns) != set(images):
        raise ShapeError(f"the samples before have {sorted(images)}. Received: {sorted(columns)}")
    for name, array in columns.items():
        shape, dtype = images[name].shape, images[name].dtype
        if array.shape[1:] != shape[1:]:
            raise ShapeError(f"a sample's {name} before was {shape[1:]}. Received: {array.shape[1:]}")
        if not np.can_cast(array.dtype, dtype):
            raise DTypeError(f"{name} before was {dtype}. Received: {array.dtype}")


def _create(images: h5py.Group, name: str, array: np.ndarray) -> None:
    """A dataset for rows like those of `array`, still empty."""
    row = array.shape[1:]
    rows = max(1, CHUNK // (prod(row) * array.itemsize))
    images.create_dataset(
        name, (0, *row), array.dtype, maxshape=(None, *row), chunks=(rows, *row), fletcher32=True
    )


def _texts(meta: Mapping[str, Any]) -> dict[str, bytes]:
    """JSON by name."""
    found = {}
    for name, value in meta.items():
        if not isinstance(name, str) or not name.isprintable() or "/" in name or name in ("", ".", ".."):
            raise OptionError(f"names in meta are words without slashes. Received: {name!r}")
        try:
            found[name] = json.dumps(value, default=_plain).encode()
        except (TypeError, ValueError, RecursionError) as error:
            raise OptionError(f"meta[{name!r}] is no value for JSON: {error}") from error
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, np.ndarray | np.generic):
        return value.tolist()
    raise TypeError(f"a {type(value).__name__}")
