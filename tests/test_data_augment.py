"""The random changes of an ImageReader: crops, flips, colours; and the average."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dagnn.data import ImageReader
from dagnn.data.augment import Crop, throw
from dagnn.images import resize, write_image


def rng(seed=0):
    return np.random.default_rng(seed)


PIXELS = rng().integers(0, 256, (60, 90, 3)).astype(np.uint8)


@pytest.fixture
def png(tmp_path):
    write_image(tmp_path / "a.png", PIXELS)
    return tmp_path / "a.png"


# ---- crops and flips


def test_an_option_leaves_what_others_do(png):
    """Images are those without flips, half of them mirrored; the same crops with other colours."""
    options = {"resize": (24, 20), "crop_size": (0.4, 0.9), "crop_anisotropy": (0.7, 1.5)}
    options |= {"crop_location": "random", "brightness": 9}
    straight, flipped = (ImageReader(**options, flip=flip)([png] * 400, rng()) for flip in (False, True))
    mirrored = [np.array_equal(a, b[:, :, ::-1]) for a, b in zip(straight, flipped, strict=True)]
    kept = [np.array_equal(a, b) for a, b in zip(straight, flipped, strict=True)]
    assert all(np.array(mirrored) ^ np.array(kept)) and 150 < sum(mirrored) < 250
    stretched = ImageReader(**options, contrast=0.9)([png] * 400, rng())
    np.testing.assert_allclose(stretched.mean(axis=(2, 3)), straight.mean(axis=(2, 3)), rtol=1e-4)


def test_crops_come_from_everywhere(tmp_path):
    rows, columns = np.mgrid[:64, :48].astype(np.uint8)
    write_image(tmp_path / "a.png", np.stack([rows, columns, rows], axis=2))
    reader = ImageReader(resize=(12, 12), crop_size=0.25, crop_location="random")
    corners = reader([tmp_path / "a.png"] * 2000, rng())[:, :2, 0, 0]
    for places, last in ((corners[:, 0], 52), (corners[:, 1], 36)):
        counts = np.bincount(places.astype(int), minlength=last + 1)
        assert len(counts) == last + 1 and counts.min() > 0
        expected = 2000 / (last + 1)
        assert ((counts - expected) ** 2 / expected).sum() < 2 * last  # chi squared
    assert abs(np.corrcoef(corners.T)[0, 1]) < 0.1


side = st.integers(1, 400)
fraction = st.floats(0.01, 1)
ratio = st.floats(0.1, 10)


@given(
    st.tuples(side, side),
    st.tuples(side, side),
    st.tuples(fraction, fraction).map(sorted),
    st.tuples(ratio, ratio).map(sorted),
    st.integers(0, 99),
)
def test_crops_lie_in_the_image_and_have_the_shape_asked_for(image, result, size, anisotropy, seed):
    crop = Crop(tuple(size), tuple(anisotropy), "random")
    for dice in (None, *throw(rng(seed), 3)):
        top, left, height, width = crop.box(image, result, dice)
        assert top >= 0 and left >= 0 and height >= 1 and width >= 1
        assert top + height <= image[0] and left + width <= image[1]
        filled = max(height / image[0], width / image[1])
        assert size[0] - 1 / min(image) <= filled <= size[1] + 1 / min(image)
        wanted = result[1] / result[0]
        assert (width - 0.51) / (height + 0.51) <= wanted * anisotropy[1] or height == 1 or width == 1
        assert (width + 0.51) / (height - 0.51) >= wanted * anisotropy[0] or height == 1 or width == 1


def test_areas_are_uniform_and_so_are_logarithms_of_ratios():
    crop = Crop((0.2, 1.0), (0.5, 2.0), "random")
    boxes = np.array([crop.box((10000, 10000), (10, 10), dice) for dice in throw(rng(), 4000)], float)
    heights, widths = boxes[:, 2], boxes[:, 3]
    ratios = np.log2(widths / heights)
    shares = (np.maximum(heights, widths) / 10000) ** 2
    for values, least, most in ((ratios, -1, 1), (shares, 0.04, 1)):
        counts, _ = np.histogram(values, 20, (least - 1e-3, most + 1e-3))
        assert counts.sum() == 4000 and np.abs(counts - 200).max() < 60


# ---- colours


def pair(path, n=300, **options):
    """The same images, random crops of `path`, without and with changes of colour."""
    common = {"resize": (16, 16), "crop_size": 0.5, "crop_location": "random", "flip": True}
    plain = ImageReader(**common)([path] * n, rng())
    return plain, ImageReader(**common, **options)([path] * n, rng())


@pytest.mark.parametrize("brightness", [0, (0, 0, 0), np.zeros((3, 3))])
def test_no_strength_no_change(png, brightness):
    plain, changed = pair(png, 9, brightness=brightness, contrast=0, saturation=0)
    np.testing.assert_array_equal(plain, changed)


def test_without_random_numbers_colours_stay(png):
    options = {"resize": (16, 16), "brightness": 9, "contrast": 1, "saturation": 1}
    np.testing.assert_array_equal(ImageReader(**options)([png]), ImageReader(resize=(16, 16))([png]))


@pytest.mark.parametrize(
    ("brightness", "matrix"),
    [
        (5, 5 * np.eye(3)),
        ((1, 2, 3), np.diag([1, 2, 3])),
        ([[1, 2, 3], [0, 4, 0], [5, 0, 6]], [[1, 2, 3], [0, 4, 0], [5, 0, 6]]),
    ],
)
def test_brightness_adds_a_colour(png, brightness, matrix):
    plain, changed = pair(png, 1000, brightness=brightness)
    shifts = changed - plain
    assert np.ptp(shifts, axis=(2, 3)).max() < 1e-3
    covariance = np.array(matrix) @ np.transpose(matrix)
    np.testing.assert_allclose(np.cov(shifts[:, :, 0, 0].T), covariance, atol=0.15 * covariance.max())
    assert np.abs(shifts.mean(axis=(0, 2, 3))).max() < 0.1 * np.sqrt(covariance.max())


def factors(plain, changed):
    """The number that each image's deviations were multiplied with, and what is left to explain."""
    factor = (plain * changed).sum(axis=(1, 2, 3)) / (plain**2).sum(axis=(1, 2, 3))
    return factor, np.abs(changed - factor[:, None, None, None] * plain).max()


