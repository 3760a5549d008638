"""Networks as text: a table of the layers, and the few lines of `repr`."""

from __future__ import annotations

import textwrap
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING

from .draw import elide
from .errors import shorten
from .graph import layer_order

if TYPE_CHECKING:
    from .geometry import ReceptiveField, Shape
    from .net import DagNN

WIDTH = 100  # characters
SHOWN = 14  # layers in a repr


def summarize(net: DagNN, input_shapes: Mapping[str, Shape]) -> str:
    """A table of the layers in order of execution, at most 100 characters wide.

    With `input_shapes`, the sizes of all variables: a layer's memory is that of its outputs. The receptive
    field is given as size/stride in pixels of the input; a parameter shared by several layers counts once,
    where it first appears.

    >>> import dagnn
    >>> net = dagnn.DagNN()
    >>> net.add_layer("conv", dagnn.Conv(size=(8, 1, 5, 5), pad=2), "x", "c")
    >>> net.add_layer("pool", dagnn.Pooling(pool_size=2, stride=2), "c", "y")
    >>> net.init_params()
    >>> print(net.summary({"x": (16, 1, 28, 28)}))
    layer  type     inputs  outputs  output size  field  parameters  memory
    -----------------------------------------------------------------------
    conv   Conv     x       c        16x8x28x28   5/1           208  401 kB
    pool   Pooling  c       y        16x8x14x14   6/2                100 kB
    -----------------------------------------------------------------------
    Inputs: x 16x1x28x28. Outputs: y 16x8x14x14.
    208 parameters in 2 arrays, 832 B float32; variables 552 kB, derivatives as much again.
    """
    shapes = net.var_shapes(input_shapes)
    itemsize = net.dtype.itemsize if net.dtype else 4
    fields = _fields(net)
    counted: set[str] = set()
    rows = []
    for name in layer_order(net.graph()):
        node = net.layers[name]
        sizes = [shapes[var] for var in node.outputs if var in shapes]
        rows.append(
            (
                name,
                type(node.layer).__name__,
                ", ".join(node.inputs),
                ", ".join(node.outputs),
                ", ".join(map(times, sizes)),
                _field(fields.get(node.outputs[0])),
                _count_params(net, node.params, counted),
                human_bytes(sum(map(prod, sizes)) * itemsize) if sizes else "",
            )
        )
        counted.update(node.params)
    heads = ("layer", "type", "inputs", "outputs", "output size", "field", "parameters", "memory")
    lines = table(heads, rows, elastic=(0, 2, 3, 4), right=(6, 7))
    ends = [f"Inputs: {_ends(net.inputs, shapes)}. Outputs: {_ends(net.outputs, shapes)}."]
    memory = sum(map(prod, shapes.values())) * itemsize
    total = f"; variables {human_bytes(memory)}, derivatives as much again" if shapes else ""
    return "\n".join([*lines, *_wrapped(ends), f"{parameters(net)}{total}."])


def describe(net: DagNN) -> str:
    """The few lines of `repr(net)`."""
    kinds = Counter(type(node.layer).__name__ for node in net.layers.values())
    lines = [
        f"DagNN ({net.backend.name}, {net.mode}): {_plural(len(net.layers), 'layer')}, {parameters(net)}",
        *_wrapped([f"inputs {shorten(net.inputs) or 'none'}; outputs {shorten(net.outputs) or 'none'}"]),
    ]
    if len(net.layers) > SHOWN:
        return "\n".join([*lines, *_wrapped([shorten(f"{n} {kind}" for kind, n in kinds.most_common())])])
    rows = [
        (f"  {node.name}", type(node.layer).__name__, ", ".join(node.inputs), "->", ", ".join(node.outputs))
        for node in net.layers.values()
    ]
    return "\n".join([*lines, *_aligned(rows, _widths(rows, elastic=(0, 2, 4)), ())])


def parameters(net: DagNN) -> str:
    """How many parameters, in how much memory.

    >>> import dagnn
    >>> parameters(dagnn.DagNN())
    'no parameters'
    """
    values = [param.value for param in net.params.values() if param.value is not None]
    if not net.params:
        return "no parameters"
    if not values:
        return f"{_plural(len(net.params), 'parameter array')} without values (see init_params)"
    count = human_count(sum(value.size for value in values))
    dtypes = ", ".join(dict.fromkeys(str(value.dtype) for value in values))
    memory = human_bytes(sum(value.nbytes for value in values))
    missing = len(net.params) - len(values)
    empty = f", {missing} more without values" if missing else ""
    return f"{count} parameters in {_plural(len(values), 'array')}, {memory} {dtypes}{empty}"


