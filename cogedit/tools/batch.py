"""batch: rows of a batch file -> edited videos; a failed edit does not stop the others."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Literal

import msgspec

from cogedit.artifacts import EditRecord, Workspace, append_line, check_journal, keep_in_use
from cogedit.artifacts.locks import MAX_FOLDERS
from cogedit.errors import CogeditError, Interrupted, memory_expected
from cogedit.media.masks import GivenMask
from cogedit.progress import ShowStep
from cogedit.stages.edit import check_edit, export_edit, names_video
from cogedit.stages.mask import take_mask
from cogedit.stages.reconstruct import expect_prompts, make_edits, trajectory_for
from cogedit.stages.replacing import check_replaceable
from cogedit.stages.run import Exported, Run, Written, check_output, claim, workspace_for
from cogedit.stages.session import Session, use_session
from cogedit.tools.batch_plan import BatchEdit

RESULTS = "results.jsonl"


@dataclass(frozen=True)
class BatchResult:
    """The outcome of an edit: a line of `results.jsonl`.

    Attributes:
        row: "row 3 of edits.csv".
        video: The video.
        prompt: What the edit shows.
        status: "written", "reused" (it existed) or "failed".
        path: The edited video; None where it failed.
        exit_code: What the edit alone would have ended with.
        error: The error with its hint; None without one.
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
    session: Session | None = None,
) -> list[BatchResult]:
    """Make the edits of a batch, and go on after one that fails.

    Edits of one video under the same settings but those of the edit itself share the inversion,
    the model and, under settings that differ in the prompt and the seed alone, the rows of the
    source. What exists is reused.

    Args:
        edits: As `plan_batch` returns them.
        results: Where a line is appended for each edit when it is done; None is `results.jsonl`
            in `settings.workspace`, if all have the same one, else in the current directory.
        fail_fast: End with the first failure.
        run: How to run; None is silent.
        session: Holds the loaded model; None loads it for this call.

    Returns:
        The outcomes of the edits, in the order in which they were done.

    Raises:
        UsageError: `results` is a file that holds something else.
        StorageError: `results` cannot be written, or is a link or no regular file.
        Interrupted: A stop was requested; the results until then are kept.
    """
    path = results or _place_of_results(edits)
    if results is None:
        Workspace(path.parent).create()
    run = run or Run()
    inputs = [name for edit in edits for name in (edit.video, edit.mask)]
    check_output(path, inputs=inputs, run=run)
    check_journal(path, _is_result, holds="results of a batch")
    groups: dict[object, list[BatchEdit]] = {}
    for edit in edits:
        groups.setdefault(edit.group, []).append(edit)
    with use_session(session) as owner:
        keep_in_use(path.parent)
        for edit in edits[: MAX_FOLDERS - 1]:
            with contextlib.suppress(CogeditError):  # told when its turn comes
                keep_in_use(workspace_for(edit.video, edit.settings).root)
        expect_prompts([edit.reconstruct for edit in edits], owner)
        job = _Batch(len(edits), path, run, owner)
        for outcome in (outcome for group in groups.values() for outcome in job.outcomes(group)):
            if outcome.status == "failed" and fail_fast:
                break
    return job.results


def _place_of_results(edits: Sequence[BatchEdit]) -> Path:
    folders = {edit.settings.workspace for edit in edits}
    folder = folders.pop() if len(folders) == 1 else None
    return (folder or Path()) / RESULTS


def _line(result: BatchResult) -> bytes:
    """A result as it is written."""
    try:
        return json.dumps(asdict(result), ensure_ascii=False).encode()
    except UnicodeEncodeError:  # a path that is no UTF-8
        return json.dumps(asdict(result)).encode()


def _is_result(line: bytes) -> bool:
    """Whether a line is a result, or what a full disk left of one."""
    with contextlib.suppress(msgspec.MsgspecError):
        msgspec.json.decode(line.decode(errors="replace"), type=BatchResult)
        return True
    return b'{"row":'.startswith(line.replace(b" ", b"")[:7]) and not _is_json(line)


def _is_json(line: bytes) -> bool:
    try:
        json.loads(line)
    except (ValueError, RecursionError):
        return False
    return True