def test_contrast_stretches_each_channel_about_its_mean(png):
    plain, changed = pair(png, contrast=0.4)
    means = plain.mean(axis=(2, 3), keepdims=True)
    np.testing.assert_allclose(changed.mean(axis=(2, 3), keepdims=True), means, rtol=1e-4)
    factor, error = factors(plain - means, changed - means)
    assert error < 1e-2 and 0.6 <= factor.min() < 0.65 and 1.35 < factor.max() <= 1.4


def test_saturation_stretches_each_pixel_about_its_mean(png):
    plain, changed = pair(png, saturation=0.3)
    greys = plain.mean(axis=1, keepdims=True)
    np.testing.assert_allclose(changed.mean(axis=1, keepdims=True), greys, rtol=1e-4)
    factor, error = factors(plain - greys, changed - greys)
    assert error < 1e-2 and 0.7 <= factor.min() < 0.75 and 1.25 < factor.max() <= 1.3


def test_the_average_takes_no_part_in_contrast_but_in_saturation(png):
    """As in MatConvNet: what is left of a colour after the subtraction is what turns more or less grey."""
    average = np.array([90, 120, 150], np.float32)
    plain, changed = pair(png, 50, contrast=0.5)
    _, shifted = pair(png, 50, contrast=0.5, subtract_average=average)
    np.testing.assert_allclose(shifted + average[:, None, None], changed, atol=1e-3)
    _, shifted = pair(png, 50, saturation=0.5, subtract_average=average)
    left = plain - average[:, None, None]
    greys = left.mean(axis=1, keepdims=True)
    factor, error = factors(left - greys, shifted - greys)
    assert error < 1e-2 and 0.5 <= factor.min() < factor.max() <= 1.5


def test_grey_has_no_saturation(tmp_path):
    write_image(tmp_path / "a.png", PIXELS[:, :, 0])
    plain, changed = pair(tmp_path / "a.png", 9, saturation=1)
    np.testing.assert_allclose(plain, changed, atol=1e-3)
    options = {"channels": 1, "contrast": 1, "brightness": 10, "saturation": 1}
    assert ImageReader(**options)([tmp_path / "a.png"], rng())[0].shape == (1, 60, 90)


# ---- the average


def test_averages_of_every_form(png):
    pixels = PIXELS.transpose(2, 0, 1).astype(np.float32)
    colours = np.array([120.5, 110, 100], np.float32)
    image = rng().random((60, 90, 3)).astype(np.float32) * 200
    for average, expected in [
        (7, pixels - 7),
        (colours, pixels - colours[:, None, None]),
        (colours.reshape(1, 1, 3).tolist(), pixels - colours[:, None, None]),
        (image, pixels - image.transpose(2, 0, 1)),
        (image.transpose(2, 0, 1), pixels - image.transpose(2, 0, 1)),
        (image[:, :, 0], pixels - image[:, :, 0]),
        ("per-image", pixels - pixels.mean(axis=(1, 2), dtype=np.float64, keepdims=True)),
    ]:
        reader = ImageReader(resize=(60, 90), subtract_average=average)
        for same in (reader, replace(reader)):
            np.testing.assert_allclose(same([png])[0], expected, atol=1e-3)


def test_average_of_another_size_is_resized(png):
    average = rng().random((30, 45, 3)) * 200
    result = ImageReader(resize=(60, 90), subtract_average=average)([png])[0]
    expected = (PIXELS - resize(average, (60, 90))).transpose(2, 0, 1)
    np.testing.assert_allclose(result, expected, atol=1e-3)
