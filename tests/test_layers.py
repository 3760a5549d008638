"""Every built-in layer: derivatives, shapes, options, what it saves, what it leaves uncomputed."""

import inspect
import json
from functools import cache

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dagnn
from dagnn import (
    LRN,
    AffineGridGenerator,
    BatchNorm,
    BilinearSampler,
    Concat,
    Conv,
    ConvTranspose,
    Crop,
    Custom,
    DropOut,
    Loss,
    LossSmoothL1,
    NormalizeLp,
    NormOffset,
    PDist,
    Permute,
    Placeholder,
    Pooling,
    ReceptiveField,
    ReLU,
    Reshape,
    ROIPooling,
    Scale,
    Sigmoid,
    Slice,
    SoftMax,
    SpatialNorm,
    Split,
    Sum,
    Tanh,
    UniformScalingGridGenerator,
    backends,
)
from dagnn.errors import OptionError, PlaceholderError, ShapeError
from dagnn.geometry import NOTHING
from dagnn.layers import BUILTIN

X = (2, 4, 6, 5)
rng = np.random.default_rng(7)


def uniform(*shape, low=0.1, high=0.9):
    return rng.uniform(low, high, shape)


def classes(*shape):
    return rng.integers(-1, 4, shape)


def signs(*shape):
    return rng.integers(-1, 2, shape)


ROIS = np.array([[0, 1, 0, 1], [0, 1, 2, -1], [1, 0, 3, 0], [3, 4, 1, 9], [4, 5, 3, 7]])
MOMENTS = np.stack([uniform(4, low=-1), uniform(4, low=0.5, high=2)], axis=1)
AFFINE = np.array([2 / 3, 0.1, 0.25, -0.1, 0.7, 0.5])


def double(ctx, inputs, params):
    return [2 * inputs[0]]


def double_back(ctx, params, der_outputs):
    return [2 * der_outputs[0]], []


CASES = {
    "conv": (Conv((3, 4, 3, 2)), [X]),
    "conv-options": (Conv((3, 4, 2, 3), stride=(2, 1), pad=(1, 2, 0, 1), dilate=(2, 1)), [X]),
    "conv-groups": (Conv((6, 2, 3, 3), pad=1, has_bias=False), [X]),
    "conv-1x1": (Conv((5, 4, 1, 1)), [X]),
    "conv-all": (Conv((5, 4, 6, 5)), [X]),
    "convt": (ConvTranspose((4, 3, 3, 2)), [X]),
    "convt-options": (ConvTranspose((4, 3, 4, 3), upsample=(3, 2), crop=(1, 0, 2, 1)), [X]),
    "convt-groups": (ConvTranspose((4, 3, 2, 2), upsample=2, num_groups=2, has_bias=False), [X]),
    "pool": (Pooling("max", 2, stride=2), [X]),
    "pool-options": (Pooling("max", (3, 2), stride=(2, 1), pad=(0, 2, 1, 0)), [X]),
    "pool-avg": (Pooling("avg", 3, stride=2, pad=(1, 0, 2, 1)), [X]),
    "relu": (ReLU(), [X]),
    "relu-leak": (ReLU(leak=0.2), [X]),
    "sigmoid": (Sigmoid(), [X]),
    "tanh": (Tanh(), [X]),
    "softmax": (SoftMax(), [X]),
    "bnorm": (BatchNorm(4), [X]),
    "bnorm-test": (
        BatchNorm(4, 1e-3),
        [X],
        {"mode": "test", "params": [uniform(4), uniform(4), MOMENTS]},
    ),
    "dropout": (DropOut(0.3), [X]),
    "dropout-frozen": (DropOut(0.3, frozen=True), [X]),
    "dropout-test": (DropOut(0.3), [X], {"mode": "test"}),
    "lrn": (LRN(), [(2, 7, 3, 2)]),
    "lrn-even": (LRN((4, 2, 0.3, 0.6)), [(2, 7, 3, 2)]),
    "normalizelp": (NormalizeLp(), [X]),
    "normalizelp-options": (
        NormalizeLp(p=3, epsilon=0.1, spatial=True, scale=4.0),
        [X],
        {"inputs": [uniform(*X)]},
    ),
    "spnorm": (SpatialNorm(), [X]),
    "spnorm-options": (SpatialNorm((3, 4, 0.7, 0.4)), [X]),
    "noffset": (NormOffset(), [X]),
    "noffset-options": (NormOffset((0.3, 0.8)), [X]),
    "loss": (Loss(), [X, (2,)], {"inputs": [None, [1, 3]]}),
    "loss-map": (Loss(normalise=False), [X, (2, 1, 6, 5)], {"inputs": [None, classes(2, 1, 6, 5)]}),
    "loss-weights": (
        Loss(ignore_average=True),
        [X, (2, 1, 6, 5), (2, 1, 6, 5)],
        {"inputs": [None, classes(2, 1, 6, 5), None]},
    ),
    "loss-log": (Loss("log"), [X, (2, 1, 6, 5)], {"inputs": [uniform(*X), classes(2, 1, 6, 5)]}),
    "loss-mhinge": (Loss("mhinge"), [X, (2, 1, 6, 5)], {"inputs": [None, classes(2, 1, 6, 5)]}),
    "loss-mshinge": (Loss("mshinge"), [X, (2, 1, 6, 5)], {"inputs": [None, classes(2, 1, 6, 5)]}),
    "loss-classerror": (Loss("classerror"), [X, (2,)], {"inputs": [None, [0, 2]]}),
    "loss-topkerror": (Loss("topkerror", top_k=2), [X, (2,)], {"inputs": [None, [0, 2]]}),
    "loss-binaryerror": (Loss("binaryerror", threshold=0.1), [X, X], {"inputs": [None, signs(*X)]}),
    "loss-binarylog": (Loss("binarylog"), [X, X], {"inputs": [uniform(*X), signs(*X)]}),
    "loss-logistic": (Loss("logistic"), [X, X], {"inputs": [None, signs(*X)]}),
    "loss-hinge": (Loss("hinge"), [X, X], {"inputs": [None, signs(*X)]}),
    "pdist": (PDist(), [X, X]),
    "pdist-one": (PDist(p=3, no_root=True), [X, (2, 4, 1, 1)]),
    "pdist-weights": (PDist(p=1, aggregate=True), [X, X, (2, 1, 6, 5)]),
    "sum": (Sum(), [X, X, X]),
    "sum-one": (Sum(), [X]),
    "concat": (Concat(), [X, (2, 1, 6, 5), (2, 3, 6, 5)]),
    "concat-height": (Concat(axis=2), [X, (2, 4, 1, 5)]),
    "scale": (Scale((1, 4, 1, 1)), [X]),
    "scale-unbiased": (Scale((1, 4, 6, 1), has_bias=False), [X]),
    "scale-inputs": (Scale(), [X, (2, 4, 1, 1)]),
    "scale-3-inputs": (Scale(), [(2, 4, 1, 1), (1, 4, 6, 5), (2, 1, 6, 1)]),
    "crop": (Crop((1, 2)), [X, (1, 3, 4, 2)]),
    "roipool": (ROIPooling(subdivisions=(2, 3)), [X, (5, 4)], {"inputs": [None, ROIS]}),
    "roipool-options": (
        ROIPooling("avg", 2, transform=((0.9, 0, 0.2), (0.1, 1.1, -0.3)), flatten=True),
        [X, (5, 4)],
        {"inputs": [None, ROIS]},
    ),
    "roipool-flatten": (
        ROIPooling(subdivisions=(2, 3), transform=0.8, flatten=True),
        [X, (5, 4)],
        {"inputs": [None, ROIS]},
    ),
    "sampler": (BilinearSampler(), [X, (4, 2, 3, 4)]),
    "affinegrid": (AffineGridGenerator(3, 4), [(2, 6, 1, 1)]),
    "uniformgrid": (UniformScalingGridGenerator(4, 1), [(2, 3, 1, 1)]),
    "smoothl1": (LossSmoothL1(), [X, X]),
    "smoothl1-weights": (LossSmoothL1(sigma=3, ignore_average=True), [X, X, X]),
    "reshape": (Reshape((0, -1, 1, 1)), [X]),
    "reshape-more": (Reshape((1, 2, 2, 2, -1, 5)), [X]),
    "permute": (Permute((0, 3, 1, 2)), [X]),
    "slice": (Slice(1, 1, 3), [X]),
    "slice-batch": (Slice(0, 1, 2), [X]),
    "split": (Split(1, (1, 2, 1)), [X]),
    "split-width": (Split(3, (2, 3)), [X]),
    "custom": (Custom(double, double_back), [X]),
}
EVERY = pytest.mark.parametrize("name", CASES)


