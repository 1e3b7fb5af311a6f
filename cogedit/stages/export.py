"""export: any artifact -> a video file."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

from cogedit.artifacts import (
    EditRecord,
    FramesRecord,
    content_key,
    frames_record,
    in_use,
    read_artifact,
    read_record,
    sniff_kind,
)
from cogedit.config import Settings
from cogedit.errors import ArtifactError, UsageError, VideoError
from cogedit.media.encoding import Encoding, plan_encoding
from cogedit.media.probe import probe_facts
from cogedit.media.recipe_comment import find_comment
from cogedit.stages.composite import composite_for
from cogedit.stages.decode import Decoder
from cogedit.stages.load import check_size_of_clip
from cogedit.stages.model import dtype_for
from cogedit.stages.recipe import Recipe, read_recipe
from cogedit.stages.run import Exported, Run, check_output, check_writable, workspace_for
from cogedit.stages.source import FoundSource, find_source, keeps_time, resize_plan
from cogedit.stages.source_frames import check_originals, source_frames

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cogedit.media.edges import Change
    from cogedit.media.writer import FrameStream


@dataclass(frozen=True)
class _Job:
    """One export.

    Attributes:
        artifact: What is shown.
        settings: Of the run.
        recipe: How, once it is known whether there is sound.
        path: The video.
        may_replace: Whether another file may be replaced.
        run: Whom to tell.
        silent: Why the clip has no sound though its source has; None if it has or need not.
    """

    artifact: Path
    settings: Settings
    recipe: Recipe
    path: Path
    may_replace: bool
    run: Run
    silent: str | None = None


def export(
    source: str | Path,
    settings: Settings,
    *,
    output: Path | None = None,
    source_video: Path | None = None,
    with_source: bool = False,
    run: Run | None = None,
    decoder: Decoder | None = None,
) -> Exported:
    """Write an artifact as a video.

    An edit and latents are decoded; frames are written as they are, which gives the source clip;
    of a trajectory its noise end is decoded, the upstream script's inversion video. An export of
    the same artifact that is in the way is replaced; any other file only by force, and only where
    `output` names it. Of an edit with a mask, what lies outside is the source's.

    The source video is looked for in the current directory, beside the artifact and in the folder
    above, and known by its digest. Without it there is no sound, which is said; what a crop left
    out is not to be had either, which is an error.

    Args:
        source: The artifact.
        settings: `export`; `model`, `dtype`, `device` and `encode` where something is decoded.
        output: The video, or under the codec png the folder; None is the artifact's name with the
            codec's suffix, beside it.
        source_video: The video that the clip was taken from; None is looked for.
        with_source: Write the source clip beside it, as NAME-source: same frames, size and codec.
        run: How to run; None is silent.
        decoder: A decoder of these settings that is loaded already.

    Raises:
        ArtifactError: The source is no artifact, of another model, or damaged.
        UsageError: Another file is in the way, the codec, suffix and size do not go together, or a
            composite is asked for where there is no mask.
        VideoError: The source video is needed and not there.
        ModelError: The model is missing or incomplete.
        StorageError: The video cannot be written.
    """
    job = _job(Path(source), settings, output=output, run=run or Run())
    exported = _export(job, source_video, decoder=decoder)
    if not with_source:
        return exported
    frames = frames_record(job.recipe.record)
    clip = replace(
        job.recipe,
        record=frames,
        composite="none",
        feather=0,
        align_edges=0,
        dtype=None,
        vae_tiling=None,
    )
    beside = job.path.with_name(f"{job.path.stem}-source{job.path.suffix}")
    shown = _export(replace(job, recipe=clip, path=beside), source_video)
    return replace(exported, source=shown.path)


def is_exported(source: Path, settings: Settings, *, output: Path) -> bool:
    """Tell whether the video of an artifact is there with these settings.

    Args:
        source: The artifact.
        settings: As for `export`.
        output: The video.

    Raises:
        CogeditError: As `export`, where that can be known beforehand.
    """
    job = _job(source, settings, output=output, run=Run())
    # Whether there is sound shows when the source is looked for.
    mute = replace(job, recipe=replace(job.recipe, sound=False))
    return _is_there(job) or _is_there(mute)


def _job(source: Path, settings: Settings, *, output: Path | None, run: Run) -> _Job:
    """Settle how an artifact is shown.

    Raises:
        CogeditError: As `export`.
    """
    asked = settings.export
    encoding = plan_encoding(output, asked.codec, crf=asked.crf, lossless=asked.lossless)
    check_output(output, source=source, is_folder=encoding.codec == "png")
    record = read_record(source)
    frames = frames_record(record)
    recipe = Recipe(
        record,
        asked.fps or frames.fps,
        encoding,
        size=asked.size,
        sound=asked.sound and encoding.has_sound and frames.source.has_audio,
        composite=composite_for(record, asked),
    )
    if recipe.composite != "none":
        recipe = replace(recipe, feather=asked.feather)
    if isinstance(record, EditRecord):
        recipe = replace(recipe, align_edges=asked.align_edges)
    if not isinstance(record, FramesRecord):
        recipe = replace(recipe, dtype=dtype_for(settings), vae_tiling=settings.encode.vae_tiling)
    silent = None
    if recipe.sound and not (recipe.fps == frames.fps and keeps_time(frames)):
        silent = f"at {float(recipe.fps):.6g} fps the clip does not keep the source's time"
        recipe = replace(recipe, sound=False)
    _check_size(recipe)
    path = output or _beside(source, encoding)
    may_replace = run.force and output is not None
    return _Job(source, settings, recipe, path, may_replace, run, silent=silent)


def check_export(
    video: Path,
    settings: Settings,
    *,
    output: Path | None,
    source_video: Path | None,
    has_mask: bool,
) -> None:
    """Refuse, before anything is computed, what could not be written afterwards.

    Args:
        video: The video or the artifact that the run starts from.
        settings: `export`, and `load` where the run starts from a video.
        output: The video to write, if it is named.
        source_video: The source, if it is named.
        has_mask: Whether the edits will have one.

    Raises:
        ArtifactError: The source's frames or latents will be needed, and are not there.
        UsageError: The codec, suffix, size and rate do not go together.
        VideoError: The source cannot be read, or will be needed and is not there.
    """
    from cogedit.media.restore import needs_own_frames

    asked, load = settings.export, settings.load
    encoding = plan_encoding(output, asked.codec, crf=asked.crf, lossless=asked.lossless)
    if sniff_kind(video) is not None:
        record = read_record(video)
        frames = frames_record(record)
        # Beside the edit, as the export will look for it.
        place = workspace_for(video, settings).root / video.name
        found = find_source(frames, place, source_video)
        _check_size(Recipe(record, asked.fps or frames.fps, encoding, size=asked.size))
        own_pixels = asked.align_edges > 0 or asked.composite == "source"
        if asked.size == "source" and (own_pixels or needs_own_frames(resize_plan(frames))):
            _check_found(found, frames)
        check_originals(video, settings, has_mask=has_mask)
        return
    facts = probe_facts(video)
    check_size_of_clip(settings)
    at_source = asked.size == "source"
    width, height = (facts.width, facts.height) if at_source else (load.width, load.height)
    encoding.check_frames(width, height, fps=asked.fps or facts.fps)


def _check_size(recipe: Recipe) -> None:
    frames = frames_record(recipe.record)
    shown = frames.source if recipe.size == "source" else frames.settings
    recipe.encoding.check_frames(shown.width, shown.height, fps=recipe.fps)


def _beside(artifact: Path, encoding: Encoding) -> Path:
    """The video of an artifact where none is named."""
    if encoding.codec == "png":
        return artifact.with_name(f"{artifact.stem}-frames")
    return artifact.with_suffix(encoding.suffix)


def _export(job: _Job, source_video: Path | None, *, decoder: Decoder | None = None) -> Exported:
    """Write the video of a job, unless it is there."""
    from cogedit.media.restore import needs_own_frames

    recipe, run = job.recipe, job.run
    if _is_there(job) and not run.force:
        return _reused(job)
    frames = frames_record(recipe.record)
    needs_source = recipe.size == "source" and (
        isinstance(recipe.record, FramesRecord)
        or recipe.composite == "source"
        or recipe.align_edges > 0
        or needs_own_frames(resize_plan(frames))
    )
    found: FoundSource | str = ""
    if needs_source or recipe.sound or source_video is not None:
        found = find_source(frames, job.artifact, source_video)
    if needs_source:
        _check_found(found, frames)
    silent = _why_silent(found) if recipe.sound else None
    if silent is not None:
        recipe = replace(recipe, sound=False)
        job = replace(job, recipe=recipe, silent=silent)
        if _is_there(job) and not run.force:
            return _reused(job)
    if job.silent is not None:
        run.notify(f"no sound: {job.silent}")
    check_writable(job.path, is_folder=recipe.encoding.codec == "png")
    replaced = job.path.exists() and not run.force
    audio = found.audio() if recipe.sound and isinstance(found, FoundSource) else None
    from cogedit.media.writer import write_video

    with in_use(job.path.parent):
        shown = _frames(job, found if isinstance(found, FoundSource) else None, decoder)
        with _counted(shown, run) as counted:
            write_video(
                counted,
                job.path,
                fps=recipe.fps,
                encoding=recipe.encoding,
                comment=recipe.comment(),
                audio=audio,
            )
    sound = ", with the source's sound" if recipe.sound else ""
    count = len(frames.frame_indices)
    instead = ", in place of one with other export settings (-o keeps both)" if replaced else ""
    rate = f"{float(recipe.fps):.6g} fps"
    run.notify(f"wrote {job.path} ({count} frames at {rate}{sound}){instead}")
    return Exported(job.path, reused=False)


@contextmanager
def _counted(
    shown: NDArray[np.uint8] | FrameStream, run: Run
) -> Iterator[NDArray[np.uint8] | FrameStream]:
    """Show how many frames of a stream are written; those that are there take no time."""
    from cogedit.media.writer import FrameStream

    if not isinstance(shown, FrameStream):
        yield shown
        return
    with run.counting("writing", shown.num_frames) as done:
        yield replace(shown, frames=_telling(shown.frames, done))


def _telling(
    frames: Iterable[NDArray[np.uint8]], done: Callable[[], None]
) -> Iterator[NDArray[np.uint8]]:
    """Pass frames on and tell when each is dealt with."""
    for frame in frames:
        yield frame
        done()


def _check_found(found: FoundSource | str, frames: FramesRecord) -> None:
    """Refuse to go on without the source video.

    Raises:
        VideoError: It was not found, for the reason that stands in its place.
    """
    if isinstance(found, str):
        raise VideoError(
            f"--size source needs frames of {frames.source.name} itself, and {found}",
            hint="name it with --source VIDEO",
        )


def _reused(job: _Job) -> Exported:
    job.run.notify(f"reused {job.path} (--force makes it anew)")
    return Exported(job.path, reused=True)


def _why_silent(found: FoundSource | str) -> str | None:
    """Why a source's sound cannot be carried over; None where it can."""
    if isinstance(found, str):
        return f"{found} (--source VIDEO names it)"
    if found.facts.variable_frame_rate:
        return f"the frame rate of {found.path} varies"
    return None


