"""Losses and distances: one pass over the scores of each pixel, without a copy in either order of memory."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np

from ..reference import losses as reference
from ..reference.checks import Array, one_dtype, same_shape
from ..reference.losses import ATTRIBUTE, CATEGORICAL, check_top_k, divisor, scalar
from .layout import channels_last, dense, split, strides
from .modules import MOST_BLOCKS, THREADS, Kernels

KINDS = CATEGORICAL + ATTRIBUTE  # numbered as in kernels/losses.cu
TYPES = ("uint8", "int8", "uint16", "int16", "uint32", "int32", "uint64", "int64") + (
    "float16", "bfloat16", "float32", "float64",
)  # fmt: skip
MOST_PARTS = 1024  # blocks whose sums a last one adds up


class Losses(reference.Losses):
    """Kernels of losses.cu.

    `loss` asks the device once whether all labels can be; so does `loss_dzdx`, unless they are those of
    the last `loss`. While a CUDA graph is captured nobody asks: then, and when it is replayed, the loss of
    a label that cannot be is nan, as is its derivative.
    """

    _kernels: Kernels
    _capturing: Any
    _checked: tuple[Any, ...] | None = None

    def loss(
        self, x, labels, weights=None, *, kind="softmaxlog", top_k=5, threshold=0.0, normalise=True
    ):  # fmt: skip
        if kind == "topkerror":
            check_top_k(top_k)
        c, given = self._scores(x, labels, weights, kind)
        option = {"topkerror": top_k, "classerror": 1}.get(kind, threshold)
        wrong, parts = self._flag(), self._parts(given.threads)
        name = "categorical" if kind in CATEGORICAL else "attributes"
        self._launch(name, x.dtype, parts.size, *given.args, float(option), parts, wrong)
        y = self._finish(parts, x.dtype, divisor(x, normalise))
        self._check(wrong, c, x, kind)
        return y

    def loss_dzdx(
        self, dzdy, x, labels, weights=None, *, kind="softmaxlog", top_k=5, threshold=0.0, normalise=True
    ):  # fmt: skip
        c, given = self._scores(x, labels, weights, kind)
        wrong = None if self._checked == _identity(c, x, kind) else self._flag()
        dzdx = self.xp.empty_like(given.x)
        name = "categorical_dzdx" if kind in CATEGORICAL else "attributes_dzdx"
        seed = *_seed(dzdy, x), float(divisor(x, normalise))
        self._launch(name, x.dtype, given.blocks, *given.args, *seed, dzdx, wrong)
        self._check(wrong, c, x, kind)
        return dzdx

    def check_labels(self, x, labels, *, kind="softmaxlog"):
        c, _ = self._label_map(x, labels, kind)
        if (wrong := self._flag()) is not None:
            c = self.xp.ascontiguousarray(c)
            args = c.size, c, _type_of(c), x.shape[1], int(kind in ATTRIBUTE), wrong
            self._launch("wrong_labels", np.float32, min(_blocks(c.size), MOST_BLOCKS), *args)
            self._check(wrong, c, x, kind)

    def smooth_l1(self, x, x0, weights=None, *, sigma=1.0):
        args, bend = self._differences(x, x0, weights, sigma)
        parts = self._parts(x.size)
        self._launch("smooth_l1", x.dtype, parts.size, x.size, *args, bend, parts)
        return self._finish(parts, x.dtype, 1)

    def smooth_l1_dzdx(self, dzdy, x, x0, weights=None, *, sigma=1.0):
        args, bend = self._differences(x, x0, weights, sigma)
        dzdx = self.xp.empty_like(args[0])
        self._kernels.each("losses", "smooth_l1_dzdx", x.dtype, x.size, *args, bend, *_seed(dzdy, x), dzdx)
        return dzdx

    def pdist(self, x, x0, weights=None, *, p=2.0, no_root=False, epsilon=1e-6, aggregate=False):
        given = self._distances(x, x0, weights, p, no_root)
        n, _, h, w = x.shape
        y = self.xp.empty((n, 1, h, w), x.dtype)
        self._launch("pdist", x.dtype, given.blocks, *given.args, y)
        if not aggregate:
            return y
        parts = self._parts(y.size)
        self._launch("total", y.dtype, parts.size, y.size, y, parts)
        return self._finish(parts, y.dtype, 1)

    def pdist_dzdx(
        self, dzdy, x, x0, weights=None, *, p=2.0, no_root=False, epsilon=1e-6, aggregate=False
    ):  # fmt: skip
        given = self._distances(x, x0, weights, p, no_root)
        if aggregate:
            seed, factor = _seed(dzdy, x)
        else:
            one_dtype(x=x, dzdy=dzdy)
            same_shape("dzdy", dzdy, (x.shape[0], 1, *x.shape[2:]))
            seed, factor = self.xp.ascontiguousarray(dzdy), 0.0
        dzdx = self.xp.empty_like(given.x)
        tail = float(epsilon), seed, int(not aggregate), factor, dzdx
        self._launch("pdist_dzdx", x.dtype, given.blocks, *given.args, *tail)
        return dzdx

    def _weights(self, weights, shape, dtype):
        return None if weights is None else super()._weights(weights, shape, dtype)

    def _scores(self, x: Array, labels: Array, weights: Array | None, kind: str) -> tuple[Array, _Given]:
        """The label map, and what kernels of losses begin with."""
        c, shape = self._label_map(x, labels, kind)
        mass = self._weights(weights, shape, x.dtype)
        more = [c, _type_of(c), *strides(c), mass, *_broadcast(mass)]
        given = _given(self.xp, x, more, share=kind in CATEGORICAL)
        given.args.append(KINDS.index(kind))
        return c, given

    def _distances(self, x: Array, x0: Array, weights: Array | None, p: float, no_root: bool) -> _Given:
        """What kernels of distances begin with."""
        weights = self._check_pdist(x, x0, weights, p)
        given = _given(self.xp, x, [x0, *strides(x0), weights, *_broadcast(weights)], share=True)
        given.args.extend([float(p), 1.0 if no_root else 1 / float(p)])
        return given

    def _differences(
        self, x: Array, x0: Array, weights: Array | None, sigma: float
    ) -> tuple[list[Array | None], float]:
        """x, x0 and weights, in one order of memory."""
        weights, bend = self._check_smooth_l1(x, x0, weights, sigma)
        if weights is not None:
            weights = self.xp.broadcast_to(weights, x.shape)
        last = x.ndim == 4 and channels_last(x)
        return [None if a is None else dense(self.xp, a, last) for a in (x, x0, weights)], bend

    def _launch(self, name: str, dtype: Any, blocks: int, *args: Any) -> None:
        if blocks:
            self._kernels.blocks("losses", name, dtype, (blocks,), (THREADS,), *args)

    def _parts(self, threads: int) -> Array:
        """Where blocks put their sums."""
        return self.xp.empty(max(1, min(_blocks(threads), MOST_PARTS)), np.float64)

    def _finish(self, parts: Array, dtype: Any, divisor: int) -> Array:
        y = self.xp.empty((), dtype)
        self._launch("finish", dtype, 1, parts.size, parts, float(divisor), y)
        return y

    def _flag(self) -> Array | None:
        """A zero that kernels set where a label cannot be; None while nobody can read it."""
        return None if self._capturing() else self.xp.zeros(1, np.int32)

    def _check(self, wrong: Array | None, c: Array, x: Array, kind: str) -> None:
        if wrong is None:
            return
        if wrong.item():
            self._check_labels(c, x.shape[1], kind in ATTRIBUTE)
        self._checked = _identity(c, x, kind)


def _type_of(labels: Array) -> int:
    name = "uint8" if labels.dtype.kind == "b" else labels.dtype.name
    return TYPES.index(name)


def _identity(c: Array, x: Array, kind: str) -> tuple[Any, ...]:
    """What tells labels from others without looking at them, for as long as nobody writes into them."""
    return c.data.ptr, c.shape, c.strides, c.dtype, x.shape[1], kind in ATTRIBUTE


class _Given(NamedTuple):
    """What kernels are given of maps and of arrays that broadcast to them; x is dense."""

    x: Array
    args: list[Any]
    threads: int

    @property
    def blocks(self) -> int:
        return min(_blocks(self.threads), MOST_BLOCKS)


def _given(xp: Any, x: Array, more: list[Any], share: bool) -> _Given:
    """For one thread per number of x, or where channels are shared (`share`) one or a warp per pixel."""
    n, channels, h, w = x.shape
    x = dense(xp, x)
    step, stride = split(x.shape, channels_last(x))
    args = [x, channels, h * w, w, step, stride, *more]
    if not share:
        return _Given(x, [x.size, *args], x.size)
    pixels, lanes = n * h * w, sharing(channels, n * h * w, stride == 1)
    return _Given(x, [pixels, *args, lanes], pixels * lanes)


def sharing(channels: int, pixels: int, last: bool) -> int:
    """How many threads share the channels of a pixel: a warp, where they are many and lie side by side, or
    where the pixels are few."""
    return 32 if channels >= 32 and (last or pixels < 1 << 14) else 1


def _blocks(threads: int) -> int:
    return -(-threads // THREADS)


def _broadcast(weights: Array | None) -> list[int]:
    return [0] * 4 if weights is None else strides(weights)


def _seed(dzdy: Array | float, x: Array) -> tuple[Array | None, float]:
    """The one number in dzdy for a kernel, which reads it from the device or is told it."""
    number = scalar(dzdy, x)
    return (None, number) if isinstance(number, float) else (number, 0.0)
