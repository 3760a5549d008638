"""A stored network applied to an image, and the commands `dagnn run`, `convert` and `info` on .mat files."""

import numpy as np
import pytest

import dagnn
from dagnn import cli
from dagnn.images import psnr, read_image, resize, rgb_to_ycbcr, to_uint8, write_image, ycbcr_to_rgb
from dagnn.io import mat
from dagnn.run import Run
from dagnn.run import load as load_run

pytest.importorskip("PIL")


def dagnn_command(capsys, *argv):
    code = cli.main([str(arg) for arg in argv])
    return code, *capsys.readouterr()


def fails(capsys, *argv):
    code, out, err = dagnn_command(capsys, *argv)
    assert (code, out, err.count("\n")) == (1, "", 1)
    return err


def maps(pixels):
    """(H, W) or (H, W, C) as (1, C, H, W) float32."""
    return np.atleast_3d(pixels).transpose(2, 0, 1)[None].astype(np.float32)


@pytest.fixture
def grey(tmp_path):
    """The path of a grey picture."""
    pixels = np.random.default_rng(0).integers(30, 220, (12, 16)).astype(np.uint8)
    write_image(tmp_path / "grey.png", pixels)
    return tmp_path / "grey.png"


@pytest.fixture
def colour(tmp_path):
    """The path of a smooth picture in colours."""
    corners = np.array([[[200, 60, 60], [60, 180, 80]], [[70, 90, 190], [180, 170, 60]]], np.uint8)
    write_image(tmp_path / "colour.png", resize(corners, (12, 16), "bilinear"))
    return tmp_path / "colour.png"


NAMES = ["red", "green", "blue"]
AVERAGE = np.array([10.0, 20, 30], np.float32)


def classifier(**normalization):
    """Classes are the channels: their means over the image, less the average image."""
    net = dagnn.DagNN()
    net.add_layer("pool", dagnn.Pooling("avg", 4), "data", "means")
    net.add_layer("classify", dagnn.Conv((3, 3, 1, 1), has_bias=False), "means", "prediction")
    net.add_layer("softmax", dagnn.SoftMax(), "prediction", "prob")
    net.params["classify_filters"].value = 0.05 * np.eye(3, dtype=np.float32).reshape(3, 3, 1, 1)
    net.meta = {
        "normalization": {"imageSize": [4, 4, 3], "averageImage": AVERAGE, **normalization},
        "classes": {"name": ["n01", "n02", "n03"], "description": NAMES},
    }
    return net


