"""Activations, sums, softmax, concatenation and random numbers on CUDA, emulated, against the reference."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dagnn.backends import get
from dagnn.backends.cupy.modules import source
from dagnn.backends.services import Live
from dagnn.errors import OptionError

REFERENCE = get("reference")
TOLERANCE = {"float64": 1e-14, "float32": 2e-6, "float16": 2e-3, "bfloat16": 2e-2}
EXAMPLES = settings(max_examples=60, deadline=None)


@st.composite
def maps(draw):
    """Several (N, C, H, W) maps of one shape and type, each with channels first, last, or neither dense."""
    dtype = draw(st.sampled_from(sorted(TOLERANCE)))
    dtype = pytest.importorskip("ml_dtypes").bfloat16 if dtype == "bfloat16" else dtype
    shape = draw(st.tuples(st.integers(0, 3), st.sampled_from([1, 3, 8, 33, 200]), *[st.integers(1, 5)] * 2))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return [
        (rng.standard_normal(shape).astype(dtype), draw(st.sampled_from(["first", "last", "gaps"])))
        for _ in range(draw(st.integers(1, 20)))
    ]


def here(backend, values, order):
    """An array of the backend in this order of memory."""
    a = backend.asarray(np.ascontiguousarray(values))
    if order == "last":
        a = backend.xp.ascontiguousarray(a.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    if order == "gaps":
        a = backend.xp.concatenate([a, a], axis=3)[..., ::2]
        a[...] = backend.asarray(np.ascontiguousarray(values))
    return a


def agree(backend, name, arrays, *args, **options):
    """The kernel gives what the reference gives, in the order of memory of its first array."""
    ours = [here(backend, *array) for array in arrays]
    values = [value for value, _ in arrays]
    if name in ("sum", "concat"):
        ours, values = [ours], [values]
    expected = getattr(REFERENCE, name)(*values, *args, **options)
    y = getattr(backend, name)(*ours, *args, **options)
    got = backend.to_numpy(y)
    assert got.dtype == expected.dtype and got.shape == expected.shape
    expected = expected.astype(np.float64)
    tolerance = TOLERANCE[got.dtype.name] * max(1, np.abs(expected).max(initial=0))
    np.testing.assert_allclose(got.astype(np.float64), expected, rtol=0, atol=tolerance)
    return y


@EXAMPLES
@given(maps(), st.sampled_from([0.0, 0.1, 2.0]))
def test_activations_are_the_reference(emulated, arrays, leak):
    x, y = arrays[0], arrays[-1]
    agree(emulated, "relu", [x], leak)
    agree(emulated, "relu_dzdx", [x, y], leak)
    for name in ("sigmoid", "tanh", "softmax"):
        agree(emulated, name, [x])
        agree(emulated, f"{name}_dzdx", [x, y])


@EXAMPLES
@given(maps(), st.sampled_from([None, 0.0, 0.2]), st.integers(0, 3))
def test_sums_and_concatenations_are_the_reference(emulated, arrays, leak, axis):
    agree(emulated, "sum", arrays, relu=leak)
    agree(emulated, "concat", arrays[:5], axis)


@pytest.mark.parametrize("order", ["first", "last"])
def test_results_are_in_the_order_of_memory_of_their_inputs(emulated, order):
    x = here(emulated, np.ones((2, 40, 3, 5), np.float32), order)
    for y in (emulated.relu(x), emulated.tanh_dzdx(x, x), emulated.sum([x, x]), emulated.softmax(x)):
        assert y.strides == x.strides
    y = emulated.concat([x, x], 1)
    assert y.transpose(0, 2, 3, 1).flags.c_contiguous == (order == "last")


def test_memory_that_packs_do_not_fit_is_done_one_by_one(emulated):
    x = np.random.default_rng(0).standard_normal(1003).astype(np.float32)
    a, b = emulated.asarray(x)[1:], emulated.asarray(x)[:-1]
    np.testing.assert_array_equal(emulated.relu(a).get(), np.maximum(x[1:], 0))
    np.testing.assert_array_equal(emulated.sum([b, a]).get(), x[:-1] + x[1:])


def test_what_is_not_a_number_goes_through_as_documented(emulated):
    x = emulated.asarray(np.array([np.nan, np.inf, -np.inf, 1.0], np.float32))
    assert emulated.relu(x).get().tolist() == [0, np.inf, 0, 1]
    np.testing.assert_array_equal(emulated.relu(x, 0.5).get(), [np.nan, np.inf, -np.inf, 1])
    rows = np.array([[np.nan, 0], [np.inf, 0], [-np.inf, 0], [-np.inf, -np.inf]])
    with np.errstate(invalid="ignore"):
        expected = REFERENCE.softmax(rows)
    np.testing.assert_array_equal(emulated.softmax(emulated.asarray(rows)).get(), expected)
    many = emulated.xp.zeros((1, 500), np.float32)
    many[0, 300] = np.nan
    assert np.isnan(emulated.softmax(many).get()).all()


def test_softmax_of_many_channels_is_safe_for_scores_of_any_size(emulated):
    x = np.random.default_rng(0).standard_normal((3, 1000)).astype(np.float32) * 1000
    y = emulated.softmax(emulated.asarray(x)).get()
    np.testing.assert_allclose(y, REFERENCE.softmax(x.astype(np.float64)), atol=1e-6)


@pytest.mark.parametrize("order", ["first", "last"])
def test_parts_that_are_in_place_stay_and_others_are_brought(emulated, order):
    whole = here(emulated, np.zeros((2, 7, 3, 3), np.float32), order)
    whole[:, :3] = 1.0
    rest = here(emulated, np.full((2, 4, 3, 3), 2, np.float32), order)
    assert emulated.concat([whole[:, :3], rest], 1, out=whole) is whole
    assert (whole.get()[:, :3] == 1).all() and (whole.get()[:, 3:] == 2).all()


@pytest.mark.parametrize("order", ["first", "last", "gaps"])
def test_results_go_where_they_are_asked_for(emulated, order):
    values = np.random.default_rng(0).standard_normal((2, 3, 4, 5)).astype(np.float32)
    for other in ("first", "last"):
        x, out = here(emulated, values, order), here(emulated, values, other)
        for result in (emulated.relu(x, out=out), emulated.sum([x] * 10, relu=0.0, out=out)):
            assert result is out
        np.testing.assert_allclose(out.get(), np.maximum(10 * values, 0), rtol=1e-6)
        assert emulated.relu_dzdx(x, x, 0.5, out=x) is x  # in place
        np.testing.assert_allclose(x.get(), np.where(values > 0, 1, 0.5) * values)


# Random numbers

ANSWERS = """00000000 00000000 00000000 00000000 00000000 00000000  6627e8d5 e169c58d bc57ac4c 9b00dbd8
    ffffffff ffffffff ffffffff ffffffff ffffffff ffffffff  408f276d 41c83b0e a20bc7c6 6d5451fd
    243f6a88 85a308d3 13198a2e 03707344 a4093822 299f31d0  d16cfe09 94fdcceb 5001e420 24126ea1"""
"""Counter, key and result: Random123's known answers for philox4x32 in 10 rounds."""


