"""Writing a file all or nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from errno import EISDIR
from io import BufferedRandom
from secrets import token_hex


@contextmanager
def replacing(path: str | os.PathLike[str]) -> Iterator[BufferedRandom]:
    """A file to write in, which takes the place of `path` when it is complete and on the disk."""
    target = os.path.realpath(path)
    if os.path.isdir(target):
        raise IsADirectoryError(EISDIR, os.strerror(EISDIR), os.fspath(path))
    folder, name = os.path.split(target)
    temporary = os.path.join(folder, f".{name[:40]}.{token_hex(8)}.part")
    try:
        with open(temporary, "x+b") as file:
            yield file
            file.flush()
            with suppress(FileNotFoundError):
                os.chmod(temporary, os.stat(target).st_mode)
            os.fsync(file.fileno())
        os.replace(temporary, target)
    except BaseException as error:
        with suppress(OSError):
            os.unlink(temporary)
        if isinstance(error, OSError) and error.errno and error.filename in (None, temporary):
            raise type(error)(error.errno, error.strerror, os.fspath(path)) from None
        raise
    with suppress(OSError):  # makes the rename durable, where folders can be opened
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
