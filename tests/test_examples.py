"""The examples reach what they promise: each fails otherwise."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

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
    environment = {**os.environ, "PYTHONPATH": str(Path(dagnn.__file__).parents[1])}
    done = subprocess.run(
        [sys.executable, "-W", "error", EXAMPLES / f"{name}.py", "--out", tmp_path / "out"],
        env=environment, capture_output=True, text=True, timeout=600, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_example_is_run():
    files = {path.stem for path in EXAMPLES.glob("*.py")}
    assert files == {*QUICK, *SLOW, "worked_cases", "shapes"}
