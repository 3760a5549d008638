"""cuDNN has plans for what the package asks of it: made for an H200, without any GPU."""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parent / "cuda" / "cudnn_plans.py"


def made(*nets):
    """How many plans were made by kind and precision; the script says what failed."""
    if not find_spec("cudnn"):
        pytest.skip("needs cuDNN: pip install 'dagnn[cuda13]'")
    if not sys.platform.startswith("linux") or not shutil.which("g++"):
        pytest.skip("needs Linux and g++")
    result = subprocess.run([sys.executable, SCRIPT, *nets], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr[-2000:]
    report = json.loads(result.stdout)
    assert report["failed"] == []
    return report["built"]


def test_convolutions_and_derivatives_have_plans_in_every_precision():
    built = made()
    assert {key.split()[0] for key in built} == {"float32", "tf32", "float16", "bfloat16", "float64"}
    assert {key.split()[1] for key in built} == {"fprop", "dgrad", "wgrad"}


@pytest.mark.slow
def test_every_convolution_of_the_zoo_has_a_plan():
    assert sum(made("all").values()) > 8000
