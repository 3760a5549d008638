"""Drawings of networks as SVG.

Every layer is a card, coloured by kind, with its output variables as tabs on its lower edge; the inputs of
the net are yellow pills, its outputs dark tabs.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from html import escape
from itertools import pairwise
from os import PathLike
from pathlib import Path
from typing import TYPE_CHECKING, Any

from .graph import layer_order
from .layers.placeholder import Placeholder
from .layout import MARGIN, Box, Edge, Hop, Key, Layout

if TYPE_CHECKING:
    from .geometry import Shape
    from .layers.layer import Layer
    from .net import DagNN
    from .variables import Node

KINDS = {  # kind: (fill, line, class names)
    "convolution": ("#e1ebfb", "#3f6fb5", "Conv ConvTranspose"),
    "pooling": ("#dff3e5", "#3a8a56", "Pooling ROIPooling"),
    "activation": ("#fdefdb", "#c07a1f", "ReLU Sigmoid Tanh SoftMax DropOut"),
    "normalisation": ("#ede6f9", "#7a55b8", "BatchNorm LRN NormalizeLp SpatialNorm NormOffset"),
    "wiring": ("#dcf1f2", "#2b8088", "Sum Concat Scale Crop Reshape Permute Slice Split"),
    "sampling": ("#ebf3d3", "#6f8a1e", "BilinearSampler AffineGridGenerator UniformScalingGridGenerator"),
    "loss": ("#fbe3e4", "#bb3e48", "Loss PDist LossSmoothL1"),
    "input": ("#fff6cc", "#b39412", ""),
    "other": ("#eeeeee", "#707070", ""),
}
SHARED = ("#d6409f", "#0f8f6f", "#5b5bd6", "#b5630a", "#0b7fb3", "#a144af", "#6b7d00", "#c23a2b")
INK, PALE, LINE = "#1f2430", "#5d6470", "#8a919e"

PAD, BODY, MARK, TAB, PILL = 12, 40, 14, 18, 26  # px: room at the sides of a text; heights
LONGEST = 40  # characters of a line before it is cut


def draw(
    net: DagNN,
    path: str | PathLike[str] | None = None,
    input_shapes: Mapping[str, Shape] | None = None,
) -> str:
    """The network as SVG text, also written to `path` if given; `input_shapes` adds the variables' sizes.

    Hovering over a card shows the layer's options and parameters. Layers that share parameters carry a mark
    of one colour; where they stand side by side a dashed line joins them.

    >>> import dagnn
    >>> from dagnn.draw import draw
    >>> net = dagnn.DagNN()
    >>> net.add_layer("relu", dagnn.ReLU(), "x", "y")
    >>> draw(net, input_shapes={"x": (1, 3, 8, 8)})[:4]
    '<svg'
    """
    layout = Layout(*_cards(net, net.var_shapes(input_shapes or {})))
    svg = _svg(layout, f"Network of {len(net.layers)} layers")
    if path is not None:
        Path(path).write_text(svg, encoding="utf-8")
    return svg


# ---- what is drawn


@dataclass
class Card(Box):
    """What a box of the layout shows: a layer, or an input of the net."""

    kind: str = "other"
    title: str = ""
    text: str = ""
    tooltip: str = ""
    shared: str = ""  # names of the parameters it shares with other layers
    mark: str = ""  # their colour
    tabs: list[tuple[str, float]] = field(default_factory=list)  # the output variables: text, width
    last: list[bool] = field(default_factory=list)  # which of them are outputs of the net


def _cards(net: DagNN, shapes: Mapping[str, Shape]) -> tuple[list[Box], list[Edge]]:
    """The cards in order of execution, and the edges between them."""
    readers: dict[str, list[Key]] = defaultdict(list)
    for node in net.layers.values():
        for name in dict.fromkeys(node.inputs):
            readers[name].append(("layer", node.name))
    marks = _marks(net)
    cards: list[Box] = []
    edges: list[Edge] = []
    for name in net.inputs:
        text = _labelled(name, shapes)
        width = text_width(text, 12) + 2 * PAD
        card = Card(("input", name), width, PILL, kind="input", text=text, tooltip=f"input {name}")
        cards.append(card)
        edges += [(card.key, 0, reader) for reader in readers[name]]
    for name in layer_order(net.graph()):
        node = net.layers[name]
        card = _layer_card(net, node, shapes, marks)
        card.last = [not readers[var] for var in node.outputs]
        cards.append(card)
        edges += [(card.key, port, r) for port, var in enumerate(node.outputs) for r in readers[var]]
    return cards, edges


def _layer_card(net: DagNN, node: Node, shapes: Mapping[str, Shape], marks: Mapping[str, str]) -> Card:
    class_name, options = type(node.layer).__name__, _options(node.layer)
    if isinstance(node.layer, Placeholder):
        class_name, options = node.layer.class_name, ["unknown"]
    title = elide(node.name, LONGEST)
    text = _fitted(class_name, options)
    own = [name for name in node.params if name in marks]
    shared = elide("shares " + ", ".join(own), LONGEST) if own else ""
    labels = [_labelled(var, shapes) for var in node.outputs]
    tabs = [(label, text_width(label, 11) + 16) for label in labels]
    row = sum(width for _, width in tabs) + 6 * (len(tabs) - 1)
    texts = (text_width(title, 13, bold=True), text_width(text, 11), text_width(shared, 10) + 12)
    ports, left = [], -row / 2
    for _, width in tabs:
        ports.append(left + width / 2)
        left += width + 6
    return Card(
        ("layer", node.name),
        max(*texts, row) + 2 * PAD,
        BODY + MARK * bool(own) + TAB,
        ports,
        kind=next((kind for kind, (_, _, names) in KINDS.items() if class_name in names.split()), "other"),
        title=title,
        text=text,
        tooltip="\n".join([f"{node.name}: {class_name}", *options, *(_sized(net, p) for p in node.params)]),
        shared=shared,
        mark=marks[own[0]] if own else "",
        tabs=tabs,
    )


def _marks(net: DagNN) -> dict[str, str]:
    """The colour of every parameter that several layers share; one colour for one group of layers."""
    users: dict[str, list[str]] = defaultdict(list)
    for node in net.layers.values():
        for name in dict.fromkeys(node.params):
            users[name].append(node.name)
    shared = {name: tuple(layers) for name, layers in users.items() if len(layers) > 1}
    groups = list(dict.fromkeys(shared.values()))
    return {name: SHARED[groups.index(layers) % len(SHARED)] for name, layers in shared.items()}


def _fitted(class_name: str, options: Sequence[str]) -> str:
    """The class and as many options as fit on a line; the tooltip has them all."""
    for shown in range(len(options), 0, -1):
        cut = ", …" * (shown < len(options))
        text = f"{class_name}  {', '.join(options[:shown])}{cut}"
        if len(text) <= LONGEST:
            return text
    return elide(class_name, LONGEST) + "  …" * bool(options)


def _sized(net: DagNN, name: str) -> str:
    """A parameter with its size, for a tooltip."""
    value = net.params[name].value
    return f"parameter {name}" + ("" if value is None else f" {_times(value.shape)}")


def _labelled(name: str, shapes: Mapping[str, Shape]) -> str:
    """A variable with its size: C×H×W where there are four axes, otherwise all of them."""
    shape = shapes.get(name, ())
    return f"{elide(name, 24)}  {_times(shape[1:] if len(shape) == 4 else shape)}".strip()


def _times(shape: Sequence[int]) -> str:
    return "×".join(map(str, shape))


def _options(layer: Layer) -> list[str]:
    """The options that are not at their defaults."""
    options = []
    for option in fields(layer):
        value = getattr(layer, option.name)
        default = option.default if option.default_factory is MISSING else option.default_factory()
        plain = value[0] if isinstance(value, tuple) and len(set(value)) == 1 else value
        if default not in (value, plain):
            options.append(_option(option.name, value if option.name == "size" else plain))
    return options


def _option(name: str, value: Any) -> str:
    if isinstance(value, bool):
        return name if value else f"no {name.removeprefix('has_')}"
    if isinstance(value, float):
        value = f"{value:g}"
    return f"{name} {_times(value) if isinstance(value, tuple) else value}"


# ---- how it is drawn


def _svg(layout: Layout, title: str) -> str:
    width, height = layout.width, layout.height + 2 * MARGIN
    cards = [box for box in layout.boxes.values() if isinstance(box, Card)]
    lines = [
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{width:.0f}" height="{height:.0f}" '
        f'viewBox="0 0 {width:.0f} {height:.0f}" role="img" text-anchor="middle" '
        f"font-family=\"Helvetica, Arial, 'Liberation Sans', sans-serif\">",
        f"<title>{escape(title)}</title>",
        '<rect width="100%" height="100%" fill="white"/>',
        f'<g transform="translate(0 {MARGIN})">',
        f'<g fill="none" stroke="{LINE}" stroke-width="1.4">',
        *_edges(layout),
        "</g>",
        *_ties(layout),
        *(line for card in cards for line in _card(card)),
        "</g>",
        "</svg>",
    ]
    return "\n".join(lines) + "\n"


def _edges(layout: Layout) -> list[str]:
    """One path for every hop; those that end at a card get an arrow."""
    arriving: dict[Key, list[Hop]] = defaultdict(list)
    for hop in layout.hops.values():
        arriving[hop.target.key].append(hop)
    lines = []
    for hops in arriving.values():
        target = hops[0].target
        step = min(22, (target.width - 16) / len(hops))
        for i, hop in enumerate(sorted(hops, key=lambda hop: hop.start)):
            end = target.x + (i - (len(hops) - 1) / 2) * step if target.height else target.x
            lines.append(_hop(layout, hop, end))
    return lines


def _hop(layout: Layout, hop: Hop, end: float) -> str:
    arrow = 6 if hop.target.height else 0
    top = layout.bottoms[hop.source.rank]
    bottom = hop.target.y - arrow
    middle = (top + bottom) / 2
    way = (
        f"M{hop.start:.1f} {hop.source.y + hop.source.height:.1f}V{top:.1f}"
        f"C{hop.start:.1f} {middle:.1f} {end:.1f} {middle:.1f} {end:.1f} {bottom:.1f}"
    )
    if not arrow:
        return f'<path d="{way}"/>'
    head = f"M{end:.1f} {bottom + 5.5:.1f}l-3.5 -7h7z"
    return f'<path d="{way}"/><path d="{head}" fill="{LINE}" stroke="none"/>'


def _ties(layout: Layout) -> list[str]:
    """Dashed lines between neighbours that share parameters."""
    lines = []
    for rank in layout.ranks:
        cards = [box for box in rank if isinstance(box, Card)]
        for left, right in pairwise(cards):
            if left.mark and left.mark == right.mark:
                y = left.y + BODY + MARK / 2 - 3
                lines.append(
                    f'<path d="M{left.right:.1f} {y:.1f}H{right.left:.1f}" stroke="{left.mark}" '
                    f'stroke-width="1.4" stroke-dasharray="4 3" fill="none"/>'
                )
    return lines


def _card(card: Card) -> list[str]:
    fill, line, _ = KINDS[card.kind]
    x, y, left, width = card.x, card.y, card.left, card.width
    lines = [f"<g><title>{escape(card.tooltip)}</title>"]
    if card.kind == "input":
        lines.append(_rect(left, y, width, PILL, PILL / 2, fill, line))
        return [*lines, _text(x, y + 17, 12, card.text), "</g>"]
    body = card.height - TAB
    for (text, tab), port, last in zip(card.tabs, card.ports, card.last, strict=True):
        paper, ink = (line, "white") if last else ("white", INK)
        lines.append(_rect(x + port - tab / 2, y + body - 8, tab, TAB + 8, 6, paper, line))
        lines.append(_text(x + port, y + body + 13, 11, text, ink))
    lines.append(_rect(left, y, width, body, 7, fill, line))
    lines.append(_text(x, y + 17, 13, card.title, INK, "bold"))
    lines.append(_text(x, y + 32, 11, card.text, PALE))
    if card.shared:
        dot = x - text_width(card.shared, 10) / 2 - 3
        lines.append(f'<circle cx="{dot:.1f}" cy="{y + 43:.1f}" r="3" fill="{card.mark}"/>')
        lines.append(_text(x + 5, y + 46.5, 10, card.shared, card.mark))
    return [*lines, "</g>"]


def _rect(x: float, y: float, width: float, height: float, radius: float, fill: str, line: str) -> str:
    return (
        f'<rect x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="{radius}" '
        f'fill="{fill}" stroke="{line}" stroke-width="1.2"/>'
    )


def _text(x: float, y: float, size: float, text: str, colour: str = INK, weight: str = "normal") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" font-size="{size}" font-weight="{weight}" fill="{colour}" '
        f'xml:space="preserve">{escape(text)}</text>'
    )


def elide(text: str, longest: int) -> str:
    """`text`, its middle replaced by … where it is too long.

    >>> elide("inception_3a/5x5_reduce", 12)
    'incept…educe'
    """
    if len(text) <= longest:
        return text
    return text[: longest // 2] + "…" + text[len(text) - (longest - 1) // 2 :]


def text_width(text: str, size: float, bold: bool = False) -> float:
    """The width of a text in px in a font such as Helvetica, on the safe side."""
    em = 0.0
    for letter in text:
        if letter in "fijlrtI.,:;'|!()[]/ ":
            em += 0.32
        elif letter in "mwMW@…":
            em += 0.92
        elif letter.isupper():
            em += 0.72
        else:
            em += 0.58
    return em * size * (1.08 if bold else 1.0)
