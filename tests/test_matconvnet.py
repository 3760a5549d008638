"""MatConvNet files of every age and spelling, written here, each with the network expected of it."""

import warnings
from dataclasses import dataclass

import mat73_files
import matlab
import numpy as np
import pytest

import dagnn
from dagnn.errors import UnreadableValueWarning
from dagnn.io import mat
from dagnn.io.custom import snake_case
from dagnn.io.mat import Opaque, StructArray
from dagnn.io.matwrite import cell, matlab_value, struct_array

RNG = np.random.default_rng(0)


def single(*size):
    """A random MATLAB array; like MATLAB, without trailing ones."""
    while len(size) > 2 and size[-1] == 1:
        size = size[:-1]
    return RNG.standard_normal(size).astype(np.float32)


def dag(layers, params=(), variables=(), **fields):
    """A DagNN struct from (name, type, inputs, outputs, params, block) tuples and (name, value) pairs."""
    keys = ("name", "type", "inputs", "outputs", "params", "block")
    records = []
    for layer in layers:
        record = dict(zip(keys, layer, strict=True))
        for key in ("inputs", "outputs", "params"):
            record[key] = cell([record[key]] if isinstance(record[key], str) else list(record[key]))
        record["block"] = {k: matlab_value(v, k) for k, v in record["block"].items()}
        records.append(record)
    numbers = {"learningRate": np.array([[1.0]]), "weightDecay": np.array([[1.0]])}
    return {
        "vars": struct_array(
            [{"name": n, "precious": np.array([[p]])} for n, p in variables], ("name", "precious")
        ),
        "params": struct_array([{"name": n, "value": v, **numbers} for n, v in params], ("name", "value")),
        "layers": struct_array(records),
        "meta": np.empty((0, 0)),
        **fields,
    }


def simple(*layers, **fields):
    """A SimpleNN struct."""
    return {"layers": cell([{k: matlab_value(v, k) for k, v in layer.items()} for layer in layers]), **fields}


def conv(filters, biases, **fields):
    return {"type": "conv", "weights": [filters, biases], **fields}


@pytest.fixture
def load(tmp_path):
    """Write variables, load the network; v7 and v7.3 must give the same."""

    def both(**variables):
        mat.write(tmp_path / "v7.mat", variables)
        mat73_files.write(tmp_path / "v73.mat", variables)
        nets = [dagnn.load(tmp_path / name) for name in ("v7.mat", "v73.mat")]
        for net in nets:  # HDF5 sorts the variables of a file by name
            if "siblings" in net.meta:
                net.meta["siblings"] = dict(sorted(net.meta["siblings"].items()))
        matlab.assert_same_net(*nets)
        return nets[0]

    return both


# ---- DagNN


BLOCKS = [
    ("Conv", {"size": (3, 2, 4, 6), "hasBias": True, "pad": 1, "stride": (2, 1), "dilate": 2, "opts": ["cuDNN"]},
     dagnn.Conv((6, 4, 3, 2), True, (2, 1), 1, 2)),
    ("ConvTranspose", {"size": (4, 4, 2, 3), "hasBias": False, "upsample": 2, "crop": (1, 0, 1, 0), "numGroups": 1},
     dagnn.ConvTranspose((3, 2, 4, 4), False, 2, (1, 0, 1, 0))),
    ("Pooling", {"method": "avg", "poolSize": (3, 2), "pad": (0, 1, 0, 1), "stride": 2, "opts": []},
     dagnn.Pooling("avg", (3, 2), 2, (0, 1, 0, 1))),
    ("ReLU", {"useShortCircuit": True, "leak": 0.1, "opts": []}, dagnn.ReLU(0.1)),
    ("Sigmoid", {}, dagnn.Sigmoid()),
    ("SoftMax", {}, dagnn.SoftMax()),
    ("DropOut", {"rate": 0.25, "frozen": True}, dagnn.DropOut(0.25, True)),
    ("LRN", {"param": (5, 2, 1e-4, 0.75)}, dagnn.LRN((5, 2, 1e-4, 0.75))),
    ("SpatialNorm", {"param": (3, 3, 0.1, 0.5)}, dagnn.SpatialNorm((3, 3, 0.1, 0.5))),
    ("NormOffset", {"param": (1, 0.5)}, dagnn.NormOffset((1, 0.5))),
    ("Loss", {"loss": "topkerror", "opts": ["topK", 3], "ignoreAverage": False}, dagnn.Loss("topkerror", top_k=3)),
    ("Loss", {"loss": "binaryerror", "opts": ["threshold", 0.5]}, dagnn.Loss("binaryerror", threshold=0.5)),
    ("Loss", {"loss": "softmaxlog", "numAveraged": 24, "average": 1.5}, dagnn.Loss("softmaxlog")),
    ("PDist", {"p": 1, "aggregate": True, "noRoot": True, "epsilon": 1e-3}, dagnn.PDist(1, True, 1e-3, True)),
    ("Sum", {"numInputs": 2}, dagnn.Sum()),
    ("Concat", {"dim": 3, "numInputs": 2}, dagnn.Concat(1)),
    ("Concat", {"dim": 1}, dagnn.Concat(2)),
    ("Crop", {"crop": (1, 2)}, dagnn.Crop((1, 2))),
    ("ROIPooling", {"method": "max", "subdivisions": (6, 7), "transform": 1 / 16, "flatten": True},
     dagnn.ROIPooling("max", (6, 7), 1 / 16, True)),
    ("BilinearSampler", {}, dagnn.BilinearSampler()),
    ("AffineGridGenerator", {"Ho": 4, "Wo": 5}, dagnn.AffineGridGenerator(4, 5)),
    ("UniformScalingGridGenerator", {"Ho": 4, "Wo": 5}, dagnn.UniformScalingGridGenerator(4, 5)),
    ("LossSmoothL1", {"sigma": 3}, dagnn.LossSmoothL1(3)),
]  # fmt: skip


