"""An artifact that the user names: what it may be called, and where it may lie."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from cogedit.errors import UsageError
from cogedit.media.images import VIDEO_OR_PICTURE
from cogedit.stages.run import Run, check_output


def check_artifact(
    output: Path | None,
    *,
    inputs: Iterable[Path | str | None],
    num_edits: int = 1,
    run: Run,
) -> None:
    """Refuse, before any stage runs, a name that cannot be an artifact's.

    Args:
        output: The artifact; None is its place in the workspace.
        inputs: Files that the run reads, beside `run.inputs`.
        num_edits: How many artifacts the run makes.
        run: How it runs.

    Raises:
        UsageError: It names one file for several edits, a file that the run reads, or a video or a
            picture, which an artifact is not.
        StorageError: It cannot be written there.
    """
    if output is not None and num_edits > 1:
        raise UsageError(
            f"-o names one file, and there are {num_edits} prompts",
            hint="leave -o out: each edit gets a name of its own in the workspace",
        )
    check_output(output, inputs=inputs, run=run)
    if output is None:
        return
    if output.suffix.lower() in VIDEO_OR_PICTURE:
        raise UsageError(
            f"an artifact is written as a safetensors file; found -o {output}",
            hint="end it in .safetensors; `cogedit export` writes an artifact as a video",
        )
