"""export: any artifact -> a video file."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager, closing, nullcontext
from dataclasses import dataclass, replace
from pathlib import Path

from cogedit.artifacts import (
    EditRecord,
    FramesRecord,
    content_key,
    frames_record,
    in_use,
    keep_in_use,
    keeping_in_use,
    read_record,
    sniff_kind,
)
from cogedit.config import Settings
from cogedit.disk import Over, state_of
from cogedit.errors import UsageError, VideoError
from cogedit.media.ahead import read_ahead
from cogedit.media.encoding import Encoding, plan_encoding
from cogedit.media.recipe_comment import find_comment
from cogedit.media.restore import needs_own_frames
from cogedit.media.sound import choose_audio
from cogedit.media.stream import FrameStream
from cogedit.media.writer import AudioSource, write_video
from cogedit.stages.arguments import as_path, source_of
from cogedit.stages.claim import claim
from cogedit.stages.decode import composite_for
from cogedit.stages.full_rate import frame_numbers, own_rate, takes_every_frame
from cogedit.stages.load import find_clip
from cogedit.stages.model import checkpoint_for, dtype_for, latent_shape_of
from cogedit.stages.recipe import Recipe, idle_options
from cogedit.stages.replacing import check_not_source, in_the_way, place_of_source
from cogedit.stages.run import Exported, Run, check_output, check_writable, workspace_for
from cogedit.stages.session import Session, use_session
from cogedit.stages.shown import show
from cogedit.stages.source import (
    FoundSource,
    check_source_artifacts,
    find_source,
    keeps_time,
    require_source,
    resize_plan,
)
from cogedit.stages.splice import check_source, one_bar, spliced, with_whole_frames, write_whole
from cogedit.types import ExportSettings
from cogedit.wording import count_of, show_rate


@dataclass(frozen=True)
class _Job:
    """One export: how an artifact is shown, and where."""

    artifact: Path
    settings: Settings
    recipe: Recipe
    path: Path
    may_replace: bool
    run: Run
    silent: str | None = None  # why the clip has no audio though its source has


def export(
    source: str | Path,
    settings: Settings,
    *,
    output: str | Path | None = None,
    source_video: str | Path | None = None,
    with_source: bool = False,
    run: Run | None = None,
    session: Session | None = None,
) -> Exported:
    """Write an artifact as a video.

    Edits and latents are decoded; frames are written as they are, which gives the source clip; of a
    trajectory its noise is decoded, the upstream script's inversion video. Of an edit with a mask,
    what lies outside is the source's. An existing export of the same artifact is replaced; any
    other file only by force, and only where `output` names it.

    The source video is looked for in the current directory, beside the artifact and in the folder
    above, and known by its digest. Without it there is no audio, which is reported; what a crop
    left out cannot be had either, which is an error.

    Args:
        source: The artifact.
        settings: `export`; `model`, `dtype`, `device`, `decode_tiling` where something is decoded.
        output: The video, or under the codec png the folder; None is the artifact's name with the
            codec's suffix, beside it.
        source_video: The video that the clip was taken from; None is looked for.
        with_source: Write the source clip beside it, as NAME-source: same frames, size and codec.
        run: How to run; None is silent.
        session: Holds the loaded model; None loads it for this call.

    Raises:
        ArtifactError: The source is no artifact, of another model, or damaged.
        UsageError: Another file is in the way, the codec, suffix and size do not go together, or a
            composite is wanted where there is no mask.
        VideoError: The source video is needed and was not found.
        StorageError: The video cannot be written.
    """
    output, source_video = as_path(output), as_path(source_video, "the source video")
    job = _job(
        source_of(source, settings), settings, output=output, run=run or Run(), read=[source_video]
    )
    for note in idle_options(job.recipe, settings.export):
        job.run.notify(note) if session is None else session.notify_once(note, job.run)
    with claim(output, job.run), keeping_in_use():
        keep_in_use(job.artifact.parent)
        shown = _source_clip(job) if with_source else None
        exported = _export(job, source_video, session)
        if shown is None:
            return exported
        return replace(exported, source=_export(shown, source_video, session).path)


def _source_clip(job: _Job) -> _Job:
    """Return the export of the source clip beside a job's; UsageError if another file lies there.

    Its place was not named, so that nothing but itself is ever replaced.
    """
    clip = replace(
        job.recipe,
        record=frames_record(job.recipe.record),
        composite="none",
        feather=0,
        align_edges=0,
        dtype=None,
        decode_tiling=None,
        splice=False,
        crossfade=0,
    )
    shown = replace(job, recipe=clip, path=place_of_source(job.path), may_replace=False)
    _exists(shown)
    return shown


def is_exported(
    source: Path, settings: Settings, *, output: Path, with_source: bool = False
) -> bool:
    """Return whether the video of an artifact, and of its source, exists with these settings."""
    job = _job(source, settings, output=output, run=Run())
    # Whether there is audio shows when the source is looked for.
    mute = replace(job, recipe=replace(job.recipe, sound=False))
    return any(
        _exists(way) and (not with_source or _exists(_source_clip(way))) for way in (job, mute)
    )


def encoding_for(output: Path | None, export: ExportSettings) -> Encoding:
    """Choose how a video is coded; without an output, by its settings alone."""
    return plan_encoding(
        output,
        export.codec,
        crf=export.crf,
        lossless=export.lossless,
        for_splice=export.splice,
    )


def _job(
    source: Path,
    settings: Settings,
    *,
    output: Path | None,
    run: Run,
    read: Sequence[Path | None] = (),
) -> _Job:
    """Settle how an artifact is shown; `read` are further files that the run reads."""
    options, inputs = settings.export, [source, *read, *settings.read_files]
    encoding = encoding_for(output, options)
    check_output(output, inputs=inputs, run=run, is_folder=encoding.codec == "png")
    record = read_record(source)
    frames = frames_record(record)
    every_frame = takes_every_frame(record, options)
    rate = own_rate(frames, every_frame=every_frame)
    recipe = Recipe(
        record,
        options.fps or rate,
        encoding,
        size=options.size,
        every_frame=every_frame,
        sound=options.sound and encoding.has_audio and frames.source.has_audio,
        audio_track=options.audio_track,
        composite=composite_for(record, options),
    )
    if recipe.composite != "none":
        recipe = replace(recipe, feather=options.feather)
    if isinstance(record, EditRecord):
        recipe = replace(recipe, align_edges=options.align_edges)
    if not isinstance(record, FramesRecord):
        recipe = replace(recipe, dtype=dtype_for(settings), decode_tiling=settings.decode_tiling)
    if options.splice:
        recipe = spliced(recipe, options)
    silent = None
    if recipe.sound and not recipe.splice and not (recipe.fps == rate and keeps_time(frames)):
        silent = f"at {show_rate(recipe.fps)} the clip does not keep the source's time"
        recipe = replace(recipe, sound=False)
    recipe.check_size()
    suffix = "-frames" if encoding.codec == "png" else encoding.suffix
    path = output or source.with_name(f"{source.stem}{suffix}")
    may_replace = run.force and output is not None
    return _Job(source, settings, recipe, path, may_replace, run, silent=silent)


def check_export(
    video: Path,
    settings: Settings,
    *,
    output: Path | None,
    source_video: Path | None,
    has_mask: bool,
    read_whole: bool = True,
    run: Run | None = None,
) -> None:
    """Refuse, before anything is computed, what an export of the result could not write.

    What it will lack is said as well. `read_whole` is that of `find_clip`.
    """
    options = settings.export
    encoding = encoding_for(output, options)
    if sniff_kind(video) is not None:
        record = read_record(video)
        frames = frames_record(record)
        # Beside the edit, as the export will look for it.
        place = workspace_for(video, settings).root / video.name
        found = find_source(frames, place, source_video)
        every_frame = takes_every_frame(frames, options, for_edit=True)
        rate = options.fps or own_rate(frames, every_frame=every_frame)
        recipe = Recipe(record, rate, encoding, size=options.size, every_frame=every_frame)
        if every_frame:
            require_source(found, frames, "--every-frame")
        if options.splice:
            recipe = spliced(recipe, options)
            check_source(require_source(found, frames, "--splice"), encoding, options)
        recipe.check_size()
        own_pixels = options.align_edges > 0 or options.composite == "source"
        if options.size == "source" and (own_pixels or needs_own_frames(resize_plan(frames))):
            require_source(found, frames, "--size source")
        check_source_artifacts(video, settings, has_mask=has_mask)
        if output is not None:
            check_not_source(output, record)
        return
    ahead: AbstractContextManager[object] = read_ahead(video) if read_whole else nullcontext()
    with (run or Run()).wait(f"looking at {video.name}"), ahead:
        clip = find_clip(video, settings, read_whole=read_whole)
    frames, facts = clip.record, clip.facts
    if source_video is not None:
        find_source(frames, video, source_video)
    every_frame = takes_every_frame(frames, options, for_edit=True)
    rate = options.fps or own_rate(frames, every_frame=every_frame)
    recipe = Recipe(frames, rate, encoding, size=options.size, every_frame=every_frame)
    if options.splice:
        spliced(recipe, options)
        check_source(FoundSource(video, facts, frames), encoding, options)
        return
    recipe.check_size()
    if options.sound and encoding.has_audio and facts.audio_tracks:
        first, end = frames.span
        audio = choose_audio(
            video,
            facts.audio_tracks,
            wanted=options.audio_track,
            suffix=encoding.suffix if output is None else output.suffix,
            start=facts.timing.start + first,
            duration=end - first,
        )
        if run is not None and isinstance(audio, str):
            run.notify(f"exported without audio: {audio}")


def _export(job: _Job, source_video: Path | None, session: Session | None) -> Exported:
    """Write the video of a job, unless it exists."""
    recipe, run, before = job.recipe, job.run, state_of(job.path)
    frames = frames_record(recipe.record)
    found: FoundSource | str = ""
    if source_video is not None:  # another video is refused, also where nothing is left to do
        found = find_source(frames, job.artifact, source_video)
    if _exists(job) and not run.force:
        return _reused(job)
    needs_source = recipe.size == "source" and (
        isinstance(recipe.record, FramesRecord)
        or recipe.splice
        or recipe.composite == "source"
        or recipe.align_edges > 0
        or needs_own_frames(resize_plan(frames))
    )
    if source_video is None and (needs_source or recipe.every_frame or recipe.sound):
        found = find_source(frames, job.artifact)
    if needs_source or recipe.every_frame:
        flag = "--every-frame" if recipe.every_frame else "--size source"
        require_source(found, frames, "--splice" if recipe.splice else flag)
    audio = _audio_of(found, job) if recipe.sound and not recipe.splice else None
    silent = audio if isinstance(audio, str) else None
    if silent is not None:
        recipe = replace(recipe, sound=False)
        job = replace(job, recipe=recipe, silent=silent)
        if _exists(job) and not run.force:
            return _reused(job)
    if job.silent is not None:
        run.notify(f"exported without audio: {job.silent}")
    check_writable(job.path, is_folder=recipe.encoding.codec == "png")
    replaced = job.path.exists() and not run.force
    run.cancellation.check(f"before {job.path.name} was begun")
    with in_use(job.path.parent), use_session(session) as owner:
        job = _with_tiling(job, owner)
        recipe = job.recipe
        source = found if isinstance(found, FoundSource) else None
        if source is not None and (recipe.splice or recipe.every_frame):
            source = with_whole_frames(source)
        one = one_bar(run)
        shown = show(job.artifact, recipe, job.settings, source=source, session=owner, run=one)
        over: Over = "anything" if job.may_replace else before
        try:
            with closing(shown):
                if recipe.splice and source is not None:
                    written = write_whole(
                        shown, job.path, recipe=recipe, source=source, over=over, run=one
                    )
                else:
                    written = _write_clip(shown, job, audio, over)
        except UsageError as error:
            if not isinstance(error.__cause__, FileExistsError):
                raise
            if _exists(job):  # another process made the same
                return _reused(job)
            raise in_the_way(job.path, "this artifact", job.artifact, job.settings) from error
    with_audio = ", with the source's audio" if recipe.sound else ""
    instead = ", in place of one with other export settings (-o keeps both)" if replaced else ""
    run.notify(f"wrote {job.path} ({written}{with_audio}){instead}")
    return Exported(job.path, reused=False)


def _write_clip(shown: FrameStream, job: _Job, audio: AudioSource | str | None, over: Over) -> str:
    """Write the frames of a clip, and return how many at which rate in words."""
    recipe = job.recipe
    write_video(
        shown,
        job.path,
        fps=recipe.fps,
        encoding=recipe.encoding,
        comment=recipe.comment(),
        audio=audio if isinstance(audio, AudioSource) else None,
        over=over,
    )
    return f"{count_of(shown.num_frames, 'frame')} at {show_rate(recipe.fps)}"


def _with_tiling(job: _Job, session: Session) -> _Job:
    """Settle whether a job decodes in tiles, for which its video says so."""
    if job.recipe.dtype is None or job.recipe.decode_tiling is not None:
        return job
    settings = job.settings
    frames = frames_record(job.recipe.record)
    shape = latent_shape_of(frames, checkpoint_for(settings).geometry)
    tiling = session.plan_vae(shape, settings, "decode").way.in_tiles
    settings = replace(settings, decode_tiling=tiling)
    return replace(job, settings=settings, recipe=replace(job.recipe, decode_tiling=tiling))


def _reused(job: _Job) -> Exported:
    job.run.notify(f"reused {job.path} (--force recomputes it)")
    return Exported(job.path, reused=True)


def _audio_of(found: FoundSource | str, job: _Job) -> AudioSource | str:
    """The source's audio of a clip, or why it cannot be carried over."""
    if isinstance(found, str):
        return f"{found} (--source VIDEO names it)"
    if found.facts.grid is None and not found.facts.timing.is_constant:
        return f"the frame rate of {found.path} varies, and its frames were taken one by one"
    frames, numbers = found.frames, frame_numbers(found.frames)
    duration = len(numbers) / frames.source.fps if job.recipe.every_frame else None
    return found.audio(job.settings.export, job.path.suffix, duration=duration)


def _exists(job: _Job) -> bool:
    """Return whether the video exists with this recipe; UsageError if another file lies there."""
    path, recipe = job.path, job.recipe
    if not path.exists():
        return False
    try:
        comment = find_comment(path) or ""
    except VideoError:
        comment = ""
    ways: Sequence[bool | None] = [recipe.decode_tiling]
    if recipe.dtype is not None and recipe.decode_tiling is None:
        ways = (False, True)  # whichever of the two fitted
    if comment in [replace(recipe, decode_tiling=way).comment() for way in ways]:
        return True
    if f'"content_key":"{content_key(recipe.record)}"' in comment:
        return False
    if job.may_replace:
        check_not_source(path, recipe.record)
        return False
    raise in_the_way(path, "this artifact", job.artifact, job.settings)
