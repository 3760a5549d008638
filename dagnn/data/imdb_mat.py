"""MatConvNet's image databases: the struct `imdb` of a MAT-file, read into memory."""

from __future__ import annotations

from typing import Any

import numpy as np

from ..errors import FileFormatError, shorten
from ..io import mat
from ..io.mat_values import Opaque


class MatImages:
    """The struct `images` of a file, and `meta` beside it."""

    centred = True

    def __init__(self, path: str) -> None:
        self.path = path
        self._imdb = _find(mat.read(path), path)
        self._images: dict[str, Any] = self._imdb["images"]
        self._count = self._number_of_samples()

    def close(self) -> None:
        self._imdb, self._images = {}, {}

    def rows(self, name: str) -> np.ndarray:
        """What there is for every sample, (N, ...); of `labels`, classes from 0."""
        if name == "labels" and name not in self._images and "label" in self._images:
            name = "label"
        array = self._numbers(name)
        rows = _maps(array) if name == "data" else _by_sample(array, self._count)
        if rows is None:
            size = "H x W x C x N" if name == "data" else f"for N = {self._count} samples"
            raise FileFormatError(
                f"{self.path}: images.{name}: expected an array {size}, found {array.shape}"
            )
        return _classes(rows) if name in ("labels", "label") else rows

    def sets(self) -> np.ndarray | None:
        return self._numbers("set") if "set" in self._images else None

    def data_mean(self) -> np.ndarray | None:
        mean = self._images.get("data_mean")
        if mean is None or not np.size(mean):  # [] stands for none
            return None
        array = self._numbers("data_mean")
        maps = _maps(array)
        if maps is None or len(maps) != 1:
            raise FileFormatError(f"{self.path}: images.data_mean: expected an image, found {array.shape}")
        return np.ascontiguousarray(maps[0], np.float32)

    def meta(self) -> dict[str, Any]:
        """`imdb.meta`, and `imdb.classes` where databases of whole images have it."""
        from ..io.matconvnet import simplify

        meta = simplify(self._imdb.get("meta"))
        found = meta if isinstance(meta, dict) else {}
        if "classes" in self._imdb:
            found.setdefault("classes", simplify(self._imdb["classes"]))
        return found

    def _numbers(self, name: str) -> np.ndarray:
        value = self._images.get(name)
        if isinstance(value, np.ndarray) and value.dtype.kind in "biuf":
            return value
        if value is None:
            what = f"it is missing. Found: {shorten(self._images)}"
            if name == "data" and "name" in self._images:
                what += ". It names files of images, which dagnn.data.Images reads"
        else:
            what = f"expected numbers, found {_kind(value)}"
        raise FileFormatError(f"{self.path}: images.{name}: {what}")

    def _number_of_samples(self) -> int:
        """Without it other sizes cannot be told, for MATLAB drops ones at the end."""
        data = self._images.get("data")
        if isinstance(data, np.ndarray):
            return data.shape[3] if data.ndim > 3 else 1
        return next(
            (np.size(self._images[name]) for name in ("set", "labels", "label") if name in self._images), 1
        )


def _find(variables: dict[str, Any], path: str) -> dict[str, Any]:
    """The struct with the field `images`: the variables themselves, or one of them."""
    for struct in (variables, *variables.values()):
        if isinstance(struct, dict) and isinstance(struct.get("images"), dict):
            return struct
    found = ", ".join(f"{name} ({_kind(value)})" for name, value in list(variables.items())[:8])
    raise FileFormatError(
        f"{path}: no image database: the struct images, with data, labels and set, is missing. "
        f"Found: {found or 'nothing'}"
    )


def _kind(value: Any) -> str:
    if isinstance(value, Opaque):
        return f"a MATLAB {value.class_name or value.kind}"
    if isinstance(value, dict):
        return "struct"
    if isinstance(value, np.ndarray):
        return f"cell {value.shape}" if value.dtype == object else f"{value.shape} {value.dtype}"
    return "text" if isinstance(value, str | list) else "struct array"


def _maps(array: np.ndarray) -> np.ndarray | None:
    """H x W x C x N as (N, C, H, W), whichever ones at the end MATLAB dropped."""
    if array.ndim > 4:
        return None
    return array.reshape(array.shape + (1,) * (4 - array.ndim)).transpose(3, 2, 0, 1)


def _by_sample(array: np.ndarray, count: int) -> np.ndarray | None:
    """Vectors as (N,), maps as (N, C, H, W), all else with the last axis, the samples', in front."""
    if array.size == count == max(array.shape):
        return array.reshape(-1)
    if array.ndim == 2 and array.shape[-1] == count:
        return array.T
    if array.ndim <= 4 and (array.ndim == 4 or count == 1):
        maps = _maps(array)
        return maps if maps is not None and len(maps) == count else None
    return np.moveaxis(array, -1, 0) if array.shape[-1] == count else None


def _classes(labels: np.ndarray) -> np.ndarray:
    """Classes from 1, 0 to ignore, as classes from 0, -1 to ignore; what is no classes stays as it is."""
    channels = labels.shape[1] if labels.ndim > 1 else 1
    with np.errstate(invalid="ignore"):
        whole = ((labels >= 0) & (labels < 2**53) & (labels == np.floor(labels))).all()
    if channels > 1 or not whole:
        return labels
    narrow = labels.dtype.kind in "bu" and labels.dtype.itemsize < 8
    return labels.astype(np.promote_types(labels.dtype, np.int8) if narrow else np.int64) - 1
