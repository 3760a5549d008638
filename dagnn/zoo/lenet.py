"""LeNet for handwritten digits (LeCun et al., Proc. IEEE 86, 1998)."""

from __future__ import annotations

from ..layers import BatchNorm, Conv, Pooling, ReLU
from ..layers.layer import Layer
from ..net import DagNN
from .parts import batch_normalised, classifier, of_type, set_rates


def lenet(num_classes: int = 10, *, batch_norm: bool = False) -> DagNN:
    """MatConvNet's variant (cnn_mnist_init), for grey images of 28x28.

    Two convolutions of 5x5 with 20 and 50 filters, each followed by max pooling of 2x2, 500 hidden units
    with the only ReLU, and the classes. With `batch_norm`, all convolutions but the last are normalised.

    >>> net = lenet()
    >>> [net.layers[name].layer.size for name in ("conv1", "conv2", "conv3", "conv4")]
    [(20, 1, 5, 5), (50, 20, 5, 5), (500, 50, 4, 4), (10, 500, 1, 1)]
    """
    layers: dict[str, Layer] = {
        "conv1": Conv(size=(20, 1, 5, 5)),
        "pool1": Pooling(pool_size=2, stride=2),
        "conv2": Conv(size=(50, 20, 5, 5)),
        "pool2": Pooling(pool_size=2, stride=2),
        "conv3": Conv(size=(500, 50, 4, 4)),
        "relu3": ReLU(),
        "conv4": Conv(size=(num_classes, 500, 1, 1)),
    }
    net = classifier(batch_normalised(layers) if batch_norm else layers, num_classes, (28, 28, 1))
    set_rates(net, of_type(net, BatchNorm), (1, 1, 0.05), (0, 0))
    net.meta["init"] = {f"conv{i}_filters": 0.01 for i in (1, 2, 3, 4)}
    return net