def test_philox_gives_the_known_answers(emulated):
    code = (
        source("random")
        + """
    extern "C" __global__ void known(const unsigned int* in, unsigned int* out) {
        Words words = philox({{in[0], in[1], in[2], in[3]}}, in[4], in[5]);
        for (int k = 0; k < 4; k++) out[k] = words.of[k];
    }"""
    )
    xp = emulated.xp
    known = xp.RawModule(code=code, options=("-DREAL=float", "-DACC=float", "-DINDEX=int")).get_function(
        "known"
    )
    for line in ANSWERS.splitlines():
        numbers = np.array([int(word, 16) for word in line.split()], np.uint32)
        out = xp.empty(4, np.uint32)
        known((1,), (1,), (xp.asarray(numbers[:6]), out))
        np.testing.assert_array_equal(out.get(), numbers[6:])


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_random_numbers_are_spread_as_they_should_be(emulated, dtype):
    rng = emulated.rng(3, 1)
    uniform, normal = rng.random((40, 501), dtype).get(), rng.standard_normal((40, 501), dtype).get()
    assert uniform.dtype == normal.dtype == dtype and uniform.shape == (40, 501)
    assert uniform.min() >= 0 and uniform.max() < 1
    np.testing.assert_allclose(np.histogram(uniform, 10, (0, 1))[0] / uniform.size, 0.1, atol=0.01)
    moments = [(normal**k).mean() for k in (1, 2, 3, 4)]
    np.testing.assert_allclose(moments, [0, 1, 0, 3], atol=0.12)
    assert abs(np.corrcoef(uniform.ravel()[1:], uniform.ravel()[:-1])[0, 1]) < 0.03
    assert len(np.unique(normal)) > 0.99 * normal.size


def test_generators_go_on_and_differ_by_their_keys(emulated):
    def draw(*keys):
        return emulated.rng(*keys).random(5).tolist()

    assert draw(1, 2) == draw(1, 2)
    assert len({tuple(draw(*keys)) for keys in ((1, 2), (2, 1), (1,), (1, 2, 0), (1 << 70, 2), (0, 2))}) == 6
    rng = emulated.rng(0)
    assert rng.random().shape == () and rng.random(3).tolist() != rng.random(3).tolist()
    with pytest.raises(OptionError, match="at least 0"):
        emulated.rng(-1)
    with pytest.raises(OptionError, match="float32 or float64"):
        rng.random(3, np.int32)


def test_masks_drop_at_their_rate(emulated):
    for dtype in ("float16", "float32", "float64"):
        mask = emulated.dropout_mask(emulated.rng(5), (3, 4, 50, 50), 0.3, dtype).get()
        kept = np.dtype(dtype).type(1 / 0.7)
        assert set(np.unique(mask)) == {0, kept} and abs((mask == 0).mean() - 0.3) < 0.01


def test_a_recorded_mask_is_that_of_the_key_on_the_device(emulated):
    xp, shape = emulated.xp, (7, 30)
    key = Live(4)
    key.array = xp.full((), 4, np.uint64)
    stream = xp.cuda.Stream(non_blocking=True)
    with stream:
        stream.begin_capture()
        mask = emulated.dropout_mask(emulated.rng(1, key, 9), shape, 0.5, np.float32)
        graph = stream.end_capture()
    for number in (4, 5, 1 << 40):
        key.set(number)
        graph.launch()
        expected = emulated.dropout_mask(emulated.rng(1, number, 9), shape, 0.5, np.float32)
        np.testing.assert_array_equal(mask.get(), expected.get())
    stream.synchronize()
    assert emulated.rng(1, key).random(2).tolist() == emulated.rng(1, 4).random(2).tolist()
