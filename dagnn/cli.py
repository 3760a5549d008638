"""The command `dagnn`."""

from __future__ import annotations

import argparse
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING

from . import __version__, load
from .errors import DagnnError, shorten
from .layers.placeholder import Placeholder

if TYPE_CHECKING:
    from .geometry import Shape

EXAMPLES = """\
examples:
  dagnn demo
  dagnn info net.h5
  dagnn summary net.h5 --input x=3x224x224
  dagnn summary net.h5 --input x=16x3x224x224 --input label=16
  dagnn draw net.h5 -o net.svg --input x=3x224x224

`dagnn COMMAND --help` says more about a command.
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        return args.run(args)
    except DagnnError as error:
        message = str(error)
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except KeyboardInterrupt:
        message = "interrupted"
    print("dagnn: error:", " ".join(message.split()), file=sys.stderr)
    return 1


def parser() -> argparse.ArgumentParser:
    """What the command line understands."""
    top = argparse.ArgumentParser(
        prog="dagnn",
        description="Neural networks that are directed acyclic graphs.",
        epilog=EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    top.add_argument("--version", action="version", version=f"dagnn {__version__}")
    commands = top.add_subparsers(title="commands", metavar="COMMAND", required=True)

    demo = commands.add_parser(
        "demo",
        help="train a network on handwritten digits, in under a minute",
        description="Train one network to read two handwritten digits and their sum, in under a minute; "
        "save it, draw it and show what it reads right and wrong.",
    )
    demo.add_argument("--out", metavar="DIR", default="dagnn-demo", help="where to (default: %(default)s)")
    demo.add_argument("--seed", type=int, default=0, help="of every random choice (default: %(default)s)")
    demo.set_defaults(run=_demo)

    info = commands.add_parser(
        "info",
        help="what a file holds",
        description="Layers, inputs, outputs, parameters and further information in a network file.",
    )
    info.set_defaults(run=_info)

    summary = commands.add_parser(
        "summary",
        help="a table of the layers: sizes, receptive fields, memory",
        description="A table of the layers; with --input, the sizes of everything.",
    )
    summary.set_defaults(run=_summary)

    draw = commands.add_parser(
        "draw",
        help="draw the network as SVG",
        description="Draw the network as SVG; with --input, with the sizes of its variables.",
    )
    draw.add_argument("-o", "--out", metavar="SVG", required=True, help="the file to write")
    draw.set_defaults(run=_draw)

    for command in (info, summary, draw):
        command.add_argument("file", metavar="FILE", help="a network saved by net.save")
    for command in (summary, draw):
        command.add_argument(
            "--input",
            dest="inputs",
            metavar="NAME=SIZE",
            type=input_shape,
            action="append",
            default=[],
            help="size of an input: x=3x224x224 (one image), x=16x3x224x224 (16 of them) or label=16; repeat "
            "for several inputs",
        )
    return top


def input_shape(text: str) -> tuple[str, Shape]:
    """The name and shape in "x=3x224x224"; three numbers are one image.

    >>> input_shape("x=3x224x224"), input_shape("label=16")
    (('x', (1, 3, 224, 224)), ('label', (16,)))
    """
    name, equals, size = text.rpartition("=")
    numbers = size.split("x")
    if not (name and equals and all(n.isdecimal() for n in numbers)):
        raise argparse.ArgumentTypeError(f"{text!r} is not like x=3x224x224")
    shape = tuple(map(int, numbers))
    return name, (1, *shape) if len(shape) == 3 else shape


def _demo(args: argparse.Namespace) -> int:
    from .demo import run

    return run(args.out, args.seed)


def _info(args: argparse.Namespace) -> int:
    from .summary import parameters

    net = load(args.file)
    layers = [node.layer for node in net.layers.values()]
    unknown = Counter(layer.class_name for layer in layers if isinstance(layer, Placeholder))
    kinds = Counter(type(layer).__name__ for layer in layers if not isinstance(layer, Placeholder))
    facts = {
        "layers": f"{len(layers)}: {_tally(kinds + unknown)}" if layers else "none",
        "inputs": shorten(net.inputs),
        "outputs": shorten(net.outputs),
        "parameters": parameters(net),
        "unknown": unknown and f"{_tally(unknown)} (supply the classes: dagnn.load(..., layers=...))",
        "meta": shorten(net.meta),
    }
    print(args.file)
    for fact, text in facts.items():
        if text:
            print(f"  {fact:<11} {text}")
    return 0


def _tally(kinds: Counter[str]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())


def _summary(args: argparse.Namespace) -> int:
    print(load(args.file).summary(dict(args.inputs)))
    return 0


def _draw(args: argparse.Namespace) -> int:
    from .draw import draw

    draw(load(args.file), args.out, dict(args.inputs))
    print(f"{args.out} written")
    return 0
