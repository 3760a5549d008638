"""Published MatConvNet networks against outputs of an independent implementation.

The files are third-party data, kept beside the checkout, not in it; without them these tests are skipped.
"""

from dataclasses import dataclass
from pathlib import Path

import matlab
import numpy as np
import pytest

import dagnn
from dagnn.images import psnr, read_image, resize, rgb_to_ycbcr, to_uint8, ycbcr_to_rgb

MODELS = Path(__file__).parents[2] / "shared" / "models"
pytestmark = pytest.mark.skipif(not MODELS.is_dir(), reason="the folder of third-party networks is not here")
NOT_NETWORKS = ("not-a-network", "remote-sensing-imdb")
TOLERANCE = 2e-4  # of the reference's range


def reference(name):
    return np.load(MODELS / "reference" / f"{name}.npz")


def maps(image):
    """H x W or H x W x C as (1, C, H, W) float32."""
    return np.ascontiguousarray(np.atleast_3d(image).transpose(2, 0, 1)[None], np.float32)


def load(name, layers=None):
    net = dagnn.load(MODELS / f"{name}.mat", layers)
    net.mode = "test"
    return net


def agrees(ours, image):
    want = maps(image)
    assert ours.shape == want.shape
    assert np.abs(ours - want).max() < TOLERANCE * (want.max() - want.min())


def test_dcfnet():
    data = reference("dcfnet_butterfly125")
    net = load("dcfnet")
    agrees(net.eval({"x0": maps(data["x"])})["x4"], data["y"])
    assert net.meta["arch"] == "DCFNet" and net.meta["normalization"]["imageSize"].tolist() == [125, 125, 3]


def test_cfnet_runs_the_part_it_knows():
    data = reference("cfnet_br1_out")
    net = load("cfnet-conv1")
    agrees(net.eval({"exemplar": maps(data["x"])}, outputs="br1_out")["br1_out"], data["conv1"])
    assert net.layers["br1_conv1"].params == net.layers["br2_conv1"].params
    assert set(net.meta["siblings"]) == {"state", "stats"}
    assert len(net.meta["siblings"]["stats"]["train"]) == 75


def test_cfnet_says_which_class_it_lacks():
    net = load("cfnet-conv1")
    given = {name: maps(reference("cfnet_br1_out")["x"]) for name in ("exemplar", "instance")}
    with pytest.raises(dagnn.PlaceholderError, match=r"(?s)layers=\{.*MulConst"):
        net.eval(given, outputs=[n for n in net.vars if "tmpl" in n or "join" in n][:1] or None)


def test_remote_sensing_makes_90_errors():
    data = reference("remote_simplenn_original_e100_val")
    from dagnn.io import mat

    images = mat.read(MODELS / "remote-sensing-imdb.mat")["images"]
    x = np.ascontiguousarray(images["data"].transpose(3, 2, 0, 1))[data["idx"]]
    labels = np.ravel(images["label"])[data["idx"]].astype(int) - 1
    net = load("remote-sensing-net-epoch-100")
    out = net.eval({"x0": x, "label": labels}, keep="x7")
    scores = net.vars["x7"].value[:, :, 0, 0]
    assert np.abs(scores - data["scores"]).max() < TOLERANCE * np.ptp(data["scores"])
    assert (scores.argmax(1) != labels).sum() == 90
    assert float(out["x8"]) == pytest.approx(0.117720, abs=1e-5)
    assert net.meta["classes"]["name"] == ["town", "cropland"]
    assert net.meta["siblings"]["stats"]["val"][-1]["top1err"] == pytest.approx(0.05)


@dataclass
class Upsample(dagnn.Layer):
    """Repeat every pixel twice, down and across."""

    def forward(self, ctx, inputs, params):
        return [inputs[0].repeat(2, axis=2).repeat(2, axis=3)]

    def output_shapes(self, input_shapes):
        n, c, h, w = input_shapes[0]
        return [(n, c, 2 * h, 2 * w)]


@dataclass
class CombineChannels(dagnn.Layer):
    """A weighted sum of the channels, through a sigmoid."""

    param_specs = (dagnn.ParamSpec("filters"), dagnn.ParamSpec("biases"))

    def forward(self, ctx, inputs, params):
        (x,), (w, b) = inputs, params
        y = (x * w.reshape(1, -1, 1, 1)).sum(1, keepdims=True) + b.reshape(1, 1, 1, 1)
        return [ctx.backend.sigmoid(y)]


def test_mscnn_with_its_custom_layers():
    data = reference("mscnn_cl_canyon256")
    net = load("mscnn-dehazing-coarse", {"upsmpl": Upsample, "chnLinComb": CombineChannels})
    agrees(net.eval({"x0": maps(data["x"])})["x15"], data["t"])


def test_an_options_struct_is_refused():
    with pytest.raises(dagnn.FileFormatError, match="not a network but a struct of options .* scales, LRL"):
        dagnn.load(MODELS / "not-a-network.mat")
    with pytest.raises(dagnn.FileFormatError, match="image database"):
        dagnn.load(MODELS / "remote-sensing-imdb.mat")


def test_dncnn_denoises_set12():
    data = reference("dncnn_s25_set12_01-04")
    net = load("dncnn-sigma25")
    quality = []
    for k in range(1, 13):
        clean = read_image(MODELS / "images" / "Set12" / f"{k:02}.png")
        noise = 25 / 255 * np.random.RandomState(0).randn(*clean.shape)
        noisy = (clean / 255 + noise).astype(np.float32)
        if f"in_{k:02}" in data:
            noisy = data[f"in_{k:02}"]
        denoised = maps(noisy) - net.eval({"x0": maps(noisy)})["x33"]
        if f"out_{k:02}" in data:
            agrees(denoised, data[f"out_{k:02}"])
        quality.append(psnr(to_uint8(denoised[0, 0]), clean))
    assert np.mean(quality) == pytest.approx(30.43, abs=0.01)


def test_lapsrn_doubles_set5():
    net = load("lapsrn-x2")
    quality = []
    for path in sorted((MODELS / "images" / "Set5").glob("*.bmp")):
        image = read_image(path)
        image = image[: image.shape[0] // 2 * 2, : image.shape[1] // 2 * 2]
        small = rgb_to_ycbcr(resize(image / 255, 0.5))
        large = resize(small, 2)  # brightness comes from the network, colour from here
        out = net.eval({"LR": maps(small[..., 0])}, outputs="level1_output")
        large[..., 0] = out["level1_output"][0, 0]
        doubled = to_uint8(ycbcr_to_rgb(large))
        quality.append(psnr(*(rgb_to_ycbcr(i / 255)[..., 0] for i in (doubled, image)), border=2))
    assert np.mean(quality) == pytest.approx(37.52, abs=0.02)


NETWORKS = [path.stem for path in sorted(MODELS.glob("*.mat")) if path.stem not in NOT_NETWORKS]


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.parametrize("ending", [".mat", ".h5"])
def test_round_trips_are_exact(name, ending, tmp_path):
    net = dagnn.load(MODELS / f"{name}.mat")
    net.save(tmp_path / f"net{ending}")
    matlab.assert_same_net(dagnn.load(tmp_path / f"net{ending}"), net)