def case(name):
    layer, shapes, options = (*CASES[name], {})[:3]
    return layer, shapes, options


def evaluate(layer, inputs, params=(), wants_inputs=None, wants_params=None, **options):
    """Outputs and the context after forward, with all derivatives wanted unless said otherwise."""
    ctx = dagnn.Context(
        options.pop("backend", backends.get("numpy")),
        wants_inputs=(True,) * len(inputs) if wants_inputs is None else wants_inputs,
        wants_params=(True,) * len(params) if wants_params is None else wants_params,
        **options,
    )
    return layer.forward(ctx, list(inputs), list(params)), ctx


def data(name, dtype=np.float64):
    """Inputs and parameters for a case."""
    layer, shapes, options = case(name)
    given = options.get("inputs") or [None] * len(shapes)
    inputs = [
        rng.standard_normal(s) if x is None else np.asarray(x) for s, x in zip(shapes, given, strict=True)
    ]
    params = options.get("params") or layer.init_params(rng)
    return (
        [x.astype(dtype) if x.dtype.kind == "f" else x for x in inputs],
        [np.asarray(w, dtype) for w in params],
    )


@EVERY
def test_derivatives_shapes_and_promises(name, backend):
    layer, shapes, options = case(name)
    dagnn.check_layer(layer, shapes, backend=backend, **options)


@EVERY
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_dtype_is_kept(name, dtype):
    layer, _, options = case(name)
    inputs, params = data(name, dtype)
    outputs, ctx = evaluate(layer, inputs, params, mode=options.get("mode", "train"))
    der_inputs, der_params = layer.backward(ctx, params, outputs)
    assert {y.dtype for y in outputs} == {np.dtype(dtype)}
    assert {der.dtype for der in (*der_inputs, *der_params) if der is not None} == {np.dtype(dtype)}


@EVERY
def test_nothing_is_saved_when_nothing_is_wanted(name):
    layer, _, options = case(name)
    inputs, params = data(name)
    none = (False,) * len(inputs), (False,) * len(params)
    for wants in (none, ((), ())):
        _, ctx = evaluate(layer, inputs, params, *wants, mode=options.get("mode", "train"))
        assert ctx.saved == ()


