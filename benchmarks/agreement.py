"""Whether dagnn and its peers compute the same, before anything is timed.

What is right is PyTorch's answer in float64. In float32 nobody reaches it; how far PyTorch in float32 stays
from it says how much rounding the network itself makes of one rounding error (batch normalisation over few
pixels and max pooling make much of it). dagnn may be `FACTOR` times as far: Winograd's convolutions round
more than the plain sum does.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch

from dagnn import DagNN

from . import peers
from .measure import error
from .nets import Case
from .works import onnxruntime

FACTOR = 10
NOTHING = 1e-5
"""An error below this one is rounding of single precision whatever PyTorch's own is."""


class Disagreement(Exception):
    """Two programs compute something else."""


def check(case: Case, phase: str, threads: int) -> dict[str, float]:
    """The largest errors of "dagnn" and its peers; Disagreement if dagnn's is too large."""
    torch.set_num_threads(threads)
    net = case.net()
    for node in net.layers.values():
        if type(node.layer).__name__ == "DropOut":
            node.layer.rate = 0.0  # whose masks nobody else draws
    return _predictions(case, net, threads) if phase == "infer" else _derivatives(case, net)


def _predictions(case: Case, net: DagNN, threads: int) -> dict[str, float]:
    net.mode, inputs = "test", case.inputs()
    answers = {"dagnn": net.eval({"input": inputs["input"]}, outputs=["prediction"])["prediction"]}
    answers["onnxruntime"] = onnxruntime(case, threads)()
    model, x, _ = peers.pytorch(net, inputs, "nchw")
    model.eval()
    with torch.inference_mode():
        answers["pytorch"] = model(x).numpy()
        truth = model.double()(x.double()).numpy()
    errors = {name: error(answer, truth) for name, answer in answers.items()}
    _demand("prediction", errors["dagnn"], errors["pytorch"])
    if errors["onnxruntime"] > 1e-3:
        raise Disagreement(f"ONNX Runtime computes another network: error {errors['onnxruntime']:.2g}")
    return errors


def _derivatives(case: Case, net: DagNN) -> dict[str, float]:
    inputs = case.inputs()
    model, x, label = peers.pytorch(net, inputs, "nchw")
    model.train()
    peers.objective(model(x), label).backward()
    single = {name: p.grad.numpy().copy() for name, p in model.named_parameters()}
    model.double().zero_grad()
    label = label.double() if label.is_floating_point() else label
    peers.objective(model(x.double()), label).backward()
    double = {name: p.grad.numpy() for name, p in model.named_parameters()}
    net.eval(inputs, {"objective": 1}, outputs=["objective"])
    worst = {"dagnn": 0.0, "pytorch": 0.0}
    for param, name in pairs(net):
        errors = {
            "dagnn": error(net.params[param].der, double[name]),
            "pytorch": error(single[name], double[name]),
        }
        _demand(f"derivative of {param}", errors["dagnn"], errors["pytorch"])
        worst = {key: max(worst[key], errors[key]) for key in worst}
    return worst


def pairs(net: DagNN) -> Iterator[tuple[str, str]]:
    """Parameters that derivatives train, by their names here and in PyTorch's module."""
    for name, place in net.layers.items():
        for param, role in zip(place.params, ("weight", "bias"), strict=False):
            yield param, f"layers.{peers.module_name(name)}.{role}"


def _demand(what: str, mine: float, theirs: float) -> None:
    most = max(NOTHING, FACTOR * theirs)
    if not (np.isfinite(theirs) and mine <= most):
        raise Disagreement(
            f"{what}: dagnn's error is {mine:.2g} of the norm, PyTorch's {theirs:.2g}; it may be {most:.2g}"
        )
