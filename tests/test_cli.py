"""The command line: what it prints, and how it fails."""

import json
import subprocess
import sys
from xml.etree import ElementTree

import pytest
from networks import odd, siamese

import dagnn
from dagnn import cli, demo


@pytest.fixture
def file(tmp_path):
    net = siamese()
    net.init_params()
    net.meta = {"classes": ["cat", "dog"], "author": "me"}
    net.save(tmp_path / "net.h5")
    return str(tmp_path / "net.h5")


def run(capsys, *argv):
    code = cli.main(argv)
    return code, *capsys.readouterr()


def test_info(capsys, file):
    code, out, err = run(capsys, "info", file)
    assert (code, err) == (0, "")
    assert out.splitlines() == [
        file,
        "  format      dagnn HDF5",
        "  layers      7: 3 Conv, 2 ReLU, 1 Concat, 1 Loss",
        "  inputs      a, b, label",
        "  outputs     objective",
        "  parameters  907 parameters in 4 arrays, 3.63 kB float32",
        "  meta        classes, author",
    ]


def test_info_on_unknown_classes_and_on_nothing(capsys, tmp_path):
    odd().save(tmp_path / "odd.h5")
    _, out, _ = run(capsys, "info", str(tmp_path / "odd.h5"))
    assert "1 XCorr" in out
    assert "unknown     1 XCorr (supply the classes: dagnn.load(..., layers=...))" in out
    assert "meta" not in out
    dagnn.DagNN().save(tmp_path / "empty.h5")
    _, out, _ = run(capsys, "info", str(tmp_path / "empty.h5"))
    assert "layers      none" in out


def test_summary(capsys, file):
    sizes = [arg for size in ("a=1x8x8", "b=1x1x8x8", "label=1") for arg in ("--input", size)]
    code, out, _ = run(capsys, "summary", file, *sizes)
    assert code == 0
    assert "Inputs: a 1x1x8x8, b 1x1x8x8, label 1. Outputs: objective 1." in out
    assert "memory" in out
    assert "memory" not in run(capsys, "summary", file)[1]


@pytest.fixture
def classifier(tmp_path):
    net = dagnn.DagNN()
    net.add_layer("conv", dagnn.Conv(size=(4, 1, 6, 6)), "input", "scores")
    net.add_layer("loss", dagnn.Loss(), ["scores", "label"], "objective")
    net.init_params()
    net.meta = {"normalization": {"imageSize": [6, 6, 1]}}
    net.save(tmp_path / "classifier.h5")
    return str(tmp_path / "classifier.h5")


def test_profile(capsys, classifier, tmp_path):
    code, out, err = run(capsys, "profile", classifier, "--repeats", "2")
    assert (code, err) == (0, "")
    assert out.splitlines()[2].startswith("conv")
    assert "1x4x1x1" in out
    assert "mode 'test'" in out
    assert "backward" not in out
    figures = tmp_path / "figures.json"
    options = ["--batch", "3", "--train", "--threads", "1", "--json", str(figures)]
    code, out, _ = run(capsys, "profile", classifier, *options)
    assert code == 0
    assert "3x4x1x1" in out
    assert "backward" in out
    assert "1 thread, mode 'train'" in out
    assert json.loads(figures.read_text())["threads"] == 1


def test_a_backend_is_chosen(capsys, classifier):
    code, out, _ = run(capsys, "profile", classifier, "--backend", "reference", "--repeats", "1")
    assert code == 0 and "; reference, mode 'test'" in out
    code, _, err = run(capsys, "profile", classifier, "--backend", "reference,device=1")
    assert code == 1 and "Backend 'reference' has no options. Received: device" in err
    code, _, err = run(capsys, "profile", classifier, "--backend", "tpu")
    assert code == 1 and "backend is one of numpy, cupy, reference. Received: 'tpu'" in err


def test_options_of_a_backend():
    assert cli.backend("cupy,tf32=true,autotune=False,device=2") == (
        "cupy",
        {"tf32": True, "autotune": False, "device": 2},
    )