@EVERY
def test_configuration_survives_json(name):
    layer, _, _ = case(name)
    if name != "custom":
        config = json.loads(json.dumps(layer.save()))
        assert type(layer).load(config) == layer
        assert repr(type(layer).load(config)) == repr(layer)


def test_every_builtin_has_a_case():
    assert {type(layer).__name__ for layer, *_ in CASES.values()} == set(BUILTIN)
    assert all(issubclass(BUILTIN[name], dagnn.Layer) for name in BUILTIN)


@EVERY
def test_wrong_number_of_inputs(name):
    layer, _, _ = case(name)
    inputs, params = data(name)
    if name == "custom":
        return
    many = [inputs[0]] * 4
    for wrong in ([], many):
        if wrong and isinstance(layer, Sum | Concat):
            continue
        with pytest.raises(ShapeError, match=r"takes .*got [04]"):
            evaluate(layer, wrong, params)
        if "output_shapes" in vars(type(layer)):
            with pytest.raises(ShapeError, match=r"takes .*got [04]"):
                layer.output_shapes([x.shape for x in wrong])


# ---- options


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Conv((1, 2, 3)), r"size takes 4 whole numbers \(K, C/groups, h, w\). Received: \(1, 2, 3\)"),
        (lambda: Conv((1, 2, 3, 0)), "size must be at least 1"),
        (lambda: Conv((1, 2, 3, 1.5)), "size takes whole numbers"),
        (lambda: Conv((1, 1, 1, 1), stride=0), "stride must be at least 1. Received: 0"),
        (lambda: Conv((1, 1, 1, 1), pad=(1, 2)), r"pad takes 1 or 4 values \(top, bottom, left, right\)"),
        (lambda: Conv((1, 1, 1, 1), dilate="2"), "dilate takes whole numbers"),
        (lambda: ConvTranspose((3, 1, 2, 2), num_groups=2), "num_groups must divide the 3 input channels"),
        (lambda: ConvTranspose((3, 1, 2, 2), crop=-1), "crop must not be negative"),
        (lambda: ConvTranspose((3, 1, 2, 2), upsample=(1, 2, 3)), "upsample takes 1 or 2 values"),
        (lambda: Pooling("sum"), "method is one of max, avg. Received: 'sum'"),
        (lambda: Pooling(backprop="centre"), "backprop is one of pool, center. Received: 'centre'"),
        (
            lambda: Pooling(pool_size=2, pad=2),
            r"pad must be less than pool_size \(2, 2\). Received: \(2, 2, 2, 2\)",
        ),
        (lambda: ReLU(backprop="guided"), "backprop is one of relu, eccv16, deconvnet, none"),
        (lambda: ReLU(leak=-1), "leak must be at least 0. Received: -1"),
        (lambda: ReLU(leak=0.1, backprop="eccv16"), "backprop='eccv16' has no leak. Received: leak=0.1"),
        (lambda: BatchNorm(0), "num_channels must be at least 1. Received: 0"),
        (lambda: BatchNorm(None), "num_channels takes a whole number. Received: None"),
        (lambda: BatchNorm(3, epsilon=-1), "epsilon must be at least 0. Received: -1"),
        (lambda: DropOut(1), "rate must be at least 0 and less than 1. Received: 1"),
        (lambda: DropOut("half"), "rate takes a number. Received: 'half'"),
        (
            lambda: LRN((5, 1, 1)),
            r"param takes 4 numbers \(size, kappa, alpha, beta\). Received: \(5, 1, 1\)",
        ),
        (lambda: LRN((0, 1, 1, 1)), "size in param must be at least 1"),
        (lambda: LRN((2.5, 1, 1, 1)), "size in param takes a whole number. Received: 2.5"),
        (lambda: LRN(backprop="hacked"), "backprop is one of lrn, none"),
        (lambda: NormalizeLp(p=0), "p must be more than 0. Received: 0"),
        (lambda: NormalizeLp(scale=float("nan")), "scale must be finite. Received: nan"),
        (lambda: SpatialNorm((2, 2, 10)), "param takes 4 numbers"),
        (lambda: NormOffset(1), r"param takes 2 numbers \(alpha, beta\). Received: 1"),
        (lambda: Loss("softmax"), "loss is one of softmaxlog, log, .*, hinge. Received: 'softmax'"),
        (lambda: Loss(top_k=0), "top_k must be at least 1"),
        (lambda: PDist(p=0), "p must be more than 0"),
        (lambda: Concat(-1), "axis must be at least 0. Received: -1"),
        (lambda: Scale(4), "size takes whole numbers. Received: 4"),
        (lambda: Crop((1, -1)), "crop must be at least 0"),
        (lambda: ROIPooling("mean"), "method is one of max, avg"),
        (
            lambda: ROIPooling(transform=(1, 2, 3)),
            "transform takes a number, 2 numbers, or 2 rows of 3 numbers",
        ),
        (lambda: ROIPooling(transform=((1, 0), (0, 1))), "a row of transform takes 3 numbers"),
        (lambda: AffineGridGenerator(0, 3), "height must be at least 1"),
        (lambda: UniformScalingGridGenerator(3, 2.5), "width takes a whole number"),
        (lambda: LossSmoothL1(sigma=0), "sigma must be more than 0"),
        (lambda: Reshape((-1, 2, -1)), r"shape may have one -1. Received: \(-1, 2, -1\)"),
        (lambda: Reshape((-2, 2)), "shape must be at least -1"),
        (lambda: Permute((0, 2)), "axes must be a permutation of 0, 1"),
        (lambda: Slice(1, 3, 3), "start must be less than stop. Received: start=3, stop=3"),
        (lambda: Slice(1, -3, 3), "start must be at least 0"),
        (lambda: Split(1, ()), "sizes must name at least 1 output"),
        (lambda: Split(1, (2, 0)), "sizes must be at least 1"),
        (lambda: Custom(double, "double_back"), "backward must be a function. Received: 'double_back'"),
        (
            lambda: Conv.load({"size": (1, 1, 1, 1), "strides": 2}),
            "Conv has no option 'strides'. It has: dilate, ",
        ),
    ],
)
def test_wrong_options(make, message):
    with pytest.raises(OptionError, match=message):
        make()


