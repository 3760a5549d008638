"""Image databases of MatConvNet."""

from pathlib import Path

import mat73_files
import numpy as np
import pytest

from dagnn.data import Imdb
from dagnn.errors import FileFormatError
from dagnn.io import mat

MODELS = Path(__file__).parents[2] / "shared" / "models"
IMAGES = np.random.default_rng(0).integers(0, 256, (7, 3, 6, 5)).astype(np.uint8)


def matlab(images):
    """(N, C, H, W) as MATLAB has it: H x W x C x N, without ones at the end."""
    array = np.asfortranarray(images.transpose(2, 3, 1, 0))
    while array.ndim > 2 and array.shape[-1] == 1:
        array = array[..., 0]
    return array


@pytest.mark.parametrize("writer", [mat.write, mat73_files.write], ids=["v7", "v7.3"])
@pytest.mark.parametrize("n", [1, 2, 7])
@pytest.mark.parametrize("c", [1, 3])
@pytest.mark.parametrize("dtype", [np.uint8, np.float32, np.float64])
def test_mat_files(tmp_path, writer, n, c, dtype):
    data, labels = IMAGES[:n, :c].astype(dtype), np.arange(n) % 3
    images = {
        "data": matlab(data),
        "labels": labels[None] + 1.0,
        "set": np.array([[1.0, 3] * n])[:, :n],
        "data_mean": matlab(data[:1].astype(float)),
    }
    meta = {"sets": mat_cell("train", "val", "test"), "classes": mat_cell("a", "b", "c")}
    writer(tmp_path / "imdb.mat", {"images": images, "meta": meta})
    with Imdb(tmp_path / "imdb.mat") as imdb:
        batch = imdb.batch(range(n)[::-1])
        assert len(imdb) == n and imdb.test.tolist() == list(range(n))[1::2]
        assert imdb.meta == {"sets": ["train", "val", "test"], "classes": imdb.classes}
        assert imdb.classes == ["a", "b", "c"]
        np.testing.assert_array_equal(imdb.data_mean, data[0])
    np.testing.assert_array_equal(batch["input"], data[::-1])
    np.testing.assert_array_equal(batch["label"], labels[::-1])
    assert batch["input"].dtype == np.float32 and batch["input"].flags.c_contiguous
    with Imdb(tmp_path / "imdb.mat", subtract_mean=True) as imdb:
        np.testing.assert_array_equal(imdb.batch([0])["input"], np.zeros((1, c, 6, 5)))


def mat_cell(*values):
    cell = np.empty((1, len(values)), object)
    cell[0, :] = values
    return cell


@pytest.mark.parametrize(
    ("labels", "expected"),
    [
        (np.array([[1.0, 0, 3]]), [0, -1, 2]),
        (np.array([[1], [0], [3]], np.uint8), [0, -1, 2]),
        (np.array([[255, 0, 1]], np.uint8), [254, -1, 0]),
        (np.array([[1, 0, 3]], np.uint64), [0, -1, 2]),
        (np.array([[True, False, True]]), [0, -1, 0]),
        (np.array([[1.0, -1, 0]]), [1, -1, 0]),  # attributes: 0 is ignored, nothing counts from 1
        (np.array([[0.5, 1, 2]]), [0.5, 1, 2]),
        (np.array([[np.inf, 1, 2]]), [np.inf, 1, 2]),
        (np.array([[1.0, 0, 1], [0, 0, 1]]), [[1, 0], [0, 0], [1, 1]]),
        (np.arange(24.0).reshape(2, 4, 1, 3), np.arange(24).reshape(2, 4, 1, 3).transpose(3, 2, 0, 1) - 1),
        (np.ones((2, 4, 5, 3)), np.ones((3, 5, 2, 4))),
        (np.arange(24.0).reshape(2, 4, 3), np.arange(24).reshape(2, 4, 3).transpose(2, 0, 1)),
    ],
)
def test_labels_of_mat_files(tmp_path, labels, expected):
    mat.write(tmp_path / "imdb.mat", {"images": {"data": matlab(IMAGES[:3]), "label": labels}})
    batch = Imdb(tmp_path / "imdb.mat").batch(range(3))
    np.testing.assert_array_equal(batch["label"], expected)
    classes = np.min(expected) >= -1 and batch["label"].dtype.kind == "i"
    assert classes or batch["label"].dtype == np.float32


