"""CIFAR-10 and CIFAR-100 in both formats, and how images are prepared."""

import pickle

import numpy as np
import pytest
from python2_pickles import WRITERS, Python2, as_python2, nested

from dagnn.data import Cifar10, Cifar100, write_cifar10
from dagnn.data.preparation import fit_preparation
from dagnn.errors import DataError, DTypeError, FileFormatError, LabelError, OptionError, ShapeError

NAMES = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
FINE_NAMES = [f"fine {i}" for i in range(100)]
COARSE_NAMES = [f"coarse {i}" for i in range(20)]
rng = np.random.default_rng(0)


def samples(n, num_classes=10):
    return rng.integers(0, 256, (n, 3, 32, 32), np.uint8), rng.integers(0, num_classes, n)


def records(images, *labels):
    """The bytes of a binary file, put together one by one."""
    return b"".join(
        bytes(int(of[i]) for of in labels) + b"".join(images[i, c].tobytes() for c in range(3))
        for i in range(len(images))
    )


def batch(images, **labels):
    names = [f"{i}.png" for i in range(len(images))]
    rows = images.reshape(len(images), -1)
    return {
        "batch_label": "batch",
        **{k: list(map(int, v)) for k, v in labels.items()},
        "data": rows,
        "filenames": names,
    }


def test_the_pickles_of_these_tests_are_pickles():
    value = batch(samples(3)[0], labels=[1, 2, 300])
    loaded = pickle.loads(as_python2(value), encoding="latin-1")
    np.testing.assert_array_equal(loaded.pop("data"), value.pop("data"))
    assert loaded == value


# ---- datasets


