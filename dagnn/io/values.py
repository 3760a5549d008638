"""Plain values as JSON and back, exactly; arrays are left to the file. See docs/file-format.md."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from math import isfinite
from typing import Any
from urllib.parse import quote

import numpy as np

from ..dtypes import floating, is_half
from ..errors import FileFormatError, OptionError, shorten

DEEPEST = 100  # containers inside each other
BFLOAT16 = "bfloat16"
SAFE_INTEGER = 2**53  # greater ones are written as text: many JSON readers have only doubles

ReadArray = Callable[[str, tuple[int, ...], np.dtype, str], np.ndarray]


class Encoder:
    """Plain values to JSON; arrays are set aside in `arrays`, by the name of their dataset.

    >>> encoder = Encoder()
    >>> encoder.exact({"mean": np.float32([1, 2]), "ids": (1, 2**70)}, "net.meta", "meta")
    {'mean': {'$array': {'dataset': 'meta/mean', 'dtype': '<f4', 'shape': [2], 'sha256': '...'}},
     'ids': {'$tuple': [1, {'$int': '0x400000000000000000'}]}}
    >>> list(encoder.arrays)
    ['meta/mean']
    """

    def __init__(self) -> None:
        self.arrays: dict[str, np.ndarray] = {}

    def exact(self, value: Any, label: str, *place: str) -> Any:
        """`value` so that `decode` returns its equal, type for type; `label` names it in errors."""
        return self._encode(value, label, place, True)

    def simple(self, value: Any, label: str, *place: str) -> Any:
        """The same with tuples as lists and NumPy scalars as numbers; for options, which layers convert."""
        return self._encode(value, label, place, False)

    def _encode(self, value: Any, label: str, place: tuple[str, ...], exact: bool) -> Any:
        if len(place) > DEEPEST:
            raise OptionError(f"{label[:80]}... lies more than {DEEPEST} containers deep, or inside itself")

        def inner(key: Any, item: Any) -> Any:
            return self._encode(item, f"{label}[{key!r}]", (*place, str(key)), exact)

        match value:
            case None | bool():
                return value
            case str():
                return str(value)
            case bytes():
                return {"$bytes": value.hex()}
            case np.generic() if is_storable(value.dtype):
                if not exact:
                    return self._encode(value.item(), label, place, exact)
                return {"$scalar": {"dtype": _name(value.dtype), "bytes": value.tobytes().hex()}}
            case np.ndarray():
                return self._set_aside(value, label, place)
            case int():
                return int(value) if abs(value) <= SAFE_INTEGER else {"$int": hex(value)}
            case float():
                return float(value) if isfinite(value) else {"$float": str(float(value))}
            case list() | tuple():
                items = [inner(k, item) for k, item in enumerate(value)]
                return {"$tuple": items} if exact and isinstance(value, tuple) else items
            case dict():
                if wrong := [key for key in value if not isinstance(key, str)]:
                    raise OptionError(f"{label} has the key {wrong[0]!r}; in a file a dict has text as keys")
                return {"$" * key.startswith("$") + key: inner(key, item) for key, item in value.items()}
        raise OptionError(
            f"{label} is a {type(value).__name__}, which a file cannot keep. It keeps None, bool, int, "
            f"float, str, bytes, list, tuple, dict, and NumPy arrays and scalars of numbers, booleans or text"
        )

    def _set_aside(self, array: np.ndarray, label: str, place: tuple[str, ...]) -> dict[str, Any]:
        if type(array) not in (np.ndarray, np.memmap) or not is_storable(array.dtype):
            raise OptionError(
                f"{label} is a {type(array).__name__} of {array.dtype}. A file keeps plain arrays of bool, "
                f"integers, bfloat16, float16 to float64, complex64, complex128 and text"
            )
        base, axis = stored_as(array.dtype)
        stored = np.asarray(array, order="C").reshape((*array.shape, 1)).view(base)
        stored = stored.reshape(array.shape + axis)
        dataset = "/".join(map(_link, place))
        self.arrays[dataset] = stored
        return {
            "$array": {
                "dataset": dataset,
                "dtype": _name(array.dtype),
                "shape": list(array.shape),
                "sha256": hashlib.sha256(stored.data).hexdigest(),
            }
        }


def decode(value: Any, label: str, read: ReadArray) -> Any:
    """The value that was encoded; `read(dataset, shape, dtype, sha256)` fetches an array."""
    match value:
        case list():
            return [decode(item, f"{label}[{k}]", read) for k, item in enumerate(value)]
        case dict() if any(key.startswith("$") and not key.startswith("$$") for key in value):
            return _decode_marked(value, label, read)
        case dict():
            return {
                key.removeprefix("$"): decode(item, f"{label}[{key!r}]", read) for key, item in value.items()
            }
    return value


def _decode_marked(value: dict[str, Any], label: str, read: ReadArray) -> Any:
    match value:
        case {"$tuple": list(items), **others} if not others:
            return tuple(decode(items, label, read))
        case {"$int": str(text), **others} if not others and hex(int(text, 16)) == text:
            return int(text, 16)
        case {"$float": "nan" | "inf" | "-inf" as text, **others} if not others:
            return float(text)
        case {"$bytes": str(text), **others} if not others:
            return bytes.fromhex(text)
        case {"$scalar": {"dtype": str(name), "bytes": str(text), **odd}, **others} if not odd and not others:
            return np.frombuffer(bytes.fromhex(text), _dtype(name, label)).reshape(())[()]
        case {"$array": dict(ref), **others} if not others:
            match ref:
                case {"dataset": str(dataset), "dtype": str(name), "shape": list(shape), "sha256": str(sha)}:
                    if len(ref) == 4 and all(type(n) is int and n >= 0 for n in shape):
                        return read(dataset, tuple(shape), _dtype(name, label), sha)
    raise FileFormatError(
        f"{label} holds {shorten(value)} in a form this schema does not have: {str(value)[:200]}"
    )


def _dtype(name: str, label: str) -> np.dtype:
    try:
        dtype = floating(name) if name == BFLOAT16 else np.dtype(name) if name[:1] in "<>|" else None
    except (TypeError, ValueError, SyntaxError):
        dtype = None
    if dtype is None or _name(dtype) != name or not is_storable(dtype):
        raise FileFormatError(f"{label}: files have no dtype {name[:40]!r}")
    return dtype


def is_storable(dtype: np.dtype) -> bool:
    """Whether a file can hold arrays of `dtype` such that every machine reads them."""
    if is_half(dtype):
        return True
    most = {"b": 1, "i": 8, "u": 8, "f": 8, "c": 16, "S": 2**31, "U": 2**31}.get(dtype.kind, 0)
    return 0 < dtype.itemsize <= most


def stored_as(dtype: np.dtype) -> tuple[np.dtype, tuple[int, ...]]:
    """What a dataset for `dtype` holds, an integer or floating type, and the last axis this adds.

    >>> stored_as(np.dtype("complex64")), stored_as(np.dtype("float32")), stored_as(np.dtype("bool"))
    ((dtype('float32'), (2,)), (dtype('float32'), ()), (dtype('uint8'), ()))
    """
    if _name(dtype) == BFLOAT16:
        return np.dtype("<u2"), ()
    plain = {"b": "u1", "S": "u1", "U": "u4", "c": f"f{dtype.itemsize // 2}"}.get(dtype.kind)
    if plain is None:
        return dtype, ()
    base = np.dtype(plain).newbyteorder(dtype.byteorder)
    return base, () if dtype.kind == "b" else (dtype.itemsize // base.itemsize,)


def _name(dtype: np.dtype) -> str:
    """What files call a dtype: as NumPy does, where that says what it is."""
    return BFLOAT16 if dtype.kind == "V" and is_half(dtype) else dtype.str


def _link(name: str) -> str:
    """A name as one link of an HDF5 path, in which "/" separates and "." stands for the group itself."""
    if not name.strip("."):
        return name.replace(".", "%2E") or "%"
    return quote(name, safe=" ", errors="surrogatepass")
