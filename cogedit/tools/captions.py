"""How edits are named in comparisons, contact sheets and reports."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from cogedit.artifacts import EditRecord, ModelRecord
from cogedit.config import plain_value
from cogedit.schema import flag_name
from cogedit.types import InvertSettings, ReconstructSettings


def setting_name(key: str) -> str:
    """Write the key of a setting as its flag has it."""
    return flag_name(f"reconstruct.{key}").removeprefix("--")


def setting_text(value: object) -> str:
    """Write the value of a setting as TOML has it, without quotes."""
    plain = plain_value(value)
    if plain is None:
        return "auto"
    return (plain if isinstance(plain, str) else json.dumps(plain)) or "(empty)"


def describe_settings(settings: ReconstructSettings | InvertSettings) -> dict[str, str]:
    """Return the names and values of all settings, without the prompt of an edit."""
    is_edit = isinstance(settings, ReconstructSettings)
    return {
        setting_name(name): setting_text(value)
        for name, value in asdict(settings).items()
        if not (is_edit and name == "prompt")
    }


def describe_model(model: ModelRecord) -> str:
    """Name a model and the dtype that it computed in."""
    at = "" if model.revision is None else f" at {model.revision[:12]}"
    return f"{model.id}{at}{model.and_files}, {model.dtype}"


def describe_edit(record: EditRecord) -> dict[str, str]:
    """Return everything that a user chooses for an edit beside its prompt, by name."""
    mask = "none" if record.mask is None else f"{record.mask.kind} {record.mask.name}"
    first_frame = "the source's" if record.first_frame is None else record.first_frame.name
    inversion = describe_settings(record.trajectory.settings)
    return {
        "mask": mask,
        "first-frame": first_frame,
        **describe_settings(record.settings),
        **{f"source-{name}": text for name, text in inversion.items()},
        "model": describe_model(record.model),
    }


def distinctions(edits: Sequence[tuple[Path, EditRecord]]) -> list[dict[str, str]]:
    """Return, for each edit, what the other edits under its prompt do not share.

    Edits that no setting tells apart are told apart by their file names; an edit that is alone
    under its prompt needs nothing.
    """
    choices = [describe_edit(record) for _, record in edits]
    distinct = []
    for (path, record), own in zip(edits, choices, strict=True):
        same_prompt = [
            other
            for (_, edit), other in zip(edits, choices, strict=True)
            if edit.settings.prompt == record.settings.prompt
        ]
        differing = {
            name: text
            for name, text in own.items()
            if any(other[name] != text for other in same_prompt)
        }
        if same_prompt.count(own) > 1:
            differing["file"] = path.name
        distinct.append(differing)
    return distinct
