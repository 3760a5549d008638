"""Sums, concatenation, and the reverse of broadcasting."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from ...errors import OptionError, ShapeError
from .checks import Array, one_dtype


class Elementwise:
    """Reference kernels of the blocks that join branches."""

    xp: Any
    relu: Any

    def sum(self, xs: Sequence[Array], *, relu: float | None = None, out: Array | None = None) -> Array:
        """The sum of arrays of one shape and type, rectified last if `relu` is the leak of a ReLU.

        Without `relu` the sum of a single array is that array itself. `out` is where to put the result: the
        first array, or one apart from all others; None: a new one.
        Raises ShapeError or DTypeError where they differ. MatConvNet's dagnn.Sum.

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> kernels.sum([np.ones(2), np.ones(2), np.ones(2)])
        array([3., 3.])
        """
        check_sum(xs)
        if len(xs) == 1:
            total = xs[0]
        else:
            total = self.xp.asarray(xs[0] + xs[1]) if out is None else self.xp.add(xs[0], xs[1], out=out)
            for x in xs[2:]:
                total += x
        return total if relu is None else self.relu(total, relu, out=out)

    def concat(self, xs: Sequence[Array], axis: int, *, out: Array | None = None) -> Array:
        """Join arrays one after the other along `axis`, 0 to 3 for (N, C, H, W).

        `out` is where to put the result; parts of it may be among xs already, in their places. None: a new
        array. Raises ShapeError where the other axes differ, DTypeError where the types do, OptionError where
        there is no such axis. MatConvNet's vl_nnconcat along dimension 1, 2, 3, 4 is axis 2, 3, 1, 0.

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> kernels.concat([np.ones((2, 3, 4, 4)), np.ones((2, 5, 4, 4))], axis=1).shape
        (2, 8, 4, 4)
        """
        check_concat(xs, axis)
        if out is None:
            return self.xp.concatenate(xs, axis=axis)
        start = 0
        for x in xs:
            stop = start + x.shape[axis]
            out[(slice(None),) * axis + (slice(start, stop),)] = x
            start = stop
        return out

    def sum_to(self, x: Array, shape: Sequence[int]) -> Array:
        """Undo broadcasting: x summed over the axes along which an array of `shape` was stretched.

        It is the derivative of broadcasting from `shape` to x's. Raises ShapeError where `shape` does
        not broadcast to x's.

        >>> import numpy as np
        >>> from dagnn.backends import numpy as kernels
        >>> kernels.sum_to(np.ones((2, 3, 4, 4)), (3, 1, 1)).ravel()
        array([32., 32., 32.])
        """
        if tuple(shape) == tuple(x.shape):
            return x
        check_broadcast("an array", shape, x.shape)
        extra = x.ndim - len(shape)
        stretched = [k for k, n in enumerate(shape, extra) if n != x.shape[k]]
        return x.sum(axis=(*range(extra), *stretched), keepdims=True).reshape(shape)


def check_broadcast(what: str, shape: Sequence[int], to: Sequence[int]) -> None:
    """ShapeError unless an array of `shape` broadcasts to an array of shape `to`.

    >>> check_broadcast("x0", (2, 3, 1, 1), (2, 4, 5, 5))
    Traceback (most recent call last):
        ...
    dagnn.errors.ShapeError: x0 of shape (2, 3, 1, 1) does not broadcast to (2, 4, 5, 5)
    """
    pairs = zip(reversed(shape), reversed(to), strict=False)
    if len(shape) > len(to) or any(k not in (1, n) for k, n in pairs):
        raise ShapeError(f"{what} of shape {tuple(shape)} does not broadcast to {tuple(to)}")


def check_sum(xs: Sequence[Array]) -> None:
    """ShapeError or DTypeError unless there are arrays, of one shape and floating type."""
    if not xs:
        raise ShapeError("sum needs at least one array")
    if len({tuple(x.shape) for x in xs}) > 1:
        raise ShapeError(f"sum needs equal shapes, got {_shapes(xs)}")
    one_dtype(**{f"input {k}": x for k, x in enumerate(xs)})


def check_concat(xs: Sequence[Array], axis: int) -> None:
    """The error that says why arrays can't be joined along `axis`, if they can't."""
    if not xs:
        raise ShapeError("concat needs at least one array")
    if not 0 <= axis < xs[0].ndim:
        raise OptionError(f"axis must be 0 to {xs[0].ndim - 1}. Received: {axis!r}")
    if len({(*x.shape[:axis], None, *x.shape[axis + 1 :]) for x in xs}) > 1:
        raise ShapeError(f"concat along axis {axis} needs shapes equal elsewhere, got {_shapes(xs)}")
    one_dtype(**{f"input {k}": x for k, x in enumerate(xs)})


def _shapes(xs: Sequence[Array]) -> str:
    return ", ".join(str(tuple(x.shape)) for x in xs)
