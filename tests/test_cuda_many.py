"""What is done to many arrays at once on CUDA, run on a CPU, against the reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_cuda_maps import dtypes, types

from dagnn.backends.base import Backend
from dagnn.backends.cupy.many import CHUNK
from dagnn.dtypes import floating

REFERENCE = Backend()
SHAPES = [(), (0, 3), (7,), (2, 3, 4, 5), (CHUNK,), (CHUNK + 1,), (2, CHUNK)]


@st.composite
def many(draw, among):
    """Arrays of several types, and of any order of memory."""
    arrays = []
    for k, shape in enumerate(draw(st.lists(st.sampled_from(SHAPES), max_size=6))):
        name = draw(among)
        a = np.asarray(np.random.default_rng(k).standard_normal(shape))
        a = a.astype(name if name == "int32" else floating(name))
        arrays.append(np.asfortranarray(a) if draw(st.booleans()) else a)
    return arrays


@settings(max_examples=60)
@given(many(types), types, st.sampled_from([1.0, 0.5, 1e6]))
def test_casts_are_the_references(emulated, arrays, dtype, scale):
    on_device = [emulated.asarray(a) for a in arrays]
    made = emulated.cast(on_device, floating(dtype), scale)
    with np.errstate(over="ignore"):
        expected = REFERENCE.cast(arrays, floating(dtype), scale)
    for a, new, right in zip(on_device, made, expected, strict=True):
        assert (new is a) == (a.dtype == floating(dtype) and scale == 1)
        np.testing.assert_array_equal(new.get(), right, strict=True)


@settings(max_examples=60)
@given(many(st.sampled_from([*dtypes(), "int32"])), st.data())
def test_one_number_that_is_not_finite_is_found_anywhere(emulated, arrays, data):
    floats = [a for a in arrays if a.dtype.kind in "fV" and a.size]
    bad = data.draw(st.sampled_from([None, np.nan, np.inf, -np.inf]))
    if floats and bad is not None:
        array = data.draw(st.sampled_from(floats))
        array[np.unravel_index(data.draw(st.integers(0, array.size - 1)), array.shape)] = bad
    result = emulated.finite([emulated.asarray(a) for a in arrays])
    assert result.shape == () and result.dtype == bool
    assert bool(result) == (not floats or bad is None)


def test_pieces_of_arrays_and_what_is_recorded(emulated):
    whole = emulated.asarray(np.arange(24, dtype=np.float32).reshape(4, 6))
    piece, kept = whole[:, ::2], []
    np.testing.assert_array_equal(emulated.cast([piece], np.float64)[0].get(), piece.get())
    assert emulated.finite([piece])

    def work():
        kept[:] = *emulated.cast([piece], np.float64, 2.0), emulated.finite([piece])

    work()
    launch = emulated.recorder().record(work)
    whole[0, 2] = np.nan
    launch()
    np.testing.assert_array_equal(kept[0].get(), 2 * piece.get().astype(np.float64))
    assert not kept[1]


@pytest.mark.parametrize("number", [2, 50])
def test_any_number_of_arrays_is_one_launch(emulated, monkeypatch, number):
    launches, blocks = [], emulated._kernels.blocks
    monkeypatch.setattr(emulated._kernels, "blocks", lambda *a: launches.append(a[1]) or blocks(*a))
    arrays = [emulated.asarray(np.ones(5, np.float32))] * number
    assert emulated.finite(arrays)
    emulated.cast(arrays, np.float16)
    assert launches == ["not_finite", "cast"]
