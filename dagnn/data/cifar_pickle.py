"""CIFAR's files for Python, which are pickles, read without unpickling.

A pickle is a program, and unpickling it may call any function there is. CIFAR's need a small part of its
language: the containers, numbers and texts of a dictionary, and two calls that describe an array of bytes.
Here the standard library only splits the file into instructions (`pickletools.genops`, which runs none); the
few known ones build plain values, the two calls are noted down as what they mean, and everything else is an
error. Nothing is imported, looked up or called by name, and no instruction makes anything larger than itself.
"""

from __future__ import annotations

import os
import pickletools
from dataclasses import dataclass
from io import BytesIO
from typing import Any

import numpy as np

from ..errors import FileFormatError

CONSTANTS = {"NONE": None, "NEWTRUE": True, "NEWFALSE": False}
VALUES = (
    *("BININT", "BININT1", "BININT2", "LONG1", "SHORT_BINSTRING", "BINSTRING"),
    *("BINUNICODE", "SHORT_BINUNICODE", "SHORT_BINBYTES", "BINBYTES"),
)
ARRAYS = ("numpy.core.multiarray _reconstruct", "numpy._core.multiarray _reconstruct")
DTYPE = "numpy dtype"
BYTES = "_codecs encode"  # how Python 3 writes bytes for Python 2


@dataclass(frozen=True)
class Name:
    """The name of a function or class; only a text."""

    text: str


@dataclass(frozen=True)
class DType:
    """A type of numbers, by NumPy's code for it."""

    code: Any


@dataclass(eq=False)
class PickledArray:
    """An array as the file describes it: (version, shape, dtype, whether columns go first, its bytes)."""

    state: Any = None

    def matrix(self) -> np.ndarray:
        """The array, if it is a matrix of uint8; else ValueError."""
        match self.state:
            case (_, (int(rows), int(columns)), DType(code="u1"), False, bytes() | str() as content):
                data = content.encode("latin-1") if isinstance(content, str) else content
                if min(rows, columns) < 0 or rows * columns != len(data):
                    raise ValueError(f"{len(data)} bytes for a matrix of {rows} x {columns}")
                return np.frombuffer(data, np.uint8).reshape(rows, columns)
        raise ValueError("an array that is no matrix of uint8, row by row")


def read_pickle(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The dictionary in a file such as cifar-10-batches-py/data_batch_1.

    Texts of Python 2 are str, one character per byte; an array is a `PickledArray`.

    Raises FileFormatError if the file is damaged or has anything in it that CIFAR's don't.
    """
    with open(path, "rb") as file:
        content = BytesIO(file.read())
    machine, position = Machine(), 0
    try:
        for opcode, argument, at in pickletools.genops(content):
            position = at or 0
            machine.do(opcode.name, argument)
        return machine.result()
    except (ValueError, LookupError) as error:
        raise FileFormatError(f"{os.fspath(path)}: at or after byte {position}: {error}") from error


class Machine:
    """The stack machine that a pickle is a program for, as far as CIFAR needs it."""

    def __init__(self) -> None:
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # stacks below marks
        self.memo: dict[int, Any] = {}

    def result(self) -> dict[str, Any]:
        """What the program has made."""
        if len(self.stack) != 1 or not isinstance(self.stack[0], dict):
            raise ValueError("expected a dictionary and nothing else")
        return self.stack[0]

    def do(self, name: str, argument: Any) -> None:
        """One instruction; ValueError or LookupError if it makes no sense here."""
        stack = self.stack
        match name:
            case "PROTO" | "FRAME" | "STOP":
                pass
            case _ if name in VALUES:
                stack.append(argument)
            case _ if name in CONSTANTS:
                stack.append(CONSTANTS[name])
            case "MARK":
                self.marked.append(stack)
                self.stack = []
            case "EMPTY_DICT":
                stack.append({})
            case "EMPTY_LIST":
                stack.append([])
            case "EMPTY_TUPLE":
                stack.append(())
            case "TUPLE1" | "TUPLE2" | "TUPLE3":
                stack.append(tuple(self.pop(int(name[-1]))))
            case "TUPLE":
                items = self.since_mark()
                self.stack.append(tuple(items))
            case "APPEND":
                self.add(self.pop(1))
            case "APPENDS":
                self.add(self.since_mark())
            case "SETITEM":
                self.set(self.pop(2))
            case "SETITEMS":
                self.set(self.since_mark())
            case "BINPUT" | "LONG_BINPUT":
                self.memo[argument] = stack[-1]
            case "MEMOIZE":
                self.memo[len(self.memo)] = stack[-1]
            case "BINGET" | "LONG_BINGET":
                stack.append(self.memo[argument])
            case "GLOBAL":
                stack.append(Name(argument))
            case "STACK_GLOBAL":
                module, attribute = self.pop(2)
                if not isinstance(module, str) or not isinstance(attribute, str):
                    raise ValueError("a name that is no text")
                stack.append(Name(f"{module} {attribute}"))
            case "REDUCE":
                stack.append(_described(*self.pop(2)))
            case "BUILD":
                self.build(*self.pop(1))
            case _:
                raise ValueError(f"{name} is no instruction that CIFAR's files have")

    def pop(self, number: int) -> list[Any]:
        """The values on top."""
        if len(self.stack) < number:
            raise ValueError("fewer values than the instruction takes")
        values = self.stack[-number:]
        del self.stack[-number:]
        return values

    def since_mark(self) -> list[Any]:
        """All values above the last mark, which goes with them."""
        if not self.marked:
            raise ValueError("no mark where the instruction needs one")
        values, self.stack = self.stack, self.marked.pop()
        return values

    def add(self, items: list[Any]) -> None:
        """Append `items` to the list on top."""
        if not isinstance(self.stack[-1], list):
            raise ValueError("items for something that is no list")
        self.stack[-1].extend(items)

    def set(self, items: list[Any]) -> None:
        """Put `items`, keys and values in turn, into the dictionary on top."""
        if not isinstance(self.stack[-1], dict) or len(items) % 2:
            raise ValueError("keys and values for something that is no dictionary, or a key without a value")
        if not all(isinstance(key, str) for key in items[::2]):
            raise ValueError("a key that is no text")
        self.stack[-1].update(zip(items[::2], items[1::2], strict=True))

    def build(self, state: Any) -> None:
        """Give the array on top its contents. The state of a type is its order of bytes; uint8 has none."""
        target = self.stack[-1]
        if isinstance(target, PickledArray):
            target.state = state
        elif not isinstance(target, DType):
            raise ValueError("a state for something that is neither an array nor its type")


def _described(function: Any, arguments: Any) -> Any:
    """What a call means."""
    name = function.text if isinstance(function, Name) else type(function).__name__
    if isinstance(arguments, tuple) and arguments:
        if name in ARRAYS:
            return PickledArray()
        if name == DTYPE:
            return DType(arguments[0])
        if name == BYTES:
            return arguments[0]
    raise ValueError(f"a call of {name!r:.100}, which CIFAR's files don't have")
