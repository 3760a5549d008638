"""The golden .mat files as plain Python, in our axis order."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import scipy.io

GOLDEN = Path(__file__).parent / "golden"


def plain(value: Any) -> Any:
    """MATLAB structs as dicts, cells as lists, strings as str, scalars as numbers; arrays stay."""
    if not isinstance(value, np.ndarray):
        return value
    if value.dtype.names:
        records = [{n: plain(record[n]) for n in value.dtype.names} for record in value.flat]
        return records[0] if len(records) == 1 else records
    if value.dtype == object:
        return [plain(v) for v in value.flat]
    if value.dtype.kind == "U":
        return str(value.flat[0]) if value.size else ""
    return value.item() if value.size == 1 and value.ndim == 2 else value


def load(name: str, variable: str = "cases") -> list[dict]:
    """One golden file as a list of plain dicts."""
    cells = scipy.io.loadmat(GOLDEN / f"{name}.mat", mat_dtype=True)[variable]
    return [plain(cell) for cell in cells.flat]


def nchw(array: Any, size: Any = None) -> np.ndarray:
    """H x W x C x N (with its true `size`, if known) as (N, C, H, W)."""
    array = np.asarray(array)
    size = tuple(np.asarray(size, int).ravel()) if size is not None else array.shape
    size += (1,) * (4 - len(size))
    return np.ascontiguousarray(array.reshape(size, order="F").transpose(3, 2, 0, 1))


def opts(case: dict) -> dict:
    """The options of a case, {} when it has none; rows of numbers as tuples of int where they are whole."""
    given = case["opts"] if isinstance(case["opts"], dict) else {}
    return {name: numbers(value) for name, value in given.items()}


def numbers(value: Any) -> Any:
    if isinstance(value, np.ndarray):
        return tuple(numbers(v.item()) for v in value.ravel())
    return int(value) if isinstance(value, float) and value.is_integer() else value


@dataclass
class Case:
    """One block call: `x("w")` is input w in our axes, `y("dzdw")` output dzdw, `raw` the plain dict."""

    raw: dict

    def x(self, field: str, dtype: Any = None) -> np.ndarray | None:
        return self._array(self.raw["in"].get(field), field, dtype)

    def y(self, field: str) -> np.ndarray | None:
        return self._array(self.raw["out"].get(field), field)

    def dzdy(self, dtype: Any = None) -> np.ndarray:
        return self._array(self.raw["dzdy"], "dzdy", dtype)

    def _array(self, value: Any, field: str, dtype: Any = None) -> np.ndarray | None:
        if value is None or np.size(value) == 0:
            return None
        array = nchw(value, self.raw["size"][field])
        return array if dtype is None else array.astype(dtype)

    @property
    def opts(self) -> dict:
        return opts(self.raw)

    @property
    def single(self) -> bool:
        return self.raw["class"] == "single"


def cases(name: str) -> list:
    """The cases of a block file as pytest parameters."""
    return [pytest.param(Case(raw), id=f"{name}-{raw['name']}") for raw in load(name)]


def error(actual: Any, reference: Any) -> float:
    """Largest difference over the reference's largest entry; equal NaNs and infinities count as 0."""
    actual, reference = np.asarray(actual, np.float64), np.asarray(reference, np.float64)
    assert actual.shape == reference.shape, (actual.shape, reference.shape)
    same = (actual == reference) | (np.isnan(actual) & np.isnan(reference))
    finite = np.abs(reference[np.isfinite(reference)])
    scale = finite.max() if finite.size and finite.max() > 0 else 1.0
    difference = np.where(same, 0.0, np.abs(actual - reference))
    return float(np.max(difference, initial=0.0) / scale)


def assert_same(a: Any, b: Any, where: str = "") -> None:
    """Equality of nested plain values, to the last bit and type."""
    assert type(a) is type(b), (where, type(a), type(b))
    if isinstance(a, dict):
        assert list(a) == list(b), where
        for key in a:
            assert_same(a[key], b[key], f"{where}.{key}")
    elif isinstance(a, list | tuple):
        assert len(a) == len(b), where
        for k, pair in enumerate(zip(a, b, strict=True)):
            assert_same(*pair, f"{where}[{k}]")
    elif isinstance(a, np.ndarray | np.generic):
        assert a.dtype == b.dtype and a.shape == b.shape, (where, a.dtype, b.dtype, a.shape, b.shape)
        assert np.array_equal(a, b, equal_nan=a.dtype.kind in "fc"), where
    else:
        assert a == b or a != a, where


def assert_same_net(a: Any, b: Any) -> None:
    """Equality of two nets in everything a file keeps."""
    for name in b.layers:
        assert a.layers[name].wire == b.layers[name].wire
        assert_same(*(n.layers[name].layer.save() for n in (a, b)), name)
        assert type(a.layers[name].layer) is type(b.layers[name].layer)
    assert list(a.layers) == list(b.layers) and list(a.vars) == list(b.vars)
    for name, var in b.vars.items():
        assert a.vars[name].precious == var.precious
    assert list(a.params) == list(b.params)
    for name, param in b.params.items():
        assert_same(a.params[name].value, param.value, name)
        for field in ("learning_rate", "weight_decay", "train_method"):
            assert getattr(a.params[name], field) == getattr(param, field), (name, field)
    assert_same(a.meta, b.meta, "meta")
