"""The very deep VGG nets with 16 and 19 layers (Simonyan & Zisserman 2014, arXiv:1409.1556).

All convolutions are 3x3; max pooling of 2x2 halves the image after each of five sections.

    section   1     2      3      4      5      fc6, fc7   fc8
    filters   64    128    256    512    512    4096       classes
    VD-16     2     2      3      3      3      1 each     1
    VD-19     2     2      4      4      4      1 each     1

Definitions are those of MatConvNet's cnn_imagenet_init; without batch normalisation there is dropout behind
fc6 and fc7.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from ..layers import Pooling
from ..layers.layer import Layer
from ..net import DagNN
from .parts import batch_normalised, classifier, conv_relu, fully_connected, imagenet

DEPTHS = {16: (2, 2, 3, 3, 3), 19: (2, 2, 4, 4, 4)}


def vgg_vd_16(num_classes: int = 1000, *, batch_norm: bool = False) -> DagNN:
    """VGG-VD-16 (configuration D), for colour images of 224x224.

    >>> shapes = vgg_vd_16().var_shapes({"input": (1, 3, 224, 224)})
    >>> [shapes[f"pool{section}"][1:] for section in (1, 2, 3, 4, 5)]
    [(64, 112, 112), (128, 56, 56), (256, 28, 28), (512, 14, 14), (512, 7, 7)]
    """
    return _vgg_vd(16, num_classes, batch_norm)


def vgg_vd_19(num_classes: int = 1000, *, batch_norm: bool = False) -> DagNN:
    """VGG-VD-19 (configuration E), for colour images of 224x224.

    >>> net = vgg_vd_19(num_classes=20, batch_norm=True)
    >>> [name for name in net.layers if name.startswith("bn")][-3:]
    ['bn5_4', 'bn6', 'bn7']
    """
    return _vgg_vd(19, num_classes, batch_norm)


def _vgg_vd(depth: int, num_classes: int, batch_norm: bool) -> DagNN:
    layers = sections(DEPTHS[depth]) | fully_connected((4096, 512, 7, 7), num_classes)
    layers = batch_normalised(layers) if batch_norm else layers
    return imagenet(classifier(layers, num_classes, (224, 224, 3)))


def sections(depths: Sequence[int], pool_pad: int | tuple[int, int, int, int] = 0) -> dict[str, Layer]:
    """The five sections of convolutions, of these depths, each with its pooling."""
    layers: dict[str, Layer] = {}
    for section, (depth, (before, filters)) in enumerate(
        zip(depths, pairwise((3, 64, 128, 256, 512, 512)), strict=True), start=1
    ):
        for i in range(depth):
            size = (filters, filters if i else before, 3, 3)
            layers |= conv_relu(f"{section}_{i + 1}", size, pad=1)
        layers[f"pool{section}"] = Pooling(pool_size=2, stride=2, pad=pool_pad)
    return layers
