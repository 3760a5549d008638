"""Networks saved to HDF5 and loaded: everything comes back, or saving says what cannot."""

import doctest
import errno
import hashlib
import os
import tempfile
from dataclasses import dataclass
from pathlib import Path

import h5py
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

import dagnn
from dagnn.io import hdf5, load_extra
from dagnn.io.values import Encoder, decode
from dagnn.layers import BUILTIN


@dataclass
class Gain(dagnn.Layer):
    gain: float = 1.0
    window: tuple = (1, 2)
    table: object = None

    def __post_init__(self):
        self.window = tuple(self.window)

    def forward(self, ctx, inputs, params):
        return [self.gain * inputs[0]]


def double(ctx, inputs, params):
    return [2 * inputs[0]]


def double_back(ctx, params, der_outputs):
    return [2 * der_outputs[0]], []


LAYERS = {"Gain": Gain, "double": double, "double_back": double_back}


def rich_net():
    """A net with something of everything a file keeps."""
    net = dagnn.DagNN()
    net.add_layer("late", dagnn.ReLU(leak=0.1), "c1", "r1")
    size = (4, 3, 3, 3)
    net.add_layer("conv1", dagnn.Conv(size, pad=(0, 1, 0, 1), stride=2), "x", "c1", ["shared", "b"])
    net.add_layer("conv/2", dagnn.Conv(size, has_bias=False), "x", "c2", ["shared"])
    net.add_layer("bn", dagnn.BatchNorm(num_channels=4), "r1", "n1")
    net.add_layer("gain", Gain(np.float32(0.5), (3, 4), np.arange(3)), "n1", "g1")
    net.add_layer("f", dagnn.Custom(double, double_back), "g1", "f1")
    mystery = dagnn.Placeholder("Mystery", {"x": [1, 2.5, None]})
    net.add_layer("odd", mystery, ["f1", "c2"], ["o1", "o2"], ["o"])
    net.add_layer("loss", dagnn.Loss(loss="logistic"), ["o1", "label"], "objective")
    net.init_params(seed=3)
    net.rename_var("c2", ".")
    net.params["b"].value = np.array([np.nan, -0.0, np.inf, 1e-45], np.float32)
    net.params["bn_moments"].value = np.arange(8.0).reshape(4, 2)
    net.params["shared"].learning_rate = np.float32(0.1)
    net.params["b"].weight_decay = 3
    net.params["o"].train_method = "average"
    net.freeze("bn_*")
    net.vars["r1"].precious = True
    net.meta = {
        "normalization": {"average_image": np.float32([[1, 2], [3, np.nan]]), "size": (224, 224, 3)},
        "classes": ["cat", "Hündin", "\ud800"],
        "$odd/key": {"": 1, ".": np.uint8(3), "..": [{"deep": [np.array(["a", "bcd"]), b"\0\xff"]}]},
        "big": [2**53, 2**53 + 1, -(10**5000), float("inf"), -0.0, 1e-320],
    }
    net.mode = "test"
    net.conserve_memory = False
    net.accumulate_param_ders = True
    net.seed = 2**65
    net.evaluation = 17
    return net


def same(a, b):
    """Equal type for type and bit for bit."""
    if type(a) is not type(b):
        return False
    if isinstance(a, np.ndarray | np.generic):
        return (a.dtype, a.shape, a.tobytes()) == (b.dtype, b.shape, b.tobytes())
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return repr(a) == repr(b) if isinstance(a, float) else a == b


def contents(net):
    """All a file keeps of a net, as plain values."""
    return {
        "layers": [
            (n.name, type(n.layer).__name__, n.layer.save(), n.inputs, n.outputs, n.params)
            for n in net.layers.values()
        ],
        "vars": [(var.name, var.precious) for var in net.vars.values()],
        "keys": (list(net.layers), list(net.vars), list(net.params)),
        "params": [
            (p.name, p.value, float(p.learning_rate), float(p.weight_decay), p.train_method, p.trainable)
            for p in net.params.values()
        ],
        "ends": (net.inputs, net.outputs),
        "meta": net.meta,
        "settings": (net.mode, net.conserve_memory, net.accumulate_param_ders, net.seed, net.evaluation),
    }


def through(net, tmp_path, layers=LAYERS):
    dagnn.save(net, tmp_path / "net.h5", layers)
    return dagnn.load(tmp_path / "net.h5", layers)