def write_python10(root, train, test, dumps=as_python2, names=NAMES):
    folder = root / "cifar-10-batches-py"
    folder.mkdir()
    images, labels = train
    for i in range(5):
        part = slice(i * len(images) // 5, (i + 1) * len(images) // 5)
        (folder / f"data_batch_{i + 1}").write_bytes(dumps(batch(images[part], labels=labels[part])))
    (folder / "test_batch").write_bytes(dumps(batch(test[0], labels=test[1])))
    (folder / "batches.meta").write_bytes(dumps({"num_cases_per_batch": 10000, "label_names": names}))
    return folder


def write_binary100(root, train, test):
    folder = root / "cifar-100-binary"
    folder.mkdir()
    (folder / "train.bin").write_bytes(records(train[0], train[1] // 5, train[1]))
    (folder / "test.bin").write_bytes(records(test[0], test[1] // 5, test[1]))
    (folder / "fine_label_names.txt").write_text("\n".join(FINE_NAMES) + "\n\n")
    (folder / "coarse_label_names.txt").write_text("\r\n".join(COARSE_NAMES))
    return folder


def write_python100(root, train, test):
    folder = root / "cifar-100-python"
    folder.mkdir()
    for name, (images, labels) in {"train": train, "test": test}.items():
        content = batch(images, coarse_labels=labels // 5, fine_labels=labels)
        (folder / name).write_bytes(as_python2(content))
    names = {"fine_label_names": FINE_NAMES, "coarse_label_names": COARSE_NAMES}
    (folder / "meta").write_bytes(as_python2(names))
    return folder


def check(data, train, test, divide=1):
    assert len(data) == len(train[1]) + len(test[1])
    np.testing.assert_array_equal(data.train, np.arange(len(train[1])))
    np.testing.assert_array_equal(data.val, np.arange(len(train[1]), len(data)))
    mean = train[0].astype(float).mean(axis=0)
    np.testing.assert_allclose(data.data_mean, mean, rtol=1e-6)
    for numbers, (images, labels) in (data.train, train), (data.val, test):
        found = data.batch(numbers)
        np.testing.assert_allclose(found["input"], images - mean, atol=1e-4)
        assert found["input"].dtype == np.float32 and found["input"].flags.c_contiguous
        np.testing.assert_array_equal(found["label"], labels // divide)


def test_cifar10_as_written(tmp_path):
    train, test = samples(12), samples(4)
    write_cifar10(tmp_path / "new", *train, *test, NAMES)
    for root in tmp_path / "new", tmp_path / "new" / "cifar-10-batches-bin":
        data = Cifar10(root)
        check(data, train, test)
        assert data.classes == NAMES


def test_the_bytes_are_those_of_the_format(tmp_path):
    train, test = samples(12), samples(4)
    write_cifar10(tmp_path, *train, *test, NAMES)
    folder = tmp_path / "cifar-10-batches-bin"
    assert b"".join((folder / f"data_batch_{i}.bin").read_bytes() for i in range(1, 6)) == records(*train)
    assert (folder / "test_batch.bin").read_bytes() == records(*test)
    assert (folder / "batches.meta.txt").read_text().split() == NAMES
    assert {len((folder / f"data_batch_{i}.bin").read_bytes()) // 3073 for i in range(1, 6)} == {2, 3}


@pytest.mark.parametrize("writer", WRITERS)
def test_cifar10_for_python(tmp_path, writer):
    train, test = samples(10), samples(3)
    folder = write_python10(tmp_path, train, test, WRITERS[writer])
    for root in tmp_path, folder:
        data = Cifar10(root, names=("input", "label"))
        check(data, train, test)
        assert data.classes == NAMES


@pytest.mark.parametrize("write", [write_binary100, write_python100])
def test_cifar100(tmp_path, write):
    train, test = samples(9, 100), samples(4, 100)
    write(tmp_path, train, test)
    data = Cifar100(tmp_path)
    check(data, train, test)
    assert data.classes == FINE_NAMES
    data = Cifar100(tmp_path, fine=False)
    check(data, train, test, divide=5)
    assert data.classes == COARSE_NAMES


def test_a_complete_folder_goes_before_an_incomplete_one(tmp_path):
    train, test = samples(10), samples(3)
    write_cifar10(tmp_path, *samples(10), *test, NAMES)
    write_python10(tmp_path, train, test)
    (tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    check(Cifar10(tmp_path), train, test)


def test_missing_files_come_with_what_to_do(tmp_path):
    write_cifar10(tmp_path, *samples(5), *samples(2), NAMES)
    (tmp_path / "cifar-10-batches-bin" / "data_batch_3.bin").unlink()
    with pytest.raises(DataError, match=r"has no cifar-10-batches-bin.data_batch_3.bin; download=True"):
        Cifar10(tmp_path)
    with pytest.raises(DataError, match=r"kriz/cifar-100-binary.tar.gz"):
        Cifar100(tmp_path)


# ---- files that are damaged


@pytest.mark.parametrize(("change", "rest"), [(-1, 3072), (1, 1), (-3072, 1)])
def test_records_must_be_whole(tmp_path, change, rest):
    write_cifar10(tmp_path, *samples(10), *samples(2), NAMES)
    path = tmp_path / "cifar-10-batches-bin" / "data_batch_2.bin"
    content = path.read_bytes()
    path.write_bytes(content[:change] if change < 0 else content + bytes(change))
    with pytest.raises(FileFormatError, match=f"data_batch_2.bin: .*3073 bytes; .* and {rest} bytes"):
        Cifar10(tmp_path)


def test_labels_out_of_range(tmp_path):
    train, test = samples(10, 100), samples(4, 100)
    folder = write_binary100(tmp_path, train, test)
    (folder / "test.bin").write_bytes(records(test[0], [0, 19, 20, 0], [0, 99, 0, 100]))
    with pytest.raises(FileFormatError, match=r"test.bin: the labels of 100 classes .* sample 3 has 100"):
        Cifar100(tmp_path)
    with pytest.raises(FileFormatError, match=r"test.bin: the labels of 20 classes .* sample 2 has 20"):
        Cifar100(tmp_path, fine=False)


def test_no_training_images(tmp_path):
    write_cifar10(tmp_path, *samples(0), *samples(2), NAMES)
    with pytest.raises(FileFormatError, match="no images for training"):
        Cifar10(tmp_path)


@pytest.mark.parametrize("text", [b"a\nb\n", b"", b"\xff\xfe\n" * 10, b"a\n" * 11])
def test_names_of_classes_are_ten(tmp_path, text):
    write_cifar10(tmp_path, *samples(5), *samples(2), NAMES)
    (tmp_path / "cifar-10-batches-bin" / "batches.meta.txt").write_bytes(text)
    with pytest.raises(FileFormatError, match=r"batches.meta.txt: (expected names of 10|it is no text)"):
        Cifar10(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"labels": [0]}, "no array 'data'"),
        ({"data": "text", "labels": [0]}, "no array 'data'"),
        ({"data": np.zeros((1, 3072), np.uint8)}, r"as many 'labels'. Received: data \(1, 3072\), no labels"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [0, 1]}, "2 labels"),
        ({"data": np.zeros((1, 3071), np.uint8), "labels": [0]}, r"rows of 3072.*\(1, 3071\)"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": ["0"]}, "sample 0 is no class but a str"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [9, 10]}, "sample 1 has 10"),
        ({"data": np.zeros((2, 3072), np.uint8), "labels": [9, -1]}, "sample 1 has -1"),
        ({"data": np.zeros((1, 3072), np.uint8), "labels": [10**40]}, "sample 0 has 1000000"),
        ({"data": np.zeros((1, 3072), np.int8), "labels": [0]}, "no matrix of uint8"),
        ({"data": np.zeros((1, 3, 1024), np.uint8), "labels": [0]}, "no matrix of uint8"),
        ({"data": np.zeros((0, 3072), np.uint8), "labels": []}, "0 bytes for a matrix of 0 x 3072"),
    ],
)
def test_contents_that_disagree(tmp_path, content, message):
    folder = write_python10(tmp_path, samples(5), samples(2))
    (folder / "test_batch").write_bytes(pickle.dumps(content, 4))
    with pytest.raises(FileFormatError, match=f"test_batch: .*{message}"):
        Cifar10(tmp_path)


@pytest.mark.parametrize("names", [NAMES[:9], "abcdefghij", None, [*NAMES[:9], 3]])
def test_names_in_a_pickle_are_ten(tmp_path, names):
    folder = write_python10(tmp_path, samples(5), samples(2))
    (folder / "batches.meta").write_bytes(pickle.dumps({"label_names": names}, 2))
    with pytest.raises(FileFormatError, match=r"batches.meta: (expected names of 10|it has no list)"):
        Cifar10(tmp_path)


def test_labels_of_exponential_size_cost_nothing(tmp_path):
    folder = write_python10(tmp_path, samples(5), samples(2))
    data = Python2().write(np.zeros((1, 3072), np.uint8))
    program = b"}U\x04data" + data + b"sU\x06labels]" + nested(60) + b"as"
    (folder / "test_batch").write_bytes(b"\x80\x02" + program + b".")
    with pytest.raises(FileFormatError, match="sample 0 is no class but a tuple"):
        Cifar10(tmp_path)


# ---- writing


def test_writing_refuses_what_the_format_has_no_place_for(tmp_path):
    images, labels = samples(3)
    good = (images, labels, images, labels, NAMES)
    for place, value, error in [
        (0, images.astype(np.float32), DTypeError),
        (0, images[:, :, :16], ShapeError),
        (1, labels[:2], ShapeError),
        (1, labels / 2, DTypeError),
        (3, [0, 10, 1], LabelError),
        (3, [0, -1, 1], LabelError),
        (4, NAMES[:9], OptionError),
        (4, [*NAMES[:9], "two\nlines"], OptionError),
    ]:
        arguments = [*good[:place], value, *good[place + 1 :]]
        with pytest.raises(error):
            write_cifar10(tmp_path, *arguments)
    assert not list(tmp_path.iterdir())


# ---- preparation


def matconvnet(images, num_train, contrast, whiten):
    """cnn_cifar's getCifarImdb, line by line, on columns and in double precision."""
    data = images.reshape(len(images), -1).T.astype(float)
    data = data - data[:, :num_train].mean(axis=1, keepdims=True)
    if contrast:
        z = data - data.mean(axis=0)
        n = z.std(axis=0, ddof=1)
        data = z * (n.mean() / np.maximum(n, 40))
    if whiten:
        w = data[:, :num_train] @ data[:, :num_train].T / len(images)
        d2, v = np.linalg.eigh(w)
        en = np.sqrt(d2.mean())
        data = v @ np.diag(en / np.maximum(np.sqrt(np.abs(d2)), 10)) @ v.T @ data
    return data.T.reshape(images.shape)


def smooth_images(n):
    """Images of different contrast whose neighbouring pixels are alike, as those of photographs are."""
    noise = rng.standard_normal((n, 3, 8, 8)).cumsum(axis=2).cumsum(axis=3)
    noise *= rng.uniform(3, 30, (n, 1, 1, 1))
    return np.clip(128 + noise, 0, 255).astype(np.uint8)


@pytest.mark.parametrize("contrast", [False, True])
@pytest.mark.parametrize("whiten", [False, True])
def test_images_are_prepared_as_cnn_cifar_does(contrast, whiten):
    images = smooth_images(400)
    prepare = fit_preparation(images, 300, contrast_normalization=contrast, whiten_data=whiten)
    result = prepare(images)
    assert result.dtype == np.float32
    np.testing.assert_allclose(result, matconvnet(images, 300, contrast, whiten), atol=0.02)


def test_whitened_images_have_equal_variances():
    images = smooth_images(3000)
    prepare = fit_preparation(images, 3000, whiten_data=True)
    before = (images - prepare.mean).reshape(3000, -1)
    after = prepare(images).reshape(3000, -1)
    values, vectors = np.linalg.eigh(before.T @ before / 3000)
    variances = ((after @ vectors) ** 2).mean(axis=0)
    strong = values > 100
    assert 10 < strong.sum() < len(values)
    np.testing.assert_allclose(variances[strong], values.mean(), rtol=1e-3)
    assert (variances[~strong] < values.mean()).all()


def test_flat_images_stay_finite():
    images = np.full((10, 3, 8, 8), 7, np.uint8)
    prepare = fit_preparation(images, 8, contrast_normalization=True, whiten_data=True)
    assert not prepare(images).any()


def test_nothing_is_done_unless_asked():
    images = smooth_images(5)
    prepare = fit_preparation(images, 5, subtract_mean=False)
    np.testing.assert_array_equal(prepare(images), images)


def test_batches_are_prepared_by_all_steps(tmp_path):
    train, test = samples(10), samples(5)
    write_cifar10(tmp_path, *train, *test, NAMES)
    data = Cifar10(tmp_path, contrast_normalization=True)
    expected = matconvnet(np.concatenate((train[0], test[0])), 10, True, False)
    np.testing.assert_allclose(data.batch(range(15))["input"], expected, atol=1e-3)
    np.testing.assert_array_equal(data.prepare(data.images[4:6]), data.batch([4, 5])["input"])
    data.batch([0])["input"][:] = 0  # a batch is the caller's
    np.testing.assert_allclose(data.batch([0])["input"], expected[:1], atol=1e-3)
