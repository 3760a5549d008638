"""Image databases in HDF5: read, damaged, written."""

import json
import random
import tracemalloc
from concurrent.futures import ThreadPoolExecutor

import h5py
import numpy as np
import pytest

from dagnn.data import Imdb, ImdbWriter, imdb_hdf5, write_imdb
from dagnn.errors import DagnnError, DataError, DTypeError, FileFormatError, OptionError, ShapeError

N = 40
rng = np.random.default_rng(0)
IMAGES = rng.integers(0, 256, (N, 3, 6, 5)).astype(np.uint8)
LABELS = rng.integers(-1, 4, N)
SETS = rng.integers(1, 4, N)


@pytest.fixture(params=["kept in memory", "read from the file"])
def reading(request, monkeypatch):
    """Small files are kept in memory; both ways must give the same."""
    if request.param == "read from the file":
        monkeypatch.setattr(imdb_hdf5, "KEPT", 0)


@pytest.fixture
def path(tmp_path):
    return tmp_path / "imdb.h5"


def hdf5(path, images, **meta):
    """A file as somebody writes it with h5py; a dict says how a dataset is stored."""
    with h5py.File(path, "w") as file:
        for group, content in (("images", images), ("meta", meta)):
            for name, value in content.items():
                options = value if isinstance(value, dict) else {"data": value}
                file.create_dataset(f"{group}/{name}", **options)


# ---- HDF5


ORDERS = [
    [7], [], [3, 3, 3], list(range(N)), list(range(N))[::-1], [5, 6, 7, 1, 2, 39, 0], [2, 3, 3, 4, 2],
    rng.permutation(N), rng.integers(0, N, 100), np.array([4, 9], np.uint8),
]  # fmt: skip


@pytest.mark.parametrize("dtype", ["u1", "f4", "f8", "f2", "i2", ">f4", ">u2", "?"])
@pytest.mark.parametrize(
    "storage", [{}, {"chunks": (1, 3, 6, 5)}, {"chunks": (7, 2, 6, 5), "compression": "gzip"}]
)
def test_batches_are_the_samples_asked_for(path, reading, storage, dtype):
    data = IMAGES.astype(dtype)
    hdf5(path, {"data": {"data": data, **storage}, "labels": LABELS.astype(">i4"), "set": SETS})
    with Imdb(path) as imdb:
        assert len(imdb) == N and np.array_equal(imdb.sets, SETS)
        for indices in ORDERS:
            batch, where = imdb.batch(indices), np.asarray(indices, int)
            assert list(batch) == ["input", "label"]
            assert batch["input"].dtype == np.float32 and batch["input"].flags.c_contiguous
            assert batch["label"].dtype == np.int32
            np.testing.assert_array_equal(batch["input"], data[where].astype(np.float32))
            np.testing.assert_array_equal(batch["label"], LABELS[where])


def test_further_arrays_and_other_names(path, reading):
    boxes = rng.random((N, 2, 4))
    maps = rng.integers(-1, 3, (N, 1, 6, 5)).astype(np.int8)
    write_imdb(path, IMAGES, maps, SETS, boxes=boxes)
    with Imdb(path, {"a": "data", "b": "data", "rois": "boxes", "masks": "labels"}) as imdb:
        batch = imdb.batch([30, 2])
    np.testing.assert_array_equal(batch["a"], IMAGES[[30, 2]])
    np.testing.assert_array_equal(batch["b"], batch["a"])
    np.testing.assert_array_equal(batch["rois"], boxes[[30, 2]].astype(np.float32))
    np.testing.assert_array_equal(batch["masks"], maps[[30, 2]])
    assert batch["rois"].dtype == np.float32 and batch["masks"].dtype == np.int8
    with Imdb(path, ("x0", "x1")) as imdb:
        assert list(imdb.batch([0])) == ["x0", "x1"]
    with Imdb(path, {"rois": "boxes"}) as imdb:
        assert list(imdb.batch([0])) == ["rois"]


