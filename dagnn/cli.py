"""The command `dagnn`."""

from __future__ import annotations

import argparse
import os
import sys
from collections import Counter
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from . import __version__, load
from .errors import DagnnError, OptionError, PlaceholderError, shorten
from .layers.placeholder import Placeholder
from .precision import NAMES

if TYPE_CHECKING:
    from .geometry import Shape
    from .net import DagNN

EXAMPLES = """\
examples:
  dagnn demo
  dagnn info net.mat
  dagnn run net.mat photo.jpg
  dagnn convert net.mat net.h5
  dagnn summary net.h5 --input x=3x224x224
  dagnn summary net.h5 --input x=16x3x224x224 --input label=16
  dagnn draw net.h5 -o net.svg --input x=3x224x224
  dagnn profile net.h5 --batch 16 --train
  dagnn train experiment.toml
  dagnn train experiment.toml --backend cupy
  dagnn evaluate experiment.toml --set test

`dagnn COMMAND --help` says more about a command.
"""
SETS = ("train", "val", "test")
FILE = "a network: MatConvNet's .mat, or what net.save wrote"


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    args = parser().parse_args(argv)
    try:
        return args.run(args)
    except PlaceholderError as error:  # it shows the lines that supply the class
        print(f"dagnn: error: {error}", file=sys.stderr)
        return 1
    except DagnnError as error:
        message = str(error)
    except MemoryError as error:
        message = f"not enough memory: {error}"
    except BrokenPipeError:  # whoever read our output has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        message = f"{error.filename}: {error.strerror}" if error.filename else str(error)
    except KeyboardInterrupt:
        message = "interrupted"
    lines = [" ".join(line.split()).rstrip(".") for line in message.splitlines()]
    print("dagnn: error:", ". ".join(lines), file=sys.stderr)
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
    demo.add_argument("--seed", type=natural, default=0, help="of every random choice (default: %(default)s)")
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

    profile = commands.add_parser(
        "profile",
        help="where the time of an evaluation goes, layer by layer",
        description="Evaluate the network on random inputs and take the time of every layer. Images have the "
        "size the file gives for them; --input says another one.",
    )
    profile.add_argument(
        "--batch", type=positive, metavar="N", help="images at once (default: 1, or --input's)"
    )
    profile.add_argument("--train", action="store_true", help="backward too, from an objective")
    profile.add_argument(
        "--objective", metavar="VAR", default="objective", help="where to begin (default: %(default)s)"
    )
    profile.add_argument(
        "--repeats",
        type=positive,
        default=5,
        metavar="N",
        help="evaluations to measure (default: %(default)s)",
    )
    profile.add_argument(
        "--threads", type=positive, metavar="N", help="threads to use (default: one for each core)"
    )
    profile.add_argument("--json", metavar="FILE", help="write the figures to this file too")
    profile.set_defaults(run=_profile)

    draw = commands.add_parser(
        "draw",
        help="draw the network as SVG",
        description="Draw the network as SVG; with --input, with the sizes of its variables.",
    )
    draw.add_argument("-o", "--out", metavar="SVG", required=True, help="the file to write")
    draw.set_defaults(run=_draw)

    run = commands.add_parser(
        "run",
        help="apply a network to an image",
        description="Classify an image, or make an image of it with a network that does.",
    )
    run.add_argument("file", metavar="FILE", help=FILE)
    run.add_argument("image", metavar="IMAGE", help="a picture")
    run.add_argument("--input", metavar="VAR", default="", help="the variable that takes the image")
    run.add_argument("--output", metavar="VAR", default="", help="the variable to compute")
    run.add_argument("--top", type=int, default=5, metavar="N", help="classes to list (default: %(default)s)")
    run.add_argument("--save", metavar="IMAGE", help="write the output as a picture")
    run.add_argument("--residual", action="store_true", help="the output is noise: subtract it")
    run.add_argument(
        "--scale",
        type=float,
        metavar="S",
        help="multiply pixel values 0..255 by S (default: 1 if the file says how to normalise, else 1/255)",
    )
    run.set_defaults(run=_run)

    train = commands.add_parser(
        "train",
        help="run an experiment that a TOML file describes",
        description="Train the network of an experiment on its data; see docs/training.md for the file.",
    )
    train.add_argument("--continue", dest="continue_", action="store_true", help="resume what was begun")
    train.set_defaults(run=_train)

    evaluate = commands.add_parser(
        "evaluate",
        help="the losses and errors of an experiment's network",
        description="Evaluate the network of an experiment on a set of its data.",
    )
    evaluate.add_argument("--net", metavar="FILE", help="of the parameters (default: the last checkpoint)")
    evaluate.add_argument(
        "--set", choices=SETS, default="val", help="of the data's samples (default: %(default)s)"
    )
    evaluate.set_defaults(run=_evaluate)
    for command in (train, evaluate):
        command.add_argument("file", metavar="CONFIG", help="the experiment, a TOML file")

    convert = commands.add_parser(
        "convert",
        help="from .mat to .h5 or back",
        description="Write the network of a file to another one; the ending .mat makes a MatConvNet file.",
    )
    convert.add_argument("file", metavar="FROM", help=FILE)
    convert.add_argument("to", metavar="TO", help="the file to write: .mat, or anything else for HDF5")
    convert.add_argument("--simplenn", action="store_true", help="write a chain as a SimpleNN, into a .mat")
    convert.set_defaults(run=_convert)

    for command in (profile, run, train, evaluate):
        command.add_argument(
            "--backend",
            type=backend,
            metavar="NAME",
            help="numpy, or cupy with its options: cupy,device=1,tf32=true (default: as the experiment says, "
            "else numpy)",
        )
        command.add_argument(
            "--precision",
            choices=("float32", *NAMES),
            help="what convolutions compute in, on parameters in float32 (default: as the experiment says, "
            "else float32)",
        )
    for command in (info, summary, profile, draw):
        command.add_argument("file", metavar="FILE", help=FILE)
    for command in (summary, profile, draw):
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


