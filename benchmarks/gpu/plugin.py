"""A plugin of pytest that leaves the tests that compute on a device, and notes the golden suite's errors.

`pytest -p benchmarks.gpu.plugin --golden-errors=FILE`; with DAGNN_TEST_GPU=1 in the environment what else
runs through the emulator runs on the device.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

ELSEWHERE = ("test_emulated", "test_cuda_sources", "test_benchmarks_gpu")  # about other things


def pytest_addoption(parser: Any) -> None:
    parser.addoption("--golden-errors", metavar="FILE", help="the largest errors, by type, as JSON")


def pytest_collection_modifyitems(config: Any, items: list[Any]) -> None:
    left_out = [item for item in items if not _on_device(item)]
    items[:] = sorted((item for item in items if _on_device(item)), key=lambda item: not _is_golden(item))
    config.hook.pytest_deselected(items=left_out)


def _is_golden(item: Any) -> bool:
    return item.path.stem.startswith("test_golden")


def _on_device(item: Any) -> bool:
    if item.path.stem in ELSEWHERE:
        return False
    parameters = item.callspec.params if hasattr(item, "callspec") else {}
    if isinstance(backend := parameters.get("backend"), str):
        return backend == "cupy"
    return "emulated" in item.fixturenames


def pytest_collection_finish(session: Any) -> None:
    """Have the golden tests compare with a function that takes notes."""
    path = session.config.getoption("--golden-errors")
    try:
        import agreement  # both in tests/
        import matlab
    except ImportError:
        return
    compare, largest = matlab.error, dict[str, tuple[float, str]]()

    def error(actual: Any, reference: Any) -> float:
        found = compare(actual, reference)
        file, _, test = os.environ.get("PYTEST_CURRENT_TEST", "").split(" ")[0].partition("::")
        if path and "test_golden" in file and hasattr(actual, "dtype"):
            kind = "single" if "single" in test and actual.dtype == "float64" else str(actual.dtype)
            if not found <= largest.get(kind, (-1.0, ""))[0]:
                largest[kind] = found, test
                Path(path).write_text(json.dumps(largest))
        return found

    matlab.error = agreement.error = error
