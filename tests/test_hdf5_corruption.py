"""Damaged, truncated, edited and newer files: each loads as it was or raises FileFormatError."""

import hashlib
import json
import random
import shutil

import h5py
import numpy as np
import pytest
from test_hdf5 import LAYERS, contents, rich_net, same

import dagnn
from dagnn.io import hdf5, load_extra


@pytest.fixture(scope="module")
def good(tmp_path_factory):
    """A sound file and what is in it."""
    path = tmp_path_factory.mktemp("good") / "net.h5"
    dagnn.save(rich_net(), path, LAYERS, extra={"step": np.arange(5.0)})
    return path, contents(dagnn.load(path, LAYERS))


def outcome(path):
    """What the file says it contains, or the FileFormatError it raises; anything else is a failure."""
    try:
        net = dagnn.load(path, LAYERS)
        load_extra(path)
    except dagnn.FileFormatError as error:
        assert str(error).startswith(f"{path}: ")
        assert len(str(error)) < 1000
        return error
    return contents(net)


def edit(path, change):
    """Change a file with h5py and seal it again, as somebody might who knows how."""
    with open(path, "r+b") as file:
        with h5py.File(file, "r+") as h5:
            change(h5)
        hdf5.seal(file)


def rewrite(h5, change, fix_hash=True):
    """Change the JSON of a file."""
    text = bytes(h5["structure"][()])
    structure = json.loads(text.partition(b"\n")[2])
    replaced = change(structure)
    body = json.dumps(structure if replaced is None else replaced).encode()
    digest = hashlib.sha256(body).hexdigest().encode() if fix_hash else text[:64]
    del h5["structure"]
    h5["structure"] = np.bytes_(digest + b"\n" + body)


# ---- bytes


def flipped_bits(data, rng):
    for _ in range(rng.choice([1, 1, 2, 50])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def flipped_in_head(data, rng):
    data[rng.randrange(160)] ^= 1 << rng.randrange(8)


def truncated(data, rng):
    del data[int(len(data) * rng.random() ** rng.choice([1, 8])) :]


def truncated_a_little(data, rng):
    del data[-(2 ** rng.randrange(10)) :]


def zeroed(data, rng):
    start, length = rng.randrange(len(data)), 2 ** rng.randrange(13)
    data[start : start + length] = bytes(len(data[start : start + length]))


def shuffled(data, rng):
    a, b, length = rng.randrange(len(data)), rng.randrange(len(data)), 2 ** rng.randrange(9)
    data[a : a + length], data[b : b + length] = data[b : b + length], data[a : a + length]


def longer(data, rng):
    at = rng.choice([len(data), rng.randrange(len(data))])
    data[at:at] = rng.randbytes(2 ** rng.randrange(12))


def noise(data, rng):
    data[rng.choice([0, 512, rng.randrange(len(data))]) :] = rng.randbytes(rng.randrange(4000))


MUTATIONS = [
    flipped_bits, flipped_in_head, truncated, truncated_a_little, zeroed, shuffled, longer, noise,
]  # fmt: skip


@pytest.mark.parametrize("mutation", MUTATIONS)
def test_mutated_bytes(good, tmp_path, mutation):
    path, expected = good
    original = path.read_bytes()
    victim = tmp_path / "victim.h5"
    refused = 0
    for seed in range(40):
        data = bytearray(original)
        mutation(data, random.Random(seed))
        victim.write_bytes(data)
        result = outcome(victim)
        if isinstance(result, dagnn.FileFormatError):
            refused += 1
        else:
            assert bytes(data) == original
            assert same(result, expected)
    assert refused > 20


@pytest.mark.parametrize("mutation", [flipped_bits, zeroed, shuffled, noise])
def test_mutated_bytes_under_a_new_seal(good, tmp_path, mutation):
    """Past the seal, what HDF5 makes of damage is still checked: the data are right or refused."""
    path, expected = good
    original = path.read_bytes()
    victim = tmp_path / "victim.h5"
    for seed in range(50):
        body = bytearray(original[hdf5.BLOCK :])
        mutation(body, random.Random(seed))
        victim.write_bytes(bytes(hdf5.BLOCK) + body)
        with open(victim, "r+b") as file:
            hdf5.seal(file)
        result = outcome(victim)
        assert isinstance(result, dagnn.FileFormatError) or same(result, expected)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", "it starts as an empty one"),
        (b"hello", "it starts as b'hello'"),
        (b"MATLAB 5.0 MAT-file, Platform: GLNXA64", "it starts as a MATLAB file"),
        (b"\x89HDF\r\n\x1a\n", "it starts as an HDF5 file, but not one of dagnn's"),
        (b"dagnn network, schema 2\n", "schema 2 and this dagnn reads up to 1: it takes a newer dagnn"),
        (b"dagnn network, schema 1\n", r"bytes 512 to 24 have SHA-256 .*, its head says"),
    ],
)
def test_not_a_network(tmp_path, data, message):
    path = tmp_path / "net.h5"
    path.write_bytes(data)
    with pytest.raises(dagnn.FileFormatError, match=message):
        dagnn.load(path)


