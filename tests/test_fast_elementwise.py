"""Normalisation and elementwise kernels of the NumPy backend against the reference, cut into pieces."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matlab import error

import dagnn
from dagnn.backends import get
from dagnn.backends.numpy import elementwise, normalisation, passes, rows
from dagnn.errors import DTypeError, OptionError, ShapeError

REFERENCE, FAST = get("reference"), get("numpy")
DTYPES = st.sampled_from([np.float32, np.float64])
LEAKS = st.sampled_from([None, 0.0, 0.2, 1.5])
SHAPES = st.tuples(st.integers(0, 3), st.integers(1, 9), st.integers(1, 6), st.integers(1, 5))


@pytest.fixture(autouse=True, params=[1, 40, 1 << 16], ids=lambda piece: f"pieces of {piece}")
def cut_up(request, monkeypatch):
    """No array is too small for the fast way, and most are cut into several pieces."""
    for module in (elementwise, normalisation):
        monkeypatch.setattr(module, "SMALL", -1)
    monkeypatch.setattr(elementwise, "INLINE", request.param)
    for module in (rows, passes):
        monkeypatch.setattr(module, "PIECE", request.param)
    monkeypatch.setattr(rows, "WIDE", 12)
    monkeypatch.setattr(normalisation, "ROWS", (1, 4096))


@st.composite
def maps(draw, shapes=SHAPES, mean=0.0):
    """Read-only maps in one of several memory orders; some are a part of others."""
    shape, dtype = draw(shapes), draw(DTYPES)
    return _maps(draw, shape, dtype, mean)


def _maps(draw, shape, dtype, mean=0.0):
    n, c, *size = shape
    extra = draw(st.sampled_from([0, 2]))
    values = np.random.default_rng(draw(st.integers(0, 99))).standard_normal((n, c + extra, *size)) + mean
    order = draw(st.sampled_from([(0, 1, 2, 3), (0, 2, 3, 1), (3, 2, 1, 0)]))
    values = np.ascontiguousarray(values.astype(dtype).transpose(order)).transpose(np.argsort(order))
    values = values[:, :c]
    values.flags.writeable = False
    return values


def alike(draw, x):
    return _maps(draw, x.shape, x.dtype)


def close(actual, expected, tolerance=1e-5):
    assert actual.shape == expected.shape and actual.dtype == expected.dtype
    assert error(actual, expected) <= (1e-12 if expected.dtype == np.float64 else tolerance)


@settings(max_examples=60)
@given(st.data(), st.sampled_from([0.0, 1.0, 30.0]), LEAKS)
def test_batch_norm(data, mean, leak):
    x = data.draw(maps(mean=mean))
    c, wide = x.shape[1], np.float64
    g, b = np.linspace(-1, 2, c, dtype=x.dtype), np.linspace(1, -1, c, dtype=x.dtype)
    given = data.draw(st.sampled_from([None, np.stack([g + mean, np.abs(g) + 0.5], axis=1)]))
    add = data.draw(st.sampled_from([None, alike(data.draw, x)]))
    # The reference in double precision: a channel of few values has a sigma that no one knows exactly.
    options = {"epsilon": 0.1, "relu": leak}
    y, moments = FAST.batch_norm(x, g, b, moments=given, add=add, **options)
    if given is not None:
        assert moments is given
    cast = [None if a is None else a.astype(wide) for a in (given, add)]
    references = REFERENCE.batch_norm(
        *(a.astype(wide) for a in (x, g, b)), moments=cast[0], add=cast[1], **options
    )
    tolerance = 1e-5 * (1 + mean)
    close(y, references[0].astype(x.dtype), tolerance)
    close(moments, references[1].astype(x.dtype), tolerance)
    dzdy = alike(data.draw, x)
    ders = FAST.batch_norm_ders(dzdy, x, g, moments, given=given is not None)
    arrays = (dzdy, x, g, moments)
    references = REFERENCE.batch_norm_ders(*(a.astype(wide) for a in arrays), given=given is not None)
    for der, reference in zip(ders, references, strict=True):
        assert error(der, reference) <= (1e-10 if x.dtype == wide else 1e-5 * (1 + mean))
        assert der.dtype == x.dtype


@settings(max_examples=60)
@given(st.data(), maps(), st.integers(1, 7), st.sampled_from([0.5, 0.75, 1.0, 0.6]))
def test_lrn(data, x, size, beta):
    options = {"size": size, "kappa": 1.5, "alpha": 0.4, "beta": beta}
    close(FAST.lrn(x, **options), REFERENCE.lrn(x, **options))
    dzdy = alike(data.draw, x)
    close(FAST.lrn_dzdx(dzdy, x, **options), REFERENCE.lrn_dzdx(dzdy, x, **options))


@settings(max_examples=60)
@given(st.data(), maps(), LEAKS)
def test_elementwise(data, x, leak):
    dzdy, others = alike(data.draw, x), [alike(data.draw, x) for _ in range(data.draw(st.integers(0, 3)))]
    np.testing.assert_array_equal(FAST.sum([x, *others], relu=leak), REFERENCE.sum([x, *others], relu=leak))
    for name in ("sigmoid", "tanh"):
        y = getattr(REFERENCE, name)(x)
        close(getattr(FAST, name)(x), y, 1e-6)
        close(*(getattr(b, f"{name}_dzdx")(dzdy, y) for b in (FAST, REFERENCE)), 1e-6)
    y = REFERENCE.relu(x, leak or 0.0)
    np.testing.assert_array_equal(FAST.relu(x, leak or 0.0), y)
    ders = (b.relu_dzdx(dzdy, y, leak or 0.0) for b in (FAST, REFERENCE))
    np.testing.assert_array_equal(*ders)


@settings(max_examples=40)
@given(st.data(), maps(), st.booleans())
def test_softmax(data, x, flat):
    dzdy = alike(data.draw, x)
    if flat:
        x, dzdy = x[:, :, 0, 0], dzdy[:, :, 0, 0]
    y = REFERENCE.softmax(x) if len(x) else x
    close(FAST.softmax(x), y, 1e-6)
    close(FAST.softmax_dzdx(dzdy, y), REFERENCE.softmax_dzdx(dzdy, y), 1e-6)


@settings(max_examples=40)
@given(st.data(), maps(), st.integers(0, 3), st.integers(1, 3))
def test_concat(data, x, axis, count):
    xs = [x]
    for _ in range(count - 1):
        shape = list(x.shape)
        shape[axis] = data.draw(st.integers(0 if axis != 1 else 1, 5))
        xs.append(_maps(data.draw, shape, x.dtype))
    y = FAST.concat(xs, axis)
    assert y.dtype == x.dtype
    np.testing.assert_array_equal(y, np.concatenate(xs, axis))


@pytest.mark.parametrize("shape", [(3, 5), (2, 3, 4, 5), ()])
@pytest.mark.parametrize("rate", [0.0, 0.3, 0.5])
def test_dropout_masks_are_the_references(shape, rate):
    masks = [b.dropout_mask(b.rng(3, 1), shape, rate, "float32") for b in (FAST, REFERENCE)]
    np.testing.assert_array_equal(*masks)
    assert masks[0].dtype == np.float32 and masks[0].shape == shape


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_numbers_that_are_not_finite_go_where_the_references_go(value):
    x = np.array([value, 1, -1, 0, value, -2], np.float32).reshape(1, 3, 2, 1)
    dzdy = np.array([1, value, value, value, -1, 0], np.float32).reshape(1, 3, 2, 1)
    with np.errstate(all="ignore"):
        for leak in (0.0, 0.1):
            np.testing.assert_array_equal(FAST.relu(x, leak), REFERENCE.relu(x, leak))
            ders = (b.relu_dzdx(dzdy, REFERENCE.relu(x, leak), leak) for b in (FAST, REFERENCE))
            np.testing.assert_array_equal(*ders)
        found, wanted = (b.batch_norm(x, np.ones(3, "f"), np.ones(3, "f"))[0] for b in (FAST, REFERENCE))
    np.testing.assert_array_equal(np.isfinite(found), np.isfinite(wanted))


def test_batch_norm_of_pieces_that_are_far_from_each_other():
    """Each image, so each piece, has a mean of its own, and one channel never changes."""
    x = np.random.default_rng(0).standard_normal((8, 4, 16, 16)) + np.arange(8).reshape(8, 1, 1, 1) * 1000
    x[:, 3] = 0.1
    x = x.astype(np.float32)
    ones = np.ones(4)
    y, moments = FAST.batch_norm(x, ones.astype("f"), ones.astype("f"))
    expected, expected_moments = REFERENCE.batch_norm(x.astype(np.float64), ones, ones)
    assert error(y, expected) < 1e-5
    assert error(moments, expected_moments) < 1e-6


def test_results_are_the_same_every_time():
    x = np.random.default_rng(0).standard_normal((5, 7, 9, 11)).astype(np.float32)
    g = np.ones(7, np.float32)
    try:
        dagnn.set_num_threads(3)
        results = [FAST.batch_norm(x, g, g) for _ in range(5)]
        ders = [FAST.batch_norm_ders(x, x, g, results[0][1]) for _ in range(5)]
    finally:
        dagnn.set_num_threads(None)
    for several in (results, ders):
        for arrays in zip(*several, strict=True):
            assert all((a == arrays[0]).all() for a in arrays)


@pytest.mark.parametrize(
    "kernel, message",
    [
        (lambda x: FAST.batch_norm(x, x[0, :, 0, 0], x[0, :, 0, 0], add=x[:1]), "add has shape"),
        (lambda x: FAST.relu_dzdx(x[:1], x), "dzdy has shape"),
        (lambda x: FAST.lrn_dzdx(x[:1], x, size=2, kappa=1, alpha=1, beta=1), "dzdy has shape"),
        (lambda x: FAST.softmax(x[:, :0]), "channels on axis 1"),
        (lambda x: FAST.sum([x, x[:1]]), "equal shapes"),
        (lambda x: FAST.concat([x, x[:, :, :1]], 1), "equal elsewhere"),
    ],
)
def test_shapes_must_agree(kernel, message):
    with pytest.raises(ShapeError, match=message):
        kernel(np.ones((2, 3, 4, 5)))


def test_types_and_options_must_be_right():
    x = np.ones((2, 3, 4, 5))
    for kernel in (FAST.relu, FAST.sigmoid, FAST.tanh, FAST.softmax):
        with pytest.raises(DTypeError, match="x must be floating"):
            kernel(x.astype(int))
    with pytest.raises(DTypeError, match="floating types differ"):
        FAST.batch_norm(x, x[0, :, 0, 0], x[0, :, 0, 0], add=x.astype(np.float32))
    with pytest.raises(OptionError, match="size must be"):
        FAST.lrn(x, size=0, kappa=1, alpha=1, beta=1)
    with pytest.raises(OptionError, match="axis must be"):
        FAST.concat([x], 4)