@pytest.mark.parametrize(
    ("layer", "shapes", "message"),
    [
        (Conv((4, 3, 1, 1)), [X], "input has 4 channels, filters expect 3 or a multiple of it"),
        (Conv((3, 2, 1, 1)), [X], "3 filters do not divide into 2 groups"),
        (Conv((3, 4, 7, 1)), [X], "filters of 7x1 larger than the padded input of 6x5"),
        (Conv((3, 4, 1, 1)), [(2, 4)], r"x must have 4 axes \(N, C, H, W\), got shape \(2, 4\)"),
        (ConvTranspose((3, 1, 1, 1)), [X], "input has 4 channels, filters expect 3"),
        (ConvTranspose((4, 1, 1, 1), crop=3), [X], "leaves an output of 0x-1"),
        (Pooling(pool_size=7), [X], "pooling window of 7x7 larger than the padded input of 6x5"),
        (BatchNorm(3), [X], "input has 4 channels, num_channels is 3"),
        (Sum(), [X, (2, 4, 6, 1)], r"inputs differ in shape: \(2, 4, 6, 5\) and \(2, 4, 6, 1\)"),
        (
            Concat(),
            [X, (2, 4, 6, 1)],
            r"inputs must agree but for axis 1, got \(2, 4, 6, 5\), \(2, 4, 6, 1\)",
        ),
        (Concat(4), [X], "have no axis 4"),
        (Scale((1, 3, 1, 1)), [X], r"shapes \(2, 4, 6, 5\) and \(1, 3, 1, 1\) do not broadcast"),
        (Scale(), [X, (4,)], r"shapes \(2, 4, 6, 5\) and \(4,\) do not broadcast"),
        (Scale((1, 4, 1, 1)), [X, X], r"takes 1 input \(size is given\), got 2"),
        (Scale(), [X], r"takes 2 or 3 inputs \(no size is given\), got 1"),
        (Crop((3, 2)), [X, (1, 1, 4, 3)], r"4x3 pixels from \(3, 2\) on do not fit into 6x5"),
        (ROIPooling(), [X, (4, 5)], r"regions must have shape \(5, R\), got \(4, 5\)"),
        (BilinearSampler(), [X, (3, 2, 1, 1)], "with M a multiple of 2, got"),
        (AffineGridGenerator(2, 2), [(2, 3, 1, 1)], r"transform must be \(N, 6, 1, 1\), got \(2, 3, 1, 1\)"),
        (UniformScalingGridGenerator(2, 2), [(2, 6, 1, 1)], r"transform must be \(N, 3, 1, 1\)"),
        (Reshape((0, 7)), [X], r"input of shape \(2, 4, 6, 5\) \(240 elements\) does not fit shape \(0, 7\)"),
        (Reshape((0, -1, 7)), [X], "does not fit shape"),
        (Reshape((2, 4, 6, 5, 0)), [X], "keeps an axis that an input of shape"),
        (Permute((0, 1)), [X], "does not have the 2 axes"),
        (Slice(1, 2, 5), [X], r"input of shape \(2, 4, 6, 5\) has no 2:5 along axis 1"),
        (Slice(4, 0, 1), [X], "along axis 4"),
        (Split(1, (1, 2)), [X], r"does not split into \(1, 2\) along axis 1"),
    ],
)
def test_wrong_shapes(layer, shapes, message):
    with pytest.raises(ShapeError, match=message):
        layer.output_shapes(shapes)
    with pytest.raises(ShapeError):
        evaluate(layer, [np.zeros(shape) for shape in shapes], layer.init_params(rng))


def test_options_are_normalised():
    assert Conv([3, 4, 3, 3], stride=2, pad=1) == Conv((3, 4, 3, 3), stride=(2, 2), pad=(1, 1, 1, 1))
    assert ROIPooling(subdivisions=7, transform=[[1, 0, 2], [0, 1, 3]]).transform == ((1, 0, 2), (0, 1, 3))
    assert ROIPooling(transform=[0.5, 2]).transform == (0.5, 2.0)
    assert LRN([np.float64(5), 1, 0.5, 0.75]).param == (5, 1.0, 0.5, 0.75)
    assert type(Slice(np.uint8(1), np.int32(0), 3).axis) is int


# ---- parameters


