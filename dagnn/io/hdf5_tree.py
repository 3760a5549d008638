"""HDF5 as MATLAB writes it, read without libhdf5, which believes the bytes: of small files in which a few are
changed at random, three in a thousand make it loop for ever.

MATLAB keeps to the oldest structures of the format: superblock 0, object headers of version 1, groups that
are B-trees of symbol tables with their names in a local heap, contiguous, compact or chunked data (chunks in
a B-tree, deflated), names of fields in global heaps. Nothing else is read. Sections of the "HDF5 File Format
Specification 3.0" are cited.

Every byte of the file is handed out about once, so that time and memory stay in proportion to its length.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from math import prod
from typing import Any, BinaryIO

import numpy as np

from ..errors import FileFormatError
from .hdf5_messages import Cursor, Layout, Type, dataspace, datatype, filters, layout, unfilter
from .mat_values import ALLOWANCE, MOST_DIMENSIONS

USER_BLOCK = 512  # addresses count from its end
NOWHERE = 2**64 - 1
SLACK = 64 << 10  # bytes that may be read twice
DATASPACE, DATATYPE, EXTERNAL, LAYOUT, FILTERS, ATTRIBUTE, CONTINUATION, SYMBOLS = 1, 3, 7, 8, 11, 12, 16, 17
FOREIGN = {2: "links", 6: "links", 21: "many attributes", EXTERNAL: "data in another file"}


@dataclass
class Node:
    """A group or dataset; what the file does not say of it, or not in MATLAB's way, is None."""

    attributes: dict[str, Any] = field(default_factory=dict)  # those whose names begin with MATLAB_
    shape: tuple[int, ...] | None = None
    type: Type | None = None
    symbols: tuple[int, int] | None = None  # addresses of a group's B-tree and heap
    layout: Layout | None = None
    filters: tuple[int, ...] = ()


