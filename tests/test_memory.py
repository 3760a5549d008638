"""How much memory an evaluation holds at its peak, measured with tracemalloc."""

import tracemalloc

import numpy as np
import pytest

import dagnn

SHAPE = (8, 16, 128, 128)
ACTIVATION = int(np.prod(SHAPE)) * 4  # 8 MiB, twice what two threads of a convolution gather at a time


def chain(kind, length=30):
    net = dagnn.DagNN()
    for k in range(length):
        layer = {
            "relu": lambda: dagnn.ReLU(),
            "sigmoid": lambda: dagnn.Sigmoid(),
            "1x1": lambda: dagnn.Conv(size=(16, 16, 1, 1)),
            "conv-relu": lambda k=k: dagnn.ReLU() if k % 2 else dagnn.Conv(size=(16, 16, 1, 1)),
            "dropout": lambda: dagnn.DropOut(),
        }[kind]()
        net.add_layer(f"f{k}", layer, f"x{k}", f"x{k + 1}")
    net.init_params(0)
    return net


def peak(run):
    """Peak of what `run` allocates, in activations; modules that are imported on demand are there already."""
    chain("conv-relu", 2).eval(
        {"x0": np.ones((1, 16, 8, 8), np.float32)}, {"x2": np.ones((1, 16, 8, 8), np.float32)}, ders="x0"
    )
    dagnn.backends.get("numpy").release_idle()
    tracemalloc.start()
    try:
        run()
        return tracemalloc.get_traced_memory()[1] / ACTIVATION
    finally:
        tracemalloc.stop()


@pytest.fixture(scope="module")
def x():
    return np.random.default_rng(0).standard_normal(SHAPE).astype(np.float32)


@pytest.mark.parametrize("kind", ["relu", "sigmoid", "1x1", "conv-relu", "dropout"])
def test_inference_holds_under_three_activations(kind, x):
    net = chain(kind)
    net.mode = "test"
    assert peak(lambda: net.eval({"x0": x})) < 3


@pytest.mark.parametrize(
    ("kind", "kept"),
    # what backward needs: one saved array a layer, shared between a convolution and the ReLU before it
    [("relu", 30), ("sigmoid", 30), ("conv-relu", 15)],
)
def test_training_keeps_only_what_backward_needs(kind, kept, x):
    net = chain(kind)
    seed = np.ones(SHAPE, np.float32)
    assert peak(lambda: net.eval({"x0": x}, {"x30": seed}, ders="x0")) < kept + 3.5


def test_frozen_layers_keep_nothing(x):
    net = chain("1x1")
    net.freeze("*")
    seed = np.ones(SHAPE, np.float32)
    assert peak(lambda: net.eval({"x0": x}, {"x30": seed}, ders="x0")) < 4
    net.unfreeze("f29_*")
    assert peak(lambda: net.eval({"x0": x}, {"x30": seed})) < 4


def test_evaluations_leave_nothing_behind(x):
    net = chain("conv-relu")
    seed = np.ones(SHAPE, np.float32)
    net.eval({"x0": x}, {"x30": seed})
    tracemalloc.start()
    try:
        for _ in range(3):
            net.eval({"x0": x}, {"x30": seed})
        left = tracemalloc.get_traced_memory()[0] / ACTIVATION
    finally:
        tracemalloc.stop()
    assert left < 1.2  # the output of the last evaluation
