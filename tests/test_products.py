"""Matrix products in blocks against NumPy's, in double precision."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagnn.backends.numpy import products

SIZES = st.integers(1, 70)
STACKS = st.sampled_from([(), (1,), (3,), (2, 3)])


@pytest.fixture(params=[True, False], ids=["blocks", "whole"])
def in_blocks(request, monkeypatch):
    monkeypatch.setattr(products, "in_blocks", lambda: request.param)


def drawn(draw, stack, rows, columns):
    """Matrices, whose rows or columns may be the longer or the nearer ones in memory."""
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    if draw(st.booleans()):
        return rng.standard_normal((*stack, columns, rows)).swapaxes(-1, -2)
    return rng.standard_normal((*stack, rows, columns + draw(st.integers(0, 3))))[..., :columns]


@given(st.data(), STACKS, SIZES, SIZES, st.integers(1, 300), st.sampled_from([300, 3000, 30000]))
@pytest.mark.usefixtures("in_blocks")
def test_products(data, stack, m, k, n, largest):
    a, b = drawn(data.draw, stack, m, k), drawn(data.draw, stack, k, n)
    out = np.full((*stack, m, n + 2), np.nan)[..., :n]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "LARGEST", largest)
        patch.setattr(products, "ALIASED", data.draw(st.sampled_from([8, 2048])))
        products.multiply(a, b, out)
    assert np.allclose(out, a @ b, rtol=1e-12, atol=1e-12)


@given(st.data(), STACKS, st.integers(1, 300), SIZES, SIZES, st.sampled_from([3000, 30000]))
@pytest.mark.usefixtures("in_blocks")
def test_long_sums(data, stack, terms, m, n, largest):
    a, b = drawn(data.draw, stack, terms, m), drawn(data.draw, stack, terms, n)
    out = np.full((*stack, m, n + data.draw(st.integers(0, 2))), np.nan)[..., :n]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(products, "LARGEST", largest)
        products.summed(a, b, out)
    assert np.allclose(out, a.swapaxes(-1, -2) @ b, rtol=1e-12, atol=1e-12)


def test_which_processors_have_a_loop_for_blocks(monkeypatch):
    for found, expected in (
        ({"SkylakeX"}, True),
        ({"Haswell"}, False),
        ({"SkylakeX", ""}, False),
        (set(), False),
    ):
        monkeypatch.setattr(products, "blas_architectures", lambda found=found: found)
        assert products.in_blocks.__wrapped__() is expected