def backend(text: str) -> tuple[str, dict[str, Any]]:
    """The name and the options in "cupy,device=1,tf32=true".

    >>> backend("numpy"), backend("cupy,device=1,workspace_limit=256MiB")
    (('numpy', {}), ('cupy', {'device': 1, 'workspace_limit': '256MiB'}))
    """
    name, *options = text.split(",")
    pairs = [option.partition("=") for option in options]
    if not name or not all(key and value for key, _, value in pairs):
        raise argparse.ArgumentTypeError(f"{text!r} is not like cupy or cupy,device=1,tf32=true")
    words: dict[str, Any] = {"true": True, "false": False}
    return name, {k: int(v) if v.isdecimal() else words.get(v.lower(), v) for k, _, v in pairs}


def natural(text: str) -> int:
    """A whole number from 0."""
    if not text.isdecimal():
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 0")
    return int(text)


def positive(text: str) -> int:
    """A whole number from 1."""
    if not (text.isdecimal() and int(text)):
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from 1")
    return int(text)


def input_shape(text: str) -> tuple[str, Shape]:
    """The name and shape in "x=3x224x224"; three numbers are one image.

    >>> input_shape("x=3x224x224"), input_shape("label=16")
    (('x', (1, 3, 224, 224)), ('label', (16,)))
    """
    name, equals, size = text.rpartition("=")
    numbers = size.split("x")
    if not (name and equals and all(n.isdecimal() and int(n) for n in numbers)):
        raise argparse.ArgumentTypeError(f"{text!r} is not like x=3x224x224")
    shape = tuple(map(int, numbers))
    return name, (1, *shape) if len(shape) == 3 else shape


def _demo(args: argparse.Namespace) -> int:
    from .demo import run

    return run(args.out, args.seed)


