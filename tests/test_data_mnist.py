"""IDX files, and MNIST in them."""

import gzip
import struct
import tracemalloc
from contextlib import suppress

import numpy as np
import pytest

from dagnn.data import FashionMnist, Mnist, read_idx, write_idx
from dagnn.errors import DataError, DTypeError, FileFormatError, OptionError

TYPES = ["uint8", "int8", "int16", "int32", "float32", "float64"]
rng = np.random.default_rng(0)


def header(code, *shape):
    return bytes([0, 0, code, len(shape)]) + struct.pack(f">{len(shape)}I", *shape)


def peak_memory(function):
    tracemalloc.start()
    try:
        function()
        return tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


# ---- IDX


@pytest.mark.parametrize("end", ["", ".gz"])
@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("shape", [(), (3,), (0, 4), (2, 3, 4), (1,) * 64])
def test_arrays_return(tmp_path, dtype, shape, end):
    array = (100 * rng.standard_normal(shape)).astype(dtype)
    path = tmp_path / f"array{end}"
    write_idx(path, array)
    back = read_idx(path)
    assert back.dtype == dtype and back.dtype.isnative and back.flags.writeable
    np.testing.assert_array_equal(back, array)
    assert path.read_bytes().startswith(b"\x1f\x8b") == bool(end)


@pytest.mark.parametrize(
    ("code", "dtype", "letter"),
    [(8, "u1", "B"), (9, "i1", "b"), (11, "i2", "h"), (12, "i4", "i"), (13, "f4", "f"), (14, "f8", "d")],
)
def test_the_bytes_are_those_of_the_format(tmp_path, code, dtype, letter):
    expected = header(code, 2, 3) + struct.pack(f">6{letter}", 1, 2, 3, 4, 5, 100)
    write_idx(tmp_path / "array", np.array([[1, 2, 3], [4, 5, 100]], f"<{dtype}")[:, ::1])
    assert (tmp_path / "array").read_bytes() == expected


def test_compressed_files_are_known_by_their_contents(tmp_path):
    (tmp_path / "array").write_bytes(gzip.compress(header(8, 3) + b"abc"))
    assert read_idx(tmp_path / "array").tobytes() == b"abc"


def test_the_same_array_makes_the_same_compressed_file(tmp_path):
    for name in "a.gz", "b.gz":
        write_idx(tmp_path / name, np.arange(100, dtype=np.int32))
    assert (tmp_path / "a.gz").read_bytes() == (tmp_path / "b.gz").read_bytes()


@pytest.mark.parametrize("dtype", ["int64", "uint16", "bool", "float16", "complex64", "S3"])
def test_other_types_are_refused_and_the_old_file_stays(tmp_path, dtype):
    write_idx(tmp_path / "array", np.zeros(3, np.uint8))
    with pytest.raises(DTypeError, match=r"Received: (int64|uint16|bool|float16|complex64|\|S3)"):
        write_idx(tmp_path / "array", np.zeros(5, dtype))
    assert read_idx(tmp_path / "array").shape == (3,)


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_every_truncation_is_found(tmp_path, compress):
    content = compress(header(11, 3, 4) + bytes(range(24)))
    path = tmp_path / "array"
    for length in range(len(content)):
        path.write_bytes(content[:length])
        with pytest.raises(FileFormatError, match=str(path)):
            read_idx(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (header(8, 3) + b"abcd", "3 bytes should follow the header, uint8 of shape .3,.* there are more"),
        (
            header(11, 2, 3) + b"abc",
            "12 bytes should follow the header, int16 of shape .2, 3.*no more than 3",
        ),
        (header(11, 2, 3) + b"abcdefghijk", "12 bytes should follow.*no more than 11"),
        (header(10, 3) + b"abc", r"Received: \[0, 0, 10, 1\]"),
        (b"\1" + header(8, 3)[1:] + b"abc", r"Received: \[1, 0, 8, 1\]"),
        (header(8, *[1] * 65) + b"a", r"at most 64\). Received: \[0, 0, 8, 65\]"),
        (header(8, 0, *[2**32 - 1] * 3), "too large"),
        (header(8, 0)[:6], "ends among its 1 dimensions"),
        (b"", r"Received: \[\]"),
    ],
)
@pytest.mark.parametrize("compress", [bytes, gzip.compress])
def test_wrong_headers_are_explained(tmp_path, content, message, compress):
    if compress is gzip.compress:
        message = message.replace("no more than", "only")
    (tmp_path / "array").write_bytes(compress(content))
    with pytest.raises(FileFormatError, match=message):
        read_idx(tmp_path / "array")


@pytest.mark.parametrize("compress", [bytes, gzip.compress])
@pytest.mark.parametrize("shape", [(2**32 - 1,) * 60, (2**32 - 1,), (2**31, 0, 5)])
def test_what_a_header_promises_is_not_allocated(tmp_path, shape, compress):
    path = tmp_path / "array"
    path.write_bytes(compress(header(14, *shape) + bytes(1000)))

    def read():
        with pytest.raises(FileFormatError):
            read_idx(path)

    assert peak_memory(read) < 4e6


def test_no_more_is_inflated_than_the_header_promises(tmp_path):
    path = tmp_path / "array"
    path.write_bytes(gzip.compress(header(8, 10) + bytes(50_000_000)))

    def read():
        with pytest.raises(FileFormatError, match="10 bytes should follow.*more"):
            read_idx(path)

    assert peak_memory(read) < 4e6


