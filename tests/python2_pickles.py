"""Pickles as Python 2 and its NumPy wrote them, and as Python 3 does."""

import itertools
import pickle
import struct

import numpy as np


class Python2:
    """Writes a pickle of protocol 2 as its cPickle did."""

    def __init__(self):
        self.count = itertools.count(1)

    def put(self):
        number = next(self.count)
        return b"q" + bytes([number]) if number < 256 else b"r" + struct.pack("<I", number)

    def write(self, value):
        """Instructions that leave `value` on the stack."""
        match value:
            case str():
                text = value.encode("latin-1")
                short = len(text) < 256
                start = b"U" + bytes([len(text)]) if short else b"T" + struct.pack("<i", len(text))
                return start + text + self.put()
            case int():
                code, form = next((c, f) for c, f, n in INTEGERS if 0 <= value < n or n is None)
                return code + struct.pack(form, value)
            case list():
                return b"]" + self.put() + b"(" + b"".join(map(self.write, value)) + b"e"
            case dict():
                start = b"}" + self.put() + b"("
                return start + b"".join(self.write(k) + self.write(v) for k, v in value.items()) + b"u"
            case np.ndarray():
                start = b"cnumpy.core.multiarray\n_reconstruct\n" + self.put()
                start += (
                    b"cnumpy\nndarray\n" + self.put() + b"K\0\x85U\1b" + self.put() + b"\x87R" + self.put()
                )
                shape = b"".join(map(self.write, value.shape)) + b"\x86"
                dtype = b"cnumpy\ndtype\n" + self.put() + b"U\2u1K\0K\1\x87R" + self.put()
                dtype += b"(K\3U\1|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\0tb"
                content = self.write(value.tobytes().decode("latin-1"))
                return start + b"(K\1" + shape + dtype + b"\x89" + content + b"tb"
        raise TypeError(value)


INTEGERS = [(b"K", "<B", 1 << 8), (b"M", "<H", 1 << 16), (b"J", "<i", None)]


def as_python2(value):
    return b"\x80\2" + Python2().write(value) + b"."


WRITERS = {
    "python 2": as_python2,
    "protocol 2": lambda value: pickle.dumps(value, 2),
    "protocol 3": lambda value: pickle.dumps(value, 3),
    "protocol 4": lambda value: pickle.dumps(value, 4),
}


def nested(levels):
    """A tuple of twice the tuple before, and so on: short to write, of 2**levels parts."""
    steps = b"".join(b"q" + bytes([i]) + b"h" + bytes([i]) + b"\x86" for i in range(levels))
    return b"K\x01" + steps
