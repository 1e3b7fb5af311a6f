"""batch: rows of a batch file -> edited videos; a failed edit does not stop the others."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Generator, Sequence
from dataclasses import asdict
from pathlib import Path

import msgspec

from cogedit.artifacts import Workspace, append_line, check_journal, keep_in_use
from cogedit.artifacts.locks import MAX_FOLDERS
from cogedit.errors import CogeditError
from cogedit.stages.reconstruct import expect_prompts
from cogedit.stages.run import Run, check_output, workspace_for
from cogedit.stages.session import Session, use_session
from cogedit.tools.batch_driver import Job, Start, drive, ending
from cogedit.tools.batch_group import BatchResult, groups_of
from cogedit.tools.batch_plan import BatchEdit
from cogedit.tools.batch_shared import Heard, SharedList, make_shared

RESULTS = "results.jsonl"


def batch(
    edits: Sequence[BatchEdit],
    *,
    results: Path | None = None,
    fail_fast: bool = False,
    start: Start | None = None,
    run: Run | None = None,
    session: Session | None = None,
) -> list[BatchResult]:
    """Make the edits of a batch, and go on after one that fails.

    Edits of one video under the same settings but those of the edit itself share the inversion,
    the model and, under settings that differ in the prompt and the seed alone, the rows of the
    source. What exists is reused. Several processes may be given the same edits and `results`:
    each makes some of them, and returns the outcomes of all.

    Args:
        edits: As `plan_batch` returns them.
        results: Where a line is appended for each edit when it is done; None is `results.jsonl`
            in `settings.workspace`, if all have the same one, else in the current directory.
        fail_fast: End with the first failure.
        start: Starts workers that make the edits (`start_local`, `start_ray`); None makes them in
            this process.
        run: How to run; None is silent.
        session: Holds the loaded model, without workers; None loads it for this call.

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
    inputs = [path for edit in edits for path in edit.inputs]
    check_output(path, inputs=inputs, run=run)
    check_journal(path, _is_result, holds="results of a batch")
    with use_session(session) as owner:
        keep_in_use(path.parent)
        for edit in edits[: MAX_FOLDERS - 1]:
            with contextlib.suppress(CogeditError):  # told when its turn comes
                keep_in_use(workspace_for(edit.video, edit.settings).root)
        done = _Results(len(edits), path, run)
        with (
            contextlib.closing(SharedList(groups_of(edits), path, force=run.force)) as shared,
            contextlib.closing(_made(edits, shared, start, run, owner)) as made,
        ):
            for outcome in made:
                result = done.add(outcome)
                if result.status == "failed" and fail_fast:
                    break
    return done.all


def _made(
    edits: Sequence[BatchEdit], shared: SharedList, start: Start | None, run: Run, session: Session
) -> Generator[BatchResult | Heard, None, None]:
    """Make the edits as their outcomes are requested, here or by workers."""
    options = tuple(edit.reconstruct for edit in edits)
    if start is None:
        expect_prompts(options, session)
        yield from make_shared(shared, run=run, session=session)
        return
    job = Job(
        Path.cwd(),
        options=options,
        force=run.force,
        inputs=run.inputs,
        has_preview=run.preview is not None,
    )
    with ending(start(job, edits)) as workers:
        yield from drive(shared, workers, run)


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


class _Results:
    """Writes down and reports the outcomes of a batch: the only place that does."""

    def __init__(self, total: int, path: Path, run: Run) -> None:
        self.all: list[BatchResult] = []
        self._total = total
        self._path = path
        self._run = run

    def add(self, outcome: BatchResult | Heard) -> BatchResult:
        """Append an outcome to the file, unless another process has, and report it."""
        result = outcome.result if isinstance(outcome, Heard) else outcome
        self.all.append(result)
        if result is outcome:
            append_line(self._path, _line(result))
        status = result.status if result is outcome else f"{result.status} by another process"
        detail = result.path if result.error is None else f"{result.row}: {result.error}"
        self._run.notify(f"{len(self.all)} of {self._total} {status}: {detail}")
        return result
