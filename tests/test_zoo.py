"""The zoo's networks: as many parameters and as large outputs as published, and they run."""

import subprocess
import sys
from math import prod

import numpy as np
import pytest

import dagnn
from dagnn import zoo
from dagnn.errors import OptionError


def count(net):
    """How many numbers training finds; the moments of batch normalisation are not among them."""
    return sum(count_of(node.layer) for node in net.layers.values())


def count_of(layer):
    match layer:
        case dagnn.Conv(size=size, has_bias=has_bias):
            return prod(size) + has_bias * size[0]
        case dagnn.ConvTranspose(size=size, num_groups=groups, has_bias=has_bias):
            return prod(size) + has_bias * size[1] * groups
        case dagnn.BatchNorm(num_channels=channels):
            return 2 * channels
    assert not layer.params
    return 0


def filters_and_biases(*sizes):
    """Of filter banks (K, C, h, w), from a paper's table of layers."""
    return sum(prod(size) + size[0] for size in sizes)


FC_TAIL = ((4096, 4096, 1, 1), (1000, 4096, 1, 1))
# Chatfield et al. 2014, table 1; -M and -S differ in strides only
VGG_F = (64, 3, 11, 11), (256, 64, 5, 5), *[(256, 256, 3, 3)] * 3, (4096, 256, 6, 6), *FC_TAIL
VGG_M = (96, 3, 7, 7), (256, 96, 5, 5), (512, 256, 3, 3), *[(512, 512, 3, 3)] * 2, (4096, 512, 6, 6), *FC_TAIL
# Lin et al. 2013 with the sizes of the authors' CIFAR-10 net
NIN = (
    *((192, 3, 5, 5), (160, 192, 1, 1), (96, 160, 1, 1)),
    *((192, 96, 5, 5), (192, 192, 1, 1), (192, 192, 1, 1)),
    *((192, 192, 3, 3), (192, 192, 1, 1), (10, 192, 1, 1)),
)

GREY, SMALL, LARGE = (2, 1, 28, 28), (2, 3, 32, 32), (2, 3, 224, 224)

# builder, options, number of parameters, shape of the images
CLASSIFIERS = [
    ("lenet", {}, 431_080, GREY),  # Caffe's LeNet
    ("lenet", {"batch_norm": True}, 431_080 + 2 * (20 + 50 + 500), GREY),
    ("cifar_quick", {}, 145_578, SMALL),  # Caffe's cifar10_quick
    ("cifar_nin", {}, filters_and_biases(*NIN), SMALL),
    ("alexnet", {}, 60_965_224, (2, 3, 227, 227)),  # Caffe's AlexNet
    ("vgg_f", {}, filters_and_biases(*VGG_F), LARGE),
    ("vgg_m", {}, filters_and_biases(*VGG_M), LARGE),
    ("vgg_s", {}, filters_and_biases(*VGG_M), LARGE),
    ("vgg_vd_16", {}, 138_357_544, LARGE),  # torchvision's vgg16, and below vgg16_bn, vgg19, vgg19_bn;
    ("vgg_vd_19", {}, 143_667_240, LARGE),  # these normalise convolutions only, MatConvNet fc6 and fc7 too
    ("vgg_vd_16", {"batch_norm": True}, 138_365_992 + 2 * (4096 + 4096), LARGE),
    ("vgg_vd_19", {"batch_norm": True}, 143_678_248 + 2 * (4096 + 4096), LARGE),
    ("googlenet", {}, 6_998_552, LARGE),  # Caffe's bvlc_googlenet without auxiliary classifiers
    ("googlenet", {"auxiliary": True}, 13_378_280, LARGE),  # and with them
    ("resnet_50", {}, 25_557_032, LARGE),  # torchvision
    ("resnet_101", {}, 44_549_160, LARGE),
    ("resnet_152", {}, 60_192_808, LARGE),
    ("spatial_transformer", {}, 331_378, (2, 1, 60, 60)),
]


@pytest.mark.parametrize(("name", "options", "number", "images"), CLASSIFIERS)
def test_classifiers_are_as_published(name, options, number, images):
    net = getattr(zoo, name)(**options)
    assert count(net) == number
    size = net.meta["normalization"]["imageSize"]
    assert (size[2], *size[:2]) == images[1:]
    classes = 10 if number < 1e6 else 1000
    shapes = net.var_shapes({"input": images, "label": (2,)})
    assert set(shapes) == set(net.vars)
    assert shapes["prediction"] == (2, classes, 1, 1)
    assert net.inputs == ["input", "label"]
    assert {"objective", "top1err", "top5err"} <= set(net.outputs)
    assert all(shapes[output] == () for output in net.outputs)


@pytest.mark.parametrize("name", dict.fromkeys(name for name, *_ in CLASSIFIERS))
def test_any_number_of_classes(name):
    net = getattr(zoo, name)(num_classes=3)
    h, w, c = net.meta["normalization"]["imageSize"]
    assert net.var_shapes({"input": (1, c, h, w)})["prediction"] == (1, 3, 1, 1)
    assert "top5err" not in net.layers