def test_initial_parameters():
    generator = np.random.default_rng(0)
    w, b = Conv((64, 32, 3, 3)).init_params(generator)
    assert w.shape == (64, 32, 3, 3) and not b.any() and b.shape == (64,)
    assert w.std() == pytest.approx(np.sqrt(2 / (9 * 32)), rel=0.03)
    w, b = ConvTranspose((32, 16, 4, 4), num_groups=4).init_params(generator)
    assert w.std() == pytest.approx(np.sqrt(2 / (16 * 32)), rel=0.03) and b.shape == (64,)
    assert len(ConvTranspose((2, 2, 1, 1), has_bias=False).init_params(generator)) == 1
    g, b, m = BatchNorm(3).init_params(generator)
    assert g.tolist() == [1, 1, 1] and b.tolist() == [0, 0, 0] and m.tolist() == [[0, 1]] * 3
    a, b = Scale((1, 2, 1, 1)).init_params(generator)
    assert a.shape == b.shape == (1, 2, 1, 1) and a.all() and not b.any()
    assert Scale().init_params(generator) == ReLU().init_params(generator) == []


def test_parameter_specs():
    specs = BatchNorm(3).params
    assert [s.weight_decay for s in specs] == [1, 1, 0]
    assert [s.train_method for s in specs] == ["gradient", "gradient", "average"]
    assert specs[2].learning_rate == 0.1
    assert [s.role for s in ConvTranspose((1, 1, 1, 1)).params] == ["filters", "biases"]
    assert [s.role for s in Scale((1, 1, 1, 1), has_bias=False).params] == ["multipliers"]
    assert Scale().params == ()


# ---- shapes and receptive fields against what happens

small = st.integers(1, 3)
pairs = st.tuples(small, small)
quads = st.tuples(*[st.integers(0, 2)] * 4)
images = st.tuples(st.integers(1, 2), st.just(2), st.integers(1, 8), st.integers(1, 8))


@st.composite
def windowed(draw):
    kind = draw(st.sampled_from(["conv", "convt", "max", "avg"]))
    h, w = draw(pairs)
    if kind == "conv":
        return Conv(
            (2, draw(small.filter(lambda n: n < 3)), h, w), True, draw(pairs), draw(quads), draw(pairs)
        )
    if kind == "convt":
        return ConvTranspose(
            (2, 1, h, w), draw(st.booleans()), draw(pairs), draw(quads), draw(st.integers(1, 2))
        )
    pad = tuple(min(p, n - 1) for p, n in zip(draw(quads), (h, h, w, w), strict=True))
    return Pooling(kind, (h, w), draw(pairs), pad)


@settings(deadline=None)
@given(windowed(), images)
def test_output_shapes_of_windows(layer, shape):
    inputs, params = [np.ones(shape)], layer.init_params(rng)
    try:
        (declared,) = layer.output_shapes([shape])
    except ShapeError:
        with pytest.raises(ShapeError):
            evaluate(layer, inputs, params)
    else:
        (y,), _ = evaluate(layer, inputs, params)
        assert y.shape == declared


def seen(chain, shape, i, j):
    """(first, last) rows and columns of the input that output pixel (i, j) of a chain depends on."""
    x, contexts = np.ones(shape), []
    for layer in chain:
        params = [np.ones(w.shape) for w in layer.init_params(rng)]
        (x,), ctx = evaluate(layer, [x], params)
        contexts.append((layer, ctx, params))
    der = np.zeros(x.shape)
    der[:, :, i, j] = 1
    for layer, ctx, params in reversed(contexts):
        (der,), _ = layer.backward(ctx, params, [der])
    rows, columns = np.nonzero(der.sum(axis=(0, 1)))
    return (rows.min(), rows.max()), (columns.min(), columns.max())


def composed(chain):
    field = ReceptiveField()
    for layer in chain:
        field = field.then(layer.receptive_fields(1)[0])
    return field


@st.composite
def chains(draw):
    return draw(
        st.lists(
            st.one_of(
                st.builds(
                    lambda size, stride, pad, dilate: Conv((1, 1, *size), True, stride, pad, dilate),
                    pairs, pairs, quads, pairs,
                ),
                st.builds(lambda size, stride: Pooling("avg", size, stride), pairs, pairs),
                st.builds(lambda h, w: SpatialNorm((h, w, 0.1, 0.5)), small, small),
            ),
            min_size=1,
            max_size=3,
        )
    )  # fmt: skip


@settings(deadline=None, max_examples=60)
@given(chains())
def test_receptive_field_of_a_chain(chain):
    shape = (1, 1, 250, 250)  # three windows of at most 7 pixels and stride 3 see up to 79
    out = shape
    for layer in chain:
        (out,) = layer.output_shapes([out])
    i, j = out[2] // 2, out[3] // 2
    field = composed(chain)
    for (first, last), size, stride, offset, k in zip(
        seen(chain, shape, i, j), field.size, field.stride, field.offset, (i, j), strict=True
    ):
        assert last - first + 1 == size
        assert (first + last) / 2 == offset + stride * k


def test_receptive_field_of_a_transposed_convolution_covers_what_is_seen():
    chain = [Conv((1, 1, 3, 3), stride=2), ConvTranspose((1, 1, 4, 4), upsample=2, crop=1)]
    field = composed(chain)
    for k in (8, 9, 10, 11):
        for first, last in seen(chain, (1, 1, 41, 41), k, k):
            centre = field.offset[0] + field.stride[0] * k
            assert centre - (field.size[0] - 1) / 2 <= first
            assert last <= centre + (field.size[0] - 1) / 2


