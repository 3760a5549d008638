"""ImageReader: what it reads, cuts out, changes and refuses."""

import io
import os
import struct
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from dagnn.data import ImageReader
from dagnn.data.augment import Crop, result_size
from dagnn.errors import DagnnError, DataError, FileFormatError, OptionError
from dagnn.images import read_image, resize, rgb_to_grey, write_image
from dagnn.preprocess import Preprocessor

EVERYTHING = {
    "resize": (24, 20),
    "crop_size": (0.4, 0.9),
    "crop_anisotropy": (0.7, 1.5),
    "crop_location": "random",
    "flip": True,
    "subtract_average": (120, 110, 100),
    "brightness": np.arange(9.0).reshape(3, 3),
    "contrast": 0.4,
    "saturation": 0.4,
}


def rng(seed=0):
    return np.random.default_rng(seed)


def chw(pixels):
    pixels = pixels if pixels.ndim == 3 else np.stack([pixels] * 3, axis=2)
    return pixels.transpose(2, 0, 1).astype(np.float32)


def photo(rows, columns, seed=0):
    """Smooth colours with some noise."""
    y, x = np.mgrid[:rows, :columns] / 20
    waves = [np.sin(y + k) + np.cos(x * (1 + k / 3)) for k in range(3)]
    noise = rng(seed).normal(0, 5, (rows, columns, 3))
    return np.clip(128 + 50 * np.stack(waves, axis=2) + noise, 0, 255).astype(np.uint8)


@pytest.fixture
def png(tmp_path):
    """A colour image of 60 x 90 pixels."""
    write_image(tmp_path / "a.png", photo(60, 90))
    return tmp_path / "a.png"


@pytest.fixture
def files(tmp_path):
    """Files of many sizes."""
    paths = [tmp_path / f"{k}.png" for k in range(9)]
    for k, path in enumerate(paths):
        write_image(path, photo(30 + 3 * k, 70 - 4 * k, seed=k))
    return paths


# ---- reading and resizing


def test_without_options_images_stay_as_they_are(files):
    images = ImageReader()(files)
    assert [image.dtype for image in images] == [np.float32] * len(files)
    for image, path in zip(images, files, strict=True):
        np.testing.assert_array_equal(image, chw(read_image(path)))


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "box", "lanczos3", "nearest"])
@pytest.mark.parametrize(
    ("options", "size", "box"),  # of the result, (H, W); left, top, right, bottom in 60 x 90
    [
        ({"resize": (30, 30)}, (30, 30), (15, 0, 75, 60)),
        ({"resize": (30, 30), "crop_size": 0.5}, (30, 30), (30, 15, 60, 45)),
        ({"resize": (20, 10), "crop_size": (0.5, 0.8)}, (20, 10), (33, 6, 57, 54)),
        ({"resize": (30, 30), "crop_anisotropy": 0}, (30, 30), (0, 0, 90, 60)),
        ({"resize": (30, 30), "crop_anisotropy": 0, "crop_size": 0.5}, (30, 30), (22, 15, 67, 45)),
        ({"resize": (30, 30), "crop_anisotropy": 1.5}, (30, 30), (0, 0, 90, 60)),
        ({"resize": (30, 30), "crop_anisotropy": (2, 3)}, (30, 30), (0, 7, 90, 52)),
        ({"resize": (30, 30), "crop_anisotropy": (0.5, 2)}, (30, 30), (15, 0, 75, 60)),
        ({"resize": 20}, (20, 30), (0, 0, 90, 60)),
        ({"resize": 120, "crop_size": 0.5}, (120, 180), (22, 15, 67, 45)),
        ({"crop_size": 0.5}, (60, 90), (22, 15, 67, 45)),
        ({"resize": (30, 30), "crop_location": "random", "flip": True}, (30, 30), (15, 0, 75, 60)),
    ],
)
def test_validation_cuts_out_the_centre(png, options, size, box, method):
    image = ImageReader(**options, interpolation=method)([png])[0]
    filter = {"lanczos3": "lanczos"}.get(method, method).upper()
    expected = Image.open(png).resize(size[::-1], Image.Resampling[filter], box)
    np.testing.assert_array_equal(image, chw(np.asarray(expected)))


@pytest.mark.parametrize("method", ["bilinear", "bicubic", "box"])
def test_resizing_is_matlabs_away_from_the_border(png, method):
    image = ImageReader(resize=(40, 45), crop_anisotropy=0, interpolation=method)([png])[0]
    expected = chw(resize(read_image(png).astype(np.float64), (40, 45), method))
    assert np.abs(image - expected)[:, 3:-3, 3:-3].max() <= 1


