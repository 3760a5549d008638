"""The networks that benchmarks run, each with the batch it is measured at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dagnn import DagNN, zoo

CLASSES = 1000


@dataclass(frozen=True)
class Case:
    """A network, the shape of its inputs, and how to draw its labels."""

    build: Callable[[], DagNN]
    shape: tuple[int, int, int, int]
    num_classes: int = CLASSES  # 0: the label is an image

    def net(self) -> DagNN:
        """The network with values small enough for its outputs to stay finite without training."""
        net = self.build()
        net.init_params(seed=0)
        return net

    def inputs(self) -> dict[str, np.ndarray]:
        rng = np.random.default_rng(1)
        x = rng.standard_normal(self.shape, dtype=np.float32)
        if not self.num_classes:
            return {"input": x, "label": rng.standard_normal(self.shape, dtype=np.float32)}
        return {"input": x, "label": rng.integers(0, self.num_classes, self.shape[0])}


CASES = {
    "alexnet": Case(zoo.alexnet, (16, 3, 227, 227)),
    "vgg-f": Case(zoo.vgg_f, (16, 3, 224, 224)),
    "vgg-vd-16": Case(zoo.vgg_vd_16, (4, 3, 224, 224)),
    "googlenet": Case(zoo.googlenet, (8, 3, 224, 224)),
    "resnet-50": Case(zoo.resnet_50, (8, 3, 224, 224)),
    "dncnn": Case(zoo.dncnn, (1, 1, 256, 256), num_classes=0),
    "lenet": Case(zoo.lenet, (100, 1, 28, 28), num_classes=10),
}
