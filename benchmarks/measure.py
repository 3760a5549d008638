"""What all benchmarks measure with: rounds that alternate, peak memory, errors, the machine in words."""

from __future__ import annotations

import gc
import json
import math
import os
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from ctypes import CDLL
from datetime import date
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from statistics import median, quantiles
from time import perf_counter, sleep
from typing import Any

import numpy as np

Work = Callable[[], Any]

PAUSE = 0.05
"""Seconds between rounds: ONNX Runtime's threads spin for 35 ms more, on the cores of whoever is next."""
TURN = 0.2  # seconds
PACKAGES = ("numpy", "torch", "onnxruntime", "scipy")


def cores() -> int:
    """The cores that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def interleaved(
    works: Mapping[str, Work], seconds: float, pause: float = PAUSE, least: int = 5
) -> dict[str, list[float]]:
    """Milliseconds of each work's rounds, at least `least`, after two for warming up.

    The works take turns for about `seconds`, each turn begun by another of them. A turn is one round of a
    long work. Of a short one it is several, of which the first, on cores that a pause put to sleep, doesn't
    count: steps of a training follow each other.
    """
    names, times = list(works), {name: [] for name in works}
    rounds = {name: _rounds_in_a_turn(work) for name, work in works.items()}
    end, turn = perf_counter() + seconds, 0
    while perf_counter() < end or turn < least:
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            sleep(pause)
            for number in range(rounds[name]):
                begun = perf_counter()
                works[name]()
                if number or rounds[name] == 1:
                    times[name].append(1000 * (perf_counter() - begun))
        turn += 1
    return times


def _rounds_in_a_turn(work: Work) -> int:
    work()
    begun = perf_counter()
    work()
    passed = perf_counter() - begun
    return 1 if passed > TURN / 2 else min(20, math.ceil(TURN / passed))


class Others:
    """The part of this machine's time that other programs took, in percent of it (Linux; else None).

    PyTorch's and ONNX Runtime's threads wait for each other at every step and lose more by company than ours.
    """

    def __init__(self) -> None:
        self._begun = _clocks()

    @property
    def share(self) -> float | None:
        """Since this object was made."""
        now = _clocks()
        if now is None or self._begun is None:
            return None
        passed, busy, own = (after - before for after, before in zip(now, self._begun, strict=True))
        return max(0.0, (busy - own) / passed) if passed else 0.0


def _clocks() -> tuple[float, float, float] | None:
    """Seconds of all cores: that passed, that anybody worked, that this process and its children did."""
    try:
        fields = Path("/proc/stat").read_text().split("\n")[0].split()[1:9]
    except OSError:
        return None
    ticks = [int(field) / os.sysconf("SC_CLK_TCK") for field in fields]
    idle = ticks[3] + ticks[4]  # and waiting for a disk
    own = os.times()
    return sum(ticks), sum(ticks) - idle, own.user + own.system + own.children_user + own.children_system


def spread(times: Sequence[float]) -> float:
    """Half the distance of the quartiles.

    >>> spread([1, 2, 3, 4, 5])
    1.5
    """
    low, _, high = quantiles(times, n=4)
    return (high - low) / 2


def geometric_mean(values: Iterable[float]) -> float:
    """The number whose logarithm is the mean logarithm.

    >>> geometric_mean([1, 4])
    2.0
    """
    values = list(values)
    return math.exp(sum(map(math.log, values)) / len(values))


def best(times: Mapping[str, Sequence[float]], names: Iterable[str]) -> str:
    """The name whose median is the least."""
    return min(names, key=lambda name: median(times[name]))


def error(a: Any, truth: Any, least: float = 0.0) -> float:
    """The norm of what differs, in parts of the norm of `truth`, or of `least` where that is larger.

    >>> error(np.array([1.0, 1.1]), np.array([1.0, 1.0])) < 0.08
    True
    """
    a, truth = np.asarray(a, np.float64).ravel(), np.asarray(truth, np.float64).ravel()
    return float(np.linalg.norm(a - truth) / (max(np.linalg.norm(truth), least) or 1.0))


def resident_mb(field: str = "VmRSS") -> float:
    """VmRSS, the memory of this process, or VmHWM, the most since `forget_peak`, in MB (Linux)."""
    status = Path("/proc/self/status").read_text()
    line = next(line for line in status.splitlines() if line.startswith(field))
    return int(line.split()[1]) * 1024 / 1e6


def forget_peak() -> None:
    """Give what is free back to the system, and let VmHWM begin again (Linux: proc(5), clear_refs)."""
    gc.collect()
    if platform.libc_ver()[0] == "glibc":
        CDLL("libc.so.6").malloc_trim(0)
    Path("/proc/self/clear_refs").write_text("5")


def machine(threads: int) -> dict[str, Any]:
    """The processor, the libraries, the date."""
    return {
        "processor": processor(),
        "cores": cores(),
        "threads": threads,
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 1e9),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "blas": blas(),
        "versions": {name: v for name in PACKAGES if (v := _version(name))},
        "date": date.today().isoformat(),
    }


def processor(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Name, family and model of the processor, and its widest vectors."""
    try:
        lines = cpuinfo.read_text().split("\n\n")[0].splitlines()
    except OSError:
        return platform.processor() or platform.machine()
    facts = {name.strip(): value.strip() for name, _, value in (line.partition(":") for line in lines)}
    flags = facts.get("flags", "").split()
    vectors = next((name for name in ("avx512f", "avx2", "avx") if name in flags), "")
    name = facts.get("model name") or platform.machine()
    family = [f"{key} {facts[field]}" for key, field in _FAMILY if field in facts]
    return ", ".join([name, *family, *([vectors.upper()] if vectors else [])])


_FAMILY = (("family", "cpu family"), ("model", "model"))


def blas() -> str:
    """NumPy's BLAS and the kernels it chose."""
    from threadpoolctl import threadpool_info

    for library in threadpool_info():
        if library["user_api"] == "blas" and "numpy" in library["filepath"]:
            kernels = library.get("architecture")
            return f"{library['internal_api']} {library['version']}" + (f" ({kernels})" if kernels else "")
    return "unknown"


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def write_json(path: Path | None, threads: int, rows: Sequence[Mapping[str, Any]]) -> None:
    """{"machine": ..., "rows": ...}; nothing without a path."""
    if path is not None:
        path.write_text(json.dumps({"machine": machine(threads), "rows": list(rows)}, indent=1) + "\n")


def choose(names: str, known: Iterable[str], fail: Callable[[str], Any]) -> list[str]:
    """The names in a list with commas; `fail` says which ones there are."""
    chosen, known = names.split(","), list(known)
    if unknown := sorted(set(chosen) - set(known)):
        fail(f"unknown: {', '.join(unknown)}; there are {', '.join(known)}")
    return chosen