@pytest.mark.parametrize(("kind", "block", "expected"), BLOCKS, ids=[b[0] for b in BLOCKS])
def test_every_block_is_read_and_written(kind, block, expected, load, tmp_path):
    two = kind in ("Sum", "Concat", "Crop", "Loss", "PDist", "ROIPooling", "BilinearSampler", "LossSmoothL1")
    params = []
    if kind in ("Conv", "ConvTranspose"):
        params = [("f", single(*block["size"]))] + [("b", single(6, 1))] * block["hasBias"]
    inputs = ["x", "y"] if two else ["x"]
    net = load(net=dag([("l", f"dagnn.{kind}", inputs, "z", [n for n, _ in params], block)], params))
    assert net.layers["l"].layer == expected
    assert net.layers["l"].inputs == inputs
    net.save(tmp_path / "again.mat")
    matlab.assert_same_net(dagnn.load(tmp_path / "again.mat"), net)
    written = mat.read(tmp_path / "again.mat")["net"]["layers"]
    again = written["block"] if isinstance(written, dict) else written.records[0]["block"]
    meaningless = {"opts", "numInputs", "useShortCircuit", "average", "numAveraged"}
    for key in set(block) - meaningless:
        assert np.array_equal(
            np.ravel(again[key]), np.ravel(_full(key, block[key], getattr(expected, "pad", 0)))
        ), key


def _full(key, value, pad):
    """A scalar option is written out for all its axes."""
    if key in ("pad", "crop") and np.ndim(value) == 0:
        return (value,) * 4
    return (value,) * 2 if key in ("stride", "dilate", "upsample") and np.ndim(value) == 0 else value


def test_parameters_get_our_axes_and_settings(load):
    f, b = single(3, 2, 4, 6), single(1, 6)
    struct = dag(
        [("c", "dagnn.Conv", "x", "y", ["f", "b"], {"size": (3, 2, 4, 6), "hasBias": True})],
        [("f", f), ("b", b)],
    )
    struct["params"].records[1]["learningRate"] = np.array([[2]], np.uint8)
    struct["params"].records[1]["weightDecay"] = np.array([[0]], np.uint8)
    struct["params"].fields = ("name", "value", "learningRate", "weightDecay")
    net = load(net=struct)
    assert np.array_equal(net.params["f"].value, f.transpose(3, 2, 0, 1))
    assert np.array_equal(net.params["b"].value, b.ravel())
    assert (net.params["b"].learning_rate, net.params["b"].weight_decay) == (2, 0)


@pytest.mark.parametrize("size", [(3, 3, 64, 1), (4, 4, 1, 1), (1, 1, 1, 1), (1, 1, 5, 1)])
def test_trailing_ones_are_restored(size, load):
    net = load(
        net=dag(
            [("c", "dagnn.Conv", "x", "y", ["f", "b"], {"size": size[:3]})],
            [("f", single(*size)), ("b", single(1, 1))],
        )
    )
    h, w, c, k = size
    assert net.params["f"].value.shape == (k, c, h, w) == net.layers["c"].layer.size
    assert net.params["b"].value.shape == (1,)


def test_batch_norm_without_num_channels(load):
    params = [("g", single(5, 1)), ("h", single(5, 1)), ("m", np.abs(single(5, 2)))]
    block = {"numChannels": np.empty((0, 0)), "epsilon": 1e-5}
    net = load(net=dag([("bn", "dagnn.BatchNorm", "x", "y", ["g", "h", "m"], block)], params))
    assert net.layers["bn"].layer == dagnn.BatchNorm(5)
    assert np.array_equal(net.params["m"].value, params[2][1])
    assert net.params["m"].train_method == "average"


def test_precious_variables_and_shared_parameters(load):
    layers = [
        ("a", "dagnn.Conv", "x", "u", ["f", "b"], {"size": (1, 1, 2, 2), "hasBias": True}),
        ("c", "dagnn.Conv", "u", "v", ["f", "b"], {"size": (1, 1, 2, 2), "hasBias": True}),
    ]
    params = [("f", single(1, 1, 2, 2)), ("b", single(2, 1))]
    net = load(net=dag(layers, params, [("x", False), ("u", True), ("v", False)]))
    assert [name for name, var in net.vars.items() if var.precious] == ["u"]
    assert list(net.params) == ["f", "b"]


def test_roi_transform_counts_from_zero(load, tmp_path):
    """MatConvNet's 2 x 3 transform maps coordinates from 1; ours does the same to those from 0."""
    matrix = np.array([[0.5, 0.25, 2.0], [0.125, 0.5, 1.0]])
    block = {"method": "max", "subdivisions": (2, 2), "transform": matrix, "flatten": False}
    net = load(net=dag([("r", "dagnn.ROIPooling", ["x", "rois"], "y", [], block)]))
    ours = np.array(net.layers["r"].layer.transform)
    point = np.array([7.0, 3.0])
    assert ours[:, :2] @ point + ours[:, 2] == pytest.approx(matrix[:, :2] @ (point + 1) + matrix[:, 2] - 1)
    net.save(tmp_path / "again.mat")
    records = mat.read(tmp_path / "again.mat")["net"]["layers"]
    assert records["block"]["transform"] == pytest.approx(matrix)


