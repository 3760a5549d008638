"""Activations, sums and concatenation: each is one pass over memory, in pieces on threads."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from math import prod
from typing import Any

import numpy as np

from ...errors import ShapeError
from ..reference import activation, elementwise
from ..reference.activation import check_rate
from ..reference.checks import Array, one_dtype, same_shape
from ..reference.elementwise import check_concat, check_sum
from . import memory
from .passes import in_pieces, like
from .rows import as_rows
from .threads import each
from .tiles import channels_last, channels_second

SMALL = 1 << 15
"""Up to so many elements the reference kernel's few calls are the quicker way."""
INLINE = 1 << 17
"""Up to so many elements a pass is over before another thread would be at work."""
ZEROS = 1 << 17


class Elementwise(activation.Activation, elementwise.Elementwise):
    """The reference's formulas, step by step on pieces that stay in cache."""

    def relu(self, x, leak=0.0, *, out=None):
        if x.size <= SMALL:
            return super().relu(x, leak, out=out)
        one_dtype(x=x)
        y = like(x) if out is None else out
        _pass(lambda x, y: rectify(x, leak, y), x, y)
        return y

    def relu_dzdx(self, dzdy, y, leak=0.0, *, out=None):
        if y.size <= SMALL:
            return super().relu_dzdx(dzdy, y, leak, out=out)
        one_dtype(dzdy=dzdy, y=y)
        same_shape("dzdy", dzdy, y.shape)
        dzdx = like(y) if out is None else out

        def work(dzdy, y, dzdx):
            if leak == 0:
                np.multiply(dzdy, y > 0, out=dzdx)
            else:
                slope = memory.empty(y.shape, y.dtype) if out is not None else dzdx
                np.copyto(slope, y > 0)
                np.multiply(slope, 1 - float(leak), out=slope)
                np.add(slope, float(leak), out=slope)
                np.multiply(slope, dzdy, out=dzdx)

        _pass(work, dzdy, y, dzdx)
        return dzdx

    def sigmoid(self, x, *, out=None):
        if x.size <= SMALL:
            return super().sigmoid(x, out=out)
        one_dtype(x=x)
        y = like(x) if out is None else out

        def work(x, y):
            np.negative(x, out=y)
            with np.errstate(over="ignore"):  # which holds for this thread alone
                np.exp(y, out=y)
            np.add(y, 1, out=y)
            np.divide(1, y, out=y)  # twice as fast as `reciprocal`

        _pass(work, x, y)
        return y

    def sigmoid_dzdx(self, dzdy, y):
        if y.size <= SMALL:
            return super().sigmoid_dzdx(dzdy, y)
        one_dtype(dzdy=dzdy, y=y)
        same_shape("dzdy", dzdy, y.shape)
        dzdx = like(y)

        def work(dzdy, y, dzdx):
            np.subtract(1, y, out=dzdx)
            np.multiply(dzdx, y, out=dzdx)
            np.multiply(dzdx, dzdy, out=dzdx)

        _pass(work, dzdy, y, dzdx)
        return dzdx

    def tanh(self, x, *, out=None):
        if x.size <= SMALL:
            return super().tanh(x, out=out)
        one_dtype(x=x)
        y = like(x) if out is None else out
        _pass(lambda x, y: np.tanh(x, out=y), x, y)
        return y

    def tanh_dzdx(self, dzdy, y):
        if y.size <= SMALL:
            return super().tanh_dzdx(dzdy, y)
        one_dtype(dzdy=dzdy, y=y)
        same_shape("dzdy", dzdy, y.shape)
        dzdx = like(y)

        def work(dzdy, y, dzdx):
            np.multiply(y, y, out=dzdx)
            np.subtract(1, dzdx, out=dzdx)
            np.multiply(dzdx, dzdy, out=dzdx)

        _pass(work, dzdy, y, dzdx)
        return dzdx

    def softmax(self, x):
        if x.size <= SMALL or x.ndim not in (2, 4):
            return super().softmax(x)
        one_dtype(x=x)
        if x.shape[1] == 0:
            raise ShapeError(f"softmax needs channels on axis 1, got shape {tuple(x.shape)}")
        y = like(x)

        def work(x, y):
            np.subtract(x, x.max(axis=1, keepdims=True), out=y)
            np.exp(y, out=y)
            np.divide(y, _channel_sum(y), out=y)

        _by_pixels(work, x, y)
        return y

    def softmax_dzdx(self, dzdy, y):
        if y.size <= SMALL or y.ndim not in (2, 4):
            return super().softmax_dzdx(dzdy, y)
        one_dtype(dzdy=dzdy, y=y)
        same_shape("dzdy", dzdy, y.shape)
        dzdx = like(y)

        def work(dzdy, y, dzdx):
            np.multiply(y, dzdy, out=dzdx)
            np.subtract(dzdy, _channel_sum(dzdx), out=dzdx)
            np.multiply(dzdx, y, out=dzdx)

        _by_pixels(work, dzdy, y, dzdx)
        return dzdx

    def dropout_mask(self, rng, shape, rate, dtype):
        check_rate(rate)
        drawn = rng.random(dtype=np.float32, out=memory.empty(shape, np.float32))
        mask = memory.empty(shape, dtype)
        kept = 1 / (1 - float(rate))
        _pass(lambda drawn, mask: np.multiply(drawn >= rate, kept, out=mask, dtype=dtype), drawn, mask)
        return mask

    def sum(self, xs, *, relu=None, out=None):
        check_sum(xs)
        if len(xs) == 1 or xs[0].size <= SMALL:
            return super().sum(xs, relu=relu, out=out)
        total = like(xs[0]) if out is None else out

        def work(total, x, y, *others):
            np.add(x, y, out=total)
            for other in others:
                np.add(total, other, out=total)
            rectify(total, relu, total)

        _pass(work, total, *xs)
        return total

    def concat(self, xs, axis, *, out=None):
        if out is None and max((x.size for x in xs), default=0) <= SMALL:
            return super().concat(xs, axis)
        check_concat(xs, axis)
        y = _joined(xs, axis) if out is None else out
        start = 0
        for x in xs:
            stop = start + x.shape[axis]
            part = y[(slice(None),) * axis + (slice(start, stop),)]
            if part.ctypes.data != x.ctypes.data or part.strides != x.strides:  # it isn't there already
                _pass(np.copyto, part, x)
            start = stop
        return y