def human_bytes(n: float) -> str:
    """Bytes with three digits and a decimal unit.

    >>> human_bytes(832), human_bytes(5_138_022)
    ('832 B', '5.14 MB')
    """
    return _human(n, ("B", "kB", "MB", "GB", "TB"))


def human_count(n: float) -> str:
    """A number with three digits and k, M, G.

    >>> human_count(208), human_count(138_357_544)
    ('208', '138 M')
    """
    return _human(n, ("", "k", "M", "G", "T")).strip()


def _human(n: float, units: Sequence[str]) -> str:
    for unit in units[:-1]:
        if n < 999.5:
            return f"{n:.3g} {unit}"
        n /= 1000
    return f"{n:.3g} {units[-1]}"


def times(shape: Iterable[int]) -> str:
    """A shape as text.

    >>> times((16, 8, 28, 28)), times(())
    ('16x8x28x28', '1')
    """
    return "x".join(map(str, shape)) or "1"


def _fields(net: DagNN) -> dict[str, ReceptiveField | None]:
    """Per variable the largest of its receptive fields in the net's inputs."""
    largest: dict[str, ReceptiveField | None] = {}
    for name in net.inputs:
        for var, field in net.receptive_fields(name).items():
            other = largest.get(var)
            if field and (other is None or field.size > other.size):
                largest[var] = field
    return largest


def _field(field: ReceptiveField | None) -> str:
    """Size and stride, once where both axes agree."""
    if field is None:
        return ""
    size, stride = ("x".join(dict.fromkeys(f"{v:g}" for v in pair)) for pair in (field.size, field.stride))
    return f"{size}/{stride}"


def _count_params(net: DagNN, names: Sequence[str], counted: set[str]) -> str:
    """The parameters a layer adds to those already counted."""
    fresh = dict.fromkeys(name for name in names if name not in counted)
    sizes = [value.size for name in fresh if (value := net.params[name].value) is not None]
    if not fresh:
        return "shared" if names else ""
    return human_count(sum(sizes)) if len(sizes) == len(fresh) else "?"


def _ends(names: Iterable[str], shapes: Mapping[str, Shape]) -> str:
    return shorten(f"{name} {times(shapes[name])}" if name in shapes else name for name in names) or "none"


def _plural(n: int, what: str) -> str:
    return f"{n} {what}{'' if n == 1 else 's'}"


# ---- tables


def table(
    heads: Sequence[str],
    rows: Sequence[Sequence[str]],
    elastic: Sequence[int],
    right: Sequence[int],
    width: int = WIDTH,
) -> list[str]:
    """Lines of a table without its empty columns; the `elastic` ones give way where it is too wide."""
    used = [i for i in range(len(heads)) if any(row[i] for row in rows) or not rows]
    cells = [[row[i] for i in used] for row in (heads, *rows)]
    widths = _widths(cells, [used.index(i) for i in elastic if i in used], width)
    head, *body = _aligned(cells, widths, [used.index(i) for i in right if i in used])
    rule = "-" * max(len(line) for line in (head, *body))
    return [head, rule, *body, rule]


def _widths(cells: Sequence[Sequence[str]], elastic: Sequence[int], width: int = WIDTH) -> list[int]:
    """The columns' widths; the widest elastic ones shrink until a line fits."""
    widths = [max(map(len, column)) for column in zip(*cells, strict=True)]
    while sum(widths) + 2 * (len(widths) - 1) > width:
        widest = max(elastic, key=lambda i: widths[i])
        widths[widest] -= 1
    return widths


def _aligned(cells: Sequence[Sequence[str]], widths: Sequence[int], right: Sequence[int]) -> list[str]:
    lines = []
    for row in cells:
        texts = [elide(text, width) for text, width in zip(row, widths, strict=True)]
        padded = [
            text.rjust(width) if i in right else text.ljust(width)
            for i, (text, width) in enumerate(zip(texts, widths, strict=True))
        ]
        lines.append("  ".join(padded).rstrip())
    return lines


def _wrapped(texts: Iterable[str]) -> list[str]:
    return [line for text in texts for line in textwrap.wrap(text, WIDTH, subsequent_indent="  ")]