# ---- round trips


def test_everything_comes_back(tmp_path):
    net = rich_net()
    loaded = through(net, tmp_path)
    assert same(contents(loaded), contents(through(loaded, tmp_path)))
    net.layers["gain"].layer.gain = 0.5  # options come back as plain numbers
    assert same(contents(loaded), contents(net))
    assert loaded.backend.name == "numpy"


def test_loaded_net_computes_the_same(tmp_path):
    net = dagnn.DagNN()
    net.add_layer("conv", dagnn.Conv(size=(4, 3, 3, 3)), "x", "y")
    net.add_layer("drop", dagnn.DropOut(), "y", "z")
    for dtype in (np.float32, np.float64):
        net.init_params(dtype=dtype)
        x = np.ones((2, 3, 5, 5), dtype)
        net.eval({"x": x})
        loaded = through(net, tmp_path)
        assert same(net.eval({"x": x})["z"].copy(), loaded.eval({"x": x})["z"].copy())


def test_params_without_value_and_empty_net(tmp_path):
    net = dagnn.DagNN()
    assert same(contents(through(net, tmp_path)), contents(net))
    net.add_layer("conv", dagnn.Conv(size=(4, 3, 3, 3)), "x", "y")
    loaded = through(net, tmp_path)
    assert loaded.params["conv_filters"].value is None
    assert same(contents(loaded), contents(net))


def test_order_of_an_edited_net(tmp_path):
    net = rich_net()
    net.remove_layer("late")
    net.add_layer("again", dagnn.ReLU(), "c1", "r1")
    net.set_layer_params("conv1", ["w", "b"])
    assert same(contents(through(net, tmp_path))["params"], contents(net)["params"])
    assert list(through(net, tmp_path).vars) == list(net.vars)


@pytest.mark.parametrize("name", ["/", "a/b", ".", "..", "%2E", " ", "ä", "x" * 3000])
def test_any_name(tmp_path, name):
    net = dagnn.DagNN()
    net.add_layer(name, dagnn.Conv(size=(1, 1, 1, 1)), name, name + "y", [name, name + "b"])
    net.init_params()
    assert same(contents(through(net, tmp_path)), contents(net))


def test_strided_params_and_views(tmp_path):
    net = dagnn.DagNN()
    net.add_layer("conv", dagnn.Conv(size=(2, 3, 4, 5)), "x", "y")
    net.init_params()
    values = np.arange(120, dtype=np.float16).reshape(5, 4, 3, 2).T
    net.params["conv_filters"].value = values
    net.meta["view"] = np.broadcast_to(np.arange(3)[::-1], (2, 3))
    loaded = through(net, tmp_path)
    assert same(loaded.params["conv_filters"].value, values)
    assert loaded.meta["view"].tolist() == [[2, 1, 0]] * 2
    loaded.meta["view"][0] = 7


def test_the_same_net_gives_the_same_bytes(tmp_path):
    for path in ("a.h5", "b.h5"):
        dagnn.save(rich_net(), tmp_path / path, LAYERS)
    assert (tmp_path / "a.h5").read_bytes() == (tmp_path / "b.h5").read_bytes()


def test_extra(tmp_path):
    state = {"epoch": 3, "momentum": {"conv/1": np.ones((2, 3))}, "rng": (1, 2**130), "log": [0.5, np.nan]}
    path = tmp_path / "checkpoint.h5"
    dagnn.save(rich_net(), path, LAYERS, extra=state)
    assert same(load_extra(path), state)
    assert same(contents(dagnn.load(path, LAYERS)), contents(through(rich_net(), tmp_path)))
    dagnn.save(rich_net(), path, LAYERS)
    assert load_extra(path) == {}


BLOCKS = {
    "AffineGridGenerator": {"height": 3, "width": 4},
    "BatchNorm": {"num_channels": 3},
    "Conv": {"size": (4, 3, 2, 1), "stride": (1, 2)},
    "ConvTranspose": {"size": (4, 3, 2, 1), "crop": 1},
    "Custom": {"forward": double},
    "Permute": {"axes": (0, 2, 3, 1)},
    "Reshape": {"shape": (0, -1, 1, 1)},
    "Scale": {"size": (1, 3, 1, 1)},
    "Slice": {"axis": 1, "start": 0, "stop": 2},
    "Split": {"axis": 1, "sizes": (1, 2)},
    "UniformScalingGridGenerator": {"height": 3, "width": 4},
}


