"""Fixtures shared by all tests."""

import os
import sys

import cudnn_on_cpu
import emulated as stand_in
import pytest
from hypothesis import HealthCheck, settings

from dagnn.backends import NAMES, get
from dagnn.backends.cupy import CuPyBackend
from dagnn.errors import BackendError

# How long an example takes is the machine's business; in CI the examples are always the same.
settings.register_profile(
    "dagnn",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("dagnn")


@pytest.fixture(params=[*NAMES, "cupy-emulated"], scope="session")
def backend(request):
    """Every backend in turn, CuPy's on a CPU too; one that cannot run here is skipped, saying why."""
    if request.param == "cupy-emulated":
        return request.getfixturevalue("emulated")
    try:
        return get(request.param)
    except BackendError as error:
        pytest.skip(str(error))


@pytest.fixture(scope="session")
def emulated():
    """The CuPy backend on a CPU: its own Python code and kernels over a module that stands for CuPy."""
    return emulate()


def emulate():
    """A CuPyBackend on the emulated CuPy; skips where there is no compiler.

    With DAGNN_TEST_GPU=1 in the environment it is the real one, on the GPU.
    """
    if os.environ.get("DAGNN_TEST_GPU") == "1":
        return CuPyBackend()
    if why := stand_in.missing():
        pytest.skip(why)
    with pytest.MonkeyPatch.context() as patch:
        stand_in.installed(patch)
        patch.setitem(sys.modules, "cudnn", cudnn_on_cpu.make())
        backend = CuPyBackend()
        assert backend._dnn, "cuDNN's stand-in isn't there"  # which is looked for when it is first needed
        return backend
