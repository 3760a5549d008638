"""Damaged and dishonest MAT-files: a value or FileFormatError in little time and memory, nothing else."""

import random
import struct
import time
import tracemalloc
import warnings
import zlib
from contextlib import contextmanager

import h5py
import mat73_files
import numpy as np
import pytest
from mat5_files import Maker

from dagnn.errors import FileFormatError, UnreadableValueWarning
from dagnn.io import mat
from dagnn.io.mat import Opaque, StructArray

MEGABYTE = 1 << 20
make = Maker()


def a_network():
    """A small net with something of everything."""
    rng = np.random.default_rng(0)
    layers = np.empty((1, 3), object)
    for k in range(3):
        weights = np.empty((1, 2), object)
        weights[0, 0], weights[0, 1] = rng.standard_normal((3, 3, 2, 4)).astype("f4"), np.zeros((1, 4), "f4")
        layers[0, k] = {"type": "conv", "name": f"conv{k}", "weights": weights, "pad": np.array([[k, 0.5]])}
    records = [{"name": name, "value": np.ones((2, k))} for k, name in enumerate(["x0", "ä"])]
    return {
        "net": {"layers": layers, "meta": {"classes": ["cat", "dog"], "c": np.array([[1 + 2j]])}},
        "vars": StructArray((1, 2), ("name", "value"), records),
        "flags": np.array([[True, False]]),
        "empty": StructArray((0, 0), ("a",), []),
        "old": Opaque("object", "inline", {"expr": "x"}),
        "none": np.zeros((0, 3, 2), "i2"),
    }


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("corrupt")


@pytest.fixture(scope="module")
def good(folder):
    """Bytes of sound files by kind."""
    mat.write(folder / "v7.mat", a_network())
    mat73_files.write(folder / "v73.mat", a_network())
    chunked = {"x": np.arange(600.0).reshape(10, 20, 3), "net": {"w": np.ones((40, 30), "f4")}}
    mat73_files.write(folder / "chunks.mat", chunked, chunks=True, compression=3, shuffle=True)
    files = {name: (folder / f"{name}.mat").read_bytes() for name in ("v7", "v73", "chunks")}
    files["v6"] = files["v7"][:128] + b"".join(unpacked(files["v7"]))
    return files


def unpacked(data):
    """The variables of a compressed file."""
    at = 128
    while at < len(data):
        size = struct.unpack_from("<I", data, at + 4)[0]
        yield zlib.decompress(data[at + 8 : at + 8 + size])
        at += 8 + size


# ---- ways to spoil bytes


def flip_bits(data, rng):
    for _ in range(rng.choice([1, 1, 2, 30])):
        data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)


def truncate(data, rng):
    del data[rng.randrange(len(data)) :]


def blank(data, rng):
    at, size = rng.randrange(len(data)), rng.choice([1, 4, 16, 256])
    data[at : at + size] = rng.choice([b"\0", b"\xff"]) * len(data[at : at + size])


def splice(data, rng):
    at, source, size = rng.randrange(len(data)), rng.randrange(len(data)), rng.choice([4, 8, 40, 200])
    data[at : at + size] = data[source : source + size]


def new_number(data, rng):
    """A number somewhere, as sizes and addresses are."""
    at = rng.randrange(0, len(data), 4)
    number = rng.choice([0, 1, 8, 2**20, 2**28, 2**31 - 1, 2**40, 2**63, 2**64 - 1, len(data)])
    size = rng.choice([4, 8])
    data[at : at + size] = (number & (1 << 8 * size) - 1).to_bytes(size, "little")


WAYS = [flip_bits, truncate, blank, splice, new_number]


def spoilt(files, rng):
    """Some file after something happened to it; of a compressed one perhaps before it was compressed."""
    kind = rng.choice(["v6", "v7", "inside", "v73", "v73", "chunks"])
    if kind != "inside":
        data = bytearray(files[kind])
        rng.choice(WAYS)(data, rng)
        return bytes(data)
    variables = [bytearray(v) for v in unpacked(files["v7"])]
    rng.choice(WAYS)(rng.choice(variables), rng)
    return files["v7"][:128] + b"".join(map(make.compressed, variables))


