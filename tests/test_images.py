"""Image files, MATLAB's imresize, colour spaces, PSNR."""

import io
import struct
import sys
from math import ceil, floor
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from dagnn import images
from dagnn.errors import DagnnError, DTypeError, FileFormatError, OptionError, ShapeError
from dagnn.images import (
    psnr,
    read_image,
    resize,
    rgb_to_grey,
    rgb_to_ycbcr,
    to_uint8,
    write_image,
    ycbcr_to_rgb,
)

SET5 = Path(__file__).resolve().parents[2] / "shared" / "models" / "images" / "Set5"
rng = np.random.default_rng(0)


# ---- resizing


def kernel(method, x):
    """The methods' definitions, one number at a time."""
    x = float(x)
    if method in ("nearest", "box"):
        return float(-0.5 <= x < 0.5)
    if method == "bilinear":
        return max(1 - abs(x), 0.0)
    if method == "bicubic":
        a, x = -0.5, abs(x)
        if x <= 1:
            return (a + 2) * x**3 - (a + 3) * x**2 + 1
        return a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a if x < 2 else 0.0
    lobes = int(method[-1])
    return np.sinc(x) * np.sinc(x / lobes) if abs(x) < lobes else 0.0


def resize_line(line, out, scale, method, antialias=True):
    """The formula of `resize` for one line, pixel by pixel over a wide enough mirrored border."""
    stretch = min(scale, 1) if antialias and method != "nearest" else 1
    n, result = len(line), []
    for i in range(out):
        centre = (i + 0.5) / scale - 0.5
        reach = ceil(4 / stretch) + 1
        total = value = 0.0
        for j in range(floor(centre) - reach, floor(centre) + reach + 1):
            k = j % (2 * n)
            w = kernel(method, stretch * (centre - j))
            total += w
            value += w * line[k if k < n else 2 * n - 1 - k]
        result.append(value / total)
    return np.array(result)


@settings(max_examples=60)
@given(
    st.integers(1, 12),
    st.sampled_from([0.23, 0.31, 0.5, 0.77, 1.0, 1.3, 2.0, 3.7]),
    st.sampled_from(images.METHODS),
    st.booleans(),
)
def test_a_line_is_resized_as_the_formula_says(length, scale, method, antialias):
    line = np.random.default_rng(length).random(length)
    expected = resize_line(line, ceil(scale * length), scale, method, antialias)
    for image, shape in ((line[None], (0, slice(None))), (line[:, None], (slice(None), 0))):
        rows, columns = (1, len(expected)) if image.shape[0] == 1 else (len(expected), 1)
        result = resize(image, scale, method, antialias)
        other = resize(image, (rows, columns), method, antialias)
        np.testing.assert_allclose(result[shape], expected, rtol=1e-9, atol=1e-12)
        assert other.shape == (rows, columns)


@pytest.mark.parametrize("method", images.METHODS)
@pytest.mark.parametrize("scale", [0.37, 1, 2.5])
def test_a_flat_image_stays_flat(method, scale):
    result = resize(np.full((13, 9, 3), 0.7), scale, method)
    np.testing.assert_allclose(result, 0.7, rtol=1e-12)
    assert result.shape == (ceil(13 * scale), ceil(9 * scale), 3)


@pytest.mark.parametrize("method", images.METHODS)
def test_scale_one_changes_nothing(method):
    image = rng.random((6, 5)).astype(np.float32)
    assert np.array_equal(resize(image, 1.0, method), image)


def test_channels_and_axes_are_independent():
    image = rng.random((20, 14, 3))
    result = resize(image, (7, 31))
    assert result.shape == (7, 31, 3)
    for c in range(3):
        np.testing.assert_allclose(result[:, :, c], resize(image[:, :, c], (7, 31)), rtol=1e-12)
    np.testing.assert_allclose(
        resize(image.transpose(1, 0, 2), (31, 7)), result.transpose(1, 0, 2), rtol=1e-12
    )


def test_halving_bilinearly_weighs_one_three_three_one():
    line = np.array([[0.0, 0, 0, 8, 0, 0, 0, 0]])
    assert resize(line, (1, 4), "bilinear").tolist() == [[0, 3, 1, 0]]
    assert resize(line, (1, 4), "box").tolist() == [[0, 4, 0, 0]]
    assert resize(line, (1, 4), "bilinear", antialias=False).tolist() == [[0, 4, 0, 0]]