def test_one_image_with_labels_of_its_pixels(tmp_path):
    labels = np.random.default_rng(1).integers(0, 4, (6, 5)).astype(float)
    mat.write(tmp_path / "imdb.mat", {"images": {"data": matlab(IMAGES[:1]), "labels": labels}})
    batch = Imdb(tmp_path / "imdb.mat").batch([0])
    np.testing.assert_array_equal(batch["label"], labels[None, None] - 1)


def test_a_struct_imdb_and_other_fields(tmp_path):
    target = IMAGES[:4].astype(np.float32)
    images = {
        "target": matlab(target),
        "labels": np.array([[1.0, 2, 1, 1]]),
        "boxes": np.random.default_rng(1).random((4, 4)),
    }
    variables = {"imdb": {"images": images, "classes": {"name": mat_cell("a", "b")}}}
    mat.write(tmp_path / "imdb.mat", variables)
    imdb = Imdb(tmp_path / "imdb.mat", {"x": "target", "y": "labels", "rois": "boxes"})
    batch = imdb.batch([2])
    np.testing.assert_array_equal(batch["x"], target[[2]])
    np.testing.assert_array_equal(batch["rois"], images["boxes"][:, [2]].T.astype(np.float32))
    assert imdb.classes == ["a", "b"] and len(imdb.train) == 4 and imdb.data_mean is None


@pytest.mark.parametrize(
    ("variables", "message"),
    [
        ({"opts": {"scales": 1.0}}, r"the struct images, .*, is missing\. Found: opts \(struct\)"),
        ({"images": np.zeros((2, 2))}, r"Found: images \(\(2, 2\) float64\)"),
        ({"images": {"labels": np.ones((1, 3))}}, r"images\.data: it is missing\. Found: labels"),
        ({"images": {"name": mat_cell("a.jpg")}}, "names files of images, which dagnn.data.Images reads"),
        ({"images": {"data": mat_cell("a.jpg")}}, r"images\.data: expected numbers, found cell \(1, 1\)"),
        ({"images": {"data": np.zeros((2, 2, 1, 1, 2))}}, "expected an array H x W x C x N, found"),
        ({"images": {"data": np.zeros((2, 2, 1, 3))}}, r"images\.labels: it is missing"),
        (
            {"images": {"data": np.zeros((2, 2, 1, 3)), "labels": np.ones((1, 4))}},
            r"images\.labels: expected an array for N = 3 samples, found \(1, 4\)",
        ),
        (
            {"images": {"data": np.zeros((2, 2, 1, 3)), "labels": np.ones((1, 3)), "set": np.ones((1, 2))}},
            "images/set: sets has one number per sample, 3",
        ),
    ],
)
def test_mat_files_that_are_no_databases(tmp_path, variables, message):
    mat.write(tmp_path / "imdb.mat", variables)
    with pytest.raises(FileFormatError, match=message) as caught:
        Imdb(tmp_path / "imdb.mat")
    assert str(caught.value).startswith(str(tmp_path / "imdb.mat"))


@pytest.mark.skipif(not MODELS.is_dir(), reason="the folder of third-party networks is not here")
def test_a_published_database():
    images = mat.read(MODELS / "remote-sensing-imdb.mat")["images"]
    with Imdb(MODELS / "remote-sensing-imdb.mat", ("x0", "label")) as imdb:
        assert [len(s) for s in (imdb.train, imdb.val, imdb.test)] == [3600, 1800, 3600]
        assert imdb.classes == ["town", "cropland"] and imdb.meta["sets"] == ["train", "val", "test"]
        batch = imdb.batch([8999, 17])
    for k, sample in enumerate([8999, 17]):
        np.testing.assert_array_equal(batch["x0"][k, 0], images["data"][:, :, 0, sample])
        assert batch["label"][k] == images["label"][0, sample] - 1
    for name in ("not-a-network", "dcfnet", "dncnn-sigma25"):
        with pytest.raises(FileFormatError, match=f"{name}.mat: no image database"):
            Imdb(MODELS / f"{name}.mat")