def _frames(
    job: _Job, found: FoundSource | None, decoder: Decoder | None
) -> NDArray[np.uint8] | FrameStream:
    """The frames that a job shows, at their size."""
    recipe = job.recipe
    frames = frames_record(recipe.record)
    if isinstance(recipe.record, FramesRecord):
        if recipe.size == "source" and found is not None:
            return _source_stream(frames, _own_frames(found))
        hint = "or name another --size"
        clip: NDArray[np.uint8] = source_frames(
            job.artifact, frames, job.settings, otherwise=hint
        ).numpy()
        return clip
    decoder, asked = decoder or Decoder(job.settings, run=job.run), job.settings.export
    if recipe.size == "clip":
        return decoder.decode(job.artifact, export=asked)
    from cogedit.media.restore import restore_frames

    # At the source's size the composite is made of the source's own pixels, below.
    weights = None
    if recipe.composite == "source":
        weights, asked = _weights(job), replace(asked, composite="none")
    shown: Iterable[NDArray[np.uint8] | Change]
    if recipe.align_edges:
        shown = decoder.changes(job.artifact, export=asked)
    else:
        shown = decoder.decode(job.artifact, export=asked)
    own = None if found is None else _own_frames(found)
    restored = restore_frames(shown, resize_plan(frames), own=own, weights=weights)
    return _source_stream(frames, restored)


