"""What a report shows: the artifacts of a workspace by clip, decoded and measured."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from cogedit.artifacts import (
    EditRecord,
    FramesRecord,
    TrajectoryRecord,
    Workspace,
    content_key,
    frames_record,
    read_artifact,
)
from cogedit.clip_times import show_time
from cogedit.config import Settings
from cogedit.errors import ArtifactError
from cogedit.media.optical_flow import Flow
from cogedit.media.stream import FrameFile, FrameStream
from cogedit.stages.decode import decode, decode_source, lay_over
from cogedit.stages.model import checkpoint_for, dtype_for
from cogedit.stages.pass_times import read_notes
from cogedit.stages.run import Run
from cogedit.stages.session import Session
from cogedit.stages.settings import found_as
from cogedit.stages.source import FramesOnDisk
from cogedit.tools.captions import describe_model, describe_settings, distinctions
from cogedit.tools.report import measure
from cogedit.tools.report.files import ClipFiles, find_models
from cogedit.tools.report.measure import Clip as Frames
from cogedit.tools.report.measure import Figure
from cogedit.tools.report.missing import (
    without_frames,
    without_latents,
    without_notes,
    without_trajectory,
)
from cogedit.tools.report.movies import Embedded, Movie, MovieWriter
from cogedit.types import ExportSettings, ReconstructSettings
from cogedit.wording import count_of, show_rate

Facts = dict[str, str]
"""Names and values, in the order in which they are shown."""


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
    mask: Embedded | None  # its middle frame
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
    missing: list[str]  # why there are no others
    inversions: list[Inversion]
    edits: list[Edit]


@dataclass
class _Gathered:
    """A clip while its artifacts are decoded, one model after the other."""

    files: ClipFiles
    models: list[Settings]
    source: Movie | None = None
    source_label: str = "source"
    flow: Flow | None = None  # of its frames, until the last model
    figures: list[Figure] = field(default_factory=list)
    edits: dict[Path, Edit] = field(default_factory=dict)
    missing: dict[str, None] = field(default_factory=dict)  # sentences, each once


class Reporter:
    """Decodes and measures clips; why an artifact is not shown goes into `left_out`."""

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
        self._workspace = Workspace(workspace)
        self._notes = read_notes(workspace)
        self._movies = movies
        self._left_out = left_out
        self._run = run
        self._models: Mapping[Path, Settings] = {}

    def clips(self, clips: Sequence[ClipFiles]) -> list[Clip]:
        """Report clips with their inversions and edits.

        All that one model made is decoded before what the next one made: each is loaded once.
        """
        self._models = find_models(clips, self._settings, self._left_out)
        models = list(dict.fromkeys(self._models.values()))
        gathered = []
        for files in clips:
            of_edits, of_all = (
                {self._models[path] for path in paths if path in self._models}
                for paths in (dict(files.edits), files.made)
            )
            own = of_edits or of_all  # a model without an edit has nothing to compare
            gathered.append(_Gathered(files, [model for model in models if model in own]))
        for model in models:
            self._session.notify_once(found_as(model), self._run)
            for clip in gathered:
                if model in clip.models:
                    self._decode(clip, model)
        return [self._clip(clip) for clip in gathered]

    def _decode(self, clip: _Gathered, model: Settings) -> None:
        """Decode and measure what one model made of a clip."""
        files, digest = clip.files, checkpoint_for(model).digest
        inversions = [record for record in files.inversions if record.model.digest == digest]
        pixels, round_trip = self._frames(files), self._round_trip(files, inversions, model)
        self._note_missing(clip, inversions, model, pixels=pixels, round_trip=round_trip)
        self._show_source(clip, pixels, round_trip)
        source: measure.Source | None = None
        if round_trip is not None:
            self._run.notify(f"measuring {files.frames.source.name}")
            source, figures = measure.measure_source(pixels, round_trip, flow=clip.flow)
            clip.flow = None if pixels is None or model == clip.models[-1] else source.flow
            if len(clip.models) > 1:
                by = describe_model(replace(inversions[0].latents.model, dtype=dtype_for(model)))
                figures = [replace(figure, note=f"{figure.note}; {by}") for figure in figures]
            clip.figures += figures
        for path, record in files.edits:
            if self._models.get(path) == model:
                self._run.notify(f"decoding {path.name}")
                with self._leaving_out(path):
                    clip.edits[path] = self._edit(path, record, source, model)

    def _note_missing(
        self,
        clip: _Gathered,
        inversions: Sequence[TrajectoryRecord],
        model: Settings,
        *,
        pixels: Frames | None,
        round_trip: Frames | None,
    ) -> None:
        """Note the figures that cannot be made, with what makes their files again in this order."""
        place = self._workspace
        if pixels is None:
            clip.missing[without_frames(clip.files.frames, place)] = None
        if round_trip is None and inversions:
            clip.missing[without_latents(inversions[0], place, model)] = None
        for record in inversions:
            if clip.files.find(record) is None:
                clip.missing[without_trajectory(record, place, model)] = None

    def _show_source(self, clip: _Gathered, pixels: Frames | None, decoded: Frames | None) -> None:
        shown = decoded if pixels is None else pixels
        if clip.source is None and shown is not None:
            frames = clip.files.frames
            name = f"source-{content_key(frames)[:12]}"
            clip.source = self._movies.write(shown, name, fps=frames.fps)
            clip.source_label = "source after the VAE" if pixels is None else "source"

    def _clip(self, clip: _Gathered) -> Clip:
        files = clip.files
        if not clip.models:  # the source is all that can be shown of it
            self._show_source(clip, self._frames(files), None)
        distinct = zip(files.edits, distinctions(files.edits), strict=True)
        edits = [
            replace(clip.edits[path], distinct=facts)
            for (path, _), facts in distinct
            if path in clip.edits
        ]
        shown = [record for path, record in files.edits if path in clip.edits]
        missing = [*clip.missing, *without_notes(self._notes, shown, files.inversions)]
        title = files.frames.source.name
        for sentence in missing:
            self._run.notify(f"{title}: {sentence}")
        return Clip(
            title=title,
            facts=_clip_facts(files.frames),
            source=clip.source,
            source_label=clip.source_label,
            figures=clip.figures,
            missing=missing,
            inversions=[self._inversion(record, files) for record in files.inversions],
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

    def _round_trip(
        self, files: ClipFiles, inversions: Iterable[TrajectoryRecord], model: Settings
    ) -> Frames | None:
        """Decode the clip's own latents, from their artifact or from an inversion."""
        for record in inversions:
            for path, decoded in (
                (files.find(record.latents), decode),
                (files.find(record), decode_source),
            ):
                if path is not None and path in self._models:
                    with self._leaving_out(path):
                        stream = decoded(path, model, session=self._session, run=Run())
                        return self._kept(stream)
        return None

    def _kept(self, decoded: FrameStream) -> FrameFile:
        """Keep decoded frames, which are read for every figure."""
        return FrameFile(decoded, self._workspace.root)

    def _inversion(self, record: TrajectoryRecord, files: ClipFiles) -> Inversion:
        note = self._notes.get(content_key(record))
        figures = [measure.residual_figure(note), measure.time_figure(note)]
        path = files.find(record)
        if path is not None and path in self._models:
            with self._leaving_out(path):
                noise = read_artifact(path, "trajectory").tensors.slices("trajectory")[-1]
                figures.insert(0, measure.noise_figure(noise))
        facts = _with_value(describe_settings(record.settings))
        facts["model"] = describe_model(record.model)
        return Inversion(content_key(record)[:12], facts, figures)

    def _edit(
        self, path: Path, record: EditRecord, source: measure.Source | None, model: Settings
    ) -> Edit:
        stream = decode(path, model, session=self._session, run=Run())
        made = shown = self._kept(stream)
        tensors = read_artifact(path, "edit").tensors
        mask = FramesOnDisk(tensors.slices("mask"), len(made)) if record.has_mask else None
        if mask is not None and source is not None:
            laid = lay_over(made, source.round_trip, mask)
            shown = self._kept(replace(made.stream, frames=laid))
        elif mask is not None:  # the edit's own file has the source's latents
            plain = replace(model, export=ExportSettings(composite="decode"))
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
            mask=None if mask is None else self._movies.picture(_middle(mask)),
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


def _middle(mask: FramesOnDisk) -> NDArray[np.uint8]:
    """The middle frame of a mask [H, W], white where the edit may change the source."""
    middle: NDArray[np.uint8] = (mask[len(mask) // 2] != 0) * np.uint8(255)
    return middle