def test_sizes_computed_by_hand():
    assert filters_and_biases(*NIN) == 966_986
    assert filters_and_biases(*VGG_F) == 60_834_536  # 60,824,256 without biases
    assert filters_and_biases(*VGG_M) == 102_908_520


def test_what_there_is_of_vgg_vd_16_in_others():
    vgg = zoo.vgg_vd_16()
    for net in (zoo.fcn_32s(), zoo.fcn_8s(), zoo.fast_rcnn()):
        shared = set(vgg.params) & set(net.params)
        assert len(shared) >= 30  # 13 convolutions, fc6 and fc7
        for name in vgg.layers:
            if name in net.layers and name != "fc8" and isinstance(vgg.layers[name].layer, dagnn.Conv):
                assert net.layers[name].layer.size == vgg.layers[name].layer.size


VGG_WITHOUT_CLASSES = 138_357_544 - (4096 + 1) * 1000


@pytest.mark.parametrize(
    ("name", "extra"),
    [
        ("fcn_32s", 64**2 * 21),
        ("fcn_16s", (512 + 1) * 21 + (4**2 + 32**2) * 21),
        ("fcn_8s", (512 + 1 + 256 + 1) * 21 + (4**2 + 4**2 + 16**2) * 21),
    ],
)
def test_fcn(name, extra):
    net = getattr(zoo, name)()
    number = count(net)
    assert number == VGG_WITHOUT_CLASSES + (4096 + 1) * 21 + extra
    assert round(number / 1e6) == 134  # Long et al. 2015, table 1
    shapes = net.var_shapes({"input": (2, 3, 64, 96), "label": (2, 1, 64, 96)})
    assert shapes["scores"] == (2, 21, 2, 3)
    assert shapes["prediction"] == (2, 21, 64, 96)
    frozen = {name for name, param in net.params.items() if not param.trainable}
    assert frozen == {
        node.params[0] for node in net.layers.values() if type(node.layer) is dagnn.ConvTranspose
    }


@pytest.mark.parametrize("factor", [2, 8, 16, 32])
def test_upsampling_of_fcn_interpolates(factor):
    size = 2 * factor
    layer = dagnn.ConvTranspose(
        size=(3, 1, size, size), has_bias=False, upsample=factor, crop=factor // 2, num_groups=3
    )
    net = dagnn.DagNN()
    net.add_layer("up", layer, "x", "y")
    net.meta["init"] = {"up_filters": "bilinear"}
    zoo.init_params(net, dtype=np.float64)
    ramp = np.arange(5.0)
    x = ramp[:, None] + 10 * ramp + np.zeros((1, 3, 5, 5))
    inner = slice(factor, -factor)
    at = (np.arange(5 * factor) + 0.5) / factor - 0.5
    expected = (at[:, None] + 10 * at)[inner, inner]
    y = net.eval({"x": x})["y"][:, :, inner, inner]
    np.testing.assert_allclose(y, np.broadcast_to(expected, y.shape), atol=1e-12)


def test_dncnn_has_the_published_filters():
    net = zoo.dncnn()
    sizes = [node.layer.size for node in net.layers.values() if isinstance(node.layer, dagnn.Conv)]
    assert sizes == [(64, 1, 3, 3), *[(64, 64, 3, 3)] * 15, (1, 64, 3, 3)]
    assert count(net) == 554_112 + 64 + 1 + 15 * 2 * 64  # filters, biases, batch normalisation
    assert len(zoo.dncnn(depth=20, channels=3).layers) == 2 + 18 * 3 + 1 + 1


def test_dncnn_has_two_layers_at_least():
    assert [type(n.layer).__name__ for n in zoo.dncnn(depth=2).layers.values()][:3] == [
        "Conv",
        "ReLU",
        "Conv",
    ]
    with pytest.raises(OptionError, match="Received: 1"):
        zoo.dncnn(depth=1)


@pytest.mark.parametrize(
    ("net", "images"),
    [
        (zoo.lenet(), (3, 1, 28, 28)),
        (zoo.lenet(batch_norm=True), (3, 1, 28, 28)),
        (zoo.cifar_quick(), (3, 3, 32, 32)),
        (zoo.cifar_nin(num_classes=4), (3, 3, 32, 32)),
        (zoo.spatial_transformer(), (3, 1, 60, 60)),
    ],
)
def test_small_classifiers_run(net, images):
    rng = np.random.default_rng(0)
    zoo.init_params(net, seed=1)
    x = rng.standard_normal(images).astype(np.float32)
    out = net.eval({"input": x, "label": np.array([0, 1, 2])}, {"objective": 1}, outputs=net.outputs)
    assert all(np.isfinite(value) for value in out.values())
    assert all(np.isfinite(param.der).all() for param in net.params.values())


