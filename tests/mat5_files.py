"""MAT-files of version 5 put together by hand, for what scipy cannot write."""

import struct
import zlib

import numpy as np

CODES = {"i1": 1, "u1": 2, "i2": 3, "u2": 4, "i4": 5, "u4": 6, "f4": 7, "f8": 9, "i8": 12, "u8": 13}
CLASSES = {
    "cell": 1, "struct": 2, "object": 3, "char": 4, "sparse": 5, "double": 6, "single": 7, "int8": 8,
    "uint8": 9, "int16": 10, "uint16": 11, "int32": 12, "uint32": 13, "int64": 14, "uint64": 15,
    "function": 16, "opaque": 17,
}  # fmt: skip


class Maker:
    """`order` is "<" or ">"."""

    def __init__(self, order="<"):
        self.order = order

    def file(self, *variables, compress=False):
        mark = {"<": b"\0\1IM", ">": b"\1\0MI"}[self.order]
        if compress:
            variables = [self.compressed(v) for v in variables]
        return b"MATLAB 5.0 MAT-file, by hand".ljust(124) + mark + b"".join(variables)

    def compressed(self, data):
        data = zlib.compress(data)
        return struct.pack(self.order + "II", 15, len(data)) + data

    def element(self, kind, data, small=True):
        if small and 0 < len(data) <= 4:
            return struct.pack(self.order + "I", len(data) << 16 | kind) + data.ljust(4, b"\0")
        return struct.pack(self.order + "II", kind, len(data)) + data + bytes(-len(data) % 8)

    def numbers(self, values, form):
        return self.element(CODES[form], np.asarray(values, self.order + form).tobytes(order="F"))

    def matrix(self, kind, dims, *content, name="", flags=0):
        """An element of class `kind`; the flags are 2 logical, 8 complex."""
        head = struct.pack(self.order + "II", flags << 8 | CLASSES.get(kind, kind), 0)
        parts = [self.element(6, head)]
        if dims is not None:
            parts.append(self.numbers(dims, "i4"))
        parts += [self.element(1, name.encode()), *content]
        data = b"".join(parts)
        return struct.pack(self.order + "II", 14, len(data)) + data

    def struct(self, dims, fields, *content, name="", kind="struct", before=()):
        names = b"".join(field.encode().ljust(32, b"\0") for field in fields)
        return self.matrix(
            kind, dims, *before, self.numbers([32], "i4"), self.element(1, names), *content, name=name
        )

    def opaque(self, class_name, name="", system="MCOS"):
        content = self.matrix("uint32", (6, 1), self.numbers([0xDD000000, 2, 1, 1, 1, 1], "u4"))
        texts = [self.element(1, text.encode()) for text in (system, class_name)]
        return self.matrix("opaque", None, *texts, content, name=name)

    def text(self, text, name=""):
        return self.matrix("char", (1, len(text)), self.element(16, text.encode()), name=name)
