"""Sizes without arrays: option tuples, output sizes, receptive fields."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose
from operator import index

from .errors import OptionError, ShapeError

Shape = tuple[int, ...]
Pair = tuple[int, int]
Quad = tuple[int, int, int, int]


def pair(option: str, value: int | Sequence[int], least: int = 1) -> Pair:
    """(vertical, horizontal) from a scalar, which means both, or from two values.

    >>> pair("stride", 2)
    (2, 2)
    """
    values = _integers(option, value)
    if len(values) == 1:
        values *= 2
    if len(values) != 2:
        raise OptionError(f"{option} takes 1 or 2 values (vertical, horizontal). Received: {value!r}")
    if min(values) < least:
        raise OptionError(f"{option} must be at least {least}. Received: {value!r}")
    return values[0], values[1]


def quad(option: str, value: int | Sequence[int]) -> Quad:
    """(top, bottom, left, right) from a scalar, which means all, or from four values.

    >>> quad("pad", 1)
    (1, 1, 1, 1)
    """
    values = _integers(option, value)
    if len(values) == 1:
        values *= 4
    if len(values) != 4:
        raise OptionError(f"{option} takes 1 or 4 values (top, bottom, left, right). Received: {value!r}")
    if min(values) < 0:
        raise OptionError(f"{option} must not be negative. Received: {value!r}")
    return values[0], values[1], values[2], values[3]


def _integers(option: str, value: int | Sequence[int]) -> Shape:
    try:
        return tuple(index(v) for v in value) if hasattr(value, "__iter__") else (index(value),)
    except TypeError:
        raise OptionError(f"{option} takes whole numbers. Received: {value!r}") from None


def shape4(what: str, shape: Sequence[int]) -> Quad:
    """`shape` as (N, C, H, W), or a ShapeError naming `what` has the wrong number of axes."""
    if len(shape) != 4:
        raise ShapeError(f"{what} must have 4 axes (N, C, H, W), got shape {tuple(shape)}")
    return shape[0], shape[1], shape[2], shape[3]


def window_output(
    what: str, size: Sequence[int], window: Pair, stride: Pair, pad: Quad, dilate: Pair = (1, 1)
) -> Pair:
    """(H, W) of a sliding window's output: floor((H + pads - dilated window) / stride) + 1.

    >>> window_output("filters", (227, 227), (11, 11), (4, 4), (0, 0, 0, 0))
    (55, 55)
    """
    span = dilated(window, dilate)
    padded = size[0] + pad[0] + pad[1], size[1] + pad[2] + pad[3]
    if padded[0] < span[0] or padded[1] < span[1]:
        raise ShapeError(
            f"{what} of {span[0]}x{span[1]} larger than the padded input of {padded[0]}x{padded[1]}"
        )
    return (padded[0] - span[0]) // stride[0] + 1, (padded[1] - span[1]) // stride[1] + 1


def dilated(window: Pair, dilate: Pair) -> Pair:
    """The extent in pixels of a window whose taps are `dilate` apart: (h - 1) dilate + 1."""
    return (window[0] - 1) * dilate[0] + 1, (window[1] - 1) * dilate[1] + 1


def upsampled_output(size: Sequence[int], window: Pair, upsample: Pair, crop: Quad) -> Pair:
    """(H, W) of a transposed convolution: (H - 1) upsample - crops + window.

    >>> upsampled_output((14, 14), (4, 4), (2, 2), (1, 1, 1, 1))
    (28, 28)
    """
    height = (size[0] - 1) * upsample[0] + window[0] - crop[0] - crop[1]
    width = (size[1] - 1) * upsample[1] + window[1] - crop[2] - crop[3]
    if height < 1 or width < 1:
        raise ShapeError(f"crop {crop} leaves an output of {height}x{width}: nothing is left")
    return height, width


@dataclass(frozen=True)
class ReceptiveField:
    """The input pixels one output pixel depends on, per axis (vertical, horizontal).

    Output pixel `i` sees `size` input pixels centred on `offset + stride * i`, both counted from 0.
    Transposed convolutions have fractional strides (MatConvNet manual, section 5.5).
    """

    size: tuple[float, float] = (1, 1)
    stride: tuple[float, float] = (1, 1)
    offset: tuple[float, float] = (0, 0)

    @classmethod
    def of_window(cls, window: Pair, stride: Pair, pad: Quad, dilate: Pair = (1, 1)) -> ReceptiveField:
        """The field of a sliding window such as a convolution or a pooling.

        >>> ReceptiveField.of_window((3, 3), (2, 2), (1, 1, 1, 1))
        ReceptiveField(size=(3, 3), stride=(2, 2), offset=(0.0, 0.0))
        """
        span = dilated(window, dilate)
        return cls(span, stride, ((span[0] - 1) / 2 - pad[0], (span[1] - 1) / 2 - pad[2]))

    @classmethod
    def of_transposed(cls, window: Pair, upsample: Pair, crop: Quad) -> ReceptiveField:
        """The field of a transposed convolution.

        >>> ReceptiveField.of_transposed((4, 4), (2, 2), (1, 1, 1, 1))
        ReceptiveField(size=(2.5, 2.5), stride=(0.5, 0.5), offset=(-0.25, -0.25))
        """
        first = (crop[0], crop[2])
        axes = [
            ((w - 1) / u + 1, 1 / u, (2 * c - w + 1) / (2 * u))
            for w, u, c in zip(window, upsample, first, strict=True)
        ]
        (size_v, stride_v, offset_v), (size_h, stride_h, offset_h) = axes
        return cls((size_v, size_h), (stride_v, stride_h), (offset_v, offset_h))

    def then(self, later: ReceptiveField) -> ReceptiveField:
        """The field of this layer followed by `later`, seen from this layer's input.

        >>> conv3 = ReceptiveField((3, 3), (1, 1), (1, 1))
        >>> conv3.then(conv3).size
        (5, 5)
        """
        (s0, s1), (t0, t1), (o0, o1) = self.size, self.stride, self.offset
        return ReceptiveField(
            ((later.size[0] - 1) * t0 + s0, (later.size[1] - 1) * t1 + s1),
            (later.stride[0] * t0, later.stride[1] * t1),
            (later.offset[0] * t0 + o0, later.offset[1] * t1 + o1),
        )

    def moves_like(self, other: ReceptiveField) -> bool:
        """Whether both have the same stride, up to rounding in fractions."""
        return all(isclose(a, b) for a, b in zip(self.stride, other.stride, strict=True))

    def union(self, other: ReceptiveField) -> ReceptiveField:
        """The smallest field covering both, for branches that meet again (equal strides).

        >>> ReceptiveField((1, 1)).union(ReceptiveField((3, 3), offset=(1, 1))).size
        (3.0, 3.0)
        """
        axes = []
        for k in range(2):
            low = min(f.offset[k] - (f.size[k] - 1) / 2 for f in (self, other))
            high = max(f.offset[k] + (f.size[k] - 1) / 2 for f in (self, other))
            axes.append((high - low + 1, (low + high) / 2))
        return ReceptiveField((axes[0][0], axes[1][0]), self.stride, (axes[0][1], axes[1][1]))


NOTHING = ReceptiveField(size=(0, 0))
"""The field of an input whose values don't matter, such as the one `Crop` takes only the size of."""
