"""CIFAR's files for Python, which are pickles, read without unpickling.

A pickle is a program, and unpickling it may call any function there is. CIFAR's need a small part of its
language: the containers, numbers and texts of a dictionary, and two calls that describe an array of bytes.
Here those few instructions build plain values, the two calls are noted down as what they mean, and everything
else is an error. Nothing is imported, looked up or called by name, and no instruction makes anything large
that isn't in the file. The standard library's `pickletools` says what the instructions are.
"""

from __future__ import annotations

import os
import struct
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import FileFormatError

# By code: what it does, and its argument: a number of this form, or after that as many bytes of something.
INSTRUCTIONS = {
    b"\x80": ("ignore", "<B"),  # the version of the language
    b"\x95": ("ignore", "<Q"),  # that so many bytes belong together
    b".": ("stop", ""),
    b"N": ("none", ""),
    b"\x88": ("true", ""),
    b"\x89": ("false", ""),
    b"K": ("push", "<B"),
    b"M": ("push", "<H"),
    b"J": ("push", "<i"),
    b"\x8a": ("push", "<B integer"),
    b"U": ("push", "<B latin-1"),  # Python 2's str
    b"T": ("push", "<i latin-1"),
    b"\x8c": ("push", "<B utf-8"),
    b"X": ("push", "<I utf-8"),
    b"C": ("push", "<B bytes"),
    b"B": ("push", "<I bytes"),
    b"c": ("push", "name"),
    b"\x93": ("name", ""),  # of the two texts on the stack
    b"(": ("mark", ""),
    b"]": ("list", ""),
    b"a": ("append", ""),
    b"e": ("append all", ""),
    b"}": ("dictionary", ""),
    b"s": ("set", ""),
    b"u": ("set all", ""),
    b")": ("tuple of 0", ""),
    b"\x85": ("tuple of 1", ""),
    b"\x86": ("tuple of 2", ""),
    b"\x87": ("tuple of 3", ""),
    b"t": ("tuple of all", ""),
    b"q": ("remember", "<B"),
    b"r": ("remember", "<I"),
    b"\x94": ("remember next", ""),
    b"h": ("recall", "<B"),
    b"j": ("recall", "<I"),
    b"R": ("call", ""),
    b"b": ("build", ""),
}
ARRAYS = ("numpy.core.multiarray._reconstruct", "numpy._core.multiarray._reconstruct")
DTYPE = "numpy.dtype"
BYTES = "_codecs.encode"  # how Python 3 writes bytes for Python 2
LONGEST_NAME = 100
MOST_INSTRUCTIONS = 1_000_000  # CIFAR-100 has some 200,000 in a file


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
    """An array as the file describes it: (version, shape, dtype, whether it is in columns, its bytes)."""

    state: Any = None

    def matrix(self) -> np.ndarray:
        """The array, if it is a matrix of uint8; else ValueError."""
        match self.state:
            case (
                _,
                (int(rows), int(columns)),
                DType(code="u1"),
                bool(in_columns),
                bytes() | str() as content,
            ):
                data = content.encode("latin-1") if isinstance(content, str) else content
                if min(rows, columns) < 1 or rows * columns != len(data):
                    raise ValueError(f"{len(data)} bytes for a matrix of {rows} x {columns}")
                return np.frombuffer(data, np.uint8).reshape(rows, columns, order="F" if in_columns else "C")
        raise ValueError("an array that is no matrix of uint8")


def read_pickle(path: str | os.PathLike[str]) -> dict[str, Any]:
    """The dictionary in a file such as cifar-10-batches-py/data_batch_1.

    Texts of Python 2 are str, one character per byte; an array is a `PickledArray`.

    Raises FileFormatError if the file is damaged or has anything in it that CIFAR's don't.
    """
    with open(path, "rb") as file:
        program = Program(file.read())
    try:
        return program.run()
    except ValueError as error:
        raise FileFormatError(f"{os.fspath(path)}: before byte {program.at}: {error}") from error


