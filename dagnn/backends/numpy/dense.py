"""Fully connected layers: filters as large as the image, few pixels, and a bank that is read once."""

from __future__ import annotations

import numpy as np

from ..reference.checks import Array
from .memory import empty
from .products import multiply, summed
from .threads import each
from .tiles import slices

ROWS_BYTES = 4 << 20
"""Rows of a bank that are written at a time: they stay in cache while BLAS adds to them."""


def rows(x: Array, w: Array) -> tuple[Array, Array]:
    """x (N, C, h, w) as (N, D) and a bank (K, C, h, w) as (K, D), both in the bank's memory order."""
    order = (0, 1, 2, 3) if w.flags.c_contiguous else (0, 2, 3, 1)
    return x.transpose(order).reshape(len(x), w[0].size), w.transpose(order).reshape(len(w), w[0].size)


def conv(x: Array, bank: Array, y: Array) -> None:
    """y (N, K) of x (N, D) and `bank` (K, D): the bank on the left, for BLAS packs what is on the right."""
    turned, columns = empty((len(bank), len(x)), x.dtype), np.ascontiguousarray(x.T)
    each(lambda part: summed(bank[part].T, columns, turned[part]), _columns(len(bank)))
    y[...] = turned.T


def conv_dzdx(dzdy: Array, bank: Array) -> Array:
    """dzdx (N, D) of dzdy (N, K) and `bank` (K, D)."""
    dzdx = empty((len(dzdy), bank.shape[1]), dzdy.dtype)
    each(lambda part: np.matmul(dzdy, bank[:, part], out=dzdx[:, part]), _columns(bank.shape[1]))
    return dzdx


def conv_dzdw(dzdy: Array, x: Array) -> Array:
    """dzdw (K, D) of dzdy (N, K) and x (N, D)."""
    dzdw = empty((dzdy.shape[1], x.shape[1]), x.dtype)
    rows = slices(len(dzdw), most=max(8, ROWS_BYTES // max(1, x[:1].nbytes)))
    columns = np.ascontiguousarray(dzdy.T)
    each(lambda part: multiply(columns[part], x, dzdw[part]), rows)
    return dzdw


def _columns(n: int) -> list[slice]:
    """`n` rows or columns in a few slices for each thread."""
    return slices(n, least=256, times=4)
