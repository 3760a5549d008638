"""Convolution: which algorithm for which sizes.

    dense       filters as large as the image: one matrix product
    winograd4   3x3 and 5x5 at stride 1 with enough channels: minimal filtering in tiles of 4x4 outputs,
                or of 2x2 (winograd2), 3x3 or 5x5
    depthwise   one channel and few filters in a group: a pass for each tap
    few         few filters: one product for all taps, then a pass for each
    patches     everything else: a matrix product with what each output pixel sees

At stride 1 the derivative for the data is a convolution with the filters turned around, by any of these; at
larger strides ("scatter") patches are added up. That for the filters exchanges dzdy and x ("turned") where
dzdy has fewer channels to gather.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import lru_cache, partial
from math import prod
from typing import Any

import numpy as np
from numpy.typing import DTypeLike

from ...errors import OptionError
from ...geometry import dilated, shape4
from ..reference import convolution as reference
from ..reference.checks import Array, one_dtype, same_shape
from ..reference.convolution import Sizes, conv_sizes
from . import dense, patches, taps, winograd
from .epilogue import Epilogue
from .memory import empty
from .passes import in_pieces
from .rows import as_rows, row_pieces
from .threads import each
from .tiles import channels_last, channels_second

FEW_FILTERS = 1 << 16  # elements
DZDB_ROWS = 1024  # pixels added up in the maps' own precision
ALGORITHMS = ("patches", *(f"winograd{out}" for out in range(2, 6)))
_chosen: str | None = None


def use(algorithm: str | None) -> None:
    """Let every convolution that can use `algorithm`, one of `ALGORITHMS`, do so; None: what suits each.

    >>> use("patches")
    >>> algorithms((8, 64, 56, 56), (64, 64, 3, 3), pad=1)["forward"]
    'patches'
    >>> use(None)
    """
    global _chosen
    if algorithm is not None and algorithm not in ALGORITHMS:
        raise OptionError(f"algorithm is one of {', '.join(ALGORITHMS)}, or None. Received: {algorithm!r}")
    _chosen = algorithm
    _choice.cache_clear()
    _flipped.cache_clear()


def algorithms(
    x_shape: Sequence[int],
    w_shape: Sequence[int],
    stride: int | Sequence[int] = 1,
    pad: int | Sequence[int] = 0,
    dilate: int | Sequence[int] = 1,
    dtype: DTypeLike = "float32",
) -> dict[str, str]:
    """What computes a convolution and its derivatives for data and filters.

    >>> algorithms((8, 64, 56, 56), (64, 64, 3, 3), pad=1)
    {'forward': 'winograd4', 'dzdx': 'winograd4', 'dzdw': 'winograd4'}
    >>> algorithms((8, 64, 56, 56), (128, 64, 1, 1), stride=2)
    {'forward': 'patches', 'dzdx': 'scatter', 'dzdw': 'patches'}
    """
    sizes, kind = conv_sizes(x_shape, w_shape, stride, pad, dilate), np.dtype(dtype)
    if _whole_map(sizes, x_shape):
        return dict.fromkeys(("forward", "dzdx", "dzdw"), "dense")
    forward = _choice(sizes, x_shape[1], kind)
    back, dzdx = _flipped(sizes, tuple(x_shape), kind), "scatter"
    if forward == "depthwise":
        dzdx = forward
    elif back is not None:
        dzdx = _choice(back, w_shape[0], kind)
    return {"forward": forward, "dzdx": dzdx, "dzdw": _choice_dzdw(sizes, tuple(x_shape), kind)}


@lru_cache(maxsize=4096)
def _choice(sizes: Sizes, channels: int, dtype: np.dtype) -> str:
    """The algorithm of a convolution that isn't dense."""
    depth, k = channels // sizes.groups, sizes.output[1] // sizes.groups
    pixels = prod(sizes.output[2:])
    step_one = sizes.stride == (1, 1)
    if depth == 1 and (k == 1 < sizes.groups or (k <= taps.FEW and sizes.groups >= taps.MANY_GROUPS)):
        return "depthwise"
    if step_one and sizes.dilate == (1, 1) and sizes.window in ((3, 3), (5, 5)) and 0 not in sizes.output:
        if _chosen == "patches" or (_chosen and int(_chosen[-1]) in winograd.tile_sizes(sizes.window[0])):
            return _chosen
        # Double precision is asked for where digits count: the plain sum has more of them.
        if dtype == np.float32 and min(depth, k) >= 16 and _repays(sizes.window[0], depth * k, pixels):
            return f"winograd{winograd.cheapest(sizes, depth, k)}"
    if step_one and sizes.groups == 1 and k <= taps.FEW and depth >= 8 * k and prod(sizes.window) > 1:
        return "few"
    return "patches"


