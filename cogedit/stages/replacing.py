"""What an export may replace: an earlier export of the same, and by force what the user named."""

from __future__ import annotations

import shlex
from pathlib import Path

from cogedit.artifacts import EditRecord, FramesRecord, Record, frames_record
from cogedit.errors import ArtifactError, UsageError, VideoError
from cogedit.media.files import file_digest
from cogedit.stages.recipe import read_recipe


def place_of_source(output: Path) -> Path:
    """The place of the source clip beside an exported one."""
    return output.with_name(f"{output.stem}-source{output.suffix}")


def check_replaceable(output: Path, prompt: str | None) -> None:
    """Refuse, before an edit is made, to replace a file that is no export of this prompt's edit.

    Without a prompt, one that is no export of a source clip.
    """
    if not output.exists():
        return
    try:
        record = read_recipe(output).record
    except (VideoError, ArtifactError):
        record = None
    shown = record.settings.prompt if isinstance(record, EditRecord) else None
    if not isinstance(record, EditRecord | FramesRecord) or shown != prompt:
        raise in_the_way(output, "this edit")


def check_not_source(output: Path, record: Record) -> None:
    """Refuse to replace the video that an artifact was made from, which no run may lose."""
    if output.is_file() and file_digest(output) == frames_record(record).source.sha256:
        raise UsageError(
            f"{output} is the video that the artifact was made from", hint="choose another -o"
        )


def in_the_way(path: Path, what: str, artifact: Path | None = None) -> UsageError:
    """Say that another file lies in the place of an export, and of which artifact it was to be."""
    hint = "name another file with -o, or the same one with -o and --force to replace it"
    if artifact is not None:  # what is made already is not lost
        hint += f"; {artifact} is whole: cogedit export {shlex.quote(str(artifact))} -o FILE"
    return UsageError(f"{path} exists and is no export of {what}", hint=hint)
