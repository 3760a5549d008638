"""All that a short time on a GPU can tell: `python -m benchmarks.gpu --check --out DIR`.

Tests on the device, the golden suite's errors, and whether whole networks compute what PyTorch computes; one
summary, written as it goes to `summary.txt` and `summary.json` in the folder, beside pytest's own output.
"""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from importlib.metadata import distributions
from pathlib import Path
from time import perf_counter
from typing import Any
from xml.etree import ElementTree

from dagnn.backends.base import Backend
from dagnn.errors import shorten

from ..agreement import Disagreement
from ..measure import machine
from ..nets import Case
from . import agreement
from .works import Backends, Setting

ROOT = Path(__file__).parents[2]
GOLDEN = {"float32": 1e-5, "float64": 1e-9, "single": 1e-5}
"""The largest errors that the golden suite may have; "single" is float64 against numbers in single."""
PART_OF_TESTS = 0.6
"""The part of the time that tests may take."""
ON_GPU = {"DAGNN_TEST_GPU": "1"}  # what otherwise runs on the emulator
PACKAGES = ("cupy", "nvidia", "cuda", "torch", "triton", "numpy", "ml-dtypes", "ml_dtypes")


@dataclass
class Result:
    """What a part of the check found: all is well (True), it isn't, or it wasn't run (None)."""

    name: str
    good: bool | None
    text: str
    details: Any = None
    seconds: float = 0.0


@dataclass
class Report:
    """Prints results, and writes them to a folder, as they come."""

    folder: Path
    results: list[Result] = field(default_factory=list)

    def add(self, result: Result) -> None:
        self.results.append(result)
        mark = {True: "ok  ", False: "FAIL", None: "--  "}[result.good]
        text = result.text.replace("\n", "\n        ")
        self.say(f"{mark} {result.name:<34} {text} ({result.seconds:.0f} s)")
        (self.folder / "summary.json").write_text(
            json.dumps([asdict(result) for result in self.results], indent=1, default=str) + "\n"
        )

    def say(self, text: str) -> None:
        print(text, flush=True)
        with open(self.folder / "summary.txt", "a", encoding="utf-8") as file:
            print(text, file=file)

    @property
    def code(self) -> int:
        """0: all good, 1: something failed, 2: something wasn't run."""
        found = {result.good for result in self.results}
        return 1 if False in found else 2 if None in found else 0


def device_facts(backend: Backend) -> dict[str, Any]:
    """The device, its driver, and the versions of all that has to do with it."""
    cupy = backend.xp
    runtime = cupy.cuda.runtime
    properties = runtime.getDeviceProperties(runtime.getDevice())
    versions = {d.name: d.version for d in distributions() if d.name.lower().startswith(PACKAGES)}
    return {
        "device": properties["name"].decode(),
        "compute_capability": cupy.cuda.Device().compute_capability,
        "device_memory_gb": round(properties["totalGlobalMem"] / 1e9, 1),
        "driver_cuda": runtime.driverGetVersion(),
        "runtime_cuda": runtime.runtimeGetVersion(),
        "device_packages": dict(sorted(versions.items())),
    }


def run(
    report: Report,
    parts: Iterable[tuple[str, Callable[[float], Result]]],
    seconds: float,
) -> int:
    """Do the parts one after another while there is time, each told how much is left; the exit code."""
    end = perf_counter() + seconds
    for name, part in parts:
        begun = perf_counter()
        try:
            result = Result(name, None, "not run: no time left") if begun > end else part(end - begun)
        except Exception as error:  # the other parts are worth having
            result = Result(name, False, f"{type(error).__name__}: {error}")
        result.name, result.seconds = name, perf_counter() - begun
        report.add(result)
    good = sum(result.good is True for result in report.results)
    bad = [result.name for result in report.results if result.good is False]
    left = [result.name for result in report.results if result.good is None]
    report.say(
        f"{good} of {len(report.results)} parts are good"
        + (f"; failed: {', '.join(bad)}" if bad else "")
        + (f"; not run: {', '.join(left)}" if left else "")
    )
    return report.code


def parts(
    folder: Path,
    backends: Backends,
    cases: Mapping[str, Case],
    settings: Sequence[Setting],
    tests: Sequence[str] = ("tests",),
    device: str = "cuda",
) -> Iterator[tuple[str, Callable[[float], Result]]]:
    """The parts of the check, by name."""
    yield "machine", lambda _: _machine(backends("float32"))
    yield "tests on the device", lambda seconds: _tests(folder, tests, PART_OF_TESTS * seconds)
    yield "golden numbers", lambda _: golden(folder / "golden.json")
    for name, case in cases.items():
        for setting in settings:
            graph = " graph" if setting.capture else ""
            title = f"{name} {setting.phase} {setting.precision}{graph}"
            yield title, lambda _, case=case, setting=setting: _agrees(case, setting, backends, device)


