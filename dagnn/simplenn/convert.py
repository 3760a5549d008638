"""A SimpleNN as a DagNN, under MatConvNet's names, and back."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

from ..errors import GraphError, OptionError
from ..graph import layer_order
from ..layers import (
    LRN,
    BatchNorm,
    Conv,
    ConvTranspose,
    DropOut,
    Loss,
    NormalizeLp,
    NormOffset,
    PDist,
    Placeholder,
    Pooling,
    ReLU,
    Sigmoid,
    SoftMax,
    SpatialNorm,
    Tanh,
)
from ..layers.layer import Layer
from ..net import DagNN
from ..variables import Node
from .custom import CustomLink
from .layers import BLOCKS, RELUS, WITH_CLASS, Link, block, is_custom, is_empty


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


# ---- back


def chain(net: DagNN) -> list[Link]:
    """The layers of a DagNN that is a chain, as a SimpleNN has them (MatConvNet's `toSimpleNN`)."""
    links, data = [], None
    for name in layer_order(net.graph()):
        node = net.layers[name]
        inputs = node.inputs
        if isinstance(node.layer, Loss | PDist) and inputs[1:2] != inputs[:1]:
            inputs = [
                inputs[0],
                *inputs[2:],
            ]  # labels, or what is compared with, are a field of a SimpleNN's layer
        if len(inputs) != 1 or len(node.outputs) != 1 or data not in (None, inputs[0]):
            raise GraphError(
                f"The net is not a chain: layer {name!r} reads {', '.join(node.inputs)} and writes "
                f"{', '.join(node.outputs)}" + (f", the layer before it wrote {data}" if data else "")
            )
        data = node.outputs[0]
        links.append(_link(net, node))
    return links


def _link(net: DagNN, node: Node) -> Link:
    layer = node.layer
    params = [net.params[name] for name in node.params]
    link: Link = {"name": node.name, "precious": net.vars[node.outputs[0]].precious}
    if any(param.value is None for param in params):
        raise GraphError(f"The parameters of layer {node.name!r} have no value yet: call net.init_params()")
    if params:
        link["weights"] = [param.value for param in params]
        link["learningRate"] = tuple(param.learning_rate for param in params)
        link["weightDecay"] = tuple(param.weight_decay for param in params)
    if isinstance(layer, CustomLink):
        return {**layer.link, **link}
    if isinstance(layer, Placeholder):
        return {"type": layer.class_name, **layer.config, **link}
    try:
        return {**FIELDS[type(layer)](layer), **link}
    except KeyError:
        raise OptionError(
            f"{type(layer).__name__} {node.name!r} has no counterpart in a SimpleNN: it has "
            f"{', '.join(sorted(kind.__name__ for kind in FIELDS))}"
        ) from None


def _loss(layer: Any) -> Link:
    if layer.loss != "softmaxlog" or not layer.normalise:
        raise OptionError(f"A SimpleNN has the loss 'softmaxlog', normalised, only. Received: {layer}")
    return {"type": "softmaxloss"}


_RELU_TYPES = {backprop: kind for kind, backprop in RELUS.items()}
FIELDS: dict[type[Layer], Callable[[Any], Link]] = {
    Conv: lambda f: {"type": "conv", "stride": f.stride, "pad": f.pad, "dilate": f.dilate},
    ConvTranspose: lambda f: {
        "type": "convt", "upsample": f.upsample, "crop": f.crop, "numGroups": f.num_groups,
    },
    Pooling: lambda f: {
        "type": "pool" if f.backprop == "pool" else "pool_center",
        "method": f.method, "pool": f.pool_size, "stride": f.stride, "pad": f.pad,
    },
    LRN: lambda f: {"type": "lrn" if f.backprop == "lrn" else "lrn_nobackprop", "param": f.param},
    NormalizeLp: lambda f: {
        "type": "normalizelp", "p": f.p, "epsilon": f.epsilon, "spatial": f.spatial, "scale": f.scale,
    },
    SoftMax: lambda f: {"type": "softmax"},
    Loss: _loss,
    ReLU: lambda f: {"type": _RELU_TYPES[f.backprop], "leak": f.leak},
    Tanh: lambda f: {"type": "tanh"},
    Sigmoid: lambda f: {"type": "sigmoid"},
    NormOffset: lambda f: {"type": "noffset", "param": f.param},
    SpatialNorm: lambda f: {"type": "spnorm", "param": f.param},
    DropOut: lambda f: {"type": "dropout", "rate": f.rate, "frozen": f.frozen},
    BatchNorm: lambda f: {"type": "bnorm", "epsilon": f.epsilon},
    PDist: lambda f: {
        "type": "pdist", "p": f.p, "noRoot": f.no_root, "epsilon": f.epsilon, "aggregate": f.aggregate,
    },
}  # fmt: skip
"""The fields of the layers a SimpleNN can have."""