@pytest.mark.parametrize("names", ["ab", (), ("a",), ("a", "a"), ("a", "b", "c"), {}, {"a": 1}, (1, 2)])
def test_wrong_names_are_refused(path, names):
    write_imdb(path, IMAGES, LABELS)
    with pytest.raises(OptionError, match=r"names are the variables .* Received: "):
        Imdb(path, names)


def test_sets(path):
    write_imdb(path, IMAGES, LABELS, SETS)
    with Imdb(path) as imdb:
        assert imdb.val.tolist() == np.flatnonzero(SETS == 2).tolist()
    with Imdb(path, sets=[2] * N) as imdb:
        assert len(imdb.val) == N
    with pytest.raises(ShapeError, match=r"40\. Received: 3"):
        Imdb(path, sets=[1, 1, 1])
    hdf5(path, {"data": IMAGES, "labels": LABELS})
    with Imdb(path) as imdb:
        assert len(imdb.train) == N


@pytest.mark.parametrize("shape", [(3, 6, 5), (3, 1, 1), (3,), (1, 1, 1), (), (6, 5), (1, 6, 5)])
def test_the_mean_is_subtracted(path, reading, shape):
    mean = 100 * rng.random(shape)
    flat = mean.reshape(3, 1, 1) if shape == (3,) else mean
    expected = IMAGES - flat.astype(np.float32)
    write_imdb(path, IMAGES, LABELS, data_mean=mean)
    with Imdb(path) as imdb, Imdb(path, subtract_mean=False) as plain:
        np.testing.assert_array_equal(imdb.batch(range(N))["input"], expected)
        np.testing.assert_array_equal(imdb.batch([3, 3])["input"], expected[[3, 3]])
        np.testing.assert_array_equal(plain.batch(range(N))["input"], IMAGES)
        np.testing.assert_allclose(
            np.broadcast_to(imdb.data_mean, (3, 6, 5)), np.broadcast_to(flat, (3, 6, 5))
        )
        assert imdb.data_mean.dtype == plain.data_mean.dtype == np.float32
    hdf5(path, {"data": IMAGES, "labels": LABELS, "data_mean": mean})
    with Imdb(path) as imdb:
        np.testing.assert_array_equal(imdb.batch(range(N))["input"], expected)


def test_a_mean_that_is_missing(path):
    write_imdb(path, IMAGES, LABELS)
    with Imdb(path) as imdb:
        assert imdb.data_mean is None and imdb.batch([1])["input"].dtype == np.float32
    with pytest.raises(FileFormatError, match="images/data_mean is missing"):
        Imdb(path, subtract_mean=True)


META = {
    "classes": ["cat", "dog", "ä"],
    "sets": ["train", "val"],
    "k": 3,
    "x": {"y": [1.5, None]},
    "t": "a\nb",
}


def test_meta_is_kept(path):
    write_imdb(path, IMAGES, LABELS, meta=META)
    with Imdb(path) as imdb:
        assert imdb.meta == META and imdb.classes == META["classes"]
    write_imdb(path, IMAGES, LABELS, meta={"a": np.arange(3), "b": np.float32(2), "classes": ("p", "q")})
    with Imdb(path) as imdb:
        assert imdb.meta == {"a": [0, 1, 2], "b": 2, "classes": ["p", "q"]} and imdb.classes == ["p", "q"]


@pytest.mark.parametrize(
    "classes",
    [
        json.dumps(["cat", "dog"]),
        np.bytes_(json.dumps(["cat", "dog"])),
        ["cat", "dog"],
        np.array([b"cat", b"dog"]),
        json.dumps({"name": ["cat", "dog"]}),
    ],
)
def test_classes_in_the_ways_they_are_written(path, classes):
    hdf5(path, {"data": IMAGES, "labels": LABELS}, classes=classes, sizes=np.arange(3), number=2.5, text="[1")
    with Imdb(path) as imdb:
        assert imdb.classes == ["cat", "dog"]
        assert imdb.meta["sizes"].tolist() == [0, 1, 2]
        assert imdb.meta["number"] == 2.5 and imdb.meta["text"] == "[1"


