"""The bytes of a variable of a MAT-file, as they come from the file or out of its compression."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from typing import BinaryIO

import numpy as np

from ..errors import FileFormatError

PIECE = 256 << 10  # bytes read or decompressed at a time
LOOKAHEAD = 16 << 20  # bytes of an array that are allocated before they are there


class Stream:
    """Bytes that arrive in pieces and are used front to back; no more is held than was asked for."""

    def __init__(self, pieces: Iterator[bytes], position: int = 0, label: str = "") -> None:
        self._pieces, self._label = pieces, label
        self._window, self._at = b"", 0
        self._start = position  # of the window

    @property
    def position(self) -> int:
        return self._start + self._at

    @property
    def where(self) -> str:
        return f"byte {self.position}{self._label}"

    def read(self, size: int) -> bytes:
        start, end = self._at, self._at + size
        if end <= len(self._window):
            self._at = end
            return self._window[start:end]
        return b"".join(self._take(size))

    def array(self, size: int) -> np.ndarray:
        """`size` bytes as numbers that may be written to."""
        if self._at + size <= len(self._window):
            return np.frombuffer(bytearray(self.read(size)), np.uint8)
        array = np.empty(min(size, LOOKAHEAD), np.uint8)
        at = 0
        for piece in self._take(size):
            if at + len(piece) > len(array):
                array.resize(min(size, len(array) + LOOKAHEAD), refcheck=False)
            array[at : at + len(piece)] = np.frombuffer(piece, np.uint8)
            at += len(piece)
        return array

    def skip(self, size: int) -> None:
        if self._at + size <= len(self._window):
            self._at += size
            return
        for _ in self._take(size):
            pass

    def back(self, data: bytes) -> None:
        """Return bytes just read."""
        if len(data) <= self._at:
            self._at -= len(data)
            return
        self._start = self.position - len(data)
        self._window, self._at = data + self._window[self._at :], 0

    def finish(self, end: int) -> None:
        """Skip to `end`, where compression must end: only there its checksum is looked at."""
        self.skip(end - self.position)
        if self._label and (self._at < len(self._window) or next(self._pieces, b"")):
            raise FileFormatError("expected the end, found more bytes")

    def _take(self, size: int) -> Iterator[bytes]:
        """`size` bytes from here on."""
        while size:
            if self._at == len(self._window):
                self._start += self._at
                self._window, self._at = next(self._pieces, b""), 0
                if not self._window:
                    raise FileFormatError(f"expected {size} more bytes, found the end")
            piece = self._window[self._at : self._at + size]
            self._at += len(piece)
            size -= len(piece)
            yield piece


def stored(file: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    """`size` bytes of the file."""
    file.seek(start)
    while size and (piece := file.read(min(size, PIECE))):
        size -= len(piece)
        yield piece


def inflated(file: BinaryIO, start: int, size: int) -> Iterator[bytes]:
    """`size` bytes of the file, decompressed."""
    inflater = zlib.decompressobj()
    try:
        for piece in stored(file, start, size):
            while not inflater.eof and (out := inflater.decompress(piece, PIECE)):
                yield out
                piece = inflater.unconsumed_tail
    except zlib.error as error:
        raise FileFormatError(f"expected compressed data, found damage: {error}") from error
    if not inflater.eof:
        raise FileFormatError(f"expected the end of compressed data within {size} bytes, found none")
