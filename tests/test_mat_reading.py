"""MAT-files read and written: as scipy and h5py read them, and in full."""

import os
import struct
import warnings
import zlib
from pathlib import Path

import h5py
import mat73_files
import numpy as np
import pytest
import scipy.io
import scipy.io.matlab
import scipy.sparse
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from mat5_files import Maker

from dagnn.errors import FileFormatError, OptionError, UnreadableValueWarning
from dagnn.io import mat, mat5_stream
from dagnn.io.mat import Opaque, StructArray

MODELS = Path(__file__).parents[2] / "shared" / "models"
MATLABS_OWN = Path(scipy.io.matlab.__file__).parent / "tests" / "data"
no_models = pytest.mark.skipif(not MODELS.exists(), reason="needs the folder of real networks")


def same(a, b):
    """Equal to the last bit, type, shape and the order of fields."""
    if type(a) is not type(b):
        return False
    if isinstance(a, dict):
        return list(a) == list(b) and all(same(a[key], b[key]) for key in a)
    if isinstance(a, StructArray):
        alike = (a.shape, a.fields, len(a.records)) == (b.shape, b.fields, len(b.records))
        return alike and all(map(same, a.records, b.records))
    if isinstance(a, Opaque):
        return (a.kind, a.class_name) == (b.kind, b.class_name) and same(a.content, b.content)
    if isinstance(a, np.ndarray):
        if (a.dtype, a.shape) != (b.dtype, b.shape):
            return False
        return all(map(same, a.flat, b.flat)) if a.dtype == object else a.tobytes() == b.tobytes()
    return a == b


# ---- random values

NAMES = st.from_regex(r"[A-Za-z][A-Za-z0-9_]{0,40}", fullmatch=True)
REAL = ["f8", "f4", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "?"]


def text(last=0x10FFFF, **sizes):
    return st.text(
        st.characters(exclude_characters="\0", exclude_categories=["Cs"], max_codepoint=last), **sizes
    )


def shapes(most=3):
    """MATLAB's sizes: no ones behind the second dimension."""
    dims = st.lists(st.integers(0, most), min_size=2, max_size=4)
    return dims.filter(lambda d: len(d) == 2 or d[-1] != 1).map(tuple)


def cell_of(values, shape):
    array = np.empty(len(values), object)
    array[:] = values
    return array.reshape(shape, order="F")


@st.composite
def cells(draw, values):
    shape = draw(shapes(2))
    array = np.empty(shape, object)
    for index in np.ndindex(shape):
        array[index] = draw(values)
    return array


@st.composite
def struct_arrays(draw, values, fewest_fields=0):
    shape = draw(shapes(2).filter(lambda s: np.prod(s) != 1))
    fields = tuple(draw(st.lists(NAMES, min_size=fewest_fields, max_size=3, unique=True)))
    records = [{name: draw(values) for name in fields} for _ in range(int(np.prod(shape)))]
    return StructArray(shape, fields, records)


def char_matrices():
    return st.tuples(st.integers(2, 3), st.integers(1, 4)).flatmap(
        lambda n: st.lists(text(min_size=n[1], max_size=n[1]), min_size=n[0], max_size=n[0]).filter(
            lambda rows: len({len(row.encode("utf-16-le")) for row in rows}) == 1
        )
    )


def arrays(dtypes):
    return st.sampled_from(dtypes).flatmap(lambda dtype: npst.arrays(dtype, shapes()))


def for_loadmat():
    """What scipy.io.loadmat(mat_dtype=True) can read: no complex numbers, no characters beyond 16 bits."""
    return arrays(REAL) | text(0xFFFF, max_size=6)


def variables(fewest_fields=0, leaves=None):
    """Everything that a file holds in plain form."""
    if leaves is None:
        leaves = arrays([*REAL, "c8", "c16"]) | text(max_size=6) | char_matrices()
    values = st.recursive(
        leaves,
        lambda v: st.dictionaries(NAMES, v, max_size=3) | cells(v) | struct_arrays(v, fewest_fields),
        max_leaves=8,
    )
    return st.dictionaries(NAMES, values, min_size=1, max_size=3)


quick = settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    return tmp_path_factory.mktemp("mat") / "x.mat"


# ---- scipy's view of a file, and what it writes


