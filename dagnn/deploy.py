"""A network made ready for inference: no losses, no dropout, batch normalisation inside the convolutions."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import replace
from typing import TYPE_CHECKING, Any, cast

import numpy as np

from .layers import BatchNorm, Conv, ConvTranspose, DropOut, Loss, LossSmoothL1

if TYPE_CHECKING:
    from .net import DagNN
    from .variables import Node


def deploy(net: DagNN) -> DagNN:
    """A copy of `net` in mode "test" that computes the same outputs with fewer layers.

    Losses go; so do dropouts, which do nothing in mode "test"; a batch normalisation that reads nothing
    but a convolution's output is folded into its filters and biases:
    w' = w g / sigma, b' = (b - mu) g / sigma + beta. Variables keep their names
    (MatConvNet's cnn_imagenet_deploy).

    >>> import dagnn
    >>> net = dagnn.DagNN()
    >>> net.add_layer("conv", dagnn.Conv(size=(8, 3, 3, 3), has_bias=False), "x", "c")
    >>> net.add_layer("bn", dagnn.BatchNorm(num_channels=8), "c", "y")
    >>> net.add_layer("loss", dagnn.Loss(), ["y", "label"], "objective")
    >>> net.init_params()
    >>> deployed = net.deploy()
    >>> list(deployed.layers), list(deployed.params), deployed.outputs
    (['conv'], ['conv_filters', 'conv_biases'], ['y'])
    """
    net = net.copy()
    net.mode = "test"
    net.remove_layer(_losses(net))
    for node in list(net.layers.values()):
        if isinstance(node.layer, DropOut):
            _join(net, node)
    for pairs in _foldable(net):
        _fold(net, pairs)
    return net


def _losses(net: DagNN) -> list[str]:
    """The losses, and what works on their results."""
    gone: list[str] = []
    made: set[str] = set()
    for wire in net._wires():
        layer = net.layers[wire.name].layer
        if isinstance(layer, Loss | LossSmoothL1) or not made.isdisjoint(wire.inputs):
            gone.append(wire.name)
            made.update(wire.outputs)
    return gone


def _join(net: DagNN, node: Node) -> None:
    """Take a layer out; a variable with readers or none further down keeps its name."""
    source, target = node.inputs[0], node.outputs[0]
    only_reader = sum(source in other.inputs for other in net.layers.values()) == 1
    if target not in net.outputs:
        net.splice(node.name)
    elif only_reader and source not in net.inputs:
        precious = net.vars[source].precious or net.vars[target].precious
        net.remove_layer(node.name)
        net.rename_var(source, target)
        net.vars[target].precious = precious


def _foldable(net: DagNN) -> list[list[tuple[Node, Node]]]:
    """(convolution, batch normalisation) pairs, together where they share parameters.

    Filters shared by several convolutions can only be changed if each is followed by the same normalisation.
    """
    after = {node.inputs[0]: node for node in net.layers.values() if isinstance(node.layer, BatchNorm)}
    readers = [name for node in net.layers.values() for name in node.inputs]
    groups: dict[str, list[Node]] = defaultdict(list)
    for node in net.layers.values():
        for param in node.params[:1] if isinstance(node.layer, Conv | ConvTranspose) else node.params:
            groups[param].append(node)
    found = []
    for convs in groups.values():
        if not all(isinstance(node.layer, Conv | ConvTranspose) for node in convs):
            continue
        norms = [after[node.outputs[0]] for node in convs if node.outputs[0] in after]
        if (
            len(norms) == len(convs)
            and len({tuple(norm.params) for norm in norms}) == 1
            and len({(tuple(node.params), type(node.layer)) for node in convs}) == 1
            and all(readers.count(node.outputs[0]) == 1 for node in convs)
            and not any(net.vars[node.outputs[0]].precious for node in convs)
            and _sizes_agree(net, convs[0], norms[0])
        ):
            found.append(list(zip(convs, norms, strict=True)))
    return found


def _sizes_agree(net: DagNN, conv: Node, norm: Node) -> bool:
    """Whether all values are there and fit: what can't run isn't folded, and says so when it is run."""
    layer: Any = conv.layer
    channels = layer.size[0] if isinstance(layer, Conv) else layer.size[1] * layer.num_groups
    names = [*conv.params, *norm.params]
    values = [net.params[name].value for name in names]
    if any(value is None for value in values):
        return False
    shapes = [value.shape for value in values if value is not None]
    return shapes[0] == tuple(layer.size) and all(shape[0] == channels for shape in shapes[1:])


def _fold(net: DagNN, pairs: list[tuple[Node, Node]]) -> None:
    conv, norm = pairs[0]
    to_numpy = net.backend.to_numpy
    g, beta, moments = (to_numpy(net.params[name].value) for name in norm.params)
    scale = g / moments[:, 1]
    w = to_numpy(net.params[conv.params[0]].value)
    bias = to_numpy(net.params[conv.params[1]].value) if len(conv.params) > 1 else np.zeros_like(beta)
    filters = conv.params[0]
    biases = _biases(net, [convolution for convolution, _ in pairs])
    for convolution, normalisation in pairs:
        output = net.vars[normalisation.outputs[0]]
        net.remove_layer(normalisation.name)
        net.replace_layer(
            convolution.name, replace(cast(Any, convolution.layer), has_bias=True), [filters, biases]
        )
        net.set_layer_outputs(convolution.name, output.name)
        net.vars[output.name].precious = output.precious
    net.params[filters].value = _scaled(w, scale, conv.layer)
    net.params[biases].value = (bias - moments[:, 0]) * scale + beta


def _scaled(w: np.ndarray, scale: np.ndarray, layer: Any) -> np.ndarray:
    """The bank with every output channel multiplied."""
    if isinstance(layer, Conv):
        return w * scale[:, None, None, None]
    c, k, *window = w.shape
    by_group = w.reshape(layer.num_groups, c // layer.num_groups, k, *window)
    return (by_group * scale.reshape(layer.num_groups, 1, k, 1, 1)).reshape(w.shape)


def _biases(net: DagNN, convs: list[Node]) -> str:
    """Where the folded biases go: the convolutions' own, unless another layer has them too, or a new name."""
    names = {node.name for node in convs}
    if len(convs[0].params) > 1:
        own = convs[0].params[1]
        if all(node.name in names for node in net.layers.values() if own in node.params):
            return own
    name = f"{convs[0].name}_biases"
    while name in net.params:
        name += "_"
    return name