class Tree:
    """The objects of an open file of `length` bytes; `where` says what was read last."""

    def __init__(self, file: BinaryIO, length: int) -> None:
        self.where = "byte 0"
        self._file, self._length = file, length
        self._left = length + SLACK
        self._nodes: dict[int, Node] = {}
        self._heaps: dict[int, dict[int, bytes]] = {}

    # ---- objects

    def root(self) -> Node:
        """The outermost group (II.A)."""
        block = self._cursor(0, 96)
        block.expect(b"\x89HDF\r\n\x1a\n", "HDF5's signature")
        version, *_, offsets, lengths = block.take(7)
        if (version, offsets, lengths) != (0, 8, 8):
            raise FileFormatError(
                f"expected HDF5's oldest structures, as MATLAB's, found superblock {version}"
            )
        block.take(9 + 32 + 8)
        return self.node(block.number(8))

    def node(self, address: int) -> Node:
        """The group or dataset whose header is there (IV.A.1.a)."""
        if address in self._nodes:
            return self._nodes[address]
        head = self._cursor(address, 16)
        head.expect(b"\1\0", "an object header of version 1")
        count, _, size = head.number(2), head.number(4), head.number(4)
        node = self._nodes[address] = Node()
        blocks = [(address + 16, size)]
        for start, size in blocks:  # which grow while they are read
            block = self._cursor(start, size)
            while count and block.left >= 8:
                count -= 1
                kind, length, flags = block.number(2), block.number(2), block.number(4)
                message = Cursor(block.take(length))
                if kind == CONTINUATION:
                    blocks.append((message.number(8), message.number(8)))
                else:
                    self._message(node, kind, message, bool(flags & 2))
        return node

    def _message(self, node: Node, kind: int, message: Cursor, shared: bool) -> None:
        if kind in FOREIGN:
            raise FileFormatError(f"expected HDF5 as MATLAB writes it, found {FOREIGN[kind]}")
        if shared and kind in (DATASPACE, DATATYPE, FILTERS, ATTRIBUTE):
            raise FileFormatError("expected HDF5 as MATLAB writes it, found a header shared by objects")
        if kind == DATASPACE:
            node.shape = dataspace(message)
        elif kind == DATATYPE:
            node.type = datatype(message)
        elif kind == LAYOUT:
            node.layout = layout(message)
        elif kind == FILTERS:
            node.filters = filters(message)
        elif kind == SYMBOLS:
            node.symbols = message.number(8), message.number(8)
        elif kind == ATTRIBUTE:
            self._attribute(node, message)

    def links(self, node: Node) -> dict[str, int]:
        """Names in a group with the addresses of what they name, sorted (III.A.1, III.C, III.D)."""
        if node.symbols is None:
            raise FileFormatError("expected a group, found another object")
        tree, heap = node.symbols
        head = self._cursor(heap, 32)
        head.expect(b"HEAP\0\0\0\0", "a local heap")
        size, _, address = head.numbers(8, 3)
        names = self._cursor(address, size).data
        found: dict[str, int] = {}
        for leaf, _ in self._leaves(tree, 0, lambda cursor: cursor.number(8)):
            head = self._cursor(leaf, 8)
            head.expect(b"SNOD\1\0", "a symbol table")
            entries = self._cursor(leaf + 8, head.number(2) * 40)
            while entries.left:
                place, target, cache = entries.number(8), entries.number(8), entries.number(4)
                entries.take(20)
                end = names.find(b"\0", place)
                if place >= len(names) or end < 0 or cache > 1:
                    raise FileFormatError("expected the name of an object, found another kind of link")
                self._spend(end - place)
                found[names[place:end].decode("utf-8", "surrogateescape")] = target
        return found

    def _leaves(self, address: int, kind: int, key: Callable[[Cursor], Any]) -> Iterator[tuple[int, Any]]:
        """Addresses of a B-tree's leaves, each with the key before it (III.A.1)."""
        probe = Cursor(bytes(8 * (MOST_DIMENSIONS + 3)))
        key(probe)
        nodes = [(address, 256)]
        while nodes:
            start, above = nodes.pop()
            head = self._cursor(start, 24)
            head.expect(b"TREE" + bytes([kind]), "a B-tree")
            level, count = head.number(1), head.number(2)
            if level >= above:
                raise FileFormatError(f"expected a B-tree's level below {above}, found {level}")
            entries = self._cursor(start + 24, count * (probe.at + 8))
            children = []
            while entries.left:
                before = key(entries)
                children.append((entries.number(8), before))
            if level:
                nodes.extend((child, level) for child, _ in reversed(children))
            else:
                yield from children

    # ---- attributes

    def _attribute(self, node: Node, message: Cursor) -> None:
        """Versions 1 to 3 (IV.A.2.m)."""
        version, shared = message.numbers(1, 2)
        sizes = message.numbers(2, 3)
        if version == 3:
            message.take(1)
        if version not in (1, 2, 3) or (version > 1 and shared):
            raise FileFormatError(f"expected an attribute of version 1 to 3, found {version}")
        name, kind, space = (message.take(-(-n // 8) * 8 if version == 1 else n) for n in sizes)
        label = name.partition(b"\0")[0].decode("utf-8", "replace")
        if not label.startswith("MATLAB_"):
            return
        shape, element = dataspace(Cursor(space)), datatype(Cursor(kind))
        if shape is None or element is None:
            return
        data = message.take(prod(shape) * element.dtype.itemsize)
        if element.kind == "list":
            node.attributes[label] = self._names(Cursor(data))
        elif element.kind == "text":
            node.attributes[label] = data.partition(b"\0")[0].decode("utf-8", "replace")
        elif element.kind == "number" and prod(shape) == 1:
            node.attributes[label] = np.frombuffer(data, element.dtype)[0].item()

    def _names(self, places: Cursor) -> list[str]:
        """Texts in global heaps (III.E)."""
        names = []
        while places.left:
            length, heap, index = places.number(4), places.number(8), places.number(4)
            data = self._heap(heap).get(index, b"")[:length] if length else b""
            self._spend(length)
            if len(data) < length:
                raise FileFormatError(f"expected a name of {length} bytes, found {len(data)}")
            names.append(data.decode("utf-8", "surrogateescape"))
        return names

    def _heap(self, address: int) -> dict[int, bytes]:
        if address not in self._heaps:
            head = self._cursor(address, 16)
            head.expect(b"GCOL\1\0\0\0", "a global heap")
            block = self._cursor(address + 16, head.number(8) - 16)
            objects = self._heaps[address] = {}
            while block.left >= 16:
                index, _, size = block.number(2), block.number(6), block.number(8)
                if not index:  # free space, up to the end
                    break
                objects[index] = block.take(size)
                block.take(min(-size % 8, block.left))
        return self._heaps[address]

    # ---- data

    def data(self, node: Node) -> np.ndarray:
        """All elements of a dataset, in C order."""
        if node.shape is None or node.type is None or node.layout is None:
            raise FileFormatError("expected a dataset, found an object without size, type or data")
        shape, dtype, place = node.shape, node.type.dtype, node.layout
        if place.chunk is not None:
            return self._chunks(place.address, place.chunk, shape, dtype, node.filters)
        size = prod(shape) * dtype.itemsize
        if place.data is not None:
            if len(place.data) != size:
                raise FileFormatError(f"expected {size} bytes of data, found {len(place.data)}")
            return np.frombuffer(bytearray(place.data), dtype).reshape(shape)
        if size:
            self._reach(place.address, size)
        array = np.empty(shape, dtype)
        self._file.readinto(array.reshape(-1).view(np.uint8))  # type: ignore[attr-defined]
        return array

    def _chunks(
        self,
        tree: int,
        sizes: tuple[int, ...],
        shape: tuple[int, ...],
        dtype: np.dtype,
        done: tuple[int, ...],
    ) -> np.ndarray:
        """Chunked data (III.A.1, key of type 1); every chunk must be there, once."""
        chunk = sizes[:-1]
        if len(chunk) != len(shape) or not chunk or sizes[-1] != dtype.itemsize or not all(chunk):
            raise FileFormatError(f"expected chunks of {len(shape)} dimensions of {dtype}, found {sizes}")

        def key(cursor: Cursor) -> tuple[int, int, tuple[int, ...]]:
            return cursor.number(4), cursor.number(4), cursor.numbers(8, len(sizes))[:-1]

        leaves = list(self._leaves(tree, 1, key)) if prod(shape) else []
        counts = [-(-n // c) for n, c in zip(shape, chunk, strict=True)]
        places = {place for _, (_, _, place) in leaves}
        right = all(
            k < n and k % c == 0 for place in places for k, n, c in zip(place, shape, chunk, strict=True)
        )
        if not right or not len(places) == len(leaves) == prod(counts):
            raise FileFormatError(f"expected {prod(counts)} chunks {chunk} of {shape}, found {len(places)}")

        def content(address: int, length: int, mask: int) -> np.ndarray:
            return unfilter(self._read(address, length), done, mask, chunk, dtype)

        stored = sum(length for _, (length, _, _) in leaves)
        if stored > self._left:
            raise FileFormatError(f"expected chunks within {self._left} bytes, found {stored}")
        if prod(shape) * dtype.itemsize > 2 * stored + ALLOWANCE:  # what only decompressing can prove
            for address, (length, mask, _) in leaves:
                content(address, length, mask)
            self._left += stored
        array = np.empty(shape, dtype)
        for address, (length, mask, place) in leaves:
            part = array[tuple(slice(k, k + c) for k, c in zip(place, chunk, strict=True))]
            part[...] = content(address, length, mask)[tuple(slice(n) for n in part.shape)]
        return array

    # ---- bytes

    def _cursor(self, address: int, size: int) -> Cursor:
        return Cursor(self._read(address, size))

    def _read(self, address: int, size: int) -> bytes:
        self._reach(address, size)
        return self._file.read(size)

    def _reach(self, address: int, size: int) -> None:
        """Go where `size` bytes are to be read."""
        place = address + USER_BLOCK
        if address == NOWHERE:
            raise FileFormatError("expected data, found that none were written")
        self.where = f"byte {place}"
        if size < 0 or place + size > self._length:
            raise FileFormatError(f"expected {size} bytes, found {max(self._length - place, 0)}")
        self._spend(size)
        self._file.seek(place)

    def _spend(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise FileFormatError("expected bytes to be used once, found objects that overlap")
