"""SimpleNN: each layer type, tidying, options of eval, custom layers, conversion to a DagNN, the table."""

import numpy as np
import pytest

import dagnn
from dagnn.simplenn import Result, SimpleNN, tidy
from dagnn.simplenn.layers import BLOCKS, DEFAULTS

rng = np.random.default_rng(0)


def normal(*shape):
    return rng.standard_normal(shape)


X = normal(2, 4, 5, 6)
WITHOUT_FIELDS = [
    *("softmax", "tanh", "sigmoid", "relu", "relu_eccv16", "relu_deconvnet", "relu_nobackprop"),
    *("normalize", "lrn", "normalize_hacked", "lrn_hacked", "normalize_nobackprop", "lrn_nobackprop"),
    "normalizelp",
]
LAYERS = {
    **{kind: {} for kind in WITHOUT_FIELDS},
    "conv": {"weights": [normal(6, 2, 3, 2), normal(6)], "stride": (2, 1), "pad": (1, 0, 2, 1), "dilate": 2},
    "convt": {
        "weights": [normal(4, 3, 3, 2), normal(6)],
        "upsample": 2,
        "crop": (1, 0, 0, 1),
        "numGroups": 2,
    },
    "pool": {"method": "avg", "pool": (2, 3), "stride": 2, "pad": (0, 1, 0, 1)},
    "pool_center": {"pool": 3, "stride": 2},
    "noffset": {"param": (1.0, 0.5)},
    "spnorm": {"param": (3, 3, 10, 2)},
    "dropout": {"rate": 0.3, "frozen": True},
    "bnorm": {"weights": [normal(4), normal(4)]},
    "loss": {"class": np.array([1, 3])},
    "softmaxloss": {"class": np.array([[[0]], [[2]]])[:, None] + np.zeros((2, 1, 5, 6), int)},
    "pdist": {"class": normal(2, 4, 5, 6), "instanceWeights": normal(2, 1, 5, 6)},
}
PASSED_STRAIGHT = {k: "pass" for k in BLOCKS if "hacked" in k or "nobackprop" in k}
UNLIKE = {**PASSED_STRAIGHT, "relu_eccv16": "relu", "relu_deconvnet": "relu", "pool_center": "centre"}


def chain(kind, **fields):
    return SimpleNN([{"type": kind, **LAYERS.get(kind, {}), **fields}])


def positive(kind):
    """Away from kinks; odd powers want positive numbers."""
    return np.abs(X) + 0.5 if kind == "normalizelp" else X


def test_every_type_is_here():
    assert set(LAYERS) == set(BLOCKS)
    assert set(DEFAULTS) <= set(BLOCKS)


@pytest.mark.parametrize("kind", sorted(set(LAYERS) - set(UNLIKE)))
@pytest.mark.parametrize("mode", ["normal", "test"])
def test_derivatives_of_each_type(kind, mode):
    net, x = chain(kind), positive(kind)
    res = net.eval(x, mode=mode)
    dzdy = normal(*res[1].x.shape)
    net.eval(x, dzdy, res, mode=mode)
    layer = net.layers[0]

    def z(x, weights=None):
        other = SimpleNN([{**layer, "weights": weights or layer["weights"]}])
        start = [Result(), Result(aux=res[1].aux)]
        return float(np.vdot(dzdy, other.eval(x, res=start, mode=mode)[1].x))

    step, direction = 1e-6, normal(*x.shape)
    numeric = (z(x + step * direction) - z(x - step * direction)) / (2 * step)
    assert np.vdot(res[0].dzdx, direction) == pytest.approx(numeric, rel=1e-5, abs=1e-7)
    with_ders = [k for k, der in enumerate(res[0].dzdw) if der is not None]
    if kind == "bnorm":
        assert with_ders == ([0, 1] if mode == "test" else [0, 1, 2])
    for k in with_ders[:2]:
        direction = normal(*layer["weights"][k].shape)
        ends = [
            z(x, [w + s * step * direction if j == k else w for j, w in enumerate(layer["weights"])])
            for s in (1, -1)
        ]
        numeric = (ends[0] - ends[1]) / (2 * step)
        assert np.vdot(res[0].dzdw[k], direction) == pytest.approx(numeric, rel=1e-5, abs=1e-7)


@pytest.mark.parametrize("kind", PASSED_STRAIGHT)
def test_derivatives_that_pass_straight_through(kind):
    dzdy = normal(*X.shape)
    res = chain(kind).eval(X, dzdy)
    assert np.array_equal(res[0].dzdx, dzdy)
    assert np.array_equal(res[1].x, chain("relu" if "relu" in kind else "lrn").eval(X)[1].x)


def test_derivatives_of_the_relu_variants():
    dzdy = normal(*X.shape)
    assert np.array_equal(chain("relu_eccv16").eval(X, dzdy)[0].dzdx, np.maximum(dzdy * (X > 0), 0))
    assert np.array_equal(chain("relu_deconvnet").eval(X, dzdy)[0].dzdx, np.maximum(dzdy, 0))
    with pytest.raises(dagnn.OptionError, match=r"layers\[0\] 'layer1' \(relu_eccv16\).*leak"):
        chain("relu_eccv16", leak=0.1).eval(X)