@pytest.mark.parametrize("name", BUILTIN)
def test_every_block_comes_back(tmp_path, name):
    layer = BUILTIN[name](**BLOCKS.get(name, {}))
    net = dagnn.DagNN()
    net.add_layer("l", layer, ["x", "x0"], ["y", "z"])
    assert same(vars(through(net, tmp_path).layers["l"].layer), vars(layer))


def test_reader_of_the_docs_reads_the_same(tmp_path):
    page = Path(__file__).parents[1] / "docs" / "file-format.md"
    scope = {}
    for example in doctest.DocTestParser().get_examples(page.read_text()):
        if example.source.startswith(("import", "def read", "def decode")):
            exec(example.source, scope)
    net = rich_net()
    dagnn.save(net, tmp_path / "net.h5", LAYERS, extra={"step": np.arange(5)})
    content = scope["read"](tmp_path / "net.h5")
    assert same(content["meta"], net.meta)
    assert same(content["extra"], load_extra(tmp_path / "net.h5"))
    assert all(same(p["value"], net.params[p["name"]].value) for p in content["params"])
    assert content["layers"][4]["config"]["window"] == [3, 4]


plain_dtypes = st.one_of(
    npst.boolean_dtypes(),
    npst.integer_dtypes(endianness="?"),
    npst.floating_dtypes(endianness="?", sizes=(16, 32, 64)),
    npst.complex_number_dtypes(endianness="?", sizes=(64, 128)),
    npst.byte_string_dtypes(min_len=1),
    npst.unicode_string_dtypes(endianness="?", min_len=1),
)
arrays = npst.arrays(plain_dtypes, npst.array_shapes(min_dims=0, min_side=0, max_dims=4, max_side=3))
text = st.text(st.characters(exclude_categories=()), max_size=5) | st.sampled_from(["$array", "$", "$$", "."])
atoms = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(min_value=2**52),
    st.floats(),
    text,
    st.binary(max_size=5),
    st.sampled_from([np.float64(-0.0), np.int8(-3), np.float16("nan"), np.complex64(1j), np.True_]),
    arrays,
)
values = st.recursive(
    atoms,
    lambda inner: st.one_of(
        st.lists(inner, max_size=3),
        st.lists(inner, max_size=3).map(tuple),
        st.dictionaries(text, inner, max_size=3),
    ),
    max_leaves=12,
)


@settings(max_examples=150, deadline=None)
@given(st.dictionaries(text, values, max_size=4))
def test_any_meta_comes_back(meta):
    net = dagnn.DagNN()
    net.meta = meta
    with tempfile.TemporaryDirectory() as folder:
        assert same(through(net, Path(folder)).meta, meta)


@settings(max_examples=100, deadline=None)
@given(values)
def test_options_come_back_as_simple_values(value):
    def simple(v):
        if isinstance(v, list | tuple):
            return [simple(item) for item in v]
        if isinstance(v, dict):
            return {key: simple(item) for key, item in v.items()}
        return v.item() if isinstance(v, np.generic) and v.dtype.kind != "c" else v

    try:
        encoder = Encoder()
        encoded = encoder.simple(value, "value", "v")
    except dagnn.OptionError as error:
        assert "complex" in str(error)
        return

    def read(dataset, shape, dtype, sha256):
        raw = encoder.arrays[dataset].tobytes()
        assert hashlib.sha256(raw).hexdigest() == sha256
        return np.frombuffer(raw, dtype).reshape(shape)

    assert same(decode(encoded, "value", read), simple(value))


# ---- what a file cannot keep


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (object(), r"net.meta\['a'\]\[1\] is a object, which a file cannot keep"),
        ({1, 2}, "is a set"),
        (1j, "is a complex"),
        ({1: 2}, r"net.meta\['a'\]\[1\] has the key 1"),
        (np.array([None]), "is a ndarray of object"),
        (np.zeros(2, "f4,i4"), "is a ndarray of .*f4"),
        (np.longdouble(1), "is a longdouble"),
        (np.ma.masked_array([1, 2], [0, 1]), "is a MaskedArray"),
        (np.datetime64("2020-01-01"), "datetime64"),
    ],
)
def test_meta_that_cannot_be_kept(tmp_path, value, message):
    net = dagnn.DagNN()
    net.meta["a"] = [0, value]
    with pytest.raises(dagnn.OptionError, match=message):
        dagnn.save(net, tmp_path / "net.h5")
    assert list(tmp_path.iterdir()) == []


