"""Preprocessor: from `meta` to the input variable."""

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from dagnn.errors import DTypeError, OptionError, ShapeError
from dagnn.images import resize, rgb_to_grey, write_image
from dagnn.preprocess import Preprocessor

rng = np.random.default_rng(0)
PHOTO = rng.integers(0, 256, (70, 90, 3)).astype(np.uint8)
MEAN = np.array([123.68, 116.779, 103.939], np.float32)


def from_normalization(**fields):
    return Preprocessor.from_meta({"normalization": fields, "classes": {"name": ["a"]}})


def chw(image):
    return image.transpose(2, 0, 1)[None]


# ---- MatConvNet's recipes


def test_quick_start():
    average = (rng.random((32, 24, 3)) * 255).astype(np.float32)
    meta = {
        "normalization": {
            "imageSize": np.array([32.0, 24, 3]),
            "averageImage": average,
            "border": np.array([32, 32], np.uint8),
            "cropSize": 0.5,
            "keepAspect": np.uint8(1),
            "interpolation": "bicubic",
        }
    }
    preprocessor = Preprocessor.from_meta(meta, border=0, keep_aspect=False)
    expected = resize(PHOTO.astype(np.float32), (32, 24)) - average
    result = preprocessor(PHOTO)
    assert result.shape == (1, 3, 32, 24) and result.dtype == np.float32 and result.flags.c_contiguous
    np.testing.assert_array_equal(result, chw(expected))


@pytest.mark.parametrize("keep", [True, False])
@pytest.mark.parametrize("border", [(0, 0), (5, 8), (6, 6)])
@pytest.mark.parametrize("method", ["bicubic", "bilinear"])
def test_get_batch_with_a_border(keep, border, method):
    preprocessor = from_normalization(
        imageSize=[40, 30, 3, 10],
        border=np.array(border, float),
        keepAspect=float(keep),
        interpolation=method,
        averageImage=MEAN.reshape(1, 1, 3),
    )
    h, w = 40 + border[0], 30 + border[1]
    image = PHOTO.astype(np.float32)
    resized = resize(image, max(h / 70, w / 90) if keep else (h, w), method)
    top, left = (resized.shape[0] - 40) // 2, (resized.shape[1] - 30) // 2
    expected = resized[top : top + 40, left : left + 30] - MEAN
    np.testing.assert_allclose(preprocessor(PHOTO), chw(expected), atol=1e-3)


@pytest.mark.parametrize(
    ("size", "crop", "keep", "part"),
    [
        ((20, 20), 1, True, (70, 70)),
        ((20, 20), 0.875, True, (61, 61)),
        ((20, 40), 0.5, True, (23, 45)),
        ((20, 40), (0.8, 0.5), True, (36, 45)),
        ((20, 40), 0.5, False, (35, 45)),
        ((20, 40), (1, 0.5), False, (70, 45)),
    ],
)
def test_crop_size_is_a_part_of_the_image(size, crop, keep, part):
    preprocessor = from_normalization(imageSize=[*size, 3], cropSize=np.array(crop), keepAspect=keep)
    top, left = (70 - part[0]) // 2, (90 - part[1]) // 2
    cut = PHOTO[top : top + part[0], left : left + part[1]].astype(np.float32)
    np.testing.assert_array_equal(preprocessor(PHOTO), chw(resize(cut, size)))


def test_crop_size_goes_before_border_and_either_can_be_set():
    meta = {"normalization": {"imageSize": [28, 28, 3], "border": [4, 4], "cropSize": [0.875, 0.875]}}
    read = Preprocessor.from_meta(meta)
    assert read.crop_size == (0.875, 0.875) and read.border == (0, 0)
    read = Preprocessor.from_meta(meta, border=2)
    assert read.crop_size is None and read.border == (2, 2)
    read = Preprocessor.from_meta({"imageSize": [28, 28, 3], "border": 4}, crop_size=0.5)
    assert read.crop_size == (0.5, 0.5) and read.border == (0, 0)
    assert from_normalization(imageSize=[224, 224, 3], cropSize=[256, 256]).border == (32, 32)
    assert from_normalization(cropSize=[256, 256]).border == (0, 0)


def test_sizes_that_fit_are_only_cropped():
    np.testing.assert_array_equal(Preprocessor((70, 90))(PHOTO), chw(PHOTO.astype(np.float32)))
    np.testing.assert_array_equal(
        Preprocessor((60, 85), border=(10, 5))(PHOTO), chw(PHOTO[5:65, 2:87].astype(np.float32))
    )


# ---- the average image


