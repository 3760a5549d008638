"""Cutting maps into pieces: memory order, tiles of a bounded size, and where a filter tap meets the image."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from ..reference.checks import Array
from ..reference.convolution import Sizes
from .threads import num_threads

Tile = tuple[slice, slice, slice]
Overlap = tuple[slice, slice]


def channels_last(a: Array) -> Array:
    """The (N, H, W, C) view of (N, C, H, W) maps, whatever their memory order."""
    return a.transpose(0, 2, 3, 1)


def channels_second(a: Array) -> Array:
    """The (N, C, H, W) view of (N, H, W, C) maps."""
    return a.transpose(0, 3, 1, 2)


def tiles(shape: Sequence[int], most: int, share: int = 1) -> Iterator[Tile]:
    """Slices of (images, rows, columns) that cover `shape` in order, each of at most `most` pixels.

    A tile is a run of whole images, or of whole rows of one image, or a piece of one row. Where possible
    there are as many for each of `share` threads, if there are several.

    >>> [[(s.start, s.stop) for s in tile] for tile in tiles((1, 4, 4), most=12)]
    [[(0, 1), (0, 2), (0, 4)], [(0, 1), (2, 4), (0, 4)]]
    """
    n, h, w = shape
    if 0 in shape:
        return
    columns = _even(w, most)
    rows = _even(h, most // w, share, n) if columns == w else 1
    images = _even(n, most // (w * h), share) if rows == h else 1
    for image in range(0, n, images):
        for row in range(0, h, rows):
            for column in range(0, w, columns):
                yield (
                    slice(image, min(n, image + images)),
                    slice(row, min(h, row + rows)),
                    slice(column, min(w, column + columns)),
                )


def slices(n: int, least: int = 1, most: int | None = None, times: int = 1) -> list[slice]:
    """`n` things in slices: `times` for each thread, or more of them lest one has more than `most`.

    None but the last has fewer than `least`.

    >>> slices(40, least=16, most=16)
    [slice(0, 16, None), slice(16, 32, None), slice(32, 40, None)]
    """
    threads = num_threads()
    rounds = times if most is None else max(times, -(-n // (most * threads)))
    step = max(least, -(-n // (rounds * threads)))
    return [slice(start, min(n, start + step)) for start in range(0, n, step)]


def _even(length: int, most: int, share: int = 1, times: int = 1) -> int:
    """The length of pieces of at most `most`, few and about equal.

    Of pieces that there are `times` as often, `share` divides the number where it can, unless there is one.
    """
    pieces = -(-length // max(1, most))
    if pieces > 1 or times == 1:
        while pieces * times % share and pieces < length:
            pieces += 1
    return -(-length // pieces)


def overlap(outputs: slice, offset: int, stride: int, size: int) -> Overlap:
    """Which of the `outputs` i have their tap i stride + offset inside an axis of `size`, and where it is.

    The first slice counts from the start of `outputs`, the second along the axis.

    >>> overlap(slice(0, 4), offset=-1, stride=2, size=6)
    (slice(1, 4, None), slice(1, 6, 2))
    """
    first = max(outputs.start, -(offset // stride))
    last = min(outputs.stop - 1, (size - 1 - offset) // stride)
    if last < first:
        return slice(0, 0), slice(0, 0)
    start = outputs.start
    return slice(first - start, last + 1 - start), slice(
        first * stride + offset, last * stride + offset + 1, stride
    )


def tap_overlaps(outputs: Sequence[slice], sizes: Sizes, maps: Sequence[int]) -> list[list[Overlap]]:
    """The `overlap` of every tap with maps of size (H, W): a list for the rows, one for the columns."""
    return [
        [
            overlap(outputs[k], tap * sizes.dilate[k] - sizes.pad[2 * k], sizes.stride[k], maps[k])
            for tap in range(sizes.window[k])
        ]
        for k in range(2)
    ]
