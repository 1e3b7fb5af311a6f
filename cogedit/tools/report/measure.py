"""The figures and curves of a report."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

from cogedit.artifacts import (
    EditRecord,
    FramesRecord,
    ModelRecord,
    TrajectoryRecord,
    content_key,
    show_size,
)
from cogedit.config import plain_value
from cogedit.stages.pass_times import RunNote
from cogedit.tools.report.contents import NONE, Curve, Facts, Figure, Plot
from cogedit.types import InvertSettings, ReconstructSettings

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor

    from cogedit.media.optical_flow import Flow


@dataclass(frozen=True)
class Source:
    """What edits of one clip are measured against.

    Attributes:
        round_trip: The clip after the VAE, uint8 [F, H, W, 3].
        flow: The clip's motion.
        warp_error: How far the clip itself is from that motion.
    """

    round_trip: NDArray[np.uint8]
    flow: Flow
    warp_error: float


def measure_source(
    frames: NDArray[np.uint8] | None, round_trip: NDArray[np.uint8]
) -> tuple[Source, tuple[Figure, ...]]:
    """Measure a clip itself.

    Args:
        frames: The clip; None where its frames are gone.
        round_trip: The clip after the VAE.
    """
    from cogedit.media.metrics import psnr, ssim
    from cogedit.media.optical_flow import estimate_flow, warp_error

    clip = round_trip if frames is None else frames
    flow = estimate_flow(clip)
    source = Source(round_trip, flow, warp_error(round_trip, flow))
    figures = [Figure("Warp error", _levels(source.warp_error), "of the source after the VAE")]
    if frames is not None:
        against = "its round trip against the clip"
        figures = [
            Figure("PSNR of the VAE", _decibels(psnr(round_trip, frames)), against),
            Figure("SSIM of the VAE", _share(ssim(round_trip, frames)), against),
            *figures,
        ]
    return source, tuple(figures)


def measure_edit(
    clip: NDArray[np.uint8],
    source: Source | None,
    *,
    shown: NDArray[np.uint8],
    mask: NDArray[np.uint8] | None,
    any_mask: bool,
) -> tuple[Figure, ...]:
    """Measure an edit; the names are the same for every edit.

    Args:
        clip: The edit as the model made it, uint8 [F, H, W, 3].
        source: What it is measured against; None where that is gone.
        shown: The edit as it is shown, with the source laid back outside the mask.
        mask: [F, H, W], not 0 where the source may change; None where there is none.
        any_mask: Whether any edit of the report has one.
    """
    from cogedit.media.metrics import psnr, ssim
    from cogedit.media.optical_flow import warp_error

    values = dict.fromkeys(("psnr", "ssim", "warp", "background", "background_ssim"), NONE)
    own = ""
    if source is not None:
        expected = source.round_trip
        values["psnr"] = _decibels(psnr(shown, expected))
        values["ssim"] = _share(ssim(shown, expected))
        values["warp"] = _levels(warp_error(shown, source.flow))
        own = f"; the source's own is {_levels(source.warp_error)}"
        if mask is not None and (mask == 0).any():
            outside = mask == 0
            values["background"] = _decibels(psnr(clip, expected, where=outside))
            values["background_ssim"] = _share(ssim(clip, expected, where=outside))
    shown_note = "as it is after the VAE; over all pixels that are shown"
    figures = [
        Figure("PSNR against the source", values["psnr"], shown_note),
        Figure("SSIM against the source", values["ssim"], shown_note),
        Figure("Warp error", values["warp"], f"along the source's motion{own}"),
    ]
    if any_mask:
        # What is shown there is the source itself: only what the model made tells how well the
        # background was kept.
        note = "what the model made there, before the source after the VAE is put back"
        figures += [
            Figure("Model's PSNR outside the mask", values["background"], note),
            Figure("Model's SSIM outside the mask", values["background_ssim"], note),
        ]
    return tuple(figures)


def inversion_figures(noise: Tensor) -> tuple[Figure, ...]:
    """Measure the noise that an inversion ended in, [B, F', C, H', W']."""
    return (Figure("Noise", f"{float(noise.std()):.3f}", "standard deviation; 1 is right"),)


def time_figure(note: RunNote | None) -> Figure:
    """Say how long the steps of an inversion or an edit took, if that was noted."""
    if note is None or note.seconds is None:
        return Figure("Time", NONE, "")
    said = [f"of the steps, on {note.device}"]
    if len(note.content_keys) > 1:
        said.append(f"{len(note.content_keys)} edits in one pass")
    if note.peak_bytes is not None:
        said.append(f"at most {show_size(note.peak_bytes)} of its memory")
    minutes, seconds = divmod(round(note.seconds), 60)
    value = f"{minutes} min {seconds} s" if minutes else f"{note.seconds:.1f} s"
    return Figure("Time", value, "; ".join(said))


def residual_plot(note: RunNote | None) -> tuple[Plot, ...]:
    """Plot how large the last correction of every inverse step was, if that was noted."""
    steps = () if note is None else note.steps
    points = tuple((float(at), size) for at, size, _ in steps if size is not None and size > 0)
    if len(points) < 2:
        return ()
    curve = Curve("size of the last correction, relative", points)
    return (Plot("Residual by noise level", "timestep", (curve,), is_logarithmic=True),)


def norm_plot(
    timesteps: list[int], samples: Tensor, clean: Tensor, *, alphas_cumprod: Tensor
) -> Plot:
    """Plot how large the latents of an inversion are at every level.

    Args:
        timesteps: N levels, rising.
        samples: [N, B, F', C, H', W'].
        clean: z0, [B, F', C, H', W'].
        alphas_cumprod: The scheduler's table, [T].
    """
    size = _rms(clean)
    expected = [math.sqrt(a * size**2 + 1 - a) for a in alphas_cumprod[timesteps].tolist()]
    own = [_rms(sample) for sample in samples]
    return Plot(
        "Latent norm by noise level",
        "timestep",
        (
            Curve(
                "inversion, root mean square", tuple(zip(map(float, timesteps), own, strict=True))
            ),
            Curve(
                "the clip under Gaussian noise",
                tuple(zip(map(float, timesteps), expected, strict=True)),
                is_reference=True,
            ),
        ),
    )


def edit_norm_plot(
    timesteps: list[int], samples: Tensor, inversion: tuple[tuple[float, float], ...]
) -> Plot:
    """Plot how large the latents of an edit are after every step.

    Args:
        timesteps: The N levels that the steps arrived at, falling; -1 is the clean sample.
        samples: [N, B, F', C, H', W'].
        inversion: The same of the source's inversion, (timestep, norm).
    """
    # The clean sample's level, -1, lies next to 0 and would only bring a tick of its own.
    levels = [max(0.0, timestep) for timestep in timesteps]
    own = tuple(zip(levels, (_rms(sample) for sample in samples), strict=True))
    curves = [Curve("edit, root mean square", own)]
    if inversion:
        curves.append(Curve("inversion of the source", inversion, is_reference=True))
    return Plot("Latent norm by step", "timestep", tuple(curves), is_falling=True)


def clip_facts(frames: FramesRecord) -> Facts:
    """Describe a video and the clip that was taken from it."""
    source, indices = frames.source, frames.frame_indices
    return (
        ("Video", source.name),
        ("Its size", f"{source.width}x{source.height}, {float(source.fps):.6g} fps"),
        ("Clip", f"{len(indices)} frames, {indices[0]} to {indices[-1]} of {source.num_frames}"),
        (
            "Clip size",
            f"{frames.settings.width}x{frames.settings.height} ({frames.settings.resize_mode}), "
            f"{float(frames.fps):.6g} fps",
        ),
        ("sha256", source.sha256[:16]),
    )


def inversion_facts(record: TrajectoryRecord) -> Facts:
    """Describe how a clip was inverted."""
    return (*settings_facts(record.settings), ("model", model_text(record.model)))


def model_text(model: ModelRecord) -> str:
    """Name a model and the type that it computed in."""
    at = "" if model.revision is None else f" at {model.revision[:12]}"
    return f"{model.id}{at}, {model.dtype}"


def changed_facts(record: EditRecord) -> Facts:
    """List the mask that an edit was given, and its settings that are not the defaults."""
    beside = ReconstructSettings(record.settings.prompt)
    return (*_mask_facts(record), *settings_facts(record.settings, beside=beside))


def all_facts(record: EditRecord) -> Facts:
    """List the mask that an edit was given, and all its settings that have a value."""
    return (*_mask_facts(record), *settings_facts(record.settings))


def distinct_facts(records: Sequence[EditRecord]) -> tuple[Facts, ...]:
    """List, for each edit, what is not the same in all the edits under its prompt."""
    traits = [_traits(record) for record in records]
    found = []
    for record, own in zip(records, traits, strict=True):
        same = [
            other
            for one, other in zip(records, traits, strict=True)
            if one.settings.prompt == record.settings.prompt
        ]
        facts = [
            (name, text) for name, text in own.items() if any(one[name] != text for one in same)
        ]
        if same.count(own) > 1:
            facts.append(("content key", content_key(record)[:12]))
        found.append(tuple(facts))
    return tuple(found)


def _traits(record: EditRecord) -> dict[str, str]:
    """Name all that people choose for an edit, the same names for every edit."""
    chosen = fields(record.settings)
    return {
        "mask": "none",
        **dict(_mask_facts(record)),
        **{_option(item.name): _text(getattr(record.settings, item.name)) for item in chosen},
        # As the page's headings name it.
        "inversion": content_key(record.trajectory)[:12],
        "model": model_text(record.model),
    }


def _mask_facts(record: EditRecord) -> Facts:
    if record.mask is None:
        return ()
    return (("mask", f"{record.mask.kind} {record.mask.name}"),)


def settings_facts(
    settings: ReconstructSettings | InvertSettings, *, beside: ReconstructSettings | None = None
) -> Facts:
    """List settings that have a value by name, without the prompt of an edit.

    Args:
        settings: What to list.
        beside: Leave out what is the same there.
    """
    facts = []
    for item in fields(settings):
        value: object = getattr(settings, item.name)
        if item.name == "prompt" and isinstance(settings, ReconstructSettings):
            continue
        if value is not None and (beside is None or value != getattr(beside, item.name)):
            facts.append((_option(item.name), _text(value)))
    return tuple(facts)


def _option(name: str) -> str:
    return name.replace("_", "-")


def _text(value: object) -> str:
    """Write a setting's value as TOML has it, without quotes."""
    plain = plain_value(value)
    if plain is None:
        return "auto"
    text = plain if isinstance(plain, str) else json.dumps(plain)
    return text or "(empty)"


def _rms(sample: Tensor) -> float:
    return float(sample.double().square().mean().sqrt())


def _decibels(value: float) -> str:
    from cogedit.media.metrics import MAX_PSNR

    if math.isnan(value):
        return NONE
    return "identical" if value == MAX_PSNR else f"{value:.1f} dB"


def _share(value: float) -> str:
    return NONE if math.isnan(value) else f"{value:.3f}"


def _levels(value: float) -> str:
    return NONE if math.isnan(value) else f"{value:.2f}"