def test_it_prepares_images_as_a_preprocessor_does(png):
    options = {"crop_size": 0.875, "interpolation": "bicubic"}
    image = ImageReader(resize=(32, 32), subtract_average=(124, 117, 104), **options)([png])
    expected = Preprocessor(image_size=(32, 32), average_image=np.array([124, 117, 104]), **options)(png)
    assert np.abs(image - expected)[:, :, 3:-3, 3:-3].max() <= 1


@given(st.tuples(st.integers(1, 500), st.integers(1, 500)), st.integers(1, 300))
def test_a_number_is_the_shorter_side(image, side):
    rows, columns = result_size(image, side)
    assert min(rows, columns) == side
    assert abs(rows * image[1] - columns * image[0]) <= max(image) / 2 + 1e-6


def test_an_array_or_a_list_depends_on_the_option_alone(files):
    assert ImageReader(resize=(8, 9))(files).shape == (9, 3, 8, 9)
    assert ImageReader(resize=(8, 9), channels=1)([]).shape == (0, 1, 8, 9)
    images = ImageReader(resize=8)([files[0]] * 2)
    assert isinstance(images, list) and images[0].shape == images[1].shape
    assert ImageReader(resize=8)([]) == []
    assert ImageReader(resize=(8, 9))(iter([str(files[0])])).shape == (1, 3, 8, 9)


# ---- kinds of files


@pytest.mark.parametrize(
    "name", ["L.png", "1.png", "P.png", "P.gif", "RGBA.png", "LA.png", "CMYK.jpg", "L.jpg"]
)
def test_all_kinds_of_pixels_are_read(tmp_path, name):
    path = tmp_path / name
    picture = Image.fromarray(photo(20, 30))
    if "A" in name:
        picture.putalpha(Image.fromarray(photo(20, 30)[:, :, 1]))
    picture.convert(name[:-4]).save(path)
    expected = chw(read_image(path))
    np.testing.assert_array_equal(ImageReader()([path])[0], expected)
    grey = ImageReader(channels=1)([path])[0]
    assert grey.shape == (1, 20, 30)
    assert np.abs(grey[0] - rgb_to_grey(expected.transpose(1, 2, 0).astype(np.float64))).max() <= 1


def test_16_bits(tmp_path):
    Image.fromarray(np.array([[0, 257, 65535]], np.uint16)).save(tmp_path / "a.png")
    assert ImageReader(channels=1)([tmp_path / "a.png"])[0].tolist() == [[[0, 1, 255]]]


@pytest.mark.parametrize("transparency", [{"transparency": (0, 0, 0)}, {}])
def test_a_transparent_colour_shows_white(tmp_path, transparency):
    Image.new("RGB", (3, 2)).save(tmp_path / "a.png", **transparency)
    assert np.unique(ImageReader()([tmp_path / "a.png"])) == (255 if transparency else 0)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("ending", ["png", "jpg"])
def test_images_are_turned_as_exif_says(tmp_path, orientation, ending):
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a.{ending}"
    Image.fromarray(photo(200, 300)).save(path, exif=exif, quality=95)
    upright = read_image(path)
    np.testing.assert_array_equal(ImageReader()([path])[0], chw(upright))
    small = ImageReader(resize=(10, 25), crop_anisotropy=0)([path])[0]  # a JPEG is decoded at 1/4
    expected = Image.fromarray(upright).resize((25, 10), Image.Resampling.BILINEAR)
    assert np.abs(small - chw(np.asarray(expected))).max() <= 3


def test_damaged_exif_does_no_harm(tmp_path):
    Image.fromarray(photo(20, 30)).save(tmp_path / "a.png", exif=b"Exif\0\0MM\0*\xff\xff\xff\xff")
    np.testing.assert_array_equal(ImageReader()([tmp_path / "a.png"])[0], chw(photo(20, 30)))


