"""Examples in docstrings and pages write their files into a folder of their own."""

import doctest

import pytest


@pytest.fixture(autouse=True)
def _folder_for_examples(request, tmp_path_factory, monkeypatch):
    if isinstance(getattr(request.node, "dtest", None), doctest.DocTest):
        monkeypatch.chdir(tmp_path_factory.mktemp("example"))
