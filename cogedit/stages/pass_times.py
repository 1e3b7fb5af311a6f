"""`runs.jsonl` of a workspace: how long inversions and edits took on this machine.

An artifact's record says nothing of the machine, so that equal runs give equal bytes. What is only
true of one run goes into this file beside the artifacts, one line per pass of the model. Only the
report reads it, and nothing is lost without it.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Self

import msgspec
from msgspec import Meta

from cogedit.artifacts import append_line, read_lines
from cogedit.errors import StorageError
from cogedit.progress import StepInfo

if TYPE_CHECKING:
    import torch

FILE = "runs.jsonl"

Amount = Annotated[float, Meta(ge=0, le=1e12)]
Number = Annotated[int, Meta(ge=0, le=2**53)]


@dataclass(frozen=True)
class RunNote:
    """One pass of the model.

    Attributes:
        content_keys: Of the artifacts that it made; several where it made them together.
        seconds: How long its steps took, without loading the model; None where it went on from an
            earlier run.
        device: What it ran on.
        peak_bytes: The most memory that its tensors took on a CUDA device; None elsewhere.
        steps: Per step of an inversion its timestep, its residual and its model calls.
    """

    content_keys: tuple[str, ...]
    seconds: Amount | None
    device: str
    peak_bytes: Number | None
    steps: tuple[tuple[Annotated[int, Meta(ge=-1)], Amount | None, Number], ...] = ()


class Stopwatch:
    """Measures the time and the memory of one pass of the model, the body of its `with`."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._started = self._seconds = 0.0

    def __enter__(self) -> Self:
        if self._device.type == "cuda":
            import torch

            torch.cuda.reset_peak_memory_stats(self._device)
        self._started = time.monotonic()
        return self

    def __exit__(self, *_: object) -> None:
        self._seconds = time.monotonic() - self._started

    def note(
        self,
        folder: Path | None,
        content_keys: Sequence[str],
        *,
        steps: Sequence[StepInfo] = (),
        is_whole: bool = True,
    ) -> None:
        """Append what the pass took to the notes of a workspace; of None, nothing.

        The time means something if the pass `is_whole`: it began with the first step.
        """
        if folder is None:
            return
        import torch

        on_cuda = self._device.type == "cuda"
        note = RunNote(
            content_keys=tuple(content_keys),
            seconds=round(self._seconds, 3) if is_whole else None,
            device=torch.cuda.get_device_name(self._device) if on_cuda else self._device.type,
            peak_bytes=torch.cuda.max_memory_allocated(self._device) if on_cuda else None,
            steps=tuple((step.timestep, step.residual, step.num_calls) for step in steps),
        )
        # The artifact is what counts: where this cannot be written, it could not be either.
        with contextlib.suppress(StorageError):
            append_line(folder / FILE, msgspec.json.encode(note))


def read_notes(folder: Path) -> dict[str, RunNote]:
    """Read the note of each artifact by content key, of several runs the last.

    Lines of another form, or cut short, are skipped.
    """
    notes: dict[str, RunNote] = {}
    try:
        lines = read_lines(folder / FILE)
    except StorageError:
        return notes
    for line in lines:
        with contextlib.suppress(ValueError, RecursionError):
            note = msgspec.json.decode(line, type=RunNote)
            notes |= dict.fromkeys(note.content_keys, note)
    return notes
