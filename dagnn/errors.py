"""Every error dagnn raises on purpose is a `DagnnError`; the subclass says what kind of thing went wrong."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from difflib import get_close_matches


class DagnnError(Exception):
    """Root of the tree: catch this to catch everything dagnn raises on purpose."""

    def add_context(self, where: str, received: str) -> None:
        """Put `where` in front of the message and `Received: ...` on its last line, once."""
        if getattr(self, "has_context", False):
            return
        message = str(self)
        self.args = (f"{where}: {message}\nReceived: {received}", *self.args[1:])
        self.has_context = True

    def prefix(self, where: str) -> None:
        """Put `where`, such as a file or a batch, in front of the message."""
        self.args = (f"{where}: {self}", *self.args[1:])


class GraphError(DagnnError):
    """The network's structure forbids what was asked: a cycle, two producers, a missing input."""


class UnknownNameError(GraphError, KeyError):
    """No layer, variable or parameter has this name."""

    __str__ = Exception.__str__  # KeyError would print the message's repr


class ShapeError(DagnnError, ValueError):
    """Array shapes disagree with each other or with a layer's options."""


class DTypeError(DagnnError, TypeError):
    """Floating types differ where they must be the same; nothing is ever upcast silently."""


class OptionError(DagnnError, ValueError):
    """A layer or call got an option value it cannot have."""


class LabelError(DagnnError, ValueError):
    """A label is outside the valid range of classes; `sample` is its place in the batch."""

    sample: int | None = None


class BackendError(DagnnError, RuntimeError):
    """A backend is not installed, or an array belongs to another backend."""


class ReleasedError(DagnnError):
    """The value was computed and let go of to save memory."""


class MemoryBudgetError(DagnnError, MemoryError):
    """An evaluation can't be done within its memory budget; the message says what it needs."""


class OutOfMemoryError(DagnnError, MemoryError):
    """There was no memory for an array; the message says for what, how much is in use, and what helps."""


class PlaceholderError(DagnnError):
    """Evaluation reached a layer whose class is not known."""


class CheckError(DagnnError):
    """`check_layer` found a layer that breaks a promise: a wrong derivative, shape or round trip."""


class FileFormatError(DagnnError):
    """A file is damaged, truncated, too new, or not what it should be."""


class DataError(DagnnError):
    """Samples cannot be had, or are not what they should be."""


class TrainingError(DagnnError, ArithmeticError):
    """Training ran into numbers that are not finite."""


class MissingPackageError(DagnnError, ImportError):
    """An optional package that something needs is not installed."""


class UnreadableValueWarning(UserWarning):
    """A MAT-file holds values without a plain counterpart, such as functions and objects."""


class UnknownFieldWarning(UserWarning):
    """A file says something about a layer that has no meaning here; it was left out."""


REMEDIES = (
    "What helps: smaller batches (in training num_sub_batches), eval(..., memory_budget=...), "
    "mode 'test' where nothing is trained, net.backend.release_idle()"
)


def missing_package(what: str, package: str, extra: str) -> MissingPackageError:
    """The error for `what` needs an optional `package`, with the command that installs it.

    >>> print(missing_package("a picture of the curves", "matplotlib", "plots"))
    a picture of the curves needs matplotlib: pip install 'dagnn[plots]'
    """
    return MissingPackageError(f"{what} needs {package}: pip install 'dagnn[{extra}]'")


@contextmanager
def shortage_explained(memory_use: Callable[[], object]) -> Iterator[None]:
    """Within it, a MemoryError becomes an OutOfMemoryError that says how much is in use, and what helps.

    >>> with shortage_explained(lambda: "7 GB in use"):
    ...     raise MemoryError("Unable to allocate 8.00 GiB")
    Traceback (most recent call last):
    dagnn.errors.OutOfMemoryError: Not enough memory: Unable to allocate 8.00 GiB; 7 GB in use. What ...
    """
    try:
        yield
    except MemoryError as error:
        if isinstance(error, DagnnError):
            raise
        what = f"{str(error).rstrip('.') or 'an allocation failed'}; {memory_use()}"
        where = getattr(error, "__notes__", ())  # the layer, and what it had received
        raise OutOfMemoryError("\n".join([f"Not enough memory: {what}. {REMEDIES}", *where])) from error


def unknown_name(kind: str, name: object, names: Iterable[str]) -> UnknownNameError:
    """The error for a wrong name, with the nearest right ones.

    >>> print(unknown_name("layer", "conv", ["conv1", "conv2", "fc"]))
    No layer 'conv'. Did you mean 'conv2' or 'conv1'?
    """
    names = list(names)
    near = get_close_matches(str(name), names, n=3, cutoff=0.5)
    if near:
        hint = "Did you mean " + " or ".join(repr(n) for n in near) + "?"
    elif names:
        hint = f"There are: {shorten(names)}."
    else:
        hint = f"The network has no {kind}s yet."
    return UnknownNameError(f"No {kind} {name!r}. {hint}")


def shorten(names: Iterable[object], most: int = 12) -> str:
    """Names for a message: all of a few, the first of many.

    >>> shorten("abcdef", most=3)
    'a, b, c and 3 more'
    """
    words = [str(name) for name in names]
    tail = f" and {len(words) - most} more" if len(words) > most else ""
    return ", ".join(words[:most]) + tail