class _Batch:
    """A running batch: makes edits as their outcomes are requested, and writes each down."""

    def __init__(self, total: int, path: Path, run: Run, session: Session) -> None:
        self.results: list[BatchResult] = []
        self._total = total
        self._path = path
        self._run = run
        self._session = session

    def outcomes(self, group: Sequence[BatchEdit]) -> Iterator[BatchResult]:
        """Make edits that share the inversion; yield the outcome of each."""
        ready: list[BatchEdit] = []
        with contextlib.ExitStack() as claims:
            run = self._run
            for edit in group:
                try:
                    self._check(edit)
                    few = len(ready) < MAX_FOLDERS  # of more, the export itself claims each
                    named = edit.output if names_video(edit.output) and few else None
                    run = claims.enter_context(claim(named, run))
                    ready.append(edit)
                except CogeditError as error:
                    yield self._note(edit, error)
            if ready:
                yield from self._made(ready, run)

    def _made(self, ready: Sequence[BatchEdit], run: Run) -> Iterator[BatchResult]:
        """Make edits that were checked, and whose outputs no other process writes meanwhile."""
        first, last = len(self.results) + 1, len(self.results) + len(ready)
        numbers = f"{first}" if first == last else f"{first}-{last}"
        run.notify(f"{numbers} of {self._total}: {ready[0].video}")
        run = self._counting(run, f"{numbers}/{self._total}")
        video, settings = ready[0].video, ready[0].settings
        try:
            mask = take_mask(ready[0].mask, settings)
            trajectory = trajectory_for(video, settings, mask=mask, run=run, session=self._session)
        except Interrupted:
            raise
        except CogeditError as error:
            for edit in ready:
                yield self._note(edit, error)
            return
        for edit, made in self._edited(ready, trajectory, mask=mask, run=run):
            if isinstance(made, Written):
                yield self._note(edit, self._exported(edit, made, run=run))
            else:
                yield self._note(edit, made)

    def _check(self, edit: BatchEdit) -> None:
        check_edit(edit.video, edit.settings, mask=edit.mask, output=edit.output, run=self._run)
        if edit.output is not None and names_video(edit.output) and not self._run.force:
            check_replaceable(edit.output, edit.prompt)

    def _edited(
        self, edits: Sequence[BatchEdit], trajectory: Path, *, mask: GivenMask | None, run: Run
    ) -> Iterator[tuple[BatchEdit, Written[EditRecord] | CogeditError]]:
        """Yield edits as they are made: all together, or one by one where that fails."""
        try:
            with memory_expected("these edits"):
                written = make_edits(
                    trajectory,
                    [edit.reconstruct for edit in edits],
                    edits[0].settings,
                    mask=mask,
                    run=run,
                    session=self._session,
                )
        except Interrupted:
            raise
        except CogeditError as error:
            if len(edits) == 1:
                yield edits[0], error
                return
            run.notify(f"together they fail ({error.message}); trying one by one")
            for edit in edits:
                yield from self._edited([edit], trajectory, mask=mask, run=run)
        else:
            yield from zip(edits, written, strict=True)

    def _exported(
        self, edit: BatchEdit, made: Written[EditRecord], *, run: Run
    ) -> Exported | CogeditError:
        try:
            with memory_expected("this video"):
                return export_edit(
                    made,
                    edit.video,
                    edit.settings,
                    output=edit.output,
                    run=run,
                    session=self._session,
                )
        except Interrupted:
            raise
        except CogeditError as error:
            return error

    def _counting(self, run: Run, numbers: str) -> Run:
        """Return a run whose progress starts with the numbers of its edits."""

        @contextmanager
        def progress(doing: str, total: int) -> Iterator[ShowStep]:
            with run.progress(f"{numbers} {doing}", total) as on_step:
                yield on_step

        return replace(run, progress=progress)

    def _note(self, edit: BatchEdit, outcome: Exported | CogeditError) -> BatchResult:
        """Write the outcome of an edit down, and report it."""
        result = BatchResult(edit.where, str(edit.video), edit.prompt, "failed", None)
        if isinstance(outcome, CogeditError):
            result = replace(result, exit_code=outcome.exit_code, error=str(outcome))
        else:
            status: Literal["reused", "written"] = "reused" if outcome.reused else "written"
            result = replace(result, status=status, path=str(outcome.path))
        self.results.append(result)
        append_line(self._path, _line(result))
        detail = result.path if result.error is None else f"{edit.where}: {result.error}"
        self._run.notify(f"{len(self.results)} of {self._total} {result.status}: {detail}")
        return result
