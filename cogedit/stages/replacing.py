"""What an output may replace: an earlier one of the same, and by force what the user named."""

from __future__ import annotations

from pathlib import Path

from cogedit.artifacts import EditRecord, FramesRecord, Record, frames_record
from cogedit.config import Settings
from cogedit.errors import ArtifactError, UsageError, VideoError
from cogedit.media.files import file_digest
from cogedit.media.images import SUFFIXES, are_images, folder_of
from cogedit.sources import PictureSource
from cogedit.stages.again import export_again
from cogedit.stages.recipe import read_recipe
from cogedit.types import ReconstructSettings


def place_of_source(output: Path) -> Path:
    """The place of the source clip beside an exported one."""
    return output.with_name(f"{output.stem}-source{output.suffix}")


def check_replaceable(
    output: Path,
    edit: ReconstructSettings | None,
    first_frame: PictureSource | None = None,
) -> None:
    """Refuse, before an edit is made, to replace a file that is no export of such an edit.

    That is one with these settings as they are recorded, the prompt among them, by a first frame of
    this name or of the same pixels. Without an edit, refuse to replace what is no export of a
    source clip.
    """
    if not output.exists():
        return
    try:
        record = read_recipe(output).record
    except (VideoError, ArtifactError):
        record = None
    made, picture = None, None
    if isinstance(record, EditRecord):
        made, picture = record.settings, record.first_frame
    if picture is None or first_frame is None:
        is_by_it = picture is first_frame
    else:  # an edit that is reused may know an equal picture by another name
        is_by_it = first_frame.name == picture.name or first_frame.sha256 == picture.sha256
    if not isinstance(record, EditRecord | FramesRecord) or made != edit or not is_by_it:
        if edit is None:
            raise UsageError(
                f"{output} exists and is no source clip of an edit, which --with-source writes",
                hint="name another file with -o",
            )
        raise in_the_way(output, "this edit")


def check_not_source(output: Path, record: Record) -> None:
    """Refuse to replace the video that an artifact was made from, which no run may lose."""
    if output.is_file() and file_digest(output) == frames_record(record).source.sha256:
        raise UsageError(
            f"{output} is the video that the artifact was made from", hint="choose another -o"
        )


def in_the_way(
    path: Path, what: str, artifact: Path | None = None, settings: Settings | None = None
) -> UsageError:
    """Say that another file lies in the place of an export, and of which artifact it was to be.

    `settings` are those of the run that has made the artifact.
    """
    hint = "name another file with -o, or the same one with -o and --force to replace it"
    if artifact is not None and settings is not None:  # what is made already is not lost
        hint += f"; {artifact} is whole: {export_again(artifact, settings, '-o', 'FILE')}"
    return UsageError(f"{path} exists and is no export of {what}", hint=hint)


def is_replaced(file: Path, output: Path) -> bool:
    """Whether a file lies where an output will: it is that file, or in that folder.

    Nor does a picture become one of those that a run reads.
    """
    try:
        if are_images(file) and output.suffix.lower() in SUFFIXES:
            return output.parent.resolve() == folder_of(file).resolve()
        if not output.exists():
            return False
        if file.exists():
            return output.samefile(file) or output.resolve() in file.resolve().parents
        # A pattern of images, such as frames/%04d.png, is in a folder that exists.
        return output.resolve() == file.parent.resolve()
    except (OSError, ValueError):  # a text that is no file name, such as a mask's box
        return False


def is_of_a_model(folder: Path) -> bool:
    """Whether a folder is a part of a model, such as its transformer, wherever that lies."""
    return (folder.parent / "model_index.json").exists() and any(folder.glob("*config.json"))
