"""batch: rows of a batch file -> edited videos; one that fails does not keep the others."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

from cogedit.artifacts import EditRecord, Workspace
from cogedit.artifacts.atomic import storage_error
from cogedit.errors import CogeditError, Interrupted
from cogedit.stages.decode import Decoder
from cogedit.stages.edit import check_edit, export_edit, names_video
from cogedit.stages.export import check_replaceable
from cogedit.stages.mask import take_mask
from cogedit.stages.reconstruct import make_edits, trajectory_for
from cogedit.stages.run import Exported, Run, Written, check_writable
from cogedit.tools.batch_plan import BatchEdit
from cogedit.types import ShowStep

RESULTS = "results.jsonl"


@dataclass(frozen=True)
class BatchResult:
    """What became of an edit: a line of `results.jsonl`.

    Attributes:
        row: "row 3 of edits.csv".
        video: The video.
        prompt: What the edit shows.
        status: "written", "reused" (it was there already) or "failed".
        path: The edited video; None where it failed.
        exit_code: What the edit alone would have ended with.
        error: What was wrong, and what mends it; None where nothing was.
    """

    row: str
    video: str
    prompt: str
    status: Literal["written", "reused", "failed"]
    path: str | None
    exit_code: int = 0
    error: str | None = None


def batch(
    edits: Sequence[BatchEdit],
    *,
    results: Path | None = None,
    fail_fast: bool = False,
    run: Run | None = None,
) -> list[BatchResult]:
    """Make the edits of a batch, and go on after one that fails.

    Edits of one video under the same settings but those of the edit itself share the inversion,
    the model and, under settings that differ in the prompt and the seed alone, the rows of the
    source. What is there is reused.

    Args:
        edits: As `plan_batch` returns them.
        results: Where a line is appended for each edit when it is done; None is `results.jsonl`
            in `settings.workspace`, if all have the same one, else in the current directory.
        fail_fast: End with the first failure.
        run: How to run; None is silent.

    Returns:
        What became of the edits, in the order in which they were done.

    Raises:
        StorageError: `results` cannot be written.
        Interrupted: Somebody asked to stop; the results until then are kept.
    """
    path = results or _place_of_results(edits)
    if results is None:
        Workspace(path.parent).create()
    check_writable(path)
    done = _Batch(len(edits), path, fail_fast=fail_fast, run=run or Run())
    for together in _grouped(edits):
        done.make(together)
        if done.is_over:
            break
    return done.results


def _grouped(edits: Sequence[BatchEdit]) -> list[list[BatchEdit]]:
    """Bring edits together that share the most expensive work, in the order of the first."""
    groups: dict[object, list[BatchEdit]] = {}
    for edit in edits:
        groups.setdefault(edit.shared, []).append(edit)
    return [*groups.values()]


def _place_of_results(edits: Sequence[BatchEdit]) -> Path:
    folders = {edit.settings.workspace for edit in edits}
    folder = folders.pop() if len(folders) == 1 else None
    return (folder or Path()) / RESULTS


class _Batch:
    """A batch that runs.

    Args:
        total: Number of edits.
        path: Where their results go.
        fail_fast: End with the first failure.
        run: How to run.
    """

    def __init__(self, total: int, path: Path, *, fail_fast: bool, run: Run) -> None:
        self.results: list[BatchResult] = []
        self._total = total
        self._path = path
        self._fail_fast = fail_fast
        self._run = run

    @property
    def is_over(self) -> bool:
        """Whether nothing more is to be made."""
        return self._fail_fast and any(one.status == "failed" for one in self.results)

    def make(self, edits: Sequence[BatchEdit]) -> None:
        """Make edits that share the inversion."""
        sound = [edit for edit in edits if self._passes(edit)]
        if not sound or self.is_over:
            return
        first, last = len(self.results) + 1, len(self.results) + len(sound)
        which = f"{first}" if first == last else f"{first}-{last}"
        self._run.notify(f"{which} of {self._total}: {sound[0].video}")
        run = self._counting(f"{which}/{self._total}")
        video, settings = sound[0].video, sound[0].settings
        try:
            mask = take_mask(sound[0].mask, settings)
            trajectory = trajectory_for(video, settings, mask=mask, run=run)
        except Interrupted:
            raise
        except CogeditError as error:
            for edit in sound:
                if not self.is_over:
                    self._note(edit, error)
            return
        decoder = Decoder(settings, run=run)
        for edit, made in self._edited(sound, trajectory, run=run):
            if self.is_over:
                return
            try:
                shown = export_edit(
                    made, video, edit.settings, output=edit.output, run=run, decoder=decoder
                )
            except Interrupted:
                raise
            except CogeditError as error:
                self._note(edit, error)
                continue
            self._note(edit, shown)

    def _passes(self, edit: BatchEdit) -> bool:
        """Tell whether an edit can be made, as far as that is known beforehand."""
        if self.is_over:
            return False
        try:
            check_edit(edit.video, edit.settings, mask=edit.mask, output=edit.output)
            if edit.output is not None and names_video(edit.output) and not self._run.force:
                check_replaceable(edit.output, edit.asked.prompt)
        except CogeditError as error:
            self._note(edit, error)
            return False
        return True

    def _edited(
        self, edits: Sequence[BatchEdit], trajectory: Path, *, run: Run
    ) -> Iterator[tuple[BatchEdit, Written[EditRecord]]]:
        """Yield edits as they are made: all together, or one by one where that fails."""

        def made(some: Sequence[BatchEdit]) -> list[Written[EditRecord]]:
            return make_edits(
                trajectory,
                [edit.asked for edit in some],
                some[0].settings,
                mask=some[0].mask,
                output=None,
                save_trajectory=False,
                run=run,
            )

        try:
            yield from zip(edits, made(edits), strict=True)
        except Interrupted:
            raise
        except CogeditError as error:
            if len(edits) == 1:
                self._note(edits[0], error)
                return
            self._run.notify(f"together they fail ({error.message}); one by one")
            for edit in edits:
                if self.is_over:
                    return
                yield from self._edited([edit], trajectory, run=run)

    def _counting(self, which: str) -> Run:
        """The run of some edits: which of all they are stands before what is done."""
        run = self._run

        @contextmanager
        def progress(doing: str, total: int) -> Iterator[ShowStep]:
            with run.progress(f"{which} {doing}", total) as on_step:
                yield on_step

        return replace(run, progress=progress)

    def _note(self, edit: BatchEdit, became: Exported | CogeditError) -> None:
        """Keep what became of an edit, and say it."""
        result = _result(edit, became)
        self.results.append(result)
        line = json.dumps(asdict(result), ensure_ascii=False) + "\n"
        try:
            with self._path.open("ab") as file:
                file.write(line.encode(errors="surrogateescape"))
                file.flush()
                os.fsync(file.fileno())
        except OSError as error:
            raise storage_error(self._path, error, "write") from error
        told = f"{len(self.results)} of {self._total} {result.status}: "
        told += str(result.path) if result.error is None else f"{edit.where}: {result.error}"
        self._run.notify(told)


def _result(edit: BatchEdit, became: Exported | CogeditError) -> BatchResult:
    if isinstance(became, CogeditError):
        return BatchResult(
            row=edit.where,
            video=str(edit.video),
            prompt=edit.prompt,
            status="failed",
            path=None,
            exit_code=became.exit_code,
            error=str(became),
        )
    return BatchResult(
        row=edit.where,
        video=str(edit.video),
        prompt=edit.prompt,
        status="reused" if became.reused else "written",
        path=str(became.path),
    )
