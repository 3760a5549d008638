"""Statistics of training: files to read them from, and lines to follow them on the terminal."""

from __future__ import annotations

import csv
import json
from io import StringIO
from math import isfinite
from os import PathLike
from pathlib import Path
from typing import Any

from ..errors import FileFormatError, OptionError, shorten
from ..io.atomic import replacing

Stats = dict[str, dict[str, float]]  # of an epoch: {"train": {"objective": 0.31}, "val": {"objective": 0.40}}
History = list[Stats]  # of epochs 1, 2, ...

NOT_FINITE = {"nan": "NaN", "inf": "Infinity", "-inf": "-Infinity"}  # strings, since JSON has no such numbers
SKIPPED = "skipped_steps"  # the statistic of training that counts steps without derivatives to follow
VALUE_WIDTH = 6  # characters of a value in `epoch_line`


def write_stats(folder: str | PathLike[str], history: History) -> None:
    """Write the statistics to `stats.json` and `stats.csv` in `folder`, with all their digits.

    `stats.json` is {"epochs": [{"epoch": 1, "train": {"objective": 0.31}, "val": {...}}, ...]}; `stats.csv`
    has a column for every statistic, such as `val.objective`, and is empty where an epoch lacks it. Values
    that aren't finite are "NaN", "Infinity" or "-Infinity". Each file is replaced when it is complete.

    >>> write_stats(".", [{"train": {"objective": 0.5}}, {"train": {"objective": 0.25, "top1err": 0.1}}])
    >>> print(Path("stats.csv").read_text())
    epoch,train.objective,train.top1err
    1,0.5,
    2,0.25,0.1
    """
    epochs = [
        {"epoch": epoch} | {name: _mapped(_written, values) for name, values in stats.items()}
        for epoch, stats in enumerate(history, 1)
    ]
    lines = ",\n".join(json.dumps(epoch, allow_nan=False) for epoch in epochs)
    with replacing(Path(folder) / "stats.json") as file:
        file.write(f'{{"epochs": [\n{lines}\n]}}\n'.encode())
    with replacing(Path(folder) / "stats.csv") as file:
        file.write(_table(history).encode())


def read_stats(path: str | PathLike[str]) -> History:
    """The statistics in a file `stats.json`, exactly as they were written.

    Raises FileFormatError where the file is damaged or another one.

    >>> history = [{"train": {"objective": 1 / 3}, "val": {"objective": float("inf")}}]
    >>> write_stats(".", history)
    >>> read_stats("stats.json") == history
    True
    """
    try:
        return [_epoch(number, entry) for number, entry in enumerate(_epochs(Path(path).read_bytes()), 1)]
    except FileFormatError as error:
        error.prefix(str(path))
        raise


def epoch_line(epoch: int, num_epochs: int, stats: Stats, speed: float | None = None) -> str:
    """The statistics of an epoch in a line; lines of one training align. `speed` is in samples per second.

    >>> for epoch, err in enumerate((0.5, 0.0000821), 9):
    ...     print(epoch_line(epoch, 10, {"train": {"top1err": err}, "val": {"top1err": 1.5 * err}}, 1234.5))
    epoch  9/10  train top1err 0.5000 | val top1err 0.7500 | 1234 samples/s
    epoch 10/10  train top1err 8.2e-5 | val top1err 1.2e-4 | 1234 samples/s
    """
    parts = [
        f"{name} " + "  ".join(f"{key} {short(value):>{VALUE_WIDTH}}" for key, value in values.items())
        for name, values in stats.items()
        if values
    ]
    if speed is not None:
        parts.append(f"{speed:.{0 if speed >= 10 else 1}f} samples/s")
    return f"epoch {epoch:{len(str(num_epochs))}}/{num_epochs}  " + " | ".join(parts)


def value_of(stats: Stats, name: str) -> float:
    """The statistic of an epoch by its full name; OptionError if there is none.

    >>> value_of({"train": {"objective": 0.31}, "val": {"objective": 0.4}}, "val.objective")
    0.4
    """
    part, _, key = name.partition(".")
    if key not in stats.get(part, {}):
        there = shorten(f"{part}.{key}" for part, values in stats.items() for key in values) or "none"
        raise OptionError(f"No statistic {name!r} in this epoch. There are: {there}")
    return stats[part][key]


def short(value: float) -> str:
    """A value in at most six characters (seven for an exponent of two digits).

    >>> [short(value) for value in (0.08125, 123.456, -0.5, 0.000123, 1234567, float("nan"))]
    ['0.0813', '123.46', '-0.500', '1.2e-4', '1.2e6', 'nan']
    """
    if value == 0 or not abs(value) < 1e-3:
        for decimals in range(4, -1, -1):
            text = f"{value:.{decimals}f}"
            if len(text) <= VALUE_WIDTH:
                return text
    mantissa, exponent = f"{value:.1e}".split("e")
    return f"{mantissa}e{int(exponent)}"


# ---- writing


def _mapped(function: Any, values: dict[str, Any]) -> dict[str, Any]:
    return {name: function(value) for name, value in values.items()}


def _written(value: float) -> float | str:
    value = float(value)
    return value if isfinite(value) else NOT_FINITE[str(value)]


def _table(history: History) -> str:
    """The statistics as CSV: first all of "train", then all of "val", as they appear."""
    found = dict.fromkeys(
        (part, key) for stats in history for part, values in stats.items() for key in values
    )
    parts = list(dict.fromkeys(part for part, _ in found))
    columns = sorted(found, key=lambda column: parts.index(column[0]))
    text = StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(["epoch", *(f"{part}.{key}" for part, key in columns)])
    for epoch, stats in enumerate(history, 1):
        values = [stats.get(part, {}).get(key) for part, key in columns]
        table.writerow([epoch, *("" if value is None else _written(value) for value in values)])
    return text.getvalue()


# ---- reading


def _epochs(content: bytes) -> list[Any]:
    try:
        found = json.loads(content.decode(), parse_int=float, parse_constant=_constant)
    except RecursionError:
        raise FileFormatError("it is no file of statistics: its lists are nested too deeply") from None
    except ValueError as error:  # no UTF-8 or no JSON
        raise FileFormatError(f"it is no JSON: {error}") from None
    if not isinstance(found, dict) or not isinstance(found.get("epochs"), list):
        raise FileFormatError('it has no list "epochs"')
    return found["epochs"]


def _constant(word: str) -> None:
    raise FileFormatError(f"it has the number {word}, which JSON does not have")


def _epoch(number: int, entry: Any) -> Stats:
    if not isinstance(entry, dict) or entry.pop("epoch", None) != number:
        raise FileFormatError(f"epoch {number} is missing, or not in its place")
    for part, values in entry.items():
        if not isinstance(values, dict):
            raise FileFormatError(f"epoch {number}: {part!r} should have statistics by name")
        for key, value in values.items():
            values[key] = _value(value, f"epoch {number}: {part}.{key}")
    return entry


def _value(value: Any, where: str) -> float:
    if isinstance(value, str) and value in NOT_FINITE.values():
        return float(value)
    if type(value) is not float or not isfinite(value):
        raise FileFormatError(f"{where} is no number. Received: {value!r:.50}")
    return value
