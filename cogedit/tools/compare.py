"""compare: artifacts and videos beside each other, frame by frame."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import partial
from pathlib import Path
from typing import get_args

from cogedit.artifacts import (
    EditRecord,
    FramesRecord,
    LatentsRecord,
    Record,
    frames_record,
    keep_in_use,
    read_artifact,
    read_record,
    sniff_kind,
)
from cogedit.config import Settings
from cogedit.disk import Over
from cogedit.errors import ArtifactError, UsageError, shown
from cogedit.media.clip import ResizePlan
from cogedit.media.comparison import Compared, compare_frames, compare_sheet
from cogedit.media.encoding import VIDEO_SUFFIXES, Encoding, list_suffixes, plan_encoding
from cogedit.media.facts import VideoFacts
from cogedit.media.images import digest_of
from cogedit.media.png import save_png
from cogedit.media.probe import probe_as_recorded, probe_facts
from cogedit.media.reader import iterate_frames, resize_frame
from cogedit.media.stream import Frame, FrameFile, FrameStream
from cogedit.media.writer import write_video
from cogedit.stages.arguments import source_of
from cogedit.stages.claim import claim
from cogedit.stages.decode import composite_for, decode
from cogedit.stages.full_rate import frame_numbers, own_rate
from cogedit.stages.recipe import read_recipe
from cogedit.stages.run import Exported, Run, check_absent, check_output
from cogedit.stages.session import Session, use_session
from cogedit.stages.source import FramesOnDisk, resize_plan
from cogedit.tools.captions import distinctions
from cogedit.types import ComparisonLayout
from cogedit.wording import count_of

_SHEET_FRAMES = 5


@dataclass(frozen=True)
class Input:
    """One of the clips to compare: an artifact, or a video with the record that it shows."""

    path: Path
    record: Record | None  # None for a video that cogedit did not write
    facts: VideoFacts | None  # what is known of a video; None for an artifact
    indices: Sequence[int]  # frames of the file that make the clip
    fps: Fraction
    width: int
    height: int
    resize: ResizePlan | None = None  # how its frames become the clip's, if the sizes differ
    every_frame: bool = False  # whether it shows every frame of its source, not the clip's alone


def compare(
    sources: Sequence[str | Path],
    settings: Settings,
    *,
    output: str | Path,
    layout: ComparisonLayout | None = None,
    labels: Sequence[str] = (),
    shortest: bool = False,
    run: Run | None = None,
    session: Session | None = None,
) -> Exported:
    """Show artifacts and videos beside each other: frame k of each at the same time.

    A source video given beside a clip that was taken from it is cut to that clip's frames and size.
    Everything else must have as many frames, the same rate and the same aspect ratio; smaller
    frames are scaled to the largest.

    Args:
        sources: Two or more; a wipe takes two. Artifacts are decoded with one model.
        settings: `export`, of which `fps` also allows inputs of different rates; `model`, `dtype`,
            `device` and `decode_tiling` where something is decoded.
        output: A video, or an image (.png): of a "sheet" several frames, otherwise the middle one.
        layout: "row", "column", "wipe" or "sheet"; None is "sheet" for an image, otherwise "row".
        labels: A caption for each input; without them, prompts and file names.
        shortest: End with the shortest input.
        run: How to run; None is silent.
        session: Holds the loaded model; None loads it for this call.

    Raises:
        UsageError: Too few inputs, inputs that do not go together, a wrong number of labels, or an
            output that exists or cannot be written.
        VideoError: A video cannot be read.
        ArtifactError: An artifact is damaged, or belongs to another model.
        ModelError: The model is missing or incomplete.
        StorageError: The output cannot be written.
    """
    listed = [sources] if isinstance(sources, str | Path) else sources
    run, paths, output = (
        run or Run(),
        [source_of(source, settings) for source in listed],
        Path(output),
    )
    is_image = output.suffix.lower() == ".png"
    layout = layout or ("sheet" if is_image else "row")
    _check_usage(paths, layout, labels=labels, is_image=is_image)
    export = settings.export
    encoding = Encoding("png", None, lossless=True)
    if not is_image:
        if export.codec is None and output.suffix.lower() not in VIDEO_SUFFIXES:
            raise UsageError(
                f"cannot write {output}: expected a name that ends in "
                f"{list_suffixes(VIDEO_SUFFIXES)}, or of an image in .png"
            )
        encoding = plan_encoding(output, export.codec, crf=export.crf, lossless=export.lossless)
    is_folder = encoding.codec == "png" and not is_image
    check_output(output, inputs=paths, run=run, is_folder=is_folder)
    check_absent(output, run)
    over: Over = "anything" if run.force else None
    # What an export shows of a source's frames that were not edited, a comparison leaves out.
    settings = replace(settings, export=replace(export, every_frame=False))
    inputs = cut_sources([open_input(path, fps=export.fps) for path in paths])
    records = [item.record for item in inputs if item.facts is None and item.record is not None]
    if export.feather and all(composite_for(one, export) == "none" for one in records):
        run.notify("--feather changes nothing: no clip has a part that is the source's by a mask")
    fps, num_frames = _common_rate_and_length(inputs, export.fps, shortest=shortest)
    numbers = list(range(num_frames))
    if is_image:
        numbers = _spread(num_frames) if layout == "sheet" else [num_frames // 2]
    with claim(output, run), use_session(session) as owner:
        check_absent(output, run)  # again: it may have been waited for
        for path in paths:
            keep_in_use(path.parent)
        decoded = partial(decode, settings=settings, session=owner, run=run)
        clips = []
        for clip, label in zip(inputs, labels or captions(inputs), strict=True):
            frames = _frames(clip, numbers, decoded, output.parent)
            stream = FrameStream(frames, len(numbers), clip.height, clip.width)
            clips.append(Compared(label, stream))
        if layout == "sheet":
            save_png(compare_sheet(clips, numbers), output, over=over)
        elif is_image:
            save_png(next(iter(compare_frames(clips, layout).frames)), output, over=over)
        else:
            shown = compare_frames(clips, layout)
            write_video(shown, output, fps=fps, encoding=encoding, over=over)
    run.notify(f"wrote {output} ({len(clips)} clips, {count_of(len(numbers), 'frame')})")
    return Exported(output, reused=False)


def _check_usage(
    paths: Sequence[Path], layout: ComparisonLayout, *, labels: Sequence[str], is_image: bool
) -> None:
    if layout not in (known := get_args(ComparisonLayout)):
        raise UsageError(f"layout is {shown(layout)}, expected one of {', '.join(known)}")
    if len(paths) < 2:
        raise UsageError(f"a comparison takes two or more clips; found {len(paths)}")
    if layout == "wipe" and len(paths) != 2:
        raise UsageError(f"a wipe takes two clips; found {len(paths)}", hint="use --layout row")
    if layout == "sheet" and not is_image:
        raise UsageError("a sheet is an image", hint="name a .png with -o")
    if labels and len(labels) != len(paths):
        raise UsageError(
            f"there {'is' if len(labels) == 1 else 'are'} {count_of(len(labels), 'label')} for "
            f"{len(paths)} clips",
            hint="give --label once for each clip, or not at all",
        )


def open_input(path: Path, *, fps: Fraction | None = None) -> Input:
    """Read what a comparison needs to know of an artifact or a video; `fps` is of pictures."""
    if sniff_kind(path) is not None:
        record = read_record(path)
        clip = frames_record(record)
        indices = tuple(range(clip.num_frames))
        return Input(
            path, record, None, indices, clip.fps, clip.settings.width, clip.settings.height
        )
    facts = probe_facts(path, fps=fps)
    shown: Record | None = None
    every_frame = False
    with suppress(ArtifactError):  # not an export of cogedit
        recipe = read_recipe(path)
        # A whole video with a clip in it is no clip.
        shown = None if recipe.options.get("splice") else recipe.record
        every_frame = recipe.options.get("every_frame") is True
    indices = tuple(range(facts.num_frames))
    return Input(
        path,
        shown,
        facts,
        indices,
        facts.fps,
        facts.width,
        facts.height,
        every_frame=every_frame,
    )


def cut_sources(inputs: Sequence[Input]) -> list[Input]:
    """Cut each source video to the frames and the size of the clip that was taken from it.

    Any other video is looked at to its end, where it may be of another size.
    """
    clips = [(item, frames_record(item.record)) for item in inputs if item.record is not None]
    cut = []
    for item in inputs:
        taken = [
            (clip, frames)
            for clip, frames in clips
            if item.record is None
            and item.facts is not None
            and frames.source.sha256 == digest_of(item.path)
        ]
        if taken and item.facts is not None:
            clip, frames = taken[0]
            resize, width, height = None, item.width, item.height
            if (clip.width, clip.height) != (width, height):
                resize = resize_plan(frames)
                width, height = resize.width, resize.height
            item = replace(
                item,
                record=frames,
                facts=probe_as_recorded(item.path, frames.source, frames.settings),
                indices=frame_numbers(frames) if clip.every_frame else frames.shown_indices,
                fps=own_rate(frames, every_frame=clip.every_frame),
                width=width,
                height=height,
                resize=resize,
            )
        elif item.facts is not None and item.facts.is_sampled:
            item = replace(item, facts=probe_facts(item.path, thorough=True))
        cut.append(item)
    return cut


def _common_rate_and_length(
    inputs: Sequence[Input], fps: Fraction | None, *, shortest: bool
) -> tuple[Fraction, int]:
    """Return rate and number of frames of the comparison.

    Raises:
        UsageError: The inputs do not go together.
    """
    first = inputs[0]
    for other in inputs[1:]:
        if fps is None and other.fps != first.fps:
            raise UsageError(
                f"{first.path} plays at {first.fps} fps and {other.path} at {other.fps}",
                hint="--fps N shows frame k of each at the same time all the same",
            )
        if len(other.indices) != len(first.indices) and not shortest:
            raise UsageError(
                f"{first.path} has {count_of(len(first.indices), 'frame')} and {other.path} "
                f"{len(other.indices)}",
                hint="--shortest ends with the shortest",
            )
        # Whole pixels cannot keep an aspect ratio exactly.
        error = abs(other.width * first.height - other.height * first.width)
        if error > max(first.width, first.height, other.width, other.height):
            raise UsageError(
                f"{first.path} is {first.width}x{first.height} and {other.path} "
                f"{other.width}x{other.height}: expected one aspect ratio",
                hint="export them at one --size first",
            )
    return fps or first.fps, min(len(item.indices) for item in inputs)


def _spread(num_frames: int) -> list[int]:
    """Choose a few frames evenly over the clip, its first and last among them."""
    count = min(num_frames, _SHEET_FRAMES)
    return [round(index * (num_frames - 1) / max(1, count - 1)) for index in range(count)]


def captions(inputs: Sequence[Input]) -> list[str]:
    """Name the inputs: by prompts, then by the settings that differ, then by file names."""
    names = [_caption(item) for item in inputs]
    edits = [(item.path, item.record) for item in inputs if isinstance(item.record, EditRecord)]
    differing = iter(distinctions(edits))
    full = []
    for item, name in zip(inputs, names, strict=True):
        choices = next(differing) if isinstance(item.record, EditRecord) else {}
        if names.count(name) > 1:
            details = ", ".join(f"{key} {text}" for key, text in choices.items())
            name += f" ({details or item.path.name})"
        full.append(name)
    return full


def _caption(item: Input) -> str:
    record = item.record
    if record is None:
        return item.path.stem
    if isinstance(record, EditRecord):
        return record.title
    name = frames_record(record).source.name
    if isinstance(record, FramesRecord):
        return f"source: {name}"
    return f"{name} after the VAE" if isinstance(record, LatentsRecord) else f"noise of {name}"


def _frames(
    item: Input, numbers: Sequence[int], decoded: Callable[[Path], FrameStream], folder: Path
) -> Iterator[Frame]:
    """Yield frames of an input by their numbers in the clip.

    The model decodes one clip at a time: in `folder` each waits for the others.
    """
    if item.facts is None:
        clip: Sequence[Frame]
        if isinstance(item.record, FramesRecord):
            frames = read_artifact(item.path, "frames").tensors.slices("frames")
            clip = FramesOnDisk(frames, item.record.num_frames)
        else:
            clip = FrameFile(decoded(item.path), folder)
        yield from (clip[number] for number in numbers)
        return
    indices = [item.indices[number] for number in numbers]
    for frame in iterate_frames(item.path, item.facts, indices=indices):
        yield frame if item.resize is None else resize_frame(frame, item.resize)