def test_damage_in_compressed_files_is_found(tmp_path):
    path = tmp_path / "array.gz"
    array = rng.integers(0, 4, (20, 20), np.uint8)
    write_idx(path, array)
    content = path.read_bytes()
    for _ in range(300):
        damaged = bytearray(content)
        damaged[rng.integers(len(content))] ^= 1 << rng.integers(8)
        path.write_bytes(damaged)
        with suppress(FileFormatError):
            np.testing.assert_array_equal(read_idx(path), array)  # an unused bit of gzip's header


def test_missing_files_are_the_systems_business(tmp_path):
    with pytest.raises(FileNotFoundError):
        read_idx(tmp_path / "array")


# ---- MNIST


def write_mnist(root, num_train=20, num_test=8, name="{part}-{kind}-idx{n}-ubyte", **changes):
    arrays = {}
    for part, n in ("train", num_train), ("t10k", num_test):
        arrays[f"{part}-images"] = rng.integers(0, 256, (n, 28, 28), np.uint8)
        arrays[f"{part}-labels"] = rng.integers(0, 10, n).astype(np.uint8)
    arrays |= {name.replace("_", "-"): array for name, array in changes.items()}
    for key, array in arrays.items():
        part, kind = key.split("-")
        write_idx(root / name.format(part=part, kind=kind, n=3 if kind == "images" else 1), array)
    return arrays


@pytest.mark.parametrize(
    "name",
    [
        "{part}-{kind}-idx{n}-ubyte",
        "{part}-{kind}-idx{n}-ubyte.gz",
        "{part}-{kind}.idx{n}-ubyte",
        "{part}-{kind}.idx{n}-ubyte.gz",
    ],
)
@pytest.mark.parametrize("dataset", [Mnist, FashionMnist])
def test_samples_are_those_of_the_files(tmp_path, name, dataset):
    arrays = write_mnist(tmp_path, name=name)
    data = dataset(tmp_path)
    assert len(data) == 28 and list(data.train) == list(range(20)) and list(data.val) == list(range(20, 28))
    assert not len(data.test) and len(data.classes) == 10
    mean = arrays["train-images"].astype(float).mean(axis=0)
    np.testing.assert_allclose(data.data_mean, mean[None], rtol=1e-6)
    batch = data.batch([3, 21, 3])
    assert batch["input"].dtype == np.float32 and batch["label"].dtype == np.int64
    for k, (part, i) in enumerate([("train", 3), ("t10k", 1), ("train", 3)]):
        np.testing.assert_allclose(batch["input"][k, 0], arrays[f"{part}-images"][i] - mean, atol=1e-4)
        assert batch["label"][k] == arrays[f"{part}-labels"][i]


def test_the_mean_stays_in_and_variables_have_other_names(tmp_path):
    arrays = write_mnist(tmp_path)
    data = Mnist(tmp_path, ("x", "digit"), subtract_mean=False)
    assert data.data_mean is None
    batch = data.batch(data.val)
    np.testing.assert_array_equal(batch["x"][:, 0], arrays["t10k-images"])
    np.testing.assert_array_equal(batch["digit"], arrays["t10k-labels"])
    batch["x"][:] = 0  # a batch is the caller's
    assert data.batch(data.val)["x"].any()


@pytest.mark.parametrize("names", ["ab", ("input",), ("x", "x"), ("a", "b", "c")])
def test_names_are_two(tmp_path, names):
    write_mnist(tmp_path)
    with pytest.raises(OptionError, match="images and labels"):
        Mnist(tmp_path, names)


def test_other_images_are_prepared_alike(tmp_path):
    write_mnist(tmp_path)
    data = Mnist(tmp_path)
    np.testing.assert_array_equal(data.prepare(data.images[5:9]), data.batch(range(5, 9))["input"])


def test_no_images_are_prepared_too(tmp_path):
    write_mnist(tmp_path)
    batch = Mnist(tmp_path).batch([])
    assert batch["input"].shape == (0, 1, 28, 28) and batch["label"].shape == (0,)


def test_samples_that_are_not_there(tmp_path):
    write_mnist(tmp_path)
    with pytest.raises(DataError, match="28 samples.*Received: 28"):
        Mnist(tmp_path).batch([0, 28])


def test_missing_files_come_with_what_to_do(tmp_path):
    write_mnist(tmp_path)
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(DataError) as error:
        Mnist(tmp_path)
    text = str(error.value)
    assert text.startswith(f"{tmp_path} has no t10k-labels-idx1-ubyte;") and "download=True" in text
    assert "https://storage.googleapis.com/cvdf-datasets/mnist/t10k-labels-idx1-ubyte.gz" in text
    with pytest.raises(DataError, match="fashion-mnist"):
        FashionMnist(tmp_path / "nowhere")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"train_labels": np.zeros(19, np.uint8)}, "20 images.*19 labels"),
        ({"t10k_labels": np.array([0, 9, 3, 10, 4, 11, 0, 0], np.uint8)}, "10 classes.*sample 3 has 10"),
        ({"t10k_labels": np.zeros((8, 1), np.uint8)}, r"1 dimensions of uint8. Received: \(8, 1\) uint8"),
        ({"train_images": np.zeros((20, 28, 28), np.int32)}, "3 dimensions of uint8.*int32"),
        ({"train_images": np.zeros((20, 784), np.uint8)}, r"3 dimensions.*Received: \(20, 784\)"),
        ({"t10k_images": np.zeros((8, 14, 28), np.uint8)}, r"\(1, 28, 28\), for testing \(1, 14, 28\)"),
        ({"train_images": np.zeros((0, 28, 28), np.uint8)}, r"Received: \(0, 28, 28\)"),
    ],
)
def test_files_that_disagree(tmp_path, changes, message):
    write_mnist(tmp_path, **changes)
    with pytest.raises(FileFormatError, match=message):
        Mnist(tmp_path)
