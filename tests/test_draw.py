"""Drawings: well-formed, complete, nothing on top of anything else."""

from itertools import combinations
from xml.etree import ElementTree

import pytest
from networks import SIAMESE_SHAPES, inception, odd, siamese

import dagnn
from dagnn.draw import LONGEST, Card, _cards, draw, elide, text_width
from dagnn.layout import SPACE, Box, Layout, isotonic

SVG = "{http://www.w3.org/2000/svg}"
NETS = {"siamese": siamese, "inception": inception, "odd": odd, "empty": dagnn.DagNN}


@pytest.fixture(params=NETS)
def net(request):
    return NETS[request.param]()


def texts(svg):
    return [text.text for text in ElementTree.fromstring(svg).iter(f"{SVG}text")]


def test_every_layer_input_and_output_is_named(net):
    found = texts(draw(net))
    for name in (*net.layers, *net.vars):
        assert any(elide(name, 24) in text for text in found), name


def test_sizes_are_shown_without_the_batch():
    found = texts(draw(siamese(), input_shapes=SIAMESE_SHAPES))
    assert "a  1×8×8" in found
    assert "both  8×6×6" in found
    assert "label  2" in found


def test_options_are_shown_where_they_are_not_the_default():
    found = texts(draw(siamese()))
    assert found.count("Conv  size 4×1×3×3") == 2
    assert "ReLU  leak 0.1" in found
    net = dagnn.DagNN()
    net.add_layer("c", dagnn.Conv(size=(1, 1, 3, 3), has_bias=False, pad=(0, 1, 0, 1)), "x", "y")
    assert "Conv  size 1×1×3×3, no bias, pad 0×1×0×1" in texts(draw(net))
    net.replace_layer("c", dagnn.Conv(size=(100, 100, 33, 33), stride=2, pad=(0, 1, 0, 1), dilate=2))
    (text,) = [text for text in texts(draw(net)) if text.startswith("Conv")]
    assert len(text) <= LONGEST
    assert text.endswith("…")


def test_unknown_layers_show_their_class():
    svg = draw(odd())
    assert "XCorr  unknown" in texts(svg)
    assert "&lt;&amp;&gt;" in svg


def test_tooltips_have_options_and_parameters():
    net = siamese()
    net.init_params()
    titles = [t.text for t in ElementTree.fromstring(draw(net)).iter(f"{SVG}title")]
    assert "conv_a: Conv\nsize 4×1×3×3\nparameter filters 4×1×3×3\nparameter biases 4" in titles


def test_shared_parameters_are_marked_and_tied():
    svg = draw(siamese())
    assert texts(svg).count("shares filters, biases") == 2
    assert svg.count("stroke-dasharray") == 1
    assert "stroke-dasharray" not in draw(inception())


def test_it_is_written_to_the_path(tmp_path):
    svg = draw(siamese(), tmp_path / "net.svg")
    assert (tmp_path / "net.svg").read_text(encoding="utf-8") == svg


def test_nothing_overlaps(net):
    layout = Layout(*_cards(net, {}))
    for rank in layout.ranks:
        for a, b in combinations(rank, 2):
            assert b.left - a.right > SPACE - 1e-6
    for upper, bottom in zip(layout.ranks[1:], layout.bottoms, strict=False):
        assert min(box.y for box in upper) > bottom + 20
    for box in layout.boxes.values():
        assert box.left >= 0
        assert box.right <= layout.width


def test_texts_fit_their_cards(net):
    for card in _cards(net, {})[0]:
        assert isinstance(card, Card)
        assert text_width(card.title, 13, bold=True) < card.width
        assert text_width(card.text, 11) < card.width
        assert sum(width for _, width in card.tabs) < card.width


def test_edges_point_down(net):
    layout = Layout(*_cards(net, {}))
    assert all(hop.target.rank == hop.source.rank + 1 for hop in layout.hops.values())


def test_branches_do_not_cross():
    assert Layout(*_cards(siamese(), {})).crossings() == 0
    assert Layout(*_cards(inception(), {})).crossings() <= 2  # the label's edge


def test_crossings_are_undone():
    boxes = [Box(name, 40, 20) for name in "abcdef"]
    layout = Layout(boxes, [("a", 0, "f"), ("b", 0, "e"), ("c", 0, "d")])
    assert layout.crossings() == 0


def test_ports_are_respected():
    boxes = [Box("top", 90, 20, ports=[-30, 30]), Box("a", 40, 20), Box("b", 40, 20)]
    layout = Layout(boxes, [("top", 1, "a"), ("top", 0, "b")])
    assert boxes[2].x < boxes[1].x
    assert layout.crossings() == 0


def test_chains_are_straight():
    layout = Layout(*_cards(inception(), {}))
    ends = [(hop.start, hop.target.x) for hop in layout.hops.values() if "5x5" in str(hop.source.key)]
    assert len(ends) >= 3
    x = {name: layout.boxes["layer", f"m1_{name}"].x for name in ("reduce5", "5x5", "relu5")}
    assert max(x.values()) - min(x.values()) < 2


def test_isotonic_is_the_least_squares_solution():
    assert isotonic([3, 1], [1, 3]) == [1.5, 1.5]
    assert isotonic([], []) == []