def _repays(taps: int, filters: int, pixels: int) -> bool:
    """Whether minimal filtering repays what it does besides products: filters of a group, pixels of a map."""
    if taps == 3:
        return filters >= 1 << 17 or (filters >= 1024 and pixels >= 100)
    return (filters >= 1000 and pixels >= 60) or (filters >= 512 and pixels >= 500)


class Constant(np.ndarray):
    """Filters that will not change: what kernels make of them is kept with them."""

    prepared: dict[Any, Array]

    def __array_finalize__(self, source: object) -> None:
        self.prepared = {}


def _prepared(w: Array, key: Any, make: Callable[[], Array]) -> Array:
    """What `make` makes of filters, once if they are constant."""
    if not isinstance(w, Constant):
        return make()
    if key not in w.prepared:
        w.prepared[key] = make().view(np.ndarray)
    return w.prepared[key]


class Convolution(reference.Convolution):
    """Maps in channels-last memory, pieces of the work on threads, the epilogue while they are in cache."""

    def conv(self, x, w, b=None, *, stride=1, pad=0, dilate=1, add=None, relu=None, out=None, patches=None):
        if w is None:
            return super().conv(x, w, b, stride=stride, pad=pad, dilate=dilate, add=add, relu=relu, out=out)
        sizes = _sizes(x.shape, w.shape, stride, pad, dilate)
        self._check_conv(x, w, b, add, sizes, out)
        epilogue = Epilogue(b, None if add is None else channels_last(add), relu)
        place = None if out is None else channels_last(out)
        if _whole_map(sizes, x.shape):
            n, k, *_ = sizes.output
            y = empty((n, 1, 1, k), x.dtype)
            dense.conv(*dense.rows(x, w), y.reshape(n, k))
            epilogue.finish(y, np.s_[:, :, :])
        else:
            kept = patches if patches is not None and _gathers_twice(sizes, x.shape, x.dtype) else None
            y = _conv(channels_last(x), w, sizes, epilogue, out=place, kept=kept)
        if place is None:
            return channels_second(y)
        if y is not place:
            place[...] = y
        return out

    def conv_dzdx(self, dzdy, w, x_shape, *, stride=1, pad=0, dilate=1):
        if w is None:
            return super().conv_dzdx(dzdy, w, x_shape, stride=stride, pad=pad, dilate=dilate)
        sizes = _sizes(x_shape, w.shape, stride, pad, dilate)
        one_dtype(dzdy=dzdy, w=w)
        same_shape("dzdy", dzdy, sizes.output)
        n, c, *maps = x_shape
        if _whole_map(sizes, x_shape):
            dzdx = dense.conv_dzdx(dzdy.reshape(sizes.output[:2]), dense.rows(w, w)[1])
            if w.flags.c_contiguous:
                return dzdx.reshape(x_shape)
            return channels_second(dzdx.reshape(n, *maps, c))
        ders = channels_last(dzdy)
        depthwise = _choice(sizes, c, dzdy.dtype) == "depthwise"
        if not depthwise and (back := _flipped(sizes, tuple(x_shape), dzdy.dtype)) is not None:
            return channels_second(_conv(ders, w, back, Epilogue(), flipped=True))
        dzdx = empty((n, *maps, c), dzdy.dtype)
        if depthwise:
            taps.depthwise_dzdx(ders, w, sizes, dzdx)
        else:
            in_pieces(lambda piece: piece.fill(0), dzdx)
            patches.conv_dzdx(ders, _bank(w, sizes), sizes, dzdx)
        return channels_second(dzdx)

    def conv_dzdw(self, dzdy, x, w_shape, *, stride=1, pad=0, dilate=1, patches=()):
        sizes = _sizes(x.shape, w_shape, stride, pad, dilate)
        one_dtype(dzdy=dzdy, x=x)
        same_shape("dzdy", dzdy, sizes.output)
        if not dzdy.size:  # of an empty batch
            return np.zeros(w_shape, x.dtype)
        if _whole_map(sizes, x.shape):
            ders, (k, depth, *window) = dzdy.reshape(sizes.output[:2]), w_shape
            if not in_channels_last(w_shape):
                return dense.conv_dzdw(ders, x.reshape(len(x), -1)).reshape(w_shape)
            dzdw = dense.conv_dzdw(ders, channels_last(x).reshape(len(x), -1)).reshape(k, *window, depth)
        else:
            dzdw = _conv_dzdw(channels_last(dzdy), channels_last(x), w_shape, sizes, patches)
        return filters(channels_second(dzdw))

    def conv_dzdb(self, dzdy):
        shape4("dzdy", dzdy.shape)
        one_dtype(dzdy=dzdy)
        rows = as_rows(dzdy)
        ones = np.ones(DZDB_ROWS, dzdy.dtype)
        pieces = row_pieces(rows, least=64, most=DZDB_ROWS)
        sums = each(lambda part: np.dot(ones[: len(rows[part])], rows[part]), pieces)
        return np.sum(sums or np.zeros((1, rows.shape[1])), axis=0, dtype=np.float64).astype(dzdy.dtype)


