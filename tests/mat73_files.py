"""Version 7.3 MAT-files, written with h5py as MATLAB does, from the values `dagnn.io.mat` reads."""

from itertools import count

import h5py
import numpy as np

from dagnn.io.mat import Opaque, StructArray

HEADER = b"MATLAB 7.3 MAT-file, Platform: PCWIN64, Created on: Sat Aug 13 01:24:05 2016 HDF5 schema 1.00 ."
CLASSES = {
    "float64": "double", "float32": "single", "complex128": "double", "complex64": "single", "bool": "logical"
}  # fmt: skip
OBJECT = np.array([[0xDD000000, 2, 1, 1, 1, 1]], np.uint32)


def write(path, variables, **storage):
    """A file of `variables`; `storage` goes to h5py for arrays: chunks, compression, shuffle."""

    def build(file):
        writer = Writer(file, storage)
        for name, value in variables.items():
            writer.put(file, name, value)

    bare(path, build)


def bare(path, build, libver="earliest"):
    """A file whose objects `build(file)` makes."""
    with h5py.File(path, "w", userblock_size=512, libver=libver) as file:
        build(file)
    with open(path, "r+b") as file:
        file.write(HEADER.ljust(124) + b"\0\2IM")


class Writer:
    def __init__(self, file, storage):
        self.file, self.storage, self.names = file, storage, map("v{}".format, count())
        self.refs = self.empty = None

    def put(self, group, name, value):
        match value:
            case str():
                self.characters(group, name, [value])
            case list():
                self.characters(group, name, value)
            case dict() if value:
                node = self.struct(group, name, value)
                for key, item in value.items():
                    self.put(node, key, item)
            case dict():
                self.no_elements(group, name, "struct", (1, 1))
            case StructArray() if value.records and value.fields:
                node = self.struct(group, name, value.fields)
                for key in value.fields:
                    self.references(node, key, [r[key] for r in value.records], value.shape)
            case StructArray():
                node = self.no_elements(group, name, "struct", value.shape)
                if value.fields:
                    node.attrs.create("MATLAB_fields", fields(value.fields), dtype=FIELDS)
            case Opaque(kind="opaque"):
                mark(
                    group.create_dataset(name, data=value.content.T), value.class_name, MATLAB_object_decode=3
                )
            case Opaque():
                self.put(group, name, value.content)
                decode = np.int32(1 if value.kind == "function" else 2)
                mark(group[name], value.class_name, MATLAB_object_decode=decode)
            case np.ndarray() if value.dtype == object:
                if value.size:
                    mark(self.references(group, name, value.ravel(order="F"), value.shape), "cell")
                else:
                    self.no_elements(group, name, "cell", value.shape)
            case _:
                self.numbers(group, name, value)

    def numbers(self, group, name, array):
        kind = CLASSES.get(array.dtype.name, array.dtype.name)
        if not array.size:
            return self.no_elements(group, name, kind, array.shape)
        if array.dtype.kind == "c":
            pairs = np.empty(array.shape, [("real", array.real.dtype), ("imag", array.real.dtype)])
            pairs["real"], pairs["imag"] = array.real, array.imag
            array = pairs
        stored = array.astype(np.uint8) if array.dtype == bool else array
        node = mark(group.create_dataset(name, data=stored.T, **self.storage), kind)
        if array.dtype == bool:
            node.attrs["MATLAB_int_decode"] = np.int32(1)
        return node

    def characters(self, group, name, rows):
        units = np.array([np.frombuffer(row.encode("utf-16-le", "surrogatepass"), "<u2") for row in rows])
        if not units.size:
            return self.no_elements(group, name, "char", (0, 0))
        return mark(group.create_dataset(name, data=units.T), "char", MATLAB_int_decode=np.int32(2))

    def no_elements(self, group, name, kind, shape):
        return mark(
            group.create_dataset(name, data=np.array(shape, np.uint64)), kind, MATLAB_empty=np.uint8(1)
        )

    def struct(self, group, name, names):
        node = mark(group.create_group(name), "struct")
        node.attrs.create("MATLAB_fields", fields(names), dtype=FIELDS)
        return node

    def references(self, group, name, values, shape):
        self.refs = self.refs or self.file.create_group("#refs#")
        targets = np.empty(len(values), object)
        for k, value in enumerate(values):
            targets[k] = self.target(value).ref
        return group.create_dataset(name, data=targets.reshape(shape, order="F").T, dtype=h5py.ref_dtype)

    def target(self, value):
        if isinstance(value, np.ndarray) and value.shape == (0, 0) and value.dtype == np.float64:
            self.empty = self.empty or self.no_elements(self.refs, "a", "canonical empty", (0, 0))
            return self.empty
        name = next(self.names)
        self.put(self.refs, name, value)
        return self.refs[name]


FIELDS = h5py.vlen_dtype(np.dtype("S1"))


def fields(names):
    """Names as MATLAB keeps them, each an array of characters."""
    array = np.empty(len(names), object)
    for k, name in enumerate(names):
        array[k] = np.frombuffer(name.encode(), "S1")
    return array


def mark(node, kind, **attributes):
    node.attrs["H5PATH"] = np.bytes_(node.name.encode())
    node.attrs["MATLAB_class"] = np.bytes_(kind.encode())
    node.attrs.update(attributes)
    return node