def test_meta_inside_itself(tmp_path):
    net = dagnn.DagNN()
    net.meta["me"] = net.meta
    with pytest.raises(dagnn.OptionError, match="100 containers deep, or inside itself"):
        dagnn.save(net, tmp_path / "net.h5")


def test_option_that_cannot_be_kept(tmp_path):
    net = dagnn.DagNN()
    net.add_layer("g", Gain(table=object()), "x", "y")
    with pytest.raises(dagnn.OptionError, match=r"'g' \(Gain\).*'table'"):
        dagnn.save(net, tmp_path / "net.h5")


@pytest.mark.parametrize(("name", "value"), [("seed", "7"), ("seed", 1.5), ("seed", True)])
def test_setting_that_cannot_be_kept(tmp_path, name, value):
    net = dagnn.DagNN()
    setattr(net, name, value)
    with pytest.raises(dagnn.OptionError, match=f"net.{name} must be int"):
        dagnn.save(net, tmp_path / "net.h5")


def test_learning_rate_that_cannot_be_kept(tmp_path):
    net = rich_net()
    net.params["b"].learning_rate = "fast"
    with pytest.raises(dagnn.OptionError, match=r"net.params\['b'\].learning_rate must be int or float"):
        dagnn.save(net, tmp_path / "net.h5", LAYERS)


# ---- classes and functions by name


def test_class_names(tmp_path):
    net = dagnn.DagNN()
    net.add_layer("g", Gain(2.0), "x", "y")
    for saved, given_names in [
        (None, {"Gain": Gain}),
        (None, {"dagnn.Gain": Gain}),
        ({"Other": Gain}, {"dagnn.Other": Gain}),
        ({"dagnn.Other": Gain}, {"Other": Gain}),
    ]:
        dagnn.save(net, tmp_path / "net.h5", saved)
        assert dagnn.load(tmp_path / "net.h5", given_names).layers["g"].layer == Gain(2.0)


def test_unknown_class_stays_a_placeholder(tmp_path):
    net = rich_net()
    first, second = tmp_path / "1.h5", tmp_path / "2.h5"
    dagnn.save(net, first, LAYERS)
    loaded = dagnn.load(first)
    gain = loaded.layers["gain"].layer
    assert isinstance(gain, dagnn.Placeholder) and gain.class_name == "Gain"
    assert gain.config["gain"] == 0.5 and gain.config["window"] == [3, 4]
    custom = loaded.layers["f"].layer
    assert isinstance(custom, dagnn.Placeholder) and custom.class_name == "Custom"
    dagnn.save(loaded, second)
    assert second.read_bytes() == first.read_bytes()
    assert same(contents(dagnn.load(second, LAYERS)), contents(dagnn.load(first, LAYERS)))


def test_class_with_a_built_in_name(tmp_path):
    @dataclass
    class Conv(dagnn.Layer):
        pass

    net = dagnn.DagNN()
    net.add_layer("mine", Conv(), "x", "y")
    with pytest.raises(dagnn.OptionError, match=r"'mine'.*saved as 'Conv'.*'MyConv': Conv"):
        dagnn.save(net, tmp_path / "net.h5")
    with pytest.raises(dagnn.OptionError, match="built in"):
        dagnn.save(net, tmp_path / "net.h5", {"Conv": Conv})
    assert isinstance(through(net, tmp_path, {"MyConv": Conv}).layers["mine"].layer, Conv)


def test_two_classes_of_one_name(tmp_path):
    net = dagnn.DagNN()
    for name in "ab":
        cls = dataclass(type("Twin", (dagnn.Layer,), {"mark": name}))
        net.add_layer(name, cls(), "x", name)
    with pytest.raises(dagnn.OptionError, match=r"'b'.*would be saved as 'Twin', the name of"):
        dagnn.save(net, tmp_path / "net.h5")
    dagnn.save(dagnn.DagNN(), tmp_path / "net.h5")
    with pytest.raises(dagnn.OptionError, match="two meanings to 'A'"):
        dagnn.load(tmp_path / "net.h5", {"A": Gain, "dagnn.A": dagnn.ReLU})
    with pytest.raises(dagnn.OptionError, match="must be a layer class or a function"):
        dagnn.load(tmp_path / "net.h5", {"A": 3})


