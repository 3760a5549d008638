"""What the variables of a MAT-file become, and what the readers of both kinds of file share."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import prod
from typing import Any, TypeAlias

import numpy as np

from ..errors import FileFormatError

DEEPEST = 50  # values inside each other; each takes up to eight of Python's own levels
MOST_DIMENSIONS = 32
WIDEST = 1 << 58  # elements
EMPTY_STRUCT = 72  # bytes that a dict without items takes in a list
ALLOWANCE = 32 << 20  # bytes that may be taken on the strength of what a file says alone

CLASSES: dict[str, np.dtype] = {
    "double": np.dtype(np.float64),
    "single": np.dtype(np.float32),
    "int8": np.dtype(np.int8),
    "uint8": np.dtype(np.uint8),
    "int16": np.dtype(np.int16),
    "uint16": np.dtype(np.uint16),
    "int32": np.dtype(np.int32),
    "uint32": np.dtype(np.uint32),
    "int64": np.dtype(np.int64),
    "uint64": np.dtype(np.uint64),
    "logical": np.dtype(np.bool_),
}


@dataclass(eq=False)
class StructArray:
    """A struct array that is not 1 x 1: records in column-major order, each with all `fields`."""

    shape: tuple[int, ...]
    fields: tuple[str, ...]
    records: list[dict[str, Any]]


@dataclass(eq=False)
class Opaque:
    """A value that has no plain counterpart.

    `kind` is "object" (of an old-style class; `content` holds its fields), "function" (a handle; `content` is
    MATLAB's description of it), "opaque" (a gpuArray, containers.Map, string, Java object ...: `content` is
    MATLAB's bookkeeping), "sparse" (too large to be dense; `content` holds shape, ir, jc, data) or "unknown".
    """

    kind: str
    class_name: str
    content: Any = None


Value: TypeAlias = "np.ndarray | str | list[str] | dict[str, Value] | StructArray | Opaque"


class Reading:
    """One file being read: the place reached, what was left opaque, and how values are put together."""

    def __init__(self, length: int) -> None:
        self.trail: list[str] = []  # of the value being read: ["net", ".layers", "{3}"]
        self.skipped: list[str] = []
        self._spare = length + ALLOWANCE  # bytes for all values together that are larger than what is stored

    @property
    def place(self) -> str:
        return "".join(self.trail)

    def inner(self, step: str, read: Callable[..., Value], *args: Any) -> Value:
        """`read(*args)`, known as `step` of the value around it."""
        if len(self.trail) >= DEEPEST:
            raise FileFormatError(f"expected values at most {DEEPEST} levels deep, found more")
        self.trail.append(step)
        value = read(*args)
        self.trail.pop()
        return value

    def afford(self, size: int) -> bool:
        """Whether `size` bytes may be taken for which little is stored; if so, they are."""
        if size > self._spare:
            return False
        self._spare -= size
        return True

    def opaque(self, kind: str, class_name: str, read: Callable[[], Any] | None = None) -> Opaque:
        """An Opaque whose content is `read()`; nothing inside it is listed by itself."""
        before = len(self.skipped)
        content = read() if read else None
        self.skipped[before:] = [f"{self.place} ({class_name or kind})"]
        return Opaque(kind, class_name, content)

    def struct(
        self, shape: tuple[int, ...], fields: tuple[str, ...], read: Callable[[int, str], Value]
    ) -> dict[str, Value] | StructArray:
        """A struct from `read(k, field)`, called record by record."""
        if not fields and not self.afford(prod(shape) * EMPTY_STRUCT):
            raise FileFormatError(f"expected few structs without fields, found {prod(shape)}")
        one = prod(shape) == 1
        records = []
        for k in range(prod(shape)):
            step = "" if one else f"({k + 1})"
            records.append({name: self.inner(f"{step}.{name}", read, k, name) for name in fields})
        return records[0] if one else StructArray(shape, fields, records)

    def sparse(
        self, shape: tuple[int, ...], rows: np.ndarray, starts: np.ndarray, data: np.ndarray
    ) -> np.ndarray | Opaque:
        """A matrix from its entries by columns: dense, unless that takes much more memory than the file."""
        rows, starts = (cast(numbers.ravel(), np.dtype(np.int64)) for numbers in (rows, starts))
        data = data.ravel()
        if len(shape) != 2 or starts.shape != (shape[1] + 1,):
            raise FileFormatError(f"expected starts of {shape[1]} columns, found {len(starts)} numbers")
        count = int(starts[-1])
        if starts[0] != 0 or (starts[1:] < starts[:-1]).any() or not count <= min(len(rows), len(data)):
            raise FileFormatError("expected rising starts of columns within the data, found others")
        rows, data = rows[:count], data[:count]
        if count and not 0 <= rows.min() <= rows.max() < shape[0]:
            raise FileFormatError(f"expected rows below {shape[0]}, found {rows.min()} to {rows.max()}")
        if not self.afford(prod(shape) * data.itemsize):
            parts = {"shape": shape, "ir": rows, "jc": starts, "data": data}
            return self.opaque("sparse", "sparse", lambda: parts)
        dense = np.zeros(shape, data.dtype, order="F")
        dense[rows, np.repeat(np.arange(shape[1]), np.diff(starts))] = data
        return dense


def true_shape(dims: Iterable[int]) -> tuple[int, ...]:
    """The dims of a file as MATLAB's size(): two at least, no ones behind them."""
    shape = [int(d) for d in dims]
    while len(shape) > 2 and shape[-1] == 1:
        shape.pop()
    shape += [1] * (2 - len(shape))
    if len(shape) > MOST_DIMENSIONS or min(shape) < 0 or span(shape) > WIDEST:
        raise FileFormatError(f"expected the size of an array, found {str(shape)[:200]}")
    return tuple(shape)


def span(shape: Iterable[int]) -> int:
    """Elements of an array if dimensions of 0 were 1; NumPy bounds them even where there are none."""
    return prod(max(d, 1) for d in shape)


def cell(values: list[Value], shape: tuple[int, ...]) -> np.ndarray:
    """A cell array from its values in column-major order."""
    array = np.empty(len(values), object)
    for k, value in enumerate(values):  # assigning them all at once would look into arrays
        array[k] = value
    return array.reshape(shape, order="F")


def rows_of(text: str, shape: tuple[int, ...]) -> str | list[str]:
    """A char array from its characters in column-major order: a string if it is a row or empty, else a list
    of its rows (of all pages, if there are more than two dimensions). MATLAB counts UTF-16 units, others
    characters.

    >>> rows_of("acbd", (2, 2))
    ['ab', 'cd']
    """
    count, width = prod(shape), shape[1]
    for code, unit in (("utf-16-le", "<u2"), ("utf-32-le", "<u4")):
        units = np.frombuffer(text.encode(code, "surrogatepass"), unit)
        if len(units) == count:
            break
    else:
        raise FileFormatError(f"expected {count} characters, found {len(text)}")
    if count in (0, width):
        return text
    rows = np.moveaxis(units.reshape(shape, order="F"), 1, -1).reshape(-1, width, order="F")
    return [row.tobytes().decode(code, "surrogatepass") for row in rows]


def distinct(names: Iterable[str]) -> tuple[str, ...]:
    """Field names; one that comes again gets a number behind it.

    >>> distinct(["a", "b", "a"])
    ('a', 'b', 'a_2')
    """
    found: dict[str, int] = {}
    for name in names:
        free = name
        while free in found:
            found[name] = number = found.get(name, 1) + 1
            free = f"{name}_{number}"
        found[free] = 1
    return tuple(found)


def complex_of(real: np.ndarray, imaginary: np.ndarray) -> np.ndarray:
    """complex64 from singles, complex128 from all else."""
    array = np.empty_like(real, np.complex64 if real.dtype == np.float32 else np.complex128)
    array.real, array.imag = real, imaginary
    return array


def cast(array: np.ndarray, dtype: np.dtype) -> np.ndarray:
    """`array` as `dtype`; files keep doubles that are whole numbers in smaller types."""
    if array.dtype == dtype:
        return array
    with np.errstate(all="ignore"):
        return array != 0 if dtype == np.bool_ else array.astype(dtype)