@pytest.mark.parametrize("text", ["", ",device=1", "cupy,device", "cupy,=1", "cupy,device="])
def test_backends_that_are_none(capsys, text):
    with pytest.raises(SystemExit) as info:
        cli.main(["profile", "net.h5", "--backend", text])
    assert info.value.code == 2
    assert "is not like cupy or cupy,device=1" in capsys.readouterr().err


def test_profile_with_sizes(capsys, file):
    sizes = [arg for size in ("a=1x8x8", "b=1x8x8") for arg in ("--input", size)]
    code, out, _ = run(capsys, "profile", file, *sizes, "--batch", "2", "--train")
    assert code == 0
    assert "2x3x1x1" in out


def test_draw(capsys, file, tmp_path):
    svg = tmp_path / "net.svg"
    code, out, _ = run(capsys, "draw", file, "-o", str(svg), "--input", "a=1x8x8")
    assert (code, out) == (0, f"{svg} written\n")
    assert ElementTree.parse(svg).getroot().tag.endswith("svg")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["info", "missing.h5"], "missing.h5: No such file"),
        (["info", __file__], "not a dagnn file"),
        (["summary", "{file}", "--input", "c=1x8x8"], "No variable 'c'"),
        (["summary", "{file}", "--input", "a=3x8x8"], "Conv 'conv_a'"),
        (["profile", "{file}"], "give sizes, as in a=3x224x224"),
        (["profile", "{file}", "--input", "a=1x8x8"], "it needs 'b'"),
        (["draw", "{file}", "-o", "missing/net.svg"], "missing/net.svg: No such file"),
    ],
)
def test_errors_are_one_line(capsys, file, argv, message):
    code, out, err = run(capsys, *(arg.format(file=file) for arg in argv))
    assert (code, out) == (1, "")
    assert err.startswith("dagnn: error: ")
    assert err.count("\n") == 1
    assert message in err


@pytest.mark.parametrize("size", ["x", "=3x8x8", "x=", "x=3x", "x=ax8", "x=-1x8x8"])
def test_sizes_that_are_none(capsys, size):
    with pytest.raises(SystemExit) as info:
        cli.main(["summary", "net.h5", "--input", size])
    assert info.value.code == 2
    assert "is not like x=3x224x224" in capsys.readouterr().err


COMMANDS = [[], ["demo"], ["info"], ["summary"], ["profile"], ["draw"], ["run"], ["train"], ["evaluate"]]


@pytest.mark.parametrize("command", COMMANDS)
def test_help_fits_a_terminal(capsys, monkeypatch, command):
    monkeypatch.setenv("COLUMNS", "80")
    with pytest.raises(SystemExit) as info:
        cli.main([*command, "--help"])
    assert info.value.code == 0
    assert max(map(len, capsys.readouterr().out.splitlines())) <= 80


@pytest.mark.parametrize("number", ["0", "-1", "two", "1.5"])
def test_numbers_that_are_none(capsys, number):
    with pytest.raises(SystemExit) as info:
        cli.main(["profile", "net.h5", "--batch", number])
    assert info.value.code == 2
    assert "is not a whole number from 1" in capsys.readouterr().err


def test_without_a_command_or_with_a_wrong_one():
    for argv in ([], ["dmeo"]):
        with pytest.raises(SystemExit) as info:
            cli.main(argv)
        assert info.value.code == 2


def test_interrupted(capsys, monkeypatch, tmp_path):
    def interrupt(out, seed):
        raise KeyboardInterrupt

    monkeypatch.setattr(demo, "run", interrupt)
    code, _, err = run(capsys, "demo", "--out", str(tmp_path))
    assert (code, err) == (1, "dagnn: error: interrupted\n")


def test_as_a_program():
    result = subprocess.run([sys.executable, "-m", "dagnn", "--version"], capture_output=True, text=True)
    assert (result.returncode, result.stdout) == (0, f"dagnn {dagnn.__version__}\n")