@contextmanager
def modestly(seconds=20.0, memory=24 * MEGABYTE):
    """Fails if what is inside runs away, in seconds of the processor or in memory of Python and NumPy."""
    tracemalloc.start()
    start = time.process_time()
    try:
        yield
        took, peak = time.process_time() - start, tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert took < seconds, f"{took} s"
    assert peak < memory, f"{peak / MEGABYTE} MiB"


def outcome(path):
    """Values, or the FileFormatError that names the file; never one that came as a surprise."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnreadableValueWarning)
        try:
            return mat.read(path)
        except FileFormatError as error:
            assert str(error).startswith(f"{path}: ")
            assert len(str(error)) < 1000
            assert error.__cause__ is None or isinstance(error.__cause__, zlib.error)
            return error


def test_500_spoilt_files(folder, good):
    path = folder / "spoilt.mat"
    errors = 0
    for seed in range(500):
        data = spoilt(good, random.Random(seed))
        path.write_bytes(data)
        with modestly():
            errors += isinstance(outcome(path), FileFormatError)
    assert 250 < errors < 500


@pytest.mark.parametrize("kind", ["v6", "v7", "v73"])
def test_every_truncation_of_the_beginning_and_end(folder, good, kind):
    path = folder / "cut.mat"
    for size in [*range(0, 700, 13), *range(len(good[kind]) - 200, len(good[kind]), 11)]:
        path.write_bytes(good[kind][:size])
        assert isinstance(outcome(path), FileFormatError) or size == 128


def test_compressed_bytes_are_checked(folder, good):
    """zlib's checksum stands behind the last byte that is used."""
    data = bytearray(good["v7"])
    data[-1] ^= 1
    (folder / "sum.mat").write_bytes(data)
    with pytest.raises(FileFormatError, match="incorrect data check"):
        mat.read(folder / "sum.mat")


# ---- claims of version 5


def refused(path, data, what, compress=True, **bounds):
    """`data`, a variable, is refused at once."""
    path.write_bytes(make.file(data, compress=compress))
    with modestly(**bounds), pytest.raises(FileFormatError, match=what):
        mat.read(path)


def patched(data, old, new):
    assert data.count(old) == 1
    return data.replace(old, new)


@pytest.mark.parametrize("compress", [False, True])
def test_sizes_are_claims(folder, compress):
    path = folder / "claim.mat"
    large = struct.pack("<I", 2**31 - 8)

    def lying(kind, dims, *content):
        """A matrix that says it has 2 GiB."""
        data = make.matrix(kind, dims, *content, name="x")
        return data[:4] + large + data[8:]

    numbers = struct.pack("<II", 9, 2**31 - 64) + bytes(64)
    ends = "found the end|found [0-9]+$"
    refused(path, lying("double", (8, 2**25 - 1), numbers), ends, compress)
    refused(path, lying("double", (1, 2**28 - 8), numbers), ends, compress)
    refused(
        path, lying("char", (1, 2**31 - 64), struct.pack("<II", 16, 2**31 - 64) + b"abcd"), ends, compress
    )
    refused(path, lying("cell", (2**14, 2**14)), "found the end|found [0-9]+", compress)
    refused(
        path, lying("cell", (2**13, 2**13), bytes(400)), "found the end|found [0-9]+|found type 0", compress
    )
    names = [make.numbers([32], "i4"), make.element(1, b"a".ljust(32, b"\0"))]
    refused(path, lying("struct", (2**13, 2**13), *names), "found the end|found [0-9]+", compress)