def test_pool_center_sends_derivatives_to_window_centres():
    res = chain("pool_center").eval(X, np.ones((2, 4, 2, 2)))
    assert np.array_equal(res[1].x, chain("pool", pool=3, stride=2, pad=0, method="max").eval(X)[1].x)
    centres = np.zeros((5, 6))
    centres[1::2, 1::2][:2, :2] = 1
    assert np.array_equal(res[0].dzdx, np.broadcast_to(centres, X.shape))


def test_scale_of_normalizelp_and_leak_of_relu():
    plain, scaled = (chain("normalizelp", scale=s).eval(X)[1].x for s in (1, 20.0))
    assert np.array_equal(scaled, 20 * plain)
    assert np.array_equal(chain("relu", leak=0.1).eval(X)[1].x, np.where(X > 0, X, 0.1 * X))


def test_loss_is_softmaxlog_unless_it_says_otherwise():
    x, label = np.abs(X[:, :, :1, :1]), np.array([1, 3])
    default = chain("loss", **{"class": label}).eval(x)[1].x
    assert default == chain("softmaxloss", **{"class": label}).eval(x)[1].x
    log = chain("loss", loss="log", **{"class": label}).eval(x)[1].x
    assert log == pytest.approx(-np.log(x[[0, 1], label, 0, 0]).mean())


# ---- tidying


def test_tidying_of_the_first_format():
    old = {
        "type": "conv",
        "filters": normal(3, 4, 2, 2),
        "biases": normal(3),
        "filtersLearningRate": np.uint8(1),
        "biasesLearningRate": 2,
        "filtersWeightDecay": np.array([[1]]),
        "biasesWeightDecay": 0,
        "filtersMomentum": normal(3, 4, 2, 2),
    }
    net = SimpleNN([old, {"type": "normalize"}, {"type": "pool", "pool": 2}])
    conv, norm, pool = net.layers
    assert "filters" in old and set(conv) & {"filters", "biases"} == set()
    assert conv["weights"][1] is old["biases"] and conv["learningRate"] == (1, 2)
    assert conv["weightDecay"] == (1, 0) and "filtersMomentum" in conv
    assert {k: conv[k] for k in ("pad", "stride", "dilate", "opts")} == {
        "pad": 0,
        "stride": 1,
        "dilate": 1,
        "opts": [],
    }
    assert norm["param"] == (5, 1, 0.0001 / 5, 0.75) and pool["method"] == "max"
    assert [link["name"] for link in net.layers] == ["layer1", "layer2", "layer3"]
    assert not any(link["precious"] for link in net.layers)
    params = net.to_dagnn().params
    assert [(p.learning_rate, p.weight_decay) for p in params.values()] == [(1, 1), (2, 0)]


def test_tidying_fills_in_what_is_empty():
    layers = [
        {"type": "pool", "pool": 2, "pad": [], "opts": None, "name": "", "precious": np.array([[1]], "u1")},
        {"type": "dropout", "rate": np.zeros((0, 0)), "name": np.zeros((0, 0))},
        {"type": "pdist", "p": 1},
        {"type": "relu", "weights": []},
    ]
    pool, dropout, pdist, relu = SimpleNN(layers).layers
    assert (pool["pad"], pool["opts"], pool["name"], pool["precious"]) == (0, [], "layer1", True)
    assert (dropout["rate"], dropout["name"]) == (0.5, "layer2")
    assert (pdist["p"], pdist["epsilon"], pdist["noRoot"], pdist["aggregate"]) == (1, 1e-3, False, False)
    assert relu["weights"] == [] and relu["leak"] == 0
    assert layers[0]["name"] == ""
    assert pool["opts"] is not DEFAULTS["pool"]["opts"]


def test_names_become_unique():
    names = ["a", "a", "a_1", None, "a", "layer4"]
    links = tidy([{"type": "relu", "name": name} for name in names], SimpleNN([]).backend)
    assert [link["name"] for link in links] == ["a", "a_2", "a_1", "layer4", "a_3", "layer4_1"]


@pytest.mark.parametrize(
    "weights", [[normal(3, 4, 1, 1)], [normal(3, 4, 1, 1), []], [normal(3, 4, 1, 1), None]]
)
def test_convolution_without_bias(weights):
    net = SimpleNN([{"type": "conv", "weights": weights}])
    res = net.eval(X, np.ones((2, 3, 5, 6)))
    assert net.layers[0]["weights"][1] is None and res[0].dzdw[1] is None
    assert res[0].dzdw[0].shape == (3, 4, 1, 1)
    assert list(net.to_dagnn().params) == ["layer1f"]


