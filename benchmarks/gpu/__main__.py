"""The command line: `python -m benchmarks.gpu`.

A figure is the median of turns of steps that follow each other, timed by the device; dagnn and its peers take
turns in one process. Before, predictions or derivatives are compared (see agreement.py). PyTorch (eager) runs
with cudnn.benchmark, in both memory layouts, of which the better one counts; torch.compile runs where Triton
is. Training in 16 bits is in mixed precision. dagnn tries cuDNN's plans too, and also those whose sums vary
from run to run. Memory is what a program takes of the device.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from itertools import product
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Any

from dagnn.backends.base import Backend
from dagnn.errors import BackendError, OptionError

from ..measure import choose, machine
from ..nets import CASES, convolutions
from ..works import LAYOUTS, PHASES
from .works import PRECISIONS, Backends, Setting, backend_of

TABLE_1_1 = ("alexnet", "vgg-f", "vgg-m", "vgg-s", "vgg-vd-16", "vgg-vd-19")  # of MatConvNet's manual
NETS = (*TABLE_1_1, "googlenet", "resnet-50")
CAPTURE = {"no": (False,), "yes": (True,), "both": (False, True)}
NO_GPU = 2
MINUTES = 25  # for --check


def parser() -> argparse.ArgumentParser:
    """What the command line understands."""
    top = argparse.ArgumentParser(
        prog="python -m benchmarks.gpu", description="Whole networks on a GPU, against PyTorch."
    )
    what = top.add_mutually_exclusive_group()
    what.add_argument(
        "--check", action="store_true", help="tests on the GPU, and networks compared; a summary"
    )
    what.add_argument("--layouts", action="store_true", help="convolutions with channels first and last")
    top.add_argument("--nets", default=",".join(NETS), help="names, with commas (default: %(default)s)")
    top.add_argument("--phase", choices=PHASES, help="default: both")
    top.add_argument(
        "--precision",
        default="float32,tf32,bfloat16",
        help=f"of {', '.join(PRECISIONS)}, with commas (default: %(default)s)",
    )
    top.add_argument("--batches", default="1,16,64", help="images in a batch (default: %(default)s)")
    top.add_argument(
        "--capture",
        nargs="?",
        choices=CAPTURE,
        default="no",
        const="yes",
        help="with CUDA graphs; both: without them and with them (default: %(default)s)",
    )
    top.add_argument("--seconds", type=float, default=5, help="of measuring each (default: %(default)s)")
    top.add_argument("--json", type=Path, metavar="FILE", help="write the figures to this file")
    top.add_argument("--device", type=int, default=0, help="number of the GPU (default: %(default)s)")
    top.add_argument(
        "--out", type=Path, default=Path("gpu-check"), help="folder for --check (default: %(default)s)"
    )
    top.add_argument("--minutes", type=float, help="time to take (default: 25 for --check, else no limit)")
    top.add_argument("--no-compile", action="store_true", help="not against torch.compile, which takes long")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    top = parser()
    options = top.parse_args(argv)
    names = choose(options.nets, CASES, top.error)
    precisions = choose(options.precision, PRECISIONS, top.error)
    batches = choose_batches(options.batches, top.error)
    try:
        _use(backend_of("float32", options.device), options.device)
    except OptionError as error:
        top.error(str(error))
    except BackendError as error:
        message = f"There is no GPU, nothing was run: {error}"
        print(message, flush=True)
        if options.check:
            options.out.mkdir(parents=True, exist_ok=True)
            (options.out / "summary.txt").write_text(message + "\n")
        return NO_GPU

    if not find_spec("torch"):
        top.error("PyTorch is missing: pip install 'dagnn[bench]'")

    fastest = {} if options.check else {"autotune": True, "deterministic": False}  # as PyTorch is here

    def backends(precision: str) -> Backend:
        return backend_of(precision, options.device, **fastest)

    phases = [options.phase] if options.phase else PHASES
    if options.check:
        return _check(options, names, precisions, phases, backends)
    if options.layouts:
        return _layouts(options, names, precisions, batches[-1], backends)
    settings = [Setting(*way) for way in product(phases, precisions, CAPTURE[options.capture])]
    return _networks(options, names, settings, batches, backends)


def _use(backend: Backend, device: int) -> None:
    """Let this device be the current one, of CuPy and of PyTorch."""
    backend.xp.cuda.Device(device).use()
    if find_spec("torch"):
        import torch

        if torch.cuda.is_available():
            torch.cuda.set_device(device)


def choose_batches(text: str, fail: Callable[[str], Any]) -> list[int]:
    """The sizes in a list with commas.

    >>> choose_batches("1,16", print)
    [1, 16]
    """
    sizes = text.split(",")
    if not all(size.isdecimal() and int(size) for size in sizes):
        fail(f"--batches is a list of whole numbers from 1. Received: {text!r}")
    return [int(size) for size in sizes]


def _networks(
    options: Any,
    names: Sequence[str],
    settings: Sequence[Setting],
    batches: Sequence[int],
    backends: Backends,
) -> int:
    from . import check
    from .rows import HEADER, line, means, measure

    found: list[dict[str, Any]] = []
    failed = 0
    end = perf_counter() + 60 * (options.minutes or inf)
    print(HEADER)
    for name, batch, setting in product(names, batches, settings):  # what is right is computed once a batch
        if perf_counter() > end:
            print(f"{name}, {setting}, batch {batch}: not measured, time is up", flush=True)
            failed += 1
            continue
        try:
            case = CASES[name].at(batch=batch)
            rows = measure(name, case, setting, backends, options.seconds, compiled=not options.no_compile)
        except Exception as error:  # the other networks are worth having
            failed += 1
            print(f"{name}, {setting}, batch {batch}: {type(error).__name__}: {error}", flush=True)
            continue
        found += rows
        print("\n".join(map(line, rows)), flush=True)
        _write(options.json, check.device_facts(backends("float32")), found)
    print("\n".join(means(found)))
    return int(failed > 0)


def _layouts(
    options: Any, names: Sequence[str], precisions: Sequence[str], batch: int, backends: Backends
) -> int:
    from . import check, layouts

    found: list[dict[str, Any]] = []
    print(layouts.HEADER)
    for precision in precisions:
        of = convolutions(names, batch)
        by_layout = {
            layout: backend_of(precision, options.device, autotune=True, channels_last=layout == "nhwc")
            for layout in LAYOUTS
        }
        for row in layouts.measure(of, precision, by_layout, options.seconds / 10):
            found.append(row)
            print(layouts.line(row), flush=True)
            _write(options.json, check.device_facts(backends("float32")), found)
    print("\n".join(layouts.sums(found)))
    return 0


def _check(
    options: Any,
    names: Sequence[str],
    precisions: Sequence[str],
    phases: Sequence[str],
    backends: Backends,
) -> int:
    from . import check

    options.out.mkdir(parents=True, exist_ok=True)
    (options.out / "summary.txt").unlink(missing_ok=True)
    ways = [Setting(*way) for way in product(phases, precisions)]
    settings = ways + [Setting(way.phase, way.precision, True) for way in ways]
    cases = {name: CASES[name].at(batch=2) for name in names}
    folder = options.out.resolve()
    report = check.Report(folder)
    return check.run(
        report, check.parts(folder, backends, cases, settings), 60 * (options.minutes or MINUTES)
    )


def _write(path: Path | None, device: dict[str, Any], rows: Sequence[dict[str, Any]]) -> None:
    if path is not None:
        text = json.dumps({"machine": {**machine(1), **device}, "rows": list(rows)}, indent=1)
        path.write_text(text + "\n")


if __name__ == "__main__":
    raise SystemExit(main())
