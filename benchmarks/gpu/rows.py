"""What is measured of a network, as rows."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from importlib.util import find_spec
from statistics import median
from typing import Any

from dagnn.backends.base import Backend

from ..measure import Work, best, geometric_mean, spread
from ..nets import Case
from ..works import LAYOUTS
from . import agreement
from .timing import Clock, turns, with_memory
from .works import Backends, Peer, Setting, ours, plain, pytorchs_precision

HEADER = (
    f"{'net':10} {'phase':6}{'batch':>5} {'precision':9} {'capture':8} {'peer':13}{'ours ms':>18}"
    f"{'peer ms':>18}{'ratio':>9}{'images/s':>10}{'ours MB':>9}{'peer MB':>9}"
)


def measure(
    name: str,
    case: Case,
    setting: Setting,
    backends: Backends,
    seconds: float,
    device: str = "cuda",
    compiled: bool = True,
) -> list[dict[str, Any]]:
    """The rows of a network in one setting: against PyTorch eager, and torch.compile where Triton is."""
    backend = backends(setting.precision)
    errors = agreement.check(case, setting, backends, device)
    cupy = backend.xp
    works: dict[str, Work] = {}
    peaks: dict[str, float] = {}
    with pytorchs_precision(setting.precision):
        for who, make in _programs(case, setting, backend, device).items():
            if who == "compiled" and not compiled:
                continue
            _empty_pytorch(device)
            works[who], peaks[who] = with_memory(cupy, make)
        times = turns(works, seconds, Clock(cupy))
    works.clear()
    _empty_pytorch(device)
    return rows(name, case, setting, times, peaks, errors)


def rows(
    name: str,
    case: Case,
    setting: Setting,
    times: Mapping[str, Sequence[float]],
    peaks: Mapping[str, float],
    errors: Mapping[str, float],
) -> list[dict[str, Any]]:
    """As those of benchmarks.cpu, and how the network was evaluated."""
    layout = best(times, LAYOUTS)
    found = {"pytorch": layout} | ({"torch.compile": "compiled"} if "compiled" in times else {})
    mine, n = median(times["dagnn"]), case.shape[0]
    return [
        {
            "net": name,
            "phase": setting.phase,
            "batch": n,
            "precision": setting.precision,
            "capture": setting.capture,
            "peer": peer,
            "ours_ms": mine,
            "peer_ms": median(times[who]),
            "ratio": median(times[who]) / mine,
            "ours_images_s": 1000 * n / mine,
            "peer_images_s": 1000 * n / median(times[who]),
            "ours_peak_mb": peaks["dagnn"],
            "peer_peak_mb": peaks[who],
            "ours_spread_ms": spread(times["dagnn"]),
            "peer_spread_ms": spread(times[who]),
            "rounds": len(times[who]),
            "others": None,
            "ours_error": errors["dagnn"],
            "peer_error": errors["pytorch"],
            "peer_layout": layout,
            "other_layout_ms": max(median(times[k]) for k in LAYOUTS),
        }
        for peer, who in found.items()
    ]


def line(row: Mapping[str, Any]) -> str:
    """A row as text."""
    times = "".join(f"{row[f'{who}_ms']:9.2f} ±{row[f'{who}_spread_ms']:7.2f}" for who in ("ours", "peer"))
    head = f"{row['net']:10} {row['phase']:6}{row['batch']:5} {row['precision']:9} "
    head += f"{'graph' if row['capture'] else '-':8} {row['peer']:13}"
    peaks = "".join(f"{row[f'{who}_peak_mb']:9.0f}" for who in ("ours", "peer"))
    return f"{head}{times}{row['ratio']:9.2f}{row['ours_images_s']:10.0f}{peaks}"


def means(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """A line for each setting and peer: the geometric mean of the ratios, and the least of them."""
    keys = ("phase", "precision", "capture", "peer")
    lines = []
    for way in dict.fromkeys(tuple(row[key] for key in keys) for row in found):
        of = [row for row in found if tuple(row[key] for key in keys) == way]
        least = min(of, key=lambda row: row["ratio"])
        phase, precision, capture, peer = way
        lines.append(
            f"{phase} in {precision}{' with CUDA graphs' if capture else ''} against {peer}: geometric mean "
            f"{geometric_mean(row['ratio'] for row in of):.2f}, least {least['ratio']:.2f} "
            f"({least['net']}, batch {least['batch']})"
        )
    return lines


def _programs(case: Case, setting: Setting, backend: Backend, device: str) -> dict[str, Callable[[], Work]]:
    """What makes the work of each: ours, PyTorch in both layouts, and compiled in the second."""
    net = plain(case)

    def peer(layout: str) -> Peer:
        return Peer(net, case, setting, layout, device)

    made: dict[str, Callable[[], Work]] = {"dagnn": lambda: ours(case, setting, backend)}
    made |= {layout: lambda layout=layout: peer(layout).work() for layout in LAYOUTS}
    if find_spec("triton"):
        made["compiled"] = lambda: peer("nhwc").compiled().work()
    return made


def _empty_pytorch(device: str) -> None:
    import torch

    if device == "cuda":
        torch.cuda.empty_cache()
