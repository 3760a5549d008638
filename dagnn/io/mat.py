"""MAT-files: MATLAB's variables as plain values, and back.

    MATLAB                  here
    number, logical         np.ndarray; its shape is MATLAB's size(), two dimensions at least, its dtype
                            MATLAB's class: double float64, single float32, logical bool ...
    char row, '', matrix    str, "", list of the rows
    cell                    np.ndarray of objects
    struct                  dict, in the order of the fields; a StructArray unless it is 1 x 1
    sparse                  np.ndarray, if it fits
    anything else           Opaque: functions, objects (gpuArray, containers.Map, string ...)

The readers take every size in a file for a claim: bytes are there before memory is taken for them.
"""

from __future__ import annotations

import codecs
import os
import struct
import warnings
from collections.abc import Mapping
from os import PathLike
from typing import Any, BinaryIO

from ..errors import FileFormatError, UnreadableValueWarning, shorten
from .atomic import replacing
from .mat_values import Opaque, StructArray, Value

__all__ = ["Opaque", "StructArray", "Value", "is_mat", "read", "write"]

START = 128 + 512  # bytes that tell what a file is
ENDINGS = {b"\0\1IM": (5, "<"), b"\1\0MI": (5, ">"), b"\0\2IM": (73, "<"), b"\2\0MI": (73, ">")}
STARTS = {
    b"\x89HDF\r\n\x1a\n": "an HDF5 file that MATLAB did not write",
    b"dagnn network": "a network that dagnn wrote: open it as HDF5",
    b"\x89PNG\r\n\x1a\n": "a PNG image",
    b"\xff\xd8\xff": "a JPEG image",
    b"GIF8": "a GIF image",
    b"PK\3\4": "a zip archive, as .npz and PyTorch's files are",
    b"\x1f\x8b": "a gzip archive",
    b"\x93NUMPY": "a NumPy array",
    b"\x80\2": "a pickle",
    b"\x80\4": "a pickle",
    b"version https://git-lfs": "a Git LFS pointer: the file itself was not downloaded",
    b"# Created by Octave": "Octave's text format: save it with -v7",
    b"Octave-1-": "Octave's binary format: save it with -v7",
    b"<": "a web page or other markup",
}


def is_mat(path: str | PathLike[str]) -> bool:
    """Whether the file begins as a MAT-file that `read` takes: of MATLAB 5 or newer."""
    with open(path, "rb") as file:
        return _version(file.read(START)) is not None


def version(path: str | PathLike[str]) -> str:
    """ "7.3" for a MAT-file that is HDF5, "5" for one of `save -v6` or `-v7`."""
    with open(path, "rb") as file:
        found = _version(file.read(START))
    if found is None:
        raise FileFormatError(f"{os.fspath(path)}: expected a MAT-file")
    return "7.3" if found[0] == 73 else "5"


def read(path: str | PathLike[str]) -> dict[str, Value]:
    """The variables in a MAT-file (of `save -v6`, `-v7` or `-v7.3`) by name; what it is, its content tells.

    Values that have no plain counterpart arrive as `Opaque`; an UnreadableValueWarning lists them, once.
    Raises FileFormatError, saying where, for a file that is damaged, or is something else.

    >>> import tempfile, numpy as np
    >>> path = tempfile.mkdtemp() + "/x.mat"
    >>> write(path, {"opts": {"name": "conv1", "pad": np.array([[1.0, 2.0]])}})
    >>> read(path)
    {'opts': {'name': 'conv1', 'pad': array([[1., 2.]])}}
    """
    name = os.fspath(path)
    with open(path, "rb") as file:
        reader = _reader(file, name)
        try:
            variables = reader.variables()
        except (OSError, MemoryError):
            raise
        except FileFormatError as error:
            inside = f"in {reader.place[:200]}: " if reader.trail else ""
            raise FileFormatError(f"{name}: {inside}{reader.where}: {error}") from error.__cause__
        except Exception as error:  # not known to happen; bytes may still hold a surprise
            raise FileFormatError(f"{name}: {reader.where}: {type(error).__name__}: {error}") from error
    _warn(path, "no plain counterpart, so they were left as Opaque:", reader.skipped)
    return variables


def write(path: str | PathLike[str], variables: Mapping[str, Any]) -> None:
    """Write variables as a MAT-file that MATLAB 7 and newer, Octave and scipy open, all of it or nothing.

    `read` returns them as they were; a number becomes 1 x 1, an array of one dimension a row, and ones behind
    the second dimension go, as in MATLAB. An `Opaque` is left out with an UnreadableValueWarning, [] taking
    its place inside a container; only one of an old-style class is kept. OptionError, naming the place, for a
    value or name MATLAB cannot have.
    """
    from .mat5_write import Writer

    writer = Writer()
    with replacing(path) as file:
        file.writelines(writer.file(variables))
    _warn(path, "no bytes of their own, so they were left out:", writer.left_out)


def _warn(path: str | PathLike[str], what: str, places: list[str]) -> None:
    if places:
        text = f"{os.fspath(path)}: values with {what} {shorten(places)}"
        warnings.warn(text, UnreadableValueWarning, stacklevel=3)


def _reader(file: BinaryIO, name: str) -> Any:
    """What reads this kind of MAT-file."""
    from . import mat5, mat73

    length = file.seek(0, os.SEEK_END)
    file.seek(0)
    start = file.read(START)
    match _version(start):
        case 5, order:
            return mat5.Reader(file, length, order)
        case 73, _:
            return mat73.Reader(file, length)
    raise FileFormatError(f"{name}: expected a MAT-file, found {_seems(start)}")


def _version(start: bytes) -> tuple[int, str] | None:
    """5 or 73, and byte order."""
    version = ENDINGS.get(start[124:128])
    if version and version[0] == 73 and start[512:520] != b"\x89HDF\r\n\x1a\n":
        return None
    return version


def _seems(start: bytes) -> str:
    """What a file that is no MAT-file is, by its first bytes."""
    if not start:
        return "an empty file"
    for head, what in STARTS.items():
        if start.startswith(head):
            return what
    if start.startswith(b"MATLAB "):
        return "the beginning of one, damaged or cut short"
    if _is_version4(start):
        return "one of MATLAB 4, which is not read: open it in MATLAB or Octave and save it with -v7"
    try:
        text = codecs.getincrementaldecoder("utf-8")().decode(start)  # the last character may be cut
    except UnicodeDecodeError:
        text = "\0"
    if all(c.isprintable() or c.isspace() for c in text):
        return f"text: {text.partition(chr(10))[0][:40]!r}"
    return f"something that starts with {start[:8]!r}"


def _is_version4(start: bytes) -> bool:
    """Whether this is the header of a matrix: types in decimal digits, three sizes, the length of a name."""
    if len(start) < 20:
        return False
    for order in "<>":
        types, rows, columns, imaginary, name = struct.unpack(order + "5I", start[:20])
        if types in range(53) or types in range(1000, 1053):  # little-endian or big
            return rows > 0 and columns > 0 and imaginary in (0, 1) and 1 < name <= 64
    return False
