"""Images as arrays: files, MATLAB's imresize, colour spaces, PSNR.

An image is an array of shape (H, W), grey, or (H, W, C); uint8 pixels are 0..255, floating ones usually
0..1. The functions compute what MATLAB's functions of the same purpose do, to the last rounding of uint8, so
that published numbers can be reproduced. Pillow, which reads and writes the files, comes with
`pip install 'dagnn[images]'`; nothing else here needs it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from math import ceil, isfinite
from numbers import Real
from operator import index
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np

from .errors import DTypeError, FileFormatError, OptionError, ShapeError, missing_package

# ---- files


def read_image(path: str | PathLike[str]) -> np.ndarray:
    """The pixels of an image file as uint8: (H, W, 3), or (H, W) where the file is grey.

    The image is turned the way its EXIF orientation says, palettes are looked up, what is transparent shows
    white, 16 bits become 8 (v / 257, rounded) and of several frames the first counts.

    Raises MissingPackageError without Pillow, FileFormatError where the file is no image, or a damaged one,
    and OSError where it can't be opened.
    """
    image, ops = _pillow()
    with open(path, "rb") as file:
        try:
            with image.open(file) as picture:
                return _pixels(ops.exif_transpose(picture))
        except FileFormatError as error:
            raise FileFormatError(f"{fspath(path)}: {error}") from None
        except Exception as error:  # Pillow's readers raise what they happen to stumble over
            raise FileFormatError(
                f"{fspath(path)}: not an image that can be read ({type(error).__name__}: {error})"
            ) from error


def write_image(path: str | PathLike[str], image: np.ndarray) -> None:
    """Write an image of shape (H, W), (H, W, 1) or (H, W, 3) in the format that the file's name ends in.

    Pixels are uint8, or floating and then taken as 0..1 and rounded by `to_uint8`, as MATLAB's imwrite does.

    Raises MissingPackageError without Pillow, OptionError for a name with an unknown ending and ShapeError.
    """
    pillow, _ = _pillow()
    pixels = to_uint8(_checked(image))
    if pixels.ndim == 3 and pixels.shape[2] not in (1, 3):
        raise ShapeError(f"an image file holds 1 or 3 channels. Received: {_described(image)}")
    ending = Path(path).suffix.lower()
    file_format = pillow.registered_extensions().get(ending)
    if file_format not in pillow.SAVE:
        raise OptionError(f"no image format has the ending {ending!r}: try .png. Received: {fspath(path)!r}")
    flat = pixels[:, :, 0] if pixels.ndim == 3 and pixels.shape[2] == 1 else pixels
    pillow.fromarray(np.ascontiguousarray(flat)).save(path, format=file_format)


def _pillow() -> tuple[Any, Any]:
    try:
        from PIL import Image, ImageOps
    except ImportError:
        raise missing_package("an image file", "Pillow", "images") from None
    Image.init()
    return Image, ImageOps


def _pixels(picture: Any) -> np.ndarray:
    """A Pillow image as uint8 pixels, grey or colour."""
    if picture.mode == "F":
        raise FileFormatError("floating-point pixels have no range that says what is white")
    if picture.mode.startswith("I"):
        values = np.asarray(picture)
        if values.min() < 0 or values.max() > 65535:
            raise FileFormatError(f"8 and 16 bits are read, pixels are {values.min()} to {values.max()}")
        return to_uint8(values.astype(np.uint16))
    grey = picture.mode in ("1", "L", "LA")
    if picture.mode in ("LA", "PA", "RGBA") or "transparency" in picture.info:
        pixels = np.asarray(picture.convert("RGBA")).astype(np.float64)
        alpha = pixels[:, :, 3:] / 255
        flat = to_uint8((pixels[:, :, :3] * alpha + 255 * (1 - alpha)) / 255)
        return flat[:, :, 0].copy() if grey else flat
    return np.array(picture.convert("L" if grey else "RGB"))


# ---- resizing


def _box(x: np.ndarray) -> np.ndarray:
    return np.where((x >= -0.5) & (x < 0.5), 1.0, 0.0)


def _triangle(x: np.ndarray) -> np.ndarray:
    return np.maximum(1 - np.abs(x), 0)


def _cubic(x: np.ndarray) -> np.ndarray:
    """Keys' cubic convolution kernel with a = -1/2."""
    x = np.abs(x)
    near = (1.5 * x - 2.5) * x**2 + 1
    far = ((-0.5 * x + 2.5) * x - 4) * x + 2
    return np.where(x <= 1, near, np.where(x <= 2, far, 0))


