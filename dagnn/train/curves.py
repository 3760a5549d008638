"""Pictures of training curves."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from io import BytesIO
from math import ceil
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from ..draw import INK, LINE, PALE, elide
from ..errors import OptionError, missing_package, shorten
from ..io.atomic import replacing
from .stats import SKIPPED, History, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

    Curve = tuple[np.ndarray, np.ndarray]  # epochs and values

FORMATS = (".png", ".svg", ".pdf")
SETS = {"train": ("#0072b2", 1.2), "val": ("#d55e00", 1.8)}  # colour, width of the line
# A palette that the colour-blind can tell apart: Okabe and Ito, "Color universal design", 2008.
COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#000000")
WIDTHS = {1: 5.6, 2: 8.4, 3: 10.8}  # inches, by panels in a row
HEIGHT = 3.0  # inches of a row
LONGEST = 40  # characters of a name
FEW = 30  # points of a curve that are marked one by one

LOSS = re.compile("objective|loss", re.IGNORECASE)
HIGHER = re.compile(
    r"accuracy|precision|recall|correct|(?<![a-z])(acc|auc|f1|iou|miou|ap|map|psnr|ssim)(?![a-z])", re.I
)


def plot(history: History, path: str | PathLike[str], title: str = "") -> None:
    """Draw the statistics over the epochs, one panel for each, "train" and "val" together.

    A ring marks the best epoch of "val", whose value stands above the panel: the lowest, or the highest of an
    accuracy, precision and the like, by its name. An objective or loss, by its name, that is positive and
    spans more than a decade gets a logarithmic scale. Values that aren't finite leave gaps.

    Parameters
    ----------
    history : what `Trainer.fit` returns, or `read_stats`.
    path : ends in .png, .svg or .pdf. The file is replaced when the picture is complete.

    Raises OptionError for other endings, MissingPackageError without matplotlib.

    >>> from dagnn.train import curves
    >>> history = [{"train": {"objective": 1 / n}, "val": {"objective": 1.5 / n}} for n in range(1, 20)]
    >>> curves.plot(history, "curves.svg", title="first")
    """
    names = [name for name in _names(history) if name != SKIPPED]
    columns = {0: 1, 1: 1, 2: 2, 4: 2}.get(len(names), 3)
    rows = max(1, ceil(len(names) / columns))
    fig = _figure(path, WIDTHS[columns], rows * HEIGHT)
    panels = fig.subplots(rows, columns, squeeze=False).ravel()
    for axes, name in zip(panels, names, strict=False):
        _panel(axes, history, name)
    for axes in panels[len(names) :]:
        axes.set_axis_off()
    for axes in panels[max(0, len(names) - columns) : len(names)]:
        axes.set_xlabel("epoch", color=PALE, fontsize=9)
    if title:
        text = elide(title, int(9 * WIDTHS[columns]) - 18)  # the legend stands beside it
        fig.suptitle(text, x=0.01, ha="left", color=INK, fontsize=13, parse_math=False)
    if all(any(stats.get(part) for stats in history) for part in SETS):
        _legend(fig, panels[0].lines[:2], list(SETS), loc="outside upper right", ncols=2)
    if not names:
        fig.text(0.5, 0.5, "no statistics", color=PALE, ha="center")
    _save(fig, path)


def compare(histories: Mapping[str, History], path: str | PathLike[str], statistic: str = "top1err") -> None:
    """Draw one statistic of several trainings: "val" solid, "train" dashed.

    Rings mark the best epochs of "val", whose values stand in the legend; see `plot`.

    Raises OptionError where a training has no such statistic.

    >>> from dagnn.train import curves
    >>> plain = [{"train": {"top1err": 1 / n}, "val": {"top1err": 1.5 / n}} for n in range(1, 20)]
    >>> faster = [{"train": {"top1err": 1 / n**2}, "val": {"top1err": 1.5 / n**2}} for n in range(1, 20)]
    >>> curves.compare({"plain": plain, "batch norm": faster}, "compared.png")
    """
    if not histories:
        raise OptionError("compare needs the history of at least one training. Received: none")
    for label, history in histories.items():
        if statistic not in _names(history):
            there = shorten(_names(history)) or "none"
            raise OptionError(f"{label!r} has no statistic {statistic!r}. There are: {there}")
    fig = _figure(path, WIDTHS[2], max(3.8, 0.6 + 0.42 * len(histories)))
    axes = fig.subplots()
    handles, labels, few = [], [], FEW // len(histories)
    for (label, history), colour in zip(histories.items(), _colours(len(histories)), strict=True):
        train, val = (_curve(history, part, statistic) for part in SETS)
        dashed = _line(axes, train, few, color=colour, linewidth=1.0, linestyle=(0, (4, 2)), alpha=0.8)
        solid = _line(axes, val, few, color=colour, linewidth=1.8)
        handles.append(solid if len(val[0]) else dashed)
        labels.append(elide(label, LONGEST))
        if best := _best(val, statistic):
            _ring(axes, best, colour)
            labels[-1] += f"\nbest {short(best[1])} in epoch {best[0]}"
    _finish(axes, statistic, max(map(len, histories.values())))
    axes.set_xlabel("epoch", color=PALE, fontsize=9)
    _title(axes, statistic, "solid: val, dashed: train", PALE)
    _legend(fig, handles, labels, loc="outside right upper", labelspacing=0.9)
    _save(fig, path)


# ---- panels


def _panel(axes: Axes, history: History, name: str) -> None:
    for part, (colour, width) in SETS.items():
        curve = _curve(history, part, name)
        _line(axes, curve, color=colour, linewidth=width)
    best = _best(curve, name)  # of "val", the last of the two
    if best:
        _ring(axes, best, colour)
        _title(axes, name, f"best val {short(best[1])} in epoch {best[0]}", colour)
    else:
        _title(axes, name, "train", SETS["train"][0])
    _finish(axes, name, len(history))


def _title(axes: Axes, name: str, note: str, colour: str) -> None:
    axes.set_title(elide(name, LONGEST), loc="left", color=INK, fontsize=11, pad=20, parse_math=False)
    axes.annotate(
        note, (0, 1), (0, 6), xycoords="axes fraction", textcoords="offset points", color=colour, fontsize=9
    )


def _line(axes: Axes, curve: Curve, few: int = FEW, **style: Any) -> Any:
    """A curve, with markers where it has few points, and on points that no line reaches."""
    epochs, values = curve
    marked = np.isfinite(values)
    if len(values) > few:
        gap = np.pad(~marked, 1, constant_values=True)
        marked &= gap[:-2] & gap[2:]
    where = np.flatnonzero(marked).tolist()
    marker = "o" if where else None
    return axes.plot(epochs, values, marker=marker, markersize=3.5, markevery=where, **style)[0]


def _ring(axes: Axes, best: tuple[int, float], colour: str) -> None:
    axes.plot(
        *best, "o", markersize=8, markerfacecolor="none", color=colour, markeredgewidth=1.4, clip_on=False
    )


def _finish(axes: Axes, name: str, epochs: int) -> None:
    """Scales, ticks and grid, when all curves are drawn."""
    from matplotlib.ticker import LogLocator, MaxNLocator, NullLocator, StrMethodFormatter

    values = np.concatenate([line.get_ydata() for line in axes.lines])
    values = values[np.isfinite(values)]
    if LOSS.search(name) and len(values) and 0 < 10 * values.min() < values.max():
        axes.set_yscale("log")
        subs = (1, 2, 5) if values.max() < 300 * values.min() else (1,)
        axes.yaxis.set_major_locator(LogLocator(subs=subs))
        axes.yaxis.set_minor_locator(NullLocator())
    if not len(values):
        axes.set_axis_off()
        axes.text(0.5, 0.5, "nothing finite", transform=axes.transAxes, color=PALE, ha="center")
    axes.yaxis.set_major_formatter(StrMethodFormatter("{x:.10g}"))
    margin = min(0.5, 0.04 * (epochs - 1)) or 0.5
    axes.set_xlim(1 - margin, epochs + margin)
    axes.xaxis.set_major_locator(MaxNLocator(6, steps=[1, 2, 5, 10], integer=True, min_n_ticks=1))
    axes.tick_params(colors=PALE, labelsize=9, length=0)
    axes.grid(color=LINE, alpha=0.2, linewidth=0.8)
    axes.set_axisbelow(True)
    axes.spines[:].set_visible(False)


# ---- figures


def _figure(path: str | PathLike[str], width: float, height: float) -> Figure:
    """A figure without pyplot, which needs no screen and shares nothing with other threads."""
    if Path(path).suffix.lower() not in FORMATS:
        raise OptionError(f"a picture's name ends in {', '.join(FORMATS)}. Received: {str(path)!r}")
    try:
        from matplotlib.figure import Figure
        from matplotlib.layout_engine import ConstrainedLayoutEngine
    except ImportError:
        raise missing_package("a picture of the training curves", "matplotlib", "plots") from None
    layout = ConstrainedLayoutEngine(w_pad=0.1, h_pad=0.1)
    return Figure(figsize=(width, height), layout=layout, facecolor="white")


def _legend(fig: Figure, handles: Sequence[Any], labels: Sequence[str], **options: Any) -> None:
    legend = fig.legend(handles, labels, frameon=False, fontsize=9, labelcolor=INK, **options)
    for text in legend.get_texts():
        text.set_parse_math(False)


def _colours(number: int) -> Sequence[Any]:
    """Colours that differ: of the palette, or, where it doesn't reach, from dark to light."""
    from matplotlib import colormaps

    if number <= len(COLOURS):
        return COLOURS[:number]
    return list(colormaps["viridis"](np.linspace(0, 0.9, number)))


def _save(fig: Figure, path: str | PathLike[str]) -> None:
    picture = BytesIO()
    fig.savefig(picture, format=Path(path).suffix[1:].lower(), dpi=130)
    with replacing(path) as file:
        file.write(picture.getvalue())


# ---- what is drawn


def _names(history: History) -> list[str]:
    return list(dict.fromkeys(name for part in SETS for stats in history for name in stats.get(part, {})))


def _curve(history: History, part: str, name: str) -> Curve:
    """The epochs that have the statistic, and its values; what isn't finite is nan."""
    found = [(n, stats[part][name]) for n, stats in enumerate(history, 1) if name in stats.get(part, {})]
    epochs, values = np.array(found, float).reshape(-1, 2).T
    return epochs, np.where(np.isfinite(values), values, np.nan)


def _best(curve: Curve, name: str) -> tuple[int, float] | None:
    """Epoch and value of the best point, if any is finite."""
    epochs, values = curve
    if np.all(np.isnan(values)):
        return None
    k = np.nanargmax(values) if HIGHER.search(name) else np.nanargmin(values)
    return int(epochs[k]), float(values[k])