def loadmat(path):
    """What scipy.io.loadmat reads as the values `mat.read` returns."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", np.exceptions.ComplexWarning)
        typed = scipy.io.loadmat(path, mat_dtype=True)  # which makes complex numbers real
    stored = scipy.io.loadmat(path)
    return {name: from_scipy(typed[name], stored[name]) for name in typed if not name.startswith("__")}


def from_scipy(value, stored):
    if scipy.sparse.issparse(value):
        dense = stored.toarray()
        return dense if dense.dtype.kind in "bc" else dense.astype(np.float64)
    if isinstance(value, scipy.io.matlab.MatlabFunction):
        return Opaque("function", "function_handle", None)
    if isinstance(value, scipy.io.matlab.MatlabObject):
        plain = from_scipy(np.asarray(value), np.asarray(stored))
        return Opaque("object", value.classname, plain)
    shape = without_ones(value.shape)
    pairs = list(zip(value.ravel(order="F"), stored.ravel(order="F"), strict=True))
    if value.dtype.names:
        records = [{n: from_scipy(v[n], s[n]) for n in value.dtype.names} for v, s in pairs]
        return records[0] if len(records) == 1 else StructArray(shape, value.dtype.names, records)
    if value.dtype == object and pairs and all(v is None for v, _ in pairs):
        return {} if len(pairs) == 1 else StructArray(shape, (), [{} for _ in pairs])
    if value.dtype == object:
        return cell_of([from_scipy(v, s) for v, s in pairs], shape)
    if value.dtype.kind == "U":
        texts = [str(v) for v, _ in pairs]
        return texts if len(texts) > 1 else "".join(texts)
    dtype = value.dtype.newbyteorder("=")
    if stored.dtype.kind == "c":
        value, dtype = stored, "c8" if dtype == np.float32 else "c16"
    return value.reshape(shape, order="F").astype(dtype)


def without_ones(shape):
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


def for_scipy(value):
    """A value as savemat takes it."""
    if isinstance(value, dict):
        return {name: for_scipy(v) for name, v in value.items()}
    if isinstance(value, StructArray):
        array = np.empty(len(value.records), [(name, object) for name in value.fields])
        for k, record in enumerate(value.records):
            for name, item in record.items():
                array[k][name] = for_scipy(item)
        return array.reshape(value.shape, order="F")
    if isinstance(value, list):
        return np.array(value)
    if isinstance(value, np.ndarray) and value.dtype == object:
        return cell_of([for_scipy(v) for v in value.ravel(order="F")], value.shape)
    return value


def loosely_same(a, b):
    """`same`, but for what scipy does not tell: the fields of empty structs, the content of functions."""
    if isinstance(a, dict) and isinstance(b, dict):
        return list(a) == list(b) and all(loosely_same(a[key], b[key]) for key in a)
    if isinstance(a, StructArray) and isinstance(b, StructArray):
        return a.shape == b.shape and all(map(loosely_same, a.records, b.records))
    if isinstance(a, np.ndarray) and isinstance(b, np.ndarray) and a.dtype == b.dtype == object:
        return a.shape == b.shape and all(map(loosely_same, a.flat, b.flat))
    if isinstance(a, Opaque) and isinstance(b, Opaque) and a.kind == "function":
        return (a.kind, a.class_name) == (b.kind, b.class_name)
    return same(a, b)


@quick
@given(variables(fewest_fields=1), st.booleans())
def test_what_scipy_writes_is_read_as_scipy_reads_it(path, given_values, compress):
    scipy.io.savemat(
        path, for_scipy(given_values), do_compression=compress, long_field_names=True, oned_as="row"
    )
    read = mat.read(path)
    assert same(read, given_values)
    assert mat.is_mat(path)


@quick
@given(variables())
def test_what_is_written_is_read_again_exactly(path, given_values):
    mat.write(path, given_values)
    assert same(mat.read(path), given_values)


@quick
@given(variables(fewest_fields=1, leaves=for_loadmat()))
def test_scipy_reads_what_is_written(path, given_values):
    mat.write(path, given_values)
    assert loosely_same(loadmat(path), given_values)


def for_version_73():
    """What a file of version 7.3 can hold: its arrays without elements are not complex."""
    numbers = arrays([*REAL, "c8", "c16"]).filter(lambda array: array.size or array.dtype.kind != "c")
    return numbers | text(max_size=6) | char_matrices()


@quick
@given(variables(leaves=for_version_73()), st.booleans())
def test_version_73_is_read(path, given_values, compress):
    mat73_files.write(path, given_values, **({"compression": "gzip", "shuffle": True} if compress else {}))
    read = mat.read(path)
    assert set(read) == set(given_values)
    assert all(same(read[name], given_values[name]) for name in read)
    assert mat.is_mat(path)


# ---- files others wrote

DAMAGED = [  # among scipy's files
    "bad_miuint32.mat", "corrupted_zlib_checksum.mat", "corrupted_zlib_data.mat", "debigged_m4.mat",
    "malformed1.mat",
]  # fmt: skip
ODD = [
    "bad_miutf8_array_name.mat",
    "nasty_duplicate_fieldnames.mat",
    "testhdf5_7.4_GLNX86.mat",
]  # not for scipy
with_scipys_files = pytest.mark.skipif(not MATLABS_OWN.exists(), reason="needs scipy's own tests")


def scipys_files():
    """Files of MATLAB 5 and newer, most of which MATLAB wrote, among scipy's own tests."""
    version4 = ("_4.2c_", "mat4", "vec_4")
    return [p.name for p in sorted(MATLABS_OWN.glob("*.mat")) if not any(v in p.name for v in version4)]


