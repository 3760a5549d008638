"""The CUDA kernels of losses and distances, run on a CPU, against the reference kernels in float64."""

import numpy as np
import pytest
import test_golden_losses as golden
from hypothesis import given, settings
from hypothesis import strategies as st
from matlab import cases, error
from test_cuda_maps import LAYOUTS, TOLERANCES, OnDevice, layouts, types

from dagnn.backends.base import Backend
from dagnn.backends.cupy.losses import TYPES
from dagnn.backends.reference.losses import ATTRIBUTE, CATEGORICAL
from dagnn.dtypes import floating
from dagnn.errors import DTypeError, LabelError, OptionError

REFERENCE = Backend()
KINDS = CATEGORICAL + ATTRIBUTE
few = settings(max_examples=60)


def close(actual, expected, dtype):
    assert actual.dtype == floating(dtype)
    assert error(actual.astype(np.float64), expected) <= TOLERANCES[dtype]


@st.composite
def problems(draw, kind):
    """(scores, labels, weights): scores are multiples of 1/8, so that some are equal and at bends."""
    n, channels = draw(st.integers(1, 3)), draw(st.sampled_from([1, 2, 5, 33, 40]))
    h, w = draw(st.tuples(*[st.integers(1, 3)] * 2))
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    x = rng.integers(-16, 17, (n, channels, h, w)) / 8.0
    if "log" in kind:
        x = np.clip(np.abs(x) / 2.25, 0.0625, 0.9375)
    x = x.astype(floating(draw(types))).astype(np.float64)
    per_score = kind in ATTRIBUTE
    shape = (n, channels if per_score else 1, h, w)
    shape = draw(st.sampled_from([shape] if per_score and channels > 1 else [shape, (n, 1, 1, 1), (n,)]))
    labels = rng.integers(-1, 2 if per_score else channels, shape)
    name = draw(st.sampled_from([name for name in TYPES if name != "bfloat16"]))
    labels = (np.maximum(labels, 0) if name.startswith("u") else labels).astype(name)
    whole = (n, channels if per_score else 1, h, w)
    stretched = tuple(k if draw(st.booleans()) else 1 for k in whole)
    weights = draw(st.sampled_from([None, 0.5, whole, stretched, (n,)]))
    if isinstance(weights, tuple):
        weights = rng.integers(0, 5, weights) / 4.0
    return x, labels, weights


def typed(dtype, *arrays):
    """Arrays of this type, and as float64 exactly the same numbers."""
    rounded = [a.astype(floating(dtype)) if isinstance(a, np.ndarray) else a for a in arrays]
    return rounded, [a.astype(np.float64) if isinstance(a, np.ndarray) else a for a in rounded]


@pytest.mark.parametrize("kind", KINDS)
@few
@given(st.data(), layouts, types, st.booleans())
def test_losses_are_the_reference(emulated, kind, data, layout, dtype, normalise):
    x, labels, weights = data.draw(problems(kind))
    device = OnDevice(emulated, layout)
    options = {"kind": kind, "normalise": normalise, "top_k": data.draw(st.integers(1, 3)), "threshold": 0.25}
    (x, weights, seed), wide = typed(dtype, x, weights, np.array(1.5))
    seed = data.draw(st.sampled_from([1.5, seed]))
    with np.errstate(all="ignore"):
        y = REFERENCE.loss(wide[0], labels, wide[1], **options)
        dzdx = REFERENCE.loss_dzdx(1.5, wide[0], labels, wide[1], **options)
    close(device.loss(x, labels, weights, **options)[0], y, dtype)
    close(device.loss_dzdx(seed, x, labels, weights, **options)[0], dzdx, dtype)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("channels", [3, 40])
def test_scores_that_are_not_finite(emulated, kind, bad, channels):
    device, rng = OnDevice(emulated), np.random.default_rng(1)
    for place in range(channels):
        x = rng.random((2, channels, 1, 1))
        x[0, place] = bad
        x[1, :2] = bad
        labels = np.ones_like(x) if kind in ATTRIBUTE else np.array([0, 1])
        for images in (slice(0, 1), slice(1, 2), slice(0, 2)):
            args = x[images], labels[images]
            with np.errstate(all="ignore"):
                y, dzdx = REFERENCE.loss(*args, kind=kind), REFERENCE.loss_dzdx(1.0, *args, kind=kind)
            np.testing.assert_allclose(device.loss(*args, kind=kind)[0], y, 1e-12)
            np.testing.assert_allclose(device.loss_dzdx(1.0, *args, kind=kind)[0], dzdx, 1e-12)


