"""From an image to the input variable of a network, as the network's `meta` demands."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from math import floor
from os import PathLike, fspath
from typing import Any

import numpy as np

from .errors import DTypeError, OptionError, ShapeError
from .images import METHODS, read_image, resize, rgb_to_grey

Image = np.ndarray | str | PathLike[str]

KNOWN = ("imageSize", "averageImage", "rgbMean", "border", "cropSize", "keepAspect", "interpolation")
ORDERS = ("colorOrder", "colourOrder", "color_order", "colour_order")


@dataclass(eq=False, repr=False)
class Preprocessor:
    """Images as an array (N, C, H, W) of float32: resized, cropped, less the average image.

    What happens to an image, in this order:

    1. A path is read (`dagnn.images.read_image`); an array has shape (H, W) or (H, W, C), RGB, any numeric
       type. Pixels keep their range, 0..255 for what MatConvNet trained, whatever the type.
    2. `channels` = 3 repeats grey images three times; `channels` = 1 turns colours to grey. None: as it is.
    3. `image_size` (H, W) is reached. With `crop_size` (vertical, horizontal fractions) the image's centre is
       cut out, this large a part of the largest area of the network's aspect ratio, and resized. Otherwise
       the image is resized to cover image_size + `border`, by

           factor = max((image_size + border) / size),

       and the central image_size is cut out. With `keep_aspect` off the image is squeezed instead: the
       fractions are of its own height and width, factors differ by axis. None: images keep their size.
       `interpolation` is a method of `dagnn.images.resize`.
    4. `colour_order` "BGR" swaps the channels.
    5. y = `scale` (x - `average_image`). The average is a number, one value per channel or an image; an image
       of another size is resized to image_size.

    Sources: cnn_imagenet_get_batch and vl_imreadjpeg of MatConvNet. Its quick start, which squeezes the whole
    image to the input size, is `Preprocessor.from_meta(meta, border=0, keep_aspect=False)`.

    >>> meta = {"normalization": {"imageSize": [4, 4, 3], "border": 2, "averageImage": [124, 117, 104]}}
    >>> preprocessor = Preprocessor.from_meta(meta)
    >>> preprocessor
    Preprocessor(image_size=(4, 4), channels=3, border=(2, 2), average_image=[124 117 104])
    >>> x = preprocessor(np.full((9, 12, 3), 200, np.uint8))
    >>> x.shape, x.dtype, x[0, :, 0, 0].tolist()
    ((1, 3, 4, 4), dtype('float32'), [76.0, 83.0, 96.0])

    A network that was trained on pixels of 0..1 says so nowhere; `scale` does it:

    >>> Preprocessor(channels=1, scale=1 / 255)(np.full((2, 2), 51, np.uint8))
    array([[[[0.2, 0.2],
             [0.2, 0.2]]]], dtype=float32)

    Raises ShapeError, DTypeError and OptionError, and what `read_image` raises.
    """

    image_size: tuple[int, int] | None = None
    channels: int | None = None
    border: tuple[int, int] = (0, 0)
    crop_size: tuple[float, float] | None = None
    keep_aspect: bool = True
    interpolation: str = "bicubic"
    average_image: np.ndarray | None = None
    colour_order: str = "RGB"
    scale: float = 1.0

    def __post_init__(self) -> None:
        if self.image_size is not None:
            self.image_size = _whole("image_size", self.image_size, least=1)
        self.border = _whole("border", self.border, least=0)
        if self.crop_size is not None:
            self.crop_size = _pair("crop_size", self.crop_size)
            if not all(0 < fraction <= 1 for fraction in self.crop_size):
                raise OptionError(f"crop_size takes fractions, 0 to 1. Received: {self.crop_size}")
            if any(self.border):
                raise OptionError(
                    "crop_size and border are two ways to say what is cut off: give one. "
                    f"Received: {self.crop_size} and {self.border}"
                )
        if self.channels is not None:
            self.channels = _whole("channels", self.channels, least=1)[0]
        if self.interpolation not in METHODS:
            raise OptionError(
                f"interpolation must be one of {', '.join(METHODS)}. Received: {self.interpolation!r}"
            )
        self.colour_order = str(self.colour_order).upper()
        if self.colour_order not in ("RGB", "BGR"):
            raise OptionError(f"colour_order must be 'RGB' or 'BGR'. Received: {self.colour_order!r}")
        self._settle_average()

    def _settle_average(self) -> None:
        """The average image as (1, 1, C) or (H, W, C), float32, and what it says about size and channels."""
        if self.average_image is None:
            return
        average = np.asarray(self.average_image)
        if average.dtype.kind not in "fiu" or average.ndim > 3 or average.size == 0:
            raise OptionError(f"average_image is no image. Received: {_described(average)}")
        if max(average.shape, default=1) == average.size and average.shape[:2] != self.image_size:
            average = average.reshape(1, 1, -1)  # one value per channel, in a row, a column or the third axis
        average = average.astype(np.float32).reshape(*average.shape[:2], -1)
        depth = average.shape[2]
        if self.channels is None and average.size > 1:
            self.channels = depth
        if self.channels is not None and depth not in (1, self.channels):
            raise ShapeError(
                f"average_image has {depth} channels, images have {self.channels}. "
                f"Received: {_described(self.average_image)}"
            )
        size = average.shape[:2]
        if size != (1, 1):
            self.image_size = self.image_size or size
            if size != self.image_size:
                average = resize(average, self.image_size)
        self.average_image = average

    @classmethod
    def from_meta(cls, meta: Mapping[str, Any] | None, **options: Any) -> Preprocessor:
        """What `net.meta` says about images, changed by `options`, which are named like the fields.

        Read are, in `meta["normalization"]` or in `meta` itself:

        - `imageSize`: H, W[, C[, N]]
        - `cropSize`: fractions, or above 1 the size of which imageSize is the centre; else `border`
        - `keepAspect`, `interpolation`
        - `averageImage`: a number, one value per channel, or an image of any size; else `rgbMean`
        - `colorOrder`: "RGB", as in MatConvNet, or "BGR", also of the average image

        Without any of them images stay as they are.

        >>> Preprocessor.from_meta({"normalization": {"imageSize": [224.0, 224, 3], "cropSize": 0.875}})
        Preprocessor(image_size=(224, 224), channels=3, crop_size=(0.875, 0.875))
        >>> Preprocessor.from_meta({}, scale=1 / 255)
        Preprocessor(scale=0.00392157)
        """
        given = _normalization(meta)
        found: dict[str, Any] = {}
        size = _numbers(given.get("imageSize"))
        if size:
            found["image_size"] = size[:2] * (2 // len(size[:2]))
        if len(size) > 2:
            found["channels"] = size[2]
        crop, border = _numbers(given.get("cropSize")), _numbers(given.get("border"))
        if crop and max(crop) <= 1:
            found["crop_size"] = crop
        elif crop and size:
            found["border"] = [
                max(c - s, 0) for c, s in zip(_pair("cropSize", crop), found["image_size"], strict=True)
            ]
        elif border:
            found["border"] = border
        keep = _numbers(given.get("keepAspect"))
        if keep:
            found["keep_aspect"] = bool(keep[0])
        if given.get("interpolation") and isinstance(given["interpolation"], str):
            word = given["interpolation"].lower()
            found["interpolation"] = word if word in METHODS else "bicubic"
        for key in ("averageImage", "rgbMean"):
            if _numbers(given.get(key)):
                found["average_image"] = np.asarray(given[key])
                break
        for key in ORDERS:
            if isinstance(given.get(key), str) and given[key]:
                found["colour_order"] = given[key]
        for key, other in (("border", "crop_size"), ("crop_size", "border")):
            if key in options:
                found.pop(other, None)
        return cls(**{**found, **options})

    def __call__(self, images: Image | Sequence[Image]) -> np.ndarray:
        """One image, or a list of them, as (N, C, H, W); without `image_size` a list is of one size."""
        batch = list(images) if isinstance(images, list | tuple) else [images]
        if not batch:
            raise ShapeError("no images to make a batch of. Received: an empty list")
        arrays = [self._prepared(image) for image in batch]
        for k, array in enumerate(arrays):
            if array.shape != arrays[0].shape:
                raise ShapeError(
                    f"images of a batch have one size: set image_size or give them one by one. Received: "
                    f"image 0 (C, H, W) = {arrays[0].shape}, image {k} {array.shape}"
                )
        return np.stack(arrays)

    def _prepared(self, image: Any) -> np.ndarray:
        """One image as (C, H, W)."""
        name = fspath(image) if isinstance(image, str | PathLike) else "image"
        pixels = read_image(image) if isinstance(image, str | PathLike) else np.asarray(image)
        where = f"Received: {name} of {_described(pixels)}"
        if pixels.dtype.kind not in "fiu":
            raise DTypeError(f"pixels are numbers, 0 to 255. {where}")
        if pixels.ndim not in (2, 3) or 0 in pixels.shape:
            raise ShapeError(f"an image has shape (H, W) or (H, W, C); batches are lists of images. {where}")
        x = pixels.astype(np.float32).reshape(*pixels.shape[:2], -1)
        if self.channels == 3 and x.shape[2] == 1:
            x = np.repeat(x, 3, axis=2)
        elif self.channels == 1 and x.shape[2] == 3:
            x = rgb_to_grey(x)[:, :, None]
        elif self.channels not in (None, x.shape[2]):
            raise ShapeError(
                f"the network takes images of {self.channels} channels, (H, W, {self.channels}). {where}"
            )
        x = self._sized(x)
        if self.colour_order == "BGR":
            x = x[:, :, ::-1]
        if self.average_image is not None:
            x = x - self.average_image
        x = np.ascontiguousarray(x.transpose(2, 0, 1))
        return x if self.scale == 1 else (x * np.float64(self.scale)).astype(np.float32)

    def _sized(self, x: np.ndarray) -> np.ndarray:
        """The image brought to `image_size`."""
        if self.image_size is None:
            return x
        if self.crop_size is not None:
            part = self._part(x.shape)
            return self._resized(_centre(x, (part[0], part[1])), self.image_size)
        target = (self.image_size[0] + self.border[0], self.image_size[1] + self.border[1])
        if self.keep_aspect:
            factor = max(target[0] / x.shape[0], target[1] / x.shape[1])
            x = x if factor == 1 else resize(x, factor, self.interpolation)
        else:
            x = self._resized(x, target)
        return _centre(x, self.image_size)

    def _part(self, shape: tuple[int, ...]) -> tuple[int, int]:
        """The size of what `crop_size` cuts out."""
        assert self.image_size is not None and self.crop_size is not None
        aspect = self.image_size if self.keep_aspect else shape[:2]
        scale = min(shape[0] / aspect[0], shape[1] / aspect[1])
        h, w = (max(1, floor(n * scale * part + 0.5)) for n, part in zip(aspect, self.crop_size, strict=True))
        return min(h, shape[0]), min(w, shape[1])

    def _resized(self, x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
        return x if x.shape[:2] == size else resize(x, size, self.interpolation)

    def __repr__(self) -> str:
        shown = []
        for field in fields(self):
            value = getattr(self, field.name)
            if value is None or (field.name != "average_image" and value == field.default):
                continue
            shown.append(f"{field.name}={_short(value)}")
        return f"Preprocessor({', '.join(shown)})"


def _normalization(meta: Mapping[str, Any] | None) -> Mapping[str, Any]:
    """The part of `meta` that says how images are prepared, {} where nothing does."""
    if not isinstance(meta, Mapping):
        return {}
    inner = meta.get("normalization")
    if isinstance(inner, Mapping):
        return inner
    return meta if any(key in meta for key in KNOWN) else {}


def _centre(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """The middle of an image; what can't be halved is cut off at the end."""
    top, left = (x.shape[0] - size[0]) // 2, (x.shape[1] - size[1]) // 2
    return x[top : top + size[0], left : left + size[1]]


