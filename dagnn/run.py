"""A stored network applied to an image: what `dagnn run` does."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import inf
from os import PathLike
from typing import Any

import numpy as np

from . import graph, io
from .dtypes import is_half
from .errors import OptionError, ShapeError, shorten
from .images import read_image, resize, rgb_to_ycbcr, to_uint8, ycbcr_to_rgb
from .layers import Conv, ConvTranspose, Loss, SoftMax
from .net import DagNN
from .preprocess import Preprocessor

USUAL_INPUTS = ("data", "input", "image", "x0", "x")
MAPS = 3  # axes of what a network makes of one image, if it is an image again: C, H, W
LABELS = 256  # classes that the pixels of a picture can tell apart


@dataclass
class Run:
    """A network, ready to be applied to images.

    Parameters
    ----------
    net : the network; a copy of it is deployed.
    input, output : names of variables; by default the one that takes images, the one that is computed.
    scale : pixel values 0..255 are multiplied by it. By default 1 where the file says how images are to be
        normalised, and 1/255 where it says nothing, as for most networks that make images of images.
    residual : the output is what is wrong with the image, and is subtracted from it.

    Where the file doesn't say how images are to be normalised, and the network takes one channel, it gets
    the brightness of a colour image (the Y of `dagnn.images.rgb_to_ycbcr`), as in papers on super-resolution.
    With `meta["colours"]` = "each" it gets red, green and blue, one after the other, as a denoiser should.
    """

    net: DagNN
    input: str = ""
    output: str = ""
    scale: float | None = None
    residual: bool = False

    def __post_init__(self) -> None:
        self._logits = {
            node.inputs[0]
            for node in self.net.layers.values()
            if isinstance(node.layer, Loss) and node.layer.loss == "softmaxlog"
        }
        if self.output:  # so that it isn't folded away
            self.net = self.net.subnet()
            self.net.vars[self.output].precious = True
        self.net = self.net.deploy()
        self.input = self._input()
        self.output = self._output()
        normalised = isinstance(self.net.meta.get("normalization"), dict)
        if self.scale is None:
            self.scale = 1.0 if normalised else 1 / 255
        if not 0 < abs(self.scale) < inf:
            raise OptionError(f"scale must be a finite number other than 0. Received: {self.scale}")
        meta = self.net.meta if normalised else {}
        self.preprocessor = Preprocessor.from_meta(meta, scale=self.scale)
        channels = self._channels()
        if self.preprocessor.channels is None and channels in (1, 3):
            self.preprocessor = Preprocessor.from_meta(meta, scale=self.scale, channels=channels)
        grey = self.preprocessor.channels == 1
        self._each = grey and self.net.meta.get("colours") == "each"
        self._brightness = grey and not self._each and not normalised

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
        running, available = graph.runnable(self.net._wires(), {self.input})
        made = [name for wire in running for name in wire.outputs]
        read = {name for wire in running for name in wire.inputs}
        ends = [name for name in made if name in self.net.outputs] or [n for n in made if n not in read]
        if not ends:
            missing = [name for name in self.net.inputs if name not in available]
            raise OptionError(
                f"Nothing depends on {self.input!r} alone; the net has the inputs {shorten(missing)} too"
            )
        if len(ends) > 1:
            raise OptionError(f"Several outputs: choose one with --output: {shorten(ends)}")
        return ends[0]

    def _channels(self) -> int | None:
        """How many channels the first convolution takes."""
        for node in self.net.layers.values():
            if self.input in node.inputs and isinstance(node.layer, Conv):
                return node.layer.size[1]
            if self.input in node.inputs and isinstance(node.layer, ConvTranspose):
                return node.layer.size[0]
        return None

    def __call__(self, image: np.ndarray | str | PathLike[str]) -> np.ndarray:
        """The output for one image of pixels 0..255, without its batch axis."""
        pixels = image if isinstance(image, np.ndarray) else read_image(image)
        if self._each and _is_colour(pixels):
            return np.concatenate([self(channel) for channel in np.moveaxis(pixels, 2, 0)])
        if self._brightness and _is_colour(pixels):
            pixels = 255 * rgb_to_ycbcr(pixels / 255)[..., 0]
        x = self.preprocessor(pixels).astype(self.net.dtype or np.float32, copy=False)
        y = self.net.backend.to_numpy(self.net.eval({self.input: x}, outputs=self.output)[self.output])
        if is_half(y.dtype):
            y = y.astype(np.float32)
        if y.ndim == 0:
            raise ShapeError(f"{self.output!r} is one number for all images. Choose another with --output")
        if not self.residual:
            return y[0]
        if y.shape != x.shape:
            raise ShapeError(
                f"a residual has the image's shape {x.shape[1:]}. Received: {self.output} {y.shape[1:]}"
            )
        return x[0] - y[0]

    def picture(self, y: np.ndarray, image: np.ndarray | str | PathLike[str]) -> np.ndarray:
        """An output (C, H, W) as pixels: 1 or 3 channels as they are, more as the index of the largest.

        A network that makes brightness of the brightness of a colour image leaves the colours to the image.
        """
        if y.ndim != MAPS or not 0 < len(y) <= LABELS:
            raise ShapeError(f"{self.output!r} is no image: its shape is {y.shape}")
        if len(y) not in (1, 3):
            return y.argmax(0).astype(np.uint8)
        assert self.scale is not None
        pixels = np.moveaxis(y, 0, -1) / (255 * self.scale)
        if len(y) == 1:
            pixels = pixels[..., 0]
            original = image if isinstance(image, np.ndarray) else read_image(image)
            if self._brightness and _is_colour(original):
                colours = resize(rgb_to_ycbcr(original / 255), pixels.shape)
                colours[..., 0] = pixels
                pixels = ycbcr_to_rgb(colours)
        return to_uint8(np.clip(pixels, 0, 1))

    def ranking(self, y: np.ndarray, top: int = 5) -> Iterator[tuple[str, float]]:
        """The `top` classes of an output (C, 1, 1), best first, with their probabilities or scores."""
        scores = y.ravel()
        if self.output in self._logits:
            scores = np.exp(scores - scores.max())
            scores = scores / scores.sum()
        names = class_names(self.net.meta, scores.size)
        for k in np.argsort(-scores, kind="stable")[: max(top, 0)]:
            yield names[k], float(scores[k])

    @property
    def probabilities(self) -> bool:
        """Whether `ranking` gives probabilities: a softmax made the output, or a softmax loss reads it."""
        made = [node.layer for node in self.net.layers.values() if self.output in node.outputs]
        return self.output in self._logits or any(isinstance(layer, SoftMax) for layer in made)


def _is_colour(pixels: np.ndarray) -> bool:
    return pixels.ndim == 3 and pixels.shape[2] == 3


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
        names = [names] if isinstance(names, str) else names
        if isinstance(names, list) and len(names) == n:
            return [str(name) for name in names]
    return [f"class {k}" for k in range(n)]


def load(path: str | PathLike[str], **options: Any) -> Run:
    """The network in a file, ready to run; options as of `Run`."""
    return Run(io.load(path), **options)