def test_convolution_without_filters_is_the_identity():
    biases, dzdy = normal(4), normal(2, 4, 3, 4)
    net = SimpleNN([{"type": "conv", "weights": [[], biases], "stride": 2, "pad": (0, 0, 1, 0)}])
    res = net.eval(X, dzdy)
    padded = np.pad(X, [(0, 0), (0, 0), (0, 0), (1, 0)])
    assert np.array_equal(res[1].x, padded[:, :, ::2, ::2] + biases[:, None, None])
    assert res[0].dzdw[0] is None and np.allclose(res[0].dzdw[1], dzdy.sum((0, 2, 3)))
    other = net.to_dagnn()
    assert np.array_equal(other.eval({"x0": X}, {"x1": dzdy}, ders=["x0"])["x1"], res[1].x)
    assert np.array_equal(other.vars["x0"].der, res[0].dzdx)
    assert other.params["layer1f"].value.shape == (4, 1, 1, 1) and other.params["layer1f"].der is None

    bare = SimpleNN([{"type": "conv", "weights": [], "stride": 2}])
    y = bare.eval(X, normal(2, 4, 3, 3))[1].x
    assert np.array_equal(y, X[:, :, ::2, ::2])
    assert np.array_equal(bare.to_dagnn().eval({"x0": X})["x1"], y)
    padded = SimpleNN([{"type": "conv", "weights": [], "pad": 1}])
    assert padded.eval(X)[1].x.shape == (2, 4, 7, 8)
    assert isinstance(padded.to_dagnn().layers["layer1"].layer, dagnn.Placeholder)


def test_batch_normalisation_without_moments_starts_as_mean_0_and_sigma_1():
    net = SimpleNN([{"type": "bnorm", "weights": [np.ones(4, "f4"), np.zeros(4, "f4")]}])
    moments = net.layers[0]["weights"][2]
    assert moments.dtype == np.float32 and np.array_equal(moments, [[0, 1]] * 4)
    x = X.astype("f4")
    assert np.array_equal(net.eval(x, mode="test")[1].x, x)
    assert net.layers[0]["epsilon"] == 1e-5


@pytest.mark.parametrize(
    ("layer", "message"),
    [
        ("conv", r"layers\[0\] must be a dict with a 'type'. Received: conv"),
        ({"name": "x"}, r"layers\[0\] must be a dict with a 'type'"),
        ({"type": "conv"}, r"layers\[0\] \(conv\): the weights are missing\nReceived: the fields type"),
        ({"type": "convt", "weights": []}, "a transposed convolution needs filters"),
        ({"type": "bnorm", "weights": [normal(3)]}, "batch normalisation needs multipliers and biases"),
        ({"type": "conv", "weights": 3}, "weights is a list of arrays, not 3"),
    ],
)
def test_what_cannot_be_tidied(layer, message):
    with pytest.raises(dagnn.OptionError, match=message):
        SimpleNN([layer])


def test_layers_added_later():
    net = SimpleNN([{"type": "relu"}])
    net.layers.append({"type": "pool", "pool": 2})
    with pytest.raises(dagnn.OptionError, match=r"layers\[1\] isn't tidy: call net.tidy\(\)"):
        net.eval(X)
    net.tidy()
    assert net.eval(X)[2].x.shape == (2, 4, 4, 5)


# ---- options of eval


def small(dtype=float):
    """conv, bnorm, relu, dropout, conv, softmaxloss."""
    r = np.random.default_rng(7)

    def w(*shape):
        return r.standard_normal(shape).astype(dtype)

    return SimpleNN(
        [
            {"type": "conv", "weights": [w(3, 4, 3, 3), w(3)], "name": "c1"},
            {"type": "bnorm", "weights": [w(3), w(3)], "name": "n"},
            {"type": "relu"},
            {"type": "dropout", "rate": 0.4},
            {"type": "conv", "weights": [w(5, 3, 3, 4)], "name": "c2"},
            {"type": "softmaxloss", "class": np.array([0, 4])},
        ],
        {"classes": ["a", "b"]},
    )


def same(a, b):
    return (a is None and b is None) or np.array_equal(a, b)


def assert_same(res, other, fields=("x", "dzdx")):
    for a, b in zip(res, other, strict=True):
        assert all(same(getattr(a, f), getattr(b, f)) for f in fields)
        assert all(map(same, a.dzdw, b.dzdw)) and len(a.dzdw) == len(b.dzdw)


def test_results():
    res = small().eval(X, 1)
    assert [entry.x.shape for entry in res[:3]] == [(2, 4, 5, 6), (2, 3, 3, 4), (2, 3, 3, 4)]
    assert res[-1].x.shape == () and res[-1].dzdx == 1
    assert [len(entry.dzdw) for entry in res] == [2, 3, 0, 0, 2, 0, 0]
    assert all(entry.time > 0 and entry.backward_time > 0 for entry in res[:-1])
    assert res[-1].time == res[-1].backward_time == 0
    assert [k for k, entry in enumerate(res) if entry.aux is not None] == [4]
    assert set(np.unique(res[4].aux)) == {0, 1 / 0.6}
    assert repr(res[1]) == ("Result(x (2, 3, 3, 4) float64, dzdx (2, 3, 3, 4) float64, dzdw of 3)")


