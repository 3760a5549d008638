"""Whole networks against PyTorch and ONNX Runtime on the CPU: `python -m benchmarks.cpu`.

Outputs (and derivatives) are compared first. Ours and the peers' rounds alternate in one process; a figure
is the median of its rounds, the spread half the distance of its quartiles. PyTorch runs in both memory
layouts, the better one counts. Peak memory is what a process of its own gains between having imported its
libraries and having made its steps.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Mapping
from math import exp, log
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter
from typing import Any

import numpy as np

from .nets import CASES, Case

SOLVER = {"learning_rate": 1e-6, "momentum": 0.9, "weight_decay": 5e-4}
STEPS_FOR_MEMORY = 3

Work = Callable[[], Any]


def ours(case: Case, phase: str) -> Work:
    """One step of dagnn; the call returns what PyTorch's returns."""
    import dagnn
    import dagnn.train

    net, inputs = case.net(), case.inputs()
    if phase == "infer":
        net.mode = "test"
        x = {"input": inputs["input"]}
        return lambda: net.eval(x, outputs=["prediction"])["prediction"]
    solver = dagnn.train.SGD(**SOLVER)

    def step() -> Any:
        net.eval(inputs, {"objective": 1}, outputs=["objective"])
        solver.step(net)
        return net

    return step


def pytorch(case: Case, phase: str, layout: str, threads: int) -> Work:
    """One step of PyTorch."""
    import torch

    from . import peers

    torch.set_num_threads(threads)
    inputs = case.inputs()
    model, x, label = peers.pytorch(case.net(), inputs, layout)
    if phase == "infer":
        model.eval()

        def infer() -> Any:
            with torch.inference_mode():
                return model(x)

        return infer
    model.train()
    sgd = torch.optim.SGD(model.parameters(), SOLVER["learning_rate"], 0.9, weight_decay=5e-4)

    def step() -> Any:
        sgd.zero_grad()
        peers.objective(model(x), label).backward()
        sgd.step()
        return model

    return step


def onnxruntime(case: Case, threads: int) -> Work:
    """One evaluation by ONNX Runtime."""
    from . import peers

    inputs = case.inputs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        session = peers.onnx_session(case.net(), inputs, threads)
    x = {"input": inputs["input"]}
    return lambda: session.run(None, x)[0]


def check(case: Case, phase: str, threads: int) -> None:
    """Stop unless dagnn and the peers compute the same outputs, or the same derivatives."""
    from . import peers

    net, inputs = case.net(), case.inputs()
    for node in net.layers.values():
        if type(node.layer).__name__ == "DropOut":
            node.layer.rate = 0.0
    if phase == "infer":
        theirs = pytorch(case, phase, "nchw", threads)().numpy()
        _agree("prediction of PyTorch", ours(case, phase)(), theirs, 1e-4)
        _agree("prediction of ONNX Runtime", onnxruntime(case, threads)(), theirs, 1e-4)
        return
    model, x, label = peers.pytorch(net, inputs, "nchw")
    peers.objective(model.train()(x), label).backward()
    net.eval(inputs, {"objective": 1}, outputs=["objective"])
    for name, place in net.layers.items():
        for param in place.params[:1]:
            theirs = model.layers[name].weight.grad
            # Derivatives of single precision; batch normalisation, max pooling amplify rounding.
            _agree(f"derivative of {param}", net.params[param].der, theirs.numpy(), 1e-2)


def _agree(what: str, mine: np.ndarray, theirs: np.ndarray, most: float) -> None:
    error = np.linalg.norm(mine.ravel() - theirs.ravel()) / np.linalg.norm(theirs.ravel())
    if not error <= most:
        raise SystemExit(f"{what}: differs by {error:.2g} of its norm, more than {most:g}")


def interleaved(works: Mapping[str, Work], seconds: float) -> dict[str, list[float]]:
    """Milliseconds of each work's rounds, which alternate for about `seconds` after one for warming up."""
    times: dict[str, list[float]] = {name: [] for name in works}
    for work in works.values():
        work()
        work()
    end = perf_counter() + seconds
    while perf_counter() < end or len(next(iter(times.values()))) < 3:
        for name, work in works.items():
            begun = perf_counter()
            work()
            times[name].append(1000 * (perf_counter() - begun))
    return times


def peak_mb(name: str, phase: str, peer: str, threads: int) -> float:
    """Peak memory of steps in a process of their own, in MB."""
    command = [sys.executable, "-m", "benchmarks.cpu", "--memory", peer, "--nets", name, "--phase", phase]
    done = subprocess.run([*command, "--threads", str(threads)], capture_output=True, text=True, check=True)
    return float(done.stdout.split()[-1])