@pytest.mark.parametrize(
    "empty", [{}, np.empty((0, 0)), cell([]), cell([np.empty((0, 0))]), StructArray((0, 0), (), [])]
)
def test_empty_blocks(empty, load):
    struct = dag([("s", "dagnn.Sum", ["x", "y"], "z", [], {})])
    struct["layers"].records[0]["block"] = empty
    assert load(net=struct).layers["s"].layer == dagnn.Sum()


def test_unknown_classes_are_kept_and_can_be_supplied(load, tmp_path):
    layers = [
        ("c", "dagnn.Conv", "x", "u", ["f"], {"size": (1, 1, 2, 2), "hasBias": False}),
        ("m", "MulConst", "u", "v", ["k"], {"gain": 3, "name": "thrice", "hasBias": False}),
    ]
    net = load(net=dag(layers, [("f", single(1, 1, 2, 2)), ("k", single(2, 1))]))
    assert net.layers["m"].layer == dagnn.Placeholder(
        "MulConst", {"gain": 3.0, "name": "thrice", "hasBias": False}
    )
    x = np.ones((1, 2, 3, 3), np.float32)
    assert set(net.eval({"x": x}, outputs="u")) == {"u"}
    with pytest.raises(dagnn.PlaceholderError, match=r'(?s)MulConst.*layers=\{"MulConst": MulConst\}'):
        net.eval({"x": x})
    for ending in (".mat", ".h5"):
        net.save(tmp_path / f"again{ending}")
        matlab.assert_same_net(dagnn.load(tmp_path / f"again{ending}"), net)
        with pytest.warns(dagnn.UnknownFieldWarning, match="Thrice has no option for gain, hasBias, name"):
            supplied = dagnn.load(tmp_path / f"again{ending}", layers={"MulConst": Thrice})
        assert supplied.eval({"x": x})["v"] == pytest.approx(3 * net.eval({"x": x}, outputs="u")["u"])


class Thrice(dagnn.Layer):
    """A class with parameters that the file calls by its own name."""

    param_specs = (dagnn.ParamSpec("gain"),)

    def forward(self, ctx, inputs, params):
        return [3 * inputs[0]]


def test_properties_without_meaning_are_left_out_with_one_warning(tmp_path):
    block = {"leak": 0.5, "colour": "red"}
    mat.write(tmp_path / "x.mat", {"net": dag([(n, "dagnn.ReLU", n, f"y{n}", [], block) for n in "ab"])})
    with pytest.warns(dagnn.UnknownFieldWarning, match="ReLU: colour") as caught:
        net = dagnn.load(tmp_path / "x.mat")
    assert len(caught) == 1 and net.layers["a"].layer == dagnn.ReLU(0.5)


@pytest.mark.parametrize(
    "wrap", [lambda s: {"net": s}, lambda s: s, lambda s: {"a": {"b": s, "epoch": np.array([[3.0]])}}]
)
def test_the_network_may_be_nested_or_at_top_level(wrap, load):
    struct = dag([("r", "dagnn.ReLU", "x", "y", [], {"leak": 0})])
    net = load(**wrap(struct))
    assert list(net.layers) == ["r"]


def test_siblings_are_reachable(load, tmp_path):
    struct = dag([("r", "dagnn.ReLU", "x", "y", [], {})])
    stats = {
        "train": StructArray((1, 2), ("objective",), [{"objective": np.array([[v]])} for v in (2.0, 1.0)])
    }
    net = load(net=struct, stats=stats, imageMean=single(4, 4, 3), info="made by hand")
    siblings = net.meta["siblings"]
    assert (
        siblings["stats"] == {"train": [{"objective": 2.0}, {"objective": 1.0}]}
        and siblings["info"] == "made by hand"
    )
    assert siblings["imageMean"].shape == (4, 4, 3)
    net.save(tmp_path / "again.mat")
    assert set(mat.read(tmp_path / "again.mat")) == {"net", "stats", "imageMean", "info"}


def test_meta_arrives_as_plain_values(load):
    meta = {
        "classes": {"name": cell(["n01", "n02"]), "description": cell(["cat", "dog"])},
        "normalization": {"imageSize": np.array([[224.0, 224, 3]]), "averageImage": single(1, 1, 3), "keepAspect": np.array([[True]])},
        "inputs": StructArray((1, 2), ("name",), [{"name": "x"}, {"name": "y"}]),
    }  # fmt: skip
    net = load(net=dag([("r", "dagnn.ReLU", "x", "y", [], {})], meta=meta))
    assert net.meta["classes"] == {"name": ["n01", "n02"], "description": ["cat", "dog"]}
    normalization = net.meta["normalization"]
    assert normalization["imageSize"].tolist() == [224, 224, 3] and normalization["keepAspect"] is True
    assert normalization["averageImage"].shape == (1, 1, 3)
    assert net.meta["inputs"] == [{"name": "x"}, {"name": "y"}]


