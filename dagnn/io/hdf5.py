"""The HDF5 file around a network: a sealed file with one dataset of JSON and one for each array.

The first 512 bytes, HDF5's user block, are the seal: schema, SHA-256 and length of the whole file. It is
checked before HDF5 sees the file, for libhdf5 trusts its own bookkeeping: pointed astray by a flipped bit,
it may return other data, allocate terabytes or crash.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from io import BufferedRandom, BufferedReader
from typing import TYPE_CHECKING, Any

import h5py
import numpy as np

from ..errors import FileFormatError, MissingPackageError
from .atomic import replacing
from .structure import SCHEMA, build, check_schema, decode_extra, describe, named, parse
from .values import stored_as

if TYPE_CHECKING:
    from ..net import DagNN
    from . import Path

BLOCK = 512
STARTS = {b"MATLAB": "a MATLAB file", b"\x89HDF": "an HDF5 file, but not one of dagnn's"}


def save(net: DagNN, path: Path, layers: Mapping[str, Any] | None, extra: Mapping[str, Any] | None) -> None:
    """See `dagnn.save`."""
    text, arrays = describe(net, layers, extra)
    with replacing(path) as file:
        with h5py.File(file, "w", userblock_size=BLOCK, libver="earliest") as h5:
            h5.create_dataset("structure", data=np.bytes_(text))
            for name, array in arrays.items():
                h5.create_dataset(name, data=array)
        seal(file)


def load(path: Path, layers: Mapping[str, Any] | None) -> DagNN:
    """See `dagnn.load`."""
    known = named(layers)
    with _opened(path) as reader:
        return build(reader.structure, reader.read, known)


def load_extra(path: Path) -> dict[str, Any]:
    """See `dagnn.io.load_extra`."""
    with _opened(path) as reader:
        return decode_extra(reader.structure, reader.read)


# ---- the seal


def seal(file: BufferedRandom) -> None:
    """Write the seal of an open file: the last step of writing one, or of changing one by hand."""
    block = _seal(SCHEMA, *_measure(file))
    file.seek(0)
    file.write(block)


def check_seal(file: BufferedReader) -> None:
    """FileFormatError unless the file is what was written, to the last byte."""
    file.seek(0)
    block = file.read(BLOCK)
    if not (match := re.match(rb"dagnn network, schema ([0-9]{1,9})\n", block)):
        kind = next((what for start, what in STARTS.items() if block.startswith(start)), f"{block[:16]!r}")
        raise FileFormatError(f"this is not a dagnn file; it starts as {kind if block else 'an empty one'}")
    check_schema(int(match[1]))
    sha256, length = _measure(file)
    if (said := re.search(rb"length ([0-9]{1,18})\n", block)) and int(said[1]) != length:
        raise FileFormatError(f"the file is truncated or damaged: it has {length} bytes of {int(said[1])}")
    if block != _seal(int(match[1]), sha256, length):
        head = block[len(match[0]) :].partition(b"\n")[0]
        raise FileFormatError(
            f"the file is damaged: bytes {BLOCK} to {length} have SHA-256 {sha256}, "
            f"its head says {head[:80]!r}"
        )


def _seal(schema: int, sha256: str, length: int) -> bytes:
    text = f"dagnn network, schema {schema}\nsha256 {sha256}\nlength {length}\n"
    return text.encode("ascii").ljust(BLOCK, b"\0")


def _measure(file: BufferedReader | BufferedRandom) -> tuple[str, int]:
    """SHA-256 of what lies behind the block, and length of the file."""
    length = file.seek(0, os.SEEK_END)
    file.seek(BLOCK)
    return hashlib.file_digest(file, "sha256").hexdigest(), length


# ---- reading


@contextmanager
def _opened(path: Path) -> Iterator[_Reader]:
    with open(path, "rb") as file:
        try:
            check_seal(file)
            with h5py.File(file, "r") as h5:
                yield _Reader(h5, file.seek(0, os.SEEK_END))
        except (MemoryError, MissingPackageError):
            raise
        except FileFormatError as error:
            raise FileFormatError(f"{os.fspath(path)}: {error}") from error.__cause__
        except Exception as error:  # h5py may raise nearly anything on contents it does not expect
            name = type(error).__name__
            raise FileFormatError(f"{os.fspath(path)}: cannot be read: {name}: {error}") from error


class _Reader:
    """The structure and the arrays of an open file."""

    def __init__(self, h5: h5py.File, length: int) -> None:
        self._h5 = h5
        self._left = length  # every array is read once, so together they cannot be longer than the file
        text = self._dataset("structure")
        self._spend("structure", text.nbytes)
        if text.shape != () or text.dtype.kind != "S":
            raise FileFormatError(f"dataset 'structure' must be one string. Found: {text.shape} {text.dtype}")
        self.structure = parse(bytes(text[()]))

    def read(self, name: str, shape: tuple[int, ...], dtype: np.dtype, sha256: str) -> np.ndarray:
        dataset = self._dataset(name)
        base, axis = stored_as(dtype)
        expected = shape + axis
        if (dataset.shape, dataset.dtype) != (expected, base):
            raise FileFormatError(
                f"dataset {name!r} should hold {expected} {base}. Found: {dataset.shape} {dataset.dtype}"
            )
        self._spend(name, dataset.nbytes)
        stored = np.empty(expected, base)
        if stored.size:
            dataset.read_direct(stored)
        found = hashlib.sha256(stored.data).hexdigest()
        if found != sha256:
            raise FileFormatError(
                f"dataset {name!r} is damaged: its SHA-256 should be {sha256[:64]!r}. Found: {found}"
            )
        return stored.reshape(shape + (axis or (1,))).view(dtype).reshape(shape)

    def _spend(self, name: str, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise FileFormatError(f"dataset {name!r} has {size} bytes, more than there is in the file")

    def _dataset(self, name: str) -> h5py.Dataset:
        """The dataset, if it lies in this file in one piece: no soft links, other files or filters."""
        node: Any = self._h5
        for link in name.split("/"):
            here = node.get(link, getlink=True) if isinstance(node, h5py.Group) else None
            if not isinstance(here, h5py.HardLink):
                raise FileFormatError(f"dataset {name!r} is missing")
            node = node[link]
        if not isinstance(node, h5py.Dataset):
            raise FileFormatError(f"{name!r} should be a dataset. Found: a {type(node).__name__.lower()}")
        layout = node.id.get_create_plist()
        if layout.get_layout() != h5py.h5d.CONTIGUOUS or layout.get_external_count():
            raise FileFormatError(f"dataset {name!r} must lie in the file in one piece, uncompressed")
        return node