def test_nearest_picks_pixels():
    line = np.arange(8.0)[None]
    assert resize(line, (1, 16), "nearest").tolist() == [np.repeat(np.arange(8.0), 2).tolist()]
    assert set(resize(line, (1, 3), "nearest").ravel()) <= set(range(8))


@pytest.mark.parametrize("size", [(24, 20), (90, 101), (61, 17)])
@pytest.mark.parametrize("method", ["bilinear", "bicubic", "box"])
def test_the_inside_is_what_pillow_makes(size, method):
    image = rng.random((60, 50)).astype(np.float32)
    filters = {"bilinear": "BILINEAR", "bicubic": "BICUBIC", "box": "BOX"}
    theirs = Image.fromarray(image).resize(size[::-1], Image.Resampling[filters[method]])
    inside = tuple(
        slice(ceil(4 * max(s / n, 1)), -ceil(4 * max(s / n, 1)))
        for s, n in zip(size, image.shape, strict=True)
    )
    ours = resize(image, size, method)
    assert ours.dtype == np.float32
    close = np.isclose(ours[inside], np.asarray(theirs)[inside], atol=2e-6)
    assert close.mean() == 1 if method != "box" else close.mean() > 0.9  # boxes' borders fall on pixels: ties


def test_uint8_is_rounded_and_clipped_after_each_axis():
    image = (rng.random((9, 11, 3)) > 0.5).astype(np.uint8) * 255
    rows = np.clip(np.floor(resize(image.astype(float), (5, 11)) + 0.5), 0, 255)
    both = np.clip(np.floor(resize(rows, (5, 30)) + 0.5), 0, 255)
    assert np.array_equal(resize(image, (5, 30)), both.astype(np.uint8))
    assert resize(image, (5, 30)).dtype == np.uint8
    columns = resize(resize(image, (9, 3)), (7, 3))
    assert np.array_equal(resize(image, (7, 3)), columns), "the axis that shrinks most comes first"
    assert resize(image.astype(np.uint16) * 257, 2).max() == 65535


def test_a_missing_size_follows_from_the_other():
    image = rng.random((48, 64))
    assert resize(image, (24, None)).shape == (24, 32)
    assert resize(image, (None, 33)).shape == (25, 33)
    np.testing.assert_array_equal(resize(image, (24, None)), resize(image, 0.5))


@pytest.mark.parametrize(
    "wanted", [0, -1, float("nan"), float("inf"), (0, 4), (None, None), (3,), (3, 4, 5), "2", (2.5, 3)]
)
def test_wrong_sizes_are_refused(wanted):
    with pytest.raises(OptionError, match=r"Received: "):
        resize(np.zeros((4, 4)), wanted)


def test_wrong_images_and_methods_are_refused():
    with pytest.raises(ShapeError, match=r"\(H, W\) or \(H, W, C\)\. Received: shape \(2, 3, 4, 4\) float64"):
        resize(np.zeros((2, 3, 4, 4)), 2)
    with pytest.raises(ShapeError, match=r"shape \(0, 4\)"):
        resize(np.zeros((0, 4)), 2)
    with pytest.raises(DTypeError, match="int64"):
        resize(np.zeros((4, 4), np.int64), 2)
    with pytest.raises(OptionError, match="nearest, box, bilinear.* Received: 'spline'"):
        resize(np.zeros((4, 4)), 2, "spline")


# bicubic interpolation in the tables of Dong et al., "Image super-resolution using deep convolutional
# networks" (2014), made with a MATLAB that repeated border pixels, where later ones mirror the image
PUBLISHED = {
    2: {"baby": 37.07, "bird": 36.81, "butterfly": 27.43, "head": 34.86, "woman": 32.14},
    3: {"baby": 33.91, "bird": 32.58, "butterfly": 24.04, "head": 32.88, "woman": 28.56},
    4: {"baby": 31.78, "bird": 30.18, "butterfly": 22.10, "head": 31.59, "woman": 26.46},
}


