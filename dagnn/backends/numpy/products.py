"""Matrix products in blocks so small that BLAS doesn't copy its operands first.

OpenBLAS rearranges both matrices of a product for its inner loop, which costs as much as the loop itself
where one of them has few rows. For AVX-512 it has another loop, for products of at most a million
multiplications, that reads them where they are: at the rate of the arithmetic units, if blocks have the right
shape. A stack of blocks is one call of NumPy's. For other processors products stay whole.

Source: OpenBLAS 0.3.31, kernel/x86_64/sgemm_small_kernel_permit_skylakex.c.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cache
from typing import Any, TypeVar

import numpy as np

from ..reference.checks import Array
from .memory import copied, empty
from .threads import blas_architectures, each, share

T = TypeVar("T")

WITHOUT_PACKING = frozenset({"SkylakeX", "Cooperlake", "SapphireRapids"})
LARGEST = 1_000_000
"""Multiplications of the largest product that isn't rearranged."""
WIDE, NARROW = (384, 192), (128, 64, 32)
"""Columns of a block: with all rows, where these are few, and without; the first that allow for 8 rows."""
ALIASED = 2048
"""Rows a multiple of so many bytes apart share few places of the first cache: blocks of such are copied."""
OF_SUMS, LARGEST_SUMMED = (32, 64), 1 << 15
"""The shape of a block of `summed`, and the elements of a result for which blocks pay."""


@cache
def in_blocks() -> bool:
    """Whether BLAS has a loop for small products."""
    architectures = blas_architectures()
    return bool(architectures) and architectures <= WITHOUT_PACKING


def multiply(a: Array, b: Array, out: Array) -> Array:
    """`np.matmul(a, b, out=out)` of stacks of matrices (..., m, k) and (..., k, n), in blocks.

    >>> a, b = np.ones((3000, 40), "float32"), np.ones((40, 200), "float32")
    >>> multiply(a, b, np.empty((3000, 200), "float32")).max()
    np.float32(40.0)
    """
    (m, k), n = a.shape[-2:], b.shape[-1]
    if m * k * n <= LARGEST or b.strides[-1] != b.itemsize or not in_blocks() or not out.dtype.isnative:
        return np.matmul(a, b, out=out)
    for columns in WIDE:
        if m * k * columns <= LARGEST and n >= columns:
            return _blocks(a, b, out, m, columns)
    for columns in NARROW:
        rows = LARGEST // (k * min(n, columns)) // 8 * 8
        if 0 < rows <= m:
            return _blocks(
                a, b, out, rows, min(n, columns), pack=n > columns and b.strides[-2] % ALIASED == 0
            )
    return np.matmul(a, b, out=out)


def summed(a: Array, b: Array, out: Array) -> Array:
    """`np.matmul(a.swapaxes(-1, -2), b, out=out)` of stacks (..., terms, m) and (..., terms, n), in blocks.

    >>> a, b = np.ones((3000, 64), "float32"), np.ones((3000, 128), "float32")
    >>> summed(a, b, np.empty((64, 128), "float32")).max()
    np.float32(3000.0)
    """
    (terms, m), n = a.shape[-2:], b.shape[-1]
    if not 0 < m * n <= LARGEST_SUMMED or not in_blocks() or not out.dtype.isnative:
        return _whole_sums(a, b, out)
    rows, columns = (min(size, most) for size, most in zip((m, n), OF_SUMS, strict=True))
    parts = -(-terms // (LARGEST // (rows * columns)))
    if parts < 2:
        return _blocks(a.swapaxes(-1, -2), b, out, rows, columns)
    length = terms // parts
    made = empty((parts, *out.shape), out.dtype)
    left, right = (
        np.moveaxis(c[..., : parts * length, :].reshape(*c.shape[:-2], parts, length, -1), -3, 0)
        for c in (a, b)
    )
    _blocks(left.swapaxes(-1, -2), right, made, rows, columns)
    np.add.reduce(made, axis=0, out=out)
    if parts * length < terms:
        out += np.matmul(a[..., parts * length :, :].swapaxes(-1, -2), b[..., parts * length :, :])
    return out


def added_up(
    product: Callable[[T, Array], Any],
    pieces: Sequence[T],
    buffer: Callable[[], Array],
    threads: int | None = None,
) -> Array:
    """The sum over `pieces`, shared out among threads, of what product(piece, out) writes into a `buffer()`.

    >>> added_up(lambda k, out: out.fill(k), [1, 2, 3], lambda: np.empty(2))
    array([6., 6.])
    """

    def work(mine: Sequence[T]) -> Array:
        own, part = buffer(), buffer()
        for count, piece in enumerate(mine):
            product(piece, part if count else own)
            if count:
                own += part
        return own

    total, *others = each(work, share(pieces, threads))
    for other in others:
        total += other
    return total


def _whole_sums(a: Array, b: Array, out: Array) -> Array:
    one = out.size == out.shape[-2] * out.shape[-1] and out.dtype.isnative
    if not (one and a.flags.forc and b.flags.forc and out.flags.c_contiguous):  # which `dot` would copy
        return np.matmul(a.swapaxes(-1, -2), b, out=out)
    # Unlike `matmul`, `dot` lets go of the interpreter for small results of long sums, too.
    left, right = (c.reshape(c.shape[-2:]) for c in (a, b))
    np.dot(left.T, right, out=out.reshape(out.shape[-2:]))
    return out


def _blocks(a: Array, b: Array, out: Array, rows: int, columns: int, pack: bool = False) -> Array:
    """The product in blocks of `rows` x `columns`, and what is left below them and beside."""
    m, n = out.shape[-2:]
    below, beside = m - m % rows, n - n % columns
    left = a[..., :below, :].reshape(*a.shape[:-2], -1, 1, rows, a.shape[-1])
    right = b[..., :beside].reshape(*b.shape[:-1], -1, columns).swapaxes(-2, -3)[..., None, :, :, :]
    if pack:
        right = copied(right)
    places = out[..., :below, :beside].reshape(*out.shape[:-2], below // rows, rows, -1, columns)
    np.matmul(left, right, out=places.swapaxes(-2, -3))
    if beside < n:
        multiply(a, b[..., beside:], out[..., beside:])
    if below < m:
        np.matmul(a[..., below:, :], b[..., :beside], out=out[..., below:, :beside])
    return out
