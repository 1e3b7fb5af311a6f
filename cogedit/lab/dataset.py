"""The transformer's training set: clips as latents of the frozen VAE, and their captions."""

from __future__ import annotations

import logging

import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXPipeline

from cogedit.lab.components import MAX_TEXT_SEQ_LENGTH
from cogedit.lab.replicas import run_processes, shared_zeros
from cogedit.lab.train_vae import encode_frames, render_batch
from cogedit.shapes import world

logger = logging.getLogger(__name__)

# How often a clip is shown with a caption of each length: the empty one is the drop of 12 % that
# guidance needs.
CAPTION_SHARES: dict[world.CaptionLength, float] = {
    "full": 0.60,
    "background": 0.10,
    "motion": 0.09,
    "short": 0.09,
    "empty": 0.12,
}


def encode_clips(
    vae: AutoencoderKLCogVideoX, num_clips: int, *, split: world.Split, processes: int = 1
) -> torch.Tensor:
    """Render and encode the clips of the seeds 0 to num_clips - 1, in bf16 precision.

    Args:
        vae: The frozen codec.
        num_clips: How many.
        split: Their split.
        processes: Number of processes that share the work, on a CPU.

    Returns:
        [N, F', C, H', W'] bfloat16 latents on the CPU.

    Raises:
        RuntimeError: If a process has failed.
    """
    shape = encode_frames(vae, render_batch(range(1), split)).shape[1:]
    latents = shared_zeros(num_clips, *shape, dtype=torch.bfloat16)

    def work(rank: int) -> None:
        for first in range(rank * 32, num_clips, processes * 32):
            seeds = range(first, min(first + 32, num_clips))
            with torch.autocast(vae.device.type, torch.bfloat16):
                encoded = encode_frames(vae, render_batch(seeds, split))
            latents[first : first + len(seeds)] = encoded.bfloat16().cpu()
            if rank == 0 and (first // 32) % 64 == 0:
                logger.info("%d of %d clips encoded", first, num_clips)

    run_processes(processes, work)
    return latents


def tokenize_captions(
    pipeline: CogVideoXPipeline, num_clips: int, *, split: world.Split
) -> torch.Tensor:
    """Return the tokens of the clips' captions in every length.

    Args:
        pipeline: Its tokenizer is used.
        num_clips: The clips of the seeds 0 to num_clips - 1.
        split: Their split.

    Returns:
        [N, lengths, `MAX_TEXT_SEQ_LENGTH`] int64, the lengths in the order of `CAPTION_SHARES`.
    """
    captions = [
        world.caption(world.sample_spec(seed, split), length)
        for seed in range(num_clips)
        for length in CAPTION_SHARES
    ]
    tokens: torch.Tensor = pipeline.tokenizer(
        captions,
        padding="max_length",
        max_length=MAX_TEXT_SEQ_LENGTH,
        truncation=True,
        return_tensors="pt",
    ).input_ids
    return tokens.reshape(num_clips, len(CAPTION_SHARES), MAX_TEXT_SEQ_LENGTH)
