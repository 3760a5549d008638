"""The same networks in PyTorch and ONNX Runtime, with the same parameters."""

from __future__ import annotations

import io
import warnings
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import dagnn
from dagnn import DagNN


class Network(nn.Module):
    """A `DagNN` layer by layer as PyTorch modules: what a PyTorch user would write by hand.

    Like such a program it lets go of a variable once nobody needs it.
    """

    def __init__(self, net: DagNN, shapes: Mapping[str, tuple[int, ...]], output: str) -> None:
        super().__init__()
        self.output = output
        self.layers = nn.ModuleDict()
        nodes = [n for n in net.layers.values() if "objective" not in n.outputs and "label" not in n.inputs]
        last = {name: node.name for node in nodes for name in node.inputs}
        self.places = []
        for node in nodes:
            values = [np.array(net.params[p].value, order="C") for p in node.params]
            layer = module(node.layer, values, shapes[node.inputs[0]])
            self.layers[module_name(node.name)] = layer
            done = [name for name in node.inputs if last[name] == node.name]
            self.places.append((layer, node.inputs, node.outputs[0], done))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = {"input": x}
        del x
        for layer, inputs, output, done in self.places:
            values[output] = layer(*(values[name] for name in inputs))
            for name in done:
                values.pop(name, None)
        return values[self.output]


def module_name(layer: str) -> str:
    """The name of a layer in `Network.layers`, which may have no dots."""
    return layer.replace(".", "_")


class Sum(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b


class Concat(nn.Module):
    def forward(self, *xs: torch.Tensor) -> torch.Tensor:
        return torch.cat(xs, 1)


class FullyConnected(nn.Linear):
    """Of maps (N, C, H, W) to (N, K, 1, 1)."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x.flatten(1))[:, :, None, None]


def module(layer: dagnn.Layer, values: list[np.ndarray], shape: tuple[int, ...]) -> nn.Module:
    """The PyTorch module of one layer, whose input has this shape."""
    match layer:
        case dagnn.Conv():
            if layer.size[1:] == shape[1:] and not any(layer.pad):
                return fully_connected(values)
            return convolution(layer, values, shape[1])
        case dagnn.ReLU():
            return nn.ReLU(inplace=True)
        case dagnn.Pooling():
            return pooling(layer)
        case dagnn.LRN():
            size, kappa, alpha, beta = layer.param
            return nn.LocalResponseNorm(int(size), alpha * size, beta, kappa)
        case dagnn.DropOut():
            return nn.Dropout(layer.rate)
        case dagnn.BatchNorm():
            bn = nn.BatchNorm2d(layer.num_channels, eps=layer.epsilon)
            bn.weight.data, bn.bias.data = torch.from_numpy(values[0]), torch.from_numpy(values[1])
            bn.running_mean.copy_(torch.from_numpy(values[2][:, 0]))
            bn.running_var.copy_(torch.from_numpy(values[2][:, 1] ** 2 - layer.epsilon))
            return bn
        case dagnn.Sum():
            return Sum()
        case dagnn.Concat():
            return Concat()
    raise NotImplementedError(type(layer).__name__)


def fully_connected(values: list[np.ndarray]) -> nn.Linear:
    """A convolution that meets the whole map once, as PyTorch's users write it: the faster way there."""
    filters = values[0].reshape(len(values[0]), -1)
    layer = FullyConnected(filters.shape[1], len(filters), bias=len(values) > 1)
    layer.weight.data = torch.from_numpy(filters)
    if layer.bias is not None:
        layer.bias.data = torch.from_numpy(values[1])
    return layer


def convolution(layer: dagnn.Conv, values: list[np.ndarray], channels: int) -> nn.Conv2d:
    k, depth, *window = layer.size
    top, bottom, left, right = layer.pad
    if (top, left) != (bottom, right):
        raise NotImplementedError(f"a convolution padded by {layer.pad}")
    conv = nn.Conv2d(
        channels, k, window, layer.stride, (top, left), layer.dilate, channels // depth, bias=layer.has_bias
    )
    conv.weight.data = torch.from_numpy(values[0])
    if layer.has_bias:
        conv.bias.data = torch.from_numpy(values[1])
    return conv


def pooling(layer: dagnn.Pooling) -> nn.Module:
    """Padding behind the image is what PyTorch does with `ceil_mode`."""
    top, bottom, left, right = layer.pad
    ceil = (bottom, right) != (top, left)
    if layer.method == "max":
        return nn.MaxPool2d(layer.pool_size, layer.stride, (top, left), ceil_mode=ceil)
    return nn.AvgPool2d(layer.pool_size, layer.stride, (top, left), ceil, count_include_pad=False)


def pytorch(net: DagNN, inputs: Mapping[str, np.ndarray], layout: str) -> tuple[Network, Any, Any]:
    """(module, input, label) in memory `layout` "nchw" or "nhwc"."""
    shapes = net.var_shapes({name: a.shape for name, a in inputs.items()})
    model = Network(net, shapes, "prediction")
    x, label = torch.from_numpy(inputs["input"]), torch.from_numpy(inputs["label"])
    if layout == "nhwc":
        model = model.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    return model, x, label


def objective(prediction: torch.Tensor, label: torch.Tensor) -> torch.Tensor:
    """What the networks of the zoo minimise."""
    if label.dtype == torch.int64:
        return F.cross_entropy(prediction.flatten(1), label)
    return ((prediction - label) ** 2).sum()


def onnx_model(net: DagNN, inputs: Mapping[str, np.ndarray]) -> bytes:
    """The network in test mode as an ONNX file."""
    model, x, _ = pytorch(net, inputs, "nchw")
    file = io.BytesIO()
    with warnings.catch_warnings():  # this exporter is called old; the new one needs minutes
        warnings.simplefilter("ignore")
        torch.onnx.export(model.eval(), (x,), file, dynamo=False, input_names=["input"])
    return file.getvalue()