def test_sizes_that_contradict_each_other_are_refused(folder):
    path = folder / "contradiction.mat"
    bare = [make.numbers([32], "i4"), make.element(1, b"")]
    one = make.numbers([1], "f8")
    refused(path, make.matrix("struct", (2**20, 2**20), *bare, name="x"), "few structs without fields")
    many = [make.matrix("struct", (1, 100_000), *bare) for _ in range(9)]
    cell = make.matrix("cell", (3, 3), *many, name="x")
    refused(path, cell, "few structs without fields", seconds=20, memory=40 * MEGABYTE)
    refused(path, make.matrix("double", (2**30, 2**30, 2**30), one, name="x"), "size of an array")
    refused(path, make.matrix("double", (-1, -1), one, name="x"), "size of an array")
    refused(path, make.matrix("double", range(2, 40), one, name="x"), "size of an array")
    refused(path, make.matrix("double", (2, 2), one, name="x"), "expected 4 numbers")
    refused(
        path, make.matrix("char", (1, 2**30), make.element(16, b""), name="x"), "expected 1073741824 char"
    )
    refused(path, make.matrix("char", (2, 2), make.element(16, b"abc"), name="x"), "expected 4 characters")
    refused(path, make.matrix("cell", (1, 1), make.element(9, b""), name="x"), "expected a matrix")
    refused(
        path,
        make.matrix("struct", (1, 1), make.numbers([3], "i4"), make.element(1, b"ab"), name="x"),
        "names",
    )
    sparse = make.matrix("sparse", (2, 1), *[make.numbers(n, "i4") for n in ([9], [0, 1])], one, name="x")
    refused(path, sparse, "rows below 2, found 9")
    sparse = make.matrix("sparse", (2, 1), *[make.numbers(n, "i4") for n in ([0], [0, 7])], one, name="x")
    refused(path, sparse, "starts")


def test_arrays_without_elements_may_be_of_any_size(folder):
    (folder / "thin.mat").write_bytes(
        make.file(make.matrix("double", (0, 2**31 - 1), make.numbers([], "f8"), name="x"))
    )
    assert mat.read(folder / "thin.mat")["x"].shape == (0, 2**31 - 1)


@pytest.mark.parametrize("depth", [49, 50, 1000])
@pytest.mark.parametrize("kind", ["cell", "struct"])
def test_depth_is_bounded(folder, depth, kind):
    data = make.text("deep")
    for level in range(depth):
        name = "x" if level == depth - 1 else ""
        if kind == "cell":
            data = make.matrix("cell", (1, 1), data, name=name)
        else:
            data = make.struct((1, 1), ("a",), data, name=name)
    if depth > 49:
        refused(folder / "deep.mat", data, "levels deep")
        return
    (folder / "deep.mat").write_bytes(make.file(data))
    value = mat.read(folder / "deep.mat")["x"]
    for _ in range(depth):
        value = value["a"] if kind == "struct" else value[0, 0]
    assert value == "deep"


def test_more_bytes_than_a_variable_are_not_decompressed(folder):
    data = make.matrix("double", (1, 1), make.numbers([1], "f8"), name="x")
    refused(folder / "bomb.mat", data + bytes(64 * MEGABYTE), "expected the end")


def test_memory_stays_near_what_there_is(folder):
    """A real array: its bytes, what is held of the file, and what is allocated ahead."""
    array = np.zeros((1024, 1024, 12))
    mat.write(folder / "large.mat", {"x": array})
    assert (folder / "large.mat").stat().st_size < MEGABYTE
    with modestly(seconds=10, memory=array.nbytes + 24 * MEGABYTE):
        assert mat.read(folder / "large.mat")["x"].shape == array.shape


# ---- claims of version 7.3


def refused73(path, build, what, *patches):
    """The file that `build(file)` makes, after bytes in it were replaced, is refused at once."""
    mat73_files.bare(path, build)
    data = path.read_bytes()
    for old, new in patches:
        data = patched(data, old, new)
    path.write_bytes(data)
    with modestly(), pytest.raises(FileFormatError, match=what):
        mat.read(path)


def number(value):
    return struct.pack("<Q", value)


def test_sizes_of_datasets_are_claims(folder):
    path = folder / "claim73.mat"

    def whole(file):
        file["x"] = np.zeros((77, 33))

    def chunks(file):
        file.create_dataset("x", data=np.zeros((77, 33)), chunks=(7, 33), compression=1)

    many = number(2**20 * 77) + number(33)
    sizes = number(77) + number(33)
    twice = [(sizes * 2, many + number(2**20 * 77) + number(33))]
    refused73(path, whole, "expected [0-9]+ bytes, found [0-9]+", *twice)
    refused73(path, chunks, "expected [0-9]+ chunks", *twice)