@pytest.mark.filterwarnings("ignore::dagnn.errors.UnreadableValueWarning")
@pytest.mark.parametrize("name", [name for name in scipys_files() if name not in DAMAGED + ODD])
def test_files_of_many_versions(name):
    assert loosely_same(mat.read(MATLABS_OWN / name), loadmat(MATLABS_OWN / name))


@with_scipys_files
def test_odd_files_of_scipy():
    assert list(mat.read(MATLABS_OWN / "bad_miutf8_array_name.mat")) == ["\xe4ray_name"]
    quirky = mat.read(MATLABS_OWN / "nasty_duplicate_fieldnames.mat")["Summary"]
    assert {"Station_Q", "Station_Q_2", "Station_Q_3"} <= set(quirky)
    assert quirky["Units"]["Cells"] == " "  # one character, of which the file has none
    old = mat.read(MATLABS_OWN / "testhdf5_7.4_GLNX86.mat")
    with h5py.File(MATLABS_OWN / "testhdf5_7.4_GLNX86.mat") as file:
        assert {name: value.tolist() for name, value in old.items()} == {
            name: file[name][()].T.tolist() for name in file
        }


@with_scipys_files
@pytest.mark.parametrize("name", DAMAGED)
def test_damaged_files_of_scipy(name):
    with pytest.raises(FileFormatError, match=name):
        mat.read(MATLABS_OWN / name)


@no_models
@pytest.mark.parametrize("name", [p.name for p in sorted(MODELS.glob("*.mat")) if "dncnn" not in p.name])
def test_real_networks(name, path):
    read = mat.read(MODELS / name)
    assert loosely_same(read, loadmat(MODELS / name))
    mat.write(path, read)
    assert same(mat.read(path), read)


@no_models
def test_real_network_of_version_73(path):
    read = mat.read(MODELS / "dncnn-sigma25.mat")
    layers = read["net"]["layers"]
    with h5py.File(MODELS / "dncnn-sigma25.mat") as file:
        references = file["net/layers"][()].T
        assert layers.shape == references.shape
        for layer, reference in zip(layers.flat, references.flat, strict=True):
            agrees_with_h5py(layer, file[reference], file)
    mat.write(path, read)
    assert same(mat.read(path), read)


def agrees_with_h5py(value, node, file):
    """For the kinds of objects in that file."""
    kind = node.attrs["MATLAB_class"]
    if kind == b"struct":
        assert list(value) == ["".join(map(bytes.decode, name)) for name in node.attrs["MATLAB_fields"]]
        for name, item in value.items():
            agrees_with_h5py(item, node[name], file)
    elif "MATLAB_empty" in node.attrs:
        assert value.shape == tuple(node[()])
        assert value.dtype == (object if kind == b"cell" else np.float64)
    elif kind == b"cell":
        for item, reference in zip(value.flat, node[()].T.flat, strict=True):
            agrees_with_h5py(item, file[reference], file)
    elif kind == b"char":
        assert value == "".join(map(chr, node[()].ravel()))
    else:
        expected = node[()].T.astype(bool if kind == b"logical" else node.dtype)
        assert same(value, expected.reshape(without_ones(expected.shape), order="F"))


# ---- files of version 5 by hand

BOTH_ORDERS = pytest.mark.parametrize("make", [Maker("<"), Maker(">")], ids=["little", "big"])
little = Maker("<")


def read_bytes(path, data):
    path.write_bytes(data)
    return mat.read(path)


