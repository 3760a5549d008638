"""What the builders share: chains of layers, losses, learning rates, what is known of the images."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from ..layers import LRN, BatchNorm, Conv, DropOut, Loss, ReLU
from ..layers.layer import Layer
from ..net import DagNN

Chain = Mapping[str, Layer]
"""Layers by name, each reading what the one before it writes."""


def classifier(layers: Chain, num_classes: int, image_size: Sequence[int]) -> DagNN:
    """A net of one chain from "input" to "prediction", with losses; `image_size` is (H, W, C)."""
    net = DagNN()
    add_chain(net, "input", layers, "prediction")
    add_losses(net, num_classes)
    net.meta["normalization"] = {"imageSize": list(image_size)}
    return net


def add_chain(net: DagNN, x: str, layers: Chain, output: str | None = None) -> str:
    """Add `layers` behind variable `x`; returns the last variable.

    Variables are called like the layers that write them, the last one `output` if given.
    """
    *_, last = layers
    for name, layer in layers.items():
        y = output if output and name == last else name
        net.add_layer(name, layer, x, y)
        x = y
    return x


def add_losses(net: DagNN, num_classes: int, prediction: str = "prediction", label: str = "label") -> None:
    """The softmax log-loss "objective", "top1err" and, of more than five classes, "top5err"."""
    net.add_layer("objective", Loss("softmaxlog"), [prediction, label], "objective")
    net.add_layer("top1err", Loss("classerror"), [prediction, label], "top1err")
    if num_classes > 5:
        net.add_layer("top5err", Loss("topkerror", top_k=5), [prediction, label], "top5err")


def conv_relu(index: str, size: tuple[int, int, int, int], **options) -> dict[str, Layer]:
    """Convolution and ReLU."""
    return {f"conv{index}": Conv(size=size, **options), f"relu{index}": ReLU()}


def fully_connected(size: tuple[int, int, int, int], num_classes: int) -> dict[str, Layer]:
    """Layers 6 to 8 of AlexNet and of the VGG nets, whose first filters have `size`."""
    width = size[0]
    return {
        "fc6": Conv(size=size),
        "relu6": ReLU(),
        "dropout6": DropOut(rate=0.5),
        "fc7": Conv(size=(width, width, 1, 1)),
        "relu7": ReLU(),
        "dropout7": DropOut(rate=0.5),
        "fc8": Conv(size=(num_classes, width, 1, 1)),
    }


def batch_normalised(layers: Chain) -> dict[str, Layer]:
    """`layers` with a `BatchNorm` behind every convolution but the last, without `LRN` and `DropOut`."""
    convs = [name for name, layer in layers.items() if isinstance(layer, Conv)]
    chain: dict[str, Layer] = {}
    for name, layer in layers.items():
        if isinstance(layer, LRN | DropOut):
            continue
        chain[name] = layer
        if isinstance(layer, Conv) and name != convs[-1]:
            index = name.removeprefix("conv").removeprefix("fc")
            chain[f"bn{index}"] = BatchNorm(layer.size[0])
    return chain


def of_type(net: DagNN, kind: type[Layer]) -> list[str]:
    """Names of the layers of a type."""
    return [name for name, node in net.layers.items() if isinstance(node.layer, kind)]


def set_rates(
    net: DagNN, layers: Iterable[str], rates: Sequence[float], decays: Sequence[float] | None = None
) -> None:
    """Learning rates and weight decays for the parameters of `layers`, in the layers' order."""
    for name in layers:
        params = [net.params[param] for param in net.layers[name].params]
        for param, rate in zip(params, rates, strict=False):
            param.learning_rate = rate
        for param, decay in zip(params, decays or (), strict=False):
            param.weight_decay = decay


def imagenet(net: DagNN) -> DagNN:
    """`net`, with what MatConvNet's cnn_imagenet_init says of images, learning rates and weight decays."""
    size = net.meta["normalization"]["imageSize"]
    border = [256 - size[0], 256 - size[1]]
    net.meta["normalization"] |= {"border": border, "keepAspect": True, "interpolation": "bicubic"}
    set_rates(net, of_type(net, Conv), (1, 2), (1, 0))
    set_rates(net, of_type(net, BatchNorm), (2, 1, 0.05), (0, 0))
    return net
