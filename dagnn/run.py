"""A stored network applied to an image: what `dagnn run` does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from os import PathLike
from typing import Any

import numpy as np

from . import graph, io
from .errors import OptionError, ShapeError, shorten
from .images import read_image, resize, rgb_to_ycbcr, to_uint8, ycbcr_to_rgb
from .layers import Conv, SoftMax
from .net import DagNN
from .preprocess import Preprocessor

USUAL_INPUTS = ("data", "input", "image", "x0", "x")
MAPS = 3  # axes of what a network makes of one image, if it is an image again: C, H, W


@dataclass
class Run:
    """A network, ready to be applied to images, and what it made of the last one.

    Parameters
    ----------
    net : the network; a copy of it is deployed.
    input, output : names of variables; by default the one that takes images, the one that is computed.
    scale : pixel values 0..255 are multiplied by it. By default 1 where the file says how images are to be
        normalised, and 1/255 where it says nothing, as for most networks that make images of images.
    residual : the output is what is wrong with the image, and is subtracted from it.
    """

    net: DagNN
    input: str = ""
    output: str = ""
    scale: float | None = None
    residual: bool = False

    def __post_init__(self) -> None:
        self.net = self.net.deploy()
        self.input = self._input()
        self.output = self._output()
        normalised = "normalization" in self.net.meta
        if self.scale is None:
            self.scale = 1.0 if normalised else 1 / 255
        options: dict[str, Any] = {"scale": self.scale}
        self.channels = self._channels()
        if self.channels in (1, 3):
            options["channels"] = self.channels
        self.preprocessor = Preprocessor.from_meta(self.net.meta if normalised else {}, **options)

    def _input(self) -> str:
        if self.input:
            return self.net.vars[self.input].name
        inputs = self.net.inputs
        if not inputs:
            raise OptionError("The network has no inputs")
        if self.output:
            needed = graph.missing_inputs(self.net._wires(), self.net.vars[self.output].name, ())
            inputs = [name for name in inputs if name in needed]
        return next((name for name in USUAL_INPUTS if name in inputs), inputs[0])

    def _output(self) -> str:
        if self.output:
            return self.net.vars[self.output].name
        _, available = graph.runnable(self.net._wires(), {self.input})
        reached = [name for name in self.net.outputs if name in available and name != self.input]
        if not reached:
            missing = [name for name in self.net.inputs if name != self.input]
            choice = [name for name in self.net.vars if name in available and name != self.input]
            raise OptionError(
                f"No output depends on {self.input!r} alone; there are the inputs {shorten(missing)} too. "
                f"Choose one with --output: {shorten(choice) or 'none'}"
            )
        if len(reached) > 1:
            raise OptionError(f"Several outputs: choose one with --output: {shorten(reached)}")
        return reached[0]

    def _channels(self) -> int | None:
        """How many channels the first convolution takes."""
        for node in self.net.layers.values():
            if self.input in node.inputs and isinstance(node.layer, Conv):
                return node.layer.size[1]
        return None

    def __call__(self, image: np.ndarray | str | PathLike[str]) -> np.ndarray:
        """The output for one image of pixels 0..255, without its batch axis."""
        x = self.preprocessor(image).astype(self.net.dtype or np.float32, copy=False)
        y = self.net.backend.to_numpy(self.net.eval({self.input: x}, outputs=self.output)[self.output])[0]
        if self.residual:
            if y.shape != x.shape[1:]:
                raise ShapeError(
                    f"a residual has the image's shape {x.shape[1:]}, {self.output!r} has {y.shape}"
                )
            y = x[0] - y
        return y

    def picture(self, y: np.ndarray, image: np.ndarray | str | PathLike[str]) -> np.ndarray:
        """An output (C, H, W) as pixels: 1 or 3 channels as they are, more as the index of the largest.

        A network that makes one channel of the brightness of a colour image leaves the colours to the image.
        """
        if y.ndim != MAPS:
            raise ShapeError(f"{self.output!r} is no image: its shape is {y.shape}")
        if len(y) not in (1, 3):
            return y.argmax(0).astype(np.uint8)
        assert self.scale is not None
        pixels = np.moveaxis(y, 0, -1) / (255 * self.scale)
        if len(y) == 1:
            original = image if isinstance(image, np.ndarray) else read_image(image)
            pixels = pixels[..., 0]
            if original.ndim == MAPS and self._luminance:
                colours = resize(rgb_to_ycbcr(original / 255), pixels.shape)
                colours[..., 0] = pixels
                pixels = ycbcr_to_rgb(colours)
        return to_uint8(np.clip(pixels, 0, 1))

    @property
    def _luminance(self) -> bool:
        return self.channels == 1 and self.preprocessor.image_size is None

    def ranking(self, y: np.ndarray, top: int = 5) -> Iterator[tuple[str, float]]:
        """The `top` classes of an output (C, 1, 1), best first, with their scores."""
        scores = y.ravel()
        names = class_names(self.net.meta, scores.size)
        for k in np.argsort(-scores, kind="stable")[:top]:
            yield names[k], float(scores[k])

    @property
    def probabilities(self) -> bool:
        """Whether the output is that of a softmax."""
        made = [node.layer for node in self.net.layers.values() if self.output in node.outputs]
        return bool(made) and isinstance(made[0], SoftMax)


def class_names(meta: dict[str, Any], n: int) -> list[str]:
    """The names of `n` classes: MatConvNet's `classes.description` or `.name`, a list, or numbers.

    >>> class_names({"classes": {"name": ["n01", "n02"], "description": ["cat", "dog"]}}, 2)
    ['cat', 'dog']
    >>> class_names({}, 2)
    ['class 0', 'class 1']
    """
    classes = meta.get("classes")
    found = [classes.get("description"), classes.get("name")] if isinstance(classes, dict) else [classes]
    for names in found:
        if isinstance(names, list) and len(names) == n:
            return [str(name) for name in names]
    return [f"class {k}" for k in range(n)]


def load(path: str | PathLike[str], **options: Any) -> Run:
    """The network in a file, ready to run; options as of `Run`."""
    return Run(io.load(path), **options)