def test_single_precision_throughout():
    res = small(np.float32).eval(X.astype("f4"), np.float64(1))
    arrays = [a for e in res for a in (e.x, e.dzdx, e.aux, *e.dzdw) if a is not None]
    assert len(arrays) > 15 and all(a.dtype == np.float32 for a in arrays)


def test_masks_are_drawn_anew_unless_frozen():
    net = small()
    first = net.eval(X)[4].aux
    assert not np.array_equal(first, net.eval(X)[4].aux)
    net.layers[3]["frozen"] = True
    res = net.eval(X)
    mask = res[4].aux
    assert same(net.eval(X, 1, res)[4].aux, mask)
    again = small()
    assert same(again.eval(X)[4].aux, first)
    again.seed = 1
    again.evaluation = 0
    assert not same(again.eval(X)[4].aux, first)


def test_given_res_is_written_over_and_returned():
    net = small()
    res = net.eval(X)
    assert res[0].dzdx is None
    assert net.eval(X, 1, res) is res and res[0].dzdx is not None


def test_backprop_depth():
    full = small().eval(X, 1)
    for depth in range(1, 8):
        res = small().eval(X, 1, backprop_depth=depth)
        lowest = max(6 - depth, 0)
        assert [e.dzdx is not None for e in res] == [k >= lowest for k in range(7)]
        assert [bool(e.dzdw) for e in res] == [k >= lowest and k in (0, 1, 4) for k in range(7)]
        assert all(same(a.dzdx, b.dzdx) for a, b in zip(res[lowest:], full[lowest:], strict=True))
    assert [e.x is not None for e in small().eval(X, 1, backprop_depth=2, conserve_memory=True)] == [
        *[False] * 6,
        True,
    ]


def test_losses_and_precious_layers_keep_their_values():
    layers = [
        {"type": "loss", "class": np.array([1, 2])},
        {"type": "relu", "precious": True},
        {"type": "tanh"},
    ]
    x = X[:, :, :1, :1]
    res = SimpleNN(layers).eval(x, conserve_memory=True)
    assert [e.x is not None for e in res] == [False, True, True, True]
    res = SimpleNN(layers[1:]).eval(x, x, conserve_memory=True)
    assert [e.x is not None for e in res] == [True, True, True]
    assert [e.dzdx is not None for e in res] == [True, True, True]


def test_skip_forward_uses_the_values_of_res():
    net = small()
    res = net.eval(X)
    reference = small().eval(X, 1)
    evaluation = net.evaluation
    net.eval(None, 1, res, skip_forward=True)
    assert net.evaluation == evaluation
    assert_same(res, reference)
    for value in (res[5].x, *res[0].dzdw):
        value *= 2
    net.eval(None, 1, res, skip_forward=True, accumulate=True)
    assert not same(res[5].dzdx, reference[5].dzdx)
    assert not same(res[0].dzdw[0], 3 * reference[0].dzdw[0])


def test_skip_forward_says_what_is_missing():
    net = small()
    for options in ({"dzdy": 1}, {"res": net.eval(X)}):
        with pytest.raises(dagnn.OptionError, match="skip_forward needs dzdy, and"):
            net.eval(None, skip_forward=True, **options)
    res = net.eval(X, conserve_memory=True)
    with pytest.raises(dagnn.ReleasedError, match=r"layers\[5\].*skip_forward needs res\[5\].x"):
        net.eval(None, 1, res, skip_forward=True)
    with pytest.raises(dagnn.ReleasedError, match=r"skip_forward needs res\[6\].x"):
        net.eval(None, 1, [Result() for _ in res], skip_forward=True)
    res = net.eval(X, mode="test")
    with pytest.raises(dagnn.ReleasedError, match=r"skip_forward needs res\[4\].aux, of a pass in this mode"):
        net.eval(None, 1, res, skip_forward=True)


def test_accumulation_over_parts_of_a_batch():
    net = small()
    x = normal(4, 4, 5, 6)
    labels = np.array([0, 4, 1, 1])

    def half(k):
        net.layers[5]["class"] = labels[2 * k : 2 * k + 2]
        return x[2 * k : 2 * k + 2]

    parts = [net.eval(half(k), 1, mode="test") for k in range(2)]
    res = net.eval(half(0), 1, mode="test")
    net.eval(half(1), 1, res, mode="test", accumulate=True)
    for i in (0, 1, 4):
        for der, a, b in zip(res[i].dzdw, parts[0][i].dzdw, parts[1][i].dzdw, strict=True):
            assert same(der, None if a is None else a + b)
    fresh = net.eval(half(0), 1, mode="test", accumulate=True)
    assert_same(fresh, parts[0])


class Server:
    def __init__(self):
        self.pushed = {}

    def push(self, name, der):
        self.pushed[name] = der