@pytest.mark.parametrize("channels", [3, 1])
@pytest.mark.parametrize(("size", "smaller"), [((40, 60), True), ((101, 149), False)])
def test_large_jpegs_are_decoded_smaller_where_it_does_not_show(tmp_path, channels, size, smaller):
    Image.fromarray(photo(403, 599)).save(tmp_path / "a.jpg", quality=90)
    image = ImageReader(resize=size, crop_anisotropy=0, crop_size=0.5, channels=channels)(
        [tmp_path / "a.jpg"]
    )
    top, left, height, width = Crop((0.5, 0.5), (0, 0)).box((403, 599), size)
    whole = Image.open(tmp_path / "a.jpg").convert("RGB" if channels == 3 else "L")
    box = (left, top, left + width, top + height)
    expected = np.asarray(whole.resize(size[::-1], Image.Resampling.BILINEAR, box)).reshape(*size, -1)
    error = np.abs(image[0] - expected.transpose(2, 0, 1))
    assert error.max() <= 4 and error.mean() < 1
    assert smaller or error.max() <= (channels == 1)


# ---- random changes


@pytest.mark.parametrize("num_threads", [2, 5, None])
def test_threads_change_nothing(files, num_threads):
    one = ImageReader(**EVERYTHING, num_threads=1)(files, rng())
    assert one.dtype == np.float32 and one.flags.c_contiguous
    np.testing.assert_array_equal(ImageReader(**EVERYTHING, num_threads=num_threads)(files, rng()), one)
    options = EVERYTHING | {"resize": 20}
    images = ImageReader(**options, num_threads=num_threads)(files, rng())
    for image, expected in zip(images, ImageReader(**options, num_threads=1)(files, rng()), strict=True):
        np.testing.assert_array_equal(image, expected)


def test_changes_follow_from_the_random_numbers(files):
    reader = ImageReader(**EVERYTHING)
    first = reader(files, rng(1))
    np.testing.assert_array_equal(reader(files, rng(1)), first)
    np.testing.assert_array_equal(replace(reader, num_threads=1)(files, rng(1)), first)
    assert not any(np.array_equal(a, b) for a, b in zip(reader(files, rng(2)), first, strict=True))
    generator = rng(1)
    assert not np.array_equal(reader(files, generator), reader(files, generator))
    np.testing.assert_array_equal(reader(files), reader(files))
    same = reader([files[0]] * 2, rng())
    assert not np.array_equal(same[0], same[1])


# ---- errors