def _info(args: argparse.Namespace) -> int:
    from .io import kind
    from .summary import parameters

    net = load(args.file)
    layers = [node.layer for node in net.layers.values()]
    unknown = Counter(layer.class_name for layer in layers if isinstance(layer, Placeholder))
    kinds = Counter(type(layer).__name__ for layer in layers if not isinstance(layer, Placeholder))
    facts = {
        "format": kind(args.file),
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


def _run(args: argparse.Namespace) -> int:
    from .images import write_image
    from .run import load as prepare

    run = prepare(args.file, input=args.input, output=args.output, scale=args.scale, residual=args.residual)
    _move(run.net, args)
    y = run(args.image)
    if args.save:
        picture = run.picture(y, args.image)
        write_image(args.save, picture)
        print(f"{args.save} written: {picture.shape[1]} x {picture.shape[0]} pixels")
    elif y.ndim == 3 and y.size == y.shape[0] > 1:
        for name, score in run.ranking(y, args.top):
            print(f"{score:7.1%}  {name}" if run.probabilities else f"{score:9.4f}  {name}")
    else:
        print(
            f"{run.output}: {'x'.join(map(str, y.shape))}, from {y.min():.4g} to {y.max():.4g}, "
            f"mean {y.mean():.4g}. Write it as a picture with --save"
        )
    return 0


def _move(net: DagNN, args: argparse.Namespace) -> None:
    """Move the net to the backend that --backend names, to compute in --precision."""
    if args.backend:
        name, options = args.backend
        net.move(name, **options)
    net.precision = args.precision


def _train(args: argparse.Namespace) -> int:
    from .train.experiment import Experiment

    experiment = Experiment.load(args.file, continue_=args.continue_, precision=args.precision)
    _move(experiment.net, args)
    experiment.trainer.fit(experiment.data)
    return 0


def _evaluate(args: argparse.Namespace) -> int:
    from .train.experiment import Experiment

    experiment = Experiment.load(args.file, precision=args.precision)
    _move(experiment.net, args)
    source = experiment.restore(args.net)
    samples = getattr(experiment.data, args.set)
    if not len(samples):
        raise OptionError(f"The data has no samples in its set {args.set!r}")
    print(f"{source}, {len(samples)} samples of the set {args.set!r}")
    for name, value in experiment.trainer.evaluate(experiment.data, samples).items():
        print(f"  {name:<11} {value:.6g}")
    return 0


def _convert(args: argparse.Namespace) -> int:
    from .simplenn import SimpleNN

    net = load(args.file)
    if args.simplenn:
        if not args.to.lower().endswith(".mat"):
            raise OptionError(f"--simplenn writes .mat files. Received: {args.to}")
        SimpleNN.from_dagnn(net).save(args.to)
    else:
        net.save(args.to)
    print(f"{args.to} written: {len(net.layers)} layers")
    return 0


def _tally(kinds: Counter[str]) -> str:
    return ", ".join(f"{n} {kind}" for kind, n in kinds.most_common())


def _summary(args: argparse.Namespace) -> int:
    print(load(args.file).summary(dict(args.inputs)))
    return 0


def _profile(args: argparse.Namespace) -> int:
    from .backends.numpy.threads import set_num_threads
    from .profile import example_inputs

    net = load(args.file)
    _move(net, args)
    net.mode = "train" if args.train else "test"
    inputs = example_inputs(net, dict(args.inputs), args.batch)
    set_num_threads(args.threads)
    try:
        profile = net.profile(inputs, {args.objective: 1} if args.train else None, repeats=args.repeats)
    finally:
        set_num_threads(None)
    print(profile)
    if args.json:
        profile.to_json(args.json)
    return 0


def _draw(args: argparse.Namespace) -> int:
    from .draw import draw

    draw(load(args.file), args.out, dict(args.inputs))
    print(f"{args.out} written")
    return 0