@pytest.mark.parametrize("meta", [np.empty((0, 0)), {}, StructArray((0, 0), (), [])])
def test_meta_may_be_nothing(meta, load):
    assert load(net=dag([("r", "dagnn.ReLU", "x", "y", [], {})], meta=meta)).meta == {}


# ---- SimpleNN


def test_fromsimplenn_names(load):
    net = load(
        net=simple(
            conv(single(3, 3, 2, 4), single(1, 4), name="conv1", pad=1, stride=(1, 1)),
            {"type": "bnorm", "name": "bn1", "weights": [single(4, 1), single(4, 1), np.abs(single(4, 2))]},
            {"type": "relu", "name": "relu1", "weights": []},
            {"type": "pool", "name": "pool1", "method": "max", "pool": (2, 2), "stride": 2, "pad": 0},
            {"type": "dropout", "name": "drop", "rate": 0.5},
            {"type": "softmaxloss", "name": "loss", "class": np.array([[1.0, 2.0]])},
        )
    )
    assert list(net.params) == ["conv1f", "conv1b", "bn1m", "bn1b", "bn1x"]
    assert net.inputs == ["x0", "label"] and net.outputs == ["x6"]
    assert [type(node.layer).__name__ for node in net.layers.values()] == [
        "Conv", "BatchNorm", "ReLU", "Pooling", "DropOut", "Loss",
    ]  # fmt: skip
    assert net.params["bn1x"].value.shape == (4, 2)


def test_filters_and_biases_of_the_first_releases(load):
    f, b = single(5, 5, 1, 3), single(1, 3)
    rates = {
        "filtersLearningRate": 1,
        "biasesLearningRate": 2,
        "filtersWeightDecay": 1,
        "biasesWeightDecay": 0,
    }
    momentum = {
        "filtersMomentum": np.zeros((5, 5, 1, 3), np.float32),
        "biasesMomentum": np.zeros((1, 3), np.float32),
    }
    net = load(
        net=simple({"type": "conv", "filters": f, "biases": b, "stride": 1, "pad": 0, **rates, **momentum})
    )
    assert np.array_equal(net.params["layer1f"].value, f.reshape(5, 5, 1, 3).transpose(3, 2, 0, 1))
    assert (net.params["layer1b"].learning_rate, net.params["layer1b"].weight_decay) == (2, 0)


def test_missing_options_names_and_duplicates(load):
    net = load(
        net=simple(
            {"type": "conv", "weights": [single(1, 1, 2, 2)]},
            {"type": "relu", "name": "r"},
            {"type": "relu", "name": "r", "leak": 0.2, "precious": True},
            {"type": "normalize"},
        )
    )
    assert list(net.layers) == ["layer1", "r", "r_1", "layer4"]
    assert net.layers["layer1"].layer == dagnn.Conv((2, 2, 1, 1), has_bias=False)
    assert net.layers["r_1"].layer == dagnn.ReLU(0.2) and net.vars["x3"].precious


def test_old_files_keep_classes_and_normalization_at_top_level(load):
    old = {"classes": {"name": cell(["a"])}, "normalization": {"imageSize": np.array([[8.0, 8, 1]])}}
    for net in (load(net=simple({"type": "relu"}, **old)), load(**simple({"type": "relu"}, **old))):
        assert net.meta["classes"] == {"name": ["a"]}
        assert net.meta["normalization"]["imageSize"].tolist() == [8, 8, 1]


def test_unknown_simplenn_types_are_kept(load, tmp_path):
    net = load(
        net=simple(
            {"type": "upsmpl", "factor": 2},
            {"type": "chnLinComb", "weights": [single(1, 1, 4), single(1, 1)]},
        )
    )
    assert net.layers["layer1"].layer.class_name == "upsmpl"
    assert net.params["layer2f"].value.shape == (1, 4, 1, 1)
    net.save(tmp_path / "again.mat")
    matlab.assert_same_net(dagnn.load(tmp_path / "again.mat"), net)


def test_stray_doubles_follow_the_singles(load):
    net = load(net=simple(conv(single(3, 3, 2, 4), np.zeros((1, 4)))))
    assert net.dtype == np.float32 and net.params["layer1b"].value.dtype == np.float32


def leftovers():
    """What training on a GPU and custom code leave in a file."""
    gpu = Opaque("opaque", "gpuArray", mat73_files.OBJECT.T)
    function = Opaque("function", "function_handle", {"function_handle": {"function": "@(x)x"}})
    loss = {"type": "softmaxloss", "class": gpu}
    custom = {"type": "custom", "forward": function, "backward": function, "rate": np.array([[2.0]])}
    return {"layers": cell([{"type": "relu"}, custom, loss]), "meta": {"trainOpts": {"getBatch": function}}}


def test_gpu_leftovers_and_function_handles_never_stop_a_load(tmp_path):
    mat73_files.write(tmp_path / "x.mat", {"net": leftovers(), "state": {"momentum": cell([])}})
    with pytest.warns(UnreadableValueWarning, match="Opaque"):
        net = dagnn.load(tmp_path / "x.mat")
    assert [type(node.layer).__name__ for node in net.layers.values()] == ["ReLU", "Placeholder", "Loss"]
    assert net.layers["layer2"].layer.config["rate"] == 2
    assert net.meta["trainOpts"]["getBatch"] == "<function function_handle>"
    x = np.ones((1, 2, 1, 1), np.float32)
    assert set(net.eval({"x0": x}, outputs="x1")) == {"x1"}
    with pytest.raises(dagnn.PlaceholderError, match="custom"):
        net.eval({"x0": x}, outputs="x2")