def test_parameter_server():
    reference, server = small().eval(X, 1), Server()
    res = small().eval(X, 1, parameter_server=server)
    assert list(server.pushed) == ["l5_1", "l2_1", "l2_2", "l2_3", "l1_1", "l1_2"]
    assert same(server.pushed["l5_1"], reference[4].dzdw[0])
    assert res[0].dzdw == [None, None] and res[1].dzdw == [None] * 3
    held = Server()
    assert_same(small().eval(X, 1, parameter_server=held, hold_on=True), reference)
    assert not held.pushed


def test_options_without_effect_on_the_numbers():
    assert_same(small().eval(X, 1, sync=True, cudnn=False), small().eval(X, 1, mode="train"))


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"mode": "deploy"}, dagnn.OptionError, "mode is 'normal'"),
        ({"backprop_depth": 0}, dagnn.OptionError, "backprop_depth must be more than 0"),
        ({"res": [Result()]}, dagnn.OptionError, "res must have 7 entries for 6 layers. Received: 1"),
        ({"dzdy": np.ones(3)}, dagnn.ShapeError, r"the output's shape \(\). Received: \(3,\) float64"),
    ],
)
def test_wrong_arguments(arguments, error, message):
    with pytest.raises(error, match=message):
        small().eval(X, **arguments)


def test_dzdy_of_another_type():
    with pytest.raises(dagnn.DTypeError, match="dzdy is float32, the output float64"):
        chain("relu").eval(X, X.astype("f4"))
    assert chain("relu").eval(X, np.ones(X.shape, int))[0].dzdx.dtype == np.float64


def test_empty_dzdy_means_forward_only():
    assert small().eval(X, [])[0].dzdx is None


def test_errors_name_the_layer():
    net = small()
    with pytest.raises(dagnn.ShapeError) as caught:
        net.eval(X[:, :3])
    assert str(caught.value).startswith("layers[0] 'c1' (conv): ")
    assert str(caught.value).endswith("Received: x (2, 3, 5, 6) float64")
    del net.layers[5]["class"]
    with pytest.raises(
        dagnn.OptionError, match=r"'layer6' \(softmaxloss\): nothing to compare with: set the"
    ):
        net.eval(X)
    with pytest.raises(dagnn.OptionError, match="the field 'param' is missing"):
        SimpleNN([{"type": "spnorm"}]).eval(X)


def test_foreign_errors_get_a_note():
    def forward(layer, before, after):
        return 1 / 0

    net = SimpleNN([{"type": "custom", "forward": forward, "name": "mine"}])
    with pytest.raises(ZeroDivisionError) as caught:
        net.eval(X)
    assert caught.value.__notes__ == ["In layers[0] 'mine' (custom).\nReceived: x (2, 4, 5, 6) float64"]


# ---- custom layers


def scale_forward(layer, before, after):
    after.x = layer["weights"][0] * before.x
    after.aux = "seen"
    return after


def scale_backward(layer, before, after):
    before.dzdx = layer["weights"][0] * after.dzdx
    before.dzdw = [np.array([(before.x * after.dzdx).sum()])]
    return before


CUSTOM = {
    "type": "custom",
    "forward": scale_forward,
    "backward": scale_backward,
    "weights": [np.array([3.0])],
    "name": "s",
}


def test_custom_layers():
    net = SimpleNN([{"type": "relu"}, CUSTOM, {"type": "sigmoid"}])
    dzdy = normal(*X.shape)
    res = net.eval(X, dzdy)
    y = np.maximum(X, 0)
    s = 1 / (1 + np.exp(-3 * y))
    assert np.allclose(res[3].x, s) and res[2].aux == "seen"
    assert np.allclose(res[0].dzdx, 3 * dzdy * s * (1 - s) * (X > 0))
    assert np.allclose(res[1].dzdw[0], (dzdy * s * (1 - s) * y).sum())
    again = net.eval(None, dzdy, net.eval(X), skip_forward=True)
    assert_same(again, res)


def test_custom_layers_may_change_results_in_place():
    def forward(layer, before, after):
        after.x = 2 * before.x

    def backward(layer, before, after):
        before.dzdx = 2 * after.dzdx

    res = SimpleNN([{"type": "custom", "forward": forward, "backward": backward}]).eval(X, X)
    assert np.array_equal(res[1].x, 2 * X) and np.array_equal(res[0].dzdx, 2 * X)


def test_custom_layers_that_cannot_be_called():
    net = SimpleNN([{**CUSTOM, "backward": "@f"}])
    with pytest.raises(dagnn.OptionError, match="backward must be a function. Received: '@f'"):
        net.eval(X, X)
    net.layers[0]["forward"] = lambda layer, before, after: before.x
    with pytest.raises(dagnn.OptionError, match="forward must return a Result. Received: ndarray"):
        net.eval(X)
    net.layers[0]["forward"] = "@f"
    with pytest.raises(dagnn.PlaceholderError, match=r"'s' \(custom\): its two functions are not known"):
        net.eval(X)


