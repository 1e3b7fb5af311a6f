"""Small CogVideoX pipelines with real diffusers classes and random weights, saved to a folder."""

import json
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXTransformer3DModel
from schedules import forward_scheduler

import cogedit
import cogedit.stages.decode
from cogedit import stages
from cogedit.models.vae import decode_pieces

GOLDEN = Path(__file__).parent / "data" / "golden"
GOLDEN_PIPELINE = GOLDEN / "pipeline"
TRANSFORMER = {
    "num_attention_heads": 2,
    "attention_head_dim": 16,
    "in_channels": 16,
    "out_channels": 16,
    "time_embed_dim": 16,
    "text_embed_dim": 32,
    "num_layers": 2,
    "sample_width": 8,
    "sample_height": 8,
    "sample_frames": 9,
    "max_text_seq_length": 16,
}
VAE = {
    "block_out_channels": (2, 2, 2, 2),
    "layers_per_block": 1,
    "norm_num_groups": 2,
    "latent_channels": 16,
    "scaling_factor": 0.7,
    "sample_height": 64,
    "sample_width": 96,
}
"""A tenth of the work of the golden one: no number of it is stored."""


def make_pipeline(folder, *, snr_shift_scale=1.0, invert_scale_latents=False, **transformer):
    """Write a pipeline with the golden texts, and a VAE and transformer of random weights."""
    golden = shutil.ignore_patterns("transformer", "vae", "scheduler")
    shutil.copytree(GOLDEN_PIPELINE, folder, ignore=golden)
    with torch.random.fork_rng():
        torch.manual_seed(5)
        model = CogVideoXTransformer3DModel(**(TRANSFORMER | transformer))
        vae = AutoencoderKLCogVideoX(**VAE, invert_scale_latents=invert_scale_latents)
        if model.config.use_learned_positional_embeddings:  # unlike those that it would compute
            model.patch_embed.pos_embedding += torch.randn(model.patch_embed.pos_embedding.shape)
    model.save_pretrained(folder / "transformer")
    vae.save_pretrained(folder / "vae")
    forward_scheduler(snr_shift_scale).save_pretrained(folder / "scheduler")
    if model.config.in_channels == 2 * VAE["latent_channels"]:
        index = json.loads((folder / "model_index.json").read_text())
        index["_class_name"] = "CogVideoXImageToVideoPipeline"
        (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def make_2b_like(folder):
    """Sin-cos positions and shifted noise levels."""
    return make_pipeline(
        folder,
        snr_shift_scale=3.0,
        use_rotary_positional_embeddings=False,
        spatial_interpolation_scale=1.0,
    )


def make_5b_like(folder):
    """Rotary positions and unshifted levels."""
    return make_pipeline(folder, use_rotary_positional_embeddings=True)


def make_15_like(folder):
    """Rotary positions and two latent frames to a token."""
    return make_pipeline(
        folder, use_rotary_positional_embeddings=True, patch_size_t=2, patch_bias=False
    )


def make_i2v_like(folder):
    """5B's, from a first frame, with learned positions: for 9 frames of 64x96 alone."""
    return make_pipeline(
        folder,
        in_channels=32,
        sample_width=12,
        use_rotary_positional_embeddings=True,
        use_learned_positional_embeddings=True,
    )


def make_15_i2v_like(folder):
    """1.5's, from a first frame, which its VAE scales the other way, with an offset embedding."""
    return make_pipeline(
        folder,
        invert_scale_latents=True,
        in_channels=32,
        sample_width=12,
        use_rotary_positional_embeddings=True,
        patch_size_t=2,
        patch_bias=False,
        ofs_embed_dim=16,
    )


_HOME = tempfile.TemporaryDirectory(prefix="cogedit-tests-")
TINY_PIPELINE = make_pipeline(
    Path(_HOME.name) / "tiny",
    sample_width=12,
    max_text_seq_length=64,
    use_rotary_positional_embeddings=True,
)
"""For clips of 64x96, which tests do not change."""
TINY_MODEL = ("--model", str(TINY_PIPELINE), "--dtype", "fp32", "--device", "cpu")
"""The options of a command that runs the tiny pipeline."""


def small_settings(source, *, config=None, cwd=None, **flags):
    """Settings of the tiny pipeline on the CPU in float32; `load__width` is "load.width"."""
    usual = {"model": str(TINY_PIPELINE), "dtype": "fp32", "device": "cpu"}
    dotted = {key.replace("__", "."): value for key, value in flags.items()}
    return cogedit.settings_for(source, usual | dotted, config=config, environ={}, cwd=cwd).settings


def tiny_settings(video: Path, flags: Mapping[str, object]):
    """Settings of stages over a video with the tiny pipeline; `flags` add to them.

    The artifacts lie beside the video, and two inference steps are what an inversion needs.
    """
    usual = {"workspace": video.with_suffix(".cogedit"), "invert.num_inference_steps": 2}
    return small_settings(video, cwd=video.parent, **{**usual, **flags})


def tiny_artifacts(video: Path, flags: Mapping[str, object]) -> dict[str, Path]:
    """Run the stages up to the inversion; the video and the artifacts by kind."""

    settings = tiny_settings(video, flags)
    return {
        "video": video,
        "frames": cogedit.load(video, settings).path,
        "latents": cogedit.encode(video, settings).path,
        "trajectory": cogedit.invert(video, settings).path,
    }


def settings_of(video, **flags):
    """Settings of the tiny pipeline for a video: 9 frames, 3 steps, artifacts beside it."""
    usual = {
        "workspace": video.parent / "clip.cogedit",
        "load__max_num_frames": 9,
        "load__frame_rate": "spread",
        "load__resize_mode": "stretch",
        "invert__num_inference_steps": 3,
        "reconstruct__guidance_scale": 1.0,
    }
    return small_settings(video, cwd=video.parent, **usual | flags)


def settings_here(source, **flags):
    """Settings of the tiny pipeline as a command would take them: 9 frames, 2 steps."""
    usual = {
        "load__max_num_frames": 9,
        "invert__num_inference_steps": 2,
        "reconstruct__guidance_scale": 1.0,
    }
    return small_settings(source, **usual | flags)


def decode(artifact, settings):
    """All frames that an artifact shows, [F, H, W, 3]."""
    return _all_frames(stages.decode.decode, artifact, settings)


def decode_source(trajectory, settings):
    """All frames of a trajectory's source after the VAE, [F, H, W, 3]."""
    return _all_frames(stages.decode.decode_source, trajectory, settings)


def _all_frames(decode_it, path, settings):
    with stages.Session() as session:
        stream = decode_it(path, settings, session=session, run=cogedit.Run())
        frames = np.stack(list(stream.frames))
    assert frames.shape == (stream.num_frames, stream.height, stream.width, 3)
    return frames


def decode_latents(vae, latents, **options):
    """Decode latents to a clip [F, C, H, W] on the CPU; options are those of `decode_pieces`."""
    return torch.cat([piece.cpu() for piece in decode_pieces(vae, latents, **options)])
