"""Fixtures shared by all tests."""

import pytest

from dagnn.backends import NAMES, get
from dagnn.errors import BackendError


@pytest.fixture(params=NAMES, scope="session")
def backend(request):
    """Every backend in turn; one that cannot run here is skipped, saying why."""
    try:
        return get(request.param)
    except BackendError as error:
        pytest.skip(str(error))