def test_other_receptive_fields():
    assert Crop((1, 2)).receptive_fields(2) == [ReceptiveField(offset=(1, 2)), NOTHING]
    assert Slice(3, 2, 4).receptive_fields(1) == [ReceptiveField(offset=(0, 2))]
    assert Concat(1).receptive_fields(2) == Sum().receptive_fields(2) == [ReceptiveField()] * 2
    for layer in (Concat(2), Split(3, (1, 1)), Loss(), ROIPooling(), BilinearSampler(), PDist(aggregate=True),
                  Reshape((0, -1)), Permute((0, 2, 3, 1)), NormalizeLp(spatial=True), LossSmoothL1(),
                  AffineGridGenerator(2, 2), UniformScalingGridGenerator(2, 2),
                  Placeholder("XCorr")):  # fmt: skip
        assert set(layer.receptive_fields(2)) == {None}
    for layer in (Split(1, (1, 1)), Reshape((0, -1, 0, 0)), Permute((1, 0, 2, 3)), PDist(), NormalizeLp()):
        assert layer.receptive_fields(1) == [ReceptiveField()]


# ---- views


@pytest.mark.parametrize(
    "layer", [Reshape((0, -1, 1, 1)), Permute((0, 2, 3, 1)), Slice(1, 0, 3), Split(1, (1, 3)), Crop((1, 1))]
)
def test_outputs_are_views(layer):
    x = rng.standard_normal(X)
    inputs = [x, np.zeros((1, 1, 3, 2))] if isinstance(layer, Crop) else [x]
    outputs, _ = evaluate(layer, inputs)
    assert all(np.shares_memory(y, x) for y in outputs)


@pytest.mark.parametrize(
    ("layer", "n"), [(Reshape((0, -1, 1, 1)), 1), (Permute((0, 2, 3, 1)), 1), (Concat(), 2)]
)
def test_derivatives_are_views(layer, n):
    (y,), ctx = evaluate(layer, [rng.standard_normal(X)] * n)
    dzdy = np.ones_like(y)
    ders, _ = layer.backward(ctx, [], [dzdy])
    assert all(np.shares_memory(der, dzdy) for der in ders)


def test_reshape_reads_channels_last_memory_in_logical_order():
    x = np.asfortranarray(rng.standard_normal(X))
    (y,), ctx = evaluate(Reshape((0, -1)), [x])
    assert np.array_equal(y, np.ascontiguousarray(x).reshape(2, -1))
    (dzdx,), _ = Reshape((0, -1)).backward(ctx, [], [y])
    assert np.array_equal(dzdx, x)


def test_split_without_some_derivatives():
    layer = Split(1, (1, 2, 1))
    _, ctx = evaluate(layer, [np.zeros(X, np.float32)])
    (dzdx,), _ = layer.backward(ctx, [], [None, np.ones((2, 2, 6, 5), np.float32), None])
    assert dzdx.dtype == np.float32
    assert dzdx.sum(axis=(0, 2, 3)).tolist() == [0, 60, 60, 0]


# ---- variants of derivatives (vl_simplenn of a fork: relu_*, lrn_nobackprop, pool_center)


def variant(layer, x, dzdy=None):
    (y,), ctx = evaluate(layer, [x])
    dzdy = rng.standard_normal(y.shape) if dzdy is None else dzdy
    (dzdx,), _ = layer.backward(ctx, [], [dzdy])
    return dzdx, dzdy


def test_relu_variants():
    x = rng.standard_normal(X)
    dzdx, dzdy = variant(ReLU(backprop="eccv16"), x)
    assert np.array_equal(dzdx, np.maximum((x > 0) * dzdy, 0))
    dzdx, dzdy = variant(ReLU(backprop="deconvnet"), x)
    assert np.array_equal(dzdx, np.maximum(dzdy, 0))
    dzdx, dzdy = variant(ReLU(backprop="none"), x)
    assert np.array_equal(dzdx, dzdy)


def test_lrn_without_derivative():
    dzdx, dzdy = variant(LRN(backprop="none"), rng.standard_normal(X))
    assert dzdx is dzdy


def pool_center(x_shape, pool, stride, pad, method, dzdy):
    """The fork's formula, window by window: pool's derivative at an image of ones at the window centres."""
    n, c, height, width = x_shape
    hoax = np.zeros((height + pad[0] + pad[1], width + pad[2] + pad[3]))
    hoax[int(np.ceil(pool[0] / 2)) - 1 :: stride[0], int(np.ceil(pool[1] / 2)) - 1 :: stride[1]] = 1
    dzdx = np.zeros((n, c, *hoax.shape))
    for i, j in np.ndindex(dzdy.shape[2:]):
        top, left = i * stride[0], j * stride[1]
        window = hoax[top : top + pool[0], left : left + pool[1]]
        target = dzdx[:, :, top : top + pool[0], left : left + pool[1]]
        if method == "max":
            column, row = divmod(int(window.argmax() if pool[0] == 1 else window.T.argmax()), pool[0])
            target[:, :, row, column] += dzdy[:, :, i, j]
        else:
            target += dzdy[:, :, i, j, None, None] / window.size
    return dzdx[:, :, pad[0] : pad[0] + height, pad[2] : pad[2] + width]


