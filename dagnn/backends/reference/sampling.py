"""Sampling images on grids (MatConvNet manual, section 4.5; Jaderberg et al. 2015, arXiv:1506.02025)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import numpy as np

from ...errors import ShapeError
from ...geometry import shape4
from .checks import Array, one_dtype, same_shape


class Sampling:
    """Reference kernels: one gather per corner of the pixel square around a sample."""

    xp: Any

    def bilinear_sampler(self, x: Array, grid: Array) -> Array:
        """Read images between their pixels, by bilinear interpolation.

        y[m, c, i, j] = sum over p, q of
        x[n, c, p, q] max(0, 1 - |r - p|) max(0, 1 - |s - q|), with
        r = (grid[m, 0, i, j] + 1) (H - 1) / 2 and s = (grid[m, 1, i, j] + 1) (W - 1) / 2:
        -1 is the centre of the first pixel, 1 that of the last; outside the image there are zeros.

        Parameters
        ----------
        x : (N, C, H, W).
        grid : (M, 2, H', W'), channel 0 vertical; M a multiple of N, and grid m reads image
            n = floor(m N / M).

        Returns y (M, C, H', W').
        Raises ShapeError or DTypeError naming the numbers that disagree.
        MatConvNet manual, section 4.5; vl_nnbilinearsampler.

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> x, centre = np.array([[[[1.0, 2.0], [3.0, 4.0]]]]), np.zeros((1, 2, 1, 1))
        >>> kernels.bilinear_sampler(x, centre)
        array([[[[2.5]]]])
        """
        samples = self._samples(x, grid)
        pixels = self._rows_of_channels(x)
        y: Array = 0
        for corner in samples.corners(self.xp):
            y = y + pixels[corner.pixel] * (corner.row_weight * corner.column_weight)[..., None]
        return y.transpose(0, 3, 1, 2)

    def bilinear_sampler_ders(
        self, dzdy: Array, x: Array, grid: Array, *, wants: tuple[bool, ...] = (True, True)
    ) -> tuple[Array | None, Array | None]:
        """(dzdx, dzdgrid): the derivatives of `bilinear_sampler`; dzdy is (M, C, H', W').

        `wants` says which of the two are computed; the other is None.

        On a pixel's centre, where the interpolation has a kink, dzdgrid is the one-sided derivative
        towards the next pixel.

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> x, centre = np.array([[[[1.0, 2.0], [3.0, 4.0]]]]), np.zeros((1, 2, 1, 1))
        >>> dzdx, dzdgrid = kernels.bilinear_sampler_ders(np.ones((1, 1, 1, 1)), x, centre)
        >>> dzdx[0, 0], dzdgrid.ravel()
        (array([[0.25, 0.25], [0.25, 0.25]]), array([1. , 0.5]))
        """
        xp, samples = self.xp, self._samples(x, grid)
        one_dtype(dzdy=dzdy, x=x)
        n, c, h, w = x.shape
        same_shape("dzdy", dzdy, (grid.shape[0], c, *grid.shape[2:]))
        pixels, dzdy = self._rows_of_channels(x), dzdy.transpose(0, 2, 3, 1)
        dzdx: Array = xp.zeros((n * h * w * c,), x.dtype) if wants[0] else None
        dzdr: Array = 0
        dzds: Array = 0
        for corner in samples.corners(xp):
            if wants[0]:
                weighted = dzdy * (corner.row_weight * corner.column_weight)[..., None]
                xp.add.at(dzdx, corner.pixel[..., None] * c + xp.arange(c), weighted)
            if wants[1]:
                meets = (dzdy * pixels[corner.pixel]).sum(axis=-1)
                dzdr = dzdr + meets * corner.row_slope * corner.column_weight
                dzds = dzds + meets * corner.column_slope * corner.row_weight
        if wants[0]:
            dzdx = dzdx.reshape(n, h, w, c).transpose(0, 3, 1, 2)
        if not wants[1]:
            return dzdx, None
        return dzdx, xp.stack([dzdr * ((h - 1) / 2), dzds * ((w - 1) / 2)], axis=1).astype(grid.dtype)

    def affine_grid(self, affine: Array, *, height: int, width: int) -> Array:
        """Grids for `bilinear_sampler` from affine maps of the output square to the input square.

        grid[n, :, i, j] = A[n] (r, s) + t[n], with r and s evenly spaced from -1 to 1 over the height
        and width (1 where there is one pixel only, as in MATLAB's linspace).

        affine : (N, 6, 1, 1) holding A11, A12, A21, A22, t1, t2; 1 is vertical, 2 horizontal.

        Returns (N, 2, height, width). MatConvNet's dagnn.AffineGridGenerator.

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> identity = np.array([1.0, 0, 0, 1, 0, 0]).reshape(1, 6, 1, 1)
        >>> kernels.affine_grid(identity, height=2, width=2)[0, 1]
        array([[-1.,  1.],
               [-1.,  1.]])
        """
        a = self._transforms("affine", affine, 6)
        rows, columns = self._square(height, width, affine.dtype)
        vertical = a[0] * rows + a[1] * columns + a[4]
        return self.xp.stack([vertical, a[2] * rows + a[3] * columns + a[5]], axis=1)

    def affine_grid_der(self, dzdy: Array) -> Array:
        """The derivative of `affine_grid` for its maps: dzdy (N, 2, H, W) to (N, 6, 1, 1).

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> kernels.affine_grid_der(np.ones((1, 2, 2, 2))).ravel()
        array([0., 0., 0., 0., 4., 4.])
        """
        (vertical, horizontal), (rows, columns) = self._grid_der(dzdy)
        terms = [vertical * rows, vertical * columns, horizontal * rows, horizontal * columns]
        return self._summed([*terms, vertical, horizontal])

    def uniform_scaling_grid(self, transform: Array, *, height: int, width: int) -> Array:
        """Grids for `bilinear_sampler` that scale both axes alike and shift.

        grid[n, :, i, j] = scale[n] (r, s) + t[n], with r and s as in `affine_grid`.

        transform : (N, 3, 1, 1) holding scale, t1, t2; 1 is vertical, 2 horizontal.

        Returns (N, 2, height, width). MatConvNet's dagnn.UniformScalingGridGenerator.

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> half = np.array([0.5, 0, 0]).reshape(1, 3, 1, 1)
        >>> kernels.uniform_scaling_grid(half, height=2, width=2)[0, 1]
        array([[-0.5,  0.5],
               [-0.5,  0.5]])
        """
        scale, down, right = self._transforms("transform", transform, 3)
        rows, columns = self._square(height, width, transform.dtype)
        flat = self.xp.zeros((height, width), transform.dtype)
        return self.xp.stack([scale * (rows + flat) + down, scale * (columns + flat) + right], axis=1)

    def uniform_scaling_grid_der(self, dzdy: Array) -> Array:
        """The derivative of `uniform_scaling_grid`: dzdy (N, 2, H, W) to (N, 3, 1, 1).

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> kernels.uniform_scaling_grid_der(np.ones((1, 2, 2, 2))).ravel()
        array([0., 4., 4.])
        """
        (vertical, horizontal), (rows, columns) = self._grid_der(dzdy)
        return self._summed([vertical * rows + horizontal * columns, vertical, horizontal])

    def _square(self, height: int, width: int, dtype: Any) -> tuple[Array, Array]:
        """Vertical coordinates (H, 1) and horizontal ones (1, W), from -1 to 1."""
        rows, columns = (
            self.xp.linspace(-1, 1, count).astype(dtype) if count > 1 else self.xp.ones(count, dtype)
            for count in (height, width)
        )
        return rows[:, None], columns

    def _transforms(self, what: str, numbers: Array, count: int) -> Array:
        """(N, count, 1, 1) as `count` arrays (N, 1, 1)."""
        one_dtype(**{what: numbers})
        if numbers.ndim != 4 or numbers.shape[1:] != (count, 1, 1):
            raise ShapeError(f"{what} must be (N, {count}, 1, 1), got shape {tuple(numbers.shape)}")
        return numbers[..., 0].swapaxes(0, 1)[..., None]

    def _grid_der(self, dzdy: Array) -> tuple[tuple[Array, Array], tuple[Array, Array]]:
        if dzdy.ndim != 4 or dzdy.shape[1] != 2:
            raise ShapeError(f"dzdy must be (N, 2, H, W), got shape {tuple(dzdy.shape)}")
        one_dtype(dzdy=dzdy)
        return (dzdy[:, 0], dzdy[:, 1]), self._square(dzdy.shape[2], dzdy.shape[3], dzdy.dtype)

    def _summed(self, terms: Sequence[Array]) -> Array:
        return self.xp.stack([term.sum(axis=(1, 2)) for term in terms], axis=1)[..., None, None]

    def _rows_of_channels(self, x: Array) -> Array:
        return self.xp.ascontiguousarray(x.transpose(0, 2, 3, 1)).reshape(-1, x.shape[1])

    def _check_sampler(self, x: Array, grid: Array) -> None:
        n = shape4("x", x.shape)[0]
        one_dtype(x=x, grid=grid)
        if grid.ndim != 4 or grid.shape[1] != 2:
            raise ShapeError(f"grid must be (M, 2, H, W), got shape {tuple(grid.shape)}")
        if n == 0 or grid.shape[0] % n:
            raise ShapeError(f"{grid.shape[0]} grids for {n} images: expected a multiple")

    def _samples(self, x: Array, grid: Array) -> _Samples:
        self._check_sampler(x, grid)
        xp, (n, _, h, w) = self.xp, x.shape
        image = xp.arange(grid.shape[0]) // (grid.shape[0] // n)
        # Two pixels outside the image everything is zero, however far a sample is.
        row = xp.clip((grid[:, 0] + 1) * ((h - 1) / 2), -2, h + 1)
        column = xp.clip((grid[:, 1] + 1) * ((w - 1) / 2), -2, w + 1)
        return _Samples(image[:, None, None], row, column, (h, w))


class _Corner(NamedTuple):
    """One of the four pixels around each sample: its index, its weights and their slopes."""

    pixel: Array
    row_weight: Array
    column_weight: Array
    row_slope: Array
    column_slope: Array


class _Samples(NamedTuple):
    image: Array
    row: Array
    column: Array
    size: tuple[int, int]

    def corners(self, xp: Any) -> Iterator[_Corner]:
        for down in range(2):
            p, row_weight, row_slope = _neighbour(xp, self.row, down, self.size[0])
            for right in range(2):
                q, column_weight, column_slope = _neighbour(xp, self.column, right, self.size[1])
                pixel = (self.image * self.size[0] + p) * self.size[1] + q
                yield _Corner(pixel, row_weight, column_weight, row_slope, column_slope)


def _neighbour(xp: Any, position: Array, step: int, size: int) -> tuple[Array, Array, Array]:
    """The pixel before (step 0) or after `position` on one axis, its weight, and the weight's slope.

    A pixel outside the axis weighs nothing; a position that is NaN gives a weight that is NaN.
    """
    floor = xp.floor(position)
    index = xp.where(floor == floor, floor, 0).astype(np.int64) + step
    inside = (index >= 0) & (index < size)
    after = position - floor
    weight = xp.where(inside, after if step else 1 - after, 0).astype(position.dtype)
    slope = xp.where(inside, 2 * step - 1, 0).astype(position.dtype)
    return xp.clip(index, 0, size - 1), weight, slope