@pytest.mark.parametrize("shape", [(1, 1, 3), (3,), (3, 1), (1, 3)])
@pytest.mark.parametrize("depth", [[3], []])
def test_average_colours_of_every_shape(shape, depth):
    preprocessor = from_normalization(
        imageSize=[70, 90, *depth], averageImage=MEAN.reshape(shape).astype(float)
    )
    np.testing.assert_allclose(preprocessor(PHOTO), chw(PHOTO - MEAN), rtol=1e-6)
    assert preprocessor.channels == 3


@pytest.mark.parametrize("average", [100.0, np.float32(100), np.full((1, 1), 100, np.uint8)])
def test_average_number(average):
    preprocessor = from_normalization(imageSize=[70, 90, 3], averageImage=average)
    np.testing.assert_array_equal(preprocessor(PHOTO), chw(PHOTO.astype(np.float32) - 100))


@pytest.mark.parametrize(
    "empty", [None, [], "", [[1, 2], [3]], np.zeros((0, 0)), np.zeros((0, 1), np.float32), {}]
)
def test_no_average(empty):
    preprocessor = from_normalization(imageSize=[70, 90, 3], averageImage=empty, border=empty, cropSize=empty)
    np.testing.assert_array_equal(preprocessor(PHOTO), chw(PHOTO.astype(np.float32)))


def test_average_image_of_another_size_is_resized():
    average = (rng.random((35, 45, 3)) * 255).astype(np.float32)
    preprocessor = from_normalization(imageSize=[70, 90, 3], averageImage=average)
    np.testing.assert_allclose(preprocessor(PHOTO), chw(PHOTO - resize(average, (70, 90))), atol=1e-4)
    flat = np.broadcast_to(MEAN, (256, 256, 3))
    np.testing.assert_allclose(
        from_normalization(imageSize=[70, 90, 3], averageImage=flat)(PHOTO), chw(PHOTO - MEAN), atol=1e-4
    )


def test_average_grey_image():
    average = rng.random((20, 20)) * 255  # double, as in files of the wild
    grey = rng.integers(0, 256, (20, 20)).astype(np.uint8)
    expected = (grey - average.astype(np.float32))[None, None]
    np.testing.assert_array_equal(
        from_normalization(imageSize=[20, 20, 1], averageImage=average)(grey), expected
    )
    np.testing.assert_array_equal(from_normalization(averageImage=average)(grey), expected)
    colour = from_normalization(imageSize=[20, 20, 3], averageImage=average)(grey)
    np.testing.assert_array_equal(colour, np.repeat(expected, 3, axis=1))
    thin = Preprocessor((3, 1), channels=1, average_image=np.array([[1.0], [2], [3]]))
    assert thin(np.full((3, 1), 5)).ravel().tolist() == [4, 3, 2]


def test_rgb_mean_stands_in_for_an_average():
    preprocessor = from_normalization(averageImage=[], rgbMean=MEAN, rgbVariance=np.eye(3))
    np.testing.assert_array_equal(preprocessor(PHOTO), chw(PHOTO - MEAN))


def test_averages_that_fit_no_image_are_refused():
    with pytest.raises(
        ShapeError, match=r"average_image has 3 channels, images have 1\. Received: shape \(3,\)"
    ):
        from_normalization(imageSize=[28, 28, 1], averageImage=MEAN)
    with pytest.raises(OptionError, match=r"no image\. Received: shape \(1, 1, 3, 1\)"):
        Preprocessor(average_image=MEAN.reshape(1, 1, 3, 1))


# ---- colours


def test_grey_images_are_repeated_for_colour_networks():
    grey = PHOTO[:, :, 0]
    for image in (grey, grey[:, :, None]):
        result = Preprocessor(channels=3)(image)
        np.testing.assert_array_equal(result, np.stack([grey] * 3).astype(np.float32)[None])


def test_colours_turn_grey_for_grey_networks():
    result = from_normalization(imageSize=[70, 90, 1])(PHOTO)
    np.testing.assert_allclose(result[0, 0], rgb_to_grey(PHOTO.astype(float)), rtol=1e-6)


@pytest.mark.parametrize("key", ["colorOrder", "colour_order"])
def test_bgr_networks(key):
    preprocessor = from_normalization(averageImage=MEAN, **{key: "bgr"})
    np.testing.assert_array_equal(preprocessor(PHOTO), chw(PHOTO[:, :, ::-1] - MEAN))
    assert "colour_order='BGR'" in repr(preprocessor)


# ---- inputs