@pytest.mark.parametrize("method", ["max", "avg"])
@pytest.mark.parametrize(
    ("pool", "stride", "pad"),
    [
        ((2, 2), (2, 2), (0, 0, 0, 0)),
        ((3, 3), (2, 2), (0, 1, 0, 1)),
        ((3, 2), (1, 2), (1, 2, 1, 0)),
        ((5, 4), (3, 3), (4, 1, 0, 3)),
        ((1, 3), (2, 1), (0, 0, 2, 2)),
    ],
)
def test_pool_center(method, pool, stride, pad):
    x = rng.standard_normal((2, 3, 9, 8))
    layer = Pooling(method, pool, stride, pad, backprop="center")
    dzdx, dzdy = variant(layer, x)
    assert np.allclose(dzdx, pool_center(x.shape, pool, stride, pad, method, dzdy))
    plain, _ = evaluate(Pooling(method, pool, stride, pad), [x])
    assert np.array_equal(plain[0], evaluate(layer, [x])[0][0])


# ---- what is saved, what is not computed


def test_saved_arrays():
    x = rng.standard_normal(X)
    (y,), ctx = evaluate(Sigmoid(), [x])
    assert ctx.saved[0] is y
    conv = Conv((3, 4, 3, 3))
    params = conv.init_params(rng)
    _, ctx = evaluate(conv, [x], params, wants_params=(False, True))
    assert not any(np.shares_memory(x, a) for a in ctx.saved if isinstance(a, np.ndarray))
    _, ctx = evaluate(conv, [x], params, wants_inputs=(False,), wants_params=(True, False))
    assert any(a is x for a in ctx.saved)
    _, ctx = evaluate(BatchNorm(4), [x], BatchNorm(4).init_params(rng), (False,), (False, False, True))
    assert not any(a is x for a in ctx.saved)
    a = np.ones((1, 4, 1, 1))
    _, ctx = evaluate(Scale(), [x, a], wants_inputs=(True, False))
    assert not any(array is x for array in ctx.saved)
    for layer in (Sum(), Permute((0, 1, 3, 2))):
        assert evaluate(layer, [x])[1].saved == ()


@cache
def recording():
    """A NumPy backend that lists the kernels called."""

    class Recording(type(backends.get("numpy"))):
        calls: list = []

        def __getattribute__(self, name):
            value = super().__getattribute__(name)
            if not name.startswith("_") and inspect.ismethod(value):
                self.calls.append(name)
            return value

    return Recording()


@pytest.mark.parametrize(
    ("name", "wants", "unwanted"),
    [
        ("conv", [0, 1, 1], "conv_dzdx"),
        ("conv", [1, 0, 1], "conv_dzdw"),
        ("conv", [1, 1, 0], "conv_dzdb"),
        ("convt", [0, 1, 1], "conv_transpose_dzdx"),
        ("convt", [1, 0, 1], "conv_transpose_dzdw"),
        ("convt", [1, 1, 0], "conv_dzdb"),
        ("bnorm", [0, 0, 0, 1], "batch_norm_ders"),
        ("loss", [0, 1], "loss_dzdx"),
        ("pdist-weights", [0, 0, 1], "pdist_dzdx"),
        ("roipool", [0, 1], "roi_pool_dzdx"),
        ("crop", [0, 1], "zeros"),
        ("scale", [1, 0, 0], "sum_to"),
    ],
)
def test_what_nobody_wants_is_not_computed(name, wants, unwanted):
    layer, _, _ = case(name)
    inputs, params = data(name)
    wants = tuple(map(bool, wants))
    backend = recording()

    def kernels(*flags):
        outputs, ctx = evaluate(layer, inputs, params, *flags, backend=backend)
        backend.calls.clear()
        ders = layer.backward(ctx, params, outputs)
        assert [len(d) for d in ders] == [len(inputs), len(params)]
        return list(backend.calls)

    n = len(inputs)
    everything = kernels((True,) * n, (True,) * len(params))
    assert everything.count(unwanted) > kernels(wants[:n], wants[n:]).count(unwanted)


# ---- layer by layer


def test_batch_norm_moments():
    x = rng.standard_normal(X)
    layer = BatchNorm(4, epsilon=0.01)
    params = layer.init_params(rng)
    (y,), ctx = evaluate(layer, [x], params)
    _, (_, _, moments) = layer.backward(ctx, params, [y])
    assert np.allclose(moments[:, 0], x.mean(axis=(0, 2, 3)))
    assert np.allclose(moments[:, 1], np.sqrt(x.var(axis=(0, 2, 3)) + 0.01))
    (y,), ctx = evaluate(layer, [x], params, mode="test")
    assert np.allclose(y, x)
    assert layer.backward(ctx, params, [y])[1][2] is None
    _, ctx = evaluate(layer, [x], params, (False,), (False, False, True))
    assert np.array_equal(layer.backward(ctx, params, [y])[1][2], moments)


def test_dropout():
    x = np.ones((4, 8, 16, 16))
    layer = DropOut(0.25)
    (y,), ctx = evaluate(layer, [x])
    assert set(np.unique(y)) == {0, 1 / 0.75}
    assert y.mean() == pytest.approx(1, abs=0.05)
    assert np.array_equal(layer.backward(ctx, [], [x])[0][0], y)
    assert np.array_equal(evaluate(layer, [x])[0][0], y)  # the same generator
    other = evaluate(layer, [x], rng=lambda: np.random.default_rng(99))[0][0]
    assert not np.array_equal(other, y)
    (same,), ctx = evaluate(layer, [x], mode="test")
    assert same is x
    assert layer.backward(ctx, [], [y])[0][0] is y
    assert ctx.state == {}