def test_scale_in_all_its_sizes(load, tmp_path):
    for dims in ((1, 1, 5, 1), (2, 3, 1, 1), (1, 3, 5, 2)):
        a, b = single(*dims), single(*dims)
        block = {"size": dims, "hasBias": True}
        net = load(net=dag([("s", "dagnn.Scale", "x", "y", ["a", "b"], block)], [("a", a), ("b", b)]))
        h, w, c, n = dims
        assert net.layers["s"].layer == dagnn.Scale((n, c, h, w))
        assert np.array_equal(net.params["a"].value, a.reshape(dims).transpose(3, 2, 0, 1))
        net.save(tmp_path / "again.mat")
        matlab.assert_same_net(dagnn.load(tmp_path / "again.mat"), net)
    net = load(
        net=dag([("s", "dagnn.Scale", ["x", "a"], "y", [], {"size": np.empty((0, 0)), "hasBias": False})])
    )
    assert net.layers["s"].layer == dagnn.Scale(None, has_bias=False)


def test_v6_and_v5_as_scipy_writes_them(tmp_path):
    import scipy.io

    struct = dag(
        [("c", "dagnn.Conv", "x", "y", ["f", "b"], {"size": (3, 2, 4, 6), "hasBias": True, "stride": 2})],
        [("f", single(3, 2, 4, 6)), ("b", single(6, 1))],
    )
    mat.write(tmp_path / "v7.mat", {"net": struct})
    for options in ({"do_compression": False}, {"do_compression": True}):
        scipy.io.savemat(tmp_path / "scipy.mat", {"net": _for_scipy(struct)}, **options)
        matlab.assert_same_net(dagnn.load(tmp_path / "scipy.mat"), dagnn.load(tmp_path / "v7.mat"))


# ---- what is no network


@pytest.mark.parametrize(
    ("variables", "what"),
    [
        ({"w1": single(3, 3), "w2": single(3, 1)}, "list of weights"),
        ({"images": {"data": single(2, 2), "labels": single(1, 2), "set": single(1, 2)}, "meta": {"sets": cell(["train"])}}, "image database"),
        ({"opts": {"lr": np.array([[0.1]]), "gpus": np.empty((0, 0))}}, "options or results with the fields lr, gpus"),
        ({"net": {"forward": StructArray((1, 0), ("func",), []), "backward": StructArray((1, 0), ("func",), []), "params": np.empty((0, 0))}}, "AutoNN"),
        ({"net": {"layers": cell([])}}, "options or results"),
    ],
    ids=["weights", "imdb", "options", "autonn", "empty"],
)  # fmt: skip
def test_what_is_no_network_is_refused_in_a_sentence(variables, what, tmp_path):
    mat.write(tmp_path / "x.mat", variables)
    with pytest.raises(dagnn.FileFormatError, match=what) as caught:
        dagnn.load(tmp_path / "x.mat")
    assert len(str(caught.value).splitlines()) == 1


@pytest.mark.parametrize(
    ("struct", "what"),
    [
        (
            dag(
                [("c", "dagnn.Conv", "x", "y", ["f"], {"size": (1, 1, 1, 1), "pad": -1})],
                [("f", single(1, 1))],
            ),
            "pad",
        ),
        (dag([("c", "dagnn.Pooling", "x", "y", [], {"method": "median"})]), "method"),
        (dag([("c", "dagnn.Concat", "x", "y", [], {"dim": 7})]), "'dim' can't be"),
        (dag([("a", "dagnn.ReLU", "x", "y", [], {}), ("b", "dagnn.ReLU", "y", "x", [], {})]), "cycle"),
        (
            dag([("a", "dagnn.ReLU", "x", "y", [], {}), ("b", "dagnn.ReLU", "x", "y", [], {})]),
            "produced twice",
        ),
        (
            dag([("a", "dagnn.ReLU", "x", "y", [], {}), ("a", "dagnn.ReLU", "y", "z", [], {})]),
            "already a layer",
        ),
        (simple({"type": "conv", "weights": [single(3, 3)], "stride": 0}), "stride"),
    ],
    ids=["pad", "method", "dim", "cycle", "two producers", "two names", "stride"],
)
def test_broken_networks_say_what_is_wrong(struct, what, tmp_path):
    mat.write(tmp_path / "x.mat", {"net": struct})
    with pytest.raises(dagnn.FileFormatError, match=what):
        dagnn.load(tmp_path / "x.mat")


def test_by_content_not_by_ending(tmp_path):
    mat.write(tmp_path / "x.h5", {"net": simple({"type": "relu"})})
    assert list(dagnn.load(tmp_path / "x.h5").layers) == ["layer1"]
    net = dagnn.DagNN()
    net.add_layer("r", dagnn.ReLU(), "x", "y")
    net.save(tmp_path / "net.h5")
    (tmp_path / "net.h5").rename(tmp_path / "net.mat")
    assert list(dagnn.load(tmp_path / "net.mat").layers) == ["r"]


