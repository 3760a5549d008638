"""Convolution and transposed convolution (MatConvNet manual, sections 4.1 and 4.2)."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

from ...errors import OptionError, ShapeError
from ...geometry import Pair, Quad, pair, quad, shape4, upsampled_output, window_output
from .checks import Array, one_dtype, same_shape


class Sizes(NamedTuple):
    """The numbers of one convolution, checked: groups, window, output maps, and the options as tuples."""

    groups: int
    window: Pair
    output: Quad
    stride: Pair
    pad: Quad
    dilate: Pair


def conv_sizes(
    x_shape: Sequence[int],
    w_shape: Sequence[int] | None,
    stride: int | Sequence[int],
    pad: int | Sequence[int],
    dilate: int | Sequence[int],
) -> Sizes:
    """The sizes of a convolution, or the error that says which of its arguments disagree."""
    n, c, height, width = shape4("x", x_shape)
    stride, pad, dilate = pair("stride", stride), quad("pad", pad), pair("dilate", dilate)
    if w_shape is None:
        if dilate != (1, 1):
            raise OptionError(f"dilate must be 1 where there are no filters. Received: {dilate}")
        k, depth, window = c, 1, (1, 1)
    else:
        if len(w_shape) != 4 or min(w_shape) < 1:
            raise ShapeError(f"filters must be (K, C/groups, h, w), got shape {tuple(w_shape)}")
        k, depth, *hw = w_shape
        window = hw[0], hw[1]
        if c % depth or c == 0:
            raise ShapeError(f"input has {c} channels, filters expect {depth} or a multiple of it")
        if k % (c // depth):
            raise ShapeError(f"{k} filters do not divide into {c // depth} groups")
    maps = window_output("filters", (height, width), window, stride, pad, dilate)
    return Sizes(c // depth, window, (n, k, *maps), stride, pad, dilate)


def taps(padded: Array, sizes: Sizes) -> Iterator[tuple[int, int, Array]]:
    """For each filter tap (u, v), column by column, the view of the pixels it meets: (N, C, H', W')."""
    (h, w), (down, across) = sizes.window, sizes.stride
    for v in range(w):
        for u in range(h):
            top, left = u * sizes.dilate[0], v * sizes.dilate[1]
            bottom, right = top + down * sizes.output[2], left + across * sizes.output[3]
            yield u, v, padded[:, :, top : bottom - down + 1 : down, left : right - across + 1 : across]


def padded_shape(shape: Sequence[int], pad: Quad) -> Quad:
    """The shape of (N, C, H, W) maps with `pad` around them."""
    n, c, h, w = shape
    return n, c, h + pad[0] + pad[1], w + pad[2] + pad[3]


def interior(padded: Array, shape: Sequence[int], pad: Quad) -> Array:
    """The view of `padded` without its `pad`."""
    return padded[:, :, pad[0] : pad[0] + shape[2], pad[2] : pad[2] + shape[3]]


class Convolution:
    """Reference kernels: one small matrix product per filter tap."""

    xp: Any
    relu: Any

    def conv(
        self,
        x: Array,
        w: Array | None,
        b: Array | None = None,
        *,
        stride: int | Sequence[int] = 1,
        pad: int | Sequence[int] = 0,
        dilate: int | Sequence[int] = 1,
        add: Array | None = None,
        relu: float | None = None,
        out: Array | None = None,
        patches: list[Array] | None = None,
    ) -> Array:
        """Cross-correlate maps with a bank of filters; optionally add a bias, another map, and rectify.

        y[n, k, i, j] = b[k] + sum over c, u, v of
        w[k, c, u, v] x[n, c, i stride + u dilate - top, j stride + v dilate - left]

        Parameters
        ----------
        x : (N, C, H, W); outside it (the `pad`) there are zeros.
        w : (K, C/groups, h, w); the number of groups follows from C. None is the identity bank
            (one 1x1 filter of weight 1 per channel), which subsamples; `dilate` must then be 1.
        b : (K,) or None.
        stride, dilate : in pixels, one number or (vertical, horizontal).
        pad : in pixels, one number or (top, bottom, left, right).
        add : added to y before `relu`; it has the shape of y.
        relu : None, or the leak of a ReLU applied last (0 for a plain one).
        out : where to put y, an array of its shape that shares no memory with the others; None: a new one.
        patches : a list for what `conv_dzdw` would otherwise gather once more, the patch matrix phi(pad(x)),
            in pieces that only this backend understands. It stays empty where there are none, as here.

        Returns y (N, K, H', W') with H' = floor((H + top + bottom - dilate (h - 1) - 1) / stride) + 1.
        Raises ShapeError, OptionError or DTypeError naming the numbers that disagree.
        MatConvNet manual, section 4.1; vl_nnconv.

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> x = np.arange(9.0).reshape(1, 1, 3, 3)
        >>> kernels.conv(x, np.ones((1, 1, 1, 2)), np.array([10.0]))[0, 0]
        array([[11., 13.],
               [17., 19.],
               [23., 25.]])
        """
        xp, sizes = self.xp, conv_sizes(x.shape, None if w is None else w.shape, stride, pad, dilate)
        self._check_conv(x, w, b, add, sizes, out)
        padded = self._padded(x, sizes.pad)
        if w is None:
            y = next(taps(padded, sizes))[2].copy()
        else:
            n, k, height, width = sizes.output
            y = xp.zeros((n, sizes.groups, k // sizes.groups, height * width), x.dtype)
            bank = w.reshape(sizes.groups, k // sizes.groups, *w.shape[1:])
            for u, v, pixels in taps(padded, sizes):
                columns = pixels.reshape(n, sizes.groups, w.shape[1], height * width)
                y += xp.matmul(bank[..., u, v], columns)
            y = y.reshape(sizes.output)
        if b is not None:
            y += b[:, None, None]
        if add is not None:
            y += add
        y = y if relu is None else self.relu(y, relu)
        if out is None:
            return y
        out[...] = y
        return out

    def conv_dzdx(
        self,
        dzdy: Array,
        w: Array | None,
        x_shape: Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        pad: int | Sequence[int] = 0,
        dilate: int | Sequence[int] = 1,
    ) -> Array:
        """The derivative of `conv` for its input.

        dzdx[n, c, p, q] = sum of w[k, c, u, v] dzdy[n, k, i, j] over all k, u, v, i, j with
        i stride + u dilate - top = p and j stride + v dilate - left = q.

        dzdy is (N, K, H', W'); x_shape, the shape of x, is also that of the result.

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> kernels.conv_dzdx(np.ones((1, 1, 2, 2)), np.ones((1, 1, 2, 2)), (1, 1, 3, 3))[0, 0]
        array([[1., 2., 1.],
               [2., 4., 2.],
               [1., 2., 1.]])
        """
        xp, sizes = self.xp, conv_sizes(x_shape, None if w is None else w.shape, stride, pad, dilate)
        one_dtype(dzdy=dzdy, w=w)
        same_shape("dzdy", dzdy, sizes.output)
        dzdx = xp.zeros(padded_shape(x_shape, sizes.pad), dzdy.dtype)
        if w is None:
            next(taps(dzdx, sizes))[2][...] = dzdy
        else:
            n, k, height, width = sizes.output
            bank = w.reshape(sizes.groups, k // sizes.groups, *w.shape[1:]).swapaxes(1, 2)
            dzdy = dzdy.reshape(n, sizes.groups, k // sizes.groups, height * width)
            for u, v, pixels in taps(dzdx, sizes):
                pixels += xp.matmul(bank[..., u, v], dzdy).reshape(pixels.shape)
        return interior(dzdx, x_shape, sizes.pad)

    def conv_dzdw(
        self,
        dzdy: Array,
        x: Array,
        w_shape: Sequence[int],
        *,
        stride: int | Sequence[int] = 1,
        pad: int | Sequence[int] = 0,
        dilate: int | Sequence[int] = 1,
        patches: Sequence[Array] = (),
    ) -> Array:
        """The derivative of `conv` for its filters.

        dzdw[k, c, u, v] = sum over n, i, j of
        dzdy[n, k, i, j] x[n, c, i stride + u dilate - top, j stride + v dilate - left]

        dzdy is (N, K, H', W'), x (N, C, H, W); w_shape, the shape of w, is also that of the result. `patches`
        is what `conv` put there for the same x and options; the result is the same without.

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> x = np.arange(4.0).reshape(1, 1, 2, 2)
        >>> kernels.conv_dzdw(np.full((1, 1, 1, 1), 10.0), x, (1, 1, 2, 2))[0, 0]
        array([[ 0., 10.],
               [20., 30.]])
        """
        xp, sizes = self.xp, conv_sizes(x.shape, w_shape, stride, pad, dilate)
        one_dtype(dzdy=dzdy, x=x)
        same_shape("dzdy", dzdy, sizes.output)
        n, k, height, width = sizes.output
        dzdw = xp.empty((sizes.groups, k // sizes.groups, *w_shape[1:]), x.dtype)
        dzdy = dzdy.reshape(n, sizes.groups, k // sizes.groups, height * width)
        for u, v, pixels in taps(self._padded(x, sizes.pad), sizes):
            columns = pixels.reshape(n, sizes.groups, w_shape[1], height * width)
            dzdw[..., u, v] = xp.matmul(dzdy, columns.swapaxes(2, 3)).sum(axis=0)
        return dzdw.reshape(w_shape)

    def conv_dzdb(self, dzdy: Array) -> Array:
        """The derivative of `conv` or `conv_transpose` for its biases: dzdy (N, K, H, W) summed to (K,).

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> kernels.conv_dzdb(np.ones((2, 3, 4, 5)))
        array([40., 40., 40.])
        """
        shape4("dzdy", dzdy.shape)
        one_dtype(dzdy=dzdy)
        # One axis at a time: short sums lose fewer digits.
        return dzdy.sum(axis=2).sum(axis=2).sum(axis=0)

    def conv_transpose(
        self,
        x: Array,
        w: Array,
        b: Array | None = None,
        *,
        upsample: int | Sequence[int] = 1,
        crop: int | Sequence[int] = 0,
        num_groups: int = 1,
    ) -> Array:
        """Transposed convolution ("deconvolution"): `conv_dzdx` used forward.

        y[n, k, p, q] = b[k] + sum of w[c, k, u, v] x[n, c, i, j] over all c, u, v, i, j with
        i upsample + u - top = p and j upsample + v - left = q.

        Parameters
        ----------
        x : (N, C, H, W).
        w : (C, K/num_groups, h, w).
        b : (K,) or None.
        upsample : in pixels, one number or (vertical, horizontal).
        crop : pixels cut from the output, one number or (top, bottom, left, right).
        num_groups : channels and outputs are split into this many independent groups.

        Returns y (N, K, H', W') with H' = (H - 1) upsample + h - top - bottom.
        Raises ShapeError, OptionError or DTypeError naming the numbers that disagree.
        MatConvNet manual, section 4.2; vl_nnconvt.

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> x = np.array([[[[1.0, 2.0]]]])
        >>> kernels.conv_transpose(x, np.ones((1, 1, 1, 3)), upsample=2)
        array([[[[1., 1., 3., 2., 2.]]]])
        """
        shape, options = self._transposed(x.shape, w.shape, upsample, crop, num_groups)
        one_dtype(x=x, w=w, b=b)
        check_biases(b, shape[1])
        y = self.conv_dzdx(x, w, shape, **options)
        if b is not None:
            y += b[:, None, None]
        return y

    def conv_transpose_dzdx(
        self,
        dzdy: Array,
        w: Array,
        x_shape: Sequence[int],
        *,
        upsample: int | Sequence[int] = 1,
        crop: int | Sequence[int] = 0,
        num_groups: int = 1,
    ) -> Array:
        """The derivative of `conv_transpose` for its input: an ordinary `conv` of dzdy.

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> dzdy = np.array([[[[1.0, 2.0, 3.0, 4.0, 5.0]]]])
        >>> kernels.conv_transpose_dzdx(dzdy, np.ones((1, 1, 1, 3)), (1, 1, 1, 2), upsample=2)
        array([[[[ 6., 12.]]]])
        """
        shape, options = self._transposed(x_shape, w.shape, upsample, crop, num_groups)
        same_shape("dzdy", dzdy, shape)
        return self.conv(dzdy, w, **options)

    def conv_transpose_dzdw(
        self,
        dzdy: Array,
        x: Array,
        w_shape: Sequence[int],
        *,
        upsample: int | Sequence[int] = 1,
        crop: int | Sequence[int] = 0,
        num_groups: int = 1,
    ) -> Array:
        """The derivative of `conv_transpose` for its filters: `conv_dzdw` with x and dzdy exchanged.

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> dzdy, x = np.array([[[[1.0, 2.0, 3.0, 4.0, 5.0]]]]), np.ones((1, 1, 1, 2))
        >>> kernels.conv_transpose_dzdw(dzdy, x, (1, 1, 1, 3), upsample=2)
        array([[[[4., 6., 8.]]]])
        """
        shape, options = self._transposed(x.shape, w_shape, upsample, crop, num_groups)
        same_shape("dzdy", dzdy, shape)
        return self.conv_dzdw(x, dzdy, w_shape, **options)

    def _padded(self, x: Array, pad: Quad, value: float = 0.0) -> Array:
        if not any(pad):
            return x
        padded = self.xp.full(padded_shape(x.shape, pad), value, x.dtype)
        interior(padded, x.shape, pad)[...] = x
        return padded

    @staticmethod
    def _check_conv(
        x: Array, w: Array | None, b: Array | None, add: Array | None, sizes: Sizes, out: Array | None
    ) -> None:
        one_dtype(x=x, w=w, b=b, add=add, out=out)
        check_biases(b, sizes.output[1])
        for name, array in (("add", add), ("out", out)):
            if array is not None:
                same_shape(name, array, sizes.output)

    @staticmethod
    def _transposed(
        x_shape: Sequence[int],
        w_shape: Sequence[int],
        upsample: int | Sequence[int],
        crop: int | Sequence[int],
        num_groups: int,
    ) -> tuple[Quad, dict[str, Any]]:
        """The shape of a transposed convolution's output, and the options of the `conv` it reverses."""
        n, c, height, width = shape4("x", x_shape)
        upsample, crop = pair("upsample", upsample), quad("crop", crop)
        if len(w_shape) != 4 or min(w_shape) < 1:
            raise ShapeError(f"filters must be (C, K/num_groups, h, w), got shape {tuple(w_shape)}")
        if c != w_shape[0]:
            raise ShapeError(f"input has {c} channels, filters expect {w_shape[0]}")
        if num_groups < 1 or c % num_groups:
            raise OptionError(f"{c} channels do not divide into num_groups={num_groups}")
        maps = upsampled_output((height, width), (w_shape[2], w_shape[3]), upsample, crop)
        return (n, w_shape[1] * num_groups, *maps), {"stride": upsample, "pad": crop}


def check_biases(b: Array | None, k: int) -> None:
    """ShapeError unless `b` is None or (k,)."""
    if b is not None and tuple(b.shape) != (k,):
        raise ShapeError(f"biases have shape {tuple(b.shape)}, expected ({k},): one per output channel")
