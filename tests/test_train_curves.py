"""Pictures of training curves."""

import math
import re
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from itertools import product

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from dagnn.errors import MissingPackageError, OptionError
from dagnn.train import curves

NAN, INF = math.nan, math.inf
TRAIN, VAL = curves.SETS["train"][0], curves.SETS["val"][0]


def make(epochs, names=("objective", "top1err"), parts=("train", "val")):
    """Curves that fall from 2 to 0.02, training below validation."""
    return [
        {
            part: {name: 2 * 0.01 ** (k / max(epochs - 1, 1)) * (1 + 0.1 * i) for name in names}
            for i, part in enumerate(parts)
        }
        for k in range(epochs)
    ]


@pytest.fixture
def drawn(monkeypatch, tmp_path):
    """Figures instead of files: drawn(function, ...) returns what the function would have saved."""

    def draw(function, *args, **options):
        figures = []
        monkeypatch.setattr(curves, "_save", lambda figure, path: figures.append(figure))
        function(*args, path=tmp_path / "x.png", **options)
        monkeypatch.undo()
        FigureCanvasAgg(figures[0]).draw()  # which lays it out
        return figures[0]

    return draw


def panels(figure):
    return [axes for axes in figure.axes if axes.get_title(loc="left")]


def curve(axes, colour):
    """The curve, not the ring, of a colour."""
    return next(line for line in axes.lines if line.get_color() == colour and line.get_linestyle() != "None")


def rings(axes):
    return [line.get_xydata()[0].tolist() for line in axes.lines if line.get_linestyle() == "None"]


def notes(axes):
    return [text.get_text() for text in axes.texts]


# ---- files


def pixels(path):
    return np.asarray(Image.open(path).convert("RGB"), int)


def coloured(image, colour):
    """How many pixels have a colour such as "#0072b2"."""
    return int((image == [int(colour[i : i + 2], 16) for i in (1, 3, 5)]).all(-1).sum())


HISTORIES = {
    "no epoch": [],
    "no statistics": [{"train": {}}, {"train": {}}],
    "one epoch": make(1),
    "two epochs": make(2),
    "many epochs": make(300),
    "seven": make(12, "abcdefg"),
    "no val": make(5, parts=["train"]),
    "only val": make(5, parts=["val"]),
    "nothing finite": [{"train": {"objective": NAN}, "val": {"objective": INF}}] * 3,
    "zeros": [{"train": {"objective": 0.0}}] * 3,
    "extremes": [{"train": {"objective": 10.0**k, "b": -(10.0**k)}} for k in range(-100, 100, 10)],
    "odd names": make(3, ("$x_{", "_", "objective " * 30, "50% \\ & #")),
}


@pytest.mark.parametrize("history", HISTORIES.values(), ids=HISTORIES)
def test_all_of_these_can_be_drawn(tmp_path, history):
    curves.plot(history, tmp_path / "curves.png", title="$a title_{ " * 20)
    assert pixels(tmp_path / "curves.png").shape[1] in [
        round(130 * width) for width in curves.WIDTHS.values()
    ]
    assert [path.name for path in tmp_path.iterdir()] == ["curves.png"]


def test_a_png_shows_both_curves(tmp_path):
    curves.plot(make(20), tmp_path / "both.png")
    curves.plot(make(20, parts=["train"]), tmp_path / "train.png")
    both, train = pixels(tmp_path / "both.png"), pixels(tmp_path / "train.png")
    assert coloured(both, TRAIN) > 300 and coloured(both, VAL) > 300
    assert coloured(train, TRAIN) > 300 and coloured(train, VAL) == 0
    assert (both[0] == 255).all() and (both[:, -1] == 255).all()


@pytest.mark.parametrize(
    ("name", "start"), [("c.png", b"\x89PNG"), ("c.svg", b"<?xml"), ("c.pdf", b"%PDF"), ("C.PNG", b"\x89PNG")]
)
def test_the_ending_is_the_format(tmp_path, name, start):
    curves.plot(make(3), str(tmp_path / name))
    curves.compare({"a": make(3)}, tmp_path / ("compared" + name))
    for path in tmp_path.iterdir():
        assert path.read_bytes().startswith(start)