def _memory(name: str, phase: str, peer: str, threads: int) -> float:
    case = CASES[name]
    if peer == "dagnn":
        import dagnn

        dagnn.DagNN().backend.xp.ones(1)
        before = _resident("VmRSS")
        work = ours(case, phase)
    else:
        import torch

        from . import peers

        torch.set_num_threads(threads)
        del peers
        before = _resident("VmRSS")
        work = pytorch(case, phase, peer, threads) if peer != "onnxruntime" else onnxruntime(case, threads)
    for _ in range(STEPS_FOR_MEMORY):
        work()
    return _resident("VmHWM") - before


def _resident(field: str) -> float:
    """VmRSS, the memory of this process, or VmHWM, the most it has had, in MB."""
    line = next(li for li in Path("/proc/self/status").read_text().splitlines() if li.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


def measure(name: str, phase: str, threads: int, seconds: float, memory: bool) -> list[dict[str, Any]]:
    """The rows of one network and phase, one for each peer."""
    case = CASES[name]
    check(case, phase, threads)
    works = {"dagnn": ours(case, phase)}
    for layout in ("nchw", "nhwc"):
        works[layout] = pytorch(case, phase, layout, threads)
    if phase == "infer":
        works["onnxruntime"] = onnxruntime(case, threads)
    times = interleaved(works, seconds)
    best = min(("nchw", "nhwc"), key=lambda layout: median(times[layout]))
    mine = median(times["dagnn"])
    own_peak = peak_mb(name, phase, "dagnn", threads) if memory else None
    rows = []
    for peer, of in (("pytorch", best), ("onnxruntime", "onnxruntime")):
        if of in times:
            rows.append(
                {
                    "net": name,
                    "phase": phase,
                    "batch": case.shape[0],
                    "peer": peer,
                    "ours_ms": mine,
                    "peer_ms": median(times[of]),
                    "ratio": median(times[of]) / mine,
                    "ours_peak_mb": own_peak,
                    "peer_peak_mb": peak_mb(name, phase, of, threads) if memory else None,
                    "ours_spread_ms": _spread(times["dagnn"]),
                    "peer_spread_ms": _spread(times[of]),
                    "rounds": len(times[of]),
                    "peer_layout": of if peer == "pytorch" else None,
                }
            )
    return rows


def _spread(times: list[float]) -> float:
    low, _, high = quantiles(times, n=4)
    return (high - low) / 2


def _line(row: Mapping[str, Any]) -> str:
    peaks = "".join(
        f"{'-' if row[k] is None else format(row[k], '.0f'):>9}" for k in ("ours_peak_mb", "peer_peak_mb")
    )
    return (
        f"{row['net']:10} {row['phase']:6}{row['batch']:5}  {row['peer']:12}"
        f"{row['ours_ms']:9.1f} ±{row['ours_spread_ms']:6.1f}"
        f"{row['peer_ms']:9.1f} ±{row['peer_spread_ms']:6.1f}"
        f"{row['ratio']:8.2f}{peaks}"
    )


HEADER = "net        phase batch  peer             ours ms          peer ms          ratio  ours MB  peer MB"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--nets", default=",".join(CASES), help="names, with commas")
    parser.add_argument("--phase", choices=("infer", "train"), help="default: both")
    parser.add_argument("--threads", type=int, default=len(os.sched_getaffinity(0)))
    parser.add_argument("--seconds", type=float, default=20, help="of measuring, for each network and phase")
    parser.add_argument("--no-memory", action="store_true", help="don't measure peak memory")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument("--memory", help=argparse.SUPPRESS)
    options = parser.parse_args()
    names = options.nets.split(",")
    if unknown := set(names) - set(CASES):
        parser.error(f"no network {', '.join(sorted(unknown))}; there are {', '.join(CASES)}")
    if options.memory:
        print(_memory(names[0], options.phase, options.memory, options.threads))
        return

    rows = []
    print(HEADER)
    for phase in [options.phase] if options.phase else ["infer", "train"]:
        for name in names:
            for row in measure(name, phase, options.threads, options.seconds, not options.no_memory):
                rows.append(row)
                print(_line(row), flush=True)
        for peer in dict.fromkeys(row["peer"] for row in rows if row["phase"] == phase):
            ratios = [row["ratio"] for row in rows if row["peer"] == peer and row["phase"] == phase]
            mean = exp(sum(map(log, ratios)) / len(ratios))
            print(f"{phase} against {peer}: geometric mean {mean:.2f}, least {min(ratios):.2f}")
    if options.json:
        options.json.write_text(json.dumps({"threads": options.threads, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
