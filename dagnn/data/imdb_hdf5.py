"""Image databases in HDF5 files, read sample by sample."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from typing import Any

import h5py
import numpy as np

from ..errors import FileFormatError, shorten

KEPT = 32 << 20  # bytes up to which an array is read once and kept in memory
ALLOWANCE = 32 << 20  # bytes a sample, or meta, may claim beyond the length of the file


class Hdf5Images:
    """An open file with the group `images`."""

    centred = False

    def __init__(self, path: str) -> None:
        self.path = path
        if not h5py.is_hdf5(path):
            raise FileFormatError(f"{path}: expected an image database, which is an HDF5 file or a MAT-file")
        with self.reading("it"):
            self._h5 = h5py.File(path, "r")
            self._length = self._size()

    def close(self) -> None:
        self._h5.close()

    # ---- samples

    def rows(self, name: str) -> np.ndarray | _Stored:
        """What is stored for every sample under this name in `images`."""
        with self.reading(f"images/{name}"):
            dataset = self._dataset(name)
            if dataset is None:
                images = _member(self._h5, "images")
                group = images if isinstance(images, h5py.Group) else self._h5
                raise FileFormatError(f"it is missing. Found: {shorten(group) or 'nothing'} in {group.name}")
            if dataset.dtype.kind not in "biuf" or not dataset.ndim:
                raise FileFormatError(f"expected numbers (N, ...), found {dataset.shape} {dataset.dtype}")
            self._check_storage(dataset)
            if dataset.nbytes <= KEPT:
                return np.asarray(dataset[()], dataset.dtype.newbyteorder("="))
            self._afford(max(len(dataset), dataset.nbytes // len(dataset)))
            return _Stored(self, name, dataset)

    def sets(self) -> np.ndarray | None:
        return self._whole("set")

    def data_mean(self) -> np.ndarray | None:
        mean = self._whole("data_mean")
        return None if mean is None else mean.astype(np.float32)

    def _whole(self, name: str) -> np.ndarray | None:
        with self.reading(f"images/{name}"):
            dataset = self._dataset(name)
            if dataset is None:
                return None
            if dataset.dtype.kind not in "biuf":
                raise FileFormatError(f"expected numbers, found {dataset.dtype}")
            self._afford(dataset.nbytes)
            self._check_storage(dataset)
            return np.asarray(dataset[()])

    # ---- meta

    def meta(self) -> dict[str, Any]:
        """Texts, JSON and numbers by name, "a/b" in a group inside it; what is none of these is left out."""
        datasets: dict[str, h5py.Dataset] = {}

        def add(name: str, node: h5py.Group | h5py.Dataset) -> None:
            if isinstance(node, h5py.Dataset) and node.shape is not None:
                datasets[name] = node

        with self.reading("meta"):
            meta = _member(self._h5, "meta")
            if isinstance(meta, h5py.Group):
                meta.visititems(add)  # every object once, however they are linked
        found: dict[str, Any] = {}
        for name, dataset in datasets.items():
            with self.reading(f"meta/{name}"):
                self._check_storage(dataset)
                self._afford(dataset.nbytes)
                if h5py.check_string_dtype(dataset.dtype):
                    found[name] = _value(dataset.asstr("utf-8", "replace")[()])
                elif dataset.dtype.kind in "biuf":
                    found[name] = dataset[()].item() if dataset.shape == () else dataset[()]
        return found

    # ---- the file

    @contextmanager
    def reading(self, what: str) -> Iterator[None]:
        """HDF5's errors, of all kinds, become FileFormatErrors that name the file and what was read."""
        try:
            yield
        except MemoryError:
            raise
        except FileFormatError as error:
            raise FileFormatError(f"{self.path}: {what}: {error}") from error.__cause__
        except Exception as error:
            raise FileFormatError(
                f"{self.path}: {what} cannot be read: {type(error).__name__}: {error}"
            ) from error

    def check_length(self) -> None:
        """HDF5 takes what lies behind the end of the file for zeros."""
        if (size := self._size()) < self._length:
            raise FileFormatError(
                f"the file was cut short since it was opened: {size} bytes of {self._length}"
            )

    def _size(self) -> int:
        return os.fstat(self._h5.id.get_vfd_handle()).st_size

    def _dataset(self, name: str) -> h5py.Dataset | None:
        """That in `images`."""
        dataset = _member(_member(self._h5, "images"), name)
        if dataset is not None and (not isinstance(dataset, h5py.Dataset) or dataset.shape is None):
            raise FileFormatError("expected a dataset, found a group or nothing in it")
        return dataset

    def _check_storage(self, dataset: h5py.Dataset) -> None:
        """Refuse what HDF5 would make up, as zeros, or fetch from other files."""
        layout = dataset.id.get_create_plist()
        if layout.get_layout() == h5py.h5d.VIRTUAL or layout.get_external_count():
            raise FileFormatError("expected data in the file itself, found them in others")
        if not dataset.size:
            return
        if layout.get_layout() == h5py.h5d.CONTIGUOUS:
            start = dataset.id.get_offset()
            if start is None or start + dataset.nbytes > self._length:
                raise FileFormatError(f"expected {dataset.nbytes} bytes of data, found fewer")
        elif dataset.chunks:
            count = prod(-(-n // c) for n, c in zip(dataset.shape, dataset.chunks, strict=True))
            if (found := dataset.id.get_num_chunks()) != count:
                raise FileFormatError(f"expected {count} chunks, found {found}: not all were written")

    def _afford(self, size: int) -> None:
        if size > self._length + ALLOWANCE:
            raise FileFormatError(f"expected at most {self._length + ALLOWANCE} bytes, found {size}")


def _member(group: Any, name: str) -> Any:
    """What has this name, if it lies in the group itself: links that lead elsewhere are not followed."""
    if not isinstance(group, h5py.Group) or "/" in name:
        return None
    return group[name] if isinstance(group.get(name, getlink=True), h5py.HardLink) else None


def _value(texts: Any) -> Any:
    """One text is JSON, if it can be, several are a list of texts."""
    if not isinstance(texts, str) and texts.size != 1:
        return texts.tolist()
    text = texts if isinstance(texts, str) else texts.item()
    try:
        return json.loads(text)
    except ValueError:
        return text if isinstance(texts, str) else texts.tolist()


class _Stored:
    """A dataset of which only the rows asked for are read."""

    def __init__(self, file: Hdf5Images, name: str, dataset: h5py.Dataset) -> None:
        self._file, self._name, self._dataset = file, name, dataset
        self.shape: tuple[int, ...] = dataset.shape

    def __getitem__(self, samples: np.ndarray) -> np.ndarray:
        """Run by run of neighbours: HDF5 is ten times slower when it is given a list of samples."""
        rows = np.empty((len(samples), *self.shape[1:]), self._dataset.dtype.newbyteorder("="))
        order = np.argsort(samples, kind="stable")
        ends = np.flatnonzero(np.diff(samples[order]) != 1) + 1
        with self._file.reading(f"images/{self._name} of the samples {shorten(samples.tolist(), most=8)}"):
            for run in np.split(order, ends) if len(order) else ():
                first = samples[run[0]]
                rows[run] = self._dataset[first : first + len(run)]
            self._file.check_length()
        return rows