def test_a_placeholder_survives_hdf5_and_is_supplied_from_there(tmp_path):
    @dataclass
    class XCorr(dagnn.Layer):
        has_bias: bool = True

    net = dagnn.DagNN()
    net.add_layer(
        "x", dagnn.Placeholder("dagnn.XCorr", {"hasBias": False, "opts": ["cuDNN"]}), ["a", "b"], "y"
    )
    net.save(tmp_path / "net.h5")
    assert dagnn.load(tmp_path / "net.h5", {"XCorr": XCorr}).layers["x"].layer.has_bias is False


def test_snake_case_of_matlab_names():
    assert snake_case("useShortCircuit") == "use_short_circuit"


# ---- SimpleNN written


def test_a_chain_is_written_as_a_simplenn(tmp_path):
    net = dagnn.DagNN()
    links = [
        ("c", dagnn.Conv((4, 2, 3, 3), pad=1, stride=2)),
        ("b", dagnn.BatchNorm(4)),
        ("r", dagnn.ReLU(0.1)),
        ("n", dagnn.LRN((5, 2, 1e-4, 0.75))),
        ("p", dagnn.Pooling("avg", 2, 2)),
        ("t", dagnn.ConvTranspose((4, 3, 2, 2), upsample=2)),
        ("d", dagnn.DropOut(0.3)),
        ("s", dagnn.SoftMax()),
        ("mystery", dagnn.Placeholder("upsmpl", {"factor": 2.0})),
    ]
    for k, (name, layer) in enumerate(links):
        net.add_layer(name, layer, f"x{k}", f"x{k + 1}")
    net.add_layer("loss", dagnn.Loss(), ["x9", "label"], "x10")
    net.init_params(0)
    net.params["c_biases"].learning_rate = 2.0
    net.meta["classes"] = {"name": ["a", "b"]}
    dagnn.SimpleNN.from_dagnn(net).save(tmp_path / "chain.mat")

    stored = mat.read(tmp_path / "chain.mat")["net"]
    assert [layer["type"] for layer in stored["layers"].flat] == [
        "conv", "bnorm", "relu", "lrn", "pool", "convt", "dropout", "softmax", "upsmpl", "softmaxloss",
    ]  # fmt: skip
    assert stored["layers"].flat[0]["weights"].flat[0].shape == (3, 3, 2, 4)
    assert stored["layers"].flat[0]["learningRate"].tolist() == [[1, 2]]
    again = dagnn.load(tmp_path / "chain.mat")
    assert [n.layer for n in again.layers.values()] == [n.layer for n in net.layers.values()]
    for ours, theirs in zip(net.params.values(), again.params.values(), strict=True):
        assert np.array_equal(ours.value, theirs.value)
        assert (ours.learning_rate, ours.train_method) == (theirs.learning_rate, theirs.train_method)
    assert again.meta == net.meta


def test_what_is_no_chain_is_no_simplenn():
    net = dagnn.DagNN()
    net.add_layer("a", dagnn.ReLU(), "x", "y")
    net.add_layer("s", dagnn.Sum(), ["x", "y"], "z")
    with pytest.raises(dagnn.GraphError, match="not a chain: layer 's' reads x, y"):
        dagnn.SimpleNN.from_dagnn(net)
    net.replace_layer("s", dagnn.Reshape((0, -1)))
    net.set_layer_inputs("s", "y")
    with pytest.raises(dagnn.OptionError, match="Reshape 's' has no counterpart in a SimpleNN"):
        dagnn.SimpleNN.from_dagnn(net)


# ---- damaged files


def mutated(data, rng):
    """Bytes flipped, runs zeroed, cut, or moved."""
    data = bytearray(data)
    kind = rng.integers(4)
    start = int(rng.integers(len(data)))
    if kind == 0:
        for position in rng.integers(len(data), size=rng.integers(1, 9)):
            data[position] ^= 1 << rng.integers(8)
    elif kind == 1:
        data[start : start + 64] = bytes(len(data[start : start + 64]))
    elif kind == 2:
        del data[start:]
    else:
        data[start : start + 16] = data[-16:]
    return bytes(data)


@pytest.mark.parametrize("version", ["v7", "v73"])
def test_250_damaged_files_are_networks_or_refused(version, tmp_path):
    """Damage behind the reader: whatever still reads as MATLAB values must not surprise what makes the network."""
    variables = {
        "net": dag(
            [
                ("c", "dagnn.Conv", "x", "y", ["f", "b"], {"size": (3, 2, 4, 6), "hasBias": True, "pad": 1}),
                ("l", "dagnn.Loss", ["y", "label"], "z", [], {"loss": "topkerror", "opts": ["topK", 3]}),
            ],
            [("f", single(3, 2, 4, 6)), ("b", single(6, 1))],
            [("x", False)],
        ),
        "stats": {"train": np.ones((1, 3))},
    }
    path = tmp_path / "x.mat"
    mat73_files.write(path, variables) if version == "v73" else mat.write(path, variables)
    data, rng, refused = path.read_bytes(), np.random.default_rng(0), 0
    if version == "v7":  # without compression, so that damage reaches the values
        import scipy.io

        scipy.io.savemat(path, {"net": _for_scipy(variables["net"])}, do_compression=False)
        data = path.read_bytes()
    for _ in range(250):
        path.write_bytes(mutated(data, rng))
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                net = dagnn.load(path)
            assert isinstance(net, dagnn.DagNN)
        except dagnn.FileFormatError:
            refused += 1
    assert refused > 20


