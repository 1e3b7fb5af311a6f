"""A group of a batch: edits that share an inversion, made together by any process."""

from __future__ import annotations

import contextlib
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from cogedit.artifacts import EditRecord
from cogedit.artifacts.locks import MAX_FOLDERS
from cogedit.errors import (
    CogeditError,
    Interrupted,
    StorageError,
    UsageError,
    VideoError,
    WorkerDied,
    first_line,
    memory_expected,
)
from cogedit.stages.arguments import as_path
from cogedit.stages.claim import claim
from cogedit.stages.edit import check_edit, export_edit, names_video
from cogedit.stages.given import Given, take_given
from cogedit.stages.inverted import Inverted, trajectory_for
from cogedit.stages.model import checkpoint_for
from cogedit.stages.reconstruct import make_edits
from cogedit.stages.run import Exported, Run, Written
from cogedit.stages.session import Session
from cogedit.tools.batch_plan import BatchEdit, check_here, check_output_of


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
        key: Stands for the edit with all its settings (`BatchEdit.key`).
        first_frame: Its first frame; None is the source's own.
        is_of_machine: Whether it failed for a video, a package or a device that this machine lacks,
            or its workers died, where another machine may do better.
    """

    row: str
    video: str
    prompt: str
    status: Literal["written", "reused", "failed"]
    path: str | None
    exit_code: int = 0
    error: str | None = None
    key: str | None = None
    first_frame: str | None = None
    is_of_machine: bool = False


@dataclass(frozen=True)
class Group:
    """Edits that share the inversion and the source's rows: what a process makes at a time.

    It can be pickled: another process needs nothing else to make it.

    Attributes:
        edits: The edits, with all their settings.
        numbers: Their places in the batch, "3-5".
        total: How many edits the batch has.
    """

    edits: tuple[BatchEdit, ...]
    numbers: str
    total: int

    def without(self, result: BatchResult) -> Group:
        """Return the group without the edit of an outcome; of equal ones, without one."""
        done = (result.row, result.video, result.prompt)
        keys = [(edit.where, str(edit.video), edit.prompt) for edit in self.edits]
        index = keys.index(done)
        return replace(self, edits=self.edits[:index] + self.edits[index + 1 :])


def groups_of(edits: Sequence[BatchEdit]) -> list[Group]:
    """Put the edits together that share an inversion, in the order of their first ones."""
    found: dict[object, list[BatchEdit]] = {}
    for edit in edits:
        found.setdefault(edit.group, []).append(edit)
    groups, last = [], 0
    for together in found.values():
        first, last = last + 1, last + len(together)
        numbers = f"{first}" if first == last else f"{first}-{last}"
        groups.append(Group(tuple(together), numbers, len(edits)))
    return groups


def make_group(group: Group, *, run: Run, session: Session) -> Iterator[BatchResult]:
    """Make the edits of a group as their outcomes are requested; yield the outcome of each.

    An edit that fails is an outcome. Outcomes are neither written down nor reported here.

    Raises:
        Interrupted: A stop was requested.
    """
    ready: list[BatchEdit] = []
    with contextlib.ExitStack() as claims:
        for edit in group.edits:
            try:
                _check(edit, run)
                few = len(ready) < MAX_FOLDERS  # of more, the export itself claims each
                named = as_path(edit.output) if names_video(edit.output) and few else None
                run = claims.enter_context(claim(named, run))
                ready.append(edit)
            except Interrupted:
                raise
            except CogeditError as error:
                yield result_of(edit, error)
        if ready:
            run.notify(f"{group.numbers} of {group.total}: {ready[0].video}")
            yield from _made(ready, _counting(run, f"{group.numbers}/{group.total}"), session)


def make_or_fail(group: Group, *, run: Run, session: Session) -> Iterator[BatchResult]:
    """Make a group where no other process would try it again: what nobody foresaw is an outcome.

    A bug or a broken GPU fails the edit that meets it, with its traceback as notes. Those that were
    begun with it are made one by one.

    Raises:
        Interrupted: A stop was requested.
    """
    left = group
    try:
        with memory_expected("this clip"):
            for result in make_group(group, run=run, session=session):
                left = left.without(result)
                yield result
        return
    except Interrupted:
        raise
    except CogeditError as error:
        problem = error
    except Exception as error:
        if run.cancellation.immediate:  # a library may have turned the interrupt into this
            raise
        for line in traceback.format_exc().splitlines():
            run.notify(line)
        kind = StorageError if isinstance(error, OSError) else CogeditError
        problem = kind(f"{type(error).__name__}: {first_line(error)}")
    # Outside of the handlers, as they hold what the failed edit has loaded.
    if len(left.edits) == 1:
        yield result_of(left.edits[0], problem)
        return
    for edit in left.edits:
        yield from make_or_fail(replace(left, edits=(edit,)), run=run, session=session)


def result_of(edit: BatchEdit, outcome: Exported | CogeditError) -> BatchResult:
    """Describe what became of an edit."""
    where, video, picture = edit.where, str(edit.video), edit.first_frame
    result = BatchResult(
        where, video, edit.prompt, "failed", None, key=edit.key, first_frame=picture
    )
    if isinstance(outcome, CogeditError):
        is_of_machine = _is_of_machine(edit, outcome)
        code, error = outcome.exit_code, str(outcome)
        return replace(result, exit_code=code, error=error, is_of_machine=is_of_machine)
    status: Literal["reused", "written"] = "reused" if outcome.reused else "written"
    return replace(result, status=status, path=str(outcome.path))


def _is_of_machine(edit: BatchEdit, error: CogeditError) -> bool:
    """Whether an error is one of what this machine alone has not: files, options or memory."""
    if isinstance(error, WorkerDied):
        return True
    if isinstance(error, VideoError):
        return not edit.video.exists()  # a disk that is not mounted, or a video that nobody has
    if isinstance(error, UsageError):
        try:
            check_here(edit.settings)
        except CogeditError as own:
            return own.message == error.message
    return False


def _check(edit: BatchEdit, run: Run) -> None:
    check_edit(
        edit.video,
        edit.settings,
        mask=edit.mask,
        first_frame=edit.first_frame,
        output=edit.output,
        run=run,
    )
    check_output_of(edit, run)


def _made(ready: Sequence[BatchEdit], run: Run, session: Session) -> Iterator[BatchResult]:
    """Make edits that were checked, and whose outputs no other process writes meanwhile."""
    video, settings = ready[0].video, ready[0].settings
    session.expect_decoding()
    try:
        checkpoint, first = checkpoint_for(settings), ready[0]
        given = take_given(
            video, settings, checkpoint, mask=first.mask, first_frame=first.first_frame
        )
        options = [edit.reconstruct for edit in ready]
        inverted = trajectory_for(video, options, settings, given=given, run=run, session=session)
    except Interrupted:
        raise
    except CogeditError as error:
        if isinstance(error, UsageError) and len(ready) > 1:
            # Some may exist, which need no kernel that is missing here.
            for edit in ready:
                yield from _made([edit], run, session)
        else:
            yield from (result_of(edit, error) for edit in ready)
        return
    for edit, made in _edited(ready, inverted, given=given, run=run, session=session):
        outcome = made if isinstance(made, CogeditError) else _exported(edit, made, run, session)
        yield result_of(edit, outcome)


def _edited(
    edits: Sequence[BatchEdit],
    inverted: Inverted,
    *,
    given: Given,
    run: Run,
    session: Session,
) -> Iterator[tuple[BatchEdit, Written[EditRecord] | CogeditError]]:
    """Yield edits as they are made: all together, or one by one where that fails."""
    try:
        with memory_expected("these edits"):
            written = make_edits(
                inverted,
                [edit.reconstruct for edit in edits],
                edits[0].settings,
                given=given,
                run=run,
                session=session,
            )
    except Interrupted:
        raise
    except CogeditError as error:
        if len(edits) == 1:
            yield edits[0], error
            return
        run.notify(f"together they fail ({error.message}); trying one by one")
        for edit in edits:
            yield from _edited([edit], inverted, given=given, run=run, session=session)
    else:
        yield from zip(edits, written, strict=True)


def _exported(
    edit: BatchEdit, made: Written[EditRecord], run: Run, session: Session
) -> Exported | CogeditError:
    try:
        with memory_expected("this video"):
            return export_edit(
                made, edit.video, edit.settings, output=edit.output, run=run, session=session
            )
    except Interrupted:
        raise
    except CogeditError as error:
        return error


def _counting(run: Run, numbers: str) -> Run:
    """Return a run whose reports start with the numbers of its edits."""
    return replace(
        run,
        progress=lambda doing, total: run.progress(f"{numbers} {doing}", total),
        notify=lambda text: run.notify(f"{numbers} {text}"),
        detail=lambda text: run.detail(f"{numbers} {text}"),
    )