@BOTH_ORDERS
@pytest.mark.parametrize("compress", [False, True])
def test_numbers_have_matlabs_class_however_they_are_stored(path, make, compress):
    variables = [
        make.matrix("double", (2, 2), make.numbers([1, -2, 3, 4], "i1"), name="d"),
        make.matrix("single", (1, 1), make.numbers([300], "u2"), name="s"),
        make.matrix("int16", (3, 1), make.numbers([-1, 2, 3], "i2"), name="i"),
        make.matrix("uint64", (1, 1), make.numbers([2**60], "u8"), name="u"),
        make.matrix("double", (1, 2), make.numbers([0, 1], "u1"), name="t", flags=2),
        make.matrix(
            "double", (1, 2), make.numbers([1, 2], "u1"), make.numbers([0.5, 1], "f8"), name="c", flags=8
        ),
        make.matrix("single", (1, 1), make.numbers([1], "u1"), make.numbers([2], "u1"), name="k", flags=8),
        make.matrix("single", (3, 1, 2, 1, 1), make.numbers(range(6), "f4"), name="f"),
        make.matrix("double", (0, 3, 2), make.numbers([], "f8"), name="e"),
    ]
    assert same(
        read_bytes(path, make.file(*variables, compress=compress)),
        {
            "d": np.array([[1.0, 3.0], [-2.0, 4.0]]),
            "s": np.float32([[300]]),
            "i": np.int16([[-1], [2], [3]]),
            "u": np.uint64([[2**60]]),
            "t": np.array([[False, True]]),
            "c": np.array([[1 + 0.5j, 2 + 1j]]),
            "k": np.complex64([[1 + 2j]]),
            "f": np.arange(6, dtype="f4").reshape((3, 1, 2), order="F"),
            "e": np.zeros((0, 3, 2)),
        },
    )


@BOTH_ORDERS
def test_characters_in_every_encoding(path, make):
    utf16 = {"<": "utf-16-le", ">": "utf-16-be"}[make.order]
    utf32 = utf16.replace("16", "32")
    text = make.element
    variables = [
        make.matrix("char", (1, 2), text(1, b"a\xe9"), name="latin"),
        make.matrix("char", (1, 2), text(16, "né".encode()), name="utf8"),
        make.matrix("char", (1, 3), text(4, "日本語".encode(utf16)), name="units"),
        make.matrix("char", (1, 3), text(17, "a😀".encode(utf16)), name="utf16"),
        make.matrix("char", (1, 2), text(18, "a😀".encode(utf32)), name="utf32"),
        make.matrix("char", (2, 3), text(16, b"adbecf"), name="rows"),
        make.matrix("char", (2, 2, 2), text(16, b"abcdefgh"), name="pages"),
        make.matrix("char", (0, 0), text(16, b""), name="none"),
        make.matrix("char", (1, 0), text(16, b""), name="row"),
        make.matrix("char", (1, 1), text(17, b"\0\xd8"[:: 1 if make.order == "<" else -1]), name="half"),
        make.matrix("char", (1, 3), text(16, b""), name="blanks"),
    ]
    read = read_bytes(path, make.file(*variables))
    assert read == {
        "latin": "aé", "utf8": "né", "units": "日本語", "utf16": "a😀", "utf32": "a😀",
        "rows": ["abc", "def"], "pages": ["ac", "bd", "eg", "fh"],
        "none": "", "row": "", "half": "\ud800", "blanks": "   ",
    }  # fmt: skip
    del read["pages"]
    mat.write(path, read)
    assert mat.read(path) == read


@BOTH_ORDERS
def test_structs_and_cells(path, make):
    one = make.matrix("double", (1, 1), make.numbers([1], "u1"))
    nothing = struct.pack(make.order + "II", 14, 0)
    variables = [
        make.struct((1, 1), ("b", "a"), one, make.text("x"), name="s"),
        make.struct((1, 2), ("b",), one, nothing, name="two"),
        make.struct((0, 1), ("b", "a"), name="none"),
        make.struct((1, 1), (), name="bare"),
        make.struct((2, 1), (), name="bares"),
        make.matrix("cell", (2, 1), make.text("x"), make.matrix("cell", (0, 0)), name="c"),
    ]
    assert same(
        read_bytes(path, make.file(*variables)),
        {
            "s": {"b": np.ones((1, 1)), "a": "x"},
            "two": StructArray((1, 2), ("b",), [{"b": np.ones((1, 1))}, {"b": np.zeros((0, 0))}]),
            "none": StructArray((0, 1), ("b", "a"), []),
            "bare": {},
            "bares": StructArray((2, 1), (), [{}, {}]),
            "c": cell_of(["x", np.empty((0, 0), object)], (2, 1)),
        },
    )


