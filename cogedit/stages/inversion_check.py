"""How good an inversion is: does plain sampling from its noise return to the clip?"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from cogedit.artifacts import num_pad_frames, read_artifact
from cogedit.config import Settings
from cogedit.models.cost import edit_work, latent_shape
from cogedit.stages.model import check_same_model, checkpoint_for
from cogedit.stages.run import Run
from cogedit.stages.session import Parts
from cogedit.types import ReconstructSettings


@dataclass(frozen=True)
class InversionCheck:
    """The quality of an inversion.

    Attributes:
        psnr: The resampled clip against the VAE's round trip of the source, in dB.
        std: Standard deviation of the noise; 1 is right.
    """

    psnr: float
    std: float


def check_inversion(
    trajectory: str | Path, settings: Settings, *, run: Run | None = None
) -> InversionCheck:
    """Sample from a trajectory's noise under its own prompt, without guidance, and compare.

    Costs as many model calls as the inversion has levels.

    Args:
        trajectory: The artifact.
        settings: `model`, `device` and `dtype`.
        run: How to run; None is silent.

    Raises:
        ArtifactError: It is no trajectory, of another model, or damaged.
        ModelError: The model is missing or incomplete.
        DeviceMemoryError: The device is full.
    """
    from cogedit.diffusion.trajectory import Trajectory
    from cogedit.media.metrics import psnr
    from cogedit.models.device import memory_guard, release_memory
    from cogedit.models.loading import alphas_cumprod
    from cogedit.models.sampling import edit_latents
    from cogedit.models.vae import decode_latents

    trajectory, run = Path(trajectory), run or Run()
    artifact = read_artifact(trajectory, "trajectory")
    record, tensors = artifact.record, artifact.tensors
    checkpoint = checkpoint_for(settings)
    check_same_model(str(trajectory), record, checkpoint)
    parts = Parts(checkpoint, settings, run=run)
    timesteps = tuple(int(t) for t in tensors["timesteps"])
    inverted = Trajectory(tensors["trajectory"], tensors["latents"], timesteps)
    prompt = record.settings.prompt
    plain = ReconstructSettings(
        prompt=prompt, guidance_scale=1.0, start="inverted", injection_strength=0.0
    )
    with memory_guard("checking the inversion"):
        embeds = parts.embed(["", prompt])
        shape = latent_shape(inverted.latents)
        work = edit_work([plain], record.settings, parts.sizes, shape)
        transformer = parts.transformer(work, shape)
        with parts.running(transformer), run.progress("resampling", len(timesteps)) as on_step:
            samples = edit_latents(
                transformer,
                inverted,
                [plain],
                inversion_prompts=[prompt],
                alphas_cumprod=alphas_cumprod(checkpoint),
                embeds=embeds,
                options=settings.transformer,
                on_step=on_step,
            )
        del transformer  # the decoding needs its memory
        release_memory(parts.device)
        vae = parts.vae()
        pad = num_pad_frames(record)
        resampled, round_trip = (
            (decode_latents(vae, latents[:, pad:]).clamp(-1, 1).cpu().numpy() + 1) * 127.5
            for latents in (samples[-1], inverted.latents)
        )
    return InversionCheck(psnr(resampled, round_trip), float(inverted.noise.std()))
