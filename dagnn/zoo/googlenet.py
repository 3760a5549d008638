"""GoogLeNet, also called Inception v1 (Szegedy et al. 2014, arXiv:1409.4842).

The definition is Caffe's bvlc_googlenet, from which MatConvNet's imagenet-googlenet-dag was imported: pooling
rounds up, local response normalisation has MatConvNet's default parameters.
"""

from __future__ import annotations

from ..layers import LRN, Concat, Conv, DropOut, Loss, Pooling, ReLU
from ..layers.layer import Layer
from ..net import DagNN
from .parts import add_chain, add_losses, conv_relu, imagenet

# filters of 1x1; of 3x3 and, before them, 1x1; of 5x5 and, before them, 1x1; of 1x1 behind pooling
MODULES = {
    "3a": (64, 96, 128, 16, 32, 32),
    "3b": (128, 128, 192, 32, 96, 64),
    "4a": (192, 96, 208, 16, 48, 64),
    "4b": (160, 112, 224, 24, 64, 64),
    "4c": (128, 128, 256, 24, 64, 64),
    "4d": (112, 144, 288, 32, 64, 64),
    "4e": (256, 160, 320, 32, 128, 128),
    "5a": (256, 160, 320, 32, 128, 128),
    "5b": (384, 192, 384, 48, 128, 128),
}
AUXILIARY = {"4a": 1, "4d": 2}


def googlenet(num_classes: int = 1000, *, auxiliary: bool = False) -> DagNN:
    """GoogLeNet, for colour images of 224x224.

    With `auxiliary` two more classifiers, behind modules 4a and 4d, write "prediction1", "objective1" and
    "prediction2", "objective2"; the paper trains with der_outputs
    {"objective": 1, "objective1": 0.3, "objective2": 0.3}.

    >>> shapes = googlenet().var_shapes({"input": (1, 3, 224, 224)})
    >>> [shapes[name][1:] for name in ("pool2", "3b", "4e", "5b", "pool5")]
    [(192, 28, 28), (480, 28, 28), (832, 14, 14), (1024, 7, 7), (1024, 1, 1)]
    """
    net = DagNN()
    x = add_chain(net, "input", _stem())
    channels = 192
    for name, sizes in MODULES.items():
        x = _add_module(net, name, x, channels, sizes)
        channels = sizes[0] + sizes[2] + sizes[4] + sizes[5]
        if auxiliary and name in AUXILIARY:
            _add_auxiliary(net, AUXILIARY[name], x, channels, num_classes)
        if name in ("3b", "4e"):
            x = add_chain(net, x, {f"pool{name[0]}": _halve()})
    head: dict[str, Layer] = {
        "pool5": Pooling("avg", pool_size=7),
        "dropout": DropOut(rate=0.4),
        "fc": Conv(size=(num_classes, channels, 1, 1)),
    }
    add_chain(net, x, head, "prediction")
    add_losses(net, num_classes)
    net.meta["normalization"] = {"imageSize": [224, 224, 3]}
    return imagenet(net)


def _stem() -> dict[str, Layer]:
    return {
        **conv_relu("1", (64, 3, 7, 7), stride=2, pad=3),
        "pool1": _halve(),
        "norm1": LRN((5, 1, 0.0001 / 5, 0.75)),
        **conv_relu("2_reduce", (64, 64, 1, 1)),
        **conv_relu("2", (192, 64, 3, 3), pad=1),
        "norm2": LRN((5, 1, 0.0001 / 5, 0.75)),
        "pool2": _halve(),
    }


def _halve() -> Pooling:
    return Pooling(pool_size=3, stride=2, pad=(0, 1, 0, 1))


def _add_module(net: DagNN, name: str, x: str, channels: int, sizes: tuple[int, ...]) -> str:
    """Four branches side by side, joined in variable `name`."""
    one, reduce3, three, reduce5, five, pooled = sizes
    pool = {f"{name}_pool": Pooling(pool_size=3, pad=1)}
    branches = [
        _conv(f"{name}_1x1", (one, channels, 1, 1)),
        _conv(f"{name}_3x3_reduce", (reduce3, channels, 1, 1)) | _conv(f"{name}_3x3", (three, reduce3, 3, 3)),
        _conv(f"{name}_5x5_reduce", (reduce5, channels, 1, 1)) | _conv(f"{name}_5x5", (five, reduce5, 5, 5)),
        pool | _conv(f"{name}_pool_proj", (pooled, channels, 1, 1)),
    ]
    net.add_layer(name, Concat(), [add_chain(net, x, branch) for branch in branches], name)
    return name


def _conv(name: str, size: tuple[int, int, int, int]) -> dict[str, Layer]:
    return {name: Conv(size=size, pad=size[2] // 2), f"{name}_relu": ReLU()}


def _add_auxiliary(net: DagNN, index: int, x: str, channels: int, num_classes: int) -> None:
    layers: dict[str, Layer] = {
        f"loss{index}_pool": Pooling("avg", pool_size=5, stride=3),
        **_conv(f"loss{index}_conv", (128, channels, 1, 1)),
        f"loss{index}_fc": Conv(size=(1024, 128, 4, 4)),
        f"loss{index}_relu": ReLU(),
        f"loss{index}_dropout": DropOut(rate=0.7),
        f"loss{index}_classifier": Conv(size=(num_classes, 1024, 1, 1)),
    }
    y = add_chain(net, x, layers, f"prediction{index}")
    net.add_layer(f"objective{index}", Loss(), [y, "label"], f"objective{index}")
