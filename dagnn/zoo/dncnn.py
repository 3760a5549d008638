"""DnCNN, a denoiser (Zhang et al. 2017, IEEE TIP 26, arXiv:1608.03981)."""

from __future__ import annotations

from ..errors import OptionError
from ..layers import BatchNorm, Conv, PDist, ReLU
from ..layers.layer import Layer
from ..net import DagNN
from .parts import add_chain


def dncnn(depth: int = 17, channels: int = 1, *, width: int = 64) -> DagNN:
    """`depth` convolutions of 3x3 that predict the noise in an image of any size.

        conv1                channels -> width     biases, ReLU
        conv2 ... depth - 1  width -> width        batch normalisation, ReLU
        last                 width -> channels     biases

    "prediction" is the noise: "input" less "prediction" is the clean image. "label" is the true noise, and
    "objective" the sum of squared differences; the authors train with der_outputs {"objective": 1 / (2 N)}
    for N images. Their convolutions before batch normalisation have biases of 0 with learning rate 0;
    ours have none.

    Raises OptionError if `depth` is less than 2.

    >>> net = dncnn()
    >>> net.inputs, net.outputs, net.var_shapes({"input": (1, 1, 40, 60)})["prediction"]
    (['input', 'label'], ['objective'], (1, 1, 40, 60))
    """
    if depth < 2:
        raise OptionError(f"depth is at least 2: the first and the last convolution. Received: {depth}")
    layers: dict[str, Layer] = {"conv1": Conv(size=(width, channels, 3, 3), pad=1), "relu1": ReLU()}
    for i in range(2, depth):
        layers[f"conv{i}"] = Conv(size=(width, width, 3, 3), has_bias=False, pad=1)
        layers[f"bn{i}"] = BatchNorm(width)
        layers[f"relu{i}"] = ReLU()
    layers[f"conv{depth}"] = Conv(size=(channels, width, 3, 3), pad=1)
    net = DagNN()
    add_chain(net, "input", layers, "prediction")
    loss = PDist(p=2, no_root=True, aggregate=True)
    net.add_layer("objective", loss, ["prediction", "label"], "objective")
    for param in net.params.values():
        if not param.name.endswith("_filters"):
            param.weight_decay = 0
    net.meta["init"] = {"conv1_filters": (2 / (9 * width)) ** 0.5}
    return net