def test_functions_without_a_name(tmp_path):
    net = dagnn.DagNN()
    net.add_layer("f", dagnn.Custom(double, double_back), "x", "y")
    with pytest.raises(dagnn.OptionError) as error:
        dagnn.save(net, tmp_path / "net.h5", {"double": double})
    assert "Layer 'f' (Custom)" in str(error.value) and "backward has none" in str(error.value)
    assert "net.save(path, layers={'double': double, 'my_backward': my_backward})" in str(error.value)
    loaded = through(net, tmp_path)
    assert loaded.layers["f"].layer.forward is double


def test_placeholder_of_a_built_in_type_must_load(tmp_path):
    net = dagnn.DagNN()
    net.add_layer("odd", dagnn.Placeholder("ReLU", {"slope": 3}), "x", "y")
    with pytest.raises(dagnn.OptionError, match=r"slope.*as a Placeholder it could not be loaded again"):
        dagnn.save(net, tmp_path / "net.h5")


# ---- the file


def test_paths(tmp_path):
    net = dagnn.DagNN()
    with pytest.raises(FileNotFoundError):
        dagnn.load(tmp_path / "no.h5")
    with pytest.raises(FileNotFoundError):
        dagnn.save(net, tmp_path / "no" / "net.h5")
    with pytest.raises(dagnn.OptionError, match="extra is kept in HDF5 files only"):
        dagnn.save(net, tmp_path / "net.MAT", extra={"epoch": 1})
    long = tmp_path / ("n" * 250 + ".h5")
    dagnn.save(net, str(long))
    dagnn.load(str(long))
    assert os.listdir(tmp_path) == [long.name]


@pytest.mark.skipif(os.name == "nt", reason="permissions and links of POSIX")
def test_permissions_and_links_stay(tmp_path):
    net = dagnn.DagNN()
    real, link = tmp_path / "real.h5", tmp_path / "link.h5"
    plain = tmp_path / "plain"
    plain.touch()
    dagnn.save(net, real)
    assert real.stat().st_mode == plain.stat().st_mode
    real.chmod(0o640)
    link.symlink_to(real)
    dagnn.save(rich_net(), link, LAYERS)
    assert link.is_symlink() and real.stat().st_mode & 0o777 == 0o640
    assert len(dagnn.load(real).layers) == 8


@pytest.mark.parametrize(
    "broken", ["h5py.Group.create_dataset", "os.fsync", "os.replace", "dagnn.io.hdf5.seal"]
)
def test_failing_to_save_leaves_the_old_file(tmp_path, monkeypatch, broken):
    path = tmp_path / "net.h5"
    dagnn.save(rich_net(), path, LAYERS)
    before = path.read_bytes()

    def fail(*args, **kwargs):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(broken, fail)
    with pytest.raises(OSError, match="No space left"):
        dagnn.save(dagnn.DagNN(), path)
    assert os.listdir(tmp_path) == ["net.h5"] and path.read_bytes() == before


def test_no_attributes_no_compression_and_small(tmp_path):
    path = tmp_path / "net.h5"
    dagnn.save(rich_net(), path, LAYERS)
    nodes = {}
    with h5py.File(path) as h5:
        h5.visititems(nodes.__setitem__)
        assert {"structure", "params/shared", "meta/normalization/average_image"} <= nodes.keys()
        assert all(len(node.attrs) == 0 for node in nodes.values())
        datasets = [node for node in nodes.values() if isinstance(node, h5py.Dataset)]
        assert all(node.chunks is None for node in datasets)
        assert path.stat().st_size < sum(node.nbytes for node in datasets) + 20_000


def test_seal_after_a_deliberate_change(tmp_path):
    with open(tmp_path / "file", "w+b") as file:
        file.write(bytes(600))
        hdf5.seal(file)
        hdf5.check_seal(file)
        file.seek(0)
        data = file.read()
    digest = hashlib.sha256(bytes(600 - 512)).hexdigest()
    head = f"dagnn network, schema 1\nsha256 {digest}\nlength 600\n".encode()
    assert data == head + bytes(600 - len(head))