def damaged():
    def encoded(form, mode="RGB"):
        buffer = io.BytesIO()
        noise = Image.fromarray(rng().integers(0, 256, (80, 80, 3)).astype(np.uint8))
        noise.convert(mode).save(buffer, form)
        return buffer.getvalue()

    jpeg, png = encoded("jpeg"), encoded("png")
    return {
        "text.png": b"no image at all",
        "program.jpg": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n",
        "empty.png": b"",
        "cut.jpg": jpeg[: len(jpeg) // 2],
        "head.jpg": jpeg[:20],
        "cut.png": png[: len(png) // 2],
        "alpha.png": encoded("png", "RGBA")[:60],
        "flipped.png": png[:60] + bytes(b ^ 255 for b in png[60:90]) + png[90:],
        "huge.png": png[:16] + struct.pack(">II", 2**31 - 1, 2**31 - 1) + png[24:],
        "large.png": png[:16] + struct.pack(">II", 10000, 10000) + png[24:],
    }


@pytest.mark.parametrize("num_threads", [1, 2])
@pytest.mark.parametrize("name", damaged())
def test_damaged_files_are_named(png, tmp_path, name, num_threads):
    (tmp_path / name).write_bytes(damaged()[name])
    with pytest.raises(FileFormatError, match=rf"{name}: not an image that can be read \(.+\)"):
        ImageReader(resize=(8, 8), num_threads=num_threads)([png, tmp_path / name, png])


@pytest.mark.filterwarnings("default")
def test_bombs_are_refused_where_pillow_warns(tmp_path, png, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 60 * 90 - 1)
    with (
        pytest.warns(Image.DecompressionBombWarning),
        pytest.raises(FileFormatError, match=r"a\.png.*90 x 60 pixels are more than Pillow's limit of 5399"),
    ):
        ImageReader()([png])
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)
    assert ImageReader()([png])[0].shape == (3, 60, 90)


def test_a_thin_image_cannot_ask_for_all_memory(tmp_path):
    write_image(tmp_path / "a.png", np.zeros((1, 9000), np.uint8))
    with pytest.raises(FileFormatError, match=r"a\.png: .*9000000 x 1000 pixels are more than"):
        ImageReader(resize=1000)([tmp_path / "a.png"])


def test_missing_files_are_named(tmp_path):
    with pytest.raises(DataError, match=r"b\.png: cannot be opened \(No such file"):
        ImageReader()([tmp_path / "b.png"])
    with pytest.raises(DataError, match=r"cannot be opened \(Is a directory|Permission denied"):
        ImageReader()([tmp_path])


def test_the_first_bad_file_is_named_whatever_the_threads(tmp_path, png):
    paths = [png] * 4 + [tmp_path / "x.png", tmp_path / "y.png"] + [png] * 4
    for num_threads in (1, 2, 3):
        with pytest.raises(DataError, match=r"x\.png"):
            ImageReader(resize=(8, 8), num_threads=num_threads)(paths)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"resize": 0}, r"resize must be at least 1\. Received: 0"),
        ({"resize": (1, 2, 3)}, r"resize is a shorter side or a size \(H, W\)\. Received: \(1, 2, 3\)"),
        ({"resize": 2.5}, "whole number"),
        ({"crop_size": 0}, "crop_size takes fractions"),
        ({"crop_size": (0.5, 1.5)}, "crop_size takes fractions"),
        ({"crop_size": (0.9, 0.5)}, r"crop_size is a number or an interval \(least, most\)"),
        ({"crop_size": (0.1, 0.5, 1)}, "interval"),
        ({"crop_anisotropy": -1}, "crop_anisotropy must be at least 0"),
        ({"crop_anisotropy": (2, 1)}, "interval"),
        ({"crop_location": "left"}, "crop_location is one of center, random"),
        ({"flip": 2}, "flip is True or False"),
        ({"brightness": (1, 2)}, r"brightness is a number, 3 numbers or a 3 x 3 matrix"),
        ({"brightness": (1, 2, 3), "channels": 1}, r"brightness is a number\. Received"),
        ({"brightness": float("nan")}, "brightness takes finite numbers"),
        ({"brightness": "much"}, "brightness takes finite numbers"),
        ({"contrast": 1.5}, "contrast is at most 1"),
        ({"contrast": -0.5}, "contrast must be at least 0"),
        ({"saturation": "much"}, "saturation takes a number"),
        ({"interpolation": "lanczos2"}, "interpolation is one of bilinear, bicubic, box, lanczos3, nearest"),
        ({"channels": 4}, "channels is 3 or 1"),
        ({"num_threads": 0}, "num_threads must be at least 1"),
        ({"subtract_average": "mean"}, "subtract_average is numbers, an image or 'per-image'"),
        ({"subtract_average": [[1], [2, 3]]}, "subtract_average takes finite numbers"),
        ({"subtract_average": (1, 2)}, r"3 channels\. Received: shape \(2,\)"),
        ({"subtract_average": (1, 2, 3), "channels": 1}, r"1 channels\. Received: shape \(3,\)"),
        (
            {"subtract_average": np.ones((5, 5, 3))},
            r"only with resize=\(H, W\).* Received: shape \(5, 5, 3\)",
        ),
        ({"subtract_average": np.ones((5, 5, 4)), "resize": (5, 5)}, r"Received: shape \(5, 5, 4\)"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(OptionError, match=message):
        ImageReader(**options)


def test_memory_that_runs_out_is_no_damage(png, monkeypatch):
    def resize(*_):
        raise MemoryError

    monkeypatch.setattr(Image.Image, "resize", resize)
    with pytest.raises(MemoryError):
        ImageReader(resize=8)([png])


def test_numbers_are_no_files(png):
    """Python would open, and close, the file that has this number in the process."""
    with open(png, "rb") as file:
        with pytest.raises(OptionError, match=rf"paths is a list of files\. Received: {file.fileno()}"):
            ImageReader()([png, file.fileno()])
        os.fstat(file.fileno())


def test_one_path_is_no_list(png):
    for path in (png, str(png)):
        with pytest.raises(OptionError, match=r"paths is a list of files\. Received: '.*a\.png'"):
            ImageReader()(path)


def test_without_pillow_there_is_a_hint(png, monkeypatch):
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(DagnnError, match=r"needs Pillow: pip install 'dagnn\[images\]'"):
        ImageReader()([png])


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs fork")
def test_threads_survive_a_fork_and_end_with_the_process(png):
    code = """
import os, sys, warnings
from dagnn.data import ImageReader

warnings.simplefilter("ignore")
reader, paths = ImageReader(resize=(8, 8), num_threads=2), [sys.argv[1]] * 4
total = reader(paths).sum()
child = os.fork()
if child == 0:
    os._exit(0 if reader(paths).sum() == total else 3)
print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
"""
    result = subprocess.run(
        [sys.executable, "-c", code, str(png)], capture_output=True, text=True, timeout=60, check=True
    )
    assert result.stdout.strip() == "0"
