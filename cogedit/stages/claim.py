"""One command at a time writes an output."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

from cogedit.artifacts import in_use, writing_alone
from cogedit.errors import UsageError
from cogedit.stages.run import Run, is_made_elsewhere


@contextmanager
def claim(output: Path | None, run: Run, *, is_ours: bool = False) -> Iterator[Run]:
    """Keep other commands from writing an output while the block runs.

    Yields the run that holds the claim, for the stages inside of the block.

    Args:
        output: The file; None claims nothing.
        run: With `force`, it goes on beside others.
        is_ours: Its name is one of cogedit's own, which says what is in it. Another command that
            writes it makes the same, and is waited for.

    Raises:
        UsageError: Another process is writing it.
    """
    if output is None:
        yield run
        return
    # Two ways to write one place are one claim: whoever holds it would wait for itself.
    place = Path(os.path.realpath(output.parent)) / output.name
    if place in run.claims:
        yield run
        return
    if is_ours:
        text = is_made_elsewhere(output)
    else:
        text = (
            f"{output} was being written on another machine, or before this one was started "
            "again; waiting up to four minutes for a sign of life"
        )
    waiting = None if run.force else run.while_waiting(text)
    with (
        in_use(place.parent),
        writing_alone(place, waiting=waiting, until_free=is_ours and not run.force) as alone,
    ):
        if not alone and not run.force:
            raise UsageError(
                f"another process is writing {output}", hint="choose another -o, or wait for it"
            )
        yield replace(run, claims=run.claims | {place})
