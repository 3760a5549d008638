"""Fast R-CNN: classes of regions, and corrections of their boxes (Girshick 2015, arXiv:1504.08083)."""

from __future__ import annotations

from ..layers import Conv, Loss, LossSmoothL1, ROIPooling
from ..layers.layer import Layer
from ..net import DagNN
from .parts import add_chain, fully_connected, of_type, set_rates
from .vgg import DEPTHS, sections


def fast_rcnn(num_classes: int = 21) -> DagNN:
    """Fast R-CNN on VGG-VD-16 (MatConvNet's fast_rcnn_init), for colour images of any size.

    `num_classes` counts the background, in MatConvNet the last class. Inputs are "input", "rois" (5, R), and
    for training, per region, "label", "targets" and "instance_weights". All layers of a trained VGG-VD-16 but
    the last have the same names.

    >>> shapes = fast_rcnn().var_shapes({"input": (1, 3, 608, 800), "rois": (5, 64)})
    >>> shapes["roipool"], shapes["predcls"], shapes["predbbox"]
    ((64, 512, 7, 7), (64, 21, 1, 1), (64, 84, 1, 1))
    """
    net = DagNN()
    layers = sections(DEPTHS[16])
    del layers["pool5"]
    features = add_chain(net, "input", layers)
    add_fast_rcnn_heads(net, features, 512, num_classes)
    set_rates(net, of_type(net, Conv), (1, 2), (1, 0))
    net.meta["normalization"] = {"averageImage": [122.7717, 102.9801, 115.9465]}
    return net


def add_fast_rcnn_heads(
    net: DagNN,
    features: str,
    channels: int,
    num_classes: int,
    *,
    width: int = 4096,
    subdivisions: int = 7,
    transform: float = 1 / 16,
) -> None:
    """Pool regions of variable `features` (N, `channels`, H, W), classify them and correct their boxes.

    Adds the inputs "rois" (5, R), "label" (R,), "targets" and "instance_weights" (R, 4 num_classes, 1, 1);
    scores "predcls" (R, num_classes, 1, 1) and boxes "predbbox" (R, 4 num_classes, 1, 1), four numbers per
    class; losses "losscls" and "lossbbox". `width` is the number of hidden units in both layers,
    `subdivisions` the height and width a region is pooled to, `transform` the size of a pixel of the image
    in pixels of `features`.

    >>> net = DagNN()
    >>> net.add_layer("conv", Conv(size=(8, 3, 3, 3), stride=4, pad=1), "input", "conv")
    >>> add_fast_rcnn_heads(net, "conv", 8, 4, width=32, subdivisions=3, transform=1 / 4)
    >>> net.outputs
    ['losscls', 'lossbbox']
    """
    pooling = ROIPooling("max", subdivisions=subdivisions, transform=transform)
    net.add_layer("roipool", pooling, [features, "rois"], "roipool")
    layers: dict[str, Layer] = fully_connected((width, channels, subdivisions, subdivisions), num_classes)
    del layers["fc8"]
    x = add_chain(net, "roipool", layers)
    net.add_layer("predcls", Conv(size=(num_classes, width, 1, 1)), x, "predcls")
    net.add_layer("predbbox", Conv(size=(4 * num_classes, width, 1, 1)), x, "predbbox")
    net.add_layer("losscls", Loss(), ["predcls", "label"], "losscls")
    net.add_layer("lossbbox", LossSmoothL1(), ["predbbox", "targets", "instance_weights"], "lossbbox")
    starts = {"predcls_filters": 0.01, "predbbox_filters": 0.001}
    net.meta["init"] = net.meta.get("init", {}) | starts