def test_unknown_types_say_how_to_supply_them():
    net = SimpleNN([{"type": "relu"}, {"type": "upsmpl", "factor": 2}])
    with pytest.raises(dagnn.PlaceholderError) as caught:
        net.eval(X)
    text = str(caught.value)
    assert text.startswith("layers[1] 'layer2' (upsmpl): the type 'upsmpl' is not known. Supply")
    assert "link['forward']" in text and text.endswith("Received: x (2, 4, 5, 6) float64")
    forward = lambda layer, before, after: Result(before.x.repeat(layer["factor"], 2))  # noqa: E731
    net.layers[1].update(type="custom", forward=forward)
    assert net.eval(X)[2].x.shape == (2, 4, 10, 6)


# ---- DagNN


def test_names_in_the_dagnn():
    net = small()
    net.layers[0].update(learningRate=(0.5, 2), weightDecay=np.array([1, 0.0]))
    net.layers[1].update(learningRate=(2, 1, 0.05), weightDecay=(3, 3, 3))
    net.layers[2]["precious"] = True
    dag = net.to_dagnn()
    assert list(dag.layers) == ["c1", "n", "layer3", "layer4", "c2", "layer6"]
    assert list(dag.params) == ["c1f", "c1b", "nm", "nb", "nx", "c2f"]
    assert dag.inputs == ["x0", "label"] and dag.outputs == ["x6"]
    assert [p.learning_rate for p in dag.params.values()] == [0.5, 2, 2, 1, 0.05, 1]
    assert [p.weight_decay for p in dag.params.values()] == [1, 0, 3, 3, 0, 1]
    assert [p.train_method for p in dag.params.values()].index("average") == 4
    assert [name for name, var in dag.vars.items() if var.precious] == ["x3"]
    assert dag.meta == net.meta and dag.meta is not net.meta
    dag.meta["classes"].append("c")
    assert net.meta["classes"] == ["a", "b"]


def test_the_dagnn_computes_the_same_with_the_same_masks():
    net = small()
    dag = net.to_dagnn()
    dag.conserve_memory = False
    for _ in range(2):
        res = net.eval(X, 1)
        dag.eval({"x0": X, "label": net.layers[5]["class"]}, {"x6": 1})
        for i, entry in enumerate(res):
            # Up to rounding: a DagNN keeps its filters in the order in which its kernels read them.
            assert np.allclose(entry.x, dag.vars[f"x{i}"].value, rtol=1e-12, atol=1e-13)
            assert np.allclose(entry.dzdx, dag.vars[f"x{i}"].der, rtol=1e-12, atol=1e-13)
        assert np.allclose(res[0].dzdw[1], dag.params["c1b"].der, rtol=1e-12, atol=1e-13)


@pytest.mark.parametrize("kind", sorted(LAYERS))
@pytest.mark.parametrize("mode", ["normal", "test"])
def test_every_type_in_a_dagnn(kind, mode):
    net, x = chain(kind), positive(kind)
    dag = net.to_dagnn()
    dag.mode = mode
    res = net.eval(x, mode=mode)
    dzdy = normal(*res[1].x.shape)
    net.eval(x, dzdy, res, mode=mode)
    inputs = {"x0": x}
    if "label" in dag.vars:
        inputs["label"] = net.layers[0]["class"]
    if "instance_weights" in dag.vars:
        inputs["instance_weights"] = net.layers[0]["instanceWeights"]
    dag.state["layer1"].update({} if res[1].aux is None else {"mask": res[1].aux})
    y = dag.eval(inputs, {"x1": dzdy}, ders=["x0"])["x1"]
    assert same(y, res[1].x) and same(dag.vars["x0"].der, res[0].dzdx)
    for name, der in zip(dag.params, res[0].dzdw, strict=False):
        assert same(dag.params[name].der, der)


def test_canonical_names():
    layers = [{"type": "relu"}, {"type": "softmax"}, {"type": "loss", "loss": "log"}]
    dag = SimpleNN(layers).to_dagnn(canonical_names=True)
    assert [(n.inputs, n.outputs) for n in dag.layers.values()] == [
        (["input"], ["prediction"]),
        (["prediction"], ["prob"]),
        (["prob", "label"], ["objective"]),
    ]
    dag = SimpleNN([{"type": "relu"}, {"type": "softmaxloss"}]).to_dagnn(canonical_names=True)
    assert dag.layers["layer2"].inputs == ["prediction", "label"]
    meta = {"inputs": [{"name": "image", "size": [8, 8, 3]}]}
    assert SimpleNN(layers, meta).to_dagnn().meta["inputs"][0]["name"] == "x0"
    assert SimpleNN(layers, meta).to_dagnn(True).meta["inputs"][0] == {"name": "input", "size": [8, 8, 3]}
    assert SimpleNN(layers, {"inputs": meta["inputs"][0]}).to_dagnn(True).meta["inputs"]["name"] == "input"