def _conv(
    x: Array,
    w: Array,
    sizes: Sizes,
    epilogue: Epilogue,
    flipped: bool = False,
    out: Array | None = None,
    kept: list[Array] | None = None,
) -> Array:
    """Channels-last maps of channels-last `x` and filters w, or w turned around to go back from dzdy to x.

    They are `out` where it is given and its pixels lie one after the other. Patches go into `kept`.
    """
    n, k, *maps = sizes.output
    kind = _choice(sizes, x.shape[3], x.dtype)
    if kind == "few":
        return taps.few_filters(x, _turned(w, sizes) if flipped else w, sizes, epilogue)
    y = out if out is not None and _evenly(out) else empty((n, *maps, k), x.dtype)
    if kind == "depthwise":
        # Going back from groups of one filter, each of its channels is a filter of its own.
        turned = w.reshape(-1, 1, *sizes.window)[..., ::-1, ::-1] if flipped else w
        taps.depthwise(x, turned, sizes, y, epilogue)
    elif kind == "patches":
        make = _flipped_bank if flipped else _forward_bank
        bank = _prepared(w, (kind, flipped, sizes.groups), lambda: make(w, sizes))
        patches.conv(x, bank, sizes, y, epilogue, kept)
    else:
        scheme = _scheme(kind, sizes, x.dtype)
        for filters, inputs, outputs in _groups(len(w), x.shape[3], k, sizes):
            make_bank = partial(winograd.bank, scheme, w[filters], flipped)
            bank = _prepared(w, (kind, flipped, sizes.groups, filters.start), make_bank)
            winograd.conv(scheme, x[..., inputs], bank, sizes, y[..., outputs], epilogue.of_group(outputs))
    return y


def _evenly(maps: Array) -> bool:
    """Whether all pixels of channels-last maps are equally far apart: they can be rows of a matrix."""
    _, height, width, _ = maps.shape
    image, row, pixel, item = maps.strides
    return item == maps.itemsize and row == width * pixel and image == height * row


def _conv_dzdw(dzdy: Array, x: Array, w_shape: Sequence[int], sizes: Sizes, kept: Sequence[Array]) -> Array:
    """The derivative for filters, (K, h, w, C/groups), of channels-last maps, or of patches of x."""
    k, depth, *window = w_shape
    shape = (len(x), x.shape[3], *x.shape[1:3])
    kind = _choice_dzdw(sizes, shape, x.dtype)
    if kind == "depthwise":
        return taps.depthwise_dzdw(dzdy, x, sizes)
    if kind.startswith("winograd"):
        scheme = _scheme(kind, sizes, x.dtype)
        if sizes.groups == 1:
            return winograd.conv_dzdw(scheme, dzdy, x, sizes).reshape(k, *window, depth)
        dzdw = empty((k, window[0] * window[1], depth), x.dtype)
        for filters, inputs, _ in _groups(k, x.shape[3], k, sizes):
            dzdw[filters] = winograd.conv_dzdw(scheme, dzdy[..., filters], x[..., inputs], sizes)
        return dzdw.reshape(k, *window, depth)
    if kind == "turned" and (back := _flipped(sizes, shape, x.dtype)) is not None:
        x, dzdy = np.ascontiguousarray(x), np.ascontiguousarray(dzdy)
        turned = patches.conv_dzdw(x, dzdy, back, k).reshape(depth, *window, k)
        return turned[:, ::-1, ::-1].transpose(3, 1, 2, 0)
    return patches.conv_dzdw(np.ascontiguousarray(dzdy), x, sizes, depth, kept).reshape(k, *window, depth)


def _gathers_twice(sizes: Sizes, x_shape: Sequence[int], dtype: np.dtype) -> bool:
    """Whether forward and the derivative for the filters gather the same patches."""
    kinds = _choice(sizes, x_shape[1], dtype), _choice_dzdw(sizes, tuple(x_shape), dtype)
    return kinds == ("patches", "patches") and (prod(sizes.window) > 1 or sizes.stride != (1, 1))


