"""Pipelines that a test may damage, and the sentence that refuses them."""

import shutil

import pytest
from pipelines import GOLDEN_PIPELINE

from cogedit.errors import ModelError


@pytest.fixture
def folder(tmp_path):
    """A copy of the golden pipeline."""
    return shutil.copytree(GOLDEN_PIPELINE, tmp_path / "tiny")


@pytest.fixture
def refused():
    """Call with a function that must be refused; returns the error, checked for its form."""

    def call(function, *args, **kwargs):
        with pytest.raises(ModelError) as caught:
            function(*args, **kwargs)
        error = caught.value
        assert error.exit_code == 5
        assert "\n" not in error.message
        assert not error.message.endswith(".")
        return error

    return call