def test_meta_in_groups_and_in_circles(path):
    hdf5(path, {"data": IMAGES, "labels": LABELS}, **{"classes/name": ["cat", "dog"], "one": ["cat"]})
    with h5py.File(path, "r+") as file:
        file["meta/again"] = file["meta"]
        file["meta/pairs"] = np.zeros(2, [("a", "i4"), ("b", "f4")])
    with Imdb(path) as imdb:
        assert imdb.classes == ["cat", "dog"] and imdb.meta["one"] == ["cat"]
        assert set(imdb.meta) == {"classes/name", "one"}


def test_only_what_is_asked_for_is_read(path, monkeypatch):
    monkeypatch.setattr(imdb_hdf5, "KEPT", 1000)
    write_imdb(path, np.zeros((2000, 3, 32, 32), np.uint8), np.zeros(2000, np.uint8))
    tracemalloc.start()
    with Imdb(path) as imdb:
        imdb.batch([1999, 0, 1, 2, 777])
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 500_000  # of 6 MB


def test_background_threads(path, reading):
    write_imdb(path, IMAGES, LABELS)
    orders = [np.random.default_rng(k).permutation(N) for k in range(40)]
    with Imdb(path) as imdb, ThreadPoolExecutor(4) as pool:
        for order, batch in zip(orders, pool.map(imdb.batch, orders), strict=True):
            np.testing.assert_array_equal(batch["input"], IMAGES[order])


def test_closed_databases_say_so(path, reading):
    write_imdb(path, IMAGES, LABELS)
    imdb = Imdb(path)
    imdb.close()
    imdb.close()
    with pytest.raises(DataError, match=r"imdb\.h5 was closed"):
        imdb.batch([0])
    path.unlink()


@pytest.mark.parametrize("indices", [[N], [-1], [0, 99, 1]])
def test_samples_there_are_not(path, indices):
    write_imdb(path, IMAGES, LABELS)
    with Imdb(path) as imdb, pytest.raises(DataError, match=r"there are 40 samples, from 0\. Received: "):
        imdb.batch(indices)


# ---- HDF5 files that are no image databases


@pytest.mark.parametrize(
    ("images", "message"),
    [
        ({"labels": LABELS}, r"images/data: it is missing\. Found: labels in /images"),
        ({"data": IMAGES}, r"images/labels: it is missing\. Found: data in /images"),
        ({"data": IMAGES[0], "labels": LABELS[:3]}, r"expected \(N, C, H, W\), found \(3, 6, 5\)"),
        ({"data": IMAGES, "labels": LABELS[1:]}, r"as many samples of each, found .*40.*39"),
        ({"data": IMAGES, "labels": 3}, r"expected numbers \(N, ...\), found \(\) int64"),
        ({"data": IMAGES, "labels": ["a"] * N}, "images/labels: expected numbers"),
        ({"data": IMAGES, "labels": LABELS + 1j}, "images/labels: expected numbers"),
        ({"data": IMAGES, "labels": h5py.Empty("i4")}, "found a group or nothing in it"),
        ({"data": IMAGES, "labels/a": LABELS}, "found a group or nothing in it"),
        ({"data": IMAGES, "labels": LABELS, "set": SETS[1:]}, r"images/set: sets has one number .*40.*39"),
        ({"data": IMAGES, "labels": LABELS, "set": SETS + 1}, r"images/set: sets are 1 .* Received: 4"),
        ({"data": IMAGES, "labels": LABELS, "set": ["train"] * N}, "images/set: expected numbers"),
        ({"data": IMAGES, "labels": LABELS, "data_mean": IMAGES[:2]}, r"Received: \(2, 3, 6, 5\)"),
        ({"data": IMAGES, "labels": LABELS, "data_mean": [1, 2]}, r"should fit images .* Received: \(2,\)"),
        ({"data": IMAGES, "labels": LABELS, "data_mean": "mean.png"}, "data_mean: expected numbers"),
        ({"data": {"shape": (N, 3, 6, 5), "dtype": "u1"}, "labels": LABELS}, "3600 bytes .*, found fewer"),
    ],
)  # fmt: skip
def test_what_is_no_database_is_refused(path, images, message):
    hdf5(path, images)
    with pytest.raises(FileFormatError, match=message) as caught:
        Imdb(path)
    assert str(caught.value).startswith(str(path))