def _joined(xs: Sequence[Array], axis: int) -> Array:
    """Memory for arrays joined along `axis`: channels-last if the first is."""
    shape = list(xs[0].shape)
    shape[axis] = sum(x.shape[axis] for x in xs)
    if len(shape) == 4 and channels_last(xs[0]).flags.c_contiguous:
        n, c, height, width = shape
        return channels_second(memory.empty((n, height, width, c), xs[0].dtype))
    return memory.empty(shape, xs[0].dtype)


def _pass(work: Callable[..., Any], *arrays: Array) -> None:
    """`in_pieces`, where that is worth it."""
    if arrays[0].size <= INLINE:
        work(*arrays)
    else:
        in_pieces(work, *arrays)


def _by_pixels(work: Callable[..., Any], *arrays: Array) -> None:
    """Call work(*pieces) for pieces of `arrays` of one shape with all of axis 1, the channels."""
    if arrays[0].ndim == 4 and all(channels_last(a).flags.c_contiguous for a in arrays):
        arrays = tuple(as_rows(a) for a in arrays)
    shape = arrays[0].shape
    if 0 in shape:
        return
    step = max(1, INLINE // prod(shape[1:]))
    rows = shape[2] if len(shape) == 4 else 1
    height = max(1, INLINE * rows // prod(shape[1:]))
    pieces = [
        np.s_[n : n + step, :, top : top + height][: len(shape)]
        for n in range(0, shape[0], step)
        for top in range(0, rows, height)
    ]
    each(lambda piece: work(*(a[piece] for a in arrays)), pieces)


def _channel_sum(x: Array) -> Array:
    """The sum over axis 1, which stays with length 1."""
    if x.ndim == 2 and x.dtype.char in "fd":
        return np.dot(x, np.ones(x.shape[1], x.dtype))[:, None]
    return x.sum(axis=1, keepdims=True)


def rectify(x: Array, leak: float | None, out: Array) -> None:
    """A ReLU of this leak of a piece, which may be `out` itself; None is no ReLU."""
    if leak is None:
        return
    if leak:
        larger = np.maximum if leak <= 1 else np.minimum
        larger(x, x * float(leak), out=out)
    else:
        np.fmax(x, _zeros(x.dtype, x.shape[-1]), out=out)


def _zeros(dtype: np.dtype, count: int) -> Array:
    """What `fmax` compares `count` numbers to: it is three times faster with zeros than with one zero."""
    return _most_zeros(dtype)[:count] if 512 <= count <= ZEROS else dtype.type(0)


@cache
def _most_zeros(dtype: np.dtype) -> Array:
    zeros = np.zeros(ZEROS, dtype)
    zeros.flags.writeable = False
    return zeros