def loss_with_leftovers(make):
    """A network whose loss still holds labels on a GPU and a function, as people saved them."""
    handle = make.struct((1, 1), ("function",), make.text("@(x)x+1"))
    loss = make.struct(
        (1, 1),
        ("type", "class", "forward"),
        make.text("softmaxloss"),
        make.opaque("gpuArray"),
        make.matrix("function", (1, 1), handle),
    )
    return make.struct((1, 1), ("layers",), make.matrix("cell", (1, 1), loss), name="net")


@BOTH_ORDERS
def test_objects_and_functions_are_left_opaque_with_one_warning(path, make):
    path.write_bytes(
        make.file(
            loss_with_leftovers(make),
            make.opaque("java.lang.String", "j", "java"),
            make.struct(
                (1, 1),
                ("expr",),
                make.text("x"),
                name="o",
                kind="object",
                before=[make.element(1, b"inline")],
            ),
            make.matrix(18, (1, 1), name="odd"),
            make.matrix("uint8", (1, 3), make.numbers([1, 2, 3], "u1")),  # has no name: MATLAB's own notes
            make.text("after", "last"),
        )
    )
    with pytest.warns(UnreadableValueWarning) as caught:
        read = mat.read(path)
    assert str(caught[0].message) == (
        f"{path}: values with no plain counterpart, so they were left as Opaque: "
        "net.layers{1}.class (gpuArray), net.layers{1}.forward (function_handle), j (java.lang.String), "
        "o (inline), odd (class 18)"
    )
    assert len(caught) == 1
    assert caught[0].filename == __file__
    mark = np.uint32([[0xDD000000], [2], [1], [1], [1], [1]])
    loss = read["net"]["layers"][0, 0]
    assert list(read) == ["net", "j", "o", "odd", "last"]
    assert same(loss["class"], Opaque("opaque", "gpuArray", mark))
    assert same(loss["forward"], Opaque("function", "function_handle", {"function": "@(x)x+1"}))
    assert same(read["j"], Opaque("opaque", "java.lang.String", mark))
    assert same(read["o"], Opaque("object", "inline", {"expr": "x"}))
    assert same(read["odd"], Opaque("unknown", "class 18"))
    assert read["last"] == "after"


def test_what_is_opaque_is_left_out_of_files(path):
    path.write_bytes(little.file(loss_with_leftovers(little), little.opaque("string", "s")))
    with pytest.warns(UnreadableValueWarning):
        read = mat.read(path)
    read["old"] = Opaque("object", "inline", {"expr": "x"})
    with pytest.warns(UnreadableValueWarning, match=r"net.layers\{1\}.class, net.layers\{1\}.forward, s$"):
        mat.write(path, read)
    with pytest.warns(UnreadableValueWarning, match="Opaque: old \\(inline\\)$"):
        again = mat.read(path)
    assert list(again) == ["net", "old"]
    assert again["net"]["layers"][0, 0]["class"].shape == (0, 0)
    assert same(again["old"], read["old"])


def sparse_matrix(name, rows, columns, entries=1, make=little):
    starts = np.zeros(columns + 1, "i4")
    starts[1:] = entries
    ones = make.numbers(np.ones(entries), "f8")
    return make.matrix(
        "sparse",
        (rows, columns),
        make.numbers(range(entries), "i4"),
        make.numbers(starts, "i4"),
        ones,
        name=name,
    )


def test_sparse_matrices_are_dense_if_they_fit(path):
    path.write_bytes(little.file(sparse_matrix("s", 3, 2, 2), sparse_matrix("none", 3, 2, 0)))
    read = mat.read(path)
    assert same(read["s"], np.array([[1.0, 0], [1, 0], [0, 0]]))
    assert same(read["none"], np.zeros((3, 2)))
    path.write_bytes(
        little.file(*(sparse_matrix(f"s{k}", 10**6, 3) for k in range(3)), sparse_matrix("big", 10**9, 2))
    )
    with pytest.warns(UnreadableValueWarning, match=r"Opaque: s1 \(sparse\), s2 \(sparse\), big \(sparse\)$"):
        read = mat.read(path)  # together they may take 32 MiB
    assert read["s0"].shape == (10**6, 3)
    assert read["big"].content["shape"] == (10**9, 2)
    assert read["big"].content["data"].tolist() == [1]


