"""Convolutions on a CUDA device: cuDNN's where it is installed and can, patches and cuBLAS elsewhere."""

from __future__ import annotations

from functools import cached_property
from math import prod
from typing import Any

import numpy as np

from ...geometry import shape4
from ..reference import convolution as reference
from ..reference.checks import Array, one_dtype, same_shape
from ..reference.convolution import Sizes, check_biases, conv_sizes
from .dnn import ADD, ALIGNMENT, BIASES, Dnn, Problem, Rules, W, X, Y, find
from .layout import LAST, channels_last, dense, empty_maps, split
from .modules import Kernels
from .patches import Patches

CHANNELS_LAST = {"float64": False, "float32": False, "tf32": True, "float16": True, "bfloat16": True}
"""The order of memory in which cuDNN computes, by precision. Without tensor cores float32 has engines
without a workspace for channels first, 16 bits for channels last: leads, which no measurement has confirmed.
The option `channels_last` overrides them."""

BLOCK, PIECES = 256, 1024  # of the sums of channels: threads of a block, and pieces at most


class Convolution(reference.Convolution):
    """Maps come out in the order of memory in which their precision is computed, whatever they came in."""

    _kernels: Kernels
    _options: dict[str, Any]
    _capturing: Any
    asarray: Any
    evaluation: Any

    @cached_property
    def _dnn(self) -> Dnn | None:
        options = self._options
        rules = Rules(options["tf32"], options["deterministic"], options["workspace_limit"])
        with self.evaluation():  # a handle belongs to the device that is current when it is made
            return find(self.xp, rules, options["autotune"])

    @cached_property
    def _patches(self) -> Patches:
        return Patches(self.xp, self._kernels)

    @cached_property
    def _no_biases(self) -> dict[tuple[int, str], Array]:
        return {}

    def empty_maps(self, shape, dtype):
        with self.evaluation():
            return empty_maps(self.xp, shape, dtype, self._last(dtype))

    def parameter(self, value):
        value = self.asarray(value)
        with self.evaluation():
            return dense(self.xp, value, self._last(value.dtype)) if value.ndim == 4 else value

    def conv(
        self, x, w, b=None, *, stride=1, pad=0, dilate=1, add=None, relu=None, out=None, patches=None
    ):  # fmt: skip
        sizes = conv_sizes(x.shape, None if w is None else w.shape, stride, pad, dilate)
        self._check_conv(x, w, b, add, sizes, out)
        last, dense_out = self._last(x.dtype), out is not None and _is_dense(out, self._last(x.dtype))
        if out is not None and not out.size:
            return out
        x, w, add = (None if a is None else self._ready(a, last) for a in (x, w, add))
        part = w is not None and add is None and out is not None and not dense_out and _is_part(out, last)
        if part and not relu and self._fused(out, x, w, b, add, relu, sizes, last):
            return out
        y = out if dense_out else empty_maps(self.xp, sizes.output, x.dtype, last)
        if y.size:
            self._convolve(y, x, w, b, add, relu, sizes, last)
        if out is not None and not dense_out:
            out[...] = y
        return y if out is None else out

    def conv_dzdx(self, dzdy, w, x_shape, *, stride=1, pad=0, dilate=1):
        sizes = conv_sizes(x_shape, None if w is None else w.shape, stride, pad, dilate)
        one_dtype(dzdy=dzdy, w=w)
        same_shape("dzdy", dzdy, sizes.output)
        last = self._last(dzdy.dtype)
        dzdx = empty_maps(self.xp, x_shape, dzdy.dtype, last)
        if not dzdx.size:
            return dzdx
        dzdy = self._ready(dzdy, last)
        if w is not None:
            w = self._ready(w, last)
            if self._by_cudnn("dgrad", {X: dzdx, W: w, Y: dzdy}, sizes, last):
                return dzdx
        return self._patches.dzdx(dzdy, w, x_shape, sizes, last)

    def conv_dzdw(self, dzdy, x, w_shape, *, stride=1, pad=0, dilate=1, patches=()):
        sizes = conv_sizes(x.shape, w_shape, stride, pad, dilate)
        one_dtype(dzdy=dzdy, x=x)
        same_shape("dzdy", dzdy, sizes.output)
        last = self._last(x.dtype)
        if dzdy.size:
            dzdw = empty_maps(self.xp, w_shape, x.dtype, last)
            dzdy, x = self._ready(dzdy, last), self._ready(x, last)
            if self._by_cudnn("wgrad", {X: x, W: dzdw, Y: dzdy}, sizes, last):
                return dzdw
        return self._patches.dzdw(dzdy, x, w_shape, sizes, last)

    def conv_dzdb(self, dzdy):
        n, channels, height, width = shape4("dzdy", dzdy.shape)
        one_dtype(dzdy=dzdy)
        last, pixels, dzdb = channels_last(dzdy), height * width, self.xp.empty(channels, dzdy.dtype)
        dzdy = dense(self.xp, dzdy, last)
        by_pixel, by_channel = split(dzdy.shape, last)
        # Neighbouring threads add up neighbouring numbers: those of 32 channels, or of one.
        block = (32, BLOCK // 32) if last else (1, BLOCK)
        rows, blocks = n * pixels, max(1, -(-channels // block[0]))
        pieces = max(1, min(PIECES // blocks, -(-rows // (8 * block[1]))))
        sums = self.xp.empty((pieces, channels), np.float64)
        walk = (channels, rows, -(-rows // pieces), max(1, pixels), channels * pixels, by_channel, by_pixel)
        grid = (blocks, pieces)
        self._kernels.blocks("channels", "channel_sums", dzdy.dtype, grid, block, dzdy, sums, *walk)
        self._kernels.each("channels", "add_up", dzdy.dtype, channels, sums, dzdb, pieces)
        return dzdb

    def conv_transpose(self, x, w, b=None, *, upsample=1, crop=0, num_groups=1):
        shape, options = self._transposed(x.shape, w.shape, upsample, crop, num_groups)
        one_dtype(x=x, w=w, b=b)
        check_biases(b, shape[1])
        y = self.conv_dzdx(x, w, shape, **options)
        if b is not None:
            self._complete(y, b, None, None)
        return y

    # The reference has the exchange of roles, on these kernels.
    conv_transpose_dzdx = reference.Convolution.conv_transpose_dzdx
    conv_transpose_dzdw = reference.Convolution.conv_transpose_dzdw

    def _last(self, dtype: Any) -> bool:
        """Whether maps of this type are channels-last where convolutions have their way."""
        if self._options["channels_last"] is not None:
            return self._options["channels_last"]
        name = np.dtype(dtype).name
        return (
            self._dnn is None
            or CHANNELS_LAST["tf32" if name == "float32" and self._options["tf32"] else name]
        )

    def _ready(self, maps: Array, last: bool) -> Array:
        """Maps or filters as kernels and cuDNN take them: dense in this order, and aligned."""
        maps = dense(self.xp, maps, last)
        if not maps.data.ptr % ALIGNMENT:
            return maps
        aligned = empty_maps(self.xp, maps.shape, maps.dtype, last)
        aligned[...] = maps
        return aligned

    def _convolve(self, y, x, w, b, add, relu, sizes, last):
        """Write a convolution to y, which is dense, and what follows."""
        if w is not None and self._fused(y, x, w, b, add, relu, sizes, last):
            b = add = None
            relu = relu or None
        elif w is None or not self._by_cudnn("fprop", {X: x, W: w, Y: y}, sizes, last):
            self._patches.conv(y, x, w, sizes)
        if b is not None or add is not None or relu is not None:
            self._complete(y, b, add, relu)

    def _fused(self, y, x, w, b, add, relu, sizes, last):
        """Whether cuDNN wrote a convolution to y, with all that follows but a leaky ReLU."""
        arrays = {X: x, W: w, Y: y}
        if b is not None or add is not None or relu == 0:
            arrays[BIASES] = self._zeros(y.shape[1], y.dtype) if b is None else self._aligned(b)
        if add is not None:
            arrays[ADD] = add
        return self._by_cudnn("fprop", arrays, sizes, last, relu=relu == 0)

    def _by_cudnn(
        self, kind: str, arrays: dict[int, Array], sizes: Sizes, last: bool, relu: bool = False
    ) -> bool:
        """Whether cuDNN did it."""
        if self._dnn is None:
            return False
        x, w, y = (tuple(arrays[name].shape) for name in (X, W, Y))
        options = sizes.stride, sizes.pad, sizes.dilate
        fused = BIASES in arrays, ADD in arrays, relu
        apart = () if _is_dense(arrays[Y], last) else _steps(arrays[Y])
        problem = Problem(kind, np.dtype(arrays[X].dtype).name, last, x, w, y, *options, *fused, apart)
        return self._dnn.run(problem, arrays, self._capturing())

    def _complete(self, y: Array, b: Array | None, add: Array | None, relu: float | None) -> None:
        """y + b + add, rectified, in place; y and add are dense in the same order."""
        step = 1 if channels_last(y) else prod(y.shape[2:])
        rectify = int(relu is not None), float(relu or 0)
        self._kernels.each("channels", "complete", y.dtype, y.size, y, b, add, step, y.shape[1], *rectify)

    def _aligned(self, b: Array) -> Array:
        b = self.xp.ascontiguousarray(b)
        return b if not b.data.ptr % ALIGNMENT else b.copy()

    def _zeros(self, channels: int, dtype: Any) -> Array:
        """Biases where there are none: cuDNN fuses a sum or a ReLU behind biases only."""
        key = channels, np.dtype(dtype).name
        zeros = self._no_biases.get(key)
        if zeros is None:
            zeros = self.xp.zeros(channels, dtype)
            if not self._capturing():  # else they are zeros when the graph runs, and not before
                self._no_biases[key] = zeros
        return zeros


def _is_dense(a: Array, last: bool) -> bool:
    """Whether maps are dense in this order of memory, and aligned."""
    order = a.transpose(LAST) if last else a
    return order.flags.c_contiguous and not a.data.ptr % ALIGNMENT


def _is_part(a: Array, last: bool) -> bool:
    """Whether maps are some channels of dense ones, and aligned."""
    _, _, height, width = a.shape
    by_image, by_channel, by_row, by_pixel = _steps(a)
    if last:
        dense = (by_channel, by_row, by_image) == (1, by_pixel * width, by_pixel * width * height)
    else:
        dense = (by_pixel, by_row, by_channel) == (1, width, width * height)
    return dense and not a.data.ptr % ALIGNMENT


def _steps(a: Array) -> tuple[int, ...]:
    """Strides in elements."""
    return tuple(stride // a.itemsize for stride in a.strides)
