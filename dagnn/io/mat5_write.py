"""Plain values to the bytes of a MATLAB 7 MAT-file: the reverse of `mat5`, which explains the format.

Not scipy.io.savemat, which cannot write struct arrays without fields, leaves out fields whose names begin
with _, and counts characters where MATLAB counts UTF-16 units.
"""

from __future__ import annotations

import re
import struct
import zlib
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any

import numpy as np

from ..errors import OptionError
from . import mat5
from .mat_values import CLASSES, DEEPEST, Opaque, StructArray, true_shape

HEADER = b"MATLAB 5.0 MAT-file, written by dagnn".ljust(124) + b"\0\1IM"
LARGEST = 2**31 - 1  # bytes of a variable, as MATLAB has it
LEVEL = 3  # of compression; weights hardly shrink, whatever the level
NUMBERS = {np.dtype(form): code for code, form in mat5.NUMBERS.items()}
NUMERIC = {CLASSES[name]: code for code, name in mat5.NUMERIC.items()}


class Writer:
    """Turns variables into bytes; `left_out` names what could not be kept."""

    def __init__(self) -> None:
        self.left_out: list[str] = []
        self._trail: list[str] = []  # of the value being written: ["net", ".layers", "{3}"]

    def file(self, variables: Mapping[str, Any]) -> Iterator[bytes]:
        """The bytes of a file, in pieces."""
        yield HEADER
        for name, value in variables.items():
            if not isinstance(name, str) or not re.fullmatch(r"[A-Za-z]\w{0,62}", name, re.ASCII):
                raise OptionError(
                    f"a variable's name is at most 63 letters, digits and _. Received: {name!r}"
                )
            self._trail = [name]
            if _has_no_counterpart(value):
                self.left_out.append(name)
                continue
            squeezer = zlib.compressobj(LEVEL)
            data = [squeezer.compress(piece) for piece in self._value(value, name.encode())]
            data.append(squeezer.flush())
            yield struct.pack("<II", mat5.COMPRESSED, sum(map(len, data)))
            yield from data

    @property
    def _place(self) -> str:
        return "".join(self._trail)

    def _inner(self, step: str, value: Any) -> list[bytes]:
        """A value inside the present one."""
        if len(self._trail) >= DEEPEST:
            raise OptionError(f"{self._place[:80]}... is more than {DEEPEST} levels deep, or inside itself")
        self._trail.append(step)
        pieces = self._value(value)
        self._trail.pop()
        return pieces

    def _value(self, value: Any, name: bytes = b"") -> list[bytes]:
        """A value as a matrix element."""
        if _has_no_counterpart(value):
            self.left_out.append(self._place)
            value = np.zeros((0, 0))
        if isinstance(value, Opaque):
            shape, pieces = self._records(value.content)
            return self._matrix(
                mat5.OBJECT, shape, name, [*_element(mat5.INT8, value.class_name.encode()), *pieces]
            )
        if isinstance(value, dict | StructArray):
            shape, pieces = self._records(value)
            return self._matrix(mat5.STRUCT, shape, name, pieces)
        if isinstance(value, str | list):
            shape, pieces = self._chars(value)
            return self._matrix(mat5.CHAR, shape, name, pieces)
        if not isinstance(value, np.ndarray | np.generic | int | float):
            raise self._no_class(type(value).__name__)
        array = np.atleast_2d(np.float64(value) if type(value) is int else np.asarray(value))
        if array.dtype == object:
            items = [self._inner(f"{{{k}}}", item) for k, item in enumerate(array.ravel(order="F"), 1)]
            return self._matrix(mat5.CELL, array.shape, name, [piece for item in items for piece in item])
        return self._numeric(array, name)

    def _numeric(self, array: np.ndarray, name: bytes) -> list[bytes]:
        native = array.dtype.newbyteorder("=")
        if native == np.bool_:
            pieces = _numbers(array.view(np.uint8))
            return self._matrix(NUMERIC[np.dtype(np.uint8)] | mat5.LOGICAL_FLAG, array.shape, name, pieces)
        if native in (np.complex64, np.complex128):
            pieces = _numbers(array.real) + _numbers(array.imag)
            kind = NUMERIC[np.dtype(np.float32 if native == np.complex64 else np.float64)]
            return self._matrix(kind | mat5.COMPLEX_FLAG, array.shape, name, pieces)
        if native not in NUMERIC:
            raise self._no_class(str(array.dtype))
        return self._matrix(NUMERIC[native], array.shape, name, _numbers(array))

    def _chars(self, value: str | list[str]) -> tuple[tuple[int, int], list[bytes]]:
        rows = [value] if isinstance(value, str) else value
        if not all(isinstance(row, str) for row in rows):
            raise OptionError(
                f"{self._place} is a list; a cell is a NumPy array of objects, a char matrix a list of str"
            )
        units = [row.encode("utf-16-le", "surrogatepass") for row in rows]
        if len({len(row) for row in units}) != 1:
            raise OptionError(f"{self._place} is a char matrix; its rows must have one length")
        width = len(units[0]) // 2
        codes = np.frombuffer(b"".join(units), "<u2").reshape(len(rows), width).ravel(order="F")
        shape = (len(rows), width) if width else (0, 0)
        if codes.max(initial=0) < 128:
            return shape, _element(mat5.UTF8, codes.astype(np.uint8).tobytes())
        return shape, _element(mat5.UTF16, codes.tobytes())

    def _records(self, value: dict[str, Any] | StructArray) -> tuple[tuple[int, ...], list[bytes]]:
        """Size and fields of a struct."""
        array = value if isinstance(value, StructArray) else StructArray((1, 1), tuple(value), [value])
        if len(array.records) != prod(array.shape) or any(set(r) != set(array.fields) for r in array.records):
            raise OptionError(
                f"{self._place} is a struct array of shape {array.shape}; it must have {prod(array.shape)} "
                f"records, each with the fields {array.fields}"
            )
        names = [self._field_name(name) for name in array.fields]
        width = 32 if all(len(name) < 32 for name in names) else 64
        pieces = _element(mat5.INT32, struct.pack("<i", width))
        pieces += _element(mat5.INT8, b"".join(name.ljust(width, b"\0") for name in names))
        for k, record in enumerate(array.records, 1):
            step = "" if array is not value else f"({k})"
            for name in array.fields:
                pieces += self._inner(f"{step}.{name}", record[name])
        return array.shape, pieces

    def _field_name(self, name: Any) -> bytes:
        data = name.encode("utf-8", "surrogateescape") if isinstance(name, str) else b""
        if not 0 < len(data) < 64 or b"\0" in data:
            raise OptionError(
                f"{self._place}: the name of a field is a text of 1 to 63 bytes. Received: {name!r}"
            )
        return data

    def _matrix(self, flags: int, shape: tuple[int, ...], name: bytes, content: list[bytes]) -> list[bytes]:
        dims = true_shape(shape)
        pieces = [
            *_element(mat5.UINT32, struct.pack("<II", flags, 0)),
            *_element(mat5.INT32, struct.pack(f"<{len(dims)}i", *dims)),
            *_element(mat5.INT8, name),
            *content,
        ]
        size = sum(map(len, pieces))
        if size > LARGEST:
            raise OptionError(
                f"{self._place} has {size} bytes; a variable of a MAT-file has at most {LARGEST}"
            )
        return [struct.pack("<II", mat5.MATRIX, size), *pieces]

    def _no_class(self, what: str) -> OptionError:
        return OptionError(
            f"{self._place} is a {what}, for which MATLAB has no class. It has double, single, integers of 8 "
            "to 64 bits, logical, text, and around these dict, StructArray and arrays of objects (cells)"
        )


def _has_no_counterpart(value: Any) -> bool:
    """Whether it is opaque and not just of an old-style class, whose fields are all there is."""
    return isinstance(value, Opaque) and not (
        value.kind == "object" and isinstance(value.content, dict | StructArray)
    )


def _numbers(array: np.ndarray) -> list[bytes]:
    kind = NUMBERS[array.dtype.newbyteorder("=")]
    return _element(kind, array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes(order="F"))


def _element(kind: int, data: bytes) -> list[bytes]:
    """Tag, data, padding; up to four bytes share the eight of the tag."""
    if 0 < len(data) <= 4:
        return [struct.pack("<HH4s", kind, len(data), data)]
    return [struct.pack("<II", kind, len(data)), data, bytes(-len(data) % 8)]