def test_chunks_that_were_never_written_are_no_black_images(path):
    with h5py.File(path, "w") as file:
        data = file.create_dataset("images/data", (N, 3, 6, 5), "u1", chunks=(4, 3, 6, 5))
        data[:20] = IMAGES[:20]
        file["images/labels"] = LABELS
    with pytest.raises(
        FileFormatError, match="images/data: expected 10 chunks, found 5: not all were written"
    ):
        Imdb(path)


def test_data_elsewhere_are_not_followed(path, tmp_path):
    other = tmp_path / "other.h5"
    hdf5(other, {"data": IMAGES, "labels": LABELS})
    with h5py.File(path, "w") as file:
        file["images/labels"] = LABELS
        file["images/data"] = h5py.ExternalLink(str(other), "images/data")
    with pytest.raises(FileFormatError, match="images/data: it is missing"):
        Imdb(path)
    with h5py.File(path, "w") as file:
        layout = h5py.VirtualLayout(IMAGES.shape, "u1")
        layout[:] = h5py.VirtualSource(str(other), "images/data", IMAGES.shape)
        file.create_virtual_dataset("images/data", layout)
    with pytest.raises(FileFormatError, match="in the file itself, found them in others"):
        Imdb(path)
    hdf5(path, {"data": {"shape": (N, 3, 6, 5), "dtype": "u1", "external": str(other)}})
    with pytest.raises(FileFormatError, match="in the file itself, found them in others"):
        Imdb(path)
    hdf5(path, {"data": IMAGES, "labels": LABELS})
    with h5py.File(path, "r+") as file:
        file.create_dataset("meta/notes", (8,), "u1", external=str(other))
    with pytest.raises(FileFormatError, match="meta/notes: expected data in the file itself"):
        Imdb(path)


@pytest.mark.parametrize("content", [b"", b"text", b"\x89PNG\r\n\x1a\n", b"\x89HDF\r\n\x1a\n" + bytes(40)])
def test_other_files_are_refused(path, content):
    path.write_bytes(content)
    with pytest.raises(FileFormatError, match=r"imdb\.h5: "):
        Imdb(path)
    with pytest.raises(FileNotFoundError):
        Imdb(path.parent / "none.h5")


# ---- damage


def test_a_file_cut_short_while_it_is_open(path, monkeypatch):
    monkeypatch.setattr(imdb_hdf5, "KEPT", 1000)
    for options in ({}, {"chunks": (1, 3, 6, 5)}):
        hdf5(path, {"labels": LABELS, "data": {"data": IMAGES, **options}})
        with Imdb(path) as imdb:
            with open(path, "r+b") as file:
                file.truncate(path.stat().st_size - 500)
            with pytest.raises(FileFormatError, match=r"imdb\.h5: images/data of the samples 3, 39"):
                imdb.batch([3, 39])


def damaged(data, seed):
    """`data` with flipped bits, or cut short."""
    source, data = random.Random(seed), bytearray(data)
    if seed % 4 == 0:
        return data[: source.randrange(len(data))]
    for _ in range(source.choice([1, 1, 2, 20])):
        data[source.randrange(len(data))] ^= 1 << source.randrange(8)
    return data


def contents(path):
    with Imdb(path) as imdb:
        batch = imdb.batch(np.arange(len(imdb)))
        return [
            batch["input"].tolist(),
            batch["label"].tolist(),
            imdb.sets.tolist(),
            imdb.data_mean.tolist(),
            imdb.meta,
        ]


