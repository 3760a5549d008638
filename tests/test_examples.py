"""The examples reach what they promise: each fails otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

import dagnn

EXAMPLES = Path(__file__).parents[1] / "examples"
QUICK = ("digits", "fine_tuning", "toy_imdb")
SLOW = (
    "batch_norm",
    "cifar",
    "denoiser",
    "detection",
    "imagenet",
    "mnist",
    "segmentation",
    "spatial_transformer",
)


@pytest.mark.parametrize("name", [*QUICK, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_example(name, tmp_path):
    others = [tmp_path / "out" / folder / "notes.txt" for folder in (".", "net", "data", "images")]
    for file in others:
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("of somebody else")
    done = run(name, "--out", tmp_path / "out")
    assert done.returncode == 0, done.stdout + done.stderr
    assert all(list(file.parent.glob("*.txt")) == [file] for file in others)


@pytest.mark.parametrize(
    ("name", "message"), [("cifar", "has no"), ("imagenet", "images in its folders train and val")]
)
def test_data_that_are_not_there_cost_no_checkpoint(name, message, tmp_path):
    checkpoint = tmp_path / "out" / "net-epoch-3.h5"
    checkpoint.parent.mkdir()
    checkpoint.touch()
    draw(tmp_path / "train" / "n01440764" / "a.JPEG")
    done = run(name, "--data", tmp_path, "--out", tmp_path / "out")
    assert done.returncode and message in done.stderr and checkpoint.exists()


def draw(path):
    path.parent.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(path)


def run(name, *options):
    environment = {**os.environ, "PYTHONPATH": str(Path(dagnn.__file__).parents[1])}
    return subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / f"{name}.py", *options],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip


def test_every_example_is_run():
    files = {path.stem for path in EXAMPLES.glob("*.py")}
    assert files == {*QUICK, *SLOW, "worked_cases", "shapes"}