@pytest.mark.parametrize("kind", ["softmaxlog", "mshinge", "topkerror", "logistic", "binaryerror"])
@pytest.mark.parametrize("label", [3, 7, 0.5, -0.5, np.nan, np.inf])
@pytest.mark.parametrize("kernel", ["loss", "loss_dzdx", "check_labels"])
def test_a_label_that_cannot_be_is_named_as_the_reference_does(emulated, kind, label, kernel):
    x = np.zeros((3, 3, 2, 2))
    labels = np.zeros((3, 3 if kind in ATTRIBUTE else 1, 2, 2), np.float32)
    labels[1, 0, 1, 0] = labels[2, 0, 0, 1] = label
    seed = (1.0,) if kernel == "loss_dzdx" else ()
    with pytest.raises(LabelError) as expected:
        getattr(REFERENCE, kernel)(*seed, x, labels, kind=kind)
    with pytest.raises(LabelError) as actual:
        getattr(OnDevice(emulated), kernel)(*seed, x, labels, kind=kind)
    assert str(actual.value) == str(expected.value) and actual.value.sample == expected.value.sample == 1


def test_labels_per_image_are_named_without_a_pixel(emulated):
    x, labels = emulated.asarray(np.zeros((3, 2, 4, 4), np.float32)), emulated.asarray([0, 1, 2])
    with pytest.raises(LabelError, match="label 2 of sample 2 cannot be: the labels of 2 classes"):
        emulated.loss(x, labels)


def test_labels_are_looked_at_once(emulated, monkeypatch):
    x, labels = emulated.asarray(np.zeros((2, 3, 1, 1), np.float32)), emulated.asarray([0, 2])
    emulated.check_labels(x, labels)
    monkeypatch.setattr(emulated, "_flag", lambda: pytest.fail("asked again"))
    emulated.loss_dzdx(1.0, x, labels)
    for other in (emulated.asarray([1, 1]), emulated.asarray([1.0, 1.0])):
        with pytest.raises(pytest.fail.Exception):
            emulated.loss_dzdx(1.0, x, other)


@pytest.mark.parametrize("kind", ["softmaxlog", "log", "logistic", "hinge", "classerror"])
def test_recorded_losses_follow_their_inputs_and_are_nan_where_labels_cannot_be(emulated, kind):
    shape = (2, 3, 1, 1)
    labels = np.ones(shape) if kind in ATTRIBUTE else np.array([0, 2])
    x, c = emulated.asarray(np.full(shape, 0.5)), emulated.asarray(labels)
    weights, results = emulated.asarray(np.array([1.0, 0.5])), []

    def work():
        results[:] = (
            emulated.loss(x, c, weights, kind=kind), emulated.loss_dzdx(1.0, x, c, weights, kind=kind),
        )  # fmt: skip

    work()
    launch = emulated.recorder().record(work)
    values = np.linspace(0.1, 0.9, 6).reshape(shape)
    x.set(values)
    launch()
    args = values, labels, np.array([1.0, 0.5])
    np.testing.assert_allclose(results[0].get(), REFERENCE.loss(*args, kind=kind), 1e-12)
    np.testing.assert_allclose(results[1].get(), REFERENCE.loss_dzdx(1.0, *args, kind=kind), 1e-12, 1e-15)
    labels.reshape(-1)[-1] = 5
    c.set(labels)
    launch()
    assert np.isnan(results[0].get())
    assert (
        np.isnan(results[1].get()[1]).any() != (kind == "classerror")
        and np.isfinite(results[1].get()[0]).all()
    )


def test_nothing_to_compare(emulated):
    device = OnDevice(emulated)
    for shape in ((0, 3, 2, 2), (2, 3, 0, 2)):
        x = np.zeros(shape, np.float32)
        for kind in KINDS:
            labels = np.zeros(shape if kind in ATTRIBUTE else (shape[0], 1, *shape[2:]), np.int64)
            assert device.loss(x, labels, kind=kind)[0] == 0
            assert device.loss_dzdx(1.0, x, labels, kind=kind)[0].shape == shape
        assert device.smooth_l1(x, x)[0] == 0 and device.pdist(x, x, aggregate=True)[0] == 0
        assert device.pdist(x, x)[0].shape == (shape[0], 1, *shape[2:])
        assert device.pdist_dzdx(1.0, x, x, aggregate=True)[0].shape == shape