def test_damage_is_found(path, reading):
    """Everything has checksums: the contents are what was written, or refused."""
    write_imdb(path, IMAGES, LABELS, SETS, data_mean=[1, 2, 3], meta=META)
    expected, original = contents(path), path.read_bytes()
    victim = path.with_name("victim.h5")
    refused = 0
    for seed in range(100):
        victim.write_bytes(damaged(original, seed))
        try:
            assert contents(victim) == expected
        except DagnnError as error:
            assert isinstance(error, FileFormatError) and str(error).startswith(f"{victim}: ")
            refused += 1
    assert refused > 50


def test_damage_to_one_image_leaves_the_others(path, monkeypatch):
    monkeypatch.setattr(imdb_hdf5, "KEPT", 1000)
    images = rng.integers(0, 256, (8, 1, 80, 80)).astype(np.uint8)
    write_imdb(path, images, np.zeros(8, int))
    data = path.read_bytes()
    place = data.index(images[5].tobytes())
    path.write_bytes(data[:place] + bytes([data[place] ^ 1]) + data[place + 1 :])
    with Imdb(path) as imdb:
        np.testing.assert_array_equal(imdb.batch([7, 4, 6])["input"], images[[7, 4, 6]])
        with pytest.raises(FileFormatError, match="images/data of the samples 5, 0 cannot be read"):
            imdb.batch([5, 0])


@pytest.mark.parametrize("part", [0.999, 0.9, 0.5, 0.1])
def test_truncated_files_of_others_are_refused(path, part):
    hdf5(path, {"data": IMAGES, "labels": LABELS, "set": SETS}, classes=["a", "b"])
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * part)])
    with pytest.raises(FileFormatError, match=r"imdb\.h5: "):
        Imdb(path)


# ---- writing


@pytest.mark.parametrize("seed", range(5))
def test_pieces_make_the_same_database(path, seed):
    source = np.random.default_rng(seed)
    images = source.integers(0, 256, (300, 1, 4, 4)).astype(np.uint8)
    labels, sets = source.integers(0, 9, (300, 2)), source.integers(0, 4, 300)
    with ImdbWriter(path) as writer:
        for part in np.split(np.arange(300), np.sort(source.integers(0, 300, 6))):
            writer.append(images[part], labels[part], sets[part], size=part)
    with Imdb(path, {"x": "data", "y": "labels", "k": "size"}) as imdb:
        batch = imdb.batch(range(300))
        np.testing.assert_array_equal(imdb.sets, sets)
    np.testing.assert_array_equal(batch["x"], images)
    np.testing.assert_array_equal(batch["y"], labels)
    np.testing.assert_array_equal(batch["k"], range(300))


def test_pieces_without_samples_decide_nothing(path):
    with ImdbWriter(path) as writer:
        for images in (IMAGES[:0], IMAGES, IMAGES[:0]):
            writer.append(images, LABELS[: len(images)].tolist())
    with Imdb(path) as imdb:
        assert imdb.batch([0])["label"].dtype == np.int64 and len(imdb) == len(IMAGES)
    with pytest.raises(DataError, match="no samples were appended"), ImdbWriter(path) as writer:
        writer.append(IMAGES[:0])


def test_how_files_are_stored(path):
    with ImdbWriter(path) as writer:
        writer.append(np.zeros((9, 3, 40, 40)), np.arange(9))
        writer.append(np.zeros((1, 3, 40, 40), np.float32), [9], sets=2)
        writer.data_mean, writer.meta["classes"] = 0.5, ["a"]
    with h5py.File(path) as file:
        found = []
        file.visititems(lambda name, node: found.append(node) if isinstance(node, h5py.Dataset) else None)
        assert {node.name for node in found} == {
            "/images/data", "/images/labels", "/images/set", "/images/data_mean", "/meta/classes"
        }  # fmt: skip
        assert all(node.fletcher32 for node in found)
        assert file["images/data"].dtype == np.float32 and file["images/data"].chunks[0] == 1
    with Imdb(path) as imdb:
        assert imdb.val.tolist() == [9] and (imdb.batch([9])["input"] == -0.5).all()


