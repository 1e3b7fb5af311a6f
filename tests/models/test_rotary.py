"""Positions agree with those that `CogVideoXPipeline` prepares, at any size."""

import pytest
import torch
from diffusers import CogVideoXPipeline, CogVideoXTransformer3DModel
from pipelines import TRANSFORMER

from cogedit.models.rotary import image_rotary_emb


@pytest.mark.parametrize("patch_size_t", [None, 2])
@pytest.mark.parametrize("size", [(60, 90), (90, 60), (48, 48), (30, 52), (64, 62)])
def test_agrees_with_the_pipeline(golden_pipeline, patch_size_t, size):
    base = (
        {"sample_height": 60, "sample_width": 90}
        if patch_size_t is None
        else {"sample_height": 96, "sample_width": 170}
    )
    transformer = CogVideoXTransformer3DModel(
        **(TRANSFORMER | base),
        use_rotary_positional_embeddings=True,
        patch_size_t=patch_size_t,
        patch_bias=patch_size_t is None,
    )
    pipe = CogVideoXPipeline(**(golden_pipeline.components | {"transformer": transformer}))
    expected = pipe._prepare_rotary_positional_embeddings(
        8 * size[0], 8 * size[1], 4, torch.device("cpu")
    )
    cos, sin = image_rotary_emb(transformer, (4, *size))
    assert torch.equal(cos, expected[0])
    assert torch.equal(sin, expected[1])


def test_a_model_with_sin_cos_positions_has_none():
    assert image_rotary_emb(CogVideoXTransformer3DModel(**TRANSFORMER), (3, 8, 8)) is None


@pytest.mark.parametrize("size", [(170, 96), (120, 120), (98, 172)])
def test_15_counts_on_beyond_its_grid(size):
    """A portrait clip of 1.5 is taller than its grid; diffusers itself runs out of positions."""

    def positions(height, width):
        transformer = CogVideoXTransformer3DModel(
            **(TRANSFORMER | {"sample_height": height, "sample_width": width}),
            use_rotary_positional_embeddings=True,
            patch_size_t=2,
            patch_bias=False,
        )
        return image_rotary_emb(transformer, (4, *size))

    cos, sin = positions(96, 170)
    assert cos.shape == sin.shape == (2 * (size[0] // 2) * (size[1] // 2), 16)
    wide_cos, wide_sin = positions(300, 300)
    assert torch.equal(cos, wide_cos)
    assert torch.equal(sin, wide_sin)