def _lanczos(lobes: int) -> Callable[[np.ndarray], np.ndarray]:
    return lambda x: np.where(np.abs(x) < lobes, np.sinc(x) * np.sinc(x / lobes), 0)


_KERNELS: dict[str, tuple[Callable[[np.ndarray], np.ndarray], float]] = {  # and their widths in pixels
    "nearest": (_box, 1),
    "box": (_box, 1),
    "bilinear": (_triangle, 2),
    "bicubic": (_cubic, 4),
    "lanczos2": (_lanczos(2), 4),
    "lanczos3": (_lanczos(3), 6),
}
METHODS = tuple(_KERNELS)


def resize(
    image: np.ndarray,
    size_or_scale: float | Sequence[int | None],
    method: str = "bicubic",
    antialias: bool = True,
) -> np.ndarray:
    """The image at another size, as MATLAB's imresize computes it.

    `size_or_scale` is a scale s, which gives ceil(s H) x ceil(s W) pixels, or a size (rows, columns), one of
    which may be None: it follows from the other. Methods are "bicubic" (Keys, 1981), "bilinear", "box",
    "lanczos2", "lanczos3" and "nearest". Along each axis, the one with the smaller scale first,

        y_i = sum_j k(s' (u_i - j)) x_j / sum_j k(s' (u_i - j)),    u_i = (i + 1/2) / s - 1/2

    with s' = min(s, 1), so that shrinking averages over 1/s pixels, or s' = 1 without `antialias`; "nearest"
    never averages. Beyond its border the image is mirrored, border pixel included. Floating images keep
    their type; uint8 and uint16 ones are rounded and clipped after each axis, as in MATLAB.

    Raises ShapeError, DTypeError and OptionError.

    >>> resize(np.array([[0.0, 0.0, 8.0, 8.0]]), (1, 2), "bilinear")
    array([[1., 7.]])
    >>> resize(np.zeros((5, 7, 3), np.uint8), 1 / 2).shape
    (3, 4, 3)
    >>> resize(np.zeros((480, 640)), (256, None)).shape
    (256, 342)
    """
    image = _checked(image)
    if method not in _KERNELS:
        raise OptionError(f"method must be one of {', '.join(METHODS)}. Received: {method!r}")
    kernel, width = _KERNELS[method]
    size, scales = _size_and_scales(image.shape, size_or_scale)
    dtype = image.dtype
    for axis in sorted((0, 1), key=scales.__getitem__):
        stretch = min(scales[axis], 1.0) if antialias and method != "nearest" else 1.0
        weights, pixels = _taps(image.shape[axis], size[axis], scales[axis], stretch, kernel, width)
        image = _as(dtype, _combined(image, axis, weights, pixels))
    return image


def _size_and_scales(
    shape: tuple[int, ...], wanted: float | Sequence[int | None]
) -> tuple[tuple[int, int], tuple[float, float]]:
    """(rows, columns) of the result and the scale of each axis."""
    height, width = shape[:2]
    if isinstance(wanted, Real):
        scale = float(wanted)
        if not (isfinite(scale) and scale > 0):
            raise OptionError(f"a scale must be positive. Received: {wanted!r}")
        return (ceil(scale * height), ceil(scale * width)), (scale, scale)
    try:
        rows, columns = (None if n is None else index(n) for n in wanted)  # type: ignore[union-attr]
    except (TypeError, ValueError):
        raise OptionError(f"expected a scale or a size (rows, columns). Received: {wanted!r}") from None
    if min(n for n in (rows, columns, 2**62) if n is not None) < 1 or (rows is None and columns is None):
        raise OptionError(f"a size must be positive. Received: {wanted!r}")
    if rows is None:
        assert columns is not None
        return (ceil(columns * height / width), columns), (columns / width, columns / width)
    if columns is None:
        return (rows, ceil(rows * width / height)), (rows / height, rows / height)
    return (rows, columns), (rows / height, columns / width)