def _for_scipy(value):
    if isinstance(value, StructArray) and not value.records:
        return np.empty((0, 0))
    if isinstance(value, StructArray):
        array = np.empty(value.shape, [(name, object) for name in value.records[0]])
        for k, record in enumerate(value.records):
            array.flat[k] = tuple(_for_scipy(v) for v in record.values())
        return array
    if isinstance(value, dict):
        return {key: _for_scipy(v) for key, v in value.items()}
    return value


# ---- values out of place


ODD = [
    "text",
    "",
    ["rows of", "letters"],
    np.empty((0, 0)),
    np.array([[np.nan]]),
    np.array([[-1.0, 2.5, 1e12]]),
    np.array([[1 + 2j]]),
    np.array([[True]]),
    np.ones((2, 3, 4, 5, 2)),
    cell([]),
    cell(["a", np.ones((1, 1))]),
    {},
    {"field": "value"},
    StructArray((1, 0), ("f",), []),
    Opaque("opaque", "gpuArray", mat73_files.OBJECT.T),
    Opaque("function", "function_handle", {"function_handle": {"function": "@(x)x"}}),
]


def places(value, path=()):
    """Every place inside a value of structs and cells."""
    if path:
        yield path
    if isinstance(value, dict):
        inner = value.items()
    elif isinstance(value, StructArray):
        for k, record in enumerate(value.records):
            for key, item in record.items():
                yield from places(item, (*path, k, key))
        return
    elif isinstance(value, np.ndarray) and value.dtype == object:
        inner = enumerate(value.flat)
    else:
        return
    for key, item in inner:
        yield from places(item, (*path, key))


def replaced(value, path, new):
    """A copy of `value` with another thing in one place."""
    key, *rest = path
    if isinstance(value, StructArray):
        records = list(value.records)
        records[key] = replaced(records[key], rest, new) if rest else new
        return StructArray(value.shape, value.fields, records)
    if isinstance(value, np.ndarray):
        value = value.copy()
        value.flat[key] = replaced(value.flat[key], rest, new) if rest else new
        return value
    return {**value, key: replaced(value[key], rest, new) if rest else new}


WHOLE = {
    "dagnn": dag(
        [
            ("c", "dagnn.Conv", "x", "y", ["f", "b"], {"size": (3, 3, 2, 4), "hasBias": True, "pad": 1, "stride": 2}),
            ("n", "dagnn.BatchNorm", "y", "n", ["g", "h", "m"], {"numChannels": 4, "epsilon": 1e-5}),
            ("p", "dagnn.Pooling", "n", "p", [], {"method": "max", "poolSize": (2, 2)}),
            ("r", "dagnn.ReLU", "p", "r", [], {"leak": 0.1}),
            ("u", "Unknown", "r", "u", ["k"], {"option": 1}),
            ("l", "dagnn.Loss", ["u", "label"], "z", [], {"loss": "topkerror", "opts": ["topK", 3]}),
        ],
        [("f", single(3, 3, 2, 4)), ("b", single(4, 1)), ("g", single(4, 1)), ("h", single(4, 1)), ("m", single(4, 2)),
         ("k", single(2, 2))],
        [("x", False)],
    ),
    "simplenn": simple(
        {"type": "conv", "name": "c", "filters": single(3, 3, 2, 4), "biases": single(1, 4), "pad": 0, "stride": 1,
         "filtersLearningRate": 1, "biasesLearningRate": 2, "filtersWeightDecay": 1, "biasesWeightDecay": 0},
        {"type": "bnorm", "weights": [single(4, 1), single(4, 1)], "learningRate": (2, 1, 0.1)},
        {"type": "pool", "method": "avg", "pool": (2, 2), "stride": 2, "pad": 0},
        {"type": "dropout", "rate": 0.5, "frozen": False},
        {"type": "normalizelp", "p": 2, "spatial": True},
        {"type": "mystery", "weights": [single(2, 2)], "rate": (6, 12, 18), "pad": "same"},
        {"type": "softmaxloss", "class": 1},
    ),
}  # fmt: skip


@pytest.mark.parametrize("wrapper", WHOLE)
def test_odd_values_in_every_place_make_a_network_or_a_file_error(wrapper, tmp_path):
    whole, path = WHOLE[wrapper], tmp_path / "x.mat"
    cases = [(place, odd) for place in places(whole) for odd in ODD]
    for place, odd in cases[
        ::7
    ]:  # 7 and the number of odd values have no common divisor: every place has some
        mat73_files.write(path, {"net": replaced(whole, place, odd)})
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                assert isinstance(dagnn.load(path), dagnn.DagNN)
        except dagnn.FileFormatError:
            pass


def test_what_only_matlab_can_read_counts_as_absent(tmp_path):
    gpu = Opaque("opaque", "gpuArray", mat73_files.OBJECT.T)
    for place in (
        ("layers", 0, "block", "pad"),
        ("params", 0, "learningRate"),
        ("layers", 3, "block", "leak"),
    ):
        mat73_files.write(tmp_path / "x.mat", {"net": replaced(WHOLE["dagnn"], place, gpu)})
        with pytest.warns(UnreadableValueWarning):
            dagnn.load(tmp_path / "x.mat")


