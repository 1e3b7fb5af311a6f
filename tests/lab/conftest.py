"""A pipeline with random weights, made for clips of the shapes world."""

import pytest
from pipelines import make_pipeline


@pytest.fixture(scope="session")
def world_pipeline(tmp_path_factory):
    """Folder of a tiny pipeline for 9 frames of 64x64."""
    folder = tmp_path_factory.mktemp("models") / "tiny-world"
    return make_pipeline(folder, use_rotary_positional_embeddings=True)