def test_truncated_file_says_so(good, tmp_path):
    path = tmp_path / "short.h5"
    data = good[0].read_bytes()
    path.write_bytes(data[:-100])
    with pytest.raises(dagnn.FileFormatError, match=f"truncated or damaged: it has {len(data) - 100} "):
        dagnn.load(path)


def test_sealed_hdf5_that_is_none(tmp_path):
    path = tmp_path / "net.h5"
    path.write_bytes(bytes(2000))
    with open(path, "r+b") as file:
        hdf5.seal(file)
    with pytest.raises(dagnn.FileFormatError, match="cannot be read: OSError"):
        dagnn.load(path)


# ---- datasets, changed by somebody who seals the file again


def every_dataset(h5):
    nodes = {}
    h5.visititems(nodes.__setitem__)
    return [name for name, node in nodes.items() if isinstance(node, h5py.Dataset)]


def replacements(value):
    """What might stand in the place of a dataset."""
    yield lambda h5, name: None
    yield lambda h5, name: h5.create_group(name)
    yield lambda h5, name: h5.create_dataset(name, data=np.float32(1))
    yield lambda h5, name: h5.create_dataset(name, data="text")
    yield lambda h5, name: h5.create_dataset(name, data=np.zeros(3, "f4,i4"))
    yield lambda h5, name: h5.create_dataset(name, shape=value.shape, dtype=value.dtype)
    yield lambda h5, name: h5.create_dataset(name, data=np.frombuffer(np.asarray(value).tobytes(), "u1"))
    yield lambda h5, name: h5.create_dataset(name, (2**40, 4), "f8")
    yield lambda h5, name: h5.create_dataset(name, (0,), "f4")
    yield lambda h5, name: h5.create_dataset(name, data=h5py.Empty("f4"))
    yield lambda h5, name: h5.create_dataset(name, data=[h5.ref], dtype=h5py.ref_dtype)
    yield lambda h5, name: h5.__setitem__(name, np.dtype("f4"))
    yield lambda h5, name: h5.__setitem__(name, h5py.SoftLink("/structure"))
    yield lambda h5, name: h5.__setitem__(name, h5py.ExternalLink("other.h5", "structure"))


def test_replaced_datasets(good, tmp_path):
    path, expected = good
    victim = tmp_path / "victim.h5"
    with h5py.File(path) as h5:
        names = {name: h5[name][()] for name in every_dataset(h5)}
    assert len(names) == 10
    for name, value in names.items():
        for put in replacements(value):
            shutil.copyfile(path, victim)

            def change(h5, name=name, put=put):
                del h5[name]
                put(h5, name)

            edit(victim, change)
            result = outcome(victim)
            if isinstance(result, dagnn.FileFormatError):
                assert name in str(result)
            else:
                assert same(result, expected)  # the replacement was what had been there


