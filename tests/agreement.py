"""How a kernel is held against a golden case."""

from collections.abc import Callable
from typing import Any

import numpy as np
from matlab import Case, error

Get = Callable[[str], Any]


def agree(backend: Any, case: Case, kernel: Callable[[Get], dict], departures: tuple[str, ...] = ()) -> None:
    """`kernel(get)` returns outputs by golden name, from the inputs that `get(name)` gives it.

    In float64 they are MatConvNet's within 1e-9 (1e-5 where MatConvNet ran in single), except the
    `departures`; in float32 they are what float64 gives on the same rounded inputs, within 1e-5.
    """
    for name, value in outputs(backend, case, kernel, np.float64).items():
        golden = case.y(name)
        if golden is not None and name not in departures:
            assert error(value.reshape(golden.shape), golden) <= (1e-5 if case.single else 1e-9), name
    rounded = outputs(backend, case, kernel, np.float32, np.float64)
    for name, value in outputs(backend, case, kernel, np.float32).items():
        assert value.dtype == np.float32, name
        assert error(value, rounded[name]) <= 1e-5, name


def outputs(backend: Any, case: Case, kernel: Callable[[Get], dict], *dtypes: Any) -> dict[str, np.ndarray]:
    """What `kernel` returns for the case's inputs, cast to each of `dtypes` in turn."""

    def get(name: str) -> Any:
        array = case.dzdy() if name == "dzdy" else case.x(name)
        if array is None:
            return None
        for dtype in dtypes:
            array = array.astype(dtype)
        return backend.asarray(array)

    return {name: backend.to_numpy(value) for name, value in kernel(get).items()}