@pytest.mark.skipif(not SET5.exists(), reason="the images are not here")
@pytest.mark.parametrize("scale", PUBLISHED)
def test_published_psnr_of_bicubic_interpolation(scale):
    for name, published in PUBLISHED[scale].items():
        luma = rgb_to_ycbcr(read_image(SET5 / f"{name}_GT.bmp"))[:, :, 0]
        high = luma[: luma.shape[0] // scale * scale, : luma.shape[1] // scale * scale]
        low = resize((high / 255).astype(np.float32), 1 / scale)
        assert abs(psnr(to_uint8(resize(low, scale)), high, border=scale) - published) < 0.01


# ---- colours


def test_ycbcr_of_known_colours():
    colours = np.array([[[0, 0, 0], [1, 1, 1], [1, 0, 0], [0, 1, 0], [0, 0, 1]]], float)
    expected = [
        [16, 128, 128],
        [235, 128, 128],
        [81.481, 90.203, 240],
        [144.553, 53.797, 34.214],
        [40.966, 240, 109.786],
    ]
    np.testing.assert_allclose(rgb_to_ycbcr(colours)[0] * 255, expected, atol=1e-9)
    assert rgb_to_ycbcr((colours * 255).astype(np.uint8))[0].tolist() == np.round(expected).tolist()
    assert rgb_to_ycbcr(colours.astype(np.float32)).dtype == np.float32


def test_ycbcr_there_and_back():
    image = rng.random((7, 5, 3))
    np.testing.assert_allclose(ycbcr_to_rgb(rgb_to_ycbcr(image)), image, atol=1e-12)
    pixels = to_uint8(image)
    back = ycbcr_to_rgb(rgb_to_ycbcr(pixels))
    assert back.dtype == np.uint8 and np.abs(back.astype(int) - pixels).max() <= 2
    assert ycbcr_to_rgb(np.ones((1, 1, 3))).max() == 1, "clipped"


def test_grey_of_colours():
    np.testing.assert_allclose(rgb_to_grey(np.eye(3)[None])[0], [0.2989, 0.5870, 0.1140], atol=5e-5)
    np.testing.assert_allclose(rgb_to_grey(np.full((1, 1, 3), 0.3)), 0.3)
    with pytest.raises(ShapeError, match=r"\(H, W, 3\)\. Received: shape \(4, 4\)"):
        rgb_to_grey(np.zeros((4, 4)))


def test_to_uint8():
    assert to_uint8(np.array([np.nan, -np.inf, np.inf, 0.5, 1 / 255, 0.7 / 255])).tolist() == [
        0,
        0,
        255,
        128,
        1,
        1,
    ]
    assert to_uint8(np.array([0, 128, 129, 65535], np.uint16)).tolist() == [0, 0, 1, 255]


def test_psnr():
    a = rng.integers(0, 256, (20, 20, 3)).astype(np.uint8)
    b = a.copy()
    assert psnr(a, b) == float("inf")
    b[0, 0] ^= 255
    assert psnr(a, b, border=1) == float("inf") and psnr(a, b) < 40
    c = rng.integers(0, 256, a.shape).astype(np.uint8)
    mse = np.mean((a.astype(float) - c) ** 2)
    assert psnr(a, c) == pytest.approx(10 * np.log10(255**2 / mse))
    assert psnr(a / 255, c / 255) == pytest.approx(psnr(a, c))
    with pytest.raises(ShapeError, match=r"border of 10 .*\(20, 20, 3\) uint8 and shape \(20, 20, 3\) uint8"):
        psnr(a, c, border=10)
    with pytest.raises(ShapeError, match=r"\(19, 20, 3\)"):
        psnr(a, c[1:])
    with pytest.raises(DTypeError, match="different ranges"):
        psnr(a, c / 255)


# ---- files


@pytest.mark.parametrize("shape", [(6, 4), (6, 4, 3)])
@pytest.mark.parametrize("ending", [".png", ".bmp", ".tif", ".PNG"])
def test_pixels_survive_a_file(tmp_path, shape, ending):
    pixels = rng.integers(0, 256, shape).astype(np.uint8)
    write_image(tmp_path / f"a{ending}", pixels)
    back = read_image(str(tmp_path / f"a{ending}"))
    assert back.dtype == np.uint8 and np.array_equal(back, pixels)
    back[:] = 0  # the array is the caller's own


def test_floats_are_written_as_0_to_1(tmp_path):
    write_image(tmp_path / "a.png", np.array([[[-1.0], [0.5], [2.0]]]))
    assert read_image(tmp_path / "a.png").tolist() == [[0, 128, 255]]
    write_image(tmp_path / "a.jpg", np.full((8, 8, 3), 0.5, np.float32))
    assert np.abs(read_image(tmp_path / "a.jpg").astype(int) - 128).max() <= 2


def test_exif_orientation_is_applied(tmp_path):
    pixels = np.zeros((2, 3, 3), np.uint8)
    pixels[0, 0] = 255
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: rotate by 90 degrees clockwise
    Image.fromarray(pixels).save(tmp_path / "a.png", exif=exif)
    image = read_image(tmp_path / "a.png")
    assert image.shape == (3, 2, 3) and image[0, 1].tolist() == [255, 255, 255] and image.sum() == 3 * 255


def test_transparency_shows_white(tmp_path):
    rgba = np.array([[[10, 20, 30, 255], [10, 20, 30, 0], [0, 100, 200, 51]]], np.uint8)
    Image.fromarray(rgba).save(tmp_path / "rgba.png")
    assert read_image(tmp_path / "rgba.png").tolist() == [[[10, 20, 30], [255, 255, 255], [204, 224, 244]]]
    Image.fromarray(np.array([[[10, 255], [10, 0]]], np.uint8)).save(tmp_path / "la.png")
    assert read_image(tmp_path / "la.png").tolist() == [[10, 255]]
    Image.fromarray(np.array([[5, 6]], np.uint8)).save(tmp_path / "l.png", transparency=5)
    assert read_image(tmp_path / "l.png").tolist() == [[255, 6]]


@pytest.mark.parametrize("transparency", [None, 1, b"\xff\x00"])
def test_palettes_are_looked_up(tmp_path, transparency):
    picture = Image.new("P", (2, 1))
    picture.putpalette([1, 2, 3, 40, 50, 60])
    picture.putpixel((1, 0), 1)
    options = {} if transparency is None else {"transparency": transparency}
    picture.save(tmp_path / "a.png", **options)
    second = [40, 50, 60] if transparency is None else [255, 255, 255]
    assert read_image(tmp_path / "a.png").tolist() == [[[1, 2, 3], second]]


def test_black_and_white_16_bits_and_cmyk(tmp_path):
    Image.new("1", (3, 2), 1).save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png").tolist() == [[255] * 3] * 2
    Image.fromarray(np.array([[0, 257, 32768, 65535]], np.uint16)).save(tmp_path / "b.png")
    assert read_image(tmp_path / "b.png").tolist() == [[0, 1, 128, 255]]
    Image.new("CMYK", (8, 8)).save(tmp_path / "c.jpg")
    assert read_image(tmp_path / "c.jpg").tolist() == [[[255] * 3] * 8] * 8


@pytest.mark.parametrize(
    ("array", "message"),
    [(np.ones((2, 2), np.float32), "floating-point"), (np.full((2, 2), 70000, np.int32), "70000 to 70000")],
)
def test_pixels_without_a_range_are_refused(tmp_path, array, message):
    Image.fromarray(array).save(tmp_path / "a.tif")
    with pytest.raises(FileFormatError, match=rf"a\.tif: .*{message}"):
        read_image(tmp_path / "a.tif")


def test_damaged_files_are_named(tmp_path):
    buffer = io.BytesIO()
    Image.fromarray(rng.integers(0, 256, (40, 40, 3)).astype(np.uint8)).save(buffer, "png")
    whole = buffer.getvalue()
    damaged = {
        "text.png": b"no image at all",
        "empty.png": b"",
        "cut.png": whole[: len(whole) // 2],
        "flipped.png": whole[:60] + bytes(b ^ 255 for b in whole[60:90]) + whole[90:],
        "huge.png": whole[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + whole[24:],
    }
    for name, data in damaged.items():
        (tmp_path / name).write_bytes(data)
        with pytest.raises(FileFormatError, match=name):
            read_image(tmp_path / name)
    with pytest.raises(FileNotFoundError):
        read_image(tmp_path / "missing.png")


def test_what_cannot_be_written_is_refused(tmp_path):
    with pytest.raises(OptionError, match=r"no image format has the ending '\.mat'.* Received: .*a\.mat"):
        write_image(tmp_path / "a.mat", np.zeros((2, 2)))
    with pytest.raises(ShapeError, match=r"1 or 3 channels\. Received: shape \(2, 2, 2\)"):
        write_image(tmp_path / "a.png", np.zeros((2, 2, 2)))
    assert not list(tmp_path.iterdir())


def test_without_pillow_there_is_a_hint(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    for call in (lambda: read_image("a.png"), lambda: write_image("a.png", np.zeros((2, 2)))):
        with pytest.raises(DagnnError, match=r"pip install 'dagnn\[images\]'") as caught:
            call()
        assert isinstance(caught.value, ImportError)
    assert resize(np.zeros((4, 4)), 2).shape == (8, 8), "only files need Pillow"