def test_labels_are_real_numbers(backend):
    x = backend.asarray(np.zeros((1, 2, 1, 1)))
    with pytest.raises(DTypeError, match="labels are real numbers, got complex128"):
        backend.loss(x, backend.asarray([0j]))


def test_options_are_checked(emulated):
    x, labels = emulated.asarray(np.zeros((1, 2, 1, 1))), emulated.asarray([0])
    with pytest.raises(OptionError, match="top_k must be at least 1. Received: 0"):
        emulated.loss(x, labels, kind="topkerror", top_k=0)


@few
@given(st.data(), layouts, types, st.sampled_from([0.5, 1.0, 3.0]))
def test_smooth_l1_is_the_reference(emulated, data, layout, dtype, sigma):
    shape = data.draw(st.sampled_from([(5,), (3, 7), (2, 3, 4, 2), (2, 300, 1, 1)]))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    arrays = [rng.integers(-16, 17, shape) / 8.0 for _ in range(2)]
    stretched = tuple(k if data.draw(st.booleans()) else 1 for k in shape)
    weights = data.draw(st.sampled_from([None, shape, stretched, ()]))
    (a, b, w), wide = typed(dtype, *arrays, None if weights is None else rng.random(weights))
    device = OnDevice(emulated, layout)
    close(device.smooth_l1(a, b, w, sigma=sigma)[0], REFERENCE.smooth_l1(*wide, sigma=sigma), dtype)
    actual = device.smooth_l1_dzdx(0.5, a, b, w, sigma=sigma)[0]
    close(actual, REFERENCE.smooth_l1_dzdx(0.5, *wide, sigma=sigma), dtype)


@few
@given(st.data(), layouts, types, st.sampled_from([0.5, 1, 1.5, 2, 3]), st.booleans(), st.booleans())
def test_pdist_is_the_reference(emulated, data, layout, dtype, p, no_root, aggregate):
    n, channels = data.draw(st.integers(1, 3)), data.draw(st.sampled_from([1, 4, 40]))
    shape = (n, channels, *data.draw(st.tuples(*[st.integers(1, 3)] * 2)))
    rng = np.random.default_rng(data.draw(st.integers(0, 99)))
    x0 = data.draw(st.sampled_from([shape, (n, channels, 1, 1), (1, channels, *shape[2:])]))
    weights = data.draw(st.sampled_from([None, (n,), (n, 1, *shape[2:])]))
    arrays = rng.integers(-4, 5, shape) / 4.0, rng.integers(-4, 5, x0) / 4.0
    seed = np.array(0.5) if aggregate else rng.random((n, 1, *shape[2:]))
    weights = None if weights is None else rng.random(weights)
    (seed, *args), (wide_seed, *wide) = typed(dtype, seed, *arrays, weights)
    options = {"p": p, "no_root": no_root, "aggregate": aggregate, "epsilon": 0.25}
    device = OnDevice(emulated, layout)
    with np.errstate(all="ignore"):
        y, dzdx = REFERENCE.pdist(*wide, **options), REFERENCE.pdist_dzdx(wide_seed, *wide, **options)
    scale = 1 if dtype in ("float32", "float64") else 4  # y is rounded before it is summed
    assert error(device.pdist(*args, **options)[0].astype(float), y) <= scale * TOLERANCES[dtype]
    close(device.pdist_dzdx(seed, *args, **options)[0], dzdx, dtype)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_results_have_the_memory_order_of_the_scores(emulated, layout):
    order = LAYOUTS[layout]
    x = emulated.xp.zeros([(2, 3, 4, 5)[k] for k in order]).transpose(np.argsort(order).tolist())
    last = layout == "channels last"
    for dzdx in (
        emulated.loss_dzdx(1.0, x, emulated.asarray([0, 1])),
        emulated.smooth_l1_dzdx(1.0, x, x),
        emulated.pdist_dzdx(1.0, x, x, aggregate=True),
    ):
        assert dzdx.transpose(0, 2, 3, 1).flags.c_contiguous == last != dzdx.flags.c_contiguous


@pytest.mark.parametrize("case", cases("loss"))
def test_golden_losses(emulated, case):
    golden.test_loss(emulated, case)


@pytest.mark.parametrize("case", cases("softmaxloss"))
def test_golden_softmaxloss(emulated, case):
    golden.test_softmaxloss_is_loss_with_weights_from_the_second_label_channel(emulated, case)


@pytest.mark.parametrize("case", cases("pdist"))
def test_golden_distances(emulated, case):
    golden.test_pdist(emulated, case)
