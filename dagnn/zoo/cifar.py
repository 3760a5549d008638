"""Two networks for the images of CIFAR-10, 32x32 in colour."""

from __future__ import annotations

from ..layers import Conv, DropOut, Pooling, ReLU
from ..layers.layer import Layer
from ..net import DagNN
from .parts import classifier, conv_relu, of_type, set_rates


def cifar_quick(num_classes: int = 10) -> DagNN:
    """Caffe's CIFAR-10 "quick" net (MatConvNet's cnn_cifar_init).

    Three convolutions of 5x5 with 32, 32 and 64 filters, max and twice average pooling of 3x3 that halves
    the image, 64 hidden units. Padding (0, 1, 0, 1) makes pooling round up, as Caffe's does.

    >>> shapes = cifar_quick().var_shapes({"input": (1, 3, 32, 32)})
    >>> [shapes[name] for name in ("pool1", "pool2", "pool3", "conv4")]
    [(1, 32, 16, 16), (1, 32, 8, 8), (1, 64, 4, 4), (1, 64, 1, 1)]
    """
    layers: dict[str, Layer] = {
        "conv1": Conv(size=(32, 3, 5, 5), pad=2),
        "pool1": Pooling(pool_size=3, stride=2, pad=(0, 1, 0, 1)),
        "relu1": ReLU(),
        **conv_relu("2", (32, 32, 5, 5), pad=2),
        "pool2": Pooling("avg", pool_size=3, stride=2, pad=(0, 1, 0, 1)),
        **conv_relu("3", (64, 32, 5, 5), pad=2),
        "pool3": Pooling("avg", pool_size=3, stride=2, pad=(0, 1, 0, 1)),
        **conv_relu("4", (64, 64, 4, 4)),
        "conv5": Conv(size=(num_classes, 64, 1, 1)),
    }
    net = classifier(layers, num_classes, (32, 32, 3))
    set_rates(net, of_type(net, Conv), (0.1, 2))
    set_rates(net, ["conv5"], (0.01, 0.2))
    net.meta["init"] = {"conv1_filters": 0.01} | {f"conv{i}_filters": 0.05 for i in (2, 3, 4, 5)}
    return net


def cifar_nin(num_classes: int = 10) -> DagNN:
    """Network in network (Lin et al. 2013, arXiv:1312.4400; MatConvNet's cnn_cifar_init_nin).

    Each of the three blocks is a convolution followed by two of 1x1 ("cccp"), all with ReLU; the last layer
    writes one map per class, whose mean is the score.

        block   convolutions                           then
        1       192 of 5x5, 160 of 1x1, 96 of 1x1      max pooling 3x3, dropout
        2       192 of 5x5, 192 of 1x1, 192 of 1x1     average pooling 3x3, dropout
        3       192 of 3x3, 192 of 1x1, classes        average pooling 7x7

    >>> shapes = cifar_nin().var_shapes({"input": (1, 3, 32, 32)})
    >>> shapes["pool1"], shapes["pool2"], shapes["prediction"]
    ((1, 96, 15, 15), (1, 192, 7, 7), (1, 10, 1, 1))
    """
    layers: dict[str, Layer] = {
        **conv_relu("1", (192, 3, 5, 5), pad=2),
        **_mix("1", (160, 192, 1, 1)),
        **_mix("2", (96, 160, 1, 1)),
        "pool1": Pooling(pool_size=3, stride=2),
        "dropout1": DropOut(rate=0.5),
        **conv_relu("2", (192, 96, 5, 5), pad=2),
        **_mix("3", (192, 192, 1, 1)),
        **_mix("4", (192, 192, 1, 1)),
        "pool2": Pooling("avg", pool_size=3, stride=2),
        "dropout2": DropOut(rate=0.5),
        **conv_relu("3", (192, 192, 3, 3), pad=1),
        **_mix("5", (192, 192, 1, 1)),
        "cccp6": Conv(size=(num_classes, 192, 1, 1)),
        "pool3": Pooling("avg", pool_size=7),
    }
    net = classifier(layers, num_classes, (32, 32, 3))
    set_rates(net, of_type(net, Conv), (1, 10))
    set_rates(net, ["cccp6"], (0.001, 0.01))
    net.meta["init"] = {"cccp6_filters": 0.1 * (2 / 192) ** 0.5}
    return net


def _mix(index: str, size: tuple[int, int, int, int]) -> dict[str, Layer]:
    return {f"cccp{index}": Conv(size=size), f"relu_cccp{index}": ReLU()}