def test_swapped_datasets(good, tmp_path):
    def swap(h5):
        h5.move("params/bn_multipliers", "params/x")
        h5.move("params/bn_biases", "params/bn_multipliers")
        h5.move("params/x", "params/bn_biases")

    path = shutil.copyfile(good[0], tmp_path / "net.h5")
    edit(path, swap)
    with pytest.raises(dagnn.FileFormatError, match=r"'params/bn_.*' is damaged: its SHA-256 should be"):
        dagnn.load(path, LAYERS)


@pytest.mark.parametrize(
    "how",
    [{"compression": "gzip"}, {"chunks": True}, {"external": "secret.bin"}, {"shuffle": True}],
    ids=lambda how: next(iter(how)),
)
def test_only_plain_datasets_are_read(good, tmp_path, how, monkeypatch):
    def change(h5):
        value = h5["params/shared"][()]
        del h5["params/shared"]
        h5.create_dataset("params/shared", data=value, **how)

    monkeypatch.chdir(tmp_path)
    path = shutil.copyfile(good[0], tmp_path / "net.h5")
    edit(path, change)
    with pytest.raises(dagnn.FileFormatError, match="'params/shared' must lie in the file in one piece"):
        dagnn.load(path, LAYERS)


def test_terabytes_are_not_allocated(good, tmp_path):
    def change(h5):
        del h5["params/shared"]
        h5.create_dataset("params/shared", (2**38,), "f4")
        rewrite(h5, enlarge)

    def enlarge(structure):
        (param,) = (p for p in structure["params"] if p["name"] == "shared")
        param["value"]["$array"]["shape"] = [2**38]

    path = shutil.copyfile(good[0], tmp_path / "net.h5")
    edit(path, change)
    assert path.stat().st_size < 1_000_000
    with pytest.raises(dagnn.FileFormatError, match="'params/shared' has 1099511627776 bytes, more than"):
        dagnn.load(path, LAYERS)


# ---- JSON


def places(value, path=()):
    yield path
    if isinstance(value, dict | list):
        for key, child in value.items() if isinstance(value, dict) else enumerate(value):
            yield from places(child, (*path, key))


MISSING = object()
OTHERS = [
    MISSING, None, True, -1, 0.5, 2**70, "x", "", [], [1], {},
    {"$array": 1}, {"$int": "0x"}, {"$tuple": 1}, {"$float": "1"}, {"$bytes": "0"}, {"$no": 1},
    {"$scalar": {"dtype": "<V8", "bytes": ""}}, {"$scalar": {"dtype": "<i8", "bytes": "00"}},
]  # fmt: skip


def test_edited_json(good, tmp_path):
    """With its hash made right again, an edit is either another network or refused, never anything else."""
    path, _ = good
    victim = tmp_path / "victim.h5"
    with h5py.File(path) as h5:
        structure = json.loads(bytes(h5["structure"][()]).partition(b"\n")[2])
    rng = random.Random(0)
    edits = [(place, other) for place in places(structure) if place for other in OTHERS]
    refused = 0
    for place, other in rng.sample(edits, 300):

        def change(value, place=place, other=other):
            *way, last = place
            for key in way:
                value = value[key]
            if other is MISSING:
                del value[last]
            else:
                value[last] = other

        shutil.copyfile(path, victim)
        edit(victim, lambda h5, change=change: rewrite(h5, change))
        refused += isinstance(outcome(victim), dagnn.FileFormatError)
    assert refused > 200


def test_edited_json_with_the_old_hash(good, tmp_path):
    path = shutil.copyfile(good[0], tmp_path / "net.h5")
    edit(path, lambda h5: rewrite(h5, lambda s: s["meta"].clear(), fix_hash=False))
    with pytest.raises(dagnn.FileFormatError, match="'structure' is damaged: its SHA-256 is"):
        dagnn.load(path, LAYERS)


def layer(name, inputs, outputs, **other):
    plain = {"name": name, "type": "Sum", "config": {}, "inputs": inputs, "outputs": outputs, "params": []}
    return {**plain, **other}


