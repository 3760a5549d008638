"""Residual networks with 50, 101 and 152 layers (He et al. 2015, arXiv:1512.03385).

    stage     1                2        3        4        5        then
    size      112, pooled: 56  56       28       14       7        1
    filters   64 of 7x7        64, 256  128, 512 256,1024 512,2048 classes
    ResNet-50                  3        4        6        3        blocks
    ResNet-101                 3        4        23       3        blocks
    ResNet-152                 3        8        36       3        blocks

A block adds to its input what three convolutions of 1x1, 3x3 and 1x1 make of it; the first block of a stage
brings the input to the new size with a convolution of its own. Batch normalisation follows every convolution.
Definitions are those of MatConvNet's cnn_imagenet_init_resnet, which strides in the first convolution of
a block; its conv1 has biases, useless before batch normalisation, ours hasn't.
"""

from __future__ import annotations

from collections.abc import Sequence

from ..layers import BatchNorm, Conv, Pooling, ReLU, Sum
from ..layers.layer import Layer
from ..net import DagNN
from .parts import add_chain, add_losses, of_type, set_rates


def resnet_50(num_classes: int = 1000) -> DagNN:
    """ResNet-50, for colour images of 224x224.

    >>> shapes = resnet_50().var_shapes({"input": (1, 3, 224, 224)})
    >>> [shapes[name][1:] for name in ("conv1", "conv2_3", "conv3_4", "conv4_6", "conv5_3")]
    [(64, 56, 56), (256, 56, 56), (512, 28, 28), (1024, 14, 14), (2048, 7, 7)]
    """
    return _resnet((3, 4, 6, 3), num_classes)


def resnet_101(num_classes: int = 1000) -> DagNN:
    """ResNet-101, for colour images of 224x224.

    >>> len([name for name in resnet_101().layers if name.endswith("_sum")])
    33
    """
    return _resnet((3, 4, 23, 3), num_classes)


def resnet_152(num_classes: int = 1000) -> DagNN:
    """ResNet-152, for colour images of 224x224.

    >>> len([name for name in resnet_152().layers if name.endswith("_sum")])
    50
    """
    return _resnet((3, 8, 36, 3), num_classes)


def _resnet(depths: Sequence[int], num_classes: int) -> DagNN:
    net = DagNN()
    stem = {**_conv("conv1", (64, 3, 7, 7), stride=2), "conv1_relu": ReLU()}
    x = add_chain(net, "input", stem | {"conv1_pool": Pooling(pool_size=3, stride=2, pad=1)}, "conv1")
    channels = 64
    for stage, depth in enumerate(depths, start=2):
        for block in range(depth):
            stride = 2 if stage > 2 and block == 0 else 1
            x = _add_block(net, f"conv{stage}_{block + 1}", x, channels, 2 ** (stage + 4), stride)
            channels = 2 ** (stage + 6)
    net.add_layer("prediction_avg", Pooling("avg", pool_size=7), x, "prediction_avg")
    net.add_layer("prediction", Conv(size=(num_classes, channels, 1, 1)), "prediction_avg", "prediction")
    add_losses(net, num_classes)
    net.meta["normalization"] = {
        "imageSize": [224, 224, 3],
        "border": [32, 32],
        "keepAspect": True,
        "interpolation": "bicubic",
    }
    set_rates(net, of_type(net, BatchNorm), (1, 1, 0.3))
    return net


def _add_block(net: DagNN, name: str, x: str, channels: int, width: int, stride: int) -> str:
    """A bottleneck of `width` that widens `channels` to 4 `width`."""
    branch = {
        **_conv(f"{name}a", (width, channels, 1, 1), stride=stride),
        f"{name}a_relu": ReLU(),
        **_conv(f"{name}b", (width, width, 3, 3)),
        f"{name}b_relu": ReLU(),
        **_conv(f"{name}c", (4 * width, width, 1, 1)),
    }
    shortcut = x
    if channels != 4 * width:
        adapt = _conv(f"{name}_adapt", (4 * width, channels, 1, 1), stride=stride)
        shortcut = add_chain(net, x, adapt)
    y = add_chain(net, x, branch)
    net.add_layer(f"{name}_sum", Sum(), [shortcut, y], f"{name}_sum")
    return add_chain(net, f"{name}_sum", {f"{name}_relu": ReLU()}, name)


def _conv(name: str, size: tuple[int, int, int, int], stride: int = 1) -> dict[str, Layer]:
    """Convolution and batch normalisation; padding keeps the image's size, but for the stride."""
    conv = Conv(size=size, has_bias=False, stride=stride, pad=size[2] // 2)
    return {f"{name}_conv": conv, f"{name}_bn": BatchNorm(size[0])}
