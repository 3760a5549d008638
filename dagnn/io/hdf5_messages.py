"""What the object headers of an HDF5 file say: sizes, types, filters, as far as MATLAB writes them.

Sections of the "HDF5 File Format Specification 3.0" are cited.
"""

from __future__ import annotations

import zlib
from dataclasses import dataclass
from math import prod

import numpy as np

from ..errors import FileFormatError
from .mat_values import MOST_DIMENSIONS, WIDEST, span

DEFLATE, SHUFFLE = 1, 2
# size of a number: IEEE 754's places and widths of its parts, and the bias
FLOATS = {4: (0, 32, 23, 8, 0, 23, 127), 8: (0, 64, 52, 11, 0, 52, 1023)}


class Cursor:
    """A run of bytes used front to back."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    @property
    def left(self) -> int:
        return len(self.data) - self.at

    def take(self, size: int) -> bytes:
        if size > self.left:
            raise FileFormatError(f"expected {size} more bytes, found {self.left}")
        self.at += size
        return self.data[self.at - size : self.at]

    def number(self, size: int) -> int:
        return int.from_bytes(self.take(size), "little")

    def numbers(self, size: int, count: int) -> tuple[int, ...]:
        return tuple(self.number(size) for _ in range(count))

    def expect(self, data: bytes, what: str) -> None:
        if (found := self.take(len(data))) != data:
            raise FileFormatError(f"expected {what} ({data!r}), found {found!r}")


@dataclass(frozen=True)
class Type:
    """Of elements; `kind` is "number", "text", "reference" or "list" (of bytes that lie elsewhere)."""

    kind: str
    dtype: np.dtype


@dataclass(frozen=True)
class Layout:
    """Where data are: `data` themselves, the `address` of them or, given `chunk`, of a B-tree of chunks."""

    address: int = 0
    data: bytes | None = None
    chunk: tuple[int, ...] | None = None  # the size of a chunk and the bytes of an element


def dataspace(message: Cursor) -> tuple[int, ...] | None:
    """A shape (IV.A.2.b); None for a null dataspace."""
    version, rank, _, kind = message.numbers(1, 4)
    if version not in (1, 2) or rank > MOST_DIMENSIONS:
        raise FileFormatError(f"expected a dataspace 1 or 2, found {version} of {rank} dimensions")
    if version == 1:
        message.take(4)
    elif kind == 2:
        return None
    shape = message.numbers(8, rank)
    if span(shape) > WIDEST:
        raise FileFormatError(f"expected the size of an array, found {str(shape)[:200]}")
    return shape


def datatype(message: Cursor) -> Type | None:
    """A type (IV.A.2.d); None for one MATLAB does not use."""
    kind, bits, size = message.number(1) & 0x0F, message.number(3), message.number(4)
    order = "<>"[bits & 1]
    if kind == 0 and size in (1, 2, 4, 8):
        if message.numbers(2, 2) != (0, 8 * size):
            raise FileFormatError("expected integers without padding, found others")
        return Type("number", np.dtype(f"{order}{'i' if bits & 8 else 'u'}{size}"))
    if kind == 1 and size in FLOATS:
        if (*message.numbers(2, 2), *message.numbers(1, 4), message.number(4)) != FLOATS[size]:
            raise FileFormatError("expected numbers of IEEE 754, found others")
        return Type("number", np.dtype(f"{order}f{size}"))
    if kind == 3 and 0 < size < 1 << 16:
        return Type("text", np.dtype(f"S{size}"))
    if kind == 6 and bits & 0xFFFF == 2:
        return _complex(message, size)
    if kind == 7 and size == 8 and not bits & 0xF:
        return Type("reference", np.dtype("<u8"))
    if kind == 9 and size == 16:
        base = datatype(message)
        return Type("list", np.dtype("V16")) if base and base.dtype.itemsize == 1 else None
    return None


def _complex(message: Cursor, size: int) -> Type | None:
    """A compound of `real` and `imag`."""
    parts = []
    for name, place in ((b"real\0\0\0\0", 0), (b"imag\0\0\0\0", size // 2)):
        if message.take(8) != name or message.number(4) != place:
            return None
        message.take(28)
        parts.append(datatype(message))
    first, second = parts
    if first is None or first != second or first.kind != "number" or 2 * first.dtype.itemsize != size:
        return None
    return Type("number", np.dtype([("real", first.dtype), ("imag", first.dtype)]))


def layout(message: Cursor) -> Layout:
    """Versions 1 to 3 (IV.A.2.i)."""
    version, second, third = message.number(1), message.number(1), 0
    if version in (1, 2):
        rank, kind = second, message.number(1)
        message.take(5)
        address = message.number(8) if kind else 0
        sizes = message.numbers(4, rank)
        third = 4
    elif version == 3:
        kind, third = second, 2
        rank = message.number(1) if kind == 2 else 0
        address = message.number(8) if kind else 0
        sizes = message.numbers(4, rank)
    if version not in (1, 2, 3) or kind > 2:
        raise FileFormatError(f"expected a data layout of version 1 to 3, found {version}")
    if kind == 0:
        return Layout(data=message.take(message.number(third)))
    return Layout(address, chunk=sizes if kind == 2 else None)


def filters(message: Cursor) -> tuple[int, ...]:
    """What was done to chunks, in this order (IV.A.2.l)."""
    version, count = message.numbers(1, 2)
    message.take(6)
    found = []
    for _ in range(count if version == 1 else 0):
        kind, name, _, values = message.numbers(2, 4)
        message.take(-(-name // 8) * 8 + 4 * (values + values % 2))
        found.append(kind)
    if version != 1 or not set(found) <= {DEFLATE, SHUFFLE}:
        raise FileFormatError(f"expected deflated chunks, found filters {found} of version {version}")
    return tuple(found)


def unfilter(
    data: bytes, done: tuple[int, ...], mask: int, shape: tuple[int, ...], dtype: np.dtype
) -> np.ndarray:
    """A chunk as it was before the filters that `mask` does not except."""
    size = prod(shape) * dtype.itemsize
    for k, kind in reversed(list(enumerate(done))):
        if mask >> k & 1:
            continue
        if kind == DEFLATE:
            data = _inflate(data, size)
        else:
            whole = len(data) // dtype.itemsize * dtype.itemsize
            shuffled = np.frombuffer(data, np.uint8, whole).reshape(dtype.itemsize, -1)
            data = shuffled.T.tobytes() + data[whole:]
    if len(data) != size:
        raise FileFormatError(f"expected a chunk of {size} bytes, found {len(data)}")
    return np.frombuffer(data, dtype).reshape(shape)


def _inflate(data: bytes, size: int) -> bytes:
    inflater = zlib.decompressobj()
    try:
        found = inflater.decompress(data, size + 1)
    except zlib.error as error:
        raise FileFormatError(f"expected a deflated chunk, found damage: {error}") from error
    if not inflater.eof:
        raise FileFormatError(f"expected a deflated chunk of {size} bytes, found no end")
    return found
