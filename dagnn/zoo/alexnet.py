"""AlexNet and the nets VGG-F, -M and -S, eight layers with parameters each.

Definitions are those of MatConvNet's cnn_imagenet_init. With `batch_norm` every convolution but the last is
followed by batch normalisation; local response normalisation and dropout go.
"""

from __future__ import annotations

from ..layers import LRN, Pooling
from ..layers.layer import Layer
from ..net import DagNN
from .parts import Chain, batch_normalised, classifier, conv_relu, fully_connected, imagenet


def alexnet(num_classes: int = 1000, *, batch_norm: bool = False) -> DagNN:
    """AlexNet (Krizhevsky et al., NIPS 2012), for colour images of 227x227.

        conv1   96 filters 11x11, stride 4        norm, max pooling 3x3, stride 2
        conv2  256 filters 5x5, 2 groups          norm, max pooling 3x3, stride 2
        conv3  384 filters 3x3
        conv4  384 filters 3x3, 2 groups
        conv5  256 filters 3x3, 2 groups          max pooling 3x3, stride 2
        fc6, fc7  4096 units                      dropout

    >>> shapes = alexnet().var_shapes({"input": (1, 3, 227, 227)})
    >>> [shapes[name][1:] for name in ("conv1", "pool1", "pool2", "pool5")]
    [(96, 55, 55), (96, 27, 27), (256, 13, 13), (256, 6, 6)]
    """
    layers: dict[str, Layer] = {
        **conv_relu("1", (96, 3, 11, 11), stride=4),
        "norm1": _norm(),
        "pool1": Pooling(pool_size=3, stride=2),
        **conv_relu("2", (256, 48, 5, 5), pad=2),
        "norm2": _norm(),
        "pool2": Pooling(pool_size=3, stride=2),
        **conv_relu("3", (384, 256, 3, 3), pad=1),
        **conv_relu("4", (384, 192, 3, 3), pad=1),
        **conv_relu("5", (256, 192, 3, 3), pad=1),
        "pool5": Pooling(pool_size=3, stride=2),
        **fully_connected((4096, 256, 6, 6), num_classes),
    }
    return _net(layers, num_classes, 227, batch_norm)


def vgg_f(num_classes: int = 1000, *, batch_norm: bool = False) -> DagNN:
    """VGG-F, the fast one (Chatfield et al. 2014, arXiv:1405.3531), for colour images of 224x224.

        conv1   64 filters 11x11, stride 4        norm, max pooling 3x3, stride 2
        conv2  256 filters 5x5                    norm, max pooling 3x3, stride 2
        conv3, conv4, conv5  256 filters 3x3      max pooling 3x3, stride 2 behind the last
        fc6, fc7  4096 units                      dropout

    >>> shapes = vgg_f().var_shapes({"input": (1, 3, 224, 224)})
    >>> [shapes[name][1:] for name in ("conv1", "pool1", "pool2", "pool5")]
    [(64, 54, 54), (64, 27, 27), (256, 13, 13), (256, 6, 6)]
    """
    layers: dict[str, Layer] = {
        **conv_relu("1", (64, 3, 11, 11), stride=4),
        "norm1": _norm(),
        "pool1": Pooling(pool_size=3, stride=2, pad=(0, 1, 0, 1)),
        **conv_relu("2", (256, 64, 5, 5), pad=2),
        "norm2": _norm(),
        "pool2": Pooling(pool_size=3, stride=2),
        **conv_relu("3", (256, 256, 3, 3), pad=1),
        **conv_relu("4", (256, 256, 3, 3), pad=1),
        **conv_relu("5", (256, 256, 3, 3), pad=1),
        "pool5": Pooling(pool_size=3, stride=2),
        **fully_connected((4096, 256, 6, 6), num_classes),
    }
    return _net(layers, num_classes, 224, batch_norm)


def vgg_m(num_classes: int = 1000, *, batch_norm: bool = False) -> DagNN:
    """VGG-M, the medium one (Chatfield et al. 2014, arXiv:1405.3531), for colour images of 224x224.

        conv1   96 filters 7x7, stride 2          norm, max pooling 3x3, stride 2
        conv2  256 filters 5x5, stride 2          norm, max pooling 3x3, stride 2
        conv3, conv4, conv5  512 filters 3x3      max pooling 3x3, stride 2 behind the last
        fc6, fc7  4096 units                      dropout

    >>> shapes = vgg_m().var_shapes({"input": (1, 3, 224, 224)})
    >>> [shapes[name][1:] for name in ("conv1", "conv2", "pool2", "pool5")]
    [(96, 109, 109), (256, 26, 26), (256, 13, 13), (512, 6, 6)]
    """
    layers: dict[str, Layer] = {
        **conv_relu("1", (96, 3, 7, 7), stride=2),
        "norm1": _norm(),
        "pool1": Pooling(pool_size=3, stride=2),
        **conv_relu("2", (256, 96, 5, 5), stride=2, pad=1),
        "norm2": _norm(),
        "pool2": Pooling(pool_size=3, stride=2, pad=(0, 1, 0, 1)),
        **conv_relu("3", (512, 256, 3, 3), pad=1),
        **conv_relu("4", (512, 512, 3, 3), pad=1),
        **conv_relu("5", (512, 512, 3, 3), pad=1),
        "pool5": Pooling(pool_size=3, stride=2),
        **fully_connected((4096, 512, 6, 6), num_classes),
    }
    return _net(layers, num_classes, 224, batch_norm)


def vgg_s(num_classes: int = 1000, *, batch_norm: bool = False) -> DagNN:
    """VGG-S, the slow one (Chatfield et al. 2014, arXiv:1405.3531), for colour images of 224x224.

        conv1   96 filters 7x7, stride 2          norm, max pooling 3x3, stride 3
        conv2  256 filters 5x5                    norm, max pooling 2x2, stride 2
        conv3, conv4, conv5  512 filters 3x3      max pooling 3x3, stride 3 behind the last
        fc6, fc7  4096 units                      dropout

    >>> shapes = vgg_s().var_shapes({"input": (1, 3, 224, 224)})
    >>> [shapes[name][1:] for name in ("pool1", "conv2", "pool2", "pool5")]
    [(96, 37, 37), (256, 33, 33), (256, 17, 17), (512, 6, 6)]
    """
    layers: dict[str, Layer] = {
        **conv_relu("1", (96, 3, 7, 7), stride=2),
        "norm1": _norm(),
        "pool1": Pooling(pool_size=3, stride=3, pad=(0, 2, 0, 2)),
        **conv_relu("2", (256, 96, 5, 5)),
        "norm2": _norm(),
        "pool2": Pooling(pool_size=2, stride=2, pad=(0, 1, 0, 1)),
        **conv_relu("3", (512, 256, 3, 3), pad=1),
        **conv_relu("4", (512, 512, 3, 3), pad=1),
        **conv_relu("5", (512, 512, 3, 3), pad=1),
        "pool5": Pooling(pool_size=3, stride=3, pad=(0, 1, 0, 1)),
        **fully_connected((4096, 512, 6, 6), num_classes),
    }
    return _net(layers, num_classes, 224, batch_norm)


def _norm() -> LRN:
    return LRN((5, 1, 0.0001 / 5, 0.75))


def _net(layers: Chain, num_classes: int, size: int, batch_norm: bool) -> DagNN:
    layers = batch_normalised(layers) if batch_norm else layers
    return imagenet(classifier(layers, num_classes, (size, size, 3)))
