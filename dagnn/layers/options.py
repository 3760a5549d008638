"""Checks of option values: each returns the value in its plain form or raises OptionError."""

from __future__ import annotations

from collections.abc import Sequence
from math import inf
from operator import index
from typing import Any

from ..errors import OptionError

PairLike = Any
"""What `geometry.pair` takes: one number for both, or (vertical, horizontal). Layers hold the latter."""
QuadLike = Any
"""What `geometry.quad` takes: one number for all, or (top, bottom, left, right). Layers hold the latter."""


def one_of(option: str, value: str, allowed: Sequence[str]) -> str:
    """`value`, which is one of the `allowed` words.

    >>> one_of("method", "max", ("max", "avg"))
    'max'
    """
    if value not in allowed:
        raise OptionError(f"{option} is one of {', '.join(allowed)}. Received: {value!r}")
    return value


def flag(option: str, value: Any) -> bool:
    """`value`, which is true or false and nothing that merely counts as it.

    >>> flag("has_bias", True)
    True
    """
    if value not in (True, False) or isinstance(value, str):
        raise OptionError(f"{option} is True or False. Received: {value!r}")
    return bool(value)


def whole(option: str, value: Any, least: int = 0) -> int:
    """`value` as an int of at least `least`.

    >>> whole("top_k", 5, least=1)
    5
    """
    try:
        number = int(value) if isinstance(value, float) and value.is_integer() else index(value)
    except TypeError:
        raise OptionError(f"{option} takes a whole number. Received: {value!r}") from None
    if number < least:
        raise OptionError(f"{option} must be at least {least}. Received: {value!r}")
    return number


def real(option: str, value: Any, least: float = -inf, above: float = -inf, below: float = inf) -> float:
    """`value` as a float with `least` <= value, `above` < value < `below`.

    >>> real("rate", 0, least=0, below=1)
    0.0
    """
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise OptionError(f"{option} takes a number. Received: {value!r}") from None
    if not (least <= number and above < number < below):
        bounds = [f"at least {least}"] * (least > -inf) + [f"more than {above}"] * (above > -inf)
        bounds += [f"less than {below}"] * (below < inf)
        raise OptionError(f"{option} must be {' and '.join(bounds) or 'finite'}. Received: {value!r}")
    return number


def sizes(option: str, value: Sequence[int], meaning: str, least: int = 1) -> Any:
    """`value` as a tuple of ints, one for each of the comma-separated names in `meaning`.

    >>> sizes("size", [8, 3, 5, 5], "K, C/groups, h, w")
    (8, 3, 5, 5)
    """
    values = integers(option, value, least)
    n = len(meaning.split(","))
    if len(values) != n:
        raise OptionError(f"{option} takes {n} whole numbers ({meaning}). Received: {value!r}")
    return values


def integers(option: str, value: Sequence[int], least: int | None = None) -> tuple[int, ...]:
    """`value` as a tuple of ints of at least `least`.

    >>> integers("axes", [0, 1])
    (0, 1)
    """
    try:
        values = tuple(index(v) for v in value)
    except TypeError:
        raise OptionError(f"{option} takes whole numbers. Received: {value!r}") from None
    if least is not None and min(values, default=least) < least:
        raise OptionError(f"{option} must be at least {least}. Received: {value!r}")
    return values


def reals(option: str, value: Sequence[float], meaning: str) -> tuple[float, ...]:
    """`value` as a tuple of floats, one for each of the comma-separated names in `meaning`.

    >>> reals("param", [1, 0.5], "alpha, beta")
    (1.0, 0.5)
    """
    try:
        values = tuple(real(option, v) for v in value)
    except TypeError:
        values = ()
    n = len(meaning.split(","))
    if len(values) != n:
        raise OptionError(f"{option} takes {n} numbers ({meaning}). Received: {value!r}")
    return values
