"""SGD: against PyTorch's, and its own rules."""

import numpy as np
import pytest

import dagnn
from dagnn.train import SGD
from dagnn.train.solvers import average, descend

X = np.random.default_rng(0).standard_normal((4, 3, 6, 6))


def small_net(dtype=np.float64):
    net = dagnn.DagNN()
    net.add_layer("conv", dagnn.Conv(size=(5, 3, 3, 3)), "x", "c")
    net.add_layer("relu", dagnn.ReLU(), "c", "y")
    net.init_params(0, dtype)
    return net


def steps(net, solver, number=5):
    for _ in range(number):
        y = net.eval({"x": X.astype(net.dtype)})["y"]
        net.eval({"x": X.astype(net.dtype)}, {"y": y})
        solver.step(net)


@pytest.mark.parametrize("nesterov", [False, True])
def test_steps_are_those_of_pytorch(nesterov):
    torch = pytest.importorskip("torch")
    net = small_net()
    w, b = (torch.tensor(p.value.copy(), requires_grad=True) for p in net.params.values())
    # PyTorch has one rate and decay per group, where we have factors per parameter.
    groups = [
        {"params": [w], "lr": 0.003, "weight_decay": 0.01},
        {"params": [b], "lr": 0.006, "weight_decay": 0.0},
    ]
    theirs = torch.optim.SGD(groups, lr=0.003, momentum=0.9, nesterov=nesterov)
    net.params["conv_biases"].learning_rate = 2
    net.params["conv_biases"].weight_decay = 0
    steps(net, SGD(0.003, momentum=0.9, weight_decay=0.01, nesterov=nesterov))
    for _ in range(5):
        theirs.zero_grad()
        y = torch.nn.functional.relu(torch.nn.functional.conv2d(torch.tensor(X), w, b))
        y.backward(y.detach())
        theirs.step()
    np.testing.assert_allclose(net.params["conv_filters"].value, w.detach(), rtol=1e-12, atol=1e-14)
    np.testing.assert_allclose(net.params["conv_biases"].value, b.detach(), rtol=1e-12, atol=1e-14)


def test_momentum_accumulates_and_decay_pulls_towards_zero():
    value, m = descend(10.0, 1.0, 0.0, learning_rate=0.1, momentum=0.5, weight_decay=0.2, nesterov=False)
    assert (value, m) == pytest.approx((9.7, -3.0))
    value, m = descend(value, 0.0, m, learning_rate=0.1, momentum=0.5, weight_decay=0.0, nesterov=False)
    assert (value, m) == pytest.approx((9.55, -1.5))


def test_average_is_a_running_mean_over_all_layers_that_share_the_parameter():
    assert average(1.0, 6.0, rate=0.1, fanout=2) == pytest.approx(0.9 + 0.3)
    net = dagnn.DagNN()
    shared = ["g", "b", "moments"]
    net.add_layer("bn1", dagnn.BatchNorm(3), "x1", "y1", shared)
    net.add_layer("bn2", dagnn.BatchNorm(3), "x2", "y2", shared)
    net.init_params(0, np.float64)
    net.eval({"x1": X + 5, "x2": X - 5}, {"y1": np.zeros_like(X), "y2": np.zeros_like(X)})
    SGD(learning_rate=1e6).step(net)
    mean, sigma = net.params["moments"].value.T
    np.testing.assert_allclose(mean, 0.1 * X.mean(axis=(0, 2, 3)))
    np.testing.assert_allclose(sigma, 0.9 + 0.1 * np.sqrt(X.var(axis=(0, 2, 3)) + 1e-5))


def test_frozen_parameters_and_those_without_derivative_stay():
    net = small_net()
    before = {name: param.value for name, param in net.params.items()}
    SGD(1.0).step(net)
    net.freeze("*biases")
    steps(net, SGD(0.1), number=1)
    assert net.params["conv_biases"].value is before["conv_biases"]
    assert not np.array_equal(net.params["conv_filters"].value, before["conv_filters"])


def test_options_that_are_numpy_numbers_keep_float32():
    net = small_net(np.float32)
    for rate in np.linspace(0.1, 0.01, 2):
        steps(net, SGD(rate, np.float64(0.9), np.float64(1e-4)), number=1)
    assert {param.value.dtype for param in net.params.values()} == {np.dtype("float32")}
    assert all(param.version == 3 and not param.value.flags.writeable for param in net.params.values())


@pytest.mark.parametrize("options", [{"learning_rate": -1}, {"momentum": 1.0}, {"weight_decay": -0.1}])
def test_impossible_options_raise(options):
    with pytest.raises(dagnn.OptionError, match="Received"):
        SGD(**options)
