"""Pooling over sliding windows and over regions of interest (MatConvNet manual, section 4.3)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from ...errors import OptionError, ShapeError
from ...geometry import Pair, pair, quad, shape4, window_output
from .checks import Array, one_dtype, same_shape
from .convolution import Sizes, interior, padded_shape, taps


def pool_sizes(
    x_shape: Sequence[int],
    size: int | Sequence[int],
    stride: int | Sequence[int],
    pad: int | Sequence[int],
) -> Sizes:
    """The sizes of a pooling, or the error that says which of its arguments disagree."""
    n, c, height, width = shape4("x", x_shape)
    window, stride, pad = pair("size", size), pair("stride", stride), quad("pad", pad)
    if max(pad[:2]) >= window[0] or max(pad[2:]) >= window[1]:
        raise OptionError(f"pad {pad} must be smaller than the pooling window of {window[0]}x{window[1]}")
    maps = window_output("pooling window", (height, width), window, stride, pad)
    return Sizes(1, window, (n, c, *maps), stride, pad, (1, 1))


def first_taps(sizes: Sizes) -> np.ndarray:
    """(H', W'): the tap of each window that is its first pixel inside the image."""
    (h, w), (down, across), (top, _, left, _) = sizes.window, sizes.stride, sizes.pad
    rows = np.maximum(0, top - down * np.arange(sizes.output[2]))
    columns = np.maximum(0, left - across * np.arange(sizes.output[3]))
    return (rows[:, None] + h * columns).astype(np.uint8 if h * w <= 256 else np.int32)


def pixels_inside(sizes: Sizes, x_shape: Sequence[int], dtype: Any) -> np.ndarray:
    """(H', W'): how many pixels of each window are inside the image."""
    counts = []
    for axis in range(2):
        start = sizes.stride[axis] * np.arange(sizes.output[2 + axis]) - sizes.pad[2 * axis]
        stop = np.minimum(start + sizes.window[axis], x_shape[2 + axis])
        counts.append(stop - np.maximum(start, 0))
    return np.multiply.outer(*counts).astype(dtype)


class Pooling:
    """Reference kernels: one pass over the maps per tap of the window."""

    xp: Any
    asarray: Any
    _padded: Any

    def max_pool(
        self,
        x: Array,
        size: int | Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        pad: int | Sequence[int] = 0,
        wants_winner: bool = True,
    ) -> tuple[Array, Array | None]:
        """The maximum of each channel over sliding windows.

        y[n, c, i, j] = max of x[n, c, i stride + u - top, j stride + v - left] over u < h, v < w
        and inside the image. NaNs are passed over; a window of nothing else gives -inf.

        Parameters
        ----------
        x : (N, C, H, W).
        size, stride : in pixels, one number or (vertical, horizontal).
        pad : in pixels, smaller than the window, one number or (top, bottom, left, right).
        wants_winner : whether a derivative will be asked for.

        Returns y (N, C, H', W') with H' = floor((H + top + bottom - h) / stride) + 1, and `winner`,
        what `max_pool_dzdx` needs: the tap u + v h of each maximum, of equal ones the first
        (uint8, or int32 for windows of more than 256 pixels); None where nobody wants it.
        MatConvNet manual, section 4.3; vl_nnpool.

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> y, winner = kernels.max_pool(np.arange(9.0).reshape(1, 1, 3, 3), 2)
        >>> y[0, 0], winner[0, 0]
        (array([[4., 5.], [7., 8.]]), array([[3, 3], [3, 3]], dtype=uint8))
        """
        xp, sizes = self.xp, pool_sizes(x.shape, size, stride, pad)
        one_dtype(x=x)
        first = self.asarray(first_taps(sizes))
        winner = xp.zeros(sizes.output, first.dtype) + first
        y = xp.full(sizes.output, -np.inf, x.dtype)
        for u, v, pixels in taps(self._padded(x, sizes.pad, -np.inf), sizes):
            better = pixels > y
            y = xp.where(better, pixels, y)
            winner = xp.where(better, xp.asarray(u + v * sizes.window[0], winner.dtype), winner)
        return y, winner if wants_winner else None

    def max_pool_dzdx(
        self,
        dzdy: Array,
        winner: Array,
        x_shape: Sequence[int],
        size: int | Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        pad: int | Sequence[int] = 0,
    ) -> Array:
        """The derivative of `max_pool`: each dzdy goes to the pixel that won its window.

        dzdy and winner are (N, C, H', W'); x_shape, the shape of x, is also that of the result.

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> y, winner = kernels.max_pool(np.array([[[[1.0, 3.0, 2.0]]]]), (1, 2))
        >>> kernels.max_pool_dzdx(np.ones((1, 1, 1, 2)), winner, (1, 1, 1, 3), (1, 2))
        array([[[[0., 2., 0.]]]])
        """
        xp, sizes = self.xp, pool_sizes(x_shape, size, stride, pad)
        one_dtype(dzdy=dzdy)
        same_shape("dzdy", dzdy, sizes.output)
        same_shape("winner", winner, sizes.output)
        dzdx = xp.zeros(padded_shape(x_shape, sizes.pad), dzdy.dtype)
        for u, v, pixels in taps(dzdx, sizes):
            pixels += xp.where(winner == u + v * sizes.window[0], dzdy, xp.zeros((), dzdy.dtype))
        return interior(dzdx, x_shape, sizes.pad)

    def avg_pool(
        self,
        x: Array,
        size: int | Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        pad: int | Sequence[int] = 0,
    ) -> Array:
        """The mean of each channel over sliding windows, of the pixels inside the image alone.

        Arguments and output size as in `max_pool`. MatConvNet manual, section 4.3; vl_nnpool.

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> kernels.avg_pool(np.array([[[[2.0, 4.0]]]]), (1, 2), pad=(0, 0, 1, 1))
        array([[[[2., 3., 4.]]]])
        """
        xp, sizes = self.xp, pool_sizes(x.shape, size, stride, pad)
        one_dtype(x=x)
        y = xp.zeros(sizes.output, x.dtype)
        for _, _, pixels in taps(self._padded(x, sizes.pad), sizes):
            y += pixels
        return y / self.asarray(pixels_inside(sizes, x.shape, x.dtype))

    def avg_pool_dzdx(
        self,
        dzdy: Array,
        x_shape: Sequence[int],
        size: int | Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        pad: int | Sequence[int] = 0,
    ) -> Array:
        """The derivative of `avg_pool`: each dzdy is shared evenly by the pixels of its window.

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> kernels.avg_pool_dzdx(np.ones((1, 1, 1, 2)), (1, 1, 1, 3), (1, 2))
        array([[[[0.5, 1. , 0.5]]]])
        """
        xp, sizes = self.xp, pool_sizes(x_shape, size, stride, pad)
        one_dtype(dzdy=dzdy)
        same_shape("dzdy", dzdy, sizes.output)
        share = dzdy / self.asarray(pixels_inside(sizes, x_shape, dzdy.dtype))
        dzdx = xp.zeros(padded_shape(x_shape, sizes.pad), dzdy.dtype)
        for _, _, pixels in taps(dzdx, sizes):
            pixels += share
        return interior(dzdx, x_shape, sizes.pad)

    def roi_pool(
        self,
        x: Array,
        rois: Array,
        *,
        subdivisions: int | Sequence[int],
        transform: float | Sequence[Any] = 1.0,
        method: str = "max",
    ) -> tuple[Array, Array | None]:
        """Pool each region of interest into a fixed number of bins.

        A region's corners are transformed, rounded (halves away from zero, counted from 1 as
        MatConvNet does) and both included; reversed ones leave one row or column. Bin (i, j) of h x w
        covers rows floor(i H / h) to ceil((i + 1) H / h) - 1 of the region's H, and columns likewise,
        so bins may overlap. What lies outside the image is left out; an empty bin gives 0.

        Parameters
        ----------
        x : (N, C, H, W).
        rois : (5, R), any dtype: image index (truncated and clamped), x1, y1, x2, y2, all from 0.
        subdivisions : number of bins, one number or (vertical, horizontal).
        transform : of coordinates from 0: a scale, scales (of x, of y), or a 2 x 3 matrix [A t] that
            maps (x, y) to A (x, y) + t.
        method : "max" or "avg".

        Returns y (R, C, h, w), and for "max" `winner`, which `roi_pool_dzdx` needs: the pixel
        row W + column of each maximum (of equal ones the first, column by column), -1 in an empty bin.
        MatConvNet's vl_nnroipool; Girshick 2015, arXiv:1504.08083.

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> x, roi = np.arange(16.0).reshape(1, 1, 4, 4), np.array([[0, 1, 0, 3, 3]]).T
        >>> kernels.roi_pool(x, roi, subdivisions=(2, 1))[0][0, 0]
        array([[ 7.],
               [15.]])
        """
        xp, bins = self.xp, self._bins(x, rois, x.shape, subdivisions, transform, method)
        maps = xp.ascontiguousarray(x.transpose(0, 2, 3, 1)).reshape(-1, x.shape[1])
        shape = (*bins.count.shape, x.shape[1])
        empty = (bins.count == 0)[..., None]
        if method == "avg":
            y = xp.zeros(shape, x.dtype)
            for pixel, inside in bins.taps(xp):
                y += xp.where(inside[..., None], maps[bins.image + pixel], xp.zeros((), x.dtype))
            y /= xp.maximum(bins.count, 1)[..., None].astype(x.dtype)
            return y.transpose(0, 3, 1, 2), None
        y = xp.full(shape, -np.inf, x.dtype)
        winner = xp.zeros(shape, np.int32) + bins.first[..., None].astype(np.int32)
        for pixel, inside in bins.taps(xp):
            pixels = maps[bins.image + pixel]
            better = inside[..., None] & (pixels > y)
            y = xp.where(better, pixels, y)
            winner = xp.where(better, pixel[..., None].astype(np.int32), winner)
        y[xp.broadcast_to(empty, shape)] = 0
        winner[xp.broadcast_to(empty, shape)] = -1
        return y.transpose(0, 3, 1, 2), winner.transpose(0, 3, 1, 2)

    def roi_pool_dzdx(
        self,
        dzdy: Array,
        winner: Array | None,
        rois: Array,
        x_shape: Sequence[int],
        *,
        subdivisions: int | Sequence[int],
        transform: float | Sequence[Any] = 1.0,
        method: str = "max",
    ) -> Array:
        """The derivative of `roi_pool` for x; dzdy is (R, C, h, w), `winner` what `roi_pool` returned.

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> dzdy, roi = np.ones((1, 1, 1, 1)), np.array([[0, 0, 0, 1, 0]]).T
        >>> kernels.roi_pool_dzdx(dzdy, None, roi, (1, 1, 1, 4), subdivisions=1, method="avg")
        array([[[[0.5, 0.5, 0. , 0. ]]]])
        """
        xp, bins = self.xp, self._bins(dzdy, rois, x_shape, subdivisions, transform, method)
        n, c, h, w = x_shape
        same_shape("dzdy", dzdy, (bins.count.shape[0], c, *bins.count.shape[1:]))
        dzdx = xp.zeros((n * h * w, c), dzdy.dtype)
        dzdy = dzdy.transpose(0, 2, 3, 1)
        if method == "avg":
            share = dzdy / xp.maximum(bins.count, 1)[..., None].astype(dzdy.dtype)
            for pixel, inside in bins.taps(xp):
                xp.add.at(dzdx, (bins.image + pixel)[inside], share[inside])
        else:
            if winner is None:
                raise OptionError("method 'max' needs the winner that roi_pool returned. Received: None")
            winner = winner.transpose(0, 2, 3, 1)
            same_shape("winner", winner, dzdy.shape)
            target = (bins.image[..., None] + winner) * c + xp.arange(c)
            xp.add.at(dzdx.reshape(-1), target[winner >= 0], dzdy[winner >= 0])
        return dzdx.reshape(n, h, w, c).transpose(0, 3, 1, 2)

    @staticmethod
    def _checked_bins(
        x: Array, rois: Array, x_shape: Sequence[int], subdivisions: int | Sequence[int], method: str
    ) -> Pair:
        """How many bins there are down and across, unless the arguments are wrong."""
        shape4("x", x_shape)
        one_dtype(x=x)
        if rois.ndim != 2 or rois.shape[0] != 5 or rois.shape[1] < 1:
            raise ShapeError(f"rois must be (5, R) with R at least 1, got shape {tuple(rois.shape)}")
        if method not in ("max", "avg"):
            raise OptionError(f"method is 'max' or 'avg'. Received: {method!r}")
        return pair("subdivisions", subdivisions)

    def _bins(
        self,
        x: Array,
        rois: Array,
        x_shape: Sequence[int],
        subdivisions: int | Sequence[int],
        transform: float | Sequence[Any],
        method: str,
    ) -> _Bins:
        bins = self._checked_bins(x, rois, x_shape, subdivisions, method)
        xp, (n, _, *image_size) = self.xp, x_shape
        # As MatConvNet does, in the type of x: rounding decides which pixels a bin gets.
        real = np.float64 if x.dtype == np.float64 else np.float32
        rois, matrix = rois.astype(real), affine(transform).astype(real)
        edges = []
        for axis, parts in ((1, bins[0]), (0, bins[1])):
            a, b, t = (float(value) for value in matrix[axis])
            first, last = (_round(xp, a * rois[k] + b * rois[k + 1] + t + 1) - 1 for k in (1, 3))
            part = xp.maximum(last - first + 1, 1) / parts
            ends = xp.arange(parts + 1, dtype=real) * part[:, None]
            start = xp.floor(ends[:, :-1]) + first[:, None]
            stop = xp.ceil(ends[:, 1:]) + first[:, None]
            edges += [xp.clip(e, 0, image_size[1 - axis]).astype(np.int64) for e in (start, stop)]
        image = xp.clip(xp.trunc(rois[0]), 0, n - 1).astype(np.int64)
        return _Bins.of(image, edges, (image_size[0], image_size[1]))


class _Bins(NamedTuple):
    """Where each bin (R, h, w) lies: its image's offset into all pixels, its rows and columns."""

    image: Array
    top: Array
    left: Array
    height: Array
    width: Array
    image_size: Pair

    @classmethod
    def of(cls, image: Array, edges: Sequence[Array], image_size: Pair) -> _Bins:
        top, bottom, left, right = edges
        return cls(
            image[:, None, None] * (image_size[0] * image_size[1]),
            top[:, :, None],
            left[:, None, :],
            (bottom - top)[:, :, None],
            (right - left)[:, None, :],
            image_size,
        )

    @property
    def count(self) -> Array:
        """Pixels in each bin."""
        return self.height.clip(0) * self.width.clip(0)

    @property
    def first(self) -> Array:
        """The first pixel of each bin."""
        return self.top * self.image_size[1] + self.left

    def taps(self, xp: Any) -> Any:
        """For every pixel of the largest bin: that pixel in each bin, and whether the bin has it."""
        h, w = self.image_size
        for v in range(int(self.width.max())):
            for u in range(int(self.height.max())):
                row, column = xp.minimum(self.top + u, h - 1), xp.minimum(self.left + v, w - 1)
                yield row * w + column, (u < self.height) & (v < self.width)


def _round(xp: Any, a: Array) -> Array:
    """To the nearest integer, halves away from zero."""
    return xp.trunc(a + xp.copysign(a.dtype.type(0.5), a))


def affine(transform: float | Sequence[Any]) -> np.ndarray:
    """[A t] as a 2 x 3 matrix from a scale, two scales, or the matrix itself."""
    given = np.asarray(transform, np.float64)
    if given.shape == (2, 3):
        return given
    if given.size not in (1, 2):
        raise OptionError(f"transform is a scale, 2 scales or a 2 x 3 matrix, got shape {given.shape}")
    matrix = np.zeros((2, 3))
    matrix[[0, 1], [0, 1]] = given.ravel()
    return matrix
