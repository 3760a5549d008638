"""The table of a SimpleNN: what MatConvNet's `vl_simplenn_display` prints."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import isnan, nan, prod
from typing import TYPE_CHECKING, Any

import numpy as np

from ..errors import DagnnError, OptionError, PlaceholderError
from ..geometry import ReceptiveField
from ..layers import BatchNorm, Conv, ConvTranspose, Loss, PDist
from ..layers.layer import Layer
from .layers import Link, block, is_custom

if TYPE_CHECKING:
    from .chain import SimpleNN

NUMBERS = tuple[float, ...]  # sizes, NaN where they are not known
ABBREVIATIONS = {"normalize": "norm", "softmax": "softmx", "softmaxloss": "softmxl"}
RULE = "-"
ROWS = (
    *("layer", "type", "name", RULE),
    *("support", "filt dim", "filt dilat", "num filts", "stride", "pad", RULE),
    *("rf size", "rf offset", "rf stride", RULE),
    *("data size", "data depth", "data num", RULE),
    *("data mem", "param mem"),
)


@dataclass
class _Column:
    """What the table says of one layer, or of the input; `shape` and `field` are those behind it."""

    cells: dict[str, str]
    shape: NUMBERS
    field: ReceptiveField | None
    weights: int = 0


def table(net: SimpleNN, input_shape: Sequence[int] | None, batch_size: int | None, columns: int) -> str:
    """See `SimpleNN.display`."""
    itemsize = next((w.itemsize for link in net.layers for w in link["weights"] if w is not None), 4)
    shape = _input_shape(net.meta, input_shape, batch_size)
    seen = [_Column({"layer": "0", "type": "input"}, shape, ReceptiveField())]
    for k, link in enumerate(net.layers):
        seen.append(_layer(k, link, seen[-1]))
    for k, column in enumerate(seen):
        n, depth, *size = column.shape
        column.cells |= {"data size": _dims(size), "data depth": _dims([depth]), "data num": _dims([n])}
        column.cells["data mem"] = _memory(prod(column.shape) * itemsize)
        if k:
            column.cells["param mem"] = _memory(column.weights * itemsize)
    lines = []
    for start in range(0, len(seen), columns):
        chosen = [column.cells for column in seen[start : start + columns]]
        lines += _grid(
            [row, *(RULE if row == RULE else cells.get(row, "n/a") for cells in chosen)] for row in ROWS
        )
        lines.append("")
    count, data = sum(c.weights for c in seen), sum(prod(c.shape) for c in seen)
    lines += _grid(
        [
            ["parameter memory", f"{_memory(count * itemsize)} ({count:.2g} parameters)"],
            ["data memory", f"{_memory(data * itemsize)} (for batch size {_dims(shape[:1])})"],
        ]
    )
    return "\n".join(lines)


def _input_shape(meta: Mapping[str, Any], given: Sequence[int] | None, batch_size: int | None) -> NUMBERS:
    """(N, C, H, W) with NaN for what nobody says; `meta` has [H W C N] as MatConvNet writes it."""
    if given is not None:
        n, c, h, w = _four(given)
    else:
        normalization = meta.get("normalization")
        size = meta.get("inputSize")
        if size is None and isinstance(normalization, Mapping):
            size = normalization.get("imageSize")
        known = [float(v) for v in np.ravel([] if size is None else size)[:4]]
        h, w, c, n = (*known, *(nan, nan, nan, 1.0)[len(known) :])
    return (n if batch_size is None else batch_size, c, h, w)


def _four(shape: Sequence[int]) -> NUMBERS:
    if len(shape) != 4:
        raise OptionError(f"input_shape takes 4 sizes (N, C, H, W). Received: {shape!r}")
    return tuple(shape)


def _layer(k: int, link: Link, before: _Column) -> _Column:
    kind = link["type"]
    shown = ABBREVIATIONS.get(kind, kind)
    if kind == "pool":
        shown = "apool" if link["method"] == "avg" else "mpool"
    cells = {"layer": str(k + 1), "type": shown, "name": link["name"]}
    count = sum(w.size for w in link["weights"] if w is not None)
    unknown = _Column(cells, (before.shape[0], nan, nan, nan), None, count)
    try:
        if is_custom(link):
            return unknown
        layer = block(link)
        shape = _output_shape(layer, link, before.shape)
    except PlaceholderError:
        return unknown
    except DagnnError as error:
        error.add_context(f"layers[{k}] {link['name']!r} ({kind})", f"x {before.shape}")
        raise
    field = ReceptiveField() if isinstance(layer, Loss | PDist) else layer.receptive_fields(1)[0]
    if field:
        cells |= {"support": _dims(field.size), "stride": _dims(field.stride), "pad": "0"}
    cells |= _operator(layer, link)
    if field := before.field and field and before.field.then(field):
        cells |= {
            "rf size": _dims(field.size),
            "rf offset": _dims(1 + offset for offset in field.offset),
            "rf stride": _dims(field.stride),
        }
    return _Column(cells, shape, field, count)


def _operator(layer: Layer, link: Link) -> dict[str, str]:
    """Window and filters of the layers that have them."""
    cells = {}
    if hasattr(layer, "pad"):
        cells["pad"] = _dims(layer.pad)
    if isinstance(layer, ConvTranspose):
        c, k, *window = layer.size
        cells |= {"support": _dims(window), "pad": _dims(-crop for crop in layer.crop)}
        cells |= {"filt dim": str(c // layer.num_groups), "num filts": str(k * layer.num_groups)}
    elif isinstance(layer, Conv) and link["weights"][0] is not None:
        cells |= {"filt dim": str(layer.size[1]), "num filts": str(layer.size[0])}
        cells["filt dilat"] = _dims(layer.dilate)
    return cells


def _output_shape(layer: Layer, link: Link, shape: NUMBERS) -> NUMBERS:
    n, c, h, w = shape
    if isinstance(layer, Loss | PDist):
        shapes = layer.output_shapes([shape, shape])
        return tuple(shapes[0]) or (1, 1, 1, 1)
    if isinstance(layer, Conv) and link["weights"][0] is None:
        ((_, _, *maps),) = layer.output_shapes([(n, 1, h, w)])
        return (n, c, *maps)
    if isnan(c):
        match layer:
            case Conv():
                c = layer.size[1]
            case ConvTranspose():
                c = layer.size[0]
            case BatchNorm():
                c = layer.num_channels
    return tuple(layer.output_shapes([(n, c, h, w)])[0])  # type: ignore[list-item]


# ---- text


def _memory(n: float) -> str:
    """Bytes in units of 1024, as MatConvNet writes them.

    >>> _memory(832), _memory(5_138_022)
    ('832B', '5MB')
    """
    for unit in ("B", "KB", "MB"):
        if n < 1024:
            return f"{n:.0f}{unit}"
        n /= 1024
    return "NaN" if isnan(n) else f"{n:.0f}GB"


def _dims(values: Iterable[float]) -> str:
    """Sizes as text, once where they agree.

    >>> _dims((3, 3)), _dims((0, 1, 0, 1))
    ('3', '0x1x0x1')
    """
    texts = ["NaN" if isnan(v) else f"{v:.4g}" for v in values]
    return texts[0] if len(set(texts)) == 1 else "x".join(texts)


def _grid(rows: Iterable[Sequence[str]]) -> list[str]:
    """Lines of right-aligned cells; a rule fills its cells."""
    rows = list(rows)
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "".join(
            (RULE * width if cell == RULE else cell.rjust(width)) + "|"
            for cell, width in zip(row, widths, strict=True)
        )
        for row in rows
    ]
