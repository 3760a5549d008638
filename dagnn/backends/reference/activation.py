"""Activation functions, softmax and dropout masks (MatConvNet manual, sections 4.4 and 4.6.4)."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from ...errors import OptionError, ShapeError
from .checks import Array, one_dtype, same_shape


class Activation:
    """Reference kernels: every one is a few passes over whole arrays.

    The derivatives need the output y only, never the input. `out`, where a kernel takes it, is where to put
    the result: the first argument itself, or an array of its shape apart from all others; None: a new one.
    """

    xp: Any

    def relu(self, x: Array, leak: float = 0.0, *, out: Array | None = None) -> Array:
        """Rectified linear unit: y = max(x, 0) + leak min(x, 0).

        x may have any shape; `leak` is at least 0. Without a leak NaN becomes 0, as in MatConvNet.
        Raises DTypeError where x is not floating. MatConvNet manual, section 4.4; vl_nnrelu.

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> kernels.relu(np.array([-2.0, 0.0, 3.0]), leak=0.1)
        array([-0.2,  0. ,  3. ])
        """
        one_dtype(x=x)
        if leak == 0:
            return self.xp.fmax(x, 0, out=out)
        leaked = x * float(leak)
        larger = self.xp.maximum if leak <= 1 else self.xp.minimum
        return larger(x, leaked, out=leaked if out is None else out)

    def relu_dzdx(self, dzdy: Array, y: Array, leak: float = 0.0, *, out: Array | None = None) -> Array:
        """The derivative of `relu` from its output: dzdy where y > 0, leak dzdy elsewhere.

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> kernels.relu_dzdx(np.ones(3), np.array([0.0, 0.0, 3.0]))
        array([0., 0., 1.])
        """
        one_dtype(dzdy=dzdy, y=y)
        same_shape("dzdy", dzdy, y.shape)
        if leak == 0:
            return self.xp.multiply(dzdy, y > 0, out=out)
        slope = (y > 0).astype(y.dtype)
        slope *= 1 - float(leak)
        slope += float(leak)
        return self.xp.multiply(slope, dzdy, out=slope if out is None else out)

    def sigmoid(self, x: Array, *, out: Array | None = None) -> Array:
        """Logistic sigmoid: y = 1 / (1 + exp(-x)), accurate for small y too.

        x may have any shape. Raises DTypeError where x is not floating.
        MatConvNet manual, section 4.4; vl_nnsigmoid.

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> kernels.sigmoid(np.array([-1000.0, 0.0, 1000.0]))
        array([0. , 0.5, 1. ])
        """
        one_dtype(x=x)
        y = self.xp.negative(x, out=out)
        with np.errstate(over="ignore"):  # exp(-x) = inf is the right way to y = 0
            self.xp.exp(y, out=y)
        y += 1
        return self.xp.reciprocal(y, out=y)

    def sigmoid_dzdx(self, dzdy: Array, y: Array) -> Array:
        """The derivative of `sigmoid` from its output: dzdy y (1 - y).

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> kernels.sigmoid_dzdx(np.ones(1), np.array([0.5]))
        array([0.25])
        """
        one_dtype(dzdy=dzdy, y=y)
        same_shape("dzdy", dzdy, y.shape)
        dzdx = 1 - y
        dzdx *= y
        dzdx *= dzdy
        return dzdx

    def tanh(self, x: Array, *, out: Array | None = None) -> Array:
        """Hyperbolic tangent of x, of any shape. Raises DTypeError where x is not floating.

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> kernels.tanh(np.array([-1000.0, 0.0, 1000.0]))
        array([-1.,  0.,  1.])
        """
        one_dtype(x=x)
        return self.xp.tanh(x, out=out)

    def tanh_dzdx(self, dzdy: Array, y: Array) -> Array:
        """The derivative of `tanh` from its output: dzdy (1 - y^2).

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> kernels.tanh_dzdx(np.ones(1), np.array([0.5]))
        array([0.75])
        """
        one_dtype(dzdy=dzdy, y=y)
        same_shape("dzdy", dzdy, y.shape)
        dzdx = y * y
        self.xp.subtract(1, dzdx, out=dzdx)
        dzdx *= dzdy
        return dzdx

    def softmax(self, x: Array) -> Array:
        """Softmax across channels: y[n, c, i, j] = exp(x[n, c, i, j]) / sum over k of exp(x[n, k, i, j]).

        x is (N, C, H, W), or (N, C) or any other shape with the channels on axis 1. Scores of any size
        are safe: the largest of each pixel is subtracted first, which changes nothing else.
        Raises ShapeError or DTypeError. MatConvNet manual, section 4.6.4; vl_nnsoftmax.

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> kernels.softmax(np.array([[1000.0, 1000.0, 0.0, 1000.0, 1000.0]]))
        array([[0.25, 0.25, 0.  , 0.25, 0.25]])
        """
        one_dtype(x=x)
        if x.ndim < 2 or x.shape[1] == 0:
            raise ShapeError(f"softmax needs channels on axis 1, got shape {tuple(x.shape)}")
        y = x - x.max(axis=1, keepdims=True)
        self.xp.exp(y, out=y)
        y /= y.sum(axis=1, keepdims=True)
        return y

    def softmax_dzdx(self, dzdy: Array, y: Array) -> Array:
        """The derivative of `softmax` from its output: y (dzdy - sum over channels of y dzdy).

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> kernels.softmax_dzdx(np.array([[1.0, 0.0]]), np.array([[0.5, 0.5]]))
        array([[ 0.25, -0.25]])
        """
        one_dtype(dzdy=dzdy, y=y)
        same_shape("dzdy", dzdy, y.shape)
        dzdx = y * dzdy
        mean = dzdx.sum(axis=1, keepdims=True)
        self.xp.subtract(dzdy, mean, out=dzdx)
        dzdx *= y
        return dzdx

    def dropout_mask(self, rng: Any, shape: Sequence[int], rate: float, dtype: Any) -> Array:
        """A dropout mask: 0 with probability `rate`, else 1 / (1 - rate); the output is x mask.

        The mean of the mask is 1, so nothing is rescaled at test time. `rng` comes from the backend's
        `rng`. Raises OptionError unless 0 <= rate < 1. Srivastava et al., JMLR 15 (2014); vl_nndropout.

        >>> from dagnn.backends import numpy as kernels
        >>> mask = kernels.dropout_mask(kernels.backend.rng(0), (2, 3), 0.5, "float32")
        >>> mask.dtype, set(mask.ravel().tolist()) <= {0.0, 2.0}
        (dtype('float32'), True)
        """
        check_rate(rate)
        kept = rng.random(shape, dtype=self.xp.float32) >= rate
        return self.xp.multiply(kept, 1 / (1 - float(rate)), dtype=dtype)


def check_rate(rate: float) -> None:
    """OptionError unless `rate` is a probability of dropping out."""
    if not 0 <= rate < 1:
        raise OptionError(f"rate must be at least 0 and less than 1. Received: {rate!r}")
