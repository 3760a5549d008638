"""IDX files, the format of MNIST: an array of numbers behind a header of a few bytes."""

from __future__ import annotations

import os
import zlib
from gzip import BadGzipFile, GzipFile
from io import BufferedIOBase
from math import prod

import numpy as np

from ..errors import DTypeError, FileFormatError, ShapeError
from ..io.atomic import replacing

TYPES = {0x08: "u1", 0x09: "i1", 0x0B: "i2", 0x0C: "i4", 0x0D: "f4", 0x0E: "f8"}
GZIP = b"\x1f\x8b"
INFLATION = 1032  # no byte of a gzip file becomes more than this many
MOST_DIMENSIONS = 64  # of a NumPy array
PIECE = 1 << 20  # bytes read at a time


def read_idx(path: str | os.PathLike[str]) -> np.ndarray:
    """The array in an IDX file, which may be compressed by gzip.

    The file is a header of big-endian numbers, two bytes 0, a byte for the type (0x08 uint8, 0x09 int8,
    0x0B int16, 0x0C int32, 0x0D float32, 0x0E float64), a byte with the number of dimensions, the dimensions
    of four bytes each, and then the values, big-endian, the last dimension fastest (Y. LeCun, "The MNIST
    database of handwritten digits", section on the file format).

    Raises FileFormatError if the file is damaged, or shorter or longer than its header says.

    >>> import tempfile
    >>> path = tempfile.mkdtemp() + "/numbers-idx2-short.gz"
    >>> write_idx(path, np.array([[1, 2, 3], [4, 5, 6]], np.int16))
    >>> read_idx(path)
    array([[1, 2, 3],
           [4, 5, 6]], dtype=int16)
    """
    with open(path, "rb") as file:
        size = os.fstat(file.fileno()).st_size
        try:
            if not file.peek(2).startswith(GZIP):
                return _read(file, size)
            with GzipFile(fileobj=file) as stream:
                return _read(stream, INFLATION * size)
        except (EOFError, BadGzipFile, zlib.error) as error:
            raise FileFormatError(f"{os.fspath(path)}: its compression is damaged: {error}") from error
        except FileFormatError as error:
            error.prefix(os.fspath(path))
            raise


def write_idx(path: str | os.PathLike[str], array: np.ndarray) -> None:
    """Write an array as IDX, all of it or nothing; compressed by gzip if the name ends with ".gz".

    Raises DTypeError for a type the format doesn't have; see `read_idx` for those it has.
    """
    array = np.asarray(array)
    text = f"{array.dtype.kind}{array.dtype.itemsize}"
    code = next((code for code, there in TYPES.items() if there == text), None)
    if code is None:
        raise DTypeError(f"IDX has uint8, int8, int16, int32, float32 and float64. Received: {array.dtype}")
    if any(n >= 1 << 32 for n in array.shape):
        raise ShapeError(f"IDX has dimensions of less than 2**32. Received: {array.shape}")
    header = bytes((0, 0, code, array.ndim)) + np.array(array.shape, ">u4").tobytes()
    with replacing(path) as file:
        content = header + array.astype(f">{text}").tobytes()
        if os.fspath(path).endswith(".gz"):
            with GzipFile(filename="", fileobj=file, mode="wb", mtime=0) as stream:
                stream.write(content)
        else:
            file.write(content)


def _read(stream: BufferedIOBase, most: int) -> np.ndarray:
    """The array in a stream of at most `most` bytes."""
    start = stream.read(4)
    if len(start) < 4 or start[:2] != b"\0\0" or start[2] not in TYPES or start[3] > MOST_DIMENSIONS:
        raise FileFormatError(
            "an IDX file begins with two bytes 0, a type (8, 9 or 11 to 14) and the number of dimensions "
            f"(at most {MOST_DIMENSIONS}). Received: {list(start)}"
        )
    dtype, ndim = np.dtype(f">{TYPES[start[2]]}"), start[3]
    dimensions = stream.read(4 * ndim)
    if len(dimensions) < 4 * ndim:
        raise FileFormatError(f"the file ends among its {ndim} dimensions")
    shape = tuple(np.frombuffer(dimensions, ">u4").tolist())
    size = dtype.itemsize * prod(shape)
    announced = f"{size} bytes should follow the header, {dtype.newbyteorder('=')} of shape {shape}"
    most -= 4 + 4 * ndim
    if size > most:  # nothing is allocated for what cannot be there
        raise FileFormatError(f"{announced}, and there are no more than {most}")
    content = _take(stream, size + 1)
    if len(content) != size:
        there = f"only {len(content)}" if len(content) < size else "more"
        raise FileFormatError(f"{announced}, and there are {there}")
    try:
        array = np.frombuffer(content, dtype).reshape(shape)
    except ValueError as error:  # no values, but dimensions whose product is too large
        raise FileFormatError(f"shape {shape} is too large") from error
    return array.astype(dtype.newbyteorder("="), copy=False)


def _take(stream: BufferedIOBase, size: int) -> bytearray:
    """`size` bytes, or all there are if they are fewer."""
    content = bytearray()
    while piece := stream.read(min(PIECE, size - len(content))):
        content += piece
    return content
