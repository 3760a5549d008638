"""The demo, as a user runs it."""

import re
import sys
from xml.etree import ElementTree

import numpy as np
import pytest

import dagnn
from dagnn import cli, demo


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("demo")


def test_it_reaches_its_accuracies_and_writes_its_files(folder, capsys):
    code = cli.main(["demo", "--out", str(folder / "out")])
    out = capsys.readouterr().out
    assert code == 0, out
    reached = dict(re.findall(r"^  (\w+) +([\d.]+)% ", out, re.MULTILINE))
    assert float(reached["digit_a"]) >= 97
    assert float(reached["digit_b"]) >= 97
    assert float(reached["sum"]) >= 93
    assert "reads the same, bit for bit" in out
    for command in re.findall(r"^  dagnn (.+)$", out, re.MULTILINE):
        assert cli.main(command.split()) == 0
    for name in ("curves.png", "readings.png"):
        assert (folder / "out" / name).read_bytes().startswith(b"\x89PNG")
    ElementTree.parse(folder / "out" / "net.svg")
    net = dagnn.load(folder / "out" / "net.h5")
    assert net.inputs == ["image_a", "image_b"]
    assert net.outputs == ["digit_a", "digit_b", "sum"]
    assert net.mode == "test"


def test_no_image_is_both_learnt_from_and_held_out():
    learn, held_out = demo.load_digits(np.random.default_rng(0))
    assert len(learn) + len(held_out) == 1797
    assert len(held_out) == demo.HELD_OUT
    # The two parts are those of one permutation; a few digits of the data set are alike pixel by pixel.
    same = (learn.images[:, None] == held_out.images[None]).all(axis=(2, 3, 4)).any(axis=0)
    assert same.mean() < 0.01


def test_too_little_training_is_not_good_enough(folder, capsys):
    assert demo.run(folder / "short", epochs=1) == 1
    assert "Not good enough: digit_a, digit_b, sum." in capsys.readouterr().out


def test_shifted_images_move_by_at_most_a_pixel():
    image = np.zeros((200, 1, 8, 8), np.float32)
    image[:, 0, 4, 4] = 1
    moved = demo.shifted(image, np.random.default_rng(0))
    _, _, y, x = np.nonzero(moved)
    assert set(zip(y.tolist(), x.tolist(), strict=True)) == {(i, j) for i in (3, 4, 5) for j in (3, 4, 5)}


@pytest.mark.parametrize(("module", "package"), [("sklearn", "scikit-learn"), ("matplotlib", "matplotlib")])
def test_what_is_missing_is_named_before_anything_is_done(capsys, monkeypatch, tmp_path, module, package):
    monkeypatch.setitem(sys.modules, module, None)
    assert cli.main(["demo", "--out", str(tmp_path / "out")]) == 1
    out, err = capsys.readouterr()
    assert (out, err) == ("", f"dagnn: error: the demo needs {package}: pip install 'dagnn[demo]'\n")
    assert not (tmp_path / "out").exists()
