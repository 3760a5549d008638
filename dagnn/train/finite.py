"""Where numbers stopped being finite."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np

from ..dtypes import is_half
from ..errors import shorten

if TYPE_CHECKING:
    from ..backends.base import Array, Backend
    from ..net import DagNN


def explain(net: DagNN, inputs: Mapping[str, Any], der_outputs: Mapping[str, float]) -> str:
    """What went wrong first when `net` last evaluated `inputs`; evaluates them again to see.

    The random numbers are the same, because they are keyed by the number of the evaluation.
    """
    net.evaluation -= 1
    conserve, net.conserve_memory = net.conserve_memory, False
    try:
        with np.errstate(all="ignore"):
            net.eval(inputs, der_outputs)
        return _forward(net, inputs) or _backward(net) or "but evaluated again, the batch was finite"
    finally:
        net.conserve_memory = conserve


def _forward(net: DagNN, inputs: Mapping[str, Any]) -> str:
    for name in inputs:
        if bad := _bad(net.backend.asarray(inputs[name]), net.backend):
            return f"the input {name!r} is not finite: {bad}"
    for node in _in_order(net):
        for name in node.params:
            if bad := _bad(net.params[name].value, net.backend):
                return f"parameter {name!r} of layer {node.name!r} is not finite: {bad}"
        for name in node.outputs:
            if bad := _bad(net.vars[name].value, net.backend):
                kind = type(node.layer).__name__
                return f"the first to go wrong is {kind} {node.name!r}: its output {name!r} has {bad}"
    return ""


def _backward(net: DagNN) -> str:
    for node in reversed(_in_order(net)):
        ders = {name: net.vars[name].der for name in node.outputs}
        ders |= {name: net.params[name].der for name in node.params}
        for name, der in ders.items():
            if bad := _bad(der, net.backend):
                return f"all outputs are finite; the first derivative to go wrong is that of {name!r}: {bad}"
    return ""


def _in_order(net: DagNN) -> list[Any]:
    return [net.layers[wire.name] for wire in net._wires()]


def _bad(array: Array | None, backend: Backend) -> str:
    """How many elements aren't finite; "" if none."""
    if array is None or backend.finite([array]):
        return ""
    array = array.astype("float32") if is_half(array.dtype) else array
    finite = np.isfinite(array)
    kinds = shorten(sorted({str(x) for x in array[~finite].tolist()}))
    return f"{int((~finite).sum())} of {array.size} elements {kinds}"