@pytest.mark.parametrize("size", [1, 3, 8, 13])
@pytest.mark.parametrize("compress", [False, True])
def test_pieces_may_end_anywhere(path, monkeypatch, size, compress):
    rng = np.random.default_rng(1)
    net = {"a": np.int8([[1, 2, 3]]), "b": "xyz", "c": rng.standard_normal((9, 9)), "e": {}}
    sparse = scipy.sparse.eye(5, format="csc")
    scipy.io.savemat(path, {"net": net, "s": np.array([[True]]), "sparse": sparse}, do_compression=compress)
    expected = mat.read(path)
    monkeypatch.setattr(mat5_stream, "PIECE", size)
    monkeypatch.setattr(mat5_stream, "LOOKAHEAD", 16)
    assert same(mat.read(path), expected)


# ---- version 7.3


def test_version_73_keeps_the_order_of_fields_and_shares_what_is_empty(path):
    empties = cell_of([np.zeros((0, 0)), np.zeros((0, 0)), np.zeros((0, 0), "f4")], (1, 3))
    given_values = {"net": {"b": empties, "a": StructArray((1, 2), ("z", "y"), [{"z": "1", "y": {}}] * 2)}}
    mat73_files.write(path, given_values)
    assert same(mat.read(path), given_values)


def test_version_73_leaves_objects_and_functions_opaque(path):
    given_values = {
        "net": {
            "class": Opaque("opaque", "gpuArray", mat73_files.OBJECT.T),
            "f": Opaque("function", "function_handle", {"function_handle": {"function": "@(x)x"}}),
        },
        "o": Opaque("object", "inline", {"expr": "x"}),
    }
    mat73_files.write(path, given_values)
    with pytest.warns(
        UnreadableValueWarning, match=r"net.class \(gpuArray\), net.f \(function_handle\), o \(inline\)$"
    ):
        read = mat.read(path)
    assert same(read, given_values)


def test_what_else_is_in_files_of_version_73(path):
    def build(file):
        mark = mat73_files.mark
        sparse = mark(file.create_group("sparse"), "double", MATLAB_sparse=np.uint64(3))
        sparse["data"], sparse["ir"], sparse["jc"] = np.array([5.0]), np.uint64([2]), np.uint64([0, 0, 1])
        empty = mark(file.create_group("nothing"), "logical", MATLAB_sparse=np.uint64(1))
        empty["jc"] = np.uint64([0, 0])
        file["plain"] = np.arange(6, dtype=">i2").reshape(2, 3)
        file["number"] = 2.5
        file["row"] = np.arange(3, dtype="u1")
        file["text"] = "abc"  # of a kind MATLAB does not use
        file["yes"] = np.bool_(True)
        file["null"] = h5py.Empty("f8")
        file["pair"] = np.array([(1, 2)], [("real", "i1"), ("unreal", "i1")])
        mark(file.create_dataset("odd", data=np.uint64([0, 2])), "odd", MATLAB_empty=np.uint8(1))
        group = file.create_group("group")  # without a class, as others write structs
        group["x"] = np.zeros((1, 1))
        nested = mark(file.create_dataset("nested", data=mat73_files.OBJECT), "uint32")
        nested.attrs["MATLAB_note"] = "of text"
        file.create_group("#subsystem#")["MCOS"] = 1
        mark(file.create_dataset("whole", data=np.array([(1, 2)], [("real", "i1"), ("imag", "i1")])), "int8")

    mat73_files.bare(path, build)
    with pytest.warns(
        UnreadableValueWarning,
        match=r"nested \(uint32\), null.*, odd.*, pair.*, text \(unknown\), yes \(unknown\)$",
    ):
        read = mat.read(path)
    assert same(read.pop("sparse"), np.array([[0, 0], [0, 0], [0, 5.0]]))
    assert same(read.pop("nothing"), np.zeros((1, 1), bool))
    assert same(read.pop("plain"), np.int16([[0, 3], [1, 4], [2, 5]]))
    assert same(read.pop("number"), np.array([[2.5]]))
    assert same(read.pop("row"), np.uint8([[0], [1], [2]]))
    assert same(read.pop("group"), {"x": np.zeros((1, 1))})
    assert same(read.pop("whole"), np.array([[1 + 2j]]))
    assert {name: value.kind for name, value in read.items()} == {
        "nested": "opaque",
        "null": "unknown",
        "odd": "unknown",
        "pair": "unknown",
        "text": "unknown",
        "yes": "unknown",
    }