@pytest.mark.parametrize("meta", [None, {}, {"normalization": []}, {"normalization": {}}, {"classes": {}}])
def test_without_normalization_images_stay_as_they_are(meta):
    preprocessor = Preprocessor.from_meta(meta)
    np.testing.assert_array_equal(preprocessor(PHOTO), chw(PHOTO.astype(np.float32)))
    assert preprocessor(PHOTO[:, :, 0]).shape == (1, 1, 70, 90)
    assert repr(preprocessor) == "Preprocessor()"


def test_scale_comes_last():
    result = Preprocessor(average_image=55, scale=0.5)(np.full((2, 2), 255.0))
    assert result.tolist() == [[[[100, 100]] * 2]] and result.dtype == np.float32
    assert np.array_equal(Preprocessor(scale=1 / 255)(PHOTO), (chw(PHOTO) / 255).astype(np.float32))


def test_files_and_lists(tmp_path):
    preprocessor = Preprocessor((32, 32), channels=3)
    write_image(tmp_path / "a.png", PHOTO)
    write_image(tmp_path / "b.png", PHOTO[:, :50, 0])
    alone = preprocessor(tmp_path / "a.png")
    np.testing.assert_array_equal(alone, preprocessor(PHOTO))
    batch = preprocessor([str(tmp_path / "a.png"), PHOTO, tmp_path / "b.png"])
    assert batch.shape == (3, 3, 32, 32)
    np.testing.assert_array_equal(batch[1], alone[0])
    np.testing.assert_array_equal(batch[2], preprocessor(PHOTO[:, :50, 0])[0])
    np.testing.assert_array_equal(preprocessor(Image.fromarray(PHOTO)), alone)
    assert preprocessor((PHOTO, PHOTO)).shape == (2, 3, 32, 32)


def test_images_that_do_not_fit_are_refused(tmp_path):
    with pytest.raises(
        ShapeError, match=r"3 channels, \(H, W, 3\)\. Received: image of shape \(3, 70, 90\) uint8"
    ):
        Preprocessor(channels=3)(PHOTO.transpose(2, 0, 1))
    with pytest.raises(
        ShapeError, match=r"batches are lists of images\. Received: image of shape \(1, 70, 90, 3\)"
    ):
        Preprocessor()(PHOTO[None])
    with pytest.raises(ShapeError, match=r"shape \(0, 3\)"):
        Preprocessor()(np.zeros((0, 3)))
    with pytest.raises(DTypeError, match=r"Received: image of shape \(2, 2\) bool"):
        Preprocessor()(np.zeros((2, 2), bool))
    with pytest.raises(ShapeError, match=r"image 0 \(C, H, W\) = \(3, 70, 90\), image 1 \(3, 69, 90\)"):
        Preprocessor()([PHOTO, PHOTO[1:]])
    with pytest.raises(ShapeError, match="no images"):
        Preprocessor()([])
    write_image(tmp_path / "grey.png", PHOTO[:, :, 0])
    with pytest.raises(ShapeError, match=r"4 channels.*grey\.png of shape \(70, 90\) uint8"):
        Preprocessor(channels=4)(tmp_path / "grey.png")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": (224, 0)}, r"image_size takes whole numbers of at least 1\. Received: \(224, 0\)"),
        ({"image_size": (224.5, 3)}, "whole numbers"),
        ({"image_size": (1, 2, 3)}, "1 or 2 numbers"),
        ({"image_size": np.array([np.nan, 3])}, "whole numbers"),
        ({"border": -1}, "border takes whole numbers of at least 0"),
        ({"crop_size": 0}, r"fractions, 0 to 1\. Received: \(0, 0\)"),
        ({"crop_size": 1.5}, "fractions"),
        ({"crop_size": 0.5, "border": 3}, "give one"),
        ({"channels": 0}, "channels"),
        ({"channels": float("nan")}, "channels"),
        ({"interpolation": "spline"}, "Received: 'spline'"),
        ({"colour_order": "hsv"}, "Received: 'HSV'"),
        ({"average_image": "mean.png"}, "no image"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        Preprocessor(**options)


def test_repr_and_replace():
    average = np.ones((8, 8, 3)) * MEAN
    preprocessor = Preprocessor((8, 8), average_image=average, crop_size=0.875, keep_aspect=False)
    assert repr(preprocessor) == (
        "Preprocessor(image_size=(8, 8), channels=3, crop_size=(0.875, 0.875), keep_aspect=False, "
        "average_image=<8x8x3, mean [123.68 116.779 103.939]>)"
    )
    larger = replace(preprocessor, image_size=(16, 16), crop_size=None)
    np.testing.assert_allclose(larger(PHOTO), replace(larger, average_image=MEAN)(PHOTO), atol=1e-4)
