"""MAT-files of MATLAB 7.3 (`save -v7.3`), which are HDF5: objects to plain values.

The attribute MATLAB_class tells the class. Axes are reversed. A cell is a dataset of references to its
values, a struct a group of its fields, a struct array a group of datasets of references, one for each field.
The dataset of an empty array holds its size (MATLAB_empty). Attributes MATLAB_sparse (the number of rows) and
MATLAB_object_decode (1 function handle, 2 object of an old-style class, 3 any other object) mark the rest.
"""

from __future__ import annotations

from math import prod
from typing import Any, BinaryIO

import numpy as np

from ..errors import FileFormatError
from .hdf5_tree import Node, Tree
from .mat_values import (
    CLASSES,
    Opaque,
    Reading,
    StructArray,
    Value,
    cast,
    cell,
    complex_of,
    rows_of,
    true_shape,
)

OBJECT_MARK = 0xDD000000  # the first number of what stands for an object whose content is in #subsystem#
KINDS = {1: "function", 2: "object", 3: "opaque"}


class Reader(Reading):
    """The variables of an open file of `length` bytes."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        super().__init__(length)
        self._tree = Tree(file, length)
        self._values: dict[int, Value] = {}  # by address
        self._open: set[int] = set()  # addresses of the values being read

    @property
    def where(self) -> str:
        return self._tree.where

    def variables(self) -> dict[str, Value]:
        """All of them by name, in alphabetical order."""
        found: dict[str, Value] = {}
        for name, address in self._tree.links(self._tree.root()).items():
            if not name.startswith("#"):  # #refs# holds the values of cells, #subsystem# those of objects
                found[name] = self.inner(name, self._value, address)
        return found

    def _value(self, address: int) -> Value:
        """The value there. Only one without parts may be in two places: a file is a tree, never a thicket."""
        if address in self._open:
            raise FileFormatError("expected values inside values, found one inside itself")
        if address not in self._values:
            self._open.add(address)
            self._values[address] = self._content(self._tree.node(address))
            self._open.remove(address)
        elif _has_parts(self._values[address]):
            raise FileFormatError("expected each value in one place, found one in two")
        return self._values[address]

    def _content(self, node: Node) -> Value:
        name = _text(node.attributes.get("MATLAB_class", ""))
        mark = node.attributes.get("MATLAB_object_decode", 0)
        decode = mark if isinstance(mark, int) else 0
        if node.symbols is not None:
            if "MATLAB_sparse" in node.attributes:
                return self._sparse(node)
            if name in ("struct", "") and not decode:
                return self._struct(node)
            kind = "function" if name == "function_handle" else KINDS.get(decode, "unknown")
            return self.opaque(kind, name, lambda: self._struct(node))
        if node.type is None or node.shape is None or node.type.kind in ("text", "list"):
            return self.opaque("unknown", name)
        array = self._tree.data(node).T
        if decode or _stands_for_object(array):
            return self.opaque(KINDS.get(decode, "opaque"), name, lambda: array)
        if node.attributes.get("MATLAB_empty"):
            return self._empty(name, array, node)
        shape = true_shape(array.shape)
        if name == "cell" or (node.type.kind == "reference" and not name):
            return self._cell(array, shape, node)
        if name == "char" and array.dtype.kind in "iu":
            codes = array.reshape(-1, order="F").astype("<u2")
            return rows_of(codes.tobytes().decode("utf-16-le", "surrogatepass"), shape)
        if node.type.kind == "number" and (name in CLASSES or not name):
            return self._numbers(name, array).reshape(shape, order="F")
        return self.opaque("unknown", name)

    def _numbers(self, name: str, array: np.ndarray) -> np.ndarray:
        if array.dtype.names:
            return complex_of(self._numbers(name, array["real"]), self._numbers(name, array["imag"]))
        return cast(array, CLASSES.get(name, array.dtype.newbyteorder("=")))

    def _empty(self, name: str, dims: np.ndarray, node: Node) -> Value:
        """A value without elements, whose dataset holds its size, or without fields, as `struct()`."""
        if dims.dtype.kind not in "iu":
            raise FileFormatError(f"expected the size of an array, found {dims.dtype}")
        shape = true_shape(dims.reshape(-1).tolist())
        if name == "struct":
            fields = () if prod(shape) else self._fields(node, {})
            return self.struct(shape, fields, lambda k, field: "")
        if name == "canonical empty":
            return np.zeros((0, 0))
        if prod(shape):
            raise FileFormatError(f"expected the size of an empty array, found {shape}")
        if name == "char":
            return ""
        if name == "cell":
            return np.empty(shape, object)
        if name in CLASSES:
            return np.empty(shape, CLASSES[name])
        return self.opaque("unknown", name)

    def _cell(self, references: np.ndarray, shape: tuple[int, ...], node: Node) -> np.ndarray:
        if node.type is None or node.type.kind != "reference":
            raise FileFormatError(f"expected the references of a cell, found {references.dtype}")
        addresses = references.reshape(-1, order="F").tolist()
        return cell([self.inner(f"{{{k}}}", self._value, a) for k, a in enumerate(addresses, 1)], shape)

    def _struct(self, group: Node) -> Value:
        members = self._tree.links(group)
        fields = self._fields(group, members)
        nodes = {name: self._tree.node(members[name]) for name in fields}
        if nodes and all(_is_column(node) for node in nodes.values()):
            columns = {name: self._tree.data(node).T for name, node in nodes.items()}
            shapes = {column.shape for column in columns.values()}
            if len(shapes) > 1:
                raise FileFormatError(
                    f"expected the fields of a struct array to be alike, found {sorted(shapes)}"
                )
            addresses = {name: column.reshape(-1, order="F").tolist() for name, column in columns.items()}
            return self.struct(
                true_shape(shapes.pop()), fields, lambda k, name: self._value(addresses[name][k])
            )
        return self.struct((1, 1), fields, lambda k, name: self._value(members[name]))

    def _fields(self, node: Node, members: dict[str, int]) -> tuple[str, ...]:
        """Names of the fields of a struct, in MATLAB's order if the file tells it."""
        names = node.attributes.get("MATLAB_fields")
        if not isinstance(names, list):
            return tuple(members)
        if missing := [name for name in names if name not in members] if node.symbols else []:
            raise FileFormatError(f"expected the field {missing[0]!r}, found {', '.join(members)[:200]}")
        return tuple(dict.fromkeys([*names, *members]))

    def _sparse(self, group: Node) -> Value:
        rows = group.attributes["MATLAB_sparse"]
        parts: dict[str, np.ndarray] = {}
        for name, address in self._tree.links(group).items():
            node = self._tree.node(address)
            if node.type is None or node.shape is None or node.type.kind != "number":
                raise FileFormatError(f"expected the numbers of a sparse matrix, found {name!r}")
            parts[name] = self._tree.data(node).reshape(-1)
        starts, places = parts.get("jc", np.zeros(0)), parts.get("ir", np.zeros(0))
        if not isinstance(rows, int) or starts.dtype.names or places.dtype.names or not starts.size:
            raise FileFormatError(f"expected a sparse matrix (jc, ir, data), found {sorted(parts)}")
        name = _text(group.attributes.get("MATLAB_class", ""))
        data = self._numbers(name if name in CLASSES else "double", parts.get("data", np.zeros(0)))
        return self.sparse(true_shape((rows, len(starts) - 1)), places, starts, data)


def _text(attribute: Any) -> str:
    """An attribute that is a text, as others than MATLAB may have written it."""
    return attribute[0] if isinstance(attribute, list) and attribute else str(attribute)


def _has_parts(value: Value) -> bool:
    if isinstance(value, np.ndarray):
        return value.dtype == object and value.size > 0
    return isinstance(value, dict | StructArray | Opaque)


def _is_column(node: Node) -> bool:
    """Whether it is a field of a struct array: references without a class of their own."""
    return node.type is not None and node.type.kind == "reference" and "MATLAB_class" not in node.attributes


def _stands_for_object(array: np.ndarray) -> bool:
    return array.dtype == np.uint32 and array.size > 4 and int(array.flat[0]) == OBJECT_MARK
