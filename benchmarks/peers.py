"""The same networks in PyTorch and ONNX Runtime, with the same parameters."""

from __future__ import annotations

import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import nn

import dagnn
from dagnn import DagNN


class Network(nn.Module):
    """A `DagNN` layer by layer as PyTorch modules: what a PyTorch user would write by hand."""

    def __init__(self, net: DagNN, output: str) -> None:
        super().__init__()
        self.output = output
        self.places = []
        self.layers = nn.ModuleDict()
        for name, node in net.layers.items():
            if node.outputs[0] == "objective" or "label" in node.inputs:
                continue
            values = [np.array(net.params[p].value) for p in node.params]
            self.layers[name.replace(".", "_")] = layer = module(node.layer, values, net, node)
            self.places.append((layer, tuple(node.inputs), node.outputs[0]))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        values = {"input": x}
        for layer, inputs, output in self.places:
            values[output] = layer(*(values[name] for name in inputs))
        return values[self.output]


class Sum(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b


class Concat(nn.Module):
    def forward(self, *xs: torch.Tensor) -> torch.Tensor:
        return torch.cat(xs, 1)


def module(layer: dagnn.Layer, values: list[np.ndarray], net: DagNN, node: Any) -> nn.Module:
    """The PyTorch module of one layer."""
    match layer:
        case dagnn.Conv():
            return convolution(layer, values, channels_of(net, node.inputs[0]))
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


def channels_of(net: DagNN, name: str) -> int:
    shape = net.meta["shapes"][name]
    return shape[1]


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
    net.meta["shapes"] = net.var_shapes({name: a.shape for name, a in inputs.items()})
    model = Network(net, "prediction")
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


def onnx_session(net: DagNN, inputs: Mapping[str, np.ndarray], threads: int) -> Any:
    """An ONNX Runtime session of the network in test mode, with all graph optimisations."""
    import onnxruntime

    model, x, _ = pytorch(net, inputs, "nchw")
    file = io.BytesIO()
    torch.onnx.export(model.eval(), (x,), file, dynamo=False, input_names=["input"])
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    return onnxruntime.InferenceSession(file.getvalue(), options, providers=["CPUExecutionProvider"])
