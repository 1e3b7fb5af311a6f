"""What a run is given for its one video, as its prompt is: a mask and a first frame."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from cogedit.config import Settings
from cogedit.errors import UsageError
from cogedit.media.masks import GivenMask
from cogedit.models.checkpoint import Checkpoint
from cogedit.sources import PictureSource
from cogedit.stages.arguments import as_path
from cogedit.stages.first_frame import GivenFirstFrame, take_first_frame
from cogedit.stages.mask import take_mask
from cogedit.types import ReconstructSettings


@dataclass(frozen=True)
class Given:
    """A mask and a first frame, each None where none was given."""

    mask: GivenMask | None = None
    first_frame: GivenFirstFrame | None = None

    @property
    def picture(self) -> PictureSource | None:
        """What is recorded of the first frame."""
        return None if self.first_frame is None else self.first_frame.source


def check_given(mask: str | Path | None, first_frame: str | Path | None) -> None:
    """Raise `UsageError` where one of them is an array or the like, and no file."""
    as_path(mask, "the mask")
    as_path(first_frame, "the first frame")


def take_given(
    video: Path,
    settings: Settings,
    checkpoint: Checkpoint,
    *,
    mask: str | Path | None,
    first_frame: str | Path | None,
) -> Given:
    """Identify the files that a run is given; errors are those of the two functions."""
    return Given(
        take_mask(mask, settings), take_first_frame(first_frame, video, settings, checkpoint)
    )


def options_for(
    prompts: str | Sequence[str], settings: Settings, *, first_frame: str | Path | None
) -> list[ReconstructSettings]:
    """The settings of an edit for each prompt; a first frame alone is an edit, too."""
    listed = isinstance(prompts, Iterable) and not isinstance(prompts, str | bytes)
    texts = []
    for text in prompts if listed else [prompts]:
        if not isinstance(text, str):
            raise UsageError(f"a prompt is {text!r}, expected text")
        texts.append(str(text))  # NumPy's text is no record's
    check_is_edit(texts, first_frame)
    return [settings.reconstruct_with(text) for text in texts or [""]]


def check_is_edit(prompts: Sequence[str], first_frame: str | Path | None) -> None:
    """Raise `UsageError` where there is neither a prompt nor a first frame."""
    if not prompts and first_frame is None:
        raise UsageError(
            "an edit needs a prompt, or a first frame",
            hint='--prompt "what the edit shows", or --first-frame with an image-to-video model',
        )
