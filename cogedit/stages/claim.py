"""One command at a time writes an output that was named."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from cogedit.artifacts import in_use, writing_alone
from cogedit.errors import UsageError
from cogedit.stages.run import Run


@contextmanager
def claim(output: Path | None, run: Run) -> Iterator[Run]:
    """Keep other commands from writing an output while the block runs.

    Yields the run that holds the claim, for the stages inside of the block.

    Raises:
        UsageError: Another process is writing it, and `run.force` is off.
    """
    if output is None or output.absolute() in run.claims:
        yield run
        return
    place = output.absolute()
    waiting = run.while_waiting(
        f"{output} was being written on another machine, or before this one was started again; "
        "waiting up to four minutes for a sign of life"
    )
    with (
        in_use(place.parent),
        writing_alone(place, waiting=None if run.force else waiting) as alone,
    ):
        if not alone and not run.force:
            raise UsageError(
                f"another process is writing {output}", hint="choose another -o, or wait for it"
            )
        yield replace(run, claims=run.claims | {place})