@pytest.mark.parametrize(
    "storage", [{}, {"compression": 9}, {"shuffle": True}, {"compression": 3, "shuffle": True}]
)
def test_version_73_in_chunks(path, storage):
    array = np.arange(7 * 5 * 3 * 2, dtype="f4").reshape(7, 5, 3, 2)
    mat73_files.write(path, {"x": array}, chunks=(1, 2, 3, 4), **storage)
    assert same(mat.read(path), {"x": array})


def test_many_fields_and_variables_make_deep_trees(path):
    given_values = {f"v{k:03}": np.array([[k]]) for k in range(300)}
    given_values |= {"w": {f"f{k:04}": "" for k in reversed(range(1200))}}
    mat73_files.write(path, given_values)
    assert same(mat.read(path), given_values)


# ---- what is refused

NOT_MAT = {
    b"": "an empty file",
    b"\x89PNG\r\n\x1a\n" + bytes(40): "a PNG image",
    b"\x89HDF\r\n\x1a\n" + bytes(1000): "an HDF5 file that MATLAB did not write",
    b"dagnn network, schema 1\n" + bytes(1000): "a network that dagnn wrote",
    b"PK\3\4" + bytes(1000): "a zip archive",
    b"\x80\2}q\0." + bytes(200): "a pickle",
    b"layers = []\nmore\n": "text: 'layers = []'",
    ("é" * 600).encode(): "text: 'ééé",
    b"# Created by Octave 8.4\n# name: x\n": "Octave's text format",
    b"<!DOCTYPE html><html>404": "a web page",
    b"version https://git-lfs.github.com/spec/v1\n": "a Git LFS pointer",
    struct.pack("<5I", 0, 2, 3, 0, 2) + b"x\0" + bytes(48): "one of MATLAB 4",
    struct.pack(">5I", 1000, 2, 3, 0, 2) + b"x\0" + bytes(48): "one of MATLAB 4",
    b"MATLAB 5.0 MAT-file": "the beginning of one, damaged or cut short",
    bytes(range(7, 250)) * 3: r"something that starts with b'\x07\x08\t\n",
}


@pytest.mark.parametrize("data", NOT_MAT, ids=NOT_MAT.values())
def test_other_files_are_refused_in_a_sentence(path, data):
    path.write_bytes(data)
    assert not mat.is_mat(path)
    with pytest.raises(FileFormatError) as caught:
        mat.read(path)
    assert str(caught.value).startswith(f"{path}: expected a MAT-file, found {NOT_MAT[data]}")


def test_missing_files_and_folders_are_no_format_errors(tmp_path):
    for function in (mat.read, mat.is_mat):
        with pytest.raises(FileNotFoundError):
            function(tmp_path / "none.mat")
        with pytest.raises(IsADirectoryError):
            function(tmp_path)


def test_errors_say_where_and_what(path):
    layer = little.matrix("double", (2, 2), little.numbers([1, 2, 3], "f8"))
    data = little.file(little.struct((1, 1), ("w",), layer, name="net"))
    path.write_bytes(data)
    with pytest.raises(FileFormatError) as caught:
        mat.read(path)
    at = len(data) - 24
    assert str(caught.value) == f"{path}: in net.w: byte {at}: expected 4 numbers float64, found 24 bytes"


def unlike_columns(file):
    """A struct array whose fields differ in size."""
    writer = mat73_files.Writer(file, {})
    struct = writer.struct(file, "x", ("a", "b"))
    writer.references(struct, "a", [""] * 2, (1, 2))
    writer.references(struct, "b", [""] * 3, (1, 3))


