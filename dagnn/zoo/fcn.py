"""Fully convolutional networks for segmentation (Long et al. 2015, arXiv:1411.4038), from VGG-VD-16.

Definitions are those of MatConvNet-FCN: the fully connected layers become convolutions that keep the size,
a convolution of 1x1 scores the classes 32 times coarser than the image, and bilinear interpolation, a fixed
`ConvTranspose`, brings the scores back to its size. FCN-16s and FCN-8s first add scores of the finer pool4,
and pool3.

Images have sides that are multiples of 32; "label" is (N, 1, H, W), negative where to ignore; "prediction"
is (N, num_classes, H, W). "objective" and "top1err" sum over the pixels of an image. `zoo.init_params`
starts the class scores as 0 and the interpolation right; the rest is best taken from a trained VGG-VD-16,
whose layers have the same names.
"""

from __future__ import annotations

from ..layers import Conv, ConvTranspose, Loss, Sum
from ..layers.layer import Layer
from ..net import DagNN
from .parts import add_chain, fully_connected, of_type, set_rates
from .vgg import DEPTHS, sections


def fcn_32s(num_classes: int = 21) -> DagNN:
    """FCN-32s, for colour images.

    >>> shapes = fcn_32s().var_shapes({"input": (1, 3, 256, 320)})
    >>> shapes["scores"], shapes["prediction"]
    ((1, 21, 8, 10), (1, 21, 256, 320))
    """
    return _finish(_backbone(num_classes), "scores", 32, num_classes)


def fcn_16s(num_classes: int = 21) -> DagNN:
    """FCN-16s, for colour images.

    >>> fcn_16s().var_shapes({"input": (1, 3, 256, 320)})["sum4"]
    (1, 21, 16, 20)
    """
    net = _backbone(num_classes)
    x = _add_skip(net, "scores", 4, 512, num_classes, rate=0.1)
    return _finish(net, x, 16, num_classes)


def fcn_8s(num_classes: int = 21) -> DagNN:
    """FCN-8s, for colour images.

    >>> fcn_8s().var_shapes({"input": (1, 3, 256, 320)})["sum3"]
    (1, 21, 32, 40)
    """
    net = _backbone(num_classes)
    x = _add_skip(net, "scores", 4, 512, num_classes, rate=0.1)
    x = _add_skip(net, x, 3, 256, num_classes, rate=0.01)
    return _finish(net, x, 8, num_classes)


def _backbone(num_classes: int) -> DagNN:
    """VGG-VD-16 up to the variable "scores", 32 times coarser than the image."""
    net = DagNN()
    layers: dict[str, Layer] = sections(DEPTHS[16], pool_pad=(0, 1, 0, 1))
    layers |= fully_connected((4096, 512, 7, 7), num_classes)
    layers["fc6"] = Conv(size=(4096, 512, 7, 7), pad=3)
    add_chain(net, "input", layers, "scores")
    set_rates(net, of_type(net, Conv), (1, 2), (1, 0))
    net.meta["init"] = {"fc8_filters": "zero"}
    net.meta["normalization"] = {"imageSize": [224, 224, 3]}
    return net


def _add_skip(net: DagNN, x: str, section: int, channels: int, num_classes: int, rate: float) -> str:
    """Scores `x` twice as fine, and added to them those of a pooling layer."""
    finer = _add_upsampling(net, f"deconv{section}", x, f"finer{section}", 2, num_classes)
    skip = add_chain(net, f"pool{section}", {f"skip{section}": Conv(size=(num_classes, channels, 1, 1))})
    set_rates(net, [skip], (rate, 2), (1, 1))
    net.meta["init"][f"{skip}_filters"] = "zero"
    net.add_layer(f"sum{section}", Sum(), [finer, skip], f"sum{section}")
    return f"sum{section}"


def _add_upsampling(net: DagNN, name: str, x: str, y: str, factor: int, num_classes: int) -> str:
    size = (num_classes, 1, 2 * factor, 2 * factor)
    layer = ConvTranspose(size, has_bias=False, upsample=factor, crop=factor // 2, num_groups=num_classes)
    net.add_layer(name, layer, x, y)
    net.params[f"{name}_filters"].learning_rate = 0
    net.freeze(f"{name}_filters")
    net.meta["init"][f"{name}_filters"] = "bilinear"
    return y


def _finish(net: DagNN, x: str, factor: int, num_classes: int) -> DagNN:
    y = _add_upsampling(net, f"upsample{factor}", x, "prediction", factor, num_classes)
    net.vars[y].precious = True
    net.add_layer("objective", Loss("softmaxlog"), [y, "label"], "objective")
    net.add_layer("top1err", Loss("classerror"), [y, "label"], "top1err")
    return net
