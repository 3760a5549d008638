"""A SimpleNN as a DagNN, under MatConvNet's names."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import numpy as np

from ..layers import Conv, Loss, Placeholder, Pooling, SoftMax
from ..layers.layer import Layer
from ..net import DagNN
from .custom import CustomLink
from .layers import BLOCKS, WITH_CLASS, Link, block, is_custom, is_empty


def add_link(net: DagNN, i: int, link: Link) -> None:
    """Add `link` as the layer from variable `x<i>` to the next."""
    name, bnorm = link["name"], link["type"] == "bnorm"
    layer, weights = _placed(net, link)
    inputs = [f"x{i}"]
    if link["type"] in WITH_CLASS:
        inputs.append(_free(net, "label"))
    if link["type"] == "pdist" and not is_empty(link.get("instanceWeights")):
        inputs.append(_free(net, "instance_weights"))
    suffixes = ["m", "b", "x"] if bnorm else ["f", "b", *(f"w{k + 1}" for k in range(2, len(weights)))]
    params = [name + suffix for suffix in suffixes[: len(weights)]]
    net.add_layer(name, layer, inputs, f"x{i + 1}", params)
    net.vars[f"x{i + 1}"].precious = link["precious"]
    rates, decays = _numbers(link.get("learningRate")), _numbers(link.get("weightDecay"))
    for k, weight in enumerate(weights):
        param = net.params[params[k]]
        param.value = weight
        if k < len(rates):
            param.learning_rate = rates[k]
        if k < len(decays) and not (bnorm and k == 2):
            param.weight_decay = decays[k]
        if isinstance(layer, Conv) and link["weights"][k] is None:
            param.trainable = False


IN_PLACE = ("type", "name", "precious", "weights", "learningRate", "weightDecay")
"""Fields that the layer's place in the net keeps: its names, variables and parameters."""


def _placed(net: DagNN, link: Link) -> tuple[Layer, list[Any]]:
    """The layer of a DagNN for `link`, and its weights."""
    kind, weights = link["type"], link["weights"]
    if kind == "conv" and weights[0] is None:
        if weights[1] is not None:
            ones = net.backend.zeros((len(weights[1]), 1, 1, 1), weights[1].dtype) + 1
            return block({**link, "weights": [ones, weights[1]]}), [ones, weights[1]]
        if not np.any(link["pad"]):
            return Pooling("avg", 1, link["stride"]), []
    elif is_custom(link):
        return CustomLink(dict(link)), weights
    elif kind in BLOCKS:
        layer = block(link)
        return layer, weights[: len(layer.params)]
    config = {key: v for key, v in link.items() if key not in IN_PLACE}
    return Placeholder(kind, config), weights


def _numbers(rates: Any) -> list[float]:
    return [] if is_empty(rates) else [float(v) for v in (rates if isinstance(rates, Iterable) else [rates])]


def _free(net: DagNN, prefix: str) -> str:
    """`prefix`, or with the first of 1, 2 ... that makes it a name no variable has."""
    name, k = prefix, 0
    while name in net.vars:
        k += 1
        name = f"{prefix}{k}"
    return name


def rename_canonically(net: DagNN) -> None:
    """Call the ends of the net `input`, `prediction`, `prob` and `objective`."""
    for k, name in enumerate(list(net.layers)):
        if k == 0:
            net.rename_var(net.layers[name].inputs[0], _free(net, "input"))
        node = net.layers[name]
        if isinstance(node.layer, SoftMax):
            net.rename_var(node.outputs[0], _free(net, "prob"))
            net.rename_var(node.inputs[0], _free(net, "prediction"))
        if isinstance(node.layer, Loss):
            net.rename_var(node.outputs[0], _free(net, "objective"))
            if not node.inputs[0].startswith("prob"):
                net.rename_var(node.inputs[0], _free(net, "prediction"))