def _own_frames(found: FoundSource) -> Iterator[NDArray[np.uint8]]:
    from cogedit.media.reader import iterate_frames

    return iterate_frames(found.path, found.video, indices=found.frames.frame_indices)


def _source_stream(frames: FramesRecord, made: Iterator[NDArray[np.uint8]]) -> FrameStream:
    from cogedit.media.writer import FrameStream

    source = frames.source
    return FrameStream(made, len(frames.frame_indices), source.height, source.width)


def _weights(job: _Job) -> NDArray[np.float32]:
    """How much of each pixel of an edit is shown under its mask, [F, H, W]."""
    from cogedit.diffusion.latent_mask import feather_mask

    mask = read_artifact(job.artifact, "edit").tensors["mask"]
    weights: NDArray[np.float32] = feather_mask(mask, job.recipe.feather).numpy()
    return weights


def _is_there(job: _Job) -> bool:
    """Tell whether the video is there with this recipe.

    Raises:
        UsageError: Something that is no export of the same artifact is there, and stays.
    """
    path, recipe = job.path, job.recipe
    if not path.exists():
        return False
    try:
        found = find_comment(path) or ""
    except VideoError:
        found = ""
    if found == recipe.comment():
        return True
    if f'"content_key":"{content_key(recipe.record)}"' in found or job.may_replace:
        return False
    raise _no_export_of(path, "this artifact")


def check_replaceable(output: Path, prompt: str) -> None:
    """Refuse, before an edit is made, to write its video over what it surely may not replace.

    Args:
        output: The video that was named.
        prompt: Of the edit.

    Raises:
        UsageError: Something is there that is no export of an edit under this prompt.
    """
    if not output.exists():
        return
    try:
        found = read_recipe(output).record
    except (VideoError, ArtifactError):
        found = None
    if not isinstance(found, EditRecord) or found.settings.prompt != prompt:
        raise _no_export_of(output, "this edit")


def _no_export_of(path: Path, what: str) -> UsageError:
    return UsageError(
        f"{path} exists and is no export of {what}",
        hint="name another file with -o, or the same one with -o and --force to replace it",
    )
