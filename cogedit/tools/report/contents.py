"""What a report shows: the artifacts of a workspace by clip, decoded and measured."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from pathlib import Path
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray

from cogedit.artifacts import (
    EditRecord,
    FramesRecord,
    Record,
    TrajectoryRecord,
    content_key,
    frames_record,
    read_artifact,
    read_record,
)
from cogedit.clip_times import show_time
from cogedit.config import Settings
from cogedit.errors import ArtifactError, CogeditError
from cogedit.media.encoding import Encoding
from cogedit.media.stream import FrameFile, FrameStream
from cogedit.media.writer import write_video
from cogedit.stages.decode import decode, decode_source, lay_over
from cogedit.stages.model import check_same_model, checkpoint_for
from cogedit.stages.pass_times import read_notes
from cogedit.stages.run import Run
from cogedit.stages.session import Session
from cogedit.stages.source import FramesOnDisk
from cogedit.tools.captions import describe_model, describe_settings, distinctions
from cogedit.tools.report import measure
from cogedit.tools.report.measure import Clip as Frames
from cogedit.tools.report.measure import Figure
from cogedit.types import ExportSettings, ReconstructSettings
from cogedit.wording import count_of, show_rate

_NEARLY_LOSSLESS = Encoding(crf=14)

Facts = dict[str, str]
"""Names and values, in the order in which they are shown."""


@dataclass(frozen=True)
class Movie:
    """A video and its first frame, by their addresses."""

    src: str
    poster: str
    width: int
    height: int
    num_frames: int
    fps: float


@dataclass(frozen=True)
class Inversion:
    """How a clip was inverted, and how well."""

    key: str
    facts: Facts
    figures: list[Figure]


@dataclass(frozen=True)
class Edit:
    """An edit: what it shows, how it was made, and its figures, the same names for every edit."""

    key: str
    prompt: str  # its title
    movie: Movie
    mask: str | None  # the middle frame, as a data URL
    figures: list[Figure]
    distinct: Facts  # from the other edits under its prompt
    changed: Facts  # what was given, and settings that are not the default
    settings: Facts  # what was given, and all settings that have a value
    origin: Facts


@dataclass(frozen=True)
class Clip:
    """A clip and everything that was made of it."""

    title: str
    facts: Facts
    source: Movie | None  # neither frames nor latents of the clip are in the workspace
    source_label: str
    figures: list[Figure]
    inversions: list[Inversion]
    edits: list[Edit]


@dataclass(frozen=True)
class ClipFiles:
    """The artifacts of one clip: the existing files by content key, and what they record."""

    frames: FramesRecord
    files: dict[str, Path]
    inversions: list[TrajectoryRecord]
    edits: list[tuple[Path, EditRecord]]

    def find(self, record: Record) -> Path | None:
        """Return the file of a record, if it exists."""
        return self.files.get(content_key(record))


def read_workspace(root: Path) -> tuple[list[ClipFiles], dict[str, str]]:
    """Sort the artifacts of a folder by clip.

    Returns:
        The clips, and by file name why an artifact cannot be read.
    """
    left_out: dict[str, str] = {}
    by_clip: dict[str, ClipFiles] = {}
    for path in sorted(root.glob("*.safetensors"), key=lambda path: (_modified(path), path)):
        try:
            record = read_record(path)
        except CogeditError as error:
            left_out[path.name] = error.message
            continue
        frames = frames_record(record)
        clip = by_clip.setdefault(content_key(frames), ClipFiles(frames, {}, [], []))
        clip.files[content_key(record)] = path
        inversion = record.trajectory if isinstance(record, EditRecord) else record
        if isinstance(record, EditRecord):
            clip.edits.append((path, record))
        known = {content_key(other) for other in clip.inversions}
        if isinstance(inversion, TrajectoryRecord) and content_key(inversion) not in known:
            clip.inversions.append(inversion)
    return list(by_clip.values()), left_out


def _modified(path: Path) -> int:
    """When a file was written, in ns; a link to nothing comes first."""
    try:
        return path.stat().st_mtime_ns
    except OSError:
        return 0


@dataclass(frozen=True)
class MovieWriter:
    """Writes the videos of a page into `folder`, and embeds them where `page_folder` is None."""

    folder: Path
    page_folder: Path | None

    def write(self, clip: Frames, name: str, *, fps: Fraction) -> Movie:
        """Write the frames of a clip, uint8 [H, W, 3]."""
        path = self.folder / f"{name}.mp4"
        first = clip[0]
        height, width = first.shape[:2]
        stream = FrameStream(clip, len(clip), height, width)
        write_video(stream, path, fps=fps, encoding=_NEARLY_LOSSLESS)
        if self.page_folder is None:
            src = "data:video/mp4;base64," + base64.b64encode(path.read_bytes()).decode()
            path.unlink()
        else:
            src = quote(path.relative_to(self.page_folder).as_posix())
        return Movie(src, _data_url(first), width, height, len(clip), float(fps))


class Reporter:
    """Decodes and measures clip by clip; why an artifact is not shown goes into `left_out`."""

    def __init__(
        self,
        workspace: Path,
        settings: Settings,
        movies: MovieWriter,
        left_out: dict[str, str],
        *,
        run: Run,
        session: Session,
    ) -> None:
        # Shown and measured is what the model made; masks are composited here.
        export = replace(settings.export, composite="none", align_edges=0, every_frame=False)
        self._settings = replace(settings, export=export)
        self._session = session
        self._checkpoint = checkpoint_for(settings)
        self._workspace = workspace
        self._notes = read_notes(workspace)
        self._movies = movies
        self._left_out = left_out
        self._run = run

    def clip(self, files: ClipFiles) -> Clip:
        """Report one clip with its inversions and edits."""
        frames, key = files.frames, content_key(files.frames)[:12]
        pixels, round_trip = self._frames(files), self._round_trip(files)
        shown = round_trip if pixels is None else pixels
        movie = None
        if shown is not None:
            movie = self._movies.write(shown, f"source-{key}", fps=frames.fps)
        source: measure.Source | None = None
        figures: list[Figure] = []
        if round_trip is not None:
            self._run.notify(f"measuring {frames.source.name}")
            source, figures = measure.measure_source(pixels, round_trip)
        inversions = [self._inversion(record, files) for record in files.inversions]
        edits = []
        for (path, record), distinct in zip(files.edits, distinctions(files.edits), strict=True):
            self._run.notify(f"decoding {path.name}")
            with self._leaving_out(path):
                edit = self._edit(path, record, source)
                edits.append(replace(edit, distinct=distinct))
        return Clip(
            title=frames.source.name,
            facts=_clip_facts(frames),
            source=movie,
            source_label="source" if pixels is not None else "source after the VAE",
            figures=figures,
            inversions=inversions,
            edits=edits,
        )

    @contextmanager
    def _leaving_out(self, path: Path) -> Iterator[None]:
        """List an artifact that cannot be read on the page, and go on."""
        try:
            yield
        except ArtifactError as error:
            self._left_out[path.name] = error.message

    def _frames(self, files: ClipFiles) -> Frames | None:
        path = files.find(files.frames)
        if path is not None:
            with self._leaving_out(path):
                frames = read_artifact(path, "frames").tensors.slices("frames")
                return FramesOnDisk(frames, files.frames.num_frames)
        return None

    def _round_trip(self, files: ClipFiles) -> Frames | None:
        """Decode the clip's own latents, from their artifact or from an inversion."""
        for record in files.inversions:
            for path, decoded in (
                (files.find(record.latents), decode),
                (files.find(record), decode_source),
            ):
                if path is not None:
                    with self._leaving_out(path):
                        stream = decoded(path, self._settings, session=self._session, run=Run())
                        return self._kept(stream)
        return None

    def _kept(self, decoded: FrameStream) -> FrameFile:
        """Keep decoded frames, which are read for every figure."""
        return FrameFile(decoded, self._workspace)

    def _inversion(self, record: TrajectoryRecord, files: ClipFiles) -> Inversion:
        note = self._notes.get(content_key(record))
        figures = [measure.residual_figure(note), measure.time_figure(note)]
        path = files.find(record)
        if path is not None:
            with self._leaving_out(path):
                check_same_model(path.name, record, self._checkpoint)
                noise = read_artifact(path, "trajectory").tensors.slices("trajectory")[-1]
                figures.insert(0, measure.noise_figure(noise))
        facts = _with_value(describe_settings(record.settings))
        facts["model"] = describe_model(record.model)
        return Inversion(content_key(record)[:12], facts, figures)

    def _edit(self, path: Path, record: EditRecord, source: measure.Source | None) -> Edit:
        stream = decode(path, self._settings, session=self._session, run=Run())
        made = shown = self._kept(stream)
        tensors = read_artifact(path, "edit").tensors
        mask = FramesOnDisk(tensors.slices("mask"), len(made)) if record.has_mask else None
        if mask is not None and source is not None:
            laid = lay_over(made, source.round_trip, mask)
            shown = self._kept(replace(made.stream, frames=laid))
        elif mask is not None:  # the edit's own file has the source's latents
            plain = replace(self._settings, export=ExportSettings(composite="decode"))
            shown = self._kept(decode(path, plain, session=self._session, run=Run()))
        figures = measure.measure_edit(made, source, shown=shown, mask=mask)
        key = content_key(record)
        given = {} if record.mask is None else {"mask": f"{record.mask.kind} {record.mask.name}"}
        if record.first_frame is not None:
            given["first-frame"] = record.first_frame.name
        settings = describe_settings(record.settings)
        defaults = describe_settings(ReconstructSettings(record.settings.prompt))
        return Edit(
            key=key[:12],
            prompt=record.title,
            movie=self._movies.write(shown, f"edit-{key[:12]}", fps=frames_record(record).fps),
            mask=None if mask is None else _data_url((mask[len(mask) // 2] != 0) * np.uint8(255)),
            figures=[*figures, measure.time_figure(self._notes.get(key))],
            distinct={},
            changed=given | {n: text for n, text in settings.items() if text != defaults[n]},
            settings=given | _with_value(settings),
            origin={
                "file": path.name,
                "content key": key[:16],
                "inversion": content_key(record.trajectory)[:16],
                "model": describe_model(record.model),
                "cogedit": record.cogedit_version,
            },
        )


def _clip_facts(frames: FramesRecord) -> Facts:
    source, indices, settings = frames.source, frames.shown_indices, frames.settings
    first, end = map(show_time, frames.span)
    size = f"{settings.width}x{settings.height} ({settings.resize_mode})"
    return {
        "Video": source.name,
        "Its size": f"{source.width}x{source.height}, {show_rate(source.fps)}",
        "Clip": f"{count_of(len(indices), 'frame')}, {indices[0]} to {indices[-1]} "
        f"of {source.num_frames}",
        "Seconds": f"{first} to {end} of {show_time(source.num_frames / source.fps)}",
        "Clip size": f"{size}, {show_rate(frames.fps)}",
        "sha256": source.sha256[:16],
    }


def _with_value(settings: Facts) -> Facts:
    return {name: text for name, text in settings.items() if text != "auto"}


def _data_url(image: NDArray[np.uint8]) -> str:
    """Return an image, [H, W] or [H, W, 3], as "data:image/png;base64,..."."""
    from PIL import Image

    png = io.BytesIO()
    Image.fromarray(image).save(png, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(png.getvalue()).decode()