class Program:
    """A pickle, which is a program for a machine with a stack, as far as CIFAR needs it."""

    def __init__(self, code: bytes) -> None:
        self.code, self.at = code, 0
        self.stack: list[Any] = []
        self.marked: list[list[Any]] = []  # stacks below marks
        self.memory: dict[int, Any] = {}

    def run(self) -> dict[str, Any]:
        """The dictionary that the program makes; ValueError if it makes no sense here."""
        for _ in range(MOST_INSTRUCTIONS):
            code = self.take(1)
            if code not in INSTRUCTIONS:
                raise ValueError(f"{code!r} is no instruction that CIFAR's files have")
            name, form = INSTRUCTIONS[code]
            if name == "stop":
                return self.result()
            self.do(name, self.argument(form))
        raise ValueError(f"expected fewer than {MOST_INSTRUCTIONS} instructions")

    def result(self) -> dict[str, Any]:
        """What remains at the end."""
        if len(self.stack) != 1 or not isinstance(self.stack[0], dict):
            raise ValueError("expected a dictionary and nothing else")
        return self.stack[0]

    def take(self, size: int) -> bytes:
        """The next bytes."""
        if not 0 <= size <= len(self.code) - self.at:
            raise ValueError(f"{size} bytes should follow, and there are {len(self.code) - self.at}")
        self.at += size
        return self.code[self.at - size : self.at]

    def argument(self, form: str) -> Any:
        """What follows an instruction."""
        if not form:
            return None
        if form == "name":
            module, *name = self.code[self.at : self.at + LONGEST_NAME].split(b"\n")
            if len(name) < 2:
                raise ValueError("a name that doesn't end")
            self.at += len(module) + len(name[0]) + 2
            return Name(f"{module.decode('ascii')}.{name[0].decode('ascii')}")
        form, _, content = form.partition(" ")
        (number,) = struct.unpack(form, self.take(struct.calcsize(form)))
        if not content:
            return number
        data = self.take(number)
        if content == "integer":
            return int.from_bytes(data, "little", signed=True)
        return data if content == "bytes" else data.decode(content)

    def do(self, name: str, argument: Any) -> None:
        """One instruction."""
        stack = self.stack
        match name:
            case "ignore":
                pass
            case "push":
                stack.append(argument)
            case "none" | "true" | "false":
                stack.append({"none": None, "true": True, "false": False}[name])
            case "list":
                stack.append([])
            case "dictionary":
                stack.append({})
            case "mark":
                self.marked.append(stack)
                self.stack = []
            case "tuple of 0" | "tuple of 1" | "tuple of 2" | "tuple of 3":
                stack.append(tuple(self.pop(int(name[-1]))))
            case "tuple of all":
                items = self.since_mark()
                self.stack.append(tuple(items))
            case "append":
                self.add(self.pop(1))
            case "append all":
                self.add(self.since_mark())
            case "set":
                self.set(self.pop(2))
            case "set all":
                self.set(self.since_mark())
            case "remember":
                self.memory[argument] = self.top
            case "remember next":
                self.memory[len(self.memory)] = self.top
            case "recall":
                if argument not in self.memory:
                    raise ValueError(f"nothing was remembered as {argument}")
                stack.append(self.memory[argument])
            case "name":
                module, attribute = self.pop(2)
                if not isinstance(module, str) or not isinstance(attribute, str):
                    raise ValueError("a name that is no text")
                stack.append(Name(f"{module}.{attribute}"))
            case "call":
                stack.append(_described(*self.pop(2)))
            case "build":
                self.build(*self.pop(1))

    @property
    def top(self) -> Any:
        """The value on top."""
        if not self.stack:
            raise ValueError("no value where the instruction needs one")
        return self.stack[-1]

    def pop(self, number: int) -> list[Any]:
        """The values on top."""
        if len(self.stack) < number:
            raise ValueError("fewer values than the instruction takes")
        start = len(self.stack) - number
        values = self.stack[start:]
        del self.stack[start:]
        return values

    def since_mark(self) -> list[Any]:
        """All values above the last mark, which goes with them."""
        if not self.marked:
            raise ValueError("no mark where the instruction needs one")
        values, self.stack = self.stack, self.marked.pop()
        return values

    def add(self, items: list[Any]) -> None:
        """Append `items` to the list on top."""
        if not isinstance(self.top, list):
            raise ValueError("items for something that is no list")
        self.top.extend(items)

    def set(self, items: list[Any]) -> None:
        """Put `items`, keys and values in turn, into the dictionary on top."""
        if not isinstance(self.top, dict) or len(items) % 2:
            raise ValueError("keys and values for something that is no dictionary, or a key without a value")
        if not all(isinstance(key, str) for key in items[::2]):
            raise ValueError("a key that is no text")
        self.top.update(zip(items[::2], items[1::2], strict=True))

    def build(self, state: Any) -> None:
        """Give the array on top its contents. The state of a type is its order of bytes; uint8 has none."""
        if isinstance(self.top, PickledArray):
            self.top.state = state
        elif not isinstance(self.top, DType):
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