def test_frozen_dropout_keeps_its_mask():
    layer, state, x = DropOut(0.5, frozen=True), {}, np.ones(X, np.float32)
    generators = iter(map(np.random.default_rng, range(9)))
    (first,), _ = evaluate(layer, [x], state=state, rng=lambda: next(generators))
    (second,), _ = evaluate(layer, [x], state=state, rng=lambda: next(generators))
    assert np.array_equal(first, second) and state["mask"].dtype == np.float32
    (third,), _ = evaluate(layer, [x[:1]], state=state, rng=lambda: next(generators))
    assert third.shape == state["mask"].shape == (1, *X[1:])
    state["mask"] = np.full(X, 3.0)
    (y,), _ = evaluate(layer, [x], state=state)
    assert y.dtype == np.float32 and (y == 3).all()


def test_loss_average():
    layer, state = Loss("classerror"), {}
    x = np.eye(4).reshape(4, 4, 1, 1)
    evaluate(layer, [x, np.array([0, 1, 2, 0])], state=state)
    assert (state["average"], state["num_averaged"]) == (0.25, 4)
    evaluate(layer, [x[:2], np.array([1, 0])], state=state)
    assert (state["average"], state["num_averaged"]) == (0.5, 6)
    state = {}
    evaluate(Loss("classerror", normalise=False), [x, np.array([0, 1, 0, 0])], state=state)
    assert state["average"] == 0.5
    state = {}
    evaluate(Loss(ignore_average=True), [x, np.zeros(4)], state=state)
    assert state == {}


def test_smooth_l1_average():
    layer, state = LossSmoothL1(), {}
    x, x0, w = np.full((2, 1), 3.0), np.zeros((2, 1)), np.array([[1.0], [0.0]])
    evaluate(layer, [x, x0, w], state=state)
    assert state["average"] == pytest.approx(2.5) and state["num_averaged"] == pytest.approx(1)
    evaluate(layer, [x, x0, 0 * w], state=state)
    assert state["average"] == pytest.approx(2.5)
    state = {}
    evaluate(layer, [x, x0], state=state)
    assert (state["average"], state["num_averaged"]) == (2.5, 2)


def test_losses_are_zero_dimensional():
    for name in ("loss", "smoothl1", "pdist-weights"):
        layer, *_ = case(name)
        (y,), _ = evaluate(layer, *data(name))
        assert y.shape == ()


def test_roi_pooling_flattens_rows_first():
    x = rng.standard_normal((1, 2, 4, 6))
    rois = np.array([[0, 0, 0, 5, 3]]).T
    (y,), _ = evaluate(ROIPooling(subdivisions=(2, 3)), [x, rois])
    (flat,), _ = evaluate(ROIPooling(subdivisions=(2, 3), flatten=True), [x, rois])
    assert flat.shape == (1, 12, 1, 1)
    assert flat[0, :4, 0, 0].tolist() == [y[0, 0, 0, 0], y[0, 0, 1, 0], y[0, 0, 0, 1], y[0, 0, 1, 1]]


def test_pdist_derivative_of_a_single_point():
    x, x0 = rng.standard_normal(X), rng.standard_normal((2, 4, 1, 1))
    (y,), ctx = evaluate(PDist(), [x, x0], wants_inputs=(False, True))
    (_, dzdx0), _ = PDist().backward(ctx, [], [np.ones_like(y)])
    assert dzdx0.shape == x0.shape


def test_identity_grids_sample_the_image_itself():
    x = rng.standard_normal((1, 2, 5, 4))
    identities = [
        (AffineGridGenerator(5, 4), [1.0, 0, 0, 1, 0, 0]),
        (UniformScalingGridGenerator(5, 4), [1.0, 0, 0]),
    ]
    for generator, transform in identities:
        (grid,), _ = evaluate(generator, [np.array(transform).reshape(1, -1, 1, 1)])
        (y,), _ = evaluate(BilinearSampler(), [x, grid])
        assert np.allclose(y, x)


def test_custom():
    layer = Custom(double)
    (y,), ctx = evaluate(layer, [np.ones(3)])
    assert y.tolist() == [2, 2, 2] and layer.output_shapes([(3,)]) == [(3,)]
    with pytest.raises(OptionError, match="Custom has no backward"):
        layer.backward(ctx, [], [y])
    assert layer.save() == {"forward": double, "backward": None}
    assert Custom(double, double_back).save() == {"forward": double, "backward": double_back}
    assert Custom.load(layer.save()) == layer


def test_placeholder():
    config = {"bias": 1.5, "window": [3, 3]}
    layer = Placeholder("dagnn.XCorr", config)
    assert layer.save() == config and layer.params == () and layer.init_params(rng) == []
    for attempt in (
        lambda: evaluate(layer, [np.ones(3)]),
        lambda: layer.backward(None, [], [None]),
        lambda: layer.output_shapes([X]),
    ):
        with pytest.raises(PlaceholderError) as caught:
            attempt()
        lines = [line.strip() for line in str(caught.value).splitlines()]
        assert "'dagnn.XCorr'" in lines[0]
        assert lines[1:] == [
            "@dataclass",
            "class XCorr(dagnn.Layer): ...",
            'net = dagnn.load(path, layers={"dagnn.XCorr": XCorr})',
        ]


def test_a_layer_without_methods_says_so():
    layer = dagnn.Layer()
    for attempt in (lambda: layer.forward(None, [], []), lambda: layer.backward(None, [], [])):
        with pytest.raises(OptionError, match="Layer does not define"):
            attempt()