def test_unknown_losses_and_types_keep_everything(load):
    net = load(net=dag([("l", "dagnn.Loss", ["x", "c"], "y", [], {"loss": "myloss", "gamma": 2})]))
    assert net.layers["l"].layer == dagnn.Placeholder("dagnn.Loss", {"loss": "myloss", "gamma": 2.0})
    net = load(
        net=simple({"type": "atrous", "rate": (6, 12, 18), "pad": "same", "class": "c", "scale": (2, 3)})
    )
    config = net.layers["layer1"].layer.config
    assert config["rate"].tolist() == [6, 12, 18] and config["pad"] == "same" and config["class"] == "c"


def test_a_bias_that_is_off_or_empty(load):
    params = [("f", single(1, 1, 2, 3)), ("b", single(3, 1))]
    net = load(
        net=dag([("c", "dagnn.Conv", "x", "y", ["f", "b"], {"size": (1, 1, 2, 3), "hasBias": False})], params)
    )
    assert net.layers["c"].params == ["f"] and not net.layers["c"].layer.has_bias
    params[1] = ("b", np.empty((0, 0), np.float32))
    net = load(
        net=dag([("c", "dagnn.Conv", "x", "y", ["f", "b"], {"size": (1, 1, 2, 3), "hasBias": True})], params)
    )
    assert net.layers["c"].params == ["f"]


def test_layers_in_every_container(load):
    dag_layers = dag([("a", "dagnn.ReLU", "x", "y", [], {}), ("b", "dagnn.ReLU", "y", "z", [], {})])
    as_cell = {**dag_layers, "layers": cell(dag_layers["layers"].records)}
    assert list(load(net=as_cell).layers) == ["a", "b"]
    names = {
        "name": "b",
        "type": "dagnn.Sum",
        "inputs": ["y ", "in"],
        "outputs": "z",
        "params": np.empty((0, 0)),
    }
    names["block"] = {}
    assert load(net=replaced(dag_layers, ("layers", 1), names)).layers["b"].inputs == ["y", "in"]
    chain = simple({"type": "relu"}, {"type": "sigmoid"})
    chain["layers"] = cell([*chain["layers"].flat, np.empty((0, 0))])
    assert len(load(net=chain).layers) == 2
    assert len(load(net={"layers": {"type": "relu"}}).layers) == 1


def test_a_net_beside_the_net_survives_saving(tmp_path):
    inner = dag([("r", "dagnn.ReLU", "x", "y", [], {})])
    mat.write(tmp_path / "x.mat", {"net": {"net": inner, "epoch": np.array([[3.0]])}})
    net = dagnn.load(tmp_path / "x.mat")
    net.save(tmp_path / "again.mat")
    again = dagnn.load(tmp_path / "again.mat")
    assert list(again.layers) == ["r"] and again.meta["siblings"] == {"net_siblings": {"epoch": 3.0}}


def test_variants_of_derivatives_survive_saving(tmp_path):
    net = dagnn.DagNN()
    net.add_layer("r", dagnn.ReLU(backprop="eccv16"), "x", "y")
    net.add_layer("n", dagnn.LRN(backprop="none"), "y", "z")
    net.add_layer("p", dagnn.Pooling(pool_size=2, backprop="center"), "z", "w")
    net.save(tmp_path / "x.mat")
    matlab.assert_same_net(dagnn.load(tmp_path / "x.mat"), net)


def test_custom_classes_are_written_with_their_matlab_names(tmp_path):
    @dataclass
    class Gain(dagnn.Layer):
        has_bias: bool = False

    net = dagnn.DagNN()
    net.add_layer("g", Gain(True), "x", "y")
    net.save(tmp_path / "x.mat", layers={"dagnn.MyGain": Gain})
    stored = mat.read(tmp_path / "x.mat")["net"]["layers"]
    assert stored["type"] == "dagnn.MyGain" and stored["block"] == {"hasBias": True}
    assert dagnn.load(tmp_path / "x.mat", {"MyGain": Gain}).layers["g"].layer == Gain(True)


def test_supplied_classes_get_banks_and_vectors(tmp_path):
    @dataclass
    class Correlate(dagnn.Layer):
        param_specs = (dagnn.ParamSpec("filters"), dagnn.ParamSpec("biases"))

    params = [("f", single(3, 3)), ("b", single(1, 5))]
    mat.write(tmp_path / "x.mat", {"net": dag([("c", "Correlate", "x", "y", ["f", "b"], {})], params)})
    net = dagnn.load(tmp_path / "x.mat", {"Correlate": Correlate})
    assert net.params["f"].value.shape == (1, 1, 3, 3) and net.params["b"].value.shape == (5,)


def test_loading_takes_little_more_memory_than_the_values(tmp_path):
    import tracemalloc

    filters = np.zeros((1, 1, 2048, 2048), np.float32)  # 16 MiB
    params = [("f", filters), ("b", single(2048, 1))]
    block = {"size": filters.shape, "hasBias": True}
    mat.write(tmp_path / "x.mat", {"net": dag([("c", "dagnn.Conv", "x", "y", ["f", "b"], block)], params)})
    tracemalloc.start()
    try:
        dagnn.load(tmp_path / "x.mat")
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak < filters.nbytes + (64 << 20)


def test_a_custom_class_cannot_pose_as_a_built_in_one(tmp_path):
    leaky = type("ReLU", (dagnn.ReLU,), {})
    net = dagnn.DagNN()
    net.add_layer("r", leaky(), "x", "y")
    with pytest.raises(dagnn.OptionError, match="'ReLU' is built in"):
        net.save(tmp_path / "x.mat")
