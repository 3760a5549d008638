"""Activation, normalisation, loss and elementwise kernels: derivatives, ranges, errors."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from matlab import cases, error

from dagnn.backends.base import Backend
from dagnn.backends.reference.losses import ATTRIBUTE, CATEGORICAL
from dagnn.errors import DTypeError, LabelError, OptionError, ShapeError

SHAPE = (3, 4, 5, 2)


class Kernels:
    """The kernels of a backend on NumPy arrays, which they get read-only."""

    def __init__(self, backend):
        self._backend = backend

    def __getattr__(self, name):
        kernel = getattr(self._backend, name)

        def run(*args, **options):
            result = kernel(*map(self._in, args), **{k: self._in(v) for k, v in options.items()})
            return tuple(map(self._out, result)) if isinstance(result, tuple) else self._out(result)

        return run

    def _in(self, a):
        if isinstance(a, list | tuple) and a and isinstance(a[0], np.ndarray):
            return [self._in(one) for one in a]
        if not isinstance(a, np.ndarray):
            return a
        a = a.view()
        a.flags.writeable = False
        return self._backend.asarray(a)

    def _out(self, a):
        assert self._backend.owns(a)
        a = self._backend.to_numpy(a)
        assert isinstance(a, np.ndarray)
        return a


@pytest.fixture
def kernels(backend):
    return Kernels(backend)


def draw(*shape, seed=0, dtype=np.float64):
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(dtype)


def apart(*shape, seed=0, dtype=np.float64):
    """Distinct numbers from -2 to 2 that keep away from each other, from 0 and from 1."""
    n = int(np.prod(shape))
    steps = (np.arange(n) + 0.25) / n * 3.9 - 1.95
    return np.random.default_rng(seed).permutation(steps).reshape(shape).astype(dtype)


def positive(*shape, dtype=np.float64):
    return (np.abs(apart(*shape)) / 3 + 0.1).astype(dtype)


LABELS = {
    "classes": np.array([2, 0, 3]),
    "class map": np.random.default_rng(0).integers(-1, 4, (3, 1, 5, 2)),
    "attributes": np.random.default_rng(0).integers(-1, 2, SHAPE),
}
WEIGHTS = np.random.default_rng(1).random((3, 1, 5, 2))
OTHER = draw(*SHAPE, seed=5)
MOMENTS = np.stack([draw(4), 1 + positive(4)], axis=1)
LRN = {"size": 4, "kappa": 1.5, "alpha": 0.7, "beta": 0.75}
SPATIAL = {"size": (2, 3), "alpha": 0.7, "beta": 0.75}
OFFSET = {"alpha": 0.7, "beta": 0.6}


def simple(name, **options):
    """A kernel of x whose derivative takes x."""
    return (
        lambda k, x: getattr(k, name)(x, **options),
        lambda k, dzdy, x: getattr(k, f"{name}_dzdx")(dzdy, x, **options),
    )


def by_output(name, **options):
    """A kernel of x whose derivative takes y."""
    return (
        lambda k, x: getattr(k, name)(x, **options),
        lambda k, dzdy, x: getattr(k, f"{name}_dzdx")(dzdy, getattr(k, name)(x, **options), **options),
    )


def with_rest(name, *rest, **options):
    """A kernel of x and further arrays that take no part in the derivative."""

    def cast(x):
        return [r.astype(x.dtype) if r.dtype == np.float64 else r for r in rest]

    return (
        lambda k, x: getattr(k, name)(x, *cast(x), **options),
        lambda k, dzdy, x: getattr(k, f"{name}_dzdx")(dzdy, x, *cast(x), **options),
    )


def batch_norm(part, moments=None):
    """Batch normalisation as a function of x, of the multipliers or of the biases."""

    def inputs(value):
        both = [OTHER, draw(4, seed=1), draw(4, seed=2)]
        both = [b.astype(value.dtype) for b in both]
        both[part] = value
        return *both, None if moments is None else moments.astype(value.dtype)

    def forward(k, value):
        x, g, b, given = inputs(value)
        return k.batch_norm(x, g, b, epsilon=1e-3, moments=given)[0]

    def backward(k, dzdy, value):
        x, g, b, given = inputs(value)
        found = k.batch_norm(x, g, b, epsilon=1e-3, moments=given)[1]
        return k.batch_norm_ders(dzdy, x, g, found, given=given is not None)[part]

    return forward, backward


def normalize_lp(p, axes):
    def backward(k, dzdy, x):
        norms = k.normalize_lp(x, p=p, axes=axes)[1]
        return k.normalize_lp_dzdx(dzdy, x, norms, p=p, axes=axes)

    return (lambda k, x: k.normalize_lp(x, p=p, axes=axes)[0]), backward


def pdist_x0(k, x0):
    return k.pdist(OTHER.astype(x0.dtype), x0, WEIGHTS, p=3.0)


def pdist_dzdx0(k, dzdy, x0):
    return -k.sum_to(k.pdist_dzdx(dzdy, OTHER.astype(x0.dtype), x0, WEIGHTS, p=3.0), x0.shape)


CHECKS = {
    "relu": (apart(*SHAPE), by_output("relu")),
    "relu leak": (apart(*SHAPE), by_output("relu", leak=np.float64(0.2))),
    "relu leak above 1": (apart(*SHAPE), by_output("relu", leak=1.5)),
    "sigmoid": (draw(*SHAPE), by_output("sigmoid")),
    "tanh": (draw(*SHAPE), by_output("tanh")),
    "softmax": (draw(*SHAPE), by_output("softmax")),
    "batch_norm x": (draw(*SHAPE), batch_norm(0)),
    "batch_norm multipliers": (draw(4), batch_norm(1)),
    "batch_norm biases": (draw(4), batch_norm(2)),
    "batch_norm given x": (draw(*SHAPE), batch_norm(0, MOMENTS)),
    "batch_norm given multipliers": (draw(4), batch_norm(1, MOMENTS)),
    "batch_norm given biases": (draw(4), batch_norm(2, MOMENTS)),
    "lrn": (draw(*SHAPE), simple("lrn", **LRN)),
    "lrn of everything": (draw(*SHAPE), simple("lrn", **LRN | {"size": 20})),
    "spatial_norm": (draw(*SHAPE), simple("spatial_norm", **SPATIAL)),
    "norm_offset": (draw(*SHAPE), simple("norm_offset", **OFFSET)),
    "normalize_lp": (draw(*SHAPE), normalize_lp(2.0, (1,))),
    "normalize_lp 3": (positive(*SHAPE), normalize_lp(np.float64(3.0), (2, 3))),
    "smooth_l1": (OTHER + apart(*SHAPE), with_rest("smooth_l1", OTHER, WEIGHTS, sigma=np.float64(1.2))),
    "pdist x0": (draw(3, 4, 1, 1), (pdist_x0, pdist_dzdx0)),
}
for p in (0.5, 1, 2, 3.5):
    CHECKS[f"pdist {p}"] = OTHER + apart(*SHAPE), with_rest("pdist", OTHER, WEIGHTS, p=p)
    CHECKS[f"pdist {p} no_root"] = OTHER + apart(*SHAPE), with_rest("pdist", OTHER, p=p, no_root=True)
    CHECKS[f"pdist {p} aggregate"] = OTHER + apart(*SHAPE), with_rest("pdist", OTHER, p=p, aggregate=True)
for kind in CATEGORICAL:
    x = positive(*SHAPE) if kind == "log" else apart(*SHAPE)
    CHECKS[f"loss {kind}"] = x, with_rest("loss", LABELS["classes"], kind=kind)
    CHECKS[f"loss {kind} map"] = x, with_rest("loss", LABELS["class map"], WEIGHTS, kind=kind, top_k=2)
for kind in ATTRIBUTE:
    x = positive(*SHAPE) if kind == "binarylog" else apart(*SHAPE)
    CHECKS[f"loss {kind}"] = x, with_rest("loss", LABELS["attributes"], WEIGHTS, kind=kind, normalise=False)


@pytest.mark.parametrize("name", CHECKS)
def test_derivative_is_that_of_central_differences(kernels, name):
    x, (forward, backward) = CHECKS[name]
    y = forward(kernels, x)
    dzdy, direction, step = draw(*y.shape, seed=7), draw(*x.shape, seed=8), 1e-6
    slope = (forward(kernels, x + step * direction) - forward(kernels, x - step * direction)) / (2 * step)
    dzdx = backward(kernels, dzdy, x)
    assert dzdx.shape == x.shape
    assert np.sum(dzdx * direction) == pytest.approx(np.sum(dzdy * slope), rel=1e-6, abs=1e-8)


@pytest.mark.parametrize("name", CHECKS)
def test_float32_stays_float32_in_any_memory_layout(kernels, name):
    x, (forward, backward) = CHECKS[name]
    x = x.astype(np.float32)
    if x.ndim == 4:
        x = np.ascontiguousarray(x.transpose(0, 2, 3, 1)).transpose(0, 3, 1, 2)
    y, reference = forward(kernels, x), forward(kernels, x.astype(np.float64))
    dzdy = draw(*y.shape, seed=7, dtype=np.float32)
    dzdx = backward(kernels, dzdy, x)
    assert y.dtype == dzdx.dtype == np.float32
    assert error(y, reference) < 1e-5
    assert error(dzdx, backward(kernels, dzdy.astype(np.float64), x.astype(np.float64))) < 1e-5


# activations


def test_relu_turns_nan_into_zero(kernels):
    x = np.array([np.nan, -1.0, 2.0])
    y = kernels.relu(x)
    np.testing.assert_array_equal(y, [0, 0, 2])
    np.testing.assert_array_equal(kernels.relu_dzdx(np.ones(3), y), [0, 0, 1])


@settings(deadline=None, max_examples=50)
@given(st.integers(0, 10**6), st.floats(-1e6, 1e6), st.sampled_from([1, 30, 1e4]))
def test_softmax_sums_to_one_and_ignores_a_shift(seed, shift, spread):
    softmax = Backend().softmax
    x = draw(2, 5, 3, 3, seed=seed) * spread
    y = softmax(x)
    np.testing.assert_allclose(y.sum(axis=1), 1, rtol=1e-12)
    np.testing.assert_allclose(softmax(x + shift), y, rtol=1e-6, atol=1e-9)


@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_huge_scores_do_not_overflow(kernels, dtype):
    x = np.array([[3e4, -3e4, 0], [-3e4, -3e4, -3e4]], dtype).reshape(2, 3, 1, 1)
    np.testing.assert_allclose(kernels.softmax(x)[:, :, 0, 0], [[1, 0, 0], [1 / 3] * 3], rtol=1e-6)
    np.testing.assert_array_equal(kernels.sigmoid(x)[0].ravel(), [1, 0, 0.5])
    np.testing.assert_array_equal(kernels.tanh(x)[0].ravel(), [1, -1, 0])
    assert kernels.loss(x, np.array([1, 0])) == pytest.approx((6e4 + np.log(3)) / 2)
    np.testing.assert_allclose(kernels.loss_dzdx(2.0, x, np.array([1, 0]))[0].ravel(), [1, -1, 0], atol=1e-6)
    for kind in ("logistic", "hinge", "mhinge", "mshinge"):
        labels = np.ones((2, 3, 1, 1)) if kind in ATTRIBUTE else np.array([1, 0])
        assert np.isfinite(kernels.loss(x, labels, kind=kind))
        assert np.isfinite(kernels.loss_dzdx(1.0, x, labels, kind=kind)).all()


def test_small_sigmoids_keep_their_digits(kernels):
    x = np.array([-40.0, -80.0])
    np.testing.assert_allclose(kernels.sigmoid(x), np.exp(x), rtol=1e-12)
    np.testing.assert_allclose(kernels.sigmoid(x.astype(np.float32)), np.exp(x), rtol=1e-5)


def test_dropout_masks_are_those_of_their_key(kernels, backend):
    keys = [(1, 2), (1, 2), (1, 3)]
    masks = [kernels.dropout_mask(backend.rng(*key), SHAPE, 0.3, "float32") for key in keys]
    np.testing.assert_array_equal(masks[0], masks[1])
    assert (masks[0] != masks[2]).any()
    assert masks[0].dtype == np.float32
    assert (kernels.dropout_mask(backend.rng(0), SHAPE, 0.0, "float64") == 1).all()
    for rate in (1, -0.1, np.nan):
        with pytest.raises(OptionError, match="rate must be at least 0 and less than 1"):
            backend.dropout_mask(backend.rng(0), SHAPE, rate, "float32")


# normalisation


@pytest.mark.parametrize("mean, sigma", [(1e4, 1), (0, 1), (-3e3, 0.1)])
@pytest.mark.parametrize("shape", [(4, 3, 40, 30), (5000, 3, 1, 1)])
def test_batch_norm_keeps_its_digits_at_large_means(kernels, mean, sigma, shape):
    x = (draw(*shape) * sigma + mean).astype(np.float32)
    g, b = np.array([1, -2, 0.5], np.float32), np.array([0, 1, -1], np.float32)
    dzdy = draw(*shape, seed=1, dtype=np.float32)
    wide = [a.astype(np.float64) for a in (x, g, b, dzdy)]

    y, moments = kernels.batch_norm(x, g, b)
    ders = kernels.batch_norm_ders(dzdy, x, g, moments)
    reference, wide_moments = kernels.batch_norm(*wide[:3])
    references = kernels.batch_norm_ders(wide[3], wide[0], wide[1], wide_moments)

    assert error(y, reference) < 1e-5
    assert np.abs(moments[:, 0] - wide_moments[:, 0]).max() < 1e-7 * (abs(mean) + sigma)
    assert error(moments[:, 1], wide_moments[:, 1]) < 1e-5
    for der, reference in zip(ders, references, strict=True):
        assert der.dtype == np.float32
        assert error(der, reference) < 1e-5


@pytest.mark.parametrize("case", [c for c in cases("bnorm") if c.id.startswith("bnorm-given")])
def test_batch_norm_with_given_moments_is_linear_and_has_that_derivative(kernels, case):
    x, g, b, moments = case.x("x"), case.x("g").ravel(), case.x("b").ravel(), case.x("moments").reshape(-1, 2)
    dzdx = kernels.batch_norm_ders(case.dzdy(), x, g, moments, given=True)[0]
    direction = draw(*x.shape)
    change = kernels.batch_norm(x + direction, g, b, moments=moments)[0] - case.y("y")
    assert np.sum(dzdx * direction) == pytest.approx(np.sum(case.dzdy() * change), rel=1e-9)


def test_constant_channels_normalise_to_the_bias(kernels):
    x = np.full((2, 3, 4, 4), 0.1, np.float32)
    y, moments = kernels.batch_norm(x, np.ones(3, np.float32), np.full(3, 5, np.float32))
    np.testing.assert_allclose(y, 5, rtol=1e-6)
    np.testing.assert_allclose(moments, np.broadcast_to([0.1, 0.01], (3, 2)), rtol=1e-5)


@pytest.mark.parametrize("size", [1, 2, 3, 6, 7, 8, 12, 13, 40])
def test_lrn_windows(kernels, size):
    x = draw(2, 6, 2, 1)
    energy = np.zeros_like(x)
    for c in range(6):
        first, last = c - (size - 1) // 2, c + size // 2
        energy[:, c] = 2 + 0.3 * np.sum(x[:, max(first, 0) : last + 1] ** 2, axis=1)
    y = kernels.lrn(x, size=size, kappa=2.0, alpha=0.3, beta=0.75)
    assert error(y, x / energy**0.75) < 1e-12
    with pytest.raises(OptionError, match="size must be a whole number"):
        kernels.lrn(x, size=size - 0.5, kappa=2.0, alpha=0.3, beta=0.75)


def test_normalize_lp_checks_its_norms_and_power(kernels):
    x = draw(*SHAPE)
    with pytest.raises(ShapeError, match=r"norms has shape \(3, 4, 1, 1\), expected \(3, 1, 5, 2\)"):
        kernels.normalize_lp(x, norms=np.ones((3, 4, 1, 1)))
    with pytest.raises(OptionError, match=r"p must be positive\. Received: 0"):
        kernels.normalize_lp(x, p=0)


# losses


def test_labels_may_be_written_in_many_ways(kernels):
    x = draw(3, 4, 1, 1)
    expected = kernels.loss(x, np.array([2, 0, 3]))
    labels = np.array([2, 0, 3])
    for shape in [(3,), (3, 1), (1, 3), (3, 1, 1, 1), (1, 1, 1, 3)]:
        for dtype in (np.uint8, np.int32, np.float32, np.float64):
            assert kernels.loss(x, labels.reshape(shape).astype(dtype)) == expected
    assert kernels.loss(x, [2, 0, 3]) == expected
    signs = np.where(labels[:, None] == np.arange(4), 1, -1)
    maps = kernels.loss(x, signs.reshape(3, 4, 1, 1), kind="logistic")
    assert kernels.loss(x, signs, kind="logistic") == maps
    one = kernels.loss(x[:, :1], np.array([1, -1, 1]), kind="hinge")
    assert one == kernels.loss(x[:, :1], np.array([1, -1, 1]).reshape(3, 1, 1, 1), kind="hinge")


def test_one_label_per_image_holds_for_all_pixels(kernels):
    x, labels = draw(*SHAPE), LABELS["classes"]
    everywhere = np.broadcast_to(labels[:, None, None, None], (3, 1, 5, 2)).copy()
    for kind in CATEGORICAL:
        scores = np.exp(x) if kind == "log" else x
        assert kernels.loss(scores, labels, kind=kind) == kernels.loss(scores, everywhere, kind=kind)
    signs = np.array([1, -1, 1])
    assert kernels.loss(x[:, :1], signs, kind="hinge") == pytest.approx(
        np.maximum(0, 1 - signs[:, None, None, None] * x[:, :1]).sum() / 3
    )


def test_weights_may_be_one_per_image_a_map_or_a_number(kernels):
    x, labels, per_image = draw(*SHAPE), LABELS["class map"], np.array([0.5, 2, 0])
    spread = np.broadcast_to(per_image[:, None, None, None], (3, 1, 5, 2))
    for shape in [(3,), (3, 1), (1, 3), (3, 1, 1, 1)]:
        assert kernels.loss(x, labels, per_image.reshape(shape)) == kernels.loss(x, labels, spread.copy())
    assert kernels.loss(x, labels, 3) == pytest.approx(3 * kernels.loss(x, labels))
    for shape in [(5, 2), (3, 4, 5, 2), (2,), (1, 1, 2, 5)]:
        with pytest.raises(ShapeError, match="weights"):
            kernels.loss(x, labels, np.ones(shape))


@pytest.mark.parametrize("kind", CATEGORICAL + ATTRIBUTE)
def test_ignored_labels_count_for_nothing_but_in_the_number_of_images(kernels, kind):
    x = positive(*SHAPE)
    labels = LABELS["attributes"] if kind in ATTRIBUTE else np.array([2, -1, 3])
    x[labels == 0 if kind in ATTRIBUTE else 1] = 0  # where "log" would be infinite
    total = kernels.loss(x, labels, kind=kind, normalise=False)
    assert np.isfinite(total)
    assert kernels.loss(x, labels, kind=kind) == pytest.approx(total / 3)
    dzdx = kernels.loss_dzdx(1.0, x, labels, kind=kind)
    assert not dzdx[labels == 0 if kind in ATTRIBUTE else 1].any()
    if kind in CATEGORICAL:
        kept = kernels.loss(x[[0, 2]], labels[[0, 2]], kind=kind, normalise=False)
        assert total == pytest.approx(kept)


def test_an_impossible_probability_costs_infinity_and_has_a_finite_derivative(kernels):
    x = np.array([0.0, 1.0]).reshape(1, 2, 1, 1)
    assert kernels.loss(x, [0], kind="log") == np.inf
    np.testing.assert_allclose(kernels.loss_dzdx(1.0, x, [0], kind="log").ravel(), [-1e8, 0])
    assert kernels.loss(x, np.array([[1, 1]]), kind="binarylog") == np.inf


@settings(deadline=None, max_examples=60)
@given(st.integers(1, 7), st.integers(1, 8), st.integers(0, 1000))
def test_topkerror_is_a_stable_descending_sort(channels, top_k, seed):
    loss = Backend().loss
    rng = np.random.default_rng(seed)
    x = rng.integers(0, 3, (20, channels, 1, 1)).astype(float)  # many ties
    labels = rng.integers(0, channels, 20)
    first = np.argsort(-x, axis=1, kind="stable")[:, :top_k, 0, 0]
    assert loss(x, labels, kind="topkerror", top_k=top_k) == np.mean((first != labels[:, None]).all(axis=1))
    assert loss(x, labels, kind="classerror") == pytest.approx(np.mean(x.argmax(axis=1).ravel() != labels))


def test_a_nan_score_is_never_right(kernels):
    x = np.array([[np.nan, 1, 0], [1, np.nan, 0]]).reshape(2, 3, 1, 1)
    assert kernels.loss(x, [0, 0], kind="classerror") == 1


@pytest.mark.parametrize(
    "labels, kind, message",
    [
        ([0, 4, 1], "softmaxlog", "label 4 of sample 1 cannot be: .* 4 classes are whole .* 0 to 3"),
        (np.array([0, 1, 255], np.uint8), "log", "label 255 of sample 2 .*negative to be ignored"),
        ([0.5, 1, 2], "mhinge", "label 0.5 of sample 0 .* whole numbers"),
        ([0, np.nan, 2], "classerror", "label nan of sample 1"),
        ([0, np.inf, 2], "classerror", "label inf of sample 1"),
        (np.full((3, 1, 5, 2), 9.0, np.float32), "topkerror", r"label 9.0 of sample 0 at pixel \(0, 0\)"),
        (np.full(SHAPE, 2), "hinge", r"label 2 of sample 0 .* 4 attributes are -1 and \+1, or 0 to be"),
    ],
)
def test_labels_out_of_range_are_named(kernels, labels, kind, message):
    for kernel in (kernels.loss, lambda *args, **options: kernels.loss_dzdx(1.0, *args, **options)):
        with pytest.raises(LabelError, match=message):
            kernel(draw(*SHAPE), np.asarray(labels), kind=kind)


def test_losses_are_arrays_without_axes(kernels):
    x = draw(*SHAPE, dtype=np.float32)
    values = kernels.loss(x, LABELS["classes"]), kernels.smooth_l1(x, x), kernels.pdist(x, x, aggregate=True)
    for value in values:
        assert value.shape == ()
        assert value.dtype == np.float32


def test_dzdy_is_a_number_or_an_array_of_one(kernels):
    x, labels = draw(*SHAPE, dtype=np.float32), LABELS["classes"]
    expected = kernels.loss_dzdx(2.0, x, labels)
    for dzdy in (2, np.float64(2), np.array(2, np.float32), np.full((1, 1, 1, 1), 2, np.float32)):
        dzdx = kernels.loss_dzdx(dzdy, x, labels)
        assert dzdx.dtype == np.float32
        np.testing.assert_array_equal(dzdx, expected)
    with pytest.raises(DTypeError, match="x is float32, dzdy is float64"):
        kernels.loss_dzdx(np.array(2.0), x, labels)
    with pytest.raises(ShapeError, match=r"dzdy must be one number, got shape \(3,\)"):
        kernels.loss_dzdx(np.ones(3, np.float32), x, labels)


@pytest.mark.parametrize("sigma", [0.5, 1.0, 3.0])
def test_smooth_l1_is_that_of_torch(kernels, sigma):
    torch = pytest.importorskip("torch")
    x, x0 = draw(*SHAPE), OTHER
    there = torch.tensor(x, requires_grad=True)
    value = torch.nn.functional.smooth_l1_loss(there, torch.tensor(x0), reduction="sum", beta=1 / sigma**2)
    value.backward()
    assert kernels.smooth_l1(x, x0, sigma=sigma) == pytest.approx(value.item(), rel=1e-12)
    assert error(kernels.smooth_l1_dzdx(1.0, x, x0, sigma=sigma), there.grad.numpy()) < 1e-12


def test_distances_of_equal_vectors_have_finite_derivatives(kernels):
    x, dzdy = draw(*SHAPE), np.ones((3, 1, 5, 2))
    for p in (0.5, 1, 1.5, 2, 3):
        for no_root in (False, True):
            assert not kernels.pdist(x, x, p=p, no_root=no_root).any()
            assert not kernels.pdist_dzdx(dzdy, x, x, p=p, no_root=no_root).any()


def test_options_and_shapes_of_losses_are_checked(kernels):
    x, labels = draw(*SHAPE), LABELS["classes"]
    with pytest.raises(OptionError, match=r"top_k must be at least 1\. Received: 0"):
        kernels.loss(x, labels, kind="topkerror", top_k=0)
    with pytest.raises(OptionError, match=r"sigma must be positive\. Received: 0"):
        kernels.smooth_l1(x, x, sigma=0)
    with pytest.raises(OptionError, match=r"p must be positive\. Received: -1"):
        kernels.pdist(x, x, p=-1)
    with pytest.raises(ShapeError, match=r"x0 of shape \(3, 2, 1, 1\) does not broadcast to \(3, 4, 5, 2\)"):
        kernels.pdist(x, x[:, :2, :1, :1])
    with pytest.raises(ShapeError, match="x0 has shape"):
        kernels.smooth_l1(x, x[:2])
    with pytest.raises(ShapeError, match=r"weights of shape \(3,\) does not broadcast"):
        kernels.smooth_l1(x, x, np.ones(3))
    with pytest.raises(ShapeError, match=r"dzdy has shape \(3, 4, 5, 2\), expected \(3, 1, 5, 2\)"):
        kernels.pdist_dzdx(x, x, x)
    with pytest.raises(ShapeError, match="x must have 4 axes"):
        kernels.loss(x[0], labels)


# elementwise


def test_sums_leave_their_inputs_alone(kernels, backend):
    xs = [draw(*SHAPE, seed=k) for k in range(4)]
    np.testing.assert_allclose(kernels.sum(xs), np.sum(xs, axis=0))
    only = backend.asarray(xs[0])
    assert backend.sum([only]) is only
    assert kernels.sum([np.array(1.0), np.array(2.0)]).shape == ()
    with pytest.raises(ShapeError, match=r"sum needs equal shapes, got \(3, 4, 5, 2\), \(3, 4, 5, 1\)"):
        kernels.sum([xs[0], xs[1][..., :1]])
    with pytest.raises(DTypeError, match="input 0 is float64, input 1 is float32"):
        kernels.sum([xs[0], xs[1].astype(np.float32)])


def test_concat_checks_the_other_axes(kernels):
    x = draw(*SHAPE)
    assert kernels.concat([x, x[:, :1]], 1).shape == (3, 5, 5, 2)
    with pytest.raises(ShapeError, match="concat along axis 1 needs shapes equal elsewhere"):
        kernels.concat([x, x[:2]], 1)
    with pytest.raises(OptionError, match=r"axis must be 0 to 3\. Received: 4"):
        kernels.concat([x, x], 4)
    with pytest.raises(ShapeError, match="at least one"):
        kernels.concat([], 1)


@settings(deadline=None, max_examples=60)
@given(st.lists(st.integers(1, 3), min_size=1, max_size=4), st.data())
def test_sum_to_is_the_transpose_of_broadcasting(shape, data):
    small = [n if data.draw(st.booleans()) else 1 for n in shape][data.draw(st.integers(0, len(shape))) :]
    wide, narrow = draw(*shape), draw(*small, seed=1)
    total = Backend().sum_to(wide, tuple(small))
    assert total.shape == narrow.shape
    assert np.sum(total * narrow) == pytest.approx(np.sum(wide * np.broadcast_to(narrow, shape)), abs=1e-12)


def test_sum_to_refuses_what_does_not_broadcast(kernels):
    with pytest.raises(ShapeError, match=r"shape \(2, 1\) does not broadcast to \(3, 4\)"):
        kernels.sum_to(np.ones((3, 4)), (2, 1))
    with pytest.raises(ShapeError, match=r"shape \(1, 3, 4\) does not broadcast to \(3, 4\)"):
        kernels.sum_to(np.ones((3, 4)), (1, 3, 4))


@pytest.mark.parametrize("name", ["sigmoid", "softmax", "relu", "tanh"])
def test_activations_take_floats_of_one_type_only(kernels, name):
    with pytest.raises(DTypeError, match="x must be floating, got int64"):
        getattr(kernels, name)(np.ones(SHAPE, np.int64))
    with pytest.raises(DTypeError, match="dzdy is float32, y is float64"):
        getattr(kernels, f"{name}_dzdx")(draw(*SHAPE, dtype=np.float32), draw(*SHAPE))
    with pytest.raises(ShapeError, match="dzdy has shape"):
        getattr(kernels, f"{name}_dzdx")(draw(3, 4), draw(*SHAPE))


def test_bytes_may_be_in_the_order_of_another_machine(kernels, backend):
    if backend.name == "cupy":
        pytest.skip("has no such arrays")
    x, w = draw(2, 8, 50, 50), draw(4, 8, 3, 3)

    def results(dtype):
        a, b, one = x.astype(dtype), w.astype(dtype), np.ones(8, dtype)
        y = kernels.conv(a, b).astype(dtype)
        yield from (y, kernels.conv_dzdx(y, b, a.shape))
        yield from (kernels.conv_dzdw(y, a, b.shape), kernels.conv_dzdb(y))
        normal, moments = kernels.batch_norm(a, one, one)
        yield from (normal, *kernels.batch_norm_ders(a[::-1], a, one, moments.astype(dtype)))
        yield from (kernels.relu(a), kernels.softmax(a), kernels.max_pool(a, 3)[0], kernels.avg_pool(a, 3))

    for ours, theirs in zip(results("<f8"), results(">f8"), strict=True):
        assert error(theirs, ours) < 1e-12
