"""Flags of a stage that an artifact is past: the value it was made with may be said again.

So a shell loop may pass the same flags to every stage.
"""

from __future__ import annotations

import shlex
from dataclasses import replace
from pathlib import Path
from typing import cast

from cogedit.artifacts import (
    MADE_BY,
    EditRecord,
    FramesRecord,
    LatentsRecord,
    Record,
    TrajectoryRecord,
    chain_of,
    frames_record,
)
from cogedit.cli.flags import flag_for
from cogedit.clip_times import parse_time
from cogedit.config import Settings, all_settings
from cogedit.errors import UsageError
from cogedit.schema import show_value
from cogedit.stages.model import are_same_loras, checkpoint_for, lora_records
from cogedit.types import LoraFile, Loras

_LORAS = {"lora": "reconstruct", "inversion_lora": "invert"}
"""Settings that are of the model, and whose stage is one."""


def stage_of(key: str) -> str:
    """Return the stage that a setting belongs to, by its dotted key."""
    return _LORAS.get(key) or key.partition(".")[0]


def check_repeated(
    source: Path, record: Record, key: str, settings: Settings, *, flag: str
) -> None:
    """Refuse a flag with another value than an artifact was made with.

    Args:
        source: The artifact.
        record: Its record.
        key: Dotted key of a setting of a stage that the artifact is past.
        settings: Those of the run, the flag among them.
        flag: Its name, for the error.

    Raises:
        UsageError: With both values, and the command that makes such an artifact.
    """
    stage, name = stage_of(key), key.rpartition(".")[2]
    link = next(link for link in chain_of(record) if MADE_BY[link.kind] == stage)
    given: object = getattr(settings if key in _LORAS else getattr(settings, stage), name)
    made: object = given if key in _LORAS else getattr(link.settings, name)
    if key in _LORAS and isinstance(link, TrajectoryRecord | EditRecord):
        added = lora_records(checkpoint_for(settings), cast(Loras, given))
        if not are_same_loras(added, link.model.lora):
            made = tuple(LoraFile(Path(lora.name), lora.scale) for lora in link.model.lora)
    source_video = frames_record(record).source
    if key == "load.fps":  # it is recorded as the rate of a source that has none of its own
        made = source_video.fps if source_video.is_untimed else given
    if isinstance(link, FramesRecord) and key == "load.start" and made is None:
        # It begins after the frames that it skips; where it skips none, at 0.
        if link.settings.skip_frames_start:
            made = f"{link.settings.skip_frames_start}f"
        elif parse_time(given).at(source_video.fps) == 0:
            return
    if isinstance(link, LatentsRecord) and key == "encode.vae_span":
        # It is recorded where the clip is longer: otherwise one span holds all of it.
        num_frames = len(link.frames.frame_indices)
        given, made = (
            None if span is None or span >= num_frames else span
            for span in (settings.encode.vae_span, link.settings.vae_span)
        )
    if isinstance(link, TrajectoryRecord) and key == "invert.window_overlap":
        # It is recorded with the windows, where a clip has several.
        made = given if given is None or link.windows is None else link.windows.overlap
    if isinstance(link, TrajectoryRecord) and key == "invert.low_levels":
        # Those of an inversion in so many steps.
        asked = replace(link.settings, low_levels=settings.invert.low_levels)
        given, made = asked.num_low_levels, link.settings.num_low_levels
    if isinstance(link, EditRecord):
        # A record keeps neither a number of steps that is the inversion's, nor a seed without use.
        if key == "reconstruct.num_inference_steps":
            all_steps = link.trajectory.settings.num_levels
            given, made = given or all_steps, made or all_steps
        if key == "reconstruct.seed" and not link.settings.draws_noise:
            return
    if given == made:
        return
    command = MADE_BY[record.kind]
    words = ["cogedit", command, source_video.place]
    if isinstance(record, EditRecord):
        words += ["--prompt", record.settings.prompt]
        if record.first_frame is not None:
            words += ["--first-frame", record.first_frame.name]
    again = shlex.join([*words, *_option(key, given, tables=[command])])
    tiles = "; --decode-tiling decodes in tiles" if key == "encode.vae_tiling" else ""
    raise UsageError(
        f"{flag} is {_text(key, given)}, but {source} was made {_with(key, made)}",
        hint=f"leave {flag} out, or make another with the same flags: {again}{tiles}",
    )


def _option(key: str, value: object, *, tables: list[str]) -> list[str]:
    flag = flag_for(key, tables)
    if isinstance(value, bool):
        return [flag if value else f"--no-{flag[2:]}"]
    if all_settings()[key].is_list:
        return [word for item in cast(Loras, value) for word in (flag, str(item))] or [flag, "none"]
    return [flag, _text(key, value)]


def _with(key: str, value: object) -> str:
    """Say with what an artifact was made; a default that has no word of its own is explained."""
    setting = all_settings()[key]
    if value is None and not setting.has_auto:
        return f"without it (default: {setting.default_text})"
    return f"with {_text(key, value)}"


def _text(key: str, value: object) -> str:
    return all_settings()[key].none_text if value is None else show_value(value)
