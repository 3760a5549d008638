"""What MatConvNet's vl_imreadjpeg changes in an image at random: where it is cut out, and its colours."""

from __future__ import annotations

from math import floor, sqrt
from typing import Any, NamedTuple

import numpy as np

from ..errors import OptionError
from ..images import resize


class Dice(NamedTuple):
    """The random numbers of one image: three normal ones, then uniform ones in 0 <= u < 1.

    All are drawn, whatever is used, so that an option that is switched on leaves what the others do as it is.
    """

    light: np.ndarray
    anisotropy: float
    size: float
    top: float
    left: float
    flip: float
    contrast: float
    saturation: float


def throw(rng: np.random.Generator, n: int) -> list[Dice]:
    """Dice for `n` images, drawn at once: who reads which image when plays no part."""
    uniform, normal = rng.random((n, 7)), rng.standard_normal((n, 3))
    return [Dice(light, *row) for light, row in zip(normal, uniform.tolist(), strict=True)]


class Crop(NamedTuple):
    """Which part of an image is cut out; see `ImageReader` for what the options mean."""

    size: tuple[float, float] = (1.0, 1.0)
    anisotropy: tuple[float, float] = (1.0, 1.0)
    location: str = "center"

    def box(
        self, image: tuple[int, int], result: tuple[int, int], dice: Dice | None = None
    ) -> tuple[int, int, int, int]:
        """(top, left, height, width) of the part of an image that becomes the result, both (rows, columns).

        Of all rectangles of the result's shape, widened by an anisotropy a, the one that fills the image is
        the largest; a share s of its sides is taken:

            h = s k rows / sqrt(a),    w = s k columns sqrt(a),    k the largest that fits,

        where log a and s^2 are uniform in their intervals; without `dice`, a is as near to 1 as it may be and
        s the largest.

        >>> Crop((0.5, 0.5)).box((60, 100), (20, 20))
        (15, 35, 30, 30)
        """
        (height, width), (rows, columns) = image, result
        a = sqrt(self._anisotropy(image, result, dice))
        scale = self._share(dice) * min(height * a / rows, width / (columns * a))
        h = min(max(floor(scale * rows / a + 0.5), 1), height)
        w = min(max(floor(scale * columns * a + 0.5), 1), width)
        if self.location == "random" and dice is not None:
            return floor(dice.top * (height - h + 1)), floor(dice.left * (width - w + 1)), h, w
        return (height - h) // 2, (width - w) // 2, h, w

    def _anisotropy(self, image: tuple[int, int], result: tuple[int, int], dice: Dice | None) -> float:
        least, most = self.anisotropy
        if least == 0:
            return (image[1] / image[0]) / (result[1] / result[0])
        return min(max(1.0, least), most) if dice is None else least * (most / least) ** dice.anisotropy

    def _share(self, dice: Dice | None) -> float:
        least, most = self.size
        return most if dice is None else sqrt(least**2 + dice.size * (most**2 - least**2))


def result_size(image: tuple[int, int], wanted: int | tuple[int, int] | None) -> tuple[int, int]:
    """(rows, columns) that an image (rows, columns) gets if a shorter side, a size or None is `wanted`.

    >>> result_size((60, 100), 30), result_size((60, 100), (8, 9)), result_size((60, 100), None)
    ((30, 50), (8, 9), (60, 100))
    """
    if wanted is None:
        return image
    if isinstance(wanted, tuple):
        return wanted
    scale = wanted / min(image)
    return floor(scale * image[0] + 0.5), floor(scale * image[1] + 0.5)


def change_colours(
    x: np.ndarray, dice: Dice, brightness: np.ndarray | None, contrast: float, saturation: float
) -> None:
    """Change the pixels x (C, H, W) in place; the formula is in `ImageReader`."""
    if contrast or brightness is not None:
        factor = np.float32(1 + contrast * (2 * dice.contrast - 1))
        shift = (1 - factor) * x.mean(axis=(1, 2))
        if brightness is not None:
            shift += brightness @ dice.light[: len(x)]
        x *= factor
        x += shift[:, None, None]
    if saturation:
        factor = np.float32(1 + saturation * (2 * dice.saturation - 1))
        grey = (1 - factor) * x.mean(axis=0)
        x *= factor
        x += grey


def brightness_matrix(value: float | np.ndarray, channels: int) -> np.ndarray | None:
    """B as a (channels, channels) matrix, from a number, the diagonal or all of it; None for no change."""
    matrix = _numbers("brightness", value)
    if matrix.shape in ((), (1,), (channels,)):
        matrix = matrix * np.eye(channels, dtype=np.float32)
    if matrix.shape != (channels, channels):
        wanted = {1: "number"}.get(
            channels, f"number, {channels} numbers or a {channels} x {channels} matrix"
        )
        raise OptionError(f"brightness is a {wanted}. Received: {value!r}")
    return matrix if matrix.any() else None


def average_image(value: Any, channels: int, size: tuple[int, int] | None) -> np.ndarray:
    """What is subtracted from images of this `size`, as (1, 1, 1), (C, 1, 1) or (C, H, W)."""
    if value is None or isinstance(value, str):
        if value not in (None, "per-image"):
            raise OptionError(f"subtract_average is numbers, an image or 'per-image'. Received: {value!r}")
        return np.zeros((1, 1, 1), np.float32)
    average = _numbers("subtract_average", value)
    if average.size in (1, channels):
        return average.reshape(-1, 1, 1)
    if average.ndim == 2:
        average = average[None]
    if average.ndim == 3 and len(average) not in (1, channels):
        average = average.transpose(2, 0, 1)
    if average.ndim != 3 or len(average) not in (1, channels):
        raise OptionError(
            f"subtract_average has one number or image for all or each of {channels} channels. "
            f"Received: shape {np.shape(value)}"
        )
    if size is None:
        raise OptionError(
            "subtract_average is an image only with resize=(H, W), which gives all images one size. "
            f"Received: shape {np.shape(value)}"
        )
    if average.shape[1:] != size:
        average = resize(average.transpose(1, 2, 0), size).transpose(2, 0, 1)
    return np.ascontiguousarray(average)


def _numbers(option: str, value: Any) -> np.ndarray:
    try:
        numbers = np.asarray(value, np.float32)
    except (TypeError, ValueError):
        numbers = np.empty(0, np.float32)
    if not numbers.size or not np.isfinite(numbers).all():
        raise OptionError(f"{option} takes finite numbers. Received: {value!r}")
    return numbers