def test_databases_without_labels(path):
    write_imdb(path, IMAGES)
    with Imdb(path, {"input": "data"}) as imdb:
        assert list(imdb.batch([0])) == ["input"]
    with pytest.raises(FileFormatError, match="images/labels: it is missing"):
        Imdb(path)


def test_errors_leave_the_old_file(path):
    write_imdb(path, IMAGES, LABELS)
    before = path.read_bytes()
    with pytest.raises(ZeroDivisionError), ImdbWriter(path) as writer:
        writer.append(IMAGES[:3], LABELS[:3])
        raise ZeroDivisionError
    with pytest.raises(DataError, match="no samples were appended"), ImdbWriter(path):
        pass
    with pytest.raises(ShapeError, match="data_mean should fit"), ImdbWriter(path) as writer:
        writer.append(IMAGES, LABELS)
        writer.data_mean = [1, 2]
    with pytest.raises(OptionError, match="no value for JSON"), ImdbWriter(path) as writer:
        writer.append(IMAGES, LABELS)
        writer.meta["a"] = object()
    with pytest.raises(OptionError, match="inside the `with`"):
        writer.append(IMAGES, LABELS)
    assert path.read_bytes() == before and [p.name for p in path.parent.iterdir()] == [path.name]


@pytest.mark.parametrize(
    ("error", "images", "labels", "options"),
    [
        (ShapeError, IMAGES[:, :1], LABELS, {}),
        (ShapeError, IMAGES[0], LABELS[:3], {}),
        (ShapeError, IMAGES, LABELS[1:], {}),
        (ShapeError, IMAGES, LABELS, {"sets": [1, 2]}),
        (ShapeError, IMAGES, None, {}),
        (ShapeError, IMAGES, LABELS, {"boxes": np.zeros((N, 4))}),
        (ShapeError, IMAGES, np.zeros((N, 0)), {}),
        (ShapeError, IMAGES, np.zeros((N, 2)), {}),
        (DTypeError, IMAGES.astype(np.float32), LABELS, {}),
        (DTypeError, IMAGES, LABELS + 0.5, {}),
        (DTypeError, IMAGES, ["cat"] * N, {}),
        (OptionError, IMAGES, LABELS, {"sets": 4}),
        (OptionError, IMAGES, LABELS, {"sets": "train"}),
        (OptionError, IMAGES, LABELS, {"data": IMAGES}),
        (OptionError, IMAGES, LABELS, {"a/b": LABELS}),
    ],
)
def test_samples_that_do_not_fit_are_refused(path, error, images, labels, options):
    with ImdbWriter(path) as writer:
        writer.append(IMAGES, LABELS, SETS)
        with pytest.raises(error):
            writer.append(images, labels, **options)
        writer.append(IMAGES[:2], LABELS[:2])
    with Imdb(path) as imdb:
        assert len(imdb) == N + 2
        np.testing.assert_array_equal(imdb.batch(range(N))["input"], IMAGES)


WRONG = [
    {"data_mean": [1, 2]}, {"data_mean": "mean.png"}, {"meta": {"a/b": 1}}, {"meta": {"": 1}},
    {"meta": {"a": {1, 2}}}, {"meta": {2: 1}},
]  # fmt: skip


@pytest.mark.parametrize("options", WRONG)
def test_options_that_do_not_fit_are_refused(path, options):
    with pytest.raises((ShapeError, OptionError)):
        write_imdb(path, IMAGES, LABELS, **options)
    assert not list(path.parent.iterdir())


def test_arrays_on_disk_can_be_written(path, tmp_path):
    np.save(tmp_path / "x.npy", IMAGES)
    write_imdb(path, np.load(tmp_path / "x.npy", mmap_mode="r"), LABELS, SETS)
    with Imdb(path) as imdb:
        np.testing.assert_array_equal(imdb.map(lambda batch, rng: batch).batch([1])["input"], IMAGES[[1]])
