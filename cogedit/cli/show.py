"""`cogedit inspect`: the record of an artifact or of an exported video, for people or as JSON."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path

import typer

from cogedit.artifacts import (
    MADE_BY,
    EditRecord,
    FramesRecord,
    ModelRecord,
    Record,
    TrajectoryRecord,
    chain_of,
    content_key,
    record_text,
    sniff_kind,
    verify_artifact,
)
from cogedit.cli.tables import show_rows
from cogedit.clip_times import show_time
from cogedit.config import plain_value
from cogedit.stages.recipe import read_recipe
from cogedit.wording import count_of, show_rate


def show_file(path: Path, *, json_output: bool) -> None:
    """Print how an artifact was made and what is in it, after checking every byte.

    For an exported video this is the recipe in its metadata: the record of the artifact that it
    shows, and how it was written.

    Raises:
        ArtifactError: It is not an artifact and has no recipe, or is damaged.
        VideoError: It is missing, or cannot be read.
    """
    options: Mapping[str, object] | None = None
    if sniff_kind(path) is None:
        recipe = read_recipe(path)
        record, options = recipe.record, recipe.options
    else:
        record = verify_artifact(path)
    if json_output:
        content = {
            "path": str(path),
            "kind": record.kind if options is None else "video",
            "content_key": content_key(record),
            "record": json.loads(record_text(record)),
        }
        typer.echo(json.dumps(content if options is None else content | {"export": options}))
        return
    made = f"made by cogedit {record.cogedit_version}"
    if options is None:
        rows = [
            ("file", f"{path} ({path.stat().st_size:,} bytes, all digests match)"),
            ("kind", f"{record.kind}, {made}"),
            ("content key", content_key(record)),
        ]
        rows += [(f"tensor {t.name}", f"{list(t.shape)} {t.dtype}") for t in record.tensors]
    else:
        rows = [
            ("file", str(path)),
            ("kind", f"video of {record.kind}, {made}"),
            ("content key", f"{content_key(record)} (of the {record.kind})"),
        ]
    for link in chain_of(record):
        rows += _stage_rows(link)
    if options is not None:
        rows.append(("export", _values(options)))
    show_rows(rows)


def _stage_rows(record: Record) -> list[tuple[str, str]]:
    if isinstance(record, FramesRecord):
        source, indices = record.source, record.shown_indices
        first, end = map(show_time, record.span)
        extra = record.num_extra_frames
        added = f", {extra} more were added at the end to reach 8n + 1" if extra else ""
        length = count_of(source.num_frames, "frame")
        return [
            ("source", f"{source.name}, {length}, read by {source.reader}"),
            ("source size", f"{source.width}x{source.height}, {show_rate(source.fps)}"),
            ("source sha256", source.sha256),
            ("load", _values(asdict(record.settings))),
            ("seconds", f"{first} to {end} of {show_time(source.num_frames / source.fps)}"),
            (
                "clip",
                f"{count_of(len(indices), 'frame')}, {indices[0]} to {indices[-1]}, "
                f"{show_rate(record.fps)}{added}",
            ),
        ]
    stage = MADE_BY[record.kind]
    rows = [(stage, _values(asdict(record.settings))), (f"{stage} model", _model(record.model))]
    if isinstance(record, TrajectoryRecord) and record.windows is not None:
        windows = record.windows
        rows.append(
            (
                "windows",
                f"of {windows.length} latent frames, which overlap by {windows.overlap} and move "
                f"by {windows.shift} at about every other timestep",
            )
        )
    if isinstance(record, EditRecord) and record.mask is not None:
        mask = record.mask
        digest = "" if mask.sha256 is None else f", sha256 {mask.sha256}"
        rows.append(("mask", f"{mask.kind} {mask.name}{digest}"))
    if isinstance(record, EditRecord) and record.first_frame is not None:
        picture = record.first_frame
        rows.append(("first frame", f"{picture.name}, sha256 of its pixels {picture.sha256}"))
    return rows


def _model(model: ModelRecord) -> str:
    revision = f"@{model.revision}" if model.revision is not None else ""
    weights = f" (weights in {model.weights})" if model.weights is not None else ""
    device = f" on {model.device}" if model.device is not None else ""
    torch = f", torch {model.torch}" if model.torch is not None else ""
    name = f"{model.id}{revision}{model.and_files}, digest {model.digest[:12]}"
    return f"{name}, in {model.dtype}{weights}{device}{torch}"


def _values(values: Mapping[str, object]) -> str:
    """Write settings as TOML does, without what is not set."""
    return ", ".join(
        f"{key} = {json.dumps(plain_value(value), ensure_ascii=False)}"
        for key, value in values.items()
        if value is not None
    )
