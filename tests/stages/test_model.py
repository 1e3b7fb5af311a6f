"""Which number format a model runs in, where nobody says it."""

from dataclasses import replace

import pytest
from pipelines import TINY_PIPELINE, settings_of, tiny_settings

from cogedit.models.checkpoint import find_checkpoint
from cogedit.stages.model import dtype_for, dtype_note, suitable_dtype
from cogedit.stages.settings import settings_for

LARGE = {"transformer": 1_700_000_000, "text_encoder": 4_700_000_000}


def model(stored, *, is_rotary=False, sizes=LARGE):
    """The tiny checkpoint with weights of another format and number."""
    config = {"use_rotary_positional_embeddings": is_rotary}
    return replace(
        find_checkpoint(str(TINY_PIPELINE)),
        stored_dtype=stored,
        num_parameters=sizes,
        transformer_config=config,
    )


@pytest.mark.parametrize(
    ("stored", "is_rotary", "on_cuda", "on_mps"),
    [
        ("fp16", False, "fp16", "fp16"),  # 2B as published
        ("bf16", True, "bf16", "bf16"),  # 5B and 1.5
        ("fp16", True, "bf16", "bf16"),  # a 5B that somebody rounded
        ("fp32", True, "bf16", "fp32"),
    ],
)
def test_on_a_gpu_it_follows_the_weights(stored, is_rotary, on_cuda, on_mps):
    checkpoint = model(stored, is_rotary=is_rotary)
    assert suitable_dtype(checkpoint, "cuda") == on_cuda
    assert suitable_dtype(checkpoint, "mps") == on_mps


@pytest.mark.parametrize("stored", ["fp16", "bf16", "fp32"])
@pytest.mark.parametrize("has_bf16", [True, False])
def test_on_a_cpu_it_is_what_that_computes_fast(monkeypatch, stored, has_bf16):
    monkeypatch.setattr("cogedit.stages.model.cpu_computes_bf16", lambda: has_bf16)
    expected = "bf16" if has_bf16 and stored != "fp32" else "fp32"
    assert suitable_dtype(model(stored), "cpu") == expected
    # A small one, such as the embedded model, is not worth rounding for.
    assert suitable_dtype(model(stored, sizes={"transformer": 10**6}), "cpu") == "fp32"


def test_neither_the_name_of_a_folder_nor_the_preset_decides(tmp_path):
    for name in ("CogVideoX-2b", "0123456789abcdef"):
        folder = tmp_path / name
        folder.symlink_to(TINY_PIPELINE)
        found = settings_for(
            None, {"model": str(folder), "device": "cpu"}, environ={}, cwd=tmp_path
        )
        assert found.settings.dtype is None
        assert dtype_for(found.settings) == "fp32"


def test_a_format_that_differs_from_the_weights_is_said_unless_it_was_chosen(tmp_path):
    video = tmp_path / "clip.mp4"
    video.touch()
    chosen = tiny_settings(video, {"dtype": "bf16"})
    assert dtype_note(chosen) is None
    assert dtype_note(settings_of(video, dtype="auto")) is None
    on_cuda = settings_of(video, dtype="auto", device="cuda")
    assert dtype_for(on_cuda) == "bf16"
    note = dtype_note(on_cuda)
    assert note is not None
    assert "fp32" in note
    assert "bf16" in note
