"""Whether dagnn and its peers compute the same, before anything is timed.

Predictions, of the very batch that is timed: what is right is PyTorch's answer in float64, and dagnn's error
in float32 may be `FACTOR` times that of PyTorch in float32, for Winograd's convolutions round more than the
plain sum.

Derivatives: in float64 on a small batch they agree to `DOUBLE`. In float32 they need not: where the two
largest values under a max pooling, or a value and the 0 of a ReLU, differ by rounding, the derivative
goes elsewhere, and batch normalisation over few pixels makes much of it. One such pixel among a million is an
error of a thousandth. So the derivatives of the batch that is timed may be off by `SINGLE` of their norm, or
by `FACTOR` times what PyTorch's are: enough to notice a wrong kernel, while the float64 ones say it is right.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np

from dagnn import DagNN

from .measure import error
from .nets import Case
from .works import onnxruntime

FACTOR = 10
PREDICTION = 1e-5  # at which errors of float32 are nobody's concern, whatever PyTorch's are
SINGLE, DOUBLE = 1e-2, 1e-9
SMALL_BATCH = 2


class Disagreement(Exception):
    """Two programs compute something else."""


def check(case: Case, phase: str, threads: int) -> dict[str, float]:
    """The largest errors of "dagnn" and its peers, in parts of the norm; Disagreement if one is too large."""
    import torch

    torch.set_num_threads(threads)
    if phase == "infer":
        return _predictions(case, threads)
    small = case.at(batch=min(SMALL_BATCH, case.shape[0]))
    for name, found in errors_of(
        our_derivatives(small, "float64"), peers_derivatives(small, "float64")
    ).items():
        demand(f"derivative of {name} in float64", found, DOUBLE)
    truth = peers_derivatives(case, "float64")
    theirs = errors_of(peers_derivatives(case, "float32"), truth)
    mine = errors_of(our_derivatives(case, "float32"), truth)
    for name, found in mine.items():
        demand(f"derivative of {name}", found, max(SINGLE, FACTOR * theirs[name]))
    return {"dagnn": max(mine.values()), "pytorch": max(theirs.values())}


def errors_of(ders: Mapping[str, np.ndarray], truth: Mapping[str, np.ndarray]) -> dict[str, float]:
    """The error of each derivative.

    Some are 0 but for rounding (of biases in front of batch normalisation): what is less than a
    ten-thousandth of the largest is taken for as large as that.
    """
    least = 1e-4 * max(float(np.linalg.norm(der)) for der in truth.values())
    return {name: error(ders[name], truth[name], least) for name in truth}


def _predictions(case: Case, threads: int) -> dict[str, float]:
    import torch

    from . import peers

    net, inputs = case.net(), case.inputs()
    net.mode = "test"
    answers = {"dagnn": net.eval({"input": inputs["input"]}, outputs=["prediction"])["prediction"]}
    answers["onnxruntime"] = onnxruntime(case, threads)()
    model, x, _ = peers.pytorch(net, inputs, "nchw")
    model.eval()
    with torch.inference_mode():
        answers["pytorch"] = model(x).numpy()
        truth = model.double()(x.double()).numpy()
    errors = {name: error(answer, truth) for name, answer in answers.items()}
    for who in ("dagnn", "onnxruntime"):
        demand(f"prediction of {who}", errors[who], max(PREDICTION, FACTOR * errors["pytorch"]))
    return errors


def without_dropout(case: Case) -> DagNN:
    """The network, with no masks, which everybody draws differently."""
    net = case.net()
    for node in net.layers.values():
        if type(node.layer).__name__ == "DropOut":
            node.layer.rate = 0.0
    return net


def our_derivatives(case: Case, dtype: str) -> dict[str, np.ndarray]:
    """dagnn's derivatives of the parameters that derivatives train."""
    net, inputs = without_dropout(case), case.inputs()
    net.astype(dtype)
    inputs = {name: a.astype(dtype) if a.dtype.kind == "f" else a for name, a in inputs.items()}
    net.eval(inputs, {"objective": 1}, outputs=["objective"])
    return {param: net.params[param].der for param, _ in pairs(net)}


def peers_derivatives(case: Case, dtype: str) -> dict[str, np.ndarray]:
    """PyTorch's, by the names that dagnn has for them."""
    from . import peers

    net = without_dropout(case)
    model, x, label = peers.pytorch(net, case.inputs(), "nchw")
    if dtype == "float64":
        model, x = model.double(), x.double()
        label = label.double() if label.is_floating_point() else label
    peers.objective(model.train()(x), label).backward()
    ders = {name: parameter.grad.numpy() for name, parameter in model.named_parameters()}
    return {param: ders[name].reshape(net.params[param].value.shape) for param, name in pairs(net)}


def pairs(net: DagNN) -> Iterator[tuple[str, str]]:
    """Parameters that derivatives train, by their names here and in PyTorch's module."""
    from . import peers

    for name, place in net.layers.items():
        for param, role in zip(place.params, ("weight", "bias"), strict=False):
            yield param, f"layers.{peers.module_name(name)}.{role}"


def demand(what: str, found: float, most: float) -> None:
    if not found <= most:
        raise Disagreement(f"{what}: an error of {found:.2g} of the norm, more than {most:.2g}")