def filter_net(value=1.0, window=1):
    """One channel to one channel."""
    net = dagnn.DagNN()
    net.add_layer("conv", dagnn.Conv((1, 1, window, window), pad=window // 2), "input", "y")
    net.params["conv_filters"].value = np.full((1, 1, window, window), value, np.float32)
    net.params["conv_biases"].value = np.zeros(1, np.float32)
    return net


def saved(net, tmp_path, name="net.mat"):
    net.save(tmp_path / name)
    return tmp_path / name


# ---- classes


@pytest.mark.parametrize("name", ["net.mat", "net.h5"])
def test_classes_are_ranked_by_name_in_per_cent(capsys, tmp_path, colour, name):
    file = saved(classifier(), tmp_path, name)
    code, out, err = dagnn_command(capsys, "run", file, colour)
    assert (code, err) == (0, "")
    x = dagnn.Preprocessor.from_meta(classifier().meta)(str(colour))
    means = 0.05 * x.mean((2, 3)).ravel()
    probabilities = np.exp(means) / np.exp(means).sum()
    order = np.argsort(-probabilities)
    assert out.splitlines() == [f"{probabilities[k]:7.1%}  {NAMES[k]}" for k in order]
    assert dagnn_command(capsys, "run", file, colour, "--top", "1")[1].splitlines() == out.splitlines()[:1]


def test_the_average_image_is_taken_off(tmp_path, colour):
    with_average = Run(classifier(), output="prediction")(colour)
    without = Run(classifier(averageImage=[]), output="prediction")(colour)
    assert np.allclose(without - with_average, 0.05 * AVERAGE.reshape(3, 1, 1), atol=1e-5)


def test_scores_before_the_softmax(capsys, tmp_path, colour):
    file = saved(classifier(), tmp_path)
    _, out, _ = dagnn_command(capsys, "run", file, colour, "--output", "prediction")
    assert "%" not in out and out.splitlines()[0].split()[1] in NAMES


def test_a_network_with_its_losses_gives_probabilities_too(tmp_path, colour):
    net = classifier()
    net.remove_layer("softmax")
    net.add_layer("loss", dagnn.Loss("softmaxlog"), ["prediction", "label"], "objective")
    net.add_layer("error", dagnn.Loss("classerror"), ["prediction", "label"], "top1err")
    run = load_run(saved(net, tmp_path))
    assert (run.input, run.output, run.probabilities) == ("data", "prediction", True)
    ranked = dict(run.ranking(run(colour)))
    softmax = Run(classifier())
    assert ranked == pytest.approx(dict(softmax.ranking(softmax(colour))), rel=1e-5)


def test_a_simplenn_of_the_first_releases(capsys, tmp_path, colour):
    bank = 0.01 * np.ones((4, 4, 3, 3), np.float32)
    bank[..., 1] = -0.01
    layers = np.empty((1, 2), object)
    layers[0, 0] = {
        "type": "conv", "filters": bank, "biases": np.zeros((1, 3), np.float32),
        "pad": np.array([[0.0]]), "stride": np.array([[1.0]]),
    }  # fmt: skip
    layers[0, 1] = {"type": "softmax"}
    names = np.empty((1, 3), object)
    names[0, :] = NAMES
    size, average = np.array([[4.0, 4, 3]]), np.full((4, 4, 3), 100, np.float32)
    mat.write(
        tmp_path / "old.mat",
        {
            "layers": layers,
            "classes": {"description": names},
            "normalization": {"imageSize": size, "averageImage": average},
        },
    )
    code, out, _ = dagnn_command(capsys, "run", tmp_path / "old.mat", colour)
    assert code == 0 and [line.split()[1] for line in out.splitlines()][2] == "green"


def test_classes_without_names(colour):
    net = classifier()
    net.meta.pop("classes")
    run = Run(net)
    assert {name for name, _ in run.ranking(run(colour), top=9)} == {"class 0", "class 1", "class 2"}
    assert list(run.ranking(run(colour), top=0)) == []


# ---- images


def test_an_image_of_an_image(capsys, tmp_path, grey):
    file = saved(filter_net(0.5), tmp_path)
    code, out, _ = dagnn_command(capsys, "run", file, grey, "--save", tmp_path / "out.png")
    assert (code, out) == (0, f"{tmp_path / 'out.png'} written: 16 x 12 pixels\n")
    assert np.array_equal(read_image(tmp_path / "out.png"), to_uint8(read_image(grey) / 510))


def test_without_a_picture_to_write_numbers_are_told(capsys, tmp_path, grey):
    _, out, _ = dagnn_command(capsys, "run", saved(filter_net(), tmp_path), grey)
    low, high = read_image(grey).min() / 255, read_image(grey).max() / 255
    assert out.startswith(f"y: 1x12x16, from {low:.4g} to {high:.4g}, mean 0.") and "--save" in out


def test_a_residual_is_taken_off(capsys, tmp_path, grey):
    file = saved(filter_net(0.25), tmp_path)
    dagnn_command(capsys, "run", file, grey, "--residual", "--save", tmp_path / "out.png")
    assert np.abs(read_image(tmp_path / "out.png") - 0.75 * read_image(grey)).max() <= 0.51


def test_a_residual_of_another_size(capsys, tmp_path, grey):
    net = filter_net(1.0, 3)
    net.replace_layer("conv", dagnn.Conv((1, 1, 3, 3)), net.layers["conv"].params)
    err = fails(capsys, "run", saved(net, tmp_path), grey, "--residual")
    assert "a residual has the image's shape (1, 12, 16). Received: y (1, 10, 14)" in err


def test_colours_stay_when_a_network_sees_brightness(tmp_path, colour):
    run = Run(filter_net())
    y = run(colour)
    pixels = read_image(colour)
    assert np.allclose(y[0], rgb_to_ycbcr(pixels / 255)[..., 0], atol=1e-6)
    assert np.abs(run.picture(y, colour).astype(int) - pixels).max() <= 1
    assert run.picture(y, pixels).shape == pixels.shape


def test_colours_are_enlarged_with_the_image(tmp_path, colour):
    net = dagnn.DagNN()
    net.add_layer("up", dagnn.ConvTranspose((1, 1, 4, 4), False, upsample=2, crop=1), "LR", "HR")
    net.add_layer("loss", dagnn.LossSmoothL1(), ["HR", "truth"], "objective")
    tent = np.array([1, 3, 3, 1], np.float32) / 4
    net.params["up_filters"].value = (tent[:, None] * tent)[None, None]
    run = load_run(saved(net, tmp_path))
    picture = run.picture(run(colour), colour)
    assert picture.shape == (24, 32, 3)
    inner = (slice(4, -4), slice(4, -4))
    assert psnr(picture[inner], resize(read_image(colour), 2)[inner]) > 40


@pytest.mark.parametrize("name", ["net.mat", "net.h5"])
@pytest.mark.parametrize("residual", [False, True])
def test_a_grey_network_that_wants_each_colour(tmp_path, colour, name, residual):
    net = filter_net(1 / 9, 3)
    net.meta["colours"] = "each"
    run = load_run(saved(net, tmp_path, name), residual=residual)
    pixels = read_image(colour)
    y = run(colour)
    assert y.shape == (3, 12, 16)
    for k in range(3):
        assert np.array_equal(y[k : k + 1], run(pixels[..., k]))
    assert np.array_equal(run.picture(y, colour), to_uint8(np.moveaxis(y, 0, -1)))
    assert run(pixels[..., 0]).shape == (1, 12, 16) and run.picture(y[:1], pixels[..., 0]).ndim == 2


def test_a_network_of_colours_gets_them_together(colour):
    net = classifier()
    net.meta["colours"] = "each"
    assert Run(net)(colour).shape == (3, 1, 1)


def test_a_grey_network_that_says_how_to_normalise_gets_grey(colour):
    net = filter_net()
    net.meta["normalization"] = {"averageImage": 0}
    run = Run(net)
    y = run(colour)
    assert y.max() > 1 and run.picture(y, colour).ndim == 2


def test_a_map_of_classes(capsys, tmp_path, colour):
    net = dagnn.DagNN()
    net.add_layer("score", dagnn.Conv((21, 3, 1, 1)), "data", "upscore")
    net.init_params(seed=3)
    net.meta["normalization"] = {"rgbMean": [120, 120, 120]}
    code, out, _ = dagnn_command(capsys, "run", saved(net, tmp_path), colour, "--save", tmp_path / "map.png")
    assert code == 0 and "16 x 12 pixels" in out
    scores = net.eval({"data": maps(read_image(colour)) - 120})["upscore"]
    assert np.array_equal(read_image(tmp_path / "map.png"), scores[0].argmax(0))


def test_more_classes_than_a_pixel_can_say(grey):
    run = Run(filter_net())
    with pytest.raises(dagnn.ShapeError, match="no image"):
        run.picture(np.zeros((1000, 4, 4)), grey)
    with pytest.raises(dagnn.ShapeError, match="no image"):
        run.picture(np.zeros(7), grey)


def test_a_scale_of_ones_own(grey):
    assert np.allclose(Run(filter_net(), scale=1.0)(grey), read_image(grey))
    run = Run(filter_net(), scale=2.0)
    assert np.array_equal(run.picture(run(grey), grey), read_image(grey))


# ---- which input, which output


def test_a_loss_of_an_unknown_class_is_left_aside(tmp_path, grey):
    net = filter_net()
    net.add_layer("loss", dagnn.Placeholder("vllab_dag_loss"), ["y", "truth"], "objective")
    run = load_run(saved(net, tmp_path))
    assert (run.input, run.output) == ("input", "y")
    assert run(grey).shape == (1, 12, 16)


def test_an_output_decides_the_input():
    net = filter_net()
    net.add_layer("other", dagnn.Sigmoid(), "z", "w")
    assert Run(net, output="w").input == "z"
    assert Run(net, input="z").output == "w"


def test_several_outputs_need_a_choice(capsys, tmp_path, grey):
    net = filter_net()
    net.add_layer("relu", dagnn.ReLU(), "y", "r")
    net.add_layer("sigmoid", dagnn.Sigmoid(), "y", "s")
    file = saved(net, tmp_path)
    assert "Several outputs: choose one with --output: r, s" in fails(capsys, "run", file, grey)
    assert dagnn_command(capsys, "run", file, grey, "--output", "s")[1].startswith("s: 1x12x16")
    assert "No variable 't'" in fails(capsys, "run", file, grey, "--output", "t")
    assert "No variable 't'" in fails(capsys, "run", file, grey, "--input", "t")


def test_what_needs_two_inputs(capsys, tmp_path, grey):
    net = dagnn.DagNN()
    net.add_layer("sum", dagnn.Sum(), ["left", "right"], "y")
    file = saved(net, tmp_path)
    assert "Nothing depends on 'left' alone; the net has the inputs right too" in fails(
        capsys, "run", file, grey
    )
    dagnn.DagNN().save(tmp_path / "empty.h5")
    assert "no inputs" in fails(capsys, "run", tmp_path / "empty.h5", grey)


def test_one_number_for_all_images(capsys, tmp_path, grey):
    net = dagnn.DagNN()
    net.add_layer("split", dagnn.Split(axis=2, sizes=(6, 6)), "x", ["a", "b"])
    net.add_layer("distance", dagnn.PDist(aggregate=True), ["a", "b"], "d")
    assert "'d' is one number for all images" in fails(capsys, "run", saved(net, tmp_path), grey)


def test_a_class_that_is_missing_is_named(capsys, tmp_path, grey):
    net = dagnn.DagNN()
    net.add_layer("up", dagnn.Placeholder("upsmpl", {"scale": 2.0}), "x", "y")
    code, _, err = dagnn_command(capsys, "run", saved(net, tmp_path), grey)
    assert code == 1 and "the class 'upsmpl' is not known. Supply it with\n" in err
    assert '    net = dagnn.load(path, layers={"upsmpl": upsmpl})\n' in err


def test_pictures_that_are_none(capsys, tmp_path):
    file = saved(filter_net(), tmp_path)
    assert "missing.png: No such file" in fails(capsys, "run", file, tmp_path / "missing.png")
    assert "not an image" in fails(capsys, "run", file, file)
    assert "not a dagnn file" in fails(capsys, "run", __file__, file)


def test_an_ending_that_is_no_picture(capsys, tmp_path, grey):
    err = fails(capsys, "run", saved(filter_net(), tmp_path), grey, "--save", tmp_path / "out.xyz")
    assert "no image format" in err


# ---- convert and info


def info(capsys, file):
    code, out, _ = dagnn_command(capsys, "info", file)
    assert code == 0
    return dict(line.split(None, 1) for line in out.splitlines()[1:])


def test_there_and_back(capsys, tmp_path, colour):
    first = saved(classifier(), tmp_path)
    code, out, err = dagnn_command(capsys, "convert", first, tmp_path / "net.h5")
    assert (code, out, err) == (0, f"{tmp_path / 'net.h5'} written: 3 layers\n", "")
    dagnn_command(capsys, "convert", tmp_path / "net.h5", tmp_path / "again.MAT")
    assert info(capsys, first)["format"] == "MATLAB 5, DagNN"
    assert info(capsys, tmp_path / "net.h5")["format"] == "dagnn HDF5"
    assert info(capsys, tmp_path / "again.MAT")["format"] == "MATLAB 5, DagNN"
    results = [load_run(tmp_path / name)(colour) for name in ("net.mat", "net.h5", "again.MAT")]
    assert all(np.array_equal(r, results[0]) for r in results)


def test_a_chain_as_simplenn(capsys, tmp_path, colour):
    file = saved(classifier(), tmp_path)
    code, _, _ = dagnn_command(capsys, "convert", file, tmp_path / "simple.mat", "--simplenn")
    assert code == 0
    assert info(capsys, tmp_path / "simple.mat")["format"] == "MATLAB 5, SimpleNN"
    ranked = dagnn_command(capsys, "run", tmp_path / "simple.mat", colour)[1]
    assert ranked == dagnn_command(capsys, "run", file, colour)[1]
    assert "writes .mat" in fails(capsys, "convert", file, tmp_path / "simple.h5", "--simplenn")
    net = classifier()
    net.add_layer("sum", dagnn.Sum(), ["prediction", "prob"], "sum")
    assert "dagnn: error:" in fails(
        capsys, "convert", saved(net, tmp_path), tmp_path / "no.mat", "--simplenn"
    )


def test_info_counts_what_is_unknown(capsys, tmp_path):
    net = classifier()
    net.add_layer("a", dagnn.Placeholder("XCorr", {"bias": 1.0}), ["prob", "z"], "a")
    net.add_layer("b", dagnn.Placeholder("XCorr"), ["a", "z"], "b")
    net.add_layer("c", dagnn.Placeholder("dagnn.MyLoss"), ["b"], "c")
    facts = info(capsys, saved(net, tmp_path))
    assert facts["unknown"] == "2 XCorr, 1 dagnn.MyLoss (supply the classes: dagnn.load(..., layers=...))"
    assert facts["layers"] == "6: 2 XCorr, 1 Pooling, 1 Conv, 1 SoftMax, 1 dagnn.MyLoss"
    assert facts["inputs"] == "data, z" and facts["meta"] == "normalization, classes"


def test_ycbcr_is_undone_exactly_enough():
    """What `picture` relies on."""
    pixels = np.random.default_rng(1).random((4, 4, 3))
    assert np.allclose(ycbcr_to_rgb(rgb_to_ycbcr(pixels)), pixels)