@pytest.mark.parametrize("name", ["curves", "curves.jpg", "curves.png.txt"])
def test_other_endings(tmp_path, name):
    for draw in (curves.plot, lambda history, path: curves.compare({"a": history}, path)):
        with pytest.raises(OptionError, match=re.escape(".png, .svg, .pdf. Received") + f".*{name}"):
            draw(make(3), tmp_path / name)
    assert not list(tmp_path.iterdir())


def test_a_picture_stays_whole_when_drawing_fails(tmp_path):
    path = tmp_path / "curves.png"
    curves.plot(make(3), path)
    before = path.read_bytes()
    with pytest.raises(TypeError):
        curves.plot([{"train": {"objective": object()}}], path)
    assert path.read_bytes() == before


def test_matplotlib_is_missing(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(MissingPackageError, match=r"needs matplotlib: pip install 'dagnn\[plots\]'"):
        curves.plot(make(3), tmp_path / "curves.png")


def test_neither_import_nor_pyplot(tmp_path):
    script = """
import sys
from dagnn.train import curves
assert "matplotlib" not in sys.modules
curves.plot([{"train": {"objective": 1.0}}], sys.argv[1])
assert "matplotlib.pyplot" not in sys.modules
"""
    subprocess.run([sys.executable, "-c", script, tmp_path / "curves.svg"], check=True, timeout=60)


def test_threads_draw_the_same(tmp_path):
    def draw(k):
        path = tmp_path / f"{k}.png"
        curves.plot(make(5 + k % 2), path)
        return path.read_bytes()

    with ThreadPoolExecutor(4) as pool:
        pictures = list(pool.map(draw, range(4)))
    assert pictures == [draw(0), draw(1)] * 2


# ---- panels


@pytest.mark.parametrize(("number", "columns"), [(1, 1), (2, 2), (3, 3), (4, 2), (5, 3), (7, 3)])
def test_one_panel_a_statistic(drawn, number, columns):
    names = [f"s{k}" for k in range(number)]
    figure = drawn(curves.plot, make(3, names))
    assert [axes.get_title(loc="left") for axes in panels(figure)] == names
    boxes = [axes.get_position().bounds for axes in panels(figure)]
    assert len({round(x, 3) for x, *_ in boxes}) == columns
    bottom = [axes.get_title(loc="left") for axes in panels(figure) if axes.get_xlabel()]
    assert bottom == names[-columns:]


def test_curves_are_those_of_the_history(drawn):
    history = make(4)
    del history[1]["val"], history[2]["train"]["top1err"]
    history[3]["train"]["top1err"] = -INF
    objective, top1err = panels(drawn(curves.plot, history))
    for axes, (name, (part, colour)) in zip(
        [objective, objective, top1err, top1err],
        product(("objective", "top1err"), (("train", TRAIN), ("val", VAL))),
        strict=True,
    ):
        expected = [
            [n, stats[part][name] if math.isfinite(stats[part][name]) else NAN]
            for n, stats in enumerate(history, 1)
            if name in stats.get(part, {})
        ]
        np.testing.assert_array_equal(curve(axes, colour).get_xydata(), expected)


@pytest.mark.parametrize("epochs", [1, 2, 3, 7, 60, 1000])
def test_epochs_are_whole_and_there(drawn, epochs):
    for axes in panels(drawn(curves.plot, make(epochs))):
        low, high = axes.get_xlim()
        ticks = [tick for tick in axes.get_xticks() if low <= tick <= high]
        assert 0 < low < 1 and epochs < high < epochs + 1
        assert ticks and all(tick == int(tick) for tick in ticks)


@pytest.mark.parametrize(
    ("name", "values", "scale"),
    [
        ("objective", [2.0, 0.1], "log"),
        ("aux_Loss", [2.0, 0.1], "log"),
        ("objective", [2.0, NAN, INF, 0.1], "log"),
        ("objective", [2.0, 0.3], "linear"),
        ("objective", [2.0, 0.0], "linear"),
        ("objective", [2.0, -0.1], "linear"),
        ("objective", [NAN], "linear"),
        ("top1err", [0.9, 0.01], "linear"),
    ],
)
def test_scales(drawn, name, values, scale):
    (axes,) = panels(drawn(curves.plot, [{"train": {name: value}} for value in values]))
    assert axes.get_yscale() == scale


def test_few_points_are_marked_and_those_that_no_line_reaches(drawn):
    few = curve(panels(drawn(curves.plot, make(10)))[0], VAL)
    assert few.get_marker() == "o" and few.get_markevery() == list(range(10))
    history = make(60)
    assert curve(panels(drawn(curves.plot, history))[0], VAL).get_marker() == "None"
    for k in (0, 20, 22, 58):
        history[k]["val"]["objective"] = NAN
    line = curve(panels(drawn(curves.plot, history))[0], VAL)
    assert line.get_marker() == "o" and line.get_markevery() == [21, 59]


@pytest.mark.parametrize(
    ("name", "epoch"),
    [
        ("objective", 4),
        ("top1err", 4),
        ("accuracy", 2),
        ("val_acc", 2),
        ("mAP", 2),
        ("mapping cost", 4),
        ("PSNR", 2),
    ],
)
def test_the_best_epoch_is_ringed(drawn, name, epoch):
    values = [0.5, 0.875, NAN, 0.125, 0.25]
    history = [{"train": {name: value / 2}, "val": {name: value}} for value in values]
    (axes,) = panels(drawn(curves.plot, history))
    assert rings(axes) == [[epoch, values[epoch - 1]]]
    assert notes(axes) == [f"best val {values[epoch - 1]:.4f} in epoch {epoch}"]


def test_without_val_there_is_no_best_and_no_legend(drawn):
    figure = drawn(curves.plot, make(3, parts=["train"]))
    assert not figure.legends and all(notes(axes) == ["train"] and not rings(axes) for axes in panels(figure))
    (legend,) = drawn(curves.plot, make(3)).legends
    assert [text.get_text() for text in legend.get_texts()] == ["train", "val"]


# ---- several trainings


def test_comparing(drawn):
    histories = {"$plain_": make(5), "dropout": make(3, parts=["train"]), "batch norm": make(40)}
    figure = drawn(curves.compare, histories)
    (axes,), (legend,) = panels(figure), figure.legends
    assert axes.get_title(loc="left") == "top1err"
    assert [text.get_text() for text in legend.get_texts()] == [
        "$plain_\nbest 0.0220 in epoch 5",
        "dropout",
        "batch norm\nbest 0.0220 in epoch 40",
    ]
    assert [x for x, _ in rings(axes)] == [5, 40]
    drawn_lines = [line for line in axes.lines if line.get_linestyle() != "None" and len(line.get_xdata())]
    styles = {(line.get_color(), line.get_linestyle()): len(line.get_xdata()) for line in drawn_lines}
    colours = list(curves.COLOURS)
    assert styles == {
        **{(colours[0], style): 5 for style in ("-", "--")},
        (colours[1], "--"): 3,
        **{(colours[2], style): 40 for style in ("-", "--")},
    }


@pytest.mark.parametrize("number", [1, 7, 8, 30])
def test_trainings_have_colours_of_their_own_and_all_fit(drawn, number):
    figure = drawn(curves.compare, {f"run {k}": make(3) for k in range(number)}, statistic="objective")
    (legend,) = figure.legends
    assert len({tuple(np.atleast_1d(line.get_color())) for line in legend.get_lines()}) == number
    box = legend.get_window_extent()
    assert box.y0 >= 0 and box.x1 <= figure.bbox.x1


def test_comparing_what_is_not_there(tmp_path):
    histories = {"plain": make(3), "dropout": make(3, ["objective"])}
    with pytest.raises(OptionError, match="'dropout' has no statistic 'top1err'. There are: objective"):
        curves.compare(histories, tmp_path / "x.png")
    with pytest.raises(OptionError, match="'empty' has no statistic 'top1err'. There are: none"):
        curves.compare({"empty": []}, tmp_path / "x.png")
    with pytest.raises(OptionError, match="at least one training"):
        curves.compare({}, tmp_path / "x.png")
    assert not list(tmp_path.iterdir())