def _taps(
    length: int, out_length: int, scale: float, stretch: float, kernel: Callable, width: float
) -> tuple[np.ndarray, np.ndarray]:
    """(weights, pixels), both (taps, out_length): which input pixels make an output pixel, and their shares.

    Positions are counted from 1 here: the same roundings as MATLAB's decide ties in the same way.
    """
    width = width / stretch
    centres = np.arange(1, out_length + 1) / scale + 0.5 * (1 - 1 / scale)
    positions = np.floor(centres - width / 2) + np.arange(ceil(width) + 2)[:, None]
    weights = kernel(stretch * (centres - positions))
    weights /= weights.sum(axis=0)
    mirrored = np.concatenate([np.arange(length), np.arange(length)[::-1]])
    pixels = mirrored[(positions.astype(np.int64) - 1) % (2 * length)]
    used = weights.any(axis=1)
    return weights[used], pixels[used]


def _combined(image: np.ndarray, axis: int, weights: np.ndarray, pixels: np.ndarray) -> np.ndarray:
    """Weighted sums of lines along `axis`, in double."""
    along = [1] * image.ndim
    along[axis] = -1
    shape = list(image.shape)
    shape[axis] = weights.shape[1]
    result = np.zeros(shape)
    for w, k in zip(weights, pixels, strict=True):
        result += w.reshape(along) * image.take(k, axis)
    return result


# ---- colours and pixel types

_YCBCR = np.array([[65.481, 128.553, 24.966], [-37.797, -74.203, 112], [112, -93.786, -18.214]])
_YCBCR_OFFSET = np.array([16.0, 128, 128])
_GREY = np.linalg.inv([[1, 0.956, 0.621], [1, -0.272, -0.647], [1, -1.106, 1.703]])[0]


def rgb_to_ycbcr(image: np.ndarray) -> np.ndarray:
    """Luma and colour differences of an (H, W, 3) RGB image, BT.601 studio swing (MATLAB's rgb2ycbcr).

    With R, G, B in 0..1:

        255 Y  =  16 +  65.481 R + 128.553 G +  24.966 B        16..235
        255 Cb = 128 -  37.797 R -  74.203 G + 112     B        16..240
        255 Cr = 128 + 112     R -  93.786 G -  18.214 B        16..240

    Floating images are 0..1 before and after; uint8 ones 0..255, rounded.

    >>> rgb_to_ycbcr(np.array([[[255, 0, 0], [255, 255, 255]]], np.uint8)).tolist()
    [[[81, 90, 240], [235, 128, 128]]]
    """
    image = _colour(image)
    unit, peak = _unit(image)
    return _as(image.dtype, (unit @ _YCBCR.T + _YCBCR_OFFSET) * (peak / 255))


def ycbcr_to_rgb(image: np.ndarray) -> np.ndarray:
    """The inverse of `rgb_to_ycbcr`, clipped to 0..1, or 0..255 for uint8 (MATLAB's ycbcr2rgb).

    >>> ycbcr_to_rgb(np.array([[[81, 90, 240], [235, 128, 128]]], np.uint8)).tolist()
    [[[254, 0, 0], [255, 255, 255]]]
    """
    image = _colour(image)
    unit, peak = _unit(image)
    rgb = (unit * 255 - _YCBCR_OFFSET) @ np.linalg.inv(_YCBCR).T
    return _as(image.dtype, np.clip(rgb, 0, 1) * peak)


