"""The networks that benchmarks run, each with the batch it is measured at, and their convolutions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import numpy as np

from dagnn import Conv, DagNN, zoo

Shape = tuple[int, ...]
CLASSES = 1000


@dataclass(frozen=True)
class Case:
    """A network, the shape of its inputs, and how to draw its labels."""

    build: Callable[[], DagNN]
    shape: tuple[int, int, int, int]
    num_classes: int = CLASSES  # 0: the label is an image

    def at(self, batch: int | None = None, size: int | None = None) -> Case:
        """The same with another batch, or another size of the image."""
        n, c, h, w = self.shape
        return replace(self, shape=(batch or n, c, size or h, size or w))

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
    "vgg-m": Case(zoo.vgg_m, (16, 3, 224, 224)),
    "vgg-s": Case(zoo.vgg_s, (16, 3, 224, 224)),
    "vgg-vd-19": Case(zoo.vgg_vd_19, (4, 3, 224, 224)),
}
STANDARD = ("alexnet", "vgg-f", "vgg-vd-16", "googlenet", "resnet-50", "dncnn", "lenet")
"""What is measured where nothing is asked for: each kind of network once."""


@dataclass(frozen=True)
class Convolution:
    """A convolution that networks have: the shapes of its input and filters, and its options."""

    x: Shape
    w: Shape
    stride: Shape
    pad: Shape
    dilate: Shape
    first: bool = False  # of its network: nobody wants the derivative of its input

    @property
    def options(self) -> dict[str, Shape]:
        return {"stride": self.stride, "pad": self.pad, "dilate": self.dilate}

    @property
    def output(self) -> Shape:
        return Conv(self.w, **self.options).output_shapes([self.x])[0]

    @property
    def fully_connected(self) -> bool:
        """Whether each filter meets the whole map once."""
        return self.w[1:] == self.x[1:] and not any(self.pad)

    @property
    def operations(self) -> int:
        """Multiplications and additions."""
        return 2 * int(np.prod(self.output)) * int(np.prod(self.w[1:]))

    def __str__(self) -> str:
        x, w = "x".join(map(str, self.x)), "x".join(map(str, self.w))
        groups = self.x[1] // self.w[1]
        marks = [
            f"/{self.stride[0]}" if max(self.stride) > 1 else "",
            f" pad {max(self.pad)}" if any(self.pad) else "",
            f" dilate {self.dilate[0]}" if max(self.dilate) > 1 else "",
            f" groups {groups}" if groups > 1 else "",
        ]
        return f"{x} * {w}" + "".join(marks)


def convolutions(names: Iterable[str] = STANDARD, batch: int | None = None) -> dict[Convolution, list[str]]:
    """The different convolutions of networks, and the layers "network:layer" that have them."""
    found: dict[Convolution, list[str]] = {}
    for name in names:
        case = CASES[name].at(batch=batch)
        net = case.build()
        shapes = net.var_shapes({key: array.shape for key, array in case.inputs().items()})
        for node in net.layers.values():
            layer, (x, *_) = node.layer, node.inputs
            if isinstance(layer, Conv):
                options = layer.stride, layer.pad, layer.dilate
                key = Convolution(shapes[x], layer.size, *options, first=x == "input")
                found.setdefault(key, []).append(f"{name}:{node.name}")
    return found
