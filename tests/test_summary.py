"""Tables and repr: what they say, and that they fit."""

import numpy as np
import pytest
from networks import SIAMESE_SHAPES, inception, odd, siamese

import dagnn
from dagnn.summary import WIDTH, human_bytes, human_count, summarize


def rows(text):
    """The cells of each layer's row by the layer's name."""
    lines = text.splitlines()
    rules = [i for i, line in enumerate(lines) if set(line) == {"-"}]
    return {line.split()[0]: line.split() for line in lines[rules[0] + 1 : rules[1]]}


def test_sizes_fields_parameters_and_memory():
    net = siamese()
    net.init_params()
    table = rows(net.summary(SIAMESE_SHAPES))
    # 4 filters of 3x3 and 4 biases; output (2, 4, 6, 6) in float32.
    assert table["conv_a"] == ["conv_a", "Conv", "a", "c_a", "2x4x6x6", "3/1", "40", "1.15", "kB"]
    assert table["conv_b"][-3] == "shared"
    # The fully connected layer sees all 8 x 8 pixels of both images.
    assert table["fc"] == ["fc", "Conv", "both", "scores", "2x3x1x1", "8/1", "867", "24", "B"]
    assert table["loss"][-2:] == ["4", "B"]


def test_totals_count_shared_parameters_once():
    net = siamese()
    net.init_params(dtype=np.float64)
    last = net.summary(SIAMESE_SHAPES).splitlines()[-1]
    floats = sum(map(np.prod, net.var_shapes(SIAMESE_SHAPES).values()))
    assert last.startswith(f"907 parameters in 4 arrays, {human_bytes(907 * 8)} float64; ")
    assert f"variables {human_bytes(8 * floats)}, " in last


def test_without_shapes_or_values():
    text = summarize(siamese(), {})
    assert "output size" not in text
    assert "memory" not in text
    assert rows(text)["conv_a"][-1] == "?"
    assert "4 parameter arrays without values" in text


def test_some_parameters_without_values():
    net = siamese()
    net.params["filters"].value = np.ones((4, 1, 3, 3))
    assert "36 parameters in 1 array, 288 B float64, 3 more without values" in net.summary()


@pytest.mark.parametrize("net", [inception(9), odd(), dagnn.DagNN()], ids=["inception", "odd", "empty"])
def test_lines_fit(net):
    shapes = {"data": (16, 3, 8, 8), "label": (16,)} if "data" in net.vars else {}
    lines = net.summary(shapes).splitlines()
    assert max(map(len, lines)) <= WIDTH
    lines = repr(net).splitlines()
    assert max(map(len, lines)) <= WIDTH
    assert len(lines) <= 24


def test_repr_names_layers_of_small_nets_and_counts_those_of_large_ones():
    assert "join" in repr(siamese())
    assert "21 Conv, 3 ReLU, 3 Pooling, 3 Concat, 2 Loss" in repr(inception())
    assert repr(dagnn.DagNN()).splitlines() == [
        "DagNN (numpy, train): 0 layers, no parameters",
        "inputs none; outputs none",
    ]


def test_numbers_for_people():
    assert [human_count(n) for n in (0, 999, 1000, 999_499, 999_500, 2e9)] == [
        *("0", "999", "1 k", "999 k", "1 M", "2 G")
    ]
    assert human_bytes(3e15) == "3e+03 TB"
