"""Pooling in channels-last memory: along columns, then along rows, in cache-sized tiles on threads."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache
from itertools import product
from math import prod

import numpy as np

from ..reference import pooling as reference
from ..reference.checks import Array, one_dtype, same_shape
from ..reference.convolution import Sizes
from ..reference.pooling import first_taps, pixels_inside, pool_sizes
from . import memory
from .threads import each, num_threads
from .tiles import Overlap, Tile, channels_last, channels_second, overlap, tiles

TILE_BYTES = 1 << 22
"""The memory of the pixels a tile covers: they and what is made of them stay in the cache of a core."""

WORTH_SHARING = 2 << 20
"""Bytes that take one thread less time than several wait for the interpreter."""

SCATTER_BYTES = 1 << 21
"""The memory of the pixels to which derivatives are sent at once; their indices take as much again."""

MOST_GROUPS = 4
"""Where windows overlap more than that, adding up tap by tap is faster than sending by index."""

Cuts = tuple[Overlap, ...]
"""Of each tap along an axis, the outputs that have it inside the image and the pixels it meets there."""


class Pooling(reference.Pooling):
    """A window is pooled along its columns first, in long runs of memory, and what is left along its rows."""

    def max_pool(self, x, size, *, stride=1, pad=0, wants_winner=True):
        sizes = pool_sizes(x.shape, size, stride, pad)
        one_dtype(x=x)
        x = channels_last(x)
        y = _maps(sizes.output, x.dtype)
        winner = _maps(sizes.output, first_taps(sizes).dtype) if wants_winner else None

        def one(tile: Tile) -> None:
            images, *outputs = tile
            down, across = (_windows(sizes, k, outputs[k], x.shape[1 + k]) for k in range(2))
            best = y[tile]
            rows = _pooled(np.fmax, x[images], down, 1)
            _pooled(np.fmax, rows, across, 2, best)
            if winner is not None:
                _find(x[images], rows, best, winner[tile], down, across)
            if not best.min() > -np.inf:  # the rare case: a window without a winner
                np.fmax(best, -np.inf, out=best)
                if winner is not None:
                    first = first_taps(sizes)[tuple(outputs)]
                    np.copyto(winner[tile], first[..., None], where=best == -np.inf)

        each(one, _output_tiles(sizes, x))
        return channels_second(y), None if winner is None else channels_second(winner)

    def max_pool_dzdx(self, dzdy, winner, x_shape, size, *, stride=1, pad=0):
        sizes = pool_sizes(x_shape, size, stride, pad)
        one_dtype(dzdy=dzdy)
        same_shape("dzdy", dzdy, sizes.output)
        same_shape("winner", winner, sizes.output)
        dzdx = _maps(x_shape, dzdy.dtype)
        if not dzdx.size:
            return channels_second(dzdx)
        send = _scatter if prod(_apart(sizes)) <= MOST_GROUPS else _gather
        send(channels_last(dzdy), channels_last(winner), dzdx, sizes)
        return channels_second(dzdx)

    def avg_pool(self, x, size, *, stride=1, pad=0):
        sizes = pool_sizes(x.shape, size, stride, pad)
        one_dtype(x=x)
        count = _counts(sizes, x.shape, x.dtype)
        x = channels_last(x)
        y = _maps(sizes.output, x.dtype)

        def one(tile: Tile) -> None:
            images, *outputs = tile
            down, across = (_windows(sizes, k, outputs[k], x.shape[1 + k]) for k in range(2))
            _pooled(np.add, _pooled(np.add, x[images], down, 1), across, 2, y[tile])
            np.divide(y[tile], count[tuple(outputs)], out=y[tile])

        each(one, _output_tiles(sizes, x))
        return channels_second(y)

    def avg_pool_dzdx(self, dzdy, x_shape, size, *, stride=1, pad=0):
        sizes = pool_sizes(x_shape, size, stride, pad)
        one_dtype(dzdy=dzdy)
        same_shape("dzdy", dzdy, sizes.output)
        count = _counts(sizes, tuple(x_shape), dzdy.dtype)
        dzdy = channels_last(dzdy)
        dzdx = _maps(x_shape, dzdy.dtype)

        def one(tile: Tile) -> None:
            images, *pixels = tile
            down, across = (_windows_onto(sizes, k, pixels[k]) for k in range(2))
            dz = dzdx[tile]
            seen, down = _seen(down)
            share = memory.empty((len(dz), seen.stop - seen.start, *dzdy.shape[2:]), dzdy.dtype)
            np.divide(dzdy[images, seen], count[seen], out=share)
            rows = memory.empty((*share.shape[:2], *dz.shape[2:]), dz.dtype)
            _spread(share, rows, across, 2, sizes.stride[1])
            _spread(rows, dz, down, 1, sizes.stride[0])

        each(one, _input_tiles(dzdx))
        return channels_second(dzdx)


@lru_cache(maxsize=1 << 8)
def _counts(sizes: Sizes, x_shape: Sequence[int], dtype: np.dtype) -> Array:
    """(H', W', 1): how many pixels of each window are inside the image."""
    return pixels_inside(sizes, x_shape, dtype)[..., None]


def _maps(shape: Sequence[int], dtype: np.dtype) -> Array:
    """(N, H, W, C) for maps of `shape` (N, C, H, W), with arbitrary contents."""
    n, c, height, width = shape
    return memory.empty((n, height, width, c), dtype)


def _output_tiles(sizes: Sizes, x: Array) -> list[Tile]:
    n, _, *maps = sizes.output
    return _tiles((n, *maps), -(-x.nbytes // max(1, n * maps[0] * maps[1])))


def _input_tiles(dzdx: Array) -> list[Tile]:
    return _tiles(dzdx.shape[:3], dzdx.shape[3] * dzdx.itemsize)


def _tiles(shape: Sequence[int], pixel_bytes: int) -> list[Tile]:
    """Tiles of (images, rows, columns), some for each thread where it pays; none of nothing."""
    if not pixel_bytes:
        return []
    pixels = prod(shape)
    share = -(-pixels // num_threads()) if pixels * pixel_bytes > WORTH_SHARING else pixels
    return list(tiles(shape, max(1, min(TILE_BYTES // pixel_bytes, share))))


def _windows(sizes: Sizes, axis: int, outputs: slice, length: int) -> Cuts:
    """For each tap along `axis`: `outputs`, from the first of them on, and pixels of an axis of `length`."""
    return _cuts(
        outputs.start, outputs.stop, sizes.window[axis], sizes.stride[axis], sizes.pad[2 * axis], length
    )


def _windows_onto(sizes: Sizes, axis: int, pixels: slice) -> Cuts:
    """For each tap along `axis`: outputs that have it among `pixels`, and these, from the first one on."""
    before, length = sizes.pad[2 * axis] + pixels.start, pixels.stop - pixels.start
    return _cuts(0, sizes.output[2 + axis], sizes.window[axis], sizes.stride[axis], before, length)


@lru_cache(maxsize=1 << 12)
def _cuts(start: int, stop: int, window: int, stride: int, before: int, length: int) -> Cuts:
    return tuple(overlap(slice(start, stop), tap - before, stride, length) for tap in range(window))


def _at(axis: int, where: slice) -> tuple[slice, ...]:
    return (slice(None),) * axis + (where,)


def _pooled(op: np.ufunc, pixels: Array, cuts: Cuts, axis: int, out: Array | None = None) -> Array:
    """`op` over the taps of each window along `axis`; in `out`, if given."""
    number = len(out[0, 0]) if out is not None else max(o.stop for o, _ in cuts)
    whole = [k for k, (o, _) in enumerate(cuts) if o.stop - o.start == number]
    base = whole[0] if whole else None
    if base is not None and len(cuts) == 1 and out is None:
        return pixels[_at(axis, cuts[0][1])]
    if out is None:
        out = memory.empty((*pixels.shape[:axis], number, *pixels.shape[axis + 1 :]), pixels.dtype)
    if number == 1:
        return op.reduce(pixels[_at(axis, _met(cuts))], axis=axis, keepdims=True, out=out)
    if base is None:
        out.fill(op.identity if op.identity is not None else -np.inf)
    rest = [cut for k, cut in enumerate(cuts) if k != base]
    if base is not None:
        source = pixels[_at(axis, cuts[base][1])]
        o, i = rest.pop(0) if rest else (slice(0, 0), slice(0, 0))
        if o.stop > o.start:
            op(source[_at(axis, o)], pixels[_at(axis, i)], out=out[_at(axis, o)])
        for strip in _outside(o, number):
            np.copyto(out[_at(axis, strip)], source[_at(axis, strip)])
    for o, i in rest:
        part = out[_at(axis, o)]
        op(part, pixels[_at(axis, i)], out=part)
    return out


def _met(cuts: Cuts) -> slice:
    """The pixels of a single window."""
    inside = [i for o, i in cuts if o.stop > o.start]
    return slice(inside[0].start, inside[-1].stop) if inside else slice(0, 0)


def _outside(inner: slice, length: int) -> Iterator[slice]:
    """What of an axis of `length` is not in `inner`."""
    if inner.start > 0:
        yield slice(0, inner.start)
    if inner.stop < length:
        yield slice(max(0, inner.stop), length)


def _find(x: Array, rows: Array, y: Array, winner: Array, down: Cuts, across: Cuts) -> None:
    """`winner`: the first tap u + v h to equal the maximum y, from `rows`, the maxima of columns of windows.

    For u: how many taps of a column come before the first to equal its maximum. For v: the least of
    the candidates u + v h of the columns that equal y. A window of nothing but NaN gets no proper winner.
    """
    code, h = winner.dtype, len(down)
    unsigned = np.dtype(f"u{code.itemsize}")
    us = memory.empty(rows.shape, unsigned)
    still = _differs(x, rows, down[0], 1) if h > 1 else None
    if still is None:
        us.fill(0)
    elif h == 2:
        us = still if code == np.uint8 else still.astype(unsigned)
    else:
        np.copyto(us, still)
        for cut in down[1:-1]:
            still &= _differs(x, rows, cut, 1)
            us += still
    taps = winner.view(unsigned)
    o, i = across[-1]
    for strip in _outside(o, taps.shape[2]):
        taps[:, :, strip] = 0
    np.copyto(taps[:, :, o], us[:, :, i])
    for o, i in across[-2::-1]:
        taps += unsigned.type(h)
        if o.stop > o.start:
            columns = _differs(rows, y[:, :, o], (slice(0, o.stop - o.start), i), 2)
            candidates = np.negative(columns, dtype=unsigned, out=columns if code == np.uint8 else None)
            candidates |= us[:, :, i]
            np.minimum(taps[:, :, o], candidates, out=taps[:, :, o])


def _differs(pixels: Array, best: Array, cut: Overlap, axis: int) -> Array:
    """0 where the tap of `cut` equals `best`, else 1."""
    o, i = cut
    differs = memory.empty(best.shape, np.bool_)
    for strip in _outside(o, best.shape[axis]):
        differs[_at(axis, strip)] = True
    np.not_equal(pixels[_at(axis, i)], best[_at(axis, o)], out=differs[_at(axis, o)])
    return differs.view(np.uint8)


def _apart(sizes: Sizes) -> tuple[int, int]:
    """How far apart windows without a common pixel are, along rows and columns of windows."""
    down, across = (-(-w // step) for w, step in zip(sizes.window, sizes.stride, strict=True))
    return down, across


def _gather(dzdy: Array, winner: Array, dzdx: Array, sizes: Sizes) -> None:
    """What `_scatter` does, tap by tap.

    The bits of dzdy are masked by where the tap has won, which is much faster than `np.where`.
    """
    bits = np.dtype(f"i{dzdx.itemsize}")
    taps = list(product(range(sizes.window[1]), range(sizes.window[0])))

    def one(tile: Tile) -> None:
        images, *pixels = tile
        (rows, down), (columns, across) = (_seen(_windows_onto(sizes, k, pixels[k])) for k in range(2))
        ders, winners = dzdy[images, rows, columns].view(bits), winner[images, rows, columns]
        equal, won = memory.empty(ders.shape, np.int8), memory.empty(ders.shape, bits)
        target = dzdx[tile]
        target.fill(0)
        for tap, (v, u) in enumerate(taps):
            np.equal(winners, winner.dtype.type(tap), out=equal.view(np.bool_))
            np.copyto(won, np.negative(equal, out=equal))
            np.bitwise_and(won, ders, out=won)
            part = target[:, down[u][1], across[v][1]]
            np.add(part, won.view(dzdx.dtype)[:, down[u][0], across[v][0]], out=part)

    each(one, _input_tiles(dzdx))


def _scatter(dzdy: Array, winner: Array, dzdx: Array, sizes: Sizes) -> None:
    """dzdx: at each pixel, the sum of the dzdy of the windows it won, (N, H, W, C) all.

    Windows far enough apart to have no pixel in common form a group, whose winners are all different:
    one assignment by indices into dzdx, or, where something may have arrived before, one addition.
    """
    parts, at_once = _parts(dzdx, sizes)
    taps, corners = _tap_offsets(sizes, dzdx), _corners(sizes, dzdx, parts, at_once)
    (height, _), (down, _), top = sizes.window, sizes.stride, sizes.pad[0]
    apart = _apart(sizes)
    flat, image, row = dzdx.reshape(-1), dzdx[:1].size, dzdx[:1, :1].size

    def one(part: tuple[slice, slice]) -> None:
        images, channels = part
        ders, winners, pixels = (a[images, ..., channels] for a in (dzdy, winner, dzdx))
        cleared, stop = 0, ders.shape[1]
        for first in range(0, stop, at_once):
            last = min(stop, first + at_once)
            end = pixels.shape[1] if last == stop else (last - 1) * down - top + height
            pixels[:, cleared : max(cleared, end)].fill(0)
            cleared = max(cleared, end)
            moved = taps + (images.start * image + first * down * row + channels.start)
            fresh = first == 0 or apart[0] == 1
            for i, j in product(*map(range, apart)):
                group = np.s_[:, first + i : last : apart[0], j :: apart[1]]
                corner = corners[: len(ders), i : last - first : apart[0], j :: apart[1], : ders.shape[3]]
                if corner.size:
                    _arrive(flat, ders[group], winners[group], moved, corner, fresh)
                    fresh = False

    each(one, parts)


def _arrive(flat: Array, ders: Array, winner: Array, taps: Array, corner: Array, fresh: bool) -> None:
    """flat[corner + taps[winner]] += ders, or = ders on fresh ground; no two indices are equal."""
    tap, index = (memory.empty(ders.shape, np.intp) for _ in range(2))
    np.copyto(tap, winner)
    np.take(taps, tap, out=index, mode="clip")
    np.add(index, corner, out=index)
    values = memory.empty(ders.shape, ders.dtype)
    if fresh:
        np.copyto(values, ders)
    else:
        np.take(flat, index, out=values, mode="clip")
        np.add(values, ders, out=values)
    flat[index.reshape(-1)] = values.reshape(-1)


def _parts(dzdx: Array, sizes: Sizes) -> tuple[list[tuple[slice, slice]], int]:
    """Parts (images, channels) of dzdx for threads, and how many rows of windows to do at once."""
    n, _, width, c = dzdx.shape
    rows, threads = sizes.output[2], num_threads()
    most = SCATTER_BYTES // (sizes.stride[0] * width * dzdx.itemsize)  # rows of one channel
    images = max(1, min(-(-n // threads), most // (c * rows)))
    channels = c if -(-n // images) >= threads else -(-c // threads)
    pieces = product(_runs(n, images), _runs(c, channels))
    return list(pieces), max(1, min(rows, most // (channels * images)))


def _runs(length: int, step: int) -> list[slice]:
    return [slice(k, min(length, k + step)) for k in range(0, length, step)]


def _tap_offsets(sizes: Sizes, dzdx: Array) -> Array:
    """For tap u + v h, where its pixel lies in memory from the corner of an unpadded window."""
    (h, w), (top, _, left, _), (_, _, width, c) = sizes.window, sizes.pad, dzdx.shape
    return ((np.arange(h) - top) * width * c + (np.arange(w)[:, None] - left) * c).ravel()


def _corners(sizes: Sizes, dzdx: Array, parts: list[tuple[slice, slice]], rows: int) -> Array:
    """(images, rows, W', C) of the largest part: where the corners of its unpadded windows lie in memory."""
    images, channels = parts[0]
    (down, across), (_, height, width, c) = sizes.stride, dzdx.shape
    corners = memory.empty((images.stop, rows, sizes.output[3], channels.stop), np.intp)
    image, row, column, channel = np.ogrid[tuple(slice(k) for k in corners.shape)]
    return np.add(((image * height + row * down) * width + column * across) * c, channel, out=corners)


def _meets(cut: Overlap, phase: int, stride: int) -> bool:
    """Whether a tap meets any of the pixels `phase`, `phase` + `stride`, ..."""
    outputs, pixels = cut
    return outputs.stop > outputs.start and pixels.start % stride == phase


def _seen(cuts: Cuts) -> tuple[slice, Cuts]:
    """The outputs in `cuts`, and `cuts` with outputs from the first of them on."""
    some = [o for o, _ in cuts if o.stop > o.start] or [slice(0, 0)]
    start, stop = min(o.start for o in some), max(o.stop for o in some)
    moved = ((slice(o.start - start, o.stop - start), i) if o.stop > o.start else (o, i) for o, i in cuts)
    return slice(start, stop), tuple(moved)


def _spread(source: Array, target: Array, cuts: Cuts, axis: int, stride: int) -> None:
    """target: at each of its pixels along `axis`, the sum of the outputs that have it in their windows."""
    if source.shape[axis] == 1:
        for strip in _outside(_met(cuts), target.shape[axis]):
            target[_at(axis, strip)] = 0
        np.copyto(target[_at(axis, _met(cuts))], source)
        return
    for phase in range(min(stride, target.shape[axis])):
        pixels, written = target[_at(axis, slice(phase, None, stride))], False
        for o, i in (cut for cut in cuts if _meets(cut, phase, stride)):
            part = pixels[_at(axis, slice(i.start // stride, (i.stop - 1) // stride + 1))]
            if written:
                np.add(part, source[_at(axis, o)], out=part)
                continue
            if part.shape != pixels.shape:
                pixels.fill(0)
            np.copyto(part, source[_at(axis, o)])
            written = True
        if not written:
            pixels.fill(0)
