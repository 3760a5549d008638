"""Whether dagnn and PyTorch compute the same on the device, before anything is timed.

As in benchmarks/agreement.py: what is right is PyTorch's answer in float64, on the device. Derivatives in
float64 agree to `DOUBLE` on a small batch; in the precision that is timed, errors may be `FACTOR` times
PyTorch's in the same precision, or what the precision makes of numbers anyway.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from dagnn.backends.base import Backend

from ..agreement import DOUBLE, FACTOR, SMALL_BATCH, demand, errors_of, pairs
from ..nets import Case
from .works import Backends, Peer, Setting, inputs_of, plain, prepared, pytorchs_precision, without_dropout

PREDICTION = {"float64": 1e-9, "float32": 1e-5, "tf32": 5e-3, "bfloat16": 5e-2, "float16": 1e-2}
"""Errors of predictions that are nobody's concern, in parts of the norm."""
DERIVATIVE = {"float64": 1e-9, "float32": 1e-2, "tf32": 1e-1, "bfloat16": 5e-1, "float16": 1e-1}
"""The same of derivatives, where a pixel may win or lose by rounding: see benchmarks/agreement.py."""


def check(case: Case, setting: Setting, backends: Backends, device: str = "cuda") -> dict[str, float]:
    """The largest errors of "dagnn" and "pytorch"; Disagreement if dagnn's is too large."""
    precision = setting.precision
    truth = _truth(case, setting.phase, device)
    mine = errors_of(ours(case, setting, backends(precision)), truth)
    theirs = _pytorchs_errors(case, setting.phase, precision, device)
    if setting.phase == "train":
        small = case.at(batch=min(SMALL_BATCH, case.shape[0]))
        for name, found in _double_errors(small, backends("float64"), device).items():
            demand(f"derivative of {name} in float64", found, DOUBLE)
    least = (PREDICTION if setting.phase == "infer" else DERIVATIVE)[precision]
    for name, found in mine.items():
        demand(f"{name} in {precision}", found, max(least, FACTOR * theirs[name]))
    return {"dagnn": max(mine.values()), "pytorch": max(theirs.values())}


@lru_cache(maxsize=2)
def _truth(case: Case, phase: str, device: str) -> dict[str, np.ndarray]:
    """What is right, for all ways to compute it."""
    return pytorchs(case, Setting(phase, "float64"), device)


@lru_cache(maxsize=1)
def _pytorchs_errors(case: Case, phase: str, precision: str, device: str) -> dict[str, float]:
    """PyTorch's own errors, captured or not."""
    return errors_of(pytorchs(case, Setting(phase, precision), device), _truth(case, phase, device))


@lru_cache(maxsize=1)
def _double_errors(case: Case, backend: Backend, device: str) -> dict[str, float]:
    """The errors of dagnn's derivatives in float64."""
    return errors_of(ours(case, Setting("train", "float64"), backend), _truth(case, "train", device))


def ours(case: Case, setting: Setting, backend: Backend) -> dict[str, np.ndarray]:
    """dagnn's prediction, or its derivatives of the parameters that derivatives train."""
    net = prepared(without_dropout(plain(case)), setting, backend)
    inputs = inputs_of(case, setting, backend)

    def numbers(array: Any) -> np.ndarray:
        return backend.to_numpy(array).astype(np.float64)

    times = 3 if setting.capture else 1  # the second evaluation is recorded, the third one a launch
    if setting.phase == "infer":
        for _ in range(times):
            found = net.eval({"input": inputs["input"]}, outputs=["prediction"])
        return {"prediction": numbers(found["prediction"])}
    for _ in range(times):
        net.eval(inputs, {"objective": 1}, outputs=["objective"])
    return {param: numbers(net.params[param].der) for param, _ in pairs(net)}


def pytorchs(case: Case, setting: Setting, device: str) -> dict[str, np.ndarray]:
    """The same of PyTorch, by the names that dagnn has for them."""
    net = without_dropout(plain(case))
    peer = Peer(net, case, setting, "nchw", device)
    with pytorchs_precision(setting.precision):
        if setting.phase == "infer":
            return {"prediction": peer.prediction().double().cpu().numpy()}
        peer.backward()
    ders = {name: w.grad.double().cpu().numpy() for name, w in peer.model.named_parameters()}
    return {param: ders[name].reshape(net.params[param].value.shape) for param, name in pairs(net)}