def test_dncnn_runs():
    net = zoo.dncnn(depth=5)
    zoo.init_params(net)
    rng = np.random.default_rng(0)
    x, noise = rng.standard_normal((2, 2, 1, 11, 14)).astype(np.float32)
    out = net.eval({"input": x, "label": noise}, {"objective": 1 / 4}, outputs=["prediction", "objective"])
    assert out["prediction"].shape == x.shape
    assert out["objective"] == pytest.approx(((out["prediction"] - noise) ** 2).sum(), rel=1e-5)
    assert all(np.isfinite(param.der).all() for param in net.params.values())


def test_fast_rcnn_heads_run_on_any_features():
    net = dagnn.DagNN()
    net.add_layer("conv", dagnn.Conv(size=(8, 3, 3, 3), stride=4, pad=1), "input", "conv")
    zoo.add_fast_rcnn_heads(net, "conv", 8, 4, width=32, subdivisions=3, transform=1 / 4)
    zoo.init_params(net)
    x = np.random.default_rng(0).standard_normal((2, 3, 40, 48)).astype(np.float32)
    rois = np.array([[0, 0, 0, 20, 20], [1, 4, 8, 40, 36], [1, 10, 10, 30, 39]], np.float32).T
    boxes = {name: np.ones((3, 16, 1, 1), np.float32) for name in ("targets", "instance_weights")}
    given = {"input": x, "rois": rois, "label": np.array([0, 3, 1]), **boxes}
    out = net.eval(given, {"losscls": 1, "lossbbox": 1})
    assert out["losscls"] == pytest.approx(np.log(4), rel=0.2)
    assert np.isfinite(out["lossbbox"])
    assert all(np.isfinite(param.der).all() for param in net.params.values())


def test_a_spatial_transformer_starts_by_changing_nothing():
    net = zoo.spatial_transformer()
    zoo.init_params(net, seed=3)
    x = np.random.default_rng(0).random((2, 1, 60, 60), np.float32)
    np.testing.assert_allclose(net.eval({"input": x}, outputs="transformed")["transformed"], x, atol=1e-4)


def test_starting_values_obey_the_seed():
    nets = [zoo.cifar_quick() for _ in range(3)]
    for net, seed in zip(nets, (0, 0, 1), strict=True):
        zoo.init_params(net, seed, np.float64)
    first, same, other = (net.params["conv2_filters"].value for net in nets)
    assert first.dtype == np.float64
    assert first.std() == pytest.approx(0.05, rel=0.02)
    assert np.array_equal(first, same)
    assert not np.array_equal(first, other)


def test_starting_values_of_layers_taken_out_are_forgotten():
    net = zoo.cifar_quick().subnet(outputs="relu3")
    zoo.init_params(net)
    assert "conv5_filters" not in net.params
    assert net.params["conv1_filters"].value.std() == pytest.approx(0.01, rel=0.05)


def test_unknown_starting_value():
    net = zoo.lenet()
    net.meta["init"] = {"conv1_filters": "identity"}
    with pytest.raises(OptionError, match=r"shape \(20, 1, 5, 5\). Received: 'identity'"):
        zoo.init_params(net)


def test_learning_rates_of_matconvnet():
    net = zoo.alexnet(batch_norm=True)
    rates = {name: (p.learning_rate, p.weight_decay) for name, p in net.params.items()}
    assert (rates["fc6_filters"], rates["fc6_biases"]) == ((1, 1), (2, 0))
    assert [rates[f"bn1_{role}"] for role in ("multipliers", "biases", "moments")] == [
        (2, 0),
        (1, 0),
        (0.05, 0),
    ]
    assert not any(isinstance(node.layer, dagnn.LRN | dagnn.DropOut) for node in net.layers.values())
    assert zoo.cifar_quick().params["conv5_biases"].learning_rate == 0.2
    assert zoo.resnet_50().params["conv1_bn_moments"].learning_rate == 0.3


@pytest.mark.parametrize("build", [zoo.googlenet, zoo.resnet_50, zoo.fcn_8s, zoo.fast_rcnn])
def test_deep_networks_survive_a_file(build, tmp_path):
    net = build()
    net.save(tmp_path / "net.h5")
    loaded = dagnn.load(tmp_path / "net.h5")
    assert loaded.meta == net.meta
    assert [(n.name, n.layer, n.wire) for n in loaded.layers.values()] == [
        (n.name, n.layer, n.wire) for n in net.layers.values()
    ]


def test_image_preparation_knows_the_networks():
    preprocessor = dagnn.Preprocessor.from_meta(zoo.alexnet().meta)
    assert preprocessor(np.zeros((300, 400, 3), np.uint8)).shape == (1, 3, 227, 227)
    assert preprocessor.border == (29, 29)


def test_dagnn_does_not_import_the_zoo():
    code = "import sys, dagnn; print(any(name.startswith('dagnn.zoo') for name in sys.modules))"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "False"
