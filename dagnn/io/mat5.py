"""MAT-files of MATLAB 5 to 7.2 (`save -v6`, `save -v7`): bytes to plain values.

Not scipy.io.loadmat, which allocates the sizes a file claims before it looks whether the bytes are there,
returns numbers in the types they happen to be stored in, and drops the classes of what it cannot represent.

A file is 128 bytes of header and then elements: a tag (type, number of bytes), data, padding to 8 bytes. A
variable is an element of type MATRIX, maybe inside one of type COMPRESSED; a matrix consists of elements
(flags, size, name, data), some of them matrices. "MAT-File Format" by The MathWorks tells all but classes 16
and 17.
"""

from __future__ import annotations

import struct
from math import prod
from typing import BinaryIO

import numpy as np

from ..errors import FileFormatError
from .mat5_stream import Stream, inflated, stored
from .mat_values import CLASSES, Reading, Value, cast, cell, complex_of, distinct, rows_of, true_shape

HEADER = 128
INT8, UINT8, UINT16, INT32, UINT32, MATRIX, COMPRESSED, UTF8, UTF16, UTF32 = 1, 2, 4, 5, 6, 14, 15, 16, 17, 18
NUMBERS = {1: "i1", 2: "u1", 3: "i2", 4: "u2", 5: "i4", 6: "u4", 7: "f4", 9: "f8", 12: "i8", 13: "u8"}
ENCODINGS = {  # of characters
    INT8: "latin-1",
    UINT8: "latin-1",
    UTF8: "utf-8",
    UINT16: "utf-16",
    UTF16: "utf-16",
    UTF32: "utf-32",
}

CELL, STRUCT, OBJECT, CHAR, SPARSE, DOUBLE, FUNCTION, OPAQUE = 1, 2, 3, 4, 5, 6, 16, 17
NUMERIC = dict(enumerate((name for name in CLASSES if name != "logical"), DOUBLE))  # in this order
COMPLEX_FLAG, LOGICAL_FLAG = 0x800, 0x200

EMPTY = np.zeros((0, 0))  # one for all matrices without a byte, of which a file may have many
EMPTY.flags.writeable = False


