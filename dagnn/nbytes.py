"""Numbers of bytes, and text that stands for them."""

from __future__ import annotations

import re
from math import ceil
from typing import Any

from .errors import OptionError

UNITS = {"B": 1} | {
    prefix + unit: base ** (k + 1)
    for unit, base in (("B", 1000), ("iB", 1024))
    for k, prefix in enumerate("kMGT")
}


def as_bytes(size: Any, what: str = "memory_budget") -> int:
    """A number of bytes; of text, with a decimal or binary unit. Anything else is an OptionError for `what`.

    >>> as_bytes("2GB"), as_bytes("1.5 GiB"), as_bytes(4096)
    (2000000000, 1610612736, 4096)
    """
    if isinstance(size, str):
        match = re.fullmatch(r"\s*(\d+\.?\d*|\.\d+)\s*([kmgt]?i?b)\s*", size, re.IGNORECASE)
        if match:
            units = {name.lower(): factor for name, factor in UNITS.items()}
            return round(float(match[1]) * units[match[2].lower()])
    elif hasattr(size, "__index__") and not isinstance(size, bool) and size.__index__() > 0:
        return size.__index__()
    raise OptionError(f'{what} is a number of bytes, or text such as "2GB" or "512MiB". Received: {size!r}')


def readable(nbytes: int) -> str:
    """A number of bytes as text that `as_bytes` takes, at least as large.

    >>> readable(1_301_000_000), readable(999)
    ('1.31 GB', '999 B')
    """
    unit, factor = next(((u, f) for u, f in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)) if nbytes >= f), ("B", 1))
    return f"{ceil(100 * nbytes / factor) / 100:g} {unit}"