@pytest.mark.parametrize(
    ("build", "what"),
    [
        (lambda f: f.create_dataset("x", data=np.zeros(99), chunks=(9,), compression="lzf"), "filters"),
        (lambda f: f.create_dataset("x", data=np.zeros(99), chunks=(9,), fletcher32=True), "filters"),
        (lambda f: f.create_dataset("x", (9,), "f8", external=[("/etc/passwd", 0, 72)]), "another file"),
        (lambda f: f.__setitem__("x", h5py.SoftLink("/y")), "another kind of link"),
        (lambda f: f.__setitem__("x", h5py.ExternalLink("/etc/passwd", "y")), "links"),
        (lambda f: f.create_dataset("x", data=np.zeros(3)).attrs.create("MATLAB_empty", 1), "size"),
        (lambda f: f.create_dataset("x", (100, 100), "f8", chunks=(10, 10)), "none were written"),
        (lambda f: f.create_group("x", track_order=True), "header of version 1"),
        (lambda f: mat73_files.mark(f.create_dataset("x", data=[1.5]), "double", MATLAB_empty=1), "size"),
        (lambda f: mat73_files.mark(f.create_dataset("x", data=[1.5]), "cell"), "references"),
        (lambda f: mat73_files.mark(f.create_group("x"), "double", MATLAB_sparse=2), "sparse matrix"),
        (
            lambda f: mat73_files.mark(f.create_group("x"), "double", MATLAB_sparse=2).create_group("jc"),
            "'jc'",
        ),
        (lambda f: mat73_files.Writer(f, {}).struct(f, "x", ("a",)), "the field 'a'"),
        (unlike_columns, "alike"),
    ],
)
def test_hdf5_that_matlab_does_not_write_is_refused(path, build, what):
    mat73_files.bare(path, build)
    with pytest.raises(FileFormatError, match=what):
        mat.read(path)


def test_newer_hdf5_is_refused(path):
    mat73_files.bare(path, lambda file: file.create_group("x"), libver="latest")
    with pytest.raises(FileFormatError, match="superblock 3"):
        mat.read(path)


# ---- writing


def test_numbers_and_rows_are_written_as_matlab_has_them(path):
    mat.write(
        path, {"a": 3, "b": 2.5, "c": True, "d": np.float32(1), "e": np.arange(3), "f": np.ones((2, 1, 1))}
    )
    expected = {
        "a": np.array([[3.0]]), "b": np.array([[2.5]]), "c": np.array([[True]]), "d": np.float32([[1]]),
        "e": np.array([[0, 1, 2]]), "f": np.ones((2, 1)),
    }  # fmt: skip
    assert same(mat.read(path), expected)


def test_layout_in_memory_does_not_matter(path):
    array = np.arange(24, dtype=">i4").reshape(2, 3, 4)
    views = {"a": array, "b": array[:, ::-1].transpose(2, 0, 1), "c": (array > 3)[::-1]}
    mat.write(path, views)
    read = mat.read(path)
    assert all(np.array_equal(read[name], views[name]) for name in views)
    assert read["a"].dtype == np.int32


@pytest.mark.parametrize(
    ("value", "place"),
    [
        (None, "x is a NoneType"),
        (np.float16(1), "x is a float16"),
        (np.longdouble(1), "x is a longdouble|x is a float128"),
        (np.array(["a"]), "x is a <U1"),
        ({"a": [1, 2]}, "x.a is a list"),
        ({"a": ["ab", "c"]}, "x.a is a char matrix"),
        ({"a": {"": 1}}, "x.a: the name of a field"),
        ({"n" * 64: 1}, "the name of a field"),
        ({3: 1}, "the name of a field"),
        (cell_of([{"f": len}], (1, 1)), r"x\{1\}.f is a builtin_function_or_method"),
        (StructArray((1, 2), ("a",), [{"a": 1}]), "x is a struct array of shape"),
        (StructArray((1, 2), ("a",), [{"a": 1}, {"b": 1}]), "x is a struct array of shape"),
    ],
)
def test_values_matlab_cannot_have_are_named(path, value, place):
    path.write_bytes(b"before")
    with pytest.raises(OptionError, match=place):
        mat.write(path, {"x": value})
    assert path.read_bytes() == b"before"
    assert os.listdir(path.parent) == [path.name]


@pytest.mark.parametrize("name", ["", "1x", "_x", "a-b", "x" * 64, "ä", 3])
def test_names_matlab_cannot_have_are_refused(path, name):
    with pytest.raises(OptionError, match="a variable's name"):
        mat.write(path, {name: 1})


def test_values_inside_themselves_are_refused(path):
    endless = np.empty((1, 1), object)
    endless[0, 0] = endless
    with pytest.raises(OptionError, match="levels deep"):
        mat.write(path, {"x": endless})
    deep = np.ones((1, 1))
    for _ in range(49):
        deep = cell_of([deep], (1, 1))
    mat.write(path, {"x": deep})
    assert same(mat.read(path), {"x": deep})


def test_writing_needs_no_room_for_names_longer_than_they_are(path):
    given_values = {"x": {"n" * 63: 1.0 * np.ones((1, 1)), "_under": "é", "with space": ""}}
    mat.write(path, given_values)
    assert same(mat.read(path), given_values)
    assert zlib.decompress(path.read_bytes()[136:])[:4] == b"\x0e\0\0\0"