def rgb_to_grey(image: np.ndarray) -> np.ndarray:
    """0.2989 R + 0.5870 G + 0.1140 B as (H, W), in the image's own type and range (MATLAB's rgb2gray).

    >>> rgb_to_grey(np.array([[[255, 0, 0], [10, 10, 10]]], np.uint8)).tolist()
    [[76, 10]]
    """
    image = _colour(image)
    return _as(image.dtype, image @ _GREY)


def to_uint8(image: np.ndarray) -> np.ndarray:
    """Pixels as uint8: floating ones are clipped to 0..1 and times 255, rounded (MATLAB's im2uint8).

    uint16 pixels are divided by 257, uint8 ones stay; NaN becomes 0.

    >>> to_uint8(np.array([-0.1, 0.0, 0.5, 1.0, 7.0])).tolist()
    [0, 0, 128, 255, 255]
    """
    image = np.asarray(image)
    if image.dtype == np.uint8:
        return image
    unit, _ = _unit(image)
    return _as(np.dtype(np.uint8), np.nan_to_num(np.clip(unit, 0, 1)) * 255)


def psnr(a: np.ndarray, b: np.ndarray, border: int = 0) -> float:
    """Peak signal-to-noise ratio in dB: 10 log10(peak^2 / mean((a - b)^2)), infinite for equal images.

    The peak is 255 for uint8 images and 1 for floating ones. `border` pixels are left out on each side, as
    papers on super-resolution do. What they compare is the luma of the uint8 images, itself not rounded:
    `psnr(rgb_to_ycbcr(a / 255)[:, :, 0], rgb_to_ycbcr(b / 255)[:, :, 0], border=2)`.

    Raises ShapeError and DTypeError where the images don't compare.

    >>> round(psnr(np.full((8, 8), 100, np.uint8), np.full((8, 8), 110, np.uint8)), 2)
    28.13
    """
    a, b = _checked(a), _checked(b)
    if a.shape != b.shape or 2 * border >= min(a.shape[:2]) or border < 0:
        raise ShapeError(
            f"images of one shape, larger than the border of {border} on each side, are compared. "
            f"Received: {_described(a)} and {_described(b)}"
        )
    if a.dtype != b.dtype and not (a.dtype.kind == b.dtype.kind == "f"):
        raise DTypeError(f"pixels have different ranges. Received: {_described(a)} and {_described(b)}")
    inner = (slice(border, a.shape[0] - border), slice(border, a.shape[1] - border))
    error = np.mean((_unit(a[inner])[0] - _unit(b[inner])[0]) ** 2)
    return float(-10 * np.log10(error)) if error else float("inf")


def _unit(image: np.ndarray) -> tuple[np.ndarray, float]:
    """The pixels in double, as 0..1, and what stands for 1 in the image."""
    peak = float(np.iinfo(image.dtype).max) if image.dtype.kind == "u" else 1.0
    return image.astype(np.float64) / peak, peak


def _as(dtype: np.dtype, values: np.ndarray) -> np.ndarray:
    """Values in `dtype`; for integers, rounded (halves up) and clipped."""
    if dtype.kind == "f":
        return values.astype(dtype)
    return np.clip(np.floor(values + 0.5), 0, np.iinfo(dtype).max).astype(dtype)


def _checked(image: Any) -> np.ndarray:
    """An image of a type and shape that the functions here take."""
    image = np.asarray(image)
    if image.ndim not in (2, 3) or 0 in image.shape:
        raise ShapeError(f"an image has shape (H, W) or (H, W, C). Received: {_described(image)}")
    if image.dtype.kind != "f" and image.dtype not in (np.uint8, np.uint16):
        raise DTypeError(f"pixels are uint8, uint16 or floating. Received: {_described(image)}")
    return image


def _colour(image: Any) -> np.ndarray:
    image = _checked(image)
    if image.ndim != 3 or image.shape[2] != 3:
        raise ShapeError(f"a colour image has shape (H, W, 3). Received: {_described(image)}")
    return image


def _described(image: Any) -> str:
    image = np.asarray(image)
    return f"shape {image.shape} {image.dtype}"