def _machine(backend: Backend) -> Result:
    facts = {**device_facts(backend), **machine(1)}
    versions = ", ".join(f"{name} {version}" for name, version in facts["device_packages"].items())
    text = (
        f"{facts['device']}, {facts['device_memory_gb']} GB, compute capability "
        f"{facts['compute_capability']}; CUDA {facts['runtime_cuda']}, of the driver {facts['driver_cuda']}; "
        f"Python {facts['python']}, {facts['system']}\n{versions}"
    )
    return Result("machine", True, text, facts)


def _tests(folder: Path, tests: Sequence[str], seconds: float) -> Result:
    """pytest in a process of its own, whose output goes to pytest.txt."""
    xml = folder / "tests.xml"
    command = [sys.executable, "-m", "pytest", "-v", "-p", "benchmarks.gpu.plugin", "-p", "no:cacheprovider"]
    command += ["-W", "default"]  # what CuPy warns of isn't an error
    command += [f"--golden-errors={folder / 'golden.json'}", f"--junitxml={xml}", "-rs", *tests]
    xml.unlink(missing_ok=True)
    where: dict[str, Any] = {"cwd": ROOT, "env": os.environ | ON_GPU}
    with open(folder / "pytest.txt", "w", encoding="utf-8") as output:
        try:
            done = subprocess.run(command, stdout=output, stderr=output, timeout=seconds, **where)
        except subprocess.TimeoutExpired:
            lines = (folder / "pytest.txt").read_text("utf-8").splitlines()
            counts = [sum(f" {word} " in f"{line} " for line in lines) for word in ("PASSED", "FAILED")]
            text = f"stopped after {seconds:.0f} s, {counts[0]} passed and {counts[1]} failed: see pytest.txt"
            return Result("tests", False, text)
    if not xml.exists():
        return Result("tests", False, f"pytest ended with code {done.returncode}: see pytest.txt")
    return tests_result(xml)


def tests_result(xml: Path) -> Result:
    """What pytest's report says: how many passed, and the names of those that didn't."""
    cases = list(ElementTree.parse(xml).iter("testcase"))
    failed, skipped = [], []
    for case in cases:
        name = f"{case.get('classname', '').rpartition('.')[2]}::{case.get('name')}"
        for child in case:
            message = (child.get("message") or "").splitlines()[:1]
            if child.tag in ("failure", "error"):
                failed.append(f"{name}: {message[0] if message else child.tag}")
            elif child.tag == "skipped":
                skipped.append(f"{name}: {message[0] if message else 'skipped'}")
    passed = len(cases) - len(failed) - len(skipped)
    text = f"{passed} passed, {len(failed)} failed, {len(skipped)} skipped"
    text += "".join(f"\nfailed {name:.200}" for name in failed[:40])
    text += f"\nand {len(failed) - 40} more" if len(failed) > 40 else ""
    if skipped:
        text += f"\nskipped: {shorten(dict.fromkeys(reason.partition(': ')[2] for reason in skipped), 5)}"
    return Result("tests", bool(passed) and not failed, text, {"failed": failed, "skipped": skipped})


def golden(path: Path) -> Result:
    """The largest errors that the golden tests saw, against what they may be."""
    errors = json.loads(path.read_text()) if path.exists() else {}
    if not {"float32", "float64"} <= errors.keys():
        return Result("golden", None, "not run: no golden test compared anything")
    found = {kind: errors[kind] for kind in GOLDEN if kind in errors}
    lines = [
        f"{k}: largest error {worst:.2g} of {GOLDEN[k]:g} ({test})" for k, (worst, test) in found.items()
    ]
    text = "\n".join(lines)
    return Result("golden", all(worst <= GOLDEN[kind] for kind, (worst, _) in found.items()), text, errors)


def _agrees(case: Case, setting: Setting, backends: Backends, device: str) -> Result:
    said: list[str] = []
    with _heard(said):
        try:
            errors = agreement.check(case, setting, backends, device)
        except Disagreement as error:
            return Result("agreement", False, "\n".join([str(error), *said]))
    text = f"an error of {errors['dagnn']:.2g}, PyTorch's {errors['pytorch']:.2g}"
    captured = not (setting.capture and said)  # a graph that was refused leaves a line in the log
    return Result("agreement", captured, "\n".join([text, *said]), errors)


@contextmanager
def _heard(said: list[str]) -> Iterator[None]:
    """What dagnn logs meanwhile."""
    handler = logging.Handler()
    handler.emit = lambda record: said.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger("dagnn")
    logger.addHandler(handler)
    try:
        yield
    finally:
        logger.removeHandler(handler)
