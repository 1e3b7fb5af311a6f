"""Reads a workspace, decodes and measures what is in it, and writes the page."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from cogedit.artifacts import (
    EditRecord,
    TrajectoryRecord,
    content_key,
    frames_record,
    read_artifact,
)
from cogedit.config import Settings
from cogedit.errors import ArtifactError, UsageError
from cogedit.stages.decode import Decoder
from cogedit.stages.model import check_same_model, checkpoint_for
from cogedit.stages.pass_times import RunNote, read_notes
from cogedit.stages.run import Exported, Run, check_writable
from cogedit.tools.report import measure
from cogedit.tools.report.contents import (
    Clip,
    Contents,
    Edit,
    Facts,
    Figure,
    Inversion,
    Movie,
    Plot,
)
from cogedit.tools.report.movies import MovieWriter, movie_writer, picture_address, write_page
from cogedit.tools.report.page import GENERATOR, render
from cogedit.tools.report.workspace import ClipFiles, read_workspace
from cogedit.types import ExportSettings
from cogedit.version import __version__

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray
    from torch import Tensor


def report(
    workspace: str | Path,
    settings: Settings,
    *,
    output: Path | None = None,
    beside: bool = False,
    run: Run | None = None,
) -> Exported:
    """Write a page that compares the edits of a workspace with their source.

    Artifacts that cannot be read, or belong to another model, are listed on the page with the
    reason.

    Args:
        workspace: The folder of the artifacts.
        settings: `model`, `device`, `dtype` and `encode.vae_tiling`, for the decoding.
        output: The page, ending in .html; None is `report.html` in the workspace.
        beside: Keep the videos in a folder beside the page, `<name>-videos`; else the page holds
            them itself.
        run: How to run; None is silent.

    Raises:
        UsageError: There is nothing to report, or another file is in the way.
        ModelError: The model is missing or incomplete.
        DeviceMemoryError: The device is full.
        StorageError: The page cannot be written.
    """
    workspace, run = Path(workspace), run or Run()
    path = workspace / "report.html" if output is None else output
    if path.suffix.lower() not in (".html", ".htm"):
        raise UsageError(f"a report is an HTML page; found -o {path}", hint="end it in .html")
    if not workspace.is_dir():
        raise UsageError(f"there is no folder {workspace}", hint="name a workspace, *.cogedit")
    clips, left_out = read_workspace(workspace)
    if not any(clip.edits or clip.inversions for clip in clips):
        raise UsageError(
            f"there is no edit in {workspace}",
            hint=f"make one with `cogedit edit VIDEO --prompt TEXT --workspace {workspace}`",
        )
    check_writable(path)
    if path.exists() and not run.force and not _is_report(path):
        raise UsageError(
            f"{path} exists and is no report", hint="choose another -o, or replace it with --force"
        )
    with movie_writer(path, beside=beside) as movies:
        notes = read_notes(workspace)
        reporter = _Reporter(settings, movies, left_out, notes=notes, run=run)
        shown = tuple(reporter.clip(clip) for clip in clips if clip.edits or clip.inversions)
    title = ", ".join(dict.fromkeys(clip.title for clip in shown))
    count = sum(len(clip.edits) for clip in shown)
    notice = ""
    if count and settings.export.align_edges:
        notice = (
            "Edits are shown without the alignment of their edges: align-edges "
            f"{settings.export.align_edges} of the settings is for an export, not for this page."
        )
        run.notify(notice[0].lower() + notice.removesuffix(".")[1:])
    contents = Contents(title, shown, notice, tuple(sorted(left_out.items())), __version__)
    write_page(path, render(contents))
    for name, reason in contents.left_out:
        run.notify(f"left out {name}: {reason}")
    run.notify(f"wrote {path} ({count} edits, {path.stat().st_size / 1e6:.1f} MB)")
    return Exported(path, reused=False)


def _is_report(path: Path) -> bool:
    """Tell whether a file is a page of ours."""
    with path.open("rb") as file:
        return f'content="{GENERATOR}'.encode() in file.read(2000)


class _Reporter:
    """Decodes and measures clip by clip, with the VAE loaded once.

    Args:
        settings: For the decoding.
        movies: Writes the videos.
        left_out: Gets the reason of every artifact that is not shown.
        notes: What is known of the runs, by content key.
        run: Whom to tell.
    """

    def __init__(
        self,
        settings: Settings,
        movies: MovieWriter,
        left_out: dict[str, str],
        *,
        notes: Mapping[str, RunNote],
        run: Run,
    ) -> None:
        # The decode itself is measured and shown, whatever an export would make of it; the
        # composite of an edit with a mask is made here.
        export = replace(settings.export, composite="none", align_edges=0)
        plain = replace(settings, export=export)
        self._decoder = Decoder(plain)
        self._checkpoint = checkpoint_for(settings)
        self._movies = movies
        self._left_out = left_out
        self._notes = notes
        self._run = run

    @cached_property
    def _alphas_cumprod(self) -> Tensor:
        from cogedit.models.loading import alphas_cumprod

        return alphas_cumprod(self._checkpoint)

    def clip(self, files: ClipFiles) -> Clip:
        """Report one clip with its inversions and edits."""
        frames, key = files.frames, content_key(files.frames)[:12]
        pixels = self._frames(files)
        round_trip = self._round_trip(files)
        shown = round_trip if pixels is None else pixels
        source: measure.Source | None = None
        figures: tuple[Figure, ...] = ()
        movie: Movie | None = None
        if shown is not None:
            movie = self._movies.write(shown, f"source-{key}", fps=frames.fps)
        if round_trip is not None:
            self._run.notify(f"measuring {frames.source.name}")
            source, figures = measure.measure_source(pixels, round_trip)
        norms: dict[str, tuple[tuple[float, float], ...]] = {}
        inversions = []
        for record in files.inversions:
            inversion = self._inversion(record, files)
            inversions.append(inversion)
            if inversion.figures[0].name == "Noise":
                norms[content_key(record)] = inversion.plots[0].curves[0].points
        any_mask = any(record.has_mask for _, record in files.edits)
        edits = []
        distinct = measure.distinct_facts([record for _, record in files.edits])
        for (path, edit), facts in zip(files.edits, distinct, strict=True):
            self._run.notify(f"decoding {path.name}")
            norm = norms.get(content_key(edit.trajectory), ())
            try:
                made = self._edit(path, edit, source, any_mask=any_mask, norm=norm)
            except ArtifactError as error:
                self._left_out[path.name] = error.message
            else:
                edits.append(replace(made, distinct=facts))
        return Clip(
            title=frames.source.name,
            facts=measure.clip_facts(frames),
            source=movie,
            source_label="source" if pixels is not None else "source after the VAE",
            figures=figures,
            inversions=tuple(inversions),
            edits=tuple(edits),
        )

    def _frames(self, files: ClipFiles) -> NDArray[np.uint8] | None:
        path = files.find(files.frames)
        if path is None:
            return None
        try:
            pixels: NDArray[np.uint8] = read_artifact(path, "frames").tensors["frames"].numpy()
        except ArtifactError as error:
            self._left_out[path.name] = error.message
            return None
        return pixels

    def _round_trip(self, files: ClipFiles) -> NDArray[np.uint8] | None:
        """Decode the clip's own latents, wherever they are kept."""
        for record in files.inversions:
            path = files.find(record.latents)
            inverted = files.find(record)
            for found, decode in (
                (path, self._decoder.decode),
                (inverted, self._decoder.decode_source),
            ):
                if found is None:
                    continue
                try:
                    return decode(found)
                except ArtifactError as error:
                    self._left_out[found.name] = error.message
        return None

    def _inversion(self, record: TrajectoryRecord, files: ClipFiles) -> Inversion:
        key, facts = content_key(record)[:12], measure.inversion_facts(record)
        note = self._notes.get(content_key(record))
        time, residual = measure.time_figure(note), measure.residual_plot(note)
        path = files.find(record)
        if path is not None:
            try:
                check_same_model(path.name, record, self._checkpoint)
                tensors = read_artifact(path, "trajectory").tensors
            except ArtifactError as error:
                self._left_out[path.name] = error.message
            else:
                plot = measure.norm_plot(
                    [int(t) for t in tensors["timesteps"]],
                    tensors["trajectory"],
                    tensors["latents"],
                    alphas_cumprod=self._alphas_cumprod,
                )
                figures = measure.inversion_figures(tensors["trajectory"][-1])
                return Inversion(key, facts, (*figures, time), (plot, *residual))
        return Inversion(key, facts, (time,), residual)

    def _edit(
        self,
        path: Path,
        record: EditRecord,
        source: measure.Source | None,
        *,
        any_mask: bool,
        norm: tuple[tuple[float, float], ...],
    ) -> Edit:
        decoded = self._decoder.decode(path)
        tensors = read_artifact(path, "edit").tensors
        shown, mask, picture = decoded, None, None
        if record.has_mask:
            mask = tensors["mask"].numpy()
            picture = picture_address((mask[len(mask) // 2] != 0).astype("uint8") * 255)
            if source is None:
                # The edit's own file has what the source is made of.
                shown = self._decoder.decode(path, export=ExportSettings(composite="decode"))
            else:
                shown = _composite(decoded, source.round_trip, mask)
        figures = measure.measure_edit(decoded, source, shown=shown, mask=mask, any_mask=any_mask)
        figures += (measure.time_figure(self._notes.get(content_key(record))),)
        key = content_key(record)[:12]
        movie = self._movies.write(shown, f"edit-{key}", fps=frames_record(record).fps)
        plots: tuple[Plot, ...] = ()
        if record.has_trajectory:
            levels = _arrived_at(record, self._alphas_cumprod)
            plots = (measure.edit_norm_plot(levels, tensors["trajectory"], norm),)
        return Edit(
            key=key,
            prompt=record.settings.prompt,
            movie=movie,
            mask=picture,
            figures=figures,
            distinct=(),
            changed=measure.changed_facts(record),
            settings=measure.all_facts(record),
            facts=_origin(path, record),
            plots=plots,
        )


def _composite(
    edited: NDArray[np.uint8], source: NDArray[np.uint8], mask: NDArray[np.uint8]
) -> NDArray[np.uint8]:
    """Lay an edit over its source, as an export does unasked."""
    import torch

    from cogedit.diffusion.latent_mask import composite

    laid: NDArray[np.uint8] = composite(*map(torch.from_numpy, (edited, source, mask))).numpy()
    return laid


def _arrived_at(record: EditRecord, alphas_cumprod: Tensor) -> list[int]:
    """List the levels that the steps of an edit arrived at; -1 is the clean sample."""
    from cogedit.diffusion.schedule import CLEAN, Schedule

    visited = Schedule.trailing(alphas_cumprod, record.trajectory.settings.num_inference_steps)
    asked = record.settings
    steps = visited.subset(asked.num_inference_steps, start_step=asked.start_step)
    return [*steps.timesteps[1:], CLEAN]


def _origin(path: Path, record: EditRecord) -> Facts:
    """Say which file an edit is, and what it was made with."""
    return (
        ("file", path.name),
        ("content key", content_key(record)[:16]),
        ("inversion", content_key(record.trajectory)[:16]),
        ("model", measure.model_text(record.model)),
        ("cogedit", record.cogedit_version),
    )
