"""deploy(): the same outputs with fewer layers."""

import matlab
import numpy as np
import pytest

import dagnn


def randomised(net, seed=0):
    """Parameters as after training: moments, multipliers and biases that are not the initial ones."""
    rng = np.random.default_rng(seed)
    net.init_params(rng)
    for param in net.params.values():
        value = (rng.standard_normal(param.value.shape) * 0.5).astype(np.float32)
        param.value = np.abs(value) + 0.5 if param.train_method == "average" else value
    net.mode = "test"
    return net


def same_outputs(net, inputs, outputs):
    deployed = net.deploy()
    before, after = (n.eval(inputs, outputs=outputs) for n in (net, deployed))
    for name in outputs:
        assert matlab.error(after[name], before[name]) < 1e-5
    return deployed


X = np.random.default_rng(1).standard_normal((2, 4, 9, 9)).astype(np.float32)


@pytest.mark.parametrize("has_bias", [True, False])
@pytest.mark.parametrize(
    "convolution",
    [
        lambda b: dagnn.Conv(size=(6, 2, 3, 3), has_bias=b, pad=1),
        lambda b: dagnn.ConvTranspose(size=(4, 3, 4, 4), has_bias=b, upsample=2, num_groups=2),
    ],
)
def test_batch_norm_is_folded(convolution, has_bias):
    net = dagnn.DagNN()
    net.add_layer("conv", convolution(has_bias), "x", "c")
    net.add_layer("bn", dagnn.BatchNorm(num_channels=6), "c", "n")
    net.add_layer("relu", dagnn.ReLU(), "n", "r")
    net.add_layer("drop", dagnn.DropOut(), "r", "y")
    net.add_layer("loss", dagnn.Loss(), ["y", "label"], "objective")
    deployed = same_outputs(randomised(net), {"x": X}, ["y"])
    assert [type(node.layer).__name__ for node in deployed.layers.values()] == [
        type(convolution(True)).__name__,
        "ReLU",
    ]
    assert list(deployed.params) == ["conv_filters", "conv_biases"] and deployed.inputs == ["x"]
    assert "bn" in net.layers, "the net itself is as it was"


def test_shared_towers_are_folded_together():
    net = dagnn.DagNN()
    for side in "ab":
        net.add_layer(f"conv_{side}", dagnn.Conv(size=(4, 4, 3, 3)), side, f"c_{side}", ["f", "b"])
        net.add_layer(
            f"bn_{side}", dagnn.BatchNorm(num_channels=4), f"c_{side}", f"n_{side}", ["g", "h", "m"]
        )
    net.add_layer("sum", dagnn.Sum(), ["n_a", "n_b"], "y")
    deployed = same_outputs(randomised(net), {"a": X, "b": X[::-1]}, ["y"])
    assert list(deployed.layers) == ["conv_a", "conv_b", "sum"]


def test_what_cannot_be_folded_stays():
    net = dagnn.DagNN()
    net.add_layer("first", dagnn.BatchNorm(num_channels=4), "x", "n0")
    net.add_layer("shared", dagnn.Conv(size=(4, 4, 1, 1)), "n0", "c1", ["f", "b"])
    net.add_layer("bn1", dagnn.BatchNorm(num_channels=4), "c1", "n1")
    net.add_layer("alone", dagnn.Conv(size=(4, 4, 1, 1)), "n1", "c2", ["f", "b"])
    net.add_layer("read_twice", dagnn.Conv(size=(4, 4, 1, 1)), "c2", "c3")
    net.add_layer("bn3", dagnn.BatchNorm(num_channels=4), "c3", "n3")
    net.add_layer("sum", dagnn.Sum(), ["c3", "n3"], "y")
    deployed = same_outputs(randomised(net), {"x": X}, ["y"])
    assert {"first", "bn1", "bn3"} <= set(deployed.layers)


def test_dropout_at_either_end():
    net = dagnn.DagNN()
    net.add_layer("drop0", dagnn.DropOut(), "x", "d")
    net.add_layer("relu", dagnn.ReLU(), "d", "r")
    net.add_layer("drop1", dagnn.DropOut(), "r", "y")
    deployed = same_outputs(randomised(net), {"x": X}, ["y"])
    assert list(deployed.layers) == ["relu"] and deployed.inputs == ["x"]


def test_a_bias_shared_with_others_is_left_alone():
    for other_norm in (True, False):
        net = dagnn.DagNN()
        net.add_layer("a", dagnn.Conv((4, 4, 1, 1)), "x", "ca", ["fa", "b"])
        net.add_layer("na", dagnn.BatchNorm(4), "ca", "ya")
        net.add_layer("c", dagnn.Conv((4, 4, 1, 1)), "x", "cc", ["fc", "b"])
        if other_norm:
            net.add_layer("nc", dagnn.BatchNorm(4), "cc", "yc")
        same_outputs(randomised(net), {"x": X}, net.outputs)


def test_a_name_for_biases_that_is_taken():
    net = dagnn.DagNN()
    net.add_layer("a", dagnn.Conv((4, 4, 1, 1), has_bias=False), "x", "ca")
    net.add_layer("na", dagnn.BatchNorm(4), "ca", "ya")
    net.add_layer("b", dagnn.Conv((4, 4, 1, 1)), "x", "yb", ["b_filters", "a_biases"])
    same_outputs(randomised(net), {"x": X}, net.outputs)


def test_what_works_on_losses_goes_with_them():
    net = dagnn.DagNN()
    net.add_layer("c", dagnn.Conv((4, 4, 9, 9)), "x", "y")
    for k in "ab":
        net.add_layer(k, dagnn.Loss(), ["y", f"label_{k}"], k)
    net.add_layer("total", dagnn.Sum(), ["a", "b"], "objective")
    deployed = same_outputs(randomised(net), {"x": X}, ["y"])
    assert deployed.inputs == ["x"] and deployed.outputs == ["y"]


def test_nets_without_values_are_deployed_unfolded():
    net = dagnn.DagNN()
    net.add_layer("c", dagnn.Conv((4, 4, 1, 1)), "x", "c")
    net.add_layer("n", dagnn.BatchNorm(4), "c", "y")
    assert list(net.deploy().layers) == ["c", "n"]
    net.init_params()
    net.params["n_multipliers"].value = np.ones(3, np.float32)
    assert list(net.deploy().layers) == ["c", "n"]