def _choice_dzdw(sizes: Sizes, x_shape: tuple[int, ...], dtype: np.dtype) -> str:
    """The algorithm of the derivative for the filters; "turned" gathers patches of dzdy rather than of x."""
    kind = _choice(sizes, x_shape[1], dtype)
    if kind not in ("few", "patches"):
        return kind
    if sizes.groups > 1 or 2 * sizes.output[1] > x_shape[1] or prod(sizes.window) == 1:
        return "patches"
    back = _flipped(sizes, x_shape, dtype)
    filtered = back is None or _choice(back, sizes.output[1], dtype).startswith("winograd")
    return "patches" if filtered else "turned"


def _scheme(kind: str, sizes: Sizes, dtype: np.dtype) -> winograd.Scheme:
    return winograd.scheme(int(kind[-1]), sizes.window[0], dtype)


def _groups(filters: int, inputs: int, outputs: int, sizes: Sizes) -> list[tuple[slice, slice, slice]]:
    """For each group its filters, input and output channels."""

    def part(n: int, g: int) -> slice:
        return slice(g * n // sizes.groups, (g + 1) * n // sizes.groups)

    return [(part(filters, g), part(inputs, g), part(outputs, g)) for g in range(sizes.groups)]


def in_channels_last(w_shape: Sequence[int]) -> bool:
    """Whether filters of this shape are kept in channels-last memory, as patches are gathered.

    Filters as large as an image aren't: the order makes no difference to them, and turning them costs.
    """
    return len(w_shape) == 4 and prod(w_shape[2:]) <= 25


def filters(w: Array) -> Array:
    """`w` in the memory order in which filters of its shape are kept; not copied if it has it."""
    if in_channels_last(w.shape):
        return channels_second(np.ascontiguousarray(channels_last(w)))
    return np.ascontiguousarray(w)


@lru_cache(maxsize=4096)
def _cached_sizes(x_shape, w_shape, stride, pad, dilate):
    return conv_sizes(x_shape, w_shape, stride, pad, dilate)


def _sizes(x_shape, w_shape, stride, pad, dilate) -> Sizes:
    """`conv_sizes`, remembered where its arguments are tuples of integers."""
    try:
        return _cached_sizes(tuple(x_shape), tuple(w_shape), stride, pad, dilate)
    except TypeError:  # lists
        return conv_sizes(x_shape, w_shape, stride, pad, dilate)


def _whole_map(sizes: Sizes, x_shape: Sequence[int]) -> bool:
    """Whether each filter meets the image once, all of it: a fully connected layer."""
    return sizes.groups == 1 and sizes.window == tuple(x_shape[2:]) and not any(sizes.pad)


@lru_cache(maxsize=4096)
def _flipped(sizes: Sizes, x_shape: tuple[int, ...], dtype: np.dtype) -> Sizes | None:
    """The convolution of dzdy, with the filters turned around, that is the derivative for the data, or None.

    It has products for every pixel of x, the other way for every pixel of y: None where x has many more,
    unless minimal filtering needs fewer.
    """
    height, width = dilated(sizes.window, sizes.dilate)
    top, bottom, left, right = sizes.pad
    pad = height - 1 - top, height - 1 - bottom, width - 1 - left, width - 1 - right
    if sizes.stride != (1, 1) or min(pad) < 0:
        return None
    n, c, height, width = x_shape
    back = sizes._replace(output=(n, c, height, width), pad=pad)
    many_more = 4 * prod(x_shape[2:]) > 5 * prod(sizes.output[2:])
    return None if many_more and not _choice(back, sizes.output[1], dtype).startswith("winograd") else back


def _bank(w: Array, sizes: Sizes) -> Array:
    """The filters as (groups, K/groups, h w C/groups)."""
    return np.ascontiguousarray(w.transpose(0, 2, 3, 1)).reshape(sizes.groups, len(w) // sizes.groups, -1)


def _forward_bank(w: Array, sizes: Sizes) -> Array:
    """The filters as (groups, h w C/groups, K/groups)."""
    bank = _bank(w, sizes).swapaxes(1, 2)
    # BLAS turns what is on the right anyway: worth doing once if the filters are few, or kept.
    return np.ascontiguousarray(bank) if w.size <= FEW_FILTERS or isinstance(w, Constant) else bank


def _flipped_bank(w: Array, sizes: Sizes) -> Array:
    """The filters turned around, as (groups, h w K/groups, C/groups)."""
    by_group = w.reshape(sizes.groups, -1, *w.shape[1:])[..., ::-1, ::-1].transpose(0, 3, 4, 1, 2)
    bank = empty(by_group.shape, w.dtype)
    bank[...] = by_group
    return bank.reshape(sizes.groups, -1, w.shape[1])


def _turned(w: Array, sizes: Sizes) -> Array:
    """Filters (K, C, h, w) of one group turned around, (C, K, h, w)."""
    return w.swapaxes(0, 1)[..., ::-1, ::-1]
