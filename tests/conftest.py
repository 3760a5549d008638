"""Fixtures shared by all tests."""

import os

import pytest
from hypothesis import HealthCheck, settings

from dagnn.backends import NAMES, get
from dagnn.errors import BackendError

# How long an example takes is the machine's business; in CI the examples are always the same.
settings.register_profile(
    "dagnn",
    deadline=None,
    derandomize=bool(os.environ.get("CI")),
    suppress_health_check=[HealthCheck.too_slow],
)
settings.load_profile("dagnn")


@pytest.fixture(params=NAMES, scope="session")
def backend(request):
    """Every backend in turn; one that cannot run here is skipped, saying why."""
    try:
        return get(request.param)
    except BackendError as error:
        pytest.skip(str(error))
