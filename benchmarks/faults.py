"""Page faults of evaluations: `python -m benchmarks.faults`.

The first evaluation of a process touches memory that is new to it; the later ones should find all they need
in what is there. Counted are minor faults (getrusage) of ten evaluations in a fresh process; the figure is
the median of the third to the tenth, in parts of the first.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import dagnn

from .measure import Work, cores, write_json
from .nets import CASES
from .works import PHASES, ours

EVALUATIONS = 10
BAR = 0.01


def minor_faults() -> int:
    """Of this process, until now."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt


def counted(work: Work, times: int = EVALUATIONS) -> list[int]:
    """The faults of each of `times` calls."""
    counts = []
    for _ in range(times):
        before = minor_faults()
        work()
        counts.append(minor_faults() - before)
    return counts


def row(net: str, phase: str, counts: Sequence[int]) -> dict[str, Any]:
    """The figures of one network and phase.

    >>> row("vgg-f", "infer", [1000, 20, 3, 1, 2])["share"]
    0.002
    """
    steady = median(counts[2:])
    return {
        "net": net,
        "phase": phase,
        "first": counts[0],
        "steady": steady,
        "share": steady / counts[0],
        "counts": list(counts),
    }


def measure(net: str, phase: str, threads: int) -> dict[str, Any]:
    """`row`, counted in a fresh process."""
    command = [sys.executable, "-m", "benchmarks.faults", "--here", "--nets", net, "--phase", phase]
    command += ["--threads", str(threads)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return row(net, phase, json.loads(done.stdout))


def line(found: Mapping[str, Any]) -> str:
    """A row as text."""
    verdict = "under" if found["share"] < BAR else "NOT under"
    return (
        f"{found['net']:10} {found['phase']:6} first evaluation {found['first']:7} faults, "
        f"then {found['steady']:6.0f}: {found['share']:.2%} ({verdict} {BAR:.0%})"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", default="vgg-f", help="names, with commas (default: %(default)s)")
    parser.add_argument("--phase", choices=PHASES, help="default: both")
    parser.add_argument("--threads", type=int, default=cores(), help="default: one for each core")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--here", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.here:
        dagnn.set_num_threads(options.threads)
        print(json.dumps(counted(ours(CASES[options.nets], options.phase))))
        return
    rows = []
    for net in options.nets.split(","):
        for phase in [options.phase] if options.phase else PHASES:
            rows.append(found := measure(net, phase, options.threads))
            print(line(found), flush=True)
    write_json(options.json, options.threads, rows)


if __name__ == "__main__":
    main()