def test_several_losses_get_labels_of_their_own():
    layers = [{"type": "pdist"}, {"type": "softmaxloss"}, {"type": "loss"}]
    dag = SimpleNN(layers).to_dagnn(canonical_names=True)
    assert [n.inputs[1] for n in dag.layers.values()] == ["label", "label1", "label2"]
    assert [n.outputs[0] for n in dag.layers.values()] == ["prediction", "prediction1", "objective1"]


def test_unknown_types_become_placeholders_in_the_dagnn():
    bank, bias = normal(1, 10, 1, 1), normal(1)
    layers = [
        {"type": "relu"},
        {"type": "mix", "weights": [bank, bias, None], "factor": 2, "name": "m"},
        {"type": "custom", "forward": "@f"},
    ]
    dag = SimpleNN(layers).to_dagnn()
    mix, custom = dag.layers["m"], dag.layers["layer3"].layer
    assert mix.layer == dagnn.Placeholder("mix", {"factor": 2}) and mix.params == ["mf", "mb", "mw3"]
    assert np.array_equal(dag.params["mf"].value, bank) and dag.params["mw3"].value is None
    assert custom == dagnn.Placeholder("custom", {"forward": "@f"})
    assert dag.eval({"x0": X}, outputs="x1")["x1"].shape == X.shape


def test_custom_layers_in_the_dagnn():
    net = SimpleNN([CUSTOM, {"type": "tanh"}])
    dag = net.to_dagnn()
    assert list(dag.params) == ["sf"]
    res = net.eval(X, X)
    assert same(dag.eval({"x0": X}, {"x2": X}, ders=["x0"])["x2"], res[2].x)
    assert same(dag.vars["x0"].der, res[0].dzdx) and same(dag.params["sf"].der, res[0].dzdw[0])
    dag.params["sf"].value = [5.0]
    assert np.allclose(dag.eval({"x0": X}, outputs="x1")["x1"], 5 * X)
    assert net.layers[0]["weights"][0] == 3


def test_custom_layers_in_the_dagnn_start_from_their_own_weights():
    dag = SimpleNN([CUSTOM]).to_dagnn()
    dag.params["sf"].value = [5.0]
    dag.init_params()
    assert dag.params["sf"].value == 3
    assert dag.receptive_fields("x0")["x1"] is None


def test_evaluation_leaves_weights_writable_and_shared_with_nobody():
    net = small()
    dag = net.to_dagnn()
    net.eval(X, 1)
    net.layers[0]["weights"][1] += 1
    assert not np.array_equal(dag.params["c1b"].value, net.layers[0]["weights"][1])


# ---- text


def test_repr():
    assert repr(small()) == (
        "SimpleNN (numpy): 6 layers, 303 weights; 2 conv, 1 bnorm, 1 relu, 1 dropout, 1 softmaxloss"
    )


def lenet(**meta):
    """Layers and sizes of MatConvNet's cnn_mnist_init."""

    def w(*shape):
        return [np.zeros(shape, "f4"), np.zeros(shape[0], "f4")]

    return SimpleNN(
        [
            {"type": "conv", "weights": w(20, 1, 5, 5)},
            {"type": "pool", "pool": 2, "stride": 2},
            {"type": "conv", "weights": w(50, 20, 5, 5)},
            {"type": "pool", "pool": 2, "stride": 2, "method": "avg"},
            {"type": "conv", "weights": w(500, 50, 4, 4)},
            {"type": "relu"},
            {"type": "conv", "weights": w(10, 500, 1, 1)},
            {"type": "softmaxloss"},
        ],
        meta,
    )


LENET = """\
     layer|    0|     1|     2|     3|     4|     5|     6|     7|      8|
      type|input|  conv| mpool|  conv| apool|  conv|  relu|  conv|softmxl|
      name|  n/a|layer1|layer2|layer3|layer4|layer5|layer6|layer7| layer8|
----------|-----|------|------|------|------|------|------|------|-------|
   support|  n/a|     5|     2|     5|     2|     4|     1|     1|      1|
  filt dim|  n/a|     1|   n/a|    20|   n/a|    50|   n/a|   500|    n/a|
filt dilat|  n/a|     1|   n/a|     1|   n/a|     1|   n/a|     1|    n/a|
 num filts|  n/a|    20|   n/a|    50|   n/a|   500|   n/a|    10|    n/a|
    stride|  n/a|     1|     2|     1|     2|     1|     1|     1|      1|
       pad|  n/a|     0|     0|     0|     0|     0|     0|     0|      0|
----------|-----|------|------|------|------|------|------|------|-------|
   rf size|  n/a|     5|     6|    14|    16|    28|    28|    28|     28|
 rf offset|  n/a|     3|   3.5|   7.5|   8.5|  14.5|  14.5|  14.5|   14.5|
 rf stride|  n/a|     1|     2|     2|     4|     4|     4|     4|      4|
----------|-----|------|------|------|------|------|------|------|-------|
 data size|   28|    24|    12|     8|     4|     1|     1|     1|      1|
data depth|    1|    20|    20|    50|    50|   500|   500|    10|      1|
  data num|  100|   100|   100|   100|   100|   100|   100|   100|      1|
----------|-----|------|------|------|------|------|------|------|-------|
  data mem|306KB|   4MB|   1MB|   1MB| 312KB| 195KB| 195KB|   4KB|     4B|
 param mem|  n/a|   2KB|    0B|  98KB|    0B|   2MB|    0B|  20KB|     0B|

parameter memory|2MB (4.3e+05 parameters)|
     data memory|8MB (for batch size 100)|
"""


