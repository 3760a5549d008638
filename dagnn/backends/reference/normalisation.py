"""Normalisation across images, channels and pixels (MatConvNet manual, section 4.6)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...dtypes import is_half, rounded
from ...errors import OptionError, ShapeError
from ...geometry import Quad, pair, shape4
from .checks import Array, one_dtype, same_shape


class Normalisation:
    """Reference kernels of batch, local response, p-norm and spatial normalisation."""

    xp: Any
    avg_pool: Any
    avg_pool_dzdx: Any
    relu: Any

    def batch_norm(
        self,
        x: Array,
        multipliers: Array,
        biases: Array,
        *,
        epsilon: float = 1e-4,
        moments: Array | None = None,
        add: Array | None = None,
        relu: float | None = None,
    ) -> tuple[Array, Array]:
        """Give every channel zero mean and unit variance over the batch, then scale and shift it.

        Optionally add another map afterwards, and rectify.

        y[n, c, i, j] = multipliers[c] (x[n, c, i, j] - mean[c]) / sigma[c] + biases[c] with
        sigma[c] = sqrt(variance[c] + epsilon); the variance is the biased one.

        Parameters
        ----------
        x : (N, C, H, W).
        multipliers, biases : (C,), of the type of x, or float32 where x has 16 bits.
        epsilon : added to the variance. Note that the BatchNorm layer's default is 1e-5.
        moments : (C, 2) = [mean, sigma], used as they are (epsilon is not added again), or None to
            measure them on x.
        add : added to y before `relu`; it has the shape of x.
        relu : None, or the leak of a ReLU applied last (0 for a plain one).

        Returns (y, moments), the moments in the type of the multipliers. The variance is summed around
        the mean, so that no digits are lost where the mean is large; what has 16 bits is normalised in
        float32 and rounded once. Raises ShapeError or DTypeError.
        MatConvNet manual, section 4.6.2; vl_nnbnorm; Ioffe & Szegedy 2015 (arXiv:1502.03167).

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> x = np.array([[1.0], [3.0]])[:, :, None, None]
        >>> y, moments = kernels.batch_norm(x, np.ones(1), np.zeros(1), epsilon=0.0)
        >>> y.ravel(), moments
        (array([-1.,  1.]), array([[2., 1.]]))
        """
        xp = self.xp
        self._check_batch_norm(x, multipliers, biases, moments, add)
        if is_half(x.dtype):
            wide = [_widened(a) for a in (x, multipliers, biases, moments, add)]
            y, found = self.batch_norm(*wide[:3], epsilon=epsilon, moments=wide[3], add=wide[4], relu=relu)
            return rounded(y, x.dtype), rounded(found, multipliers.dtype)
        if moments is None:
            count = max(x.size // x.shape[1], 1)
            rough = (self._channel_sums(x) / count).astype(x.dtype)
            y = x - _column(rough)
            # What rounding took from the mean; tiny, but not always against sigma.
            rest = self._channel_sums(y) / count
            variance = self._channel_sums(y, y) / count - rest**2
            sigma = xp.sqrt(xp.maximum(variance, 0) + float(epsilon))
            moments = xp.stack([rough + rest, sigma], axis=1).astype(x.dtype)
        else:
            y = x - _column(moments[:, 0])
            rest, sigma = 0, moments[:, 1]
        scale = multipliers / sigma
        y *= _column(scale.astype(x.dtype))
        y += _column((biases - scale * rest).astype(x.dtype))
        if add is not None:
            y += add
        return y if relu is None else self.relu(y, relu), moments

    def batch_norm_ders(
        self, dzdy: Array, x: Array, multipliers: Array, moments: Array, *, given: bool = False
    ) -> tuple[Array, Array, Array]:
        """The derivatives of `batch_norm` for x, multipliers and biases.

        With u = (x - mean) / sigma and M values per channel, and sums over n, i, j:
        dzdb = sum dzdy, dzdg = sum u dzdy, dzdx = multipliers / sigma (dzdy - dzdb / M - u dzdg / M).

        `moments` are those that `batch_norm` returned. Where they were `given` to it they do not
        depend on x, y is linear in x, and dzdx = multipliers / sigma dzdy. MatConvNet uses the first
        formula then too, which is not the derivative of what it computed.

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> x, moments = np.zeros((1, 1, 1, 2)), np.array([[1.0, 2.0]])
        >>> kernels.batch_norm_ders(np.ones_like(x), x, np.full(1, 6.0), moments, given=True)
        (array([[[[3., 3.]]]]), array([-1.]), array([2.]))
        """
        self._check_batch_norm_ders(dzdy, x, multipliers, moments)
        if is_half(x.dtype):
            wide = (_widened(a) for a in (dzdy, x, multipliers, moments))
            dzdx, *ders = self.batch_norm_ders(*wide, given=given)
            return rounded(dzdx, x.dtype), *(rounded(der, multipliers.dtype) for der in ders)
        mean, sigma = moments[:, 0], moments[:, 1]
        count = max(x.size // x.shape[1], 1)
        centred = x - _column(mean)
        rest = 0 if given else self._channel_sums(centred) / count
        dzdb = self._channel_sums(dzdy)
        dzdg = (self._channel_sums(dzdy, centred) - rest * dzdb) / sigma
        scale = multipliers / sigma
        dzdx = dzdy * _column(scale)
        if not given:
            slope = -scale / sigma * dzdg / count
            shift = -scale * dzdb / count - slope * rest
            centred *= _column(slope.astype(x.dtype))
            dzdx += centred
            dzdx += _column(shift.astype(x.dtype))
        return dzdx, dzdg.astype(x.dtype), dzdb.astype(x.dtype)

    def lrn(self, x: Array, *, size: int, kappa: float, alpha: float, beta: float) -> Array:
        """Local response normalisation: divide by the energy of the neighbouring channels.

        y[n, c, i, j] = x[n, c, i, j] L[n, c, i, j]^-beta with
        L[n, c, i, j] = kappa + alpha times the sum of x[n, t, i, j]^2 over the channels t from
        c - floor((size - 1) / 2) to c + ceil((size - 1) / 2): an even `size` leans forward.

        x is (N, C, H, W). Raises ShapeError, DTypeError or OptionError.
        MatConvNet manual, section 4.6.1; vl_nnnormalize, whose param is [size kappa alpha beta].

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> x = np.ones((1, 4, 1, 1))
        >>> kernels.lrn(x, size=2, kappa=2.0, alpha=1.0, beta=1.0).ravel()
        array([0.25      , 0.25      , 0.25      , 0.33333333])
        """
        energy = self._channel_energy(x, size, kappa, alpha)
        return x * self._power(energy, -float(beta))

    def lrn_dzdx(self, dzdy: Array, x: Array, *, size: int, kappa: float, alpha: float, beta: float) -> Array:
        """The derivative of `lrn`.

        dzdx[c] = dzdy[c] L[c]^-beta - 2 alpha beta x[c] sum of dzdy[t] x[t] L[t]^(-beta - 1) over the
        channels t whose window holds c.

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> x = np.ones((1, 2, 1, 1))
        >>> kernels.lrn_dzdx(x, x, size=3, kappa=2.0, alpha=1.0, beta=1.0).ravel()
        array([0., 0.])
        """
        one_dtype(dzdy=dzdy, x=x)
        same_shape("dzdy", dzdy, x.shape)
        energy = self._channel_energy(x, size, kappa, alpha)
        dzdx = dzdy * self._power(energy, -float(beta))
        shared = dzdx * x
        shared /= energy
        shared = self._channel_windows(shared, size, backward=True)
        shared = shared * x
        shared *= 2 * float(alpha) * float(beta)
        dzdx -= shared
        return dzdx

    def normalize_lp(
        self,
        x: Array,
        *,
        p: float = 2.0,
        epsilon: float = 1e-2,
        axes: Sequence[int] = (1,),
        norms: Array | None = None,
    ) -> tuple[Array, Array]:
        """Divide by the p-norm over some axes: y = x / norms, norms = (sum of x^p + epsilon)^(1/p).

        Parameters
        ----------
        x : (N, C, H, W).
        p : any positive number. There is no absolute value: an odd p suits x >= 0 only, and where the
            sum is negative the result is NaN.
        axes : the axes summed over; (1,) normalises each pixel, (2, 3) each channel of each image.
        norms : used as they are in place of the formula, or None. They have the shape of x with 1 for
            each of `axes`.

        Returns (y, norms). Raises ShapeError, DTypeError or OptionError. MatConvNet's
        vl_nnnormalizelp, where dimensions 1, 2, 3, 4 are axes 2, 3, 1, 0.

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> x = np.array([3.0, 4.0]).reshape(1, 2, 1, 1)
        >>> y, norms = kernels.normalize_lp(x, epsilon=0.0)
        >>> y.ravel(), norms.ravel()
        (array([0.6, 0.8]), array([5.]))
        """
        axes = _check_lp(x, norms, p, axes)
        if norms is None:
            norms = (x ** float(p)).sum(axis=axes, keepdims=True)
            norms += float(epsilon)
            norms = norms ** (1 / float(p))
        return x / norms, norms

    def normalize_lp_dzdx(
        self, dzdy: Array, x: Array, norms: Array, *, p: float = 2.0, axes: Sequence[int] = (1,)
    ) -> Array:
        """The derivative of `normalize_lp`, through the norms (as in MatConvNet, even if they were given).

        dzdx = dzdy / norms - x^(p - 1) (sum over `axes` of dzdy x) / norms^(p + 1)

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> x = np.array([3.0, 4.0]).reshape(1, 2, 1, 1)
        >>> np.abs(kernels.normalize_lp_dzdx(x, x, np.full((1, 1, 1, 1), 5.0))).max() < 1e-15
        np.True_
        """
        axes = _check_lp(x, norms, p, axes)
        one_dtype(dzdy=dzdy, x=x)
        same_shape("dzdy", dzdy, x.shape)
        along = (dzdy * x).sum(axis=axes, keepdims=True)
        along /= norms ** (float(p) + 1)
        through_norms = x ** (float(p) - 1)
        through_norms *= along
        dzdx = dzdy / norms
        dzdx -= through_norms
        return dzdx

    def spatial_norm(self, x: Array, *, size: int | Sequence[int], alpha: float, beta: float) -> Array:
        """Divide by the energy of a channel around each pixel.

        y[n, c, i, j] = x[n, c, i, j] (1 + alpha m[n, c, i, j])^-beta, where m is the mean of x^2 over
        a window of `size` (height, width) around (i, j), of the pixels inside the image alone. Windows
        of even size reach one pixel further down and right.

        x is (N, C, H, W). Raises ShapeError, DTypeError or OptionError.
        MatConvNet manual, section 4.6.3; vl_nnspnorm, whose param is [height width alpha beta].

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> kernels.spatial_norm(np.ones((1, 1, 2, 2)), size=3, alpha=1.0, beta=1.0)[0, 0]
        array([[0.5, 0.5],
               [0.5, 0.5]])
        """
        energy = self._window_energy(x, size, alpha)
        return x * self._power(energy, -float(beta))

    def spatial_norm_dzdx(
        self, dzdy: Array, x: Array, *, size: int | Sequence[int], alpha: float, beta: float
    ) -> Array:
        """The derivative of `spatial_norm`: with L = 1 + alpha m,

        dzdx = dzdy L^-beta - 2 alpha beta x (the transpose of the windows' mean of dzdy x L^(-beta - 1)).

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> x = np.ones((1, 1, 1, 1))
        >>> kernels.spatial_norm_dzdx(x, x, size=1, alpha=1.0, beta=1.0)
        array([[[[0.]]]])
        """
        one_dtype(dzdy=dzdy, x=x)
        same_shape("dzdy", dzdy, x.shape)
        window, pad = _centred_window(size)
        energy = self._window_energy(x, size, alpha)
        dzdx = dzdy * self._power(energy, -float(beta))
        shared = dzdx * x
        shared /= energy
        shared = self.avg_pool_dzdx(shared, x.shape, window, stride=1, pad=pad) * x
        shared *= 2 * float(alpha) * float(beta)
        dzdx -= shared
        return dzdx

    def norm_offset(self, x: Array, *, alpha: float, beta: float) -> Array:
        """Subtract a power of each pixel's energy: y = x - alpha E^beta, E = max(sum over c of x^2, 1e-8).

        x is (N, C, H, W). Raises ShapeError or DTypeError. MatConvNet's vl_nnnoffset.

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> x = np.array([3.0, 4.0]).reshape(1, 2, 1, 1)
        >>> kernels.norm_offset(x, alpha=1.0, beta=0.5).ravel()
        array([-2., -1.])
        """
        energy = self._pixel_energy(x)
        return x - float(alpha) * energy ** float(beta)

    def norm_offset_dzdx(self, dzdy: Array, x: Array, *, alpha: float, beta: float) -> Array:
        """The derivative of `norm_offset`, as if E were not clamped (so does MatConvNet).

        dzdx = dzdy - 2 alpha beta x E^(beta - 1) sum over c of dzdy

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> x = np.array([3.0, 4.0]).reshape(1, 2, 1, 1)
        >>> kernels.norm_offset_dzdx(np.ones_like(x), x, alpha=1.0, beta=1.0).ravel()
        array([-11., -15.])
        """
        one_dtype(dzdy=dzdy, x=x)
        same_shape("dzdy", dzdy, x.shape)
        energy = self._pixel_energy(x)
        factor = energy ** (float(beta) - 1)
        factor *= dzdy.sum(axis=1, keepdims=True)
        factor *= -2 * float(alpha) * float(beta)
        dzdx = x * factor
        dzdx += dzdy
        return dzdx

    @staticmethod
    def _check_batch_norm(
        x: Array, multipliers: Array, biases: Array, moments: Array | None, add: Array | None
    ) -> None:
        _check_channels(x, multipliers=multipliers, biases=biases, moments=moments)
        if add is not None:
            one_dtype(x=x, add=add)
            same_shape("add", add, x.shape)

    @staticmethod
    def _check_batch_norm_ders(dzdy: Array, x: Array, multipliers: Array, moments: Array) -> None:
        _check_channels(x, multipliers=multipliers, moments=moments)
        one_dtype(dzdy=dzdy, x=x)
        same_shape("dzdy", dzdy, x.shape)

    def _channel_sums(self, x: Array, other: Array | None = None) -> Array:
        """Per channel, the sum of x, or of x times `other`: over an image in x's type, then in float64."""
        einsum = self.xp.einsum
        sums = einsum("nchw->nc", x) if other is None else einsum("nchw,nchw->nc", x, other)
        return sums.sum(axis=0, dtype=self.xp.float64)

    def _power(self, base: Array, exponent: float) -> Array:
        """base^exponent of positive numbers through logarithms, which is faster than `power`."""
        result = self.xp.log(base)
        result *= exponent
        return self.xp.exp(result, out=result)

    def _channel_energy(self, x: Array, size: int, kappa: float, alpha: float) -> Array:
        shape4("x", x.shape)
        one_dtype(x=x)
        energy = self._channel_windows(x * x, size)
        energy *= float(alpha)
        energy += float(kappa)
        return energy

    def _channel_windows(self, a: Array, size: int, backward: bool = False) -> Array:
        """Sums of a over the channels around each; `backward` mirrors the window, which transposes it.

        Where every window holds all channels, the one sum they share: (N, 1, H, W).
        """
        before, after = channel_window(size)
        if backward:
            before, after = after, before
        last = a.shape[1] - 1
        if min(before, after) >= last:
            return a.sum(axis=1, keepdims=True)
        sums = a.copy(order="K")
        for k in range(1, min(after, last) + 1):
            sums[:, :-k] += a[:, k:]
        for k in range(1, min(before, last) + 1):
            sums[:, k:] += a[:, :-k]
        return sums

    def _window_energy(self, x: Array, size: int | Sequence[int], alpha: float) -> Array:
        window, pad = _centred_window(size)
        one_dtype(x=x)
        energy = self.avg_pool(x * x, window, stride=1, pad=pad)
        energy *= float(alpha)
        energy += 1
        return energy

    def _pixel_energy(self, x: Array) -> Array:
        shape4("x", x.shape)
        one_dtype(x=x)
        return self.xp.maximum((x * x).sum(axis=1, keepdims=True), 1e-8)


def channel_window(size: int) -> tuple[int, int]:
    """How many channels before and after its own a window of `size` holds."""
    if not size >= 1 or size != int(size):
        raise OptionError(f"size must be a whole number of channels, at least 1. Received: {size!r}")
    return (int(size) - 1) // 2, int(size) // 2


def _column(values: Array) -> Array:
    """(C,) so that it broadcasts against (N, C, H, W)."""
    return values[:, None, None]


def _widened(a: Array | None) -> Array | None:
    """As float32."""
    return None if a is None else a.astype("float32")


def _check_channels(x: Array, **arrays: Array | None) -> None:
    channels = shape4("x", x.shape)[1]
    if not is_half(x.dtype) or any(a.dtype != "float32" for a in arrays.values() if a is not None):
        one_dtype(x=x, **arrays)
    for name, array in arrays.items():
        expected = (channels, 2) if name == "moments" else (channels,)
        if array is not None and tuple(array.shape) != expected:
            raise ShapeError(
                f"x has {channels} channels, so {name} must be {expected}, got shape {tuple(array.shape)}"
            )


def _check_lp(x: Array, norms: Array | None, p: float, axes: Sequence[int]) -> tuple[int, ...]:
    shape4("x", x.shape)
    one_dtype(x=x, norms=norms)
    if not p > 0:
        raise OptionError(f"p must be positive. Received: {p!r}")
    axes = tuple(axes)
    if not axes or len(set(axes)) < len(axes) or not set(axes) <= {0, 1, 2, 3}:
        raise OptionError(f"axes takes different numbers from 0 to 3. Received: {axes}")
    if norms is not None:
        same_shape("norms", norms, tuple(1 if k in axes else n for k, n in enumerate(x.shape)))
    return axes


def _centred_window(size: int | Sequence[int]) -> tuple[tuple[int, int], Quad]:
    """The window and the padding that keeps it centred, or half a pixel down and right of the centre."""
    h, w = pair("size", size)
    return (h, w), ((h - 1) // 2, h // 2, (w - 1) // 2, w // 2)