class Reader(Reading):
    """The variables of an open file of `length` bytes, little-endian ("<") or big (">")."""

    def __init__(self, file: BinaryIO, length: int, order: str) -> None:
        super().__init__(length)
        self._file, self._length, self._order = file, length, order
        self._codec = {"<": "le", ">": "be"}[order]
        self._stream = Stream(iter(()))
        self._two = struct.Struct(order + "II")
        self._last = 0  # the second of the two integers read last

    @property
    def where(self) -> str:
        return self._stream.where

    def variables(self) -> dict[str, Value]:
        """All of them by name."""
        found: dict[str, Value] = {}
        at = HEADER
        while at < self._length:
            self._stream = Stream(stored(self._file, at, self._length - at), at)
            kind, size = self._integer_pair()
            at += 8
            if size > self._length - at:
                raise FileFormatError(f"expected a variable of {size} bytes, found {self._length - at}")
            if kind == COMPRESSED:
                label = f" of what is compressed at byte {at}"
                self._stream = Stream(inflated(self._file, at, size), 0, label)
                kind, inner = self._integer_pair()
            else:
                inner = size
            if kind != MATRIX:
                raise FileFormatError(f"expected a variable (type {MATRIX}), found type {kind}")
            self._variable(found, self._stream.position + inner)
            at += size
        return found

    def _variable(self, found: dict[str, Value], end: int) -> None:
        flags, shape, name = self._head(end)
        if name:  # MATLAB's own notes for function handles have none
            self.trail = [name]
            found[name] = self._content(flags, shape, end)
        self._stream.finish(end)
        self.trail = []

    # ---- matrices

    def _matrix(self, outer: int) -> Value:
        """The matrix that begins here, inside one that ends at byte `outer`."""
        kind, size, _ = self._tag(outer)
        if kind != MATRIX:
            raise FileFormatError(f"expected a matrix (type {MATRIX}), found type {kind}")
        if size == 0:
            return EMPTY
        end = self._stream.position + size
        flags, shape, _ = self._head(end)
        value = self._content(flags, shape, end)
        self._stream.skip(end - self._stream.position)
        return value

    def _head(self, end: int) -> tuple[int, tuple[int, ...], str]:
        """Flags with class, size and name of the matrix that ends at byte `end`."""
        kind, data = self._element(end, 8)
        if kind != UINT32 or len(data) != 8:
            raise FileFormatError(f"expected flags, found {len(data)} bytes of type {kind}")
        flags = struct.unpack_from(self._order + "I", data)[0]
        shape = (1, 1) if flags & 0xFF == OPAQUE else true_shape(self._integers(end))
        return flags, shape, self._name(end)

    def _content(self, flags: int, shape: tuple[int, ...], end: int) -> Value:
        kind = flags & 0xFF
        if kind in NUMERIC:
            return self._numeric(NUMERIC[kind], flags, shape, end)
        if kind == CHAR:
            return self._char(shape, end)
        if kind == CELL:
            return self._cell(shape, end)
        if kind == STRUCT:
            return self._struct(shape, end)
        if kind == OBJECT:
            return self.opaque("object", self._name(end), lambda: self._struct(shape, end))
        if kind == SPARSE:
            return self._sparse(flags, shape, end)
        if kind == FUNCTION:
            return self.opaque("function", "function_handle", lambda: self.inner("", self._matrix, end))
        if kind == OPAQUE:
            self._name(end)  # the system, MCOS or java
            return self.opaque("opaque", self._name(end), lambda: self.inner("", self._matrix, end))
        return self.opaque("unknown", f"class {kind}")

    def _numeric(self, name: str, flags: int, shape: tuple[int, ...], end: int) -> np.ndarray:
        dtype = CLASSES["logical" if flags & LOGICAL_FLAG else name]
        array = cast(self._numbers(prod(shape), end), dtype)
        if flags & COMPLEX_FLAG:
            array = complex_of(array, cast(self._numbers(prod(shape), end), dtype))
        return array.reshape(shape, order="F")

    def _char(self, shape: tuple[int, ...], end: int) -> str | list[str]:
        kind, data = self._element(end)
        if kind not in ENCODINGS:
            raise FileFormatError(f"expected characters, found type {kind}")
        if kind in (UINT16, UTF16):
            whole = len(data) // 2 * 2
            text = data[:whole].decode(f"utf-16-{self._codec}", "surrogatepass")
        else:
            text = data.decode(f"utf-32-{self._codec}" if kind == UTF32 else ENCODINGS[kind], "replace")
        if not data and self.afford(prod(shape)):  # as some files have it
            text = " " * prod(shape)
        return rows_of(text, shape)

    def _cell(self, shape: tuple[int, ...], end: int) -> np.ndarray:
        self._check_count(prod(shape), end)
        return cell([self.inner(f"{{{k + 1}}}", self._matrix, end) for k in range(prod(shape))], shape)

    def _struct(self, shape: tuple[int, ...], end: int) -> Value:
        widths = self._integers(end)
        _, names = self._element(end)
        width = max(widths, default=0)
        if len(widths) != 1 or (names and (width < 1 or len(names) % width)):
            raise FileFormatError(f"expected names of {widths} bytes each, found {len(names)} bytes")
        fields = distinct(_text(names[k : k + width]) for k in range(0, len(names), width or 1))
        self._check_count(prod(shape) * len(fields), end)
        return self.struct(shape, fields, lambda k, name: self._matrix(end))

    def _sparse(self, flags: int, shape: tuple[int, ...], end: int) -> Value:
        rows, starts = self._numbers(None, end), self._numbers(None, end)
        if flags & LOGICAL_FLAG:  # MATLAB calls these bytes doubles
            _, stored_bytes = self._element(end)
            data = np.frombuffer(stored_bytes, np.uint8) != 0
            return self.sparse(shape, rows, starts, data)
        data = cast(self._numbers(None, end), CLASSES["double"])
        if flags & COMPLEX_FLAG:
            data = complex_of(data, cast(self._numbers(len(data), end), data.dtype))
        return self.sparse(shape, rows, starts, data)

    def _check_count(self, count: int, end: int) -> None:
        """Each value has a tag at least; looked at before anything is done for so many."""
        left = end - self._stream.position
        if count * 8 > left:
            raise FileFormatError(f"expected {count} values, found {left} bytes")

    # ---- elements

    def _tag(self, end: int) -> tuple[int, int, int]:
        """Type, size and padding of the element that begins here and ends by `end`; its data come next."""
        if end - self._stream.position < 8:
            raise FileFormatError(f"expected an element, found {end - self._stream.position} bytes")
        kind, size = self._integer_pair()
        padding = -size % 8 if kind != MATRIX else 0
        if kind >> 16:  # a small one: size and type share four bytes, the data are the other four
            kind, size = kind & 0xFFFF, kind >> 16
            padding = 4 - size
            self._stream.back(struct.pack(self._order + "I", self._last))
        left = end - self._stream.position
        if size > left or padding < 0:
            raise FileFormatError(f"expected {size} bytes of type {kind}, found {left}")
        return kind, size, min(padding, left - size)

    def _element(self, end: int, most: int | None = None) -> tuple[int, bytes]:
        """Type and data of an element that is no matrix and has at most so many bytes."""
        kind, size, padding = self._tag(end)
        if kind == MATRIX or (most is not None and size > most):
            raise FileFormatError(f"expected up to {most} bytes, found {size} of type {kind}")
        data = self._stream.read(size)
        self._stream.skip(padding)
        return kind, data

    def _numbers(self, count: int | None, end: int) -> np.ndarray:
        """An element of `count` numbers, or of any number of them, in the type they are stored in."""
        kind, size, padding = self._tag(end)
        if kind not in NUMBERS:
            raise FileFormatError(f"expected numbers, found type {kind}")
        stored = np.dtype(self._order + NUMBERS[kind])
        if size % stored.itemsize or count not in (None, size // stored.itemsize):
            raise FileFormatError(f"expected {count} numbers {stored}, found {size} bytes")
        array = self._stream.array(size).view(stored)
        self._stream.skip(padding)
        return array if stored.isnative else array.byteswap(inplace=True).view(stored.newbyteorder("="))

    def _integers(self, end: int) -> tuple[int, ...]:
        kind, data = self._element(end, 1024)
        if kind not in (INT32, UINT32) or len(data) % 4:
            raise FileFormatError(f"expected integers, found {len(data)} bytes of type {kind}")
        return struct.unpack(f"{self._order}{len(data) // 4}i", data)

    def _name(self, end: int) -> str:
        kind, data = self._element(end, 1 << 16)
        if kind not in (INT8, UINT8, UTF8):
            raise FileFormatError(f"expected a name, found type {kind}")
        return _text(data)

    def _integer_pair(self) -> tuple[int, int]:
        first, self._last = self._two.unpack(self._stream.read(8))
        return first, self._last


def _text(data: bytes) -> str:
    return data.partition(b"\0")[0].decode("utf-8", "surrogateescape")