def _numbers(value: Any) -> list[float]:
    """The numbers in a field of meta, none where it is missing, empty or something else."""
    try:
        array = np.asarray(value)
    except ValueError:  # a ragged list
        return []
    return array.ravel(order="F").tolist() if array.dtype.kind in "fiub" else []


def _pair(option: str, value: Any) -> tuple[float, float]:
    """(vertical, horizontal) from one number or two."""
    numbers = _numbers(value)
    if len(numbers) not in (1, 2):
        raise OptionError(f"{option} takes 1 or 2 numbers (vertical, horizontal). Received: {value!r}")
    return numbers[0], numbers[-1]


def _whole(option: str, value: Any, least: int) -> tuple[int, int]:
    """A pair of whole numbers; MATLAB's are floating."""
    pair = _pair(option, value)
    if not all(least <= number < 2**31 and number == int(number) for number in pair):
        raise OptionError(f"{option} takes whole numbers of at least {least}. Received: {value!r}")
    return int(pair[0]), int(pair[1])


def _short(value: Any) -> str:
    if not isinstance(value, np.ndarray):
        return f"{value:.6g}" if isinstance(value, float) else repr(value)
    means = " ".join(f"{v:.6g}" for v in value.mean(axis=(0, 1)))
    size = "x".join(map(str, value.shape))
    return f"[{means}]" if value.shape[:2] == (1, 1) else f"<{size}, mean [{means}]>"


def _described(array: Any) -> str:
    array = np.asarray(array)
    return f"shape {array.shape} {array.dtype}"
