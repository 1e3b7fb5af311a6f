"""compare: artifacts and videos beside each other, frame by frame."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING

from cogedit.artifacts import (
    EditRecord,
    FramesRecord,
    LatentsRecord,
    Record,
    frames_record,
    read_artifact,
    read_record,
    sniff_kind,
)
from cogedit.config import Settings, plain_value
from cogedit.errors import ArtifactError, UsageError
from cogedit.media.clip import ResizePlan
from cogedit.media.encoding import Encoding, plan_encoding
from cogedit.media.probe import identify, probe_facts
from cogedit.stages.decode import Decoder
from cogedit.stages.recipe import read_recipe
from cogedit.stages.run import Exported, Run, check_output
from cogedit.stages.source import resize_plan
from cogedit.types import ComparisonLayout, SourceVideo

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from cogedit.media.comparison import Compared

_SHEET_FRAMES = 5


@dataclass(frozen=True)
class _Given:
    """One input.

    Attributes:
        path: The artifact or the video.
        record: Of the artifact, or of the one that the video shows; None for another video.
        video: Of a video, what its probe found; None for an artifact.
        indices: Frames of the file that make the clip.
        fps: Frames per second, exact.
        width: In pixels.
        height: In pixels.
        resize: How its frames are made the clip's, where they are not of the clip's size.
    """

    path: Path
    record: Record | None
    video: SourceVideo | None
    indices: tuple[int, ...]
    fps: Fraction
    width: int
    height: int
    resize: ResizePlan | None = None


def compare(
    sources: Sequence[str | Path],
    settings: Settings,
    *,
    output: Path,
    layout: ComparisonLayout | None = None,
    labels: Sequence[str] = (),
    shortest: bool = False,
    run: Run | None = None,
) -> Exported:
    """Show artifacts and videos beside each other: frame k of each at the same time.

    A source video given beside a clip that was taken from it is cut to that clip's frames and size.
    Everything else must have as many frames, at the same rate, of the same shape; smaller pictures
    are scaled to the largest.

    Args:
        sources: Two or more; a wipe takes two. Artifacts are decoded with one model.
        settings: `export`, of which `fps` also allows inputs of different rates; `model`, `dtype`,
            `device` and `encode` where something is decoded.
        output: A video, or a picture (.png): of a "sheet" several frames, otherwise the middle one.
        layout: "row", "column", "wipe" or "sheet"; None is "sheet" for a picture, otherwise "row".
        labels: A caption for each input; none are the prompts and file names.
        shortest: End with the shortest, where the numbers of frames differ.
        run: How to run; None is silent.

    Raises:
        UsageError: Too few inputs, inputs that do not go together, another number of labels, or
            an output that cannot be written or is there.
        VideoError: A video cannot be read.
        ArtifactError: An artifact is damaged, or of another model.
        ModelError: The model is missing or incomplete.
        StorageError: The output cannot be written.
    """
    run, paths = run or Run(), [Path(source) for source in sources]
    is_picture = output.suffix.lower() == ".png"
    layout = layout or ("sheet" if is_picture else "row")
    _check_asked(paths, layout, labels=labels, is_picture=is_picture)
    asked = settings.export
    encoding = Encoding("png", None, lossless=True)
    if not is_picture:
        encoding = plan_encoding(output, asked.codec, crf=asked.crf, lossless=asked.lossless)
    for path in paths:
        check_output(output, source=path, is_folder=encoding.codec == "png" and not is_picture)
    if output.exists() and not run.force:
        raise UsageError(f"{output} exists", hint="choose another -o, or replace it with --force")
    given = _with_sources_cut([_open(path) for path in paths])
    fps, num_frames = _agree(given, asked.fps, shortest=shortest)
    numbers = list(range(num_frames))
    if is_picture:
        numbers = _spread(num_frames) if layout == "sheet" else [num_frames // 2]
    names = list(labels) or _captions(given)
    clips = _read(given, names, numbers, settings=settings)
    if layout == "sheet":
        from cogedit.media.comparison import compare_sheet
        from cogedit.media.contact_sheet import save_png

        save_png(compare_sheet(clips, numbers), output)
    else:
        _write(clips, layout, output, fps=fps, encoding=encoding if not is_picture else None)
    count = "1 frame" if len(numbers) == 1 else f"{len(numbers)} frames"
    run.notify(f"wrote {output} ({len(clips)} clips, {count})")
    return Exported(output, reused=False)


def _check_asked(
    paths: Sequence[Path], layout: ComparisonLayout, *, labels: Sequence[str], is_picture: bool
) -> None:
    if len(paths) < 2:
        raise UsageError(f"a comparison takes two or more; found {len(paths)}")
    if layout == "wipe" and len(paths) != 2:
        raise UsageError(f"a wipe takes two; found {len(paths)}", hint="--layout row takes more")
    if layout == "sheet" and not is_picture:
        raise UsageError("a sheet is a picture", hint="name a .png with -o")
    if labels and len(labels) != len(paths):
        raise UsageError(
            f"there are {len(labels)} labels for {len(paths)} clips",
            hint="give --label once for each, or not at all",
        )


def _open(path: Path) -> _Given:
    """Find out what an input is."""
    if sniff_kind(path) is not None:
        record = read_record(path)
        frames = frames_record(record)
        size = frames.settings
        indices = tuple(range(len(frames.frame_indices)))
        return _Given(path, record, None, indices, frames.fps, size.width, size.height)
    facts = probe_facts(path)
    video = identify(path, facts)
    try:
        shown: Record | None = read_recipe(path).record
    except ArtifactError:
        shown = None  # a video of somebody else
    indices = tuple(range(facts.num_frames))
    return _Given(path, shown, video, indices, facts.fps, facts.width, facts.height)


def _with_sources_cut(given: Sequence[_Given]) -> list[_Given]:
    """Cut a source video to the frames and the size of the clip that was taken from it."""
    cut = []
    for one in given:
        video = one.video
        clip = next(
            (
                other
                for other in given
                if other.record is not None
                and video is not None
                and one.record is None
                and frames_record(other.record).source.sha256 == video.sha256
            ),
            None,
        )
        if clip is None or clip.record is None:
            cut.append(one)
            continue
        frames = frames_record(clip.record)
        at_source = (clip.width, clip.height) == (one.width, one.height)
        resize = None if at_source else resize_plan(frames)
        width, height = (one.width, one.height) if resize is None else (resize.width, resize.height)
        cut.append(
            replace(
                one,
                record=frames,
                indices=frames.frame_indices,
                fps=frames.fps,
                width=width,
                height=height,
                resize=resize,
            )
        )
    return cut


def _agree(
    given: Sequence[_Given], fps: Fraction | None, *, shortest: bool
) -> tuple[Fraction, int]:
    """Rate and number of frames of the comparison.

    Raises:
        UsageError: The inputs do not go together.
    """
    first = given[0]
    for other in given[1:]:
        if fps is None and other.fps != first.fps:
            raise UsageError(
                f"{first.path} plays at {first.fps} fps and {other.path} at {other.fps}: the same "
                "frame is another moment",
                hint="--fps N shows frame k of each beside the others all the same",
            )
        if len(other.indices) != len(first.indices) and not shortest:
            raise UsageError(
                f"{first.path} has {len(first.indices)} frames and {other.path} "
                f"{len(other.indices)}",
                hint="--shortest ends with the shortest",
            )
        # Whole pixels cannot keep a ratio exactly.
        error = abs(other.width * first.height - other.height * first.width)
        if error > max(first.width, first.height, other.width, other.height):
            raise UsageError(
                f"{first.path} is {first.width}x{first.height} and {other.path} "
                f"{other.width}x{other.height}: not one shape",
                hint="export them at one --size first",
            )
    return fps or first.fps, min(len(one.indices) for one in given)


def _spread(num_frames: int) -> list[int]:
    """Numbers of a few frames, evenly over the clip, its first and last among them."""
    count = min(num_frames, _SHEET_FRAMES)
    return [round(index * (num_frames - 1) / max(1, count - 1)) for index in range(count)]


def _captions(given: Sequence[_Given]) -> list[str]:
    """Captions that tell the inputs apart: prompts, then what else differs, then file names."""
    captions = [_caption(one) for one in given]
    for caption in {caption for caption in captions if captions.count(caption) > 1}:
        alike = [number for number, other in enumerate(captions) if other == caption]
        settings = [
            _settings_of(record)
            for number in alike
            if isinstance(record := given[number].record, EditRecord)
        ]
        names = settings[0] if settings else ()
        differing = [name for name in names if len({repr(one[name]) for one in settings}) > 1]
        for number in alike:
            captions[number] += f" ({_told_apart(given[number], differing)})"
    return captions


def _settings_of(record: EditRecord) -> dict[str, object]:
    """Return the settings of an edit and of the inversion beneath it, by names for a caption."""
    made = {f"source {key}": value for key, value in vars(record.trajectory.settings).items()}
    made |= vars(record.settings)
    return {name.replace("_", " "): value for name, value in made.items()}


def _told_apart(one: _Given, differing: Sequence[str]) -> str:
    if not differing or not isinstance(one.record, EditRecord):
        return one.path.name
    made = _settings_of(one.record)
    return ", ".join(f"{name} {_shown(made[name])}" for name in differing)


def _shown(value: object) -> str:
    plain = plain_value(value)
    text = "auto" if plain is None else str(plain)
    return text if text and " " not in text else f'"{text}"'


def _caption(one: _Given) -> str:
    record = one.record
    if isinstance(record, EditRecord):
        return record.settings.prompt or "(empty prompt)"
    if isinstance(record, FramesRecord):
        return f"source: {record.source.name}"
    if record is None:
        return one.path.stem
    name = frames_record(record).source.name
    return f"{name} after the VAE" if isinstance(record, LatentsRecord) else f"noise of {name}"


def _read(
    given: Sequence[_Given], labels: Sequence[str], numbers: Sequence[int], *, settings: Settings
) -> list[Compared]:
    """Open the frames of every input."""
    from cogedit.media.comparison import Compared
    from cogedit.media.writer import FrameStream

    decoder = Decoder(settings)
    clips = []
    for one, label in zip(given, labels, strict=True):
        frames = _frames(one, numbers, decoder)
        clips.append(Compared(label, FrameStream(frames, len(numbers), one.height, one.width)))
    return clips


def _frames(one: _Given, numbers: Sequence[int], decoder: Decoder) -> Iterator[NDArray[np.uint8]]:
    """The frames of an input by their numbers in the clip."""
    if one.video is None:
        if isinstance(one.record, FramesRecord):
            clip = read_artifact(one.path, "frames").tensors["frames"].numpy()
        else:
            clip = decoder.decode(one.path)
        yield from clip[list(numbers)]
        return
    from cogedit.media.reader import iterate_frames, resize_frame

    indices = [one.indices[number] for number in numbers]
    for frame in iterate_frames(one.path, one.video, indices=indices):
        yield frame if one.resize is None else resize_frame(frame, one.resize)


def _write(
    clips: Sequence[Compared],
    layout: ComparisonLayout,
    output: Path,
    *,
    fps: Fraction,
    encoding: Encoding | None,
) -> None:
    from cogedit.media.comparison import compare_frames
    from cogedit.media.contact_sheet import save_png
    from cogedit.media.writer import write_video

    composed = compare_frames(clips, layout)
    if encoding is None:
        save_png(next(iter(composed.frames)), output)
    else:
        write_video(composed, output, fps=fps, encoding=encoding)
