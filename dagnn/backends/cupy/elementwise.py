"""Activations, softmax, dropout, sums and concatenation on a CUDA device: each is one pass over memory."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

from ...errors import ShapeError
from ..reference import activation, elementwise
from ..reference.activation import check_rate
from ..reference.checks import Array, one_dtype, same_shape
from ..reference.elementwise import check_concat, check_sum
from .layout import LAST, channels_last, dense, empty_maps, split
from .modules import reciprocal

TERMS = 8  # of the kernel of sums
MANY = 32
"""From so many channels that lie side by side on a pixel's softmax is the work of a warp or block."""


class Activation(activation.Activation):
    """Results are in the same order of memory as what they are made from."""

    _kernels: Any

    def relu(self, x, leak=0.0, *, out=None):
        one_dtype(x=x)
        return self._one_by_one("relu", x, alpha=(float(leak),), out=out)

    def relu_dzdx(self, dzdy, y, leak=0.0, *, out=None):
        return self._derivative("relu_dzdx", dzdy, y, float(leak), out=out)

    def sigmoid(self, x, *, out=None):
        one_dtype(x=x)
        return self._one_by_one("sigmoid", x, out=out)

    def sigmoid_dzdx(self, dzdy, y):
        return self._derivative("sigmoid_dzdx", dzdy, y)

    def tanh(self, x, *, out=None):
        one_dtype(x=x)
        return self._one_by_one("tanhs", x, out=out)

    def tanh_dzdx(self, dzdy, y):
        return self._derivative("tanh_dzdx", dzdy, y)

    def softmax(self, x):
        one_dtype(x=x)
        if x.ndim < 2 or x.shape[1] == 0:
            raise ShapeError(f"softmax needs channels on axis 1, got shape {tuple(x.shape)}")
        return self._per_pixel("softmax", x)

    def softmax_dzdx(self, dzdy, y):
        one_dtype(dzdy=dzdy, y=y)
        same_shape("dzdy", dzdy, y.shape)
        return self._per_pixel("softmax_dzdx", y, dzdy)

    def dropout_mask(self, rng, shape, rate, dtype):
        check_rate(rate)
        mask = self.xp.empty(tuple(shape), dtype)
        return rng.fill("dropout_mask", mask, float(rate), 1 / (1 - float(rate)))

    def _derivative(self, name: str, dzdy: Array, y: Array, *alpha: float, out: Array | None = None) -> Array:
        one_dtype(dzdy=dzdy, y=y)
        same_shape("dzdy", dzdy, y.shape)
        return self._one_by_one(name, dzdy, y, alpha=alpha, out=out)

    def _one_by_one(
        self, name: str, *xs: Array, alpha: tuple[float, ...] = (), out: Array | None = None
    ) -> Array:
        """What a kernel makes of each element of arrays of one shape."""
        given, last = in_one_order(self.xp, xs)
        y = place_for(self.xp, given[0], last, out)
        self._kernels.each("elementwise", name, y.dtype, y.size, *given, y, *alpha, per=packed(y))
        return as_asked(y, out)

    def _per_pixel(self, name: str, y: Array, dzdy: Array | None = None) -> Array:
        """What a kernel of softmax.cu makes of every pixel's channels."""
        xs, last = in_one_order(self.xp, [y] if dzdy is None else [dzdy, y])
        result = empty_maps(self.xp, y.shape, y.dtype, last)
        channels, pixels = y.shape[1], prod(y.shape[2:])
        pixel, step = split(y.shape, last)
        sizes = channels, pixels, reciprocal(pixels), pixel, step
        count = y.shape[0] * pixels
        if channels >= MANY and step == 1 and count:
            threads = min(256, -(-channels // 128) * 32)
            args = count, *xs, result, *sizes
            self._kernels.blocks(
                "softmax", f"{name}_of_many", y.dtype, (min(count, 1 << 20),), (threads,), *args
            )
        else:
            self._kernels.each("softmax", name, y.dtype, count, *xs, result, *sizes)
        return result


class Elementwise(elementwise.Elementwise):
    """The blocks that join branches."""

    _kernels: Any

    def sum(self, xs, *, relu=None, out=None):
        check_sum(xs)
        if len(xs) == 1:
            return xs[0] if relu is None else self.relu(xs[0], relu, out=out)
        xs, last = in_one_order(self.xp, xs)
        y = place_for(self.xp, xs[0], last, out)
        terms, rest = xs[:TERMS], xs[TERMS:]
        while terms:
            leak = -1.0 if rest or relu is None else float(relu)
            terms = [*terms, *[None] * (TERMS - len(terms))]
            self._kernels.each("elementwise", "sum", y.dtype, y.size, *terms, y, leak, per=packed(y))
            terms, rest = [y, *rest[: TERMS - 1]] if rest else [], rest[TERMS - 1 :]
        return as_asked(y, out)

    def concat(self, xs, axis, *, out=None):
        check_concat(xs, axis)
        first = xs[0] if out is None else out
        last = first.ndim == 4 and channels_last(first)
        if out is None:
            shape = list(first.shape)
            shape[axis] = sum(x.shape[axis] for x in xs)
            out = empty_maps(self.xp, shape, first.dtype, last)
        elif not (last or out.flags.c_contiguous) or out.dtype != xs[0].dtype:
            return super().concat(xs, axis, out=out)
        start, order = 0, LAST if last else tuple(range(out.ndim))
        axis, memory = order.index(axis), out.transpose(order)
        for x in xs:
            x = dense(self.xp, x, last).transpose(order)
            place = memory[(slice(None),) * axis + (slice(start, start + x.shape[axis]),)]
            if x.data.ptr != place.data.ptr or x.strides != place.strides:
                self._place(x, place, prod(x.shape[axis:]), prod(memory.shape[axis:]))
            start += x.shape[axis]
        return out

    def _place(self, x: Array, place: Array, row: int, pitch: int) -> None:
        """Copy x, of rows one after the other, to where a row begins every `pitch` elements."""
        ends = x.data.ptr | place.data.ptr | row * x.itemsize | pitch * x.itemsize
        unit = min(ends & -ends, 16)
        row, pitch = row * x.itemsize // unit, pitch * x.itemsize // unit
        args = x, place, row, reciprocal(row), pitch, unit
        self._kernels.each("elementwise", "place", x.dtype, x.nbytes // unit, *args)


def in_one_order(xp: Any, xs: Sequence[Array]) -> tuple[list[Array], bool]:
    """Arrays of one shape as dense memory in the first one's order, and whether that has channels last."""
    last = xs[0].ndim == 4 and channels_last(xs[0])
    return [dense(xp, x, last) for x in xs], last


def place_for(xp: Any, x: Array, last: bool, out: Array | None) -> Array:
    """Where a kernel writes its result of x's shape: `out`, if it is in that order, or else a new array."""
    if out is not None and out.dtype == x.dtype and (out.transpose(LAST) if last else out).flags.c_contiguous:
        return out
    return empty_maps(xp, x.shape, x.dtype, last)


def as_asked(y: Array, out: Array | None) -> Array:
    """The result where it was asked for."""
    if out is None or out is y:
        return y
    out[...] = y
    return out


def packed(a: Array) -> int:
    """How many elements a thread does at once: 16 bytes of them."""
    return 16 // a.itemsize
