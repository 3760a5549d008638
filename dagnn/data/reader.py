"""Image files to arrays, several at a time: MatConvNet's vl_imreadjpeg."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import cache
from os import PathLike, fspath
from typing import Any

import numpy as np

from ..backends.numpy import threads
from ..errors import DagnnError, DataError, FileFormatError, OptionError, missing_package
from ..images import read_image
from ..layers.options import flag, one_of, real, whole
from .augment import Crop, Dice, average_image, brightness_matrix, change_colours, result_size, throw

Path = str | PathLike[str]

FILTERS = {  # names of vl_imreadjpeg and Pillow
    "bilinear": "BILINEAR",
    "bicubic": "BICUBIC",
    "box": "BOX",
    "lanczos3": "LANCZOS",
    "nearest": "NEAREST",
}
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # none that runs another program
DRAFTED = ("JPEG", "MPO")  # can be decoded at a smaller size, which is decided before they are loaded
ORIENTATION = 0x0112  # EXIF's tag; values from 5 exchange rows and columns
SPARE = 2  # a JPEG is decoded smaller as long as it keeps this many pixels, along each axis, for one


@dataclass(eq=False)
class ImageReader:
    """Reads image files, changes them at random and returns them as float32, 0..255, RGB.

    `reader(paths)` is an array (N, C, H, W) if `resize` says H and W, else a list of arrays (C, H, W).
    `reader(paths, rng)` makes random changes: which, depends on `rng` alone, never on the threads. Without
    `rng`, for validation, there are none: the largest crop of an anisotropy near 1 from the centre, no flip,
    no change of colours. What happens to an image, in this order:

    1. It is decoded, and turned the way its EXIF orientation says; see `dagnn.images.read_image`.
    2. A part is cut out and resized in one go. `resize` is the size of the result, (H, W), or a number, to
       which the shorter side of the image is brought; None: the result is as large as the image. The part
       has the shape of the result times an anisotropy width / height from the interval `crop_anisotropy`
       (one number: always this; 0: the shape of the image, which squeezes it), and its sides are a fraction
       from the interval `crop_size` of the largest that fit into the image. It comes from the "center", or
       with `crop_location` "random" from anywhere.
    3. With `flip`, left and right are exchanged every other time.
    4. With pixels x, the average a, the matrix B, a normal vector w and numbers c and s, uniform in
       1 - `contrast` .. 1 + `contrast` and 1 - `saturation` .. 1 + `saturation`,

           y = c (x - a) + (1 - c) mean of x - a over each channel + B w
           z = s y + (1 - s) mean of y over the channels

       Nothing is clipped.

    Parameters
    ----------
    subtract_average : a, one number, one for each channel, an image (C, H, W) or (H, W, C), or "per-image":
        the mean of each channel of what was cut out. An image of another size is resized.
    brightness : B, one number, the diagonal, or the matrix.
    interpolation : "bilinear", "bicubic", "box", "lanczos3" or "nearest". All but the last average over the
        pixels that become one.
    channels : 3 (grey images are repeated) or 1 (colours turn grey).
    num_threads : if None, DAGNN_NUM_THREADS, or as many as there are CPUs for this process.

    A large JPEG is decoded at 1/2, 1/4 or 1/8 of its size while that leaves 2 x 2 pixels for each of the
    result.

    Source: vl_imreadjpeg of MatConvNet; the distributions are those of its code. Raises OptionError and
    MissingPackageError; DataError, naming the file, where one can't be opened; FileFormatError where it is no
    image, is damaged, or has more pixels than Pillow's MAX_IMAGE_PIXELS.

    >>> from dagnn.images import write_image
    >>> write_image("a.png", np.full((60, 90, 3), 200, np.uint8))
    >>> reader = ImageReader(resize=(32, 32), crop_size=0.875, subtract_average=(124, 117, 104))
    >>> batch = reader(["a.png", "a.png"])
    >>> batch.shape, batch[0, :, 0, 0].tolist()
    ((2, 3, 32, 32), [76.0, 83.0, 96.0])
    >>> jitter = ImageReader(resize=40, crop_location="random", flip=True, brightness=10)
    >>> [image.shape for image in jitter(["a.png"], np.random.default_rng(0))]
    [(3, 40, 60)]
    """

    resize: int | tuple[int, int] | None = None
    crop_size: float | tuple[float, float] = 1.0
    crop_anisotropy: float | tuple[float, float] = 1.0
    crop_location: str = "center"
    flip: bool = False
    subtract_average: Any = None
    brightness: Any = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    interpolation: str = "bilinear"
    channels: int = 3
    num_threads: int | None = None

    def __post_init__(self) -> None:
        self.resize = _size(self.resize)
        self.crop_size = _interval("crop_size", self.crop_size)
        if not 0 < self.crop_size[0] <= self.crop_size[1] <= 1:
            raise OptionError(f"crop_size takes fractions, above 0 to 1. Received: {self.crop_size}")
        self.crop_anisotropy = _interval("crop_anisotropy", self.crop_anisotropy)
        one_of("crop_location", self.crop_location, ("center", "random"))
        one_of("interpolation", self.interpolation, tuple(FILTERS))
        if self.channels not in (1, 3):
            raise OptionError(f"channels is 3 or 1. Received: {self.channels!r}")
        self.flip = flag("flip", self.flip)
        for name in ("contrast", "saturation"):
            value = real(name, getattr(self, name), least=0)
            if value > 1:
                raise OptionError(f"{name} is at most 1. Received: {value}")
            setattr(self, name, value)
        self._brightness = brightness_matrix(self.brightness, self.channels)
        size = self.resize if isinstance(self.resize, tuple) else None
        self._average = average_image(self.subtract_average, self.channels, size)
        self._crop = Crop(self.crop_size, self.crop_anisotropy, self.crop_location)
        if self.num_threads is not None:
            self.num_threads = whole("num_threads", self.num_threads, least=1)

    def __call__(
        self, paths: Iterable[Path], rng: np.random.Generator | None = None
    ) -> np.ndarray | list[np.ndarray]:
        """The images in the files: an array (N, C, H, W), or a list where sizes may differ."""
        if isinstance(paths, str | PathLike):
            raise OptionError(f"paths is a list of files. Received: {fspath(paths)!r}")
        files = list(paths)
        for path in files:
            if not isinstance(path, str | PathLike):  # to `open`, a number is a file that is open already
                raise OptionError(f"paths is a list of files. Received: {path!r:.200} in it")
        dice: Sequence[Dice | None] = [None] * len(files) if rng is None else throw(rng, len(files))
        if not isinstance(self.resize, tuple):
            return self._each(self._read, files, dice, [None] * len(files))
        batch = np.empty((len(files), self.channels, *self.resize), np.float32)
        self._each(self._read, files, dice, batch)
        return batch

    def _each(self, work: Callable[..., np.ndarray], *columns: Any) -> list[np.ndarray]:
        """[work(*row) for each row of the columns], on threads."""
        count = self.num_threads or threads.num_threads()
        if min(count, len(columns[0])) < 2:
            return list(map(work, *columns))
        return list(_pool(count).map(work, *columns))

    def _read(self, path: Path, dice: Dice | None, out: np.ndarray | None) -> np.ndarray:
        """One image as (C, H, W), in `out` if it is there."""
        pixels = self._pixels(path, dice)
        if self.flip and dice is not None and dice.flip < 0.5:
            pixels = pixels[:, ::-1]
        if out is None:
            out = np.empty((self.channels, *pixels.shape[:2]), np.float32)
        np.subtract(pixels.transpose(2, 0, 1), self._average, out=out)
        if isinstance(self.subtract_average, str):
            out -= out.mean(axis=(1, 2), keepdims=True)
        if dice is not None:
            change_colours(out, dice, self._brightness, self.contrast, self.saturation)
        return out

    def _pixels(self, path: Path, dice: Dice | None) -> np.ndarray:
        """What is cut out of an image file, resized, as uint8 (H, W, 1) or (H, W, 3)."""
        pillow = _pillow()
        try:
            with open(path, "rb") as file, pillow.open(file, formats=FORMATS) as picture:
                self._refuse_bombs(picture.size, pillow.MAX_IMAGE_PIXELS)
                if picture.format not in DRAFTED:
                    picture.load()
                if picture.mode in ("L", "RGB") and "transparency" not in picture.info:
                    return self._cut(picture, dice)
        except MemoryError:
            raise
        except Exception as error:  # Pillow's readers raise what they happen to stumble over
            raise _unreadable(path, error) from error
        return self._cut(pillow.fromarray(read_image(path)), dice)

    def _refuse_bombs(self, size: tuple[int, int], most: int | None) -> None:
        resized = size if isinstance(self.resize, tuple) else result_size(size, self.resize)
        for columns, rows in (size, resized):
            if most and columns * rows > most:
                raise FileFormatError(f"{columns} x {rows} pixels are more than Pillow's limit of {most}")

    def _cut(self, picture: Any, dice: Dice | None) -> np.ndarray:
        """A part of a picture, which may not have been decoded yet, resized."""
        from PIL import Image, ImageOps

        orientation = _orientation(picture)
        turned = orientation >= 5
        columns, rows = picture.size[::-1] if turned else picture.size
        result = result_size((rows, columns), self.resize)
        top, left, height, width = self._crop.box((rows, columns), result, dice)
        enough = (SPARE * result[1] * columns / width, SPARE * result[0] * rows / height)
        shrink = self._draft(picture, enough[::-1] if turned else enough)
        if orientation != 1:
            picture = ImageOps.exif_transpose(picture)
        if self.channels == 1:
            picture = picture.convert("L")
        box = tuple(edge / shrink for edge in (left, top, left + width, top + height))
        resample = Image.Resampling[FILTERS[self.interpolation]]
        return np.asarray(picture.resize(result[::-1], resample, box)).reshape(*result, -1)

    def _draft(self, picture: Any, enough: tuple[float, float]) -> float:
        """Let a picture be decoded at 1/s of its size, not less than `enough`, if its format can; s."""
        columns = picture.size[0]
        drafted = picture.draft("L" if self.channels == 1 else None, enough)
        return columns / drafted[1][2] if drafted else 1


def _pillow() -> Any:
    try:
        from PIL import Image
    except ImportError:
        raise missing_package("an image file", "Pillow", "images") from None
    return Image


def _orientation(picture: Any) -> int:
    try:
        orientation = picture.getexif().get(ORIENTATION, 1)
    except Exception:  # EXIF that can't be read makes no image unreadable
        return 1
    return orientation if orientation in range(1, 9) else 1


def _unreadable(path: Path, error: Exception) -> DagnnError:
    if isinstance(error, OSError) and error.errno:
        return DataError(f"{fspath(path)}: cannot be opened ({error.strerror})")
    reason = error if isinstance(error, FileFormatError) else f"{type(error).__name__}: {error}"
    return FileFormatError(f"{fspath(path)}: not an image that can be read ({reason})")


@cache
def _pool(count: int) -> ThreadPoolExecutor:
    """Threads that all readers of `count` threads share."""
    return ThreadPoolExecutor(count, "dagnn-reader")


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_pool.cache_clear)  # a forked process has none of the threads


# ---- options


def _size(value: Any) -> int | tuple[int, int] | None:
    if value is None:
        return None
    if np.ndim(value) == 0:
        return whole("resize", value, least=1)
    sizes = tuple(whole("resize", v, least=1) for v in value)
    if len(sizes) != 2:
        raise OptionError(f"resize is a shorter side or a size (H, W). Received: {value!r}")
    return sizes


def _interval(option: str, value: Any) -> tuple[float, float]:
    """(least, most) from one number or two."""
    numbers = (value, value) if np.ndim(value) == 0 else tuple(value)
    if len(numbers) == 2:
        least, most = (real(option, number, least=0) for number in numbers)
        if least <= most:
            return least, most
    raise OptionError(f"{option} is a number or an interval (least, most). Received: {value!r}")