def only(*layers):
    """A structure of these layers alone."""

    def change(structure):
        names = dict.fromkeys(n for one in layers for n in (*one["inputs"], *one["outputs"]))
        structure["layers"] = list(layers)
        structure["vars"] = [{"name": name, "precious": False} for name in names]
        structure["params"] = []

    return change


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (only(layer("a", ["x"], ["y"]), layer("b", ["y"], ["x"])), "layer 'b': .*cycle"),
        (only(layer("a", ["x"], ["y"]), layer("b", ["x"], ["y"])), "produced twice"),
        (only(layer("a", ["x"], ["y"]), layer("a", ["y"], ["z"])), "already a layer 'a'"),
        (only(layer("a", ["x"], [])), "at least one output"),
        (only(layer("a", ["x"], ["y"], type="Conv")), "Conv refuses the options {}: .*size"),
        (only(layer("a", ["x"], ["y"], config={"speed": 1})), "no option 'speed'"),
        (only(layer("a", ["x"], ["y"], type="double")), "the type 'double' must be a layer class"),
        (only(layer("a", ["x"], ["y"], params=["p"])), r"Sum 'a' has 0 parameters"),
        (lambda s: s.update(vars=s["vars"][:-1]), "vars and what the layers name disagree on 'objective'"),
        (lambda s: s["params"].append(s["params"][0]), "params and what the layers name disagree on 'sh"),
        (lambda s: s["settings"].update(mode="fast"), "mode is 'train' or 'test'"),
        (lambda s: s.update(schema=2), "schema 2 and this dagnn reads up to 1"),
        (lambda s: s.update(schema=True), "the schema must be a positive integer"),
        (lambda s: s.update(colour="red"), "structure must have the keys .* Found: .*colour"),
        (lambda s: s.update(meta={"a": {"$tuple": [], "b": 1}}), r"meta\['a'\] holds \$tuple, b in a form"),
        (lambda s: s.update(meta={"$tuple": []}), r"meta must be dict. Found: \(\)"),
        (lambda s: s.update(meta={"a": float("nan")}), "the number NaN, which JSON does not have"),
        (lambda s: [], "does not describe a dagnn network"),
        (lambda s: s["params"][0].update(value=s["meta"]["classes"]), "value must be dict or NoneType"),
    ],
)  # fmt: skip
def test_structures_that_are_no_network(good, tmp_path, change, message):
    path = shutil.copyfile(good[0], tmp_path / "net.h5")
    edit(path, lambda h5: rewrite(h5, change))
    with pytest.raises(dagnn.FileFormatError, match=message) as error:
        dagnn.load(path, LAYERS)
    assert str(error.value).startswith(str(path))


@pytest.mark.parametrize(
    "body",
    [b"", b"{", b"\xff", b"[" * 100_000, b'{"a":1,"a":2}', b'{"schema":' + b"9" * 10_000 + b"}", b"null"],
    ids=["empty", "cut", "not text", "deep", "twice", "long number", "null"],
)
def test_text_that_is_no_json(good, tmp_path, body):
    def change(h5):
        del h5["structure"]
        h5["structure"] = np.bytes_(hashlib.sha256(body).hexdigest().encode() + b"\n" + body)

    path = shutil.copyfile(good[0], tmp_path / "net.h5")
    edit(path, change)
    assert isinstance(outcome(path), dagnn.FileFormatError)


def test_nothing_is_imported_or_executed(good, tmp_path, capsys):
    names = ["os.system", "builtins.print", "__import__", "dagnn.io.load", "Layer", "dagnn.dagnn.Conv"]
    path = shutil.copyfile(good[0], tmp_path / "net.h5")
    edit(path, lambda h5: rewrite(h5, only(*(layer(n, ["x"], [n], type=n) for n in names))))
    net = dagnn.load(path)
    assert [node.layer for node in net.layers.values()] == [dagnn.Placeholder(n, {}) for n in names]
    assert capsys.readouterr().out == ""