def lines(text):
    """Cells without the spaces that align them."""
    return [[cell.strip() for cell in line.split("|")] for line in text.strip().split("\n")]


def test_display_of_lenet():
    assert lenet().display((100, 1, 28, 28)) + "\n" == LENET


def test_display_in_several_pieces():
    pieces = lenet().display((100, 1, 28, 28), columns=4).split("\n\n")
    assert [lines(p)[0][1:-1] for p in pieces[:-1]] == [["0", "1", "2", "3"], ["4", "5", "6", "7"], ["8"]]
    assert pieces[1].startswith("     layer|") and pieces[-1].startswith("parameter memory")


@pytest.mark.parametrize(
    "meta", [{"inputSize": [28, 28, 1]}, {"normalization": {"imageSize": np.array([[28.0], [28], [1]])}}]
)
def test_display_takes_the_size_from_meta(meta):
    assert lenet(**meta).display(batch_size=100) == lenet().display((100, 1, 28, 28))
    assert "(for batch size 1)" in lenet(**meta).display()


def row(text, name):
    return next(line[1:-1] for line in lines(text) if line[0] == name)


def test_display_of_unknown_sizes():
    text = lenet().display()
    assert row(text, "data size")[:2] == ["NaN", "NaN"]
    assert row(text, "data depth")[:4] == ["NaN", "20", "20", "50"]
    assert row(text, "data mem")[1] == "NaN" and row(text, "rf size")[-1] == "28"
    assert "NaN (for batch size 1)" in text


@pytest.mark.parametrize("kind", ["bnorm", "convt"])
def test_display_takes_unknown_channels_from_the_weights(kind):
    assert row(chain(kind).display(), "data depth") == ["NaN", {"bnorm": "4", "convt": "6"}[kind]]


def test_display_of_other_layers():
    net = SimpleNN(
        [
            {
                "type": "conv",
                "weights": [np.zeros((8, 3, 3, 3)), None],
                "pad": (1, 2, 1, 2),
                "dilate": (1, 2),
            },
            {"type": "bnorm", "weights": [np.zeros(8), np.zeros(8)]},
            {
                "type": "convt",
                "weights": [np.zeros((8, 3, 4, 4)), None],
                "upsample": 2,
                "crop": 1,
                "numGroups": 2,
            },
            {"type": "conv", "weights": [], "stride": 2},
            {"type": "pdist"},
            {"type": "mystery", "weights": [np.zeros(5)]},
            {"type": "custom", "forward": print},
            {"type": "softmaxloss"},
        ]
    )
    text = net.display((2, 3, 16, 16))
    assert row(text, "support") == ["n/a", "3x5", "1", "4", "1", "1", "n/a", "n/a", "1"]
    assert row(text, "pad") == ["n/a", "1x2x1x2", "0", "-1", "0", "0", "n/a", "n/a", "0"]
    assert row(text, "stride") == ["n/a", "1", "1", "0.5", "2", "1", "n/a", "n/a", "1"]
    assert row(text, "num filts") == ["n/a", "8", "n/a", "6", "n/a", "n/a", "n/a", "n/a", "n/a"]
    assert row(text, "filt dim") == ["n/a", "3", "n/a", "4", "n/a", "n/a", "n/a", "n/a", "n/a"]
    assert row(text, "filt dilat")[1] == "1x2"
    assert row(text, "data depth") == ["3", "8", "8", "6", "6", "1", "NaN", "NaN", "1"]
    assert row(text, "data size")[:6] == ["16", "17x15", "17x15", "34x30", "17x15", "17x15"]
    assert row(text, "rf size")[6:] == ["n/a"] * 3
    assert row(text, "param mem")[6] == "40B"


def test_display_of_sizes_that_do_not_fit():
    with pytest.raises(dagnn.ShapeError, match=r"layers\[4\] 'layer5' \(conv\): filters of 4x4 larger than"):
        lenet().display((1, 1, 20, 20))
    with pytest.raises(dagnn.OptionError, match=r"input_shape takes 4 sizes \(N, C, H, W\)"):
        lenet().display((28, 28, 1))


def test_move_to_the_backend_it_is_on():
    net = small()
    before = [w for link in net.layers for w in link["weights"]]
    net.move("numpy")
    assert all(a is b for a, b in zip(before, [w for k in net.layers for w in k["weights"]], strict=True))
    with pytest.raises(dagnn.DagnnError):
        net.move("abacus")
