"""Whole networks against PyTorch and ONNX Runtime on the CPU: `python -m benchmarks.cpu`.

Outputs, and derivatives, are compared first (see agreement.py). Then ours and the peers' rounds take turns
in one process; a figure is the median of its rounds, the spread half the distance of its quartiles. PyTorch
(eager) runs in both memory layouts, of which the better one counts, on inputs and parameters that are in
that layout already. A training step is forward, backward and SGD with momentum and weight decay; PyTorch's
SGD is its fused one. Peak memory is of a process for each (see memory.py). A ratio above 1 says that dagnn
is faster.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

import dagnn

from . import works
from .agreement import Disagreement, check
from .measure import Others, best, choose, cores, geometric_mean, interleaved, spread, write_json
from .memory import peak_mb
from .nets import CASES, STANDARD
from .works import LAYOUTS, PHASES

COMPANY = 0.03  # part of the cores' time
HEADER = "net        phase batch  peer              ours ms           peer ms    ratio  ours MB  peer MB"


def measure(name: str, phase: str, threads: int, seconds: float, memory: bool) -> list[dict[str, Any]]:
    """The rows of one network and phase, one for each peer."""
    case = CASES[name]
    errors = check(case, phase, threads)
    steps = {"dagnn": works.ours(case, phase)}
    for layout in LAYOUTS:
        steps[layout] = works.pytorch(case, phase, layout, threads)
    if phase == "infer":
        steps["onnxruntime"] = works.onnxruntime(case, threads)
    others = Others()
    times = interleaved(steps, seconds)
    company = others.share
    del steps
    layout = best(times, LAYOUTS)
    peers = {"pytorch": layout} | ({"onnxruntime": "onnxruntime"} if phase == "infer" else {})
    peaks = {who: peak_mb(name, phase, who, threads) for who in ("dagnn", *peers.values()) if memory}
    mine = median(times["dagnn"])
    return [
        {
            "net": name,
            "phase": phase,
            "batch": case.shape[0],
            "peer": peer,
            "ours_ms": mine,
            "peer_ms": median(times[who]),
            "ratio": median(times[who]) / mine,
            "ours_peak_mb": peaks.get("dagnn"),
            "peer_peak_mb": peaks.get(who),
            "ours_spread_ms": spread(times["dagnn"]),
            "peer_spread_ms": spread(times[who]),
            "rounds": len(times[who]),
            "others": company,
            "ours_error": errors["dagnn"],
            "peer_error": errors[peer],
            "peer_layout": layout if peer == "pytorch" else None,
            "other_layout_ms": max(median(times[k]) for k in LAYOUTS) if peer == "pytorch" else None,
        }
        for peer, who in peers.items()
    ]


def line(row: Mapping[str, Any]) -> str:
    """A row as text."""
    times = "".join(f"{row[f'{who}_ms']:9.1f} ±{row[f'{who}_spread_ms']:7.1f}" for who in ("ours", "peer"))
    peaks = (row["ours_peak_mb"], row["peer_peak_mb"])
    memory = "".join(f"{'-' if peak is None else format(peak, '.0f'):>9}" for peak in peaks)
    if (row["others"] or 0) > COMPANY:
        memory += f"  other programs took {row['others']:.0%} of the cores: measure again"
    head = f"{row['net']:10} {row['phase']:6}{row['batch']:5}  {row['peer']:12}"
    return f"{head}{times}{row['ratio']:9.2f}{memory}"


def means(rows: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each phase and peer: the geometric mean of the ratios, and the least of them."""
    lines = []
    for phase, peer in dict.fromkeys((row["phase"], row["peer"]) for row in rows):
        of = {row["net"]: row["ratio"] for row in rows if (row["phase"], row["peer"]) == (phase, peer)}
        least = min(of, key=lambda net: of[net])
        lines.append(
            f"{phase} against {peer}: geometric mean {geometric_mean(of.values()):.2f}, "
            f"least {of[least]:.2f} ({least})"
        )
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    standard = ",".join(STANDARD)
    parser.add_argument("--nets", default=standard, help="names, with commas (default: %(default)s)")
    parser.add_argument("--phase", choices=PHASES, help="default: both")
    parser.add_argument("--threads", type=int, default=cores(), help="default: one for each core")
    parser.add_argument("--seconds", type=float, default=20, help="of measuring, for each network and phase")
    parser.add_argument("--no-memory", action="store_true", help="don't measure peak memory")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args()
    names = choose(options.nets, CASES, parser.error)
    dagnn.set_num_threads(options.threads)

    rows: list[dict[str, Any]] = []
    print(HEADER)
    for phase in [options.phase] if options.phase else PHASES:
        for name in names:
            try:
                found = measure(name, phase, options.threads, options.seconds, not options.no_memory)
            except Disagreement as error:
                raise SystemExit(f"{name}, {phase}: {error}") from None
            rows += found
            print("\n".join(map(line, found)), flush=True)
            write_json(options.json, options.threads, rows)
    print("\n".join(means(rows)))


if __name__ == "__main__":
    main()
