"""A spatial transformer network for cluttered digits (Jaderberg et al. 2015, arXiv:1506.02025)."""

from __future__ import annotations

from ..layers import AffineGridGenerator, BilinearSampler, Conv, Pooling, ReLU
from ..layers.layer import Layer
from ..net import DagNN
from .parts import add_chain, add_losses, conv_relu


def spatial_transformer(num_classes: int = 10) -> DagNN:
    """MatConvNet's cnn_stn_cluttered_mnist_init, for grey images of 60x60.

    A localisation network reads six numbers from the image: the affine map "transform". The image is sampled
    on the grid it makes, variable "transformed"; a classifier reads the result. `zoo.init_params` starts the
    map as the identity, whatever the image; training needs that.

    >>> shapes = spatial_transformer().var_shapes({"input": (1, 1, 60, 60)})
    >>> shapes["transform"], shapes["transformed"], shapes["prediction"]
    ((1, 6, 1, 1), (1, 1, 60, 60), (1, 10, 1, 1))
    """
    net = DagNN()
    localisation: dict[str, Layer] = {
        "pool1_where": Pooling(pool_size=2, stride=2),
        **conv_relu("1_where", (20, 1, 5, 5)),
        "pool2_where": Pooling(pool_size=2, stride=2),
        **conv_relu("2_where", (20, 20, 5, 5)),
        **conv_relu("3_where", (50, 20, 9, 9)),
        "transform": Conv(size=(6, 50, 1, 1)),
    }
    classification: dict[str, Layer] = {
        "pool0": Pooling("avg", pool_size=2, stride=2),
        **conv_relu("1", (32, 1, 7, 7)),
        "pool1": Pooling(pool_size=2, stride=2),
        **conv_relu("2", (48, 32, 5, 5)),
        "pool2": Pooling(pool_size=2, stride=2),
        "fc3": Conv(size=(256, 48, 4, 4)),
        "relu3": ReLU(),
        "fc4": Conv(size=(num_classes, 256, 1, 1)),
    }
    transform = add_chain(net, "input", localisation)
    grid = add_chain(net, transform, {"grid": AffineGridGenerator(60, 60)})
    net.add_layer("sampler", BilinearSampler(), ["input", grid], "transformed")
    add_chain(net, "transformed", classification, "prediction")
    add_losses(net, num_classes)
    net.meta["normalization"] = {"imageSize": [60, 60, 1]}
    net.meta["init"] = {"transform_filters": "zero", "transform_biases": "identity"}
    return net