def test_chunks_of_zeros_prove_their_size_before_it_is_allocated(folder):
    """Eight chunks that claim 16 MiB each, of which one is cut short."""
    path = folder / "zeros.mat"

    def zeros(file):
        file.create_dataset("x", data=np.zeros((8, 2 * MEGABYTE)), chunks=(1, 2 * MEGABYTE), compression=9)

    mat73_files.bare(path, zeros)
    with h5py.File(path, "r+") as file:
        file["x"].id.write_direct_chunk((7, 0), zlib.compress(bytes(1000)))
    assert path.stat().st_size < MEGABYTE
    with (
        modestly(seconds=10, memory=56 * MEGABYTE),
        pytest.raises(FileFormatError, match="a chunk of 16777216 bytes"),
    ):
        mat.read(path)


def test_sizes_of_chunks_are_claims(folder):
    path = folder / "length.mat"

    def build(file):
        array = file.create_dataset("x", data=np.zeros((3000, 3000)), chunks=(3000, 3000), compression=9)
        sizes.append(array.id.get_storage_size())

    sizes = []
    mat73_files.bare(path, build)
    data = patched(path.read_bytes(), struct.pack("<II", sizes[0], 0), struct.pack("<II", 2**31, 0))
    path.write_bytes(data)
    with modestly(), pytest.raises(FileFormatError, match="chunks within"):
        mat.read(path)


def test_data_may_not_overlap(folder):
    """A dozen datasets that are all at the place of the first."""
    path = folder / "overlap.mat"

    def build(file):
        file["a"] = np.ones(60_000, np.uint8)
        for k in range(11):
            file.create_dataset(f"b{k}", (60_000,), np.uint8)
        places.append(number(file["a"].id.get_offset() - 512))

    places = []
    mat73_files.bare(path, build)
    nowhere, layout = number(2**64 - 1), b"\3\1"
    data = path.read_bytes()
    assert data.count(layout + nowhere) == 11
    path.write_bytes(data.replace(layout + nowhere, layout + places[0]))
    with modestly(), pytest.raises(FileFormatError, match="objects that overlap"):
        mat.read(path)


def cell_of(file, name, *targets):
    references = np.array([[target.ref] for target in targets], dtype=h5py.ref_dtype)
    return mat73_files.mark(file.create_dataset(name, data=references), "cell")


def test_references_make_a_tree(folder):
    path = folder / "references.mat"

    def circle(file):
        first = cell_of(file, "a", file)
        first[0, 0] = first.ref

    def thicket(file):
        """Each of thirty cells twice in the next: a thousand million values, if they were all counted."""
        last = file.create_group("#refs#").create_dataset("v", data=np.zeros((1, 1)))
        for k in range(30):
            last = cell_of(file["#refs#"], f"c{k}", last, last)
        cell_of(file, "x", last)

    def chain(file):
        last = file.create_group("#refs#").create_dataset("v", data=np.zeros((1, 1)))
        for k in range(150):
            last = cell_of(file["#refs#"], f"c{k}", last)
        cell_of(file, "x", last)

    def nowhere(file):
        cell_of(file, "x", file)[0, 0] = h5py.h5r.Reference()

    def circle_of_groups(file):
        group = file.create_group("a/b/c")
        group["d"] = file["a"]

    refused73(path, circle, "one inside itself")
    refused73(path, circle_of_groups, "one inside itself")
    refused73(path, thicket, "each value in one place")
    refused73(path, chain, "levels deep")
    refused73(path, nowhere, "expected an object header")


def test_values_without_parts_may_be_in_two_places(folder):
    path = folder / "shared.mat"

    def shared(file):
        value = file.create_group("#refs#").create_dataset("v", data=np.ones((1, 1)))
        cell_of(file, "x", value, value)

    mat73_files.bare(path, shared)
    assert [v.item() for v in mat.read(path)["x"].flat] == [1.0, 1.0]


def test_trees_that_go_in_circles_are_refused(folder):
    """A child of a B-tree that is the tree itself."""
    path = folder / "circle.mat"

    def build(file):
        for k in range(300):
            file.create_group(f"g{k}")

    mat73_files.bare(path, build)
    data = bytearray(path.read_bytes())
    at = next(k for k in range(512, len(data)) if data[k : k + 6] == b"TREE\0\1")
    data[at + 32 : at + 40] = number(at - 512)
    path.write_bytes(data)
    with modestly(), pytest.raises(FileFormatError, match="B-tree's level below 1, found 1"):
        mat.read(path)
